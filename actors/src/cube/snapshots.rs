//! When a cube gets a snapshot, and how: written from a copy by a task of its own, and made valid
//! by a commit like any other.
//!
//! The commit names the snapshot in the manifest and leaves the cube's version as it is. If the
//! cube has left RAM meanwhile, the task commits in its place, under the same claim: a next owner's
//! claim refuses it. Invariant: a snapshot and the tail that the cube writes from its capture on
//! make up the whole cube, and no snapshot outlives the purge of an item that it holds.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use memcube_schemas::{
    BlobId, Version,
    codec::decode,
    cube::{CubeManifest, SnapshotRef},
    keys,
    limits::{
        SNAPSHOT_LEAVING_SHARE, SNAPSHOT_PAUSE_MS, SNAPSHOT_TAIL_SHARE, SNAPSHOTS_AT_ONCE,
        SNAPSHOTS_WAITING_MAX,
    },
};
use ractor::ActorRef;
use tokio::sync::Semaphore;

use super::{
    CubeMessage, Running, SNAPSHOT,
    archive::CapturedCube,
    journal, seconds,
    state::{Claim, CubeKey},
};
use crate::{
    environment::Environment,
    error::{Error, Result},
    metrics as names,
    storage::{
        Blobs, Check, Mutation, RangeRead, SharedStore, StoreError,
        blobs::{PreparedBlob, release},
    },
};

/// What the cubes of a node share for their snapshots. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SnapshotKeeper {
    pub(crate) blobs: Blobs,
    items_min: usize,
    /// For those that are being made or wait for it.
    tickets: Arc<Semaphore>,
    /// For those that are being made.
    places: Arc<Semaphore>,
    /// Until when the object store is left alone after it did not answer.
    resting_until_us: Arc<AtomicU64>,
}

impl SnapshotKeeper {
    pub(crate) fn new(blobs: Blobs, items_min: usize) -> Self {
        Self {
            blobs,
            items_min,
            tickets: Arc::new(Semaphore::new(SNAPSHOTS_WAITING_MAX)),
            places: Arc::new(Semaphore::new(SNAPSHOTS_AT_ONCE)),
            resting_until_us: Arc::default(),
        }
    }

    /// Leaves the object store alone for a while, so that not every cube waits for it in vain.
    pub(crate) fn rest(&self, now_us: u64) {
        self.resting_until_us.store(now_us + SNAPSHOT_PAUSE_MS * 1_000, Ordering::Relaxed);
    }

    /// Whether the object store is left alone.
    pub(crate) fn rests(&self, now_us: u64) -> bool {
        now_us < self.resting_until_us.load(Ordering::Relaxed)
    }
}

/// A snapshot whose blob is in place.
pub(crate) struct MadeSnapshot {
    prepared: PreparedBlob,
    version: Version,
}

impl MadeSnapshot {
    #[cfg(test)]
    pub(super) const fn new(prepared: PreparedBlob, version: Version) -> Self {
        Self { prepared, version }
    }

    /// What names this snapshot in a cube's manifest, and lets the former one go.
    fn commit(&self, key: &CubeKey, manifest: &mut CubeManifest, now_ms: i64) -> Vec<Mutation> {
        let snapshot = SnapshotRef { blob: self.prepared.id, version: self.version };
        let former = manifest.snapshot.replace(snapshot);
        let mut mutations = self.prepared.refer(&key.cube, SNAPSHOT, now_ms).to_vec();
        mutations.extend(former.map(|former| let_go(key, former.blob)));
        let range = keys::tails_until(&key.tenant, &key.cube, self.version);
        mutations.push(Mutation::ClearRange { range });
        mutations.push(journal::set_manifest(key, manifest));
        mutations
    }
}

/// Gives up the reference of a cube to its snapshot.
pub(super) fn let_go(key: &CubeKey, blob: BlobId) -> Mutation {
    release(&key.tenant, blob, &key.cube, SNAPSHOT)
}

/// Takes the snapshot out of a manifest that is about to be written.
pub(super) fn drop_snapshot(key: &CubeKey, manifest: &mut CubeManifest) -> Vec<Mutation> {
    let Some(snapshot) = manifest.snapshot.take() else { return Vec::new() };
    let range = keys::tails(&key.tenant, &key.cube);
    vec![let_go(key, snapshot.blob), Mutation::ClearRange { range }]
}

/// How far a cube is with its next snapshot.
#[derive(Default)]
enum Phase {
    #[default]
    Idle,
    /// A task makes it. It covers the changes of the tail up to a number.
    Making { covers: usize, is_cancelled: Arc<AtomicBool> },
    /// It waits for its commit.
    Made { covers: usize, made: MadeSnapshot },
}

