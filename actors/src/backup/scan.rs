//! Reads one cube while its owner writes it: in one call if it is small, else page by page and then
//! after the feed. The module's introduction says why what comes out is one version of the cube.

use std::collections::BTreeSet;

use memcube_schemas::{
    MemoryId, ModelId, Stamp, Version,
    backup::{BackupCube, RowChange},
    codec::{Stored, check_envelope, decode},
    cube::{CubeManifest, RequestRecord, SnapshotRef},
    keys::{self, KeyRange},
    memory::{MemoryItem, MemoryRevision, MemoryVector},
};

use super::{catch_up::CaughtUp, parts::PartWriter, read};
use crate::{
    cube::CubeKey,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    storage::{Entry, RangePage, RangeRead, SharedStore},
};

/// Rows of one kind in one read. Few in tests, so that small cubes take many pages.
pub(super) const PAGE_ROWS: usize = if cfg!(test) { 16 } else { 256 };

/// What became of the scan of a cube.
pub(super) enum Scanned {
    /// It is whole: its entry in the index.
    Whole(BackupCube),
    /// There is no such cube any more.
    Gone,
    /// What was read does not belong together: begin anew.
    Again,
}

/// The kinds of rows that are scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowKind {
    Item,
    History,
    Vector,
    Request,
}

/// One scan of one cube.
pub(super) struct Scan<'s, 'w> {
    pub(super) store: &'s SharedStore,
    pub(super) environment: &'s Environment,
    pub(super) writer: &'s mut PartWriter<'w>,
    pub(super) key: &'s CubeKey,
    /// Its number; rows carry it.
    pub(super) number: u32,
    first_part: u32,
    rows: u64,
    /// The model whose vectors are read.
    pub(super) model: Option<ModelId>,
    /// The snapshot that the manifest named last.
    pub(super) snapshot: Option<SnapshotRef>,
    /// The commit that wrote the manifest last.
    pub(super) manifest_row: Version,
    /// The last commit of the cube that a record told of.
    pub(super) told: Version,
    /// Records of the feed up to here were seen.
    pub(super) cursor: Stamp,
    /// Items that changed after they were read.
    pub(super) pending: BTreeSet<MemoryId>,
}

impl<'s, 'w> Scan<'s, 'w> {
    pub(super) fn new(
        store: &'s SharedStore,
        environment: &'s Environment,
        writer: &'s mut PartWriter<'w>,
        key: &'s CubeKey,
        number: u32,
    ) -> Self {
        let first_part = writer.row_part();
        Self {
            store,
            environment,
            writer,
            key,
            number,
            first_part,
            rows: 0,
            model: None,
            snapshot: None,
            manifest_row: Version::default(),
            told: Version::default(),
            cursor: Stamp::default(),
            pending: BTreeSet::new(),
        }
    }

    /// Reads the cube, whose vectors are expected to be of `model`.
    ///
    /// # Errors
    /// `Corrupt` when a row is damaged, `Unavailable` when the store does not answer, or the cube
    /// changes faster than it can be read; and as the sink.
    pub(super) async fn run(mut self, model: Option<ModelId>) -> Result<Scanned> {
        self.model = model;
        let kinds = [RowKind::Item, RowKind::History, RowKind::Vector, RowKind::Request];
        let mut ranges = vec![RangeRead::key(self.manifest_key())];
        let kinds: Vec<(RowKind, KeyRange)> =
            kinds.into_iter().filter_map(|kind| Some((kind, self.range(kind)?))).collect();
        ranges.extend(kinds.iter().map(|(_, range)| RangeRead::page(range.clone(), PAGE_ROWS)));
        let output = read(self.store, self.environment, ranges).await?;
        let mut pages = output.pages.into_iter();
        let Some(row) = take_first(pages.next()) else { return Ok(Scanned::Gone) };
        let manifest: CubeManifest = decode(&row.value)?;
        self.manifest_row = row.version;
        self.cursor = Stamp::end_of(output.version);
        let pages: Vec<RangePage> = pages.collect();
        let is_whole = pages.iter().all(|page| !page.more);
        if is_whole && manifest.embedder == self.model {
            for ((kind, _), page) in kinds.iter().zip(pages) {
                self.emit(*kind, page.entries).await?;
            }
            return Ok(Scanned::Whole(self.finish(row)));
        }
        self.environment.reach("backup.large-cube", self.key.cube.as_str());
        self.snapshot = manifest.snapshot;
        let is_same_model = manifest.embedder == self.model;
        self.model = manifest.embedder;
        for ((kind, range), page) in kinds.into_iter().zip(pages) {
            match kind {
                RowKind::Vector if !is_same_model => {}
                // They are read at the version of the manifest, in the end.
                RowKind::Request => {}
                RowKind::Item | RowKind::History | RowKind::Vector => {
                    self.scan_on(kind, range, page).await?;
                }
            }
        }
        if !is_same_model {
            self.scan_vectors().await?;
        }
        match self.catch_up().await? {
            CaughtUp::At(row) => Ok(Scanned::Whole(self.finish(row))),
            CaughtUp::Gone => Ok(Scanned::Gone),
            CaughtUp::Again => Ok(Scanned::Again),
        }
    }

