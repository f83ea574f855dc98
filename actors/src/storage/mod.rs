//! The port to durable state: consistent range reads, and atomic commits.
//!
//! Narrow on purpose (the shape of Deno KV): a cube has one writer, so reads at one version and a
//! commit of *checks + mutations + token* are all it needs. No open transaction ever leaves a
//! backend. `in_memory` is the executable specification, `conformance` the suite that every backend
//! passes.

pub mod blobs;
mod doorbells;
pub mod gate;
mod in_memory;
mod in_memory_vectors;
mod rules;
pub mod vector_index;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(any(test, feature = "conformance"))]
pub mod vector_conformance;

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use memcube_schemas::{Version, keys::KeyRange};

pub use blobs::Blobs;
pub use doorbells::Doorbells;
pub use in_memory::InMemoryStore;
pub use in_memory_vectors::InMemoryVectorIndex;
pub use rules::{STAMP_BYTES, counter_after_add, versionstamped_key};
pub use vector_index::{SharedVectorIndex, VectorIndex};

/// A shared state store.
pub type SharedStore = Arc<dyn StateStore>;

/// One range to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRead {
    /// Which keys.
    pub range: KeyRange,
    /// Entries at the most. With a limit, a store may return fewer when they are large, and says
    /// so in [`RangePage::more`].
    pub limit: usize,
    /// From the end of the range backwards.
    pub reverse: bool,
}

impl RangeRead {
    /// Reads the whole range, in order.
    #[must_use]
    pub fn all(range: KeyRange) -> Self {
        Self { range, limit: usize::MAX, reverse: false }
    }

    /// Reads one key.
    #[must_use]
    pub fn key(key: Vec<u8>) -> Self {
        Self::all(KeyRange::only(key))
    }

    /// Reads at most `limit` entries, in order.
    #[must_use]
    pub fn page(range: KeyRange, limit: usize) -> Self {
        Self { range, limit, reverse: false }
    }
}

/// A key, its value, and the version of the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The commit that wrote the value.
    pub version: Version,
}

/// The entries of one range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangePage {
    /// In the order asked for.
    pub entries: Vec<Entry>,
    /// Whether the limit cut the range short, or so many bytes that the store stopped before it.
    pub more: bool,
}

/// What a read saw: all ranges at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOutput {
    /// The version that all pages stand for: every commit up to it is seen, none after it.
    pub version: Version,
    /// One page for each range asked, in order.
    pub pages: Vec<RangePage>,
}

/// Identifies one commit, so that its outcome can be looked up after an unknown result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitToken(pub u128);

/// A condition of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The key is still as that commit wrote it.
    At {
        /// The key.
        key: Vec<u8>,
        /// The commit that must have written it last.
        version: Version,
    },
    /// The key has no value.
    Absent {
        /// The key.
        key: Vec<u8>,
    },
}

impl Check {
    /// The key that is checked.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::At { key, .. } | Self::Absent { key } => key,
        }
    }
}

/// A change of a commit. Mutations of one commit take effect in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Writes a value.
    Set {
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// Removes a key, if it is there.
    Clear {
        /// The key.
        key: Vec<u8>,
    },
    /// Removes every key of a range.
    ClearRange {
        /// The range.
        range: KeyRange,
    },
    /// Adds to a counter of eight little-endian bytes. Absent counts as 0, a shorter value as if
    /// zeros followed, of a longer one the first eight bytes count; overflow wraps.
    Add {
        /// The key.
        key: Vec<u8>,
        /// What to add.
        delta: i64,
    },
    /// Writes a value under `prefix` and a stamp of twelve bytes: the commit's version in eight
    /// big-endian ones, in two its place among commits of one version, in two the position of this
    /// mutation in the commit. So such keys sort in commit order and never collide.
    SetVersionstamped {
        /// What stands before the stamp.
        prefix: Vec<u8>,
        /// The value, of at most `STAMPED_VALUE_BYTES_MAX`.
        value: Vec<u8>,
    },
}

/// All or nothing: if every check holds, every mutation takes effect at one new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Names this commit. A second commit with the same token has no effect and returns the first
    /// one's version.
    pub token: CommitToken,
    /// What must hold.
    pub checks: Vec<Check>,
    /// What then changes.
    pub mutations: Vec<Mutation>,
}

/// Why a store refused or failed; each kind says what the caller should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// A check failed, nothing changed: read again, decide again.
    Conflict {
        /// The key whose check failed.
        key: Vec<u8>,
    },
    /// The commit may or may not have happened: ask `outcome` with its token.
    Unknown,
    /// A key, a value or the commit is larger than the store takes: nothing changed, make it
    /// smaller.
    TooLarge {
        /// What is too large.
        reason: String,
    },
    /// The store takes no work now, nothing changed: back off and retry.
    Overloaded,
    /// The store cannot work: retry later, or follow the reason (disk full, closed, unreachable).
    Unavailable {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Stored bytes are damaged: an operator has to look.
    Corrupt {
        /// What was found.
        reason: String,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { .. } => f.write_str("another commit changed a checked key"),
            Self::Unknown => f.write_str("the outcome of the commit is unknown"),
            Self::TooLarge { reason } => write!(f, "too large for the state store: {reason}"),
            Self::Overloaded => f.write_str("the state store's queue is full"),
            Self::Unavailable { reason } => write!(f, "the state store is unavailable: {reason}"),
            Self::Corrupt { reason } => write!(f, "the state store is damaged: {reason}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// Durable state. Implementations acknowledge a commit only when it survives a crash.
pub trait StateStore: Send + Sync + 'static {
    /// Reads ranges, all at one version that is at least that of every commit acknowledged before.
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>>;

    /// Applies a commit, atomically and durably, and returns its version. A commit that begins
    /// after another was answered has a greater version; of commits at the same time several may
    /// share one, and no read sees only some of those.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>>;

    /// Whether the store takes commits; a store that hit a full disk may still be read.
    fn is_writable(&self) -> bool {
        true
    }

    /// Waits until the value of a key may be another than a read saw, which was written by the
    /// commit `seen`, or was absent (`None`). It may return early, and it tells nothing: read
    /// again.
    ///
    /// # Errors
    /// As `read`; then the change may have been missed, so read again all the same.
    fn changed(&self, key: Vec<u8>, seen: Option<Version>)
    -> BoxFuture<'_, Result<(), StoreError>>;

    /// The version of the commit with this token, or `None` if it did not and will not happen.
    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>>;
}
