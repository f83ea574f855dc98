//! The port to other nodes: bytes to a node, at most once in spirit and in no order.
//!
//! A transport may lose, delay, repeat and reorder frames; whoever calls over it copes
//! (`peers.rs`). It never blocks the sender.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
};

use futures_util::future::BoxFuture;
use memcube_schemas::NodeId;

use crate::environment::Environment;

/// Where frames that arrive at a node go, and what becomes of those it sends.
pub trait Inbox: Send + Sync + 'static {
    /// Takes a frame. Returns at once: the work happens in a task.
    fn deliver(&self, frame: Vec<u8>);

    /// Takes back a frame of this node that certainly reached nobody, so that whoever waits for an
    /// answer need not wait in vain. A transport that cannot tell says nothing; one that can may
    /// say so while `send` still runs.
    fn undelivered(&self, _frame: &[u8]) {}
}

/// How one node sends to the others, and hears from them.
pub trait Transport: Send + Sync + 'static {
    /// Sends a frame. What cannot be delivered is lost; [`Inbox::undelivered`] may tell.
    fn send(&self, to: &NodeId, frame: Vec<u8>);

    /// Says where arriving frames go. Called once, when the node starts. The transport does not
    /// keep the node alive.
    fn listen(&self, inbox: Weak<dyn Inbox>);

    /// Where the others reach this node, for its heartbeat.
    fn address(&self) -> String;

    /// Says who the other nodes are and where each is reached, in the words of its heartbeat.
    /// Called at every look around, before anybody calls them.
    fn meet(&self, _others: &BTreeMap<NodeId, String>) {}

    /// Lets what is on its way leave, then hears nothing any more: the node has ended.
    fn close(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Connects nodes that live in one process. Cheap to clone; every clone is the same hub.
#[derive(Clone, Default)]
pub struct LocalHub {
    inboxes: Arc<Mutex<BTreeMap<NodeId, Weak<dyn Inbox>>>>,
}

impl LocalHub {
    /// A hub without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of one node of this hub.
    #[must_use]
    pub fn transport(&self, node: NodeId, environment: Environment) -> Arc<dyn Transport> {
        Arc::new(LocalTransport { hub: self.clone(), node, environment })
    }
}

struct LocalTransport {
    hub: LocalHub,
    node: NodeId,
    environment: Environment,
}

impl LocalTransport {
    fn inboxes(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Weak<dyn Inbox>>> {
        self.hub.inboxes.lock().expect("invariant: nothing panics while it holds the inboxes")
    }
}

impl Transport for LocalTransport {
    fn send(&self, to: &NodeId, frame: Vec<u8>) {
        let inbox = self.inboxes().get(to).and_then(Weak::upgrade);
        if let Some(inbox) = inbox {
            self.environment.spawn(async move { inbox.deliver(frame) });
        }
    }

    fn listen(&self, inbox: Weak<dyn Inbox>) {
        self.inboxes().insert(self.node.clone(), inbox);
    }

    fn address(&self) -> String {
        format!("local:{}", self.node)
    }
}
