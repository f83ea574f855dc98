//! Contexts as messages, for a model that runs elsewhere. Pure.
//!
//! Invariant: what is appended to a context changes no message before it, apart from memories that
//! get what is said below them. So the text of a prompt is a prefix of the text of the next one.
//!
//! Many servers take instructions at the start only, and want turns that alternate. So memories
//! stand in the first message as long as nothing was said, and later at the top of the next thing
//! that a person says. A result never stands apart from the call of its tool.

use memcube_schemas::{ConversationId, MemoryId, ModelId, conversation::Role};

use super::{ChatTurn, EngineResult, HEADING, Part, Placed, Plan, Renderer};
use crate::inference::remote::{MESSAGE_TOKENS, RemoteTurn};

/// What the last message of a prompt says that is sent ahead of an answer, where a person has to
/// have the last word.
const NOTHING: &str = ".";

/// How texts become messages, and what they count.
#[derive(Debug, Clone)]
pub(crate) struct Wording {
    pub(crate) model: ModelId,
    /// Tokens of 1,000 bytes of text.
    pub(crate) tokens_per_1000_bytes: u64,
}

impl Wording {
    /// Tokens of so many bytes, rounded up.
    pub(crate) fn tokens_of(&self, bytes: usize) -> usize {
        let tokens = (bytes as u64).saturating_mul(self.tokens_per_1000_bytes).div_ceil(1_000);
        usize::try_from(tokens).unwrap_or(usize::MAX)
    }
}

/// A part of a context: how many bytes and tokens it has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted {
    bytes: usize,
    tokens: usize,
}

/// A prompt of messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Messages {
    pub(crate) turns: Vec<RemoteTurn>,
    pub(crate) memories: Vec<MemoryId>,
    pub(crate) bytes: usize,
    pub(crate) tokens: usize,
}

impl Renderer for Wording {
    type Laid = Counted;
    type Prompt = Messages;

    fn model(&self) -> &ModelId {
        &self.model
    }

    fn lay(&self, part: &mut Part, _is_first: bool) -> EngineResult<Counted> {
        let bytes = match part {
            Part::Preamble(text) if text.is_empty() => return Ok(Counted::default()),
            Part::Preamble(text) => text.len(),
            Part::Memories(memories) => {
                let mut bytes = HEADING.len();
                for placed in memories {
                    let line = line(placed).len();
                    placed.tokens = self.tokens_of(line);
                    bytes += line;
                }
                bytes
            }
            Part::Turn(turn) => turn.wire.as_ref().map_or(turn.text.len(), |wire| wire.len()),
        };
        Ok(Counted { bytes, tokens: self.tokens_of(bytes) + MESSAGE_TOKENS })
    }

    fn tokens(&self, laid: &Counted) -> usize {
        laid.tokens
    }

    fn opening_tokens(&self) -> usize {
        MESSAGE_TOKENS
    }

    fn join(
        &self,
        _conversation: &ConversationId,
        plan: &Plan,
        laid: Vec<Counted>,
        is_answered: bool,
    ) -> Messages {
        let mut messages = Messages {
            bytes: laid.iter().map(|part| part.bytes).sum(),
            tokens: laid.iter().map(|part| part.tokens).sum::<usize>() + self.opening_tokens(),
            ..Messages::default()
        };
        let (mut waiting, mut is_begun) = (String::new(), false);
        for part in &plan.parts {
            match part {
                Part::Preamble(text) => messages.instruct(text),
                Part::Memories(memories) => {
                    messages.memories.extend(memories.iter().map(|placed| placed.item.id));
                    if is_begun {
                        remember(&mut waiting, memories);
                    } else {
                        let mut text = String::new();
                        remember(&mut text, memories);
                        messages.instruct(&text);
                    }
                }
                Part::Turn(turn) => {
                    is_begun = true;
                    messages.say(turn, &mut waiting);
                }
            }
        }
        messages.flush(&mut waiting);
        let has_last_word = messages.turns.last().is_some_and(|turn| turn.role == Role::User);
        if !is_answered && !has_last_word {
            messages.turns.push(message(Role::User, String::new(), NOTHING));
        }
        messages
    }
}

