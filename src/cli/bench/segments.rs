//! `memcube bench segments`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{
    bench::segments::{self, REPAIRS, SegmentsOptions, SegmentsReport, SetReport},
    cli::{options::Options, output, running},
};

const EXAMPLES: &str = "\
The language model is the one that `make language-model` fetches. The prompts are made up, and the
same in every run. What is printed is a table in Markdown.

Example:
  memcube bench segments --prompts 4 --rounds 1
  memcube bench segments --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SegmentsArgs {
    /// Prompts with memories of each length.
    #[arg(long, value_name = "N", default_value_t = 16)]
    prompts: usize,
    /// Memories in each prompt.
    #[arg(long, value_name = "N", default_value_t = 6)]
    memories: usize,
    /// How often times are measured.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// First tokens of each memory that are computed where they stand; may be given several times.
    #[arg(long, value_name = "N", default_values_t = REPAIRS)]
    repair: Vec<usize>,
    /// Threads of the model.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Directory of the language model [default: from the settings].
    #[arg(long, value_name = "DIR")]
    language_model_dir: Option<PathBuf>,
}

pub(crate) fn run(options: &Options, args: SegmentsArgs) -> Result<()> {
    let settings = options.settings()?;
    running::start_quiet_logging(&settings.log)?;
    let bench = SegmentsOptions {
        model_dir: args.language_model_dir.unwrap_or(settings.inference.model_dir),
        threads: args.threads,
        prompts: args.prompts,
        memories: args.memories,
        rounds: args.rounds,
        repairs: args.repair,
    };
    let bar = output::steps_bar(0);
    let on_step = |step: &str, done: usize, total: usize| {
        bar.set_prefix(step.to_owned());
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let report = segments::run(&bench, &on_step);
    bar.finish_and_clear();
    let report = report?;
    if options.json { output::json(&report) } else { print(&report) }
}

fn print(report: &SegmentsReport) -> Result<()> {
    let SegmentsReport { model, threads, prompts, memories, rounds, sets } = report;
    output::line(format_args!(
        "`{model}`, {threads} threads; {prompts} prompts of {memories} memories, times of {rounds} \
         rounds."
    ))?;
    for set in sets {
        let SetReport { length, memory_tokens, exact_tokens, exact_ms, places, ways } = set;
        output::line(format_args!(
            "\n{length} memories, {memory_tokens:.0} tokens each; computed exactly, a request takes \
             {exact_tokens:.0} tokens and {exact_ms:.0} ms to the first one; {places} places.\n\n\
             | memories are | KL first, mean (max) | KL all, mean (max) | top-1 | texts equal | \
             tokens computed | ms | of exact |\n|---|---|---|---|---|---|---|---|"
        ))?;
        for way in ways {
            output::line(format_args!(
                "| {} | {:.3} ({:.2}) | {:.3} ({:.2}) | {:.1} % | {} of {prompts} | {:.0} ({:.0} %) \
                 | {:.0} | {:.2} |",
                way.way,
                way.kl_first_mean,
                way.kl_first_max,
                way.kl_mean,
                way.kl_max,
                way.top_1_percent,
                way.equal_texts,
                way.computed_tokens,
                100.0 * way.computed_tokens / exact_tokens,
                way.ms,
                way.ms_ratio,
            ))?;
        }
    }
    Ok(())
}
