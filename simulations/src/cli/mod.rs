//! The command line: one file a command.

mod list;
mod meta;
mod options;
mod output;
mod plan;
mod planted;
mod regressions;
mod run;
mod shrink;
mod swarm;
mod verdict;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use options::BadInput;
use verdict::{BAD_INPUT, PASSED};

const AFTER_HELP: &str = "\
Examples:
  memcube-sim run assistant --seed 17          one seed, and its verdict
  memcube-sim swarm --seconds 600              as many seeds as there is time for
  memcube-sim shrink assistant --seed 17       what it takes to fail
  memcube-sim meta --seeds 5                   whether a run depends on its seed alone
  memcube-sim planted                          whether planted bugs are found

A seed is a number, in decimal or as `0x1f`, or a commit of 40 hexadecimal digits. Without `--seed`
it is that of the variable `MEMCUBE_SIM_SEED`, or 1.

Exit codes: 0 all is well, 2 bad input, 127 a run died, 128 something was not live, 129 something
else was wrong, 1 the simulation could not be done.";

/// Simulates memcube: many nodes, one thread, one seed.
#[derive(Debug, Parser)]
#[command(name = "memcube-sim", version, about, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one seed of a scenario, or one plan.
    Run(run::RunArgs),
    /// Run many seeds of many scenarios.
    Swarm(swarm::SwarmArgs),
    /// Check that a run is a function of its seed: run each seed several times, and compare.
    Meta(meta::MetaArgs),
    /// Cut a plan that fails down to what it takes to fail.
    Shrink(shrink::ShrinkArgs),
    /// Print the plan of a seed.
    Plan(plan::PlanArgs),
    /// Check that planted bugs are found.
    Planted(planted::PlantedArgs),
    /// Run the seeds that once found something.
    Regressions(regressions::RegressionsArgs),
    /// List scenarios, faults, the points that a swarm should reach, and planted bugs.
    List,
}

/// Runs what the command line asks for, and prints what went wrong.
pub(crate) fn run(cli: Cli) -> ExitCode {
    match dispatch(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::note(format_args!("error: {}", output::in_one_sentence(&error)));
            if error.is::<BadInput>() { ExitCode::from(BAD_INPUT) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Swarm(args) => swarm::run(args),
        Command::Meta(args) => meta::run(&args),
        Command::Shrink(args) => shrink::run(&args),
        Command::Plan(args) => plan::run(&args).map(|()| PASSED),
        Command::Planted(args) => planted::run(&args),
        Command::Regressions(args) => regressions::run(&args),
        Command::List => list::run().map(|()| PASSED),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use memcube_simulations::workloads::CATALOGUE;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The line, with the name of a scenario that exists in place of `SCENARIO`.
    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let line = line.replace("SCENARIO", CATALOGUE[0].name);
        Cli::try_parse_from(std::iter::once("memcube-sim").chain(line.split(' ')))
    }

    #[test]
    fn these_command_lines_are_understood() {
        for line in [
            "run SCENARIO",
            "run SCENARIO --seed 0x1f --defect lost-wake --defect no-fence-check --log",
            "run --plan p.json --trace t --json",
            "swarm",
            "swarm --seconds 5 --from 7 --scenario SCENARIO --scenario SCENARIO --jobs 2",
            "swarm --seeds 5 --report r.md",
            "meta",
            "meta SCENARIO --seeds 3 --from 9 --runs 3",
            "shrink SCENARIO --seed 7a21d87c00000000000000000000000000000000 --out o.json",
            "shrink --plan p.json --defect lost-event --runs 10 --jobs 1",
            "plan SCENARIO --seed 3",
            "planted --defect lost-wake",
            "regressions",
            "regressions list.txt",
            "list",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn these_are_refused() {
        for (line, expected) in [
            ("run", "<SCENARIO>"),
            ("run nowhere", &format!("there is no scenario `nowhere`, but {}", CATALOGUE[0].name)),
            ("run SCENARIO --seed x", "`x` is no seed: give a whole number below 2^64"),
            ("run SCENARIO --plan p.json", "cannot be used with"),
            ("run --plan p.json --seed 1", "cannot be used with"),
            ("run SCENARIO --defect x", "there is no planted bug `x`, but ack-before-commit, "),
            ("swarm --seconds 1 --seeds 1", "cannot be used with"),
            ("swarm --jobs 0", "0 is not in"),
            ("meta --runs 1", "1 is not in"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(expected), "{line}: {error}");
            assert_eq!(error.exit_code(), i32::from(BAD_INPUT), "{line}");
        }
    }
}
