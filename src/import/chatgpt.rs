//! `conversations.json` of a `ChatGPT` export: a list of trees, of which the last branch is read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use memcube_schemas::conversation::{Message, Role};
use serde::Deserialize;
use serde_json::Value;

use super::{ImportError, ImportedConversation, cube_id, records::Record};

/// The cube that is suggested for all conversations of an export: they are of one person.
const CUBE: &str = "chatgpt";

#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    conversation_id: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    create_time: Option<f64>,
    #[serde(default)]
    current_node: Option<String>,
    mapping: BTreeMap<String, Node>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    children: Vec<String>,
    #[serde(default)]
    message: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    id: Option<String>,
    author: Author,
    #[serde(default)]
    create_time: Option<f64>,
    #[serde(default)]
    content: Option<Content>,
    /// Whom it is meant for: `all`, or a tool.
    #[serde(default)]
    recipient: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Author {
    role: String,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    content_type: String,
    #[serde(default)]
    parts: Vec<Value>,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    is_visually_hidden_from_user: Option<bool>,
}

/// The branch of a conversation that its user saw last; `None` if nothing was said in it.
pub(super) fn conversation(record: &Record) -> Result<Option<ImportedConversation>, ImportError> {
    let expected = "a ChatGPT conversation with a `mapping` of nodes";
    let mut tree: Conversation = record.read(expected)?;
    let begun = tree.create_time;
    let branch = branch(&tree);
    let mut messages = Vec::new();
    for id in branch {
        let Some(said) = tree.mapping.get_mut(&id).and_then(|node| node.message.take()) else {
            continue;
        };
        messages.extend(message(said, begun));
    }
    let id = [tree.conversation_id, tree.id, tree.title].into_iter().flatten().next();
    let fallback = format!("chatgpt-line-{}", record.line);
    Ok((!messages.is_empty()).then(|| ImportedConversation {
        cube: CUBE.to_owned(),
        conversation: cube_id(&id.unwrap_or_default(), &fallback),
        messages,
    }))
}

/// The nodes from the root to the current one.
fn branch(tree: &Conversation) -> Vec<String> {
    let known = |id: &&String| tree.mapping.contains_key(*id);
    let mut next = tree.current_node.as_ref().filter(known).or_else(|| latest_leaf(tree));
    let mut branch = Vec::new();
    while let Some(id) = next {
        // A tree has no loops; a damaged file may.
        if branch.len() >= tree.mapping.len() {
            break;
        }
        branch.push(id.clone());
        next = tree.mapping.get(id).and_then(|node| node.parent.as_ref()).filter(known);
    }
    branch.reverse();
    branch
}

fn latest_leaf(tree: &Conversation) -> Option<&String> {
    let time = |node: &Node| {
        node.message.as_ref().and_then(|message| message.create_time).unwrap_or(f64::NEG_INFINITY)
    };
    tree.mapping
        .iter()
        .filter(|(_, node)| node.children.is_empty())
        .max_by(|(_, a), (_, b)| time(a).total_cmp(&time(b)))
        .map(|(id, _)| id)
}

fn message(said: Said, begun: Option<f64>) -> Option<Message> {
    let role = match said.author.role.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        "system" => Role::System,
        _ => return None,
    };
    let is_hidden =
        said.metadata.is_some_and(|metadata| metadata.is_visually_hidden_from_user == Some(true));
    // What the model writes to a tool is no answer to the person.
    let is_for_tool = said.recipient.is_some_and(|recipient| recipient != "all");
    let content = said.content.map(content_text).unwrap_or_default();
    if is_hidden || is_for_tool || content.trim().is_empty() {
        return None;
    }
    Some(Message {
        role,
        speaker: said.author.name.filter(|name| role == Role::User && !name.trim().is_empty()),
        content,
        chat_time: said.create_time.or(begun).and_then(iso_time),
        message_id: said.id,
    })
}

/// What was said or written; thoughts, settings and pictures are left out.
fn content_text(content: Content) -> String {
    match content.content_type.as_str() {
        "text" | "multimodal_text" | "" => {
            let texts: Vec<String> = content.parts.into_iter().filter_map(part_text).collect();
            if texts.is_empty() { content.text.unwrap_or_default() } else { texts.join("\n") }
        }
        "code" | "execution_output" => content.text.unwrap_or_default(),
        _ => String::new(),
    }
}

fn part_text(part: Value) -> Option<String> {
    let text = match part {
        Value::String(text) => text,
        // What was spoken is kept as text beside its sound.
        Value::Object(mut fields) => match fields.remove("text")? {
            Value::String(text) => text,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => {
                return None;
            }
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => return None,
    };
    Some(text).filter(|text| !text.trim().is_empty())
}

/// Unix seconds as ISO 8601, to the second.
fn iso_time(seconds: f64) -> Option<String> {
    const SECONDS_MAX: f64 = 2.0e11;
    if !(0.0..SECONDS_MAX).contains(&seconds) {
        return None;
    }
    Timestamp::from_second(seconds as i64).ok().map(|time| time.to_string())
}
