//! Builds a table from the rows of its cubes, step by step, so that other tables go on meanwhile.
//!
//! The table gets its watermark at the very end: the version of the store at which the build began.
//! What changed since is in the feed after it, and taken in again, which does no harm.

use std::collections::VecDeque;

use memcube_schemas::{
    CubeId, MemoryId, Stamp,
    codec::decode,
    keys,
    limits::{INDEX_BATCH_ROWS, PAGE_ITEMS_MAX},
    memory::MemoryItem,
};

use super::{
    follow::Deriving,
    rows::{self, Stored},
};
use crate::{
    error::Result,
    metrics as names,
    storage::{
        RangeRead,
        vector_index::{RowChange, TableId},
    },
};

/// A build under way.
pub(crate) struct Build {
    pub(crate) table: TableId,
    /// Where the feed goes on once the rows are in.
    begun_at: Option<Stamp>,
    /// Cubes that were listed and not read yet.
    cubes: VecDeque<CubeId>,
    /// The last cube that was listed.
    listed: Option<CubeId>,
    all_listed: bool,
    /// The cube that is being read, and the last of its items that was.
    reading: Option<(CubeId, Option<MemoryId>)>,
    /// Rows that were read and not applied yet.
    rows: Vec<RowChange>,
}

impl Build {
    pub(crate) fn of(table: TableId) -> Self {
        Self {
            table,
            begun_at: None,
            cubes: VecDeque::new(),
            listed: None,
            all_listed: false,
            reading: None,
            rows: Vec::new(),
        }
    }

    /// Goes on by one page. Returns whether the table is whole.
    pub(crate) async fn step(&mut self, deriving: &Deriving) -> Result<bool> {
        let begun_at = match self.begun_at {
            Some(begun_at) => begun_at,
            None => self.begin(deriving).await?,
        };
        if let Some((cube, after)) = self.reading.take() {
            self.read_items(deriving, cube, after).await?;
            if self.rows.len() >= INDEX_BATCH_ROWS {
                deriving.apply(&self.table, std::mem::take(&mut self.rows), None).await?;
            }
        } else if let Some(cube) = self.cubes.pop_front() {
            self.reading = Some((cube, None));
        } else if !self.all_listed {
            self.list_cubes(deriving).await?;
        } else {
            let rows = std::mem::take(&mut self.rows);
            deriving.apply(&self.table, rows, Some(begun_at)).await?;
            metrics::counter!(names::VECTOR_BUILDS_TOTAL).increment(1);
            return Ok(true);
        }
        Ok(false)
    }

    async fn begin(&mut self, deriving: &Deriving) -> Result<Stamp> {
        deriving.index.drop_table(&self.table).await?;
        let floor = keys::feed_floor(&self.table.tenant, self.table.shard);
        let output = deriving.store.read(vec![RangeRead::key(floor)]).await?;
        let begun_at = Stamp::end_of(output.version);
        self.begun_at = Some(begun_at);
        deriving.environment.reach("vectors.build-begun", self.table.tenant.as_str());
        Ok(begun_at)
    }

    async fn list_cubes(&mut self, deriving: &Deriving) -> Result<()> {
        let tenant = &self.table.tenant;
        let mut range = keys::manifests(tenant);
        if let Some(listed) = &self.listed {
            range = range.after(&keys::manifest(tenant, listed));
        }
        let output = deriving.store.read(vec![RangeRead::page(range, PAGE_ITEMS_MAX)]).await?;
        let Some(page) = output.pages.into_iter().next() else { return Ok(()) };
        self.all_listed = !page.more;
        let cubes = page.entries.iter().filter_map(|entry| keys::trailing_cube_id(&entry.key));
        for cube in cubes {
            if keys::feed_shard(&cube) == self.table.shard {
                self.cubes.push_back(cube.clone());
            }
            self.listed = Some(cube);
        }
        Ok(())
    }

    async fn read_items(
        &mut self,
        deriving: &Deriving,
        cube: CubeId,
        after: Option<MemoryId>,
    ) -> Result<()> {
        let tenant = &self.table.tenant;
        let mut range = keys::items(tenant, &cube);
        if let Some(after) = after {
            range = range.after(&keys::item(tenant, &cube, after));
        }
        let output = deriving.store.read(vec![RangeRead::page(range, PAGE_ITEMS_MAX)]).await?;
        let Some(page) = output.pages.into_iter().next() else { return Ok(()) };
        let items: Vec<MemoryItem> =
            page.entries.iter().map(|entry| Ok(decode(&entry.value)?)).collect::<Result<_>>()?;
        let last = items.last().map(|item| item.id);
        let recalled = items.iter().filter(|item| item.status.is_recalled());
        let places: Vec<_> = recalled.map(|item| (cube.clone(), item.id)).collect();
        let embedder = deriving.embedder.as_ref();
        let model = embedder.map(|embedder| embedder.model());
        let found = rows::read_with_vectors(&deriving.store, tenant, model, &places).await?;
        let stored: Vec<(CubeId, Stored)> =
            found.into_iter().map(|((cube, _), stored)| (cube, stored)).collect();
        self.rows.extend(rows::rows(embedder, stored).await?);
        if page.more {
            self.reading = Some((cube, last));
        }
        Ok(())
    }
}
