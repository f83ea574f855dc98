//! What every tenant's predictor has learned: in RAM while it is used, and in the state store.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use memcube_schemas::{
    MemoryId, TenantId, Version,
    codec::{decode, encode},
    keys,
    limits::SCHEDULER_TENANTS_MAX,
    predictor::PredictorRecord,
    scene::SceneCandidate,
};

use super::predict::Predictor;
use crate::{
    cube::commit,
    environment::Environment,
    error::{Error, Result},
    storage::{Check, Mutation, RangeRead, SharedStore, StoreError},
};

/// Turns after which what was learned is written.
const WRITTEN_AFTER_TURNS: u64 = 16;
/// How often writing is tried when another node was quicker.
const WRITE_TRIES: u32 = 3;

/// A tenant's predictor, and what is known of its row.
#[derive(Debug, Clone)]
struct Known {
    predictor: Predictor,
    generation: u64,
    /// The row as it was read or written last; `None` if there was none.
    row: Option<Version>,
    /// Turns learned from since it was written.
    unwritten: u64,
    used_us: u64,
}

/// A predictor, as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictorView {
    /// The weights.
    pub predictor: Predictor,
    /// Counts how often it was reset.
    pub generation: u64,
}

/// The predictors of a node.
pub(crate) struct Predictors {
    store: SharedStore,
    environment: Environment,
    tenants: Mutex<BTreeMap<TenantId, Known>>,
}

impl Predictors {
    pub(crate) fn new(store: SharedStore, environment: Environment) -> Self {
        Self { store, environment, tenants: Mutex::default() }
    }

    fn tenants(&self) -> MutexGuard<'_, BTreeMap<TenantId, Known>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant's predictor; what was never learned, or cannot be read, is as at the beginning.
    pub(crate) async fn of(&self, tenant: &TenantId) -> Predictor {
        self.view(tenant).await.map(|view| view.predictor).unwrap_or_default()
    }

    /// The tenant's predictor.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read.
    pub(crate) async fn view(&self, tenant: &TenantId) -> Result<PredictorView> {
        let now_us = self.environment.monotonic_us();
        if let Some(known) = self.tenants().get_mut(tenant) {
            known.used_us = now_us;
            return Ok(view_of(known));
        }
        let known = self.read(tenant).await?;
        let view = view_of(&known);
        let mut tenants = self.tenants();
        if tenants.len() >= SCHEDULER_TENANTS_MAX {
            // What it has learned since its last write is lost with it: a few turns.
            let oldest = tenants.iter().min_by_key(|(tenant, known)| (known.used_us, *tenant));
            if let Some(oldest) = oldest.map(|(tenant, _)| tenant.clone()) {
                tenants.remove(&oldest);
            }
        }
        tenants.entry(tenant.clone()).or_insert(known);
        Ok(view)
    }

    async fn read(&self, tenant: &TenantId) -> Result<Known> {
        let output = self.store.read(vec![RangeRead::key(keys::predictor(tenant))]).await?;
        let entry = output.pages.first().and_then(|page| page.entries.first());
        let record = entry.and_then(|entry| {
            let record = decode::<PredictorRecord>(&entry.value);
            // Derived: a row that cannot be read is as good as none.
            record.inspect_err(|error| tracing::warn!(%tenant, %error, "a predictor is lost")).ok()
        });
        let generation = record.as_ref().map_or(0, |record| record.generation);
        let predictor = record.as_ref().and_then(Predictor::from_record).unwrap_or_default();
        let used_us = self.environment.monotonic_us();
        let row = entry.map(|entry| entry.version);
        Ok(Known { predictor, generation, row, unwritten: 0, used_us })
    }

    /// Learns from a turn; tells whether there is enough to be written.
    pub(crate) fn learn(
        &self,
        tenant: &TenantId,
        candidates: &[SceneCandidate],
        needed: &std::collections::BTreeSet<MemoryId>,
        is_typing: bool,
    ) -> bool {
        let mut tenants = self.tenants();
        let Some(known) = tenants.get_mut(tenant) else { return false };
        let before = known.predictor.turns();
        known.predictor.learn(candidates, needed, is_typing);
        known.unwritten += known.predictor.turns() - before;
        known.unwritten >= WRITTEN_AFTER_TURNS
    }

    /// Writes what a tenant's predictor has learned.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be reached, `Conflict` when other nodes keep writing.
    pub(crate) async fn write(&self, tenant: &TenantId) -> Result<()> {
        for _ in 0..WRITE_TRIES {
            let Some(known) = self.tenants().get(tenant).cloned() else { return Ok(()) };
            if known.unwritten == 0 {
                return Ok(());
            }
            let record = known.predictor.record(known.generation, self.environment.unix_ms());
            match self.set(tenant, known.row, &record).await {
                Ok(row) => {
                    if let Some(now) = self.tenants().get_mut(tenant) {
                        now.row = Some(row);
                        now.unwritten = now.unwritten.saturating_sub(known.unwritten);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == crate::ErrorKind::Conflict => {
                    let stored = self.read(tenant).await?;
                    self.take_over(tenant, stored);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(crate::ErrorKind::Conflict, "other nodes keep writing this predictor"))
    }

    /// Another node was quicker: both learn from each other, unless it was reset.
    fn take_over(&self, tenant: &TenantId, stored: Known) {
        if let Some(known) = self.tenants().get_mut(tenant) {
            if stored.generation == known.generation {
                known.predictor.join(&stored.predictor);
                known.row = stored.row;
            } else {
                *known = stored;
            }
        }
    }

    async fn set(
        &self,
        tenant: &TenantId,
        row: Option<Version>,
        record: &PredictorRecord,
    ) -> Result<Version> {
        let key = keys::predictor(tenant);
        let check = match row {
            Some(version) => Check::At { key: key.clone(), version },
            None => Check::Absent { key: key.clone() },
        };
        let mutations = vec![Mutation::Set { key, value: encode(record) }];
        let committed = commit(&self.store, &self.environment, vec![check], mutations).await;
        committed.map_err(StoreError::into)
    }

    fn unwritten(&self) -> Vec<TenantId> {
        let tenants = self.tenants();
        let unwritten = tenants.iter().filter(|(_, known)| known.unwritten > 0);
        unwritten.map(|(tenant, _)| tenant.clone()).collect()
    }

    /// Writes everything that was learned, as far as that is possible now.
    pub(crate) async fn write_all(&self) {
        for tenant in self.unwritten() {
            if let Err(error) = self.write(&tenant).await {
                tracing::debug!(%tenant, %error, "what a predictor learned last is lost");
            }
        }
    }

    /// Forgets all that was learned for a tenant, on all nodes.
    ///
    /// # Errors
    /// As `write`.
    pub(crate) async fn reset(&self, tenant: &TenantId) -> Result<PredictorView> {
        for _ in 0..WRITE_TRIES {
            let stored = self.read(tenant).await?;
            let generation = stored.generation + 1;
            let predictor = Predictor::default();
            let record = predictor.record(generation, self.environment.unix_ms());
            match self.set(tenant, stored.row, &record).await {
                Ok(row) => {
                    let used_us = self.environment.monotonic_us();
                    let row = Some(row);
                    let known = Known { predictor, generation, row, unwritten: 0, used_us };
                    let view = view_of(&known);
                    self.tenants().insert(tenant.clone(), known);
                    return Ok(view);
                }
                Err(error) if error.kind() == crate::ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(crate::ErrorKind::Conflict, "this predictor keeps changing; try again"))
    }
}

fn view_of(known: &Known) -> PredictorView {
    PredictorView { predictor: known.predictor.clone(), generation: known.generation }
}
