//! The words of a text with what stands between them: the ground on which dates are looked for.

/// Words after which "in two weeks" is a date.
const FUTURE_WORDS: [&str; 33] = [
    "will",
    "won't",
    "won’t",
    "going",
    "gonna",
    "leaving",
    "leave",
    "leaves",
    "coming",
    "comes",
    "starting",
    "starts",
    "start",
    "begins",
    "opens",
    "due",
    "scheduled",
    "planning",
    "plan",
    "is",
    "are",
    "am",
    "have",
    "need",
    "must",
    "should",
    "can",
    "hope",
    "moving",
    "flying",
    "visiting",
    "see",
    "back",
];
/// Words after which it is a span of time.
const PAST_WORDS: [&str; 27] = [
    "was", "were", "had", "did", "been", "went", "got", "made", "lost", "has", "not", "never",
    "first", "only", "took", "came", "won", "read", "grew", "ran", "wrote", "learnt", "built",
    "done", "gone", "slept", "since",
];

/// One word of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    /// Byte at which it begins.
    pub(super) start: usize,
    /// Byte after its last letter.
    pub(super) end: usize,
    /// Only spaces, or one line break, separate it from the word before.
    pub(super) joined: bool,
    /// It stands in code, or is glued to signs that make it a name and not a word.
    pub(super) code: bool,
    /// An earlier word of the sentence speaks of the future.
    pub(super) after_future: bool,
    /// An earlier word of the sentence speaks of the past, or denies.
    pub(super) after_past: bool,
}

/// Splits a text, given in lower case, into words. `in_fence` says whether it begins inside a
/// fenced block of code, and is left as it is at the end of the text.
pub(super) fn words_of(lower: &str, in_fence: &mut bool) -> Vec<Word> {
    let mut words = Vec::new();
    let (mut future, mut past);
    let mut line_start = 0;
    for line in lower.split_inclusive('\n') {
        let is_fence = opens_or_closes_fence(line);
        if is_fence {
            *in_fence = !*in_fence;
        }
        (future, past) = (false, false);
        let mut in_code = false;
        let mut at = 0;
        while let Some((start, end)) = next_word(line, at) {
            let gap = &line[at..start];
            if gap.contains(['.', '!', '?', ';']) {
                (future, past) = (false, false);
            }
            in_code ^= gap.matches('`').count() % 2 == 1;
            // The apostrophe of "two days' time" separates nothing.
            let spaces = gap.strip_prefix(['\'', '’']).unwrap_or(gap);
            let joined = if at > 0 {
                spaces.chars().all(char::is_whitespace)
            } else {
                // A phrase may run over a line break, but not into a paragraph or a list item.
                start == 0 && words.last().is_some_and(|word: &Word| word.end + 1 == line_start)
            };
            words.push(Word {
                start: line_start + start,
                end: line_start + end,
                joined,
                code: *in_fence || is_fence || in_code || is_glued(line, start, end),
                after_future: future,
                after_past: past,
            });
            let word = &line[start..end];
            future |= speaks_of_future(word);
            past |= speaks_of_past(word);
            at = end;
        }
        line_start += line.len();
    }
    words
}

/// Whether a line is the first or the last one of a fenced block of code.
pub(super) fn opens_or_closes_fence(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("```") || line.starts_with("~~~")
}

fn next_word(line: &str, from: usize) -> Option<(usize, usize)> {
    let belongs = |c: char| c.is_alphanumeric() || c == '_';
    let start = from + line[from..].find(belongs)?;
    let mut end = start;
    for (offset, c) in line[start..].char_indices() {
        let here = start + offset;
        let is_inner_apostrophe =
            matches!(c, '\'' | '’') && line[here + c.len_utf8()..].starts_with(belongs);
        if !belongs(c) && !is_inner_apostrophe {
            break;
        }
        end = here + c.len_utf8();
    }
    Some((start, end))
}

/// `date.today`, `#tomorrow`, `today()`, `next-week` and the like are names.
fn is_glued(line: &str, start: usize, end: usize) -> bool {
    let before = line[..start].chars().next_back();
    let mut after = line[end..].chars();
    let glued_after = match after.next() {
        Some('(' | '=' | '@' | '/' | '\\' | '[') => true,
        Some('.' | '-' | ':') => after.next().is_some_and(char::is_alphanumeric),
        _ => false,
    };
    // A full stop without a space behind it is mostly a slip, but `date.today` is a name.
    let glued_stop = || {
        let word = line[..start - 1].rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or("");
        matches!(word, "date" | "datetime" | "time" | "")
    };
    match before {
        Some('@' | '#' | '/' | '\\' | '$' | '-') => true,
        Some('.') => glued_stop() || glued_after,
        _ => glued_after,
    }
}

fn speaks_of_future(word: &str) -> bool {
    const ENDINGS: [&str; 8] = ["'ll", "’ll", "'re", "’re", "'m", "’m", "'s", "’s"];
    FUTURE_WORDS.contains(&word) || ENDINGS.iter().any(|ending| word.ends_with(ending))
}

fn speaks_of_past(word: &str) -> bool {
    let is_past_form = word.ends_with("ed") && word.len() > 4 && word != "scheduled";
    let denies = word.ends_with("n't") || word.ends_with("n’t");
    PAST_WORDS.contains(&word) || is_past_form || denies
}
