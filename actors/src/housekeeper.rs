//! Does what nobody waits for: trimming, sweeping, upkeep. One actor a node, which has chores run
//! in turn, each with its own period.
//!
//! Receives: its own ticks, and the ends of chores.
//! Sends: chores to the background jobs of the node; what they do goes to the state store.
//! Owns: when each chore is due. Periods are shaken, so that nodes that started together do not
//! work at the same moments.
//!
//! A chore is the work of one node where placement says so ([`View::keeps`]), which saves work and
//! no more: views differ, so a chore has to be safe by the checks of its commits.

mod blobs;
mod node_rows;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr, concurrency::JoinHandle};
use tokio::sync::watch;

pub(crate) use self::blobs::BlobSweeper;
pub use self::node_rows::NodeRows;
use crate::{
    cluster::View,
    cube::seconds,
    environment::Environment,
    error::{Error, Result},
    metrics as names,
    scheduler::jobs::{Job, JobKind, JobsHandle},
};

/// Milliseconds that a run of a chore may take: far longer than one does that comes on.
const CHORE_MS_MAX: u64 = 3_600_000;
/// The longest time between two looks at what is due, and the shortest.
const TICK_MS: (u64, u64) = (50, 60_000);

/// Something to be done now and then.
pub trait Chore: Send + Sync + 'static {
    /// Names it in logs and metrics.
    fn name(&self) -> &'static str;

    /// What kind of job it is, by which it is counted and paused.
    fn kind(&self) -> JobKind {
        JobKind::Other
    }

    /// Milliseconds between two runs, more or less.
    fn period_ms(&self) -> u64;

    /// Does what there is to do, and tells how many things were done. A run that is dropped before
    /// its end, as at a shutdown or after an hour, must leave nothing behind that the next one
    /// cannot take up.
    ///
    /// # Errors
    /// What kept it from its work; it is logged, and the next run tries again.
    fn run<'a>(&'a self, view: &'a View) -> BoxFuture<'a, Result<u64>>;
}

/// What is kept for how long, and how often somebody looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HouseRules {
    /// Milliseconds that records of event feeds are kept.
    pub feed_keep_ms: u64,
    /// Milliseconds between two looks for what is old.
    pub period_ms: u64,
}

impl Default for HouseRules {
    fn default() -> Self {
        Self { feed_keep_ms: memcube_schemas::limits::FEED_KEPT_MS, period_ms: 60_000 }
    }
}

/// The front door of the housekeeper. Cheap to clone.
#[derive(Clone)]
pub(crate) struct HousekeeperHandle {
    actor: ActorRef<HouseMessage>,
}

impl HousekeeperHandle {
    /// Ends at once. Chores that are under way end with the jobs of the node.
    pub(crate) fn kill(&self) {
        self.actor.kill();
    }

    pub(crate) async fn stop(&self) {
        // One that is gone already has nothing left to end.
        let _ = self.actor.stop_and_wait(None, None).await;
    }
}

pub(crate) enum HouseMessage {
    Tick,
    /// A run has ended, or was dropped.
    Done {
        chore: usize,
    },
}

pub(crate) struct Housekeeper;

/// A chore, and when it is due on this node's monotonic clock.
struct Duty {
    chore: Arc<dyn Chore>,
    /// As its runs are named; no two chores have the same.
    name: String,
    due_us: u64,
    is_running: bool,
}

pub(crate) struct Keeping {
    environment: Environment,
    views: watch::Receiver<View>,
    jobs: JobsHandle,
    duties: Vec<Duty>,
    timer: Option<JoinHandle<std::result::Result<(), MessagingErr<HouseMessage>>>>,
}

/// Says that the run of a chore is over, also that of one which never began or was dropped.
struct Told {
    housekeeper: ActorRef<HouseMessage>,
    chore: usize,
}

impl Drop for Told {
    fn drop(&mut self) {
        // A housekeeper that has ended starts nothing any more.
        let _ = self.housekeeper.cast(HouseMessage::Done { chore: self.chore });
    }
}

