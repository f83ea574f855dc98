//! Reads the time of a message, and the dates that a question names.

use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    tz::Offset,
};

use super::calendar::{month_number, month_number_short, weekday, weekday_short};

/// Characters of a time: nothing longer is read as one, or shown as one.
pub const CHAT_TIME_CHARS_MAX: usize = 64;

/// When something was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatTime {
    /// Date and time on the caller's clock, as they were written; midnight if only a day was.
    pub civil: DateTime,
    /// The instant in Unix milliseconds; a time without an offset counts as UTC.
    pub unix_ms: i64,
}

/// The parts of a date that a question names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueryDate {
    /// A year between 1900 and 2099.
    pub year: Option<i16>,
    /// A month, 1 to 12.
    pub month: Option<i8>,
    /// A day of the month, which stands next to the month.
    pub day: Option<i8>,
}

/// Reads a time as callers write it: ISO 8601 with or without time, seconds and offset, RFC 2822,
/// Unix seconds or milliseconds, `1:56 pm on 8 May, 2023`, `March-15-2024`,
/// `2023/05/20 (Sat) 02:21`.
///
/// `None` for everything that leaves a doubt, such as `05/08/2023`.
#[must_use]
pub fn parse_chat_time(text: &str) -> Option<ChatTime> {
    let text = text.trim();
    if text.len() > CHAT_TIME_CHARS_MAX {
        return None;
    }
    unix_time(text).or_else(|| Written::default().read(&tokens(text)))
}

/// The day on which an item was said, on the clock of the one who said it.
#[must_use]
pub fn civil_date_of(chat_time: Option<&str>, said_at_ms: Option<i64>) -> Option<Date> {
    chat_time
        .and_then(parse_chat_time)
        .or_else(|| said_at_ms.and_then(at_unix_ms))
        .map(|time| time.civil.date())
}

fn at_unix_ms(unix_ms: i64) -> Option<ChatTime> {
    let instant = Timestamp::from_millisecond(unix_ms).ok()?;
    Some(ChatTime { civil: Offset::UTC.to_datetime(instant), unix_ms })
}

