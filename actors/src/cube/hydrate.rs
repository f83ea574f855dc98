//! Brings a cube from the store into RAM: claim, read, and re-embed what another model embedded.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use memcube_schemas::{
    Epoch, MemoryId, ModelId, Version,
    activation::{ContextRecord, KvBlock},
    codec::{decode, encode},
    cube::{CubeManifest, Ownership, RequestRecord},
    keys,
    limits::{STANDBY_KEPT_MS, STANDBYS_MAX},
    memory::{MemoryItem, MemoryVector},
};
use tokio::sync::watch;

use super::{
    activation::CubeActivation,
    journal,
    load::Loaded,
    recall::embedding_text,
    snapshots::{self, SnapshotKeeper},
    state::{Claim, CubeKey, CubeState},
};
use crate::{
    cluster::View,
    defects::Defect,
    embedder::{EmbedderHandle, Priority},
    environment::Environment,
    error::{Error, ErrorKind, Result},
    inference::InferenceHandle,
    storage::{Check, Entry, Mutation, RangeRead, ReadOutput, SharedStore, StoreError},
};

/// Entries read at once; a big cube is read in pages, which its claim keeps consistent.
const PAGE_ENTRIES: usize = 4_096;
/// Vectors written in one commit while a cube is re-embedded.
const REEMBED_COMMIT_ITEMS: usize = 256;

/// Vectors by the item they belong to.
type Vectors = BTreeMap<MemoryId, Vec<f32>>;

/// What was read of a cube from its rows.
struct Rows {
    state: CubeState,
    items: Vec<MemoryItem>,
    vectors: Vectors,
}

/// When a node may claim a cube.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claiming {
    /// Unless a node that is alive owns it.
    IfFree,
    /// In any case.
    ByForce,
}

/// What hydrating needs.
#[derive(Clone)]
pub(crate) struct Hydrator {
    pub(crate) store: SharedStore,
    pub(crate) environment: Environment,
    /// Where snapshots lie, if cubes have any.
    pub(crate) snapshots: Option<SnapshotKeeper>,
    /// The language model of the node, once there is one.
    pub(crate) inference: Arc<OnceLock<InferenceHandle>>,
    embedder: Option<EmbedderHandle>,
    views: watch::Receiver<View>,
    /// Cubes that were read ahead of a hand-over, oldest first, each with the time when.
    standbys: Arc<Mutex<VecDeque<(u64, CubeState)>>>,
}

impl Hydrator {
    pub(crate) fn new(
        store: SharedStore,
        environment: Environment,
        snapshots: Option<SnapshotKeeper>,
        embedder: Option<EmbedderHandle>,
        views: watch::Receiver<View>,
    ) -> Self {
        let (inference, standbys) = (Arc::default(), Arc::default());
        Self { store, environment, snapshots, inference, embedder, views, standbys }
    }

    /// Claims a cube and reads everything it holds.
    ///
    /// # Errors
    /// `NotFound` when there is no such cube, `Fenced` when another living node owns it, `Corrupt`
    /// when a row cannot be read, `Unavailable` when the store does not answer.
    pub(crate) async fn hydrate(&self, key: CubeKey) -> Result<CubeState> {
        let standby = self.take_standby(&key);
        // Before the claim, so that a cube that does not exist leaves no row behind.
        self.read_manifest(&key).await?;
        let claim = self.claim(&key, Claiming::IfFree).await?;
        // The former owner may have written between the first read and the claim, but not since.
        let manifest = self.read_manifest(&key).await?;
        // Another snapshot counts as a change: it has cut the tail that the standby was read with,
        // and a standby without one would write no tail for it.
        if let Some(mut standby) = standby.filter(|standby| standby.manifest == manifest) {
            self.environment.reach("hydrate.standby-used", key.cube.as_str());
            standby.claim = claim;
            // The manifest does not tell when these change.
            standby.activation = self.read_activation(&standby.key).await?;
            return Ok(standby);
        }
        let state = CubeState::new(key, claim, manifest, self.model());
        match self.load(state).await? {
            Loaded::Whole(state) => Ok(*state),
            Loaded::Not(state) => {
                let mut rows = self.read_rows(*state).await?;
                self.embed_missing(&mut rows).await?;
                self.fill(rows).await
            }
        }
    }

