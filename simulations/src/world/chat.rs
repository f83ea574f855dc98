//! Chats: turns of conversations, what is computed ahead for them, and what takes away the memories
//! that they contain.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use memcube_actors::{
    Cubes, Error, TenantContext,
    cube::{
        AddRequest, ChatRequest, ChatStream, ChatTurn, PreloadRequest, SearchRequest, UpdateRequest,
    },
    inference::{ReplyEvent, Reuse, activation_cache::Tier},
};
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    conversation::{Message, Role},
    memory::MemoryStatus,
};
use tokio::time::{Instant, sleep};

use super::{
    CallError, Client, Cube, Inner, PROBER,
    client::{Attempt, TRIES_BITS},
    script::{Known, Player},
    verdict::{PROBE_PATIENCE, millis},
};
use crate::{
    evidence::{ChatRecord, Heard, Probe},
    history::Moment,
};

/// Nodes that are tried with a turn.
const TRIES: u64 = 3;
/// How long a turn or a preload may take.
const CHAT_MS_MAX: u64 = 6_000;
/// Tokens of a reply.
const REPLY_TOKENS_MAX: usize = 24;
/// Memories that a turn looks for.
const RECALLED: usize = 5;
/// Turns that a caller still sends; then the oldest are forgotten.
const TURNS_MAX: usize = 14;
/// What distinguishes the operations that belong to one step of a script.
const OF_TURN: u64 = 1 << 23;
const OF_ERASE: u64 = 1 << 22;
/// What distinguishes messages of chats from those of other calls.
const OF_CHAT: u64 = 1 << 61;
/// How often making a cube anew is tried.
const MAKE_TRIES: u32 = 4;

/// What is said in a turn, but for its marker.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) preamble: String,
    pub(super) question: String,
    pub(super) recalls: bool,
    pub(super) leaves_after: Option<u32>,
}

/// The name of a conversation: what is said in it and what is remembered of it share it.
pub(super) fn conversation(scene: u32) -> Option<ConversationId> {
    ConversationId::new(format!("scene {scene}")).ok()
}

/// Instructions that everybody uses: none, or enough for several blocks.
pub(super) fn instructions(number: u32) -> String {
    let rule =
        |rule: u32| format!("Rule {number}.{rule}: be kind, be brief, and tell the truth.\n");
    (0..number * 14).map(rule).collect()
}

impl Inner {
    pub(super) fn chats(&self) -> MutexGuard<'_, Vec<ChatRecord>> {
        self.chats.lock().expect("invariant: nothing panics while it holds the chats")
    }

    pub(super) fn erased(&self) -> MutexGuard<'_, Vec<(TenantId, CubeId, Moment)>> {
        self.erased.lock().expect("invariant: nothing panics while it holds what was erased")
    }

    pub(super) fn begin_chat(&self, client: u32, record: ChatRecord) -> usize {
        let what = format_args!("{}/{} {}", record.tenant, record.cube, record.message.text);
        self.conditions.note(&format!("c{client}"), "chats", what);
        let mut chats = self.chats();
        chats.push(record);
        chats.len() - 1
    }

    pub(super) fn end_chat(&self, client: u32, number: usize, heard: Result<Heard, String>) {
        let what = format!("chat #{number} {heard:?}");
        self.conditions.note(&format!("c{client}"), "hears", what);
        let moment = self.moment();
        if let Some(record) = self.chats().get_mut(number) {
            record.returned = Some(moment);
            record.heard = heard.ok();
        }
    }

    /// Makes the cubes anew that were left deleted.
    pub(super) async fn make_erased(self: &Arc<Self>) {
        let mut erased: Vec<(TenantId, CubeId)> =
            self.plan.models.then(|| self.known_cubes()).into_iter().flatten().collect();
        erased.dedup();
        for (tenant, cube) in erased {
            if let Ok(client) = self.client(PROBER, tenant.as_str()) {
                make(&client, cube.as_str()).await;
            }
        }
    }

    /// A turn at every node, which has to be answered soon.
    pub(super) async fn probe_models(
        self: &Arc<Self>,
        tenant: &TenantId,
        cube: &CubeId,
    ) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (node, _) in self.all_running() {
            let what = format!("chat at node-{node}");
            let (tenant, cube) = (tenant.clone(), cube.clone());
            let start = Instant::now();
            let mut error = None;
            let mut took_ms = None;
            while took_ms.is_none() && start.elapsed() < PROBE_PATIENCE {
                let answer = self.probe_model(&tenant, &cube, node).await;
                match answer {
                    Ok(()) => took_ms = Some(millis(start.elapsed())),
                    Err(reason) => {
                        error = Some(reason);
                        sleep(Duration::from_millis(200)).await;
                    }
                }
            }
            probes.push(Probe { tenant, cube, what, took_ms, error });
        }
        probes
    }

    async fn probe_model(
        self: &Arc<Self>,
        tenant: &TenantId,
        cube: &CubeId,
        node: u32,
    ) -> Result<(), String> {
        let client = self.client(PROBER, tenant.as_str()).map_err(|error| error.to_string())?;
        let number = self.next_operation();
        let said = Said {
            preamble: instructions(1),
            question: "what about topic0?".to_owned(),
            recalls: true,
            leaves_after: None,
        };
        let marker = format!("mk{:06}p{node}c{PROBER}", number & 0xff_ffff);
        let turn = Turn { scene: 0, turns: Vec::new(), said };
        client
            .cube(cube.clone())
            .chat_once(node, number << TRIES_BITS, marker, &turn)
            .await
            .map(|_| ())
    }
}

