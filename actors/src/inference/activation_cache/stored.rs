//! Blocks in the cold tiers: written as blobs, read back and held against their rows. A local disk
//! may stand in front of the object store.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use memcube_schemas::{
    BlobId, TenantId,
    activation::{KvBlock, KvBlockBytes, KvDtype, ModelFingerprint},
    codec::{encode, is_viewable, view},
    limits::KV_COPIES_AT_ONCE,
};

use super::{
    chain::ChainBlock,
    estimate::Tier,
    lru::ByteLru,
    quantise::{dequantise, quantise},
};
use crate::{
    environment::Environment,
    error::{Error, Result},
    inference::engine::{KvBytes, KvLayer},
    metrics as names,
    storage::{
        Blobs,
        blobs::{BlobError, Held, PreparedBlob},
    },
};

/// A block that came from a cold tier.
#[derive(Debug, Clone)]
pub(crate) struct LoadedBlock {
    pub(crate) block: Arc<KvBytes>,
    pub(crate) tier: Tier,
    /// Whether its numbers are those that were computed, bit for bit.
    pub(crate) is_exact: bool,
}

/// Why a block could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LoadError {
    /// Its bytes are not those that were stored.
    Corrupt,
    /// It cannot be read now.
    Unavailable,
}

/// A block whose blob is in place, and the row that will name it.
#[derive(Debug, Clone)]
pub struct StoredBlock {
    /// The row.
    pub row: KvBlock,
    /// The blob.
    pub prepared: PreparedBlob,
}

/// The local disk in front of the object store. Cheap to clone.
#[derive(Clone)]
struct Disk {
    mirror: Blobs,
    held: Arc<Mutex<ByteLru<BlobId, ()>>>,
    /// Copies that are being written, and are still wanted.
    copying: Arc<Mutex<BTreeSet<(TenantId, BlobId)>>>,
    /// Tenants whose copies were looked for since the start.
    known: Arc<Mutex<BTreeSet<TenantId>>>,
}

/// Where cold blocks lie.
pub(crate) struct ColdTiers {
    blobs: Blobs,
    /// What the object store is: some are the local disk itself.
    tier: Tier,
    disk: Option<Disk>,
    /// Whether numbers are stored in 8 bits.
    in_8_bits: bool,
    environment: Environment,
}

impl ColdTiers {
    pub(crate) fn new(
        blobs: Blobs,
        tier: Tier,
        mirror: Option<(Blobs, u64)>,
        in_8_bits: bool,
        environment: Environment,
    ) -> Self {
        let disk = mirror.map(|(mirror, bytes_max)| Disk {
            mirror,
            held: Arc::new(Mutex::new(ByteLru::new(bytes_max, bytes_max))),
            copying: Arc::default(),
            known: Arc::default(),
        });
        Self { blobs, tier, disk, in_8_bits, environment }
    }

    /// Puts a block into the object store.
    pub(crate) async fn store(
        &self,
        tenant: &TenantId,
        model: &ModelFingerprint,
        block: &ChainBlock,
        numbers: Arc<KvBytes>,
    ) -> Result<StoredBlock> {
        let (in_8_bits, key) = (self.in_8_bits, block.key);
        let encoded = self.environment.compute(move || {
            let small = in_8_bits.then(|| quantise(&numbers)).flatten();
            let error = small.as_ref().map(|(_, error)| *error);
            let numbers = small.map_or_else(|| KvBytes::clone(&numbers), |(small, _)| small);
            let checksums: Vec<u32> = numbers.layers.iter().map(|layer| layer.checksum).collect();
            let bytes = KvBlockBytes {
                key,
                start: number(numbers.start),
                tokens: number(numbers.tokens),
                dtype: numbers.dtype,
                checksums: checksums.clone(),
                layers: numbers.layers.iter().map(|layer| layer.bytes.to_vec()).collect(),
            };
            (encode(&bytes), checksums, numbers.dtype, numbers.bytes(), error)
        });
        let encoded = encoded.await.ok_or_else(|| Error::internal("encoding a block panicked"))?;
        let (bytes, checksums, dtype, size, error) = encoded;
        if let Some(error) = error {
            metrics::histogram!(names::ACTIVATION_QUANTISATION_ERROR)
                .record(f64::from(error.relative));
        }
        let prepared = self.blobs.begin(tenant, bytes).await?;
        let row = KvBlock {
            key,
            parent: block.parent,
            start: number(block.span.start),
            tokens: number(block.span.len()),
            model: model.clone(),
            dtype,
            bytes: size,
            checksums,
            sources: block.sources.clone(),
            conversation: block.conversation.clone(),
            blob: prepared.id,
            stored_at_ms: self.environment.unix_ms(),
        };
        Ok(StoredBlock { row, prepared })
    }

