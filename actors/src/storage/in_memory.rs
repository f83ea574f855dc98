//! The state store as a map: the executable specification, for tests and simulations.
//!
//! Invariant: the same calls in the same order give the same answers, in every process.

use std::{
    collections::{BTreeMap, VecDeque, btree_map},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::future::BoxFuture;
use memcube_schemas::{Version, keys::KeyRange, limits::COMMIT_TOKENS_MAX};

use super::{
    Check, Commit, CommitToken, Doorbells, Entry, Mutation, RangePage, RangeRead, ReadOutput,
    StateStore, StoreError, counter_after_add, versionstamped_key,
};

/// A state store in RAM. A clone shares the state, which is how a test "reopens" it.
#[derive(Debug, Clone, Default)]
pub struct InMemoryStore {
    state: Arc<Mutex<State>>,
    doorbells: Arc<Doorbells>,
}

#[derive(Debug, Default)]
struct State {
    /// The last commit.
    version: Version,
    entries: BTreeMap<Vec<u8>, (Version, Vec<u8>)>,
    tokens: BTreeMap<CommitToken, Version>,
    /// The same tokens, oldest first.
    tokens_by_age: VecDeque<CommitToken>,
}

impl InMemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The last commit's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.state().version
    }

    /// Every row, in the order of the keys.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let all = |(key, (version, value)): (&Vec<u8>, &(Version, Vec<u8>))| Entry {
            key: key.clone(),
            value: value.clone(),
            version: *version,
        };
        self.state().entries.iter().map(all).collect()
    }

    /// Leaves out so many versions, as a recovery of FoundationDB does.
    pub fn skip_versions(&self, count: u64) {
        let mut state = self.state();
        state.version = Version(state.version.0 + count);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("invariant: nothing panics while it holds the state")
    }
}

impl StateStore for InMemoryStore {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            let state = self.state();
            let pages = ranges.iter().map(|range| state.page(range)).collect();
            Ok(ReadOutput { version: state.version, pages })
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            commit.check_limits()?;
            let mut changed = Vec::new();
            let version = self.state().commit(commit, &mut changed)?;
            self.doorbells.ring(changed.iter().map(Vec::as_slice));
            Ok(version)
        })
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let rung = self.doorbells.listen(key.clone());
            let found = self.state().entries.get(&key).map(|(version, _)| *version);
            if found == seen {
                // The bell goes with the store at the latest.
                let _ = rung.await;
            }
            Ok(())
        })
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        Box::pin(async move { Ok(self.state().tokens.get(&token).copied()) })
    }
}

impl State {
    fn page(&self, read: &RangeRead) -> RangePage {
        let within = self.within(&read.range);
        let found: Box<dyn Iterator<Item = _>> =
            if read.reverse { Box::new(within.rev()) } else { Box::new(within) };
        let mut found = found.map(|(key, (version, value))| Entry {
            key: key.clone(),
            value: value.clone(),
            version: *version,
        });
        let entries = found.by_ref().take(read.limit).collect();
        RangePage { entries, more: found.next().is_some() }
    }

    /// The entries of a range; a range that ends before it starts is empty.
    fn within(&self, range: &KeyRange) -> btree_map::Range<'_, Vec<u8>, (Version, Vec<u8>)> {
        let start = range.start.as_slice();
        let end = range.end.as_slice().max(start);
        self.entries.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
    }

    /// Executes a commit, and tells which keys it touched.
    fn commit(
        &mut self,
        commit: Commit,
        changed: &mut Vec<Vec<u8>>,
    ) -> Result<Version, StoreError> {
        if let Some(version) = self.tokens.get(&commit.token) {
            return Ok(*version);
        }
        if let Some(failed) = commit.checks.iter().find(|check| !self.holds(check)) {
            return Err(StoreError::Conflict { key: failed.key().to_vec() });
        }
        self.version = self.version.next();
        for (position, mutation) in commit.mutations.into_iter().enumerate() {
            self.apply(position, mutation, changed);
        }
        self.remember(commit.token);
        Ok(self.version)
    }

    fn holds(&self, check: &Check) -> bool {
        let found = self.entries.get(check.key()).map(|(version, _)| *version);
        match check {
            Check::At { version, .. } => found == Some(*version),
            Check::Absent { .. } => found.is_none(),
        }
    }

    fn apply(&mut self, position: usize, mutation: Mutation, changed: &mut Vec<Vec<u8>>) {
        let version = self.version;
        match mutation {
            Mutation::Set { key, value } => {
                changed.push(key.clone());
                self.entries.insert(key, (version, value));
            }
            Mutation::Clear { key } => {
                self.entries.remove(&key);
                changed.push(key);
            }
            Mutation::ClearRange { range } => changed.extend(self.clear_range(&range)),
            Mutation::Add { key, delta } => {
                let before = self.entries.get(&key).map(|(_, value)| value.as_slice());
                let value = counter_after_add(before, delta).to_vec();
                changed.push(key.clone());
                self.entries.insert(key, (version, value));
            }
            Mutation::SetVersionstamped { prefix, value } => {
                let key = versionstamped_key(&prefix, version, position);
                self.entries.insert(key, (version, value));
            }
        }
    }

    fn clear_range(&mut self, range: &KeyRange) -> Vec<Vec<u8>> {
        let keys: Vec<Vec<u8>> = self.within(range).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.entries.remove(key);
        }
        keys
    }

    fn remember(&mut self, token: CommitToken) {
        self.tokens.insert(token, self.version);
        self.tokens_by_age.push_back(token);
        if self.tokens_by_age.len() > COMMIT_TOKENS_MAX {
            let oldest = self.tokens_by_age.pop_front().expect("invariant: it is not empty");
            self.tokens.remove(&oldest);
        }
    }
}
