//! Turns that are remembered.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use memcube_actors::{
    Cubes, Error, TenantContext,
    cube::{ChatRequest, ChatTurn, ConverseRequest, SearchRequest, TurnEvent, TurnStream},
};
use memcube_schemas::{CubeId, MemoryId, TenantId, conversation::Role};

use super::{
    Client, Cube, Inner,
    chat::{Said, conversation},
    client::{Attempt, TRIES_BITS},
    script::{Known, Player},
};
use crate::{
    evidence::{ChatRecord, Heard},
    history::{Call, Outcome},
};

/// Nodes that are tried with a turn.
const TRIES: u64 = 3;
/// How long a turn may take.
const TURN_MS_MAX: u64 = 6_000;
/// Tokens of a reply.
const REPLY_TOKENS_MAX: usize = 24;
/// Memories that a turn looks for.
const RECALLED: usize = 5;
/// Turns that a caller still sends; then the oldest are forgotten.
const TURNS_MAX: usize = 14;
/// What distinguishes messages of turns from those of other calls.
const OF_TURN: u64 = 1 << 60;

/// What a model said to a turn that was to be remembered, as far as it came: nobody but the node
/// may ever have known it.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) tenant: TenantId,
    pub(crate) cube: CubeId,
    pub(crate) text: String,
}

/// A turn and what was said before.
pub(super) struct Turn {
    pub(super) scene: u32,
    pub(super) turns: Vec<ChatTurn>,
    pub(super) said: Said,
}

impl Cube {
    /// Says something once, at one node, to be remembered; returns what was said and heard, and the
    /// memory that it became.
    pub(super) async fn converse_once(
        &self,
        node: u32,
        id: u64,
        marker: String,
        turn: &Turn,
    ) -> Result<(ChatTurn, Heard, Option<MemoryId>), String> {
        let Turn { scene, turns, said: Said { preamble, question, leaves_after, .. } } = turn;
        let text = format!("{marker} {question}");
        let message = ChatTurn::new(Role::User, text.clone());
        let Client { world, number: client, context } = &self.client;
        let conversation = conversation(*scene).ok_or("no conversation has this name")?;
        let record = ChatRecord {
            tenant: context.tenant().clone(),
            cube: self.id.clone(),
            preamble: preamble.clone(),
            turns: turns.clone(),
            message: message.clone(),
            invoked: world.moment(),
            returned: None,
            heard: None,
        };
        let operation = self.invoke(Call::Add { marker });
        let chat = world.begin_chat(*client, record);
        let request = ChatRequest {
            preamble: preamble.clone(),
            turns: turns.clone(),
            recall: Some(SearchRequest { top_k: RECALLED, ..SearchRequest::new(question) }),
            tokens_max: REPLY_TOKENS_MAX,
            ms_max: TURN_MS_MAX,
            ..ChatRequest::new(conversation, text)
        };
        let (outcome, heard) = self.ask(node, id, request, *leaves_after).await;
        let made = if let Outcome::Added { id, .. } = &outcome { Some(*id) } else { None };
        self.answer(operation, outcome);
        world.end_chat(*client, chat, heard.clone());
        heard.map(|heard| (message, heard, made))
    }

    /// Asks, and tells what became of the turn as a memory, and what was heard.
    async fn ask(
        &self,
        node: u32,
        id: u64,
        request: ChatRequest,
        leaves_after: Option<u32>,
    ) -> (Outcome, Result<Heard, String>) {
        let (cube, seen) = (self.id.clone(), Arc::clone(&self.client.world));
        let work = move |cubes: Cubes,
                         context: TenantContext|
              -> BoxFuture<'static, Result<(Heard, Outcome), Error>> {
            let cube = cubes.cube(&context, cube.clone());
            let (tenant, name) = (context.tenant().clone(), cube.id().clone());
            let reply = Reply { tenant, cube: name, text: String::new() };
            let (seen, request) = (Arc::clone(&seen), ConverseRequest::new(request.clone()));
            Box::pin(async move {
                let stream = cube.converse(request).await?;
                listen(&seen, stream, reply, leaves_after).await
            })
        };
        match self.client.attempt(node, id | OF_TURN, &work).await {
            Attempt::Answer(Ok((heard, outcome))) => (outcome, Ok(heard)),
            Attempt::Answer(Err(error)) => {
                let _ = self.client.judge(&error);
                let reason = error.to_string();
                (Outcome::Unknown { reason: reason.clone() }, Err(reason))
            }
            Attempt::NoEffect(reason) => (Outcome::Refused { reason: reason.clone() }, Err(reason)),
            Attempt::Silence(reason) => (Outcome::Unknown { reason: reason.clone() }, Err(reason)),
        }
    }
}

/// Reads a turn, or the first pieces of it.
async fn listen(
    world: &Inner,
    mut stream: TurnStream,
    reply: Reply,
    leaves_after: Option<u32>,
) -> Result<(Heard, Outcome), Error> {
    let opening = stream.opening();
    let mut heard = Heard {
        text: String::new(),
        memories: opening.memories.clone(),
        turns_left_out: opening.turns_left_out,
        is_whole: false,
    };
    let mut outcome = Outcome::Unknown { reason: "the caller went away".to_owned() };
    let number = {
        let mut replies = world.replies();
        replies.push(reply);
        replies.len() - 1
    };
    let mut pieces = 0;
    while let Some(event) = stream.next().await {
        match event? {
            TurnEvent::Text(text) => {
                heard.text.push_str(&text);
                // Before the node may write it.
                if let Some(reply) = world.replies().get_mut(number) {
                    reply.text.clone_from(&heard.text);
                }
            }
            // Nobody offers tools here.
            TurnEvent::ToolCalls(_) => {}
            TurnEvent::Finished(finished) => {
                heard.is_whole = true;
                let added = finished.remembered.as_ref();
                let first = added.and_then(|added| Some((added.memories.first()?.id, added)));
                outcome = match first {
                    Some((id, added)) => Outcome::Added { id, version: added.version },
                    None => Outcome::Unknown { reason: "nothing was remembered".to_owned() },
                };
            }
        }
        pieces += 1;
        if leaves_after.is_some_and(|last| pieces >= last) {
            world.reach("chat.caller-left");
            break;
        }
    }
    Ok((heard, outcome))
}

impl Player {
    /// A turn that is remembered, at one node after the other until there is an answer.
    pub(super) async fn converse(&mut self, step: u64, scene: u32, said: Said) {
        let turns = self.talks.entry(scene).or_default();
        if turns.len() > TURNS_MAX {
            turns.drain(..TURNS_MAX / 2);
        }
        let turn = Turn { scene, turns: turns.clone(), said };
        let (client, operation) = (self.client, u64::from(self.client) << 24 | step);
        let count = u64::from(self.world.plan.nodes.max(1));
        for tries in 0..TRIES {
            let node = u32::try_from((u64::from(client) + tries) % count).unwrap_or(0);
            // What is said is different each time, so that it is known which try a prompt is of.
            let marker = format!("mk{step:06}t{tries}c{client}");
            let id = operation << TRIES_BITS | tries;
            let heard = self.cube.converse_once(node, id, marker.clone(), &turn).await;
            let Ok((message, heard, made)) = heard else { continue };
            if let Some(id) = made {
                self.known.push(Known { id, marker, revision: 1, is_frozen: false });
            }
            if heard.is_whole {
                let turns = self.talks.entry(scene).or_default();
                turns.push(message);
                turns.push(ChatTurn::new(Role::Assistant, heard.text));
            }
            return;
        }
    }
}
