//! A language model on the processor: tokens and a cache in, hidden state and logits out.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;

use bytes::Bytes;

use super::error::ForwardError;
use super::kv_cache::{KV_PAGE_TOKENS, KvCache, KvError};
use super::pass::{Cancelled, Pass, Private, Shared, read};
use super::prefill::rows_max;
use super::rotation::{self, Turn};
use super::weights::{ModelConfig, Weights};
use crate::inference::candle::simd::{Isa, PANEL};
use crate::inference::candle::team::{Barrier, Membership, locked};

/// A forward pass over tokens that follow a cache's.
pub trait LanguageModel: Send + Sync {
    /// The numbers of the model.
    fn config(&self) -> &ModelConfig;

    /// Appends `tokens` to the cache and returns the hidden state after the last of them.
    ///
    /// Runs in chunks that end where pages of the cache end; `cancelled` is asked in each layer.
    ///
    /// # Errors
    /// See [`ForwardError`]; the cache is as it was before.
    fn forward(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        cancelled: Cancelled<'_>,
    ) -> Result<Vec<f32>, ForwardError>;

    /// The logits of the token that follows a hidden state.
    ///
    /// # Errors
    /// `NotFinite` when one is not a number.
    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ForwardError>;

    /// Cosines and sines by which a layer rotates the keys of a position.
    ///
    /// # Errors
    /// When the device fails.
    fn turn(&self, layer: usize, position: usize) -> Result<Turn, KvError>;

    /// Appends the tokens `wanted` out of a segment: the layers of `tokens` tokens that another
    /// cache exported after it saw nothing but them, from position 0 on. Their keys are rotated to
    /// where the cache ends.
    ///
    /// # Errors
    /// When number or size of the layers do not fit, or the segment would begin before the first
    /// position; the cache is as it was.
    fn append_segment(
        &self,
        cache: &mut KvCache,
        tokens: usize,
        wanted: Range<usize>,
        layers: &[Bytes],
    ) -> Result<(), KvError> {
        let (shape, expected) = (cache.shape(), cache.shape().layer_bytes(tokens));
        if wanted.start > wanted.end || wanted.end > tokens {
            return Err(KvError::OutOfRange { end: wanted.end, len_tokens: tokens });
        }
        let Some(by) = cache.len_tokens().checked_sub(wanted.start) else {
            let len_tokens = cache.len_tokens();
            return Err(KvError::OutOfRange { end: wanted.start, len_tokens });
        };
        if layers.len() != shape.layers {
            return Err(KvError::WrongLayers { expected: shape.layers, found: layers.len() });
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut moved = Vec::with_capacity(layers.len());
        for (layer, bytes) in layers.iter().enumerate() {
            let found = bytes.len();
            if found != expected {
                return Err(KvError::WrongSize { layer, expected, found });
            }
            let turn = if by == 0 { None } else { Some(self.turn(layer, by)?) };
            let span = shape.span_of(tokens, bytes);
            let layer = rotation::moved(&shape, &span, tokens, &wanted, turn.as_ref());
            moved.push(shape.importable(cache.len_tokens(), wanted.len(), layer));
        }
        cache.import(wanted.len(), &moved)
    }

    /// An empty cache.
    fn new_cache(&self) -> KvCache {
        KvCache::new(self.config().kv_shape())
    }

    /// Bytes of the matrices in memory.
    fn weights_bytes(&self) -> usize;
}

/// What every model checks before it runs.
pub(super) fn check(
    config: &ModelConfig,
    tokens: &[u32],
    cache: &KvCache,
) -> Result<(), ForwardError> {
    if tokens.is_empty() {
        return Err(ForwardError::Empty);
    }
    if cache.shape() != config.kv_shape() {
        return Err(ForwardError::WrongCache);
    }
    let vocabulary = config.vocabulary;
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(ForwardError::UnknownToken { token, vocabulary });
    }
    let (tokens, window_tokens) = (cache.len_tokens() + tokens.len(), config.window_tokens);
    if tokens > window_tokens {
        return Err(ForwardError::TooLong { tokens, window_tokens });
    }
    Ok(())
}

/// Calls `run` with each chunk and whether it is the last; on failure the cache is as before.
pub(super) fn in_chunks(
    tokens: &[u32],
    cache: &mut KvCache,
    mut run: impl FnMut(&[u32], &mut KvCache, bool) -> Result<Vec<f32>, ForwardError>,
) -> Result<Vec<f32>, ForwardError> {
    let before = cache.len_tokens();
    let mut rest = tokens;
    loop {
        let room = KV_PAGE_TOKENS - cache.len_tokens() % KV_PAGE_TOKENS;
        let (chunk, next) = rest.split_at(room.min(rest.len()));
        let result = run(chunk, cache, next.is_empty()).and_then(finite);
        let hidden = result.inspect_err(|_| cache.truncate(before))?;
        if next.is_empty() {
            return Ok(hidden);
        }
        rest = next;
    }
}

