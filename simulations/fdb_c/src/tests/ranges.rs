//! 4.2 points 1 and 4: what can be read when, and how ranges are cut.

use super::{Cluster, at_or_after, request, show, text};
use crate::errors::{
    CLIENT_INVALID_OPERATION, EXACT_MODE_WITHOUT_LIMITS, FUTURE_VERSION, KEY_OUTSIDE_LEGAL_RANGE,
    RANGE_LIMITS_INVALID, READ_VERSION_ALREADY_SET, TRANSACTION_TOO_OLD, VERSION_INVALID,
};
use crate::random::Random;
use crate::range::{Limits, RangeRequest, Selector};

#[test]
fn a_version_can_be_read_for_five_seconds() {
    let cluster = Cluster::new(1);
    let first = cluster.put(&[("a", "1")]);
    cluster.put(&[("a", "2")]);
    let at = |version: i64| {
        let tr = cluster.tr();
        tr.read_at(version);
        tr.get("a")
    };
    assert_eq!(at(first), Ok(Some("1".to_owned())));
    assert_eq!(at(first - 1), Ok(None));
    cluster.sleep(4_900_000);
    assert_eq!(at(first), Ok(Some("1".to_owned())));
    cluster.sleep(200_000);
    assert_eq!(at(first), Err(TRANSACTION_TOO_OLD));
    assert_eq!(cluster.value("a"), Some("2".to_owned()));
    let before_us = cluster.now_us();
    let far = cluster.tr().read_version().expect("a version") + 10_000_000;
    assert_eq!(at(far), Err(FUTURE_VERSION));
    assert!(cluster.now_us() - before_us >= 1_000_000, "the server waits for the version");
}

#[test]
fn a_commit_has_to_be_younger_than_the_window() {
    let cluster = Cluster::new(1);
    for (wait_us, expected) in [(4_800_000, Ok(())), (5_100_000, Err(TRANSACTION_TOO_OLD))] {
        let tr = cluster.tr();
        tr.get("a").expect("a value");
        cluster.sleep(wait_us);
        tr.set("b", "1");
        assert_eq!(tr.commit(), expected, "after {wait_us}");
    }
}

#[test]
fn versions_are_those_of_the_clock() {
    let cluster = Cluster::new(1);
    let first = cluster.put(&[("a", "1")]);
    cluster.sleep(2_000_000);
    let second = cluster.put(&[("a", "2")]);
    assert!((2_000_000..2_100_000).contains(&(second - first)), "{first} {second}");
    let tr = cluster.tr();
    assert!(tr.read_version().expect("a version") >= second);
    tr.read_at(first);
    assert_eq!(tr.get("a"), Err(READ_VERSION_ALREADY_SET));
    let tr = cluster.tr();
    tr.read_at(0);
    assert_eq!(tr.get("a"), Err(VERSION_INVALID));
}

#[test]
fn limits_of_the_interface() {
    let limits = |rows, bytes| Ok(Limits { rows, bytes });
    for ((rows, target, mode, iteration), expected) in [
        ((0, 0, -2, 0), limits(None, Some(80_000))),
        ((0, 0, -1, 1), limits(None, Some(4_096))),
        ((0, 0, -1, 2), limits(None, Some(6_144))),
        ((0, 0, -1, 9), limits(None, Some(80_000))),
        ((0, 0, -1, 99), limits(None, Some(120_000))),
        ((0, 0, -1, 0), Err(CLIENT_INVALID_OPERATION)),
        ((0, 0, 0, 0), Err(EXACT_MODE_WITHOUT_LIMITS)),
        ((5, 0, 0, 0), limits(Some(5), None)),
        ((0, 700, 0, 0), limits(None, Some(700))),
        ((0, 0, 1, 0), limits(None, Some(256))),
        ((3, 100, 2, 0), limits(Some(3), Some(100))),
        ((3, 9_000, 2, 0), limits(Some(3), Some(1_000))),
        ((0, 0, 3, 0), limits(None, Some(4_096))),
        ((0, 0, 4, 0), limits(None, Some(80_000))),
        ((0, 0, 5, 0), Err(CLIENT_INVALID_OPERATION)),
        ((-1, 0, 4, 0), Err(RANGE_LIMITS_INVALID)),
    ] {
        let found = Limits::new(rows, target, mode, iteration);
        assert_eq!(found, expected, "{rows} {target} {mode} {iteration}");
    }
}

#[test]
fn ranges_are_cut_by_rows_and_bytes() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]);
    let limits = |rows, bytes| Limits { rows, bytes };
    for (limits, reverse, expected, more) in [
        (limits(None, None), false, "a=1 b=2 c=3 d=4 e=5", false),
        (limits(Some(2), None), false, "a=1 b=2", true),
        (limits(Some(2), None), true, "e=5 d=4", true),
        (limits(Some(5), None), false, "a=1 b=2 c=3 d=4 e=5", true),
        (limits(Some(6), None), false, "a=1 b=2 c=3 d=4 e=5", false),
        // A row counts 8 bytes and its own; the one that crosses the limit is still given.
        (limits(None, Some(1)), false, "a=1", true),
        (limits(None, Some(11)), false, "a=1 b=2", true),
        (limits(None, Some(11)), true, "e=5 d=4", true),
        (limits(Some(1), Some(11)), false, "a=1", true),
    ] {
        let request = RangeRequest { limits, reverse, ..request("", "z") };
        let (rows, found_more) = cluster.tr().range(&request).expect("rows");
        assert_eq!((show(&rows).as_str(), found_more), (expected, more), "{request:?}");
    }
}

