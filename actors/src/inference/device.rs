//! One device: an actor that alone lets an engine compute, so that passes never contend.
//!
//! Receives: tasks for the engine, steps of sessions, and the ends of its own passes.
//! Sends: passes to the compute port; results to whoever asked.
//! Owns: the queues. One pass runs at a time. Steps that wait together are computed together; after
//! them one task has its turn, so that a long prefill and running replies share the device. What is
//! computed ahead has its turn when nobody waits, and makes way for who comes.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use memcube_schemas::limits::{DECODE_BATCH_MAX, INFERENCE_REQUESTS_MAX};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::engine::{
    Cancel, DecodeStep, Engine, EngineFacts, EngineResult, Sampling, Session, Token,
};
use crate::{
    cube::seconds,
    directory::QueueDepth,
    environment::Environment,
    error::{Error, Result},
    metrics as names,
};

/// Work that waits for a device: every request has one piece of it at a time, and one that was
/// abandoned may have another.
const TASKS_MAX: usize = 2 * INFERENCE_REQUESTS_MAX;

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Somebody who wants an answer.
    Foreground,
    /// Nobody yet: what a later answer will need.
    Preload,
}

impl Urgency {
    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Foreground => "foreground",
            Self::Preload => "preload",
        }
    }
}

/// When work is given up.
#[derive(Debug, Clone)]
pub(crate) struct Until {
    pub(crate) urgency: Urgency,
    /// On this node's monotonic clock.
    pub(crate) deadline_us: u64,
    pub(crate) cancel: Cancel,
    /// Whether `cancel` is set when somebody comes who goes first. Whoever asked asks again then.
    pub(crate) yields: bool,
}

/// Something that an engine does.
type Work = Box<dyn FnOnce(&dyn Engine) -> Ran + Send>;

/// What a task left behind: microseconds that it owes, and how to hand its result over.
type Ran = (u64, Box<dyn FnOnce() + Send>);

pub(crate) struct Task {
    until: Until,
    /// Whether whoever asked has gone.
    is_wanted: Box<dyn Fn() -> bool + Send>,
    run: Work,
    refuse: Box<dyn FnOnce(Error) + Send>,
}

/// A session and the token that was chosen, if one was.
pub(crate) type Stepped = (Box<dyn Session>, EngineResult<Token>);

pub(crate) struct Step {
    until: Until,
    session: Box<dyn Session>,
    token: Token,
    sampling: Sampling,
    draw: u64,
    reply: oneshot::Sender<Result<Stepped>>,
}

pub(crate) enum DeviceMessage {
    Run(Task),
    Step(Step),
    /// A pass ended.
    Free,
}

/// The front door of a device. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DeviceHandle {
    actor: ActorRef<DeviceMessage>,
    facts: Arc<EngineFacts>,
    engine: Arc<dyn Engine>,
    waiting: Arc<AtomicUsize>,
}

impl fmt::Debug for DeviceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceHandle").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl DeviceHandle {
    pub(crate) async fn spawn(engine: Arc<dyn Engine>, environment: Environment) -> Result<Self> {
        let facts = Arc::new(engine.facts().clone());
        let arguments = (Arc::clone(&engine), environment);
        let (actor, _) = DeviceActor::spawn(None, DeviceActor, arguments)
            .await
            .map_err(|error| Error::internal(format!("the device did not start: {error}")))?;
        Ok(Self { actor, facts, engine, waiting: Arc::default() })
    }

    pub(crate) fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    /// For what takes no device: tokens and texts.
    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Runs something on the device; `work` tells its result and how many microseconds it owes.
    ///
    /// # Errors
    /// `Overloaded` when too much waits or its deadline passes first, `Unavailable` when the engine
    /// panics or has ended.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        until: Until,
        work: impl FnOnce(&dyn Engine) -> (T, u64) + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel::<Result<T>>();
        let reply = Arc::new(std::sync::Mutex::new(Some(reply)));
        let take = |reply: &std::sync::Mutex<Option<_>>| reply.lock().ok()?.take();
        let (asked, refused) = (Arc::clone(&reply), Arc::clone(&reply));
        let is_wanted = Box::new(move || {
            let asked = asked.lock();
            asked.is_ok_and(|asked| asked.as_ref().is_some_and(|reply| !reply.is_closed()))
        });
        let run = Box::new(move |engine: &dyn Engine| {
            let (result, owed_us) = work(engine);
            let deliver = move || {
                if let Some(reply) = take(&reply) {
                    let _ = reply.send(Ok(result));
                }
            };
            (owed_us, Box::new(deliver) as Box<dyn FnOnce() + Send>)
        });
        let refuse = Box::new(move |error| {
            if let Some(reply) = take(&refused) {
                let _ = reply.send(Err(error));
            }
        });
        let task = Task { until, is_wanted, run, refuse };
        self.ask(DeviceMessage::Run(task), answer).await
    }

    /// Lets a session take in a token and choose the next one.
    ///
    /// # Errors
    /// As `run`; then the session is gone.
    pub(crate) async fn step(
        &self,
        until: Until,
        session: Box<dyn Session>,
        token: Token,
        sampling: Sampling,
        draw: u64,
    ) -> Result<Stepped> {
        let (reply, answer) = oneshot::channel();
        let step = Step { until, session, token, sampling, draw, reply };
        self.ask(DeviceMessage::Step(step), answer).await
    }

    async fn ask<T>(
        &self,
        message: DeviceMessage,
        answer: oneshot::Receiver<Result<T>>,
    ) -> Result<T> {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= TASKS_MAX {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(Error::overloaded("the device's queue", 1_000));
        }
        let _place = Place(Arc::clone(&self.waiting));
        let gone = || Error::unavailable("the language model failed or has ended; see the log");
        self.actor.cast(message).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(
            self.actor.get_status(),
            ractor::ActorStatus::Starting | ractor::ActorStatus::Running
        )
    }

    pub(crate) fn queue(&self) -> QueueDepth {
        let depth = self.waiting.load(Ordering::Acquire);
        QueueDepth { name: "work for the language model", depth, bound: TASKS_MAX }
    }

    pub(crate) fn kill(&self) {
        self.actor.kill();
    }

    pub(crate) async fn stop(&self) {
        // One that is gone already has nothing left to end.
        let _ = self.actor.stop_and_wait(None, None).await;
    }
}

