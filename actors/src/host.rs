//! Supervises the cubes of a node: hydrates them at the first call, passivates the idle ones,
//! restarts after a panic, and quarantines a cube that keeps panicking or cannot be read.
//!
//! Receives: wishes for a hot cube, ends of hydrations, supervision events, questions why a cube
//! ended.
//! Sends: new cube actors into the directory; `Passivate` to idle ones.
//! Owns: one record per cube that was touched, with its failures and the reason of its quarantine.

mod handle;
mod record;

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

pub(crate) use self::handle::HostHandle;
use self::record::{Phase, Record};
use crate::{
    cube::{
        CubeActor, CubeArguments, CubeKey, CubeMessage, CubeState, CubeSuccessor, Hydrator,
        STOPPED_ERASED, STOPPED_FENCED, seconds,
    },
    directory::{Directory, Slot},
    environment::Environment,
    error::{Error, ErrorKind, Result},
    metrics as names,
};

/// How often idle cubes are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// When cubes leave RAM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostSettings {
    pub(crate) passivate_after_ms: u64,
    pub(crate) hot_cubes_max: usize,
    /// Whether other nodes may take cubes over.
    pub(crate) confirms_reads: bool,
}

/// How an incarnation of a cube ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It left RAM; what it had not answered had no effect.
    Passivated,
    /// Another owner took over.
    Fenced,
    /// The cube was deleted.
    Erased,
    /// It panicked or failed.
    Failed { reason: String },
}

type Ask<T> = oneshot::Sender<T>;

pub(crate) enum HostMessage {
    Hydrate { key: CubeKey, reply: Ask<Result<Arc<Slot>>> },
    Hydrated { key: CubeKey, result: Box<Result<CubeState>> },
    WhyEnded { key: CubeKey, actor: ActorId, reply: Ask<Ended> },
    Quarantine { key: CubeKey, reply: Ask<Option<String>> },
    Release { key: CubeKey, reply: Ask<Result<()>> },
    HandOver { key: CubeKey, successor: CubeSuccessor },
    Sweep,
    ShutDown { reply: Ask<()> },
}

pub(crate) struct CubeHost;

pub(crate) struct Hosting {
    directory: Arc<Directory>,
    hydrator: Hydrator,
    environment: Environment,
    settings: HostSettings,
    records: BTreeMap<CubeKey, Record>,
    by_actor: BTreeMap<u64, CubeKey>,
    /// Whether the node shuts down: no cube is hydrated any more.
    is_closed: bool,
    shutting_down: Vec<Ask<()>>,
}

impl CubeHost {
    pub(crate) async fn start(
        directory: Arc<Directory>,
        hydrator: Hydrator,
        settings: HostSettings,
    ) -> Result<HostHandle> {
        let environment = hydrator.environment.clone();
        let hosting = Hosting {
            directory,
            hydrator,
            environment,
            settings,
            records: BTreeMap::new(),
            by_actor: BTreeMap::new(),
            is_closed: false,
            shutting_down: Vec::new(),
        };
        let (actor, _) = Self::spawn(None, Self, hosting)
            .await
            .map_err(|error| Error::internal(format!("the cube host did not start: {error}")))?;
        Ok(HostHandle::new(actor))
    }
}

impl Actor for CubeHost {
    type Msg = HostMessage;
    type State = Hosting;
    type Arguments = Hosting;

    async fn pre_start(
        &self,
        myself: ActorRef<HostMessage>,
        hosting: Hosting,
    ) -> std::result::Result<Hosting, ActorProcessingErr> {
        myself.send_after(SWEEP_EVERY, || HostMessage::Sweep);
        Ok(hosting)
    }

