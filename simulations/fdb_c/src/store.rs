//! The servers of one cluster in one value: versions, rows, conflict resolution, watches.

use std::collections::BTreeMap;

use crate::atomic;
use crate::conflicts::{KeyRange, WriteLog};
use crate::errors::{Code, NOT_COMMITTED, TRANSACTION_TOO_OLD};
use crate::future::Promise;
use crate::limits::WINDOW_VERSIONS;
use crate::mvcc::{Bytes, Mvcc};
use crate::overlay::Mutation;
use crate::persist::CommitLog;

/// One change of a commit as it was applied, versionstamps filled in. The operation is a code of
/// `FDBMutationType`, 0 for a set, 1 for a clear from `key` to `value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedMutation {
    /// What was done.
    pub op: u32,
    /// To which key.
    pub key: Vec<u8>,
    /// With which value, operand, or end of the range.
    pub value: Vec<u8>,
}

/// One commit, as it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The version of the commit.
    pub version: u64,
    /// Its place among the commits of this version.
    pub batch: u16,
    /// Its changes in their order.
    pub mutations: Vec<AppliedMutation>,
}

/// What a client sends to commit.
#[derive(Debug, Clone)]
pub(crate) struct CommitRequest {
    pub(crate) read_version: u64,
    pub(crate) reads: Vec<KeyRange>,
    pub(crate) writes: Vec<KeyRange>,
    pub(crate) mutations: Vec<Mutation>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) version: u64,
    pub(crate) batch: u16,
}

/// Why a commit was refused, and by which of its reads.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    pub(crate) conflicting: Vec<KeyRange>,
}

impl From<Code> for Refused {
    fn from(code: Code) -> Refused {
        Refused { code, conflicting: Vec::new() }
    }
}

/// A watch that a committed transaction left with the servers.
pub(crate) struct ArmedWatch {
    /// What the transaction saw.
    pub(crate) baseline: Option<Bytes>,
    pub(crate) promise: Promise,
    pub(crate) database: u64,
}

/// Told what became of a commit.
pub(crate) type Respond =
    Box<dyn FnOnce(&mut crate::world::World, Result<Committed, Refused>) + Send>;

pub(crate) struct QueuedCommit {
    pub(crate) request: CommitRequest,
    pub(crate) respond: Respond,
    /// The fate fault injection gave it.
    pub(crate) fate: Option<Code>,
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) rows: Mvcc,
    log: WriteLog,
    /// The greatest version given to a commit or to a reader.
    last: u64,
    /// How far the versions run ahead of the clock.
    ahead: u64,
    watches: BTreeMap<Bytes, Vec<ArmedWatch>>,
    /// Watches armed since they were last tidied, with those that were left then.
    armed: usize,
    armed_tidy: usize,
    pub(crate) queue: Vec<QueuedCommit>,
    pub(crate) is_closing: bool,
    /// Grows with every recovery: what was sent before one does not arrive after it.
    pub(crate) generation: u64,
    pub(crate) applied: Vec<Applied>,
    pub(crate) records_applied: bool,
    pub(crate) disk: Option<CommitLog>,
    /// Nobody can use the store: it could not be opened, or its disk failed.
    pub(crate) broken: Option<Code>,
}

impl Store {
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The version of this moment. A commit after it gets a greater one.
    pub(crate) fn current(&mut self, now_us: u64) -> u64 {
        self.advance(self.last.max(now_us + self.ahead));
        self.last
    }

    fn next_version(&mut self, now_us: u64) -> u64 {
        self.advance((self.last + 1).max(now_us + self.ahead));
        self.last
    }

    fn advance(&mut self, version: u64) {
        self.last = version;
        let oldest = self.oldest();
        self.rows.forget_before(oldest);
        self.log.forget_before(oldest);
    }

    /// The oldest version that can still be read.
    pub(crate) fn oldest(&self) -> u64 {
        self.last.saturating_sub(WINDOW_VERSIONS)
    }

    /// Moves the versions ahead, as a recovery does.
    pub(crate) fn skip_versions(&mut self, versions: u64) {
        self.ahead += versions;
        self.advance(self.last + versions);
    }

    /// Takes up the versions where the log of an earlier process left them.
    pub(crate) fn resume_at(&mut self, version: u64) {
        self.last = self.last.max(version);
    }

    /// Decides the queued commits in their order and applies what has no conflict. All share one
    /// version. Gives every outcome, and the keys and ranges that changed.
    pub(crate) fn commit_batch(
        &mut self,
        now_us: u64,
        batch: &[QueuedCommit],
    ) -> (Vec<Result<Committed, Refused>>, Vec<KeyRange>) {
        let version = self.next_version(now_us);
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut changed = Vec::new();
        for (place, queued) in batch.iter().enumerate() {
            let outcome = match queued.fate {
                Some(code) => Err(code.into()),
                None => self.resolve(&queued.request),
            };
            outcomes.push(outcome.map(|()| {
                // A batch is far smaller than this; the stamp has no room for more.
                let place = u16::try_from(place).unwrap_or(u16::MAX);
                self.apply(version, place, &queued.request, &mut changed);
                Committed { version, batch: place }
            }));
        }
        (outcomes, changed)
    }

