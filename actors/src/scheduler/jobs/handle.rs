//! The front door of the jobs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use memcube_schemas::{CubeId, TenantId};
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

use super::{
    Job, JobCounts, JobId, JobKind, JobRules, JobState, JobView, JobsStatus,
    actor::{JobsActor, JobsMessage},
    board::Board,
    records::{Begun, Now},
};
use crate::{
    directory::QueueDepth,
    environment::Environment,
    error::{Error, Result},
};

/// What the actor and the handles share.
pub(super) struct Shared {
    environment: Environment,
    board: Mutex<Board>,
    /// Marked whenever fewer jobs wait or run than before.
    fewer: watch::Sender<()>,
    /// Whether the actor was told to look, and has not yet: its mailbox holds one such message.
    is_told: AtomicBool,
    /// Tasks of jobs that have not ended yet, also of those that were told to.
    tasks: AtomicUsize,
}

/// Held by the task of a job until it has dropped what the job holds.
pub(super) struct Under(Arc<Shared>);

impl Drop for Under {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::AcqRel);
        self.0.fewer.send_replace(());
    }
}

impl Shared {
    pub(super) fn under(self: &Arc<Self>) -> Under {
        self.tasks.fetch_add(1, Ordering::AcqRel);
        Under(Arc::clone(self))
    }

    /// Ends when no task of a job is left.
    async fn empty(&self) {
        let mut fewer = self.fewer.subscribe();
        while self.tasks.load(Ordering::Acquire) > 0 && fewer.changed().await.is_ok() {}
    }

    pub(super) const fn environment(&self) -> &Environment {
        &self.environment
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Nothing under the lock runs foreign code; numbers stay numbers in any case.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { unix_ms: self.environment.unix_ms(), us: self.environment.monotonic_us() }
    }

    pub(super) fn looks(&self) {
        self.is_told.store(false, Ordering::Release);
    }

    pub(super) fn begin_next(&self) -> Option<Begun> {
        let now = self.now();
        self.board().begin_next(now)
    }

    pub(super) fn end(
        &self,
        tenant: Option<&TenantId>,
        id: JobId,
        outcome: (JobState, Option<String>),
    ) {
        let now = self.now();
        self.board().end(tenant, id, outcome, now);
        self.fewer.send_replace(());
    }

    /// Takes no more jobs, and cancels those that there are.
    pub(super) fn close(&self) {
        let now = self.now();
        let cancelled = self.board().close(now);
        // Dropped without the lock: what jobs hold may want to look at the board.
        drop(cancelled);
        self.fewer.send_replace(());
    }
}

/// The background jobs of a node. Cheap to clone.
#[derive(Clone)]
pub struct JobsHandle {
    actor: ActorRef<JobsMessage>,
    shared: Arc<Shared>,
}

impl fmt::Debug for JobsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobsHandle")
    }
}

impl JobsHandle {
    /// Starts to run jobs.
    ///
    /// # Errors
    /// `Internal` when the actor cannot be started.
    pub async fn start(environment: Environment, rules: JobRules) -> Result<Self> {
        let shared = Arc::new(Shared {
            environment,
            board: Mutex::new(Board::new(rules)),
            fewer: watch::Sender::new(()),
            is_told: AtomicBool::new(false),
            tasks: AtomicUsize::new(0),
        });
        let (actor, _) = JobsActor::spawn(None, JobsActor, Arc::clone(&shared))
            .await
            .map_err(|error| Error::internal(format!("the jobs did not start: {error}")))?;
        Ok(Self { actor, shared })
    }

    /// Takes a job in. Of two jobs of one tenant and kind with the same name, one waits: the second
    /// is dropped, and the id of the first returned. Never waits.
    ///
    /// # Errors
    /// `Overloaded` when too many jobs of the tenant, or of all, wait; `Invalid` when its name is
    /// too long or it has no time; `Unavailable` when the node stops.
    pub fn submit(&self, job: Job) -> Result<JobId> {
        let now = self.shared.now();
        let id = self.shared.board().submit(job, now)?;
        self.tell();
        Ok(id)
    }

