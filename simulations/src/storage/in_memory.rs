//! The state store in RAM: it executes commits atomically, behind everything that can go wrong on
//! the way to it and back.
//!
//! Invariant: the port's contract holds whatever strikes. A commit that was answered with
//! `Conflict` never takes effect, nor does one for whose token `outcome` answered `None`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use memcube_actors::storage::{
    Check, Commit, CommitToken, InMemoryStore, Mutation, RangeRead, ReadOutput, SharedStore,
    StateStore, StoreError,
};
use memcube_schemas::{NodeId, Version};

use crate::{
    clock::sleep_ms,
    conditions::{Conditions, Occasion, Place, Touches},
    dice,
    evidence::{CommitRecord, Row},
    network::node_name,
    plan::FaultClass,
};

use super::{Disk, IncarnationOf, RECOVERY_VERSIONS, Sender, first_key, unavailable};

/// How long a read takes.
const READ_MS: (u64, u64) = (0, 3);
/// How long a commit takes to the store.
const COMMIT_MS: (u64, u64) = (1, 6);
/// How long a commit's answer takes.
const ANSWER_MS: (u64, u64) = (0, 3);
/// How long a slow call takes to the store.
const SLOW_MS: (u64, u64) = (100, 6_000);
/// How long it takes until a caller knows that it will hear nothing of a commit.
const SILENCE_MS: (u64, u64) = (0, 1_000);
/// How long after its answer was lost a zombie takes effect.
const ZOMBIE_MS: (u64, u64) = (500, 8_000);
/// How long a call to a store out of reach hangs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The disk of the simulated world. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub(super) struct InMemoryDisk(Arc<Shared>);

struct Shared {
    conditions: Conditions,
    disk: InMemoryStore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often each node touched each key.
    touches: BTreeMap<u32, Touches>,
    /// Commits that will take effect later.
    zombies: BTreeMap<CommitToken, Zombie>,
    /// What a commit was about whose outcome its sender does not know.
    unknown: BTreeMap<CommitToken, u64>,
    commits: Vec<CommitRecord>,
    /// Recoveries whose jump of the version was made.
    jumps: u64,
}

/// A commit that was on the wire when its sender gave it up.
#[derive(Clone)]
struct Zombie {
    commit: Commit,
    sender: Sender,
    /// Recoveries before it was sent: one more, and it is lost.
    recoveries: u64,
    /// The store's version when it was sent.
    version: Version,
}

impl InMemoryDisk {
    /// An empty disk.
    pub(super) fn new(conditions: Conditions) -> Self {
        let disk = InMemoryStore::new();
        Self(Arc::new(Shared { conditions, disk, state: Mutex::default() }))
    }

    /// Leaves out versions for every recovery that is over, before anybody can see the version.
    fn make_jumps(&self) {
        let (_, over) = self.0.conditions.recoveries();
        let mut state = self.state();
        let jumps = over - state.jumps;
        if jumps > 0 {
            state.jumps = over;
            drop(state);
            self.0.disk.skip_versions(jumps * RECOVERY_VERSIONS);
        }
    }

    /// Executes a commit, and records it if it took effect just now.
    async fn execute(&self, commit: Commit, sender: Sender) -> Result<Version, StoreError> {
        self.make_jumps();
        let conditions = &self.0.conditions;
        let before = self.0.disk.version();
        let token = commit.token;
        let (checks, mutations) = (commit.checks.clone(), commit.mutations.clone());
        let result = self.0.disk.commit(commit).await;
        let who = sender.node.as_str();
        match &result {
            // A token that the store knows already has no second effect.
            Ok(version) if *version <= before => {
                conditions.note(who, "commit again", format_args!("v{version}"));
            }
            Ok(version) => {
                let size = format_args!("v{version} {}c{}m", checks.len(), mutations.len());
                conditions.note(who, "commit", size);
                let Sender { node, incarnation } = sender;
                let (version, at_ms) = (*version, conditions.now_ms());
                let record = CommitRecord {
                    version,
                    place: 0,
                    at_ms,
                    node,
                    incarnation,
                    token,
                    checks,
                    mutations,
                };
                self.state().commits.push(record);
            }
            Err(error) => {
                conditions.note(who, "no commit", error);
                // It was refused once, so its late twin is refused as well.
                self.state().zombies.remove(&token);
            }
        }
        result
    }

