//! `memcube bench`

mod ingest;
#[cfg(feature = "candle")]
mod scenes;
#[cfg(feature = "candle")]
mod segments;
#[cfg(feature = "candle")]
mod ttft;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use self::ingest::IngestReport;
use super::{options::Options, output, running};
use crate::bench::{
    cubes::{self, CubesReport, RegisterReport},
    hydrate::{self, HydrateReport},
    preload::{self, DecisionReport, PreloadOptions, PreloadReport},
    recall::{self, RecallOptions, RecallReport},
    recall_speed::{self, SpeedReport},
    vectors::{self, VectorsReport},
};
use crate::{
    environment,
    node::open_vectors,
    settings::{Settings, VectorsKind},
};
use memcube_actors::Error;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Rank the memories for every question of a folder of conversations.
    Recall(RecallArgs),
    /// Replay conversations, and name before every turn the memories that it will need.
    Preload(PreloadArgs),
    /// Measure recall alone on synthetic memories; no model is needed.
    RecallSpeed(SpeedArgs),
    /// Measure the vector tier beside the RAM of a cube, on synthetic memories; no model is needed.
    Vectors(VectorsArgs),
    /// Import one file through HTTP, two messages at a time, and measure.
    Ingest(IngestArgs),
    /// Measure a store that holds many cubes: start, memory, adds, hydration.
    Cubes(CubesArgs),
    /// Measure how long a cube takes into RAM, from its snapshot and from its rows.
    Hydrate(HydrateArgs),
    /// Measure the time to the first token on top of a context that is cached in RAM, on disk, in
    /// an object store, or nowhere.
    #[cfg(feature = "candle")]
    Ttft(ttft::TtftArgs),
    /// Replay a conversation with pauses, and measure the time to the first token with the
    /// scheduler, without it, and with everything cached.
    #[cfg(feature = "candle")]
    Scenes(scenes::ScenesArgs),
    /// Measure what independent segments cost in accuracy and what they save.
    #[cfg(feature = "candle")]
    Segments(segments::SegmentsArgs),
}

