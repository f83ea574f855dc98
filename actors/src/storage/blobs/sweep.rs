//! Takes away the blobs that nothing refers to: left by writers that crashed, or released.
//!
//! Each step can be the last one, and the next sweep goes on from there: the row is doomed, the
//! object removed, the row cleared. It is safe at any time and from several nodes at once; the
//! grace only spares the work of whoever is just about to refer to a blob.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use memcube_schemas::{
    BlobId, TenantId,
    activation::KvBlock,
    blob::{BlobRecord, BlobState},
    codec::{decode, encode},
    cube::CubeManifest,
    keys,
};
use object_store::{ObjectStoreExt, path::Path};

use super::{BlobError, BlobResult, Blobs, Doing, FOLDER, path};
use crate::{
    cube::{SNAPSHOT, activation_block, commit},
    storage::{Check, Entry, Mutation, RangeRead, StoreError},
};

/// Rows looked at in one read.
const PAGE_ROWS: usize = 256;

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Blobs that something refers to.
    pub kept: usize,
    /// Blobs that nothing refers to, and that are too young to go.
    pub spared: usize,
    /// Blobs removed, object and row.
    pub removed: usize,
    /// Objects removed that had no row.
    pub strays: usize,
    /// References removed whose cube is gone or refers to another blob.
    pub references: usize,
}

impl Blobs {
    /// The tenants that have objects.
    ///
    /// # Errors
    /// `Refused` and `Unreachable` with the setting to look at.
    pub async fn tenants(&self) -> BlobResult<Vec<TenantId>> {
        let folder = Path::from(FOLDER);
        let listed = self.objects.list_with_delimiter(Some(&folder)).await;
        let listed = listed.map_err(|error| Doing::List.failed(error))?;
        Ok(listed.common_prefixes.iter().filter_map(tenant_of).collect())
    }

    /// Removes the blobs of a tenant that nothing refers to and whose row is older than this, and
    /// the objects that have no row.
    ///
    /// # Errors
    /// When a store does not answer. What was done until then stays done.
    pub async fn sweep(&self, tenant: &TenantId, grace_ms: u64) -> BlobResult<Swept> {
        let mut swept = Swept::default();
        let mut range = keys::blobs(tenant);
        loop {
            let page = vec![RangeRead::page(range.clone(), PAGE_ROWS)];
            let page = self.store.read(page).await?.pages.into_iter().next().unwrap_or_default();
            for row in &page.entries {
                self.sweep_row(tenant, row, grace_ms, &mut swept).await?;
            }
            match page.entries.last() {
                Some(last) if page.more => range = range.after(&last.key),
                Some(_) | None => break,
            }
        }
        swept.strays = self.sweep_strays(tenant).await?;
        Ok(swept)
    }

    async fn sweep_row(
        &self,
        tenant: &TenantId,
        row: &Entry,
        grace_ms: u64,
        swept: &mut Swept,
    ) -> BlobResult<()> {
        let Some(id) = keys::trailing_blob_id(&row.key) else { return Ok(()) };
        let references = vec![
            RangeRead::key(row.key.clone()),
            RangeRead::all(keys::blob_references(tenant, id)),
        ];
        // Row and references at one version, so that no reference is missed that came with the row.
        let mut pages = self.store.read(references).await?.pages.into_iter();
        let (rows, references) = (pages.next(), pages.next().unwrap_or_default());
        let Some(row) = rows.and_then(|page| page.entries.into_iter().next()) else {
            return Ok(());
        };
        let mut held = references.entries.len();
        for reference in &references.entries {
            if self.drop_stale_reference(tenant, id, &row, reference).await? {
                swept.references += 1;
                held -= 1;
            }
        }
        let record: BlobRecord = decode(&row.value).map_err(damaged_row)?;
        if held > 0 {
            swept.kept += 1;
            return Ok(());
        }
        // A time that lies ahead is that of a clock which was wrong.
        let age_ms = self.environment.unix_ms().abs_diff(record.at_ms);
        if record.state != BlobState::Doomed && age_ms < grace_ms {
            swept.spared += 1;
            return Ok(());
        }
        swept.removed += usize::from(self.remove(tenant, id, &row, record).await?);
        Ok(())
    }

