//! What a group of commits does to the store: a pure overlay over one snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use fjall::Snapshot;
use memcube_actors::storage::{
    Check, Commit, CommitToken, Mutation, StoreError, counter_after_add, versionstamped_key,
};
use memcube_schemas::{Version, keys::KeyRange};

use super::engine::{Engine, Stored};

/// Keys and what they become; `None` means removed.
type Changes = BTreeMap<Vec<u8>, Option<Stored>>;

/// Resolves the commits of one group, each on top of those before it.
pub(super) struct Resolver<'a> {
    engine: &'a Engine,
    base: &'a Snapshot,
    version: Version,
    changes: Changes,
    tokens: Vec<CommitToken>,
    versions: BTreeMap<CommitToken, Version>,
}

/// What a group changes.
pub(super) struct Resolved {
    pub(super) changes: Changes,
    pub(super) tokens: Vec<CommitToken>,
}

impl<'a> Resolver<'a> {
    /// Starts a group on a snapshot of the store as of `version`.
    pub(super) fn new(engine: &'a Engine, base: &'a Snapshot, version: Version) -> Self {
        Self {
            engine,
            base,
            version,
            changes: Changes::new(),
            tokens: Vec::new(),
            versions: BTreeMap::new(),
        }
    }

    /// The version that a commit with this token has in this group.
    pub(super) fn find(&self, token: CommitToken) -> Option<Version> {
        self.versions.get(&token).copied()
    }

    /// Adds a commit to the group, or leaves the group as it was.
    pub(super) fn add(&mut self, commit: Commit) -> Result<Version, StoreError> {
        for check in &commit.checks {
            if !self.holds(check)? {
                return Err(StoreError::Conflict { key: check.key().to_vec() });
            }
        }
        let version = self.version.next();
        let mut staged = Changes::new();
        for (position, mutation) in commit.mutations.into_iter().enumerate() {
            self.stage(&mut staged, version, position, mutation)?;
        }
        self.changes.extend(staged);
        self.tokens.push(commit.token);
        self.versions.insert(commit.token, version);
        self.version = version;
        Ok(version)
    }

    /// Ends the group.
    pub(super) fn finish(self) -> Resolved {
        Resolved { changes: self.changes, tokens: self.tokens }
    }

    fn holds(&self, check: &Check) -> Result<bool, StoreError> {
        let found = self.get(&Changes::new(), check.key())?.map(|stored| stored.version);
        Ok(match check {
            Check::At { version, .. } => found == Some(*version),
            Check::Absent { .. } => found.is_none(),
        })
    }

    /// A key as the commit being resolved sees it.
    fn get(&self, staged: &Changes, key: &[u8]) -> Result<Option<Stored>, StoreError> {
        match staged.get(key).or_else(|| self.changes.get(key)) {
            Some(changed) => Ok(changed.clone()),
            None => self.engine.get(self.base, key),
        }
    }

    fn stage(
        &self,
        staged: &mut Changes,
        version: Version,
        position: usize,
        mutation: Mutation,
    ) -> Result<(), StoreError> {
        match mutation {
            Mutation::Set { key, value } => {
                staged.insert(key, Some(Stored { version, value }));
            }
            Mutation::Clear { key } => {
                staged.insert(key, None);
            }
            Mutation::ClearRange { range } => {
                for key in self.keys(staged, &range)? {
                    staged.insert(key, None);
                }
            }
            Mutation::Add { key, delta } => {
                let before = self.get(staged, &key)?;
                let before = before.as_ref().map(|stored| stored.value.as_slice());
                let value = counter_after_add(before, delta).to_vec();
                staged.insert(key, Some(Stored { version, value }));
            }
            Mutation::SetVersionstamped { prefix, value } => {
                let key = versionstamped_key(&prefix, version, position);
                staged.insert(key, Some(Stored { version, value }));
            }
        }
        Ok(())
    }

    /// Every key of a range that may have a value.
    fn keys(&self, staged: &Changes, range: &KeyRange) -> Result<BTreeSet<Vec<u8>>, StoreError> {
        if range.start >= range.end {
            return Ok(BTreeSet::new());
        }
        let bounds =
            (Bound::Included(range.start.as_slice()), Bound::Excluded(range.end.as_slice()));
        let mut keys: BTreeSet<Vec<u8>> = self.engine.keys(self.base, range)?.into_iter().collect();
        for changes in [&self.changes, staged] {
            keys.extend(changes.range::<[u8], _>(bounds).map(|(key, _)| key.clone()));
        }
        Ok(keys)
    }
}
