//! Makes memories of chat messages, without a language model: one item per turn, with its date and
//! speaker, relative dates made absolute, long messages cut into parts.
//!
//! Invariant: pure. The same messages and options give the same drafts; no clock, no I/O. The work
//! grows linearly with the bytes of the messages.

mod calendar;
mod chat_time;
mod relative_dates;
mod speakers;
mod split;
mod words;

use std::ops::Range;

use memcube_schemas::{
    ConversationId,
    command::MemoryDraft,
    conversation::{Message, Role},
    limits::TEXT_ID_BYTES_MAX,
    memory::{MemoryKind, SourceTurn},
};

pub use chat_time::{
    CHAT_TIME_CHARS_MAX, ChatTime, QueryDate, civil_date_of, parse_chat_time,
    parse_plain_date_mentions,
};

/// What the caller says about all messages of one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The conversation they belong to.
    pub conversation: Option<ConversationId>,
    /// Labels for every memory.
    pub tags: Vec<String>,
    /// Free-form data for every memory, as one JSON object in text form; empty if none.
    pub info: String,
    /// Remember what the system and tools say as well.
    pub remember_system_and_tool: bool,
}

/// Makes memories of messages, in their order. Vectors and token counts are left for the embedder.
#[must_use]
pub fn read_messages(messages: &[Message], options: &ReadOptions) -> Vec<MemoryDraft> {
    let mut drafts = Vec::with_capacity(messages.len());
    for message in messages {
        let is_said = matches!(message.role, Role::User | Role::Assistant);
        if (is_said || options.remember_system_and_tool) && says_something(&message.content) {
            read_message(message, options, &mut drafts);
        }
    }
    drafts
}

fn read_message(message: &Message, options: &ReadOptions, drafts: &mut Vec<MemoryDraft>) {
    let spoken = speakers::speaker_of(message);
    let time = message.chat_time.as_deref().and_then(parse_chat_time);
    let today = time.map(|time| time.civil.date());
    let prefix = prefix_of(message, today, spoken.speaker.as_deref());
    let parts = parts_of(spoken.body);
    let parts_count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    // The name before the words belongs to the source of the first part.
    let name = message.content.trim().strip_suffix(spoken.body).unwrap_or_default();
    let mut in_fence = false;
    for (number, part) in (1..).zip(parts) {
        let words = &spoken.body[part];
        let text = match today {
            Some(today) => relative_dates::annotate(words, today, &mut in_fence),
            None => words.to_owned(),
        };
        let name = if number == 1 { name } else { "" };
        drafts.push(MemoryDraft {
            kind: MemoryKind::Episode,
            text: format!("{prefix}{text}"),
            speaker: spoken.speaker.clone(),
            role: message.role,
            said_at_ms: time.map(|time| time.unix_ms),
            conversation: options.conversation.clone(),
            part: (parts_count > 1).then_some((number, parts_count)),
            tags: options.tags.clone(),
            info: options.info.clone(),
            source: SourceTurn {
                role: message.role,
                speaker: bounded(message.speaker.as_deref()).or_else(|| spoken.speaker.clone()),
                chat_time: bounded(message.chat_time.as_deref()),
                message_id: bounded(message.message_id.as_deref()),
                content: format!("{name}{words}"),
            },
            vector: None,
            tokens: 0,
        });
    }
}

/// The parts of a message. Parts without any letter or digit, as in a page of dashes, are left out
/// of a long message, but the first one if there is nothing else.
fn parts_of(body: &str) -> Vec<Range<usize>> {
    let mut parts = split::split(body);
    if parts.len() > 1 {
        let has_words = |part: &Range<usize>| body[part.clone()].contains(char::is_alphanumeric);
        let first = parts[0].clone();
        parts.retain(has_words);
        if parts.is_empty() {
            parts.push(first);
        }
    }
    parts
}

/// "[8 May 2023] Caroline: ". A time that cannot be read is shown as it is; none is left out.
fn prefix_of(message: &Message, today: Option<jiff::civil::Date>, speaker: Option<&str>) -> String {
    let date = match today {
        Some(today) => calendar::Period::Day(today).to_string(),
        None => shown_time(message.chat_time.as_deref().unwrap_or_default()),
    };
    let speaker = speaker.unwrap_or_else(|| message.role.as_str());
    if date.is_empty() { format!("{speaker}: ") } else { format!("[{date}] {speaker}: ") }
}

fn shown_time(chat_time: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let shown: String = chat_time.trim().chars().take(CHAT_TIME_CHARS_MAX).map(plain).collect();
    shown.trim().to_owned()
}

/// Every part of a message repeats what the caller said about it, so that must not be large.
fn bounded(text: Option<&str>) -> Option<String> {
    let text = text?;
    let end = (0..=TEXT_ID_BYTES_MAX.min(text.len())).rfind(|end| text.is_char_boundary(*end))?;
    Some(text[..end].to_owned())
}

/// Whether there is more than white space and invisible characters.
fn says_something(content: &str) -> bool {
    content.chars().any(|c| {
        !c.is_whitespace()
            && !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
    })
}

#[cfg(test)]
mod tests;
