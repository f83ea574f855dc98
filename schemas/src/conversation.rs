//! What is said: messages as they arrive, before the reader makes memories of them.

use rkyv::{Archive, Deserialize, Serialize};

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
