//! Commits, and what became of them.
//!
//! One commit is one transaction: it reads the row of its token, reads what its checks are about,
//! writes the mutations and the row of its token. Every answer is conclusive:
//!
//! - *A version*: the commit itself, or its token's row, says so.
//! - `Conflict`: nothing was sent, or what was sent and may still be on the way will be refused: a
//!   check failed because its key changed after that attempt had read it. An attempt that landed
//!   before would be seen by its token.
//! - `Unknown`: an attempt was sent, and nobody said what became of it.
//! - Any other error: no attempt was sent, or each was refused.
//! - `outcome` answers `None` only after it has *written* over the token: an attempt on the way has
//!   read that row, so it is refused when it lands.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    ops::{Bound, ControlFlow},
    sync::atomic::Ordering,
};

use foundationdb::{
    RangeOption, Transaction,
    options::{ConflictRangeType, MutationType, StreamingMode},
};
use futures_util::future::{try_join, try_join_all};
use memcube_actors::storage::{
    Check, Commit, CommitToken, Mutation, StoreError, counter_after_add,
};
use memcube_schemas::Version;

use super::{
    ADD_LOCKS, Inner,
    attempts::{Attempts, Decision, Done, Obstacle},
    layout::{self, CHUNK_BYTES, INLINE_BYTES_MAX},
};

/// Bytes that a transaction affects at the most; FoundationDB refuses 10,000,000.
const COMMIT_BYTES_MAX: usize = 9_000_000;
/// Commits of a handle between two sweeps.
const SWEEP_EVERY: u64 = 512;
/// Tokens that one sweep removes.
const SWEEP_TOKENS: usize = 1_000;
/// How long tokens are kept: an hour, at the million versions a second that FoundationDB makes. A
/// recovery of the cluster takes 100 s off that, which leaves far more than any caller waits.
const TOKEN_VERSIONS: u64 = 3_600_000_000;

/// What the counters of a commit hold while its mutations are applied one after the other.
type Counters<'a> = BTreeMap<&'a [u8], Option<Vec<u8>>>;