#[test]
fn keys_have_to_be_legal() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    let system = Selector::new(b"\xff/x", false, 1);
    let beyond = RangeRequest { end: system.clone(), ..request("a", "b") };
    assert_eq!(tr.range(&beyond), Err(KEY_OUTSIDE_LEGAL_RANGE));
    assert_eq!(tr.get_key(&system), Err(KEY_OUTSIDE_LEGAL_RANGE));
    assert_eq!(tr.value_of(&tr.ask_get(b"\xff/x", false)), Err(KEY_OUTSIDE_LEGAL_RANGE));
    tr.option(302, b"").expect("system keys");
    assert_eq!(tr.value_of(&tr.ask_get(b"\xff/x", false)), Ok(None));
    // Longer than any key: there is none.
    assert_eq!(tr.value_of(&tr.ask_get(&[b'a'; 10_001], false)), Ok(None));
}

#[test]
fn selectors() {
    let cluster = Cluster::new(1);
    cluster.put(&[("b", "1"), ("d", "2"), ("f", "3")]);
    for (key, or_equal, offset, expected) in [
        // The last less than, less or equal; the first greater than, greater or equal.
        ("d", false, 0, "b"),
        ("d", true, 0, "d"),
        ("d", true, 1, "f"),
        ("d", false, 1, "d"),
        ("c", false, 0, "b"),
        ("c", true, 0, "b"),
        ("c", true, 1, "d"),
        ("c", false, 2, "f"),
        ("c", false, 3, "\\xff"),
        ("b", false, 0, ""),
        ("f", true, -2, "b"),
        ("f", true, -3, ""),
        ("f", true, 1, "\\xff"),
        ("", false, 1, "b"),
    ] {
        let selector = Selector::new(key.as_bytes(), or_equal, offset);
        let found = cluster.tr().get_key(&selector);
        assert_eq!(found.as_deref(), Ok(expected), "{key} {or_equal} {offset}");
    }
}

/// Selectors, limits and directions against a list that is cut by hand; pages put together give
/// the whole.
#[test]
fn random_ranges_are_those_of_a_list() {
    for seed in 0..60 {
        let cluster = Cluster::new(seed);
        let mut random = Random::new(seed);
        let tr = cluster.tr();
        let mut keys: Vec<String> = Vec::new();
        for number in 0..40_u32 {
            if random.chance(400) {
                let key = format!("{number:02}");
                tr.set(&key, "");
                keys.push(key);
            }
        }
        if random.chance(500) {
            tr.commit().expect("a commit");
        }
        let tr = if tr.version() > 0 { cluster.tr() } else { tr };
        for _ in 0..30 {
            let selector = |random: &mut Random| {
                let key = format!("{:02}", random.between(0, 40));
                let offset = random.between(0, 6) as i32 - 3;
                (key, random.chance(500), offset)
            };
            let place = |(key, or_equal, offset): &(String, bool, i32)| {
                let before = keys.iter().filter(|other| *other < key || *or_equal && *other == key);
                let place = before.count() as i32 - 1 + offset;
                place.clamp(0, keys.len() as i32) as usize
            };
            let (begin, end) = (selector(&mut random), selector(&mut random));
            let made = |(key, or_equal, offset): &(String, bool, i32)| {
                Selector::new(key.as_bytes(), *or_equal, *offset)
            };
            let reverse = random.chance(500);
            let rows = random.chance(600).then(|| random.between(1, 10));
            let request = RangeRequest {
                begin: made(&begin),
                end: made(&end),
                limits: Limits { rows, bytes: None },
                reverse,
            };
            let (from, to) = (place(&begin), place(&end));
            let mut expected: Vec<&String> =
                keys.get(from..to).unwrap_or_default().iter().collect();
            if reverse {
                expected.reverse();
            }
            expected.truncate(rows.unwrap_or(100) as usize);
            let (found, more) = tr.range(&request).expect("rows");
            let found: Vec<String> = found.iter().map(|(key, _)| text(key)).collect();
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "seed {seed} {request:?}");
            let is_cut = rows.is_some_and(|rows| found.len() as u64 == rows);
            assert_eq!(more, is_cut, "seed {seed} {request:?}");
        }
    }
}

#[test]
fn sizes_and_split_points() {
    let cluster = Cluster::new(1);
    let rows: Vec<(String, String)> =
        (0..100).map(|number| (format!("{number:03}"), "x".repeat(97))).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    cluster.put(&rows);
    let tr = cluster.tr();
    let range = crate::conflicts::KeyRange::new(b"0", b"1");
    let promise = cluster.with(|world| world.about_range(tr.id, range.clone(), None));
    cluster.run(&promise);
    assert!(matches!(promise.reply(), Some(Ok(crate::future::Payload::Int(10_000)))));
    let promise = cluster.with(|world| world.about_range(tr.id, range, Some(2_500)));
    cluster.run(&promise);
    let Some(Ok(crate::future::Payload::Keys(keys))) = promise.reply() else { panic!("no keys") };
    let keys: Vec<String> = keys.iter().map(|key| text(key)).collect();
    assert_eq!(keys, ["0", "025", "050", "075", "1"]);
    assert_eq!(at_or_after("a").offset, 1);
}
