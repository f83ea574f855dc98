//! Copies of blobs in a second, nearer object store, which may lose them at any time.
//!
//! A mirror has no rows of its own: it shares those of the blobs that it copies, so that
//! `sweep_strays` takes away what is left of blobs that are gone.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use memcube_schemas::{BlobId, TenantId};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

use super::{BlobResult, Blobs, Doing, FOLDER, path};

impl Blobs {
    /// A mirror of these blobs in another object store.
    pub(crate) fn mirror(&self, objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, ..self.clone() }
    }

    /// Puts an object as it lies into this mirror.
    ///
    /// # Errors
    /// `Refused` and `Unreachable` with the setting to look at.
    pub(crate) async fn put_copy(
        &self,
        tenant: &TenantId,
        id: BlobId,
        sealed: Bytes,
    ) -> BlobResult<()> {
        // The name is that of the content, so that overwriting does no harm.
        self.put(&path(tenant, id), sealed).await
    }

    /// Removes a copy, if it is there.
    ///
    /// # Errors
    /// `Refused` and `Unreachable` with the setting to look at.
    pub(crate) async fn drop_copy(&self, tenant: &TenantId, id: BlobId) -> BlobResult<()> {
        match self.objects.delete(&path(tenant, id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Doing::Delete.failed(error)),
        }
    }

    /// The copies of a tenant with their bytes, in the order of their names.
    ///
    /// # Errors
    /// `Refused` and `Unreachable` with the setting to look at.
    pub(crate) async fn copies(&self, tenant: &TenantId) -> BlobResult<Vec<(BlobId, u64)>> {
        let folder = Path::from_iter([FOLDER, tenant.as_str()]);
        let listed = self.objects.list(Some(&folder));
        let objects: Vec<_> =
            listed.try_collect().await.map_err(|error| Doing::List.failed(error))?;
        let mut copies: Vec<(BlobId, u64)> = objects
            .iter()
            .filter_map(|object| Some((object.location.filename()?.parse().ok()?, object.size)))
            .collect();
        copies.sort_unstable();
        Ok(copies)
    }
}
