//! Bodies of MemOS's wire, as its clients send and read them (MemOS v2.0.31, `/product/*`).
//!
//! Unknown fields are ignored, as its own server does. Fields that MemOS accepts and that have no
//! meaning here are not listed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The envelope of every answer, errors included.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Envelope {
    /// 200, or the HTTP status of an error.
    pub code: u16,
    /// A sentence that clients compare literally.
    pub message: String,
    /// The answer.
    pub data: Value,
}

/// `POST /product/add`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AddBody {
    /// The user; names the cube when nothing else does.
    #[serde(default)]
    pub user_id: Option<String>,
    /// Deprecated name of the cube.
    #[serde(default)]
    pub mem_cube_id: Option<String>,
    /// The cubes to write.
    #[serde(default)]
    pub writable_cube_ids: Option<Vec<String>>,
    /// The conversation; MemOS's evaluation sends `conversation_id`.
    #[serde(default)]
    pub session_id: Option<String>,
    /// The conversation.
    #[serde(default)]
    pub conversation_id: Option<String>,
    /// A string, a list of chat messages, or a list of parts.
    #[serde(default)]
    pub messages: Option<Value>,
    /// Deprecated: one statement.
    #[serde(default)]
    pub memory_content: Option<String>,
    /// Labels.
    #[serde(default)]
    pub custom_tags: Option<Vec<String>>,
    /// Free-form data.
    #[serde(default)]
    pub info: Option<serde_json::Map<String, Value>>,
    /// By which the caller asks later how far the add is.
    #[serde(default)]
    pub task_id: Option<String>,
}

/// `POST /product/search`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SearchBody {
    /// The question.
    pub query: String,
    /// The user; names the cube when nothing else does.
    #[serde(default)]
    pub user_id: Option<String>,
    /// Deprecated name of the cube.
    #[serde(default)]
    pub mem_cube_id: Option<String>,
    /// The cubes to read.
    #[serde(default)]
    pub readable_cube_ids: Option<Vec<String>>,
    /// Hits in each cube.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Not supported yet: a search that asks for it is refused rather than answered without it.
    #[serde(default)]
    pub filter: Option<Value>,
    /// Hits below it are left out; 0 switches the threshold off.
    #[serde(default)]
    pub relativity: Option<f32>,
}

/// `POST /product/get_memory`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GetMemoryBody {
    /// The cube.
    pub mem_cube_id: String,
    /// Page, from 1 on.
    #[serde(default)]
    pub page: Option<usize>,
    /// Memories in one page.
    #[serde(default)]
    pub page_size: Option<usize>,
}

/// `POST /product/get_all`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GetAllBody {
    /// The user; names the cube when nothing else does.
    #[serde(default)]
    pub user_id: Option<String>,
    /// `text_mem`, `act_mem`, `param_mem` or `para_mem`.
    #[serde(default)]
    pub memory_type: Option<String>,
    /// The cubes.
    #[serde(default)]
    pub mem_cube_ids: Option<Vec<String>>,
    /// Only what fits this question.
    #[serde(default)]
    pub search_query: Option<String>,
}

/// `POST /product/delete_memory`: exactly one of the three ways to say what goes.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeleteMemoryBody {
    /// These memories.
    #[serde(default)]
    pub memory_ids: Option<Vec<String>>,
    /// Not supported here: memories carry no files.
    #[serde(default)]
    pub file_ids: Option<Vec<String>>,
    /// Not supported yet.
    #[serde(default)]
    pub filter: Option<Value>,
    /// Everything of this user.
    #[serde(default)]
    pub user_id: Option<String>,
    /// Everything of this conversation.
    #[serde(default)]
    pub session_id: Option<String>,
    /// Everything of this conversation.
    #[serde(default)]
    pub conversation_id: Option<String>,
    /// The cubes to delete from.
    #[serde(default)]
    pub writable_cube_ids: Option<Vec<String>>,
    /// Deprecated name of the cube.
    #[serde(default)]
    pub mem_cube_id: Option<String>,
}

/// `POST /product/create_cube`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateCubeBody {
    /// A name for people.
    pub cube_name: String,
    /// Whom it belongs to.
    pub owner_id: String,
    /// Its identifier; the name if left out.
    #[serde(default)]
    pub cube_id: Option<String>,
}

/// `POST /product/chat/complete` and `/product/chat/stream`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatBody {
    /// What the user says.
    pub query: String,
    /// The user; names the cube when nothing else does.
    #[serde(default)]
    pub user_id: Option<String>,
    /// Deprecated name of the cube.
    #[serde(default)]
    pub mem_cube_id: Option<String>,
    /// The cube to read; a chat has one.
    #[serde(default)]
    pub readable_cube_ids: Option<Vec<String>>,
    /// The cube to write: the same.
    #[serde(default)]
    pub writable_cube_ids: Option<Vec<String>>,
    /// What was said before: chat messages.
    #[serde(default)]
    pub history: Option<Value>,
    /// Instructions for the model.
    #[serde(default)]
    pub system_prompt: Option<String>,
    /// Memories that are looked for.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Hits below it are left out; 0 switches the threshold off.
    #[serde(default)]
    pub relativity: Option<f32>,
    /// Not supported yet: a chat that asks for it is refused rather than answered without it.
    #[serde(default)]
    pub filter: Option<Value>,
    /// The conversation; if left out, a hash of how it began.
    #[serde(default)]
    pub session_id: Option<String>,
    /// Tokens of the reply at the most.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// 0, the most likely token always, if left out.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability are considered.
    #[serde(default)]
    pub top_p: Option<f32>,
    /// Whether the turn is remembered; yes if left out.
    #[serde(default)]
    pub add_message_on_answer: Option<bool>,
}
