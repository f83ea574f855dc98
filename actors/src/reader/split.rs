//! Cuts a long message into parts that the embedder sees as a whole.
//!
//! Invariant: the parts are in order, do not overlap, and leave out nothing but white space.

use std::ops::Range;

use memcube_schemas::limits::{ITEM_TEXT_BYTES_MAX, ITEM_WORDS_MAX};

use super::{
    relative_dates::{ANNOTATION_BYTES_MAX, ANNOTATIONS_MAX},
    words::opens_or_closes_fence,
};

/// Bytes left in an item for what is written around and into the words: date, speaker, dates.
const RESERVE_BYTES: usize = 1024 + ANNOTATIONS_MAX * ANNOTATION_BYTES_MAX;
/// Bytes of the original words in one part.
const PART_BYTES_MAX: usize = ITEM_TEXT_BYTES_MAX - RESERVE_BYTES;
/// Bytes after which a word without spaces may be cut.
const PIECE_BYTES_MAX: usize = 512;
/// What one part may hold, in a measure for words and bytes at once: a word costs as much as the
/// `ITEM_WORDS_MAX`th part of `PART_BYTES_MAX`, and more if it is longer.
const PART_COST_MAX: u64 = (PART_BYTES_MAX * ITEM_WORDS_MAX) as u64;

/// How good a place is to cut at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seam {
    /// Inside a long word, or between two ideographs.
    Character,
    Word,
    /// A line of code or verse.
    Line,
    Sentence,
    ListItem,
    Paragraph,
    Heading,
}

/// A word with the white space behind it, and the seam before it.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    seam: Seam,
    is_word: bool,
}

/// The parts of a text, as byte ranges without white space at their ends. One part if it is short.
pub(super) fn split(text: &str) -> Vec<Range<usize>> {
    let pieces = pieces(text);
    let cost = |at: usize| {
        let end = pieces.get(at + 1).map_or(text.len(), |next| next.start);
        let bytes = (end - pieces[at].start) * ITEM_WORDS_MAX;
        let word = if pieces[at].is_word { PART_BYTES_MAX } else { 0 };
        bytes.max(word) as u64
    };
    let mut remaining: u64 = (0..pieces.len()).map(cost).sum();
    let mut parts = Vec::new();
    let mut from = 0;
    while from < pieces.len() {
        let next = if remaining <= PART_COST_MAX {
            pieces.len()
        } else {
            next_cut(&pieces, from, remaining, cost)
        };
        remaining -= (from..next).map(cost).sum::<u64>();
        let end = pieces.get(next).map_or(text.len(), |piece| piece.start);
        let start = pieces[from].start;
        let part = &text[start..end];
        let start = start + (part.len() - part.trim_start().len());
        let end = start + part.trim().len();
        if start < end {
            parts.push(start..end);
        }
        from = next;
    }
    parts
}

/// Where the part that begins at `from` ends: at the best seam near its fair share of the rest.
fn next_cut(pieces: &[Piece], from: usize, remaining: u64, cost: impl Fn(usize) -> u64) -> usize {
    let share = remaining / remaining.div_ceil(PART_COST_MAX);
    let lowest = share * 6 / 10;
    let highest = PART_COST_MAX.min(share * 14 / 10);
    let mut best: Option<(Seam, u64, usize)> = None;
    let mut fits = from + 1;
    let mut held = 0;
    for (next, piece) in pieces.iter().enumerate().skip(from + 1) {
        held += cost(next - 1);
        if held > highest {
            break;
        }
        fits = next;
        let (seam, distance) = (piece.seam, held.abs_diff(share));
        let is_better = best.is_none_or(|(seam_best, distance_best, _)| {
            seam > seam_best || (seam == seam_best && distance < distance_best)
        });
        if held >= lowest && is_better {
            best = Some((seam, distance, next));
        }
    }
    best.map_or(fits, |(_, _, next)| next)
}

