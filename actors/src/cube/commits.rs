//! Changes: decided together, committed together, made visible once they are durable.

use std::sync::Arc;

use memcube_schemas::{
    RequestId, Version,
    call::CubeAnswer,
    command::{CubeCommand, CubeEvent, CubeReply, Selection},
    cube::{CubeManifest, RequestRecord},
    limits::{COMMANDS_PER_COMMIT_MAX, COMMIT_BYTES_AIM, EVENTS_PER_COMMIT_MAX},
};
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::{
    Change, CubeMessage, Reply, Running, STOPPED_ERASED, STOPPED_FENCED,
    activation::{Gone, Keeping},
    decide::{Decision, Working},
    fenced,
    journal::{self, Recorded},
    message::Successor,
    parts,
    snapshots::{self, CommittingSnapshot},
};
use crate::{
    defects::Defect,
    error::{Error, Result},
    storage::{Check, Mutation, StoreError},
};

/// A commit under way, with what it will make true.
pub(super) struct InFlight {
    batch: Batch,
    then: Then,
}

/// What follows a commit, beside the answers of its batch.
enum Then {
    /// The next one.
    GoOn,
    /// The cube is gone.
    Erased(Reply),
    /// The cube is another node's.
    HandedOver(oneshot::Sender<Result<()>>),
    /// The manifest names another snapshot.
    Snapshot(CommittingSnapshot),
    /// Contexts and blocks are kept.
    Kept(Box<Keeping>),
}

impl Then {
    /// Whether a check on this key says nothing about the cube, only about a blob.
    fn is_refused_by(&self, key: &[u8]) -> bool {
        match self {
            Self::Snapshot(committing) => committing.row == key,
            Self::Kept(keeping) => keeping.is_refused_by(key),
            Self::GoOn | Self::Erased(_) | Self::HandedOver(_) => false,
        }
    }
}

/// Changes that share one commit.
#[derive(Default)]
struct Batch {
    answers: Vec<(Change, Result<CubeReply>)>,
    events: Vec<(CubeEvent, String)>,
    requests: Vec<(RequestId, RequestRecord)>,
    manifest: Option<CubeManifest>,
    /// Whether the cube has no snapshot afterwards, because an item is purged.
    drops_snapshot: bool,
    /// Contexts and blocks that go with the memories in them.
    gone: Gone,
}

impl Running {
    /// Decides what waits and commits it, unless a commit is under way.
    pub(super) fn start_commit(&mut self, myself: &ActorRef<CubeMessage>) {
        if self.start_snapshot_commit(myself) || self.start_keep_commit(myself) {
            return;
        }
        if self.in_flight.is_some() || self.waiting.is_empty() {
            return;
        }
        self.has_kept = false;
        let now_ms = self.environment.unix_ms();
        let mut batch = self.decide_waiting(now_ms);
        while batch.events.is_empty() && batch.requests.is_empty() {
            let answers = batch.answers.into_iter();
            let answers = answers.map(|(change, result)| (change.reply, changed(result)));
            self.answer_uncommitted(myself, answers.collect());
            if self.waiting.is_empty() {
                return;
            }
            batch = self.decide_waiting(now_ms);
        }
        let version = self.cube.manifest.version.next();
        let events = batch.events.iter().map(|(event, _)| event);
        let mut manifest = journal::next_manifest(&self.cube, events, version, now_ms);
        let let_go = self.let_go_of_purged(&mut batch, &mut manifest);
        batch.gone = self.touched(batch.events.iter().map(|(event, _)| event));
        let keeps_tail = manifest.snapshot.is_some() || self.snapshot.is_under_way();
        let recorded: Vec<Recorded<'_>> =
            batch.events.iter().map(|(event, by)| Recorded { event, by }).collect();
        let mut mutations = journal::mutations(&self.cube, &recorded, &batch.requests, &manifest);
        mutations.extend(let_go);
        mutations.extend(batch.gone.mutations(&self.cube.key));
        if keeps_tail && !self.environment.plants(Defect::LostTail) {
            mutations.extend(journal::tail(&self.cube.key, &recorded, version));
        }
        self.plant_in(&mut mutations, version);
        batch.manifest = Some(manifest);
        if self.environment.plants(Defect::AckBeforeCommit) {
            settle(std::mem::take(&mut batch.answers));
        }
        if self.environment.plants(Defect::IndexBeforeCommit) {
            for (event, _) in std::mem::take(&mut batch.events) {
                self.cube.apply(event);
            }
        }
        self.in_flight = Some(InFlight { batch, then: Then::GoOn });
        self.spawn_commit(myself, Vec::new(), mutations);
    }

    /// Commits what is kept by itself: what refuses it must not refuse a change.
    pub(super) fn commit_kept(
        &mut self,
        myself: &ActorRef<CubeMessage>,
        keeping: Keeping,
        checks: Vec<Check>,
        mutations: Vec<Mutation>,
    ) {
        let then = Then::Kept(Box::new(keeping));
        self.in_flight = Some(InFlight { batch: Batch::default(), then });
        self.spawn_commit(myself, checks, mutations);
    }

