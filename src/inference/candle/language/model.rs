//! A language model on the processor: tokens and a cache in, the last token's logits out.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;

use super::error::ForwardError;
use super::kv_cache::{KV_BLOCK_TOKENS, KvCache};
use super::pass::{Pass, Private, Shared, read};
use super::prefill::rows_max;
use super::weights::{ModelConfig, Weights};
use crate::inference::candle::simd::Isa;
use crate::inference::candle::team::{Barrier, Membership, locked};

/// A forward pass over tokens that follow a cache's.
pub trait LanguageModel: Send + Sync {
    /// The numbers of the model.
    fn config(&self) -> &ModelConfig;

    /// Appends `tokens` to the cache and returns the logits after the last of them.
    ///
    /// Runs in chunks that end where blocks of the cache end; `cancel` is looked at before each.
    ///
    /// # Errors
    /// See [`ForwardError`].
    fn forward(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        cancel: &AtomicBool,
    ) -> Result<Vec<f32>, ForwardError>;

    /// An empty cache.
    fn new_cache(&self) -> KvCache {
        KvCache::new(self.config().kv_shape())
    }
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
    cancel: &AtomicBool,
    mut run: impl FnMut(&[u32], &mut KvCache, bool) -> Result<Vec<f32>, ForwardError>,
) -> Result<Vec<f32>, ForwardError> {
    let before = cache.len_tokens();
    let mut rest = tokens;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(ForwardError::Cancelled);
        }
        let room = KV_BLOCK_TOKENS - cache.len_tokens() % KV_BLOCK_TOKENS;
        let (chunk, next) = rest.split_at(room.min(rest.len()));
        let is_last = next.is_empty();
        let logits = run(chunk, cache, is_last).inspect_err(|_| cache.truncate(before))?;
        if is_last {
            if logits.iter().all(|logit| logit.is_finite()) {
                return Ok(logits);
            }
            cache.truncate(before);
            return Err(ForwardError::NotFinite);
        }
        rest = next;
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
        let threads = threads.clamp(1, config.width / crate::inference::candle::simd::PANEL);
        Self { isa: Isa::detect(), config, weights, threads, teams: Mutex::default() }
    }

    #[cfg(test)]
    pub(super) fn on(mut self, isa: Isa, threads: usize) -> Self {
        (self.isa, self.threads) = (isa, threads);
        self
    }

    /// Bytes of the weights in memory.
    pub fn weights_bytes(&self) -> usize {
        self.weights.bytes()
    }

    fn run_chunk(&self, tokens: &[u32], cache: &mut KvCache, wants_logits: bool) -> Vec<f32> {
        let mut team = self.take_team();
        let barrier = Barrier::new(self.threads);
        let first = cache.len_tokens();
        let (past, page) = cache.open_page();
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
            wants_logits,
        };
        let run = |rank: usize, private: &mut Private| {
            let _membership = Membership(&barrier);
            if tokens.len() == 1 { pass.step(rank, private) } else { pass.prefill(rank, private) }
        };
        thread::scope(|scope| {
            let run = &run;
            let mut members = privates.into_iter().enumerate();
            let first = members.next();
            for (rank, private) in members {
                scope.spawn(move || run(rank, private));
            }
            if let Some((rank, private)) = first {
                run(rank, private);
            }
        });
        let mut logits = Vec::new();
        if wants_logits {
            logits.reserve(self.config.vocabulary);
            pass.team.iter().for_each(|shared| logits.extend_from_slice(&read(&shared.logits)));
        }
        drop(pass);
        cache.advance(tokens.len());
        locked(&self.teams).push(team);
        logits
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
        cancel: &AtomicBool,
    ) -> Result<Vec<f32>, ForwardError> {
        check(&self.config, tokens, cache)?;
        in_chunks(tokens, cache, cancel, |chunk, cache, is_last| {
            Ok(self.run_chunk(chunk, cache, is_last))
        })
    }
}
