//! Vector kernels of attention: 16-bit floats, exponentials, blends.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::inference::candle::simd::{Isa, Job, PANEL, exp2};
use crate::inference::candle::vector::Vector;

impl Isa {
    pub(super) fn widen_halves(self, halves: &[u16], out: &mut [f32]) {
        assert!(halves.len() == out.len() && halves.len().is_multiple_of(PANEL));
        self.run(WidenHalves { halves, out });
    }

    pub(super) fn narrow_floats(self, floats: &[f32], out: &mut [u16]) {
        assert!(floats.len() == out.len() && floats.len().is_multiple_of(PANEL));
        self.run(NarrowFloats { floats, out });
    }

    /// Replaces the visible scores of a row by their exponentials relative to the greatest, and
    /// the others by zero; returns the greatest score and the sum.
    pub(super) fn exponentials(
        self,
        scores: &mut [f32],
        visible: Range<usize>,
        scale: f32,
    ) -> (f32, f32) {
        assert!(visible.end <= scores.len() && scores.len().is_multiple_of(PANEL));
        let mut result = (f32::MIN, 0.0);
        if visible.is_empty() {
            scores.fill(0.0);
            return result;
        }
        scores[..visible.start].fill(f32::MIN);
        scores[visible.end..].fill(f32::MIN);
        self.run(Exponentials { scores, scale, result: &mut result });
        result
    }

    /// `sums = sums * keep + added * factor`.
    pub(super) fn blend(self, sums: &mut [f32], keep: f32, added: &[f32], factor: f32) {
        assert!(sums.len() == added.len() && sums.len().is_multiple_of(PANEL));
        self.run(Blend { sums, keep, added, factor });
    }
}

struct WidenHalves<'a> {
    halves: &'a [u16],
    out: &'a mut [f32],
}

impl Job for WidenHalves<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for at in (0..self.halves.len()).step_by(V::LANES) {
            // SAFETY: both slices have the same whole number of vectors.
            unsafe {
                let value = V::load_halves(self.halves.as_ptr().add(at));
                value.store(self.out.as_mut_ptr().add(at));
            }
        }
    }
}

struct NarrowFloats<'a> {
    floats: &'a [f32],
    out: &'a mut [u16],
}

impl Job for NarrowFloats<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for at in (0..self.floats.len()).step_by(V::LANES) {
            // SAFETY: both slices have the same whole number of vectors.
            unsafe {
                let value = V::load(self.floats.as_ptr().add(at));
                value.store_halves(self.out.as_mut_ptr().add(at));
            }
        }
    }
}

struct Exponentials<'a> {
    scores: &'a mut [f32],
    scale: f32,
    result: &'a mut (f32, f32),
}

impl Job for Exponentials<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let len = self.scores.len();
        let scores = self.scores.as_mut_ptr();
        // SAFETY: the scores are whole vectors.
        unsafe {
            let scale = V::splat(self.scale * std::f32::consts::LOG2_E);
            let mut top = V::splat(f32::MIN);
            for at in (0..len).step_by(V::LANES) {
                top = top.max(V::load(scores.add(at)));
            }
            let greatest = top.reduce_max();
            let top = V::splat(greatest);
            let mut sum = V::splat(0.0);
            for at in (0..len).step_by(V::LANES) {
                // Hidden scores are so low that their power of two is exactly zero.
                let weight = exp2(V::load(scores.add(at)).sub(top).mul(scale));
                weight.store(scores.add(at));
                sum = sum.add(weight);
            }
            *self.result = (greatest, sum.reduce_add());
        }
    }
}

struct Blend<'a> {
    sums: &'a mut [f32],
    keep: f32,
    added: &'a [f32],
    factor: f32,
}

impl Job for Blend<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: both slices have the same whole number of vectors.
        unsafe {
            let (keep, factor) = (V::splat(self.keep), V::splat(self.factor));
            for at in (0..self.sums.len()).step_by(V::LANES) {
                let kept = V::load(self.sums.as_ptr().add(at)).mul(keep);
                let added = V::load(self.added.as_ptr().add(at));
                added.mul_add(factor, kept).store(self.sums.as_mut_ptr().add(at));
            }
        }
    }
}
