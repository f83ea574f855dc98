//! Next-scene prediction: what is known of a conversation just before something is said, and which
//! memories that may need.

use rkyv::{Archive, Deserialize, Serialize};

use crate::ids::{ConversationId, MemoryId, Version};

/// Something that was said, as recall compares it with memories.
#[derive(Debug, Clone, PartialEq, Default, Archive, Serialize, Deserialize)]
pub struct Passage {
    /// The words.
    pub text: String,
    /// Their unit vector; `None` leaves meanings out.
    pub vector: Option<Vec<f32>>,
}

/// A memory that earlier turns had a use for.
#[derive(Debug, Clone, Copy, PartialEq, Archive, Serialize, Deserialize)]
pub struct Access {
    /// Which memory.
    pub id: MemoryId,
    /// How much of the use is left: every use adds 1, every turn takes a share away.
    pub recency: f32,
    /// How many turns had a use for it.
    pub count: u32,
    /// When the last of them was: Unix milliseconds.
    pub at_ms: i64,
}

/// Who is likely to speak next.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum NextSpeaker {
    /// A person, by name.
    Named(String),
    /// Whoever talks to the assistant.
    User,
}

/// What is asked about the next turn.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct SceneQuery {
    /// The last turn.
    pub last: Passage,
    /// The last few turns.
    pub recent: Passage,
    /// The scene: more turns, later ones counting more.
    pub scene: Passage,
    /// What has been typed of the next turn so far.
    pub typed: Option<Passage>,
    /// Who is likely to speak next, if that can be said.
    pub next_speaker: Option<NextSpeaker>,
    /// What earlier turns had a use for.
    pub accessed: Vec<Access>,
    /// The conversation that goes on: what was said in it stands in the prompt anyway.
    pub conversation: Option<ConversationId>,
    /// The time: Unix milliseconds.
    pub now_ms: i64,
    /// Candidates at the most.
    pub candidates_max: usize,
}

/// What is known of a memory that may be needed. Similarities are z-scores over the cube.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct SceneFeatures {
    /// Similarity to the last turn.
    pub last: f32,
    /// Similarity to the last few turns.
    pub recent: f32,
    /// Similarity to the scene.
    pub scene: f32,
    /// Similarity to what has been typed; 0 without anything.
    pub typed: f32,
    /// 1 if whoever is likely to speak next has said it, else 0.
    pub speaker: f32,
    /// How recently earlier turns had a use for it: logarithmic, 0 for never.
    pub recency: f32,
    /// How often they had: logarithmic, 0 for never.
    pub frequency: f32,
    /// From 0 for a mere exclamation to 1 for something with substance.
    pub substance: f32,
    /// Similarity of what was said just before it to the last turn: it may follow again.
    pub successor: f32,
    /// How recently earlier turns had a use for what was said just before or after it: logarithmic,
    /// 0 for never.
    pub neighbour: f32,
    /// Days since it was said, or since earlier turns had a use for it: logarithmic.
    pub gap: f32,
    /// How well its time of day fits, from 0 for the opposite to 1 for the same.
    pub hour: f32,
    /// Of how few memories it is one: the logarithm of 500 by their number. A turn needs about as
    /// many of few as of many.
    pub few: f32,
}

/// A memory that may be needed.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct SceneCandidate {
    /// Which memory.
    pub id: MemoryId,
    /// Its revision.
    pub revision: u32,
    /// Word pieces of its text.
    pub tokens: u32,
    /// What is known of it.
    pub features: SceneFeatures,
}

/// What a cube knows about the next turn.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct SceneAnswer {
    /// In no order that means anything.
    pub candidates: Vec<SceneCandidate>,
    /// The version of the cube that was read.
    pub version: Version,
}

/// Why the scheduler thought about the next turn.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SceneReason {
    /// A turn was finished.
    TurnFinished,
    /// Somebody is typing.
    Typing,
    /// A topic was marked.
    TopicMarked,
    /// The assistant waits for a tool.
    ToolCalled,
    /// The user is back.
    Resumed,
}

impl SceneReason {
    /// The name on the wire, and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TurnFinished => "turn_finished",
            Self::Typing => "typing",
            Self::TopicMarked => "topic_marked",
            Self::ToolCalled => "tool_called",
            Self::Resumed => "resumed",
        }
    }
}

