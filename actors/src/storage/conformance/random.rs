//! Random operations on the store under test and on the executable specification, side by side.
//!
//! Versions of the two need not be equal, only grow alike: `versions` maps one to the other.

use std::collections::BTreeMap;

use memcube_schemas::{Version, keys::KeyRange};

use super::{Backend, probe::Probe};
use crate::storage::{
    Check, Commit, CommitToken, Entry, InMemoryStore, Mutation, RangeRead, StateStore, StoreError,
};

const OPERATIONS: usize = 2_000;
/// Operations between two crashes.
const CRASH_EVERY: usize = 400;
const KEYS: u64 = 40;
const STAMP_PREFIX: &[u8] = b"stamp/";
const SEEDS: [u64; 2] = [1, 0x5eed];

/// The case: every answer and every page is the same, also after crashes.
pub(super) async fn agrees_with_the_specification<B: Backend>(backend: &mut B, probe: Probe) {
    // Each seed has a store of its own, and some backends have one at a time.
    drop(probe);
    for seed in SEEDS {
        let store = backend.open().await;
        let mut pair = Pair::new(store, seed);
        for operation in 0..OPERATIONS {
            pair.operate(operation).await;
            if operation % CRASH_EVERY == CRASH_EVERY - 1 {
                pair.probe = pair.probe.reopen(backend).await;
                pair.compare_everything(operation).await;
            }
        }
    }
}

/// <https://prng.di.unimi.it/splitmix64.c>
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct Pair {
    probe: Probe,
    specification: InMemoryStore,
    random: SplitMix64,
    /// Version in the specification → version in the store.
    versions: BTreeMap<Version, Version>,
    tokens: Vec<CommitToken>,
}

impl Pair {
    fn new(store: crate::storage::SharedStore, seed: u64) -> Self {
        Self {
            probe: Probe::new(store),
            specification: InMemoryStore::new(),
            random: SplitMix64(seed),
            versions: BTreeMap::new(),
            tokens: Vec::new(),
        }
    }

    async fn operate(&mut self, operation: usize) {
        match self.random.below(10) {
            0..6 => self.commit(operation).await,
            6..9 => self.read(operation).await,
            _ => self.outcome(operation).await,
        }
    }

    fn key(&mut self) -> Vec<u8> {
        format!("k{:02}", self.random.below(KEYS)).into_bytes()
    }

    fn range(&mut self) -> KeyRange {
        match self.random.below(8) {
            0 => KeyRange { start: b"stamp/".to_vec(), end: b"stamp0".to_vec() },
            1 => KeyRange::only(self.key()),
            _ => KeyRange { start: self.key(), end: self.key() },
        }
    }

    fn mutation(&mut self) -> Mutation {
        let value_bytes = usize::try_from(self.random.below(40)).expect("it is small");
        let value = vec![self.random.next().to_le_bytes()[0]; value_bytes];
        match self.random.below(12) {
            0..5 => Mutation::Set { key: self.key(), value },
            5..7 => Mutation::Clear { key: self.key() },
            7 => Mutation::ClearRange { range: self.range() },
            8..11 => Mutation::Add { key: self.key(), delta: self.random.next().cast_signed() },
            _ => Mutation::SetVersionstamped { prefix: STAMP_PREFIX.to_vec(), value },
        }
    }

    /// A check, and the same check with the store's version.
    async fn check(&mut self) -> (Check, Check) {
        let key = self.key();
        let read = RangeRead::key(key.clone());
        let found = self.specification.read(vec![read]).await.expect("read").pages.remove(0);
        let version = found.entries.first().map(|entry| entry.version);
        // Mostly a check that holds, sometimes one that does not.
        let version = match self.random.below(6) {
            0 => self.versions.keys().next_back().copied(),
            1 => None,
            _ => version,
        };
        match version {
            Some(version) => {
                let theirs = self.versions[&version];
                (Check::At { key: key.clone(), version }, Check::At { key, version: theirs })
            }
            None => (Check::Absent { key: key.clone() }, Check::Absent { key }),
        }
    }

