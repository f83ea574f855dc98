//! What callers ask of a cube and what it answers, on this node or across nodes.

use std::sync::Arc;

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    activation::{BlockKey, ContextRecord, KvBlock},
    command::{CubeCommand, CubeReply},
    conversation::ConversationEvent,
    cube::CubeManifest,
    ids::{ConversationId, MemoryId, ModelId, Version},
    limits::TOP_K_DEFAULT,
    memory::{MemoryItem, MemoryKind},
    scene::{SceneAnswer, SceneQuery, SceneTimeline},
};

/// What a caller asks of recall.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct SearchRequest {
    /// The question.
    pub query: String,
    /// Hits at the most.
    pub top_k: usize,
    /// Word pieces that all hits together may have.
    pub token_budget: Option<u32>,
    /// Which items count.
    pub filter: SearchFilter,
    /// Hits below this relativity (0 to 1) are left out.
    pub relativity_min: f32,
}

impl SearchRequest {
    /// Asks with the usual number of hits and no conditions.
    pub fn new(query: impl Into<String>) -> Self {
        Self {
            query: query.into(),
            top_k: TOP_K_DEFAULT,
            token_budget: None,
            filter: SearchFilter::default(),
            relativity_min: 0.0,
        }
    }
}

/// Conditions on items; an empty one lets everything through.
#[derive(Debug, Clone, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub struct SearchFilter {
    /// The item has every one of these labels.
    pub tags: Vec<String>,
    /// The item is from this conversation.
    pub conversation: Option<ConversationId>,
    /// The item is of one of these kinds; empty means any.
    pub kinds: Vec<MemoryKind>,
    /// The item was said at this time or later: Unix milliseconds.
    pub said_from_ms: Option<i64>,
    /// The item was said before this time: Unix milliseconds.
    pub said_before_ms: Option<i64>,
}

/// A question with its vector.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct RecallRequest {
    /// What is asked.
    pub request: SearchRequest,
    /// The unit vector of the query; `None` leaves the dense arm out.
    pub vector: Option<Vec<f32>>,
}

/// One item that was found, and why.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct Hit {
    /// The item.
    pub item: Arc<MemoryItem>,
    /// How well it fits, from 0 to 1; real hits usually lie above 0.45.
    pub relativity: f32,
    /// What each arm says.
    pub scores: ArmScores,
}

/// What each arm says about a hit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Archive, Serialize, Deserialize)]
pub struct ArmScores {
    /// Cosine of the query's and the item's vectors.
    pub dense: f32,
    /// z-score of the dense arm over the cube, neighbours included.
    pub dense_z: f32,
    /// BM25 over the item and its neighbours.
    pub lexical: f32,
    /// z-score of the lexical arm over the cube.
    pub lexical_z: f32,
    /// Added because the item is by the speaker that the query names.
    pub speaker: f32,
    /// Added because the item was said at the time that the query names.
    pub date: f32,
    /// Added for the item's form: who spoke, statement or question, length.
    pub form: f32,
    /// Everything together; hits are ordered by it.
    pub fused: f32,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct ItemPage {
    /// In the order in which they were made.
    pub items: Vec<Arc<MemoryItem>>,
    /// Whether there are further ones.
    pub more: bool,
    /// The version of the cube that was read.
    pub version: Version,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct SearchOutcome {
    /// Best first.
    pub hits: Vec<Hit>,
    /// The version of the cube that was searched.
    pub version: Version,
    /// Word pieces of all hits together.
    pub tokens: u32,
    /// How sure recall is that the cube knows an answer, from 0 to 1.
    pub confidence: f32,
}

/// What is asked about the next prompt of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ContextQuery {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Whose context.
    pub model: ModelId,
    /// Blocks whose rows are wanted.
    pub blocks: Vec<BlockKey>,
}

/// What a cube knows about the next prompt of a conversation.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct ContextAnswer {
    /// The context so far; `None` for a new one.
    pub record: Option<ContextRecord>,
    /// The memories in it, as far as they are still what they were.
    pub items: Vec<Arc<MemoryItem>>,
    /// The rows that were asked for, as far as there are any.
    pub blocks: Vec<KvBlock>,
    /// The version of the cube that was read.
    pub version: Version,
}

/// What is asked of a cube.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum CubeCall {
    /// Change something.
    Change(CubeCommand),
    /// Read one item.
    Get(MemoryId),
    /// Read items in the order in which they were made.
    List {
        /// From just after this one.
        after: Option<MemoryId>,
        /// Items at the most.
        limit: usize,
    },
    /// Find what the cube knows about a question.
    Search(Box<RecallRequest>),
    /// Read the manifest.
    Describe,
    /// Delete the cube with everything in it.
    Erase,
    /// Read what the next prompt of a conversation begins with.
    Context(Box<ContextQuery>),
    /// Find what the next turn of a conversation may need.
    Scene(Box<SceneQuery>),
    /// Tell the node that owns the cube what happens in a conversation.
    Note(Box<ConversationEvent>),
    /// Tell what was preloaded for a conversation, and what became of it.
    Scenes(ConversationId),
}

impl CubeCall {
    /// Whether it may change the cube.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        matches!(self, Self::Change(_) | Self::Erase)
    }

    /// Whether a second execution after a first one, whose answer was lost, does no harm.
    #[must_use]
    pub const fn may_be_repeated(&self) -> bool {
        match self {
            Self::Change(CubeCommand::AddMemories { request, .. }) => request.is_some(),
            Self::Change(CubeCommand::UpdateMemory { .. } | CubeCommand::DeleteMemories { .. })
            | Self::Erase => false,
            Self::Get(_)
            | Self::List { .. }
            | Self::Search(_)
            | Self::Describe
            | Self::Context(_)
            | Self::Scene(_)
            | Self::Scenes(_) => true,
            // Events without a name may count twice.
            Self::Note(event) => event.id.is_some(),
        }
    }
}

/// The answer to a [`CubeCall`], of the kind that the call asks for.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum CubeAnswer {
    /// To a change: it is durable and findable.
    Changed(CubeReply),
    /// To `Get`.
    Item(Arc<MemoryItem>),
    /// To `List`.
    Page(ItemPage),
    /// To `Search`.
    Found(SearchOutcome),
    /// To `Describe`.
    Manifest(CubeManifest),
    /// To `Erase`.
    Erased,
    /// To `Context`.
    Context(Box<ContextAnswer>),
    /// To `Scene`.
    Scene(Box<SceneAnswer>),
    /// To `Note`: the scheduler has it.
    Noted,
    /// To `Scenes`.
    Scenes(Box<SceneTimeline>),
}