    /// Dooms a blob, unless it is doomed, removes its object, and clears its row.
    async fn remove(
        &self,
        tenant: &TenantId,
        id: BlobId,
        row: &Entry,
        record: BlobRecord,
    ) -> BlobResult<bool> {
        let mut version = row.version;
        if record.state != BlobState::Doomed {
            let at_ms = self.environment.unix_ms();
            let doomed = BlobRecord { state: BlobState::Doomed, at_ms, ..record };
            let check = Check::At { key: row.key.clone(), version };
            let doom = Mutation::Set { key: row.key.clone(), value: encode(&doomed) };
            match commit(&self.store, &self.environment, vec![check], vec![doom]).await {
                Ok(committed) => version = committed,
                // Somebody refers to it after all, or another sweep came first.
                Err(StoreError::Conflict { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.environment.reach("blob.doomed", "");
        self.delete_object(&path(tenant, id)).await?;
        self.environment.reach("blob.object-removed", "");
        let check = Check::At { key: row.key.clone(), version };
        let clear = Mutation::Clear { key: row.key.clone() };
        match commit(&self.store, &self.environment, vec![check], vec![clear]).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the reference of a cube that was deleted without having been read.
    async fn drop_stale_reference(
        &self,
        tenant: &TenantId,
        id: BlobId,
        row: &Entry,
        reference: &Entry,
    ) -> BlobResult<bool> {
        let Some((cube, purpose)) = keys::trailing_reference(&reference.key) else {
            return Ok(false);
        };
        // The row in which the cube names the blob, if it still does.
        let (key, names_it): (_, Naming) = match activation_block(&purpose) {
            Some(block) => (keys::kv_block(tenant, &cube, block), is_of_block),
            None if purpose == SNAPSHOT => (keys::manifest(tenant, &cube), is_of_snapshot),
            None => return Ok(false),
        };
        let output = self.store.read(vec![RangeRead::key(key.clone())]).await?;
        let check = match output.pages.first().and_then(|page| page.entries.first()) {
            Some(found) if names_it(&found.value, id)? => return Ok(false),
            Some(found) => Check::At { key, version: found.version },
            None => Check::Absent { key },
        };
        let unchanged = Check::At { key: row.key.clone(), version: row.version };
        let clear = Mutation::Clear { key: reference.key.clone() };
        match commit(&self.store, &self.environment, vec![check, unchanged], vec![clear]).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes objects without a row: puts that took effect after their blob was swept.
    pub(crate) async fn sweep_strays(&self, tenant: &TenantId) -> BlobResult<usize> {
        let folder = Path::from_iter([FOLDER, tenant.as_str()]);
        let objects: Vec<_> = self
            .objects
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(|error| Doing::List.failed(error))?;
        let ids: BTreeSet<BlobId> =
            objects.iter().filter_map(|object| object.location.filename()?.parse().ok()).collect();
        let ids: Vec<BlobId> = ids.into_iter().collect();
        let mut strays = 0;
        for ids in ids.chunks(PAGE_ROWS) {
            // Read after the list: a row is there before its object, so one that is missing now is
            // gone for good.
            let rows = ids.iter().map(|id| RangeRead::key(keys::blob(tenant, *id))).collect();
            let rows = self.store.read(rows).await?.pages;
            for (id, _) in ids.iter().zip(rows).filter(|(_, row)| row.entries.is_empty()) {
                self.delete_object(&path(tenant, *id)).await?;
                strays += 1;
            }
        }
        Ok(strays)
    }

    async fn delete_object(&self, path: &Path) -> BlobResult<()> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Doing::Delete.failed(error)),
        }
    }
}

/// Whether a row names a blob.
type Naming = fn(&[u8], BlobId) -> BlobResult<bool>;

fn is_of_snapshot(manifest: &[u8], id: BlobId) -> BlobResult<bool> {
    let read: CubeManifest = decode(manifest).map_err(damaged_row)?;
    Ok(read.snapshot.is_some_and(|snapshot| snapshot.blob == id))
}

fn is_of_block(row: &[u8], id: BlobId) -> BlobResult<bool> {
    let read: KvBlock = decode(row).map_err(damaged_row)?;
    Ok(read.blob == id)
}

/// The tenant of a folder of blobs. Two names cannot stand in a path as they are.
fn tenant_of(prefix: &Path) -> Option<TenantId> {
    let name = prefix.filename()?;
    let name = match name {
        "%2E" => ".",
        "%2E%2E" => "..",
        name => name,
    };
    TenantId::new(name).ok()
}

fn damaged_row(error: memcube_schemas::codec::DecodeError) -> BlobError {
    BlobError::Store(StoreError::Corrupt { reason: error.to_string() })
}