    async fn handle(
        &self,
        myself: ActorRef<HostMessage>,
        message: HostMessage,
        hosting: &mut Hosting,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            HostMessage::Hydrate { key, reply } => hosting.want(&myself, key, reply),
            HostMessage::Hydrated { key, result } => hosting.hydrated(&myself, key, *result).await,
            HostMessage::WhyEnded { key, actor, reply } => hosting.why_ended(&key, actor, reply),
            HostMessage::Quarantine { key, reply } => {
                let record = hosting.records.get(&key);
                let _ = reply.send(record.and_then(|record| record.quarantine.clone()));
            }
            HostMessage::Release { key, reply } => {
                let _ = reply.send(hosting.release(&key));
            }
            HostMessage::HandOver { key, successor } => hosting.hand_over(&key, successor),
            HostMessage::Sweep => {
                hosting.sweep();
                myself.send_after(SWEEP_EVERY, || HostMessage::Sweep);
            }
            HostMessage::ShutDown { reply } => hosting.shut_down(reply),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<HostMessage>,
        event: SupervisionEvent,
        hosting: &mut Hosting,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let ended = match reason.as_deref() {
                    Some(STOPPED_FENCED) => Ended::Fenced,
                    Some(STOPPED_ERASED) => Ended::Erased,
                    Some("killed") => Ended::Failed { reason: "it was killed".to_owned() },
                    Some(_) | None => Ended::Passivated,
                };
                hosting.ended(&myself, cell.get_id(), ended);
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let reason = error.to_string();
                hosting.ended(&myself, cell.get_id(), Ended::Failed { reason });
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

impl Hosting {
    fn now_ms(&self) -> u64 {
        self.environment.monotonic_us() / 1_000
    }

    /// A caller wants this cube hot.
    fn want(
        &mut self,
        myself: &ActorRef<HostMessage>,
        key: CubeKey,
        reply: Ask<Result<Arc<Slot>>>,
    ) {
        if self.is_closed {
            let _ = reply.send(Err(closed()));
            return;
        }
        let now_ms = self.now_ms();
        let record = self.records.entry(key.clone()).or_default();
        if let Some(reason) = &record.quarantine {
            let _ = reply.send(Err(quarantined(&key, reason)));
            return;
        }
        match &record.phase {
            Phase::Hot(slot) => {
                let _ = reply.send(Ok(Arc::clone(slot)));
            }
            Phase::Hydrating | Phase::Leaving(_) => {
                // Whoever gave up waiting gives its room to others.
                record.waiting.retain(|waiting| !waiting.is_closed());
                record.waiting.push(reply);
            }
            Phase::Cold if now_ms < record.not_before_ms => {
                let wait_ms = record.not_before_ms - now_ms;
                let error = Error::unavailable(format!(
                    "the cube `{}` restarts after a failure; retry in {wait_ms} ms",
                    key.cube
                ));
                let _ = reply.send(Err(error.retry_after_ms(wait_ms)));
            }
            Phase::Cold => {
                record.waiting.push(reply);
                self.start_hydrating(myself, key);
            }
        }
    }

    fn start_hydrating(&mut self, myself: &ActorRef<HostMessage>, key: CubeKey) {
        self.records.entry(key.clone()).or_default().phase = Phase::Hydrating;
        let (hydrator, environment) = (self.hydrator.clone(), self.environment.clone());
        let myself = myself.clone();
        self.environment.spawn(async move {
            let start = environment.monotonic_us();
            let hydrate = async {
                environment.reach("cube.hydrate", key.cube.as_str());
                hydrator.hydrate(key.clone()).await
            };
            let result = AssertUnwindSafe(hydrate).catch_unwind().await;
            let result = result.unwrap_or_else(|panic| {
                Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("hydrating panicked: {}", text(&*panic)),
                ))
            });
            let took = environment.monotonic_us().saturating_sub(start);
            metrics::histogram!(names::CUBE_HYDRATE_SECONDS).record(seconds(took));
            let _ = myself.cast(HostMessage::Hydrated { key, result: Box::new(result) });
        });
    }

