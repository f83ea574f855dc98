//! Blobs: large bytes in an object store, named by their content and guarded by rows.
//!
//! A row announces a blob, the object is put, and the commit that refers to it makes the row live,
//! on the condition that nobody has touched the row since (`memcube_schemas::blob`). The sweep
//! takes away what nothing refers to. Invariant: nothing in the state store ever refers to an
//! object that is not there, whatever crashes when, and however wrong the clocks are.

mod error;
mod mirror;
mod seal;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::join, stream};
use memcube_schemas::{
    BlobId, CubeId, TenantId, Version,
    blob::{BlobRecord, BlobState},
    codec::encode,
    keys,
    limits::{BLOB_PART_BYTES, BLOB_PARTS_AT_ONCE},
};
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path,
};
use sha2::{Digest, Sha256};

use self::error::Doing;
pub use self::{
    error::BlobError,
    seal::{Plain, Seal},
    sweep::Swept,
};
use super::{Check, Mutation, SharedStore};
use crate::{cube::commit, defects::Defect, environment::Environment};

/// Below this folder lie all objects.
const FOLDER: &str = "blobs";
/// Below this folder lie objects that were only put to be read back.
const PROBES: &str = "probes";
/// Random bytes at the end of every blob, so that no two puts ever share an object.
const SALT_BYTES: usize = 16;

/// Shorthand for results of this module.
pub type BlobResult<T> = Result<T, BlobError>;

/// The blobs of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    objects: Arc<dyn ObjectStore>,
    store: SharedStore,
    environment: Environment,
    seal: Arc<dyn Seal>,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blobs({})", self.objects)
    }
}

/// A blob whose object is in place, and which a commit may now refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedBlob {
    /// Its name.
    pub id: BlobId,
    tenant: TenantId,
    bytes: u64,
    /// The commit that announced it.
    row: Version,
}

impl PreparedBlob {
    /// What must hold where a commit refers to it: nobody has given it up meanwhile.
    #[must_use]
    pub fn check(&self) -> Check {
        Check::At { key: self.row_key(), version: self.row }
    }

    /// The key of its row, which a refused commit names if the blob is the reason.
    #[must_use]
    pub fn row_key(&self) -> Vec<u8> {
        keys::blob(&self.tenant, self.id)
    }

    /// What a commit writes by which a cube refers to it.
    #[must_use]
    pub fn refer(&self, cube: &CubeId, purpose: &str, now_ms: i64) -> [Mutation; 2] {
        let record = BlobRecord { state: BlobState::Live, bytes: self.bytes, at_ms: now_ms };
        [
            Mutation::Set { key: self.row_key(), value: encode(&record) },
            Mutation::Set {
                key: keys::blob_reference(&self.tenant, self.id, cube, purpose),
                value: Vec::new(),
            },
        ]
    }
}

/// What a commit writes by which a cube no longer refers to a blob. What nothing refers to, the
/// sweep takes away.
#[must_use]
pub fn release(tenant: &TenantId, id: BlobId, cube: &CubeId, purpose: &str) -> Mutation {
    Mutation::Clear { key: keys::blob_reference(tenant, id, cube, purpose) }
}

