//! The scheduler: what callers tell it, what it decides, what it did, and whether it still works.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use memcube_actors::{
    Cubes, Error, TenantContext,
    cube::{ChatRequest, ChatTurn, ConverseRequest, SearchRequest, TurnEvent, TurnStream},
    scheduler::{
        FollowedScene, SchedulerParts, SchedulerRules,
        jobs::JobKind,
        log::{DecisionLog, DecisionRecord},
    },
};
use memcube_schemas::{
    ConversationId, CubeId, NodeId, RequestId, TenantId,
    conversation::{ConversationEvent, ConversationEventKind, Role},
    limits::JOBS_WAITING_PER_TENANT_MAX,
    scene::{PreloadState, SceneTimeline},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Client, Cube, Inner, PROBER,
    chat::{Said, conversation, instructions},
    client::{Attempt, TRIES_BITS},
    node::RunningNode,
    script::{Known, Player},
    verdict::{PROBE_PATIENCE, millis},
};
use crate::{
    clock::START_UNIX_MS,
    evidence::{ChatRecord, Heard, Probe, QueueSample, SceneSample, Violation},
    history::{Call, Outcome},
    network::node_name,
    plan::Happening,
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
/// What distinguishes messages of turns and of events from those of other calls.
const OF_TURN: u64 = 1 << 60;
const OF_EVENT: u64 = 1 << 59;
/// How long a caller minds what becomes of its events.
const EVENTS_PATIENCE: Duration = Duration::from_secs(3);
/// Milliseconds between two pieces of what is typed.
const TYPES_EVERY_MS: u64 = 120;
/// By how much an event may come too late, in milliseconds.
const LATE_MS_MAX: u64 = 1_500;
/// How often what was done for conversations is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a node that runs may take to say it.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// Conversation of the probes.
const PROBED: u32 = 1_000;
/// How long after a turn its preload may take, at a node that nobody else asks anything.
const PREPARED_WITHIN: Duration = Duration::from_secs(10);

/// Writes decisions down as evidence.
struct Decisions(Weak<Inner>);

impl DecisionLog for Decisions {
    fn write(&self, record: DecisionRecord) {
        let Some(world) = self.0.upgrade() else { return };
        let outcome = &record.outcome;
        let lists = [
            ("scheduler.hit", &outcome.hits),
            ("scheduler.late", &outcome.late),
            ("scheduler.wasted", &outcome.wasted),
        ];
        for (point, memories) in lists {
            if !memories.is_empty() {
                world.reach(point);
            }
        }
        world.decisions().push(record);
    }
}

/// What a model said to a turn that was to be remembered, as far as it came: nobody but the node
/// may ever have known it.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) tenant: TenantId,
    pub(crate) cube: CubeId,
    pub(crate) text: String,
}