impl Inner {
    pub(super) async fn commit(&self, commit: Commit) -> Result<Version, StoreError> {
        commit.check_limits()?;
        check_size(&self.layout, &commit)?;
        let _place = self.places.try_acquire().map_err(|_| StoreError::Overloaded)?;
        let mut locks = Vec::new();
        for lock in locks_of(&commit.mutations) {
            locks.push(self.add_locks[lock].lock().await);
        }
        let mut attempts = Attempts::begin(&self.database, &self.cluster_file)?;
        loop {
            let attempt = self.attempt(attempts.transaction(), &commit, self.is_looking(&attempts));
            let attempt = attempts.within(attempt).await;
            match attempts.settle(attempt).await {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Ok(Done::Answer(version) | Done::Committed(Some(version)))) => {
                    return Ok(version);
                }
                // Every attempt writes its token, so each has a version.
                ControlFlow::Break(Ok(Done::Committed(None))) => return Err(StoreError::Unknown),
                ControlFlow::Break(Err(failure)) => {
                    // A conflict is conclusive whatever was sent before.
                    let is_conflict = matches!(failure.error, StoreError::Conflict { .. });
                    return Err(if failure.may_have_committed && !is_conflict {
                        StoreError::Unknown
                    } else {
                        failure.error
                    });
                }
            }
        }
    }

    /// Whether an attempt looks at the row of its token: always, but for a planted bug.
    #[cfg(not(feature = "defects"))]
    #[expect(clippy::unused_self, reason = "the planted bug is a setting of the handle")]
    const fn is_looking(&self, _: &Attempts<'_>) -> bool {
        true
    }

    #[cfg(feature = "defects")]
    const fn is_looking(&self, attempts: &Attempts<'_>) -> bool {
        !self.trusts_maybe_committed || attempts.last_may_have_committed()
    }

    async fn attempt(
        &self,
        transaction: &Transaction,
        commit: &Commit,
        looks: bool,
    ) -> Result<Decision<Version>, Obstacle> {
        let token = self.layout.token(commit.token.0);
        let stamp = async { if looks { transaction.get(&token, false).await } else { Ok(None) } };
        let rows = commit.checks.iter().map(|check| self.layout.row(check.key()));
        let rows = try_join_all(rows.map(|row| transaction.get(&row, false)));
        let (stamp, rows) = try_join(stamp, rows).await?;
        if let Some(stamp) = stamp {
            return Ok(Decision::Answer(layout::version_of_stamp(&stamp)?));
        }
        for (check, row) in commit.checks.iter().zip(&rows) {
            let row = row.as_ref().map(|row| layout::row(check.key(), row)).transpose()?;
            if !holds(check, row.map(|row| row.version)) {
                return Err(StoreError::Conflict { key: check.key().to_vec() }.into());
            }
        }
        let counters = self.counters(transaction, &commit.mutations).await?;
        self.write(transaction, &commit.mutations, counters);
        transaction.atomic_op(
            &token,
            &layout::stamped_token(),
            MutationType::SetVersionstampedValue,
        );
        let age = self.layout.stamped_age(commit.token.0);
        let token = commit.token.0.to_be_bytes();
        transaction.atomic_op(&age, &token, MutationType::SetVersionstampedKey);
        Ok(Decision::Commit)
    }

    /// Reads the counters that are added to. The version of a counter's row changes with it, so
    /// FoundationDB's own addition would not do.
    async fn counters<'a>(
        &self,
        transaction: &Transaction,
        mutations: &'a [Mutation],
    ) -> Result<Counters<'a>, Obstacle> {
        let mut counters = Counters::new();
        for key in added_to(mutations) {
            let entry = self.entry(transaction, key, false).await?;
            counters.insert(key, entry.map(|entry| entry.value));
        }
        Ok(counters)
    }

    /// Hands the mutations to the transaction, in order. Nothing is read after this: FoundationDB
    /// refuses to show what it has yet to stamp.
    fn write<'a>(
        &self,
        transaction: &Transaction,
        mutations: &'a [Mutation],
        mut counters: Counters<'a>,
    ) {
        for (position, mutation) in mutations.iter().enumerate() {
            match mutation {
                Mutation::Set { key, value } => {
                    self.set(transaction, key, value);
                    if let Some(counter) = counters.get_mut(key.as_slice()) {
                        *counter = Some(value.clone());
                    }
                }
                Mutation::Clear { key } => {
                    transaction.clear(&self.layout.row(key));
                    self.clear_chunks(transaction, key);
                    if let Some(counter) = counters.get_mut(key.as_slice()) {
                        *counter = None;
                    }
                }
                Mutation::ClearRange { range } if range.start < range.end => {
                    let rows = |key: &[u8]| self.layout.row(key);
                    transaction.clear_range(&rows(&range.start), &rows(&range.end));
                    let chunks = |key: &[u8]| self.layout.chunks_from(key);
                    transaction.clear_range(&chunks(&range.start), &chunks(&range.end));
                    let bounds =
                        (Bound::Included(&range.start[..]), Bound::Excluded(&range.end[..]));
                    counters.range_mut::<[u8], _>(bounds).for_each(|(_, counter)| *counter = None);
                }
                Mutation::ClearRange { .. } => {}
                Mutation::Add { key, delta } => {
                    let counter = counters.get_mut(key.as_slice()).expect("invariant: it was read");
                    let value = counter_after_add(counter.as_deref(), *delta);
                    *counter = Some(value.to_vec());
                    self.set(transaction, key, &value);
                }
                Mutation::SetVersionstamped { prefix, value } => {
                    let position =
                        u16::try_from(position).expect("invariant: mutations are bounded");
                    let key = self.layout.stamped_row(prefix, position);
                    let value = layout::value_of_stamped_row(value);
                    transaction.atomic_op(&key, &value, MutationType::SetVersionstampedKey);
                }
            }
        }
    }

    fn set(&self, transaction: &Transaction, key: &[u8], value: &[u8]) {
        self.clear_chunks(transaction, key);
        if value.len() > INLINE_BYTES_MAX {
            for (index, chunk) in (0_u16..).zip(value.chunks(CHUNK_BYTES)) {
                transaction.set(&self.layout.chunk(key, index), chunk);
            }
        }
        let row = layout::stamped_value(value);
        transaction.atomic_op(&self.layout.row(key), &row, MutationType::SetVersionstampedValue);
    }

    /// What the key held before may lie in chunks; to look would cost more than to clear.
    fn clear_chunks(&self, transaction: &Transaction, key: &[u8]) {
        let (from, after) = (self.layout.chunks_from(key), self.layout.chunks_after(key));
        transaction.clear_range(&from, &after);
    }

    pub(super) async fn outcome(&self, token: CommitToken) -> Result<Option<Version>, StoreError> {
        let row = self.layout.token(token.0);
        let mut attempts = Attempts::begin(&self.database, &self.cluster_file)?;
        loop {
            let attempt = attempts.within(fence(attempts.transaction(), &row)).await;
            match attempts.settle(attempt).await {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Ok(Done::Answer(version))) => return Ok(Some(version)),
                ControlFlow::Break(Ok(Done::Committed(_))) => return Ok(None),
                ControlFlow::Break(Err(failure)) => return Err(failure.error),
            }
        }
    }

    /// Whether it is this commit's turn to sweep.
    pub(super) fn is_sweep_due(&self) -> Option<u64> {
        let commits = self.commits.fetch_add(1, Ordering::Relaxed) + 1;
        commits.is_multiple_of(SWEEP_EVERY).then_some(commits / SWEEP_EVERY)
    }

    /// Removes old tokens. Each sweep looks at another part of them.
    pub(super) async fn sweep(&self, round: u64) -> Result<(), StoreError> {
        let mut attempts = Attempts::begin(&self.database, &self.cluster_file)?;
        loop {
            let attempt = attempts.within(self.attempt_sweep(attempts.transaction(), round)).await;
            match attempts.settle(attempt).await {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Ok(_)) => return Ok(()),
                ControlFlow::Break(Err(failure)) => return Err(failure.error),
            }
        }
    }

    async fn attempt_sweep(
        &self,
        transaction: &Transaction,
        round: u64,
    ) -> Result<Decision<()>, Obstacle> {
        let now = u64::try_from(transaction.get_read_version().await?).unwrap_or(0);
        let (from, before) = self.layout.ages_before(round, now.saturating_sub(TOKEN_VERSIONS));
        let old = RangeOption {
            limit: Some(SWEEP_TOKENS),
            mode: StreamingMode::WantAll,
            ..RangeOption::from((&from[..], &before[..]))
        };
        let old = transaction.get_range(&old, 1, true).await?;
        let Some(last) = old.last() else { return Ok(Decision::Answer(())) };
        for age in &old {
            let token = <[u8; 16]>::try_from(age.value());
            let token = token.map_err(|_| layout::corrupt("an age without a token".to_owned()))?;
            transaction.clear(&self.layout.token(u128::from_be_bytes(token)));
        }
        transaction.clear_range(&from, &[last.key(), &[0]].concat());
        Ok(Decision::Commit)
    }
}