    /// Lets a commit take effect later, whatever becomes of its sender.
    #[expect(clippy::disallowed_methods, reason = "a commit on the wire belongs to no node")]
    fn haunt(&self, zombie: Zombie, after_ms: u64) {
        let token = zombie.commit.token;
        self.state().zombies.insert(token, zombie);
        let store = self.clone();
        drop(tokio::spawn(async move {
            sleep_ms(after_ms).await;
            let zombie = store.state().zombies.remove(&token);
            if let Some(zombie) = zombie {
                store.raise(zombie).await;
            }
        }));
    }

    /// A commit arrives late.
    async fn raise(&self, zombie: Zombie) {
        let conditions = &self.0.conditions;
        let is_lost = zombie.recoveries != conditions.recoveries().0
            || conditions.is_store_full()
            || self.is_outdated(&zombie);
        let what = if is_lost { "zombie is lost" } else { "zombie lands" };
        conditions.note(zombie.sender.node.as_str(), what, format_args!("v{}", zombie.version));
        if !is_lost {
            // Nobody waits for the answer.
            let _ = self.execute(zombie.commit, zombie.sender).await;
        }
    }

    /// Whether a key that must be absent was there since the commit was sent. A real store judges a
    /// commit by the version at which its checks were read, so it would refuse this one.
    fn is_outdated(&self, zombie: &Zombie) -> bool {
        let state = self.state();
        let later = state.commits.iter().rev().take_while(|made| made.version > zombie.version);
        let written: Vec<&Mutation> = later.flat_map(|made| &made.mutations).collect();
        zombie.commit.checks.iter().any(|check| match check {
            Check::Absent { key } => written.iter().any(|mutation| writes(mutation, key)),
            Check::At { .. } => false,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("invariant: nothing panics while it holds the store")
    }
}

impl Disk for InMemoryDisk {
    fn handle(&self, node: u32, life: u64, incarnation: IncarnationOf) -> SharedStore {
        let name = NodeId::new(node_name(node)).expect("invariant: names of nodes are valid");
        let number = self.0.conditions.open_handle(node);
        Arc::new(Handle { store: self.clone(), node, life, number, name, incarnation })
    }

    fn commits(&self) -> Vec<CommitRecord> {
        std::mem::take(&mut self.state().commits)
    }

    fn rows(&self) -> BoxFuture<'_, BTreeMap<Vec<u8>, Row>> {
        let entries = self.0.disk.entries().into_iter();
        let rows =
            entries.map(|entry| (entry.key, Row { version: entry.version, value: entry.value }));
        Box::pin(std::future::ready(rows.collect()))
    }

    fn version(&self) -> Version {
        self.make_jumps();
        self.0.disk.version()
    }

    fn late_commits(&self) -> usize {
        self.state().zombies.len()
    }
}

/// Whether a mutation may give a key a value.
fn writes(mutation: &Mutation, key: &[u8]) -> bool {
    match mutation {
        Mutation::Set { key: written, .. } | Mutation::Add { key: written, .. } => written == key,
        Mutation::SetVersionstamped { prefix, .. } => key.starts_with(prefix),
        Mutation::Clear { .. } | Mutation::ClearRange { .. } => false,
    }
}

/// The store as one life of a node sees it.
struct Handle {
    store: InMemoryDisk,
    node: u32,
    life: u64,
    number: u64,
    name: NodeId,
    incarnation: IncarnationOf,
}

impl Handle {
    fn conditions(&self) -> &Conditions {
        &self.store.0.conditions
    }