impl Housekeeper {
    pub(crate) async fn start(
        environment: Environment,
        views: watch::Receiver<View>,
        jobs: JobsHandle,
        chores: Vec<Arc<dyn Chore>>,
    ) -> Result<HousekeeperHandle> {
        let now_us = environment.monotonic_us();
        let mut duties: Vec<Duty> = Vec::with_capacity(chores.len());
        for chore in chores {
            let due_us = now_us + below(&environment, chore.period_ms() * 1_000);
            let namesakes = duties.iter().filter(|duty| duty.chore.name() == chore.name()).count();
            let name = match namesakes {
                0 => chore.name().to_owned(),
                more => format!("{} {}", chore.name(), more + 1),
            };
            duties.push(Duty { chore, name, due_us, is_running: false });
        }
        let keeping = Keeping { environment, views, jobs, duties, timer: None };
        let (actor, _) = Self::spawn(None, Self, keeping)
            .await
            .map_err(|error| Error::internal(format!("the housekeeper did not start: {error}")))?;
        Ok(HousekeeperHandle { actor })
    }
}

impl Actor for Housekeeper {
    type Msg = HouseMessage;
    type State = Keeping;
    type Arguments = Keeping;

    async fn pre_start(
        &self,
        myself: ActorRef<HouseMessage>,
        mut keeping: Keeping,
    ) -> std::result::Result<Keeping, ActorProcessingErr> {
        keeping.arm(&myself);
        Ok(keeping)
    }

    async fn handle(
        &self,
        myself: ActorRef<HouseMessage>,
        message: HouseMessage,
        keeping: &mut Keeping,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            HouseMessage::Tick => keeping.start_due(&myself),
            HouseMessage::Done { chore } => keeping.done(chore),
        }
        keeping.arm(&myself);
        Ok(())
    }
}

impl Keeping {
    /// Sets the timer for what is due next, in place of the one before.
    fn arm(&mut self, myself: &ActorRef<HouseMessage>) {
        let next_us = self.duties.iter().filter(|duty| !duty.is_running).map(|duty| duty.due_us);
        let now_us = self.environment.monotonic_us();
        let (least_ms, most_ms) = TICK_MS;
        let wait_ms = next_us.min().map_or(most_ms, |due_us| due_us.saturating_sub(now_us) / 1_000);
        let pause = Duration::from_millis(wait_ms.clamp(least_ms, most_ms));
        if let Some(former) = self.timer.replace(myself.send_after(pause, || HouseMessage::Tick)) {
            former.abort();
        }
    }

    fn start_due(&mut self, myself: &ActorRef<HouseMessage>) {
        let now_us = self.environment.monotonic_us();
        let view = self.views.borrow().clone();
        for (number, duty) in self.duties.iter_mut().enumerate() {
            if duty.is_running || duty.due_us > now_us {
                continue;
            }
            duty.is_running = true;
            let told = Told { housekeeper: myself.clone(), chore: number };
            let job = job(duty, view.clone(), self.environment.clone(), told);
            if let Err(error) = self.jobs.submit(job) {
                // Dropping it has told that it is over, so that it is due again later.
                tracing::warn!(chore = duty.chore.name(), %error, "a chore has to wait");
            }
        }
    }

    fn done(&mut self, chore: usize) {
        let Some(duty) = self.duties.get_mut(chore) else { return };
        let period_us = duty.chore.period_ms() * 1_000;
        // Between nine tenths and eleven tenths of the period.
        let shaken = period_us - period_us / 10 + below(&self.environment, period_us / 5);
        duty.due_us = self.environment.monotonic_us() + shaken;
        duty.is_running = false;
    }
}

/// One run of a chore. One that fails is tried again when it is due.
fn job(duty: &Duty, view: View, environment: Environment, told: Told) -> Job {
    let chore = Arc::clone(&duty.chore);
    let (kind, name) = (chore.kind(), chore.name());
    let work = async move {
        let _told = told;
        let start_us = environment.monotonic_us();
        let outcome = AssertUnwindSafe(chore.run(&view)).catch_unwind().await;
        let outcome = outcome.unwrap_or_else(|_| Err(Error::internal("it panicked; see the log")));
        let took_us = environment.monotonic_us().saturating_sub(start_us);
        metrics::histogram!(names::CHORE_SECONDS, "chore" => name).record(seconds(took_us));
        match &outcome {
            Ok(0) => {}
            Ok(things) => tracing::debug!(chore = name, things, "a chore is done"),
            Err(error) => {
                metrics::counter!(names::CHORES_FAILED_TOTAL, "chore" => name).increment(1);
                tracing::warn!(chore = name, %error, "a chore failed, and is tried again");
            }
        }
        outcome.map(|_| ())
    };
    Job {
        tenant: None,
        cube: None,
        kind,
        name: duty.name.clone(),
        ms_max: CHORE_MS_MAX,
        work: Box::new(move || Box::pin(work)),
    }
}

