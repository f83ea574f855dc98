//! Durable commits per second: the embedded store, against fjall with one fsync per commit.
//!
//! A transaction checks one ownership key and writes four values of 400 to 1,600 bytes. Run it
//! through `durable_adds.sh`. Options: `--seconds N`, `--label TEXT`, `--out PATH` (writes PATH.md
//! and PATH.json), `--dir PATH` (where the data goes), `--preload LIBRARY` (runs itself with it).

#![expect(clippy::print_stdout, reason = "it is a program that prints a table")]

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use fjall::{KeyspaceCreateOptions, OptimisticTxDatabase, PersistMode, Readable};
use memcube::storage::EmbeddedStore;
use memcube_actors::storage::{Check, Commit, CommitToken, Mutation, StateStore};

const WRITERS: [usize; 3] = [1, 16, 64];
const SETS: u64 = 4;

struct Options {
    seconds: u64,
    label: String,
    out: Option<PathBuf>,
    dir: PathBuf,
}

/// Commits of all writers, and how long each took.
struct Measured {
    commits_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

struct Row {
    writers: usize,
    ours: Measured,
    baseline: Measured,
}

fn main() {
    let Some(options) = options() else { return };
    println!("durable commits, {}, {} s a case", options.label, options.seconds);
    println!("{}", memory(&options.dir));
    let mut rows = Vec::new();
    for writers in WRITERS {
        let baseline = measure_baseline(&options, writers);
        let ours = measure_ours(&options, writers);
        rows.push(Row { writers, ours, baseline });
    }
    let table = markdown(&options, &rows);
    println!("{table}");
    if let Some(out) = &options.out {
        std::fs::write(out.with_added_extension("md"), table).expect("written");
        std::fs::write(out.with_added_extension("json"), json(&options, &rows)).expect("written");
    }
}

/// `None` when a process with the preloaded library does the work.
fn options() -> Option<Options> {
    // `cargo bench` adds the flag `--bench`.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut given: BTreeMap<&str, &str> = arguments
        .chunks(2)
        .map(|pair| (pair[0].as_str(), pair.get(1).expect("a value after each option").as_str()))
        .collect();
    if let Some(library) = given.remove("--preload") {
        let mut again = Command::new(std::env::current_exe().expect("this program"));
        let status = again
            .args(given.iter().flat_map(|(name, value)| [name, value]))
            .env("LD_PRELOAD", library)
            .status();
        assert!(status.expect("it ran").success());
        return None;
    }
    Some(Options {
        seconds: given.remove("--seconds").map_or(3, |text| text.parse().expect("seconds")),
        label: given.remove("--label").unwrap_or("disk as found").to_owned(),
        out: given.remove("--out").map(PathBuf::from),
        dir: given.remove("--dir").map_or_else(std::env::temp_dir, PathBuf::from),
    })
}

fn directory(parent: &Path) -> tempfile::TempDir {
    tempfile::tempdir_in(parent).expect("a directory")
}

fn ownership_key(writer: usize) -> Vec<u8> {
    format!("ownership/{writer:04}").into_bytes()
}

/// The keys and values of one transaction.
fn sets(writer: usize, number: u64) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    (0..SETS).map(move |set| {
        let seed = (number * SETS + set).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ writer as u64;
        let key = format!("cube/{writer:04}/{set}/{seed:016x}").into_bytes();
        let length = 400 + usize::try_from(seed >> 40).expect("24 bits") % 1_201;
        (key, seed.to_le_bytes().into_iter().cycle().take(length).collect())
    })
}

fn measure_ours(options: &Options, writers: usize) -> Measured {
    let directory = directory(&options.dir);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store = Arc::new(EmbeddedStore::open(directory.path()).expect("opened"));
        let until = Instant::now() + Duration::from_secs(options.seconds);
        let tasks: Vec<_> = (0..writers)
            .map(|writer| tokio::spawn(commit_until(Arc::clone(&store), writer, until)))
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.expect("a writer"));
        }
        summarise(took, options.seconds)
    })
}

async fn commit_until(store: Arc<EmbeddedStore>, writer: usize, until: Instant) -> Vec<Duration> {
    let token = |number: u64| CommitToken((writer as u128) << 64 | u128::from(number));
    let ownership = ownership_key(writer);
    let claim = Mutation::Set { key: ownership.clone(), value: b"node 1, epoch 1".to_vec() };
    let claim = Commit { token: token(0), checks: Vec::new(), mutations: vec![claim] };
    let version = store.commit(claim).await.expect("claimed");
    let mut took = Vec::new();
    for number in 1.. {
        let start = Instant::now();
        if start > until {
            break;
        }
        let mutations = sets(writer, number).map(|(key, value)| Mutation::Set { key, value });
        let checks = vec![Check::At { key: ownership.clone(), version }];
        let commit = Commit { token: token(number), checks, mutations: mutations.collect() };
        store.commit(commit).await.expect("committed");
        took.push(start.elapsed());
    }
    took
}

