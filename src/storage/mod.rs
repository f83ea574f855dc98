//! Backends of the storage ports that need a disk.

mod embedded;
#[cfg(feature = "lance")]
mod lance;

pub use embedded::EmbeddedStore;
#[cfg(feature = "lance")]
pub use lance::{LanceIndex, LanceOptions};