/// What the line before tells about a cut behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineBefore {
    None,
    Heading,
    /// It ends with a colon: what it announces should not be cut off.
    LeadIn,
    Text,
}

fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut before = LineBefore::None;
    let (mut after_blank, mut in_fence) = (false, false);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            after_blank = true;
            start += line.len();
            continue;
        }
        let is_fence = opens_or_closes_fence(line);
        let seam = if in_fence {
            Seam::Line
        } else {
            seam_before_line(line, trimmed, before, after_blank)
        };
        in_fence ^= is_fence;
        let is_code = in_fence || is_fence;
        push_line(&mut pieces, line, start, seam, is_code);
        before = if is_code {
            LineBefore::Text
        } else if trimmed.starts_with('#') {
            LineBefore::Heading
        } else if trimmed.trim_end_matches('*').ends_with(':') {
            LineBefore::LeadIn
        } else {
            LineBefore::Text
        };
        after_blank = false;
        start += line.len();
    }
    pieces
}

fn seam_before_line(line: &str, trimmed: &str, before: LineBefore, after_blank: bool) -> Seam {
    let is_indented = line.starts_with([' ', '\t']);
    match before {
        LineBefore::Heading => Seam::Word,
        _ if trimmed.starts_with('#') => Seam::Heading,
        LineBefore::LeadIn => Seam::Line,
        LineBefore::None | LineBefore::Text if after_blank && !is_indented => Seam::Paragraph,
        _ if is_list_item(trimmed) && is_indented => Seam::Sentence,
        _ if is_list_item(trimmed) => Seam::ListItem,
        _ if after_blank => Seam::Sentence,
        LineBefore::None | LineBefore::Text => Seam::Line,
    }
}

/// "- ", "* ", "• ", "1. " or "1) " at the start of a line.
fn is_list_item(trimmed: &str) -> bool {
    let rest = trimmed.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_numbered = rest.len() < trimmed.len();
    let mut signs = rest.chars();
    let marks = match signs.next() {
        Some('.' | ')') => is_numbered,
        Some('-' | '*' | '+' | '•') => !is_numbered,
        _ => false,
    };
    marks && signs.next().is_some_and(char::is_whitespace)
}

fn push_line(pieces: &mut Vec<Piece>, line: &str, line_start: usize, seam: Seam, is_code: bool) {
    let mut seam = seam;
    let mut at = 0;
    while let Some(offset) = line[at..].find(|c: char| !c.is_whitespace()) {
        let start = at + offset;
        let end = line[start..].find(char::is_whitespace).map_or(line.len(), |len| start + len);
        push_word(pieces, &line[start..end], line_start + start, seam);
        let ends = !is_code && ends_sentence(&line[start..end]);
        seam = if ends { Seam::Sentence } else { Seam::Word };
        at = end;
    }
}

/// A word is one piece, unless it is very long or written without spaces.
fn push_word(pieces: &mut Vec<Piece>, word: &str, start: usize, seam: Seam) {
    pieces.push(Piece { start, seam, is_word: true });
    let mut piece_start = 0;
    let mut before: Option<char> = None;
    for (at, c) in word.char_indices() {
        let Some(last) = before.replace(c) else { continue };
        let is_unspaced = is_ideograph(c) || is_ideograph(last);
        // A sign after an ideograph stays with it.
        let may_cut = is_unspaced && c.is_alphanumeric();
        if may_cut || at - piece_start >= PIECE_BYTES_MAX {
            let seam = if matches!(last, '。' | '！' | '？') {
                Seam::Sentence
            } else {
                Seam::Character
            };
            pieces.push(Piece { start: start + at, seam, is_word: is_unspaced });
            piece_start = at;
        }
    }
}

/// Scripts that put no space between words; each character counts as a word.
const fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

