//! Starts the shards of the scheduler, and those anew that panic.
//!
//! Receives: that a shard has ended. Sends: nothing. Owns: the shards.

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::actor::{ShardActor, ShardArguments, ShardMessage};
use crate::metrics as names;

pub(super) struct Supervisor;

pub(super) struct Supervised {
    arguments: Vec<ShardArguments>,
    shards: Vec<ActorRef<ShardMessage>>,
}

impl Actor for Supervisor {
    type Msg = ();
    type State = Supervised;
    type Arguments = Vec<ShardArguments>;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        arguments: Vec<ShardArguments>,
    ) -> Result<Supervised, ActorProcessingErr> {
        let mut shards = Vec::with_capacity(arguments.len());
        for shard in &arguments {
            let cell = myself.get_cell();
            shards.push(ShardActor::spawn_linked(None, ShardActor, shard.clone(), cell).await?.0);
        }
        Ok(Supervised { arguments, shards })
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut Supervised,
    ) -> Result<(), ActorProcessingErr> {
        let SupervisionEvent::ActorFailed(failed, reason) = event else { return Ok(()) };
        let failed = failed.get_id();
        let number = state.shards.iter().position(|shard| shard.get_id() == failed);
        let Some(number) = number else { return Ok(()) };
        tracing::error!(number, %reason, "a shard of the scheduler panicked and starts anew");
        metrics::counter!(names::SCHEDULER_PANICS_TOTAL).increment(1);
        let arguments = state.arguments[number].clone();
        arguments.shared.environment.reach("scheduler.restarted", "");
        let cell = myself.get_cell();
        state.shards[number] = ShardActor::spawn_linked(None, ShardActor, arguments, cell).await?.0;
        Ok(())
    }
}
