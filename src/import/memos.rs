//! `MemOS` JSONL: each line is the body of a call of `/product/add`.

use memcube_schemas::conversation::{Message, Role};
use serde::Deserialize;
use serde_json::Value;

use super::{ImportError, ImportedConversation, cube_id, records::Record};

/// What `MemOS` calls the conversation of callers that name none.
const DEFAULT_CONVERSATION: &str = "default_session";

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    messages: Option<Messages>,
    /// The old name, for a plain text.
    #[serde(default)]
    memory_content: Option<String>,
    #[serde(default)]
    writable_cube_ids: Option<Vec<String>>,
    #[serde(default)]
    mem_cube_id: Option<Value>,
    #[serde(default)]
    user_id: Option<Value>,
    #[serde(default)]
    conversation_id: Option<Value>,
    #[serde(default)]
    session_id: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Messages {
    Text(String),
    List(Vec<Entry>),
}

/// A chat message, or a part of one message.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Option<Value>,
    #[serde(default)]
    chat_time: Option<Value>,
    #[serde(default)]
    message_id: Option<Value>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default, rename = "type")]
    part_type: Option<String>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    file: Option<Value>,
}

/// The conversation of one call; `None` if it holds no words.
pub(super) fn conversation(
    record: &Record,
    fallback: &str,
) -> Result<Option<ImportedConversation>, ImportError> {
    let expected = "the body of a MemOS add call, with `messages` as a text or a list of messages";
    let call: Call = record.read(expected)?;
    let messages = match (call.messages, call.memory_content) {
        (Some(Messages::Text(text)), _) | (None, Some(text)) => vec![user_message(text)],
        (Some(Messages::List(entries)), _) => read_entries(record, &entries)?,
        (None, None) => return Err(record.unexpected(expected, "no `messages`")),
    };
    let cube = call
        .writable_cube_ids
        .and_then(|ids| ids.into_iter().next())
        .or_else(|| id_text(call.mem_cube_id.as_ref()))
        .or_else(|| id_text(call.user_id.as_ref()))
        .unwrap_or_default();
    let conversation = id_text(call.conversation_id.as_ref())
        .or_else(|| id_text(call.session_id.as_ref()))
        .unwrap_or_default();
    let messages: Vec<Message> =
        messages.into_iter().filter(|message| !message.content.trim().is_empty()).collect();
    Ok((!messages.is_empty()).then(|| ImportedConversation {
        cube: cube_id(&cube, fallback),
        conversation: cube_id(&conversation, DEFAULT_CONVERSATION),
        messages,
    }))
}

fn read_entries(record: &Record, entries: &[Entry]) -> Result<Vec<Message>, ImportError> {
    // A bare list of parts is one message of the user.
    let is_parts = entries.iter().all(|entry| entry.role.is_none() && entry.part_type.is_some());
    if is_parts {
        let texts = entries.iter().filter_map(|entry| {
            entry.text.clone().or_else(|| entry.file.as_ref().and_then(file_text))
        });
        return Ok(vec![user_message(texts.collect::<Vec<_>>().join("\n"))]);
    }
    let mut messages = Vec::with_capacity(entries.len());
    for entry in entries {
        let role = match entry.role.as_deref() {
            Some("user" | "human") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("system" | "developer") => Role::System,
            Some("tool" | "function") => Role::Tool,
            Some(other) => {
                let expected = "a role `user`, `assistant`, `system` or `tool`";
                return Err(record.unexpected(expected, format!("the role `{other}`")));
            }
            // Schemas and results of tools come without a role.
            None => Role::Tool,
        };
        messages.push(Message {
            role,
            speaker: entry.name.clone().filter(|name| !name.trim().is_empty()),
            content: entry.content.as_ref().map(content_text).unwrap_or_default(),
            chat_time: id_text(entry.chat_time.as_ref()),
            message_id: id_text(entry.message_id.as_ref()),
        });
    }
    Ok(messages)
}

fn user_message(content: String) -> Message {
    Message { role: Role::User, speaker: None, content, chat_time: None, message_id: None }
}

/// A text, one part, or a list of parts. Pictures and sound are left out.
fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<String> =
                parts.iter().map(content_text).filter(|text| !text.is_empty()).collect();
            texts.join("\n")
        }
        Value::Object(part) => match (part.get("text"), part.get("file")) {
            (Some(Value::String(text)), _) => text.clone(),
            (_, Some(file)) => file_text(file).unwrap_or_default(),
            _ => String::new(),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => String::new(),
    }
}

/// The words of a file that was sent as plain text, and not as a link or in base64.
fn file_text(file: &Value) -> Option<String> {
    let data = file.get("file_data")?.as_str()?;
    let is_link = data.starts_with("http://") || data.starts_with("https://");
    let is_plain = !is_link && !data.starts_with("data:") && data.contains(char::is_whitespace);
    is_plain.then(|| data.to_owned())
}

/// An identifier or a time, which some callers send as a number.
fn id_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.trim().is_empty()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
