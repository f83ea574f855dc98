//! A backup that is read: its manifest, and its parts, each checked before anything in it is
//! believed.

use std::sync::Arc;

use bytes::Bytes;
use memcube_schemas::{
    backup::{
        BackupApiKey, BackupCube, BackupManifest, BackupPart, BackupRow, MANIFEST_NAME,
        PartContents, PartKind, RowChange, part_name,
    },
    codec::{check_envelope, decode},
    cube::{ApiKeyRecord, CubeManifest, RequestRecord},
    memory::{MemoryItem, MemoryRevision, MemoryVector},
};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use sha2::{Digest, Sha256};

use super::{
    Selection, TRIES_MAX, back_off,
    parts::{object_path, unreachable},
};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a manifest: one of ten million parts has fewer.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// A complete backup.
#[derive(Debug)]
pub struct Archive {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    manifest: BackupManifest,
    /// The part with rows that was read last: cubes that lie together share it.
    rows: Option<(u32, Vec<BackupRow>)>,
}

impl Archive {
    /// Opens the backup at a place.
    ///
    /// # Errors
    /// `NotFound` when there is none, or only one that broke off; `Invalid` when a newer memcube
    /// wrote it, `Corrupt` when its manifest is damaged, `Unavailable` when the object store does
    /// not answer.
    pub async fn open(objects: Arc<dyn ObjectStore>, prefix: Path) -> Result<Self> {
        let path = object_path(&prefix, MANIFEST_NAME);
        let Some(bytes) = get(&objects, &path, |bytes| bytes <= MANIFEST_BYTES_MAX).await? else {
            return Err(Error::not_found(format!(
                "there is no complete backup at `{prefix}`: the object `{MANIFEST_NAME}` is not \
                 there; check the address, or take the backup again"
            )));
        };
        let damaged = |error: &dyn std::fmt::Display| {
            let message = format!("the manifest of the backup at `{prefix}` is damaged: {error}");
            Error::new(ErrorKind::Corrupt, message)
        };
        check_envelope::<BackupManifest>(&bytes).map_err(|error| damaged(&error))?;
        // The bytes are whole, so that it can only be the format.
        let manifest = decode(&bytes).map_err(|error| {
            Error::invalid(format!("the backup at `{prefix}` cannot be read here: {error}"))
        })?;
        Ok(Self { objects, prefix, manifest, rows: None })
    }

    /// What the backup says of itself.
    #[must_use]
    pub const fn manifest(&self) -> &BackupManifest {
        &self.manifest
    }

    /// How many parts of one kind there are.
    pub(super) fn count(&self, kind: PartKind) -> u32 {
        u32::try_from(self.manifest.parts(kind).len()).unwrap_or(u32::MAX)
    }

    /// The cubes in one part of the index.
    pub(super) async fn cubes(&self, number: u32) -> Result<Vec<BackupCube>> {
        match self.part(PartKind::Cubes, number).await?.contents {
            PartContents::Cubes(cubes) => Ok(cubes),
            PartContents::Rows(_) | PartContents::ApiKeys(_) => {
                Err(self.damaged(PartKind::Cubes, number, "it holds something else"))
            }
        }
    }

    /// The API keys in one part.
    pub(super) async fn api_keys(&self, number: u32) -> Result<Vec<BackupApiKey>> {
        match self.part(PartKind::ApiKeys, number).await?.contents {
            PartContents::ApiKeys(keys) => {
                for key in &keys {
                    decode::<ApiKeyRecord>(&key.value)?;
                }
                Ok(keys)
            }
            PartContents::Rows(_) | PartContents::Cubes(_) => {
                Err(self.damaged(PartKind::ApiKeys, number, "it holds something else"))
            }
        }
    }

