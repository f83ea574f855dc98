//! Finds out who speaks: from the message, or from a name at the start of its words.

use memcube_schemas::conversation::{Message, Role};

/// Characters of a speaker's name as it is shown.
const SPEAKER_CHARS_MAX: usize = 64;
/// Characters of a name that is taken from the start of a text.
const LEADING_NAME_CHARS_MAX: usize = 40;
/// Words of such a name.
const LEADING_NAME_WORDS_MAX: usize = 3;

/// Words that stand before a colon and name no person. In lower case, sorted.
#[rustfmt::skip]
const LABELS: [&str; 201] = [
    "a", "about", "action", "actions", "additional", "address", "advantages", "agenda", "all",
    "also", "an", "and", "announcement", "answer", "any", "april", "are", "at", "attention",
    "august", "background", "benefits", "best", "bonus", "both", "budget", "bug", "but", "caution",
    "cc", "challenge", "challenges", "chapter", "code", "comment", "cons", "content", "context",
    "cost", "costs", "data", "date", "day", "deadline", "dear", "december", "details", "disclaimer",
    "draft", "each", "edit", "email", "error", "example", "examples", "facts", "february",
    "feedback", "fix", "focus", "follow", "for", "format", "friday", "from", "fwd", "fyi", "goal",
    "goals", "here", "hint", "how", "i", "idea", "ideas", "if", "important", "in", "info",
    "ingredients", "input", "issue", "issues", "it", "january", "july", "june", "key", "language",
    "level", "link", "links", "list", "location", "main", "march", "may", "meeting", "message",
    "monday", "my", "name", "new", "next", "no", "not", "note", "notes", "november", "objective",
    "october", "ok", "on", "one", "option", "options", "or", "output", "overview", "part", "phase",
    "phone", "plan", "please", "point", "points", "poll", "problem", "project", "prompt", "pros",
    "ps", "purpose", "q", "quote", "re", "reason", "recipe", "remember", "reminder", "request",
    "requirements", "response", "result", "results", "role", "saturday", "schedule", "section",
    "september", "so", "solution", "source", "spoiler", "step", "steps", "subject", "summary",
    "sunday", "sure", "task", "tasks", "thanks", "that", "the", "then", "these", "things", "this",
    "thursday", "time", "tip", "tips", "title", "to", "today", "todo", "tomorrow", "topic", "total",
    "tuesday", "two", "type", "update", "url", "use", "via", "warning", "wednesday", "week", "well",
    "what", "when", "where", "who", "why", "with", "yes", "yesterday", "you", "your",
];
/// Endings of nouns that are no names.
const NOUN_ENDINGS: [&str; 8] =
    ["tion", "tions", "sion", "sions", "ments", "ness", "ities", "ings"];

/// Who speaks, and what is left of the text without the name before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spoken<'a> {
    /// The name, if there is one.
    pub(super) speaker: Option<String>,
    /// The words.
    pub(super) body: &'a str,
}

/// Tells the speaker of a message from its `speaker`, or else from a leading "Name: ".
pub(super) fn speaker_of(message: &Message) -> Spoken<'_> {
    let content = message.content.trim();
    let given = message.speaker.as_deref().map(shown_name).filter(|name| !name.is_empty());
    let Some((label, body)) = leading_label(content) else {
        return Spoken { speaker: given, body: content };
    };
    match given {
        Some(name) if is_name_of(label, &name) => Spoken { speaker: Some(name), body },
        Some(name) => Spoken { speaker: Some(name), body: content },
        None if is_role_label(label, message.role) => Spoken { speaker: None, body },
        None if is_name(label) => Spoken { speaker: Some(label.to_owned()), body },
        None => Spoken { speaker: None, body: content },
    }
}

/// A name on one line and of bounded length.
fn shown_name(name: &str) -> String {
    let words: Vec<&str> = name
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .collect();
    words.join(" ").chars().take(SPEAKER_CHARS_MAX).collect()
}

