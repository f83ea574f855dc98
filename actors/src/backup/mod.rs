//! Backups: cubes out of one store, into objects, and back into any store.
//!
//! A backup does not stop writers. Each cube in it is exactly what the cube was at one version,
//! which
//! is that of its manifest; the whole lies between two versions of the store, which are recorded.
//!
//! **How a cube is read.** A small cube is read in one call, so at one version. A larger one is
//! scanned in pages, each at a version of its own, and then caught up with from the event feed, in
//! which every commit of a cube leaves a record of the items that it changed. Let `v0` be the
//! version
//! of the first read. Each further round is *one* read, at a version `v`, of the records after
//! those
//! seen so far, of the rows of items that are still to be read again, of the requests and of the
//! manifest. A record that names an item which the same read has not read is taken up for the next
//! round. The scan is over when a round finds no such record.
//!
//! **Why that is exact.** Take any row of an item, and the version `v` of the last round. If no
//! record
//! after `v0` names the item, no commit after `v0` changed the row, and it was read at or after
//! `v0`:
//! it is as it is at `v`. Otherwise let `r` be the last commit up to `v` that names the item. Its
//! record was seen by some round, and the item was read in that round or after it, so at or after
//! `r`;
//! no commit between `r` and `v` changed it: it is as it is at `v`. Requests and the manifest are
//! read
//! at `v` itself. So all rows are those of version `v`, at which the cube has the version of its
//! manifest. A record of the cube's end or of a new beginning, and a feed that was cut off beyond
//! what was seen, begin the scan anew.
//!
//! Vectors are derived, and filled in without a record when a cube is hydrated under another model.
//! A vector that belongs to another text is never in a backup (texts change with a record); one
//! that
//! is missing is computed when the restored cube is hydrated.
//!
//! **How a cube is put back.** `restore` claims it as a hydrating node does, writes its rows in
//! many
//! commits on the condition that the claim stands and that there is no manifest, and the manifest
//! in
//! the last one. A mark (`keys::restoring`) keeps others from making a cube on top of half the
//! rows.
//! So a crash leaves nothing visible, and the next restore begins again.
//!
//! Not in a backup: who owns a cube, the feed, cursors, snapshots and other blobs, heartbeats.

mod archive;
mod catch_up;
mod parts;
mod restore;
mod run;
mod scan;
#[cfg(test)]
mod tests;
mod verify;

use std::{collections::BTreeSet, time::Duration};

use memcube_schemas::{CubeId, TenantId};

pub use self::{
    archive::Archive,
    parts::{ObjectSink, PartSink},
    restore::{RestoreOutcome, RestoreRequest, restore},
    run::{BackupRequest, back_up},
    verify::{VerifyOutcome, verify},
};
pub(crate) use restore::discard;

use crate::{
    environment::Environment,
    error::Result,
    storage::{RangeRead, ReadOutput, SharedStore, StoreError},
};

/// How often a call of a store is tried while that is busy or away.
const TRIES_MAX: u32 = 6;
/// Milliseconds before the first further try; they double with each one.
const BACK_OFF_MS: u64 = 50;

/// Which cubes are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Those of one tenant; `None` for those of all.
    pub tenant: Option<TenantId>,
    /// Those with these ids; `None` for all, and with them the API keys.
    pub cubes: Option<BTreeSet<CubeId>>,
}

impl Selection {
    fn takes_tenant(&self, tenant: &TenantId) -> bool {
        self.tenant.as_ref().is_none_or(|only| only == tenant)
    }

    fn takes(&self, tenant: &TenantId, cube: &CubeId) -> bool {
        self.takes_tenant(tenant) && self.cubes.as_ref().is_none_or(|cubes| cubes.contains(cube))
    }
}

/// A cube and what went wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CubeFailure {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub cube: CubeId,
    /// What went wrong.
    pub error: crate::Error,
}

/// How far a backup, a restore or a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Cubes that are done.
    pub cubes: u64,
    /// Rows that were handled.
    pub rows: u64,
}

/// Told now and then how far the work is.
pub type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Waits before the next try of something; longer each time.
async fn back_off(tries: u32) {
    tokio::time::sleep(Duration::from_millis(BACK_OFF_MS << tries.min(TRIES_MAX))).await;
}

/// Reads, and reads again while the store is busy or away.
async fn read(
    store: &SharedStore,
    environment: &Environment,
    ranges: Vec<RangeRead>,
) -> Result<ReadOutput> {
    let mut tries = 0;
    loop {
        match store.read(ranges.clone()).await {
            Err(StoreError::Unavailable { .. } | StoreError::Overloaded | StoreError::Unknown)
                if tries < TRIES_MAX =>
            {
                environment.reach("backup.read-again", "");
                back_off(tries).await;
                tries += 1;
            }
            result => return Ok(result?),
        }
    }
}
