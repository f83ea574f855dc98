//! `memcube restore`

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::Args;
use memcube_actors::{
    backup::{Archive, CubeFailure, RestoreOutcome, RestoreRequest, Selection, restore},
    storage::gate,
};
use memcube_schemas::CubeId;
use serde_json::json;

use super::{
    Client,
    backup::{failure_json, note_failure, place},
    data_dir::DataDir,
    options::Options,
    output, running,
};
use crate::{environment, node, settings::Settings};

const EXAMPLES: &str = "\
Examples:
  memcube restore --from /mnt/backups/2026-08-01 --dry-run
  memcube restore --from s3://bucket/2026-08-01 --data-dir fresh
  memcube restore --from backups/ann --cube ann --as ann-before
  MEMCUBE__STORE__KIND=foundationdb memcube restore --from backups/2026-08-01

Goes into the store that the settings name, so that a backup and a restore move cubes from one kind of
store to another. A cube that is there already is not touched. A restore that broke off is repeated
with the same command. Stop a server that runs on the data directory first; over a store that nodes
share, they may go on.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RestoreArgs {
    /// Where the backup is: a directory, or the address of a folder in a bucket.
    #[arg(long, value_name = "URL")]
    from: String,
    /// Only this cube, and no API keys; may be given several times.
    #[arg(long = "cube", value_name = "ID")]
    cubes: Vec<CubeId>,
    /// Another id for the cube, of which there must be one.
    #[arg(long = "as", value_name = "ID", requires = "cubes")]
    rename: Option<CubeId>,
    /// Only say what would be restored.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(options: &Options, args: RestoreArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let (objects, prefix) = place(&args.from)?;
    let settings = options.settings()?;
    running::start_quiet_logging(&settings.log)?;
    refuse_running_server(&settings)?;
    let request = RestoreRequest {
        selection: Selection {
            tenant: None,
            cubes: (!args.cubes.is_empty()).then(|| args.cubes.into_iter().collect()),
        },
        rename: args.rename,
        dry_run: args.dry_run,
    };
    let outcome = running::runtime()?.block_on(async {
        // Before the store is opened, which would make one.
        let mut archive = Archive::open(objects, prefix).await?;
        DataDir::new(&settings.store.data_dir).prepare()?;
        let store = node::open_store(&settings).await?;
        let bar = output::steps_bar(archive.manifest().cubes);
        bar.set_prefix("restore");
        let report = |progress: memcube_actors::backup::Progress| bar.set_position(progress.cubes);
        let environment = environment::system();
        gate::pass(&*store, &environment).await?;
        let outcome = restore(&store, &environment, &mut archive, request, &report).await;
        bar.finish_and_clear();
        anyhow::Ok(outcome?)
    })?;
    tell(options, &args.from, args.dry_run, &outcome, start)
}

fn refuse_running_server(settings: &Settings) -> Result<()> {
    if settings.store.kind.is_shared() {
        return Ok(());
    }
    let dir = &settings.store.data_dir;
    match DataDir::new(dir).read_server() {
        Some(found) if Client::is_memcube(&found.address) => bail!(
            "a server runs on `{}` (process {}); stop it, or name another directory with \
             `--data-dir`",
            dir.display(),
            found.pid
        ),
        Some(_) | None => Ok(()),
    }
}

fn tell(
    options: &Options,
    from: &str,
    dry_run: bool,
    outcome: &RestoreOutcome,
    start: Instant,
) -> Result<ExitCode> {
    let RestoreOutcome { restored, rows, unchanged, api_keys, failures, damages } = outcome;
    if options.json {
        let failures: Vec<_> = failures.iter().map(failure_json).collect();
        let damages: Vec<&str> = damages.iter().map(memcube_actors::Error::message).collect();
        output::json(&json!({
            "from": from, "dry_run": dry_run, "restored": restored, "rows": rows,
            "unchanged": unchanged, "api_keys": api_keys, "failures": failures,
            "damages": damages,
            "seconds": (start.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0,
        }))?;
    } else {
        output::line(format_args!(
            "{} {} with {}, {} there already, {} ({:.1} s)",
            if dry_run { "would restore" } else { "restored" },
            output::count(*restored, "cube", "cubes"),
            output::count(*rows, "row", "rows"),
            unchanged,
            output::count(*api_keys, "API key", "API keys"),
            start.elapsed().as_secs_f64(),
        ))?;
    }
    failures.iter().for_each(|failure: &CubeFailure| note_failure("was not restored", failure));
    damages.iter().for_each(output::note);
    Ok(if outcome.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