    async fn hydrated(
        &mut self,
        myself: &ActorRef<HostMessage>,
        key: CubeKey,
        result: Result<CubeState>,
    ) {
        let outcome = match result {
            Ok(state) => self.start_cube(myself, state).await,
            Err(error) => Err(error),
        };
        let Some(record) = self.records.get_mut(&key) else { return };
        match outcome {
            Ok(slot) => {
                record.phase = Phase::Hot(Arc::clone(&slot));
                self.by_actor.insert(slot.actor.get_id().pid(), key.clone());
                self.directory.insert(key, Arc::clone(&slot));
                for reply in record.waiting.drain(..) {
                    let _ = reply.send(Ok(Arc::clone(&slot)));
                }
            }
            Err(error) => {
                record.phase = Phase::Cold;
                let mut answer = error.clone();
                if error.kind() == ErrorKind::Corrupt {
                    tracing::error!(cube = %key.cube, %error, "cube cannot be read, quarantined");
                    record.quarantine = Some(error.to_string());
                    answer = quarantined(&key, error.message());
                }
                for reply in record.waiting.drain(..) {
                    let _ = reply.send(Err(answer.clone()));
                }
                let is_forgettable = record.quarantine.is_none() && record.panics_ms.is_empty();
                if is_forgettable && record.asking.is_empty() {
                    self.records.remove(&key);
                }
            }
        }
        self.publish_gauges();
        if self.is_closed {
            self.passivate_all();
            self.finish_shut_down();
        }
    }

    async fn start_cube(
        &self,
        myself: &ActorRef<HostMessage>,
        state: CubeState,
    ) -> Result<Arc<Slot>> {
        let arguments = CubeArguments {
            state,
            store: Arc::clone(&self.hydrator.store),
            environment: self.environment.clone(),
            confirms_reads: self.settings.confirms_reads,
            snapshots: self.hydrator.snapshots.clone(),
            inference: Arc::clone(&self.hydrator.inference),
        };
        let (actor, _) = CubeActor::spawn_linked(None, CubeActor, arguments, myself.get_cell())
            .await
            .map_err(|error| Error::internal(format!("the cube did not start: {error}")))?;
        Ok(Arc::new(Slot::new(actor, self.environment.monotonic_us())))
    }

    /// An incarnation is gone: remember why, and serve whoever waits for the next one.
    fn ended(&mut self, myself: &ActorRef<HostMessage>, actor: ActorId, ended: Ended) {
        let Some(key) = self.by_actor.remove(&actor.pid()) else { return };
        self.forget_activation(&key);
        let now_ms = self.now_ms();
        self.directory.remove_if(&key, |_, slot| slot.actor.get_id() == actor);
        let Some(record) = self.records.get_mut(&key) else { return };
        record.phase = Phase::Cold;
        if ended == Ended::Fenced {
            metrics::counter!(names::CUBES_FENCED_TOTAL).increment(1);
        }
        if let Ended::Failed { reason } = &ended {
            tracing::error!(cube = %key.cube, reason, "cube failed");
            metrics::counter!(names::CUBE_PANICS_TOTAL).increment(1);
            record.count_panic(now_ms, reason);
        }
        let (told, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut record.asking).into_iter().partition(|(id, _)| *id == actor);
        record.asking = rest;
        for (_, reply) in told {
            let _ = reply.send(ended.clone());
        }
        record.last_end = Some((actor, ended));
        if let Some(reason) = record.quarantine.clone() {
            for reply in record.waiting.drain(..) {
                let _ = reply.send(Err(quarantined(&key, &reason)));
            }
        } else if self.is_closed {
            for reply in record.waiting.drain(..) {
                let _ = reply.send(Err(closed()));
            }
        } else if !record.waiting.is_empty() {
            self.start_hydrating(myself, key);
        }
        self.publish_gauges();
        self.finish_shut_down();
    }

    /// Another node may own the cube from now on, and this one would not hear what is forgotten
    /// there.
    fn forget_activation(&self, key: &CubeKey) {
        if let Some(inference) = self.hydrator.inference.get()
            && self.settings.confirms_reads
        {
            inference.cache().forget_cube(&key.tenant, &key.cube, &[]);
        }
    }

    fn why_ended(&mut self, key: &CubeKey, actor: ActorId, reply: Ask<Ended>) {
        let record = self.records.entry(key.clone()).or_default();
        let is_current = match &record.phase {
            Phase::Hot(slot) | Phase::Leaving(slot) => slot.actor.get_id() == actor,
            Phase::Cold | Phase::Hydrating => false,
        };
        if is_current {
            record.asking.push((actor, reply));
            return;
        }
        let ended = match &record.last_end {
            Some((id, ended)) if *id == actor => ended.clone(),
            // Several incarnations ago: all that is certain is that it is gone.
            Some(_) | None => Ended::Failed { reason: "it was restarted".to_owned() },
        };
        let _ = reply.send(ended);
    }

