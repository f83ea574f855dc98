//! What waits, what runs, and what became of it. Plain state: it starts nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use memcube_schemas::{
    CubeId, TenantId,
    limits::{JOB_NAME_BYTES_MAX, JOB_TENANTS_MAX, JOBS_WAITING_MAX, JOBS_WAITING_PER_TENANT_MAX},
};

use super::{
    Job, JobCounts, JobId, JobKind, JobRules, JobState, JobView, JobsStatus,
    fair::Fair,
    records::{Begun, Now, Records, Waiting},
};
use crate::{
    directory::QueueDepth,
    error::{Error, Result},
    metrics as names,
};

/// When whoever was refused may try again.
const RETRY_AFTER_MS: u64 = 1_000;
/// Bytes of the reason of a failure that are kept.
const REASON_BYTES_MAX: usize = 256;

/// The jobs of a node.
pub(super) struct Board {
    rules: JobRules,
    last_id: u64,
    uses: u64,
    house: Records,
    tenants: BTreeMap<TenantId, Records>,
    fair: Fair<TenantId>,
    paused: BTreeSet<JobKind>,
    /// Of tenants. Those of the node are counted apart, so that tenants cannot keep it from its
    /// upkeep.
    waiting: usize,
    running: usize,
    is_closed: bool,
}

impl Board {
    pub(super) const fn new(rules: JobRules) -> Self {
        Self {
            rules,
            last_id: 0,
            uses: 0,
            house: Records::new(),
            tenants: BTreeMap::new(),
            fair: Fair::new(JOB_TENANTS_MAX),
            paused: BTreeSet::new(),
            waiting: 0,
            running: 0,
            is_closed: false,
        }
    }

    /// Takes a job in, or tells the id of one of the same name that waits already.
    pub(super) fn submit(&mut self, job: Job, now: Now) -> Result<JobId> {
        if self.is_closed {
            return Err(Error::unavailable("this node is shutting down, and takes no jobs"));
        }
        check(&job)?;
        let Job { tenant, cube, kind, name, ms_max, work } = job;
        let is_full = tenant.is_some() && self.waiting >= JOBS_WAITING_MAX;
        let id = JobId(self.last_id + 1);
        let records = self.records_of(tenant.as_ref())?;
        if let Some(same) = records.same(kind, &name) {
            return Ok(same);
        }
        if records.waiting() >= JOBS_WAITING_PER_TENANT_MAX {
            return Err(Error::overloaded("the tenant's queue of jobs", RETRY_AFTER_MS));
        }
        if is_full {
            return Err(Error::overloaded("the node's queue of jobs", RETRY_AFTER_MS));
        }
        records.wait(id, kind, Waiting { name, cube, since: now, ms_max, work });
        self.last_id = id.0;
        if let Some(tenant) = &tenant {
            self.waiting += 1;
            self.fair.arrived(tenant, self.rules.weight(tenant));
        }
        self.measure();
        Ok(id)
    }

    /// The records of an owner, made if need be; whoever had no job for longest makes room.
    fn records_of(&mut self, tenant: Option<&TenantId>) -> Result<&mut Records> {
        let Some(tenant) = tenant else { return Ok(&mut self.house) };
        let is_known = self.tenants.contains_key(tenant);
        if !is_known && self.tenants.len() >= JOB_TENANTS_MAX {
            let idle = self.tenants.iter().filter(|(_, records)| records.is_forgettable());
            let oldest = idle.min_by_key(|(_, records)| records.last_used).map(|(id, _)| id);
            let full = || Error::overloaded("the list of tenants with jobs", RETRY_AFTER_MS);
            let oldest = oldest.cloned().ok_or_else(full)?;
            self.tenants.remove(&oldest);
        }
        self.uses += 1;
        let records = self.tenants.entry(tenant.clone()).or_default();
        records.last_used = self.uses;
        Ok(records)
    }

    fn known(&self, tenant: Option<&TenantId>) -> Option<&Records> {
        match tenant {
            Some(tenant) => self.tenants.get(tenant),
            None => Some(&self.house),
        }
    }

    /// Takes the job whose turn it is, if there is one and a place for it.
    pub(super) fn begin_next(&mut self, now: Now) -> Option<Begun> {
        if self.is_closed {
            return None;
        }
        let begun = self.begin_of_house(now).or_else(|| self.begin_of_tenants(now));
        self.measure();
        begun
    }

    fn begin_of_house(&mut self, now: Now) -> Option<Begun> {
        if self.house.running() >= self.rules.house_at_once.max(1) {
            return None;
        }
        let taken = self.house.take(&self.paused)?;
        Some(self.house.begin(None, taken, 0, now))
    }

