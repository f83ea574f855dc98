//! Causal attention, one page of keys at a time.
//!
//! Each row's attention over a page is a partial result of its own; partial results are blended
//! in the order of pages. Pages lie at fixed positions, so neither the pass that a row is in, nor
//! the thread, nor whether pages are worked on one after the other changes the result.

use std::ops::Range;

use super::kv_cache::{HeadView, KV_PAGE_TOKENS};
use crate::inference::candle::aligned::AlignedFloats;
use crate::inference::candle::simd::{Isa, PANEL, Product, Start};

/// Query rows whose scores are computed at once, so that they stay in the L1 cache.
pub(super) const ROWS_MAX: usize = 14;

/// Query rows of one head.
pub(super) struct Queries<'a> {
    pub(super) rows: &'a [f32],
    pub(super) stride: usize,
    pub(super) count: usize,
}

/// One page's keys and values of one head as floats, and room for a few rows' results.
pub(super) struct PageAttention {
    isa: Isa,
    head_dim: usize,
    /// What scores are multiplied by.
    scale: f32,
    keys: AlignedFloats,
    values: AlignedFloats,
    scores: AlignedFloats,
    sums: AlignedFloats,
}

impl PageAttention {
    pub(super) fn new(isa: Isa, head_dim: usize, scale: f32) -> Self {
        Self {
            isa,
            head_dim,
            scale,
            keys: AlignedFloats::zeroed(KV_PAGE_TOKENS * head_dim),
            values: AlignedFloats::zeroed(KV_PAGE_TOKENS * head_dim),
            scores: AlignedFloats::zeroed(ROWS_MAX * KV_PAGE_TOKENS),
            sums: AlignedFloats::zeroed(ROWS_MAX * head_dim),
        }
    }

    /// Reads the first `tokens` keys and values of a head.
    pub(super) fn load(&mut self, head: &HeadView<'_>, tokens: usize) {
        let halves = tokens.next_multiple_of(PANEL) * self.head_dim;
        self.isa.widen_halves(&head.keys[..halves], &mut self.keys[..halves]);
        self.isa.widen_halves(&head.values[..halves], &mut self.values[..halves]);
    }

    /// Attends with a few rows, of which row i sees the keys of the page in `visible(i)`; calls
    /// `take` with each row's partial result.
    pub(super) fn attend(
        &mut self,
        queries: &Queries<'_>,
        visible: impl Fn(usize) -> Range<usize>,
        mut take: impl FnMut(usize, Partial<'_>),
    ) {
        let rows = queries.count;
        let depth = (0..rows).map(|row| visible(row).end).max().unwrap_or(0);
        if depth == 0 {
            return;
        }
        let width = depth.next_multiple_of(PANEL);
        self.isa.multiply(Product {
            left: queries.rows,
            left_stride: queries.stride,
            rows,
            depth: self.head_dim,
            panels: &self.keys,
            panel_stride: self.head_dim * PANEL,
            depth_stride: PANEL,
            panel_count: width / PANEL,
            start: Start::Zero,
            out: &mut self.scores,
            out_stride: width,
            gelu: false,
        });
        let mut found = [(0.0, 0.0); ROWS_MAX];
        for (row, found) in found.iter_mut().enumerate().take(rows) {
            let scores = &mut self.scores[row * width..][..width];
            *found = self.isa.exponentials(scores, visible(row), self.scale);
        }
        self.isa.multiply(Product {
            left: &self.scores,
            left_stride: width,
            rows,
            depth,
            panels: &self.values,
            panel_stride: PANEL,
            depth_stride: self.head_dim,
            panel_count: self.head_dim / PANEL,
            start: Start::Zero,
            out: &mut self.sums,
            out_stride: self.head_dim,
            gelu: false,
        });
        for (row, (greatest, weight)) in found.into_iter().enumerate().take(rows) {
            if !visible(row).is_empty() {
                let sums = &self.sums[row * self.head_dim..][..self.head_dim];
                take(row, Partial { greatest, weight, sums });
            }
        }
    }

    pub(super) fn blender(&self) -> Blender {
        Blender { isa: self.isa, scale: self.scale }
    }
}

/// A row's attention over one page.
#[derive(Clone, Copy)]
pub(super) struct Partial<'a> {
    /// The greatest score.
    pub(super) greatest: f32,
    /// Sum of the exponentials relative to the greatest score.
    pub(super) weight: f32,
    /// Values times exponentials.
    pub(super) sums: &'a [f32],
}

/// A row's attention over the pages so far; its sums are kept beside it.
#[derive(Clone, Copy)]
pub(super) struct RowState {
    greatest: f32,
    weight: f32,
}

impl RowState {
    pub(super) const START: Self = Self { greatest: f32::MIN, weight: 0.0 };
}

/// Blends partial results of pages.
#[derive(Clone, Copy)]
pub(super) struct Blender {
    isa: Isa,
    scale: f32,
}

impl Blender {
    pub(super) fn add(self, state: &mut RowState, sums: &mut [f32], partial: &Partial<'_>) {
        let greatest = state.greatest.max(partial.greatest);
        let power = |from: f32| ((from - greatest) * self.scale).exp();
        let (keep, factor) = (power(state.greatest), power(partial.greatest));
        state.greatest = greatest;
        state.weight = state.weight * keep + partial.weight * factor;
        self.isa.blend(sums, keep, partial.sums, factor);
    }

    /// Divides the sums by their weights, into `out`.
    pub(super) fn finish(state: &RowState, sums: &[f32], out: &mut [f32]) {
        let inverse = 1.0 / state.weight;
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
    }
}