    /// Commits a snapshot by itself: what refuses it must not refuse a change.
    pub(super) fn commit_snapshot(
        &mut self,
        myself: &ActorRef<CubeMessage>,
        committing: CommittingSnapshot,
        check: Check,
        mutations: Vec<Mutation>,
    ) {
        let then = Then::Snapshot(committing);
        self.in_flight = Some(InFlight { batch: Batch::default(), then });
        self.spawn_commit(myself, vec![check], mutations);
    }

    /// What is purged must not live on in a snapshot, which holds whole items.
    fn let_go_of_purged(
        &mut self,
        batch: &mut Batch,
        manifest: &mut CubeManifest,
    ) -> Vec<Mutation> {
        let is_purge = |event: &CubeEvent| match event {
            CubeEvent::MemoryDeleted { purge, .. } => *purge,
            CubeEvent::MemoryAdded { .. }
            | CubeEvent::MemoryRepeated { .. }
            | CubeEvent::MemoryUpdated { .. } => false,
        };
        if !batch.events.iter().any(|(event, _)| is_purge(event)) {
            return Vec::new();
        }
        self.snapshot.cancel();
        batch.drops_snapshot = true;
        snapshots::drop_snapshot(&self.cube.key, manifest)
    }

    /// Two of the planted bugs: rows that a commit should have written and does not.
    fn plant_in(&self, mutations: &mut Vec<Mutation>, version: Version) {
        if self.environment.plants(Defect::LostEvent) && version.0.is_multiple_of(5) {
            mutations.retain(|mutation| !matches!(mutation, Mutation::SetVersionstamped { .. }));
        }
        if self.environment.plants(Defect::ForgottenVector) {
            mutations.retain(|mutation| match mutation {
                Mutation::Clear { key } => !journal::is_vector(&self.cube, key),
                Mutation::Set { .. }
                | Mutation::ClearRange { .. }
                | Mutation::Add { .. }
                | Mutation::SetVersionstamped { .. } => true,
            });
        }
    }

    fn decide_waiting(&mut self, now_ms: i64) -> Batch {
        let mut batch = Batch::default();
        let mut working = Working::on(&self.cube, now_ms);
        let (ids, environment) = (&mut self.ids, &self.environment);
        let mut bytes = 0;
        while batch.answers.len() < COMMANDS_PER_COMMIT_MAX
            && batch.events.len() < EVENTS_PER_COMMIT_MAX
            && bytes < COMMIT_BYTES_AIM
        {
            let Some(mut change) = self.waiting.pop_front() else { break };
            let command = std::mem::replace(&mut change.command, nothing());
            environment.reach("cube.decide", first_text(&command));
            match working.decide(command, &mut || ids.next(environment)) {
                Ok(Decision { events, reply, request }) => {
                    bytes += events.iter().map(parts::event_bytes).sum::<usize>();
                    batch.events.extend(events.into_iter().map(|event| (event, change.by.clone())));
                    batch.requests.extend(request);
                    batch.answers.push((change, Ok(reply)));
                }
                Err(error) => batch.answers.push((change, Err(error))),
            }
        }
        if batch.answers.len() > 1 {
            environment.reach("cube.commit-shared", "");
        }
        batch
    }

    fn spawn_commit(
        &self,
        myself: &ActorRef<CubeMessage>,
        also: Vec<Check>,
        mutations: Vec<Mutation>,
    ) {
        let mut checks: Vec<Check> =
            vec![journal::ownership_check(&self.cube.key, &self.cube.claim)];
        if self.environment.plants(Defect::NoFenceCheck) {
            checks.clear();
        }
        checks.extend(also);
        let (store, environment) = (Arc::clone(&self.store), self.environment.clone());
        let myself = myself.clone();
        self.environment.spawn(async move {
            let outcome = journal::commit(&store, &environment, checks, mutations).await;
            // The cube may be gone by now; then its callers were told so, and the store has the
            // truth.
            let _ = myself.cast(CubeMessage::Committed { outcome });
        });
    }

    pub(super) fn committed(
        &mut self,
        myself: &ActorRef<CubeMessage>,
        outcome: std::result::Result<Version, StoreError>,
    ) {
        let Some(InFlight { mut batch, then }) = self.in_flight.take() else { return };
        self.forget(&batch.gone);
        // Also where nobody knows what became of it.
        if matches!(then, Then::Erased(_)) {
            self.forget_all();
        }
        match outcome {
            Ok(_) => {
                self.make_visible(batch);
                self.follow(myself, then);
            }
            Err(StoreError::Conflict { key }) if then.is_refused_by(&key) => {
                self.environment.reach("snapshot.blob-given-up", "");
                refuse(batch, then, &Error::unavailable("a blob was given up meanwhile"));
                self.go_on(myself);
            }
            Err(StoreError::Conflict { .. }) => {
                self.environment.reach("cube.fenced", "");
                self.let_go_of_cached();
                refuse(batch, then, &fenced());
                myself.stop(Some(STOPPED_FENCED.to_owned()));
            }
            Err(StoreError::Unknown) => {
                // What the store holds is unknown, so this copy may be wrong: start again from
                // rows.
                self.environment.reach("cube.commit-unknown", "");
                let error = Error::unavailable(
                    "the outcome of the commit is unknown; read the memory before retrying",
                );
                refuse(batch, then, &error);
                myself.stop(Some(STOPPED_FENCED.to_owned()));
            }
            Err(error) => {
                if self.environment.plants(Defect::LeakedPlace) {
                    batch.answers.drain(..).for_each(|(change, _)| change.reply.leak());
                }
                refuse(batch, then, &Error::from(error));
                if self.environment.plants(Defect::LostWake) {
                    let batch = Batch::default();
                    self.in_flight = Some(InFlight { batch, then: Then::GoOn });
                }
                self.go_on(myself);
            }
        }
    }