    fn begin_of_tenants(&mut self, now: Now) -> Option<Begun> {
        if self.running >= self.rules.at_once.max(1) {
            return None;
        }
        let Self { tenants, paused, rules, fair, .. } = self;
        let (tenant, charged_us) = fair.next(|tenant| {
            tenants.get(tenant).is_some_and(|records| {
                records.running() < rules.tenant_at_once() && records.has_turn(paused)
            })
        })?;
        let records = tenants.get_mut(&tenant)?;
        let taken = records.take(paused)?;
        self.waiting -= 1;
        self.running += 1;
        Some(records.begin(Some(tenant), taken, charged_us, now))
    }

    /// Notes how a job ended, and frees its place.
    pub(super) fn end(
        &mut self,
        tenant: Option<&TenantId>,
        id: JobId,
        (state, error): (JobState, Option<String>),
        now: Now,
    ) {
        let error = error.map(shortened);
        match tenant {
            None => {
                self.house.end(id, state, error, now.us);
            }
            Some(tenant) => {
                let records = self.tenants.get_mut(tenant);
                let ended = records.and_then(|records| records.end(id, state, error, now.us));
                if let Some((charged_us, took_us)) = ended {
                    self.running -= 1;
                    self.fair.ended(tenant, charged_us, took_us);
                }
            }
        }
        self.measure();
    }

    /// Takes out what waits for a cube, and tells what runs for it to end. What is returned is
    /// dropped by the caller, who holds no lock then.
    #[must_use]
    pub(super) fn cancel(&mut self, tenant: &TenantId, cube: &CubeId, now: Now) -> Vec<Waiting> {
        let Some(records) = self.tenants.get_mut(tenant) else { return Vec::new() };
        let cancelled = records.cancel(Some(cube), now.us);
        self.waiting -= cancelled.len();
        self.fair.withdrawn(tenant, cancelled.len());
        self.measure();
        cancelled
    }

    /// Takes no more jobs, takes out what waits, and tells what runs to end.
    #[must_use]
    pub(super) fn close(&mut self, now: Now) -> Vec<Waiting> {
        self.is_closed = true;
        let mut cancelled = Vec::new();
        for records in std::iter::once(&mut self.house).chain(self.tenants.values_mut()) {
            cancelled.extend(records.cancel(None, now.us));
            records.abandon(now.us);
        }
        (self.waiting, self.running) = (0, 0);
        self.measure();
        cancelled
    }

    /// Lets no job of these kinds begin, of anybody.
    pub(super) fn pause(&mut self, kinds: &[JobKind]) {
        self.paused.extend(kinds);
    }

    pub(super) fn resume(&mut self, kinds: &[JobKind]) {
        self.paused.retain(|kind| !kinds.contains(kind));
    }

    /// Lets no job of these kinds begin, of one tenant.
    pub(super) fn pause_tenant(&mut self, tenant: &TenantId, kinds: &[JobKind]) -> Result<()> {
        self.records_of(Some(tenant))?.pause(kinds);
        Ok(())
    }

    pub(super) fn resume_tenant(&mut self, tenant: &TenantId, kinds: &[JobKind]) {
        if let Some(records) = self.tenants.get_mut(tenant) {
            records.resume(kinds);
        }
    }

    pub(super) fn status(&self, tenant: Option<&TenantId>, now: Now) -> JobsStatus {
        match self.known(tenant) {
            Some(records) => records.status(&self.paused, now.us),
            None => JobsStatus {
                paused: self.paused.iter().copied().collect(),
                ..JobsStatus::default()
            },
        }
    }

    pub(super) fn find(&self, tenant: Option<&TenantId>, id: JobId, now: Now) -> Option<JobView> {
        self.known(tenant)?.find(id, now.us)
    }

    pub(super) fn load(
        &self,
        tenant: Option<&TenantId>,
        cube: Option<&CubeId>,
    ) -> BTreeMap<JobKind, JobCounts> {
        self.known(tenant).map_or_else(BTreeMap::new, |records| records.load(cube))
    }

    pub(super) fn queue(&self) -> QueueDepth {
        let depth = self.waiting + self.house.waiting();
        let bound = JOBS_WAITING_MAX + JOBS_WAITING_PER_TENANT_MAX;
        QueueDepth { name: "background jobs", depth, bound }
    }

    fn measure(&self) {
        let (waiting, running) = (self.house.waiting(), self.house.running());
        metrics::gauge!(names::JOBS_WAITING).set((self.waiting + waiting) as f64);
        metrics::gauge!(names::JOBS_RUNNING).set((self.running + running) as f64);
    }
}

fn check(job: &Job) -> Result<()> {
    let bytes = job.name.len();
    if bytes > JOB_NAME_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the name of a job has {bytes} bytes, the limit is {JOB_NAME_BYTES_MAX}"
        )));
    }
    if job.ms_max == 0 {
        return Err(Error::invalid("a job must be given at least a millisecond"));
    }
    Ok(())
}

fn shortened(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}
