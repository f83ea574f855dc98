//! The front door of the scheduler of a node.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use memcube_schemas::{
    ConversationId, CubeId, TenantId,
    conversation::ConversationEvent,
    limits::{
        EVENTS_WAITING_MAX, EVENTS_WAITING_PER_TENANT_MAX,
        PRELOAD_TENANT_TOKENS_PER_MINUTE_DEFAULT, PRELOAD_TOKENS_DEFAULT, SCHEDULER_SHARDS,
    },
    scene::SceneTimeline,
};
use ractor::{Actor, ActorRef};
use tokio::sync::oneshot;

use super::{
    actor::{ShardArguments, ShardMessage},
    inbox::{AnsweredTurn, Inbox, Input, SceneKey, Told, Waiting},
    jobs::JobsHandle,
    log::DecisionLog,
    predictors::{PredictorView, Predictors},
    supervisor::Supervisor,
    think::Shared,
};
use crate::{
    cube::CubeKey,
    directory::{QueueDepth, Shared as Node},
    environment::Environment,
    error::{Error, Result},
    metrics as names,
    storage::SharedStore,
};

/// How much is prepared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SchedulerRules {
    /// Tokens of memories that one preload adds to a context.
    pub tokens_max: usize,
    /// Bytes of keys and values that they may take.
    pub bytes_max: u64,
    /// Tokens that are computed ahead for one tenant in a minute; 0 for any number.
    pub tenant_tokens_per_minute: u64,
    /// What a token that is computed in vain costs, against one that somebody would have waited
    /// for: from 0 to 1.
    pub waste: f64,
}

impl Default for SchedulerRules {
    fn default() -> Self {
        Self {
            tokens_max: PRELOAD_TOKENS_DEFAULT,
            bytes_max: 256 << 20,
            tenant_tokens_per_minute: PRELOAD_TENANT_TOKENS_PER_MINUTE_DEFAULT,
            waste: 0.05,
        }
    }
}

/// What a node's scheduler is made of.
#[derive(Clone, Default)]
pub struct SchedulerParts {
    /// How much is prepared.
    pub rules: SchedulerRules,
    /// Where decisions are written down, if anywhere.
    pub log: Option<Arc<dyn DecisionLog>>,
}

/// A conversation that a node follows, and what was done for it.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowedScene {
    /// Whose.
    pub tenant: TenantId,
    /// Of which cube.
    pub cube: CubeId,
    /// Which.
    pub conversation: ConversationId,
    /// What was done for it.
    pub timeline: SceneTimeline,
}

/// The way to the actor of a shard, whichever it is now.
#[derive(Debug, Default)]
pub(crate) struct Door {
    actor: Mutex<Option<ActorRef<ShardMessage>>>,
    /// Whether it was told that something waits, and has not looked since.
    is_called: AtomicBool,
}

impl Door {
    pub(crate) fn open(&self, actor: ActorRef<ShardMessage>) {
        *self.actor.lock().unwrap_or_else(PoisonError::into_inner) = Some(actor);
        self.is_called.store(true, Ordering::Release);
    }

    /// The actor looks into its inbox.
    pub(crate) fn is_awake(&self) {
        self.is_called.store(false, Ordering::Release);
    }

    /// Tells the actor that something waits, unless it was told so before.
    fn call(&self) {
        if !self.is_called.swap(true, Ordering::AcqRel) {
            self.tell(ShardMessage::Wake);
        }
    }

    /// Tells the actor something. One that is gone hears nothing, and its successor asks again.
    pub(crate) fn tell(&self, message: ShardMessage) {
        let actor = self.actor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let _ = actor.map(|actor| actor.cast(message));
    }
}

struct Shard {
    inbox: Arc<Inbox>,
    door: Arc<Door>,
}

/// The front door of the scheduler of a node. Cheap to clone.
#[derive(Clone)]
pub struct SchedulerHandle {
    shards: Arc<Vec<Shard>>,
    waiting: Arc<Waiting>,
    shared: Arc<Shared>,
    supervisor: ActorRef<()>,
}

impl std::fmt::Debug for SchedulerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SchedulerHandle({} shards)", self.shards.len())
    }
}

impl SchedulerHandle {
    pub(crate) async fn start(
        node: Weak<Node>,
        store: SharedStore,
        environment: Environment,
        jobs: JobsHandle,
        parts: SchedulerParts,
    ) -> Result<Self> {
        let SchedulerParts { rules, log } = parts;
        let waiting = Arc::new(Waiting::default());
        let predictors = Predictors::new(store, environment.clone());
        let shared = Arc::new(Shared::new(environment.clone(), rules, predictors, log));
        let shard = || Shard {
            inbox: Arc::new(Inbox::new(Arc::clone(&waiting), environment.clone())),
            door: Arc::default(),
        };
        let shards: Arc<Vec<Shard>> = Arc::new((0..SCHEDULER_SHARDS).map(|_| shard()).collect());
        let arguments = |shard: &Shard| ShardArguments {
            inbox: Arc::clone(&shard.inbox),
            shared: Arc::clone(&shared),
            node: Weak::clone(&node),
            jobs: jobs.clone(),
            door: Arc::clone(&shard.door),
        };
        let arguments: Vec<ShardArguments> = shards.iter().map(arguments).collect();
        let (supervisor, _) = Supervisor::spawn(None, Supervisor, arguments)
            .await
            .map_err(|error| Error::internal(format!("the scheduler did not start: {error}")))?;
        Ok(Self { shards, waiting, shared, supervisor })
    }

