//! Memcube's backend for FoundationDB over a simulated cluster: every life of a node has a
//! connection of its own, through which its transactions run, are retried, and meet what the
//! cluster does to them. What this file adds is what the cluster does not know: nodes that stand
//! still or die, stale connections, full disks.
//!
//! Which commits took effect is what the cluster says that it applied, joined by token with what
//! was sent.

mod cluster;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use anyhow::Context;
use foundationdb_tuple::pack;
use futures_util::future::BoxFuture;
use memcube::storage::{
    FoundationDbStore,
    foundationdb::{Options, client::Client},
};
use memcube_actors::{
    defects::Defect,
    storage::{
        Check, Commit, CommitToken, Mutation, RangeRead, ReadOutput, SharedStore, StateStore,
        StoreError,
    },
};
use memcube_schemas::{NodeId, Version, keys::KeyRange};
use tokio::sync::Notify;

use crate::{
    clock::sleep_ms,
    conditions::{Conditions, Occasion, Place, StoreWays, Touches},
    dice,
    evidence::{CommitRecord, Row},
    network::node_name,
    plan::{FaultClass, Plan},
};

use super::{Disk, IncarnationOf, Sender, first_key, unavailable};

/// How long a slow call takes to the cluster.
const SLOW_MS: (u64, u64) = (100, 6_000);
/// How long a commit may be on its way when its sender has given it up.
const LATE_MS: u64 = 8_000;
const PREFIX: &str = "memcube";
/// The family of the rows of tokens, in the backend's layout.
const TOKENS: i32 = 3;

/// The cluster, and what was sent to it. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub(super) struct FoundationDbDisk(Arc<Shared>);

struct Shared {
    conditions: Conditions,
    client: Client,
    /// Rings when the cluster has something to do earlier than before.
    bell: Arc<Notify>,
    trusts_maybe_committed: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often each node touched each key.
    touches: BTreeMap<u32, Touches>,
    /// Commits that a node handed to its connection.
    sent: BTreeMap<CommitToken, Sent>,
    /// What a commit was about whose outcome its sender does not know.
    unknown: BTreeMap<CommitToken, u64>,
    commits: Vec<CommitRecord>,
    /// What breaks between the cluster and the nodes, as the cluster was told.
    ways: StoreWays,
    healed_at_ms: Option<u64>,
    /// How often the cluster let things go wrong.
    injected: BTreeMap<FaultClass, u64>,
    /// How many transactions of the cluster were looked at.
    applied: usize,
    /// Connections of nodes that are open, by their number in the cluster.
    connections: BTreeMap<u64, u32>,
}

impl State {
    fn is_cut(&self, node: u32) -> bool {
        self.ways.is_down || self.ways.cut.contains(&node)
    }
}

/// A commit as its node asked for it.
#[derive(Clone)]
struct Sent {
    sender: Sender,
    checks: Vec<Check>,
    mutations: Vec<Mutation>,
}

