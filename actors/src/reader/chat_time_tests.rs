use super::*;

#[track_caller]
fn check(text: &str, want: &str, want_unix_ms: i64) {
    let time = parse_chat_time(text);
    let civil = time.map(|time| time.civil.to_string()).unwrap_or_default();
    assert_eq!(civil, want, "{text:?}");
    assert_eq!(time.map(|time| time.unix_ms).unwrap_or_default(), want_unix_ms, "{text:?}");
}

#[test]
fn times_are_read_as_callers_write_them() {
    const DAY: i64 = 1_683_504_000_000;
    const AT_13_56: i64 = DAY + (13 * 60 + 56) * 60_000;
    check("2023-05-08", "2023-05-08T00:00:00", DAY);
    check(" 2023-05-08T13:56:00 ", "2023-05-08T13:56:00", AT_13_56);
    check("2023-05-08 13:56", "2023-05-08T13:56:00", AT_13_56);
    check("2023-05-08T13:56:00Z", "2023-05-08T13:56:00", AT_13_56);
    check("2023-05-08T13:56:00+00:00", "2023-05-08T13:56:00", AT_13_56);
    check("2023-05-08T13:56:00.25Z", "2023-05-08T13:56:00.25", AT_13_56 + 250);
    check("2023-05-08T13:56:00.123456+02:00", "2023-05-08T13:56:00.123456", AT_13_56 - 7_199_877);
    check("2023-05-08T23:56:00-07:00", "2023-05-08T23:56:00", AT_13_56 + 17 * 3_600_000);
    check("2023-05-08T13:56+0530", "2023-05-08T13:56:00", AT_13_56 - 19_800_000);
    check("2023-05-08T13:56:00+02", "2023-05-08T13:56:00", AT_13_56 - 7_200_000);
    check("2023-05-08T13:56:00+02:00[Europe/Berlin]", "2023-05-08T13:56:00", AT_13_56 - 7_200_000);
    check("20230508T135600Z", "2023-05-08T13:56:00", AT_13_56);
    check("20230508", "2023-05-08T00:00:00", DAY);
    check("2023/05/08 13:56", "2023-05-08T13:56:00", AT_13_56);
    check("2023/05/08 (Mon) 13:56", "2023-05-08T13:56:00", AT_13_56);
    check("1:56 pm on 8 May, 2023", "2023-05-08T13:56:00", AT_13_56);
    check("12:05 am on 8 May, 2023", "2023-05-08T00:05:00", DAY + 300_000);
    check("12:05 p.m. on 8 May, 2023", "2023-05-08T12:05:00", DAY + 43_500_000);
    check("1 PM, May 8th 2023", "2023-05-08T13:00:00", DAY + 46_800_000);
    check("May-08-2023", "2023-05-08T00:00:00", DAY);
    check("8 May 2023", "2023-05-08T00:00:00", DAY);
    check("May 8, 2023", "2023-05-08T00:00:00", DAY);
    check("Monday, 8th of May 2023 at 13:56 UTC", "2023-05-08T13:56:00", AT_13_56);
    check("Mon, 08 May 2023 13:56:00 +0200", "2023-05-08T13:56:00", AT_13_56 - 7_200_000);
    check("Mon, 8 May 2023 13:56:00 GMT", "2023-05-08T13:56:00", AT_13_56);
    check("1683554160", "2023-05-08T13:56:00", AT_13_56);
    check("1683554160.5", "2023-05-08T13:56:00.5", AT_13_56 + 500);
    check("1683554160000", "2023-05-08T13:56:00", AT_13_56);
}

#[test]
fn doubtful_texts_are_no_times() {
    for text in [
        "",
        "yesterday",
        "05/08/2023",
        "2023",
        "May 2023",
        "31 February 2023",
        "2023-13-01",
        "25:00 on 8 May 2023",
        "8 May 2023 or 9 May 2023",
        "session 3",
        "0000-01-01",
        "13:56",
        "99999999999999999999",
        "14 pm am 8 May 2023",
        "٨ May ٢٠٢٣",
        "2023-05-08T13:56:00+99:99",
    ] {
        assert_eq!(parse_chat_time(text), None, "{text:?}");
    }
    assert_eq!(parse_chat_time(&"8 May 2023 ".repeat(1000)), None);
}

#[test]
fn the_day_of_an_item_is_that_of_its_own_clock() {
    let check = |chat_time, said_at_ms, want: &str| {
        let date = civil_date_of(chat_time, said_at_ms).map(|date| date.to_string());
        assert_eq!(date.unwrap_or_default(), want);
    };
    check(Some("2023-05-08T23:56:00-07:00"), Some(1_683_615_360_000), "2023-05-08");
    check(None, Some(1_683_615_360_000), "2023-05-09");
    check(Some("long ago"), None, "");
    check(None, Some(i64::MAX), "");
}

#[test]
fn questions_name_dates_in_part_or_whole() {
    let check = |query: &str, year, month, day| {
        assert_eq!(parse_plain_date_mentions(query), QueryDate { year, month, day }, "{query:?}");
    };
    check("What did she paint in 2022?", Some(2022), None, None);
    check("What happened in May?", None, Some(5), None);
    check("What may she have painted?", None, None, None);
    check("May I ask what she did on May 8?", None, Some(5), Some(8));
    check("Did they march in the parade?", None, None, None);
    check("Who came to the fair in March 2023?", Some(2023), Some(3), None);
    check("Where was he on the 8th of May, 2023?", Some(2023), Some(5), Some(8));
    check("Where was he on 8 may?", None, Some(5), Some(8));
    check("between August 11 and August 15 2023", Some(2023), Some(8), Some(11));
    check("the 1st week of October", None, Some(10), None);
    check("the meeting of 2023-05-08", Some(2023), Some(5), Some(8));
    check("early 2023-05", Some(2023), Some(5), None);
    check("On Mar 3rd, what did Jan buy?", None, Some(3), Some(3));
    check("What did Jan and Dec buy?", None, None, None);
    check("Since May, how many books did she read?", None, Some(5), None);
    check("What was August like at 5 pm?", None, Some(8), None);
    check("in August 5 pm", None, Some(8), None);
    check("room 2150 at 1800", None, None, None);
    check("", None, None, None);
}
