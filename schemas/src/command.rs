//! What a cube is asked to do (commands), what then happened (events), what it answers (replies).

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    conversation::Role,
    ids::{ConversationId, MemoryId, RequestId, Version},
    memory::{MemoryItem, MemoryKind, MemoryStatus, SourceTurn},
};

/// A memory before it has an identifier: what the reader makes of messages.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct MemoryDraft {
    /// What sort of memory it is.
    pub kind: MemoryKind,
    /// The memory as a model should read it.
    pub text: String,
    /// The speaker's name, if known.
    pub speaker: Option<String>,
    /// Who spoke.
    pub role: Role,
    /// When it was said: Unix milliseconds.
    pub said_at_ms: Option<i64>,
    /// The conversation it was said in.
    pub conversation: Option<ConversationId>,
    /// Position and number of parts of a long message.
    pub part: Option<(u32, u32)>,
    /// Labels given by the caller.
    pub tags: Vec<String>,
    /// Free-form data as one JSON object in text form; empty if none.
    pub info: String,
    /// The message it came from.
    pub source: SourceTurn,
    /// Unit vector of `text`; `None` where no embedder is configured.
    pub vector: Option<Vec<f32>>,
    /// Word pieces of `text`.
    pub tokens: u32,
}

/// A change of one item.
#[derive(Debug, Clone, PartialEq, Default, Archive, Serialize, Deserialize)]
pub struct MemoryChange {
    /// New text with its vector and token count.
    pub text: Option<ChangedText>,
    /// New status; the lifecycle decides whether it is allowed.
    pub status: Option<MemoryStatus>,
    /// New labels.
    pub tags: Option<Vec<String>>,
    /// New free-form data.
    pub info: Option<String>,
}

/// A text together with what is derived from it.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct ChangedText {
    /// The new text.
    pub text: String,
    /// Its unit vector, where an embedder is configured.
    pub vector: Option<Vec<f32>>,
    /// Its word pieces.
    pub tokens: u32,
}

/// Which items a deletion means.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Selection {
    /// These, as many as one commit deletes; an unknown or frozen one fails the whole command.
    Ids(Vec<MemoryId>),
    /// Those of one conversation that are not frozen, as many as one commit deletes.
    Conversation(ConversationId),
    /// All that are not frozen, as many as one commit deletes.
    All,
}

/// The place of some drafts in the add that they belong to. An add that is too large for one commit
/// comes in parts, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct AddPart {
    /// Drafts of the same add that came before.
    pub offset: usize,
    /// Drafts of the whole add.
    pub total: usize,
    /// Tells the whole add from others: the same for each of its parts.
    pub fingerprint: u64,
    /// The item that holds the draft just before.
    pub after: Option<MemoryId>,
}

/// A request to change a cube.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum CubeCommand {
    /// Remember these.
    AddMemories {
        /// In the order in which they were said.
        drafts: Vec<MemoryDraft>,
        /// Makes a retry harmless.
        request: Option<RequestId>,
        /// Which part of an add these drafts are.
        part: AddPart,
    },
    /// Change one item.
    UpdateMemory {
        /// Which.
        id: MemoryId,
        /// How.
        change: MemoryChange,
        /// Refuse if the item has another revision by now.
        expected_revision: Option<u32>,
    },
    /// Forget items.
    DeleteMemories {
        /// Which.
        selection: Selection,
        /// Erase their history as well.
        purge: bool,
    },
}

/// What became of one draft.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct AddedMemory {
    /// The item that now holds it.
    pub id: MemoryId,
    /// Its text.
    pub text: String,
    /// What sort of memory it is.
    pub kind: MemoryKind,
    /// `true` when the cube held the same memory before, and only counted it again.
    pub folded: bool,
}

/// A recorded change of a cube.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum CubeEvent {
    /// A new item.
    MemoryAdded {
        /// The item.
        item: MemoryItem,
        /// Its vector.
        vector: Option<Vec<f32>>,
    },
    /// A known item was said again.
    MemoryRepeated {
        /// The item, with the repetition counted.
        item: MemoryItem,
    },
    /// An item was changed.
    MemoryUpdated {
        /// As it was.
        former: Box<MemoryItem>,
        /// As it is.
        item: Box<MemoryItem>,
        /// The vector of a new text; `None` when the text stayed.
        vector: Option<Vec<f32>>,
    },
    /// An item was forgotten.
    MemoryDeleted {
        /// As it was.
        former: MemoryItem,
        /// Its history goes too.
        purge: bool,
    },
}

/// The answer to a command, given once it is durable.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum CubeReply {
    /// One entry for each draft, in order.
    Added {
        /// What became of the drafts.
        memories: Vec<AddedMemory>,
        /// Drafts of the whole add that are remembered by now.
        until: usize,
        /// The cube's version after it.
        version: Version,
    },
    /// The item as it is now.
    Updated {
        /// The item.
        item: Box<MemoryItem>,
    },
    /// What was forgotten.
    Deleted {
        /// The items that are gone.
        ids: Vec<MemoryId>,
        /// Whether the selection held more than one commit deletes.
        more: bool,
        /// The cube's version after it.
        version: Version,
    },
}
