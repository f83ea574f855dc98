//! The engine by itself: how fast it is, what keys and values take, what 8 bits cost.

use std::time::{Duration, Instant};

use bytes::Bytes;
use memcube_actors::{
    Error, Result,
    inference::{
        BLOCK_TOKENS, Cancel, Engine, KvBytes, KvLayer, Sampling, Session, Token,
        activation_cache::{dequantise, quantise},
    },
};
use memcube_schemas::activation::KvDtype;
use serde::Serialize;

use super::{median, peer::Peer, rounded, text::failed, world::tokens};
use crate::inference::candle::{
    engine::CandleEngine,
    language::{ForwardError, KvError},
};

/// Tokens that are decoded to measure how fast that is.
const STEPS: usize = 32;

/// How fast prompts of one length are read, and replies written behind them: tokens a second,
/// medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Of the prompt.
    pub prefill_tokens_per_s: f64,
    /// Of the reply.
    pub decode_tokens_per_s: f64,
    /// The other engine's.
    pub peer_prefill_tokens_per_s: Option<f64>,
    /// The other engine's.
    pub peer_decode_tokens_per_s: Option<f64>,
    /// Median of ours over the other engine's, by turn.
    pub prefill_ratio: Option<f64>,
    /// The same of the reply.
    pub decode_ratio: Option<f64>,
}

/// What the keys and values of a prompt take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Held {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// By arithmetic: layers, heads, values of a head, two of 16 bits each.
    pub arithmetic_bytes: u64,
    /// What the session says.
    pub session_bytes: u64,
    /// By how much the resident memory of the process grew, where the system tells it.
    pub resident_bytes: Option<u64>,
}

/// What 8 bits a number cost in accuracy: a context in 8 bits against the same in 16, over the
/// tokens of a turn behind it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quantised {
    /// Tokens of the context.
    pub context_tokens: usize,
    /// Tokens behind it.
    pub query_tokens: usize,
    /// Bytes of the context in 8 bits, of 1 in 16.
    pub bytes_share: f64,
    /// Mean divergence (KL) of the next token's distribution.
    pub mean_kl: f64,
    /// The largest difference of a logit.
    pub max_logit_difference: f64,
    /// Percent of the tokens behind which the likeliest one is the same.
    pub top_1_percent: f64,
}

/// The engine, without actors around it.
pub(super) struct Kernel {
    engine: CandleEngine,
    pause: Duration,
}

/// A session that holds a context.
pub(super) struct Behind<'a> {
    kernel: &'a Kernel,
    session: Box<dyn Session>,
    tokens: usize,
}

impl Behind<'_> {
    /// Seconds to compute so many tokens behind the context, and to choose the next one.
    pub(super) fn prefill(&mut self, tokens: usize) -> Result<f64> {
        let query = self.kernel.tokens(tokens);
        self.kernel.rest();
        let start = Instant::now();
        prefill(&mut *self.session, &query)?;
        self.session.sample(Sampling::GREEDY, 0).map_err(failed)?;
        let seconds = start.elapsed().as_secs_f64();
        self.session.truncate(self.tokens);
        Ok(seconds)
    }
}

/// Computes tokens in passes that end at multiples of a block, which is the quickest way.
fn prefill(session: &mut dyn Session, mut tokens: &[Token]) -> Result<()> {
    let cancel = Cancel::default();
    while !tokens.is_empty() {
        let room = BLOCK_TOKENS - session.tokens() % BLOCK_TOKENS;
        let (now, later) = tokens.split_at(room.min(tokens.len()));
        session.prefill(now, &cancel).map_err(failed)?;
        tokens = later;
    }
    Ok(())
}

impl Kernel {
    pub(super) const fn new(engine: CandleEngine, pause: Duration) -> Self {
        Self { engine, pause }
    }

    /// Rests before a measurement.
    pub(super) fn rest(&self) {
        std::thread::sleep(self.pause);
    }

    fn tokens(&self, count: usize) -> Vec<Token> {
        tokens(count, self.engine.local().model().config().vocabulary)
    }

