//! One shard of the scheduler: follows the conversations that fall to it, and has their next turns
//! prepared.
//!
//! Receives: that something waits in its inbox; what thoughts find out, and their ends; its own
//! timers; questions about a conversation. Sends: thoughts to the background jobs, which ask cubes
//! through a reference that can only preload. Owns: what is known of its conversations.
//!
//! What waits stands in the inbox and not in the mailbox, so that it is bounded, and survives a
//! panic of this actor. What it knew of conversations does not: it is learned again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use memcube_schemas::{
    MemoryId, TenantId,
    limits::{PRELOAD_MS_MAX, SCENES_MAX, SCENES_PROMPT_BYTES_MAX, SCHEDULER_SHARDS},
    scene::{PreloadState, SceneEntry, SceneOutcome, SceneTimeline},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::{
    conversation::{Conversation, Found, Lesson, Thought},
    handle::Door,
    inbox::{Inbox, Input, SceneKey, Told},
    jobs::{Job, JobKind, JobsHandle},
    think::{Progress, Shared, Thinker},
};
use crate::{
    cube::{CubeKey, Preloader},
    defects::Defect,
    directory::{Cubes, Shared as Node},
    environment::Environment,
    inference::Cancel,
    metrics as names,
};

/// How long a thought that is over may take to put things back.
const STOPPED_WITHIN: Duration = Duration::from_millis(500);
/// Inputs after which other messages have their turn.
const INPUTS_AT_ONCE: usize = 64;
/// Conversations of one shard.
const SCENES_PER_SHARD_MAX: usize = SCENES_MAX / SCHEDULER_SHARDS;
/// Bytes of what was said in them.
const BYTES_PER_SHARD_MAX: usize = SCENES_PROMPT_BYTES_MAX / SCHEDULER_SHARDS;

pub(crate) enum ShardMessage {
    /// Something waits in the inbox.
    Wake,
    /// A conversation is due.
    Due(SceneKey),
    /// A thought has found out what may be needed.
    Found { scene: SceneKey, number: u64, found: Box<Found> },
    /// A thought has put memories in place, and goes on.
    Loaded { scene: SceneKey, number: u64, memories: Vec<(MemoryId, u32)> },
    /// A thought is over.
    Done { scene: SceneKey, entry: Box<SceneEntry> },
    /// Somebody asks what was done for a conversation.
    Timeline { scene: SceneKey, reply: oneshot::Sender<SceneTimeline> },
    /// Somebody asks what was done for all conversations.
    Timelines { reply: oneshot::Sender<Vec<(SceneKey, SceneTimeline)>> },
    /// A cube was deleted: what was said in it goes, too.
    Forget(CubeKey),
}

/// What a shard is started with.
#[derive(Clone)]
pub(crate) struct ShardArguments {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: Weak<Node>,
    pub(crate) jobs: JobsHandle,
    /// Where results of thoughts go, whichever actor stands behind it then.
    pub(crate) door: Arc<Door>,
}

pub(crate) struct ShardActor;

pub(crate) struct ShardState {
    arguments: ShardArguments,
    scenes: BTreeMap<SceneKey, Conversation>,
    /// For a planted bug: the tenant that was prepared for before.
    tenant_before: Option<TenantId>,
}

impl Actor for ShardActor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMessage>,
        arguments: ShardArguments,
    ) -> Result<ShardState, ActorProcessingErr> {
        arguments.door.open(myself.clone());
        // What an actor before this one has left behind.
        let _ = myself.cast(ShardMessage::Wake);
        Ok(ShardState { arguments, scenes: BTreeMap::new(), tenant_before: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<ShardMessage>,
        message: ShardMessage,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardMessage::Wake => state.take_in(&myself),
            ShardMessage::Due(scene) => state.think_if_due(&myself, &scene),
            ShardMessage::Found { scene, number, found } => {
                state.found(&scene, number, *found);
            }
            ShardMessage::Loaded { scene, number, memories } => {
                if let Some(conversation) = state.scenes.get_mut(&scene) {
                    conversation.loaded(number, memories);
                }
            }
            ShardMessage::Done { scene, entry } => state.done(&myself, &scene, *entry),
            ShardMessage::Timeline { scene, reply } => {
                let timeline = state.scenes.get(&scene).map(Conversation::timeline);
                // Whoever asked may have gone.
                let _ = reply.send(timeline.unwrap_or_default());
            }
            ShardMessage::Timelines { reply } => {
                let timelines = state.scenes.iter();
                let timelines = timelines.map(|(scene, known)| (scene.clone(), known.timeline()));
                let _ = reply.send(timelines.collect());
            }
            ShardMessage::Forget(cube) => state.scenes.retain(|scene, _| scene.cube != cube),
        }
        Ok(())
    }
}

