//! The messages of a chat: instructions, what was said before, and what is said now.

use memcube_actors::cube::ChatTurn;
use memcube_schemas::{conversation::Role, limits::CHAT_MESSAGES_MAX};
use serde_json::Value;

use crate::gateway::errors::Failure;

/// A conversation up to the message that is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// The instructions at the beginning.
    pub(crate) preamble: String,
    /// What was said since.
    pub(crate) turns: Vec<ChatTurn>,
    /// What is said now.
    pub(crate) message: ChatTurn,
}

/// Reads the messages of a request.
pub(crate) fn parse(messages: &[Value]) -> Result<Said, Failure> {
    if messages.len() > CHAT_MESSAGES_MAX {
        let detail = format!(
            "{} messages, the limit is {CHAT_MESSAGES_MAX}; leave out old ones, the cube \
             remembers them",
            messages.len()
        );
        return Err(Failure::invalid(detail).about("messages"));
    }
    let read = messages.iter().enumerate().map(|(at, message)| parse_message(at, message));
    let mut turns: Vec<ChatTurn> = read.collect::<Result<_, _>>()?;
    let Some(message) = turns.pop() else {
        let detail = "`messages` is empty; send at least `{\"role\": \"user\", \"content\": ...}`";
        return Err(Failure::invalid(detail).about("messages"));
    };
    let last = format!("messages[{}]", turns.len());
    if !matches!(message.role, Role::User | Role::Tool) {
        let detail = format!(
            "the last message is of `{}`; it must be of `user`, or of `tool`, to be answered",
            message.role.as_str()
        );
        return Err(Failure::invalid(detail).about(last));
    }
    if message.text.trim().is_empty() {
        return Err(Failure::invalid("the last message is empty; say something").about(last));
    }
    let is_instruction = |turn: &ChatTurn| turn.role == Role::System;
    let instructions = turns.iter().take_while(|turn| is_instruction(turn)).count();
    let preamble: Vec<String> = turns.drain(..instructions).map(|turn| turn.text).collect();
    Ok(Said { preamble: preamble.join("\n\n"), turns, message })
}

fn parse_message(at: usize, message: &Value) -> Result<ChatTurn, Failure> {
    let refuse = |field: &str, reason: String| {
        let place = format!("messages[{at}]{field}");
        Failure::invalid(format!("`{place}` {reason}")).about(place)
    };
    let Some(fields) = message.as_object() else {
        let wanted = "is no object; write it as `{\"role\": \"user\", \"content\": \"...\"}`";
        return Err(refuse("", wanted.to_owned()));
    };
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system" | "developer") => Role::System,
        Some("tool") => Role::Tool,
        Some(other) => {
            let roles = "`system`, `developer`, `user`, `assistant` and `tool`";
            return Err(refuse(".role", format!("is `{other}`; there are {roles}")));
        }
        None => return Err(refuse(".role", "is missing, or is no text".to_owned())),
    };
    let text = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let read = parts.iter().enumerate().map(|(part_at, part)| {
                part_text(part).map_err(|reason| refuse(&format!(".content[{part_at}]"), reason))
            });
            read.collect::<Result<Vec<&str>, Failure>>()?.join("\n")
        }
        // An assistant that asked for tools said nothing.
        None | Some(Value::Null) if role == Role::Assistant => String::new(),
        None | Some(Value::Null) => {
            return Err(refuse(".content", "is missing; send a text".to_owned()));
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            let wanted = "must be a text, or a list of `{\"type\": \"text\", \"text\": ...}`";
            return Err(refuse(".content", wanted.to_owned()));
        }
    };
    let turn = ChatTurn::new(role, text);
    // A plain text is all that there is to know of the message.
    let is_plain = fields.keys().all(|field| field == "role" || field == "content");
    Ok(if is_plain { turn } else { turn.with_wire(message.to_string()) })
}

fn part_text(part: &Value) -> Result<&str, String> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("nothing");
    let text = match kind {
        "text" => part.get("text").and_then(Value::as_str),
        "refusal" => part.get("refusal").and_then(Value::as_str),
        other => {
            return Err(format!(
                "has the type `{other}`, which cannot be read here; parts of the type `text` are \
                 taken"
            ));
        }
    };
    text.ok_or_else(|| format!("has no `{kind}`"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: Value) -> Result<Said, (Option<String>, String)> {
        let Value::Array(messages) = messages else { panic!("a list") };
        parse(&messages).map_err(|failure| (failure.param, failure.detail))
    }

    #[test]
    fn instructions_stand_apart_and_the_last_message_is_answered() {
        let said = read(json!([
            {"role": "system", "content": "be kind"},
            {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
            {"role": "user", "content": "hello", "name": "ann"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            {"role": "system", "content": "it is late"},
            {"role": "user", "content": [
                {"type": "text", "text": "what"}, {"type": "text", "text": "is it"}]},
        ]))
        .expect("understood");
        assert_eq!(said.preamble, "be kind\n\nbe brief");
        let turns: Vec<(Role, &str)> =
            said.turns.iter().map(|turn| (turn.role, turn.text.as_str())).collect();
        assert_eq!(
            turns,
            [
                (Role::User, "hello"),
                (Role::Assistant, ""),
                (Role::Tool, "42"),
                (Role::System, "it is late"),
            ]
        );
        assert_eq!(said.message.text, "what\nis it");
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let user = json!({"role": "user", "content": "x"});
        for (messages, param, part) in [
            (json!([]), "messages", "`messages` is empty"),
            (json!([user, 7]), "messages[1]", "is no object"),
            (json!([{"content": "x"}]), "messages[0].role", "is missing"),
            (json!([{"role": "boss", "content": "x"}]), "messages[0].role", "is `boss`"),
            (json!([{"role": "user"}]), "messages[0].content", "is missing"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content", "must be a text"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                "messages[0].content[0]",
                "the type `image_url`, which cannot be read here; parts of the type `text`",
            ),
            (
                json!([{"role": "user", "content": [{"type": "text"}]}]),
                "messages[0].content[0]",
                "has no `text`",
            ),
            (json!([user, {"role": "assistant", "content": "y"}]), "messages[1]", "of `assistant`"),
            (json!([{"role": "system", "content": "y"}]), "messages[0]", "of `system`"),
            (json!([{"role": "user", "content": " \n"}]), "messages[0]", "is empty"),
        ] {
            let (place, detail) = read(messages.clone()).expect_err("refused");
            assert_eq!(place.as_deref(), Some(param), "{messages}");
            assert!(detail.contains(part), "{messages}: {detail}");
        }
        let many = vec![user; CHAT_MESSAGES_MAX + 1];
        assert!(parse(&many).expect_err("too many").detail.contains("the limit is 4096"));
    }
}