/// Looks a token up, and makes sure that what was not seen will not come.
async fn fence(transaction: &Transaction, row: &[u8]) -> Result<Decision<Version>, Obstacle> {
    if let Some(stamp) = transaction.get(row, false).await? {
        return Ok(Decision::Answer(layout::version_of_stamp(&stamp)?));
    }
    let after = [row, &[0]].concat();
    transaction.add_conflict_range(row, &after, ConflictRangeType::Write)?;
    Ok(Decision::Commit)
}

fn holds(check: &Check, found: Option<Version>) -> bool {
    match check {
        Check::At { version, .. } => found == Some(*version),
        Check::Absent { .. } => found.is_none(),
    }
}

fn added_to(mutations: &[Mutation]) -> BTreeSet<&[u8]> {
    mutations.iter().filter_map(counter).collect()
}

fn counter(mutation: &Mutation) -> Option<&[u8]> {
    match mutation {
        Mutation::Add { key, .. } => Some(key),
        Mutation::Set { .. }
        | Mutation::Clear { .. }
        | Mutation::ClearRange { .. }
        | Mutation::SetVersionstamped { .. } => None,
    }
}

/// Additions to one counter conflict with each other; those of one handle wait for each other
/// instead. The locks come in order, so that nobody waits in a circle.
fn locks_of(mutations: &[Mutation]) -> BTreeSet<usize> {
    let lock = |key: &[u8]| {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        usize::try_from(hasher.finish() % ADD_LOCKS as u64).unwrap_or(0)
    };
    added_to(mutations).into_iter().map(lock).collect()
}

/// Refuses what FoundationDB would refuse, before anything is sent: it counts the bytes of keys and
/// values written and of the ranges that may conflict.
fn check_size(layout: &layout::Layout, commit: &Commit) -> Result<(), StoreError> {
    // Of what FoundationDB adds to every mutation and every range.
    const OVERHEAD: usize = 32;
    let root = layout.everything().0.len() + 2;
    // A key is counted with its mutation and with both ends of its range; the chunks of the key
    // have two keys in each.
    let key = |key: &[u8]| 3 * (root + key.len()) + 4 * (root + key.len() + 4) + 2 * OVERHEAD;
    let checks: usize =
        commit.checks.iter().map(|check| 2 * (root + check.key().len()) + OVERHEAD).sum();
    let mutation = |mutation: &Mutation| match mutation {
        Mutation::Set { key: name, value } => {
            let chunks = value.len() / CHUNK_BYTES + 1;
            key(name) + value.len() + chunks * (3 * (root + name.len()) + OVERHEAD)
        }
        Mutation::Clear { key: name } | Mutation::Add { key: name, .. } => 2 * key(name),
        Mutation::ClearRange { range } => key(&range.start) + key(&range.end),
        Mutation::SetVersionstamped { prefix, value } => key(prefix) + value.len() + OVERHEAD,
    };
    let bytes = checks + commit.mutations.iter().map(mutation).sum::<usize>();
    if bytes > COMMIT_BYTES_MAX {
        let reason = format!(
            "a commit that affects {bytes} bytes, the limit is {COMMIT_BYTES_MAX}; commit less at \
             a time"
        );
        return Err(StoreError::TooLarge { reason });
    }
    Ok(())
}
