//! Time to the first token of a replayed conversation with pauses: with the scheduler, with typing
//! events as well, without it, and with all that a turn needs computed before (the limit).
//!
//! A conversation of a folder made by `memeval.strip` is remembered but for its last turns. One of
//! the two speakers then says these last turns to the language model, which answers on every node;
//! between two turns there is a pause as long as reading and typing take. The nodes differ in what
//! they do in the pauses, and are measured in turns.

mod plot;
mod world;

use std::{path::PathBuf, time::Duration};

use memcube_actors::{Error, Result, inference::Engine};
use serde::Serialize;

use self::world::World;
pub use self::{plot::svg, world::Disturbed};
use super::Durations;
use crate::{inference::candle::engine::CandleEngine, settings::Settings};

/// What is measured.
#[derive(Debug, Clone)]
pub struct ScenesOptions {
    /// Of the embedder, and of the scheduler.
    pub settings: Settings,
    /// Folder of the language model.
    pub model_dir: PathBuf,
    /// Threads of the model.
    pub threads: usize,
    /// The folder with conversations.
    pub data: PathBuf,
    /// Conversations of it.
    pub conversations: usize,
    /// Turns of each that are said to the model.
    pub turns: usize,
    /// Memories that a turn looks for.
    pub top_k: usize,
    /// Characters that a user types in a second.
    pub typed_per_second: f64,
    /// The shortest pause, and the longest.
    pub pause: (Duration, Duration),
    /// How often the delay of a foreground request is measured.
    pub disturbed_rounds: usize,
}

/// What a node does between two turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It computes the last reply, and nothing else.
    Off,
    /// The scheduler prepares the next turn.
    Scheduled,
    /// So it does, and hears what is typed.
    Typing,
    /// All that the turn will need is computed: nobody can know more.
    Limit,
}

impl Mode {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::Off, Self::Scheduled, Self::Typing, Self::Limit];

    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "without scheduler",
            Self::Scheduled => "scheduler",
            Self::Typing => "scheduler, typing events",
            Self::Limit => "everything cached",
        }
    }
}

/// What was measured of one mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModeReport {
    /// Which.
    pub mode: Mode,
    /// Time to the first token, recall included.
    pub ttft_ms: Durations,
    /// The mean of the same.
    pub mean_ms: f64,
    /// Tokens of a prompt that were computed when the user waited, on average.
    pub computed_tokens: f64,
    /// Memories that turns needed, and those of them that were in the context before.
    pub needed: usize,
    /// Those of them that were in the context before the turn.
    pub ready: usize,
    /// Of what could be saved, the share that was: 0 without the scheduler, 1 at the limit.
    pub realised: f64,
    /// Tokens of memories that were computed ahead and not needed by the next turn, for each that
    /// was. `None` without a scheduler.
    pub wasted_per_saved: Option<f64>,
    /// Tokens of memories that a turn did not have to compute because of the scheduler.
    pub saved_tokens: u64,
    /// Tokens of memories that were computed in vain.
    pub wasted_tokens: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScenesReport {
    /// One for each mode.
    pub modes: Vec<ModeReport>,
    /// Turns measured of each mode.
    pub turns: usize,
    /// The mean pause.
    pub pause_ms: f64,
    /// Memories of a cube, on average.
    pub memories: f64,
    /// What a preload costs somebody else's request.
    pub disturbed: Option<Disturbed>,
    /// The model.
    pub model: String,
    /// Its threads.
    pub threads: usize,
}

/// One turn of one mode.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    ttft_us: u64,
    computed_tokens: usize,
    needed: usize,
    ready: usize,
}