impl Messages {
    /// Appends to the first message.
    fn instruct(&mut self, text: &str) {
        match self.turns.last_mut() {
            _ if text.is_empty() => {}
            Some(first) => {
                first.text.push_str("\n\n");
                first.text.push_str(text);
            }
            None => self.turns.push(message(Role::System, String::new(), text)),
        }
    }

    fn say(&mut self, turn: &ChatTurn, waiting: &mut String) {
        let ChatTurn { role, text, wire } = turn;
        let memories = match role {
            Role::User => std::mem::take(waiting),
            // Results of tools stand directly behind the calls.
            Role::Tool => String::new(),
            Role::Assistant | Role::System => {
                self.flush(waiting);
                String::new()
            }
        };
        // A result that names no call is understood by nobody; as something said it is.
        let role = if *role == Role::Tool && wire.is_none() { Role::User } else { *role };
        self.turns.push(RemoteTurn { role, memories, text: text.clone(), wire: wire.clone() });
    }

    /// Memories below which nothing is said.
    fn flush(&mut self, waiting: &mut String) {
        if !waiting.is_empty() {
            self.turns.push(message(Role::User, std::mem::take(waiting), ""));
        }
    }
}

fn message(role: Role, memories: String, text: &str) -> RemoteTurn {
    RemoteTurn { role, memories, text: text.to_owned(), wire: None }
}

fn line(placed: &Placed) -> String {
    format!("- {}\n", placed.item.text)
}