    /// Waits until the node runs, and refuses if this handle is stale.
    async fn start(&self) -> Result<(), StoreError> {
        self.conditions().running(self.node, self.life).await;
        if self.conditions().is_stale(self.node, self.number) {
            return Err(unavailable("this handle on the state store is stale; open it anew"));
        }
        Ok(())
    }

    /// The next occasion of such calls about this key.
    fn occasion(&self, what: &str, key: u64) -> Occasion {
        let mut state = self.store.state();
        let touches = state.touches.entry(self.node).or_default();
        let id = touches.next(key ^ dice::hash(what.as_bytes()));
        self.conditions().occasion(Place::Store { node: self.node }, id)
    }

    /// The way to the store.
    async fn travel(&self, occasion: Occasion, usual_ms: (u64, u64)) {
        let is_slow = self.conditions().strikes(FaultClass::StoreSlow, occasion);
        let (low, high) = if is_slow { SLOW_MS } else { usual_ms };
        sleep_ms(occasion.between("way", low, high)).await;
    }

    /// Waits while the node is cut off from the store, though not for ever. Tells whether it is not
    /// any more. Never ends for a life that is over.
    async fn arrives(&self) -> bool {
        let conditions = self.conditions();
        let reached = conditions.store_reached(self.node);
        let has_arrived = tokio::time::timeout(TIMEOUT, reached).await.is_ok();
        if !conditions.is_current(self.node, self.life) {
            std::future::pending::<()>().await;
        }
        has_arrived
    }

    /// Brings a question to the store.
    async fn ask(&self, what: &str, key: u64) -> Result<Occasion, StoreError> {
        self.start().await?;
        let occasion = self.occasion(what, key);
        self.travel(occasion, READ_MS).await;
        if !self.arrives().await {
            return Err(unavailable("the state store did not answer in time"));
        }
        if self.conditions().is_store_down() {
            return Err(unavailable("the state store recovers from a failure"));
        }
        if self.conditions().strikes(FaultClass::StoreUnavailable, occasion) {
            return Err(unavailable("the state store is not reachable"));
        }
        self.store.make_jumps();
        Ok(occasion)
    }

    async fn read_now(&self, ranges: Vec<RangeRead>) -> Result<ReadOutput, StoreError> {
        let key = ranges.first().map_or(0, |read| dice::hash(&read.range.start));
        let result = match self.ask("read", key).await {
            Ok(_) => self.store.0.disk.read(ranges).await,
            Err(error) => Err(error),
        };
        self.conditions().running(self.node, self.life).await;
        match &result {
            Ok(output) => {
                let entries: usize = output.pages.iter().map(|page| page.entries.len()).sum();
                self.note("read", format_args!("v{} {entries}", output.version));
            }
            Err(error) => self.note("no read", error),
        }
        result
    }

    async fn commit_now(&self, commit: Commit, key: u64) -> Result<Version, StoreError> {
        self.start().await?;
        let sender = Sender { node: self.name.clone(), incarnation: (self.incarnation)() };
        let (recoveries, _) = self.conditions().recoveries();
        let occasion = self.occasion("commit", key);
        self.travel(occasion, COMMIT_MS).await;
        let result = if self.arrives().await && self.conditions().recoveries().0 == recoveries {
            self.execute(commit, sender, occasion).await
        } else {
            Err(StoreError::Unknown)
        };
        if result == Err(StoreError::Unknown) {
            sleep_ms(occasion.between("silence", SILENCE_MS.0, SILENCE_MS.1)).await;
        } else {
            sleep_ms(occasion.between("answer", ANSWER_MS.0, ANSWER_MS.1)).await;
        }
        let answer = if self.arrives().await { result } else { Err(StoreError::Unknown) };
        self.conditions().running(self.node, self.life).await;
        answer
    }

