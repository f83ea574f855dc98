//! Time to the first token of a chat on top of a context that is cached in each tier, or nowhere.
//!
//! The grid is the one that MemOS publishes: contexts of 583, 2,773 and 6,064 tokens, new turns of
//! 167, 303 and 953. A context is memories of a cube, computed ahead by `preload`; a turn goes
//! through `chat`, so that all is measured that a caller waits for: laying the prompt out, reading
//! rows, importing or loading blocks, computing the rest, choosing a token. Every turn has words of
//! its own, so that only the context can come from a cache. What is compared is measured in turns.

mod kernel;
mod peer;
mod plot;
mod text;
mod world;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use memcube_actors::{Error, Result};
use serde::Serialize;

use self::{kernel::Kernel, peer::Peer, world::World};
pub use self::{
    kernel::{Held, Quantised, Speed},
    plot::{svg, text_plot},
};
use crate::inference::candle::engine::CandleEngine;

/// Tokens of the contexts that MemOS publishes figures for.
pub const CONTEXTS: [usize; 3] = [583, 2_773, 6_064];
/// Tokens of the turns.
pub const QUERIES: [usize; 3] = [167, 303, 953];
/// Short measurements between two long ones.
const SHORT_TURNS: usize = 3;
/// Percent that the fastest model of MemOS's table saves (Qwen3-8B on a GPU).
const SEED_CUTS: [(usize, [f64; 3]); 3] =
    [(583, [71.3, 55.6, 23.0]), (2_773, [89.7, 85.1, 64.6]), (6_064, [94.2, 91.1, 79.1])];
/// The shorter of the prompts of which the speed is measured; the longer one is the longest
/// context.
const SHORT_PROMPT: usize = 512;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct TtftOptions {
    /// Folder of the language model.
    pub model_dir: PathBuf,
    /// Threads of the model.
    pub threads: usize,
    /// Tokens of the contexts.
    pub contexts: Vec<usize>,
    /// Tokens of the turns.
    pub queries: Vec<usize>,
    /// How often everything is measured; short times thrice as often.
    pub rounds: usize,
    /// Rest before every measurement, on machines that others use or that get hot.
    pub pause: Duration,
    /// A program that measures another engine in turns with this one; see `benches/ttft_llama.py`.
    pub peer: Option<String>,
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TtftReport {
    /// One for each context and turn.
    pub cells: Vec<Cell>,
    /// How fast prompts are read and replies written.
    pub speed: Vec<Speed>,
    /// What keys and values take in memory.
    pub memory: Vec<Held>,
    /// What 8 bits a number cost in accuracy.
    pub quantised: Vec<Quantised>,
    /// The model, with the beginning of its checksum.
    pub model: String,
    /// Threads of the model.
    pub threads: usize,
    /// How often everything was measured.
    pub rounds: usize,
    /// What stood for the object store.
    pub object_store: String,
    /// The other engine, as it calls itself.
    pub peer: Option<String>,
}

/// Times of one context and turn: medians, in seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Cell {
    /// Tokens of the context.
    pub context_tokens: usize,
    /// Tokens of the turn, the opening of the reply included.
    pub query_tokens: usize,
    /// To compute the context ahead, and to keep it.
    pub build_s: f64,
    /// Without any cache.
    pub ttft_direct_s: f64,
    /// The context lies in blocks in RAM.
    pub ttft_ram_s: f64,
    /// It lies on the local disk; its files are in the system's page cache.
    pub ttft_disk_s: f64,
    /// It lies in an object store.
    pub ttft_object_s: f64,
    /// It is in a session that is still on the device.
    pub ttft_device_s: f64,
    /// To compute the turn alone behind the context: nothing can be quicker.
    pub query_alone_s: f64,
    /// What RAM saves of the direct time.
    pub cut_percent: f64,
    /// What MemOS's table says for its fastest model.
    pub seed_cut_percent: Option<f64>,
    /// Median of RAM over the turn alone, by turn.
    pub ram_over_alone: f64,
    /// Median of disk over RAM, by turn.
    pub disk_over_ram: f64,
    /// The other engine without a cache.
    pub peer_direct_s: Option<f64>,
    /// The other engine after it has restored its own state.
    pub peer_restored_s: Option<f64>,
    /// Median of RAM over the other engine's restored state, by turn.
    pub ram_over_peer: Option<f64>,
    /// All measurements, in the order in which they were made.
    pub samples: BTreeMap<&'static str, Vec<f64>>,
}

