//! A pass over several tokens: each member of the team takes some of the rows.
//!
//! The weights of a panel are decoded once and used for all rows of a member, which costs little
//! from about 16 rows on. Members meet once in a layer, when all keys and values are stored.

use super::attention::{Blender, Queries, ROWS_MAX, RowState};
use super::kv_cache::{KV_PAGE_TOKENS, head_of};
use super::panels::{Panels, Weights};
use super::pass::{Pass, Private, read, write};
use super::weights::Layer;
use crate::inference::candle::simd::{Isa, PANEL, Product, Start};

/// The product of some rows with a matrix.
struct Dense<'a> {
    left: &'a [f32],
    rows: usize,
    panels: &'a Panels,
    out: &'a mut [f32],
    out_stride: usize,
    /// Whether to add to what `out` holds.
    accumulate: bool,
}

impl Dense<'_> {
    fn run(mut self, isa: Isa, scratch: &mut [f32]) {
        for panel in 0..self.panels.count() {
            self.run_panel(isa, panel, panel * PANEL, scratch);
        }
    }

    fn run_panel(&mut self, isa: Isa, panel: usize, column: usize, scratch: &mut [f32]) {
        let depth = self.panels.depth();
        let panels = match self.panels.weights() {
            Weights::Floats(floats) => &floats[panel * depth * PANEL..][..depth * PANEL],
            Weights::Nibbles(_) | Weights::Bytes(_) => {
                isa.unpack(self.panels, panel, scratch);
                &scratch[..depth * PANEL]
            }
        };
        isa.multiply(Product {
            left: self.left,
            left_stride: depth,
            rows: self.rows,
            depth,
            panels,
            panel_stride: depth * PANEL,
            depth_stride: PANEL,
            panel_count: 1,
            start: if self.accumulate { Start::Accumulate } else { Start::Zero },
            out: &mut self.out[column..],
            out_stride: self.out_stride,
            gelu: false,
        });
    }
}

/// Positions of the rows that member `rank` takes: a slice from the front and one from the back,
/// so that all members see about as many keys.
pub(super) fn rows_of(rank: usize, size: usize, tokens: usize) -> impl Iterator<Item = usize> {
    let slice = move |index: usize| index * tokens / (2 * size)..(index + 1) * tokens / (2 * size);
    slice(rank).chain(slice(2 * size - 1 - rank))
}

/// Rows that a member may have to take.
pub(super) fn rows_max(size: usize) -> usize {
    2 * KV_PAGE_TOKENS.div_ceil(2 * size)
}