    fn follow(&mut self, myself: &ActorRef<CubeMessage>, then: Then) {
        match then {
            Then::GoOn => self.go_on(myself),
            Then::Snapshot(committed) => {
                self.snapshot_committed(committed);
                self.go_on(myself);
            }
            Then::Kept(keeping) => {
                self.kept(*keeping);
                self.go_on(myself);
            }
            Then::Erased(reply) => {
                reply.answer(Ok(CubeAnswer::Erased));
                myself.stop(Some(STOPPED_ERASED.to_owned()));
            }
            Then::HandedOver(reply) => {
                self.environment.reach("cube.handed-over", self.cube.key.cube.as_str());
                self.let_go_of_cached();
                let _ = reply.send(Ok(()));
                self.has_left = true;
                let _ = myself.drain();
            }
        }
    }

    fn go_on(&mut self, myself: &ActorRef<CubeMessage>) {
        if self.is_lost {
            // Whoever waits is sent to the new owner.
            myself.stop(Some(STOPPED_FENCED.to_owned()));
            return;
        }
        self.consider_snapshot(myself);
        self.start_commit(myself);
        self.leave_if_idle(myself);
    }

    fn make_visible(&mut self, batch: Batch) {
        self.cube.tail_items += batch.events.len();
        self.cube.has_snapshot &= !batch.drops_snapshot;
        self.cube.activation.apply(batch.gone);
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

    pub(super) fn erase(&mut self, myself: &ActorRef<CubeMessage>, reply: Reply) {
        if self.in_flight.is_some() || self.is_passivating {
            reply.answer(Err(Error::unavailable("the cube is being written; retry")));
            return;
        }
        self.snapshot.cancel();
        self.in_flight = Some(InFlight { batch: Batch::default(), then: Then::Erased(reply) });
        let now_ms = self.environment.unix_ms();
        let manifest = Some(&self.cube.manifest);
        let mut mutations = journal::erase(&self.cube.key, &self.cube.claim, manifest, now_ms);
        mutations.extend(self.cube.activation.let_go(&self.cube.key));
        self.spawn_commit(myself, Vec::new(), mutations);
    }

    /// Names the next owner in the store; from then on this one is refused.
    pub(super) fn hand_over(&mut self, myself: &ActorRef<CubeMessage>, successor: Successor) {
        let Successor { node, incarnation, reply } = successor;
        let mutations =
            vec![journal::pass_ownership(&self.cube.key, &self.cube.claim, node, incarnation)];
        let then = Then::HandedOver(reply);
        self.in_flight = Some(InFlight { batch: Batch::default(), then });
        self.spawn_commit(myself, Vec::new(), mutations);
    }
}

/// Stands where a command was taken out.
fn nothing() -> CubeCommand {
    CubeCommand::DeleteMemories { selection: Selection::Ids(Vec::new()), purge: false }
}

fn first_text(command: &CubeCommand) -> &str {
    match command {
        CubeCommand::AddMemories { drafts, .. } => drafts.first().map_or("", |draft| &draft.text),
        CubeCommand::UpdateMemory { change, .. } => {
            change.text.as_ref().map_or("", |text| &text.text)
        }
        CubeCommand::DeleteMemories { .. } => "",
    }
}

fn settle(answers: Vec<(Change, Result<CubeReply>)>) {
    for (change, result) in answers {
        change.reply.answer(changed(result));
    }
}

fn changed(result: Result<CubeReply>) -> Result<CubeAnswer> {
    result.map(CubeAnswer::Changed)
}

/// Answers a batch whose commit failed. What was refused while deciding is answered with the same
/// error: it may have been refused for the sake of a change in this batch that never happened.
fn refuse(batch: Batch, then: Then, error: &Error) {
    for (change, _) in batch.answers {
        change.reply.answer(Err(error.clone()));
    }
    match then {
        Then::GoOn | Then::Snapshot(_) => {}
        Then::Kept(keeping) => keeping.refuse(error),
        Then::Erased(reply) => reply.answer(Err(error.clone())),
        Then::HandedOver(reply) => {
            let _ = reply.send(Err(error.clone()));
        }
    }
}