/// Measures the grid.
///
/// # Errors
/// `Invalid` for numbers that make no sense, `Unavailable` without the model's file, and whatever
/// the node says.
pub async fn run(options: TtftOptions, on_step: &dyn Fn(&str, usize, usize)) -> Result<TtftReport> {
    let TtftOptions { model_dir, threads, contexts, queries, rounds, pause, peer } = options;
    let is_empty = contexts.is_empty() || queries.is_empty() || rounds == 0 || threads == 0;
    if is_empty || contexts.iter().chain(&queries).any(|tokens| *tokens < text::TOKENS_MIN) {
        return Err(Error::invalid(format!(
            "contexts and queries have at least {} tokens, and `--rounds` and `--threads` are at \
             least 1",
            text::TOKENS_MIN
        )));
    }
    let engine = CandleEngine::open_smollm2(&model_dir, threads)?;
    let kernel = Kernel::new(engine.clone(), pause);
    let mut peer = peer.as_deref().map(Peer::start).transpose()?;
    let prompts = [SHORT_PROMPT, contexts.iter().copied().max().unwrap_or(SHORT_PROMPT)];
    // First, while the process is small.
    let mut held = [&[SHORT_PROMPT][..], &contexts].concat();
    held.sort_unstable();
    held.dedup();
    let memory = held.into_iter().map(|tokens| kernel.held(tokens)).collect::<Result<_>>()?;
    let speed = kernel.speed(&prompts, rounds, peer.as_mut())?;
    let quantised = vec![kernel.quantised(CONTEXTS[0], QUERIES[1])?];
    let world = World::start(&engine).await?;
    let steps = contexts.len() * queries.len();
    let mut cells = Vec::with_capacity(steps);
    for context_tokens in contexts {
        let mut bench = world.build(&kernel, context_tokens, peer.as_mut()).await?;
        for query_tokens in &queries {
            let done = cells.len();
            on_step(&format!("{context_tokens} + {query_tokens}"), done, steps);
            let mut samples = Samples::default();
            for _ in 0..rounds {
                bench.round(*query_tokens, SHORT_TURNS, peer.as_mut(), &mut samples).await?;
            }
            cells.push(cell(context_tokens, *query_tokens, bench.build_s(), samples));
        }
    }
    world.shut_down().await;
    Ok(TtftReport {
        cells,
        speed,
        memory,
        quantised,
        model: engine.local().checksum()[..8].to_owned(),
        threads,
        rounds,
        object_store: world::OBJECT_STORE.to_owned(),
        peer: peer.map(|peer| peer.name().to_owned()),
    })
}

/// What is measured of a context and a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Direct,
    Device,
    Ram,
    Disk,
    Objects,
    Alone,
    PeerDirect,
    PeerRestored,
}

impl What {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Device => "device",
            Self::Ram => "ram",
            Self::Disk => "disk",
            Self::Objects => "objects",
            Self::Alone => "alone",
            Self::PeerDirect => "peer_direct",
            Self::PeerRestored => "peer_restored",
        }
    }
}

/// Seconds, by what was measured.
#[derive(Debug, Default)]
struct Samples(BTreeMap<What, Vec<f64>>);

impl Samples {
    fn add(&mut self, what: What, seconds: f64) {
        self.0.entry(what).or_default().push(seconds);
    }

    fn of(&self, what: What) -> &[f64] {
        self.0.get(&what).map_or(&[], Vec::as_slice)
    }

    fn median(&self, what: What) -> Option<f64> {
        median(self.of(what).to_vec())
    }

    /// The median of the ratios of what was measured in the same turn.
    fn ratio(&self, above: What, below: What) -> Option<f64> {
        let pairs = self.of(above).iter().zip(self.of(below));
        median(pairs.map(|(above, below)| above / below).collect())
    }
}

fn cell(context_tokens: usize, query_tokens: usize, build_s: f64, samples: Samples) -> Cell {
    let seconds = |what| samples.median(what).map_or(0.0, rounded);
    let of_peer = |what| samples.median(what).map(rounded);
    let ratio = |above, below| samples.ratio(above, below).map(rounded);
    let (direct, ram) = (samples.median(What::Direct), samples.median(What::Ram));
    let cut = direct.zip(ram).map_or(0.0, |(direct, ram)| 100.0 * (1.0 - ram / direct));
    Cell {
        context_tokens,
        query_tokens,
        build_s: rounded(build_s),
        ttft_direct_s: seconds(What::Direct),
        ttft_ram_s: seconds(What::Ram),
        ttft_disk_s: seconds(What::Disk),
        ttft_object_s: seconds(What::Objects),
        ttft_device_s: seconds(What::Device),
        query_alone_s: seconds(What::Alone),
        cut_percent: (cut * 10.0).round() / 10.0,
        seed_cut_percent: seed_cut(context_tokens, query_tokens),
        ram_over_alone: ratio(What::Ram, What::Alone).unwrap_or_default(),
        disk_over_ram: ratio(What::Disk, What::Ram).unwrap_or_default(),
        peer_direct_s: of_peer(What::PeerDirect),
        peer_restored_s: of_peer(What::PeerRestored),
        ram_over_peer: ratio(What::Ram, What::PeerRestored),
        samples: samples.0.iter().map(|(what, all)| (what.as_str(), all.clone())).collect(),
    }
}

fn seed_cut(context_tokens: usize, query_tokens: usize) -> Option<f64> {
    let (_, cuts) = SEED_CUTS.iter().find(|(context, _)| *context == context_tokens)?;
    let at = QUERIES.iter().position(|query| *query == query_tokens)?;
    cuts.get(at).copied()
}

fn median(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    if all.len() % 2 == 1 {
        return all.get(middle).copied();
    }
    let below = all.get(middle.checked_sub(1)?)?;
    Some((below + all[middle]) / 2.0)
}

/// To a tenth of a millisecond.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_are_by_turn() {
        let table: [(&[f64], Option<f64>); 4] = [
            (&[], None),
            (&[3.0], Some(3.0)),
            (&[4.0, 1.0], Some(2.5)),
            (&[9.0, 1.0, 2.0], Some(2.0)),
        ];
        for (all, expected) in table {
            assert_eq!(median(all.to_vec()), expected, "{all:?}");
        }
        let mut samples = Samples::default();
        for (ram, disk) in [(1.0, 1.1), (2.0, 2.4), (4.0, 4.0)] {
            samples.add(What::Ram, ram);
            samples.add(What::Disk, disk);
        }
        samples.add(What::Direct, 10.0);
        let cell = cell(583, 953, 0.5, samples);
        assert_eq!((cell.ttft_ram_s, cell.disk_over_ram, cell.cut_percent), (2.0, 1.1, 80.0));
        assert_eq!((cell.seed_cut_percent, cell.peer_direct_s), (Some(23.0), None));
        assert_eq!(seed_cut(6_064, 167), Some(94.2));
        assert_eq!(seed_cut(6_064, 168), None);
    }
}
