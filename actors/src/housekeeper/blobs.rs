//! Takes away the blobs of all tenants that nothing refers to.

use futures_util::future::BoxFuture;

use super::Chore;
use crate::{
    cluster::View, error::Result, metrics as names, scheduler::jobs::JobKind, storage::Blobs,
};

/// The shortest time between two sweeps: each lists all objects.
const PERIOD_MS_MIN: u64 = 1_000;

/// Sweeps the tenants that fall to this node. Twice the grace is the longest that something is kept
/// which nothing refers to.
#[derive(Clone)]
pub(crate) struct BlobSweeper {
    blobs: Blobs,
    grace_ms: u64,
}

impl BlobSweeper {
    pub(crate) const fn new(blobs: Blobs, grace_ms: u64) -> Self {
        Self { blobs, grace_ms }
    }

    pub(crate) const fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    async fn sweep(&self, view: &View) -> Result<u64> {
        let mut removed = 0;
        for tenant in self.blobs.tenants().await? {
            if view.keeps(&format!("blobs of {tenant}")) {
                let swept = self.blobs.sweep(&tenant, self.grace_ms).await?;
                removed += (swept.removed + swept.strays) as u64;
            }
        }
        metrics::counter!(names::BLOBS_REMOVED_TOTAL).increment(removed);
        Ok(removed)
    }
}

impl Chore for BlobSweeper {
    fn name(&self) -> &'static str {
        "blobs"
    }

    fn kind(&self) -> JobKind {
        JobKind::Blobs
    }

    fn period_ms(&self) -> u64 {
        self.grace_ms.max(PERIOD_MS_MIN)
    }

    fn run<'a>(&'a self, view: &'a View) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.sweep(view))
    }
}