    fn release(&mut self, key: &CubeKey) -> Result<()> {
        match self.records.get_mut(key) {
            Some(record) if record.quarantine.is_some() => {
                record.quarantine = None;
                record.panics_ms.clear();
                record.not_before_ms = 0;
                self.publish_gauges();
                Ok(())
            }
            Some(_) | None => {
                Err(Error::not_found(format!("the cube `{}` is not in quarantine", key.cube)))
            }
        }
    }

    /// Passivates cubes that were not used for long, and the least recently used ones past the
    /// limit.
    fn sweep(&mut self) {
        let now_us = self.environment.monotonic_us();
        let idle_us = self.settings.passivate_after_ms.saturating_mul(1_000);
        let mut hot: Vec<(u64, CubeKey)> = self
            .records
            .iter()
            .filter_map(|(key, record)| match &record.phase {
                Phase::Hot(slot) => Some((slot.last_used_us(), key.clone())),
                Phase::Cold | Phase::Hydrating | Phase::Leaving(_) => None,
            })
            .collect();
        hot.sort();
        let excess = hot.len().saturating_sub(self.settings.hot_cubes_max);
        for (position, (last_used_us, key)) in hot.iter().enumerate() {
            if position < excess || now_us.saturating_sub(*last_used_us) > idle_us {
                self.passivate(key);
            }
        }
        self.records.retain(|_, record| !record.is_forgettable(now_us / 1_000));
        self.publish_gauges();
    }

    fn passivate(&mut self, key: &CubeKey) {
        let Some(record) = self.records.get_mut(key) else { return };
        if let Phase::Hot(slot) = &record.phase {
            let slot = Arc::clone(slot);
            self.directory.remove(key);
            // A cube that is gone already reports so itself.
            let has_time = !self.is_closed;
            let _ = slot.actor.cast(CubeMessage::Passivate { has_time });
            record.phase = Phase::Leaving(slot);
        }
    }

    fn hand_over(&mut self, key: &CubeKey, successor: CubeSuccessor) {
        let hot = match self.records.get(key).map(|record| &record.phase) {
            Some(Phase::Hot(slot)) => Some(Arc::clone(slot)),
            Some(Phase::Cold | Phase::Hydrating | Phase::Leaving(_)) | None => None,
        };
        let Some(slot) = hot else {
            let error = Error::new(ErrorKind::Fenced, "the cube is not in RAM; ask again");
            let _ = successor.reply.send(Err(error));
            return;
        };
        self.directory.remove(key);
        // One that is gone drops the successor, and with it the answer.
        let _ = slot.actor.cast(CubeMessage::HandOver(successor));
        self.records.entry(key.clone()).or_default().phase = Phase::Leaving(slot);
    }

    fn passivate_all(&mut self) {
        let keys: Vec<CubeKey> = self.records.keys().cloned().collect();
        for key in keys {
            self.passivate(&key);
        }
    }

    fn shut_down(&mut self, reply: Ask<()>) {
        self.is_closed = true;
        self.shutting_down.push(reply);
        self.passivate_all();
        self.finish_shut_down();
    }

    fn finish_shut_down(&mut self) {
        let is_busy = self.records.values().any(|record| !matches!(record.phase, Phase::Cold));
        if !is_busy {
            for reply in self.shutting_down.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    fn publish_gauges(&self) {
        metrics::gauge!(names::CUBES_HOT).set(self.by_actor.len() as f64);
        let quarantined = self.records.values().filter(|record| record.quarantine.is_some());
        metrics::gauge!(names::CUBES_QUARANTINED).set(quarantined.count() as f64);
    }
}

/// Nothing was done, so that another node may be asked.
fn closed() -> Error {
    Error::new(ErrorKind::Fenced, "this node is shutting down")
}

fn quarantined(key: &CubeKey, reason: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "the cube `{}` is in quarantine: {reason}; mend the cause, then release it",
            key.cube
        ),
    )
}

/// The message of a panic.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
