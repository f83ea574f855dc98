//! What front ends tell of conversations besides turns: too late, out of order, twice, and far too
//! much of it.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use memcube_actors::{Cubes, Error, TenantContext};
use memcube_schemas::{
    ConversationId, CubeId, RequestId,
    conversation::{ConversationEvent, ConversationEventKind, Role},
};
use tokio::time::{sleep, timeout};

use super::{
    Inner,
    chat::conversation,
    client::{Attempt, TRIES_BITS},
    script::Player,
};
use crate::{clock::START_UNIX_MS, evidence::Violation, plan::Happening};

/// What distinguishes messages of events from those of other calls.
const OF_EVENT: u64 = 1 << 59;
/// How long a caller minds what becomes of its events.
const EVENTS_PATIENCE: Duration = Duration::from_secs(3);
/// Milliseconds between two pieces of what is typed.
const TYPES_EVERY_MS: u64 = 120;
/// By how much an event may come too late, in milliseconds.
const LATE_MS_MAX: u64 = 1_500;
/// By how much the clock of a front end may be wrong, in milliseconds.
const WRONG_MS_MAX: u64 = 1_500;

impl Player {
    /// Types a turn: every piece is an event, and some come late, twice, or both.
    pub(super) async fn type_on(&self, operation: u64, scene: u32, topic: u32) {
        let Some(conversation) = conversation(scene) else { return };
        let text = format!("what was that about topic{topic}, and what came after it?");
        let dice = self.world.dice.fork("types", operation);
        let mut sent = Vec::new();
        for (number, end) in (0_u64..).zip((8..text.len()).step_by(9)) {
            let at_ms = self.world.unix_ms(number * TYPES_EVERY_MS);
            let event = ConversationEvent {
                conversation: conversation.clone(),
                id: RequestId::new(format!("{operation:x}-{number}")).ok(),
                at_ms,
                kind: ConversationEventKind::Typing { text: text[..end].to_owned() },
            };
            let late = |copy: &str| {
                let is_late = dice.chance(copy, number, 300);
                if is_late { dice.below(copy, number, LATE_MS_MAX) } else { 0 }
            };
            sent.push((number * TYPES_EVERY_MS + late("first"), event.clone()));
            if dice.chance("twice", number, 200) {
                sent.push((number * TYPES_EVERY_MS + late("second"), event));
            }
        }
        self.send(operation, sent).await;
    }