/// A turn and what was said before.
struct Turn {
    scene: u32,
    turns: Vec<ChatTurn>,
    said: Said,
}

impl Cube {
    /// Says something once, at one node; returns what was said and heard.
    async fn chat_once(
        &self,
        node: u32,
        id: u64,
        marker: String,
        turn: &Turn,
    ) -> Result<(ChatTurn, Heard), String> {
        let Turn { scene, turns, said } = turn;
        let Said { preamble, question, recalls, leaves_after } = said.clone();
        let text = format!("{marker} {question}");
        let message = ChatTurn::new(Role::User, text.clone());
        let Client { world, number: client, context } = &self.client;
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
        let number = world.begin_chat(*client, record);
        let conversation = conversation(*scene).ok_or("no conversation has this name")?;
        let search = SearchRequest { top_k: RECALLED, ..SearchRequest::new(question) };
        let request = ChatRequest {
            preamble,
            turns: turns.clone(),
            recall: recalls.then_some(search),
            tokens_max: REPLY_TOKENS_MAX,
            ms_max: CHAT_MS_MAX,
            ..ChatRequest::new(conversation, text)
        };
        let (cube, seen) = (self.id.clone(), Arc::clone(world));
        let work = move |cubes: Cubes,
                         context: TenantContext|
              -> futures_util::future::BoxFuture<'static, Result<Heard, Error>> {
            let (request, cube) = (request.clone(), cubes.cube(&context, cube.clone()));
            let seen = Arc::clone(&seen);
            Box::pin(async move { listen(&seen, cube.chat(request).await?, leaves_after).await })
        };
        let heard = match self.client.attempt(node, id | OF_CHAT, &work).await {
            Attempt::Answer(Ok(heard)) => Ok(heard),
            Attempt::Answer(Err(error)) => {
                let _ = self.client.judge(&error);
                Err(error.to_string())
            }
            Attempt::NoEffect(reason) | Attempt::Silence(reason) => Err(reason),
        };
        world.end_chat(*client, number, heard.clone());
        heard.map(|heard| (message, heard))
    }

    /// Says something, at one node after the other until there is an answer.
    async fn chat_as(&self, operation: u64, step: u64, turn: &Turn) -> Option<(ChatTurn, Heard)> {
        let count = u64::from(self.client.world.plan.nodes.max(1));
        for tries in 0..TRIES {
            let client = self.client.number;
            let node = u32::try_from((u64::from(client) + tries) % count).unwrap_or(0);
            // What is said is different each time, so that it is known which try a prompt is of.
            let marker = format!("mk{step:06}t{tries}c{client}");
            let id = operation << TRIES_BITS | tries;
            if let Ok(heard) = self.chat_once(node, id, marker, turn).await {
                return Some(heard);
            }
        }
        None
    }
}

/// Reads a reply, or the first pieces of it.
async fn listen(
    world: &Inner,
    mut stream: ChatStream,
    leaves_after: Option<u32>,
) -> Result<Heard, Error> {
    let opening = stream.opening();
    let mut heard = Heard {
        text: String::new(),
        memories: opening.memories.clone(),
        turns_left_out: opening.turns_left_out,
        is_whole: false,
    };
    let mut pieces = 0;
    while let Some(event) = stream.next().await {
        match event? {
            ReplyEvent::Text(text) => heard.text.push_str(&text),
            // Nobody offers tools here.
            ReplyEvent::ToolCalls(_) => {}
            ReplyEvent::Finished(finished) => {
                heard.is_whole = true;
                reach_reuse(world, &finished.reuse);
            }
        }
        pieces += 1;
        if leaves_after.is_some_and(|last| pieces >= last) {
            world.reach("chat.caller-left");
            break;
        }
    }
    Ok(heard)
}

