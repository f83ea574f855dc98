//! `memcube backup`

use std::{collections::BTreeSet, process::ExitCode, sync::Arc, time::Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use memcube_actors::{
    backup::{
        Archive, BackupRequest, ObjectSink, PartSink, Progress, Selection, VerifyOutcome, back_up,
        verify,
    },
    storage::{SharedStore, gate},
};
use memcube_schemas::{
    CubeId,
    api::v1::BackupBody,
    backup::{BackupManifest, LeftOut, MANIFEST_NAME},
    codec::decode,
};
use object_store::{ObjectStore, path::Path};
use serde::Serialize;
use serde_json::json;

use super::{
    Client,
    connect::find_server,
    options::{Options, ServerArgs},
    output, running,
};
use crate::{
    backup_stream::read_object,
    environment, node,
    settings::{Settings, StoreKind},
    storage::objects,
};

const EXAMPLES: &str = "\
Examples:
  memcube backup --to /mnt/backups/2026-08-01
  memcube backup --to s3://bucket/2026-08-01        keys come from `AWS_...` variables
  memcube backup --to backups/ann --cube ann
  memcube backup verify --from backups/ann

Writers are not stopped: each cube is kept as it was at one version. A place takes one backup only. A
server that runs on the data directory hands the backup out; what it holds for other tenants is kept
when no server runs, or over a store that nodes share. `memcube restore` puts it back.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true)]
pub(crate) struct BackupArgs {
    #[command(subcommand)]
    action: Option<BackupAction>,
    /// Where the backup goes: a directory, or the address of a folder in a bucket.
    #[arg(long, value_name = "URL", required = true)]
    to: Option<String>,
    /// Only this cube, and no API keys; may be given several times.
    #[arg(long = "cube", value_name = "ID")]
    cubes: Vec<CubeId>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum BackupAction {
    /// Read a backup through and through, and say whether all of it can be restored.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Where the backup is: a directory, or the address of a folder in a bucket.
    #[arg(long, value_name = "URL")]
    from: String,
}

/// What became of a backup.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    to: &'a str,
    cubes: u64,
    rows: u64,
    bytes: u64,
    api_keys: u64,
    /// Versions of the store between which every cube was read.
    from_version: u64,
    to_version: u64,
    left_out: Vec<serde_json::Value>,
    seconds: f64,
}

pub(crate) fn run(options: &Options, args: BackupArgs) -> Result<ExitCode> {
    match (args.action, args.to) {
        (Some(BackupAction::Verify(args)), _) => run_verify(options, &args),
        (None, Some(to)) => take(options, &to, args.cubes, &args.server),
        (None, None) => bail!("say where the backup goes with `--to URL`"),
    }
}

/// The object store that an address on the command line names.
pub(super) fn place(url: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    Ok(objects::open(url, objects::options_from_env())?)
}

fn take(options: &Options, to: &str, cubes: Vec<CubeId>, server: &ServerArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let (objects, prefix) = place(to)?;
    let sink = ObjectSink::new(objects, prefix);
    let settings = options.settings()?;
    running::start_quiet_logging(&settings.log)?;
    let runtime = running::runtime()?;
    let bar = output::spinner("backup");
    // A store that nodes share can be read beside them, and knows all tenants.
    let is_shared = settings.store.kind.is_shared() && server.server().is_none();
    let client = if is_shared { None } else { find_server(options, server)? };
    let manifest = match client {
        Some(client) => {
            let cubes = (!cubes.is_empty()).then_some(cubes);
            receive(&runtime, &client, &BackupBody { cubes }, &sink, &|objects| {
                bar.set_message(output::count(objects, "object", "objects"));
            })?
        }
        None => runtime.block_on(async {
            let store = open_existing(&settings).await?;
            let cubes: BTreeSet<CubeId> = cubes.into_iter().collect();
            let selection = Selection { tenant: None, cubes: (!cubes.is_empty()).then_some(cubes) };
            let request = BackupRequest::new(selection, settings.store.kind.as_str());
            let report = |Progress { cubes, rows }: Progress| {
                bar.set_message(format!("{cubes} cubes, {rows} rows"));
            };
            let taken = back_up(&store, &environment::system(), &sink, request, &report).await;
            anyhow::Ok(taken?)
        })?,
    };
    bar.finish_and_clear();
    tell(options, to, &manifest, start)
}

