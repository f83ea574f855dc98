//! Vector kernels of language models: products with coded weights, norms, gates, rotations.
//!
//! Invariant: a weight has the same value whether it is unpacked for a product of many rows or
//! read by a product of one row, and both sum over the depth in ascending order by one
//! accumulator. So a token's hidden state does not depend on how many tokens run beside it
//! (except on the portable path).
#![allow(unsafe_code)]

use std::ops::Range;

use super::panels::{BLOCK, Coded, Panels, Weights};
use crate::inference::candle::simd::{Isa, Job, PANEL, exp2};
use crate::inference::candle::vector::Vector;

/// Vectors of the narrowest type in a panel's row.
const VECTORS_MAX: usize = 4;

/// The gate of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh form of GELU.
    Gelu,
}

impl Isa {
    /// Decodes one panel of `panels` into `depth` rows of 32 floats.
    pub(super) fn unpack(self, panels: &Panels, panel: usize, out: &mut [f32]) {
        assert!(panel < panels.count() && out.len() >= panels.depth() * PANEL);
        self.run(Unpack { panels, panel, out });
    }

    /// Multiplies one row by some panels; `out` holds what the sums start from.
    pub(super) fn multiply_row(
        self,
        row: &[f32],
        panels: &Panels,
        range: Range<usize>,
        out: &mut [f32],
    ) {
        assert!(row.len() == panels.depth() && range.end <= panels.count());
        assert!(out.len() == range.len() * PANEL);
        self.run(MultiplyRow { row, panels, range, out });
    }

    /// Stores `row`, divided by its root mean square and times `gain`, to `out`.
    pub(super) fn rms_norm(self, row: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(row.len() == gain.len() && out.len() == gain.len());
        assert!(gain.len().is_multiple_of(PANEL));
        self.run(RmsNorm { row, gain, epsilon, out });
    }

    /// Replaces `values` by their gate times `factors`.
    pub(super) fn gate(self, gate: Gate, values: &mut [f32], factors: &[f32]) {
        assert!(values.len() == factors.len() && values.len().is_multiple_of(PANEL));
        self.run(GateJob { gate, values, factors });
    }

    /// Rotates one head by the angles of its position; the second half pairs with the first.
    pub(super) fn rotate(self, head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        let half = head.len() / 2;
        assert!(head.len().is_multiple_of(PANEL) && cosines.len() == half && sines.len() == half);
        self.run(Rotate { head, cosines, sines });
    }
}

/// How the codes of one step of a panel lie in memory.
trait Format {
    const STEP_BYTES: usize;
    unsafe fn load<V: Vector>(step: *const u8, column: usize) -> V;
}

struct NibbleFormat;

impl Format for NibbleFormat {
    const STEP_BYTES: usize = PANEL / 2;

    #[inline(always)]
    unsafe fn load<V: Vector>(step: *const u8, column: usize) -> V {
        // SAFETY: passed on from the caller, who owns a step of 16 bytes.
        unsafe {
            if column < PANEL / 2 {
                V::from_low_nibbles(step.add(column))
            } else {
                V::from_high_nibbles(step.add(column - PANEL / 2))
            }
        }
    }
}

struct ByteFormat;

impl Format for ByteFormat {
    const STEP_BYTES: usize = PANEL;

    #[inline(always)]
    unsafe fn load<V: Vector>(step: *const u8, column: usize) -> V {
        // SAFETY: passed on from the caller, who owns a step of 32 bytes.
        unsafe { V::from_bytes(step.add(column)) }
    }
}

/// Scales and offsets of one block of one panel.
#[derive(Clone, Copy)]
struct Scales<V>([[V; VECTORS_MAX]; 2]);

impl<V: Vector> Scales<V> {
    #[inline(always)]
    unsafe fn load(from: *const u16) -> Self {
        // SAFETY: the caller owns 32 scales and 32 offsets there.
        unsafe {
            let mut scales = [[V::splat(0.0); VECTORS_MAX]; 2];
            for (part, vectors) in scales.iter_mut().enumerate() {
                for (index, vector) in vectors.iter_mut().take(PANEL / V::LANES).enumerate() {
                    *vector = V::load_halves(from.add(part * PANEL + index * V::LANES));
                }
            }
            Self(scales)
        }
    }

    #[inline(always)]
    unsafe fn weight<F: Format>(&self, step: *const u8, index: usize) -> V {
        // SAFETY: passed on from the caller.
        unsafe { F::load::<V>(step, index * V::LANES).mul_add(self.0[0][index], self.0[1][index]) }
    }
}

struct Unpack<'a> {
    panels: &'a Panels,
    panel: usize,
    out: &'a mut [f32],
}