/// A number below a bound, or zero below nothing.
fn below(environment: &Environment, bound: u64) -> u64 {
    let draw = environment.random_u128().checked_rem(u128::from(bound)).unwrap_or_default();
    u64::try_from(draw).expect("invariant: a remainder is smaller than its divisor")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use memcube_schemas::{Incarnation, NodeId};

    use super::*;
    use crate::scheduler::jobs::JobRules;

    /// Counts its runs; fails, panics or hangs as it is told.
    struct Counting {
        period_ms: u64,
        runs: AtomicU64,
        does: fn(u64) -> Result<u64>,
        hangs: bool,
    }

    impl Counting {
        fn new(period_ms: u64, does: fn(u64) -> Result<u64>) -> Arc<Self> {
            Arc::new(Self { period_ms, runs: AtomicU64::new(0), does, hangs: false })
        }

        fn runs(&self) -> u64 {
            self.runs.load(Ordering::Relaxed)
        }
    }

    impl Chore for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn period_ms(&self) -> u64 {
            self.period_ms
        }

        fn run<'a>(&'a self, _view: &'a View) -> BoxFuture<'a, Result<u64>> {
            Box::pin(async move {
                let run = self.runs.fetch_add(1, Ordering::Relaxed);
                if self.hangs {
                    std::future::pending::<()>().await;
                }
                (self.does)(run)
            })
        }
    }

    async fn keep(chores: Vec<Arc<dyn Chore>>) -> (HousekeeperHandle, JobsHandle) {
        let node = NodeId::new("a").expect("valid");
        let (_, views) = watch::channel(View::alone(node, Incarnation(1)));
        let environment = Environment::scripted(3);
        let rules = JobRules::default();
        let jobs = JobsHandle::start(environment.clone(), rules).await.expect("started");
        let house = Housekeeper::start(environment, views, jobs.clone(), chores).await;
        (house.expect("started"), jobs)
    }

    #[tokio::test(start_paused = true)]
    async fn chores_come_round_whatever_the_others_do() {
        let quick = Counting::new(1_000, |_| Ok(1));
        let slow = Counting::new(100_000, |_| Ok(0));
        let failing = Counting::new(1_000, |_| Err(Error::unavailable("no store")));
        let panicking = Counting::new(1_000, |run| panic!("run {run}"));
        let hanging =
            Arc::new(Counting { period_ms: 1_000, runs: AtomicU64::new(0), does: Ok, hangs: true });
        let chores: [Arc<Counting>; 5] =
            [&quick, &slow, &failing, &panicking, &hanging].map(Arc::clone);
        let house = keep(chores.iter().map(|chore| Arc::clone(chore) as Arc<dyn Chore>).collect());
        let (house, jobs) = house.await;
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        for (chore, runs) in [
            (&quick, 850..=1_050),
            (&slow, 9..=11),
            (&failing, 850..=1_050),
            (&panicking, 850..=1_050),
            (&hanging, 1..=1),
        ] {
            assert!(runs.contains(&chore.runs()), "{} runs, {runs:?} are due", chore.runs());
        }
        house.stop().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let runs = quick.runs();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(quick.runs(), runs, "nothing starts any more");
        let counts = jobs.status(None).kinds[&JobKind::Other];
        let well = quick.runs() + slow.runs();
        assert_eq!((counts.waiting, counts.running, counts.done), (0, 1, well));
        assert_eq!(counts.failed, failing.runs() + panicking.runs());
        jobs.stop().await;
        // The chore that hung was dropped, and with it its hold on what it works with.
        drop(chores);
        assert_eq!(Arc::strong_count(&hanging), 1);
    }
}