    fn model(&self) -> Option<ModelId> {
        self.embedder.as_ref().map(|embedder| embedder.model().clone())
    }

    /// Reads a cube that another node owns, so that a hand-over to this node is short. What is read
    /// counts only if the cube has not changed by then.
    ///
    /// # Errors
    /// As `hydrate`.
    pub(crate) async fn prepare(&self, key: CubeKey) -> Result<()> {
        let manifest = self.read_manifest(&key).await?;
        // A claim that no commit ever checks.
        let claim = Claim { epoch: Epoch::default(), row: Version::default() };
        let state = match self.load(CubeState::new(key, claim, manifest, self.model())).await? {
            Loaded::Whole(state) => *state,
            Loaded::Not(state) => {
                let rows = self.read_rows(*state).await?;
                let is_embedded = |item: &MemoryItem| rows.vectors.contains_key(&item.id);
                if self.embedder.is_some() && !rows.items.iter().all(is_embedded) {
                    // What is missing, its owner will embed.
                    return Ok(());
                }
                self.fill(rows).await?
            }
        };
        self.drop_standby(&state.key);
        let mut standbys = self.standbys();
        standbys.push_back((self.environment.monotonic_us(), state));
        if standbys.len() > STANDBYS_MAX {
            standbys.pop_front();
        }
        Ok(())
    }

