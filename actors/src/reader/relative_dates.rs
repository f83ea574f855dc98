//! Makes relative dates absolute: "yesterday" becomes "yesterday (7 May 2023)".
//!
//! Invariant: the words stay as they are, and a text that was annotated is not annotated again.

use std::fmt::Write as _;

use jiff::civil::Date;

use super::{
    calendar::{
        Period, Season, Unit, Which, month_number, month_number_short, shifted, weekday,
        weekday_short, which_month, which_season, which_unit, which_weekday,
    },
    words::{Word, words_of},
};

/// Dates made absolute in one text: a text with more of them is a table, not speech.
pub(super) const ANNOTATIONS_MAX: usize = 32;
/// Bytes of one annotation: " (around the weekend of 30 September 2023)" and some room.
pub(super) const ANNOTATION_BYTES_MAX: usize = 48;
/// Largest count that is read in "N days ago".
const COUNT_MAX: i32 = 999;

/// Writes the absolute date in parentheses behind every relative date of the text.
///
/// `today` is the day on which the text was said; `in_fence` whether it begins inside a fenced
/// block of code, in which nothing is touched, and, afterwards, whether it ends in one.
pub(super) fn annotate(text: &str, today: Date, in_fence: &mut bool) -> String {
    let lower = text.to_ascii_lowercase();
    let words = words_of(&lower, in_fence);
    let scan = Scan { text, lower: &lower, words: &words, today };
    let mut out = String::with_capacity(text.len() + 64);
    let (mut copied, mut at, mut annotations) = (0, 0, 0);
    while at < words.len() && annotations < ANNOTATIONS_MAX {
        let Some(found) = scan.phrase(at).filter(|found| scan.is_speech(at, found)) else {
            at += 1;
            continue;
        };
        let last = at + found.words - 1;
        annotations += 1;
        at += found.words;
        if scan.date_follows(last, found.period) {
            continue;
        }
        let end = words[last].end;
        out.push_str(&text[copied..end]);
        copied = end;
        let around = match (found.around, found.period) {
            (true, Period::Week(_) | Period::Weekend(_)) => "around the ",
            (true, _) => "around ",
            (false, _) => "",
        };
        // Writing to a string cannot fail.
        let _ = write!(out, " ({around}{})", found.period);
    }
    out.push_str(&text[copied..]);
    out
}

/// A relative date: how many words it has, and what it means.
#[derive(Debug, Clone, Copy)]
struct Found {
    words: usize,
    period: Period,
    around: bool,
}

impl Found {
    fn exact(words: usize, period: Option<Period>) -> Option<Self> {
        period.map(|period| Self { words, period, around: false })
    }
}

/// A count in words or digits.
#[derive(Debug, Clone, Copy)]
struct Count {
    words: usize,
    value: i32,
    around: bool,
}

struct Scan<'a> {
    text: &'a str,
    lower: &'a str,
    words: &'a [Word],
    today: Date,
}

