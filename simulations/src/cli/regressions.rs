//! `memcube-sim regressions`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, value_parser};
use memcube_simulations::{process::run_all, regressions, shrink::Failure};

use super::{
    options::{bad_input, jobs_or_default},
    output::{self, line},
    verdict::exit_code_of_all,
};

/// Where the list lies in the repository.
const LIST: &str = "simulations/regressions.txt";

#[derive(Debug, Args)]
pub(crate) struct RegressionsArgs {
    /// The list: lines of `SCENARIO SEED  # what it found` and `plan FILE`.
    #[arg(value_name = "FILE", default_value = LIST)]
    list: PathBuf,
    /// Runs at the same time [default: one a CPU].
    #[arg(long, value_name = "J", value_parser = value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

pub(crate) fn run(args: &RegressionsArgs) -> Result<u8> {
    let list = regressions::read(&args.list).map_err(bad_input)?;
    let mut plans = Vec::new();
    for regression in &list {
        plans.push(regression.plan().map_err(bad_input)?);
    }
    let verdicts = run_all(plans, jobs_or_default(args.jobs))?;
    let mut failures = Vec::new();
    for (regression, verdict) in list.iter().zip(&verdicts) {
        let failure = Failure::of(verdict);
        let told = if failure.is_some() { "failed" } else { "passed" };
        let (replay, note) = (regression.source.replay(), &regression.note);
        line(format_args!("{told}  {replay}  {note}").to_string().trim_end())?;
        if let Some(failure) = failure {
            line(format_args!("        {failure}: {}", regressions::first_complaint(verdict)))?;
            failures.push(failure);
        }
    }
    let regressions = output::count(list.len(), "regression", "regressions");
    line(format_args!("{regressions}, {} failed", failures.len()))?;
    Ok(exit_code_of_all(failures.iter()))
}
