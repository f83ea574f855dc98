//! What a cube's mailbox carries.

use memcube_schemas::{
    Incarnation, NodeId, Version,
    call::{CubeAnswer, CubeCall},
    command::CubeCommand,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    activation::Keep,
    snapshots::{LeftBehind, MadeSnapshot},
};
use crate::{error::Result, storage::StoreError};

/// Where an answer goes. It carries the caller's place in the cube's queue, so that the place is
/// given back when the question is answered or dropped, and not when the caller gives up waiting.
pub(crate) struct Reply {
    sender: oneshot::Sender<Result<CubeAnswer>>,
    place: OwnedSemaphorePermit,
}

impl Reply {
    pub(crate) fn new(
        sender: oneshot::Sender<Result<CubeAnswer>>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { sender, place }
    }

    /// Answers the caller, who may have given up waiting, and gives its place back.
    pub(crate) fn answer(self, result: Result<CubeAnswer>) {
        let _ = self.sender.send(result);
        drop(self.place);
    }

    /// A planted bug: the caller hears nothing, and its place is gone for good.
    pub(crate) fn leak(self) {
        self.place.forget();
    }
}

/// A change that waits for its commit.
pub(crate) struct Change {
    pub(crate) command: CubeCommand,
    /// Who asks, for the history.
    pub(crate) by: String,
    pub(crate) reply: Reply,
}

/// The next owner of a cube that is handed over, and who wants to know that it was.
pub(crate) struct Successor {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) reply: oneshot::Sender<Result<()>>,
}

pub(crate) enum CubeMessage {
    /// Somebody asks.
    Call { call: CubeCall, by: String, reply: Reply },
    /// A commit of this cube ended.
    Committed { outcome: std::result::Result<Version, StoreError> },
    /// The ownership row was read, for the sake of waiting reads: is the cube still ours?
    Confirmed { outcome: std::result::Result<bool, StoreError> },
    /// The task that makes a snapshot ended.
    SnapshotMade { made: Box<Result<MadeSnapshot>>, left: LeftBehind },
    /// A conversation leaves a context and blocks behind.
    Keep(Box<Keep>),
    /// The host wants the cube out of RAM, with a snapshot if there is time for one.
    Passivate { has_time: bool },
    /// The host wants the cube on another node.
    HandOver(Successor),
}
