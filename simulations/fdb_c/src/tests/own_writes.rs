//! 4.2 point 2: a transaction reads its own writes.

use std::collections::BTreeMap;

use super::{Cluster, Tr, request, show};
use crate::atomic::AtomicOp;
use crate::errors::{ACCESSED_UNREADABLE, CLIENT_INVALID_OPERATION};
use crate::mvcc::Bytes;
use crate::random::Random;

const ADD: u32 = 2;
const STAMPED_KEY: u32 = 14;
const STAMPED_VALUE: u32 = 15;

#[test]
fn reads_see_sets_clears_and_atomics() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
    let tr = cluster.tr();
    tr.clear_range("b", "d");
    tr.set("bb", "new");
    tr.atomic(ADD, b"a", &[1]);
    tr.atomic(ADD, b"c", &[65]);
    tr.atomic(ADD, b"x", &[66]);
    for (key, expected) in [
        ("a", Some("2")),
        ("b", None),
        ("bb", Some("new")),
        ("c", Some("A")),
        ("d", Some("4")),
        ("x", Some("B")),
        ("y", None),
    ] {
        assert_eq!(tr.get(key), Ok(expected.map(str::to_owned)), "{key}");
        assert_eq!(tr.get_snapshot(key), Ok(expected.map(str::to_owned)), "snapshot of {key}");
    }
    let (rows, _) = tr.range(&request("", "z")).expect("rows");
    assert_eq!(show(&rows), "a=2 bb=new c=A d=4 x=B");
    assert_eq!(tr.commit(), Ok(()));
    let (rows, _) = cluster.tr().range(&request("", "z")).expect("rows");
    assert_eq!(show(&rows), "a=2 bb=new c=A d=4 x=B");
}

#[test]
fn options_hide_own_writes() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "old")]);
    let old = Ok(Some("old".to_owned()));
    let new = Ok(Some("new".to_owned()));
    let tr = cluster.tr();
    tr.option(601, b"").expect("snapshot reads do not see own writes");
    tr.set("a", "new");
    assert_eq!((tr.get("a"), tr.get_snapshot("a")), (new.clone(), old.clone()));
    tr.option(600, b"").expect("and now they do");
    assert_eq!(tr.get_snapshot("a"), new);
    assert_eq!(tr.option(51, b""), Err(CLIENT_INVALID_OPERATION), "after a write");

    let tr = cluster.tr();
    tr.option(51, b"").expect("no read sees own writes");
    tr.set("a", "new");
    assert_eq!((tr.get("a"), tr.get_snapshot("a")), (old.clone(), old));
}

#[test]
fn a_read_does_not_see_what_was_written_after_it_was_asked() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "old"), ("b", "old")]);
    let tr = cluster.tr();
    let value = tr.ask_get(b"a", false);
    let rows = cluster.with(|world| world.get_range(tr.id, request("a", "c"), false));
    tr.set("a", "new");
    tr.clear("b");
    assert_eq!(tr.value_of(&value), Ok(Some("old".to_owned())));
    assert_eq!(show(&tr.rows_of(&rows).expect("rows").0), "a=old b=old");
    assert_eq!(show(&tr.range(&request("a", "c")).expect("rows").0), "a=new");
}

/// What a versionstamp decides cannot be read before the commit.
#[test]
fn stamped_keys_are_unreadable_until_they_are_cleared() {
    let template = b"k..........\x01\0\0\0";
    type Case = (&'static str, fn(&Tr<'_>) -> Result<(), i32>, Result<(), i32>);
    let one = |tr: &Tr<'_>, key: &str| tr.get(key).map(|_| ());
    let cases: [Case; 7] = [
        ("the stamped value", |tr| tr.get("v").map(|_| ()), Err(ACCESSED_UNREADABLE)),
        (
            "a key it may become",
            |tr| tr.get("k\u{7f}aaaaaaaaa").map(|_| ()),
            Err(ACCESSED_UNREADABLE),
        ),
        ("another key", |tr| tr.get("j").map(|_| ()), Ok(())),
        (
            "a range over it",
            |tr| tr.range(&request("j", "z")).map(|_| ()),
            Err(ACCESSED_UNREADABLE),
        ),
        ("a range before it", |tr| tr.range(&request("a", "k")).map(|_| ()), Ok(())),
        (
            "the value after it was set again",
            |tr| {
                tr.set("v", "x");
                tr.get("v").map(|_| ())
            },
            Err(ACCESSED_UNREADABLE),
        ),
        (
            "the value after it was cleared",
            |tr| {
                tr.clear("v");
                tr.get("v").map(|_| ())
            },
            Ok(()),
        ),
    ];
    for (name, read, expected) in cases {
        let cluster = Cluster::new(1);
        cluster.put(&[("a", "1")]);
        let tr = cluster.tr();
        tr.atomic(STAMPED_VALUE, b"v", b"..........\0\0\0\0");
        tr.atomic(STAMPED_KEY, template, b"value");
        assert_eq!(read(&tr), expected, "{name}");
    }
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.option(1100, b"").expect("bypass");
    tr.atomic(STAMPED_VALUE, b"v", b"..........\0\0\0\0");
    assert_eq!(one(&tr, "v"), Ok(()), "with the bypass");
}

