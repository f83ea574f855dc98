//! One MemCube: the actor that alone owns one user's or agent's memory.
//!
//! Receives: changes, reads and searches from its handle; the outcome of its own commits; from its
//! host, the wish to leave RAM.
//! Sends: replies, commits to the state store.
//! Owns: every item, vector and index of the cube, between hydration and passivation.
//!
//! Invariant: nothing is answered before its commit is durable, and what is answered is findable.
//! At most one commit is under way; changes that arrive meanwhile share the next one.

mod decide;
mod handle;
mod hydrate;
mod journal;
mod message;
pub mod recall;
mod requests;
mod state;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use memcube_schemas::{
    MemoryId, RequestId, Version,
    command::{CubeEvent, CubeReply},
    cube::{CubeManifest, RequestRecord},
    limits::{COMMANDS_PER_COMMIT_MAX, EVENTS_PER_COMMIT_MAX},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use self::{
    decide::{Decision, Working},
    journal::Recorded,
    recall::{Found, RecallRequest},
};
pub use self::{
    handle::CubeHandle,
    message::{ItemPage, SearchOutcome},
    recall::{ArmScores, Hit, SearchFilter, SearchRequest},
    requests::{AddOutcome, AddRequest, DeleteRequest, UpdateRequest},
};
pub(crate) use self::{
    hydrate::Hydrator,
    journal::commit,
    message::{Change, CubeMessage, Reply},
    state::{CubeKey, CubeState, text_hash},
};
use crate::{
    environment::{Environment, MemoryIds},
    error::{Error, ErrorKind, Result},
    metrics as names,
    storage::{SharedStore, StoreError},
};

/// The reason with which a cube stops when the store refuses it as a former owner.
pub(crate) const STOPPED_FENCED: &str = "fenced";
/// The reason with which a cube stops after it was erased.
pub(crate) const STOPPED_ERASED: &str = "erased";

pub(crate) struct CubeActor;

/// What a cube is started with: it was hydrated before.
pub(crate) struct CubeArguments {
    pub(crate) state: CubeState,
    pub(crate) store: SharedStore,
    pub(crate) environment: Environment,
}

pub(crate) struct Running {
    cube: CubeState,
    store: SharedStore,
    environment: Environment,
    ids: MemoryIds,
    waiting: VecDeque<Change>,
    in_flight: Option<InFlight>,
    is_passivating: bool,
}

/// A commit under way, with what it will make true.
struct InFlight {
    batch: Batch,
    erase: Option<Reply<()>>,
}

/// Changes that share one commit.
#[derive(Default)]
struct Batch {
    answers: Vec<(Change, Result<CubeReply>)>,
    events: Vec<(CubeEvent, String)>,
    requests: Vec<(RequestId, RequestRecord)>,
    manifest: Option<CubeManifest>,
}

impl Actor for CubeActor {
    type Msg = CubeMessage;
    type State = Running;
    type Arguments = CubeArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        arguments: CubeArguments,
    ) -> std::result::Result<Running, ActorProcessingErr> {
        let CubeArguments { state, store, environment } = arguments;
        let ids = MemoryIds::after(state.items.last_key_value().map(|(id, _)| *id));
        Ok(Running {
            cube: state,
            store,
            environment,
            ids,
            waiting: VecDeque::new(),
            in_flight: None,
            is_passivating: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: CubeMessage,
        running: &mut Running,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            CubeMessage::Change(change) if running.is_passivating => {
                change.reply.answer(Err(passivated()));
            }
            CubeMessage::Change(change) => {
                running.waiting.push_back(change);
                running.start_commit(&myself);
            }
            CubeMessage::Get { id, reply } => reply.answer(running.get(id)),
            CubeMessage::List { after, limit, reply } => {
                reply.answer(Ok(running.list(after, limit)));
            }
            CubeMessage::Search { request, reply } => reply.answer(Ok(running.search(&request))),
            CubeMessage::Describe { reply } => reply.answer(Ok(running.cube.manifest.clone())),
            CubeMessage::Committed { outcome } => running.committed(&myself, outcome),
            CubeMessage::Erase { reply } => running.erase(&myself, reply),
            CubeMessage::Passivate => running.passivate(&myself),
        }
        Ok(())
    }
}

impl Running {
    fn get(&self, id: MemoryId) -> Result<Arc<memcube_schemas::memory::MemoryItem>> {
        let missing = || Error::not_found(format!("there is no memory `{id}` in this cube"));
        self.cube.items.get(&id).cloned().ok_or_else(missing)
    }

