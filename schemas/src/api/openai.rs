//! Bodies of OpenAI's wire (`/v1/chat/completions`, `/v1/embeddings`, `/v1/models`), and what is
//! ours in them.
//!
//! Unknown fields are ignored, because its clients send many. What is ours stands in `cube`,
//! `conversation` and `memcube`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{ConversationId, CubeId, MemoryId, Version};

/// `POST /v1/chat/completions`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ChatCompletionBody {
    /// The language model of this installation, as `GET /v1/models` names it; any if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What was said so far, the instructions before it included. The last message is the one that
    /// is answered: of the user, or of a tool.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<ChatMessageBody>))]
    pub messages: Vec<Value>,
    /// Whether the reply comes piece by piece (server-sent events).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What a stream tells besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// 0 to 2; 0, the most likely token always, if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability are considered; 1, all, if
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Tokens of the reply at the most; 512 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u64>,
    /// The former name of `max_completion_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// A text, or up to 16 texts, before which the reply ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Value>,
    /// The same seed draws the same reply for the same prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Replies that are wanted: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<Value>,
    /// What the reply is made of: `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modalities: Option<Value>,
    /// What the reply has to look like; a local model takes `{"type": "text"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    /// Tools that the model may ask for; not for a local model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
    /// Which tool the model has to ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// Whether the model may ask for several tools at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<Value>,
    /// Not supported; send `tools`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub functions: Option<Value>,
    /// The cube that remembers: one that exists. The header `x-memcube-cube` says the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cube: Option<String>,
    /// Without `cube`: the user, whose cube has the same name, and is made at the first use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Names the dialogue, so that its turns find what earlier ones computed. If left out: a hash
    /// of the instructions and the first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// How memories are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memcube: Option<MemoryOptions>,
}

/// One message of a chat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatMessageBody {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// A text, or a list of parts `{"type": "text", "text": "..."}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// Tools that the assistant asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// Which of them a message of a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// What a stream tells besides.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct StreamOptions {
    /// Whether a last piece has `usage`.
    pub include_usage: bool,
}

/// How a chat uses memories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct MemoryOptions {
    /// Whether memories are looked for; those that stand in the conversation already stay.
    pub recall: bool,
    /// Whether the turn is remembered.
    pub remember: bool,
    /// Memories that are looked for, at the most; 10 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Word pieces that they may have together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_budget: Option<u32>,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self { recall: true, remember: true, top_k: None, token_budget: None }
    }
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatCompletion {
    /// Names the reply.
    pub id: String,
    /// `chat.completion`, or `chat.completion.chunk` for a piece.
    pub object: String,
    /// When it was asked for: Unix seconds.
    pub created: i64,
    /// The model.
    pub model: String,
    /// The reply, in a list of one; empty in a piece that has `usage` only.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<ChatUsage>,
    /// The memories behind it, and what it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memcube: Option<ChatMemory>,
}

/// A reply, or a piece of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatChoice {
    /// 0.
    pub index: u32,
    /// The whole reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<ReplyBody>,
    /// The next piece of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaBody>,
    /// Why it ended: `stop`, `length` or `tool_calls`; null before the end.
    pub finish_reason: Option<String>,
    /// Always null.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub logprobs: Option<Value>,
}

/// What the model says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplyBody {
    /// `assistant`.
    pub role: String,
    /// The text; null if the model asks for tools only.
    pub content: Option<String>,
    /// Tools that the model asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// Always null.
    pub refusal: Option<String>,
}

/// What the model says next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeltaBody {
    /// `assistant`, in the first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of the tools that the model asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
}

/// What a reply took, in tokens of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatUsage {
    /// Tokens of the prompt, memories included.
    pub prompt_tokens: usize,
    /// Tokens of the reply.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompt.
    pub prompt_tokens_details: PromptDetails,
}

/// More about a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PromptDetails {
    /// Tokens that had been computed before.
    pub cached_tokens: usize,
}

/// The memories behind a reply. A stream tells most of it in its first piece, the rest in its last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatMemory {
    /// The cube that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub cube: Option<CubeId>,
    /// Its version, as it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub version: Option<Version>,
    /// The conversation: what was given, or what was derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub conversation: Option<ConversationId>,
    /// The memories in the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memories: Option<Vec<UsedMemoryBody>>,
    /// Memories that found no room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub left_out: Option<Vec<MemoryId>>,
    /// Messages that found no room, the oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns_left_out: Option<usize>,
    /// What was remembered of this turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered: Option<RememberedBody>,
    /// What it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<ChatTimings>,
}

/// A memory in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsedMemoryBody {
    /// Which.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: MemoryId,
    /// As of which revision.
    pub revision: u32,
}

/// What became of a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RememberedBody {
    /// The memories that it became.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub ids: Vec<MemoryId>,
    /// The cube's version with them.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub version: Version,
}

/// What a reply took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatTimings {
    /// Milliseconds that it took to find memories.
    pub recall_ms: f64,
    /// Tokens of the prompt that had been computed before.
    pub tokens_from_cache: usize,
    /// Of these, tokens of memories that were computed each by itself (`independent-segments`).
    pub tokens_from_segments: usize,
    /// Tokens of the prompt that were computed.
    pub tokens_computed: usize,
    /// Whether the text is the one that would have come with nothing cached. It is not with
    /// independent segments, nor with what lay on a cold tier in 8 bits.
    pub is_exact: bool,
    /// Milliseconds until the first token.
    pub ttft_ms: f64,
    /// Milliseconds for all of it, until the turn was durable.
    pub total_ms: f64,
}

/// `POST /v1/embeddings`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EmbeddingsBody {
    /// A text, or a list of texts.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub input: Value,
    /// The embedding model of this installation; any if left out.
    #[serde(default)]
    pub model: Option<String>,
    /// `float` or `base64` (32-bit floats, little endian); `float` if left out.
    #[serde(default)]
    pub encoding_format: Option<String>,
    /// Only the first so many numbers, scaled to unit length again.
    #[serde(default)]
    pub dimensions: Option<usize>,
}

/// Embeddings of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: String,
    /// One entry a text, in order.
    pub data: Vec<EmbeddingBody>,
    /// The model.
    pub model: String,
    /// What it took.
    pub usage: EmbeddingsUsage,
}

/// One text as a vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EmbeddingBody {
    /// `embedding`.
    pub object: String,
    /// Which of the texts.
    pub index: usize,
    /// Numbers, or their bytes in base64.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub embedding: Value,
}

/// What embeddings took, in word pieces of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EmbeddingsUsage {
    /// Those of the texts.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

/// `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelsResponse {
    /// `list`.
    pub object: String,
    /// The models of this node.
    pub data: Vec<ModelBody>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelBody {
    /// Its name, with a part of its checksum.
    pub id: String,
    /// `model`.
    pub object: String,
    /// When this node started: Unix seconds.
    pub created: i64,
    /// `memcube`.
    pub owned_by: String,
    /// What it is for.
    pub memcube: ModelFacts,
}

/// What a model is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelFacts {
    /// `language` or `embedding`.
    pub kind: String,
    /// Tokens of prompt and reply together, of a language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_tokens: Option<usize>,
}

/// What goes with an error for OpenAI's clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OpenAiError {
    /// What is wrong and what to do.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`.
    pub r#type: String,
    /// Stable name of the error.
    pub code: String,
    /// The field that is wrong.
    pub param: Option<String>,
}