    /// What the store makes of a commit that arrived.
    async fn execute(
        &self,
        commit: Commit,
        sender: Sender,
        occasion: Occasion,
    ) -> Result<Version, StoreError> {
        let conditions = self.conditions();
        if let Some(refusal) = self.refusal(&commit, occasion).await {
            self.note("no commit", &refusal);
            return Err(refusal);
        }
        if conditions.strikes(FaultClass::StoreUnknownLost, occasion) {
            return Err(StoreError::Unknown);
        }
        if conditions.strikes(FaultClass::StoreZombie, occasion) {
            let (recoveries, _) = conditions.recoveries();
            let zombie = Zombie { commit, sender, recoveries, version: self.store.version() };
            self.store.haunt(zombie, occasion.between("zombie", ZOMBIE_MS.0, ZOMBIE_MS.1));
            return Err(StoreError::Unknown);
        }
        let result = self.store.execute(commit, sender).await;
        if result.is_ok() && conditions.strikes(FaultClass::StoreUnknownApplied, occasion) {
            return Err(StoreError::Unknown);
        }
        result
    }

    /// Why the store does not even look at a commit.
    async fn refusal(&self, commit: &Commit, occasion: Occasion) -> Option<StoreError> {
        let conditions = self.conditions();
        if conditions.is_store_down() {
            let is_refused = occasion.between("down", 0, 1) == 0;
            let refusal = unavailable("the state store recovers from a failure");
            return Some(if is_refused { refusal } else { StoreError::Unknown });
        }
        if conditions.is_store_full() {
            return Some(unavailable("disk full"));
        }
        if conditions.strikes(FaultClass::StoreUnavailable, occasion) {
            return Some(unavailable("the state store is not reachable"));
        }
        if conditions.strikes(FaultClass::StoreOverloaded, occasion) {
            return Some(StoreError::Overloaded);
        }
        let check = commit.checks.first()?;
        // Nothing may conflict with itself: a commit that is there already is not refused.
        let is_there = self.store.0.disk.outcome(commit.token).await.ok().flatten().is_some();
        if is_there || !conditions.strikes(FaultClass::StoreConflict, occasion) {
            return None;
        }
        self.store.state().zombies.remove(&commit.token);
        Some(StoreError::Conflict { key: check.key().to_vec() })
    }

    async fn outcome_now(&self, token: CommitToken) -> Result<Option<Version>, StoreError> {
        let key = self.store.state().unknown.get(&token).copied();
        let occasion = self.ask("outcome", key.unwrap_or_default()).await?;
        if self.store.state().zombies.contains_key(&token) {
            if occasion.between("undecided", 0, 1) == 0 {
                return Err(unavailable("the commit is not decided yet"));
            }
            // From here on it will not happen, so that the answer is true.
            self.store.state().zombies.remove(&token);
            self.note("zombie cancelled", "");
        }
        self.store.0.disk.outcome(token).await
    }

    fn note(&self, what: &str, detail: impl std::fmt::Display) {
        self.conditions().note(self.name.as_str(), what, detail);
    }
}

impl StateStore for Handle {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(self.read_now(ranges))
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            let (token, key) = (commit.token, dice::hash(first_key(&commit)));
            let result = self.commit_now(commit, key).await;
            if result == Err(StoreError::Unknown) {
                self.note("unknown", "");
                self.store.state().unknown.insert(token, key);
            }
            result
        })
    }

    fn is_writable(&self) -> bool {
        !self.conditions().is_store_full()
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.ask("changed", dice::hash(&key)).await?;
            self.store.0.disk.changed(key, seen).await?;
            self.conditions().running(self.node, self.life).await;
            Ok(())
        })
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        Box::pin(async move {
            let result = self.outcome_now(token).await;
            self.conditions().running(self.node, self.life).await;
            match &result {
                Ok(Some(version)) => self.note("outcome", format_args!("v{version}")),
                Ok(None) => self.note("outcome", "none"),
                Err(error) => self.note("no outcome", error),
            }
            result
        })
    }
}

#[cfg(test)]
mod tests;