const RECALL_EXAMPLES: &str = "\
The folder holds one memeval JSONL file for each conversation (lines `conv` and `turn`), and
`questions.jsonl` with lines {\"q\":\"3fe...\",\"conv\":\"id of the conversation\",\"question\":\"...\"}.

Example:
  memcube bench recall --data run/in --out run/rank.jsonl

A line of the output: {\"q\":\"3fe...\",\"ranked\":[\"D1:3\",...],\"conf\":0.7,\"ms\":1.2}";

#[derive(Debug, Args)]
#[command(after_help = RECALL_EXAMPLES)]
pub(crate) struct RecallArgs {
    /// Folder with conversations and `questions.jsonl`.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// File to write the rankings to.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Processors that the model uses; 0 takes all [default: from the settings].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

const PRELOAD_EXAMPLES: &str = "\
The folder holds one memeval JSONL file for each conversation (lines `conv` and `turn`).

Example:
  memcube bench preload --data run/in --out run/preload.jsonl --baselines --items 10000

A line of the output, likeliest first: {\"event\":\"ID/link/D7:3\",\"resident\":[\"D1:5\",...]}";

#[derive(Debug, Args)]
#[command(after_help = PRELOAD_EXAMPLES)]
pub(crate) struct PreloadArgs {
    /// Folder with conversations.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// File to write the predictions to.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Share of each turn that is typed when it is predicted, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    typed: f64,
    /// File with questions in fixed orders, made by `benches/preload_streams.py`.
    #[arg(long, value_name = "FILE")]
    streams: Option<PathBuf>,
    /// Write what other policies name, too: `OUT.last-turn.jsonl` and so on, beside the output.
    #[arg(long)]
    baselines: bool,
    /// Also measure decisions in a cube of so many memories; may be given several times.
    #[arg(long, value_name = "N")]
    items: Vec<usize>,
    /// Processors that the model uses; 0 takes all [default: from the settings].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  memcube bench recall-speed --items 10000 --items 100000 --json"
)]
pub(crate) struct SpeedArgs {
    /// Memories in the index; may be given several times.
    #[arg(long, value_name = "N", default_values_t = [10_000, 100_000])]
    items: Vec<usize>,
    /// Different questions to ask.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    queries: usize,
    /// File that gets the vectors of memories and questions, for other engines.
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  memcube bench ingest --data locomo_conv-26.jsonl")]
pub(crate) struct IngestArgs {
    /// File to import; any format that `memcube import` reads.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Messages in one request.
    #[arg(long, value_name = "N", default_value_t = 2)]
    batch: usize,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  memcube bench vectors --rows 200000 --cubes 1000 --json")]
pub(crate) struct VectorsArgs {
    /// Memories in all cubes together.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    rows: usize,
    /// Cubes that hold them.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    cubes: usize,
    /// Questions of each sort.
    #[arg(long, value_name = "N", default_value_t = 200)]
    queries: usize,
    /// Measure tables in RAM instead of LanceDB's; a build without `lance` has no others.
    #[arg(long)]
    in_ram: bool,
    /// Rows of one table from which on it gets an approximate index [default: from the settings].
    #[arg(long, value_name = "N")]
    approximate_rows_min: Option<usize>,
}

const CUBES_EXAMPLES: &str = "\
The store lies in DIR and stays there. Registering and measuring are two runs, so that the memory
of the second is that of a server that has just started.

Example:
  memcube bench cubes --dir run/million --count 1000000 --register
  memcube bench cubes --dir run/million --count 1000000 --json";

#[derive(Debug, Args)]
#[command(after_help = CUBES_EXAMPLES)]
pub(crate) struct CubesArgs {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Cubes to make, or that are there.
    #[arg(long, value_name = "N")]
    count: usize,
    /// Make the cubes, in place of measuring.
    #[arg(long)]
    register: bool,
    /// Cubes to measure.
    #[arg(long, value_name = "N", default_value_t = 200)]
    sample: usize,
}

#[derive(Debug, Args)]
#[command(after_help = "The store lies in DIR, which must be empty, and stays there.\n\n\
    Example:\n  memcube bench hydrate --dir run/hydrate --items 100000 --tail 1000 --json")]
pub(crate) struct HydrateArgs {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Memories in the cube; no model is needed.
    #[arg(long, value_name = "N")]
    items: usize,
    /// Of them, how many are added after the snapshot; at most one in 64.
    #[arg(long, value_name = "N", default_value_t = 0)]
    tail: usize,
    /// How often the cube is hydrated from its snapshot, and a tenth as often from its rows.
    #[arg(long, value_name = "N", default_value_t = 100)]
    rounds: usize,
}

pub(crate) fn run(options: &Options, command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Recall(args) => run_recall(options, args),
        BenchCommand::Preload(args) => run_preload(options, args),
        BenchCommand::RecallSpeed(args) => run_speed(options, &args),
        BenchCommand::Vectors(args) => run_vectors(options, &args),
        BenchCommand::Ingest(args) => run_ingest(options, &args),
        BenchCommand::Cubes(args) => run_cubes(options, &args),
        BenchCommand::Hydrate(args) => run_hydrate(options, &args),
        #[cfg(feature = "candle")]
        BenchCommand::Ttft(args) => ttft::run(options, args),
        #[cfg(feature = "candle")]
        BenchCommand::Scenes(args) => scenes::run(options, args),
        #[cfg(feature = "candle")]
        BenchCommand::Segments(args) => segments::run(options, args),
    }
}

/// The settings of a benchmark that embeds, with logging switched on.
fn settings_with_model(options: &Options, threads: Option<usize>) -> Result<Settings> {
    let mut settings = options.settings()?;
    if let Some(threads) = threads {
        settings.embedder.threads = threads;
    }
    running::start_quiet_logging(&settings.log)?;
    Ok(settings)
}

/// Runs something that tells its steps, with a bar that shows them.
fn with_bar<T>(work: impl AsyncFnOnce(&(dyn Fn(&str, usize, usize) + Sync)) -> T) -> Result<T> {
    let bar = output::steps_bar(0);
    let on_step = |step: &str, done: usize, total: usize| {
        bar.set_prefix(step.to_owned());
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let done = running::runtime()?.block_on(Box::pin(work(&on_step)));
    bar.finish_and_clear();
    Ok(done)
}

fn run_preload(options: &Options, args: PreloadArgs) -> Result<()> {
    let settings = settings_with_model(options, args.threads)?;
    let PreloadArgs { data, out, typed, streams, baselines, items, .. } = args;
    let shown = out.display().to_string();
    let decisions = preload::decisions(&items)?;
    let bench = PreloadOptions { settings, data, out, typed, streams, baselines };
    let report = with_bar(async |on_step| preload::run(bench, on_step).await)??;
    let report = PreloadReport { decisions, ..report };
    if options.json {
        return output::json(&report);
    }
    let PreloadReport { conversations, turns, questions, decision_ms, decisions } = report;
    for DecisionReport { items, scene_ms, predict_and_plan_ms, decision_ms, .. } in decisions {
        output::line(format_args!(
            "{items} memories; a decision: {decision_ms}\n  the cube: {scene_ms}\n  predict and \
             plan: {predict_and_plan_ms}"
        ))?;
    }
    output::line(format_args!(
        "{turns} turns of {conversations} conversations, {questions} questions; a decision: \
         {decision_ms}\npredictions written to `{shown}`"
    ))
}

fn run_recall(options: &Options, args: RecallArgs) -> Result<()> {
    let settings = settings_with_model(options, args.threads)?;
    let bench = RecallOptions { settings, data: args.data, out: args.out.clone() };
    let report = with_bar(async |on_step| recall::run(bench, on_step).await)??;
    if options.json {
        return output::json(&report);
    }
    let RecallReport { conversations, items, questions, import_seconds, search_ms } = report;
    output::line(format_args!(
        "{conversations} conversations, {items} items imported in {import_seconds:.1} s\n\
         {questions} questions: {search_ms}\nrankings written to `{}`",
        args.out.display()
    ))
}

fn run_speed(options: &Options, args: &SpeedArgs) -> Result<()> {
    let mut reports = Vec::new();
    for items in &args.items {
        let report = recall_speed::run(*items, args.queries, args.vectors.as_deref())?;
        if !options.json {
            let SpeedReport { items, queries, insert_seconds, search_ms } = &report;
            output::line(format_args!(
                "{items} items (inserted in {insert_seconds:.1} s), {queries} queries: {search_ms}"
            ))?;
        }
        reports.push(report);
    }
    if options.json { output::json(&reports) } else { Ok(()) }
}

fn run_vectors(options: &Options, args: &VectorsArgs) -> Result<()> {
    let mut settings = options.settings()?;
    if let Some(rows) = args.approximate_rows_min {
        settings.vectors.approximate_rows_min = rows;
    }
    running::start_quiet_logging(&settings.log)?;
    let in_ram = args.in_ram || cfg!(not(feature = "lance"));
    settings.vectors.kind = if in_ram { VectorsKind::InRam } else { VectorsKind::Lance };
    // Of its own, and gone afterwards.
    let directory = std::env::temp_dir().join(format!("memcube-bench-{}", std::process::id()));
    settings.vectors.url = directory.to_string_lossy().into_owned();
    let report = running::runtime()?.block_on(async {
        let index = open_vectors(&settings, &environment::system()).await?;
        let index = index.ok_or_else(|| Error::internal("there is no vector tier to measure"))?;
        let kind = settings.vectors.kind.as_str();
        Box::pin(vectors::run(index, kind, args.rows, args.cubes, args.queries)).await
    });
    if !in_ram {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove `{}`", directory.display()))?;
    }
    let report = report?;
    if options.json {
        return output::json(&report);
    }
    let VectorsReport { kind, rows, cubes, build_seconds, .. } = &report;
    output::line(format_args!(
        "{rows} memories in {cubes} cubes, `{kind}` (built in {build_seconds:.1} s)\n\
         one cube, tier:     {}  recall@10 {:.4}\n\
         one cube, its RAM:  {}\n\
         all cubes, tier:    {}  recall@10 {:.4}",
        report.cube_ms,
        report.cube_recall_at_10,
        report.cube_in_ram_ms,
        report.tenant_ms,
        report.tenant_recall_at_10,
    ))
}

fn run_ingest(options: &Options, args: &IngestArgs) -> Result<()> {
    let settings = options.settings()?;
    let bar = output::steps_bar(0);
    let on_step = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let report = ingest::run(settings, &args.data, args.batch, &on_step);
    bar.finish_and_clear();
    let report = report?;
    if options.json {
        return output::json(&report);
    }
    let IngestReport { messages, memories, batch, seconds, add_ms, searches, search_ms } = report;
    output::line(format_args!(
        "{messages} messages ({memories} memories) in batches of {batch}: {seconds:.2} s\n\
         add:    {add_ms}\nsearch: {search_ms} ({searches} searches)"
    ))
}

fn run_cubes(options: &Options, args: &CubesArgs) -> Result<()> {
    running::start_quiet_logging(&options.settings()?.log)?;
    let runtime = running::runtime()?;
    if args.register {
        let report = runtime.block_on(Box::pin(cubes::register(&args.dir, args.count)))?;
        if options.json {
            return output::json(&report);
        }
        let RegisterReport { cubes, seconds } = report;
        return output::line(format_args!("{cubes} cubes made in {seconds:.1} s"));
    }
    let measure = cubes::measure(&args.dir, args.count, args.sample);
    let report = runtime.block_on(Box::pin(measure))?;
    if options.json {
        return output::json(&report);
    }
    let CubesReport { cubes, start_ms, resident_mb, sample, .. } = &report;
    let resident = resident_mb.map_or_else(|| "?".to_owned(), |mb| mb.to_string());
    output::line(format_args!(
        "{cubes} cubes: started in {start_ms:.1} ms, {resident} MB; of {sample} of them:\n\
         add, cold: {}\nadd, hot:  {}\nhydrate:   {}",
        report.add_cold_ms, report.add_hot_ms, report.hydrate_ms
    ))
}

fn run_hydrate(options: &Options, args: &HydrateArgs) -> Result<()> {
    running::start_quiet_logging(&options.settings()?.log)?;
    let is_empty = std::fs::read_dir(&args.dir).map_or(true, |mut found| found.next().is_none());
    anyhow::ensure!(is_empty, "`{}` is not empty; choose another `--dir`", args.dir.display());
    let HydrateArgs { dir, items, tail, rounds } = args;
    let measure = hydrate::run(dir, *items, *tail, *rounds);
    let report = running::runtime()?.block_on(Box::pin(measure))?;
    if options.json {
        return output::json(&report);
    }
    let HydrateReport { items, tail, rounds, snapshot_bytes, snapshot_ms, rows_ms } = report;
    output::line(format_args!(
        "{items} items, {tail} of them after the snapshot of {:.1} MB, {rounds} rounds\n\
         from snapshot and tail: {snapshot_ms}\nfrom rows:              {rows_ms}",
        snapshot_bytes as f64 / 1e6
    ))
}
