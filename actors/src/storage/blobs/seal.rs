//! What happens to bytes on their way into the object store, which others may be able to read.

use bytes::Bytes;
use memcube_schemas::TenantId;

use super::BlobResult;

/// Seals the bytes of a tenant, and opens them again. An implementation that encrypts does it here.
pub trait Seal: Send + Sync + 'static {
    /// What is stored in place of these bytes.
    ///
    /// # Errors
    /// `Refused` when the tenant's key cannot be had.
    fn seal(&self, tenant: &TenantId, bytes: Vec<u8>) -> BlobResult<Vec<u8>>;

    /// The bytes that were sealed.
    ///
    /// # Errors
    /// `Refused` when the tenant's key cannot be had, `Damaged` when the bytes do not fit it.
    fn open(&self, tenant: &TenantId, sealed: Bytes) -> BlobResult<Bytes>;
}

/// Stores bytes as they are; whoever runs the object store can read them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Seal for Plain {
    fn seal(&self, _tenant: &TenantId, bytes: Vec<u8>) -> BlobResult<Vec<u8>> {
        Ok(bytes)
    }

    fn open(&self, _tenant: &TenantId, sealed: Bytes) -> BlobResult<Bytes> {
        Ok(sealed)
    }
}
