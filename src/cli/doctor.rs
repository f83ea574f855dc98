//! `memcube doctor`

use std::{
    fs::{self, File},
    io::Read,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use memcube_actors::storage::{RangeRead, StateStore};
use memcube_schemas::keys;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Client, data_dir::DataDir, options::Options, output, running};
#[cfg(feature = "fdb")]
use crate::{environment, storage::FoundationDbStore};
use crate::{
    inference::{self, openai::OpenAiModel},
    settings::{
        EmbedderKind, EmbedderSettings, InferenceKind, InferenceSettings, Settings, StoreKind,
        StoreSettings,
    },
    storage::{self, EmbeddedStore, blobs::Place},
};
#[cfg(feature = "fdb")]
use memcube_actors::storage::gate;

/// The files of the model with their checksums, as `sha256sum` writes them.
const MODEL_SUMS: &str = include_str!("../../deploy/models/minilm-l6-v2.sha256");
const MODEL_DIMENSIONS: usize = 384;
/// Free space below which the store will soon fail.
const FREE_KIB_MIN: u64 = 256 << 10;
const READ_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  memcube doctor\n  memcube doctor --data-dir ./data --json\n  \
    memcube doctor --store fdb\n\n\
    It ends with code 1 if a check fails."
)]
pub(crate) struct DoctorArgs {
    /// Address that a server would answer on [default: 127.0.0.1:7700].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Store to look at [default: the one in the settings].
    #[arg(long, value_name = "STORE")]
    store: Option<StoreChoice>,
}

/// A store on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreChoice {
    /// The directory on this machine.
    Embedded,
    /// The FoundationDB cluster: also tries what memcube needs of it, in a corner of its own.
    #[value(alias = "foundationdb")]
    Fdb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Failed,
    Skipped,
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn good(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding { check, status: Status::Ok, detail: detail.into(), remedy: None }
}

fn skipped(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding { check, status: Status::Skipped, detail: detail.into(), remedy: None }
}

fn bad(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    let remedy = Some(remedy.into());
    Finding { check, status: Status::Failed, detail: detail.into(), remedy }
}

#[derive(Debug, Serialize)]
struct Report {
    healthy: bool,
    checks: Vec<Finding>,
}

