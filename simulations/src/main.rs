//! The `memcube-sim` program: reads the command line, runs it, tells what went wrong.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
