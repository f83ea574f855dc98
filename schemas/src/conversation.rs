//! What is said: messages as they arrive, before the reader makes memories of them, and what else
//! happens in a conversation.

use rkyv::{Archive, Deserialize, Serialize};

use crate::ids::{ConversationId, RequestId};

/// Who speaks, in the sense of chat APIs.
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
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
    /// Instructions; never remembered unless asked.
    System,
    /// Output of a tool; never remembered unless asked.
    Tool,
}

impl Role {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The speaker's name, if it is known apart from the text.
    pub speaker: Option<String>,
    /// What is said.
    pub content: String,
    /// When it was said, in the words of the caller: ISO 8601, or any text.
    pub chat_time: Option<String>,
    /// The caller's own id of this message.
    pub message_id: Option<String>,
}

/// Something that happens in a conversation, for whoever prepares its next turn.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ConversationEvent {
    /// In which conversation.
    pub conversation: ConversationId,
    /// Names the event, so that it counts once however often it is sent.
    pub id: Option<RequestId>,
    /// When: Unix milliseconds, on the clock of whoever saw it. Events may come out of order.
    pub at_ms: i64,
    /// What.
    pub kind: ConversationEventKind,
}

/// What happens in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ConversationEventKind {
    /// A turn is complete.
    TurnFinished {
        /// By whom, in the sense of chat APIs.
        role: Role,
        /// The speaker's name, if known.
        speaker: Option<String>,
        /// What was said.
        text: String,
    },
    /// Somebody is typing, and so much stands there by now. An empty text: it was taken back.
    Typing {
        /// From the beginning of the turn on.
        text: String,
    },
    /// The user has turned away.
    Paused,
    /// The user is back.
    Resumed,
    /// The assistant calls a tool, which takes its time.
    ToolCalled {
        /// The tool.
        name: String,
        /// What it is called with, as text.
        arguments: String,
    },
    /// The conversation is about something from now on.
    TopicMarked {
        /// About what.
        text: String,
    },
    /// It is over.
    Closed,
}

impl ConversationEventKind {
    /// The name on the wire, and in metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::TurnFinished { .. } => "turn_finished",
            Self::Typing { .. } => "typing",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::ToolCalled { .. } => "tool_called",
            Self::TopicMarked { .. } => "topic_marked",
            Self::Closed => "closed",
        }
    }

    /// Bytes of its texts.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::TurnFinished { speaker, text, .. } => {
                speaker.as_ref().map_or(0, String::len) + text.len()
            }
            Self::Typing { text } | Self::TopicMarked { text } => text.len(),
            Self::ToolCalled { name, arguments } => name.len() + arguments.len(),
            Self::Paused | Self::Resumed | Self::Closed => 0,
        }
    }
}