impl<'a> Scan<'a> {
    /// A word behind `first`, in lower case; empty if more than a space lies between the two.
    fn word(&self, first: usize, offset: usize) -> &'a str {
        let Some(run) = self.words.get(first..=first + offset) else { return "" };
        let connected = run.iter().skip(1).all(|word| word.joined);
        run.last().filter(|_| connected).map_or("", |word| &self.lower[word.start..word.end])
    }

    /// The word before, if only a space lies between.
    fn word_before(&self, at: usize) -> &'a str {
        if at == 0 {
            ""
        } else if self.words[at].joined {
            self.word(at - 1, 0)
        } else {
            ""
        }
    }

    /// Whether the word begins with a capital letter in the text as it was said.
    fn is_capitalised(&self, at: usize) -> bool {
        self.words
            .get(at)
            .is_some_and(|word| self.text[word.start..].starts_with(char::is_uppercase))
    }

    /// Finds a relative date that begins with this word. The longest reading comes first.
    fn phrase(&self, at: usize) -> Option<Found> {
        let word = self.word(at, 0);
        let found = match bare(word) {
            "day" => self.day_beyond(at),
            "yesterday" => self.days(at, 1, -1),
            // "today's world" is not about a day.
            "today" if word == "today" => self.days(at, 1, 0),
            "tonight" => self.days(at, 1, 0),
            "tomorrow" => self.days(at, 1, 1),
            "last" => self.which(at, Which::Last),
            "this" if matches!(self.word(at, 1), "past" | "last") => self
                .which(at + 1, Which::Last)
                .map(|found| Found { words: found.words + 1, ..found }),
            "this" if matches!(self.word(at, 1), "coming" | "upcoming") => self.coming(at),
            "this" => self.which(at, Which::This),
            "next" => self.which(at, Which::Next),
            "in" => self.in_future(at),
            _ => None,
        };
        found
            .or_else(|| self.month_of_year(at))
            .or_else(|| self.beyond_next(at))
            .or_else(|| self.counted(at))
    }

    /// Whether the phrase is speech, and not part of code or of a name.
    fn is_speech(&self, at: usize, found: &Found) -> bool {
        !self.words[at..at + found.words].iter().any(|word| word.code)
    }

    fn days(&self, at: usize, words: usize, count: i32) -> Option<Found> {
        let words = words + usize::from(is_part_of_day(self.word(at, words)));
        Found::exact(words, shifted(self.today, Unit::Day, count))
    }

    /// "day before yesterday", "day after tomorrow".
    fn day_beyond(&self, at: usize) -> Option<Found> {
        match (self.word(at, 1), bare(self.word(at, 2))) {
            ("before", "yesterday") => self.days(at, 3, -2),
            ("after", "tomorrow") => self.days(at, 3, 2),
            _ => None,
        }
    }

    /// "last week", "this Friday", "next April", "last summer", "last night".
    fn which(&self, at: usize, which: Which) -> Option<Found> {
        // "the last week" is the last seven days, "my last year" one of school.
        let before = self.word_before(at);
        let owned = matches!(
            before,
            "the"
                | "a"
                | "my"
                | "your"
                | "his"
                | "her"
                | "its"
                | "our"
                | "their"
                | "every"
                | "each"
        );
        let word = self.word(at, 1);
        let name = bare(word);
        // "last week of school", "last year or so".
        let is_measure = match self.word(at, 2) {
            "of" => true,
            "or" => matches!(self.word(at, 3), "so" | "two"),
            _ => false,
        };
        if owned || word.is_empty() || is_measure {
            return None;
        }
        if let Some(found) = self.part_of_day(at, which, name) {
            return Some(found);
        }
        if let Some(unit) = unit_one(name).filter(|unit| *unit != Unit::Day) {
            return Found::exact(2, which_unit(self.today, which, unit));
        }
        if let Some(day) = self.weekday_at(at + 1, which, name) {
            let words = 2 + usize::from(is_part_of_day(self.word(at, 2)));
            return Found::exact(words, which_weekday(self.today, which, day));
        }
        if let Some(season) = Season::named(name) {
            return Found::exact(2, which_season(self.today, which, season));
        }
        // The verbs "may" and "march", and "an august body", are no months.
        let is_name = !matches!(name, "may" | "march" | "august") || self.is_capitalised(at + 1);
        let month = month_number(name).filter(|_| is_name)?;
        Found::exact(2, which_month(self.today, which, month))
    }

    /// "this morning", "last night"; "last morning" is one of many.
    fn part_of_day(&self, at: usize, which: Which, name: &str) -> Option<Found> {
        match (which, name) {
            (Which::This, "morning" | "afternoon" | "evening") => self.days(at, 2, 0),
            (Which::Last, "night" | "evening") => self.days(at, 2, -1),
            _ => None,
        }
    }

    /// A weekday; shortened ones that are also words need a capital letter.
    fn weekday_at(&self, at: usize, which: Which, name: &str) -> Option<jiff::civil::Weekday> {
        weekday(name).or_else(|| {
            let is_name = which != Which::This
                && (!matches!(name, "sat" | "sun" | "wed" | "mon") || self.is_capitalised(at));
            weekday_short(name).filter(|_| is_name)
        })
    }

    /// "this coming weekend", "this coming Friday".
    fn coming(&self, at: usize) -> Option<Found> {
        let name = bare(self.word(at, 2));
        let period = if let Some(day) = weekday(name) {
            match which_weekday(self.today, Which::This, day) {
                Some(Period::Day(date)) if date == self.today => {
                    which_weekday(self.today, Which::Next, day)
                }
                period => period,
            }
        } else if let Some(season) = Season::named(name) {
            which_season(self.today, Which::Next, season)
        } else {
            match unit_one(name)? {
                Unit::Weekend => which_unit(self.today, Which::This, Unit::Weekend),
                unit @ (Unit::Week | Unit::Month | Unit::Year) => {
                    which_unit(self.today, Which::Next, unit)
                }
                Unit::Day => None,
            }
        };
        Found::exact(3, period)
    }

    /// "August last year", "in May of next year".
    fn month_of_year(&self, at: usize) -> Option<Found> {
        let month = month_number(self.word(at, 0)).filter(|_| self.is_capitalised(at))?;
        let of = usize::from(self.word(at, 1) == "of");
        let which = match self.word(at, 1 + of) {
            "last" => Which::Last,
            "this" => Which::This,
            "next" => Which::Next,
            _ => return None,
        };
        let Some(Period::Year(year)) = which_unit(self.today, which, Unit::Year) else {
            return None;
        };
        let is_year = self.word(at, 2 + of) == "year" && self.word(at, 3 + of) != "of";
        Found::exact(3 + of, is_year.then_some(Period::Month(year, month)))
    }

    /// "the week before last", "the weekend after next".
    fn beyond_next(&self, at: usize) -> Option<Found> {
        let count = match (self.word(at, 1), self.word(at, 2)) {
            ("before", "last") => -2,
            ("after", "next") => 2,
            _ => return None,
        };
        let unit = unit_one(self.word(at, 0)).filter(|unit| *unit != Unit::Day)?;
        // "the week before last Christmas" counts from Christmas.
        let after = bare(self.word(at, 3));
        let is_named = self.is_capitalised(at + 3) && after != "i";
        let goes_on = unit_one(after).is_some() || weekday(after).is_some() || is_named;
        if !after.is_empty() && goes_on {
            return None;
        }
        Found::exact(3, shifted(self.today, unit, count))
    }

    /// "two weeks ago", "a couple of months ago", "3 days from now".
    fn counted(&self, at: usize) -> Option<Found> {
        let count = self.count(at)?;
        let unit = unit_counted(self.word(at, count.words))?;
        let next = count.words + 1;
        let (words, unit, count_signed) = match (self.word(at, next), self.word(at, next + 1)) {
            ("ago", _) => (next + 1, unit, -count.value),
            // "a week from today" is a day.
            ("from", "today") if unit == Unit::Week => (next + 2, Unit::Day, 7 * count.value),
            ("from", "now" | "today") => (next + 2, unit, count.value),
            _ => return None,
        };
        let period = shifted(self.today, unit, count_signed)?;
        Some(Found { words, period, around: count.around })
    }

    /// "in two weeks", where the sentence speaks of the future.
    fn in_future(&self, at: usize) -> Option<Found> {
        let count = self.count(at + 1).filter(|_| !self.word(at, 1).is_empty())?;
        let unit = unit_counted(self.word(at, count.words + 1))?;
        let mut words = count.words + 2;
        if self.word(at, words) == "time" {
            words += 1;
        }
        let is_measure = matches!(
            self.word(at, words),
            "of" | "from"
                | "after"
                | "before"
                | "or"
                | "and"
                | "later"
                | "ago"
                | "instead"
                | "without"
        );
        let word = self.words[at];
        // "365 days in a year", "once in two weeks".
        let before = self.word_before(at);
        let is_rate = unit_counted(before).is_some()
            || matches!(before, "once" | "twice" | "times" | "hours" | "minutes" | "seconds");
        if is_measure || is_rate || word.after_past || !word.after_future {
            return None;
        }
        let period = shifted(self.today, unit, count.value)?;
        Some(Found { words, period, around: count.around })
    }

    fn count(&self, at: usize) -> Option<Count> {
        const NUMBERS: [&str; 12] = [
            "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve",
        ];
        let first = self.word(at, 0);
        let article = usize::from(first == "a");
        match self.word(at, article) {
            "couple" => {
                let of = usize::from(self.word(at, article + 1) == "of");
                return Some(Count { words: article + 1 + of, value: 2, around: true });
            }
            "few" => return Some(Count { words: article + 1, value: 3, around: true }),
            _ => {}
        }
        if matches!(first, "a" | "an") {
            return Some(Count { words: 1, value: 1, around: false });
        }
        let value = match NUMBERS.iter().position(|number| *number == first) {
            Some(index) => i32::try_from(index + 1).ok()?,
            None => first.parse().ok().filter(|value| (1..=COUNT_MAX).contains(value))?,
        };
        // "2.5 years ago" and "1,200 days ago" are not about the number behind the sign.
        let start = self.words[at].start;
        let is_fraction = self.lower[..start].ends_with(['.', ',', '/', '-', '–', ':']);
        (!is_fraction).then_some(Count { words: 1, value, around: false })
    }

    /// Whether the text itself says the date right behind the phrase.
    fn date_follows(&self, last: usize, period: Period) -> bool {
        let end = self.words[last].end;
        let rest = self.lower[end..].trim_start_matches([' ', '\n']);
        if let Some(inside) = rest.strip_prefix('(') {
            let inside = inside.split(')').next().unwrap_or_default();
            return inside.len() <= 2 * ANNOTATION_BYTES_MAX && holds_year(inside);
        }
        let Some(next) = self.words.get(last + 1) else { return false };
        if !self.lower[end..next.start].chars().all(|c| matches!(c, ' ' | ',')) {
            return false;
        }
        let is_month = |at: usize| {
            let word = self.word(at, 0);
            month_number_short(word).is_some() && self.is_capitalised(at)
        };
        let is_day = self.word(last + 1, 0).starts_with(|c: char| c.is_ascii_digit());
        // "this July 28", "last May 3rd"; but "August last year" needs its year.
        if is_day && matches!(period, Period::Month(..)) && next.end - next.start <= 4 {
            return month_number(bare(&self.lower[self.words[last].start..end])).is_some();
        }
        let of = usize::from(self.word(last + 1, 1) == "of");
        is_month(last + 1) || (is_day && is_month(last + 2 + of))
    }
}

/// The word without a possessive ending.
fn bare(word: &str) -> &str {
    word.strip_suffix("'s").or_else(|| word.strip_suffix("’s")).unwrap_or(word)
}

fn is_part_of_day(word: &str) -> bool {
    matches!(bare(word), "morning" | "afternoon" | "evening" | "night")
}

fn unit_one(word: &str) -> Option<Unit> {
    Some(match word {
        "day" => Unit::Day,
        "week" => Unit::Week,
        "weekend" => Unit::Weekend,
        "month" => Unit::Month,
        "year" => Unit::Year,
        _ => return None,
    })
}

/// A unit in the singular or plural; also the possessive of "in two days' time".
fn unit_counted(word: &str) -> Option<Unit> {
    unit_one(word)
        .or_else(|| unit_one(bare(word).strip_suffix('s').unwrap_or("")))
        .or_else(|| unit_one(bare(word)))
}

fn holds_year(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() == 4)
}

#[cfg(test)]
#[path = "relative_dates_tests.rs"]
mod tests;
