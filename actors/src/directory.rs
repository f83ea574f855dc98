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
    CubeId, MemoryId, NodeId, TenantId, UserId, Version,
    codec::{DecodeError, decode},
    cube::CubeManifest,
    keys,
    limits::{CUBE_INFLIGHT_MAX, PAGE_ITEMS_MAX},
};
use ractor::{ActorId, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    cluster::{
        ClusterParts, View,
        membership::{self, Membership, MembershipHandle},
        peers::{Peers, Serve},
    },
    cube::{CubeHandle, CubeKey, CubeMessage, Hydrator},
    embedder::EmbedderHandle,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    host::{CubeHost, Ended, HostHandle, HostSettings},
    storage::{Check, RangeRead, SharedStore, StoreError},
    tenant::TenantContext,
};

/// Fixed, so that two processes build the same map.
type FixedHasher = BuildHasherDefault<std::collections::hash_map::DefaultHasher>;
const SHARDS: usize = 16;
/// How often making a cube is tried while the store refuses it without reason.
const CREATE_TRIES: usize = 5;

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

    /// Calls that wait or are being answered.
    fn waiting(&self) -> usize {
        CUBE_INFLIGHT_MAX.saturating_sub(self.places.available_permits())
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
    pub node: NodeId,
    /// How long an idle cube stays in RAM, in milliseconds.
    pub passivate_after_ms: u64,
    /// Cubes kept in RAM at the most.
    pub hot_cubes_max: usize,
    /// How to reach the other nodes; `None` for a node that is alone with its store.
    pub cluster: Option<ClusterParts>,
}

/// How full a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// Which queue.
    pub name: &'static str,
    /// What waits in it.
    pub depth: usize,
    /// What may wait in it.
    pub bound: usize,
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

pub(crate) struct Shared {
    pub(crate) directory: Arc<Directory>,
    pub(crate) host: HostHandle,
    pub(crate) cluster: Option<Cluster>,
    /// Who is alive; of a node that is alone, itself.
    pub(crate) views: watch::Receiver<View>,
    /// Where cubes of other nodes were found last: hints, looked up, never iterated.
    pub(crate) routes: DashMap<CubeKey, NodeId, FixedHasher>,
    hydrator: Hydrator,
    store: SharedStore,
    environment: Environment,
    embedder: Option<EmbedderHandle>,
    /// For a planted bug: the tenant of the call before.
    #[cfg(feature = "defects")]
    tenant_before: std::sync::Mutex<Option<TenantId>>,
}

/// What a node has beyond one that is alone.
pub(crate) struct Cluster {
    pub(crate) peers: Arc<Peers>,
    membership: MembershipHandle,
}

