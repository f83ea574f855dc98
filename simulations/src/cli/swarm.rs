//! `memcube-sim swarm`

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, value_parser};
use memcube_simulations::{
    plan::StoreKind,
    regressions::parse_seed,
    swarm::{self, RECHECK_PER_MILLE, SwarmReport, SwarmSettings, Until},
    workloads,
};

use super::{
    options::{jobs_or_default, scenario, seed_or_default, store},
    output,
    verdict::{VIOLATED, exit_code_of_all},
};

/// How long a swarm lasts if nobody says how long.
const SECONDS: u64 = 60;
/// How often a swarm that finds nothing says that it is alive.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct SwarmArgs {
    /// Stop after so many seconds [default: 60].
    #[arg(long, value_name = "S", conflicts_with = "seeds")]
    seconds: Option<u64>,
    /// Stop after so many seeds of every scenario.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// First seed [default: `MEMCUBE_SIM_SEED`, or 1].
    #[arg(long, value_name = "A", value_parser = parse_seed)]
    from: Option<u64>,
    /// Run this scenario; may be repeated [default: all].
    #[arg(long = "scenario", value_name = "SCENARIO", value_parser = scenario)]
    scenarios: Vec<String>,
    /// State store that the nodes share: `in-memory` or `foundationdb`.
    #[arg(long, value_name = "STORE", value_parser = store, default_value = "in-memory")]
    store: StoreKind,
    /// Runs at the same time [default: one a CPU].
    #[arg(long, value_name = "J", value_parser = value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Fail if a *sometimes* point is never reached.
    #[arg(long)]
    all_points: bool,
    /// Write the report to this file as well, as Markdown.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(crate) fn run(args: SwarmArgs) -> Result<u8> {
    let mut scenarios = args.scenarios;
    if scenarios.is_empty() {
        scenarios.extend(workloads::CATALOGUE.iter().map(|workload| workload.name.to_owned()));
    }
    let settings = SwarmSettings {
        scenarios,
        store: args.store,
        first_seed: seed_or_default(args.from)?,
        until: args
            .seeds
            .map_or_else(|| Until::Seconds(args.seconds.unwrap_or(SECONDS)), Until::Seeds),
        jobs: jobs_or_default(args.jobs),
        recheck_per_mille: RECHECK_PER_MILLE,
    };
    let mut told = Told::default();
    let report = swarm::run(&settings, &mut |report| told.tell(report))?;
    output::line(report.text().trim_end())?;
    if let Some(path) = args.report {
        output::file(&path, &report.markdown())?;
    }
    let missed = args.all_points && !report.never_reached().is_empty();
    if missed {
        output::note("error: some points were never reached; run longer, or mend the faults");
    }
    let code = exit_code_of_all(report.failures.iter().map(|failure| &failure.failure));
    let is_clean = report.mismatches.is_empty() && !missed;
    Ok(if is_clean { code } else { code.max(VIOLATED) })
}

/// What has been said about a swarm that goes on.
#[derive(Default)]
struct Told {
    failures: usize,
    mismatches: usize,
    next: Duration,
}

impl Told {
    fn tell(&mut self, report: &SwarmReport) {
        for failure in report.failures.iter().skip(self.failures) {
            let what = output::one_line(&failure.what);
            output::note(format_args!(
                "failed    {:<12}  seed {:<20}  {}  {what}",
                failure.scenario, failure.seed, failure.failure
            ));
        }
        for mismatch in report.mismatches.iter().skip(self.mismatches) {
            let [first, second] = &mismatch.endings;
            output::note(format_args!(
                "differs   {:<12}  seed {:<20}  {first}  {second}",
                mismatch.scenario, mismatch.seed
            ));
        }
        (self.failures, self.mismatches) = (report.failures.len(), report.mismatches.len());
        if report.wall >= self.next.max(PROGRESS_EVERY) {
            self.next = report.wall + PROGRESS_EVERY;
            output::note(format_args!(
                "{:>6.0} s  {:>8} runs  {:>5} failed  {:>5} points never reached",
                report.wall.as_secs_f64(),
                report.runs(),
                self.failures,
                report.never_reached().len()
            ));
        }
    }
}
