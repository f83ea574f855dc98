//! What is asked of a chat, and what is known before its first word.

use std::sync::Arc;

use memcube_schemas::{
    ConversationId, MemoryId, Version,
    conversation::Role,
    limits::{REPLY_MS_DEFAULT, REPLY_TOKENS_DEFAULT},
};

use crate::{
    cube::{
        SearchRequest,
        activation::Kept,
        context::{ChatTurn, Rebuild, UsedMemory},
    },
    inference::{Finished, Sampling},
};

/// One turn of a chat.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// Which conversation; its context grows from turn to turn.
    pub conversation: ConversationId,
    /// Instructions, the same for every turn.
    pub preamble: String,
    /// What was said before, as the caller has it.
    pub turns: Vec<ChatTurn>,
    /// What is said now.
    pub message: ChatTurn,
    /// How memories are looked for; `None` for none but those in the context.
    pub recall: Option<SearchRequest>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Where the random numbers of the choice begin.
    pub seed: u64,
    /// Tokens of the reply at the most.
    pub tokens_max: usize,
    /// Texts before which it ends.
    pub stops: Vec<String>,
    /// Milliseconds that all of it may take.
    pub ms_max: u64,
    /// A JSON object of fields that are passed through to a model elsewhere: `tools`,
    /// `tool_choice`, `response_format` and the like.
    pub extra: Option<Arc<str>>,
}

impl ChatRequest {
    /// A first turn with memories, and everything else as usual.
    pub fn new(conversation: ConversationId, message: impl Into<String>) -> Self {
        let message = ChatTurn::new(Role::User, message);
        Self {
            conversation,
            preamble: String::new(),
            turns: Vec::new(),
            recall: Some(SearchRequest::new(message.text.clone())),
            message,
            sampling: Sampling::GREEDY,
            seed: 0,
            tokens_max: REPLY_TOKENS_DEFAULT,
            stops: Vec::new(),
            ms_max: REPLY_MS_DEFAULT,
            extra: None,
        }
    }
}

/// What is to be computed ahead for a conversation.
#[derive(Debug, Clone)]
pub struct PreloadRequest {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Instructions, as the next turn will have them.
    pub preamble: String,
    /// What was said so far, the last reply included.
    pub turns: Vec<ChatTurn>,
    /// Memories that the next turn will need, likeliest first: all of them, those that were
    /// computed ahead before included. Others that were leave the context again where they stand
    /// behind everything that was said. With none named, they stay.
    pub memories: Vec<MemoryId>,
    /// Milliseconds that it may take.
    pub ms_max: u64,
}

/// What a preload did.
#[derive(Debug, Clone)]
pub struct PreloadOutcome {
    /// Why the context was laid out anew, if it was.
    pub rebuilt: Option<Rebuild>,
    /// Tokens of the context.
    pub tokens: usize,
    /// Where they came from, and what it took.
    pub finished: Finished,
    /// What is kept of it.
    pub kept: Kept,
}

/// What is known before the first token.
#[derive(Debug, Clone)]
pub struct ChatOpening {
    /// The memories in the prompt.
    pub memories: Vec<UsedMemory>,
    /// Memories that found no room in the window, oldest first.
    pub left_out: Vec<MemoryId>,
    /// Turns that found no room.
    pub turns_left_out: usize,
    /// The version of the cube that was read.
    pub version: Version,
    /// Microseconds that recall took.
    pub recall_us: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}