/// Seconds have 9 to 11 digits, milliseconds 12 to 14: both mean 1973 to the year 5138.
fn unix_time(text: &str) -> Option<ChatTime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    match whole.len() {
        9..=11 => {
            let ms: String = fraction.chars().chain("000".chars()).take(3).collect();
            at_unix_ms(whole.parse::<i64>().ok()? * 1000 + ms.parse::<i64>().ok()?)
        }
        12..=14 => at_unix_ms(whole.parse().ok()?),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// A run of ASCII digits.
    Number(&'a str),
    /// A run of letters.
    Word(&'a str),
    /// Any other character.
    Sign(char),
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = |belongs: fn(char) -> bool| rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        let (token, bytes) = if first.is_ascii_digit() {
            let bytes = run(|c| c.is_ascii_digit());
            (Token::Number(&rest[..bytes]), bytes)
        } else if first.is_alphabetic() {
            let bytes = run(char::is_alphabetic);
            (Token::Word(&rest[..bytes]), bytes)
        } else {
            (Token::Sign(first), first.len_utf8())
        };
        tokens.push(token);
        rest = &rest[bytes..];
    }
    tokens
}

/// What has been understood of a written time so far.
#[derive(Debug, Default)]
struct Written {
    year: Option<i16>,
    month: Option<i8>,
    day: Option<i8>,
    /// Hour, minute, second, nanosecond.
    time: Option<(i8, i8, i8, i32)>,
    half_day_known: bool,
    offset_seconds: Option<i32>,
}

impl Written {
    fn read(mut self, tokens: &[Token<'_>]) -> Option<ChatTime> {
        let mut rest = tokens;
        while !rest.is_empty() {
            rest = self.step(rest)?;
        }
        let date = Date::new(self.year.filter(|year| *year > 0)?, self.month?, self.day?).ok()?;
        let (hour, minute, second, nanosecond) = self.time.unwrap_or_default();
        // A leap second is not worth refusing a message for.
        let time = Time::new(hour, minute, second.min(59), nanosecond).ok()?;
        let civil = date.to_datetime(time);
        let offset = Offset::from_seconds(self.offset_seconds.unwrap_or(0)).ok()?;
        let unix_ms = offset.to_timestamp(civil).ok()?.as_millisecond();
        Some(ChatTime { civil, unix_ms })
    }

    /// Understands the next token or tokens; `None` when they mean nothing here.
    fn step<'t, 'a>(&mut self, tokens: &'t [Token<'a>]) -> Option<&'t [Token<'a>]> {
        use Token::{Number, Sign, Word};
        match tokens {
            [Number(hour), Sign(':'), Number(minute), rest @ ..] => {
                self.set_time(hour, minute, rest)
            }
            [
                Number(year),
                Sign(a @ ('-' | '/' | '.')),
                Number(month),
                Sign(b),
                Number(day),
                rest @ ..,
            ] if year.len() == 4 && a == b => {
                set(&mut self.year, year.parse().ok()?)?;
                set(&mut self.month, month.parse().ok()?)?;
                set(&mut self.day, day.parse().ok()?)?;
                Some(rest)
            }
            [Number(ymd), rest @ ..] if ymd.len() == 8 => {
                set(&mut self.year, ymd[..4].parse().ok()?)?;
                set(&mut self.month, ymd[4..6].parse().ok()?)?;
                set(&mut self.day, ymd[6..].parse().ok()?)?;
                Some(rest)
            }
            [Number(hms), rest @ ..] if hms.len() == 6 && self.day.is_some() => {
                let part = |from: usize| hms[from..from + 2].parse::<i8>().ok();
                set(&mut self.time, (part(0)?, part(2)?, part(4)?, 0))?;
                Some(rest)
            }
            [Number(year), rest @ ..] if year.len() == 4 => {
                set(&mut self.year, year.parse().ok()?)?;
                Some(rest)
            }
            [Number(hour), rest @ ..] if half_day(rest).is_some() => {
                set(&mut self.time, (hour.parse().ok()?, 0, 0, 0))?;
                Some(rest)
            }
            [Number(day), rest @ ..] if day.len() <= 2 => {
                set(&mut self.day, day.parse().ok()?)?;
                Some(match rest {
                    [Word(ending), rest @ ..] if is_ordinal(ending) => rest,
                    _ => rest,
                })
            }
            [Sign('['), ..] if self.time.is_some() => {
                // A time zone name after RFC 9557: the offset before it says all that is needed.
                let end = tokens.iter().position(|token| *token == Sign(']'))?;
                Some(&tokens[end + 1..])
            }
            [Sign(sign), rest @ ..] => {
                let separates =
                    sign.is_whitespace() || matches!(sign, ',' | '-' | '/' | '.' | '(' | ')');
                separates.then_some(rest)
            }
            [Word(word), rest @ ..] => {
                self.set_word(&word.to_ascii_lowercase(), tokens)?;
                Some(rest)
            }
            [Number(_), ..] | [] => None,
        }
    }

    /// Hours and minutes are read; seconds, fraction and offset may follow.
    fn set_time<'t, 'a>(
        &mut self,
        hour: &str,
        minute: &str,
        rest: &'t [Token<'a>],
    ) -> Option<&'t [Token<'a>]> {
        use Token::{Number, Sign};
        let (mut second, mut nanosecond, mut rest) = (0, 0, rest);
        if let [Sign(':'), Number(digits), after @ ..] = rest {
            second = digits.parse().ok()?;
            rest = after;
            if let [Sign('.' | ','), Number(digits), after @ ..] = rest {
                let nanos: String = digits.chars().chain("000000000".chars()).take(9).collect();
                nanosecond = nanos.parse().ok()?;
                rest = after;
            }
        }
        set(&mut self.time, (hour.parse().ok()?, minute.parse().ok()?, second, nanosecond))?;
        let after_space = match rest {
            [Sign(' '), after @ ..] => after,
            _ => rest,
        };
        let (sign, hours, minutes, after) = match after_space {
            [
                Sign(sign @ ('+' | '-' | '−')),
                Number(hours),
                Sign(':'),
                Number(minutes),
                after @ ..,
            ] if hours.len() == 2 => (*sign, *hours, *minutes, after),
            [Sign(sign @ ('+' | '-' | '−')), Number(digits), after @ ..]
                if digits.len() == 4
                    && (after_space.len() == rest.len() || self.year.is_some()) =>
            {
                (*sign, &digits[..2], &digits[2..], after)
            }
            [Sign(sign @ ('+' | '-' | '−')), Number(hours), after @ ..]
                if hours.len() == 2 && self.day.is_some() =>
            {
                (*sign, *hours, "0", after)
            }
            _ => return Some(rest),
        };
        let seconds = hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60;
        set(&mut self.offset_seconds, if sign == '+' { seconds } else { -seconds })?;
        Some(after)
    }

    fn set_word(&mut self, word: &str, tokens: &[Token<'_>]) -> Option<()> {
        if let Some(month) = month_number_short(word) {
            return set(&mut self.month, month);
        }
        match word {
            "at" | "on" | "of" | "the" | "t" => Some(()),
            "z" | "utc" | "gmt" if self.time.is_some() => {
                self.offset_seconds.get_or_insert(0);
                Some(())
            }
            "am" | "pm" | "a" | "p" => self.set_half_day(half_day(tokens)?),
            // The `m` of `p.m.`, whose `p` was read before.
            "m" if self.half_day_known => Some(()),
            _ => weekday(word).or_else(|| weekday_short(word)).map(drop),
        }
    }

    fn set_half_day(&mut self, afternoon: bool) -> Option<()> {
        let (hour, ..) = self.time.as_mut()?;
        if self.half_day_known {
            return None;
        }
        self.half_day_known = true;
        // Some clients write `13:56 pm`: the hour already says it.
        if *hour > 12 && afternoon {
            return Some(());
        }
        (1..=12).contains(hour).then(|| *hour = *hour % 12 + if afternoon { 12 } else { 0 })
    }
}

