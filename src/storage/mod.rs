//! Backends of the ports of storage that need a disk, or a cluster.

pub mod blobs;
mod embedded;
#[cfg(feature = "fdb")]
pub mod foundationdb;
#[cfg(feature = "lance")]
mod lance;
pub mod objects;

use memcube_actors::{
    metrics::STORE_COMMITS_TOTAL,
    storage::{SharedStore, StoreError},
};
use memcube_schemas::Version;

use crate::settings::StoreSettings;

pub use embedded::EmbeddedStore;
#[cfg(feature = "fdb")]
pub use foundationdb::FoundationDbStore;
#[cfg(feature = "lance")]
pub use lance::{LanceIndex, LanceOptions};

/// Opens the store that the settings name in a FoundationDB cluster.
///
/// # Errors
/// [`StoreError::Unavailable`] when the client or the cluster cannot be used, with the setting to
/// look at.
#[cfg(feature = "fdb")]
pub async fn open_foundationdb(settings: &StoreSettings) -> Result<SharedStore, StoreError> {
    let library = settings.fdb_client_library.clone();
    // The first time, it loads a library and waits for a thread to start.
    let loaded =
        tokio::task::spawn_blocking(move || foundationdb::client::Client::load(library.as_deref()));
    let stopping = |_| StoreError::Unavailable { reason: "memcube is stopping".to_owned() };
    let client = loaded.await.map_err(stopping)??;
    let options = foundationdb::Options::from_settings(settings)?;
    Ok(std::sync::Arc::new(FoundationDbStore::open(client, &options).await?))
}

/// Tells that this build cannot.
///
/// # Errors
/// Always [`StoreError::Unavailable`].
#[cfg(not(feature = "fdb"))]
#[expect(clippy::unused_async, reason = "called like the one that can")]
pub async fn open_foundationdb(_: &StoreSettings) -> Result<SharedStore, StoreError> {
    let reason = "this memcube was built without the feature `fdb`; build it with `--features fdb`, \
                  or set `store.kind` to `embedded`";
    Err(StoreError::Unavailable { reason: reason.to_owned() })
}

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
