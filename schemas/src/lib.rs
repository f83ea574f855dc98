//! What memcube stores and sends: types, keys, codec and limits.
//!
//! Invariant: nothing here does I/O, awaits, or reads a clock. Everything that reaches a disk or a
//! wire is defined in this crate, so that a format can be found, versioned and tested in one place.

#![warn(missing_docs)]

pub mod api;
pub mod codec;
pub mod command;
pub mod conversation;
pub mod cube;
#[cfg(test)]
mod golden;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod memory;

pub use ids::{
    ConversationId, CubeId, Epoch, InvalidId, MemoryId, ModelId, RequestId, TenantId, UserId,
    Version,
};