/// Whether `am` (false) or `pm` (true) comes next.
fn half_day(tokens: &[Token<'_>]) -> Option<bool> {
    use Token::{Sign, Word};
    match tokens {
        [Sign(' '), rest @ ..] => half_day(rest),
        [Word(word), ..] if word.eq_ignore_ascii_case("am") => Some(false),
        [Word(word), ..] if word.eq_ignore_ascii_case("pm") => Some(true),
        [Word(word), Sign('.'), Word(m), ..] if m.eq_ignore_ascii_case("m") => {
            let afternoon = word.eq_ignore_ascii_case("p");
            (afternoon || word.eq_ignore_ascii_case("a")).then_some(afternoon)
        }
        _ => None,
    }
}

fn is_ordinal(word: &str) -> bool {
    ["st", "nd", "rd", "th"].iter().any(|ending| ending.eq_ignore_ascii_case(word))
}

/// Fills a field once; a second value means that the text is not a plain time.
fn set<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.is_none().then(|| *field = Some(value))
}

/// Finds the year, month and day that a question names: "in early May 2023", "on the 8th of May",
/// "2023-05-08". The verbs "may" and "march" are no months.
#[must_use]
pub fn parse_plain_date_mentions(query: &str) -> QueryDate {
    let tokens: Vec<Token<'_>> =
        tokens(query).into_iter().filter(|token| *token != Token::Sign(' ')).collect();
    let mut found = QueryDate::default();
    for at in 0..tokens.len() {
        match tokens[at] {
            Token::Number(digits) if digits.len() == 4 && found.year.is_none() => {
                found.year = digits.parse().ok().filter(|year| (1900..2100).contains(year));
                if found.year.is_some() && found.month.is_none() {
                    (found.month, found.day) = numeric_month_and_day(&tokens[at + 1..]);
                }
            }
            Token::Word(word) if found.month.is_none() => {
                let day = day_beside(&tokens, at);
                found.month = month_number_short(word).filter(|_| {
                    day.is_some() || (month_number(word).is_some() && is_month(&tokens, at, word))
                });
                found.day = found.month.and(day);
            }
            Token::Number(_) | Token::Word(_) | Token::Sign(_) => {}
        }
    }
    found
}

