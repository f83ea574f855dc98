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
#[derive(Debug, Clone, Copy, PartialEq, Default, Archive, Serialize, Deserialize)]
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
}

/// A memory that may be needed.
#[derive(Debug, Clone, Copy, PartialEq, Archive, Serialize, Deserialize)]
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