/// The snapshots of one cube.
#[derive(Default)]
pub(super) struct Snapshots {
    phase: Phase,
    not_before_us: u64,
}

impl Snapshots {
    /// Whether the tail has to be kept for a snapshot that is not in the manifest yet.
    pub(super) const fn is_under_way(&self) -> bool {
        !matches!(self.phase, Phase::Idle)
    }

    /// Gives up what is under way: it holds an item that is purged, or the cube is erased.
    pub(super) fn cancel(&mut self) {
        if let Phase::Making { is_cancelled, .. } = std::mem::take(&mut self.phase) {
            is_cancelled.store(true, Ordering::Release);
        }
    }
}

impl Running {
    /// Whether so many of the items have changed that a snapshot is worth its while.
    fn is_snapshot_due(&self, keeper: &SnapshotKeeper, share: usize) -> bool {
        let items = self.cube.items.len();
        let is_stale = !self.cube.has_snapshot || self.cube.tail_items * share > items;
        items >= keeper.items_min && is_stale && !self.cube.lacks_vectors
    }

    /// Begins a snapshot between two commits, if one is due.
    pub(super) fn consider_snapshot(&mut self, myself: &ActorRef<CubeMessage>) {
        let Some(keeper) = self.snapshots.clone() else { return };
        let is_free = self.in_flight.is_none() && !self.snapshot.is_under_way();
        let now_us = self.environment.monotonic_us();
        if is_free
            && !self.is_passivating
            && now_us >= self.snapshot.not_before_us
            && self.is_snapshot_due(&keeper, SNAPSHOT_TAIL_SHARE)
        {
            self.make_snapshot(myself, keeper);
        }
    }

    /// Begins a snapshot of a cube that is about to leave RAM, if one is due.
    pub(super) fn leave_snapshot(&mut self, myself: &ActorRef<CubeMessage>) {
        let Some(keeper) = self.snapshots.clone() else { return };
        if !self.snapshot.is_under_way() && self.is_snapshot_due(&keeper, SNAPSHOT_LEAVING_SHARE) {
            self.make_snapshot(myself, keeper);
        }
    }

    fn make_snapshot(&mut self, myself: &ActorRef<CubeMessage>, keeper: SnapshotKeeper) {
        let now_us = self.environment.monotonic_us();
        self.snapshot.not_before_us = now_us + SNAPSHOT_PAUSE_MS * 1_000;
        let Ok(ticket) = Arc::clone(&keeper.tickets).try_acquire_owned() else {
            metrics::counter!(names::SNAPSHOTS_TOTAL, "outcome" => "skipped").increment(1);
            return;
        };
        if keeper.rests(now_us) {
            return;
        }
        let is_cancelled: Arc<AtomicBool> = Arc::default();
        let covers = self.cube.tail_items;
        self.snapshot.phase = Phase::Making { covers, is_cancelled: Arc::clone(&is_cancelled) };
        let left = LeftBehind {
            store: Arc::clone(&self.store),
            environment: self.environment.clone(),
            key: self.cube.key.clone(),
            claim: self.cube.claim.clone(),
            is_cancelled,
        };
        let (captured, environment) = (self.cube.capture(), self.environment.clone());
        let myself = myself.clone();
        environment.clone().spawn(async move {
            let start = environment.monotonic_us();
            let made = make(&keeper, &left, captured).await;
            drop(ticket);
            let took = environment.monotonic_us().saturating_sub(start);
            metrics::histogram!(names::SNAPSHOT_SECONDS).record(seconds(took));
            if let Err(error) = &made {
                metrics::counter!(names::SNAPSHOTS_TOTAL, "outcome" => "failed").increment(1);
                keeper.rest(environment.monotonic_us());
                tracing::warn!(cube = %left.key.cube, %error, "no snapshot could be made");
            }
            let message = CubeMessage::SnapshotMade { made: Box::new(made), left };
            if let Err(ractor::MessagingErr::SendErr(CubeMessage::SnapshotMade { made, left })) =
                myself.cast(message)
                && let Ok(made) = *made
            {
                left.commit(made).await;
            }
        });
    }

    /// The task that makes a snapshot has ended.
    pub(super) fn snapshot_made(
        &mut self,
        myself: &ActorRef<CubeMessage>,
        made: Result<MadeSnapshot>,
        left: LeftBehind,
    ) {
        if left.is_cancelled.load(Ordering::Acquire) {
            return;
        }
        let Phase::Making { covers, .. } = std::mem::take(&mut self.snapshot.phase) else { return };
        let Ok(made) = made else { return };
        if self.has_left {
            // No commit of this actor would be heard of any more.
            self.environment.spawn(async move { left.commit(made).await });
            return;
        }
        self.snapshot.phase = Phase::Made { covers, made };
        self.start_commit(myself);
    }

