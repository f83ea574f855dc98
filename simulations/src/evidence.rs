//! What the checkers judge: the callers' history beside what really happened in the store.

use std::collections::BTreeMap;

use memcube_actors::{
    feed::FeedEvent,
    storage::{Check, CommitToken, Mutation, versionstamped_key},
};
use memcube_schemas::{CubeId, Incarnation, NodeId, Stamp, TenantId, Version};
use serde::Serialize;

use crate::history::History;

/// A commit that took effect in the state store, as the store saw it. A commit that was sent again
/// under the same token is there once.
#[derive(Debug, Clone)]
pub struct CommitRecord {
    /// The version it made.
    pub version: Version,
    /// Its place among the commits that share this version.
    pub place: u16,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// Which node sent it.
    pub node: NodeId,
    /// In which life of the node.
    pub incarnation: Incarnation,
    /// Its token.
    pub token: CommitToken,
    /// Its conditions.
    pub checks: Vec<Check>,
    /// What it wrote.
    pub mutations: Vec<Mutation>,
}

impl CommitRecord {
    /// The key that its stamped mutation with this number wrote.
    pub(crate) fn stamped_key(&self, prefix: &[u8], position: usize) -> Vec<u8> {
        let mut key = versionstamped_key(prefix, self.version, position);
        let place = prefix.len() + size_of::<u64>();
        key[place..place + size_of::<u16>()].copy_from_slice(&self.place.to_be_bytes());
        key
    }
}

/// A key's value, and the version of the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The commit.
    pub version: Version,
    /// The value, still in its envelope.
    pub value: Vec<u8>,
}

/// What happened to an object in the bucket of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEvent {
    /// When: simulated milliseconds.
    pub at_ms: u64,
    /// Where it lies.
    pub path: String,
    /// How many bytes it has since then; `None` if it is gone.
    pub bytes: Option<u64>,
}

/// How full a queue was when somebody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSample {
    /// Which node.
    pub node: NodeId,
    /// Which queue.
    pub queue: String,
    /// How many waited.
    pub depth: usize,
    /// How many may.
    pub bound: usize,
    /// When: simulated milliseconds.
    pub at_ms: u64,
    /// Whether everything was over by then, so that nobody should wait any more.
    pub at_rest: bool,
}

/// What became of a probe after all faults were healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// On behalf of whom.
    pub tenant: TenantId,
    /// Which cube was asked.
    pub cube: CubeId,
    /// What was asked.
    pub what: String,
    /// How long it took, retries included, or `None` if it never worked.
    pub took_ms: Option<u64>,
    /// The last error.
    pub error: Option<String>,
}

/// The cube as it was served after the heal.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedCube {
    /// All items that `list` returned, in their order.
    pub items: Vec<memcube_schemas::memory::MemoryItem>,
    /// The manifest's version at that time.
    pub version: Version,
    /// For every recalled item: whether a search for its marker found it.
    pub found: BTreeMap<memcube_schemas::MemoryId, bool>,
}

/// Everything there is to judge after a run.
#[derive(Debug, Default)]
pub struct Evidence {
    /// What callers asked and were told, the checks after the heal not included.
    pub history: History,
    /// Every commit that took effect, in order.
    pub commits: Vec<CommitRecord>,
    /// Which life of which node, by the world's count, each incarnation is. A node that was taken
    /// for dead takes another incarnation, and is still the same process.
    pub lives: BTreeMap<Incarnation, (NodeId, u64)>,
    /// All rows at the end.
    pub rows: BTreeMap<Vec<u8>, Row>,
    /// What happened in the bucket, in order; the last thing is a sweep.
    pub objects: Vec<ObjectEvent>,
    /// Every cube as it was served at the end, by tenant and cube.
    pub served: BTreeMap<(TenantId, CubeId), ServedCube>,
    /// Depths of queues, during the run and after it.
    pub queues: Vec<QueueSample>,
    /// Probes after the heal.
    pub probes: Vec<Probe>,
    /// What the stream of each tenant's feed told, over all its connections.
    pub followed: BTreeMap<TenantId, Vec<FeedStretch>>,
    /// What the world's consumers acted on, by tenant and shard.
    pub consumed: BTreeMap<(TenantId, u16), Vec<FeedStretch>>,
}

/// A part of a feed, as somebody was told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedStretch {
    /// After which place; `None` for the oldest record that is kept.
    pub from: Option<Stamp>,
    /// Up to which place.
    pub to: Stamp,
    /// What happened in between, in order; `None` where it was said to be trimmed.
    pub events: Option<Vec<FeedEvent>>,
}

/// Something that must never happen, and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Violation {
    /// Which checker saw it; shrinking keeps it.
    pub checker: String,
    /// What it saw.
    pub what: String,
}

impl Violation {
    /// A violation.
    pub fn new(checker: &str, what: impl Into<String>) -> Self {
        Self { checker: checker.to_owned(), what: what.into() }
    }
}
