//! The command line: one file a command, all of them on the HTTP interface that others use as well.

mod backup;
mod bench;
mod chat;
mod client;
mod connect;
mod cube;
mod data_dir;
mod doctor;
mod events;
mod export;
mod import;
mod jobs;
mod memories;
mod nodes;
mod options;
mod output;
mod replay;
mod restore;
mod running;
mod serve;
mod sim;
mod vectors;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use client::{Client, ClientError};
use options::Options;
use running::LocalServer;

const AFTER_HELP: &str = "\
Examples:
  memcube serve                                   start a server on this machine
  memcube add \"Ann moved to Lisbon in May\"        remember something
  memcube search \"where does Ann live\"            find it again
  memcube chat                                    talk to a model that remembers
  memcube import conversations.json               remember whole conversations
  memcube doctor                                  find out what is wrong

Commands find a running server by themselves. Without one, they open the data directory themselves.
Settings come from `--config FILE`, then from variables such as `MEMCUBE__HTTP__LISTEN`, then from
the command line; the later ones win.";

/// A memory operating system for language models.
#[derive(Debug, Parser)]
#[command(name = "memcube", version, about, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a server: it answers HTTP until it is stopped.
    Serve(serve::ServeArgs),
    /// Remember a statement.
    Add(memories::AddArgs),
    /// Find what a cube knows about a question.
    Search(memories::SearchArgs),
    /// Talk to a language model that remembers.
    Chat(chat::ChatArgs),
    /// Remember the conversations in files of other programs.
    Import(import::ImportArgs),
    /// Write all memories of a cube as JSON lines.
    Export(export::ExportArgs),
    /// Tell what happened to cubes, one JSON object a line.
    Events(events::EventsArgs),
    /// Keep cubes as objects in a directory or a bucket, while they are in use.
    Backup(backup::BackupArgs),
    /// Put cubes of a backup into a store, also into one of another kind.
    Restore(restore::RestoreArgs),
    /// List, make, show, delete, release and move cubes.
    #[command(subcommand)]
    Cube(cube::CubeCommand),
    /// List the nodes of the cluster.
    Nodes(options::ServerArgs),
    /// Show what a server does in the background; pause it or let it go on.
    Jobs(jobs::JobsArgs),
    /// Show the vector tier of a server, or build it anew.
    #[command(subcommand)]
    Vectors(vectors::VectorsCommand),
    /// Check this installation, and say what to do about each problem.
    Doctor(doctor::DoctorArgs),
    /// Print the description of the HTTP interface (OpenAPI, JSON).
    Openapi,
    /// Try other policies of preloading on what a server has logged.
    Replay(replay::ReplayArgs),
    /// Measure recall and speed.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Simulate a cluster under faults: what follows goes to `memcube-sim`.
    Sim(sim::SimArgs),
}

/// Runs what the command line asks for, and prints what went wrong.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match dispatch(cli) {
        Ok(code) => code,
        // Whoever read the output has seen enough, as `head` does.
        Err(error) if error.is::<output::StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {}", output::in_one_sentence(&error)));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let Cli { options, command } = cli;
    match command {
        Command::Serve(args) => serve::run(&options, args)?,
        Command::Add(args) => memories::add(&options, args)?,
        Command::Search(args) => memories::search(&options, args)?,
        Command::Chat(args) => chat::run(&options, args)?,
        Command::Import(args) => import::run(&options, args)?,
        Command::Export(args) => export::run(&options, args)?,
        Command::Backup(args) => return backup::run(&options, args),
        Command::Restore(args) => return restore::run(&options, args),
        Command::Events(args) => events::run(&options, args)?,
        Command::Cube(command) => cube::run(&options, command)?,
        Command::Nodes(server) => nodes::run(&options, &server)?,
        Command::Jobs(args) => jobs::run(&options, &args)?,
        Command::Vectors(command) => vectors::run(&options, command)?,
        Command::Doctor(args) => return doctor::run(&options, &args),
        Command::Openapi => output::json_pretty(&crate::gateway::openapi_document())?,
        Command::Replay(args) => replay::run(&options, args)?,
        Command::Bench(command) => bench::run(&options, command)?,
        Command::Sim(args) => return sim::run(&args),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn these_command_lines_are_understood() {
        for line in [
            "memcube serve --data-dir d --listen 127.0.0.1:0 --json",
            "memcube serve --data-dir d --listen 127.0.0.1:0 --model-dir m --embedder none",
            "memcube --json add --cube me --tag a --tag b some words",
            "memcube add -",
            "memcube search --top-k 3 --token-budget 100 --explain what is it",
            "memcube chat",
            "memcube chat --cube ann --no-remember --temperature 0.7 --json how are you",
            "memcube chat --language-model local --max-tokens 5 -",
            "memcube import --format locomo --batch 2 a.json b.json",
            "memcube export --cube me --out -",
            "memcube backup --to backups/monday --cube me --cube you --json",
            "memcube backup --to s3://bucket/monday --server http://127.0.0.1:1 --api-key k",
            "memcube backup verify --from backups/monday",
            "memcube restore --from backups/monday --dry-run",
            "memcube restore --from backups/monday --cube me --as me-again",
            "memcube search --all-cubes --top-k 3 what is it",
            "memcube vectors show --json",
            "memcube vectors rebuild --server http://127.0.0.1:1",
            "memcube events --cube a --cube b --after 0000000000000007ffffffff --follow",
            "memcube events --from-start --follow",
            "memcube cube list --server http://127.0.0.1:1 --api-key k",
            "memcube cube delete me --yes",
            "memcube cube hand-over me --to node-2",
            "memcube nodes --server http://127.0.0.1:1 --api-key k --json",
            "memcube jobs --json",
            "memcube jobs --pause",
            "memcube jobs --pause preload --server http://127.0.0.1:1 --api-key k",
            "memcube jobs --resume blocks",
            "memcube doctor --json",
            "memcube openapi --json",
            "memcube replay --log d.jsonl --policy last-three --policy predictor --resident 50",
            "memcube bench recall --data in --out out.jsonl --threads 1",
            "memcube bench recall-speed --items 10 --items 20 --queries 5",
            "memcube bench ingest --data f.jsonl",
            "memcube bench vectors --rows 1000 --cubes 10 --queries 5 --in-ram",
            "memcube sim",
            "memcube sim --help",
            "memcube sim run assistant --seed 17 --json --log",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn these_are_refused() {
        for line in [
            "memcube",
            "memcube add",
            "memcube search --top-k 0 x",
            "memcube search --all-cubes --cube ann x",
            "memcube chat --cube",
            "memcube import",
            "memcube import --format nonsense f",
            "memcube import --batch 0 f",
            "memcube serve --embedder big",
            "memcube backup",
            "memcube backup verify",
            "memcube backup --to x verify --from x",
            "memcube restore",
            "memcube replay",
            "memcube replay --log d.jsonl --policy nonsense",
            "memcube replay --log d.jsonl --resident 0",
            "memcube restore --from x --as y",
            "memcube cube hand-over me",
            "memcube jobs --pause a --resume b",
            "memcube events --after 7",
            "memcube events --after 0000000000000007ffffffff --from-start",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