    fn standbys(&self) -> MutexGuard<'_, VecDeque<(u64, CubeState)>> {
        self.standbys.lock().expect("invariant: nothing panics while it holds the standbys")
    }

    /// Takes out what was read ahead, and forgets what nobody asked for in time.
    fn take_standby(&self, key: &CubeKey) -> Option<CubeState> {
        let now_us = self.environment.monotonic_us();
        let mut standbys = self.standbys();
        standbys.retain(|(at_us, _)| now_us.saturating_sub(*at_us) < STANDBY_KEPT_MS * 1_000);
        let place = standbys.iter().position(|(_, standby)| standby.key == *key)?;
        standbys.remove(place).map(|(_, standby)| standby)
    }

    fn drop_standby(&self, key: &CubeKey) {
        drop(self.take_standby(key));
    }

    /// Reads the items of a cube, and their vectors as far as there are any.
    async fn read_rows(&self, state: CubeState) -> Result<Rows> {
        let vectors = match (&state.manifest.embedder, &state.model) {
            (Some(embedder), Some(model)) if embedder == model => {
                self.read_vectors(&state.key, embedder).await?
            }
            (Some(_) | None, _) => BTreeMap::new(),
        };
        let items = self.read_items(&state.key).await?;
        Ok(Rows { state, items, vectors })
    }

    /// Puts together what was read.
    async fn fill(&self, rows: Rows) -> Result<CubeState> {
        let requests = self.read_requests(&rows.state.key).await?;
        let activation = self.read_activation(&rows.state.key).await?;
        let filled = self.environment.compute(move || {
            let Rows { mut state, items, mut vectors } = rows;
            for item in items {
                let vector = vectors.remove(&item.id);
                state.insert(item, vector.as_deref());
            }
            state.remember_requests(requests);
            state.activation = activation;
            state
        });
        filled.await.ok_or_else(|| Error::internal("putting a cube together panicked"))
    }

    /// Clears a cube's rows without reading its items.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer, `Fenced` when another owner claims it
    /// meanwhile.
    pub(crate) async fn erase(&self, key: &CubeKey) -> Result<()> {
        let claim = self.claim(key, Claiming::ByForce).await?;
        let manifest = self.read_manifest(key).await.ok();
        let now_ms = self.environment.unix_ms();
        let mutations = journal::erase(key, &claim, manifest.as_ref(), now_ms);
        let erased = self.commit_as_owner(key, &claim, mutations).await;
        // Also where nobody knows what became of it.
        if let Some(inference) = self.inference.get() {
            inference.cache().forget_cube(&key.tenant, &key.cube, &[]);
        }
        erased
    }

    /// Commits on the condition that the cube is still ours.
    async fn commit_as_owner(
        &self,
        key: &CubeKey,
        claim: &Claim,
        mutations: Vec<Mutation>,
    ) -> Result<()> {
        let checks = vec![journal::ownership_check(key, claim)];
        match journal::commit(&self.store, &self.environment, checks, mutations).await {
            Ok(_) => Ok(()),
            // Not the caller's conflict: another node has claimed the cube meanwhile.
            Err(StoreError::Conflict { .. }) => Err(super::fenced()),
            Err(error) => Err(error.into()),
        }
    }

    async fn read_manifest(&self, key: &CubeKey) -> Result<CubeManifest> {
        let read = RangeRead::key(keys::manifest(&key.tenant, &key.cube));
        let output = self.store.read(vec![read]).await?;
        match first_entry(&output) {
            Some(entry) => Ok(decode(&entry.value)?),
            None => Err(Error::not_found(format!("there is no cube `{}`", key.cube))),
        }
    }

    /// Raises the epoch: from here on the store refuses every earlier owner.
    async fn claim(&self, key: &CubeKey, claiming: Claiming) -> Result<Claim> {
        const TRIES: usize = 5;
        let row = keys::ownership(&key.tenant, &key.cube);
        for _ in 0..TRIES {
            let output = self.store.read(vec![RangeRead::key(row.clone())]).await?;
            let before = first_entry(&output).map(|entry| entry.version);
            let (check, epoch) = match first_entry(&output) {
                Some(entry) => {
                    let former: Ownership = decode(&entry.value)?;
                    if claiming == Claiming::IfFree {
                        self.refuse_if_owned(&former)?;
                    }
                    if self.environment.plants(Defect::DoubleHydrate) {
                        return Ok(Claim { epoch: former.epoch, row: entry.version });
                    }
                    (Check::At { key: row.clone(), version: entry.version }, former.epoch.next())
                }
                None => (Check::Absent { key: row.clone() }, Epoch(1)),
            };
            let (node, incarnation) = {
                let view = self.views.borrow();
                (view.me.clone(), view.incarnation)
            };
            let value = encode(&Ownership { epoch, node, incarnation });
            let set = Mutation::Set { key: row.clone(), value };
            match journal::commit(&self.store, &self.environment, vec![check], vec![set]).await {
                Ok(row) => {
                    if let Some(inference) = self.inference.get() {
                        inference.cache().claimed(key, before, row);
                    }
                    return Ok(Claim { epoch, row });
                }
                Err(StoreError::Conflict { .. }) => self.environment.reach("claim.contended", ""),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::unavailable(format!("another node keeps claiming the cube `{}`", key.cube)))
    }

    fn refuse_if_owned(&self, owner: &Ownership) -> Result<()> {
        if self.views.borrow().others.contains_key(&owner.node) {
            let message = format!("the node `{}` owns the cube; ask there", owner.node);
            return Err(Error::new(ErrorKind::Fenced, message));
        }
        Ok(())
    }

    pub(super) async fn read_all(&self, range: keys::KeyRange) -> Result<Vec<Entry>> {
        let mut range = range;
        let mut entries = Vec::new();
        loop {
            let output =
                self.store.read(vec![RangeRead::page(range.clone(), PAGE_ENTRIES)]).await?;
            let Some(page) = output.pages.into_iter().next() else { return Ok(entries) };
            let more = page.more;
            entries.extend(page.entries);
            match entries.last() {
                Some(last) if more => range = range.after(&last.key),
                Some(_) | None => return Ok(entries),
            }
        }
    }

    async fn read_items(&self, key: &CubeKey) -> Result<Vec<MemoryItem>> {
        let entries = self.read_all(keys::items(&key.tenant, &key.cube)).await?;
        entries.iter().map(|entry| Ok(decode::<MemoryItem>(&entry.value)?)).collect()
    }

    async fn read_vectors(&self, key: &CubeKey, model: &ModelId) -> Result<Vectors> {
        let entries = self.read_all(keys::vectors(&key.tenant, &key.cube, model)).await?;
        let mut vectors = BTreeMap::new();
        for entry in entries {
            let id = keys::trailing_memory_id(&entry.key)
                .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a vector key names no memory"))?;
            vectors.insert(id, decode::<MemoryVector>(&entry.value)?.values);
        }
        Ok(vectors)
    }

    pub(super) async fn read_requests(
        &self,
        key: &CubeKey,
    ) -> Result<Vec<(memcube_schemas::RequestId, RequestRecord)>> {
        let entries = self.read_all(keys::requests(&key.tenant, &key.cube)).await?;
        let mut requests = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = keys::trailing_request_id(&entry.key)
                .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a request key names no request"))?;
            requests.push((id, decode::<RequestRecord>(&entry.value)?));
        }
        requests.sort_by_key(|(_, record)| record.version);
        Ok(requests)
    }

    /// Reads the contexts and blocks of a cube.
    pub(super) async fn read_activation(&self, key: &CubeKey) -> Result<CubeActivation> {
        let CubeKey { tenant, cube } = key;
        let ranges = [keys::kv_blocks(tenant, cube), keys::contexts(tenant, cube)];
        let pages = ranges.clone().map(|range| RangeRead::page(range, PAGE_ENTRIES)).into();
        let pages = self.store.read(pages).await?.pages;
        let mut entries = Vec::new();
        for (page, range) in pages.into_iter().zip(ranges) {
            let rest = page.entries.last().filter(|_| page.more).map(|last| last.key.clone());
            entries.extend(page.entries);
            if let Some(last) = rest {
                entries.extend(self.read_all(range.after(&last)).await?);
            }
        }
        let mut activation = CubeActivation::default();
        let blocks = keys::kv_blocks(tenant, cube);
        for entry in entries {
            if blocks.contains(&entry.key) {
                let block: KvBlock = decode(&entry.value)?;
                activation.blocks.insert(block.key, block);
            } else {
                let record: ContextRecord = decode(&entry.value)?;
                activation.contexts.insert(record.conversation.clone(), record);
            }
        }
        Ok(activation)
    }

    /// Embeds items that have no vector of the configured model: they were written without one, or
    /// under another model, whose vectors leave in the same commit as the new ones arrive.
    async fn embed_missing(&self, rows: &mut Rows) -> Result<()> {
        let Rows { state, items, vectors } = rows;
        let (Some(embedder), Some(model)) = (&self.embedder, state.model.clone()) else {
            return Ok(());
        };
        let missing: Vec<&MemoryItem> =
            items.iter().filter(|item| !vectors.contains_key(&item.id)).collect();
        for group in missing.chunks(REEMBED_COMMIT_ITEMS) {
            let texts = group.iter().map(|item| embedding_text(&item.text)).collect();
            let embeddings = embedder.embed(texts, Priority::Bulk).await?;
            // A snapshot does not know the new vectors, and no tail tells of them.
            let mut mutations = snapshots::drop_snapshot(&state.key, &mut state.manifest);
            if let Some(former) = state.manifest.embedder.as_ref().filter(|id| **id != model) {
                let range = keys::vectors(&state.key.tenant, &state.key.cube, former);
                mutations.push(Mutation::ClearRange { range });
            }
            for (item, embedding) in group.iter().zip(embeddings) {
                let vector = Some(embedding.vector.as_slice());
                mutations.extend(journal::set_vector(&state.key, Some(&model), item, vector));
                vectors.insert(item.id, embedding.vector);
            }
            state.manifest.embedder = Some(model.clone());
            mutations.push(journal::set_manifest(&state.key, &state.manifest));
            self.commit_as_owner(&state.key, &state.claim, mutations).await?;
        }
        Ok(())
    }
}

fn first_entry(output: &ReadOutput) -> Option<&Entry> {
    output.pages.first()?.entries.first()
}
