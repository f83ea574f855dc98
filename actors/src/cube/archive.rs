//! A cube as the bytes of a snapshot, and back. Pure: what is slow here runs off the event loop.
//!
//! Invariant: a cube that comes from a snapshot and the rows that changed since is the same as one
//! that comes from its rows.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use memcube_schemas::{
    CubeId, MemoryId, ModelId, Version,
    codec::{DecodeError, checksum, decode, decode_part, encode, encode_part},
    limits::{SNAPSHOT_SECTION_ITEMS, VECTOR_BLOCK_SLOTS},
    memory::MemoryItem,
    snapshot::{CubeSnapshot, RecalledItems, SECTION_ALIGN_BYTES, Section, SectionKind, Vectors},
};

use super::{
    recall::{Captured, RecallIndex, Restored},
    state::{CubeState, text_hash},
};

/// Bytes of the head's length.
const LENGTH_BYTES: usize = 4;
/// What an item takes without its vector, more or less; a first guess of a snapshot's size.
const ITEM_BYTES_GUESS: usize = 768;

/// What a snapshot is made from: a copy of a cube, in which items and vectors are shared.
pub(super) struct CapturedCube {
    cube: CubeId,
    pub(super) version: Version,
    model: Option<ModelId>,
    items: Vec<Arc<MemoryItem>>,
    recall: Captured,
}

impl CubeState {
    /// Takes a copy for a snapshot.
    pub(super) fn capture(&self) -> CapturedCube {
        CapturedCube {
            cube: self.key.cube.clone(),
            version: self.manifest.version,
            model: self.model.clone(),
            items: self.items.values().cloned().collect(),
            recall: self.recall.capture(),
        }
    }
}

impl CapturedCube {
    /// Writes the snapshot.
    pub(super) fn encode(self) -> Vec<u8> {
        let order = self.recall.order();
        let dimensions = self.recall.dimensions();
        let item_parts = self.items.len().div_ceil(SNAPSHOT_SECTION_ITEMS);
        let blocks = if dimensions == 0 { 0 } else { order.len().div_ceil(VECTOR_BLOCK_SLOTS) };
        let section = |kind| Section { kind, bytes: 0, checksum: 0 };
        let mut sections = vec![section(SectionKind::Recalled), section(SectionKind::Aside)];
        sections.extend((0..item_parts).map(|_| section(SectionKind::Items)));
        sections.extend((0..blocks).map(|_| section(SectionKind::Vectors)));
        let mut head = CubeSnapshot {
            cube: self.cube.clone(),
            version: self.version,
            embedder: self.model.clone(),
            dimensions: u32::try_from(dimensions).unwrap_or(0),
            items: self.items.len() as u64,
            sections,
        };
        // The length of the head does not depend on the numbers in it.
        let head_bytes = encode(&head).len();
        let guess = self.items.len() * (ITEM_BYTES_GUESS + dimensions * 5);
        let mut bytes = Vec::with_capacity(head_bytes + guess);
        bytes.resize(LENGTH_BYTES + head_bytes, 0);
        let mut items = self.items.chunks(SNAPSHOT_SECTION_ITEMS);
        let mut slots = order.chunks(VECTOR_BLOCK_SLOTS);
        for section in &mut head.sections {
            bytes.resize(bytes.len().next_multiple_of(SECTION_ALIGN_BYTES), 0);
            let start = bytes.len();
            match section.kind {
                SectionKind::Recalled => {
                    bytes.extend_from_slice(&encode_part(&self.recall.recalled(&order)));
                }
                SectionKind::Aside => bytes.extend_from_slice(&encode_part(&self.recall.aside())),
                SectionKind::Items => {
                    let items = items.next().unwrap_or_default().iter();
                    let items: Vec<MemoryItem> = items.map(|item| (**item).clone()).collect();
                    bytes.extend_from_slice(&encode_part(&items));
                }
                SectionKind::Vectors => {
                    self.recall.store_vectors(slots.next().unwrap_or_default(), &mut bytes);
                }
            }
            section.bytes = (bytes.len() - start) as u64;
            section.checksum = checksum(&bytes[start..]);
        }
        let head = encode(&head);
        let length = u32::try_from(head.len()).expect("invariant: a head is short");
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        bytes[LENGTH_BYTES..LENGTH_BYTES + head_bytes].copy_from_slice(&head);
        bytes
    }
}

