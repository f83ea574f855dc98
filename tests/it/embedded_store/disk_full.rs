//! A disk that takes no more: the store says so, stops taking commits, and keeps what it has.
//!
//! The child may not make files longer than a limit, which needs no rights and no special disk:
//! past it every write fails as on a full disk, with another number.

use std::{
    path::Path,
    process::{Command, Output},
};

use memcube::storage::EmbeddedStore;
use memcube_actors::storage::{CommitToken, StateStore, StoreError};

use super::{child, child_directory, entries, noise, set};

/// In units of 512 bytes, as POSIX has it.
const FILE_BLOCKS_MAX: usize = 600;

#[tokio::test]
async fn a_full_disk_poisons_the_store_and_loses_nothing() {
    // Values below and above the engine's write buffer: errors come from its write or from its
    // flush.
    for value_bytes in [500, 20_000] {
        let directory = tempfile::tempdir().expect("a directory");
        for _ in 0..2 {
            // The second start shortens the journal from what the first one reserved.
            drop(EmbeddedStore::open(directory.path()).expect("opened"));
        }
        let output = run_limited(directory.path(), value_bytes);
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{text}");
        let acknowledged = text.lines().filter(|line| line.contains("acknowledged")).count();
        assert!(acknowledged > 5, "{text}");

        let store = EmbeddedStore::open(directory.path()).expect("opened with space again");
        let found = entries(&store).await.expect("read");
        assert!((acknowledged..=acknowledged + 1).contains(&found.len()), "{}", found.len());
        for (number, (key, version, value)) in found.into_iter().enumerate() {
            assert_eq!(key, format!("{number:06}").into_bytes());
            assert_eq!(value, noise(number as u64, value_bytes));
            let token = CommitToken(number as u128);
            assert_eq!(store.outcome(token).await, Ok(Some(version)));
        }
        store.commit(set(u64::MAX, "more", b"x")).await.expect("it works again");
    }
}

/// The engine writes tables in the background: a failure there stops commits too, and hangs nobody.
#[tokio::test]
async fn a_failed_flush_poisons_the_store_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(directory.path()).expect("opened");
    let tables = directory.path().join("fjall/keyspaces/1/tables");
    let away = tables.with_extension("away");
    std::fs::rename(&tables, &away).expect("renamed");
    let mut acknowledged = 0;
    let error = loop {
        let commit =
            set(acknowledged, &format!("{acknowledged:06}"), &noise(acknowledged, 100_000));
        match store.commit(commit).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    // The failure may meet a commit that is written but not synced: nobody knows about that one.
    let undecided = u64::from(error == StoreError::Unknown);
    let error = if error == StoreError::Unknown {
        let next = set(acknowledged + 1, "next", b"next");
        store.commit(next).await.expect_err("it takes no more")
    } else {
        error
    };
    let StoreError::Unavailable { reason } = &error else { panic!("{error:?}") };
    assert!(reason.contains("in the background"), "{reason}");
    assert_eq!(entries(&store).await.expect("reads still work").len() as u64, acknowledged);
    drop(store);
    std::fs::rename(&away, &tables).expect("renamed");
    let store = EmbeddedStore::open(directory.path()).expect("opened");
    let held = entries(&store).await.expect("read").len() as u64;
    assert!((acknowledged..=acknowledged + undecided).contains(&held), "{held} of {acknowledged}");
}

fn run_limited(directory: &Path, value_bytes: usize) -> Output {
    let child = child("embedded_store::disk_full::fills_the_disk", directory);
    let script = format!("trap '' XFSZ; ulimit -f {FILE_BLOCKS_MAX}; exec \"$0\" \"$@\"");
    let mut limited = Command::new("sh");
    limited.args(["-c", &script]).arg(child.get_program()).args(child.get_args());
    limited.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.env("VALUE_BYTES", value_bytes.to_string()).output().expect("a shell")
}

#[tokio::test]
async fn fills_the_disk() {
    let Some(directory) = child_directory() else { return };
    let value_bytes = std::env::var("VALUE_BYTES").expect("set").parse().expect("a number");
    let store = EmbeddedStore::open(&directory).expect("opened");
    let mut number = 0;
    let error = loop {
        let commit = set(number, &format!("{number:06}"), &noise(number, value_bytes));
        match store.commit(commit).await {
            Ok(_) => println!("acknowledged {number}"),
            Err(error) => break error,
        }
        number += 1;
    };
    match error {
        StoreError::Unknown => {
            let outcome = store.outcome(CommitToken(number.into())).await;
            assert!(matches!(outcome, Err(StoreError::Unavailable { .. })), "{outcome:?}");
        }
        StoreError::Unavailable { reason } => {
            assert!(reason.contains("writing to the disk failed"), "{reason}");
            assert_eq!(store.outcome(CommitToken(number.into())).await, Ok(None));
        }
        error @ (StoreError::Conflict { .. }
        | StoreError::TooLarge { .. }
        | StoreError::Overloaded
        | StoreError::Corrupt { .. }) => panic!("{error:?}"),
    }
    let later = store.commit(set(number + 1, "later", b"x")).await;
    let Err(StoreError::Unavailable { reason }) = later else { panic!("{later:?}") };
    assert!(reason.contains("writing to the disk failed"), "{reason}");
    assert!(reason.contains("restart memcube after freeing space"), "{reason}");
    let found = entries(&store).await.expect("reads still work");
    assert_eq!(found.len() as u64, number, "only what is durable is seen");
    assert!(store.outcome(CommitToken(0)).await.expect("known").is_some());
    println!("poisoned: {reason}");
}
