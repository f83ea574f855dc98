//! Parts on their way out: rows are gathered until a part is full, then it is handed to a sink.
//!
//! Invariant: no more than one part of rows is gathered at a time, and the parts are numbered in
//! the
//! order in which they are full.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use memcube_schemas::{
    backup::{
        BackupApiKey, BackupCube, BackupPart, BackupRow, MANIFEST_NAME, PartContents, PartKind,
        PartRef, RowChange, part_name,
    },
    codec::encode,
};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use sha2::{Digest, Sha256};

use super::{TRIES_MAX, back_off};
use crate::{
    environment::Environment,
    error::{Error, ErrorKind, Result},
};

/// Bytes of a part beside those of its entries: room for the archive's own.
const PART_SLACK_BYTES: usize = 64 << 10;
/// Bytes of an entry beside those of its texts and values, rounded up.
const ENTRY_BYTES: usize = 128;

/// Where the objects of a backup go.
pub trait PartSink: Send + Sync {
    /// Refuses a place where there is a backup already.
    fn prepare(&self) -> BoxFuture<'_, Result<()>>;

    /// Puts an object under a name below the prefix of the backup. Done means durable.
    fn put(&self, name: String, bytes: Bytes) -> BoxFuture<'_, Result<()>>;
}

/// A prefix in an object store.
#[derive(Debug, Clone)]
pub struct ObjectSink {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl ObjectSink {
    /// Everything goes below `prefix`.
    #[must_use]
    pub const fn new(objects: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { objects, prefix }
    }

    async fn put_once(&self, path: &Path, name: &str, bytes: Bytes) -> object_store::Result<()> {
        // Another backup's manifest is never replaced; names of parts are this run's alone, so that
        // a second try may replace what the first one left.
        let is_manifest = name == MANIFEST_NAME;
        let mode = if is_manifest { PutMode::Create } else { PutMode::Overwrite };
        let payload = PutPayload::from_bytes(bytes);
        self.objects.put_opts(path, payload, PutOptions::from(mode)).await.map(|_| ())
    }

    /// Whether the object is there, and is this one: an earlier try may have put it.
    async fn holds(&self, path: &Path, bytes: &Bytes) -> bool {
        match self.objects.get(path).await {
            Ok(found) => found.bytes().await.is_ok_and(|found| found == *bytes),
            Err(_) => false,
        }
    }
}

impl PartSink for ObjectSink {
    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let path = object_path(&self.prefix, MANIFEST_NAME);
            let mut tries = 0;
            loop {
                match self.objects.head(&path).await {
                    Ok(_) => return Err(occupied(&self.prefix)),
                    Err(object_store::Error::NotFound { .. }) => return Ok(()),
                    Err(_) if tries < TRIES_MAX => back_off(tries).await,
                    Err(error) => return Err(unreachable(&error)),
                }
                tries += 1;
            }
        })
    }

    fn put(&self, name: String, bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let path = object_path(&self.prefix, &name);
            let mut tries = 0;
            loop {
                match self.put_once(&path, &name, bytes.clone()).await {
                    Ok(()) => return Ok(()),
                    Err(object_store::Error::AlreadyExists { .. }) => {
                        let is_ours = self.holds(&path, &bytes).await;
                        return if is_ours { Ok(()) } else { Err(occupied(&self.prefix)) };
                    }
                    Err(_) if tries < TRIES_MAX => back_off(tries).await,
                    Err(error) => return Err(unreachable(&error)),
                }
                tries += 1;
            }
        })
    }
}

/// Where an object of a backup lies.
pub(super) fn object_path(prefix: &Path, name: &str) -> Path {
    name.split('/').fold(prefix.clone(), |path, part| path.join(part))
}

pub(super) fn unreachable(error: &object_store::Error) -> Error {
    Error::unavailable(format!(
        "the object store of the backup does not answer: {error}; check the address and the \
         credentials, then run the command again"
    ))
}

fn occupied(prefix: &Path) -> Error {
    let message = format!("there is a backup at `{prefix}` already; choose another place");
    Error::new(ErrorKind::Conflict, message)
}

/// Gathers entries, and hands full parts to the sink.
pub(super) struct PartWriter<'a> {
    sink: &'a dyn PartSink,
    environment: &'a Environment,
    run: u64,
    /// Bytes of the entries of one part; a single one may have more.
    entries_bytes_max: usize,
    rows: Vec<BackupRow>,
    rows_bytes: usize,
    cubes: Vec<BackupCube>,
    cubes_bytes: usize,
    pub(super) rows_total: u64,
    pub(super) cubes_total: u64,
    pub(super) row_parts: Vec<PartRef>,
    pub(super) cube_parts: Vec<PartRef>,
    pub(super) key_parts: Vec<PartRef>,
}

