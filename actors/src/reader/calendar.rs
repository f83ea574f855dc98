//! Names of months and days, and periods of the calendar with their way of being written.

use std::fmt;

use jiff::{
    ToSpan,
    civil::{Date, Weekday},
};

/// The months as they are written in the text of a memory.
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The number of a month written in full, whatever the case of its letters.
pub(super) fn month_number(word: &str) -> Option<i8> {
    (1_i8..).zip(MONTHS).find(|(_, name)| name.eq_ignore_ascii_case(word)).map(|(month, _)| month)
}

/// The number of a month written in full or shortened (`Sept`, `Mar`).
pub(super) fn month_number_short(word: &str) -> Option<i8> {
    let is_short = |name: &str| {
        word.len() == 3 && name.get(..3).is_some_and(|head| head.eq_ignore_ascii_case(word))
    };
    month_number(word)
        .or_else(|| (1_i8..).zip(MONTHS).find(|(_, name)| is_short(name)).map(|(month, _)| month))
        .or_else(|| word.eq_ignore_ascii_case("sept").then_some(9))
}

/// A day of the week written in full, in lower case.
pub(super) fn weekday(word: &str) -> Option<Weekday> {
    Some(match word {
        "monday" => Weekday::Monday,
        "tuesday" => Weekday::Tuesday,
        "wednesday" => Weekday::Wednesday,
        "thursday" => Weekday::Thursday,
        "friday" => Weekday::Friday,
        "saturday" => Weekday::Saturday,
        "sunday" => Weekday::Sunday,
        _ => return None,
    })
}

/// A day of the week shortened, in lower case.
pub(super) fn weekday_short(word: &str) -> Option<Weekday> {
    Some(match word {
        "mon" => Weekday::Monday,
        "tue" | "tues" => Weekday::Tuesday,
        "wed" => Weekday::Wednesday,
        "thu" | "thur" | "thurs" => Weekday::Thursday,
        "fri" => Weekday::Friday,
        "sat" => Weekday::Saturday,
        "sun" => Weekday::Sunday,
        _ => return None,
    })
}

/// A unit in which people count time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Day,
    Week,
    Weekend,
    Month,
    Year,
}

/// A season, named after the northern half of the earth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Season {
    Spring,
    Summer,
    Autumn,
    Winter,
}

impl Season {
    /// The season of that name, in lower case.
    pub(super) fn named(word: &str) -> Option<Self> {
        Some(match word {
            "spring" => Self::Spring,
            "summer" => Self::Summer,
            "autumn" | "fall" => Self::Autumn,
            "winter" => Self::Winter,
            _ => return None,
        })
    }

    /// Its first month. Winter reaches into the next year.
    const fn first_month(self) -> i8 {
        match self {
            Self::Spring => 3,
            Self::Summer => 6,
            Self::Autumn => 9,
            Self::Winter => 12,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Spring => "spring",
            Self::Summer => "summer",
            Self::Autumn => "autumn",
            Self::Winter => "winter",
        }
    }
}

/// Which one of a repeating period is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Last,
    This,
    Next,
}

impl Which {
    const fn step(self) -> i32 {
        match self {
            Self::Last => -1,
            Self::This => 0,
            Self::Next => 1,
        }
    }
}

/// A piece of the calendar, as fine as the words that named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Period {
    /// One day.
    Day(Date),
    /// The week that begins on this Monday.
    Week(Date),
    /// The weekend that begins on this Saturday.
    Weekend(Date),
    /// Year and month.
    Month(i16, i8),
    /// A season and the year in which it begins.
    Season(Season, i16),
    /// One year.
    Year(i16),
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day(date) => write_day(f, *date),
            Self::Week(monday) => {
                f.write_str("week of ")?;
                write_day(f, *monday)
            }
            Self::Weekend(saturday) => {
                f.write_str("weekend of ")?;
                write_day(f, *saturday)
            }
            Self::Month(year, month) => write!(f, "{} {year:04}", month_name(*month)),
            Self::Season(Season::Winter, year) => {
                write!(f, "winter {year:04}-{:02}", year.saturating_add(1).rem_euclid(100))
            }
            Self::Season(season, year) => write!(f, "{} {year:04}", season.name()),
            Self::Year(year) => write!(f, "{year:04}"),
        }
    }
}

fn month_name(month: i8) -> &'static str {
    usize::try_from(month - 1).ok().and_then(|index| MONTHS.get(index)).copied().unwrap_or("")
}

fn write_day(f: &mut fmt::Formatter<'_>, date: Date) -> fmt::Result {
    write!(f, "{} {} {:04}", date.day(), month_name(date.month()), date.year())
}

/// The period of `unit` that lies `count` units after (before, if negative) the one of `today`.
pub(super) fn shifted(today: Date, unit: Unit, count: i32) -> Option<Period> {
    let period = match unit {
        Unit::Day => Period::Day(today.checked_add(i64::from(count).days()).ok()?),
        Unit::Week => Period::Week(monday(today.checked_add(i64::from(count).weeks()).ok()?)?),
        Unit::Weekend => {
            let week = monday(today.checked_add(i64::from(count).weeks()).ok()?)?;
            Period::Weekend(week.checked_add(5.days()).ok()?)
        }
        Unit::Month => {
            let first = today.first_of_month().checked_add(i64::from(count).months()).ok()?;
            Period::Month(first.year(), first.month())
        }
        Unit::Year => Period::Year(i16::try_from(i32::from(today.year()) + count).ok()?),
    };
    checked(period)
}

