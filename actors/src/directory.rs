//! Where the cubes of this node are: from a tenant and a cube id to a live actor.

use std::{
    fmt,
    hash::BuildHasherDefault,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dashmap::DashMap;
use memcube_schemas::{
    CubeId, MemoryId, UserId, Version,
    codec::{DecodeError, decode, encode},
    cube::CubeManifest,
    keys,
    limits::{CUBE_INFLIGHT_MAX, PAGE_ITEMS_MAX},
};
use ractor::{ActorId, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    cube::{CubeHandle, CubeKey, CubeMessage, Hydrator},
    embedder::EmbedderHandle,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    host::{CubeHost, Ended, HostHandle, HostSettings},
    storage::{Check, Mutation, RangeRead, SharedStore},
    tenant::TenantContext,
};

/// Fixed, so that two processes build the same map.
type FixedHasher = BuildHasherDefault<std::collections::hash_map::DefaultHasher>;
const SHARDS: usize = 16;

/// A hydrated cube, as callers see it.
pub(crate) struct Slot {
    pub(crate) actor: ActorRef<CubeMessage>,
    places: Arc<Semaphore>,
    last_used_us: AtomicU64,
}

impl Slot {
    pub(crate) fn new(actor: ActorRef<CubeMessage>, now_us: u64) -> Self {
        let places = Arc::new(Semaphore::new(CUBE_INFLIGHT_MAX));
        Self { actor, places, last_used_us: AtomicU64::new(now_us) }
    }

    /// Takes a place in the cube's queue.
    pub(crate) fn take_place(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Error::overloaded("the cube's queue", 50))
    }

    pub(crate) fn last_used_us(&self) -> u64 {
        self.last_used_us.load(Ordering::Relaxed)
    }
}

/// Cubes that are hot on this node. Looked up, never iterated for a decision.
pub(crate) type Directory = DashMap<CubeKey, Arc<Slot>, FixedHasher>;

/// What the actors of a node are built from.
pub struct NodeParts {
    /// Where state is durable.
    pub store: SharedStore,
    /// Time, randomness, tasks.
    pub environment: Environment,
    /// The embedder, if one is configured; without it recall is lexical.
    pub embedder: Option<EmbedderHandle>,
    /// The name of this node in ownership records.
    pub node: String,
    /// How long an idle cube stays in RAM, in milliseconds.
    pub passivate_after_ms: u64,
    /// Cubes kept in RAM at the most.
    pub hot_cubes_max: usize,
}

/// A cube as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CubeDescription {
    /// As it is stored.
    pub manifest: CubeManifest,
    /// Whether it is in RAM.
    pub is_hot: bool,
    /// Why it takes no calls, if it does not.
    pub quarantine: Option<String>,
}

/// All cubes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Cubes {
    shared: Arc<Shared>,
}

struct Shared {
    directory: Arc<Directory>,
    host: HostHandle,
    hydrator: Hydrator,
    store: SharedStore,
    environment: Environment,
    embedder: Option<EmbedderHandle>,
}

impl fmt::Debug for Cubes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cubes")
    }
}

impl Cubes {
    /// Starts the actors of a node.
    ///
    /// # Errors
    /// `Internal` when an actor cannot be started.
    pub async fn start(parts: NodeParts) -> Result<Self> {
        let directory: Arc<Directory> =
            Arc::new(DashMap::with_hasher_and_shard_amount(FixedHasher::default(), SHARDS));
        let NodeParts { store, environment, embedder, node, passivate_after_ms, hot_cubes_max } =
            parts;
        let settings = HostSettings { passivate_after_ms, hot_cubes_max };
        let hydrator = Hydrator {
            store: Arc::clone(&store),
            environment: environment.clone(),
            embedder: embedder.clone(),
            node,
        };
        let host = CubeHost::start(Arc::clone(&directory), hydrator.clone(), settings).await?;
        let shared = Shared { directory, host, hydrator, store, environment, embedder };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The front door of one cube for this caller. Nothing is looked up yet.
    #[must_use]
    pub fn cube(&self, context: &TenantContext, id: CubeId) -> CubeHandle {
        CubeHandle::new(self.clone(), context.clone(), id)
    }

    /// Makes a cube.
    ///
    /// # Errors
    /// `Conflict` when there is one with this id already.
    pub async fn create(
        &self,
        context: &TenantContext,
        id: CubeId,
        name: Option<String>,
        owner: Option<UserId>,
    ) -> Result<CubeManifest> {
        let now_ms = self.shared.environment.unix_ms();
        let manifest = CubeManifest {
            name: name.unwrap_or_else(|| id.to_string()),
            id,
            owner,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            version: Version(0),
            items: 0,
            embedder: None,
        };
        let key = keys::manifest(context.tenant(), &manifest.id);
        let checks = vec![Check::Absent { key: key.clone() }];
        let mutations = vec![Mutation::Set { key, value: encode(&manifest) }];
        let committed =
            crate::cube::commit(&self.shared.store, &self.shared.environment, checks, mutations)
                .await;
        match committed {
            Ok(_) => Ok(manifest),
            Err(crate::storage::StoreError::Conflict { .. }) => Err(Error::new(
                ErrorKind::Conflict,
                format!("there is a cube `{}` already", manifest.id),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a cube unless it is there.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn ensure(&self, context: &TenantContext, id: CubeId) -> Result<CubeHandle> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: id.clone() };
        if !self.shared.directory.contains_key(&key) && self.manifest(&key).await?.is_none() {
            match self.create(context, id.clone(), None, None).await {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.cube(context, id))
    }

    /// Reads cubes in the order of their ids, after one of them, and whether there are more.
    ///
    /// # Errors
    /// `Invalid` when the page is too large, `Unavailable` when the store does not answer.
    pub async fn list(
        &self,
        context: &TenantContext,
        after: Option<&CubeId>,
        limit: usize,
    ) -> Result<(Vec<CubeDescription>, bool)> {
        if limit == 0 || limit > PAGE_ITEMS_MAX {
            return Err(Error::invalid(format!("`limit` must be between 1 and {PAGE_ITEMS_MAX}")));
        }
        let mut range = keys::manifests(context.tenant());
        if let Some(after) = after {
            range = range.after(&keys::manifest(context.tenant(), after));
        }
        let output = self.shared.store.read(vec![RangeRead::page(range, limit)]).await?;
        let page = output.pages.into_iter().next().unwrap_or_default();
        let mut cubes = Vec::with_capacity(page.entries.len());
        for entry in &page.entries {
            match decode(&entry.value) {
                Ok(manifest) => cubes.push(self.describe_manifest(context, manifest).await?),
                // One that cannot be read must not hide the others.
                Err(error) => cubes.extend(unreadable(&entry.key, &error)),
            }
        }
        Ok((cubes, page.more))
    }

    /// Describes one cube without hydrating it; also one that is in quarantine.
    ///
    /// # Errors
    /// `NotFound` without such a cube.
    pub async fn describe(&self, context: &TenantContext, id: &CubeId) -> Result<CubeDescription> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: id.clone() };
        match self.manifest(&key).await? {
            Some(manifest) => self.describe_manifest(context, manifest).await,
            None => Err(Error::not_found(format!("there is no cube `{id}`"))),
        }
    }

    /// Lets a cube out of quarantine.
    ///
    /// # Errors
    /// `NotFound` when it is not in quarantine.
    pub async fn release(&self, context: &TenantContext, id: &CubeId) -> Result<()> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: id.clone() };
        self.shared.host.release(key).await
    }