impl Shared {
    /// Whether the node has begun to shut down.
    pub(crate) fn is_closed(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.peers.is_closed())
    }

    /// For whom a call of another node runs: for whom it says, unless the planted bug is on.
    pub(crate) fn tenant_to_serve(&self, tenant: TenantId) -> TenantId {
        #[cfg(feature = "defects")]
        if self.environment.plants(crate::defects::Defect::TenantMixUp) {
            let before = self.tenant_before.lock().ok();
            let before = before.and_then(|mut before| before.replace(tenant.clone()));
            return before.unwrap_or(tenant);
        }
        tenant
    }
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
        let NodeParts { store, environment, embedder, node, cluster, .. } = parts;
        let settings = HostSettings {
            passivate_after_ms: parts.passivate_after_ms,
            hot_cubes_max: parts.hot_cubes_max,
            confirms_reads: cluster.is_some(),
        };
        let (sender, views) =
            watch::channel(View::alone(node, membership::draw_incarnation(&environment)));
        let hydrator =
            Hydrator::new(Arc::clone(&store), environment.clone(), embedder.clone(), views.clone());
        let cluster = match cluster {
            Some(parts) => {
                let transport = Arc::clone(&parts.transport);
                let peers = Peers::start(transport, environment.clone(), views.clone());
                let (store, environment) = (Arc::clone(&store), environment.clone());
                let membership = Membership::start(store, environment, parts, sender).await?;
                Some(Cluster { peers, membership })
            }
            None => None,
        };
        let host = CubeHost::start(Arc::clone(&directory), hydrator.clone(), settings).await?;
        let routes = DashMap::with_hasher_and_shard_amount(FixedHasher::default(), SHARDS);
        let shared = Arc::new(Shared {
            directory,
            host,
            cluster,
            views,
            routes,
            hydrator,
            store,
            environment,
            embedder,
            #[cfg(feature = "defects")]
            tenant_before: std::sync::Mutex::default(),
        });
        if let Some(cluster) = &shared.cluster {
            let server: Arc<dyn Serve> = Arc::clone(&shared) as Arc<dyn Serve>;
            cluster.peers.serve_with(Arc::downgrade(&server));
        }
        Ok(Self { shared })
    }

    pub(crate) const fn from_shared(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Who is alive, as this node sees it.
    #[must_use]
    pub fn view(&self) -> View {
        self.shared.views.borrow().clone()
    }

    /// How full the queues of this node are: of the cubes, the fullest one.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueDepth> {
        let Shared { directory, host, embedder, cluster, .. } = &*self.shared;
        let fullest = directory.iter().map(|slot| slot.waiting()).max().unwrap_or(0);
        let mut queues = vec![
            QueueDepth { name: "the fullest cube", depth: fullest, bound: CUBE_INFLIGHT_MAX },
            host.queue(),
        ];
        queues.extend(embedder.as_ref().map(EmbedderHandle::queue));
        queues.extend(cluster.iter().flat_map(|cluster| cluster.peers.queues()));
        queues
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
        let checks = vec![Check::Absent { key: keys::manifest(context.tenant(), &manifest.id) }];
        let key = CubeKey { tenant: context.tenant().clone(), cube: manifest.id.clone() };
        let mutations = crate::cube::made(&key, &manifest);
        for _ in 0..CREATE_TRIES {
            let (checks, mutations) = (checks.clone(), mutations.clone());
            let Shared { store, environment, .. } = &*self.shared;
            match crate::cube::commit(store, environment, checks, mutations).await {
                Ok(_) => return Ok(manifest),
                // A store may refuse without reason; only a row that is there is one.
                Err(StoreError::Conflict { .. }) if self.manifest(&key).await?.is_none() => {}
                Err(StoreError::Conflict { .. }) => {
                    let message = format!("there is a cube `{}` already", manifest.id);
                    return Err(Error::new(ErrorKind::Conflict, message));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::unavailable(format!("the cube `{}` could not be made; retry", manifest.id)))
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

    /// Reads a cube ahead of owning it.
    pub(crate) async fn prepare(&self, key: CubeKey) -> Result<()> {
        self.shared.hydrator.prepare(key).await
    }

    /// Ends the actors of this node at once, as a crash would. For tests and simulations.
    pub fn kill(&self) {
        if let Some(cluster) = &self.shared.cluster {
            cluster.peers.kill();
            cluster.membership.kill();
        }
        self.shared.host.kill();
        if let Some(embedder) = &self.shared.embedder {
            embedder.kill();
        }
    }

    /// Lets every cube finish and leave RAM, says goodbye to the other nodes, then ends the actors
    /// of this one.
    pub async fn shut_down(&self) {
        if let Some(cluster) = &self.shared.cluster {
            cluster.peers.close();
        }
        self.shared.host.shut_down().await;
        if let Some(cluster) = &self.shared.cluster {
            cluster.membership.leave().await;
        }
        if let Some(embedder) = &self.shared.embedder {
            embedder.stop().await;
        }
    }

    /// Whether the actors of this node are alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.shared.host.is_alive() && self.shared.views.borrow().is_serving
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

    pub(crate) async fn manifest(&self, key: &CubeKey) -> Result<Option<CubeManifest>> {
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