fn measure_baseline(options: &Options, writers: usize) -> Measured {
    let directory = directory(&options.dir);
    let database = OptimisticTxDatabase::builder(directory.path()).open().expect("opened");
    let keyspace = database.keyspace("state", KeyspaceCreateOptions::default).expect("made");
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let (database, keyspace) = (database.clone(), keyspace.clone());
            std::thread::spawn(move || {
                let ownership = ownership_key(writer);
                keyspace.insert(ownership.as_slice(), "node 1, epoch 1").expect("claimed");
                let mut took = Vec::new();
                for number in 1.. {
                    let start = Instant::now();
                    if start > until {
                        break;
                    }
                    let transaction = database.write_tx().expect("begun");
                    let mut transaction = transaction.durability(Some(PersistMode::SyncData));
                    let owner = transaction.get(&keyspace, &ownership).expect("read");
                    assert!(owner.is_some());
                    for (key, value) in sets(writer, number) {
                        transaction.insert(&keyspace, key, value);
                    }
                    transaction.commit().expect("written").expect("no conflict");
                    took.push(start.elapsed());
                }
                took
            })
        })
        .collect();
    let took = threads.into_iter().flat_map(|thread| thread.join().expect("a writer")).collect();
    summarise(took, options.seconds)
}

fn summarise(mut took: Vec<Duration>, seconds: u64) -> Measured {
    took.sort_unstable();
    let at = |thousandth: usize| took[took.len() * thousandth / 1_000].as_secs_f64() * 1_000.0;
    Measured {
        commits_per_second: took.len() as f64 / seconds as f64,
        p50_ms: at(500),
        p99_ms: at(990),
    }
}

/// Resident memory before and after the store opens, and after it took 64 MB.
fn memory(parent: &Path) -> String {
    let directory = directory(parent);
    let before = resident_kb();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store = EmbeddedStore::open(directory.path()).expect("opened");
        let opened = resident_kb();
        for number in 0..4_000_u64 {
            let value = number.to_be_bytes().repeat(2_000);
            let mutation = Mutation::Set { key: number.to_be_bytes().to_vec(), value };
            let commit = Commit {
                token: CommitToken(number.into()),
                checks: Vec::new(),
                mutations: vec![mutation],
            };
            store.commit(commit).await.expect("committed");
        }
        let filled = resident_kb();
        drop(store);
        let store = EmbeddedStore::open(directory.path()).expect("opened again");
        let reopened = resident_kb();
        drop(store);
        format!(
            "resident kB: {before} before, {opened} with an empty store open, {filled} after 64 MB \
             of commits, {reopened} opened again"
        )
    })
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn markdown(options: &Options, rows: &[Row]) -> String {
    let mut text = format!("Durable commits, {}, {} s a case.\n\n", options.label, options.seconds);
    text += "| writers | embedded store /s | one fsync per commit /s | ratio | p50 / p99 ms |";
    text += " p50 / p99 ms, one fsync per commit |\n";
    text += "|---|---|---|---|---|---|\n";
    for Row { writers, ours, baseline } in rows {
        writeln!(
            text,
            "| {writers} | {:.0} | {:.0} | {:.1} | {:.2} / {:.2} | {:.2} / {:.2} |",
            ours.commits_per_second,
            baseline.commits_per_second,
            ours.commits_per_second / baseline.commits_per_second,
            ours.p50_ms,
            ours.p99_ms,
            baseline.p50_ms,
            baseline.p99_ms,
        )
        .expect("invariant: text takes everything");
    }
    text
}

fn json(options: &Options, rows: &[Row]) -> String {
    let measured = |it: &Measured| {
        format!(
            r#"{{"commits_per_second": {:.0}, "p50_ms": {:.3}, "p99_ms": {:.3}}}"#,
            it.commits_per_second, it.p50_ms, it.p99_ms
        )
    };
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let (ours, baseline) = (measured(&row.ours), measured(&row.baseline));
            let writers = row.writers;
            format!(r#"{{"writers": {writers}, "embedded": {ours}, "one_fsync_per_commit": {baseline}}}"#)
        })
        .collect();
    let (label, seconds) = (&options.label, options.seconds);
    format!(
        "{{\"label\": {label:?}, \"seconds\": {seconds}, \"rows\": [\n  {}\n]}}\n",
        rows.join(",\n  ")
    )
}
