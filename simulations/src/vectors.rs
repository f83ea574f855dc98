//! The vector tables of the nodes: each node has a disk of its own for them, which fails, is slow,
//! and shows what was written only after a while.
//!
//! A table is a handful of files, so the faults are those of objects: `blob-fail`, `blob-slow` and
//! `blob-not-yet`, which here means that reads see the table as it was some changes ago.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use memcube_actors::{
    environment::Environment,
    storage::{
        InMemoryVectorIndex,
        vector_index::{
            Candidates, IndexResult, RowChange, SearchSpec, TableId, VectorIndex, VectorIndexError,
        },
    },
};
use memcube_schemas::{Stamp, limits::TABLE_IN_RAM_ROWS_MAX};

use crate::{
    conditions::{Conditions, Occasion, Place},
    plan::FaultClass,
};

/// Milliseconds that a call takes, usually and at its worst.
const USUAL_MS: (u64, u64) = (0, 4);
const SLOW_MS: (u64, u64) = (50, 1_500);

/// What the disks of all nodes hold.
pub(crate) struct SimVectors {
    conditions: Conditions,
    disks: Mutex<BTreeMap<u32, Arc<Mutex<Disk>>>>,
}

/// One disk. It outlives its node.
struct Disk {
    /// Everything that was written.
    written: InMemoryVectorIndex,
    /// What reads see.
    visible: InMemoryVectorIndex,
    calls: u64,
}

impl SimVectors {
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self { conditions, disks: Mutex::default() }
    }

    /// The tables of a node in one of its lives.
    pub(crate) fn handle(&self, node: u32, life: u64, environment: Environment) -> NodeVectors {
        let new = || {
            let index = InMemoryVectorIndex::new(environment.clone(), TABLE_IN_RAM_ROWS_MAX);
            let visible = index.snapshot();
            Arc::new(Mutex::new(Disk { written: index, visible, calls: 0 }))
        };
        let disk = Arc::clone(lock(&self.disks).entry(node).or_insert_with(new));
        NodeVectors { conditions: self.conditions.clone(), disk, environment, node, life }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics while it holds a disk")
}

/// The vector index of one life of a node.
pub(crate) struct NodeVectors {
    conditions: Conditions,
    disk: Arc<Mutex<Disk>>,
    environment: Environment,
    node: u32,
    life: u64,
}

impl NodeVectors {
    /// Waits as long as the disk takes, and fails if it does. What a former life still tries stays
    /// without effect.
    async fn reach(&self) -> IndexResult<Occasion> {
        let calls = {
            let mut disk = lock(&self.disk);
            disk.calls += 1;
            disk.calls
        };
        // Apart from the object store's occasions on the same node.
        let occasion = self.conditions.occasion(Place::Blobs { node: self.node }, calls | 1 << 62);
        let is_slow = self.conditions.strikes(FaultClass::BlobSlow, occasion);
        let (low, high) = if is_slow { SLOW_MS } else { USUAL_MS };
        tokio::time::sleep(Duration::from_millis(occasion.between("way", low, high))).await;
        self.conditions.running(self.node, self.life).await;
        if self.conditions.strikes(FaultClass::BlobFail, occasion) {
            let reason = "the disk of the tables failed".to_owned();
            return Err(VectorIndexError::Unavailable { reason });
        }
        Ok(occasion)
    }

    fn written(&self) -> InMemoryVectorIndex {
        lock(&self.disk).written.in_environment(self.environment.clone())
    }

    fn visible(&self) -> InMemoryVectorIndex {
        let mut disk = lock(&self.disk);
        if self.conditions.is_healed() {
            disk.visible = disk.written.snapshot();
        }
        disk.visible.in_environment(self.environment.clone())
    }

    /// Lets reads see what was written, unless that takes a while.
    fn publish(&self, occasion: Occasion) {
        if !self.conditions.strikes(FaultClass::BlobNotYet, occasion) {
            let mut disk = lock(&self.disk);
            disk.visible = disk.written.snapshot();
        }
    }
}

impl VectorIndex for NodeVectors {
    fn apply(
        &self,
        table: &TableId,
        changes: Vec<RowChange>,
        watermark: Option<Stamp>,
    ) -> BoxFuture<'_, IndexResult<()>> {
        let table = table.clone();
        Box::pin(async move {
            let occasion = self.reach().await?;
            self.written().apply(&table, changes, watermark).await?;
            self.publish(occasion);
            Ok(())
        })
    }

    fn watermark(&self, table: &TableId) -> BoxFuture<'_, IndexResult<Option<Stamp>>> {
        let table = table.clone();
        Box::pin(async move {
            self.reach().await?;
            self.visible().watermark(&table).await
        })
    }

    fn search(
        &self,
        table: &TableId,
        spec: SearchSpec,
    ) -> BoxFuture<'_, IndexResult<Option<Candidates>>> {
        let table = table.clone();
        Box::pin(async move {
            self.reach().await?;
            self.visible().search(&table, spec).await
        })
    }

    fn optimize(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        let table = table.clone();
        Box::pin(async move {
            self.reach().await?;
            self.written().optimize(&table).await
        })
    }

    fn drop_table(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        let table = table.clone();
        Box::pin(async move {
            self.reach().await?;
            self.written().drop_table(&table).await?;
            // A table that is gone is gone at once: what is built next must not be taken for it.
            let mut disk = lock(&self.disk);
            disk.visible = disk.written.snapshot();
            Ok(())
        })
    }
}