    fn list(&self, after: Option<MemoryId>, limit: usize) -> ItemPage {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        let mut rest = self.cube.items.range(range).map(|(_, item)| Arc::clone(item));
        let items: Vec<_> = rest.by_ref().take(limit).collect();
        ItemPage { items, more: rest.next().is_some() }
    }

    fn search(&self, request: &RecallRequest) -> SearchOutcome {
        let start = self.environment.monotonic_us();
        let Found { hits, confidence } = self.cube.recall.search(request, &self.cube.items);
        let took = self.environment.monotonic_us().saturating_sub(start);
        metrics::histogram!(names::RECALL_SECONDS).record(seconds(took));
        let tokens = hits.iter().map(|hit| hit.item.tokens).sum();
        SearchOutcome { hits, version: self.cube.manifest.version, tokens, confidence }
    }

    /// Decides what waits and commits it, unless a commit is under way.
    fn start_commit(&mut self, myself: &ActorRef<CubeMessage>) {
        if self.in_flight.is_some() || self.waiting.is_empty() {
            return;
        }
        let now_ms = self.environment.unix_ms();
        let mut batch = self.decide_waiting(now_ms);
        if batch.events.is_empty() && batch.requests.is_empty() {
            settle(batch.answers);
            return;
        }
        let version = self.cube.manifest.version.next();
        let events = batch.events.iter().map(|(event, _)| event);
        let manifest = journal::next_manifest(&self.cube, events, version, now_ms);
        let recorded: Vec<Recorded<'_>> =
            batch.events.iter().map(|(event, by)| Recorded { event, by }).collect();
        let mutations = journal::mutations(&self.cube, &recorded, &batch.requests, &manifest);
        batch.manifest = Some(manifest);
        self.in_flight = Some(InFlight { batch, erase: None });
        self.spawn_commit(myself, mutations);
    }

    fn decide_waiting(&mut self, now_ms: i64) -> Batch {
        let mut batch = Batch::default();
        let mut working = Working::on(&self.cube, now_ms);
        let (ids, environment) = (&mut self.ids, &self.environment);
        while batch.answers.len() < COMMANDS_PER_COMMIT_MAX
            && batch.events.len() < EVENTS_PER_COMMIT_MAX
        {
            let Some(mut change) = self.waiting.pop_front() else { break };
            let command = std::mem::replace(&mut change.command, nothing());
            environment.reach("cube.decide", first_text(&command));
            match working.decide(command, &mut || ids.next(environment)) {
                Ok(Decision { events, reply, request }) => {
                    batch.events.extend(events.into_iter().map(|event| (event, change.by.clone())));
                    batch.requests.extend(request);
                    batch.answers.push((change, Ok(reply)));
                }
                Err(error) => batch.answers.push((change, Err(error))),
            }
        }
        batch
    }

    fn spawn_commit(
        &self,
        myself: &ActorRef<CubeMessage>,
        mutations: Vec<crate::storage::Mutation>,
    ) {
        let checks = vec![journal::ownership_check(&self.cube.key, &self.cube.claim)];
        let (store, environment) = (Arc::clone(&self.store), self.environment.clone());
        let myself = myself.clone();
        self.environment.spawn(async move {
            let outcome = commit(&store, &environment, checks, mutations).await;
            // The cube may be gone by now; then its callers were told so, and the store has the
            // truth.
            let _ = myself.cast(CubeMessage::Committed { outcome });
        });
    }

