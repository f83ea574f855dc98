//! `memcube bench ttft`

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    bench::ttft::{self, CONTEXTS, Held, QUERIES, Quantised, Speed, TtftOptions, TtftReport},
    cli::{options::Options, output, running},
    inference::candle::engine::SMOLLM2,
};

const EXAMPLES: &str = "\
The language model is the one that `make language-model` fetches. A program that is given as
`--peer` measures another engine in turns with this one: `benches/ttft.sh` does so with llama.cpp.

Example:
  memcube bench ttft --context 583 --query 167 --rounds 1
  memcube bench ttft --plot ttft.svg --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TtftArgs {
    /// Tokens of a context; may be given several times.
    #[arg(long, value_name = "N", default_values_t = CONTEXTS)]
    context: Vec<usize>,
    /// Tokens of a new turn; may be given several times.
    #[arg(long, value_name = "N", default_values_t = QUERIES)]
    query: Vec<usize>,
    /// How often everything is measured; what is short, thrice as often.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Threads of the model.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Directory of the language model [default: `smollm2-135m-instruct` beside the embedding
    /// model].
    #[arg(long, value_name = "DIR")]
    language_model_dir: Option<PathBuf>,
    /// Milliseconds of rest before every measurement.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pause_ms: u64,
    /// File that gets the picture, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Program that measures another engine in turns with this one.
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
}

pub(crate) fn run(options: &Options, args: TtftArgs) -> Result<()> {
    let settings = options.settings()?;
    running::start_quiet_logging(&settings.log)?;
    let beside = settings.embedder.model_dir.with_file_name(SMOLLM2);
    let bench = TtftOptions {
        model_dir: args.language_model_dir.unwrap_or(beside),
        threads: args.threads,
        contexts: args.context,
        queries: args.query,
        rounds: args.rounds,
        pause: Duration::from_millis(args.pause_ms),
        peer: args.peer,
    };
    let bar = output::steps_bar(0);
    let on_step = |step: &str, done: usize, total: usize| {
        bar.set_prefix(step.to_owned());
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let report = running::runtime()?.block_on(Box::pin(ttft::run(bench, &on_step)));
    bar.finish_and_clear();
    let report = report?;
    if let Some(path) = &args.plot {
        std::fs::write(path, ttft::svg(&report))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if options.json {
        return output::json(&report);
    }
    print(&report)
}

fn print(report: &TtftReport) -> Result<()> {
    let TtftReport { cells, speed, memory, quantised, .. } = report;
    let seconds = |value: f64| format!("{value:.3}");
    let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), seconds);
    let percent = |value: f64| format!("{value:.1} %");
    let rows: Vec<[String; 11]> = cells
        .iter()
        .map(|cell| {
            [
                format!("{} + {}", cell.context_tokens, cell.query_tokens),
                seconds(cell.build_s),
                seconds(cell.ttft_direct_s),
                seconds(cell.ttft_device_s),
                seconds(cell.ttft_ram_s),
                seconds(cell.ttft_disk_s),
                seconds(cell.ttft_object_s),
                seconds(cell.query_alone_s),
                percent(cell.cut_percent),
                cell.seed_cut_percent.map_or_else(|| "-".to_owned(), percent),
                format!("{} / {}", optional(cell.peer_direct_s), optional(cell.peer_restored_s)),
            ]
        })
        .collect();
    let head = [
        "tokens",
        "build s",
        "direct",
        "device",
        "RAM",
        "disk",
        "objects",
        "turn alone",
        "cut",
        "MemOS",
        "peer direct / restored",
    ];
    output::table(head, &rows)?;
    output::line(format_args!("objects: {}", report.object_store))?;
    for Speed { tokens, prefill_tokens_per_s, decode_tokens_per_s, .. } in speed {
        output::line(format_args!(
            "{tokens} tokens: {prefill_tokens_per_s:.0} tokens/s read, {decode_tokens_per_s:.1} \
             tokens/s written behind them"
        ))?;
    }
    for Held { tokens, arithmetic_bytes, session_bytes, resident_bytes } in memory {
        let resident = resident_bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        output::line(format_args!(
            "{tokens} tokens take {arithmetic_bytes} bytes by arithmetic, {session_bytes} in the \
             session, {resident} resident"
        ))?;
    }
    for Quantised { context_tokens, bytes_share, mean_kl, top_1_percent, .. } in quantised {
        output::line(format_args!(
            "{context_tokens} tokens in 8 bits: {bytes_share:.3} of the bytes, KL {mean_kl:.1e}, \
             the likeliest token is the same in {top_1_percent:.1} %"
        ))?;
    }
    output::line(ttft::text_plot(report))
}