    /// Reads all vectors of the model that there are now.
    pub(super) async fn scan_vectors(&mut self) -> Result<()> {
        let Some(range) = self.range(RowKind::Vector) else { return Ok(()) };
        let page = self.page(range.clone()).await?;
        self.scan_on(RowKind::Vector, range, page).await
    }

    /// Takes a page, and all that follow it.
    pub(super) async fn scan_on(
        &mut self,
        kind: RowKind,
        range: KeyRange,
        page: RangePage,
    ) -> Result<()> {
        let mut page = page;
        loop {
            let last = page.entries.last().map(|entry| entry.key.clone());
            let more = page.more;
            self.emit(kind, page.entries).await?;
            let Some(last) = last.filter(|_| more) else { return Ok(()) };
            page = self.page(range.clone().after(&last)).await?;
        }
    }

    async fn page(&self, range: KeyRange) -> Result<RangePage> {
        self.environment.reach("backup.page", self.key.cube.as_str());
        let ranges = vec![RangeRead::page(range, PAGE_ROWS)];
        let output = read(self.store, self.environment, ranges).await?;
        Ok(output.pages.into_iter().next().unwrap_or_default())
    }

    /// Writes rows down.
    pub(super) async fn emit(&mut self, kind: RowKind, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            let change = self.change_of(kind, entry)?;
            self.write(change).await?;
        }
        Ok(())
    }

    pub(super) async fn write(&mut self, change: RowChange) -> Result<()> {
        self.rows += 1;
        self.writer.row(self.number, change).await
    }

    fn finish(self, manifest: Entry) -> BackupCube {
        BackupCube {
            tenant: self.key.tenant.clone(),
            cube: self.key.cube.clone(),
            manifest: manifest.value,
            scan: self.number,
            rows: self.rows,
            first_part: self.first_part,
            last_part: self.writer.row_part(),
        }
    }

    pub(super) fn manifest_key(&self) -> Vec<u8> {
        keys::manifest(&self.key.tenant, &self.key.cube)
    }

    /// Where the rows of a kind lie; vectors only where there is a model.
    pub(super) fn range(&self, kind: RowKind) -> Option<KeyRange> {
        let CubeKey { tenant, cube } = self.key;
        match kind {
            RowKind::Item => Some(keys::items(tenant, cube)),
            RowKind::History => Some(keys::histories(tenant, cube)),
            RowKind::Vector => self.model.as_ref().map(|model| keys::vectors(tenant, cube, model)),
            RowKind::Request => Some(keys::requests(tenant, cube)),
        }
    }

    /// A stored row as a row of the backup. Damage is found here, not when the backup is needed.
    fn change_of(&self, kind: RowKind, entry: Entry) -> Result<RowChange> {
        let Entry { key, value, .. } = entry;
        let memory = || keys::trailing_memory_id(&key).ok_or_else(|| strange_key(kind));
        match kind {
            RowKind::Item => {
                check_envelope::<MemoryItem>(&value)?;
                Ok(RowChange::Item { id: memory()?, value })
            }
            RowKind::History => {
                check_envelope::<MemoryRevision>(&value)?;
                let (id, revision) =
                    keys::trailing_revision(&key).ok_or_else(|| strange_key(kind))?;
                Ok(RowChange::History { id, revision, value })
            }
            RowKind::Vector => {
                check_envelope::<MemoryVector>(&value)?;
                let model = self.model.clone().ok_or_else(|| strange_key(kind))?;
                Ok(RowChange::Vector { model, id: memory()?, value })
            }
            RowKind::Request => {
                check_envelope::<RequestRecord>(&value)?;
                let id = keys::trailing_request_id(&key).ok_or_else(|| strange_key(kind))?;
                Ok(RowChange::Request { id, value })
            }
        }
    }
}

fn strange_key(kind: RowKind) -> Error {
    let what = match kind {
        RowKind::Item => MemoryItem::NAME,
        RowKind::History => MemoryRevision::NAME,
        RowKind::Vector => MemoryVector::NAME,
        RowKind::Request => RequestRecord::NAME,
    };
    Error::new(ErrorKind::Corrupt, format!("the key of a stored {what} cannot be read"))
}

/// The only entry of a read of one key.
pub(super) fn take_first(page: Option<RangePage>) -> Option<Entry> {
    page?.entries.into_iter().next()
}
