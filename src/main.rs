//! The `memcube` program: reads the command line, runs it, tells what went wrong.

use std::process::ExitCode;

use clap::Parser;
use memcube::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
