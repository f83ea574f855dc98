//! What the form of an item says about its worth as an answer, found once when the item comes in.

use memcube_schemas::{
    conversation::Role,
    memory::{MemoryItem, MemoryKind},
};

use super::{
    analysis::words,
    rank::weights::{
        LENGTH, LENGTH_FULL_TERMS, PERSONAL, QUESTION, QUESTION_TERMS_MAX, ROLE, TIME_WORDS,
    },
};

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
/// Words of somebody who speaks of themselves.
const FIRST_PERSON: [&str; 7] = ["i", "me", "mine", "my", "our", "us", "we"];
/// Words that place an event in time.
const TIME: [&str; 9] =
    ["ago", "just", "recently", "since", "today", "tomorrow", "tonight", "weekend", "yesterday"];

/// A day, a month (day 0) or a year (month 0) that an item speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) year: i32,
    pub(crate) month: u8,
    pub(crate) day: u8,
}

/// What is known of an item besides its words.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    /// First name of the speaker, lower-case; `None` for mere roles.
    pub(crate) speaker: Option<String>,
    /// Added to the score whatever is asked.
    pub(crate) prior: f32,
    /// When it was said, and the dates that it names.
    pub(crate) moments: Vec<Moment>,
    /// It was given as a statement: nobody speaks, and it may be about anybody.
    pub(crate) is_fact: bool,
}

/// Looks at an item; `terms` is the number of index terms in its own words.
pub(crate) fn form(item: &MemoryItem, body: &str, terms: usize) -> Form {
    let body_words = words(body);
    let speaker = item.speaker.as_deref().and_then(first_name);
    // An assistant with a person's name in front of its words is a person: dialogues between two
    // people arrive as `user` and `assistant`.
    let is_person = item.role != Role::Assistant || speaker.is_some();
    // A fact was given as such: nobody speaks in it, and it is no question whatever its form.
    let is_fact = item.kind == MemoryKind::Fact;
    let is_first_person = |word: &String| FIRST_PERSON.contains(&word.as_str());
    let is_personal = is_fact || body_words.iter().any(is_first_person);
    let is_question = !is_fact && body.trim_end().ends_with('?') && terms < QUESTION_TERMS_MAX;
    let mut prior = LENGTH * (terms as f32).min(LENGTH_FULL_TERMS) / LENGTH_FULL_TERMS;
    for (holds, weight) in [
        (is_person, ROLE),
        (is_personal, PERSONAL),
        (is_question, QUESTION),
        (has_time_words(&body_words), TIME_WORDS),
    ] {
        prior += if holds { weight } else { 0.0 };
    }
    let mut moments: Vec<Moment> = dates_in_brackets(&item.text);
    moments.extend(date_in_front(&item.text));
    Form { speaker, prior, moments, is_fact }
}

/// The first name of a speaker, lower-case; `None` for the names of roles.
pub(crate) fn first_name(speaker: &str) -> Option<String> {
    let name = words(speaker).into_iter().next()?;
    let is_role = ["user", "assistant", "system", "tool"].contains(&name.as_str());
    (!is_role).then_some(name)
}

fn has_time_words(words: &[String]) -> bool {
    let is_time = |word: &str| {
        TIME.contains(&word)
            || WEEKDAYS.contains(&word)
            || (word != "may" && MONTHS.contains(&word))
            || is_year(word)
    };
    let is_span = |first: &str, second: &str| {
        matches!(first, "last" | "next" | "this")
            && matches!(
                second,
                "night"
                    | "week"
                    | "month"
                    | "year"
                    | "summer"
                    | "winter"
                    | "spring"
                    | "fall"
                    | "morning"
                    | "past"
            )
    };
    words.iter().any(|word| is_time(word))
        || words.windows(2).any(|pair| {
            is_span(&pair[0], &pair[1])
                || (pair[0] == "in" && pair[1] == "may")
                || (pair[0] == "may" && pair[1].starts_with(|c: char| c.is_ascii_digit()))
        })
}

fn is_year(word: &str) -> bool {
    word.len() == 4
        && (word.starts_with("19") || word.starts_with("20"))
        && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// The number of a month by its English name.
pub(crate) fn month_number(word: &str) -> Option<u8> {
    MONTHS.iter().position(|month| *month == word).and_then(|index| u8::try_from(index + 1).ok())
}

/// The dates that stand in brackets: the reader puts absolute dates there.
fn dates_in_brackets(text: &str) -> Vec<Moment> {
    text.match_indices('(')
        .filter_map(|(start, _)| {
            let inner = &text[start + 1..];
            date_in_words(&inner[..inner.find(')')?])
        })
        .collect()
}

/// Reads `7 May 2023`, `week of 1 May 2023`, `May 2023` or `2023`.
fn date_in_words(text: &str) -> Option<Moment> {
    const LONGEST: usize = 40;
    if text.len() > LONGEST {
        return None;
    }
    let mut parts: Vec<&str> = text.split_whitespace().collect();
    if let ["week" | "weekend", "of", rest @ ..] = parts.as_slice() {
        parts = rest.to_vec();
    }
    let year = |text: &str| is_year(text).then(|| text.parse().ok()).flatten();
    let month = |text: &str| month_number(&text.to_lowercase());
    match parts.as_slice() {
        [y] => Some(Moment { year: year(y)?, month: 0, day: 0 }),
        [m, y] => Some(Moment { year: year(y)?, month: month(m)?, day: 0 }),
        [d, m, y] => Some(Moment { year: year(y)?, month: month(m)?, day: d.parse().ok()? }),
        _ => None,
    }
}

/// The day on which an item was said: the reader puts it in front.
fn date_in_front(text: &str) -> Option<Moment> {
    let (date, _) = text.strip_prefix('[')?.split_once("] ")?;
    date_in_words(date)
}

/// The words of a memory's text: without the date in front, and without the dates that the reader
/// added in brackets, which say when but not what.
pub(crate) fn without_dates(text: &str) -> String {
    let body = match text.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((date, rest)) if date.len() <= 64 && !rest.is_empty() => rest,
        Some(_) | None => text,
    };
    let mut plain = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(start) = rest.find(" (") {
        let inner = &rest[start + 2..];
        let end = inner.find(')').filter(|end| date_in_words(&inner[..*end]).is_some());
        match end {
            Some(end) => {
                plain.push_str(&rest[..start]);
                rest = &inner[end + 1..];
            }
            None => {
                plain.push_str(&rest[..start + 2]);
                rest = inner;
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_from_brackets_and_taken_out_of_the_embedded_text() {
        let text =
            "[8 May 2023] Ann: I ran yesterday (7 May 2023) (really) with Bo (week of 1 May 2023).";
        let moment = |year, month, day| Moment { year, month, day };
        assert_eq!(dates_in_brackets(text), [moment(2023, 5, 7), moment(2023, 5, 1)]);
        assert_eq!(without_dates(text), "Ann: I ran yesterday (really) with Bo.");
        assert_eq!(date_in_words("April 2022"), Some(moment(2022, 4, 0)));
        assert_eq!(date_in_words("1999"), Some(moment(1999, 0, 0)));
        for other in ["12", "the 7 May", "(", ""] {
            assert_eq!(date_in_words(other), None, "{other:?}");
        }
    }

    #[test]
    fn time_words_are_seen() {
        for (text, holds) in [
            ("we met last summer", true),
            ("in May I left", true),
            ("you may go", false),
            ("it was 2019", true),
            ("nothing here", false),
        ] {
            assert_eq!(has_time_words(&words(text)), holds, "{text:?}");
        }
    }
}
