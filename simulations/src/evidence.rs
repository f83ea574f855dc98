//! What the checkers judge: the callers' history beside what really happened in the store.

use std::collections::{BTreeMap, BTreeSet};

use memcube_actors::{
    cube::{ChatTurn, UsedMemory},
    feed::FeedEvent,
    inference::{Token, activation_cache::Holding, scripted::Slot},
    scheduler::{FollowedScene, log::DecisionRecord},
    storage::{Check, CommitToken, Mutation, versionstamped_key},
};
use memcube_schemas::{
    CubeId, Incarnation, NodeId, Stamp, TenantId, Version, activation::ModelFingerprint,
};
use serde::Serialize;

use crate::history::{History, Moment};

/// A commit that took effect in the state store, as the store saw it. A commit that was sent again
/// under the same token is there once.
#[derive(Debug, Clone)]
pub struct CommitRecord {
    /// The version it made.
    pub version: Version,
    /// Its place among the commits that share this version.
    pub place: u16,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// Which node sent it.
    pub node: NodeId,
    /// In which life of the node.
    pub incarnation: Incarnation,
    /// Its token.
    pub token: CommitToken,
    /// Its conditions.
    pub checks: Vec<Check>,
    /// What it wrote.
    pub mutations: Vec<Mutation>,
}

impl CommitRecord {
    /// The key that its stamped mutation with this number wrote.
    pub(crate) fn stamped_key(&self, prefix: &[u8], position: usize) -> Vec<u8> {
        let mut key = versionstamped_key(prefix, self.version, position);
        let place = prefix.len() + size_of::<u64>();
        key[place..place + size_of::<u16>()].copy_from_slice(&self.place.to_be_bytes());
        key
    }
}

/// A key's value, and the version of the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The commit.
    pub version: Version,
    /// The value, still in its envelope.
    pub value: Vec<u8>,
}

/// What happened to an object in the bucket of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEvent {
    /// When: simulated milliseconds.
    pub at_ms: u64,
    /// Where it lies.
    pub path: String,
    /// How many bytes it has since then; `None` if it is gone.
    pub bytes: Option<u64>,
}

/// How full a queue was when somebody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSample {
    /// Which node.
    pub node: NodeId,
    /// Which queue.
    pub queue: String,
    /// How many waited.
    pub depth: usize,
    /// How many may.
    pub bound: usize,
    /// When: simulated milliseconds.
    pub at_ms: u64,
    /// Whether everything was over by then, so that nobody should wait any more.
    pub at_rest: bool,
}

/// What became of a probe after all faults were healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// On behalf of whom.
    pub tenant: TenantId,
    /// Which cube was asked.
    pub cube: CubeId,
    /// What was asked.
    pub what: String,
    /// How long it took, retries included, or `None` if it never worked.
    pub took_ms: Option<u64>,
    /// The last error.
    pub error: Option<String>,
}

/// The cube as it was served after the heal.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedCube {
    /// All items that `list` returned, in their order.
    pub items: Vec<memcube_schemas::memory::MemoryItem>,
    /// The manifest's version at that time.
    pub version: Version,
    /// For every recalled item: whether a search for its marker found it.
    pub found: BTreeMap<memcube_schemas::MemoryId, bool>,
}

/// One try of a turn of a chat. Its message is that of no other try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatRecord {
    /// On behalf of whom.
    pub tenant: TenantId,
    /// The cube that was asked.
    pub cube: CubeId,
    /// The instructions.
    pub preamble: String,
    /// What was said before.
    pub turns: Vec<ChatTurn>,
    /// What was said now.
    pub message: ChatTurn,
    /// When.
    pub invoked: Moment,
    /// When it was answered, or given up; `None` while it runs.
    pub returned: Option<Moment>,
    /// What was answered, if anything was.
    pub heard: Option<Heard>,
}

/// The answer to a turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The reply as far as it was waited for.
    pub text: String,
    /// The memories that were said to be in the prompt.
    pub memories: Vec<UsedMemory>,
    /// Turns that were said to have found no room.
    pub turns_left_out: usize,
    /// Whether the reply was read to its end.
    pub is_whole: bool,
}

/// Why a session was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// A reply begins to follow from it.
    Reply,
    /// A part of it is copied out, to be kept.
    Keep,
}