/// The store that the settings name, if there is anything in it.
async fn open_existing(settings: &Settings) -> Result<SharedStore> {
    let dir = &settings.store.data_dir;
    if settings.store.kind == StoreKind::Embedded && !dir.join("state").is_dir() {
        bail!(
            "there is nothing in `{}` yet; name another directory with `--data-dir`",
            dir.display()
        );
    }
    let store = node::open_store(settings).await?;
    gate::look(&*store).await?;
    Ok(store)
}

/// Keeps what a server hands out.
fn receive(
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    request: &BackupBody,
    sink: &ObjectSink,
    report: &dyn Fn(u64),
) -> Result<BackupManifest> {
    runtime.block_on(sink.prepare())?;
    let mut stream = client.back_up(request)?;
    let mut objects = 0;
    while let Some((name, bytes)) = read_object(&mut stream)? {
        let manifest = (name == MANIFEST_NAME).then(|| decode(&bytes)).transpose()?;
        runtime.block_on(sink.put(name, bytes))?;
        objects += 1;
        report(objects);
        if let Some(manifest) = manifest {
            return Ok(manifest);
        }
    }
    bail!("the backup broke off on its way from the server; run the command again")
}

fn tell(
    options: &Options,
    to: &str,
    manifest: &BackupManifest,
    start: Instant,
) -> Result<ExitCode> {
    let left_out = manifest.left_out.iter().map(|LeftOut { tenant, cube, reason }| {
        json!({ "tenant": tenant, "cube": cube, "reason": reason })
    });
    if options.json {
        output::json(&Summary {
            to,
            cubes: manifest.cubes,
            rows: manifest.rows,
            bytes: manifest.bytes(),
            api_keys: manifest.api_keys,
            from_version: manifest.started.0,
            to_version: manifest.finished.0,
            left_out: left_out.collect(),
            seconds: (start.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0,
        })?;
    } else {
        output::line(format_args!(
            "backed up {} with {} to `{to}` ({} bytes, {:.1} s)",
            output::count(manifest.cubes, "cube", "cubes"),
            output::count(manifest.rows, "row", "rows"),
            manifest.bytes(),
            start.elapsed().as_secs_f64(),
        ))?;
    }
    for LeftOut { tenant, cube, reason } in &manifest.left_out {
        output::note(format_args!("left out `{cube}` of `{tenant}`: {reason}"));
    }
    Ok(if manifest.left_out.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_verify(options: &Options, args: &VerifyArgs) -> Result<ExitCode> {
    let (objects, prefix) = place(&args.from)?;
    let runtime = running::runtime()?;
    let (outcome, manifest) = runtime.block_on(async {
        let mut archive = Archive::open(objects, prefix).await?;
        let bar = output::steps_bar(archive.manifest().cubes);
        bar.set_prefix("verify");
        let outcome = verify(&mut archive, &|progress| bar.set_position(progress.cubes)).await?;
        bar.finish_and_clear();
        anyhow::Ok((outcome, archive.manifest().clone()))
    })?;
    let VerifyOutcome { cubes, rows, failures, damages } = &outcome;
    if options.json {
        let failures: Vec<_> = failures.iter().map(failure_json).collect();
        let damages: Vec<&str> = damages.iter().map(memcube_actors::Error::message).collect();
        output::json(&json!({
            "cubes": cubes, "rows": rows, "failures": failures, "damages": damages,
            "source": manifest.source, "memcube": manifest.memcube,
            "finished_at": crate::gateway::rfc3339(manifest.finished_at_ms),
        }))?;
    } else {
        output::line(format_args!(
            "{} with {} can be restored; taken {} from a store of the kind `{}` by memcube {}",
            output::count(*cubes, "cube", "cubes"),
            output::count(*rows, "row", "rows"),
            crate::gateway::rfc3339(manifest.finished_at_ms),
            manifest.source,
            manifest.memcube,
        ))?;
    }
    for failure in failures {
        note_failure("cannot be restored", failure);
    }
    for damage in damages {
        output::note(damage);
    }
    Ok(if outcome.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn failure_json(failure: &memcube_actors::backup::CubeFailure) -> serde_json::Value {
    let (tenant, cube) = (&failure.tenant, &failure.cube);
    json!({ "tenant": tenant, "cube": cube, "reason": failure.error.message() })
}

pub(super) fn note_failure(what: &str, failure: &memcube_actors::backup::CubeFailure) {
    let (tenant, cube, error) = (&failure.tenant, &failure.cube, &failure.error);
    output::note(format_args!("`{cube}` of `{tenant}` {what}: {error}"));
}
