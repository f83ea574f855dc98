//! Does what nobody waits for: trimming, sweeping, upkeep. One actor a node, which runs chores in
//! turn, each with its own period.
//!
//! Receives: its own ticks, and the ends of chores.
//! Sends: chores to tasks of their own; what they do goes to the state store.
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
};

/// The longest time between two looks at what is due, and the shortest.
const TICK_MS: (u64, u64) = (50, 60_000);

/// Something to be done now and then.
pub trait Chore: Send + Sync + 'static {
    /// Names it in logs and metrics.
    fn name(&self) -> &'static str;

    /// Milliseconds between two runs, more or less.
    fn period_ms(&self) -> u64;

    /// Does what there is to do, and tells how many things were done. A run that is dropped before
    /// its end, as at a shutdown, must leave nothing behind that the next one cannot take up.
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
    /// Ends at once, with the chores that are under way.
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
    Done { chore: usize },
}

pub(crate) struct Housekeeper;

/// A chore, and when it is due on this node's monotonic clock.
struct Duty {
    chore: Arc<dyn Chore>,
    due_us: u64,
    is_running: bool,
}

pub(crate) struct Keeping {
    environment: Environment,
    views: watch::Receiver<View>,
    duties: Vec<Duty>,
    timer: Option<JoinHandle<std::result::Result<(), MessagingErr<HouseMessage>>>>,
    /// Ends the chores under way when it is dropped.
    stop: watch::Sender<()>,
}

impl Housekeeper {
    pub(crate) async fn start(
        environment: Environment,
        views: watch::Receiver<View>,
        chores: Vec<Arc<dyn Chore>>,
    ) -> Result<HousekeeperHandle> {
        let now_us = environment.monotonic_us();
        let duty = |chore: Arc<dyn Chore>| {
            let due_us = now_us + below(&environment, chore.period_ms() * 1_000);
            Duty { chore, due_us, is_running: false }
        };
        let duties = chores.into_iter().map(duty).collect();
        let (stop, _) = watch::channel(());
        let keeping = Keeping { environment, views, duties, timer: None, stop };
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
            let (chore, view) = (Arc::clone(&duty.chore), view.clone());
            let (environment, myself) = (self.environment.clone(), myself.clone());
            let mut stopped = self.stop.subscribe();
            self.environment.spawn(async move {
                tokio::select! {
                    biased;
                    _ = stopped.changed() => {}
                    () = work(&*chore, &view, &environment) => {}
                }
                // A housekeeper that has ended starts nothing any more.
                let _ = myself.cast(HouseMessage::Done { chore: number });
            });
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

/// Runs a chore once. One that fails or panics is tried again when it is due.
async fn work(chore: &dyn Chore, view: &View, environment: &Environment) {
    let name = chore.name();
    let start_us = environment.monotonic_us();
    let outcome = AssertUnwindSafe(chore.run(view)).catch_unwind().await;
    let took_us = environment.monotonic_us().saturating_sub(start_us);
    metrics::histogram!(names::CHORE_SECONDS, "chore" => name).record(seconds(took_us));
    let error = match outcome {
        Ok(Ok(0)) => return,
        Ok(Ok(things)) => {
            tracing::debug!(chore = name, things, "a chore is done");
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it panicked".to_owned(),
    };
    metrics::counter!(names::CHORES_FAILED_TOTAL, "chore" => name).increment(1);
    tracing::warn!(chore = name, error, "a chore failed, and is tried again when it is due");
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

    async fn keep(chores: Vec<Arc<dyn Chore>>) -> HousekeeperHandle {
        let node = NodeId::new("a").expect("valid");
        let (_, views) = watch::channel(View::alone(node, Incarnation(1)));
        Housekeeper::start(Environment::scripted(3), views, chores).await.expect("started")
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
        let house = house.await;
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
        // The chore that hung was dropped, and with it its hold on what it works with.
        drop(chores);
        assert_eq!(Arc::strong_count(&hanging), 1);
    }
}
