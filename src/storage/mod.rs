//! Backends of the state store port that need a disk.

mod embedded;

pub use embedded::EmbeddedStore;