impl Pass<'_> {
    /// Runs one member's part of a chunk.
    pub(super) fn prefill(&self, rank: usize, private: &mut Private) {
        let width = self.config.width;
        // Indices of the member's tokens within the chunk.
        let mut rows: Vec<usize> = rows_of(rank, self.team.len(), self.tokens.len()).collect();
        for (&row, hidden) in rows.iter().zip(private.hidden.chunks_exact_mut(width)) {
            self.embed(self.tokens[row], hidden);
        }
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.project(layer, index, &rows, private);
            if self.meet(rank, index) {
                return;
            }
            if index + 1 == self.weights.layers.len() {
                // After the last keys and values, only the token whose state is wanted matters.
                rows = self.keep_last(&rows, private);
            }
            if !rows.is_empty() {
                self.attend(layer, index, &rows, private);
                self.mix(layer, rows.len(), private);
                self.feed_forward(layer, rows.len(), private);
            }
        }
        // The last row is in the slice from the back of the first member.
        if self.wants_last && rank == 0 {
            self.leave_last(&private.hidden[..width]);
        }
    }

    /// Moves the chunk's last row to the front, if it is wanted and the member has it.
    fn keep_last(&self, rows: &[usize], private: &mut Private) -> Vec<usize> {
        let last = self.tokens.len() - 1;
        let Some(at) = rows.iter().position(|&row| row == last).filter(|_| self.wants_last) else {
            return Vec::new();
        };
        let (width, attention) = (self.config.width, self.config.attention_width());
        private.hidden.copy_within(at * width..(at + 1) * width, 0);
        private.attention.copy_within(at * attention..(at + 1) * attention, 0);
        vec![last]
    }

    /// Computes queries, keys and values, and stores the latter two.
    fn project(&self, layer: &Layer, index: usize, rows: &[usize], private: &mut Private) {
        if rows.is_empty() {
            return;
        }
        let (width, stride) = (self.config.width, self.config.attention_width());
        self.norm_rows(&layer.attention_norm, rows.len(), private);
        let mut column = 0;
        for panels in [&layer.query, &layer.key, &layer.value] {
            let dense = Dense {
                left: &private.normed[..rows.len() * width],
                rows: rows.len(),
                panels,
                out: &mut private.attention[column..],
                out_stride: stride,
                accumulate: false,
            };
            dense.run(self.isa, &mut private.panel);
            column += panels.count() * PANEL;
        }
        for (&row, attention) in rows.iter().zip(private.attention.chunks_exact_mut(stride)) {
            self.place(layer, self.first + row, attention);
        }
        let mut page = write(&self.tail[index]);
        for (&row, attention) in rows.iter().zip(private.attention.chunks_exact(stride)) {
            self.keep(&mut page, self.first + row, attention, &mut private.halves);
        }
    }

    fn norm_rows(&self, gain: &[f32], rows: usize, private: &mut Private) {
        let width = self.config.width;
        let hidden = private.hidden.chunks_exact(width).take(rows);
        for (hidden, normed) in hidden.zip(private.normed.chunks_exact_mut(width)) {
            self.norm(hidden, gain, normed);
        }
    }

    fn attend(&self, layer: &Layer, index: usize, rows: &[usize], private: &mut Private) {
        let (dim, group) = (self.config.head_dim, self.config.group());
        let query_width = self.config.query_width();
        let shape = self.config.kv_shape();
        let tail = read(&self.tail[index]);
        let first_page = self.first_page(layer, self.first + rows[0]);
        let last_position = self.first + rows[rows.len() - 1];
        for head in 0..self.config.kv_heads {
            let count = rows.len() * group;
            private.states[..count].fill(RowState::START);
            private.sums[..count * dim].fill(0.0);
            for page in first_page..=self.past.len() {
                let keys = self.past.get(page).map_or(&**tail, |page| page.layer(index));
                let begin = page * KV_PAGE_TOKENS;
                let tokens = (last_position + 1 - begin).min(KV_PAGE_TOKENS);
                private.page.load(&head_of(keys, &shape, head), tokens);
                for member in 0..group {
                    let column = (head * group + member) * dim;
                    self.attend_page(layer, page, rows, (column, member), private);
                }
            }
            for (at, state) in private.states[..count].iter().enumerate() {
                let (member, row) = (at / rows.len(), at % rows.len());
                let column = row * query_width + (head * group + member) * dim;
                let sums = &private.sums[at * dim..][..dim];
                Blender::finish(state, sums, &mut private.context[column..][..dim]);
            }
        }
    }

    /// Adds one page's part to all rows of one query head, which is a column and its place in
    /// the group.
    fn attend_page(
        &self,
        layer: &Layer,
        page: usize,
        rows: &[usize],
        (column, member): (usize, usize),
        private: &mut Private,
    ) {
        let (dim, stride) = (self.config.head_dim, self.config.attention_width());
        let Private { attention, page: keys, states, sums, .. } = private;
        let blender = keys.blender();
        for begin in (0..rows.len()).step_by(ROWS_MAX) {
            let count = ROWS_MAX.min(rows.len() - begin);
            let queries = Queries { rows: &attention[begin * stride + column..], stride, count };
            let visible = |row: usize| self.visible(layer, page, self.first + rows[begin + row]);
            keys.attend(&queries, visible, |row, partial| {
                let at = member * rows.len() + begin + row;
                blender.add(&mut states[at], &mut sums[at * dim..][..dim], &partial);
            });
        }
    }

    fn mix(&self, layer: &Layer, rows: usize, private: &mut Private) {
        let Private { hidden, context, panel, normed, narrow, .. } = private;
        let left = &context[..rows * self.config.query_width()];
        let panels = &layer.mix;
        self.add(left, rows, panels, layer.mix_norm.as_deref(), (hidden, normed, narrow), panel);
    }

    fn feed_forward(&self, layer: &Layer, rows: usize, private: &mut Private) {
        let (width, wide) = (self.config.width, self.config.wide);
        self.norm_rows(&layer.wide_norm, rows, private);
        let Private { hidden, normed, wide: gated, panel, narrow, .. } = private;
        let left = &normed[..rows * width];
        for index in 0..layer.gate.count() {
            let column = index * PANEL;
            let mut gate = Dense {
                left,
                rows,
                panels: &layer.gate,
                out: gated,
                out_stride: wide,
                accumulate: false,
            };
            gate.run_panel(self.isa, index, column, panel);
            let mut up = Dense {
                left,
                rows,
                panels: &layer.up,
                out: narrow,
                out_stride: PANEL,
                accumulate: false,
            };
            up.run_panel(self.isa, index, 0, panel);
            let factors = narrow.chunks_exact(PANEL).take(rows);
            for (row, factors) in gated.chunks_exact_mut(wide).zip(factors) {
                self.isa.gate(self.weights.gate, &mut row[column..column + PANEL], factors);
            }
        }
        let left = &gated[..rows * wide];
        let norm = layer.down_norm.as_deref();
        self.add(left, rows, &layer.down, norm, (hidden, normed, narrow), panel);
    }

    /// Adds `left x panels` to the hidden state, through a norm if the model has one there.
    fn add(
        &self,
        left: &[f32],
        rows: usize,
        panels: &Panels,
        norm: Option<&[f32]>,
        (hidden, normed, narrow): (&mut [f32], &mut [f32], &mut [f32]),
        panel: &mut [f32],
    ) {
        let width = self.config.width;
        let accumulate = norm.is_none();
        let out = if accumulate { &mut *hidden } else { &mut *normed };
        Dense { left, rows, panels, out, out_stride: width, accumulate }.run(self.isa, panel);
        let Some(gain) = norm else { return };
        let added = normed.chunks_exact(width).take(rows);
        for (hidden, added) in hidden.chunks_exact_mut(width).zip(added) {
            self.norm(added, gain, &mut narrow[..width]);
            self.isa.blend(hidden, 1.0, &narrow[..width], 1.0);
        }
    }
}
