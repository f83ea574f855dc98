//! What the members of a team share in one pass over a chunk, and what each owns.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::attention::{PageAttention, RowState};
use super::kv_cache::{KV_PAGE_TOKENS, store};
use super::page::Page;
use super::weights::{Angles, Layer, ModelConfig, Weights};
use crate::inference::candle::aligned::AlignedFloats;
use crate::inference::candle::simd::{Isa, PANEL};
use crate::inference::candle::team::Barrier;

/// Asks whether a pass is still wanted.
pub type Cancelled<'a> = &'a (dyn Fn() -> bool + Sync);

/// A chunk of tokens that lies within one page of the cache.
pub(super) struct Pass<'a> {
    pub(super) isa: Isa,
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Weights,
    pub(super) barrier: &'a Barrier,
    pub(super) tokens: &'a [u32],
    /// Position of the first token.
    pub(super) first: usize,
    /// Whole pages before the chunk's.
    pub(super) past: &'a [Arc<Page>],
    /// The chunk's page, layer by layer.
    pub(super) tail: Vec<RwLock<&'a mut [u16]>>,
    pub(super) team: Vec<&'a Shared>,
    /// Whether the last token's hidden state is wanted.
    pub(super) wants_last: bool,
    pub(super) cancel: Cancelled<'a>,
    /// The layer before which all members stop, as the first one found.
    pub(super) stop: AtomicUsize,
}

/// Buffers that their owner writes and the whole team reads in the next step.
pub(super) struct Shared {
    /// The member's columns of a vector; or the last row, from the member that has it. Steps
    /// take turns with the two, so that none writes what another member may still read.
    pub(super) vectors: [RwLock<AlignedFloats>; 2],
    pub(super) partials: RwLock<Partials>,
}

/// Partial results of attention, one for each row of each unit of a member.
#[derive(Default)]
pub(super) struct Partials {
    pub(super) scalars: Vec<(f32, f32)>,
    pub(super) sums: Vec<f32>,
}

/// Buffers of one member, which nobody else sees.
pub(super) struct Private {
    pub(super) hidden: AlignedFloats,
    pub(super) normed: AlignedFloats,
    /// Queries, keys and values, a row for each token.
    pub(super) attention: AlignedFloats,
    pub(super) context: AlignedFloats,
    pub(super) wide: AlignedFloats,
    /// One panel of weights as floats.
    pub(super) panel: AlignedFloats,
    /// One panel of a product, or one row of a vector.
    pub(super) narrow: AlignedFloats,
    pub(super) halves: Vec<u16>,
    pub(super) page: PageAttention,
    pub(super) states: Vec<RowState>,
    pub(super) sums: AlignedFloats,
}

impl Private {
    /// Buffers for up to `rows` tokens.
    pub(super) fn new(isa: Isa, weights: &Weights, config: &ModelConfig, rows: usize) -> Self {
        let floats = |width: usize| AlignedFloats::zeroed(rows * width);
        let widest = config.width.max(config.wide).max(config.query_width());
        Self {
            hidden: floats(config.width),
            normed: floats(config.width),
            attention: floats(config.attention_width()),
            context: floats(config.query_width()),
            wide: floats(config.wide),
            panel: AlignedFloats::zeroed(widest * PANEL),
            narrow: AlignedFloats::zeroed((rows * PANEL).max(widest).max(2 * config.width)),
            halves: vec![0; 2 * config.head_dim],
            page: PageAttention::new(isa, config.head_dim, weights.score_scale),
            states: vec![RowState::START; rows * config.group()],
            sums: floats(config.group() * config.head_dim),
        }
    }
}

impl Shared {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let widest = config.width.max(config.wide).max(config.attention_width());
        Self {
            vectors: [(); 2].map(|()| RwLock::new(AlignedFloats::zeroed(widest))),
            partials: RwLock::default(),
        }
    }
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Pass<'_> {
    pub(super) fn embed(&self, token: u32, out: &mut [f32]) {
        self.weights.embedding.column(token as usize, out);
        if self.weights.embedding_scale != 1.0 {
            out.iter_mut().for_each(|value| *value *= self.weights.embedding_scale);
        }
    }

    pub(super) fn norm(&self, row: &[f32], gain: &[f32], out: &mut [f32]) {
        self.isa.rms_norm(row, gain, self.config.norm_epsilon, out);
    }

    /// Norms (if the model does) and rotates the queries and keys of the token at `position`.
    pub(super) fn place(&self, layer: &Layer, position: usize, row: &mut [f32]) {
        let (dim, queries) = (self.config.head_dim, self.config.heads);
        let rotated = self.config.query_width() + self.config.kv_width();
        let angles: &Angles = self.weights.angles(layer);
        let (cosines, sines) = angles.at(position);
        let mut normed = [0.0; HEAD_DIM_MAX];
        for (index, head) in row[..rotated].chunks_exact_mut(dim).enumerate() {
            if let Some((query_norm, key_norm)) = &layer.head_norms {
                let gain = if index < queries { query_norm } else { key_norm };
                self.norm(head, gain, &mut normed[..dim]);
                head.copy_from_slice(&normed[..dim]);
            }
            self.isa.rotate(head, cosines, sines);
        }
    }

    /// Stores keys and values of a row to the chunk's page.
    pub(super) fn keep(&self, page: &mut [u16], position: usize, row: &[f32], halves: &mut [u16]) {
        let (dim, kv_width) = (self.config.head_dim, self.config.kv_width());
        let (keys, values) = row[self.config.query_width()..].split_at(kv_width);
        let (key, value) = halves.split_at_mut(dim);
        let shape = self.config.kv_shape();
        for head in 0..self.config.kv_heads {
            let range = head * dim..(head + 1) * dim;
            self.isa.narrow_floats(&keys[range.clone()], key);
            self.isa.narrow_floats(&values[range], value);
            store(page, &shape, head, position % KV_PAGE_TOKENS, key, value);
        }
    }

    /// The tokens of page `page` that the token at `position` sees.
    pub(super) fn visible(&self, layer: &Layer, page: usize, position: usize) -> Range<usize> {
        let first = layer.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let begin = page * KV_PAGE_TOKENS;
        let end = (position + 1).saturating_sub(begin).min(KV_PAGE_TOKENS);
        first.saturating_sub(begin).min(end)..end
    }

    /// Position of the page that a layer needs to begin with for the token at `position`.
    pub(super) fn first_page(&self, layer: &Layer, position: usize) -> usize {
        layer.window.map_or(0, |window| (position + 1).saturating_sub(window) / KV_PAGE_TOKENS)
    }

    /// Waits for the whole team; says whether to stop, the same to all of its members.
    pub(super) fn meet(&self, rank: usize, layer: usize) -> bool {
        if rank == 0 && (self.cancel)() {
            self.stop.store(layer, Ordering::Relaxed);
        }
        self.barrier.wait();
        // The first member may be at the next layer already, and stop there.
        self.stop.load(Ordering::Relaxed) <= layer
    }

    /// Lets others see the hidden state after the last layer.
    pub(super) fn leave_last(&self, hidden: &[f32]) {
        write(&self.team[0].vectors[0])[..hidden.len()].copy_from_slice(hidden);
    }
}

/// The widest head that is known.
pub(super) const HEAD_DIM_MAX: usize = 256;