fn reach_reuse(world: &Inner, reuse: &Reuse) {
    for tier in reuse.reused_tokens.keys() {
        world.reach(match tier {
            Tier::Device => "chat.reused-from-device",
            Tier::Ram => "chat.reused-from-ram",
            Tier::Disk => "chat.reused-from-disk",
            Tier::Objects => "chat.reused-from-objects",
            Tier::Remote => "chat.reused-elsewhere",
        });
    }
    if reuse.corrupt_blocks > 0 {
        world.reach("chat.block-damaged");
    }
    if reuse.inexact_tokens > 0 {
        world.reach("chat.reused-in-8-bits");
    }
}

/// Makes a cube, unless it is there.
async fn make(client: &Client, cube: &str) {
    for _ in 0..MAKE_TRIES {
        match client.make_cube(cube).await {
            Ok(_) | Err(CallError::Refused(_)) => return,
            Err(CallError::Unreachable(_) | CallError::Unknown(_)) => {}
        }
    }
}

impl Player {
    /// A turn: says something, hears the answer, and remembers what was said.
    pub(super) async fn chat(&mut self, operation: u64, step: u64, scene: u32, said: Said) {
        let turns = self.talks.entry(scene).or_default();
        if turns.len() > TURNS_MAX {
            turns.drain(..TURNS_MAX / 2);
        }
        let turn = Turn { scene, turns: turns.clone(), said };
        let Some((message, heard)) = self.cube.chat_as(operation, step, &turn).await else {
            return;
        };
        if !heard.is_whole {
            return;
        }
        let request = AddRequest {
            messages: vec![Message {
                role: Role::User,
                speaker: None,
                content: message.text.clone(),
                chat_time: None,
                message_id: None,
            }],
            conversation: conversation(scene),
            ..AddRequest::default()
        };
        let text = message.text.clone();
        let added = self.cube.add_as(request, operation | OF_TURN, &text).await;
        if let (Ok(id), Some(marker)) = (added, crate::marker::word_of(&text)) {
            self.known.push(Known { id, marker, revision: 1, is_frozen: false });
        }
        let turns = self.talks.entry(scene).or_default();
        turns.push(message);
        turns.push(ChatTurn::new(Role::Assistant, heard.text));
    }

    /// Lets the next turn of a conversation be computed ahead, with some memories.
    pub(super) async fn preload(&self, operation: u64, scene: u32, pick: u64) {
        let Some(conversation) = conversation(scene) else { return };
        let picks = [pick, pick.rotate_left(16), pick.rotate_left(32)];
        let mut memories: Vec<MemoryId> =
            picks.iter().filter_map(|pick| self.picked(*pick)).map(|known| known.id).collect();
        memories.sort();
        memories.dedup();
        let request = PreloadRequest {
            conversation,
            preamble: instructions(scene % 3),
            turns: self.talks.get(&scene).cloned().unwrap_or_default(),
            memories,
            ms_max: CHAT_MS_MAX,
        };
        let preloaded = self
            .cube
            .call(operation, false, move |cube| {
                let request = request.clone();
                Box::pin(async move { cube.preload(request).await.map(|_| ()) })
            })
            .await;
        if preloaded.is_ok() {
            self.world.reach("chat.preloaded");
        }
    }

    /// Freezes an item, or lets it thaw: in either case it has another revision then.
    pub(super) async fn freeze(&mut self, operation: u64, pick: u64) {
        let Some(Known { id, marker, revision, is_frozen }) = self.picked(pick) else { return };
        let (id, marker, revision) = (*id, marker.clone(), *revision);
        let status = if *is_frozen { MemoryStatus::Activated } else { MemoryStatus::Frozen };
        let request = UpdateRequest {
            status: Some(status),
            expected_revision: Some(revision),
            ..UpdateRequest::default()
        };
        let changed = self.cube.change_as(id, marker.clone(), request, operation).await;
        self.known.retain(|known| known.id != id);
        if let Ok(item) = changed {
            let (revision, is_frozen) = (item.revision, item.status == MemoryStatus::Frozen);
            self.known.push(Known { id, marker, revision, is_frozen });
        }
    }

    /// Deletes the cube, and makes it anew.
    pub(super) async fn erase(&mut self, operation: u64) {
        let erased = self
            .cube
            .call(operation | OF_ERASE, false, |cube| Box::pin(async move { cube.erase().await }))
            .await;
        let (tenant, cube) = (self.cube.client.context.tenant().clone(), self.cube.id.clone());
        if erased.is_ok() {
            self.world.reach("chat.cube-erased");
            let moment = self.world.moment();
            self.world.erased().push((tenant, cube.clone(), moment));
        }
        make(&self.cube.client, cube.as_str()).await;
        self.known.clear();
    }
}
