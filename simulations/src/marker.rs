//! Texts that say whose they are, and which memory they are.

use crate::dice::hash;

/// A text for a memory: it names its tenant and carries its marker.
#[must_use]
pub(crate) fn text(tenant: &str, marker: &str, topic: u32) -> String {
    format!("{tenant} remembers {marker} about topic{topic}")
}

/// A text that carries its marker, and does not tell whose it is.
#[must_use]
pub(crate) fn shared_text(marker: &str, topic: u32) -> String {
    format!("everybody knows {marker} about topic{topic}")
}

/// The marker of the `number`-th add of a client: one word, in the text of one memory only.
#[must_use]
pub(crate) fn marker(client: u32, number: u64) -> String {
    format!("mk{number:06}c{client}")
}

/// What an item is recognised by: the marker in its text, wherever it stands, or the text itself.
#[must_use]
pub(crate) fn marker_of(text: &str) -> Option<String> {
    Some(word_of(text).unwrap_or_else(|| format!("#{:016x}", hash(text.trim().as_bytes()))))
}

/// The marker in a text, if there is one.
#[must_use]
pub(crate) fn word_of(text: &str) -> Option<String> {
    let is_marker = |word: &&str| {
        word.strip_prefix("mk").is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_digit())
                && rest.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase())
        })
    };
    text.split_whitespace().find(is_marker).map(str::to_owned)
}

/// The tenant that a text names: the word before "remembers".
#[must_use]
pub(crate) fn tenant_of(text: &str) -> Option<String> {
    let mut former = None;
    for word in text.split_whitespace() {
        if word == "remembers" {
            return former.map(str::to_owned);
        }
        former = Some(word);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_tells_its_marker_and_its_tenant() {
        let made = text("acme", &marker(3, 17), 5);
        for text in [made.clone(), format!("[8 May 2023] Ann: {made}"), format!("{made} (1/2)")] {
            assert_eq!(marker_of(&text).as_deref(), Some("mk000017c3"));
            assert_eq!(tenant_of(&text).as_deref(), Some("acme"));
        }
        assert_eq!(word_of("the mkdir command"), None);
        assert_eq!(marker_of("the mkdir command"), marker_of(" the mkdir command\n"));
        assert_eq!(tenant_of("nobody"), None);
    }
}
