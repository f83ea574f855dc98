//! A pass over one token: each member of the team takes some of the columns.
//!
//! The weights are read once, in the precision of the file, which is what bounds the speed.
//! Attention is shared by key-value head and page; what members find is blended in page order.
//! A layer takes six steps, each of which ends where the members meet.

use std::ops::Range;

use super::attention::{Blender, Partial, Queries, RowState};
use super::kv_cache::head_of;
use super::panels::Panels;
use super::pass::{Pass, Private, read, write};
use super::weights::Layer;
use crate::inference::candle::simd::PANEL;

impl Pass<'_> {
    /// Runs one member's part of a single token.
    pub(super) fn step(&self, rank: usize, private: &mut Private) {
        let width = self.config.width;
        self.embed(self.tokens[0], &mut private.hidden[..width]);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.project_columns(rank, layer, private);
            self.keep_step(rank, layer, index, private);
            if self.meet(rank, index) {
                return;
            }
            self.attend_pages(rank, layer, index, private);
            self.blend_pages(layer, private);
            let Private { hidden, normed, context, narrow, .. } = private;
            let context = &context[..self.config.query_width()];
            let hidden = &mut hidden[..width];
            self.add_columns(
                rank,
                &layer.mix,
                context,
                hidden,
                (layer.mix_norm.as_deref(), narrow),
            );
            self.norm(hidden, &layer.wide_norm, &mut normed[..width]);
            self.widen_columns(rank, layer, private);
            let Private { hidden, wide, narrow, .. } = private;
            let wide = &wide[..self.config.wide];
            let norm = layer.down_norm.as_deref();
            self.add_columns(rank, &layer.down, wide, &mut hidden[..width], (norm, narrow));
        }
        if rank == 0 {
            self.leave_last(&private.hidden[..width]);
        }
    }

    /// Computes the member's columns of queries, keys and values, and gathers all of them.
    fn project_columns(&self, rank: usize, layer: &Layer, private: &mut Private) {
        let width = self.config.width;
        let matrices = [&layer.query, &layer.key, &layer.value];
        let normed = &mut private.normed[..width];
        self.norm(&private.hidden[..width], &layer.attention_norm, normed);
        {
            let mut vector = write(&self.team[rank].vectors[0]);
            let mut from = 0;
            for panels in matrices {
                let share = panels.share(rank, self.team.len());
                let out = &mut vector[from..from + share.len() * PANEL];
                out.fill(0.0);
                from += share.len() * PANEL;
                self.isa.multiply_row(normed, panels, share, out);
            }
        }
        self.barrier.wait();
        for (source, shared) in self.team.iter().enumerate() {
            let vector = read(&shared.vectors[0]);
            let (mut from, mut first) = (0, 0);
            for panels in matrices {
                let share = panels.share(source, self.team.len());
                let len = share.len() * PANEL;
                let to = first + share.start * PANEL;
                private.attention[to..to + len].copy_from_slice(&vector[from..from + len]);
                from += len;
                first += panels.count() * PANEL;
            }
        }
    }

    fn keep_step(&self, rank: usize, layer: &Layer, index: usize, private: &mut Private) {
        let row = &mut private.attention[..self.config.attention_width()];
        self.place(layer, self.first, row);
        if rank == 0 {
            let mut page = write(&self.tail[index]);
            self.keep(&mut page, self.first, row, &mut private.halves);
        }
    }

    /// Pages that a layer looks at.
    fn pages(&self, layer: &Layer) -> Range<usize> {
        self.first_page(layer, self.first)..self.past.len() + 1
    }

    /// The units of attention, head after head and page after page, that a member works on.
    fn units(&self, layer: &Layer, rank: usize) -> Range<usize> {
        let count = self.config.kv_heads * self.pages(layer).len();
        let size = self.team.len();
        rank * count / size..(rank + 1) * count / size
    }

    fn attend_pages(&self, rank: usize, layer: &Layer, index: usize, private: &mut Private) {
        let (dim, group) = (self.config.head_dim, self.config.group());
        let pages = self.pages(layer);
        let shape = self.config.kv_shape();
        let Private { attention, page: keys, .. } = private;
        {
            let tail = read(&self.tail[index]);
            let mut partials = write(&self.team[rank].partials);
            partials.scalars.clear();
            partials.sums.clear();
            for unit in self.units(layer, rank) {
                let (head, page) = (unit / pages.len(), pages.start + unit % pages.len());
                let layer_keys = self.past.get(page).map_or(&**tail, |page| page.layer(index));
                let visible = self.visible(layer, page, self.first);
                keys.load(&head_of(layer_keys, &shape, head), visible.end);
                let rows = &attention[head * group * dim..][..group * dim];
                let queries = Queries { rows, stride: dim, count: group };
                keys.attend(
                    &queries,
                    |_| visible.clone(),
                    |_, partial| {
                        partials.scalars.push((partial.greatest, partial.weight));
                        partials.sums.extend_from_slice(partial.sums);
                    },
                );
            }
        }
        self.barrier.wait();
    }

    /// Blends the partial results of all members into the context.
    fn blend_pages(&self, layer: &Layer, private: &mut Private) {
        let (dim, group) = (self.config.head_dim, self.config.group());
        let pages = self.pages(layer).len();
        let heads = self.config.heads;
        let Private { sums, context, page, .. } = private;
        let blender = page.blender();
        let mut states = vec![RowState::START; heads];
        let context = &mut context[..heads * dim];
        context.fill(0.0);
        for (source, shared) in self.team.iter().enumerate() {
            let partials = read(&shared.partials);
            let units = self.units(layer, source);
            let rows = partials.scalars.iter().zip(partials.sums.chunks_exact(dim));
            for (at, (&(greatest, weight), sums)) in rows.enumerate() {
                let head = (units.start + at / group) / pages * group + at % group;
                let partial = Partial { greatest, weight, sums };
                blender.add(&mut states[head], &mut context[head * dim..][..dim], &partial);
            }
        }
        let row = &mut sums[..dim];
        for (state, context) in states.iter().zip(context.chunks_exact_mut(dim)) {
            row.copy_from_slice(context);
            Blender::finish(state, row, context);
        }
    }

    /// Adds `left x panels` to the hidden state, through a norm if the model has one there.
    fn add_columns(
        &self,
        rank: usize,
        panels: &Panels,
        left: &[f32],
        hidden: &mut [f32],
        (norm, narrow): (Option<&[f32]>, &mut [f32]),
    ) {
        {
            let share = panels.share(rank, self.team.len());
            let columns = share.start * PANEL..share.end * PANEL;
            let mut vector = write(&self.team[rank].vectors[1]);
            let out = &mut vector[..columns.len()];
            match norm {
                None => out.copy_from_slice(&hidden[columns]),
                Some(_) => out.fill(0.0),
            }
            self.isa.multiply_row(left, panels, share, out);
        }
        self.barrier.wait();
        let Some(gain) = norm else {
            self.gather(panels, 1, hidden);
            return;
        };
        let (added, normed) = narrow[..2 * hidden.len()].split_at_mut(hidden.len());
        self.gather(panels, 1, added);
        self.norm(added, gain, normed);
        self.isa.blend(hidden, 1.0, normed, 1.0);
    }

    /// Puts the columns of all members together.
    fn gather(&self, panels: &Panels, vector: usize, out: &mut [f32]) {
        for (source, shared) in self.team.iter().enumerate() {
            let share = panels.share(source, self.team.len());
            let columns = share.start * PANEL..share.end * PANEL;
            let vector = read(&shared.vectors[vector]);
            out[columns.clone()].copy_from_slice(&vector[..columns.len()]);
        }
    }

    fn widen_columns(&self, rank: usize, layer: &Layer, private: &mut Private) {
        let Private { normed, wide, narrow, .. } = private;
        let normed = &normed[..self.config.width];
        {
            let share = layer.gate.share(rank, self.team.len());
            let mut vector = write(&self.team[rank].vectors[0]);
            let (gated, up) =
                (&mut vector[..share.len() * PANEL], &mut narrow[..share.len() * PANEL]);
            gated.fill(0.0);
            up.fill(0.0);
            self.isa.multiply_row(normed, &layer.gate, share.clone(), gated);
            self.isa.multiply_row(normed, &layer.up, share, up);
            self.isa.gate(self.weights.gate, gated, up);
        }
        self.barrier.wait();
        self.gather(&layer.gate, 0, &mut wide[..self.config.wide]);
    }
}
