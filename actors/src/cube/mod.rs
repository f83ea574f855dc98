//! One MemCube: the actor that alone owns one user's or agent's memory.
//!
//! Receives: changes, reads and searches from its handle; the outcome of its own commits and looks
//! at the store; from its host, the wish to leave RAM or to be handed over. Sends: replies, commits
//! to the state store. Owns: every item, vector and index of the cube, between hydration and
//! passivation.
//!
//! Invariant: nothing is answered before its commit is durable, and what is answered is findable.
//! At most one commit is under way; changes that arrive meanwhile share the next one.

mod activation;
mod archive;
mod chat;
mod commits;
mod context;
mod converse;
mod decide;
mod handle;
mod hydrate;
mod journal;
mod load;
mod message;
mod parts;
mod preloader;
mod reads;
pub mod recall;
mod requests;
mod snapshots;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use memcube_schemas::call::CubeCall;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use self::{
    activation::Keep, commits::InFlight, message::Successor, reads::Reads, snapshots::Snapshots,
};
pub use self::{
    activation::Kept,
    chat::{ChatOpening, ChatRequest, ChatStream, PreloadOutcome, PreloadRequest},
    context::{ChatTurn, HEADING as MEMORIES_HEADING, Rebuild, UsedMemory, rebuild},
    converse::{ConverseRequest, FinishedTurn, TurnEvent, TurnStream},
    handle::CubeHandle,
    preloader::PreloadMessage,
    recall::{ArmScores, Hit, SearchFilter, SearchRequest},
    requests::{AddOutcome, AddRequest, DeleteRequest, UpdateRequest},
};
pub(crate) use self::{
    activation::activation_block,
    hydrate::Hydrator,
    journal::{commit, made, ownership_check, restored},
    message::{Change, CubeMessage, Reply, Successor as CubeSuccessor},
    preloader::{Preloader, PromptSoFar},
    requests::check_search,
    snapshots::SnapshotKeeper,
    state::{Claim, CubeKey, CubeState, text_hash},
};
use crate::{
    environment::{Environment, MemoryIds},
    error::{Error, ErrorKind},
    inference::InferenceHandle,
    storage::SharedStore,
};
pub use memcube_schemas::call::{ItemPage, SearchOutcome};

/// The reason with which a cube stops when the store refuses it as a former owner.
pub(crate) const STOPPED_FENCED: &str = "fenced";
/// The reason with which a cube stops after it was erased.
pub(crate) const STOPPED_ERASED: &str = "erased";

/// As what a cube refers to the blob of its snapshot.
pub(crate) const SNAPSHOT: &str = "snapshot";

pub(crate) struct CubeActor;

/// What a cube is started with: it was hydrated before.
pub(crate) struct CubeArguments {
    pub(crate) state: CubeState,
    pub(crate) store: SharedStore,
    pub(crate) environment: Environment,
    /// Whether another node may take the cube over, so that reads need the store's word.
    pub(crate) confirms_reads: bool,
    /// How it gets snapshots, if it does.
    pub(crate) snapshots: Option<SnapshotKeeper>,
    /// The language model of the node, once there is one.
    pub(crate) inference: Arc<OnceLock<InferenceHandle>>,
}

pub(crate) struct Running {
    cube: CubeState,
    store: SharedStore,
    environment: Environment,
    confirms_reads: bool,
    ids: MemoryIds,
    waiting: VecDeque<Change>,
    /// Contexts and blocks that wait for their commit.
    keeps: VecDeque<Keep>,
    /// Whether the last commit was one of those.
    has_kept: bool,
    inference: Arc<OnceLock<InferenceHandle>>,
    reads: Reads,
    in_flight: Option<InFlight>,
    snapshots: Option<SnapshotKeeper>,
    snapshot: Snapshots,
    is_passivating: bool,
    /// Whether there is time for a snapshot before the cube leaves RAM.
    has_time: bool,
    /// The last message has been dealt with, or will be soon.
    has_left: bool,
    /// A look at the store has shown another owner: the cube ends with the commit under way.
    is_lost: bool,
    successor: Option<Successor>,
}

impl Actor for CubeActor {
    type Msg = CubeMessage;
    type State = Running;
    type Arguments = CubeArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        arguments: CubeArguments,
    ) -> Result<Running, ActorProcessingErr> {
        let CubeArguments { state, store, environment, confirms_reads, snapshots, inference } =
            arguments;
        let ids = MemoryIds::after(state.items.last_key_value().map(|(id, _)| *id));
        Ok(Running {
            cube: state,
            store,
            environment,
            confirms_reads,
            ids,
            waiting: VecDeque::new(),
            keeps: VecDeque::new(),
            has_kept: false,
            inference,
            reads: Reads::default(),
            in_flight: None,
            snapshots,
            snapshot: Snapshots::default(),
            is_passivating: false,
            has_time: false,
            has_left: false,
            is_lost: false,
            successor: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: CubeMessage,
        running: &mut Running,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            CubeMessage::Call { call, by, reply } => running.call(&myself, call, by, reply),
            CubeMessage::Committed { outcome } => running.committed(&myself, outcome),
            CubeMessage::Confirmed { outcome } => running.confirmed(&myself, outcome),
            CubeMessage::SnapshotMade { made, left } => {
                running.snapshot_made(&myself, *made, left);
            }
            CubeMessage::Keep(keep) => running.keep(&myself, *keep),
            CubeMessage::Passivate { has_time } => {
                running.is_passivating = true;
                running.has_time = has_time;
                running.leave_if_idle(&myself);
            }
            CubeMessage::HandOver(successor) => {
                running.is_passivating = true;
                running.successor = Some(successor);
                running.leave_if_idle(&myself);
            }
        }
        Ok(())
    }
}

impl Running {
    fn call(&mut self, myself: &ActorRef<CubeMessage>, call: CubeCall, by: String, reply: Reply) {
        match call {
            CubeCall::Change(_) if self.is_passivating => reply.answer(Err(passivated())),
            CubeCall::Change(command) => {
                self.waiting.push_back(Change { command, by, reply });
                self.start_commit(myself);
            }
            CubeCall::Erase => self.erase(myself, reply),
            CubeCall::Get(_)
            | CubeCall::List { .. }
            | CubeCall::Search(_)
            | CubeCall::Describe
            | CubeCall::Context(_)
            | CubeCall::Scene(_)
            | CubeCall::Note(_)
            | CubeCall::Scenes(_) => self.read(myself, call, reply),
        }
    }

    /// Leaves RAM as soon as nothing is under way, to another node if there is a successor. Once it
    /// is passivating, the cube sends calls back to where they came from, so that none is lost
    /// between it and its next incarnation.
    fn leave_if_idle(&mut self, myself: &ActorRef<CubeMessage>) {
        let is_idle = self.in_flight.is_none()
            && self.waiting.is_empty()
            && self.keeps.is_empty()
            && self.reads.is_empty();
        if !self.is_passivating || !is_idle {
            return;
        }
        match self.successor.take() {
            Some(successor) => self.hand_over(myself, successor),
            None => {
                if self.has_time && !self.has_left {
                    self.leave_snapshot(myself);
                }
                self.has_left = true;
                let _ = myself.drain();
            }
        }
    }
}

fn fenced() -> Error {
    Error::new(ErrorKind::Fenced, "another owner has claimed this cube; ask again")
}

fn passivated() -> Error {
    Error::new(ErrorKind::Fenced, "the cube is leaving RAM; ask again")
}

/// Microseconds as the seconds that metrics are recorded in.
#[expect(clippy::cast_precision_loss, reason = "a duration of years would still fit")]
pub(crate) fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}