/// Gives a place in the queue back, also when whoever waits is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct DeviceActor;

struct Queues {
    engine: Arc<dyn Engine>,
    environment: Environment,
    steps: VecDeque<Step>,
    foreground: VecDeque<Task>,
    preload: VecDeque<Task>,
    is_busy: bool,
    /// Ends the pass under way, if it makes way for others.
    yielding: Option<Cancel>,
    /// Whether the last pass was one of steps.
    stepped: bool,
}

impl Actor for DeviceActor {
    type Msg = DeviceMessage;
    type State = Queues;
    type Arguments = (Arc<dyn Engine>, Environment);

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        (engine, environment): Self::Arguments,
    ) -> std::result::Result<Queues, ActorProcessingErr> {
        Ok(Queues {
            engine,
            environment,
            steps: VecDeque::new(),
            foreground: VecDeque::new(),
            preload: VecDeque::new(),
            is_busy: false,
            yielding: None,
            stepped: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: DeviceMessage,
        queues: &mut Queues,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            DeviceMessage::Run(task) => match task.until.urgency {
                Urgency::Foreground => {
                    queues.make_way();
                    queues.foreground.push_back(task);
                }
                Urgency::Preload => queues.preload.push_back(task),
            },
            DeviceMessage::Step(step) => {
                queues.make_way();
                queues.steps.push_back(step);
            }
            DeviceMessage::Free => {
                queues.is_busy = false;
                queues.yielding = None;
            }
        }
        queues.start_pass(&myself);
        Ok(())
    }
}

impl Queues {
    fn start_pass(&mut self, myself: &ActorRef<DeviceMessage>) {
        if self.is_busy {
            return;
        }
        let is_turn_of_task = self.stepped && !self.foreground.is_empty();
        self.stepped = !is_turn_of_task && self.start_steps(myself);
        if !self.stepped && !self.start_task(myself) {
            self.stepped = self.start_steps(myself);
        }
    }

    /// Somebody came who goes first.
    fn make_way(&self) {
        if let Some(pass) = &self.yielding {
            pass.set();
        }
    }

    /// The next task that somebody still waits for.
    fn next_task(&mut self) -> Option<Task> {
        let now_us = self.environment.monotonic_us();
        loop {
            let task = self.foreground.pop_front().or_else(|| self.preload.pop_front())?;
            if task.until.deadline_us <= now_us {
                (task.refuse)(late());
            } else if (task.is_wanted)() {
                return Some(task);
            }
        }
    }

    fn start_task(&mut self, myself: &ActorRef<DeviceMessage>) -> bool {
        let Some(Task { until, run, .. }) = self.next_task() else { return false };
        let engine = Arc::clone(&self.engine);
        self.yielding = until.yields.then(|| until.cancel.clone());
        self.pass(myself, Some(until.cancel), move || run(&*engine));
        true
    }

    fn start_steps(&mut self, myself: &ActorRef<DeviceMessage>) -> bool {
        let now_us = self.environment.monotonic_us();
        let mut batch = Vec::new();
        while batch.len() < DECODE_BATCH_MAX {
            let Some(step) = self.steps.pop_front() else { break };
            if step.until.deadline_us <= now_us {
                let _ = step.reply.send(Err(late()));
            } else if !step.reply.is_closed() {
                batch.push(step);
            }
        }
        if batch.is_empty() {
            return false;
        }
        metrics::histogram!(names::DECODE_BATCH_SESSIONS).record(batch.len() as f64);
        let engine = Arc::clone(&self.engine);
        self.pass(myself, None, move || run_steps(&*engine, batch));
        true
    }

