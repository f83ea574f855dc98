//! A process that is killed while it commits: what it acknowledged is there afterwards.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::Stdio,
    sync::Arc,
};

use memcube::storage::EmbeddedStore;
use memcube_actors::storage::{Check, Commit, CommitToken, Mutation, StateStore};

use super::{child, child_directory, entries, noise};

const ROUNDS: usize = 8;
const WRITERS: usize = 16;
/// Large enough that a few rounds fill memtables, so that kills also meet flushes.
const VALUE_BYTES: usize = 6_000;

#[tokio::test]
async fn killed_processes_lose_nothing_that_they_acknowledged() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut acknowledged = BTreeMap::<usize, u64>::new();
    for round in 0..ROUNDS {
        run_and_kill(directory.path(), 50 + round * 130, &mut acknowledged);
        let store = EmbeddedStore::open(directory.path()).expect("opened after the kill");
        let mut found = BTreeMap::<usize, u64>::new();
        for (key, _, value) in entries(&store).await.expect("read") {
            let key = String::from_utf8(key).expect("text");
            let (writer, number) = key.split_once('/').expect("writer/number");
            let (writer, number) =
                (writer.parse().expect("number"), number.parse().expect("number"));
            assert_eq!(value, noise(number, VALUE_BYTES), "{key}");
            // A writer waits for each answer, so its commits have no gaps.
            let count = found.entry(writer).or_default();
            assert_eq!(*count, number, "round {round}, writer {writer}");
            *count += 1;
            let outcome = store.outcome(token(writer, number)).await.expect("outcome");
            assert!(outcome.is_some(), "{key} is there, its token must be");
        }
        for (writer, count) in &acknowledged {
            let found = found.get(writer).copied().unwrap_or_default();
            assert!(found >= *count, "round {round}, writer {writer}: {found} of {count}");
            assert!(
                found <= count + 1,
                "round {round}, writer {writer}: one was under way at most"
            );
        }
    }
    assert!(acknowledged.values().sum::<u64>() > 1_000, "{acknowledged:?}");
}

/// Lets the child acknowledge some commits, kills it, and notes all that it acknowledged.
fn run_and_kill(directory: &Path, commits: usize, acknowledged: &mut BTreeMap<usize, u64>) {
    let mut child = child("embedded_store::crash::commits_until_killed", directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut note = |line: &str| {
        // Before the first one the test harness prints; the last one may be cut by the kill.
        let noted = line.split_once("acknowledged ").and_then(|(_, line)| line.strip_suffix('.'));
        let Some((writer, number)) = noted.and_then(|noted| noted.split_once('/')) else {
            return false;
        };
        let count = acknowledged.entry(writer.parse().expect("number")).or_default();
        *count = (*count).max(number.parse::<u64>().expect("number") + 1);
        true
    };
    let mut noted = 0;
    while noted < commits {
        let line = lines.next().expect("it runs until it is killed").expect("text");
        noted += usize::from(note(&line));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    for line in lines {
        note(&line.expect("text"));
    }
}

fn token(writer: usize, number: u64) -> CommitToken {
    CommitToken((writer as u128) << 64 | u128::from(number))
}

#[test]
fn commits_until_killed() {
    let Some(directory) = child_directory() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    runtime.expect("a runtime").block_on(async {
        let store = Arc::new(EmbeddedStore::open(&directory).expect("opened"));
        let mut next = [0_u64; WRITERS];
        for (key, _, _) in entries(&store).await.expect("read") {
            let key = String::from_utf8(key).expect("text");
            let writer: usize = key.split('/').next().expect("writer").parse().expect("number");
            next[writer] += 1;
        }
        let writers = next.into_iter().enumerate().map(|(writer, first)| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { commit_for_ever(&store, writer, first).await })
        });
        futures_util::future::join_all(writers.collect::<Vec<_>>()).await;
    });
}

async fn commit_for_ever(store: &EmbeddedStore, writer: usize, first: u64) {
    for number in first.. {
        let key = format!("{writer}/{number:08}").into_bytes();
        let commit = Commit {
            token: token(writer, number),
            checks: vec![Check::Absent { key: key.clone() }],
            mutations: vec![Mutation::Set { key, value: noise(number, VALUE_BYTES) }],
        };
        store.commit(commit).await.expect("committed");
        let line = format!("acknowledged {writer}/{number}.\n");
        std::io::stdout().lock().write_all(line.as_bytes()).expect("printed");
    }
}
