//! Nodes, as they tell of themselves in the store.

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    codec::Stored,
    ids::{Incarnation, NodeId},
};

/// Whether a life of a node goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum NodeState {
    /// Its counter is expected to grow.
    Alive,
    /// Others saw its counter stand still for too long. Final for this incarnation.
    Dead,
    /// It said goodbye. Final for this incarnation.
    Left,
}

/// The heartbeat of one node. Stored under `keys::node`, rewritten by the node at every beat, and
/// once by whoever finds it dead.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Which node.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Grows with every beat. Watchers compare it with what they saw before, on their own clocks.
    pub beat: u64,
    /// Whether this life goes on.
    pub state: NodeState,
    /// Where its peers reach it, in the words of the transport.
    pub address: String,
}

impl Stored for NodeRecord {
    const NAME: &'static str = "node record";
    const KIND: u8 = 8;
    const FORMAT: u8 = 1;
}