impl FoundationDbDisk {
    /// An empty cluster in virtual time.
    ///
    /// # Errors
    /// When the simulated client lacks a function.
    pub(super) fn new(plan: &Plan, conditions: Conditions) -> anyhow::Result<Self> {
        let bell = cluster::start(plan, &conditions);
        #[expect(
            unsafe_code,
            reason = "hands the functions of the simulated client to the backend"
        )]
        // SAFETY: it defines its functions with the signatures of `fdb_c.h`.
        let client = unsafe { Client::simulated(fdb_c::symbol) };
        let client = client.context("the simulated FoundationDB client cannot be used")?;
        let disk = Self(Arc::new(Shared {
            conditions,
            client,
            bell,
            trusts_maybe_committed: plan.defects.contains(&Defect::TrustMaybeCommitted),
            state: Mutex::default(),
        }));
        disk.run(pump(Arc::downgrade(&disk.0)));
        disk.run(follow_conditions(Arc::downgrade(&disk.0)));
        Ok(disk)
    }

    /// Starts a part of the world that belongs to no node. It ends when nobody has the disk.
    #[expect(clippy::disallowed_methods, reason = "the cluster belongs to no node")]
    fn run(&self, part: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(part));
    }

    /// Cuts connections and lets the cluster recover, as the conditions say.
    fn follow(&self, ways: &StoreWays, next: &StoreWays) {
        for _ in ways.recoveries..next.recoveries {
            cluster::recover();
        }
        if next.is_healed && !ways.is_healed {
            cluster::heal();
            self.state().healed_at_ms = Some(self.0.conditions.now_ms());
        }
        let mut state = self.state();
        state.ways = next.clone();
        for (connection, node) in &state.connections {
            cluster::cut(*connection, state.is_cut(*node));
        }
    }

    fn connect(&self) -> FoundationDbStore {
        let mut options = Options::new(Some(cluster::FILE.to_owned()), PREFIX);
        options.trusts_maybe_committed = self.0.trusts_maybe_committed;
        FoundationDbStore::new(self.0.client, &options)
            .expect("invariant: the simulated cluster can be opened")
    }

    /// Takes notice of what was applied, and of what went wrong.
    fn record(&self) {
        let conditions = &self.0.conditions;
        for (class, count) in cluster::injected() {
            let before = self.state().injected.insert(class, count).unwrap_or_default();
            if count > before {
                conditions.struck(class, count - before);
                conditions.note("cluster", class.as_str(), "");
            }
        }
        let from = self.state().applied;
        for applied in cluster::applied_from(from) {
            self.state().applied += 1;
            let Some(token) = token_of(&applied) else { continue };
            let sent = self.state().sent.get(&token).cloned();
            let Some(Sent { sender, checks, mutations }) = sent else { continue };
            let (version, at_ms) = (Version(applied.version), conditions.now_ms());
            let size = format_args!("v{version} {}c{}m", checks.len(), mutations.len());
            conditions.note(sender.node.as_str(), "commit", size);
            let Sender { node, incarnation } = sender;
            self.state().commits.push(CommitRecord {
                version,
                place: applied.batch,
                at_ms,
                node,
                incarnation,
                token,
                checks,
                mutations,
            });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("invariant: nothing panics while it holds the store")
    }
}

/// Lets the cluster do what is due, and sleeps until something else is.
async fn pump(disk: Weak<Shared>) {
    loop {
        let Some(shared) = disk.upgrade() else { return };
        let (conditions, bell) = (shared.conditions.clone(), Arc::clone(&shared.bell));
        let now = conditions.elapsed();
        cluster::run_until(now);
        FoundationDbDisk(shared).record();
        match cluster::next_at() {
            Some(at) => {
                tokio::select! {
                    biased;
                    () = bell.notified() => {}
                    () = tokio::time::sleep(at.saturating_sub(now)) => {}
                }
            }
            None => bell.notified().await,
        }
    }
}

/// Tells the cluster of what breaks between it and the nodes.
async fn follow_conditions(disk: Weak<Shared>) {
    let Some(conditions) = disk.upgrade().map(|shared| shared.conditions.clone()) else { return };
    let mut ways = StoreWays::default();
    loop {
        let next = conditions.store_ways_change(&ways).await;
        let Some(shared) = disk.upgrade() else { return };
        FoundationDbDisk(shared).follow(&ways, &next);
        ways = next;
    }
}

/// The token of a commit of the backend, which writes a row for it.
fn token_of(applied: &fdb_c::sim::Applied) -> Option<CommitToken> {
    let root = pack(&(PREFIX, TOKENS));
    let written = applied.mutations.iter().find_map(|made| {
        let token = made.key.strip_prefix(&root[..])?;
        <[u8; 16]>::try_from(token).ok().filter(|_| made.op == cluster::SET)
    });
    written.map(|token| CommitToken(u128::from_be_bytes(token)))
}

impl Disk for FoundationDbDisk {
    fn handle(&self, node: u32, life: u64, incarnation: IncarnationOf) -> SharedStore {
        let name = NodeId::new(node_name(node)).expect("invariant: names of nodes are valid");
        let number = self.0.conditions.open_handle(node);
        let store = self.connect();
        let connection = cluster::last_connection();
        {
            let mut state = self.state();
            state.connections.insert(connection, node);
            cluster::cut(connection, state.is_cut(node));
        }
        let disk = self.clone();
        Arc::new(Handle { disk, store, connection, node, life, number, name, incarnation })
    }

    fn commits(&self) -> Vec<CommitRecord> {
        self.record();
        std::mem::take(&mut self.state().commits)
    }

