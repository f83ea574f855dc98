//! Backends of the ports of storage: state stores, and object stores for blobs.

mod embedded;
pub mod objects;

pub use embedded::EmbeddedStore;
