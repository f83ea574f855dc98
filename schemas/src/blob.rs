//! Blobs: large bytes in an object store, named by their content, and the rows that guard them.
//!
//! A blob is written in three steps: a row announces it (`Pending`), the object is put, and the
//! commit that refers to it makes the row `Live`. Who removes a blob first makes its row `Doomed`,
//! on the condition that nobody has touched the row since it was seen without references. So no
//! commit can refer to an object that is about to go, whatever crashes in between, and no clock
//! decides it. No two puts share an object, not even of the same bytes: each blob carries a salt.
//! So whoever was held up on its way to remove an object can only remove the one that it doomed.

use std::{fmt, str::FromStr};

use rkyv::{Archive, Deserialize, Serialize};

use crate::codec::Stored;

/// Names a blob: the SHA-256 of its bytes as they lie in the object store.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for BlobId {
    type Err = crate::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        crate::ids::from_hex(text).map(Self).ok_or_else(|| crate::ids::InvalidId {
            what: "blob id",
            reason: format!("`{text}` is not 64 hexadecimal digits"),
        })
    }
}

/// Where a blob stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum BlobState {
    /// Announced: its object may be there, nothing refers to it yet.
    Pending,
    /// Referred to, or it was until a moment ago.
    Live,
    /// About to be removed: nothing may refer to it any more.
    Doomed,
}

/// One blob. Stored under `keys::blob`, written again by everything that refers to it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Where it stands.
    pub state: BlobState,
    /// Bytes of the object.
    pub bytes: u64,
    /// When this row was written: Unix milliseconds. A hint when to look whether it can go.
    pub at_ms: i64,
}

impl Stored for BlobRecord {
    const NAME: &'static str = "blob record";
    const KIND: u8 = 11;
    const FORMAT: u8 = 1;
}
