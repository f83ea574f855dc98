//! Who acts in memcube: cubes, the reader, the embedder, supervision, and the ports they need.
//!
//! Invariant: nothing here reads the wall clock, an unseeded generator or the order of a hash map;
//! time, randomness and heavy work come from [`environment::Environment`], so that the same actors
//! run in production and in a simulation that replays from a seed.

#![warn(missing_docs)]

pub mod backup;
pub mod cluster;
pub mod cube;
pub mod defects;
pub mod directory;
pub mod embedder;
pub mod environment;
pub mod error;
pub mod feed;
pub mod host;
pub mod housekeeper;
pub mod inference;
pub mod metrics;
pub mod reader;
pub mod scheduler;
pub mod storage;
pub mod tenant;
pub mod vectors;

pub use cube::CubeHandle;
pub use directory::{BlobParts, CubeDescription, Cubes, NodeParts};
pub use error::{Error, ErrorKind, Result};
pub use tenant::TenantContext;
