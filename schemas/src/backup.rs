//! Backups: what the objects of one hold.
//!
//! A backup is a *manifest* object, written last, and *parts*, each named after the run that wrote
//! it,
//! so that no two runs ever write the same object. Parts with rows tell, scan by scan, what the
//! rows
//! of a cube are: a later row counts in place of an earlier one, and a row may say that earlier
//! ones no
//! longer count. Parts with cubes are the index: which scan became a cube of this backup. Rows of
//! scans that no index names count for nothing. Values lie in the envelopes in which they were
//! stored.

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    codec::Stored,
    ids::{CubeId, MemoryId, ModelId, RequestId, TenantId, Version},
};

/// The name of the manifest, below the prefix of the backup.
pub const MANIFEST_NAME: &str = "manifest";

/// What a part is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub enum PartKind {
    /// Rows of cubes.
    Rows,
    /// The index.
    Cubes,
    /// API keys, hashed as they are stored.
    ApiKeys,
}

impl PartKind {
    /// The name in names of objects.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Cubes => "cubes",
            Self::ApiKeys => "keys",
        }
    }
}

/// The name of a part, below the prefix of the backup. Numbers of one kind begin with 1.
#[must_use]
pub fn part_name(run: u64, kind: PartKind, number: u32) -> String {
    format!("parts/{run:016x}-{}-{number:06}", kind.as_str())
}

/// Whether a text is the name of an object of a backup.
#[must_use]
pub fn is_object_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let mut words = part.split('-');
        let all = |word: Option<&str>, is_fit: fn(&u8) -> bool| {
            word.is_some_and(|word| !word.is_empty() && word.bytes().all(|byte| is_fit(&byte)))
        };
        all(words.next(), u8::is_ascii_hexdigit)
            && all(words.next(), u8::is_ascii_lowercase)
            && all(words.next(), u8::is_ascii_digit)
            && words.next().is_none()
    };
    name == MANIFEST_NAME || name.strip_prefix("parts/").is_some_and(is_part)
}

/// A part as the manifest knows it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PartRef {
    /// Bytes of the object.
    pub bytes: u64,
    /// SHA-256 of the object.
    pub sha256: [u8; 32],
}

/// A cube that the backup does not hold, and why.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub cube: CubeId,
    /// What was wrong with it.
    pub reason: String,
}

/// What a backup holds. The last object that a backup writes: without it there is none.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BackupManifest {
    /// Drawn at the start; part of the names of the parts.
    pub run: u64,
    /// The kind of store that it was taken from.
    pub source: String,
    /// The version of memcube that took it.
    pub memcube: String,
    /// The only tenant that it is about; `None` if about all.
    pub tenant: Option<TenantId>,
    /// Whether only some cubes were asked for.
    pub is_selection: bool,
    /// When it was begun: Unix milliseconds.
    pub started_at_ms: i64,
    /// When it was complete: Unix milliseconds.
    pub finished_at_ms: i64,
    /// The store's version when it was begun. No cube is older than it was then.
    pub started: Version,
    /// The store's version when the last cube was read. No cube is newer than it was then.
    pub finished: Version,
    /// Cubes in it.
    pub cubes: u64,
    /// Rows in it, also those that no longer count.
    pub rows: u64,
    /// API keys in it.
    pub api_keys: u64,
    /// The parts with rows.
    pub row_parts: Vec<PartRef>,
    /// The parts of the index.
    pub cube_parts: Vec<PartRef>,
    /// The parts with API keys.
    pub key_parts: Vec<PartRef>,
    /// Cubes that could not be read.
    pub left_out: Vec<LeftOut>,
}

impl BackupManifest {
    /// The parts of one kind.
    #[must_use]
    pub fn parts(&self, kind: PartKind) -> &[PartRef] {
        match kind {
            PartKind::Rows => &self.row_parts,
            PartKind::Cubes => &self.cube_parts,
            PartKind::ApiKeys => &self.key_parts,
        }
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let parts = [&self.row_parts, &self.cube_parts, &self.key_parts];
        parts.into_iter().flatten().map(|part| part.bytes).sum()
    }
}

impl Stored for BackupManifest {
    const NAME: &'static str = "backup manifest";
    const KIND: u8 = 16;
    const FORMAT: u8 = 1;
}

/// What a row of a backup says about its cube.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum RowChange {
    /// An item.
    Item {
        /// Which.
        id: MemoryId,
        /// As it is stored under `keys::item`.
        value: Vec<u8>,
    },
    /// A former version of an item.
    History {
        /// Of which item.
        id: MemoryId,
        /// Which revision.
        revision: u32,
        /// As it is stored under `keys::history`.
        value: Vec<u8>,
    },
    /// The vector of an item.
    Vector {
        /// The model that made it.
        model: ModelId,
        /// Of which item.
        id: MemoryId,
        /// As it is stored under `keys::vector`.
        value: Vec<u8>,
    },
    /// The outcome of a request.
    Request {
        /// Its idempotency key.
        id: RequestId,
        /// As it is stored under `keys::request`.
        value: Vec<u8>,
    },
    /// What was told of this item, its history and its vectors no longer counts.
    ForgetMemory(MemoryId),
    /// No vector that was told so far counts any longer.
    ForgetVectors,
}

/// A row of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BackupRow {
    /// The scan that it belongs to.
    pub scan: u32,
    /// What it says.
    pub change: RowChange,
}

/// A cube of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BackupCube {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub cube: CubeId,
    /// Its manifest, as it is stored under `keys::manifest`: the cube is as it was at its version.
    pub manifest: Vec<u8>,
    /// The scan that found its rows.
    pub scan: u32,
    /// Rows of that scan.
    pub rows: u64,
    /// The first part that may hold rows of that scan.
    pub first_part: u32,
    /// The last such part.
    pub last_part: u32,
}

/// An API key of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BackupApiKey {
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// As it is stored under `keys::api_key`.
    pub value: Vec<u8>,
}

/// What is in a part.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum PartContents {
    /// Rows, in order.
    Rows(Vec<BackupRow>),
    /// Cubes, in the order of their scans.
    Cubes(Vec<BackupCube>),
    /// API keys.
    ApiKeys(Vec<BackupApiKey>),
}

/// One part of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BackupPart {
    /// Its number among those of its kind.
    pub number: u32,
    /// What is in it.
    pub contents: PartContents,
}

impl Stored for BackupPart {
    const NAME: &'static str = "backup part";
    const KIND: u8 = 17;
    const FORMAT: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects_are_told_from_others() {
        for kind in [PartKind::Rows, PartKind::Cubes, PartKind::ApiKeys] {
            assert!(is_object_name(&part_name(u64::MAX, kind, 1_234_567)));
        }
        assert_eq!(part_name(10, PartKind::Rows, 1), "parts/000000000000000a-rows-000001");
        assert!(is_object_name(MANIFEST_NAME));
        for name in ["", "parts/", "parts/..", "parts/../x", "parts/a-rows-1/x", "a-rows-1"] {
            assert!(!is_object_name(name), "{name}");
        }
        for name in ["parts/a-rows", "parts/a-rows-1-2", "parts/a-rows-x", "/manifest"] {
            assert!(!is_object_name(name), "{name}");
        }
    }
}