#[test]
fn a_stamped_key_comes_after_what_was_written_before_it() {
    let cluster = Cluster::new(1);
    cluster.put(&[("k1", "1")]);
    let tr = cluster.tr();
    tr.clear_range("k", "l");
    tr.atomic(STAMPED_KEY, b"k..........\x01\0\0\0", b"first");
    assert_eq!(tr.commit(), Ok(()));
    let (rows, _) = cluster.tr().range(&request("k", "l")).expect("rows");
    assert_eq!(rows.len(), 1, "{}", show(&rows));
    let tr = cluster.tr();
    tr.atomic(STAMPED_KEY, b"k..........\x01\0\0\0", b"second");
    tr.clear_range("k", "l");
    assert_eq!(tr.commit(), Ok(()));
    assert_eq!(cluster.tr().range(&request("k", "l")).expect("rows").0, vec![]);
}

/// The overlay against a map that is written to directly, before and after the commit.
#[test]
fn random_writes_read_like_a_map() {
    for seed in 0..150 {
        let cluster = Cluster::new(seed);
        let mut random = Random::new(seed);
        let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let key = |random: &mut Random| format!("{:02}", random.between(0, 30));
        for _ in 0..3 {
            let tr = cluster.tr();
            for _ in 0..random.between(1, 40) {
                let name = key(&mut random);
                let bytes = Bytes::from(name.as_bytes());
                match random.between(0, 9) {
                    0..=3 => {
                        let value = random.between(0, 300).to_string();
                        tr.set(&name, &value);
                        model.insert(bytes, Bytes::from(value.as_bytes()));
                    }
                    4 => {
                        tr.clear(&name);
                        model.remove(&bytes);
                    }
                    5 => {
                        let end = key(&mut random).max(name.clone());
                        tr.clear_range(&name, &end);
                        model.retain(|other, _| *other < bytes || **other >= *end.as_bytes());
                    }
                    _ => {
                        let ops = [2, 6, 7, 8, 9, 12, 13, 16, 17, 20];
                        let op = ops[random.between(0, 9) as usize];
                        let operand = random.between(0, 300).to_string();
                        tr.atomic(op, name.as_bytes(), operand.as_bytes());
                        let operation = AtomicOp::from_code(op).expect("an operation");
                        let operand = Bytes::from(operand.as_bytes());
                        match operation.apply(model.get(&bytes), &operand) {
                            Some(value) => drop(model.insert(bytes, value)),
                            None => drop(model.remove(&bytes)),
                        }
                    }
                }
                if random.chance(200) {
                    check(&tr, &model, &mut random, seed);
                }
            }
            check(&tr, &model, &mut random, seed);
            assert_eq!(tr.commit(), Ok(()), "seed {seed}");
            check(&cluster.tr(), &model, &mut random, seed);
        }
    }
}

fn check(tr: &Tr<'_>, model: &BTreeMap<Bytes, Bytes>, random: &mut Random, seed: u64) {
    let name = format!("{:02}", random.between(0, 30));
    let expected = model.get(name.as_bytes()).map(|value| super::text(value));
    assert_eq!(tr.get(&name), Ok(expected), "seed {seed} key {name}");
    let mut all = request("", "z");
    all.reverse = random.chance(500);
    let mut expected: Vec<_> = model.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    if all.reverse {
        expected.reverse();
    }
    let (rows, more) = tr.range(&all).expect("rows");
    assert_eq!((show(&rows), more), (show(&expected), false), "seed {seed}");
}
