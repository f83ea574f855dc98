//! `LoCoMo` JSON: one cube per sample, one conversation per session.

use std::collections::BTreeMap;

use memcube_schemas::conversation::Message;
use serde::Deserialize;
use serde_json::Value;

use super::{
    ImportError, ImportedConversation, cube_id, records::Record, role_of_speaker, with_caption,
};

#[derive(Deserialize)]
struct Turn {
    speaker: String,
    #[serde(default)]
    dia_id: Option<String>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    blip_caption: Option<String>,
}

/// The sessions of one sample, by their numbers.
pub(super) fn sessions(
    record: &Record,
    fallback: &str,
) -> Result<Vec<ImportedConversation>, ImportError> {
    let mut sample: BTreeMap<String, Value> = record.read("a LoCoMo sample")?;
    let name = match sample.get("sample_id") {
        Some(Value::String(id)) => format!("locomo/{id}"),
        Some(Value::Number(id)) => format!("locomo/{id}"),
        _ => format!("{fallback}/line-{}", record.line),
    };
    let cube = cube_id(&name, fallback);
    let conversation = match sample.remove("conversation") {
        Some(Value::Object(fields)) => fields.into_iter().collect(),
        Some(other) => {
            return Err(record.unexpected("`conversation` to be an object", kind_of(&other)));
        }
        // Some copies of the data leave the outer object away.
        None => sample,
    };
    let mut numbers: Vec<u64> = conversation.keys().filter_map(|key| session_number(key)).collect();
    numbers.sort_unstable();
    if numbers.is_empty() {
        return Err(record.unexpected("a conversation with `session_1`", "no session"));
    }
    let mut sessions = Vec::with_capacity(numbers.len());
    for number in numbers {
        let messages = messages(record, &conversation, number)?;
        if !messages.is_empty() {
            let id = cube_id(&format!("session-{number} of {cube}"), fallback);
            sessions.push(ImportedConversation { cube: cube.clone(), conversation: id, messages });
        }
    }
    Ok(sessions)
}

fn session_number(key: &str) -> Option<u64> {
    key.strip_prefix("session_")?.parse().ok()
}

fn messages(
    record: &Record,
    conversation: &BTreeMap<String, Value>,
    number: u64,
) -> Result<Vec<Message>, ImportError> {
    let key = format!("session_{number}");
    let turns = conversation.get(&key).cloned().unwrap_or_default();
    let turns: Vec<Turn> = serde_json::from_value(turns).map_err(|error| {
        let expected = format!("`{key}` of the sample to be a list of turns");
        record.unexpected(&expected, error.to_string())
    })?;
    let chat_time = conversation.get(&format!("{key}_date_time")).and_then(Value::as_str);
    let message = |turn: Turn| {
        let (role, speaker) = role_of_speaker(&turn.speaker);
        Message {
            role,
            speaker,
            content: with_caption(&turn.text, turn.blip_caption.as_deref()),
            chat_time: chat_time.map(str::to_owned),
            message_id: turn.dia_id,
        }
    };
    Ok(turns.into_iter().map(message).collect())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