impl<'a> PartWriter<'a> {
    pub(super) fn new(
        sink: &'a dyn PartSink,
        environment: &'a Environment,
        run: u64,
        part_bytes_max: usize,
    ) -> Self {
        Self {
            sink,
            environment,
            run,
            entries_bytes_max: part_bytes_max.saturating_sub(PART_SLACK_BYTES),
            rows: Vec::new(),
            rows_bytes: 0,
            cubes: Vec::new(),
            cubes_bytes: 0,
            rows_total: 0,
            cubes_total: 0,
            row_parts: Vec::new(),
            cube_parts: Vec::new(),
            key_parts: Vec::new(),
        }
    }

    /// The number of the part that the next row goes to, unless that is full.
    pub(super) fn row_part(&self) -> u32 {
        number(&self.row_parts)
    }

    pub(super) async fn row(&mut self, scan: u32, change: RowChange) -> Result<()> {
        let bytes = row_bytes(&change);
        if self.rows_bytes + bytes > self.entries_bytes_max && !self.rows.is_empty() {
            self.flush_rows().await?;
        }
        self.rows.push(BackupRow { scan, change });
        self.rows_bytes += bytes;
        self.rows_total += 1;
        Ok(())
    }

    pub(super) async fn cube(&mut self, cube: BackupCube) -> Result<()> {
        let texts = cube.tenant.as_str().len() + cube.cube.as_str().len();
        let bytes = ENTRY_BYTES + texts + cube.manifest.len();
        if self.cubes_bytes + bytes > self.entries_bytes_max && !self.cubes.is_empty() {
            self.flush_cubes().await?;
        }
        self.cubes.push(cube);
        self.cubes_bytes += bytes;
        self.cubes_total += 1;
        Ok(())
    }

    pub(super) async fn api_keys(&mut self, keys: Vec<BackupApiKey>) -> Result<()> {
        let part = self.put(PartKind::ApiKeys, PartContents::ApiKeys(keys)).await?;
        self.key_parts.push(part);
        Ok(())
    }

    /// Puts what is still gathered.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            self.flush_rows().await?;
        }
        if !self.cubes.is_empty() {
            self.flush_cubes().await?;
        }
        Ok(())
    }

    /// Puts the last object, which makes it a backup.
    pub(super) async fn manifest(&self, bytes: Vec<u8>) -> Result<()> {
        self.sink.put(MANIFEST_NAME.to_owned(), Bytes::from(bytes)).await
    }

    async fn flush_rows(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        self.rows_bytes = 0;
        let part = self.put(PartKind::Rows, PartContents::Rows(rows)).await?;
        self.row_parts.push(part);
        Ok(())
    }

    async fn flush_cubes(&mut self) -> Result<()> {
        let cubes = std::mem::take(&mut self.cubes);
        self.cubes_bytes = 0;
        let part = self.put(PartKind::Cubes, PartContents::Cubes(cubes)).await?;
        self.cube_parts.push(part);
        Ok(())
    }

    async fn put(&self, kind: PartKind, contents: PartContents) -> Result<PartRef> {
        let number = number(match kind {
            PartKind::Rows => &self.row_parts,
            PartKind::Cubes => &self.cube_parts,
            PartKind::ApiKeys => &self.key_parts,
        });
        let packed = self.environment.compute(move || {
            let bytes = encode(&BackupPart { number, contents });
            let sha256: [u8; 32] = Sha256::digest(&bytes).into();
            (bytes, sha256)
        });
        let packed = packed.await;
        let (bytes, sha256) =
            packed.ok_or_else(|| Error::internal("a part of the backup could not be packed"))?;
        let part = PartRef { bytes: bytes.len() as u64, sha256 };
        self.environment.reach("backup.part", kind.as_str());
        self.sink.put(part_name(self.run, kind, number), Bytes::from(bytes)).await?;
        Ok(part)
    }
}

/// The number of the next part.
fn number(parts: &[PartRef]) -> u32 {
    u32::try_from(parts.len() + 1).expect("invariant: no backup has four billion parts")
}

fn row_bytes(change: &RowChange) -> usize {
    ENTRY_BYTES
        + match change {
            RowChange::Item { value, .. } | RowChange::History { value, .. } => value.len(),
            RowChange::Vector { model, value, .. } => model.as_str().len() + value.len(),
            RowChange::Request { id, value } => id.as_str().len() + value.len(),
            RowChange::ForgetMemory(_) | RowChange::ForgetVectors => 0,
        }
}
