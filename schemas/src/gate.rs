//! Which releases may use a store.

use rkyv::{Archive, Deserialize, Serialize};

use crate::codec::Stored;

/// Says who may read and write a store. Stored under `keys::schema_gate`.
///
/// The numbers count changes of what stored rows mean, whichever release made them. A change that
/// older releases cope with raises `current` alone; one that they would misread raises
/// `min_reader`, and one that they would undo by writing raises `min_writer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SchemaGate {
    /// The newest that any node wrote here.
    pub current: u32,
    /// The oldest that understands what is here.
    pub min_reader: u32,
    /// The oldest that may write here.
    pub min_writer: u32,
}

impl SchemaGate {
    /// What this release writes.
    pub const OURS: Self = Self { current: 1, min_reader: 1, min_writer: 1 };
}

impl Stored for SchemaGate {
    const NAME: &'static str = "schema gate";
    const KIND: u8 = 15;
    const FORMAT: u8 = 1;
}
