//! `memcube bench scenes`

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    bench::scenes::{self, ScenesOptions, ScenesReport},
    cli::{options::Options, output, running},
    inference::candle::engine::SMOLLM2,
};

const EXAMPLES: &str = "\
The folder holds one memeval JSONL file for each conversation (lines `conv` and `turn`). All but its
last turns are remembered; these are said to the language model that `make language-model` fetches,
with pauses as long as somebody types. Each node of the run has its own turn, so that it takes as
long as all pauses of all of them together.

Example:
  memcube bench scenes --data run/in --conversations 2 --turns 15 --plot scenes.svg";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ScenesArgs {
    /// Folder with conversations.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Conversations of it that are replayed.
    #[arg(long, value_name = "N", default_value_t = 2)]
    conversations: usize,
    /// Turns of each that are said to the model.
    #[arg(long, value_name = "N", default_value_t = 15)]
    turns: usize,
    /// Memories that a turn looks for.
    #[arg(long, value_name = "N", default_value_t = 5)]
    top_k: usize,
    /// Characters that the user types in a second: 25 are more than anybody does, so that pauses
    /// are rather too short than too long.
    #[arg(long, value_name = "N", default_value_t = 25.0)]
    typed_per_second: f64,
    /// Milliseconds of the shortest pause.
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    pause_ms_min: u64,
    /// Milliseconds of the longest pause.
    #[arg(long, value_name = "N", default_value_t = 6_000)]
    pause_ms_max: u64,
    /// How often it is measured what a preload costs somebody else's request.
    #[arg(long, value_name = "N", default_value_t = 20)]
    disturbed_rounds: usize,
    /// Threads of the model.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Directory of the language model [default: `smollm2-135m-instruct` beside the embedding
    /// model].
    #[arg(long, value_name = "DIR")]
    language_model_dir: Option<PathBuf>,
    /// File that gets the picture, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

pub(crate) fn run(options: &Options, args: ScenesArgs) -> Result<()> {
    let settings = options.settings()?;
    running::start_quiet_logging(&settings.log)?;
    let beside = settings.embedder.model_dir.with_file_name(SMOLLM2);
    let bench = ScenesOptions {
        settings,
        model_dir: args.language_model_dir.unwrap_or(beside),
        threads: args.threads,
        data: args.data,
        conversations: args.conversations,
        turns: args.turns,
        top_k: args.top_k,
        typed_per_second: args.typed_per_second.max(1.0),
        pause: (
            Duration::from_millis(args.pause_ms_min),
            Duration::from_millis(args.pause_ms_max.max(args.pause_ms_min)),
        ),
        disturbed_rounds: args.disturbed_rounds,
    };
    let bar = output::steps_bar(0);
    let on_step = |step: &str, done: usize, total: usize| {
        bar.set_prefix(step.to_owned());
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let report = running::runtime()?.block_on(Box::pin(scenes::run(bench, &on_step)));
    bar.finish_and_clear();
    let report = report?;
    if let Some(path) = &args.plot {
        std::fs::write(path, scenes::svg(&report))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if options.json { output::json(&report) } else { table(&report) }
}

fn table(report: &ScenesReport) -> Result<()> {
    let rows: Vec<[String; 8]> = report
        .modes
        .iter()
        .map(|mode| {
            [
                mode.mode.as_str().to_owned(),
                format!("{:.1}", mode.ttft_ms.p50),
                format!("{:.1}", mode.ttft_ms.p95),
                format!("{:.1}", mode.mean_ms),
                format!("{:.0}", mode.computed_tokens),
                format!("{} of {}", mode.ready, mode.needed),
                format!("{:.0} %", mode.realised * 100.0),
                mode.wasted_per_saved.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}")),
            ]
        })
        .collect();
    let heads =
        ["", "p50 ms", "p95 ms", "mean ms", "tokens", "ready", "realised", "wasted per saved"];
    output::table(heads, &rows)?;
    output::line(format!(
        "{} turns of each, {:.1} s between two, {:.0} memories; {}, {} threads",
        report.turns,
        report.pause_ms / 1_000.0,
        report.memories,
        report.model,
        report.threads
    ))?;
    if let Some(disturbed) = &report.disturbed {
        output::line(format!(
            "a request of another conversation: p50 {:.1} ms alone, {:.1} ms beside a preload \
             ({:+.1} %)",
            disturbed.alone_ms.p50,
            disturbed.beside_ms.p50,
            disturbed.delay * 100.0
        ))?;
    }
    Ok(())
}