    /// Sends events after so many milliseconds each, and cares little what becomes of them.
    async fn send(&self, operation: u64, events: Vec<(u64, ConversationEvent)>) {
        let client = &self.cube.client;
        let node = self.client % self.world.plan.nodes.max(1);
        let send = |(number, (after_ms, event)): (u64, (u64, ConversationEvent))| async move {
            sleep(Duration::from_millis(after_ms)).await;
            let id = self.cube.id.clone();
            let work = move |cubes: Cubes,
                             context: TenantContext|
                  -> BoxFuture<'static, Result<(), Error>> {
                let (cube, event) = (cubes.cube(&context, id.clone()), event.clone());
                Box::pin(async move { cube.note(event).await })
            };
            let id = operation << TRIES_BITS | number | OF_EVENT;
            if let Attempt::Answer(Err(error)) = client.attempt(node, id, &work).await {
                let _ = client.judge(&error);
            }
        };
        let sent = join_all((0_u64..).zip(events).map(send));
        let _ = timeout(EVENTS_PATIENCE, sent).await;
    }

    /// Tells what else happens in a conversation.
    pub(super) async fn note(&mut self, operation: u64, scene: u32, topic: u32, what: Happening) {
        let Some(conversation) = conversation(scene) else { return };
        let text = format!("everything about topic{topic}");
        let kind = match what {
            Happening::Topic => ConversationEventKind::TopicMarked { text },
            Happening::Tool => {
                ConversationEventKind::ToolCalled { name: "look_up".to_owned(), arguments: text }
            }
            Happening::Pause => ConversationEventKind::Paused,
            Happening::Resume => ConversationEventKind::Resumed,
            Happening::Turn => {
                let role = if topic.is_multiple_of(2) { Role::User } else { Role::Assistant };
                ConversationEventKind::TurnFinished { role, speaker: None, text }
            }
            Happening::Close => ConversationEventKind::Closed,
            Happening::Stray => return self.note_stray(operation, conversation).await,
        };
        if what == Happening::Close {
            self.talks.remove(&scene);
        }
        // A clock that is a little wrong.
        let wrong_ms = self.world.dice.fork("notes", operation).below("wrong", 0, 2 * WRONG_MS_MAX);
        let at_ms = self.world.unix_ms(wrong_ms) - i64::try_from(WRONG_MS_MAX).unwrap_or(0);
        let id = RequestId::new(format!("{operation:x}")).ok();
        let event = ConversationEvent { conversation, id, at_ms, kind };
        // Twice, as a front end that never heard an answer would.
        self.send(operation, vec![(0, event.clone()), (300, event)]).await;
    }

    /// An event in a cube that is not there.
    async fn note_stray(&self, operation: u64, conversation: ConversationId) {
        let at_ms = self.world.unix_ms(0);
        let kind = ConversationEventKind::Paused;
        let event = ConversationEvent { conversation, id: None, at_ms, kind };
        let nobody = CubeId::new("nobody").expect("invariant: the name is valid");
        let work =
            move |cubes: Cubes, context: TenantContext| -> BoxFuture<'static, Result<(), Error>> {
                let (cube, event) = (cubes.cube(&context, nobody.clone()), event.clone());
                Box::pin(async move { cube.note(event).await })
            };
        let node = self.client % self.world.plan.nodes.max(1);
        let id = operation << TRIES_BITS | OF_EVENT;
        match self.cube.client.attempt(node, id, &work).await {
            Attempt::Answer(Ok(())) => {
                let what = "an event of a cube that is not there was taken in";
                self.world.accuse(Violation::new("workflow", what));
            }
            Attempt::Answer(Err(error)) => drop(self.cube.client.judge(&error)),
            Attempt::NoEffect(_) | Attempt::Silence(_) => {}
        }
    }

    /// So many events at once, in as many conversations as there are in a front end gone mad.
    pub(super) async fn flood(&self, operation: u64, count: u32) {
        let (world, id) = (Arc::clone(&self.world), self.cube.id.clone());
        let start_ms = self.world.unix_ms(0);
        let work =
            move |cubes: Cubes, context: TenantContext| -> BoxFuture<'static, Result<(), Error>> {
                let (world, cube) = (Arc::clone(&world), cubes.cube(&context, id.clone()));
                Box::pin(async move {
                    let notes = (0..count).filter_map(|number| {
                        let at_ms = start_ms + i64::from(number);
                        let kind = ConversationEventKind::Paused;
                        let conversation = conversation(number % 8)?;
                        let event = ConversationEvent { conversation, id: None, at_ms, kind };
                        let cube = cube.clone();
                        Some(async move { cube.note(event).await })
                    });
                    let mut notes = Box::pin(join_all(notes));
                    let answers = (&mut notes).now_or_never();
                    // What could be taken in at once waits now.
                    world.look_at_queues(false);
                    let answers = match answers {
                        Some(answers) => answers,
                        None => notes.await,
                    };
                    answers.into_iter().find_map(Result::err).map_or(Ok(()), Err)
                })
            };
        // Only at the owner of the cube nothing slows them down.
        let dice = self.world.dice.fork("flood", operation);
        let node = dice.below("node", 0, u64::from(self.world.plan.nodes.max(1)));
        let node = u32::try_from(node).unwrap_or(0);
        let id = operation << TRIES_BITS | OF_EVENT;
        if let Attempt::Answer(Err(error)) = self.cube.client.attempt(node, id, &work).await {
            let _ = self.cube.client.judge(&error);
        }
    }
}

impl Inner {
    /// The time on a wall clock that is right, so many milliseconds from now.
    fn unix_ms(&self, after_ms: u64) -> i64 {
        let at_ms = self.conditions.now_ms() + after_ms;
        START_UNIX_MS + i64::try_from(at_ms).unwrap_or(i64::MAX)
    }
}