impl ShardState {
    fn environment(&self) -> &Environment {
        &self.arguments.shared.environment
    }

    fn take_in(&mut self, myself: &ActorRef<ShardMessage>) {
        self.arguments.door.is_awake();
        for _ in 0..INPUTS_AT_ONCE {
            let Some(Input { scene, told }) = self.arguments.inbox.next() else { return };
            self.environment().reach("scheduler.event", scene.conversation.as_str());
            self.take_in_one(myself, &scene, told);
            self.arguments.inbox.done();
        }
        let _ = myself.cast(ShardMessage::Wake);
    }

    fn take_in_one(&mut self, myself: &ActorRef<ShardMessage>, scene: &SceneKey, told: Told) {
        let now_us = self.environment().monotonic_us();
        let at_ms = self.environment().unix_ms();
        let known = self.scenes.contains_key(scene);
        if !known && matches!(told, Told::Remembered(_) | Told::BrokeOff) {
            return;
        }
        let conversation =
            self.scenes.entry(scene.clone()).or_insert_with(|| Conversation::new(now_us));
        let lesson = match told {
            Told::Event(event) => {
                let name = event.kind.as_str();
                metrics::counter!(names::SCENE_EVENTS_TOTAL, "kind" => name).increment(1);
                conversation.event(&event, now_us);
                None
            }
            Told::Remembered(event) => {
                conversation.remembered(&event, now_us);
                None
            }
            Told::Begins => {
                conversation.begins(now_us);
                None
            }
            Told::BrokeOff => {
                conversation.broke_off(now_us);
                None
            }
            Told::Answered(turn) => Some(conversation.answered(&turn, now_us, at_ms)),
        };
        self.learn(scene, lesson);
        if !known {
            self.bound_scenes(scene);
        }
        self.think_if_due(myself, scene);
    }

    /// Forgets the conversations that were silent longest, as far as there are too many.
    fn bound_scenes(&mut self, newest: &SceneKey) {
        let mut bytes: usize = self.scenes.values().map(Conversation::prompt_bytes).sum();
        while self.scenes.len() > SCENES_PER_SHARD_MAX || bytes > BYTES_PER_SHARD_MAX {
            let others = self.scenes.iter().filter(|(scene, _)| *scene != newest);
            let oldest = others.min_by_key(|(scene, known)| (known.used_us, *scene));
            let Some(oldest) = oldest.map(|(scene, _)| scene.clone()) else { return };
            if let Some(gone) = self.scenes.remove(&oldest) {
                bytes -= gone.prompt_bytes();
            }
        }
    }

    fn learn(&self, scene: &SceneKey, lesson: Option<Lesson>) {
        let Some(lesson) = lesson else { return };
        count_outcome(&lesson.outcome);
        if let Some(log) = &self.arguments.shared.log {
            log.note(scene, &lesson, self.environment().unix_ms());
        }
        let Lesson { weighed, needed, .. } = lesson;
        let tenant = &scene.cube.tenant;
        let predictors = &self.arguments.shared.predictors;
        let mut is_due = false;
        for (weighed, is_typing) in weighed.iter().zip([false, true]) {
            is_due |= predictors.learn(tenant, &weighed.candidates, &needed, is_typing);
        }
        if is_due {
            let (shared, tenant) = (Arc::clone(&self.arguments.shared), tenant.clone());
            self.environment().spawn(async move {
                if let Err(error) = shared.predictors.write(&tenant).await {
                    tracing::debug!(%tenant, %error, "what was learned is written later");
                }
            });
        }
    }

    fn think_if_due(&mut self, myself: &ActorRef<ShardMessage>, scene: &SceneKey) {
        let environment = self.environment().clone();
        let now_us = environment.monotonic_us();
        let Some(conversation) = self.scenes.get_mut(scene) else { return };
        match conversation.due_in_us(now_us) {
            None => {}
            Some(0) => {
                if let Some(thought) = conversation.think(now_us, environment.unix_ms()) {
                    self.start(scene, thought);
                }
            }
            Some(wait_us) => {
                let key = scene.clone();
                // One that comes when nothing is due any more changes nothing.
                drop(myself.send_after(Duration::from_micros(wait_us), || ShardMessage::Due(key)));
            }
        }
    }