impl Blobs {
    /// Blobs in an object store, with their rows in a state store.
    #[must_use]
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        store: SharedStore,
        environment: Environment,
        seal: Arc<dyn Seal>,
    ) -> Self {
        Self { objects, store, environment, seal }
    }

    /// Announces bytes and puts them into the object store. If it fails or is given up half way,
    /// the sweep takes away what is left.
    ///
    /// # Errors
    /// `Refused` and `Unreachable` with the setting to look at, `Store` when the announcement
    /// cannot be committed.
    pub async fn begin(&self, tenant: &TenantId, bytes: Vec<u8>) -> BlobResult<PreparedBlob> {
        let (id, sealed) = self.name(tenant, bytes).await?;
        let length = sealed.len() as u64;
        let record = BlobRecord {
            state: BlobState::Pending,
            bytes: length,
            at_ms: self.environment.unix_ms(),
        };
        let key = keys::blob(tenant, id);
        let checks = vec![Check::Absent { key: key.clone() }];
        let announce = vec![Mutation::Set { key, value: encode(&record) }];
        let row = commit(&self.store, &self.environment, checks, announce).await?;
        self.environment.reach("blob.announced", "");
        if self.environment.plants(Defect::SnapshotBeforeBlob) {
            let (blobs, path) = (self.clone(), path(tenant, id));
            self.environment.spawn(async move { drop(blobs.put(&path, sealed).await) });
        } else {
            self.put(&path(tenant, id), sealed).await?;
        }
        self.environment.reach("blob.put", "");
        Ok(PreparedBlob { id, tenant: tenant.clone(), bytes: length, row })
    }

    /// Salts and seals bytes, and hashes what is to be stored.
    async fn name(&self, tenant: &TenantId, mut bytes: Vec<u8>) -> BlobResult<(BlobId, Bytes)> {
        bytes.extend_from_slice(&self.environment.random_u128().to_le_bytes());
        let (seal, tenant) = (Arc::clone(&self.seal), tenant.clone());
        let named = self.environment.compute(move || {
            let sealed = seal.seal(&tenant, bytes)?;
            Ok((BlobId(Sha256::digest(&sealed).into()), Bytes::from(sealed)))
        });
        named.await.unwrap_or_else(|| Err(BlobError::unreachable("sealing a blob panicked")))
    }

    async fn put(&self, path: &Path, sealed: Bytes) -> BlobResult<()> {
        if sealed.len() > BLOB_PART_BYTES {
            return self.put_parts(path, &sealed).await.map_err(|e| Doing::Put.failed(e));
        }
        let put = |mode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            self.objects.put_opts(path, PutPayload::from(sealed.clone()), options)
        };
        let outcome = match put(PutMode::Create).await {
            // Written by a try of the same put whose answer was lost, whole or torn.
            // Or the store cannot make sure. The name is that of the content, so that overwriting
            // does no harm.
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. }
                | object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. },
            ) => put(PutMode::Overwrite).await,
            outcome => outcome,
        };
        outcome.map(drop).map_err(|error| Doing::Put.failed(error))
    }

    async fn put_parts(&self, path: &Path, sealed: &Bytes) -> object_store::Result<()> {
        let mut upload = self.objects.put_multipart(path).await?;
        let mut parts = Vec::new();
        for range in parts_of(0, sealed.len() as u64) {
            let part = sealed.slice(index(range.start)..index(range.end));
            parts.push(upload.put_part(PutPayload::from(part)));
        }
        let sent = stream::iter(parts).buffered(BLOB_PARTS_AT_ONCE).try_collect::<()>().await;
        let finished = match sent {
            Ok(()) => upload.complete().await.map(drop),
            Err(error) => Err(error),
        };
        if finished.is_err() {
            // The object never was; what it left at the provider costs space until it expires.
            let _ = upload.abort().await;
        }
        finished
    }

    /// Reads a blob, and holds it against its name.
    ///
    /// # Errors
    /// `Missing` without such an object, `Damaged` when the bytes are not those of the name,
    /// `Refused` and `Unreachable` with the setting to look at.
    pub async fn get(&self, tenant: &TenantId, id: BlobId) -> BlobResult<Bytes> {
        let sealed = self.get_sealed(tenant, id, Held::AgainstName).await?;
        self.open(tenant, sealed)
    }

    /// Reads an object as it lies.
    ///
    /// # Errors
    /// As `get`.
    pub(crate) async fn get_sealed(
        &self,
        tenant: &TenantId,
        id: BlobId,
        held: Held,
    ) -> BlobResult<Bytes> {
        let path = path(tenant, id);
        let failed = |error| Doing::Get.failed(error);
        let part = BLOB_PART_BYTES as u64;
        let range = Some(GetRange::Bounded(0..part));
        let options = GetOptions { range, ..GetOptions::default() };
        let first = self.objects.get_opts(&path, options).await.map_err(failed)?;
        let size = first.meta.size;
        let first = first.bytes().await.map_err(failed)?;
        if held == Held::AgainstOwnChecksums && first.len() as u64 == size {
            return Ok(first);
        }
        let mut whole = Whole::of(size);
        whole = self.take(whole, first).await?;
        let ranges = stream::iter(parts_of(part, size));
        let rest = ranges.map(|range| self.objects.get_range(&path, range));
        let mut rest = std::pin::pin!(rest.buffered(BLOB_PARTS_AT_ONCE));
        while let Some(part) = rest.next().await {
            whole = self.take(whole, part.map_err(failed)?).await?;
        }
        if whole.hash.finalize().as_slice() != id.0 {
            return Err(BlobError::damaged("its bytes are not those that were written"));
        }
        Ok(Bytes::from(whole.bytes))
    }

    /// The bytes of a blob, out of its object.
    ///
    /// # Errors
    /// `Refused` when the tenant's key cannot be had, `Damaged` when the bytes do not fit it.
    pub(crate) fn open(&self, tenant: &TenantId, sealed: Bytes) -> BlobResult<Bytes> {
        let opened = self.seal.open(tenant, sealed)?;
        match opened.len().checked_sub(SALT_BYTES) {
            Some(length) => Ok(opened.slice(..length)),
            None => Err(BlobError::damaged("it is too short")),
        }
    }

    /// Appends a part and hashes it, while the next ones are on their way.
    async fn take(&self, whole: Whole, part: Bytes) -> BlobResult<Whole> {
        let Whole { mut bytes, mut hash } = whole;
        let panicked = || BlobError::unreachable("hashing a blob panicked");
        if bytes.is_empty() && part.len() == bytes.capacity() {
            let work = move || {
                hash.update(&part);
                // A small blob is one part, and stays where it is.
                Whole { bytes: Vec::from(part), hash }
            };
            return self.environment.compute(work).await.ok_or_else(panicked);
        }
        // Memory that is touched for the first time takes about as long to fill as to hash.
        let hashed = part.clone();
        let hashing = self.environment.compute(move || {
            hash.update(&hashed);
            hash
        });
        let copying = self.environment.compute(move || {
            bytes.extend_from_slice(&part);
            bytes
        });
        let (hash, bytes) = join(hashing, copying).await;
        Ok(Whole { bytes: bytes.ok_or_else(panicked)?, hash: hash.ok_or_else(panicked)? })
    }
}