    fn filled(&self, tokens: usize) -> Result<Box<dyn Session>> {
        let mut session = self.engine.open().map_err(failed)?;
        prefill(&mut *session, &self.tokens(tokens))?;
        Ok(session)
    }

    pub(super) fn behind(&self, tokens: usize) -> Result<Behind<'_>> {
        Ok(Behind { kernel: self, session: self.filled(tokens)?, tokens })
    }

    /// What a prompt takes in memory.
    pub(super) fn held(&self, tokens: usize) -> Result<Held> {
        // The buffers of a pass are the engine's, and stay.
        drop(self.filled(1)?);
        let filling = self.fill_free_memory();
        let before = resident_bytes();
        let session = self.filled(tokens)?;
        let after = resident_bytes();
        drop(filling);
        let resident = before.zip(after).map(|(before, after)| after.saturating_sub(before));
        Ok(Held {
            tokens,
            arithmetic_bytes: self.engine.facts().kv_bytes_per_token * tokens as u64,
            session_bytes: session.bytes(),
            resident_bytes: resident,
        })
    }

    /// Takes pieces as large as a page's layers until the process grows with each of them: memory
    /// that was freed before, but not given back, would hide what a session takes.
    fn fill_free_memory(&self) -> Vec<Vec<u8>> {
        const GROWN_IN_A_ROW: usize = 32;
        const PIECES_MAX: usize = 4_096;
        let bytes = self.engine.local().model().config().kv_shape().layer_bytes(BLOCK_TOKENS);
        let (mut pieces, mut grown) = (Vec::new(), 0);
        while grown < GROWN_IN_A_ROW && pieces.len() < PIECES_MAX {
            let before = resident_bytes().unwrap_or_default();
            pieces.push(vec![1; bytes]);
            let growth = resident_bytes().unwrap_or_default().saturating_sub(before);
            grown = if growth >= bytes as u64 / 2 { grown + 1 } else { 0 };
        }
        pieces
    }

    /// How fast prompts of some lengths are, in turns with another engine.
    pub(super) fn speed(
        &self,
        lengths: &[usize],
        rounds: usize,
        mut peer: Option<&mut Peer>,
    ) -> Result<Vec<Speed>> {
        let mut speeds = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                self.rest();
                ours.push(self.speed_once(*length)?);
                if let Some(peer) = peer.as_deref_mut() {
                    self.rest();
                    theirs.push(peer.speed(*length, STEPS)?);
                }
            }
            speeds.push(speed(*length, &ours, &theirs));
        }
        Ok(speeds)
    }

    fn speed_once(&self, length: usize) -> Result<(f64, f64)> {
        let start = Instant::now();
        let mut session = self.filled(length)?;
        let mut token = session.sample(Sampling::GREEDY, 0).map_err(failed)?;
        let prefill_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 0..STEPS {
            session.step(token).map_err(failed)?;
            token = session.sample(Sampling::GREEDY, 0).map_err(failed)?;
        }
        Ok((prefill_s, start.elapsed().as_secs_f64()))
    }

    /// What 8 bits cost in accuracy, with the same tokens behind both contexts.
    pub(super) fn quantised(&self, context: usize, query: usize) -> Result<Quantised> {
        let model = self.engine.local().model();
        let broken = |error: ForwardError| Error::internal(error.to_string());
        let odd = |error: KvError| Error::internal(error.to_string());
        let all = self.tokens(context + query);
        let mut exact = model.new_cache();
        model.forward(&all[..context], &mut exact, &|| false).map_err(broken)?;
        let layers = (0..exact.shape().layers).map(|layer| exact.export_layer(layer, 0..context));
        let layers = layers.map(|layer| layer.map(KvLayer::new));
        let layers = layers.collect::<std::result::Result<_, _>>().map_err(odd)?;
        let block = KvBytes { start: 0, tokens: context, dtype: KvDtype::F16, layers };
        let (small, _) = quantise(&block).ok_or_else(|| Error::internal("no whole groups"))?;
        let back = dequantise(&small, KvDtype::F16);
        let back = back.ok_or_else(|| Error::internal("8 bits do not come back"))?;
        let mut coarse = model.new_cache();
        let layers: Vec<Bytes> = back.layers.iter().map(|layer| layer.bytes.clone()).collect();
        coarse.import(context, &layers).map_err(odd)?;
        let (mut kl, mut same, mut most) = (0.0, 0_usize, 0.0_f64);
        for token in &all[context..] {
            let logits = |cache: &mut _| {
                let hidden = model.forward(&[*token], cache, &|| false)?;
                model.logits(&hidden)
            };
            let true_ones = logits(&mut exact).map_err(broken)?;
            let found = logits(&mut coarse).map_err(broken)?;
            kl += divergence(&true_ones, &found);
            same += usize::from(likeliest(&true_ones) == likeliest(&found));
            let differences = true_ones.iter().zip(&found).map(|(a, b)| f64::from((a - b).abs()));
            most = differences.fold(most, f64::max);
        }
        let share = |part: f64| part / query as f64;
        Ok(Quantised {
            context_tokens: context,
            query_tokens: query,
            bytes_share: rounded(small.bytes() as f64 / block.bytes() as f64),
            mean_kl: share(kl),
            max_logit_difference: rounded(most),
            top_1_percent: rounded(100.0 * share(same as f64)),
        })
    }
}

