//! The jobs of one tenant, or of the node itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use memcube_schemas::{CubeId, TenantId, limits::JOBS_REMEMBERED_PER_TENANT};
use tokio::sync::oneshot;

use super::{JobCounts, JobId, JobKind, JobState, JobView, JobsStatus, Work};
use crate::{cube::seconds, metrics as names};

/// Urgent jobs in a row, before one that waits longer has its turn.
const URGENT_IN_A_ROW: u32 = 3;

/// What the clocks say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) unix_ms: i64,
    pub(super) us: u64,
}

/// A job whose turn it is.
pub(super) struct Begun {
    pub(super) tenant: Option<TenantId>,
    pub(super) id: JobId,
    pub(super) ms_max: u64,
    pub(super) work: Work,
    /// Ends the job once its sender is dropped.
    pub(super) stop: oneshot::Receiver<()>,
}

pub(super) struct Waiting {
    pub(super) name: String,
    pub(super) cube: Option<CubeId>,
    pub(super) since: Now,
    pub(super) ms_max: u64,
    pub(super) work: Work,
}

pub(super) struct Running {
    kind: JobKind,
    name: String,
    cube: Option<CubeId>,
    since: Now,
    begun_us: u64,
    pub(super) charged_us: u64,
    /// Dropped to end it.
    stop: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
pub(super) struct Records {
    waiting: BTreeMap<JobKind, BTreeMap<JobId, Waiting>>,
    names: BTreeMap<(JobKind, String), JobId>,
    running: BTreeMap<JobId, Running>,
    ended: VecDeque<JobView>,
    counts: BTreeMap<JobKind, JobCounts>,
    paused: BTreeSet<JobKind>,
    urgent_in_a_row: u32,
    /// Grows with every use, of whichever records.
    pub(super) last_used: u64,
}

impl Records {
    pub(super) const fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            names: BTreeMap::new(),
            running: BTreeMap::new(),
            ended: VecDeque::new(),
            counts: BTreeMap::new(),
            paused: BTreeSet::new(),
            urgent_in_a_row: 0,
            last_used: 0,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.names.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn is_forgettable(&self) -> bool {
        self.names.is_empty() && self.running.is_empty() && self.paused.is_empty()
    }

    /// The job of this name that waits.
    pub(super) fn same(&self, kind: JobKind, name: &str) -> Option<JobId> {
        self.names.get(&(kind, name.to_owned())).copied()
    }

    pub(super) fn wait(&mut self, id: JobId, kind: JobKind, job: Waiting) {
        self.names.insert((kind, job.name.clone()), id);
        self.waiting.entry(kind).or_default().insert(id, job);
    }

    /// Whether any job may begin now.
    pub(super) fn has_turn(&self, paused: &BTreeSet<JobKind>) -> bool {
        self.open(paused).next().is_some()
    }

