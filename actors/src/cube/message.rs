//! What a cube's mailbox carries.

use std::sync::Arc;

use memcube_schemas::{
    MemoryId, Version,
    command::{CubeCommand, CubeReply},
    cube::CubeManifest,
    memory::MemoryItem,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::recall::{Hit, RecallRequest};
use crate::{error::Result, storage::StoreError};

/// Where an answer goes. It carries the caller's place in the cube's queue, so that the place is
/// given back when the question is answered or dropped, and not when the caller gives up waiting.
pub(crate) struct Reply<T> {
    sender: oneshot::Sender<Result<T>>,
    _place: OwnedSemaphorePermit,
}

impl<T> Reply<T> {
    pub(crate) fn new(sender: oneshot::Sender<Result<T>>, place: OwnedSemaphorePermit) -> Self {
        Self { sender, _place: place }
    }

    /// Answers the caller, who may have given up waiting.
    pub(crate) fn answer(self, result: Result<T>) {
        let _ = self.sender.send(result);
    }
}

/// A change that waits for its commit.
pub(crate) struct Change {
    pub(crate) command: CubeCommand,
    /// Who asks, for the history.
    pub(crate) by: String,
    pub(crate) reply: Reply<CubeReply>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemPage {
    /// In the order in which they were made.
    pub items: Vec<Arc<MemoryItem>>,
    /// Whether there are further ones.
    pub more: bool,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchOutcome {
    /// Best first.
    pub hits: Vec<Hit>,
    /// The version of the cube that was searched.
    pub version: Version,
    /// Word pieces of all hits together.
    pub tokens: u32,
    /// How sure recall is that the cube knows an answer, from 0 to 1.
    pub confidence: f32,
}

pub(crate) enum CubeMessage {
    Change(Change),
    Get {
        id: MemoryId,
        reply: Reply<Arc<MemoryItem>>,
    },
    List {
        after: Option<MemoryId>,
        limit: usize,
        reply: Reply<ItemPage>,
    },
    Search {
        request: Box<RecallRequest>,
        reply: Reply<SearchOutcome>,
    },
    Describe {
        reply: Reply<CubeManifest>,
    },
    /// A commit of this cube ended.
    Committed {
        outcome: std::result::Result<Version, StoreError>,
    },
    /// Clears everything that the cube holds, and ends it.
    Erase {
        reply: Reply<()>,
    },
    /// The host wants the cube out of RAM.
    Passivate,
}