/// What is prepared.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PreloadKind {
    /// The cube is in RAM, and the memories that may be needed are known: the working set.
    Plaintext,
    /// What a model computes of them is in its cache, too.
    Activation,
    /// An adapter is on top of the model, too.
    Parameter,
}

impl PreloadKind {
    /// The name on the wire, and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Activation => "activation",
            Self::Parameter => "parameter",
        }
    }
}

/// What became of a preload.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PreloadState {
    /// It is being decided or computed.
    Running,
    /// It is in place.
    Loaded,
    /// Nothing was worth its cost.
    Nothing,
    /// The next turn came before it was in place.
    Overtaken,
    /// It failed; `detail` says why.
    Failed,
}

impl PreloadState {
    /// The name on the wire, and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Loaded => "loaded",
            Self::Nothing => "nothing",
            Self::Overtaken => "overtaken",
            Self::Failed => "failed",
        }
    }
}

/// A memory that the next turn may need, and why that is thought.
#[derive(
    Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedMemory {
    /// Which memory.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: MemoryId,
    /// How likely it is to be needed, from 0 to 1.
    pub probability: f32,
    /// Its tokens.
    pub tokens: u32,
    /// What speaks most for it: the name of a feature.
    pub because: String,
}

/// What a turn needed of what was prepared for it.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SceneOutcome {
    /// Preloaded and needed.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub hits: Vec<MemoryId>,
    /// Needed, and planned, but not in place in time.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub late: Vec<MemoryId>,
    /// Preloaded, and not needed by this turn.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub wasted: Vec<MemoryId>,
    /// Needed, and in the context since an earlier turn.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub held: Vec<MemoryId>,
    /// Needed, and not thought of.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub missed: Vec<MemoryId>,
    /// Tokens of memories that the turn did not have to compute because of this preload.
    pub saved_tokens: u64,
    /// Tokens of memories that were computed in vain, so far.
    pub wasted_tokens: u64,
}

/// One time that the scheduler thought about the next turn.
#[derive(
    Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SceneEntry {
    /// Counts up within the conversation.
    pub number: u64,
    /// When: Unix milliseconds.
    pub at_ms: i64,
    /// Why.
    pub reason: SceneReason,
    /// What was to be prepared.
    pub kind: PreloadKind,
    /// What became of it.
    pub state: PreloadState,
    /// More about that, in words.
    pub detail: Option<String>,
    /// Memories that were weighed.
    pub candidates: u32,
    /// Memories that were in the context already.
    pub held: u32,
    /// What is preloaded, likeliest first.
    pub planned: Vec<PlannedMemory>,
    /// Tokens that the plan could spend: the least of room, bytes, time and the tenant's budget.
    pub budget_tokens: u64,
    /// Tokens that the plan expected to save.
    pub expected_tokens: f32,
    /// Tokens that were computed ahead, what was said included.
    pub computed_tokens: u64,
    /// Microseconds for predicting and planning.
    pub decided_us: u64,
    /// Microseconds from the event to the end.
    pub took_us: u64,
    /// What the next turn needed of it; unknown until that has come.
    pub outcome: Option<SceneOutcome>,
}

impl SceneEntry {
    /// One of which nothing is known yet.
    #[must_use]
    pub const fn begun(number: u64, at_ms: i64, reason: SceneReason) -> Self {
        Self {
            number,
            at_ms,
            reason,
            kind: PreloadKind::Plaintext,
            state: PreloadState::Running,
            detail: None,
            candidates: 0,
            held: 0,
            planned: Vec::new(),
            budget_tokens: 0,
            expected_tokens: 0.0,
            computed_tokens: 0,
            decided_us: 0,
            took_us: 0,
            outcome: None,
        }
    }
}

/// What was done for a conversation, oldest first.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Default,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SceneTimeline {
    /// The last of them.
    pub entries: Vec<SceneEntry>,
    /// The memories that the next turn is thought to need, likeliest first, whether or not they are
    /// in a model's cache.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub working_set: Vec<MemoryId>,
    /// Microseconds until the user usually says something again.
    pub back_in_us: u64,
}
