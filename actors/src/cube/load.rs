//! Brings a cube into RAM from its snapshot and the rows that have changed since. Whatever is wrong
//! with the snapshot, the cube then comes from its rows.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures_util::future::{join, join3};
use memcube_schemas::{
    MemoryId, ModelId,
    codec::decode,
    cube::SnapshotRef,
    keys,
    memory::{MemoryItem, MemoryVector},
    snapshot::TailRecord,
};
use tokio::time::timeout;

use super::{
    Hydrator,
    archive::{self, HashedItems, OpenedSnapshot},
    snapshots::SnapshotKeeper,
    state::{CubeKey, CubeState},
};
use crate::{
    error::{Error, Result},
    metrics as names,
    storage::{Entry, RangePage, RangeRead, blobs::BlobError},
};

/// Changed items that are read at once.
const PAGE_ITEMS: usize = 512;
/// How long a snapshot of ordinary size may take to arrive before the rows are read instead.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much longer it may take for every million bytes.
const PATIENCE_PER_MB: Duration = Duration::from_millis(20);

/// What became of a cube's snapshot.
pub(super) enum Loaded {
    /// The whole cube.
    Whole(Box<CubeState>),
    /// It has none that can be used.
    Not(Box<CubeState>),
}

/// Why a snapshot cannot be used.
struct Unusable {
    reason: &'static str,
    detail: String,
    /// Whether it might be usable another time.
    may_be_good: bool,
}

impl From<BlobError> for Unusable {
    fn from(error: BlobError) -> Self {
        let may_be_good = match &error {
            BlobError::Missing | BlobError::Damaged { .. } => false,
            BlobError::Refused { .. } | BlobError::Unreachable { .. } | BlobError::Store(_) => true,
        };
        Self { reason: error.as_str(), detail: error.to_string(), may_be_good }
    }
}

impl From<memcube_schemas::codec::DecodeError> for Unusable {
    fn from(error: memcube_schemas::codec::DecodeError) -> Self {
        Self { reason: "unreadable", detail: error.to_string(), may_be_good: false }
    }
}

/// An item that has changed since, as it is now.
type Changed = (MemoryItem, Option<Vec<f32>>);

/// What has changed since a snapshot.
#[derive(Default)]
struct Tail {
    /// Everything that was made, changed or deleted.
    ids: BTreeSet<MemoryId>,
    /// What is still there of it, in the order of the ids.
    items: Vec<Changed>,
}

impl Hydrator {
    /// Reads a cube from its snapshot and tail, if it has a snapshot that can be used.
    ///
    /// # Errors
    /// `Corrupt` when a row cannot be read, `Unavailable` when the store does not answer.
    pub(super) async fn load(&self, mut state: CubeState) -> Result<Loaded> {
        let (Some(keeper), Some(snapshot)) = (&self.snapshots, state.manifest.snapshot.clone())
        else {
            return Ok(Loaded::Not(Box::new(state)));
        };
        if keeper.rests(self.environment.monotonic_us()) {
            state.has_snapshot = true;
            return Ok(Loaded::Not(Box::new(state)));
        }
        let bytes = self.fetch(keeper, &state.key, &snapshot);
        let tail = self.read_tail(&state.key, state.model.as_ref());
        let (bytes, tail) = join(bytes, tail).await;
        let tail = tail?;
        let tail_items = tail.ids.len();
        let unusable = match bytes {
            Ok(bytes) => match self.put_together(&state, &snapshot, bytes, tail).await? {
                Ok(whole) => return self.finish(state, whole, tail_items).await,
                Err(unusable) => unusable,
            },
            Err(unusable) => unusable,
        };
        self.tell_unusable(keeper, &state.key, &unusable);
        state.has_snapshot = unusable.may_be_good;
        state.tail_items = tail_items;
        Ok(Loaded::Not(Box::new(state)))
    }

    fn tell_unusable(&self, keeper: &SnapshotKeeper, key: &CubeKey, unusable: &Unusable) {
        let Unusable { reason, detail, may_be_good } = unusable;
        self.environment.reach("snapshot.fallback", reason);
        metrics::counter!(names::SNAPSHOT_FALLBACKS_TOTAL, "reason" => *reason).increment(1);
        tracing::warn!(cube = %key.cube, reason, detail, "a snapshot cannot be used, reading rows");
        if *may_be_good {
            keeper.rest(self.environment.monotonic_us());
        }
    }

    async fn fetch(
        &self,
        keeper: &SnapshotKeeper,
        key: &CubeKey,
        snapshot: &SnapshotRef,
    ) -> std::result::Result<Bytes, Unusable> {
        let row = RangeRead::key(keys::blob(&key.tenant, snapshot.blob));
        let late = || BlobError::unreachable("it takes too long; check `blobs.url`");
        // How large it is says how long it may take.
        let bytes = match self.store.read(vec![row]).await.map_err(BlobError::from)?.pages.first() {
            Some(RangePage { entries, .. }) => entries.first().map_or(0, blob_bytes),
            None => 0,
        };
        let megabytes = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        let patience = PATIENCE + PATIENCE_PER_MB.saturating_mul(megabytes);
        let fetched = timeout(patience, keeper.blobs.get(&key.tenant, snapshot.blob)).await;
        Ok(fetched.unwrap_or_else(|_| Err(late()))?)
    }

