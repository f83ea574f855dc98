//! Backends of the state store port that need a disk.

mod embedded;
pub mod objects;

pub use embedded::EmbeddedStore;