/// What follows the year in `2023-05-08` or `2023/05`.
fn numeric_month_and_day(after_year: &[Token<'_>]) -> (Option<i8>, Option<i8>) {
    use Token::{Number, Sign};
    let read = |digits: &str, max: i8| {
        digits.parse().ok().filter(|value| digits.len() <= 2 && (1..=max).contains(value))
    };
    match after_year {
        [Sign('-' | '/'), Number(month), Sign('-' | '/'), Number(day), ..] => {
            let month = read(month, 12);
            (month, month.and_then(|_| read(day, 31)))
        }
        [Sign('-' | '/'), Number(month), ..] => (read(month, 12), None),
        _ => (None, None),
    }
}

/// The day in `8 May`, `8th of May`, `May 8` or `May 8th`.
fn day_beside(tokens: &[Token<'_>], at: usize) -> Option<i8> {
    use Token::{Number, Sign, Word};
    let read = |digits: &str| digits.parse().ok().filter(|day| (1_i8..=31).contains(day));
    let before = match &tokens[..at] {
        [.., Number(day), Word(ending), Word(of)]
            if is_ordinal(ending) && of.eq_ignore_ascii_case("of") =>
        {
            read(day)
        }
        [.., Number(day), Word(of)] if of.eq_ignore_ascii_case("of") => read(day),
        [.., Number(day), Word(ending)] if is_ordinal(ending) => read(day),
        [.., Number(day)] | [.., Number(day), Sign('-')] => read(day),
        _ => None,
    };
    let is_time = |rest: &[Token<'_>]| matches!(rest, [Sign(':'), ..]) || half_day(rest).is_some();
    before.or_else(|| match &tokens[at + 1..] {
        [Sign(',' | '-' | '.'), Number(day), rest @ ..] | [Number(day), rest @ ..]
            if !is_time(rest) =>
        {
            read(day)
        }
        _ => None,
    })
}

/// Words before "May" and "March" with a capital letter that make them months.
const BEFORE_MONTH: [&str; 16] = [
    "since", "by", "until", "till", "during", "last", "this", "next", "from", "before", "after",
    "to", "and", "for", "between", "around",
];

/// Tells the month from the verb of the same name, by the word before and the year after.
fn is_month(tokens: &[Token<'_>], at: usize, word: &str) -> bool {
    if !["may", "march"].iter().any(|verb| verb.eq_ignore_ascii_case(word)) {
        return true;
    }
    let year_follows = match &tokens[at + 1..] {
        [Token::Sign(','), Token::Number(year), ..] | [Token::Number(year), ..] => year.len() == 4,
        _ => false,
    };
    let Some(Token::Word(before)) = at.checked_sub(1).map(|before| tokens[before]) else {
        return year_follows;
    };
    let before = before.to_ascii_lowercase();
    let sure = matches!(before.as_str(), "in" | "on" | "of" | "early" | "late" | "mid");
    let likely = BEFORE_MONTH.contains(&before.as_str());
    year_follows || sure || (likely && word.starts_with('M'))
}

#[cfg(test)]
#[path = "chat_time_tests.rs"]
mod tests;