    /// Commits a snapshot that is ready, unless a commit is under way.
    pub(super) fn start_snapshot_commit(&mut self, myself: &ActorRef<CubeMessage>) -> bool {
        if self.in_flight.is_some() {
            return false;
        }
        let (covers, made) = match std::mem::take(&mut self.snapshot.phase) {
            Phase::Made { covers, made } => (covers, made),
            other @ (Phase::Idle | Phase::Making { .. }) => {
                self.snapshot.phase = other;
                return false;
            }
        };
        let mut manifest = self.cube.manifest.clone();
        let now_ms = self.environment.unix_ms();
        let mutations = made.commit(&self.cube.key, &mut manifest, now_ms);
        let committing = CommittingSnapshot { row: made.prepared.row_key(), covers, manifest };
        self.commit_snapshot(myself, committing, made.prepared.check(), mutations);
        true
    }

    /// The commit of a snapshot took effect.
    pub(super) fn snapshot_committed(&mut self, committed: CommittingSnapshot) {
        self.environment.reach("snapshot.committed", self.cube.key.cube.as_str());
        metrics::counter!(names::SNAPSHOTS_TOTAL, "outcome" => "committed").increment(1);
        self.cube.manifest = committed.manifest;
        self.cube.has_snapshot = true;
        self.cube.tail_items = self.cube.tail_items.saturating_sub(committed.covers);
    }
}

/// A commit of a snapshot under way.
pub(super) struct CommittingSnapshot {
    /// The key of the blob's row: a conflict there says nothing about the cube.
    pub(super) row: Vec<u8>,
    covers: usize,
    manifest: CubeManifest,
}

async fn make(
    keeper: &SnapshotKeeper,
    left: &LeftBehind,
    captured: CapturedCube,
) -> Result<MadeSnapshot> {
    let gone = || Error::unavailable("the node is shutting down");
    let _place = keeper.places.acquire().await.map_err(|_| gone())?;
    if left.is_cancelled.load(Ordering::Acquire) {
        return Err(Error::unavailable("an item was purged meanwhile"));
    }
    let version = captured.version;
    let encoded = left.environment.compute(move || captured.encode()).await;
    let bytes = encoded.ok_or_else(|| Error::internal("encoding a snapshot panicked"))?;
    metrics::histogram!(names::SNAPSHOT_BYTES).record(bytes.len() as f64);
    let prepared = keeper.blobs.begin(&left.key.tenant, bytes).await?;
    Ok(MadeSnapshot { prepared, version })
}

/// What is needed to commit a snapshot once its cube has left RAM.
pub(crate) struct LeftBehind {
    store: SharedStore,
    environment: Environment,
    key: CubeKey,
    claim: Claim,
    is_cancelled: Arc<AtomicBool>,
}

impl LeftBehind {
    #[cfg(test)]
    pub(super) fn new(
        store: SharedStore,
        environment: Environment,
        key: CubeKey,
        claim: Claim,
    ) -> Self {
        Self { store, environment, key, claim, is_cancelled: Arc::default() }
    }

    /// Commits a snapshot if nobody has claimed the cube since.
    pub(super) async fn commit(self, made: MadeSnapshot) {
        if self.is_cancelled.load(Ordering::Acquire) {
            return;
        }
        let outcome = match self.try_commit(&made).await {
            Ok(true) => {
                self.environment.reach("snapshot.committed-behind", self.key.cube.as_str());
                "committed"
            }
            Ok(false) => "refused",
            Err(error) => {
                tracing::warn!(cube = %self.key.cube, %error, "a snapshot could not be committed");
                "failed"
            }
        };
        metrics::counter!(names::SNAPSHOTS_TOTAL, "outcome" => outcome).increment(1);
    }

    async fn try_commit(&self, made: &MadeSnapshot) -> Result<bool> {
        let key = &self.key;
        let row = keys::manifest(&key.tenant, &key.cube);
        let output = self.store.read(vec![RangeRead::key(row.clone())]).await?;
        let Some(entry) = output.pages.first().and_then(|page| page.entries.first()) else {
            return Ok(false);
        };
        let mut manifest: CubeManifest = decode(&entry.value)?;
        // Only this claim's commits count: the tail is kept from the capture on, and by no other.
        let checks = vec![
            journal::ownership_check(key, &self.claim),
            Check::At { key: row, version: entry.version },
            made.prepared.check(),
        ];
        let mutations = made.commit(key, &mut manifest, self.environment.unix_ms());
        match journal::commit(&self.store, &self.environment, checks, mutations).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
