//! The vector tier of a node: finds memories across the cubes of a tenant.
//!
//! `indexer` derives tables from the event feed, `search` asks them. Invariant: the tables are only
//! ever a hint. What they name is checked against its row, and what they have not seen yet is read
//! from the feed, so that an answer is complete and true however far they lag behind.

mod ask_tables;
mod build;
mod cold;
mod follow;
mod indexer;
mod rows;
mod search;
mod tail;
#[cfg(test)]
mod tests;
mod tier;

use memcube_schemas::Stamp;

pub use self::search::{TenantSearchOutcome, TenantSearchRequest};
pub(crate) use self::{
    indexer::{Indexer, IndexerHandle},
    tier::{SearchPlaces, VectorTier},
};
pub use crate::cube::recall::CubeHit;
use crate::storage::SharedVectorIndex;

/// What the vector tier of a node is built from.
pub struct VectorParts {
    /// Where the tables are.
    pub index: SharedVectorIndex,
    /// How it works.
    pub settings: VectorSettings,
}

/// How the vector tier works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorSettings {
    /// Milliseconds for which changes are gathered before they are applied together.
    pub apply_after_ms: u64,
    /// Milliseconds after which a table that changed is tidied up.
    pub optimize_after_ms: u64,
    /// Memories from which on a cube that is not in RAM is searched in its table, and stays out of
    /// RAM; 0 for never.
    pub cold_cube_items_min: u64,
}

/// How far one shard of a tenant is in the vector tier of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardState {
    /// Which.
    pub shard: u16,
    /// Everything up to here is in its table; `None` while there is none, or it is being built.
    pub watermark: Option<Stamp>,
    /// Commits that it has not seen yet, as far as they were counted.
    pub behind: usize,
}
