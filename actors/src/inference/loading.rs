//! Blocks of one prompt on their way from a cold tier, in order, while the device may already
//! compute them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use memcube_schemas::{BlockKey, activation::KvBlock};
use tokio::sync::mpsc;

use super::activation_cache::{
    ActivationCache,
    chain::Chain,
    estimate::Decision,
    stored::{LoadError, LoadedBlock},
};
use crate::{cube::CubeKey, environment::Environment};

/// Blocks that are loaded at a time.
const LOADS_AT_ONCE: usize = 2;

/// What is on its way. Nothing, if it was decided to compute.
#[derive(Default)]
pub(super) struct Loading {
    /// Which blocks of the chain may still come.
    expected: BTreeSet<usize>,
    arrived: BTreeMap<usize, LoadedBlock>,
    arrivals: Option<mpsc::Receiver<(usize, Result<LoadedBlock, LoadError>)>>,
    patience: Duration,
    /// Damaged blocks.
    pub(super) corrupt: usize,
}

impl Loading {
    /// Begins to load the blocks of a chain from a place on that have rows, if that is quicker than
    /// to compute them. `wanted` says which ones are of use.
    pub(super) fn start(
        cache: &ActivationCache,
        environment: &Environment,
        key: &CubeKey,
        chain: &Chain,
        stored: &BTreeMap<BlockKey, KvBlock>,
        wanted: impl Iterator<Item = usize>,
    ) -> Self {
        let row = |at: usize| Some((at, stored.get(&chain.blocks.get(at)?.key)?));
        let rows: Vec<(usize, &KvBlock)> = wanted.filter_map(row).collect();
        let Some(position) = rows.first().map(|(at, _)| chain.blocks[*at].span.start) else {
            return Self::default();
        };
        let bare: Vec<&KvBlock> = rows.iter().map(|(_, row)| *row).collect();
        let Some((Decision::Load { patience_us }, _)) = cache.decide(&key.tenant, &bare, position)
        else {
            return Self::default();
        };
        let (sender, arrivals) = mpsc::channel(rows.len());
        let expected = rows.iter().map(|(at, _)| *at).collect();
        // Each task takes every other block, so that they come about in order.
        for lane in 0..LOADS_AT_ONCE.min(rows.len()) {
            let rows = rows.iter().skip(lane).step_by(LOADS_AT_ONCE);
            let rows: Vec<(usize, KvBlock)> = rows.map(|(at, row)| (*at, (*row).clone())).collect();
            let (cache, sender, tenant) = (cache.clone(), sender.clone(), key.tenant.clone());
            environment.spawn(async move {
                for (at, row) in rows {
                    if sender.is_closed() {
                        return;
                    }
                    let loaded = cache.load(&tenant, &row).await;
                    if sender.send((at, loaded)).await.is_err() {
                        return;
                    }
                }
            });
        }
        let patience = Duration::from_micros(patience_us);
        Self { expected, arrived: BTreeMap::new(), arrivals: Some(arrivals), patience, corrupt: 0 }
    }

    /// Whether a block is here or may come.
    pub(super) fn may_come(&self, at: usize) -> bool {
        self.expected.contains(&at) || self.arrived.contains_key(&at)
    }

    /// Waits for a block; `None` when it does not come.
    pub(super) async fn arrival(&mut self, at: usize) -> Option<LoadedBlock> {
        loop {
            if let Some(block) = self.arrived.remove(&at) {
                return Some(block);
            }
            if !self.expected.contains(&at) {
                return None;
            }
            let Some((arrived, loaded)) = self.arrivals.as_mut()?.recv().await else {
                self.expected.clear();
                return None;
            };
            self.expected.remove(&arrived);
            match loaded {
                Ok(block) => drop(self.arrived.insert(arrived, block)),
                Err(LoadError::Corrupt) => self.corrupt += 1,
                Err(LoadError::Unavailable) => {}
            }
        }
    }

    /// Waits for a block as long as it is worth while nothing else is done.
    pub(super) async fn patient_arrival(&mut self, at: usize) -> Option<LoadedBlock> {
        let waited = tokio::time::timeout(self.patience, self.arrival(at)).await;
        waited.unwrap_or_else(|_| {
            // Late once, late always: the device does not wait again.
            self.patience = Duration::ZERO;
            None
        })
    }
}
