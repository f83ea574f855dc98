//! A handle on the store under test: short words for what the cases do.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use memcube_schemas::{Version, keys::KeyRange};

use super::Backend;
use crate::storage::{
    Check, Commit, CommitToken, Mutation, RangePage, RangeRead, STAMP_BYTES, SharedStore,
    StoreError,
};

/// The store under test, and fresh tokens for it.
pub(super) struct Probe {
    pub(super) store: SharedStore,
    tokens: Arc<AtomicU64>,
}

impl Probe {
    pub(super) fn new(store: SharedStore) -> Self {
        Self { store, tokens: Arc::new(AtomicU64::new(1)) }
    }

    /// Another handle on the same store.
    pub(super) fn fork(&self) -> Self {
        Self { store: Arc::clone(&self.store), tokens: Arc::clone(&self.tokens) }
    }

    pub(super) async fn reopen<B: Backend>(self, backend: &mut B) -> Self {
        Self { store: backend.crash_and_reopen(self.store).await, tokens: self.tokens }
    }

    pub(super) fn next_token(&self) -> CommitToken {
        CommitToken(u128::from(self.tokens.fetch_add(1, Ordering::Relaxed)) << 32)
    }

    pub(super) async fn commit(
        &self,
        checks: impl IntoIterator<Item = Check>,
        mutations: impl IntoIterator<Item = Mutation>,
    ) -> Result<Version, StoreError> {
        let commit = Commit {
            token: self.next_token(),
            checks: checks.into_iter().collect(),
            mutations: mutations.into_iter().collect(),
        };
        self.store.commit(commit).await
    }

    pub(super) async fn get(&self, key: &str) -> Option<(Version, Vec<u8>)> {
        let entry = self.page(RangeRead::key(key.as_bytes().to_vec())).await.entries.pop()?;
        assert_eq!(entry.key, key.as_bytes());
        Some((entry.version, entry.value))
    }

    pub(super) async fn counter(&self, key: &str) -> i64 {
        let (_, value) = self.get(key).await.expect("the counter is there");
        i64::from_le_bytes(value.try_into().expect("eight bytes"))
    }

    pub(super) async fn page(&self, read: RangeRead) -> RangePage {
        let mut read = self.store.read(vec![read]).await.expect("read");
        assert_eq!(read.pages.len(), 1);
        read.pages.remove(0)
    }

    pub(super) async fn keys(&self, range: KeyRange) -> Vec<String> {
        let page = self.page(RangeRead::all(range)).await;
        let text = |key: Vec<u8>| String::from_utf8(key).expect("the cases use text");
        page.entries.into_iter().map(|entry| text(entry.key)).collect()
    }

    pub(super) async fn version(&self) -> Version {
        self.store.read(Vec::new()).await.expect("read").version
    }

    /// Adds one to a decimal text unless somebody else changes it meanwhile.
    pub(super) async fn increment_by_check(&self, key: &str) -> bool {
        let (version, value) = self.get(key).await.expect("it is there");
        let number: u64 = String::from_utf8_lossy(&value).parse().expect("a number");
        let next = (number + 1).to_string();
        match self.commit([at(key, version)], [set(key, &next)]).await {
            Ok(_) => true,
            Err(StoreError::Conflict { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Runs a task beside the others, and panics where it does.
#[expect(clippy::disallowed_methods, reason = "a suite of tests, not an actor")]
pub(super) async fn spawn_and_join(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task).await.expect("the task");
}

/// [`spawn_and_join`], boxed so that different tasks go into one list.
pub(super) fn spawn(
    task: impl Future<Output = ()> + Send + 'static,
) -> futures_util::future::BoxFuture<'static, ()> {
    Box::pin(spawn_and_join(task))
}

pub(super) fn key_range(start: &str, end: &str) -> KeyRange {
    KeyRange { start: start.as_bytes().to_vec(), end: end.as_bytes().to_vec() }
}

pub(super) fn at(key: &str, version: Version) -> Check {
    Check::At { key: key.as_bytes().to_vec(), version }
}

pub(super) fn absent(key: &str) -> Check {
    Check::Absent { key: key.as_bytes().to_vec() }
}

pub(super) fn set(key: &str, value: &str) -> Mutation {
    Mutation::Set { key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() }
}

pub(super) fn clear(key: &str) -> Mutation {
    Mutation::Clear { key: key.as_bytes().to_vec() }
}

pub(super) fn clear_range(start: &str, end: &str) -> Mutation {
    Mutation::ClearRange { range: key_range(start, end) }
}

pub(super) fn add(key: &str, delta: i64) -> Mutation {
    Mutation::Add { key: key.as_bytes().to_vec(), delta }
}

pub(super) fn stamped(prefix: &str, value: &str) -> Mutation {
    Mutation::SetVersionstamped {
        prefix: prefix.as_bytes().to_vec(),
        value: value.as_bytes().to_vec(),
    }
}

/// The version, the place among the commits of that version, and the position in the commit that a
/// stamped key names.
pub(super) fn stamp_of(key: &[u8], prefix: &str) -> (Version, u16, u16) {
    let stamp = key.strip_prefix(prefix.as_bytes()).expect("under its prefix");
    let stamp: [u8; STAMP_BYTES] = stamp.try_into().expect("a stamp of twelve bytes");
    let (version, rest) = stamp.split_first_chunk::<8>().expect("a version");
    let (place, position) = rest.split_first_chunk::<2>().expect("a place");
    let position = position.try_into().expect("a position");
    (
        Version(u64::from_be_bytes(*version)),
        u16::from_be_bytes(*place),
        u16::from_be_bytes(position),
    )
}
