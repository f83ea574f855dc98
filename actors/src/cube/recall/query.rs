//! What a question says about speaker and time.

use super::{
    analysis::{Analyzer, words},
    features::{Moment, month_number},
};

/// A question, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Query {
    /// Index terms, without the name of the speaker that is asked about.
    pub(crate) terms: Vec<String>,
    /// All index terms.
    pub(crate) all_terms: Vec<String>,
    /// The one known speaker whom the question names.
    pub(crate) speaker: Option<String>,
    /// The index term of that name.
    pub(crate) speaker_term: Option<String>,
    pub(crate) date: DateWanted,
}

/// Years, months and days that a question names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DateWanted {
    years: Vec<i32>,
    months: Vec<u8>,
    days: Vec<u8>,
}

impl DateWanted {
    pub(crate) fn is_empty(&self) -> bool {
        self.years.is_empty() && self.months.is_empty()
    }

    /// How much of what is asked for fits this moment, from 0 to 1. A day counts only with its
    /// month.
    pub(crate) fn fit(&self, moment: Moment) -> f32 {
        let part = |asked: bool, weight: f32| if asked { weight } else { 0.0 };
        let total = part(!self.years.is_empty(), 1.0)
            + part(!self.months.is_empty(), 2.0)
            + part(!self.days.is_empty(), 2.0);
        if total == 0.0 {
            return 0.0;
        }
        let month_fits = self.months.contains(&moment.month);
        let fits = part(self.years.contains(&moment.year), 1.0)
            + part(month_fits, 2.0)
            + part(month_fits && self.days.contains(&moment.day), 2.0);
        fits / total
    }
}

/// Takes a question apart; `is_speaker` knows the first names of the cube's speakers.
pub(crate) fn analyze(analyzer: &Analyzer, text: &str, is_speaker: impl Fn(&str) -> bool) -> Query {
    let words = words(text);
    let mut named: Vec<&String> = words.iter().filter(|word| is_speaker(word)).collect();
    named.sort();
    named.dedup();
    let speaker = match named.as_slice() {
        [only] => Some((*only).clone()),
        _ => None,
    };
    let all = analyzer.terms(text);
    let terms = match &speaker {
        // The speaker feature does the name's work; the words that are left carry the question.
        Some(name) => {
            let stem = analyzer.stem(name);
            let rest: Vec<String> = all.iter().filter(|term| **term != stem).cloned().collect();
            if rest.is_empty() { all.clone() } else { rest }
        }
        None => all.clone(),
    };
    let speaker_term = speaker.as_ref().map(|name| analyzer.stem(name));
    Query { terms, all_terms: all, speaker, speaker_term, date: date_wanted(&words) }
}

fn date_wanted(words: &[String]) -> DateWanted {
    let mut wanted = DateWanted::default();
    for (index, word) in words.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|index| words.get(index)).map(String::as_str);
        let after = words.get(index + 1).map(String::as_str);
        if let Some(year) = year(word) {
            wanted.years.push(year);
        } else if let Some(month) = month_number(word)
            && (!matches!(word.as_str(), "may" | "march") || is_date_context(before, after))
        {
            wanted.months.push(month);
        }
    }
    if !wanted.months.is_empty() {
        wanted.days = words.iter().filter_map(|word| day(word)).collect();
    }
    wanted
}

/// Whether `may` or `march` stands where a month would.
fn is_date_context(before: Option<&str>, after: Option<&str>) -> bool {
    before.is_some_and(|word| {
        matches!(word, "in" | "on" | "of" | "early" | "late" | "mid") || day(word).is_some()
    }) || after.is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

fn year(word: &str) -> Option<i32> {
    let is_year = word.len() == 4 && (word.starts_with("19") || word.starts_with("20"));
    if is_year { word.parse().ok() } else { None }
}

/// `7`, `7th`, `21st`: a day of a month.
fn day(word: &str) -> Option<u8> {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &word[digits.len()..];
    let is_ordinal = matches!(suffix, "" | "st" | "nd" | "rd" | "th");
    let day: u8 = digits.parse().ok().filter(|_| is_ordinal)?;
    (1..=31).contains(&day).then_some(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_taken_apart() {
        let analyzer = Analyzer::default();
        let known = |name: &str| matches!(name, "ann" | "bo");
        for (text, terms, speaker, years, months, days) in [
            ("When did Ann run on 7 May 2023?", "run 7 may 2023", Some("ann"), 1, 1, 1),
            ("Did Ann and Bo march?", "ann bo march", None, 0, 0, 0),
            ("What may Bo do in March?", "may march", Some("bo"), 0, 1, 0),
            ("Bo?", "bo", Some("bo"), 0, 0, 0),
        ] {
            let query = analyze(&analyzer, text, known);
            assert_eq!(query.terms.join(" "), terms, "{text}");
            assert_eq!(query.speaker.as_deref(), speaker, "{text}");
            let DateWanted { years: y, months: m, days: d } = &query.date;
            assert_eq!((y.len(), m.len(), d.len()), (years, months, days), "{text}");
        }
    }
}