impl Inner {
    pub(super) fn decisions(&self) -> MutexGuard<'_, Vec<DecisionRecord>> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn scenes(&self) -> MutexGuard<'_, Vec<SceneSample>> {
        self.scenes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replies(&self) -> MutexGuard<'_, Vec<Reply>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the scheduler of a node is made of, if nodes have one.
    pub(super) fn scheduler_parts(self: &Arc<Self>) -> Option<SchedulerParts> {
        let plan = self.plan.scheduler.as_ref()?;
        let rules = SchedulerRules {
            tenant_tokens_per_minute: plan.tenant_tokens_per_minute,
            ..SchedulerRules::default()
        };
        Some(SchedulerParts { rules, log: Some(Arc::new(Decisions(Arc::downgrade(self)))) })
    }

    /// What was said for memory, by cube.
    pub(super) fn said_for_memory(&self) -> BTreeMap<(TenantId, CubeId), BTreeSet<String>> {
        let mut said: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for Reply { tenant, cube, text } in std::mem::take(&mut *self.replies()) {
            said.entry((tenant, cube)).or_default().insert(text.trim().to_owned());
        }
        said
    }

    /// Looks again and again at what was done for conversations. Never ends.
    pub(super) async fn sample_scenes(self: Arc<Self>) {
        loop {
            sleep(LOOK_EVERY).await;
            self.look_at_scenes(false).await;
        }
    }

    /// Looks at what was done for conversations, at all nodes that run.
    pub(super) async fn look_at_scenes(&self, at_rest: bool) {
        if self.plan.scheduler.is_none() {
            return;
        }
        for (node, running) in self.all_running() {
            let Some(scheduler) = running.cubes.scheduler() else { continue };
            // A node that stands still says nothing.
            let followed = timeout(LOOK_PATIENCE, scheduler.followed()).await;
            let Ok(Ok(followed)) = followed else { continue };
            let samples = followed.into_iter().map(|scene| self.sample(node, &running, scene));
            let samples: Vec<SceneSample> =
                samples.map(|sample| SceneSample { at_rest, ..sample }).collect();
            self.scenes().extend(samples);
            if at_rest {
                self.look_at_jobs(node, &running);
            }
        }
    }

    fn sample(&self, node: u32, running: &RunningNode, scene: FollowedScene) -> SceneSample {
        for entry in &scene.timeline.entries {
            match entry.state {
                PreloadState::Loaded => self.reach("scheduler.loaded"),
                PreloadState::Overtaken => self.reach("scheduler.overtaken"),
                PreloadState::Failed => self.reach("scheduler.failed"),
                PreloadState::Nothing => self.reach("scheduler.nothing"),
                PreloadState::Running => {}
            }
        }
        SceneSample {
            node: NodeId::new(node_name(node)).expect("invariant: node names are valid"),
            life: running.life,
            since_ms: running.since_ms,
            at_ms: self.conditions.now_ms(),
            at_rest: false,
            scene,
        }
    }

    /// Jobs for people, of every tenant. Upkeep goes on for ever, and is not looked at.
    fn look_at_jobs(&self, node: u32, running: &RunningNode) {
        let mut tenants: Vec<TenantId> =
            self.known_cubes().into_iter().map(|(tenant, _)| tenant).collect();
        tenants.dedup();
        for tenant in tenants {
            let status = running.cubes.jobs().status(Some(&tenant));
            let kinds = [JobKind::Preload, JobKind::Blocks];
            let counts = kinds.iter().filter_map(|kind| status.kinds.get(kind));
            let depth: u64 = counts.map(|counts| counts.waiting + counts.running).sum();
            let sample = QueueSample {
                node: NodeId::new(node_name(node)).expect("invariant: node names are valid"),
                queue: format!("jobs of {tenant}"),
                depth: usize::try_from(depth).unwrap_or(usize::MAX),
                bound: 2 * JOBS_WAITING_PER_TENANT_MAX,
                at_ms: self.conditions.now_ms(),
                at_rest: true,
            };
            self.queues.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        }
    }

    /// A turn at every node, whose successor each has to prepare soon, whatever crashed before.
    pub(super) async fn probe_schedulers(
        self: &Arc<Self>,
        tenant: &TenantId,
        cube: &CubeId,
    ) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (node, _) in self.all_running() {
            let what = format!("a turn and its successor prepared at node-{node}");
            let start = Instant::now();
            let (mut took_ms, mut error) = (None, None);
            while took_ms.is_none() && start.elapsed() < PROBE_PATIENCE {
                match self.probe_scheduler(tenant, cube, node).await {
                    Ok(()) => took_ms = Some(millis(start.elapsed())),
                    Err(reason) => {
                        error = Some(reason);
                        sleep(Duration::from_millis(200)).await;
                    }
                }
            }
            let (tenant, cube) = (tenant.clone(), cube.clone());
            probes.push(Probe { tenant, cube, what, took_ms, error });
        }
        probes
    }