    fn shard(&self, scene: &SceneKey) -> &Shard {
        let SceneKey { cube, conversation } = scene;
        let parts = [cube.tenant.as_str(), cube.cube.as_str(), conversation.as_str()];
        // FNV-1a: the same on every node and in every run.
        let hash = parts
            .iter()
            .flat_map(|part| part.bytes().chain([0]))
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        &self.shards[(hash % self.shards.len() as u64) as usize]
    }

    fn put(&self, input: Input) -> Result<()> {
        let shard = self.shard(&input.scene);
        let put = shard.inbox.push(input);
        if put.is_err() {
            metrics::counter!(names::SCENE_EVENTS_REFUSED_TOTAL).increment(1);
        }
        shard.door.call();
        put
    }

    /// Something happened in a conversation.
    ///
    /// # Errors
    /// `Overloaded` when too much waits.
    pub(crate) fn note(&self, cube: &CubeKey, event: ConversationEvent) -> Result<()> {
        let scene = SceneKey { cube: cube.clone(), conversation: event.conversation.clone() };
        self.put(Input { scene, told: Told::Event(event) })
    }

    /// A model begins to answer a turn. Without a place in the queue that is not told: it saves
    /// work and no more.
    pub(crate) fn begins(&self, scene: &SceneKey) {
        let _ = self.put(Input { scene: scene.clone(), told: Told::Begins });
    }

    /// A model has answered a turn. Without a place in the queue nothing is prepared for the next.
    pub(crate) fn answered(&self, scene: &SceneKey, turn: AnsweredTurn) {
        let told = Told::Answered(Box::new(turn));
        let _ = self.put(Input { scene: scene.clone(), told });
    }

    /// The answer to a turn broke off.
    pub(crate) fn broke_off(&self, scene: &SceneKey) {
        let _ = self.put(Input { scene: scene.clone(), told: Told::BrokeOff });
    }

    /// Something was remembered of a conversation.
    pub(crate) fn remembered(&self, cube: &CubeKey, event: ConversationEvent) {
        let scene = SceneKey { cube: cube.clone(), conversation: event.conversation.clone() };
        let _ = self.put(Input { scene, told: Told::Remembered(event) });
    }

    /// A cube was deleted.
    pub(crate) fn forget(&self, cube: &CubeKey) {
        for shard in self.shards.iter() {
            shard.door.tell(ShardMessage::Forget(cube.clone()));
        }
    }

    /// What was done for a conversation on this node.
    ///
    /// # Errors
    /// `Unavailable` while the shard is started anew.
    pub(crate) async fn timeline(&self, scene: SceneKey) -> Result<SceneTimeline> {
        let (reply, answer) = oneshot::channel();
        let shard = self.shard(&scene);
        shard.door.tell(ShardMessage::Timeline { scene, reply });
        answer.await.map_err(|_| starting_anew())
    }

    /// What a tenant's predictor has learned.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read.
    pub async fn predictor(&self, tenant: &TenantId) -> Result<PredictorView> {
        self.shared.predictors.view(tenant).await
    }

    /// Forgets all that was learned for a tenant.
    ///
    /// # Errors
    /// `Unavailable`; `Conflict` when it keeps changing.
    pub async fn reset_predictor(&self, tenant: &TenantId) -> Result<PredictorView> {
        self.shared.predictors.reset(tenant).await
    }

    /// What was done for all conversations that this node follows. For tests and simulations: it
    /// copies them.
    ///
    /// # Errors
    /// As `CubeHandle::scenes`.
    pub async fn followed(&self) -> Result<Vec<FollowedScene>> {
        let mut followed = Vec::new();
        for shard in self.shards.iter() {
            let (reply, answer) = oneshot::channel();
            shard.door.tell(ShardMessage::Timelines { reply });
            let timelines = answer.await.map_err(|_| starting_anew())?;
            followed.extend(timelines.into_iter().map(|(scene, timeline)| {
                let SceneKey { cube: CubeKey { tenant, cube }, conversation } = scene;
                FollowedScene { tenant, cube, conversation, timeline }
            }));
        }
        Ok(followed)
    }

    /// How full its queue is.
    #[must_use]
    pub fn queue(&self) -> QueueDepth {
        let depth = self.waiting.depth();
        QueueDepth { name: "events for the scheduler", depth, bound: EVENTS_WAITING_MAX }
    }

    /// How full it is of events of the tenant of which most wait.
    #[must_use]
    pub fn queue_of_busiest_tenant(&self) -> QueueDepth {
        let (depth, bound) = (self.waiting.depth_of_busiest(), EVENTS_WAITING_PER_TENANT_MAX);
        QueueDepth { name: "events of one tenant for the scheduler", depth, bound }
    }

    pub(crate) fn kill(&self) {
        self.supervisor.kill();
        for shard in self.shards.iter() {
            shard.door.kill();
        }
    }

    /// Ends its actors, and writes what was learned.
    pub(crate) async fn stop(&self) {
        // One that is gone already has nothing left to end.
        let _ = self.supervisor.stop_and_wait(None, None).await;
        self.shared.predictors.write_all().await;
    }
}

fn starting_anew() -> Error {
    Error::unavailable("the scheduler is starting anew; ask again")
}

impl Door {
    fn kill(&self) {
        let actor = self.actor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(actor) = actor {
            actor.kill();
        }
    }
}