    fn rows(&self) -> BoxFuture<'_, BTreeMap<Vec<u8>, Row>> {
        Box::pin(async move {
            let all = KeyRange { start: Vec::new(), end: vec![0xff] };
            let read = self.connect().read(vec![RangeRead::all(all)]).await;
            let read = read.expect("invariant: nothing goes wrong any more");
            let entries = read.pages.into_iter().flat_map(|page| page.entries);
            entries
                .map(|entry| (entry.key, Row { version: entry.version, value: entry.value }))
                .collect()
        })
    }

    fn version(&self) -> Version {
        Version(cluster::last_version())
    }

    /// Nobody counts them, but after the heal all of them arrive within seconds.
    fn late_commits(&self) -> usize {
        let healed_at_ms = self.state().healed_at_ms;
        let now_ms = self.0.conditions.now_ms();
        usize::from(healed_at_ms.is_none_or(|at_ms| now_ms < at_ms + LATE_MS))
    }
}

/// The store as one life of a node sees it.
struct Handle {
    disk: FoundationDbDisk,
    store: FoundationDbStore,
    connection: u64,
    node: u32,
    life: u64,
    number: u64,
    name: NodeId,
    incarnation: IncarnationOf,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.disk.state().connections.remove(&self.connection);
    }
}

impl Handle {
    fn conditions(&self) -> &Conditions {
        &self.disk.0.conditions
    }

    /// Waits until the node runs, and refuses what does not get as far as the connection.
    async fn start(&self, what: &str, key: u64) -> Result<Occasion, StoreError> {
        let conditions = self.conditions();
        conditions.running(self.node, self.life).await;
        if conditions.is_stale(self.node, self.number) {
            return Err(unavailable("this handle on the state store is stale; open it anew"));
        }
        let id = {
            let mut state = self.disk.state();
            let touches = state.touches.entry(self.node).or_default();
            touches.next(key ^ dice::hash(what.as_bytes()))
        };
        let occasion = conditions.occasion(Place::Store { node: self.node }, id);
        if conditions.strikes(FaultClass::StoreSlow, occasion) {
            sleep_ms(occasion.between("way", SLOW_MS.0, SLOW_MS.1)).await;
            conditions.running(self.node, self.life).await;
        }
        if conditions.strikes(FaultClass::StoreUnavailable, occasion) {
            return Err(unavailable("the state store is not reachable"));
        }
        Ok(occasion)
    }

    /// Does work of the node's process: it stands still while the process does, and never ends when
    /// the process has ended.
    async fn in_process<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.conditions().running(self.node, self.life).await;
            tokio::select! {
                biased;
                () = self.conditions().halts(self.node, self.life) => {}
                done = &mut work => return done,
            }
        }
    }

    async fn commit_now(&self, commit: Commit, key: u64) -> Result<Version, StoreError> {
        let occasion = self.start("commit", key).await?;
        let conditions = self.conditions();
        if conditions.is_store_full() {
            return Err(unavailable("disk full"));
        }
        if conditions.strikes(FaultClass::StoreOverloaded, occasion) {
            return Err(StoreError::Overloaded);
        }
        let sender = Sender { node: self.name.clone(), incarnation: (self.incarnation)() };
        let (checks, mutations) = (commit.checks.clone(), commit.mutations.clone());
        self.disk.state().sent.insert(commit.token, Sent { sender, checks, mutations });
        self.in_process(self.store.commit(commit)).await
    }

    fn note(&self, what: &str, detail: impl std::fmt::Display) {
        self.conditions().note(self.name.as_str(), what, detail);
    }
}

impl StateStore for Handle {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            let key = ranges.first().map_or(0, |read| dice::hash(&read.range.start));
            let result = match self.start("read", key).await {
                Ok(_) => self.in_process(self.store.read(ranges)).await,
                Err(error) => Err(error),
            };
            match &result {
                Ok(output) => {
                    let entries: usize = output.pages.iter().map(|page| page.entries.len()).sum();
                    self.note("read", format_args!("v{} {entries}", output.version));
                }
                Err(error) => self.note("no read", error),
            }
            result
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            let (token, key) = (commit.token, dice::hash(first_key(&commit)));
            let result = self.commit_now(commit, key).await;
            match &result {
                Ok(_) => {}
                Err(StoreError::Unknown) => {
                    self.note("unknown", "");
                    self.disk.state().unknown.insert(token, key);
                }
                Err(error) => self.note("no commit", error),
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
            self.start("changed", dice::hash(&key)).await?;
            self.in_process(self.store.changed(key, seen)).await
        })
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        Box::pin(async move {
            let key = self.disk.state().unknown.get(&token).copied().unwrap_or_default();
            let result = match self.start("outcome", key).await {
                Ok(_) => self.in_process(self.store.outcome(token)).await,
                Err(error) => Err(error),
            };
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