/// Last, this or next Friday: the last one before today, the first from today on, and the one of
/// next week.
pub(super) fn which_weekday(today: Date, which: Which, weekday: Weekday) -> Option<Period> {
    let date = match which {
        Which::Last => today.nth_weekday(-1, weekday).ok()?,
        Which::This if today.weekday() == weekday => today,
        Which::This => today.nth_weekday(1, weekday).ok()?,
        Which::Next => {
            let offset = i64::from(weekday.to_monday_zero_offset());
            monday(today)?.checked_add((7 + offset).days()).ok()?
        }
    };
    checked(Period::Day(date))
}

/// Last, this or next April; the current month is never the last or the next one.
pub(super) fn which_month(today: Date, which: Which, month: i8) -> Option<Period> {
    let year = match which {
        Which::Last if month >= today.month() => today.year() - 1,
        Which::Next if month <= today.month() => today.year() + 1,
        Which::Last | Which::This | Which::Next => today.year(),
    };
    checked(Period::Month(year, month))
}

/// Last, this or next summer: the last one that is over, the one that is on (or, outside of it,
/// that of the year), the first one that has not begun.
pub(super) fn which_season(today: Date, which: Which, season: Season) -> Option<Period> {
    let first = season.first_month();
    // Winter is looked at from the year in which it ends, so that no season wraps around.
    let (first, shift) = if season == Season::Winter { (0, 1) } else { (first, 0) };
    let (month, year) = if season == Season::Winter && today.month() == 12 {
        (0, today.year() + 1)
    } else {
        (today.month(), today.year())
    };
    let over = month > first + 2;
    let begun = month >= first;
    let ending_year = match which {
        Which::Last if over => year,
        Which::Last => year - 1,
        Which::Next if begun => year + 1,
        // In late autumn, "this winter" is the coming one.
        Which::This if season == Season::Winter && month > 6 => year + 1,
        Which::Next | Which::This => year,
    };
    checked(Period::Season(season, ending_year - shift))
}

/// Last, this or next week, month, year and so on.
pub(super) fn which_unit(today: Date, which: Which, unit: Unit) -> Option<Period> {
    shifted(today, unit, which.step())
}

fn monday(date: Date) -> Option<Date> {
    date.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days()).ok()
}

/// Years outside 1 to 9999 are not something that people talk about.
fn checked(period: Period) -> Option<Period> {
    let year = match period {
        Period::Day(date) | Period::Week(date) | Period::Weekend(date) => date.year(),
        Period::Month(year, _) | Period::Season(_, year) | Period::Year(year) => year,
    };
    (1..=9999).contains(&year).then_some(period)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn units_are_counted_from_today() {
        let check = |today: Date, unit, count, want: &str| {
            let period = shifted(today, unit, count).map(|period| period.to_string());
            assert_eq!(period.unwrap_or_default(), want, "{today} {unit:?} {count}");
        };
        let monday = date(2023, 5, 8);
        check(monday, Unit::Day, -1, "7 May 2023");
        check(monday, Unit::Week, -1, "week of 1 May 2023");
        check(monday, Unit::Weekend, -1, "weekend of 6 May 2023");
        check(monday, Unit::Weekend, 0, "weekend of 13 May 2023");
        check(date(2023, 5, 14), Unit::Weekend, -1, "weekend of 6 May 2023");
        check(date(2023, 3, 31), Unit::Month, -1, "February 2023");
        check(date(2023, 12, 31), Unit::Month, 1, "January 2024");
        check(monday, Unit::Year, -10, "2013");
        check(date(9, 1, 1), Unit::Year, -10, "");
        check(date(9999, 12, 31), Unit::Day, 1, "");
        check(date(9999, 12, 31), Unit::Weekend, 0, "");
    }

    #[test]
    fn repeating_days_months_and_seasons() {
        let check = |period: Option<Period>, want: &str| {
            assert_eq!(period.map(|period| period.to_string()).unwrap_or_default(), want);
        };
        let (monday, sunday) = (date(2023, 5, 8), date(2023, 5, 14));
        check(which_weekday(monday, Which::Last, Weekday::Friday), "5 May 2023");
        check(which_weekday(monday, Which::Last, Weekday::Monday), "1 May 2023");
        check(which_weekday(monday, Which::This, Weekday::Monday), "8 May 2023");
        check(which_weekday(monday, Which::This, Weekday::Friday), "12 May 2023");
        check(which_weekday(monday, Which::Next, Weekday::Friday), "19 May 2023");
        check(which_weekday(sunday, Which::Next, Weekday::Monday), "15 May 2023");
        check(which_month(monday, Which::Last, 4), "April 2023");
        check(which_month(monday, Which::Last, 5), "May 2022");
        check(which_month(monday, Which::Next, 5), "May 2024");
        check(which_month(monday, Which::Next, 6), "June 2023");
        check(which_season(monday, Which::Last, Season::Summer), "summer 2022");
        check(which_season(date(2023, 8, 1), Which::Last, Season::Summer), "summer 2022");
        check(which_season(date(2023, 9, 1), Which::Last, Season::Summer), "summer 2023");
        check(which_season(monday, Which::This, Season::Summer), "summer 2023");
        check(which_season(date(2023, 7, 1), Which::Next, Season::Summer), "summer 2024");
        check(which_season(monday, Which::Last, Season::Winter), "winter 2022-23");
        check(which_season(date(2023, 1, 9), Which::Last, Season::Winter), "winter 2021-22");
        check(which_season(date(2023, 12, 9), Which::Last, Season::Winter), "winter 2022-23");
        check(which_season(date(2023, 12, 9), Which::This, Season::Winter), "winter 2023-24");
        check(which_season(date(2023, 10, 9), Which::This, Season::Winter), "winter 2023-24");
        check(which_season(monday, Which::Next, Season::Winter), "winter 2023-24");
    }
}
