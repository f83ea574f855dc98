//! What is told of jobs.

use std::collections::BTreeMap;

use memcube_schemas::CubeId;

use super::{JobId, JobKind};

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// It is not its turn yet, or its kind is paused.
    Waiting,
    /// It runs.
    Running,
    /// It has ended well.
    Done,
    /// It has ended with an error, panicked, or took too long.
    Failed,
    /// It was ended: its cube was deleted, or the node stops.
    Cancelled,
}

impl JobState {
    /// As it is written on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One job as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Which.
    pub id: JobId,
    /// What kind of work it is.
    pub kind: JobKind,
    /// Its name among those of its kind.
    pub name: String,
    /// The cube that it works on.
    pub cube: Option<CubeId>,
    /// How far it is.
    pub state: JobState,
    /// Unix milliseconds at which it was submitted.
    pub submitted_at_ms: i64,
    /// How long it waited, or has waited by now.
    pub waited_ms: u64,
    /// How long it ran, or has run by now.
    pub ran_ms: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// How many jobs there are, and were since the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Jobs that wait.
    pub waiting: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that ended well.
    pub done: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
}

impl JobCounts {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            waiting: self.waiting + other.waiting,
            running: self.running + other.running,
            done: self.done + other.done,
            failed: self.failed + other.failed,
            cancelled: self.cancelled + other.cancelled,
        }
    }

    /// One more that has ended in this state.
    pub(super) const fn ended(&mut self, state: JobState) {
        match state {
            JobState::Done => self.done += 1,
            JobState::Failed => self.failed += 1,
            JobState::Cancelled => self.cancelled += 1,
            JobState::Waiting | JobState::Running => {}
        }
    }
}

/// The jobs of one tenant, or of the node itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobsStatus {
    /// By kind, those of which there were any. A tenant that has had no job for long may be
    /// forgotten, and counts from zero again.
    pub kinds: BTreeMap<JobKind, JobCounts>,
    /// Kinds of which no job begins now, by the tenant's wish or the node's.
    pub paused: Vec<JobKind>,
    /// What runs, what waits, then what has ended, the latest first. Of each no more than
    /// [`JOBS_REMEMBERED_PER_TENANT`](memcube_schemas::limits::JOBS_REMEMBERED_PER_TENANT).
    pub recent: Vec<JobView>,
}

impl JobsStatus {
    /// All kinds together.
    #[must_use]
    pub fn total(&self) -> JobCounts {
        self.kinds.values().fold(JobCounts::default(), |sum, counts| sum.plus(*counts))
    }
}