    async fn commit(&mut self, operation: usize) {
        let mut checks = (Vec::new(), Vec::new());
        for _ in 0..self.random.below(3) {
            let (ours, theirs) = self.check().await;
            checks.0.push(ours);
            checks.1.push(theirs);
        }
        let mutations: Vec<Mutation> = (0..self.random.below(6)).map(|_| self.mutation()).collect();
        let token = self.token();
        let commit = Commit { token, checks: checks.0, mutations: mutations.clone() };
        let expected = self.specification.commit(commit).await;
        let found = self.probe.store.commit(Commit { token, checks: checks.1, mutations }).await;
        match (expected, found) {
            (Ok(ours), Ok(theirs)) => {
                let known = *self.versions.entry(ours).or_insert(theirs);
                assert_eq!(known, theirs, "operation {operation}: a token has one version");
            }
            (
                Err(StoreError::Conflict { key: ours }),
                Err(StoreError::Conflict { key: theirs }),
            ) => {
                assert_eq!(ours, theirs, "operation {operation}");
            }
            (expected, found) => panic!("operation {operation}: {found:?}, expected {expected:?}"),
        }
    }

    /// A fresh token, now and then a used one.
    fn token(&mut self) -> CommitToken {
        if self.random.below(20) == 0 && !self.tokens.is_empty() {
            return self.used_token();
        }
        let token = self.probe.next_token();
        self.tokens.push(token);
        token
    }

    fn used_token(&mut self) -> CommitToken {
        let index = self.random.below(self.tokens.len() as u64);
        self.tokens[usize::try_from(index).expect("it is an index")]
    }

    async fn read(&mut self, operation: usize) {
        let count = 1 + self.random.below(3);
        let mut ranges = Vec::new();
        for _ in 0..count {
            let range = self.range();
            let limit = match self.random.below(3) {
                0 => usize::MAX,
                _ => usize::try_from(self.random.below(6)).expect("it is small"),
            };
            ranges.push(RangeRead { range, limit, reverse: self.random.below(2) == 0 });
        }
        self.compare(ranges, operation).await;
    }

    async fn compare(&self, ranges: Vec<RangeRead>, operation: usize) {
        let expected = self.specification.read(ranges.clone()).await.expect("read");
        let found = self.probe.store.read(ranges).await.expect("read");
        assert_eq!(expected.pages.len(), found.pages.len());
        for (expected, found) in expected.pages.into_iter().zip(found.pages) {
            let translated: Vec<Entry> =
                expected.entries.into_iter().map(|entry| self.translate(entry)).collect();
            let found_entries: Vec<Entry> = found.entries.into_iter().map(without_place).collect();
            assert_eq!(found_entries, translated, "operation {operation}");
            assert_eq!(found.more, expected.more, "operation {operation}");
        }
    }

    async fn compare_everything(&self, operation: usize) {
        let everything = KeyRange { start: Vec::new(), end: vec![0xff] };
        self.compare(vec![RangeRead::all(everything)], operation).await;
    }

    async fn outcome(&mut self, operation: usize) {
        if self.tokens.is_empty() {
            return;
        }
        let token = self.used_token();
        let expected = self.specification.outcome(token).await.expect("outcome");
        let expected = expected.map(|version| self.versions[&version]);
        let found = self.probe.store.outcome(token).await;
        assert_eq!(found, Ok(expected), "operation {operation}");
    }

    /// An entry of the specification with the store's versions in it.
    fn translate(&self, mut entry: Entry) -> Entry {
        if let Some(stamp) = entry.key.strip_prefix(STAMP_PREFIX) {
            let (version, position) = stamp.split_first_chunk::<8>().expect("a stamp");
            let version = self.versions[&Version(u64::from_be_bytes(*version))];
            entry.key = [STAMP_PREFIX, &version.0.to_be_bytes(), position].concat();
        }
        entry.version = self.versions[&entry.version];
        entry
    }
}

/// An entry whose stamp says nothing of its place among commits of one version: other stores in the
/// same cluster may have had the places before it.
fn without_place(mut entry: Entry) -> Entry {
    if entry.key.starts_with(STAMP_PREFIX) {
        entry.key[STAMP_PREFIX.len() + 8..STAMP_PREFIX.len() + 10].fill(0);
    }
    entry
}
