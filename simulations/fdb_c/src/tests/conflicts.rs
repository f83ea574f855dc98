//! 4.2 point 3: what conflicts with what, and nothing else.

use super::{Cluster, Tr, request};
use crate::conflicts::KeyRange;
use crate::errors::{INVERTED_RANGE, KEY_OUTSIDE_LEGAL_RANGE, NOT_COMMITTED};
use crate::random::Random;
use crate::range::{Limits, RangeRequest, Selector};

const FREE: Result<(), i32> = Ok(());
const CONFLICT: Result<(), i32> = Err(NOT_COMMITTED);

/// What one transaction reads, what another writes before it commits, and whether that conflicts.
type Case = (&'static str, fn(&Tr<'_>), fn(&Tr<'_>), Result<(), i32>);

fn first(begin: &str, end: &str, rows: u64, reverse: bool) -> RangeRequest {
    let limits = Limits { rows: Some(rows), bytes: None };
    RangeRequest { limits, reverse, ..request(begin, end) }
}

#[test]
fn reads_conflict_with_later_writes_of_the_same_keys() {
    let read = |tr: &Tr<'_>| drop(tr.get("d"));
    let cases: Vec<Case> = vec![
        ("get, set", read, |tr| tr.set("d", "x"), CONFLICT),
        ("get, the same value", read, |tr| tr.set("d", "4"), CONFLICT),
        ("get, clear", read, |tr| tr.clear("d"), CONFLICT),
        ("get, clear of nothing", |tr| drop(tr.get("x")), |tr| tr.clear("x"), CONFLICT),
        ("get, clear range", read, |tr| tr.clear_range("a", "e"), CONFLICT),
        ("get, clear range up to it", read, |tr| tr.clear_range("a", "d"), FREE),
        ("get, atomic", read, |tr| tr.atomic(2, b"d", &[1]), CONFLICT),
        ("get, neighbour", read, |tr| tr.set("d\0", "x"), FREE),
        ("snapshot get, set", |tr| drop(tr.get_snapshot("d")), |tr| tr.set("d", "x"), FREE),
        ("nothing, set", |_| {}, |tr| tr.set("d", "x"), FREE),
        ("atomic, atomic", |tr| tr.atomic(2, b"d", &[1]), |tr| tr.atomic(2, b"d", &[1]), FREE),
        (
            "own value, set",
            |tr| {
                tr.set("d", "own");
                drop(tr.get("d"));
            },
            |tr| tr.set("d", "x"),
            FREE,
        ),
        (
            "own clear, set",
            |tr| {
                tr.clear_range("c", "f");
                drop(tr.range(&request("c", "f")));
            },
            |tr| tr.set("d", "x"),
            FREE,
        ),
        (
            "own atomic, set",
            |tr| {
                tr.atomic(2, b"d", &[1]);
                drop(tr.get("d"));
            },
            |tr| tr.set("d", "x"),
            CONFLICT,
        ),
        (
            "between own values, set",
            |tr| {
                tr.set("d", "own");
                drop(tr.range(&request("c", "f")));
            },
            |tr| tr.set("dd", "x"),
            CONFLICT,
        ),
        (
            "no write conflict",
            read,
            |tr| {
                tr.option(30, b"").expect("an option");
                tr.set("d", "x");
            },
            FREE,
        ),
        (
            "no write conflict for one write only",
            read,
            |tr| {
                tr.option(30, b"").expect("an option");
                tr.set("x", "x");
                tr.set("d", "x");
            },
            CONFLICT,
        ),
    ];
    run(cases);
}

#[test]
fn ranges_conflict_as_far_as_they_were_read() {
    fn pair(tr: &Tr<'_>) {
        drop(tr.range(&first("b", "z", 2, false)));
    }
    fn pair_back(tr: &Tr<'_>) {
        drop(tr.range(&first("a", "f", 2, true)));
    }
    let cases: Vec<Case> = vec![
        // a b c d e f hold rows.
        ("all, inside", |tr| drop(tr.range(&request("b", "z"))), |tr| tr.set("x", ""), CONFLICT),
        ("all, at its end", |tr| drop(tr.range(&request("b", "x"))), |tr| tr.set("x", ""), FREE),
        ("two, before", pair, |tr| tr.set("a", ""), FREE),
        ("two, first", pair, |tr| tr.set("b", ""), CONFLICT),
        ("two, between", pair, |tr| tr.set("bb", ""), CONFLICT),
        ("two, last", pair, |tr| tr.set("c", ""), CONFLICT),
        ("two, after the last", pair, |tr| tr.set("c\0", ""), FREE),
        ("two, next", pair, |tr| tr.set("d", ""), FREE),
        ("two back, end", pair_back, |tr| tr.set("f", ""), FREE),
        ("two back, first", pair_back, |tr| tr.set("e", ""), CONFLICT),
        ("two back, last", pair_back, |tr| tr.set("d", ""), CONFLICT),
        ("two back, behind the last", pair_back, |tr| tr.set("c\0", ""), FREE),
        (
            "first after, a key before it",
            |tr| drop(tr.get_key(&Selector::new(b"cc", false, 1))),
            |tr| tr.set("ccc", ""),
            CONFLICT,
        ),
        (
            "first after, the key",
            |tr| drop(tr.get_key(&Selector::new(b"cc", false, 1))),
            |tr| tr.clear("d"),
            CONFLICT,
        ),
        (
            "first after, the next",
            |tr| drop(tr.get_key(&Selector::new(b"cc", false, 1))),
            |tr| tr.clear("e"),
            FREE,
        ),
        (
            "last before, a key after it",
            |tr| drop(tr.get_key(&Selector::new(b"cc", false, 0))),
            |tr| tr.set("cb", ""),
            CONFLICT,
        ),
        (
            "last before, the key it is relative to",
            |tr| drop(tr.get_key(&Selector::new(b"cc", false, 0))),
            |tr| tr.set("cc", ""),
            FREE,
        ),
    ];
    run(cases);
}

#[test]
fn conflicts_without_reads_and_writes() {
    fn add(tr: &Tr<'_>, begin: &str, end: &str, is_write: bool) {
        let range = KeyRange::new(begin.as_bytes(), end.as_bytes());
        let added = tr.cluster.with(|world| world.add_conflict(tr.id, &range, is_write));
        added.expect("a conflict range");
    }
    let cases: Vec<Case> = vec![
        ("read range, set", |tr| add(tr, "b", "d", false), |tr| tr.set("c", ""), CONFLICT),
        ("read range, set behind it", |tr| add(tr, "b", "d", false), |tr| tr.set("d", ""), FREE),
        ("get, write range", |tr| drop(tr.get("c")), |tr| add(tr, "b", "d", true), CONFLICT),
        (
            "get, stamped key elsewhere",
            |tr| drop(tr.get("c")),
            |tr| tr.atomic(14, b"s..........\x01\0\0\0", b""),
            FREE,
        ),
        (
            "tail of a log, stamped key in it",
            |tr| drop(tr.range(&request("s", "t"))),
            |tr| tr.atomic(14, b"s..........\x01\0\0\0", b""),
            CONFLICT,
        ),
        (
            "get, stamped value",
            |tr| drop(tr.get("c")),
            |tr| tr.atomic(15, b"c", b"..........\0\0\0\0"),
            CONFLICT,
        ),
    ];
    run(cases);
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    for (begin, end, expected) in [
        (&b"b"[..], &b"a"[..], Err(INVERTED_RANGE)),
        (b"a", b"\xff/x", Err(KEY_OUTSIDE_LEGAL_RANGE)),
        (b"a", b"a", Ok(())),
    ] {
        let range = KeyRange::new(begin, end);
        assert_eq!(cluster.with(|world| world.add_conflict(tr.id, &range, true)), expected);
    }
}

fn run(cases: Vec<Case>) {
    for (name, read, write, expected) in cases {
        let cluster = Cluster::new(1);
        cluster.put(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5"), ("f", "6")]);
        let reader = cluster.tr();
        reader.read_version().expect("a version");
        read(&reader);
        let writer = cluster.tr();
        write(&writer);
        assert_eq!(writer.commit(), Ok(()), "{name}: the writer");
        reader.set("result", "");
        assert_eq!(reader.commit(), expected, "{name}");
    }
}

#[test]
fn what_was_read_alone_commits_whatever_happened() {
    let cluster = Cluster::new(1);
    let reader = cluster.tr();
    reader.get("a").expect("a value");
    cluster.put(&[("a", "1")]);
    assert_eq!(reader.commit(), Ok(()));
    assert_eq!(reader.version(), -1);
}

/// A read whose answer another commit changes always conflicts; random reads and writes.
#[test]
fn a_changed_answer_is_always_a_conflict() {
    let mut conflicts = 0;
    for seed in 0..600 {
        let cluster = Cluster::new(seed);
        let mut random = Random::new(seed);
        let key = |random: &mut Random| format!("{:02}", random.between(0, 20));
        let tr = cluster.tr();
        for _ in 0..10 {
            tr.set(&key(&mut random), "old");
        }
        tr.commit().expect("a commit");

        let reader = cluster.tr();
        for _ in 0..random.between(0, 4) {
            match random.between(0, 2) {
                0 => reader.set(&key(&mut random), "own"),
                1 => reader.atomic(9, key(&mut random).as_bytes(), b"+"),
                _ => reader.clear(&key(&mut random)),
            }
        }
        let selector = |random: &mut Random| {
            let offset = random.between(0, 4) as i32 - 1;
            Selector::new(key(random).as_bytes(), random.chance(500), offset)
        };
        let rows = random.chance(500).then(|| random.between(1, 4));
        let request = RangeRequest {
            begin: selector(&mut random),
            end: selector(&mut random),
            limits: Limits { rows, bytes: None },
            reverse: random.chance(500),
        };
        let single = selector(&mut random);
        let is_range = random.chance(600);
        let read = |tr: &Tr<'_>| match is_range {
            true => format!("{:?}", tr.range(&request)),
            false => format!("{:?}", tr.get_key(&single)),
        };
        let before = read(&reader);
        let own = cluster.with(|world| world.transactions[&reader.id].overlay.clone());

        let writer = cluster.tr();
        match random.between(0, 1) {
            0 => writer.set(&key(&mut random), "new"),
            _ => writer.clear(&key(&mut random)),
        }
        writer.commit().expect("a commit");

        let again = cluster.tr();
        cluster.with(|world| {
            let again = world.transactions.get_mut(&again.id).expect("a transaction");
            again.overlay = own;
        });
        let after = read(&again);
        reader.set("result", "");
        let outcome = reader.commit();
        if before != after {
            conflicts += 1;
            assert_eq!(outcome, CONFLICT, "seed {seed}: {before} {after} {request:?} {single:?}");
        }
    }
    assert!(conflicts > 30, "only {conflicts} seeds changed an answer");
}