pub(super) fn finite(numbers: Vec<f32>) -> Result<Vec<f32>, ForwardError> {
    if numbers.iter().all(|number| number.is_finite()) {
        Ok(numbers)
    } else {
        Err(ForwardError::NotFinite)
    }
}

/// A model whose weights are packed for this processor; calls may run side by side.
///
/// A token's logits depend on the tokens before it only: not on chunks, threads, or whether keys
/// and values were computed here or imported (on processors with AVX2 or AVX-512; elsewhere, at
/// equal chunk boundaries).
pub struct PackedModel {
    isa: Isa,
    config: ModelConfig,
    weights: Weights,
    threads: usize,
    teams: Mutex<Vec<Team>>,
}

/// Buffers for one call.
struct Team {
    members: Vec<(Private, Shared)>,
}

impl fmt::Debug for PackedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedModel").field("config", &self.config).finish_non_exhaustive()
    }
}

impl PackedModel {
    pub(super) fn new(config: ModelConfig, weights: Weights, threads: usize) -> Self {
        let threads = threads.clamp(1, config.width / PANEL);
        Self { isa: Isa::detect(), config, weights, threads, teams: Mutex::default() }
    }

    #[cfg(test)]
    pub(super) fn on(mut self, isa: Isa, threads: usize) -> Self {
        (self.isa, self.threads) = (isa, threads);
        self
    }

    fn run_chunk(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        wants_last: bool,
        cancel: Cancelled<'_>,
    ) -> Result<Vec<f32>, ForwardError> {
        let first = cache.len_tokens();
        let (past, page) = cache.open_page(tokens.len()).ok_or(ForwardError::WrongCache)?;
        let mut team = self.take_team();
        let barrier = Barrier::new(self.threads);
        let (privates, shared): (Vec<&mut Private>, Vec<&Shared>) =
            team.members.iter_mut().map(|(private, shared)| (private, &*shared)).unzip();
        let pass = Pass {
            isa: self.isa,
            config: &self.config,
            weights: &self.weights,
            barrier: &barrier,
            tokens,
            first,
            past,
            tail: page.layers_mut().map(RwLock::new).collect(),
            team: shared,
            wants_last,
            cancel,
            stop: AtomicUsize::new(usize::MAX),
        };
        run_members(privates, |rank, private| {
            let _membership = Membership(&barrier);
            if tokens.len() == 1 { pass.step(rank, private) } else { pass.prefill(rank, private) }
        });
        let is_stopped = pass.stop.load(Ordering::Relaxed) != usize::MAX;
        let last = read(&pass.team[0].vectors[0])[..self.config.width].to_vec();
        drop(pass);
        locked(&self.teams).push(team);
        if is_stopped {
            return Err(ForwardError::Cancelled);
        }
        cache.advance(tokens.len());
        Ok(if wants_last { last } else { Vec::new() })
    }

    fn take_team(&self) -> Team {
        if let Some(team) = locked(&self.teams).pop() {
            return team;
        }
        let rows = rows_max(self.threads);
        let member = |_| {
            let private = Private::new(self.isa, &self.weights, &self.config, rows);
            (private, Shared::new(&self.config))
        };
        Team { members: (0..self.threads).map(member).collect() }
    }
}

impl LanguageModel for PackedModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        cancelled: Cancelled<'_>,
    ) -> Result<Vec<f32>, ForwardError> {
        check(&self.config, tokens, cache)?;
        in_chunks(tokens, cache, |chunk, cache, is_last| {
            self.run_chunk(chunk, cache, is_last, cancelled)
        })
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ForwardError> {
        let head = self.weights.head();
        let mut normed = vec![0.0; self.config.width];
        self.isa.rms_norm(hidden, &self.weights.norm, self.config.norm_epsilon, &mut normed);
        let mut logits = vec![0.0; self.config.vocabulary];
        let mut rest = logits.as_mut_slice();
        let mut parts = Vec::with_capacity(self.threads);
        for rank in 0..self.threads {
            let share = head.share(rank, self.threads);
            let (part, after) = rest.split_at_mut(share.len() * PANEL);
            parts.push((share, part));
            rest = after;
        }
        run_members(parts, |_, (share, part)| self.isa.multiply_row(&normed, head, share, part));
        finite(logits)
    }

    fn turn(&self, layer: usize, position: usize) -> Result<Turn, KvError> {
        let (cosines, sines) = self.weights.angles(&self.weights.layers[layer]).at(position);
        Ok((cosines.to_vec(), sines.to_vec()))
    }

    fn weights_bytes(&self) -> usize {
        self.weights.bytes()
    }
}

/// Runs each member of a team on a thread of its own, the first one on this.
fn run_members<M: Send>(members: Vec<M>, run: impl Fn(usize, M) + Sync) {
    thread::scope(|scope| {
        let run = &run;
        let mut members = members.into_iter().enumerate();
        let first = members.next();
        for (rank, member) in members {
            scope.spawn(move || run(rank, member));
        }
        if let Some((rank, member)) = first {
            run(rank, member);
        }
    });
}