/// What stands before the first colon, and what follows it on the same line.
fn leading_label(content: &str) -> Option<(&str, &str)> {
    let bytes_max =
        content.char_indices().nth(SPEAKER_CHARS_MAX + 1).map_or(content.len(), |(bytes, _)| bytes);
    let colon = content[..bytes_max].find([':', '：'])?;
    let is_wide = content[colon..].starts_with('：');
    let after = &content[colon + if is_wide { '：'.len_utf8() } else { 1 }..];
    let body = after.trim_start_matches([' ', '\t', '\u{a0}', '\u{3000}']);
    let is_apart = is_wide || body.len() < after.len();
    // A label with a line of its own is a heading.
    let says_something = !body.is_empty() && !body.starts_with(['\n', '\r']);
    (is_apart && says_something).then_some((&content[..colon], body))
}

/// Whether the label repeats the name, or the first part of it.
fn is_name_of(label: &str, name: &str) -> bool {
    let label = label.to_lowercase();
    let name = name.to_lowercase();
    name == label || name.strip_prefix(&label).is_some_and(|rest| rest.starts_with(' '))
}

fn is_role_label(label: &str, role: Role) -> bool {
    role.as_str().eq_ignore_ascii_case(label)
}

/// One to three capitalised words that are not known as labels.
fn is_name(label: &str) -> bool {
    let words: Vec<&str> = label.split(' ').collect();
    label.chars().count() <= LEADING_NAME_CHARS_MAX
        && words.len() <= LEADING_NAME_WORDS_MAX
        && words.iter().enumerate().all(|(position, word)| is_name_word(word, position))
}

fn is_name_word(word: &str, position: usize) -> bool {
    // "Speaker 2", "User 17".
    if position > 0
        && word.len() <= 4
        && word.chars().all(|c| c.is_ascii_digit())
        && !word.is_empty()
    {
        return true;
    }
    let begins_name = word.chars().next().is_some_and(|c| c.is_alphabetic() && !c.is_lowercase());
    let is_plain =
        word.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '\'' | '’' | '.' | '_'));
    let lower = word.to_lowercase();
    let is_label = LABELS.binary_search(&lower.as_str()).is_ok()
        || (word.len() >= 7 && NOUN_ENDINGS.iter().any(|ending| lower.ends_with(ending)));
    begins_name && is_plain && !is_label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speakers_are_found_in_the_message_or_its_words() {
        let check = |given: Option<&str>, content: &str, speaker: Option<&str>, body: &str| {
            let message = Message {
                role: Role::User,
                speaker: given.map(str::to_owned),
                content: content.to_owned(),
                chat_time: None,
                message_id: None,
            };
            let want = Spoken { speaker: speaker.map(str::to_owned), body };
            assert_eq!(speaker_of(&message), want, "{given:?} {content:?}");
        };
        check(None, "hello", None, "hello");
        check(None, "Vera: hello", Some("Vera"), "hello");
        check(None, "Vera Ní Dhuibhne: hello", Some("Vera Ní Dhuibhne"), "hello");
        check(None, "Anne-Marie O'Hara: hello", Some("Anne-Marie O'Hara"), "hello");
        check(None, "Speaker 2: hello", Some("Speaker 2"), "hello");
        check(None, "小明：你好", Some("小明"), "你好");
        check(None, "user: hello", None, "hello");
        check(Some("Vera"), "hello", Some("Vera"), "hello");
        check(Some("Vera"), "Vera: hello", Some("Vera"), "hello");
        check(Some("Vera Smith"), "Vera: hello", Some("Vera Smith"), "hello");
        check(Some("Vera"), "Note: hello", Some("Vera"), "Note: hello");
        check(Some(" Vera\n Smith "), "hello", Some("Vera Smith"), "hello");
        check(Some("  "), "hello", None, "hello");
        for text in [
            "Note: hello",
            "Question: why?",
            "Step 1: boil water",
            "Key Features: many",
            "Ingredients:\n- salt",
            "Recommendations: none",
            "Dear Vera: hello",
            "https://example.org: a page",
            "Https://example.org",
            "10:30 is fine",
            "Meet at 10: fine",
            "Vera:hello",
            "Vera:",
            "vera: hello",
            "What I want: hello",
            "A B C D: hello",
            ": hello",
            "Monday: gym",
        ] {
            check(None, text, None, text);
        }
        let long = format!("{}: hello", "V".repeat(50));
        check(None, &long, None, &long);
    }

    #[test]
    fn labels_are_sorted() {
        assert!(LABELS.is_sorted());
    }
}