fn remember(text: &mut String, memories: &[Placed]) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(HEADING);
    text.extend(memories.iter().map(line));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cube::context::{Layout, Wanted, lay_out, replied, tests::*},
        inference::remote::{RemoteRequest, scripted::prompt},
    };

    fn wording() -> Wording {
        let model = ModelId::new("elsewhere").expect("valid");
        Wording { model, tokens_per_1000_bytes: 250 }
    }

    fn shown(messages: &Messages) -> Vec<(&'static str, String)> {
        messages.turns.iter().map(|turn| (turn.role.as_str(), turn.content())).collect()
    }

    fn text(messages: &Messages) -> String {
        prompt(&RemoteRequest {
            messages: messages.turns.clone(),
            sampling: crate::inference::Sampling::GREEDY,
            seed: 0,
            tokens_max: 1,
            stops: Vec::new(),
            extra: None,
        })
    }

    fn next(
        known: Option<&memcube_schemas::activation::ContextRecord>,
        wanted: &Wanted,
    ) -> Layout<Messages> {
        let items = known.map(items);
        lay_out(&talk(), known.zip(items.as_deref()), wanted, &wording()).expect("laid out")
    }

    fn lines(numbers: &[u64]) -> String {
        let line = |number: &u64| format!("- fact {number} as of 1\n");
        format!("{HEADING}{}", numbers.iter().map(line).collect::<String>())
    }

    #[test]
    fn memories_stand_first_or_above_what_is_said() {
        let first = next(None, &wanted(&[], "hello", &[3, 1]));
        let opening = ("system", format!("be kind\n\n{}", lines(&[1, 3])));
        assert_eq!(shown(&first.prompt), [opening.clone(), ("user", "hello".to_owned())]);
        assert_eq!(first.prompt.memories.len(), 2);
        let mut record = first.record;
        replied(&mut record, "hi", 1);
        let turns = [turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
        let second = next(Some(&record), &wanted(&turns, "who?", &[3, 2]));
        let who = ("user", format!("{}\nwho?", lines(&[2])));
        let hello = ("user", "hello".to_owned());
        let hi = ("assistant", "hi".to_owned());
        assert_eq!(shown(&second.prompt), [opening, hello, hi, who]);
        assert!(text(&second.prompt).starts_with(&text(&first.prompt)));
    }

    #[test]
    fn ahead_of_an_answer_a_person_has_the_last_word() {
        // Turns, memories wanted, what stands last.
        let said = [turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
        let table: [(&[ChatTurn], &[u64], String); 4] = [
            (&said, &[], NOTHING.to_owned()),
            (&said, &[2], lines(&[2])),
            (&said[..1], &[], "hello".to_owned()),
            (&[], &[], NOTHING.to_owned()),
        ];
        for (turns, memories, last) in table {
            let ahead = Wanted { message: None, ..wanted(turns, "", memories) };
            let ahead = next(None, &ahead).prompt;
            assert_eq!(shown(&ahead).last(), Some(&("user", last)), "{turns:?}");
        }
        let ahead = next(None, &Wanted { message: None, ..wanted(&said, "", &[2]) });
        let then = next(Some(&ahead.record), &wanted(&said, "who?", &[2, 4]));
        assert!(text(&then.prompt).starts_with(&text(&ahead.prompt)), "what was read is a prefix");
    }

    #[test]
    fn results_stay_with_the_calls_of_their_tools() {
        let call = r#"{"role":"assistant","content":null,"tool_calls":[{"id":"a"},{"id":"b"}]}"#;
        let result = r#"{"role":"tool","tool_call_id":"a","content":"noon"}"#;
        let mut turns = vec![
            turn(Role::User, "what time is it?"),
            turn(Role::Assistant, "").with_wire(call),
            turn(Role::Tool, "noon").with_wire(result),
        ];
        let asked = Wanted {
            message: Some(turn(Role::Tool, "late").with_wire(result)),
            ..wanted(&turns, "", &[1])
        };
        let first = next(None, &asked);
        let roles = |messages: &Messages| -> Vec<&str> {
            messages.turns.iter().map(|turn| turn.role.as_str()).collect()
        };
        let expected = ["system", "user", "assistant", "tool", "tool", "user"];
        assert_eq!(roles(&first.prompt), expected, "memories wait until all results are there");
        let mut record = first.record;
        replied(&mut record, "It is noon.", 4);
        turns.extend([asked.message.expect("said"), turn(Role::Assistant, "It is noon.")]);
        let second = next(Some(&record), &wanted(&turns, "thanks", &[1]));
        assert!(text(&second.prompt).starts_with(&text(&first.prompt)));
        // Without its call, a result is something that was said.
        let alone = next(None, &wanted(&[turn(Role::Tool, "noon")], "so?", &[]));
        assert_eq!(roles(&alone.prompt), ["system", "user", "user"]);
    }

    #[test]
    fn what_leaves_for_want_of_room_takes_its_results_along() {
        let long = "word ".repeat(200);
        let wire = format!(r#"{{"content":"{long}"}}"#);
        let turns = [
            turn(Role::User, &long),
            turn(Role::Assistant, &long).with_wire(wire.as_str()),
            turn(Role::Tool, &long).with_wire(wire.as_str()),
            turn(Role::Tool, &long).with_wire(wire.as_str()),
            turn(Role::User, "short"),
        ];
        // Tokens that fit, and who speaks then.
        let all = ["system", "user", "assistant", "tool", "tool", "user", "user"];
        let table: [(usize, &[&str]); 4] = [
            (1_200, &all),
            (1_000, &["system", "assistant", "tool", "tool", "user", "user"]),
            (700, &["system", "user", "user"]),
            (60, &["system", "user", "user"]),
        ];
        for (tokens_max, expected) in table {
            let wanted = Wanted { tokens_max, ..wanted(&turns, "hello", &[1, 2]) };
            let laid = next(None, &wanted);
            let roles: Vec<&str> = shown(&laid.prompt).iter().map(|(role, _)| *role).collect();
            assert_eq!(roles, expected, "{tokens_max} tokens");
            assert!(laid.prompt.tokens <= tokens_max, "{} tokens", laid.prompt.tokens);
            assert_eq!(laid.turns_left_out, all.len() - roles.len(), "{tokens_max} tokens");
        }
    }
}