    /// The first job of each kind that is not paused.
    fn open<'a>(
        &'a self,
        paused: &'a BTreeSet<JobKind>,
    ) -> impl Iterator<Item = (JobId, JobKind)> + 'a {
        let is_open = |kind: &JobKind| !paused.contains(kind) && !self.paused.contains(kind);
        let open = self.waiting.iter().filter(move |(kind, _)| is_open(kind));
        open.filter_map(|(kind, jobs)| Some((*jobs.keys().next()?, *kind)))
    }

    /// Takes the job whose turn it is: an urgent one, or the one that waits longest.
    pub(super) fn take(&mut self, paused: &BTreeSet<JobKind>) -> Option<(JobId, JobKind, Waiting)> {
        let urgent = self.open(paused).filter(|(_, kind)| kind.is_urgent()).min();
        let other = self.open(paused).filter(|(_, kind)| !kind.is_urgent()).min();
        let (id, kind) = match (urgent, other) {
            (Some(_), Some(other)) if self.urgent_in_a_row >= URGENT_IN_A_ROW => other,
            (Some(urgent), _) => urgent,
            (None, other) => other?,
        };
        self.urgent_in_a_row = if kind.is_urgent() { self.urgent_in_a_row + 1 } else { 0 };
        self.remove(kind, id).map(|job| (id, kind, job))
    }

    fn remove(&mut self, kind: JobKind, id: JobId) -> Option<Waiting> {
        let job = self.waiting.get_mut(&kind)?.remove(&id)?;
        self.names.remove(&(kind, job.name.clone()));
        Some(job)
    }

    /// Lists a job that was taken as one that runs.
    pub(super) fn begin(
        &mut self,
        tenant: Option<TenantId>,
        (id, kind, job): (JobId, JobKind, Waiting),
        charged_us: u64,
        now: Now,
    ) -> Begun {
        let Waiting { name, cube, since, ms_max, work } = job;
        let waited_us = now.us.saturating_sub(since.us);
        metrics::histogram!(names::JOB_WAIT_SECONDS, "kind" => kind.as_str())
            .record(seconds(waited_us));
        let (sender, stop) = oneshot::channel();
        let (begun_us, sender) = (now.us, Some(sender));
        let job = Running { kind, name, cube, since, begun_us, charged_us, stop: sender };
        self.running.insert(id, job);
        Begun { tenant, id, ms_max, work, stop }
    }

    /// Notes how a job that ran has ended; returns what it was charged and what it took.
    pub(super) fn end(
        &mut self,
        id: JobId,
        state: JobState,
        error: Option<String>,
        now_us: u64,
    ) -> Option<(u64, u64)> {
        let job = self.running.remove(&id)?;
        let took_us = now_us.saturating_sub(job.begun_us);
        metrics::histogram!(names::JOB_SECONDS, "kind" => job.kind.as_str())
            .record(seconds(took_us));
        self.note_end(JobView { state, error, ..job.view(id, now_us) });
        Some((job.charged_us, took_us))
    }

    /// Takes out what waits, of a cube or all of it, and tells what runs to end.
    pub(super) fn cancel(&mut self, cube: Option<&CubeId>, now_us: u64) -> Vec<Waiting> {
        let is_meant = |of: &Option<CubeId>| cube.is_none() || of.as_ref() == cube;
        let meant = self.waiting.iter().flat_map(|(kind, jobs)| {
            let meant = jobs.iter().filter(|(_, job)| is_meant(&job.cube));
            meant.map(|(id, _)| (*kind, *id)).collect::<Vec<_>>()
        });
        let meant: Vec<(JobKind, JobId)> = meant.collect();
        let mut cancelled = Vec::with_capacity(meant.len());
        for (kind, id) in meant {
            let Some(job) = self.remove(kind, id) else { continue };
            let state = JobState::Cancelled;
            self.note_end(JobView { state, ..job.view(id, kind, now_us) });
            cancelled.push(job);
        }
        for job in self.running.values_mut().filter(|job| is_meant(&job.cube)) {
            job.stop = None;
        }
        cancelled
    }

    /// Counts what runs as cancelled: its node has stopped.
    pub(super) fn abandon(&mut self, now_us: u64) {
        for (id, job) in std::mem::take(&mut self.running) {
            self.note_end(JobView { state: JobState::Cancelled, ..job.view(id, now_us) });
        }
    }

    pub(super) fn pause(&mut self, kinds: &[JobKind]) {
        self.paused.extend(kinds);
    }

    pub(super) fn resume(&mut self, kinds: &[JobKind]) {
        self.paused.retain(|kind| !kinds.contains(kind));
    }

    /// Jobs that wait and that run, by kind: of a cube, or all of them.
    pub(super) fn load(&self, cube: Option<&CubeId>) -> BTreeMap<JobKind, JobCounts> {
        let is_meant = |of: &Option<CubeId>| cube.is_none() || of.as_ref() == cube;
        let mut load: BTreeMap<JobKind, JobCounts> = BTreeMap::new();
        for (kind, jobs) in &self.waiting {
            let waiting = jobs.values().filter(|job| is_meant(&job.cube)).count();
            if waiting > 0 {
                load.entry(*kind).or_default().waiting = waiting as u64;
            }
        }
        for job in self.running.values().filter(|job| is_meant(&job.cube)) {
            load.entry(job.kind).or_default().running += 1;
        }
        load
    }

    fn note_end(&mut self, view: JobView) {
        metrics::counter!(
            names::JOBS_TOTAL, "kind" => view.kind.as_str(), "outcome" => view.state.as_str()
        )
        .increment(1);
        self.counts.entry(view.kind).or_default().ended(view.state);
        if self.ended.len() >= JOBS_REMEMBERED_PER_TENANT {
            self.ended.pop_front();
        }
        self.ended.push_back(view);
    }

    pub(super) fn find(&self, id: JobId, now_us: u64) -> Option<JobView> {
        let waits = self.waiting.iter().find_map(|(kind, jobs)| Some((kind, jobs.get(&id)?)));
        waits
            .map(|(kind, job)| job.view(id, *kind, now_us))
            .or_else(|| self.running.get(&id).map(|job| job.view(id, now_us)))
            .or_else(|| self.ended.iter().find(|view| view.id == id).cloned())
    }

    pub(super) fn status(&self, paused: &BTreeSet<JobKind>, now_us: u64) -> JobsStatus {
        let mut kinds = self.counts.clone();
        for (kind, load) in self.load(None) {
            let counts = kinds.entry(kind).or_default();
            *counts = counts.plus(load);
        }
        let running = self.running.iter().rev().map(|(id, job)| job.view(*id, now_us));
        let mut waiting: Vec<(JobId, JobKind, &Waiting)> = self
            .waiting
            .iter()
            .flat_map(|(kind, jobs)| jobs.iter().map(|(id, job)| (*id, *kind, job)))
            .collect();
        waiting.sort_unstable_by_key(|(id, _, _)| std::cmp::Reverse(*id));
        let waiting = waiting.into_iter().map(|(id, kind, job)| job.view(id, kind, now_us));
        let ended = self.ended.iter().rev().cloned();
        let few = JOBS_REMEMBERED_PER_TENANT;
        let recent = running.take(few).chain(waiting.take(few)).chain(ended).collect();
        let paused = paused.union(&self.paused).copied().collect();
        JobsStatus { kinds, paused, recent }
    }
}

impl Waiting {
    fn view(&self, id: JobId, kind: JobKind, now_us: u64) -> JobView {
        JobView {
            id,
            kind,
            name: self.name.clone(),
            cube: self.cube.clone(),
            state: JobState::Waiting,
            submitted_at_ms: self.since.unix_ms,
            waited_ms: now_us.saturating_sub(self.since.us) / 1_000,
            ran_ms: 0,
            error: None,
        }
    }
}

impl Running {
    fn view(&self, id: JobId, now_us: u64) -> JobView {
        JobView {
            id,
            kind: self.kind,
            name: self.name.clone(),
            cube: self.cube.clone(),
            state: JobState::Running,
            submitted_at_ms: self.since.unix_ms,
            waited_ms: self.begun_us.saturating_sub(self.since.us) / 1_000,
            ran_ms: now_us.saturating_sub(self.begun_us) / 1_000,
            error: None,
        }
    }
}
