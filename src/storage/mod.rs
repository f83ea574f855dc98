//! Backends of the state store port that need a disk, or a cluster.

mod embedded;
#[cfg(feature = "fdb")]
pub mod foundationdb;

use memcube_actors::{metrics::STORE_COMMITS_TOTAL, storage::StoreError};
use memcube_schemas::Version;

pub use embedded::EmbeddedStore;
#[cfg(feature = "fdb")]
pub use foundationdb::FoundationDbStore;

/// Counts a commit by what became of it.
fn count(result: &Result<Version, StoreError>) {
    let outcome = match result {
        Ok(_) => "committed",
        Err(StoreError::Conflict { .. }) => "conflict",
        Err(StoreError::Unknown) => "unknown",
        Err(StoreError::TooLarge { .. }) => "too_large",
        Err(StoreError::Overloaded) => "overloaded",
        Err(StoreError::Unavailable { .. }) => "unavailable",
        Err(StoreError::Corrupt { .. }) => "corrupt",
    };
    metrics::counter!(STORE_COMMITS_TOTAL, "outcome" => outcome).increment(1);
}
