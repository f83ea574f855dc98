//! Snapshots: a whole cube in one blob, laid out so that it loads fast, and the tail of what
//! changed since.
//!
//! A snapshot is a head in its envelope, behind its length in four little-endian bytes, and then
//! sections, each at a multiple of [`SECTION_ALIGN_BYTES`]. The head says what they are and holds
//! their checksums. All but the vectors are rkyv archives of the types below. Invariant: a snapshot
//! is derived. Whatever is wrong with one, the rows of the cube are the truth.

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    codec::Stored,
    ids::{CubeId, MemoryId, ModelId, Version},
};

/// Every section begins at a multiple of this, so that it can be read in place.
pub const SECTION_ALIGN_BYTES: usize = 64;

/// The head of a snapshot. What it says of a cube holds for the items that recall finds and for all
/// others at one version of the cube.
///
/// Its format version stands for the sections as well: it is raised when `MemoryItem` or a type of
/// this file changes. Former formats need not be read, because the rows are there.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CubeSnapshot {
    /// Of which cube.
    pub cube: CubeId,
    /// At which version.
    pub version: Version,
    /// Whose vectors it holds; `None` if it holds none.
    pub embedder: Option<ModelId>,
    /// Values of one vector; 0 if there are none.
    pub dimensions: u32,
    /// Items it holds, whatever their status.
    pub items: u64,
    /// What follows, in order.
    pub sections: Vec<Section>,
}

impl Stored for CubeSnapshot {
    const NAME: &'static str = "cube snapshot";
    const KIND: u8 = 13;
    const FORMAT: u8 = 1;
}

/// One section of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Bytes, without the padding behind them.
    pub bytes: u64,
    /// CRC-32C of the bytes.
    pub checksum: u32,
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum SectionKind {
    /// `Vec<MemoryItem>`: the next items, in the order of their ids.
    Items,
    /// [`RecalledItems`]: what recall knows of the items that it finds.
    Recalled,
    /// [`Vectors`] that recall leaves out for now.
    Aside,
    /// The vectors of the next slots, as bare numbers: first an 8-bit code for every dimension of
    /// every slot, then the same as little-endian `f32`.
    Vectors,
}

/// What recall knows of the items that it finds: one entry a slot, in the order of the ids.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct RecalledItems {
    /// Which item.
    pub ids: Vec<MemoryId>,
    /// Whom it was said after.
    pub predecessors: Vec<Option<MemoryId>>,
    /// How many index terms its own words have.
    pub own_terms: Vec<u32>,
    /// Its score, whatever is asked.
    pub priors: Vec<f32>,
    /// Whether it was given as a statement.
    pub is_fact: Vec<bool>,
    /// The position of its speaker among `speakers`; `u32::MAX` for mere roles.
    pub speaker_of: Vec<u32>,
    /// First names of speakers.
    pub speakers: Vec<String>,
    /// All index terms, sorted.
    pub words: Vec<String>,
    /// Where the terms of a slot end in `terms`.
    pub term_ends: Vec<u32>,
    /// Positions among `words`: the terms of all slots, in the order of their texts.
    pub terms: Vec<u32>,
    /// Where the moments of a slot end in `moments`.
    pub moment_ends: Vec<u32>,
    /// The dates that items speak of: year, month, day.
    pub moments: Vec<(i32, u8, u8)>,
    /// What a slot's codes are to be multiplied with; 0 for a slot without a vector.
    pub scales: Vec<f32>,
}

/// Some vectors, by item.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Vectors {
    /// In the order of the ids.
    pub vectors: Vec<(MemoryId, Vec<f32>)>,
}

/// Which items a commit changed: made, changed or deleted. Stored under `keys::tail` while the cube
/// has a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct TailRecord {
    /// Each of them once.
    pub items: Vec<MemoryId>,
}

impl Stored for TailRecord {
    const NAME: &'static str = "tail record";
    const KIND: u8 = 14;
    const FORMAT: u8 = 1;
}