fn ends_sentence(word: &str) -> bool {
    let word = word.trim_end_matches(['"', '\'', '”', '’', ')', ']', '*', '_', '»']);
    if !word.ends_with(['.', '!', '?', '…', '。', '！', '？']) {
        return false;
    }
    let stem = word.trim_end_matches('.').trim_start_matches(['"', '\'', '“', '(', '*', '_']);
    let is_number = stem.chars().all(|c| c.is_ascii_digit());
    let is_initial = stem.chars().nth(1).is_none() && stem != "I";
    let is_title = ["mr", "mrs", "ms", "dr", "prof", "st", "vs", "e.g", "i.e"]
        .iter()
        .any(|title| title.eq_ignore_ascii_case(stem));
    !word.ends_with('.') || !(is_number || is_initial || is_title)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each part as its number of words and its first word.
    fn shape(text: &str) -> Vec<(usize, &str)> {
        let first = |part: &Range<usize>| {
            let part = &text[part.clone()];
            (part.split_whitespace().count(), part.split_whitespace().next().unwrap_or(""))
        };
        split(text).iter().map(first).collect()
    }

    fn words(count: usize) -> String {
        "word ".repeat(count)
    }

    #[test]
    fn parts_are_balanced_and_end_at_the_best_seam() {
        let check = |text: &str, want: &[(usize, &str)]| assert_eq!(shape(text), want);
        check("", &[]);
        check(" \n ", &[]);
        check(&words(120), &[(120, "word")]);
        check(&words(121), &[(60, "word"), (61, "word")]);
        check(
            &words(361),
            &[(90, "word"); 3].iter().copied().chain([(91, "word")]).collect::<Vec<_>>(),
        );
        let sentences = format!("{}end. Then {}", words(66), words(66));
        check(&sentences, &[(67, "word"), (67, "Then")]);
        let paragraphs = format!("{}end.\n\nThen {}end. {}", words(53), words(13), words(66));
        check(&paragraphs, &[(54, "word"), (81, "Then")]);
        let heading = format!("{}\n\n# Title\n\nBody {}", words(73), words(73));
        check(&heading, &[(73, "word"), (76, "#")]);
        let list = format!("First:\n- a {}\n- b {}\n- c {}", words(47), words(47), words(47));
        check(&list, &[(50, "First:"), (98, "-")]);
        let code = format!("{}\n\n```\n{}\n```\n{}", words(67), "x = 1\n\n".repeat(17), words(40));
        check(&code, &[(67, "word"), (93, "```")]);
        check(&"word\u{3000}".repeat(160), &[(80, "word"), (80, "word")]);
    }

    #[test]
    fn texts_without_spaces_are_cut_between_characters() {
        for (text, parts_min, parts_max) in [
            ("x".repeat(1 << 20), 70, 90),
            ("語".repeat(1000), 9, 10),
            ("今日は晴れです。".repeat(100), 5, 8),
            ("🦀".repeat(100_000), 28, 36),
            (" ".repeat(100_000) + "x" + &" ".repeat(100_000) + "y", 1, 2),
        ] {
            let parts = split(&text);
            let head: String = text.trim().chars().take(3).collect();
            assert!((parts_min..=parts_max).contains(&parts.len()), "{head}: {}", parts.len());
            assert!(parts.iter().all(|part| part.len() <= PART_BYTES_MAX), "{head}");
            let kept: usize = parts.iter().map(|part| text[part.clone()].trim().len()).sum();
            assert_eq!(kept, text.split_whitespace().map(str::len).sum::<usize>(), "{head}");
        }
        let text = "今日は晴れです。".repeat(100);
        assert!(split(&text).iter().all(|part| text[part.clone()].ends_with('。')));
    }

    #[test]
    fn abbreviations_and_numbers_end_no_sentence() {
        for (word, want) in [
            ("end.", true),
            ("end.\"", true),
            ("end?**", true),
            ("I.", true),
            ("1.", false),
            ("J.", false),
            ("Dr.", false),
            ("e.g.", false),
            ("end", false),
            ("(end.)", true),
            ("。", true),
        ] {
            assert_eq!(ends_sentence(word), want, "{word}");
        }
    }
}
