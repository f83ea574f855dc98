//! What memcube stores and sends: types, keys, codec and limits.
//!
//! Invariant: nothing here does I/O, awaits, or reads a clock. Everything that reaches a disk or a
//! wire is defined in this crate, so that a format can be found, versioned and tested in one place.

#![warn(missing_docs)]

#[allow(missing_docs, reason = "rkyv derives undocumented helpers for variants with named fields")]
pub mod activation;
pub mod api;
#[allow(missing_docs, reason = "rkyv derives undocumented helpers for variants with named fields")]
pub mod backup;
pub mod blob;
#[allow(missing_docs, reason = "rkyv derives undocumented helpers for variants with named fields")]
pub mod call;
pub mod codec;
#[allow(missing_docs, reason = "rkyv derives undocumented helpers for variants with named fields")]
pub mod command;
#[allow(missing_docs, reason = "rkyv derives undocumented helpers for variants with named fields")]
pub mod conversation;
pub mod cube;
pub mod feed;
pub mod gate;
#[cfg(test)]
mod golden;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod memory;
pub mod node;
#[allow(missing_docs, reason = "rkyv derives undocumented helpers for variants with named fields")]
pub mod peer;
pub mod predictor;
#[allow(missing_docs, reason = "rkyv derives undocumented helpers for variants with named fields")]
pub mod scene;
pub mod snapshot;

pub use activation::BlockKey;
pub use blob::BlobId;
pub use ids::{
    ConversationId, CubeId, Epoch, Incarnation, InvalidId, MemoryId, ModelId, NodeId, RequestId,
    Stamp, TenantId, UserId, Version,
};
