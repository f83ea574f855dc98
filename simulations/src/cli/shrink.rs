//! `memcube-sim shrink`

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::{Args, value_parser};
use memcube_simulations::{
    process::Verdict,
    shrink::{ShrinkSettings, Shrunk, Size, shrink},
};

use super::{
    options::{PlanOptions, bad_input, jobs_or_default},
    output::{self, line},
    verdict::{PASSED, default_path},
};

#[derive(Debug, Args)]
pub(crate) struct ShrinkArgs {
    #[command(flatten)]
    plan: PlanOptions,
    /// Write the small plan to this file [default: `target/sim/SCENARIO-SEED.plan.json`].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Runs after which the plan is small enough.
    #[arg(long, value_name = "N", default_value_t = 400)]
    runs: usize,
    /// Runs at the same time [default: one a CPU].
    #[arg(long, value_name = "J", value_parser = value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

pub(crate) fn run(args: &ShrinkArgs) -> Result<u8> {
    let chosen = args.plan.choose()?;
    let out = args.out.clone().unwrap_or_else(|| default_path(&chosen.plan, "plan.json"));
    let settings = ShrinkSettings { runs_max: args.runs, jobs: jobs_or_default(args.jobs) };
    let shrunk = shrink(chosen.plan, settings, &mut |plan, runs| {
        let Size { nodes, seconds, faults, events, scripts, steps } = Size::of(plan);
        output::note(format_args!(
            "{runs:>5} runs  {nodes:>2} nodes  {seconds:>5} s  {faults:>3} faults  \
             {events:>4} events  {scripts:>3} callers  {steps:>5} steps"
        ));
    })?;
    let passes = || anyhow!("`{}` passes: there is nothing to shrink", chosen.arguments);
    let shrunk = shrunk.ok_or_else(passes).map_err(bad_input)?;
    let plan = serde_json::to_string_pretty(&shrunk.plan).context("the plan has no JSON form")?;
    output::file(&out, &format!("{plan}\n"))?;
    tell(&shrunk)?;
    line(format_args!("replay: memcube-sim run --plan {}", out.display()))?;
    Ok(PASSED)
}

fn tell(shrunk: &Shrunk) -> Result<()> {
    let rows = |size: Size| {
        [
            ("nodes", u64::from(size.nodes)),
            ("seconds", u64::from(size.seconds)),
            ("random faults", size.faults as u64),
            ("timed faults", size.events as u64),
            ("callers", size.scripts as u64),
            ("steps", size.steps as u64),
        ]
    };
    let pairs = rows(shrunk.before).into_iter().zip(rows(shrunk.after));
    let rows = pairs.map(|((what, before), (_, after))| {
        [what.to_owned(), before.to_string(), after.to_string()]
    });
    table_of(&rows.collect::<Vec<_>>())?;
    let more = if shrunk.finished { "" } else { ", and then stopped: `--runs` allows more" };
    line(format_args!("{} runs{more}", shrunk.runs))?;
    match &shrunk.verdict {
        Verdict::Died { how } => line(format_args!("died  {how}")),
        Verdict::Finished(report) => report.violations.iter().try_for_each(|violation| {
            line(format_args!("violated  {}  {}", violation.checker, violation.what))
        }),
    }
}

fn table_of(rows: &[[String; 3]]) -> Result<()> {
    output::table(["", "before", "after"], rows)
}