    async fn probe_scheduler(
        self: &Arc<Self>,
        tenant: &TenantId,
        cube: &CubeId,
        node: u32,
    ) -> Result<(), String> {
        let client = self.client(PROBER, tenant.as_str()).map_err(|error| error.to_string())?;
        let said = Said {
            preamble: instructions(1),
            question: "what about topic1?".to_owned(),
            recalls: true,
            leaves_after: None,
        };
        let scene = PROBED + node;
        let running = self.running(node).ok_or("the node does not run")?;
        let before = timeline(&running, tenant, cube, scene).await?;
        let before = before.entries.iter().map(|entry| entry.number).max().unwrap_or(0);
        // Two at once: the second overtakes what is prepared for it.
        let mut turns = Vec::new();
        for _ in 0..2 {
            let number = self.next_operation();
            let marker = format!("mk{:06}q{node}c{PROBER}", number & 0xff_ffff);
            let turn = Turn { scene, turns: turns.clone(), said: said.clone() };
            let cube = client.cube(cube.clone());
            let (message, heard, _) =
                cube.converse_once(node, number << TRIES_BITS, marker, &turn).await?;
            turns.push(message);
            turns.push(ChatTurn::new(Role::Assistant, heard.text));
        }
        let start = Instant::now();
        loop {
            let now = timeline(&running, tenant, cube, scene).await?;
            let newest = now.entries.last().filter(|entry| entry.number > before);
            match newest.map(|entry| entry.state) {
                Some(PreloadState::Loaded | PreloadState::Nothing | PreloadState::Failed) => {
                    return Ok(());
                }
                Some(PreloadState::Running | PreloadState::Overtaken) | None => {}
            }
            if start.elapsed() > PREPARED_WITHIN {
                return Err(format!("nothing was prepared after entry {before}: {newest:?}"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What a node did for a conversation itself, whoever owns the cube.
async fn timeline(
    running: &RunningNode,
    tenant: &TenantId,
    cube: &CubeId,
    scene: u32,
) -> Result<SceneTimeline, String> {
    let scheduler = running.cubes.scheduler().ok_or("the node has no scheduler")?;
    let name = conversation(scene).ok_or("no conversation has this name")?;
    let followed = scheduler.followed().await.map_err(|error| error.to_string())?;
    let is_it = |known: &FollowedScene| {
        known.tenant == *tenant && known.cube == *cube && known.conversation == name
    };
    Ok(followed.into_iter().find(is_it).map(|known| known.timeline).unwrap_or_default())
}

/// A turn and what was said before.
struct Turn {
    scene: u32,
    turns: Vec<ChatTurn>,
    said: Said,
}

impl Cube {
    /// Says something once, at one node, to be remembered; returns what was said and heard, and the
    /// memory that it became.
    async fn converse_once(
        &self,
        node: u32,
        id: u64,
        marker: String,
        turn: &Turn,
    ) -> Result<(ChatTurn, Heard, Option<memcube_schemas::MemoryId>), String> {
        let Turn { scene, turns, said } = turn;
        let Said { preamble, question, leaves_after, .. } = said.clone();
        let text = format!("{marker} {question}");
        let message = ChatTurn::new(Role::User, text.clone());
        let Client { world, number: client, context } = &self.client;
        let tenant = context.tenant().clone();
        let record = ChatRecord {
            tenant: tenant.clone(),
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
        let conversation = conversation(*scene).ok_or("no conversation has this name")?;
        let search = SearchRequest { top_k: RECALLED, ..SearchRequest::new(question) };
        let request = ChatRequest {
            preamble,
            turns: turns.clone(),
            recall: Some(search),
            tokens_max: REPLY_TOKENS_MAX,
            ms_max: TURN_MS_MAX,
            ..ChatRequest::new(conversation, text)
        };
        let (cube, seen) = (self.id.clone(), Arc::clone(world));
        let work = move |cubes: Cubes,
                         context: TenantContext|
              -> BoxFuture<'static, Result<(Heard, Outcome), Error>> {
            let cube = cubes.cube(&context, cube.clone());
            let reply = Reply {
                tenant: context.tenant().clone(),
                cube: cube.id().clone(),
                text: String::new(),
            };
            let (seen, request) = (Arc::clone(&seen), ConverseRequest::new(request.clone()));
            Box::pin(async move {
                let stream = cube.converse(request).await?;
                listen(&seen, stream, reply, leaves_after).await
            })
        };
        let answered = match self.client.attempt(node, id | OF_TURN, &work).await {
            Attempt::Answer(Ok(answered)) => Ok(answered),
            Attempt::Answer(Err(error)) => {
                let _ = self.client.judge(&error);
                Err((Outcome::Unknown { reason: error.to_string() }, error.to_string()))
            }
            Attempt::NoEffect(reason) => Err((Outcome::Refused { reason: reason.clone() }, reason)),
            Attempt::Silence(reason) => Err((Outcome::Unknown { reason: reason.clone() }, reason)),
        };
        let (outcome, heard) = match answered {
            Ok((heard, outcome)) => (outcome, Ok(heard)),
            Err((outcome, reason)) => (outcome, Err(reason)),
        };
        let made = match &outcome {
            Outcome::Added { id, .. } => Some(*id),
            _ => None,
        };
        self.answer(operation, outcome);
        world.end_chat(*client, chat, heard.clone());
        heard.map(|heard| (message, heard, made))
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
        let wrong_ms = self.world.dice.fork("notes", operation).below("wrong", 0, 3_000);
        let at_ms = self.world.unix_ms(wrong_ms) - 1_500;
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