    fn committed(
        &mut self,
        myself: &ActorRef<CubeMessage>,
        outcome: std::result::Result<Version, StoreError>,
    ) {
        let Some(InFlight { batch, erase }) = self.in_flight.take() else { return };
        match outcome {
            Ok(_) => self.make_visible(batch),
            Err(StoreError::Conflict { .. }) => {
                refuse(batch, erase, &fenced());
                myself.stop(Some(STOPPED_FENCED.to_owned()));
                return;
            }
            Err(StoreError::Unknown) => {
                // What the store holds is unknown, so this copy may be wrong: start again from
                // rows.
                let error = Error::unavailable(
                    "the outcome of the commit is unknown; read the memory before retrying",
                );
                refuse(batch, erase, &error);
                myself.stop(Some(STOPPED_FENCED.to_owned()));
                return;
            }
            Err(error) => {
                refuse(batch, erase, &Error::from(error));
                self.go_on(myself);
                return;
            }
        }
        if let Some(reply) = erase {
            reply.answer(Ok(()));
            myself.stop(Some(STOPPED_ERASED.to_owned()));
            return;
        }
        self.go_on(myself);
    }

    fn go_on(&mut self, myself: &ActorRef<CubeMessage>) {
        self.start_commit(myself);
        if self.is_passivating {
            self.passivate(myself);
        }
    }

    fn make_visible(&mut self, batch: Batch) {
        for (event, _) in batch.events {
            self.cube.apply(event);
        }
        for (id, record) in batch.requests {
            self.cube.remember_request(id, record);
        }
        if let Some(manifest) = batch.manifest {
            self.cube.manifest = manifest;
        }
        settle(batch.answers);
    }

    fn erase(&mut self, myself: &ActorRef<CubeMessage>, reply: Reply<()>) {
        if self.in_flight.is_some() || self.is_passivating {
            reply.answer(Err(Error::unavailable("the cube is being written; retry")));
            return;
        }
        self.in_flight = Some(InFlight { batch: Batch::default(), erase: Some(reply) });
        self.spawn_commit(myself, journal::erase(&self.cube.key));
    }

    /// Leaves RAM as soon as nothing is under way. From here on changes are sent back to the host,
    /// so that none is lost between this cube and its next incarnation.
    fn passivate(&mut self, myself: &ActorRef<CubeMessage>) {
        self.is_passivating = true;
        if self.in_flight.is_none() && self.waiting.is_empty() {
            let _ = myself.drain();
        }
    }
}

/// Stands where a command was taken out.
fn nothing() -> memcube_schemas::command::CubeCommand {
    memcube_schemas::command::CubeCommand::AddMemories { drafts: Vec::new(), request: None }
}

fn first_text(command: &memcube_schemas::command::CubeCommand) -> &str {
    match command {
        memcube_schemas::command::CubeCommand::AddMemories { drafts, .. } => {
            drafts.first().map_or("", |draft| &draft.text)
        }
        memcube_schemas::command::CubeCommand::UpdateMemory { change, .. } => {
            change.text.as_ref().map_or("", |text| &text.text)
        }
        memcube_schemas::command::CubeCommand::DeleteMemories { .. } => "",
    }
}

fn fenced() -> Error {
    Error::new(ErrorKind::Fenced, "another owner has claimed this cube; ask again")
}

fn passivated() -> Error {
    Error::new(ErrorKind::Fenced, "the cube is leaving RAM; ask again")
}

fn settle(answers: Vec<(Change, Result<CubeReply>)>) {
    for (change, result) in answers {
        change.reply.answer(result);
    }
}

fn refuse(batch: Batch, erase: Option<Reply<()>>, error: &Error) {
    for (change, result) in batch.answers {
        change.reply.answer(result.and_then(|_| Err(error.clone())));
    }
    if let Some(reply) = erase {
        reply.answer(Err(error.clone()));
    }
}

/// Microseconds as the seconds that metrics are recorded in.
#[expect(clippy::cast_precision_loss, reason = "a duration of years would still fit")]
pub(crate) fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}