    fn start(&mut self, scene: &SceneKey, thought: Thought) {
        let Some(node) = self.arguments.node.upgrade() else { return };
        let CubeKey { tenant, cube } = scene.cube.clone();
        let mut prepared_for = tenant.clone();
        if self.environment().plants(Defect::PreloadForOther) {
            let before = self.tenant_before.replace(tenant.clone());
            prepared_for = before.unwrap_or(prepared_for);
        }
        let cubes = Cubes::from_shared(node);
        let preloader = Preloader::new(cubes.clone(), prepared_for, cube.clone());
        let shared = Arc::clone(&self.arguments.shared);
        let ending = Ending {
            door: Arc::clone(&self.arguments.door),
            scene: scene.clone(),
            entry: Some(SceneEntry {
                state: PreloadState::Failed,
                detail: Some("it was given up; see the log".to_owned()),
                ..SceneEntry::begun(thought.number, thought.at_ms, thought.reason)
            }),
        };
        let name = format!("{cube} {}", shared.next_serial());
        let mut ending = ending;
        let work = Box::new(move || {
            let work = async move {
                run(&shared, cubes, preloader, thought, &mut ending).await;
                Ok(())
            };
            Box::pin(work) as futures_util::future::BoxFuture<'static, _>
        });
        let job = Job {
            tenant: Some(tenant),
            cube: Some(cube),
            kind: JobKind::Preload,
            name,
            ms_max: PRELOAD_MS_MAX,
            work,
        };
        if let Err(error) = self.arguments.jobs.submit(job) {
            // Its end was told when the job was dropped.
            tracing::debug!(%error, "a preload found no place");
        }
    }

    fn found(&mut self, scene: &SceneKey, number: u64, found: Found) {
        let at_ms = self.environment().unix_ms();
        let Some(conversation) = self.scenes.get_mut(scene) else { return };
        let lesson = conversation.found(number, found, at_ms);
        self.learn(scene, lesson);
    }

    fn done(&mut self, myself: &ActorRef<ShardMessage>, scene: &SceneKey, entry: SceneEntry) {
        let (kind, state) = (entry.kind.as_str(), entry.state.as_str());
        metrics::counter!(names::PRELOADS_TOTAL, "kind" => kind, "state" => state).increment(1);
        if let Some(conversation) = self.scenes.get_mut(scene) {
            conversation.done(entry.number, entry);
        }
        self.think_if_due(myself, scene);
    }
}

/// Counts what a turn needed of what was prepared.
fn count_outcome(outcome: &SceneOutcome) {
    let SceneOutcome { hits, late, wasted, held, missed, saved_tokens, wasted_tokens } = outcome;
    let lists =
        [("hit", hits), ("late", late), ("wasted", wasted), ("held", held), ("missed", missed)];
    for (outcome, memories) in lists {
        metrics::counter!(names::PRELOADED_MEMORIES_TOTAL, "outcome" => outcome)
            .increment(memories.len() as u64);
    }
    metrics::counter!(names::PRELOAD_SAVED_TOKENS_TOTAL).increment(*saved_tokens);
    metrics::counter!(names::PRELOAD_WASTED_TOKENS_TOTAL).increment(*wasted_tokens);
}

/// Tells the shard that a thought is over, whatever becomes of the job.
struct Ending {
    door: Arc<Door>,
    scene: SceneKey,
    entry: Option<SceneEntry>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            let scene = self.scene.clone();
            self.door.tell(ShardMessage::Done { scene, entry: Box::new(entry) });
        }
    }
}

async fn run(
    shared: &Shared,
    cubes: Cubes,
    preloader: Preloader,
    mut thought: Thought,
    ending: &mut Ending,
) {
    let number = thought.number;
    let (key, door) = (ending.scene.clone(), Arc::clone(&ending.door));
    let (_, never) = oneshot::channel();
    let cancelled = std::mem::replace(&mut thought.cancelled, never);
    let tell = |progress: Progress| {
        let scene = key.clone();
        door.tell(match progress {
            Progress::Found(found) => ShardMessage::Found { scene, number, found },
            Progress::Loaded(memories) => ShardMessage::Loaded { scene, number, memories },
        });
    };
    let stop = Cancel::default();
    let thinker = Thinker { shared, cubes, key: &key, preloader, stop: stop.clone() };
    let mut thinking = std::pin::pin!(thinker.think(&mut thought, tell));
    tokio::select! {
        biased;
        _ = cancelled => {
            stop.set();
            // What is in the model's session by now goes back to where the turn looks for it.
            let _ = tokio::time::timeout(STOPPED_WITHIN, thinking).await;
            if shared.environment.plants(Defect::LeakedPreload) {
                std::future::pending::<()>().await;
            }
        }
        entry = &mut thinking => ending.entry = Some(entry),
    }
}