    /// Runs something off the event loop, lets the time pass that it owes, and hands its results
    /// over.
    fn pass(
        &mut self,
        myself: &ActorRef<DeviceMessage>,
        cancel: Option<Cancel>,
        work: impl FnOnce() -> Ran + Send + 'static,
    ) {
        self.is_busy = true;
        let (environment, myself) = (self.environment.clone(), myself.clone());
        self.environment.spawn(async move {
            let start = environment.monotonic_us();
            // What panics must not take the actor along, wherever it runs.
            let work = move || catch_unwind(AssertUnwindSafe(work)).ok();
            if let Some((owed_us, deliver)) = environment.compute(work).await.flatten() {
                let owed = tokio::time::sleep(Duration::from_micros(owed_us));
                match cancel {
                    Some(cancel) if owed_us > 0 => tokio::select! {
                        biased;
                        () = cancel.cancelled() => {}
                        () = owed => {}
                    },
                    Some(_) => {}
                    None if owed_us > 0 => owed.await,
                    None => {}
                }
                deliver();
            } else {
                // Whoever waited learns it, because their reply was dropped.
                tracing::error!("the language model panicked");
            }
            let took = environment.monotonic_us().saturating_sub(start);
            metrics::histogram!(names::DEVICE_PASS_SECONDS).record(seconds(took));
            // Whoever was just answered asks for the next step first, so that steps stay together.
            tokio::task::yield_now().await;
            let _ = myself.cast(DeviceMessage::Free);
        });
    }
}

fn run_steps(engine: &dyn Engine, mut batch: Vec<Step>) -> Ran {
    let mut steps: Vec<DecodeStep<'_>> = batch
        .iter_mut()
        .map(|step| DecodeStep {
            session: &mut *step.session,
            token: step.token,
            sampling: step.sampling,
            draw: step.draw,
        })
        .collect();
    let results = engine.decode(&mut steps);
    drop(steps);
    // Sessions that share a pass share its time.
    let owed_us = batch.iter_mut().map(|step| step.session.owed_us()).max().unwrap_or(0);
    let deliver = move || {
        for (step, result) in batch.into_iter().zip(results) {
            let _ = step.reply.send(Ok((step.session, result)));
        }
    };
    (owed_us, Box::new(deliver))
}

fn late() -> Error {
    Error::overloaded("the device's queue", 1_000).with_note("the request's deadline has passed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ErrorKind,
        inference::scripted::{ScriptedCosts, ScriptedEngine},
    };

    #[tokio::test(start_paused = true)]
    async fn a_pass_ahead_of_time_makes_way_for_somebody_who_waits() {
        let engine = Arc::new(ScriptedEngine::new(100, 1 << 20, ScriptedCosts::default()));
        let device = DeviceHandle::spawn(engine, Environment::scripted(1)).await.expect("started");
        let until = |urgency: Urgency, yields: bool| Until {
            urgency,
            deadline_us: u64::MAX,
            cancel: Cancel::default(),
            yields,
        };
        let long = |_: &dyn Engine| ((), 1_000_000);
        for (yields, waits_ms) in [(true, 0), (false, 990)] {
            let ahead = until(Urgency::Preload, yields);
            let was_ended = ahead.cancel.clone();
            let ahead = device.run(ahead, long);
            let asked = async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let start = tokio::time::Instant::now();
                let answered = device.run(until(Urgency::Foreground, false), |_| ((), 0)).await;
                answered.expect("answered");
                start.elapsed().as_millis()
            };
            let (ahead, waited) = tokio::join!(ahead, asked);
            ahead.expect("it ended");
            assert_eq!((waited, was_ended.is_set()), (waits_ms, yields));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_of_the_engine_fails_its_caller_only() {
        let engine = Arc::new(ScriptedEngine::new(100, 1 << 20, ScriptedCosts::default()));
        let device = DeviceHandle::spawn(engine, Environment::scripted(1)).await.expect("started");
        let until = || Until {
            urgency: Urgency::Foreground,
            deadline_us: u64::MAX,
            cancel: Cancel::default(),
            yields: false,
        };
        let panicking = |_: &dyn Engine| -> ((), u64) { panic!("injected") };
        let failed = device.run(until(), panicking).await.expect_err("it panicked");
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
        let opened = device.run(until(), |engine| (engine.open().is_ok(), 0)).await;
        assert_eq!(opened, Ok(true));
        assert_eq!(device.queue().depth, 0);
    }
}