    /// The rows in one part.
    pub(super) async fn rows(&mut self, number: u32) -> Result<&[BackupRow]> {
        if self.rows.as_ref().is_none_or(|(held, _)| *held != number) {
            // Before the next one is read, so that only one is held.
            self.rows = None;
            let PartContents::Rows(rows) = self.part(PartKind::Rows, number).await?.contents else {
                return Err(self.damaged(PartKind::Rows, number, "it holds something else"));
            };
            self.rows = Some((number, rows));
        }
        Ok(self.rows.as_ref().map_or(&[], |(_, rows)| rows))
    }

    /// The selected cubes, one part of the index after another, for choices that name few.
    pub(super) async fn find(&self, selection: &Selection) -> Result<Vec<BackupCube>> {
        let mut found = Vec::new();
        for number in 1..=self.count(PartKind::Cubes) {
            let cubes = self.cubes(number).await?.into_iter();
            found.extend(cubes.filter(|cube| selection.takes(&cube.tenant, &cube.cube)));
        }
        Ok(found)
    }

    async fn part(&self, kind: PartKind, number: u32) -> Result<BackupPart> {
        let place = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        let known = place.and_then(|place| self.manifest.parts(kind).get(place));
        let Some(known) = known else {
            return Err(self.damaged(kind, number, "the manifest does not know it"));
        };
        let path = object_path(&self.prefix, &part_name(self.manifest.run, kind, number));
        let bytes = get(&self.objects, &path, |bytes| bytes == known.bytes).await?;
        let Some(bytes) = bytes else {
            let why = "it is missing, or has another length";
            return Err(self.damaged(kind, number, why));
        };
        if <[u8; 32]>::from(Sha256::digest(&bytes)) != known.sha256 {
            return Err(self.damaged(kind, number, "its checksum does not match"));
        }
        let part: BackupPart =
            decode(&bytes).map_err(|error| self.damaged(kind, number, &error.to_string()))?;
        if part.number != number {
            return Err(self.damaged(kind, number, "it is another part"));
        }
        Ok(part)
    }

    fn damaged(&self, kind: PartKind, number: u32, why: &str) -> Error {
        let name = part_name(self.manifest.run, kind, number);
        let message = format!(
            "the part `{name}` of the backup is damaged: {why}; bring the object back from a copy, \
             or use another backup"
        );
        Error::new(ErrorKind::Corrupt, message)
    }
}

/// An object whose length is fit; `None` where there is none.
async fn get(
    objects: &Arc<dyn ObjectStore>,
    path: &Path,
    is_fit: impl Fn(u64) -> bool,
) -> Result<Option<Bytes>> {
    let mut tries = 0;
    loop {
        let error = match objects.get(path).await {
            Ok(found) if !is_fit(found.meta.size) => return Ok(None),
            Ok(found) => match found.bytes().await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => error,
            },
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => error,
        };
        if tries == TRIES_MAX {
            return Err(unreachable(&error));
        }
        back_off(tries).await;
        tries += 1;
    }
}

/// The manifest of a cube in the index.
pub(super) fn manifest_of(cube: &BackupCube) -> Result<CubeManifest> {
    let manifest: CubeManifest = decode(&cube.manifest)?;
    if manifest.id != cube.cube {
        let message = format!("the backup holds the cube `{}` as `{}`", manifest.id, cube.cube);
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(manifest)
}

/// Whether this memcube can read a row, and it is what it says.
pub(super) fn check_row(change: &RowChange) -> Result<()> {
    let is_right = match change {
        RowChange::Item { id, value } => decode::<MemoryItem>(value)?.id == *id,
        RowChange::History { id, revision, value } => {
            let former = decode::<MemoryRevision>(value)?.former;
            former.id == *id && former.revision == *revision
        }
        RowChange::Vector { value, .. } => decode::<MemoryVector>(value).map(|_| true)?,
        RowChange::Request { value, .. } => decode::<RequestRecord>(value).map(|_| true)?,
        RowChange::ForgetMemory(_) | RowChange::ForgetVectors => true,
    };
    if is_right {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "a row of the backup lies under the key of another"))
}