    /// The cube of this tenant that holds a memory, if any does.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn find_memory(
        &self,
        context: &TenantContext,
        id: MemoryId,
    ) -> Result<Option<CubeId>> {
        let mut after: Option<CubeId> = None;
        loop {
            let (cubes, more) = self.list(context, after.as_ref(), PAGE_ITEMS_MAX).await?;
            let keys = cubes
                .iter()
                .map(|cube| RangeRead::key(keys::item(context.tenant(), &cube.manifest.id, id)));
            let output = self.shared.store.read(keys.collect()).await?;
            let held = output.pages.iter().position(|page| !page.entries.is_empty());
            if let Some(place) = held {
                return Ok(cubes.into_iter().nth(place).map(|cube| cube.manifest.id));
            }
            match cubes.into_iter().last() {
                Some(last) if more => after = Some(last.manifest.id),
                Some(_) | None => return Ok(None),
            }
        }
    }

    /// Deletes a cube without reading it: claims it, so that no other owner writes, and clears its
    /// rows.
    pub(crate) async fn erase_unread(&self, key: &CubeKey) -> Result<()> {
        self.shared.hydrator.erase(key).await?;
        // It was in quarantine, or came out of it meanwhile; either way it is gone.
        let _ = self.shared.host.release(key.clone()).await;
        Ok(())
    }

    /// Lets every cube finish and leave RAM, then ends the actors of this node.
    pub async fn shut_down(&self) {
        self.shared.host.shut_down().await;
        if let Some(embedder) = &self.shared.embedder {
            embedder.stop().await;
        }
    }

    /// Whether the actors of this node are alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.shared.host.is_alive()
    }

    /// The model that embeds, if one is configured.
    #[must_use]
    pub fn embedder(&self) -> Option<&EmbedderHandle> {
        self.shared.embedder.as_ref()
    }

    pub(crate) fn store(&self) -> &SharedStore {
        &self.shared.store
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.shared.environment
    }

    /// The live actor of a cube, hydrated now if need be.
    pub(crate) async fn slot(&self, key: &CubeKey) -> Result<Arc<Slot>> {
        let now_us = self.shared.environment.monotonic_us();
        if let Some(slot) = self.shared.directory.get(key) {
            slot.last_used_us.store(now_us, Ordering::Relaxed);
            return Ok(Arc::clone(&slot));
        }
        self.shared.host.hydrate(key.clone()).await
    }

    /// Why an actor of this cube no longer answers; waits until that is known.
    pub(crate) async fn why_ended(&self, key: &CubeKey, actor: ActorId) -> Result<Ended> {
        self.shared.host.why_ended(key.clone(), actor).await
    }

    async fn manifest(&self, key: &CubeKey) -> Result<Option<CubeManifest>> {
        let read = RangeRead::key(keys::manifest(&key.tenant, &key.cube));
        let output = self.shared.store.read(vec![read]).await?;
        let entry = output.pages.first().and_then(|page| page.entries.first());
        entry.map(|entry| Ok(decode(&entry.value)?)).transpose()
    }

    async fn describe_manifest(
        &self,
        context: &TenantContext,
        manifest: CubeManifest,
    ) -> Result<CubeDescription> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: manifest.id.clone() };
        let is_hot = self.shared.directory.contains_key(&key);
        let quarantine = self.shared.host.quarantine(key).await?;
        Ok(CubeDescription { manifest, is_hot, quarantine })
    }
}

/// A cube whose manifest is damaged, as far as its key tells.
fn unreadable(key: &[u8], error: &DecodeError) -> Option<CubeDescription> {
    let id = keys::trailing_cube_id(key)?;
    let manifest = CubeManifest {
        name: id.to_string(),
        id,
        owner: None,
        created_at_ms: 0,
        updated_at_ms: 0,
        version: Version(0),
        items: 0,
        embedder: None,
    };
    Some(CubeDescription { manifest, is_hot: false, quarantine: Some(error.to_string()) })
}