/// A snapshot whose head was read.
pub(super) struct OpenedSnapshot {
    pub(super) head: CubeSnapshot,
    sections: Vec<(SectionKind, Bytes)>,
}

/// Items in the order of their ids, each with the hash of its text.
pub(super) type HashedItems = Vec<(u64, MemoryItem)>;

impl OpenedSnapshot {
    /// Reads the head of a snapshot.
    ///
    /// # Errors
    /// [`DecodeError`] when it is no snapshot, or one that this memcube does not read.
    pub(super) fn open(bytes: &Bytes) -> Result<Self, DecodeError> {
        let cut = || refuse("it is cut short");
        let length = bytes.first_chunk::<LENGTH_BYTES>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        let head = bytes.get(LENGTH_BYTES..LENGTH_BYTES + length).ok_or_else(cut)?;
        let head: CubeSnapshot = decode(head)?;
        let mut sections = Vec::with_capacity(head.sections.len());
        let mut end = LENGTH_BYTES + length;
        for section in &head.sections {
            let start = end.next_multiple_of(SECTION_ALIGN_BYTES);
            let length = usize::try_from(section.bytes).map_err(|_| cut())?;
            end = start.checked_add(length).filter(|end| *end <= bytes.len()).ok_or_else(cut)?;
            sections.push((section.kind, bytes.slice(start..end)));
        }
        Ok(Self { head, sections })
    }

    fn of_kind(&self, kind: SectionKind) -> impl Iterator<Item = Bytes> + '_ {
        let sections = self.sections.iter().filter(move |(found, _)| *found == kind);
        sections.map(|(_, bytes)| bytes.clone())
    }

    /// The sections of items, in order.
    pub(super) fn item_sections(&self) -> Vec<Bytes> {
        self.of_kind(SectionKind::Items).collect()
    }

    /// The part that [`restore_index`] reads.
    pub(super) fn index_sections(&self) -> IndexSections {
        IndexSections {
            recalled: self.of_kind(SectionKind::Recalled).next(),
            aside: self.of_kind(SectionKind::Aside).next(),
            vectors: self.of_kind(SectionKind::Vectors).collect(),
            dimensions: self.head.dimensions as usize,
        }
    }
}

/// The sections of a snapshot that recall's index is in.
pub(super) struct IndexSections {
    recalled: Option<Bytes>,
    aside: Option<Bytes>,
    vectors: Vec<Bytes>,
    dimensions: usize,
}

/// Reads some sections of items.
///
/// # Errors
/// [`DecodeError`] when one of them is not what it should be.
pub(super) fn read_items(sections: &[Bytes]) -> Result<HashedItems, DecodeError> {
    let mut read = Vec::with_capacity(sections.len() * SNAPSHOT_SECTION_ITEMS);
    for section in sections {
        let items: Vec<MemoryItem> = decode_part("section of items", section)?;
        read.extend(items.into_iter().map(|item| (text_hash(&item.text), item)));
    }
    Ok(read)
}

/// Puts recall's index together, without the items that have changed since.
///
/// # Errors
/// [`DecodeError`] when a section is not what it should be.
pub(super) fn restore_index(
    sections: IndexSections,
    changed: &BTreeSet<MemoryId>,
) -> Result<RecallIndex, DecodeError> {
    let IndexSections { recalled, aside, vectors, dimensions } = sections;
    let (Some(recalled), Some(aside)) = (recalled, aside) else {
        return Err(refuse("it lacks a section"));
    };
    let recalled: RecalledItems = decode_part("section of recalled items", &recalled)?;
    let aside: Vectors = decode_part("section of vectors", &aside)?;
    Restored { recalled, dimensions, vectors, aside }
        .into_index(changed)
        .map_err(|reason| refuse(&reason))
}

fn refuse(reason: &str) -> DecodeError {
    DecodeError { expected: "cube snapshot", reason: reason.to_owned() }
}
