//! What callers ask of a cube through its handle, and the limits that are checked at the door.

use memcube_schemas::{
    ConversationId, RequestId, Version,
    call::SearchRequest,
    command::{AddedMemory, MemoryDraft, Selection},
    conversation::{Message, Role},
    limits::{
        INFO_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGES_PER_ADD_MAX, QUERY_BYTES_MAX, TAG_BYTES_MAX,
        TAGS_MAX, TOP_K_MAX,
    },
    memory::{MemoryKind, MemoryStatus, SourceTurn},
};

use crate::error::{Error, Result};

/// What to remember.
#[derive(Debug, Clone, Default)]
pub struct AddRequest {
    /// Messages of a conversation, in order.
    pub messages: Vec<Message>,
    /// Statements that are remembered as they stand.
    pub facts: Vec<String>,
    /// The conversation that the messages belong to.
    pub conversation: Option<ConversationId>,
    /// Labels for every item.
    pub tags: Vec<String>,
    /// Free-form data for every item: one JSON object in text form, or empty.
    pub info: String,
    /// Also remember what system and tool roles say.
    pub remember_system_and_tool: bool,
    /// Makes a retry harmless.
    pub request: Option<RequestId>,
}

/// What was remembered; it is durable and findable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddOutcome {
    /// In the order of the request.
    pub memories: Vec<AddedMemory>,
    /// Messages that made no memory: empty ones, and those of system and tool roles.
    pub ignored_messages: usize,
    /// The cube's version after it.
    pub version: Version,
}

/// A change of one item.
#[derive(Debug, Clone, Default)]
pub struct UpdateRequest {
    /// New text.
    pub text: Option<String>,
    /// New status.
    pub status: Option<MemoryStatus>,
    /// New labels.
    pub tags: Option<Vec<String>>,
    /// New free-form data.
    pub info: Option<String>,
    /// Refuse if the item has another revision by now.
    pub expected_revision: Option<u32>,
}

/// What to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRequest {
    /// Which items.
    pub selection: Selection,
    /// Erase their history as well.
    pub purge: bool,
}

pub(super) fn check_add(request: &AddRequest) -> Result<()> {
    let count = request.messages.len() + request.facts.len();
    if count == 0 {
        return Err(Error::invalid("nothing to remember: give `messages` or `text`"));
    }
    if count > MESSAGES_PER_ADD_MAX {
        return Err(Error::invalid(format!(
            "{count} messages in one call, the limit is {MESSAGES_PER_ADD_MAX}; send them in \
             several"
        )));
    }
    let contents = request.messages.iter().map(|message| &message.content);
    for (index, content) in contents.chain(&request.facts).enumerate() {
        if content.len() > MESSAGE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "message {index} has {} bytes, the limit is {MESSAGE_BYTES_MAX}; cut it",
                content.len()
            )));
        }
    }
    check_tags(&request.tags)?;
    check_info(&request.info)
}

pub(crate) fn check_search(request: &SearchRequest) -> Result<()> {
    if request.query.trim().is_empty() {
        return Err(Error::invalid("`query` is empty; ask for something"));
    }
    if request.query.len() > QUERY_BYTES_MAX {
        return Err(Error::invalid(format!(
            "`query` has {} bytes, the limit is {QUERY_BYTES_MAX}",
            request.query.len()
        )));
    }
    if request.top_k == 0 || request.top_k > TOP_K_MAX {
        return Err(Error::invalid(format!("`top_k` must be between 1 and {TOP_K_MAX}")));
    }
    Ok(())
}

pub(super) fn check_tags(tags: &[String]) -> Result<()> {
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid(format!("{} tags, the limit is {TAGS_MAX}", tags.len())));
    }
    match tags.iter().find(|tag| tag.len() > TAG_BYTES_MAX) {
        Some(tag) => Err(Error::invalid(format!(
            "a tag has {} bytes, the limit is {TAG_BYTES_MAX}",
            tag.len()
        ))),
        None => Ok(()),
    }
}

pub(super) fn check_info(info: &str) -> Result<()> {
    if info.len() > INFO_BYTES_MAX {
        return Err(Error::invalid(format!(
            "`info` has {} bytes, the limit is {INFO_BYTES_MAX}",
            info.len()
        )));
    }
    Ok(())
}

pub(super) fn fact_draft(text: &str, request: &AddRequest) -> MemoryDraft {
    MemoryDraft {
        kind: MemoryKind::Fact,
        text: text.to_owned(),
        speaker: None,
        role: Role::User,
        said_at_ms: None,
        conversation: request.conversation.clone(),
        part: None,
        tags: request.tags.clone(),
        info: request.info.clone(),
        source: SourceTurn {
            role: Role::User,
            speaker: None,
            chat_time: None,
            message_id: None,
            content: text.to_owned(),
        },
        vector: None,
        tokens: 0,
    }
}

/// Word pieces of a text for which no tokenizer is at hand: about four bytes each in English.
pub(super) fn estimate_tokens(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}
