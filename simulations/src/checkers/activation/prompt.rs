//! A prompt as a reader would see it: tokens back to messages, messages back to memories.

use std::ops::Range;

use memcube_actors::inference::{
    Token,
    scripted::{is_end, role_of},
};
use memcube_schemas::conversation::Role;

/// What stands above memories.
const HEADING: &str = "What you remember:\n";
/// What stands before each of them.
const BULLET: &str = "- ";

/// A message of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) text: String,
    /// Its tokens, marks included.
    pub(super) span: Range<usize>,
    /// Where the bytes of each token end in the text.
    ends: Vec<usize>,
}

/// A prompt, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Prompt {
    pub(super) messages: Vec<Message>,
    /// Whether it ends with the opening of a reply.
    pub(super) is_open: bool,
    /// Whether its last message has no end.
    pub(super) is_cut: bool,
}

/// A line about a memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The text of the memory, or the beginning of it.
    pub(super) text: String,
    /// The tokens that it is in.
    pub(super) span: Range<usize>,
    pub(super) is_whole: bool,
}

impl Prompt {
    /// Reads tokens; says where they are not those of messages.
    pub(super) fn read(tokens: &[Token]) -> Result<Self, String> {
        let mut prompt = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            let start = at;
            let Some(role) = role_of(tokens[at]) else {
                return Err(format!("token {at} begins no message"));
            };
            let (mut bytes, mut ends) = (Vec::new(), Vec::new());
            at += 1;
            while at < tokens.len() && !is_end(tokens[at]) {
                if role_of(tokens[at]).is_some() {
                    return Err(format!("token {at} begins a message in another one"));
                }
                bytes.extend(bytes_of(tokens[at]));
                ends.push(bytes.len());
                at += 1;
            }
            if at == tokens.len() && bytes.is_empty() && role == Role::Assistant {
                prompt.is_open = true;
                break;
            }
            prompt.is_cut = at == tokens.len();
            at += 1;
            // Pieces of characters stand at the end of a cut message only.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let span = start..at.min(tokens.len());
            prompt.messages.push(Message { role, text, span, ends });
        }
        Ok(prompt)
    }

    /// What is said to the model before anything else, in so many words.
    pub(super) fn instructions(&self) -> Vec<&str> {
        let system = self.messages.iter().filter(|message| message.role == Role::System);
        system
            .filter(|message| !message.is_memories())
            .map(|message| message.text.as_str())
            .collect()
    }

    /// What was said in the conversation.
    pub(super) fn turns(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|message| message.role != Role::System)
    }

    /// What it says about memories.
    pub(super) fn lines(&self) -> Vec<Line> {
        let memories = self.messages.iter().filter(|message| message.is_memories());
        memories.flat_map(Message::lines).collect()
    }
}

impl Message {
    fn is_memories(&self) -> bool {
        self.role == Role::System && self.text.starts_with(HEADING)
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut from = HEADING.len();
        for part in self.text[from..].split_inclusive('\n') {
            let to = from + part.len();
            let text = part.trim_end_matches('\n').trim_start_matches(BULLET).to_owned();
            let is_whole = part.ends_with('\n') && part.starts_with(BULLET);
            let span = self.token_at(from)..self.token_at(to - 1) + 1;
            lines.push(Line { text, span, is_whole });
            from = to;
        }
        lines
    }

    /// The token that a byte of the text is in.
    fn token_at(&self, byte: usize) -> usize {
        self.span.start + 1 + self.ends.iter().take_while(|end| **end <= byte).count()
    }
}

/// The bytes of a token, as the scripted engine writes them: how many, and up to three.
fn bytes_of(token: Token) -> Vec<u8> {
    let [length, bytes @ ..] = token.to_be_bytes();
    bytes[..usize::from(length).min(bytes.len())].to_vec()
}

/// The text of a reply.
pub(super) fn text_of(tokens: &[Token]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| bytes_of(*token)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use memcube_actors::inference::{
        ChatMessage, Engine,
        scripted::{ScriptedCosts, ScriptedEngine},
    };

    use super::*;

    #[test]
    fn a_prompt_is_read_back_to_its_words() {
        let engine = ScriptedEngine::new(1_000, 1 << 20, ScriptedCosts::default());
        let render = |role, pieces: &[&str]| {
            let pieces = pieces.iter().map(|piece| (*piece).to_owned()).collect();
            engine.render(&ChatMessage { role, pieces }, false).expect("rendered")
        };
        let memories = render(Role::System, &[HEADING, "- the sea\n", "- the café\n"]);
        let mut tokens = render(Role::System, &["be kind"]).tokens;
        let offset = tokens.len();
        tokens.extend(&memories.tokens);
        tokens.extend(render(Role::User, &["hello"]).tokens);
        let whole = tokens.len();
        tokens.extend(engine.open_reply());
        let prompt = Prompt::read(&tokens).expect("read");
        assert_eq!(prompt.instructions(), ["be kind"]);
        let turns: Vec<&str> = prompt.turns().map(|turn| turn.text.as_str()).collect();
        assert_eq!(turns, ["hello"]);
        assert!(prompt.is_open && !prompt.is_cut);
        let pieces: Vec<usize> = memories.piece_ends.iter().map(|end| end + offset).collect();
        let line = |text: &str, span| Line { text: text.to_owned(), span, is_whole: true };
        let expected =
            [line("the sea", pieces[0]..pieces[1]), line("the café", pieces[1]..pieces[2])];
        assert_eq!(prompt.lines(), expected);
        // The beginning of it.
        let cut = Prompt::read(&tokens[..pieces[1] - 1]).expect("read");
        assert!(cut.is_cut && !cut.is_open);
        assert_eq!(cut.lines()[0].text, "the sea");
        assert!(!cut.lines()[0].is_whole);
        // And what is none.
        assert!(Prompt::read(&tokens[1..]).is_err());
        assert!(Prompt::read(&[&tokens[..3], &tokens[..whole]].concat()).is_err());
    }
}