    /// Which tier a block would come from.
    pub(crate) fn tier_of(&self, tenant: &TenantId, row: &KvBlock) -> Tier {
        match &self.disk {
            Some(disk) if lock(&disk.held).get(tenant, &row.blob).is_some() => Tier::Disk,
            Some(_) | None => self.tier,
        }
    }

    /// Reads a block and holds it against its row.
    pub(crate) async fn load(
        &self,
        tenant: &TenantId,
        row: &KvBlock,
        dtype: KvDtype,
    ) -> std::result::Result<LoadedBlock, LoadError> {
        if let Some(loaded) = self.load_copy(tenant, row, dtype).await {
            return Ok(loaded);
        }
        let bytes = self.fetch(tenant, row.blob).await.map_err(|error| match error {
            BlobError::Damaged { .. } => LoadError::Corrupt,
            BlobError::Missing
            | BlobError::Refused { .. }
            | BlobError::Unreachable { .. }
            | BlobError::Store(_) => LoadError::Unavailable,
        })?;
        self.compare(bytes, row, dtype, self.tier).await.ok_or(LoadError::Corrupt)
    }

    /// Reads the copy on the disk. Whatever is wrong with it, the object store has the original.
    async fn load_copy(
        &self,
        tenant: &TenantId,
        row: &KvBlock,
        dtype: KvDtype,
    ) -> Option<LoadedBlock> {
        let disk = self.disk.as_ref()?;
        lock(&disk.held).get(tenant, &row.blob)?;
        let sealed = disk.mirror.get_sealed(tenant, row.blob, Held::AgainstOwnChecksums).await;
        let loaded = match sealed.and_then(|sealed| disk.mirror.open(tenant, sealed)) {
            Ok(bytes) => self.compare(bytes, row, dtype, Tier::Disk).await,
            Err(_) => None,
        };
        if loaded.is_none() {
            self.drop_copies(tenant, &[row.blob]);
        }
        loaded
    }

    /// Holds bytes against their row, off the event loop.
    async fn compare(
        &self,
        bytes: Bytes,
        row: &KvBlock,
        dtype: KvDtype,
        tier: Tier,
    ) -> Option<LoadedBlock> {
        let row = row.clone();
        let checked = self.environment.compute(move || check(bytes, &row, dtype)).await;
        let (block, is_exact) = checked.flatten()?;
        Some(LoadedBlock { block: Arc::new(block), tier, is_exact })
    }

    async fn fetch(
        &self,
        tenant: &TenantId,
        blob: BlobId,
    ) -> std::result::Result<Bytes, BlobError> {
        let held = match self.tier {
            Tier::Disk => Held::AgainstOwnChecksums,
            Tier::Device | Tier::Ram | Tier::Objects | Tier::Remote => Held::AgainstName,
        };
        let sealed = self.blobs.get_sealed(tenant, blob, held).await?;
        self.keep_copy(tenant, blob, &sealed);
        self.blobs.open(tenant, sealed)
    }

