//! The event feed: what every commit of every cube did, in the order of the commits, for whoever
//! derives something from it. It holds identifiers, never a text.

use rkyv::{Archive, Deserialize, Serialize, rancor};

use crate::{
    codec::Stored,
    ids::{CubeId, Epoch, MemoryId, Stamp, Version},
};

/// What became of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ItemChange {
    /// It is new.
    Added,
    /// It was said again.
    Repeated,
    /// Its text, status, labels or data changed.
    Updated,
    /// It was forgotten, its history kept.
    Deleted,
    /// It was forgotten together with its history.
    Purged,
}

/// What a commit did to its cube.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum FeedChange {
    /// The cube was made.
    CubeMade,
    /// Items changed, each with its revision after it; the list may be empty.
    Items(Vec<(MemoryId, ItemChange, u32)>),
    /// The cube was deleted with everything in it.
    CubeErased,
    /// The cube came whole out of a backup, at the version that it had there.
    CubeRestored,
}

/// One commit of one cube. Stored under `keys::feed_prefix` and a versionstamp.
///
/// Invariant: in the order of the stamps, the versions of a cube that was made since 0.2.0 are 0
/// (made), 1, 2, … until it is erased; those of a cube that was restored begin with that of the
/// backup. The feed of an older cube begins with its first change since.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct FeedRecord {
    /// Which cube.
    pub cube: CubeId,
    /// The term of the owner that committed; zero where a cube was made.
    pub epoch: Epoch,
    /// The cube's version after the commit; of an erased cube the version before it.
    pub version: Version,
    /// When: Unix milliseconds, on the owner's clock.
    pub at_ms: i64,
    /// What.
    pub change: FeedChange,
}

impl Stored for FeedRecord {
    const NAME: &'static str = "feed record";
    const KIND: u8 = 9;
    const FORMAT: u8 = 2;

    fn decode_former(format: u8, payload: &[u8]) -> Option<Result<Self, rancor::Error>> {
        // Format 1 had no `CubeRestored`, and is laid out the same.
        (format == 1).then(|| rkyv::from_bytes(payload))
    }
}

/// How far a shard of a feed was read by a consumer (`keys::feed_cursor`), or cut off
/// (`keys::feed_floor`): everything up to here, and nothing after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct FeedMark {
    /// The last record that counts.
    pub stamp: Stamp,
}

impl Stored for FeedMark {
    const NAME: &'static str = "feed mark";
    const KIND: u8 = 12;
    const FORMAT: u8 = 1;
}