    /// Reads which items have changed, and the items.
    async fn read_tail(&self, key: &CubeKey, model: Option<&ModelId>) -> Result<Tail> {
        let CubeKey { tenant, cube } = key;
        let mut tail = Tail::default();
        for entry in self.read_all(keys::tails(tenant, cube)).await? {
            tail.ids.extend(decode::<TailRecord>(&entry.value)?.items);
        }
        let ids: Vec<MemoryId> = tail.ids.iter().copied().collect();
        for ids in ids.chunks(PAGE_ITEMS) {
            let items = ids.iter().map(|id| RangeRead::key(keys::item(tenant, cube, *id)));
            let vectors = model.into_iter().flat_map(|model| {
                ids.iter().map(|id| RangeRead::key(keys::vector(tenant, cube, model, *id)))
            });
            let mut items = self.store.read(items.chain(vectors).collect()).await?.pages;
            let mut vectors = items.split_off(ids.len()).into_iter();
            for item in items {
                let vector = vectors.next().and_then(first);
                let Some(item) = first(item) else { continue };
                let vector =
                    vector.map(|entry| decode::<MemoryVector>(&entry.value)).transpose()?;
                let vector = vector.map(|vector| vector.values);
                tail.items.push((decode(&item.value)?, vector));
            }
        }
        Ok(tail)
    }

    /// Reads a snapshot on all processors, and lays the tail on top.
    async fn put_together(
        &self,
        state: &CubeState,
        snapshot: &SnapshotRef,
        bytes: Bytes,
        tail: Tail,
    ) -> Result<std::result::Result<Parts, Unusable>> {
        let opened = match self.open(state, snapshot, &bytes, &tail) {
            Ok(opened) => opened,
            Err(unusable) => return Ok(Err(unusable)),
        };
        drop(bytes);
        let expected = opened.head.items;
        let mut first = opened.item_sections();
        let second = first.split_off(first.len().div_ceil(2));
        let index = opened.index_sections();
        let ids = tail.ids.clone();
        let environment = &self.environment;
        let (first, second, index) = join3(
            environment.compute(move || archive::read_items(&first)),
            environment.compute(move || archive::read_items(&second)),
            environment.compute(move || archive::restore_index(index, &ids)),
        )
        .await;
        let panicked = || Error::internal("reading a snapshot panicked");
        let (first, second) = (first.ok_or_else(panicked)?, second.ok_or_else(panicked)?);
        let index = index.ok_or_else(panicked)?;
        let parts = || {
            let parts = Parts { first: first?, second: second?, index: index?, tail };
            let items = parts.first.len() + parts.second.len();
            if items as u64 != expected {
                let detail = format!("it holds {items} items instead of {expected}");
                return Err(Unusable { reason: "unreadable", detail, may_be_good: false });
            }
            Ok(parts)
        };
        Ok(parts())
    }

    fn open(
        &self,
        state: &CubeState,
        snapshot: &SnapshotRef,
        bytes: &Bytes,
        tail: &Tail,
    ) -> std::result::Result<OpenedSnapshot, Unusable> {
        let refuse = |reason, detail: String, may_be_good| Unusable { reason, detail, may_be_good };
        let opened = OpenedSnapshot::open(bytes)?;
        let head = &opened.head;
        if head.cube != state.key.cube || head.version != snapshot.version {
            let detail = format!("it is of `{}` at version {}", head.cube, head.version);
            return Err(refuse("unreadable", detail, false));
        }
        let is_unembedded = |(_, vector): &Changed| vector.is_none();
        if head.embedder != state.model
            || state.model.is_some() && tail.items.iter().any(is_unembedded)
        {
            let detail = "its vectors are not those of the configured model".to_owned();
            return Err(refuse("model", detail, false));
        }
        Ok(opened)
    }

    async fn finish(
        &self,
        mut state: CubeState,
        parts: Parts,
        tail_items: usize,
    ) -> Result<Loaded> {
        let requests = self.read_requests(&state.key).await?;
        state.activation = self.read_activation(&state.key).await?;
        let filled = self.environment.compute(move || {
            let Parts { first, second, index, tail } = parts;
            let items = first.into_iter().chain(second);
            let unchanged = items.filter(|(_, item)| !tail.ids.contains(&item.id));
            state.take_in(unchanged, index, tail.items);
            state.remember_requests(requests);
            state.has_snapshot = true;
            state.tail_items = tail_items;
            Box::new(state)
        });
        let filled = filled.await;
        self.environment.reach("snapshot.loaded", "");
        metrics::counter!(names::SNAPSHOTS_LOADED_TOTAL).increment(1);
        filled.map(Loaded::Whole).ok_or_else(|| Error::internal("putting a cube together panicked"))
    }
}

/// A cube in parts.
struct Parts {
    first: HashedItems,
    second: HashedItems,
    index: super::recall::RecallIndex,
    tail: Tail,
}

fn first(page: RangePage) -> Option<Entry> {
    page.entries.into_iter().next()
}

fn blob_bytes(entry: &Entry) -> u64 {
    let record = decode::<memcube_schemas::blob::BlobRecord>(&entry.value);
    record.map_or(0, |record| record.bytes)
}