/// What a session of a language model held when it mattered.
#[derive(Debug, Clone)]
pub struct Reading {
    /// When: simulated milliseconds.
    pub at_ms: u64,
    /// At which node.
    pub node: NodeId,
    /// Under which model.
    pub model: ModelFingerprint,
    /// Why it mattered.
    pub occasion: Occasion,
    /// What it held, token for token.
    pub slots: Vec<Slot>,
    /// Where the calls ended that brought it.
    pub ends: Vec<usize>,
    /// The tokens of the reply.
    pub said: Vec<Token>,
    /// Whether the engine had said that the session is of no use any more.
    pub is_useless: bool,
}

/// How much a node's language model holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residents {
    /// Which node.
    pub node: NodeId,
    /// When: simulated milliseconds.
    pub at_ms: u64,
    /// Bytes of sessions that nobody uses, and how many there may be.
    pub parked: (u64, u64),
    /// Bytes of blocks in RAM, and how many there may be.
    pub ram: (u64, u64),
    /// Bytes of all sessions that are open.
    pub open: u64,
    /// Whether everything was over by then, so that nobody uses any session.
    pub at_rest: bool,
    /// In which life.
    pub incarnation: Incarnation,
    /// What is held of which memories; only at rest.
    pub holdings: Vec<Holding>,
}

/// What a node had done for a conversation when somebody looked.
#[derive(Debug, Clone, PartialEq)]
pub struct SceneSample {
    /// Which node.
    pub node: NodeId,
    /// In which of its lives.
    pub life: u64,
    /// When that began: simulated milliseconds.
    pub since_ms: u64,
    /// When somebody looked.
    pub at_ms: u64,
    /// Whether everything was over by then, so that nothing should be under way any more.
    pub at_rest: bool,
    /// The conversation.
    pub scene: FollowedScene,
}

/// Everything there is to judge after a run.
#[derive(Debug, Default)]
pub struct Evidence {
    /// What callers asked and were told, the checks after the heal not included.
    pub history: History,
    /// Every commit that took effect, in order.
    pub commits: Vec<CommitRecord>,
    /// Which life of which node, by the world's count, each incarnation is. A node that was taken
    /// for dead takes another incarnation, and is still the same process.
    pub lives: BTreeMap<Incarnation, (NodeId, u64)>,
    /// All rows at the end.
    pub rows: BTreeMap<Vec<u8>, Row>,
    /// What happened in the bucket, in order; the last thing is a sweep.
    pub objects: Vec<ObjectEvent>,
    /// Every cube as it was served at the end, by tenant and cube.
    pub served: BTreeMap<(TenantId, CubeId), ServedCube>,
    /// Depths of queues, during the run and after it.
    pub queues: Vec<QueueSample>,
    /// Probes after the heal.
    pub probes: Vec<Probe>,
    /// Every try of a turn of a chat.
    pub chats: Vec<ChatRecord>,
    /// When the deletion of a cube was acknowledged.
    pub erased: Vec<(TenantId, CubeId, Moment)>,
    /// What was said to turns that were to be remembered, by cube.
    pub replies: BTreeMap<(TenantId, CubeId), BTreeSet<String>>,
    /// What schedulers decided, and what became of it.
    pub decisions: Vec<DecisionRecord>,
    /// What they did for conversations, whenever somebody looked.
    pub scenes: Vec<SceneSample>,
    /// Tokens that a node may compute ahead for one tenant in a minute; 0 for any number.
    pub tokens_per_minute: u64,
    /// What language models read and what is kept of it, in order.
    pub readings: Vec<Reading>,
    /// What they held when somebody looked.
    pub residents: Vec<Residents>,
    /// The objects of the bucket at the end, by their places; empty without language models.
    pub contents: BTreeMap<String, Vec<u8>>,
    /// What the stream of each tenant's feed told, over all its connections.
    pub followed: BTreeMap<TenantId, Vec<FeedStretch>>,
    /// What the world's consumers acted on, by tenant and shard.
    pub consumed: BTreeMap<(TenantId, u16), Vec<FeedStretch>>,
}

/// A part of a feed, as somebody was told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedStretch {
    /// After which place; `None` for the oldest record that is kept.
    pub from: Option<Stamp>,
    /// Up to which place.
    pub to: Stamp,
    /// What happened in between, in order; `None` where it was said to be trimmed.
    pub events: Option<Vec<FeedEvent>>,
}

/// Something that must never happen, and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Violation {
    /// Which checker saw it; shrinking keeps it.
    pub checker: String,
    /// What it saw.
    pub what: String,
}

impl Violation {
    /// A violation.
    pub fn new(checker: &str, what: impl Into<String>) -> Self {
        Self { checker: checker.to_owned(), what: what.into() }
    }
}
