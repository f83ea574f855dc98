//! Texts of an exact number of tokens.

use memcube_actors::{
    Error, Result,
    cube::MEMORIES_HEADING,
    inference::{ChatMessage, Engine, EngineError},
};
use memcube_schemas::conversation::Role;

use crate::bench::words::Words;

/// Fewer would not hold what stands around a text.
pub(super) const TOKENS_MIN: usize = 64;
/// Tokens of one memory.
const MEMORY_TOKENS: usize = 40;
/// A word of one token, to fill up with.
const FILLER: &str = " and";

pub(super) fn failed(error: EngineError) -> Error {
    Error::internal(error.to_string())
}

/// Memories that make a context of exactly so many tokens.
pub(super) fn memories(engine: &dyn Engine, words: &Words, tokens: usize) -> Result<Vec<String>> {
    let heading = message(Role::System, MEMORIES_HEADING);
    let around = engine.render(&heading, true).map_err(failed)?.tokens.len();
    let mut left = tokens.saturating_sub(around);
    let mut memories = Vec::new();
    while left > 0 {
        let share = if left < 2 * MEMORY_TOKENS { left } else { MEMORY_TOKENS };
        memories.push(text(engine, words, share, "It", |text| {
            Ok(engine.tokenize(&format!("- {text}\n")).map_err(failed)?.len())
        })?);
        left -= share;
    }
    Ok(memories)
}

/// What a user says in exactly so many tokens, the opening of the reply included.
pub(super) fn query(engine: &dyn Engine, words: &Words, tokens: usize) -> Result<String> {
    let opening = engine.open_reply().len();
    text(engine, words, tokens.saturating_sub(opening), "Tell", |text| {
        let rendered = engine.render(&message(Role::User, text), false).map_err(failed)?;
        Ok(rendered.tokens.len())
    })
}

fn message(role: Role, text: &str) -> ChatMessage {
    ChatMessage { role, pieces: vec![text.to_owned()] }
}

/// Random words behind a first one, until `count` says that they are enough.
fn text(
    engine: &dyn Engine,
    words: &Words,
    tokens: usize,
    first: &str,
    count: impl Fn(&str) -> Result<usize>,
) -> Result<String> {
    let mut text = first.to_owned();
    let mut held = count(&text)?;
    while held < tokens {
        let word = format!(" {}", words.text(1..2));
        let more = engine.tokenize(&word).map_err(failed)?.len();
        let (word, more) = if held + more > tokens { (FILLER, 1) } else { (word.as_str(), more) };
        text.push_str(word);
        held += more;
    }
    let found = count(&text)?;
    if found == tokens {
        Ok(text)
    } else {
        Err(Error::internal(format!("a text of {tokens} tokens came out with {found}")))
    }
}
