//! The front door of the host. Whoever asks holds a place until it is answered, so that the host's
//! mailbox has a bound.

use std::sync::Arc;

use memcube_schemas::{Incarnation, NodeId, limits::HOST_CALLS_MAX};
use ractor::{ActorId, ActorRef};
use tokio::sync::{Semaphore, oneshot};

use super::{Ask, Ended, HostMessage};
use crate::{
    cube::{CubeKey, CubeSuccessor},
    directory::{QueueDepth, Slot},
    error::{Error, ErrorKind, Result},
};

/// The front door of the host.
#[derive(Clone)]
pub(crate) struct HostHandle {
    actor: ActorRef<HostMessage>,
    places: Arc<Semaphore>,
}

impl HostHandle {
    pub(super) fn new(actor: ActorRef<HostMessage>) -> Self {
        Self { actor, places: Arc::new(Semaphore::new(HOST_CALLS_MAX)) }
    }

    pub(crate) async fn hydrate(&self, key: CubeKey) -> Result<Arc<Slot>> {
        self.ask(|reply| HostMessage::Hydrate { key, reply }).await?
    }

    pub(crate) async fn why_ended(&self, key: CubeKey, actor: ActorId) -> Result<Ended> {
        self.ask(|reply| HostMessage::WhyEnded { key, actor, reply }).await
    }

    pub(crate) async fn quarantine(&self, key: CubeKey) -> Result<Option<String>> {
        self.ask(|reply| HostMessage::Quarantine { key, reply }).await
    }

    pub(crate) async fn release(&self, key: CubeKey) -> Result<()> {
        self.ask(|reply| HostMessage::Release { key, reply }).await?
    }

    /// Lets a hot cube finish, and names its next owner.
    pub(crate) async fn hand_over(
        &self,
        key: CubeKey,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let successor = CubeSuccessor { node, incarnation, reply };
        let ended = || Error::new(ErrorKind::Fenced, "the cube ended meanwhile; ask again");
        self.actor.cast(HostMessage::HandOver { key, successor }).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    pub(crate) fn queue(&self) -> QueueDepth {
        let depth = HOST_CALLS_MAX.saturating_sub(self.places.available_permits());
        QueueDepth { name: "questions to the host", depth, bound: HOST_CALLS_MAX }
    }

    pub(crate) fn kill(&self) {
        self.actor.kill();
    }

    pub(crate) async fn shut_down(&self) {
        let (reply, answer) = oneshot::channel();
        // A host that is gone already has nothing left to shut down. No place is taken: however
        // many wait, this has to get through.
        if self.actor.cast(HostMessage::ShutDown { reply }).is_ok() {
            let _ = answer.await;
        }
        // Waits until the actor is gone, and with it its hold on the store.
        let _ = self.actor.stop_and_wait(None, None).await;
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(
            self.actor.get_status(),
            ractor::ActorStatus::Starting | ractor::ActorStatus::Running
        )
    }

    async fn ask<T>(&self, message: impl FnOnce(Ask<T>) -> HostMessage) -> Result<T> {
        let gone = || Error::unavailable("this node is shutting down");
        let _place =
            self.places.try_acquire().map_err(|_| Error::overloaded("the host's queue", 100))?;
        let (reply, answer) = oneshot::channel();
        self.actor.cast(message(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}
