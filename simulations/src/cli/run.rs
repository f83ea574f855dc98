//! `memcube-sim run`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use memcube_simulations::{process::Verdict, report::Report};
use serde_json::json;

use super::{
    options::{Chosen, PlanOptions},
    output::{self, line},
    verdict::{self, default_path},
};

/// So much of the trace of a run that failed is printed.
const LAST_LINES: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    plan: PlanOptions,
    /// Write the whole trace to this file [default: `target/sim/SCENARIO-SEED.trace`, on failure].
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print the whole trace, also on success.
    #[arg(long)]
    log: bool,
    /// Print the report as a line of JSON; the trace is in it with `--log` alone.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RunArgs) -> Result<u8> {
    let chosen = args.plan.choose()?;
    let judged = verdict::judge(&chosen.plan)?;
    match &judged {
        Verdict::Finished(report) => finished(args, &chosen, report)?,
        Verdict::Died { how } => died(args, &chosen, how)?,
    }
    Ok(verdict::exit_code(&judged))
}

fn finished(args: &RunArgs, chosen: &Chosen, report: &Report) -> Result<()> {
    let saved = match &args.trace {
        None if report.passed() => None,
        None => Some(default_path(&chosen.plan, "trace")),
        given @ Some(_) => given.clone(),
    };
    if let Some(path) = &saved {
        output::file(path, &report.trace)?;
    }
    if args.json {
        let trace = if args.log { report.trace.clone() } else { String::new() };
        return output::json(&Report { trace, ..report.clone() });
    }
    if !report.passed() {
        for violation in &report.violations {
            line(format_args!("violated  {}  {}", violation.checker, violation.what))?;
        }
        line("")?;
    }
    print_trace(args, report)?;
    line(verdict::summary(&chosen.plan, report))?;
    if let Some(path) = saved {
        line(format_args!("trace:  {}", path.display()))?;
    }
    if !report.passed() {
        line(format_args!("replay: memcube-sim run {}", chosen.arguments))?;
    }
    Ok(())
}

fn print_trace(args: &RunArgs, report: &Report) -> Result<()> {
    let lines: Vec<&str> = report.trace.lines().collect();
    let shown = match (args.log, report.passed()) {
        (true, _) => lines.len(),
        (false, true) => return Ok(()),
        (false, false) => lines.len().min(LAST_LINES),
    };
    if shown < lines.len() {
        line(format_args!("the last {shown} of {} lines of the trace:", lines.len()))?;
    }
    for text in &lines[lines.len() - shown..] {
        line(text)?;
    }
    if report.passed() { Ok(()) } else { line("") }
}

fn died(args: &RunArgs, chosen: &Chosen, how: &str) -> Result<()> {
    let plan = &chosen.plan;
    if args.json {
        return output::json(&json!({ "scenario": plan.scenario, "seed": plan.seed, "died": how }));
    }
    line(format_args!("died  {}  seed {}  {how}", plan.scenario, plan.seed))?;
    line(format_args!("replay: memcube-sim run {}", chosen.arguments))
}
