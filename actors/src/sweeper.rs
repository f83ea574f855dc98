//! Takes away blobs that nothing refers to, again and again.
//!
//! Receives: its own ticks, ends of its sweeps. Sends: nothing. Owns: the time of the next sweep.

use std::{sync::Arc, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::{
    cube::SnapshotKeeper,
    directory::BlobParts,
    environment::Environment,
    error::{Error, Result},
    storage::{Blobs, SharedStore},
};

/// The shortest time between two sweeps: each lists every folder of the object store.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// A sweeper that has not been started yet.
pub(crate) struct Sweeper {
    blobs: Blobs,
    grace_ms: u64,
    snapshot_items_min: usize,
    environment: Environment,
}

impl Sweeper {
    pub(crate) fn new(parts: BlobParts, store: &SharedStore, environment: &Environment) -> Self {
        let BlobParts { objects, seal, grace_ms, snapshot_items_min } = parts;
        let blobs = Blobs::new(objects, Arc::clone(store), environment.clone(), seal);
        Self { blobs, grace_ms, snapshot_items_min, environment: environment.clone() }
    }

    /// What the cubes of this node need for their snapshots.
    pub(crate) fn keeper(&self) -> SnapshotKeeper {
        SnapshotKeeper::new(self.blobs.clone(), self.snapshot_items_min)
    }

    /// Starts to sweep.
    ///
    /// # Errors
    /// `Internal` when the actor does not start.
    pub(crate) async fn start(self) -> Result<SweeperHandle> {
        let blobs = self.blobs.clone();
        let (actor, _) = SweeperActor::spawn(None, SweeperActor, self)
            .await
            .map_err(|error| Error::internal(format!("the sweeper did not start: {error}")))?;
        Ok(SweeperHandle { actor, blobs })
    }

    /// Twice the grace is the longest that something is kept.
    fn pause(&self) -> Duration {
        Duration::from_millis(self.grace_ms).max(PAUSE_MIN)
    }
}

/// The front door of the sweeper.
pub(crate) struct SweeperHandle {
    actor: ActorRef<SweeperMessage>,
    blobs: Blobs,
}

impl SweeperHandle {
    pub(crate) const fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(crate) fn kill(&self) {
        self.actor.kill();
    }

    pub(crate) async fn stop(&self) {
        let _ = self.actor.stop_and_wait(None, None).await;
    }
}

struct SweeperActor;

enum SweeperMessage {
    /// It is time.
    Sweep,
    /// A sweep ended.
    Swept,
}

impl Actor for SweeperActor {
    type Msg = SweeperMessage;
    type State = Sweeper;
    type Arguments = Sweeper;

    async fn pre_start(
        &self,
        myself: ActorRef<SweeperMessage>,
        sweeper: Sweeper,
    ) -> std::result::Result<Sweeper, ActorProcessingErr> {
        myself.send_after(sweeper.pause(), || SweeperMessage::Sweep);
        Ok(sweeper)
    }

    async fn handle(
        &self,
        myself: ActorRef<SweeperMessage>,
        message: SweeperMessage,
        sweeper: &mut Sweeper,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            SweeperMessage::Sweep => {
                let (blobs, grace_ms) = (sweeper.blobs.clone(), sweeper.grace_ms);
                sweeper.environment.spawn(async move {
                    match blobs.sweep_all(grace_ms).await {
                        Ok(swept) => tracing::debug!(?swept, "swept the blobs"),
                        Err(error) => tracing::warn!(%error, "the blobs could not be swept"),
                    }
                    let _ = myself.cast(SweeperMessage::Swept);
                });
            }
            SweeperMessage::Swept => {
                myself.send_after(sweeper.pause(), || SweeperMessage::Sweep);
            }
        }
        Ok(())
    }
}
