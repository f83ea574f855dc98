//! What a node is built from, and how full its queues are.

use std::sync::Arc;

use memcube_schemas::NodeId;
use object_store::ObjectStore;

use crate::{
    cluster::ClusterParts,
    embedder::EmbedderHandle,
    environment::Environment,
    scheduler::jobs::JobRules,
    storage::{SharedStore, blobs::Seal},
    vectors::VectorParts,
};

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
    /// Where vectors of many cubes are searched; without it such searches ask the cubes.
    pub vectors: Option<VectorParts>,
    /// Where large bytes lie; without it cubes have no snapshots.
    pub blobs: Option<BlobParts>,
    /// How many background jobs run at a time.
    pub jobs: JobRules,
}

/// What a node needs for blobs.
pub struct BlobParts {
    /// The object store; nodes that share a state store share this as well.
    pub objects: Arc<dyn ObjectStore>,
    /// What happens to bytes on their way there.
    pub seal: Arc<dyn Seal>,
    /// Milliseconds that a blob is kept which nothing refers to.
    pub grace_ms: u64,
    /// Items from which on a cube gets snapshots.
    pub snapshot_items_min: usize,
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
