//! `memcube-sim meta`: whether a run is a function of its seed.
//!
//! Every run is a program of its own, started anew, because forked processes would share what may
//! make the difference: addresses, and what the environment looks like.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use memcube_simulations::{dice::hash, plan::StoreKind, regressions::parse_seed, workloads};

use super::{
    options::{scenario, seed_or_default, store},
    output::{self, line},
    verdict::{NOT_LIVE, PASSED, VIOLATED},
};

/// A variable that means nothing. It is longer in every run, which moves the stack.
const PADDING_VARIABLE: &str = "MEMCUBE_SIM_PADDING";

#[derive(Debug, Args)]
pub(crate) struct MetaArgs {
    /// Scenario to run [default: all].
    #[arg(value_parser = scenario)]
    scenario: Option<String>,
    /// Seeds of each scenario.
    #[arg(long, value_name = "N", default_value_t = 20)]
    seeds: u64,
    /// First seed [default: `MEMCUBE_SIM_SEED`, or 1].
    #[arg(long, value_name = "A", value_parser = parse_seed)]
    from: Option<u64>,
    /// State store that the nodes share: `in-memory` or `foundationdb`.
    #[arg(long, value_name = "STORE", value_parser = store, default_value = "in-memory")]
    store: StoreKind,
    /// Runs of each seed.
    #[arg(
        long,
        value_name = "R",
        default_value_t = 2,
        value_parser = value_parser!(u16).range(2..)
    )]
    runs: u16,
}

pub(crate) fn run(args: &MetaArgs) -> Result<u8> {
    let first = seed_or_default(args.from)?;
    let names = args.scenario.clone().map_or_else(
        || workloads::CATALOGUE.iter().map(|workload| workload.name.to_owned()).collect(),
        |scenario| vec![scenario],
    );
    let mut complaints = 0;
    for name in names {
        complaints += check(&name, first, args)?;
    }
    Ok(if complaints == 0 { PASSED } else { VIOLATED })
}

/// Checks one scenario, and returns how many complaints there were.
fn check(scenario: &str, first: u64, args: &MetaArgs) -> Result<usize> {
    let mut complaints = 0;
    let mut seeds: BTreeMap<u64, u64> = BTreeMap::new();
    for seed in (first..=u64::MAX).take(usize::try_from(args.seeds).unwrap_or(usize::MAX)) {
        let traces = traces((scenario, args.store), seed, args.runs)?;
        for (at, other) in traces.iter().enumerate().skip(1) {
            if let Some(difference) = difference(&traces[0], other) {
                complaints += 1;
                line(format_args!("differs  {scenario}  seed {seed}  runs 1 and {}", at + 1))?;
                line(difference)?;
            }
        }
        if let Some(same) = seeds.insert(hash(traces[0].as_bytes()), seed) {
            complaints += 1;
            line(format_args!("same     {scenario}  seeds {same} and {seed} leave one trace"))?;
        }
    }
    let told = if complaints == 0 { "passed" } else { "failed" };
    let (seeds, runs) = (args.seeds, args.runs);
    line(format_args!("{told}  {scenario}  {seeds} seeds, {runs} runs of each"))?;
    Ok(complaints)
}

/// The traces of several runs of one seed, which run side by side.
fn traces(world: (&str, StoreKind), seed: u64, runs: u16) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder for traces")?;
    let path = |run: u16| folder.path().join(run.to_string());
    let mut children = Vec::new();
    for run in 0..runs {
        children.push(start(world, seed, run, &path(run))?);
    }
    let mut traces = Vec::new();
    for (run, child) in (0..runs).zip(children) {
        let output = child.wait_with_output().context("cannot wait for a run")?;
        let code = output.status.code().unwrap_or_default();
        // Whether it passes is not the question here.
        if ![PASSED, NOT_LIVE, VIOLATED].map(i32::from).contains(&code) {
            let told = [output.stdout, output.stderr].concat();
            let told = output::one_line(&String::from_utf8_lossy(&told));
            let (scenario, store) = (world.0, world.1.option());
            bail!("`memcube-sim run {scenario} --seed {seed}{store}` left no trace: {told}");
        }
        let trace = fs::read_to_string(path(run));
        traces.push(trace.with_context(|| format!("cannot read the trace of seed {seed}"))?);
    }
    Ok(traces)
}

fn start((scenario, store): (&str, StoreKind), seed: u64, run: u16, trace: &Path) -> Result<Child> {
    let program = env::current_exe().context("cannot find this program itself")?;
    let mut command = Command::new(program);
    command.args(["run", scenario, "--seed", &seed.to_string(), "--json", "--trace"]).arg(trace);
    command.args(["--store", store.as_str()]);
    command.env(PADDING_VARIABLE, "x".repeat(usize::from(run) * 100));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("cannot start a run")
}

/// The first line in which two traces differ, from both.
fn difference(one: &str, other: &str) -> Option<String> {
    if one == other {
        return None;
    }
    let mut before = "";
    let (mut one, mut other) = (one.lines(), other.lines());
    for number in 1_usize.. {
        match (one.next(), other.next()) {
            (Some(left), Some(right)) if left == right => before = left,
            (None, None) => break,
            (left, right) => {
                let told = |line: Option<&str>| line.unwrap_or("(the end)").to_owned();
                return Some(format!(
                    "  line {number}, after: {before}\n    {}\n    {}",
                    told(left),
                    told(right)
                ));
            }
        }
    }
    Some("  in the ends of lines alone".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_told() {
        for (one, other, expected) in [
            ("a\nb\n", "a\nb\n", None),
            ("a\nb\nc\n", "a\nx\nc\n", Some("  line 2, after: a\n    b\n    x")),
            ("a\n", "a\nb\n", Some("  line 2, after: a\n    (the end)\n    b")),
            ("a\n", "a", Some("  in the ends of lines alone")),
        ] {
            assert_eq!(difference(one, other).as_deref(), expected);
        }
    }
}
