//! Where the cubes of this node are: from a tenant and a cube id to a live actor.

mod catalogue;
mod models;
mod parts;
mod scheduling;

use std::{
    fmt,
    hash::BuildHasherDefault,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use dashmap::DashMap;
use memcube_schemas::{
    CubeId, NodeId, TenantId,
    codec::decode,
    keys,
    limits::{CUBE_INFLIGHT_MAX, TENANT_SEARCHES_MAX},
    node::NodeRecord,
};
use ractor::{ActorId, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use self::{
    catalogue::CubeDescription,
    parts::{BlobParts, NodeParts, QueueDepth},
};
use crate::{
    cluster::{
        ClusterParts, View,
        membership::{self, Membership, MembershipHandle},
        peers::{Peers, Serve},
    },
    cube::{CubeHandle, CubeKey, CubeMessage, Hydrator, SnapshotKeeper},
    embedder::EmbedderHandle,
    environment::Environment,
    error::{Error, Result},
    feed::{EventFeed, FeedHandle, FeedTrimmer},
    host::{CubeHost, Ended, HostHandle, HostSettings},
    housekeeper::{BlobSweeper, Chore, HouseRules, Housekeeper, HousekeeperHandle, NodeRows},
    inference::InferenceHandle,
    scheduler::{SchedulerHandle, jobs::JobsHandle},
    storage::{Blobs, RangeRead, SharedStore},
    tenant::TenantContext,
    vectors::{SearchPlaces, VectorTier},
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
    /// Where vectors of many cubes are searched.
    pub(crate) vectors: Option<VectorTier>,
    /// Takes away blobs that nothing refers to.
    sweeper: Option<BlobSweeper>,
    pub(crate) search_places: SearchPlaces,
    feed: FeedHandle,
    jobs: JobsHandle,
    housekeeper: OnceLock<HousekeeperHandle>,
    pub(crate) scheduler: OnceLock<SchedulerHandle>,
    /// For a planted bug: the tenant of the call before.
    #[cfg(feature = "defects")]
    tenant_before: std::sync::Mutex<Option<TenantId>>,
}

/// What a node has beyond one that is alone.
pub(crate) struct Cluster {
    pub(crate) peers: Arc<Peers>,
    membership: MembershipHandle,
}

impl Cluster {
    async fn start(
        parts: ClusterParts,
        store: &SharedStore,
        environment: &Environment,
        views: watch::Receiver<View>,
        sender: watch::Sender<View>,
    ) -> Result<Self> {
        let transport = Arc::clone(&parts.transport);
        let peers = Peers::start(transport, environment.clone(), views);
        let (store, environment) = (Arc::clone(store), environment.clone());
        Ok(Self { peers, membership: Membership::start(store, environment, parts, sender).await? })
    }
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

fn fixed_map<V>() -> DashMap<CubeKey, V, FixedHasher> {
    DashMap::with_hasher_and_shard_amount(FixedHasher::default(), SHARDS)
}

/// Who writes snapshots into the blobs of a node, and who sweeps them.
fn start_blobs(
    parts: BlobParts,
    store: &SharedStore,
    environment: &Environment,
) -> (SnapshotKeeper, BlobSweeper) {
    let BlobParts { objects, seal, grace_ms, snapshot_items_min } = parts;
    let blobs = Blobs::new(objects, Arc::clone(store), environment.clone(), seal);
    (SnapshotKeeper::new(blobs.clone(), snapshot_items_min), BlobSweeper::new(blobs, grace_ms))
}

/// Lets the other nodes ask the cubes of this one.
fn serve_peers(shared: &Arc<Shared>) {
    if let Some(cluster) = &shared.cluster {
        let server: Arc<dyn Serve> = Arc::clone(shared) as Arc<dyn Serve>;
        cluster.peers.serve_with(Arc::downgrade(&server));
    }
}

impl Cubes {
    /// Starts the actors of a node.
    ///
    /// # Errors
    /// `Internal` when an actor cannot be started.
    pub async fn start(parts: NodeParts) -> Result<Self> {
        let directory: Arc<Directory> = Arc::new(fixed_map());
        let NodeParts { store, environment, embedder, node, cluster, vectors, blobs, .. } = parts;
        let (feed, store) = EventFeed::start(store, environment.clone()).await?;
        let jobs = JobsHandle::start(environment.clone(), parts.jobs).await?;
        let settings = HostSettings {
            passivate_after_ms: parts.passivate_after_ms,
            hot_cubes_max: parts.hot_cubes_max,
            confirms_reads: cluster.is_some(),
        };
        let alone = View::alone(node, membership::draw_incarnation(&environment));
        let (sender, views) = watch::channel(alone);
        let (snapshots, sweeper) =
            blobs.map(|parts| start_blobs(parts, &store, &environment)).unzip();
        let hydrator = Hydrator::new(
            Arc::clone(&store),
            environment.clone(),
            snapshots,
            embedder.clone(),
            views.clone(),
        );
        let cluster = match cluster {
            Some(parts) => {
                match Cluster::start(parts, &store, &environment, views.clone(), sender).await {
                    Ok(cluster) => Some(cluster),
                    Err(error) => {
                        feed.stop().await;
                        jobs.stop().await;
                        if let Some(embedder) = &embedder {
                            embedder.stop().await;
                        }
                        return Err(error);
                    }
                }
            }
            None => None,
        };
        let host = CubeHost::start(Arc::clone(&directory), hydrator.clone(), settings).await?;
        let vectors = match vectors {
            Some(parts) => {
                let store = Arc::clone(&store);
                Some(VectorTier::start(parts, store, environment.clone(), embedder.clone()).await?)
            }
            None => None,
        };
        let shared = Arc::new(Shared {
            directory,
            host,
            cluster,
            views,
            routes: fixed_map(),
            hydrator,
            store,
            environment,
            embedder,
            vectors,
            sweeper,
            search_places: SearchPlaces::new(TENANT_SEARCHES_MAX),
            feed,
            jobs,
            housekeeper: OnceLock::new(),
            scheduler: OnceLock::new(),
            #[cfg(feature = "defects")]
            tenant_before: std::sync::Mutex::default(),
        });
        serve_peers(&shared);
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
        queues.push(self.shared.search_places.queue(TENANT_SEARCHES_MAX));
        queues.extend(embedder.as_ref().map(EmbedderHandle::queue));
        queues.push(self.shared.jobs.queue());
        queues.extend(self.scheduler().map(SchedulerHandle::queue));
        queues.extend(self.scheduler().map(SchedulerHandle::queue_of_busiest_tenant));
        queues.extend(self.inference().into_iter().flat_map(InferenceHandle::queues));
        queues.extend(cluster.iter().flat_map(|cluster| cluster.peers.queues()));
        queues
    }

    /// The front door of one cube for this caller. Nothing is looked up yet.
    #[must_use]
    pub fn cube(&self, context: &TenantContext, id: CubeId) -> CubeHandle {
        CubeHandle::new(self.clone(), context.clone(), id)
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
        if let Some(scheduler) = self.scheduler() {
            scheduler.kill();
        }
        self.shared.feed.kill();
        if let Some(housekeeper) = self.shared.housekeeper.get() {
            housekeeper.kill();
        }
        self.shared.jobs.kill();
        self.shared.host.kill();
        if let Some(vectors) = &self.shared.vectors {
            vectors.kill();
        }
        if let Some(embedder) = &self.shared.embedder {
            embedder.kill();
        }
        if let Some(inference) = self.inference() {
            inference.kill();
        }
    }

    /// Lets every cube finish and leave RAM, says goodbye to the other nodes, then ends the actors
    /// of this one.
    pub async fn shut_down(&self) {
        if let Some(cluster) = &self.shared.cluster {
            cluster.peers.close();
        }
        if let Some(scheduler) = self.scheduler() {
            scheduler.stop().await;
        }
        self.shared.feed.stop().await;
        if let Some(housekeeper) = self.shared.housekeeper.get() {
            housekeeper.stop().await;
        }
        self.shared.jobs.stop().await;
        self.shared.host.shut_down().await;
        if let Some(inference) = self.inference() {
            inference.stop().await;
        }
        if let Some(vectors) = &self.shared.vectors {
            vectors.stop().await;
        }
        if let Some(cluster) = &self.shared.cluster {
            cluster.membership.leave().await;
            cluster.peers.hang_up().await;
        }
        if let Some(embedder) = &self.shared.embedder {
            embedder.stop().await;
        }
    }

    /// Whether the actors of this node are alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let cluster = self.shared.cluster.as_ref();
        self.shared.host.is_alive()
            && self.shared.views.borrow().is_serving
            && cluster.is_none_or(|cluster| cluster.membership.is_alive())
            && self.shared.vectors.as_ref().is_none_or(VectorTier::is_alive)
    }

    /// Whether this node is one of several, and stands among them: it is registered, and has not
    /// begun to leave.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.shared.cluster.as_ref().is_some_and(|cluster| {
            let is_serving = self.shared.views.borrow().is_serving;
            is_serving && cluster.membership.is_alive() && !cluster.peers.is_closed()
        })
    }

    /// Whether this node is one of several.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.shared.cluster.is_some()
    }

    /// What all nodes of the installation last said of themselves, in the order of their names.
    /// Empty for a node that is alone with its store.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>> {
        let output = self.shared.store.read(vec![RangeRead::all(keys::nodes())]).await?;
        let entries = output.pages.into_iter().flat_map(|page| page.entries);
        entries.map(|entry| Ok(decode(&entry.value)?)).collect()
    }

    /// What the commits of a tenant's cubes did, in order.
    #[must_use]
    pub fn feed(&self) -> &FeedHandle {
        &self.shared.feed
    }

    /// The background jobs of this node.
    #[must_use]
    pub fn jobs(&self) -> &JobsHandle {
        &self.shared.jobs
    }

    /// Starts the housekeeper of this node, with its own chores and more. It can be started once.
    ///
    /// # Errors
    /// `Internal` when it was started before, or cannot be started.
    pub async fn keep_house(&self, rules: HouseRules, more: Vec<Arc<dyn Chore>>) -> Result<()> {
        let Shared { store, environment, views, housekeeper, feed, jobs, sweeper, .. } =
            &*self.shared;
        let HouseRules { feed_keep_ms, period_ms } = rules;
        let trimmer = FeedTrimmer::new(feed.reader().clone(), feed_keep_ms, period_ms);
        let node_rows = NodeRows::new(Arc::clone(store), environment.clone());
        let mut chores: Vec<Arc<dyn Chore>> = vec![Arc::new(trimmer), Arc::new(node_rows)];
        chores.extend(sweeper.clone().map(|sweeper| Arc::new(sweeper) as Arc<dyn Chore>));
        chores.extend(more);
        let (environment, views, jobs) = (environment.clone(), views.clone(), jobs.clone());
        let started = Housekeeper::start(environment, views, jobs, chores).await?;
        match housekeeper.set(started) {
            Ok(()) => Ok(()),
            Err(second) => {
                second.stop().await;
                Err(Error::internal("the housekeeper was started twice"))
            }
        }
    }

    /// The model that embeds, if one is configured.
    #[must_use]
    pub fn embedder(&self) -> Option<&EmbedderHandle> {
        self.shared.embedder.as_ref()
    }

    /// The blobs of this node, if it has any.
    #[must_use]
    pub fn blobs(&self) -> Option<&Blobs> {
        self.shared.sweeper.as_ref().map(BlobSweeper::blobs)
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
}
