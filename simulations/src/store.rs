//! A state store that is slow, conflicts, and forgets to say what became of a commit.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use memcube_actors::{
    environment::{Entropy, SeededEntropy},
    storage::{Commit, CommitToken, InMemoryStore, RangeRead, ReadOutput, StateStore, StoreError},
};
use memcube_schemas::Version;

/// One commit in this many ends in a fault of each kind.
const FAULT_EVERY: u64 = 16;
/// A call takes up to this long.
const DELAY_MS_MAX: u64 = 20;

/// An in-memory store behind seeded faults.
pub struct FaultyStore {
    inner: InMemoryStore,
    entropy: Arc<SeededEntropy>,
}

impl FaultyStore {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: InMemoryStore, seed: u64) -> Self {
        Self { inner, entropy: Arc::new(SeededEntropy::new(seed)) }
    }

    async fn delay(&self) {
        let milliseconds = self.entropy.next_u64() % DELAY_MS_MAX;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

impl StateStore for FaultyStore {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            self.delay().await;
            self.inner.read(ranges).await
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            self.delay().await;
            match self.entropy.next_u64() % FAULT_EVERY {
                0 => Err(StoreError::Unknown),
                1 => {
                    let applied = self.inner.commit(commit).await;
                    self.delay().await;
                    applied.and(Err(StoreError::Unknown))
                }
                2 => Err(StoreError::Unavailable { reason: "simulated outage".to_owned() }),
                3 => Err(StoreError::Overloaded),
                _ => self.inner.commit(commit).await,
            }
        })
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        Box::pin(async move {
            self.delay().await;
            self.inner.outcome(token).await
        })
    }
}