    fn resolve(&self, request: &CommitRequest) -> Result<(), Refused> {
        if request.read_version < self.oldest() {
            return Err(TRANSACTION_TOO_OLD.into());
        }
        let is_written = |range: &&KeyRange| self.log.written_after(range, request.read_version);
        let conflicting: Vec<KeyRange> = request.reads.iter().filter(is_written).cloned().collect();
        if conflicting.is_empty() {
            return Ok(());
        }
        Err(Refused { code: NOT_COMMITTED, conflicting })
    }

    fn apply(
        &mut self,
        version: u64,
        batch: u16,
        request: &CommitRequest,
        changed: &mut Vec<KeyRange>,
    ) {
        for range in &request.writes {
            self.log.note(range, version);
        }
        let mut mutations = Vec::with_capacity(request.mutations.len());
        for mutation in &request.mutations {
            let is_stamped_key = matches!(mutation, Mutation::StampedKey { .. });
            let mutation = fill_in(mutation.clone(), version, batch);
            let range = self.write(version, &mutation);
            // Its client could not name the key, so the conflict is added here.
            if is_stamped_key {
                self.log.note(&range, version);
            }
            changed.push(range);
            mutations.push(mutation);
        }
        let applied = || mutations.iter().map(AppliedMutation::from).collect();
        if self.records_applied {
            self.applied.push(Applied { version, batch, mutations: applied() });
        }
        if let Some(disk) = &mut self.disk {
            disk.append(version, batch, &mutations);
        }
    }

    /// Writes one filled-in mutation; gives the keys it touched.
    pub(crate) fn write(&mut self, version: u64, mutation: &Mutation) -> KeyRange {
        match mutation {
            Mutation::Set { key, value } => {
                self.rows.write(version, key, Some(value.clone()));
                KeyRange::single(key)
            }
            Mutation::Clear(range) => {
                self.rows.clear(version, &range.begin, &range.end);
                range.clone()
            }
            Mutation::Atomic { op, key, operand } => {
                let value = op.apply(self.rows.get(key, version), operand);
                self.rows.write(version, key, value);
                KeyRange::single(key)
            }
            // Filled in before: these never get here.
            Mutation::StampedKey { template: key, .. } | Mutation::StampedValue { key, .. } => {
                KeyRange { begin: key.clone(), end: key.clone() }
            }
        }
    }

    /// Takes the watches out whose key now differs from what their transaction saw.
    pub(crate) fn fired(&mut self, changed: &[KeyRange]) -> Vec<ArmedWatch> {
        let mut fired = Vec::new();
        if self.watches.is_empty() {
            return fired;
        }
        for range in changed {
            let keys: Vec<Bytes> = self
                .watches
                .range(range.begin.clone()..range.end.clone())
                .map(|(key, _)| key.clone())
                .collect();
            for key in keys {
                let value = self.rows.get(&key, self.last).cloned();
                let Some(armed) = self.watches.remove(&key) else { continue };
                let (differs, same): (Vec<_>, Vec<_>) =
                    armed.into_iter().partition(|watch| watch.baseline != value);
                fired.extend(differs);
                if !same.is_empty() {
                    self.watches.insert(key, same);
                }
            }
        }
        fired
    }

    #[cfg(test)]
    pub(crate) fn armed(&self) -> usize {
        self.watches.values().map(Vec::len).sum()
    }

    pub(crate) fn arm(&mut self, key: Bytes, watch: ArmedWatch) {
        self.watches.entry(key).or_default().push(watch);
        self.armed += 1;
        // Those that nobody waits for any more are dropped once they may be half of all.
        if self.armed > 64 && self.armed > 2 * self.armed_tidy {
            self.watches.retain(|_, armed| {
                armed.retain(|watch| watch.promise.reply().is_none());
                !armed.is_empty()
            });
            self.armed = self.watches.values().map(Vec::len).sum();
            self.armed_tidy = self.armed;
        }
    }
}

/// The mutation with its versionstamp in place.
fn fill_in(mutation: Mutation, version: u64, batch: u16) -> Mutation {
    let stamp = atomic::stamp(version, batch);
    match mutation {
        Mutation::StampedKey { template, value } => {
            Mutation::Set { key: atomic::stamped(&template, stamp), value }
        }
        Mutation::StampedValue { key, template } => {
            Mutation::Set { key, value: atomic::stamped(&template, stamp) }
        }
        Mutation::Set { .. } | Mutation::Clear(_) | Mutation::Atomic { .. } => mutation,
    }
}

impl From<&Mutation> for AppliedMutation {
    fn from(mutation: &Mutation) -> AppliedMutation {
        let (op, key, value) = match mutation {
            Mutation::Set { key, value } => (0, key, value),
            Mutation::Clear(range) => (1, &range.begin, &range.end),
            Mutation::Atomic { op, key, operand } => (op.code(), key, operand),
            Mutation::StampedKey { template, value } => (14, template, value),
            Mutation::StampedValue { key, template } => (15, key, template),
        };
        AppliedMutation { op, key: key.to_vec(), value: value.to_vec() }
    }
}
