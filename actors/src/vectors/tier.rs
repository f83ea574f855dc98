//! The vector tier as the rest of the node sees it.

use std::sync::Arc;

use memcube_schemas::{ModelId, TenantId, keys::FEED_SHARDS, limits::INDEX_PAGE_RECORDS};
use tokio::sync::Semaphore;

use super::{
    Indexer, IndexerHandle, ShardState, VectorParts,
    follow::Deriving,
    indexer::Wish,
    tail::{self, Tail},
};
use crate::{
    directory::{Cubes, QueueDepth},
    embedder::EmbedderHandle,
    environment::Environment,
    error::{Error, Result},
    storage::{SharedStore, SharedVectorIndex, vector_index::TableId},
    tenant::TenantContext,
};

/// The tables of a node, and who keeps them in step.
pub(crate) struct VectorTier {
    pub(super) index: SharedVectorIndex,
    pub(super) indexer: IndexerHandle,
    pub(super) cold_cube_items_min: u64,
    model: Option<ModelId>,
}

impl VectorTier {
    /// Starts to follow the feed.
    ///
    /// # Errors
    /// `Internal` when the indexer cannot be started.
    pub(crate) async fn start(
        parts: VectorParts,
        store: SharedStore,
        environment: Environment,
        embedder: Option<EmbedderHandle>,
    ) -> Result<Self> {
        let VectorParts { index, settings } = parts;
        let model = embedder.as_ref().map(|embedder| embedder.model().clone());
        let deriving = Deriving { store, environment, embedder, index: Arc::clone(&index) };
        let indexer = Indexer::start(deriving, settings).await?;
        let cold_cube_items_min = settings.cold_cube_items_min;
        Ok(Self { index, indexer, cold_cube_items_min, model })
    }

    pub(super) fn table(&self, tenant: &TenantId, shard: u16) -> TableId {
        TableId { tenant: tenant.clone(), shard, model: self.model.clone() }
    }

    pub(super) const fn model(&self) -> Option<&ModelId> {
        self.model.as_ref()
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.indexer.is_alive()
    }

    pub(crate) fn kill(&self) {
        self.indexer.kill();
    }

    pub(crate) async fn stop(&self) {
        self.indexer.stop().await;
    }
}

/// The searches over several cubes that a node executes at a time.
pub(crate) struct SearchPlaces(Arc<Semaphore>);

impl SearchPlaces {
    pub(crate) fn new(bound: usize) -> Self {
        Self(Arc::new(Semaphore::new(bound)))
    }

    /// Takes a place for one search.
    pub(super) fn take(&self) -> Result<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.0)
            .try_acquire_owned()
            .map_err(|_| Error::overloaded("the queue of searches over several cubes", 100))
    }

    pub(crate) fn queue(&self, bound: usize) -> QueueDepth {
        let depth = bound.saturating_sub(self.0.available_permits());
        QueueDepth { name: "searches over several cubes", depth, bound }
    }
}

impl Cubes {
    /// Whether a vector tier answers searches over several cubes.
    #[must_use]
    pub fn has_vector_tier(&self) -> bool {
        self.shared().vectors.is_some()
    }

    /// How far the vector tier of this node is with the caller's cubes; empty without one.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn vector_shards(&self, context: &TenantContext) -> Result<Vec<ShardState>> {
        let Some(tier) = &self.shared().vectors else { return Ok(Vec::new()) };
        let tenant = context.tenant();
        let mut states = Vec::with_capacity(usize::from(FEED_SHARDS));
        for shard in 0..FEED_SHARDS {
            // One that cannot be read is as good as none: it is built again.
            let watermark = tier.index.watermark(&tier.table(tenant, shard)).await.ok().flatten();
            let after = watermark.unwrap_or_default();
            let tail = tail::read(self.store(), tenant, shard, after, INDEX_PAGE_RECORDS).await?;
            let behind = match tail {
                Tail::Read { changed, .. } => changed.records,
                Tail::Gap => INDEX_PAGE_RECORDS,
            };
            states.push(ShardState { shard, watermark, behind });
        }
        Ok(states)
    }

    /// Builds the caller's part of the vector tier of this node anew, in the background.
    ///
    /// # Errors
    /// `Invalid` without a vector tier.
    pub fn rebuild_vectors(&self, context: &TenantContext) -> Result<()> {
        let Some(tier) = &self.shared().vectors else {
            return Err(Error::invalid(
                "this node has no vector tier; set `vectors.kind` to `in-ram` or `lance`",
            ));
        };
        for shard in 0..FEED_SHARDS {
            tier.indexer.wish(context.tenant(), shard, Wish::Anew);
        }
        Ok(())
    }
}