/// Writes, reads and removes a small object, to see whether an object store can be used. `name`
/// should be one that nobody else takes.
///
/// # Errors
/// `Refused` and `Unreachable` with the setting to look at.
pub async fn probe(objects: &dyn ObjectStore, name: &str) -> BlobResult<()> {
    let path = Path::from_iter([PROBES, name]);
    let failed = |doing: Doing| move |error| doing.failed(error);
    let bytes = Bytes::copy_from_slice(name.as_bytes());
    let put = objects.put(&path, PutPayload::from(bytes.clone())).await;
    put.map_err(failed(Doing::Put))?;
    let read = objects.get(&path).await.map_err(failed(Doing::Get))?;
    let read = read.bytes().await.map_err(failed(Doing::Get))?;
    objects.delete(&path).await.map_err(failed(Doing::Delete))?;
    if read != bytes {
        return Err(BlobError::damaged("other bytes came back than were written"));
    }
    Ok(())
}

/// What the bytes of a blob are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// The hash that is its name.
    AgainstName,
    /// Checksums inside of it, by the caller: a tenth of the work, and enough for a disk of this
    /// node. A blob of several parts is held against its name all the same.
    AgainstOwnChecksums,
}

/// A blob as far as it has arrived.
struct Whole {
    bytes: Vec<u8>,
    hash: Sha256,
}

impl Whole {
    fn of(size: u64) -> Self {
        Self { bytes: Vec::with_capacity(index(size)), hash: Sha256::new() }
    }
}

/// Where a blob lies. A tenant is one part of the path whatever its name.
fn path(tenant: &TenantId, id: BlobId) -> Path {
    let name = id.to_string();
    Path::from_iter([FOLDER, tenant.as_str(), &name[..2], &name])
}

/// The ranges in which bytes from one place to another are moved.
fn parts_of(from: u64, to: u64) -> impl Iterator<Item = Range<u64>> {
    let part = BLOB_PART_BYTES as u64;
    (0..)
        .map(move |n| from + n * part)
        .take_while(move |start| *start < to)
        .map(move |start| start..(start + part).min(to))
}

fn index(place: u64) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}
