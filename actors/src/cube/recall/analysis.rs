//! From text to index terms: lower-case words without stop words, English stems.
//!
//! The stemmer is Snowball's English one (Porter 2). Words are runs of letters and digits in any
//! script; a character of a script without spaces (Chinese, Japanese) is a term of its own.

use rust_stemmers::{Algorithm, Stemmer};

/// English function words; sorted, so that a binary search finds them.
const STOP_WORDS: [&str; 149] = [
    "a", "about", "above", "after", "again", "against", "ain", "all", "also", "am", "an", "and",
    "any", "are", "aren", "as", "at", "be", "because", "been", "before", "being", "below",
    "between", "both", "but", "by", "can", "could", "couldn", "d", "did", "didn", "do", "does",
    "doesn", "doing", "don", "down", "during", "each", "else", "few", "for", "from", "further",
    "had", "hadn", "has", "hasn", "have", "haven", "having", "he", "her", "here", "hers", "him",
    "his", "how", "i", "if", "in", "into", "is", "isn", "it", "its", "just", "ll", "m", "ma", "me",
    "mightn", "more", "most", "mustn", "my", "myself", "needn", "no", "nor", "not", "now", "o",
    "of", "off", "on", "once", "only", "or", "other", "our", "ours", "out", "over", "own", "re",
    "s", "same", "shan", "she", "should", "shouldn", "so", "some", "such", "t", "than", "that",
    "the", "their", "them", "then", "there", "these", "they", "this", "those", "through", "to",
    "too", "under", "until", "up", "ve", "very", "was", "wasn", "we", "were", "weren", "what",
    "when", "where", "which", "while", "who", "whom", "why", "will", "with", "won", "would",
    "wouldn", "y", "you", "your", "yours",
];

/// Splits texts into words and terms.
pub(crate) struct Analyzer {
    stemmer: Stemmer,
}

impl Default for Analyzer {
    fn default() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English) }
    }
}

impl Analyzer {
    /// The terms of a text, in order: stemmed, without stop words.
    pub(crate) fn terms(&self, text: &str) -> Vec<String> {
        words(text)
            .into_iter()
            .filter(|word| !is_stop_word(word))
            .map(|word| self.stem(&word))
            .collect()
    }

    /// The stem of one lower-case word.
    pub(crate) fn stem(&self, word: &str) -> String {
        self.stemmer.stem(word).into_owned()
    }
}

/// The words of a text, lower-case, in order.
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        if is_ideograph(c) {
            flush(&mut word, &mut words);
            words.push(c.to_string());
        } else if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        } else {
            flush(&mut word, &mut words);
        }
    }
    flush(&mut word, &mut words);
    words
}

fn flush(word: &mut String, words: &mut Vec<String>) {
    if !word.is_empty() {
        words.push(std::mem::take(word));
    }
}

pub(crate) fn is_stop_word(word: &str) -> bool {
    STOP_WORDS.binary_search(&word).is_ok()
}

/// Characters of scripts that are written without spaces.
const fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_stems_without_stop_words() {
        let analyzer = Analyzer::default();
        for (text, terms) in [
            ("The runner's running shoes", "runner run shoe"),
            ("What did she say about hiking?", "say hike"),
            ("Café 东京 in 2023", "café 东 京 2023"),
            ("", ""),
        ] {
            assert_eq!(analyzer.terms(text).join(" "), terms, "{text:?}");
        }
        assert!(STOP_WORDS.is_sorted());
    }
}