    /// What there is of a tenant's jobs, or of the node's own.
    #[must_use]
    pub fn status(&self, tenant: Option<&TenantId>) -> JobsStatus {
        let now = self.shared.now();
        self.shared.board().status(tenant, now)
    }

    /// A job of a tenant, or of the node itself; one that has ended for as long as it is
    /// remembered.
    #[must_use]
    pub fn job(&self, tenant: Option<&TenantId>, id: JobId) -> Option<JobView> {
        let now = self.shared.now();
        self.shared.board().find(tenant, id, now)
    }

    /// Lets no job of a kind begin on this node, or no job at all. What runs goes on.
    pub fn pause(&self, what: Option<JobKind>) {
        self.shared.board().pause(&kinds(what));
    }

    /// Lets jobs begin again on this node. Those that a tenant has paused itself stay so.
    pub fn resume(&self, what: Option<JobKind>) {
        self.shared.board().resume(&kinds(what));
        self.tell();
    }

    /// Lets no job of a tenant begin, or none of a kind. What runs goes on.
    ///
    /// # Errors
    /// `Overloaded` when too many tenants have jobs, or have paused them.
    pub fn pause_tenant(&self, tenant: &TenantId, what: Option<JobKind>) -> Result<()> {
        self.shared.board().pause_tenant(tenant, &kinds(what))
    }

    /// Lets jobs of a tenant begin again. Those that are paused on the whole node stay so.
    pub fn resume_tenant(&self, tenant: &TenantId, what: Option<JobKind>) {
        self.shared.board().resume_tenant(tenant, &kinds(what));
        self.tell();
    }

    /// Ends what is to be done for a cube, because it was deleted. What runs is dropped.
    pub fn cancel_of_cube(&self, tenant: &TenantId, cube: &CubeId) {
        let now = self.shared.now();
        let cancelled = self.shared.board().cancel(tenant, cube, now);
        drop(cancelled);
        self.shared.fewer.send_replace(());
    }

    /// Jobs of a tenant, or of the node itself, that wait and that run, by kind: of one cube, or
    /// all of them.
    #[must_use]
    pub fn load(
        &self,
        tenant: Option<&TenantId>,
        cube: Option<&CubeId>,
    ) -> BTreeMap<JobKind, JobCounts> {
        self.shared.board().load(tenant, cube)
    }

    /// Ends when nothing of a tenant, or of the node itself, waits or runs. While jobs that wait
    /// are paused, that is not the case.
    pub async fn idle(&self, tenant: Option<&TenantId>) {
        self.idle_of(tenant, None).await;
    }

    /// The same, for the jobs of one cube.
    pub async fn idle_of(&self, tenant: Option<&TenantId>, cube: Option<&CubeId>) {
        let mut fewer = self.shared.fewer.subscribe();
        while !self.load(tenant, cube).is_empty() && fewer.changed().await.is_ok() {}
    }

    /// How full the queue is.
    #[must_use]
    pub fn queue(&self) -> QueueDepth {
        self.shared.board().queue()
    }

    /// Ends at once, with the jobs that run. Those that wait are cancelled.
    pub fn kill(&self) {
        self.actor.kill();
        self.shared.close();
    }

    /// Takes no more jobs, cancels those that there are, and ends when they have let go of what
    /// they worked with.
    pub async fn stop(&self) {
        self.shared.close();
        // One that is gone already has nothing left to end.
        let _ = self.actor.stop_and_wait(None, None).await;
        self.shared.empty().await;
    }

    fn tell(&self) {
        if !self.shared.is_told.swap(true, Ordering::AcqRel) {
            // One that has ended has closed the board, and begins nothing.
            let _ = self.actor.cast(JobsMessage::Look);
        }
    }
}

fn kinds(what: Option<JobKind>) -> Vec<JobKind> {
    what.map_or_else(|| JobKind::ALL.to_vec(), |kind| vec![kind])
}