pub(crate) fn run(options: &Options, args: &DoctorArgs) -> Result<ExitCode> {
    let checks = match options.settings() {
        Ok(mut settings) => {
            if let Some(listen) = args.listen {
                settings.http.listen = listen;
            }
            match args.store {
                Some(StoreChoice::Embedded) => settings.store.kind = StoreKind::Embedded,
                Some(StoreChoice::Fdb) => settings.store.kind = StoreKind::FoundationDb,
                None => {}
            }
            running::start_quiet_logging(&settings.log)?;
            examine(&settings)
        }
        Err(error) => {
            let detail = output::one_line(&error.to_string());
            vec![bad("settings", detail, "mend the settings file or the variable that it names")]
        }
    };
    let healthy = checks.iter().all(|finding| finding.status != Status::Failed);
    let report = Report { healthy, checks };
    if options.json {
        output::json(&report)?;
    } else {
        show(&report)?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(report: &Report) -> Result<()> {
    for Finding { check, status, detail, remedy } in &report.checks {
        let mark = match status {
            Status::Ok => "ok",
            Status::Failed => "FAILED",
            Status::Skipped => "-",
        };
        output::line(format_args!("{mark:<6}  {check:<14}  {detail}"))?;
        if let Some(remedy) = remedy {
            output::line(format_args!("{:<24}-> {remedy}", ""))?;
        }
    }
    Ok(())
}

fn examine(settings: &Settings) -> Vec<Finding> {
    let data_dir = DataDir::new(&settings.store.data_dir);
    let found = data_dir.read_server().filter(|server| Client::is_memcube(&server.address));
    let server = found.map(|server| server.address);
    let mut checks = vec![
        good("settings", "they can be read"),
        data_directory(data_dir.path()),
        disk_space(data_dir.path()),
        server_check(server.as_deref()),
        store(settings, server.as_deref()),
        blobs(settings),
        listen_address(settings.http.listen, server.as_deref()),
    ];
    match settings.embedder.kind {
        EmbedderKind::Minilm => {
            let files = model_files(&settings.embedder.model_dir);
            let are_good = files.status == Status::Ok;
            checks.push(files);
            checks.push(if are_good {
                embedding(&settings.embedder)
            } else {
                skipped("embedding", "not tried, because the model files are not in order")
            });
        }
        EmbedderKind::None => {
            let detail = "no model is configured: recall finds words, not meanings";
            checks.push(skipped("model", detail));
        }
    }
    checks.push(language_model(&settings.inference));
    checks
}

fn language_model(settings: &InferenceSettings) -> Finding {
    const CHECK: &str = "language model";
    match settings.kind {
        InferenceKind::None => skipped(CHECK, "none is configured: nobody answers chats"),
        InferenceKind::Local => match inference::open_local(settings) {
            Ok(engine) => good(CHECK, format!("`{}` is loaded", engine.facts().fingerprint.model)),
            Err(error) => bad(
                CHECK,
                error.to_string(),
                "run `make language-model`, name a file in `inference.model-file`, or set \
                 `inference.kind` to `none`",
            ),
        },
        InferenceKind::OpenAi => match ask_model_server(settings) {
            Ok(detail) => good(CHECK, detail),
            Err(error) => bad(
                CHECK,
                error.to_string(),
                "mend the setting or start the server, or set `inference.kind` to `none`",
            ),
        },
    }
}

/// Asks for the models that the server has, which costs nothing.
fn ask_model_server(settings: &InferenceSettings) -> Result<String> {
    let model = OpenAiModel::of(settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(model.check())?)
}

/// The directory itself, or the one in which the first start makes it.
fn existing(dir: &Path) -> &Path {
    let mut parents = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty());
    parents.find(|dir| dir.exists()).unwrap_or_else(|| Path::new("."))
}

fn data_directory(dir: &Path) -> Finding {
    const CHECK: &str = "data directory";
    let shown = dir.display();
    let place = existing(dir);
    if !place.is_dir() {
        let detail = format!("`{}` is not a directory", place.display());
        return bad(CHECK, detail, "choose another with `--data-dir`");
    }
    let probe = place.join(format!(".memcube-doctor-{}", std::process::id()));
    let written = fs::write(&probe, b"probe").and_then(|()| fs::remove_file(&probe));
    match written {
        Ok(()) if place == dir => good(CHECK, format!("`{shown}` can be written")),
        Ok(()) => good(CHECK, format!("`{shown}` is not there yet; the first start makes it")),
        Err(error) => bad(
            CHECK,
            format!("`{}` cannot be written: {error}", place.display()),
            "change its owner or permissions, or choose another with `--data-dir`",
        ),
    }
}

/// Asks `df`, which every Unix has; the standard library cannot tell.
fn disk_space(dir: &Path) -> Finding {
    const CHECK: &str = "disk space";
    let output = Command::new("df").arg("-Pk").arg(existing(dir)).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let free_kib = text
        .ok()
        .and_then(|text| text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok());
    match free_kib {
        None => skipped(CHECK, "`df` does not tell"),
        Some(free) if free < FREE_KIB_MIN => {
            let detail = format!("{} MiB are free", free >> 10);
            bad(CHECK, detail, "make room: writes fail when the disk is full")
        }
        Some(free) => good(CHECK, format!("{:.1} GiB are free", free as f64 / f64::from(1 << 20))),
    }
}

fn server_check(server: Option<&str>) -> Finding {
    match server {
        Some(address) => good("server", format!("one runs on this data directory, at {address}")),
        None => skipped("server", "none runs on this data directory; `memcube serve` starts one"),
    }
}

fn store(settings: &Settings, server: Option<&str>) -> Finding {
    const CHECK: &str = "store";
    if settings.store.kind == StoreKind::FoundationDb {
        return match check_foundationdb(&settings.store) {
            Ok(detail) => good(CHECK, detail),
            Err(error) => bad(CHECK, error.message(), "mend the cause, then look again"),
        };
    }
    if let Some(address) = server {
        return match Client::new(address, "none").ready() {
            Ok(ready) if ready.ready => good(CHECK, "the server says that it is ready"),
            Ok(ready) => bad(
                CHECK,
                format!(
                    "the server is not ready: store {}, cubes {}, cluster {}",
                    ready.store, ready.cubes, ready.cluster
                ),
                "look at the server's log, mend the cause, and start it again",
            ),
            Err(error) => bad(CHECK, error.to_string(), "start the server again"),
        };
    }
    if settings.store.kind == StoreKind::InMemory {
        return skipped(CHECK, "memories are kept in RAM only, as the settings say");
    }
    let dir = settings.store.data_dir.join("state");
    if !dir.exists() {
        return skipped(CHECK, "there are no memories yet");
    }
    match read_store(&dir) {
        Ok(keys) => good(CHECK, format!("it opens and can be read ({keys} API keys)")),
        Err(error) => bad(
            CHECK,
            error.message().to_owned(),
            "end other processes that use the directory; if there are none, restore a copy",
        ),
    }
}

fn blobs(settings: &Settings) -> Finding {
    const CHECK: &str = "blobs";
    let place = match Place::of(settings) {
        Ok(place) => place,
        Err(error) => return bad(CHECK, error.message(), "set `blobs.url` to an object store"),
    };
    let name_of_place = match place {
        Place::Nowhere => return skipped(CHECK, "there are none, as the settings say"),
        Place::Memory => return skipped(CHECK, "they are kept in RAM only, as the settings say"),
        Place::Directory(path) if !path.exists() => {
            let detail = format!("`{}` is not there yet; the first start makes it", path.display());
            return good(CHECK, detail);
        }
        Place::Directory(path) => path.display().to_string(),
        Place::Bucket { url, .. } => url,
    };
    let name = format!("doctor-{}", std::process::id());
    let probed = || -> crate::Result<()> {
        let Some(objects) = storage::blobs::open(settings)? else { return Ok(()) };
        let failed = |error: anyhow::Error| crate::Error::internal(error.to_string());
        let runtime = running::runtime().map_err(failed)?;
        runtime.block_on(memcube_actors::storage::blobs::probe(&*objects, &name))?;
        Ok(())
    };
    let remedy =
        "mend what it names; until then cubes are read from their rows, which takes longer";
    match probed() {
        Ok(()) => good(CHECK, format!("`{name_of_place}` can be written and read")),
        Err(error) => bad(CHECK, error.message(), remedy),
    }
}

fn read_store(dir: &Path) -> crate::Result<usize> {
    let failed = |error: anyhow::Error| crate::Error::internal(error.to_string());
    let runtime = running::runtime().map_err(failed)?;
    runtime.block_on(async {
        let store = EmbeddedStore::open(dir)?;
        let output = store.read(vec![RangeRead::all(keys::api_keys())]).await?;
        Ok(output.pages.iter().map(|page| page.entries.len()).sum())
    })
}

/// Tries what memcube needs of a cluster, also while a server uses it.
#[cfg(feature = "fdb")]
fn check_foundationdb(settings: &StoreSettings) -> crate::Result<String> {
    use crate::storage::foundationdb::{Options, check, client::Client};

    let options = Options::from_settings(settings)?;
    let client = Client::load(settings.fdb_client_library.as_deref())?;
    let runtime = running::runtime().map_err(|error| crate::Error::internal(error.to_string()))?;
    let random = environment::system().random_u128();
    let found = runtime.block_on(async {
        let found = check::run(client, &options, random).await?;
        // Of the store itself: a layout or a schema that this release does not know.
        let store = FoundationDbStore::open(client, &options).await?;
        gate::look(&store).await?;
        crate::Result::Ok(found)
    })?;
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1_000.0;
    Ok(format!(
        "the FoundationDB cluster commits, reads, stamps and watches; a commit took {:.1} ms, the \
         slowest {:.1} ms",
        ms(found.commit_median),
        ms(found.commit_slowest)
    ))
}

#[cfg(not(feature = "fdb"))]
fn check_foundationdb(settings: &StoreSettings) -> crate::Result<String> {
    let runtime = running::runtime().map_err(|error| crate::Error::internal(error.to_string()))?;
    runtime.block_on(storage::open_foundationdb(settings))?;
    Ok(String::new())
}

fn listen_address(listen: SocketAddr, server: Option<&str>) -> Finding {
    const CHECK: &str = "listen address";
    match TcpListener::bind(listen) {
        Ok(_) => good(CHECK, format!("{listen} is free")),
        Err(_) if server == Some(&format!("http://{listen}")) => {
            good(CHECK, format!("{listen} is where the server answers"))
        }
        Err(error) => bad(
            CHECK,
            format!("{listen} cannot be used: {error}"),
            "choose another with `--listen`; port 0 takes a free one",
        ),
    }
}

fn model_files(dir: &Path) -> Finding {
    const CHECK: &str = "model files";
    let remedy = "run `make model`, or name the right directory with `--model-dir`";
    let mut wrong = Vec::new();
    for (sum, name) in MODEL_SUMS.lines().filter_map(|line| line.split_once("  ")) {
        let path = dir.join(name);
        match sha256(&path) {
            Ok(found) if found == sum => {}
            Ok(_) => wrong.push(format!("`{}` has a wrong checksum", path.display())),
            Err(error) => wrong.push(format!("`{}` cannot be read: {error}", path.display())),
        }
    }
    if wrong.is_empty() {
        return good(CHECK, format!("those in `{}` are the right ones", dir.display()));
    }
    bad(CHECK, wrong.join("; "), remedy)
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn embedding(settings: &EmbedderSettings) -> Finding {
    const CHECK: &str = "embedding";
    let remedy = "run `make model`; if that does not help, report it with this line";
    let start = Instant::now();
    let model = match inference::open(settings) {
        Ok(model) => model,
        Err(error) => return bad(CHECK, error.message(), remedy),
    };
    let loaded_ms = start.elapsed().as_millis();
    let start = Instant::now();
    let embeddings = match model.embed(&["memory is what stays when the talking is over"]) {
        Ok(embeddings) => embeddings,
        Err(error) => return bad(CHECK, error, remedy),
    };
    let vector = embeddings.first().map_or(&[][..], |embedding| &embedding.vector);
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if vector.len() != MODEL_DIMENSIONS || (length - 1.0).abs() > 1e-3 {
        let detail = format!("a vector of {} values and length {length:.3} came out", vector.len());
        return bad(CHECK, detail, remedy);
    }
    let embedded_ms = start.elapsed().as_secs_f64() * 1_000.0;
    let model = model.model();
    good(CHECK, format!("{model}: loaded in {loaded_ms} ms, one sentence in {embedded_ms:.1} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_of_the_model_are_known() {
        let names: Vec<&str> =
            MODEL_SUMS.lines().filter_map(|line| Some(line.split_once("  ")?.1)).collect();
        assert_eq!(names, ["model.safetensors", "tokenizer.json", "config.json"]);
    }

    #[test]
    fn a_missing_model_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let finding = model_files(dir.path());
        assert_eq!(finding.status, Status::Failed);
        assert!(finding.detail.contains("model.safetensors"), "{finding:?}");
        assert!(finding.remedy.is_some_and(|remedy| remedy.contains("make model")));
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_no_failure() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(data_directory(dir.path()).status, Status::Ok);
        assert_eq!(data_directory(&dir.path().join("a/b")).status, Status::Ok);
        let file = dir.path().join("file");
        fs::write(&file, b"").expect("it can be written");
        assert_eq!(data_directory(&file).status, Status::Failed);
        assert!(!dir.path().join("a").exists(), "nothing was made");
    }
}