fn speed(tokens: usize, ours: &[(f64, f64)], theirs: &[(f64, f64)]) -> Speed {
    let rate = |count: usize, seconds: Vec<f64>| {
        median(seconds).map(|seconds| (count as f64 / seconds * 10.0).round() / 10.0)
    };
    let prefills = |all: &[(f64, f64)]| rate(tokens, all.iter().map(|(s, _)| *s).collect());
    let decodes = |all: &[(f64, f64)]| rate(STEPS, all.iter().map(|(_, s)| *s).collect());
    let pairs = || ours.iter().zip(theirs);
    Speed {
        tokens,
        prefill_tokens_per_s: prefills(ours).unwrap_or_default(),
        decode_tokens_per_s: decodes(ours).unwrap_or_default(),
        peer_prefill_tokens_per_s: prefills(theirs),
        peer_decode_tokens_per_s: decodes(theirs),
        prefill_ratio: median(pairs().map(|(a, b)| b.0 / a.0).collect()).map(rounded),
        decode_ratio: median(pairs().map(|(a, b)| b.1 / a.1).collect()).map(rounded),
    }
}

/// KL divergence of two distributions that are given as logits, in nats.
fn divergence(of: &[f32], from: &[f32]) -> f64 {
    let logs = |logits: &[f32]| -> Vec<f64> {
        let top = logits.iter().fold(f32::MIN, |top, logit| top.max(*logit));
        let shifted = || logits.iter().map(|logit| f64::from(logit - top));
        let sum = shifted().map(f64::exp).sum::<f64>().ln();
        shifted().map(|logit| logit - sum).collect()
    };
    let (of, from) = (logs(of), logs(from));
    of.iter().zip(from).map(|(of, from)| of.exp() * (of - from)).sum()
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    let pairs = logits.iter().enumerate();
    pairs.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(at, _)| at)
}

/// Resident memory of this process, as Linux tells it: to the page, unlike `status`.
fn resident_bytes() -> Option<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Rss:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_for_equal_distributions_only() {
        assert!(divergence(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]).abs() < 1e-9);
        let found = divergence(&[0.0, 0.0], &[0.0, 2.0]);
        let expected = -(0.5 * (4.0 * 2.0_f64.exp() / (1.0 + 2.0_f64.exp()).powi(2)).ln());
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        assert_eq!(likeliest(&[0.0, 3.0, -1.0]), Some(1));
    }

    #[test]
    fn speeds_are_medians_and_ratios_by_turn() {
        let speed = speed(512, &[(1.0, 0.5), (2.0, 1.0)], &[(2.0, 0.5), (2.0, 2.0)]);
        assert_eq!((speed.prefill_tokens_per_s, speed.prefill_ratio), (341.3, Some(1.5)));
        assert_eq!((speed.decode_tokens_per_s, speed.decode_ratio), (42.7, Some(1.5)));
        assert_eq!(speed.peer_prefill_tokens_per_s, Some(256.0));
    }
}