impl Job for Unpack<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let depth = self.panels.depth();
        // SAFETY: `unpack` has checked the panel and the room in `out`.
        unsafe {
            match self.panels.weights() {
                Weights::Floats(floats) => {
                    let panel = &floats[self.panel * depth * PANEL..][..depth * PANEL];
                    self.out[..depth * PANEL].copy_from_slice(panel);
                }
                Weights::Nibbles(coded) => {
                    unpack::<V, NibbleFormat>(coded, depth, self.panel, self.out);
                }
                Weights::Bytes(coded) => {
                    unpack::<V, ByteFormat>(coded, depth, self.panel, self.out);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn unpack<V: Vector, F: Format>(coded: &Coded, depth: usize, panel: usize, out: &mut [f32]) {
    let codes = coded.codes(panel, depth * F::STEP_BYTES);
    let scales = coded.scales(panel, depth);
    let out = &mut out[..depth * PANEL];
    for block in 0..depth / BLOCK {
        // SAFETY: the slices above hold `depth` steps, in whole blocks.
        unsafe {
            let values = Scales::<V>::load(scales.as_ptr().add(block * 2 * PANEL));
            for step in block * BLOCK..(block + 1) * BLOCK {
                let from = codes.as_ptr().add(step * F::STEP_BYTES);
                let to = out.as_mut_ptr().add(step * PANEL);
                for index in 0..PANEL / V::LANES {
                    values.weight::<F>(from, index).store(to.add(index * V::LANES));
                }
            }
        }
    }
}

struct MultiplyRow<'a> {
    row: &'a [f32],
    panels: &'a Panels,
    range: Range<usize>,
    out: &'a mut [f32],
}

impl Job for MultiplyRow<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { row, panels, range, out } = self;
        // Two panels at once where there are registers for both.
        let pairs = if V::LANES == 16 { range.len() / 2 } else { 0 };
        let (paired, single) = out.split_at_mut(pairs * 2 * PANEL);
        // SAFETY: `multiply_row` has checked the row, the range and `out`.
        unsafe {
            for (pair, out) in paired.chunks_exact_mut(2 * PANEL).enumerate() {
                multiply_panels::<V, 2>(row, panels, range.start + 2 * pair, out);
            }
            for (index, out) in single.chunks_exact_mut(PANEL).enumerate() {
                multiply_panels::<V, 1>(row, panels, range.start + 2 * pairs + index, out);
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_panels<V: Vector, const N: usize>(
    row: &[f32],
    panels: &Panels,
    first: usize,
    out: &mut [f32],
) {
    // SAFETY: passed on from the caller.
    unsafe {
        match panels.weights() {
            Weights::Floats(floats) => {
                multiply_floats::<V, N>(row, &floats[first * row.len() * PANEL..], out);
            }
            Weights::Nibbles(coded) => {
                multiply_coded::<V, NibbleFormat, N>(row, coded, first, out);
            }
            Weights::Bytes(coded) => multiply_coded::<V, ByteFormat, N>(row, coded, first, out),
        }
    }
}

#[inline(always)]
unsafe fn load_sums<V: Vector, const N: usize>(out: &[f32]) -> [[V; VECTORS_MAX]; N] {
    // SAFETY: the caller passes N panels of 32 floats.
    unsafe {
        let mut sums = [[V::splat(0.0); VECTORS_MAX]; N];
        for (panel, sums) in sums.iter_mut().enumerate() {
            for (index, sum) in sums.iter_mut().take(PANEL / V::LANES).enumerate() {
                *sum = V::load(out.as_ptr().add(panel * PANEL + index * V::LANES));
            }
        }
        sums
    }
}

#[inline(always)]
unsafe fn store_sums<V: Vector, const N: usize>(sums: [[V; VECTORS_MAX]; N], out: &mut [f32]) {
    // SAFETY: the caller passes N panels of 32 floats.
    unsafe {
        for (panel, sums) in sums.iter().enumerate() {
            for (index, sum) in sums.iter().take(PANEL / V::LANES).enumerate() {
                sum.store(out.as_mut_ptr().add(panel * PANEL + index * V::LANES));
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_coded<V: Vector, F: Format, const N: usize>(
    row: &[f32],
    coded: &Coded,
    first: usize,
    out: &mut [f32],
) {
    let depth = row.len();
    let panel_bytes = depth * F::STEP_BYTES;
    let panel_scales = depth / BLOCK * 2 * PANEL;
    // Slicing the last panel proves that all of them are there.
    let last = first + N - 1;
    assert!(coded.codes(last, panel_bytes).len() == panel_bytes);
    assert!(coded.scales(last, depth).len() == panel_scales);
    let codes = coded.codes(first, panel_bytes).as_ptr();
    let scales = coded.scales(first, depth).as_ptr();
    // SAFETY: all panels are in bounds as shown above, and `out` has room for N of them.
    unsafe {
        let mut sums = load_sums::<V, N>(out);
        for block in 0..depth / BLOCK {
            let values: [Scales<V>; N] = std::array::from_fn(|panel| {
                Scales::load(scales.add(panel * panel_scales + block * 2 * PANEL))
            });
            for step in block * BLOCK..(block + 1) * BLOCK {
                let left = V::splat(*row.as_ptr().add(step));
                for (panel, (values, sums)) in values.iter().zip(&mut sums).enumerate() {
                    let from = codes.add(panel * panel_bytes + step * F::STEP_BYTES);
                    for (index, sum) in sums.iter_mut().take(PANEL / V::LANES).enumerate() {
                        *sum = left.mul_add(values.weight::<F>(from, index), *sum);
                    }
                }
            }
        }
        store_sums(sums, out);
    }
}

#[inline(always)]
unsafe fn multiply_floats<V: Vector, const N: usize>(row: &[f32], panels: &[f32], out: &mut [f32]) {
    let panel_floats = row.len() * PANEL;
    assert!(panels.len() >= N * panel_floats);
    // SAFETY: N panels are in bounds, and `out` has room for them.
    unsafe {
        let mut sums = load_sums::<V, N>(out);
        for (step, left) in row.iter().enumerate() {
            let left = V::splat(*left);
            for (panel, sums) in sums.iter_mut().enumerate() {
                let from = panels.as_ptr().add(panel * panel_floats + step * PANEL);
                for (index, sum) in sums.iter_mut().take(PANEL / V::LANES).enumerate() {
                    *sum = left.mul_add(V::load(from.add(index * V::LANES)), *sum);
                }
            }
        }
        store_sums(sums, out);
    }
}

struct RmsNorm<'a> {
    row: &'a [f32],
    gain: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Job for RmsNorm<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let width = self.row.len();
        // SAFETY: all slices have the same whole number of vectors.
        unsafe {
            let mut squares = V::splat(0.0);
            for at in (0..width).step_by(V::LANES) {
                let value = V::load(self.row.as_ptr().add(at));
                squares = value.mul_add(value, squares);
            }
            let mean = squares.reduce_add() / width as f32;
            let inverse = V::splat(1.0 / (mean + self.epsilon).sqrt());
            for at in (0..width).step_by(V::LANES) {
                let value = V::load(self.row.as_ptr().add(at)).mul(inverse);
                value.mul(V::load(self.gain.as_ptr().add(at))).store(self.out.as_mut_ptr().add(at));
            }
        }
    }
}

struct GateJob<'a> {
    gate: Gate,
    values: &'a mut [f32],
    factors: &'a [f32],
}

/// Exponents are held below what a float can be scaled by.
const EXPONENT_MAX: f32 = 126.0;

impl Job for GateJob<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        use std::f32::consts::{FRAC_2_PI, LOG2_E};
        // SAFETY: both slices have the same whole number of vectors.
        unsafe {
            let one = V::splat(1.0);
            // Both gates are `x / (1 + exp(-z))`, which differ in z.
            let slope = match self.gate {
                Gate::Silu => -LOG2_E,
                Gate::Gelu => -2.0 * LOG2_E * FRAC_2_PI.sqrt(),
            };
            let cubic = V::splat(if self.gate == Gate::Gelu { 0.044_715 } else { 0.0 });
            for at in (0..self.values.len()).step_by(V::LANES) {
                let value = V::load(self.values.as_ptr().add(at));
                let bent = value.mul(value).mul_add(cubic, one).mul(value);
                let exponent = bent.mul(V::splat(slope)).min(V::splat(EXPONENT_MAX));
                let gated = value.div(one.add(exp2(exponent)));
                let factor = V::load(self.factors.as_ptr().add(at));
                gated.mul(factor).store(self.values.as_mut_ptr().add(at));
            }
        }
    }
}

struct Rotate<'a> {
    head: &'a mut [f32],
    cosines: &'a [f32],
    sines: &'a [f32],
}

impl Job for Rotate<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let half = self.cosines.len();
        let first = self.head.as_mut_ptr();
        // SAFETY: a head is whole panels, so each half is whole vectors.
        unsafe {
            let second = first.add(half);
            for at in (0..half).step_by(V::LANES) {
                let (left, right) = (V::load(first.add(at)), V::load(second.add(at)));
                let cosine = V::load(self.cosines.as_ptr().add(at));
                let sine = V::load(self.sines.as_ptr().add(at));
                left.mul(cosine).sub(right.mul(sine)).store(first.add(at));
                right.mul(cosine).add(left.mul(sine)).store(second.add(at));
            }
        }
    }
}
