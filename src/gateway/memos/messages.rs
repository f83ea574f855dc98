//! The shapes in which MemOS's clients send messages: a string, chat messages, or bare parts.

use memcube_schemas::conversation::{Message, Role};
use serde_json::Value;

use crate::gateway::errors::Failure;

/// Reads the `messages` of a request.
pub(crate) fn parse(messages: Option<Value>) -> Result<Vec<Message>, Failure> {
    match messages {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![message(Role::User, text)]),
        Some(Value::Array(entries)) => {
            entries.iter().enumerate().map(|(index, entry)| parse_entry(index, entry)).collect()
        }
        Some(other) => Err(Failure::invalid(format!(
            "`messages` is {}; send a string or a list of `{{\"role\": …, \"content\": …}}`",
            kind(&other)
        ))),
    }
}

fn message(role: Role, content: String) -> Message {
    Message { role, speaker: None, content, chat_time: None, message_id: None }
}

fn parse_entry(index: usize, entry: &Value) -> Result<Message, Failure> {
    let refuse = |reason: String| Failure::invalid(format!("`messages[{index}]`: {reason}"));
    let Some(fields) = entry.as_object() else {
        return Err(refuse(format!("it is {}, not an object", kind(entry))));
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let Some(role) = fields.get("role") else {
        // A bare part: what the user attached.
        return Ok(message(Role::User, part_text(entry)));
    };
    let role = match role.as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system" | "developer") => Role::System,
        Some("tool" | "function") => Role::Tool,
        Some(other) => {
            return Err(refuse(format!(
                "`role` is `{other}`; it must be `user`, `assistant`, `system` or `tool`"
            )));
        }
        None => return Err(refuse(format!("`role` is {}", kind(role)))),
    };
    let content = match fields.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(content)) => content.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(part_text)
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join("\n"),
        Some(part @ Value::Object(_)) => part_text(part),
        Some(other) => return Err(refuse(format!("`content` is {}", kind(other)))),
    };
    Ok(Message {
        role,
        speaker: text("name"),
        content,
        chat_time: text("chat_time"),
        message_id: text("message_id"),
    })
}

/// The words of a part; other media say nothing here, a file says its raw text if it carries any.
fn part_text(part: &Value) -> String {
    let inner = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    match part.get("type").and_then(Value::as_str) {
        Some("text") | None => part.get("text").map(inner).unwrap_or_default(),
        Some("file") => file_text(part.get("file")),
        Some(_) => String::new(),
    }
}

/// Raw text of a file part; addresses are not fetched and encoded bytes are not read.
fn file_text(file: Option<&Value>) -> String {
    let data = file.and_then(|file| file.get("file_data")).and_then(Value::as_str).unwrap_or("");
    let is_address = data.starts_with("http://") || data.starts_with("https://");
    let is_encoded = data.starts_with("data:") || !data.contains(char::is_whitespace);
    if is_address || is_encoded { String::new() } else { data.to_owned() }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_shape_of_messages_is_read() {
        for (value, expected) in [
            (json!(null), vec![]),
            (json!("hello"), vec![(Role::User, "hello")]),
            (json!([{"role": "assistant", "content": "hi"}]), vec![(Role::Assistant, "hi")]),
            (
                json!([{"role": "user", "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image_url"},
                    {"type": "text", "text": "b"}
                ]}]),
                vec![(Role::User, "a\nb")],
            ),
            (json!([{"type": "text", "text": "bare"}]), vec![(Role::User, "bare")]),
            (
                json!([{"type": "file", "file": {"file_data": "raw text here", "file_id": "1"}}]),
                vec![(Role::User, "raw text here")],
            ),
            (json!([{"role": "assistant", "content": null}]), vec![(Role::Assistant, "")]),
        ] {
            let messages = parse(Some(value.clone())).expect("it is valid");
            let read: Vec<(Role, &str)> =
                messages.iter().map(|message| (message.role, message.content.as_str())).collect();
            assert_eq!(read, expected, "{value}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (value, part) in [
            (json!(7), "`messages` is a number"),
            (json!([7]), "`messages[0]`: it is a number"),
            (json!([{"role": "user", "content": "a"}, {"role": "boss"}]), "`messages[1]`: `role`"),
            (json!([{"role": "user", "content": 3}]), "`content` is a number"),
        ] {
            let failure = parse(Some(value.clone())).expect_err("it is not valid");
            assert!(failure.detail.contains(part), "{} for {value}", failure.detail);
        }
    }
}
