use jiff::civil::date;

use super::*;

/// Annotates what was said on Monday, 8 May 2023. The row names only what is added, in order.
#[track_caller]
fn check(text: &str, added: &[&str]) {
    let today = date(2023, 5, 8);
    let out = annotate(text, today, &mut false);
    let mut rest = out.as_str();
    let mut plain = String::new();
    for date in added {
        let mark = format!(" ({date})");
        let (before, after) = rest.split_once(&mark).unwrap_or_else(|| {
            panic!("{date:?} is not in {out:?}");
        });
        plain.push_str(before);
        rest = after;
    }
    plain.push_str(rest);
    assert_eq!(plain, text, "added something else: {out:?}");
    assert_eq!(annotate(&out, today, &mut false), out, "annotated twice");
}

#[test]
fn days() {
    let annotated = annotate("I went there Yesterday, alone.", date(2023, 5, 8), &mut false);
    assert_eq!(annotated, "I went there Yesterday (7 May 2023), alone.");
    check("We met the day before yesterday.", &["6 May 2023"]);
    check("See you the day after tomorrow!", &["10 May 2023"]);
    check("TODAY I baked; tonight we eat.", &["8 May 2023", "8 May 2023"]);
    check("this morning and this evening", &["8 May 2023", "8 May 2023"]);
    check("last night's storm", &["7 May 2023"]);
    check("yesterday's news", &["7 May 2023"]);
    check("yesterday’s news", &["7 May 2023"]);
    let annotated = annotate("tomorrow morning I run", date(2023, 5, 8), &mut false);
    assert_eq!(annotated, "tomorrow morning (9 May 2023) I run");
    check("Über-fun: yesterday, 昨日 yesterday。", &["7 May 2023", "7 May 2023"]);
}

#[test]
fn weeks_months_years_and_weekends() {
    check("Last week I sang, this week I dance", &["week of 1 May 2023", "week of 8 May 2023"]);
    check("the trip is next\nweek", &["week of 15 May 2023"]);
    check("last weekend, this weekend", &["weekend of 6 May 2023", "weekend of 13 May 2023"]);
    check("this past weekend", &["weekend of 6 May 2023"]);
    check("next month's rent", &["June 2023"]);
    check("this week or next", &["week of 8 May 2023"]);
    check("late last year, early next year", &["2022", "2024"]);
    check("the week before last", &["week of 24 April 2023"]);
    check("the weekend after next we move", &["weekend of 27 May 2023"]);
    check("the week before last Friday", &["5 May 2023"]);
}

#[test]
fn weekdays_months_and_seasons() {
    check("last Friday and last fri and last Sat", &["5 May 2023", "5 May 2023", "6 May 2023"]);
    check("last Friday night", &["5 May 2023"]);
    check("this Friday, next friday", &["12 May 2023", "19 May 2023"]);
    check("this coming Monday", &["15 May 2023"]);
    check("on Friday we rest", &[]);
    check("last april, next June", &["April 2023", "June 2023"]);
    check("this May", &["May 2023"]);
    check("in August last year and May of next year", &["August 2022", "May 2024"]);
    check("this July 28 and last March 3rd", &[]);
    check("this may take long, the next may not, this march for peace", &[]);
    check("last summer and next winter", &["summer 2022", "winter 2023-24"]);
}

#[test]
fn counted_times() {
    check("a week ago", &["week of 1 May 2023"]);
    check("It was two days ago.", &["6 May 2023"]);
    check("10 years ago!", &["2013"]);
    check("a couple of weeks ago", &["around the week of 24 April 2023"]);
    check("a couple months ago", &["around March 2023"]);
    check("a few days ago", &["around 5 May 2023"]);
    check("few years ago", &["around 2020"]);
    check("two weekends ago", &["weekend of 29 April 2023"]);
    check("three days from now", &["11 May 2023"]);
    check("a week from today, two weeks from now", &["15 May 2023", "week of 22 May 2023"]);
    check("years ago, a while ago, a year and a half ago, 2.5 years ago, 5000 years ago", &[]);
    check("99999999999999999999 days ago", &[]);
    check("3–4 days ago", &[]);
}

#[test]
fn in_some_time_is_a_date_only_in_the_future() {
    check("We're leaving in two weeks", &["week of 22 May 2023"]);
    check("The exam is in 3 days.", &["11 May 2023"]);
    check("I'll be back in a few months", &["around August 2023"]);
    check("She starts in two days' time", &["10 May 2023"]);
    check("I lost 5 kg in two weeks", &[]);
    check("I haven't slept in two days", &[]);
    check("The best cake in a year", &[]);
    check("There are 365 days in a year", &[]);
    check("It is the first time in two years", &[]);
    check("It will be done in 3 days of work", &[]);
    check("I will sit in a row", &[]);
}

#[test]
fn what_is_no_date_stays() {
    check("the last week of school, my last year there, last year of college", &[]);
    check("over the last year", &[]);
    check("in today's world", &[]);
    check("this is it, next time, last one, at last, the next day", &[]);
    check("see #tomorrow, date.today() and today.com", &[]);
    check("use `today` or\n```\nyesterday = 1\n```\nbut yesterday", &["7 May 2023"]);
    check("", &[]);
    check("last", &[]);
    check("in", &[]);
    check("a couple of", &[]);
}

#[test]
fn a_date_that_is_already_there_is_not_repeated() {
    check("yesterday (7 May 2023)", &[]);
    check("next Saturday, May 20, at noon", &[]);
    check("tomorrow, 9 May", &[]);
    check("tomorrow (Tuesday)", &["9 May 2023"]);
}

#[test]
fn annotations_are_bounded() {
    let out = annotate(&"yesterday ".repeat(100), date(2023, 5, 8), &mut false);
    assert_eq!(out.matches("7 May 2023").count(), ANNOTATIONS_MAX);
    let longest = " (around the weekend of 30 September 2023)";
    assert!(longest.len() <= ANNOTATION_BYTES_MAX);
}
