//! Brings a table up to date with its feed, one page after the other.
//!
//! The table's own watermark is the cursor: it is written with the rows that it stands for. The
//! store
//! holds none, so that a tier that was switched off holds no feed back; a table that finds records
//! trimmed which it has not seen is built from the rows.

use std::time::Duration;

use memcube_schemas::{
    Stamp, TenantId,
    limits::{INDEX_BATCH_ROWS, INDEX_PAGE_RECORDS},
};

use super::{
    rows,
    tail::{self, Changed, Tail},
};
use crate::{
    embedder::EmbedderHandle,
    environment::Environment,
    error::Result,
    metrics as names,
    storage::{
        SharedStore, SharedVectorIndex,
        vector_index::{RowChange, TableId, VectorIndexError},
    },
};

/// What deriving a table needs.
#[derive(Clone)]
pub(crate) struct Deriving {
    pub(crate) store: SharedStore,
    pub(crate) environment: Environment,
    pub(crate) embedder: Option<EmbedderHandle>,
    pub(crate) index: SharedVectorIndex,
}

/// How a table stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    /// It has seen everything.
    UpToDate,
    /// There is more to see.
    More,
    /// It has to be built from the rows: there is none yet, or records that it needs are gone.
    ToBuild,
}

impl Deriving {
    /// The table of a shard of a tenant.
    pub(crate) fn table(&self, tenant: TenantId, shard: u16) -> TableId {
        let model = self.embedder.as_ref().map(|embedder| embedder.model().clone());
        TableId { tenant, shard, model }
    }

    /// Takes in one page of the feed.
    pub(crate) async fn follow(&self, table: &TableId) -> Result<Followed> {
        let watermark = match self.index.watermark(table).await {
            Ok(Some(watermark)) => watermark,
            Ok(None) => return Ok(Followed::ToBuild),
            Err(error @ VectorIndexError::Corrupt { .. }) => {
                tracing::warn!(%error, %table, "building it again");
                return Ok(Followed::ToBuild);
            }
            Err(error @ VectorIndexError::Unavailable { .. }) => return Err(error.into()),
        };
        let TableId { tenant, shard, .. } = table;
        let tail = tail::read(&self.store, tenant, *shard, watermark, INDEX_PAGE_RECORDS).await?;
        let (changed, upto, more) = match tail {
            Tail::Read { changed, upto, more } => (changed, upto, more),
            Tail::Gap => return Ok(Followed::ToBuild),
        };
        if changed.records > 0 {
            self.take_in(table, changed, upto).await?;
            self.environment.reach("vectors.applied", tenant.as_str());
        }
        Ok(if more { Followed::More } else { Followed::UpToDate })
    }

    async fn take_in(&self, table: &TableId, changed: Changed, upto: Stamp) -> Result<()> {
        // A cube's rows leave before those of its namesake come, whatever came first in the feed:
        // what is written afterwards is read from the rows as they are now.
        let mut changes: Vec<RowChange> =
            changed.erased.into_iter().map(|cube| RowChange::RemoveCube { cube }).collect();
        let places: Vec<_> = changed.items.into_iter().collect();
        for places in places.chunks(INDEX_BATCH_ROWS) {
            let embedder = self.embedder.as_ref();
            changes.extend(rows::changes(&self.store, embedder, &table.tenant, places).await?);
            if changes.len() >= INDEX_BATCH_ROWS {
                self.apply(table, std::mem::take(&mut changes), None).await?;
            }
        }
        self.apply(table, changes, Some(upto)).await
    }

    /// Applies one batch.
    pub(crate) async fn apply(
        &self,
        table: &TableId,
        changes: Vec<RowChange>,
        watermark: Option<Stamp>,
    ) -> Result<()> {
        let rows = changes.len() as u64;
        let start_us = self.environment.monotonic_us();
        self.index.apply(table, changes, watermark).await?;
        let took = Duration::from_micros(self.environment.monotonic_us().saturating_sub(start_us));
        metrics::histogram!(names::VECTOR_APPLY_SECONDS).record(took.as_secs_f64());
        metrics::counter!(names::VECTOR_ROWS_APPLIED_TOTAL).increment(rows);
        Ok(())
    }
}
