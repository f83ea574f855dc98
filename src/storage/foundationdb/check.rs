//! A quick look at a cluster: whether everything that the store builds on works there.
//!
//! It writes under a prefix of its own and removes all of it again.

use std::{sync::Arc, time::Duration};

use memcube_actors::storage::{
    Check, Commit, CommitToken, Mutation, RangeRead, StateStore, StoreError, versionstamped_key,
};
use memcube_schemas::keys::KeyRange;
use tokio::time::Instant;

use super::{
    FoundationDbStore, Options,
    attempts::{Attempts, Decision},
    client::Client,
    error::unavailable,
};

/// Commits whose time is taken.
const TIMED_COMMITS: u32 = 20;
/// How long a doorbell may take to ring.
const RING: Duration = Duration::from_secs(5);

/// What the look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Half of the commits took less.
    pub commit_median: Duration,
    /// The slowest commit.
    pub commit_slowest: Duration,
}

/// Commits, reads, stamps, waits for a doorbell, and asks for unknown tokens. `random` keeps two
/// checks at the same time apart.
///
/// # Errors
/// [`StoreError`] of the first thing that does not work, with what it was.
pub async fn run(client: Client, options: &Options, random: u128) -> Result<Findings, StoreError> {
    let scratch =
        Options { prefix: format!("{}-check-{random:032x}", options.prefix), ..options.clone() };
    let store = FoundationDbStore::open(client, &scratch).await?;
    let found = examine(&store, random).await;
    let removed = store.erase().await;
    let found = found?;
    removed?;
    Ok(found)
}

async fn examine(store: &FoundationDbStore, random: u128) -> Result<Findings, StoreError> {
    let token = |number: u32| CommitToken(random ^ u128::from(number));
    let mut took = Vec::new();
    for number in 0..TIMED_COMMITS {
        let value = number.to_be_bytes().to_vec();
        let set = Mutation::Set { key: b"timed".to_vec(), value };
        let since = Instant::now();
        let commit = Commit { token: token(number), checks: Vec::new(), mutations: vec![set] };
        store.commit(commit).await?;
        took.push(since.elapsed());
    }
    took.sort();
    stamps(store, token(TIMED_COMMITS)).await?;
    doorbell(store, token(TIMED_COMMITS + 1)).await?;
    expect(store.outcome(token(0)).await?.is_some(), "a commit is not found by its token")?;
    let unknown = store.outcome(token(TIMED_COMMITS + 2)).await?;
    expect(unknown.is_none(), "a token that nobody used has an outcome")?;
    Ok(Findings {
        commit_median: took[took.len() / 2],
        commit_slowest: took.last().copied().unwrap_or_default(),
    })
}

/// A large value, a stamped key, and a check that must fail.
async fn stamps(store: &FoundationDbStore, token: CommitToken) -> Result<(), StoreError> {
    let large = vec![7; 100_000];
    let mutations = vec![
        Mutation::Set { key: b"large".to_vec(), value: large.clone() },
        Mutation::SetVersionstamped { prefix: b"log/".to_vec(), value: b"x".to_vec() },
    ];
    let absent = vec![Check::Absent { key: b"large".to_vec() }];
    let version = store.commit(Commit { token, checks: absent.clone(), mutations }).await?;
    let log = KeyRange { start: b"log/".to_vec(), end: b"log0".to_vec() };
    let ranges = vec![RangeRead::key(b"large".to_vec()), RangeRead::all(log)];
    let read = store.read(ranges).await?;
    let [found, log] = &read.pages[..] else { return expect(false, "a read lacks a range") };
    let found = found.entries.first().map(|entry| (&entry.value, entry.version));
    expect(found == Some((&large, version)), "a large value is not read as it was written")?;
    let keys: Vec<_> = log.entries.iter().map(|entry| &entry.key).collect();
    // Others may commit at the same version, so what stands between version and position is free.
    let stamped = versionstamped_key(b"log/", version, 1);
    let is_stamped = matches!(&keys[..], [key] if key.len() == stamped.len()
        && key[..12] == stamped[..12] && key[14..] == stamped[14..]);
    expect(is_stamped, "a stamped key has not the version of its commit")?;
    let again = Commit { token: CommitToken(!token.0), checks: absent, mutations: Vec::new() };
    let refused = matches!(store.commit(again).await, Err(StoreError::Conflict { .. }));
    expect(refused, "a commit went through although its check fails")
}

async fn doorbell(store: &FoundationDbStore, token: CommitToken) -> Result<(), StoreError> {
    let other = store.clone();
    let heard = tokio::spawn(async move { other.changed(b"bell".to_vec(), None).await });
    let set = Mutation::Set { key: b"bell".to_vec(), value: Vec::new() };
    store.commit(Commit { token, checks: Vec::new(), mutations: vec![set] }).await?;
    match tokio::time::timeout(RING, heard).await {
        Ok(Ok(heard)) => heard,
        Ok(Err(_)) | Err(_) => expect(false, "a watch does not tell of a change"),
    }
}

fn expect(holds: bool, otherwise: &str) -> Result<(), StoreError> {
    if holds {
        return Ok(());
    }
    Err(unavailable(format!("the FoundationDB cluster does not work as it should: {otherwise}")))
}

impl FoundationDbStore {
    /// Removes everything under the prefix, of whatever size.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the cluster does not answer; then it may be there or not.
    pub async fn erase(&self) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.0);
        let (from, to) = inner.layout.everything();
        let mut attempts = Attempts::begin(&inner.database, &inner.cluster_file)?;
        loop {
            attempts.transaction().clear_range(from, to);
            match attempts.settle(Ok(Decision::<()>::Commit)).await {
                std::ops::ControlFlow::Continue(()) => {}
                std::ops::ControlFlow::Break(Ok(_)) => return Ok(()),
                std::ops::ControlFlow::Break(Err(failure)) => return Err(failure.error),
            }
        }
    }
}
