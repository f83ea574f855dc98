//! Bodies about conversations: what happens in them, and what is prepared for their next turns.

use serde::{Deserialize, Serialize};

use crate::{
    conversation::{ConversationEventKind, Role},
    ids::CubeId,
};

/// What happens in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConversationEventBody {
    /// A turn is complete. Chats and adds tell this by themselves.
    TurnFinished {
        /// Who spoke.
        role: Role,
        /// The speaker's name, if known.
        #[serde(default)]
        name: Option<String>,
        /// What was said.
        text: String,
    },
    /// Somebody is typing: all that stands there by now. Empty if it was taken back.
    Typing {
        /// From the beginning of the turn on.
        text: String,
    },
    /// The user has turned away.
    Paused {},
    /// The user is back.
    Resumed {},
    /// The assistant calls a tool.
    ToolCalled {
        /// The tool.
        name: String,
        /// What it is called with.
        #[serde(default)]
        arguments: String,
    },
    /// The conversation is about this from now on.
    TopicMarked {
        /// About what.
        text: String,
    },
    /// It is over.
    Closed {},
}

impl From<ConversationEventBody> for ConversationEventKind {
    fn from(body: ConversationEventBody) -> Self {
        match body {
            ConversationEventBody::TurnFinished { role, name, text } => {
                Self::TurnFinished { role, speaker: name, text }
            }
            ConversationEventBody::Typing { text } => Self::Typing { text },
            ConversationEventBody::Paused {} => Self::Paused,
            ConversationEventBody::Resumed {} => Self::Resumed,
            ConversationEventBody::ToolCalled { name, arguments } => {
                Self::ToolCalled { name, arguments }
            }
            ConversationEventBody::TopicMarked { text } => Self::TopicMarked { text },
            ConversationEventBody::Closed {} => Self::Closed,
        }
    }
}

body! {
    /// Tells what happens in a conversation.
    request ConversationEventRequest {
        /// The cube whose memories the conversation needs.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        cube: CubeId,
        /// What.
        event: ConversationEventBody,
        /// Names the event, so that it counts once however often it is sent.
        #[serde(default)]
        id: Option<String>,
        /// When: Unix milliseconds on the sender's clock. Events that arrive out of order are put
        /// right by it. Now, if left out.
        #[serde(default)]
        at_ms: Option<i64>,
    }
}

body! {
    /// The scheduler has the event.
    response ConversationEventResponse {
        /// Always true: an event that found no place is answered with 429.
        accepted: bool,
    }
}

body! {
    /// One weight of a predictor.
    response PredictorWeight {
        /// Of what.
        input: String,
        /// While nothing is typed.
        silent: f32,
        /// While something is typed.
        typing: f32,
    }
}

body! {
    /// What a tenant's predictor has learned.
    response PredictorResponse {
        /// Every weight.
        weights: Vec<PredictorWeight>,
        /// Turns that it has learned from.
        turns: u64,
        /// Counts how often it was reset.
        generation: u64,
    }
}