    /// Puts a copy on the disk, while its reader goes on. If it fails, or too many are under way,
    /// the next load comes from the object store as well.
    fn keep_copy(&self, tenant: &TenantId, blob: BlobId, sealed: &Bytes) {
        let Some(disk) = self.disk.clone() else { return };
        let (tenant, sealed) = (tenant.clone(), sealed.clone());
        {
            let mut copying = lock(&disk.copying);
            if copying.len() >= KV_COPIES_AT_ONCE || !copying.insert((tenant.clone(), blob)) {
                return;
            }
        }
        self.environment.spawn(async move {
            let bytes = sealed.len() as u64;
            let is_put = disk.mirror.put_copy(&tenant, blob, sealed).await.is_ok();
            let is_wanted = lock(&disk.copying).remove(&(tenant.clone(), blob));
            if !is_put || !is_wanted {
                let _ = disk.mirror.drop_copy(&tenant, blob).await;
                return;
            }
            let gone = lock(&disk.held).admit(&tenant, blob, (), bytes);
            for gone in &gone {
                metrics::counter!(names::ACTIVATION_EVICTIONS_TOTAL, "tier" => "disk").increment(1);
                let _ = disk.mirror.drop_copy(&gone.tenant, gone.key).await;
            }
            let held = lock(&disk.held).bytes();
            metrics::gauge!(names::ACTIVATION_BYTES, "tier" => "disk").set(held as f64);
        });
    }

    /// Learns which copies a former life has left on the disk, once for each tenant.
    pub(crate) async fn find_copies(&self, tenant: &TenantId) {
        let Some(disk) = &self.disk else { return };
        if !lock(&disk.known).insert(tenant.clone()) {
            return;
        }
        // A crash may have left copies whose blobs are gone.
        let (mirror, of_tenant) = (disk.mirror.clone(), tenant.clone());
        self.environment.spawn(async move {
            if let Err(error) = mirror.sweep_strays(&of_tenant).await {
                tracing::debug!(%error, "copies of blocks could not be swept");
            }
        });
        // What cannot be listed is loaded from the object store.
        for (blob, bytes) in disk.mirror.copies(tenant).await.unwrap_or_default() {
            let gone = lock(&disk.held).admit(tenant, blob, (), bytes);
            for gone in &gone {
                let _ = disk.mirror.drop_copy(&gone.tenant, gone.key).await;
            }
        }
    }

    /// Takes copies out of use at once, and off the disk soon. What a crash leaves there, a sweep
    /// takes away.
    pub(crate) fn drop_copies(&self, tenant: &TenantId, blobs: &[BlobId]) {
        let Some(disk) = &self.disk else { return };
        let mut copying = lock(&disk.copying);
        for blob in blobs {
            copying.remove(&(tenant.clone(), *blob));
        }
        drop(copying);
        let mut held = lock(&disk.held);
        let held: Vec<BlobId> =
            blobs.iter().copied().filter(|blob| held.remove(tenant, blob).is_some()).collect();
        if held.is_empty() {
            return;
        }
        let (mirror, tenant) = (disk.mirror.clone(), tenant.clone());
        self.environment.spawn(async move {
            for blob in held {
                let _ = mirror.drop_copy(&tenant, blob).await;
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics while it holds the disk's index")
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The numbers of a block, if they are those that its row means. They stay where the bytes lie.
pub(super) fn check(bytes: Bytes, row: &KvBlock, dtype: KvDtype) -> Option<(KvBytes, bool)> {
    let bytes = if is_viewable(&bytes) { bytes } else { Bytes::from(bytes.to_vec()) };
    let read = view::<KvBlockBytes>(&bytes).ok()?;
    let is_same = (read.key.0, read.start.to_native(), read.tokens.to_native())
        == (row.key.0, row.start, row.tokens)
        && read.dtype == row.dtype;
    let checksums = read.checksums.iter().map(|checksum| checksum.to_native());
    if !is_same || !checksums.eq(row.checksums.iter().copied()) {
        return None;
    }
    if read.layers.len() != row.checksums.len() {
        return None;
    }
    let layers = read.layers.iter().zip(&row.checksums);
    let layers = layers.map(|(layer, checksum)| KvLayer {
        bytes: bytes.slice_ref(layer.as_slice()),
        checksum: *checksum,
    });
    let numbers = KvBytes {
        start: usize::try_from(row.start).ok()?,
        tokens: usize::try_from(row.tokens).ok()?,
        dtype: row.dtype,
        layers: layers.collect(),
    };
    if !numbers.is_intact() {
        return None;
    }
    if numbers.dtype == dtype {
        return Some((numbers, true));
    }
    dequantise(&numbers, dtype).map(|numbers| (numbers, false))
}