/// Measures. `on_step` hears what is done, how far, and of how much.
///
/// # Errors
/// `Invalid` when the folder or the model cannot be read, and whatever a node may answer.
pub async fn run(
    options: ScenesOptions,
    on_step: &(dyn Fn(&str, usize, usize) + Sync),
) -> Result<ScenesReport> {
    let (directory, threads) = (options.model_dir.clone(), options.threads);
    let opened =
        tokio::task::spawn_blocking(move || CandleEngine::open_smollm2(&directory, threads));
    let engine = opened.await.map_err(|error| Error::internal(error.to_string()))?;
    let engine = engine?;
    let world = World::start(&engine, &options.settings).await?;
    let files = super::files::conversation_files(&options.data)?;
    let files = &files[..options.conversations.min(files.len())];
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); Mode::ALL.len()];
    let (mut pauses, mut memories) = (Vec::new(), 0);
    for (number, file) in files.iter().enumerate() {
        let total = files.len() * options.turns;
        let mut talk = world.talk(file, &options).await?;
        memories += talk.memories;
        for turn in 0..talk.turns() {
            on_step("turns", number * options.turns + turn, total);
            for (place, mode) in Mode::ALL.into_iter().enumerate() {
                let (sample, pause) = talk.turn(turn, mode, &options).await?;
                // The first turn finds nothing prepared in any mode.
                if turn > 0 {
                    samples[place].push(sample);
                    pauses.push(pause.as_secs_f64() * 1_000.0);
                }
            }
        }
    }
    let wasted = world.spent();
    let disturbed = if options.disturbed_rounds > 0 {
        on_step("disturbed requests", 0, options.disturbed_rounds);
        Some(world.disturbed(options.disturbed_rounds).await?)
    } else {
        None
    };
    world.shut_down().await;
    let pause_ms = pauses.iter().sum::<f64>() / pauses.len().max(1) as f64;
    Ok(ScenesReport {
        turns: samples[0].len(),
        modes: report(&samples, &wasted),
        pause_ms,
        memories: memories as f64 / files.len().max(1) as f64,
        disturbed,
        model: engine.facts().fingerprint.model.to_string(),
        threads,
    })
}

fn report(samples: &[Vec<Sample>], wasted: &[(u64, u64)]) -> Vec<ModeReport> {
    let mean_ms = |samples: &[Sample]| {
        let sum: u64 = samples.iter().map(|sample| sample.ttft_us).sum();
        sum as f64 / 1_000.0 / samples.len().max(1) as f64
    };
    let (off, limit) = (mean_ms(&samples[0]), mean_ms(&samples[Mode::ALL.len() - 1]));
    let reports = Mode::ALL.into_iter().zip(samples).zip(wasted);
    let reports = reports.map(|((mode, samples), (saved_tokens, wasted_tokens))| {
        let count = samples.len().max(1) as f64;
        let mean_ms = mean_ms(samples);
        let tokens: usize = samples.iter().map(|sample| sample.computed_tokens).sum();
        let is_scheduled = matches!(mode, Mode::Scheduled | Mode::Typing);
        let ratio = *wasted_tokens as f64 / (*saved_tokens).max(1) as f64;
        ModeReport {
            mode,
            ttft_ms: Durations::of(
                samples.iter().map(|sample| sample.ttft_us as f64 / 1_000.0).collect(),
            ),
            mean_ms,
            computed_tokens: tokens as f64 / count,
            needed: samples.iter().map(|sample| sample.needed).sum(),
            ready: samples.iter().map(|sample| sample.ready).sum(),
            realised: if off > limit { (off - mean_ms) / (off - limit) } else { 0.0 },
            wasted_per_saved: is_scheduled.then_some(ratio),
            saved_tokens: *saved_tokens,
            wasted_tokens: *wasted_tokens,
        }
    });
    reports.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_realised_lies_between_nothing_and_the_limit() {
        let turn = |ttft_us: u64| Sample { ttft_us, computed_tokens: 10, needed: 2, ready: 1 };
        let samples = [
            vec![turn(100_000), turn(120_000)],
            vec![turn(60_000), turn(80_000)],
            vec![turn(40_000), turn(40_000)],
            vec![turn(30_000), turn(30_000)],
        ];
        let reports = report(&samples, &[(0, 0), (10, 30), (20, 0), (0, 0)]);
        let realised: Vec<f64> = reports.iter().map(|report| report.realised).collect();
        assert_eq!(realised, [0.0, 0.5, 0.875, 1.0]);
        let wasted: Vec<_> = reports.iter().map(|report| report.wasted_per_saved).collect();
        assert_eq!(wasted, [None, Some(3.0), Some(0.0), None]);
        assert_eq!((reports[1].needed, reports[1].ready), (4, 2));
        assert!((reports[0].mean_ms - 110.0).abs() < 1e-9);
    }
}
