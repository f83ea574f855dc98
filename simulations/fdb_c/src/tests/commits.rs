//! 4.2 points 5, 6, 9 and 10: versionstamps, limits and sizes, the states of a commit, special
//! keys.

use super::{Cluster, Tr, code, request, show, text};
use crate::errors::{
    CLIENT_INVALID_OPERATION, INVALID_MUTATION_TYPE, INVERTED_RANGE, KEY_OUTSIDE_LEGAL_RANGE,
    KEY_TOO_LARGE, NO_CLUSTER_FILE_FOUND, NO_COMMIT_VERSION, NOT_COMMITTED,
    SPECIAL_KEYS_CROSS_MODULE_READ, SPECIAL_KEYS_NO_MODULE_FOUND, SPECIAL_KEYS_WRITE_DISABLED,
    TRANSACTION_CANCELLED, TRANSACTION_TOO_LARGE, USED_DURING_COMMIT, VALUE_TOO_LARGE,
};
use crate::future::{Payload, Promise};
use crate::range::{RangeRequest, Selector};
use crate::sim::SimConfig;

fn stamp_of(promise: &Promise) -> Result<Vec<u8>, i32> {
    match promise.reply() {
        Some(Ok(Payload::Key(stamp))) => Ok(stamp.to_vec()),
        Some(Err(code)) => Err(*code),
        other => panic!("not a stamp: {other:?}"),
    }
}

#[test]
fn a_versionstamp_is_the_version_and_the_place() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.atomic(14, b"log/..........\x04\0\0\0", b"event");
    tr.atomic(15, b"head", b"token..........\x05\0\0\0");
    let stamp = tr.ask_stamp();
    assert_eq!(tr.commit(), Ok(()));
    let stamp = stamp_of(&stamp).expect("a stamp");
    assert_eq!(stamp[..8], tr.version().to_be_bytes());
    assert_eq!(stamp[8..], [0, 0]);
    let key = [b"log/", &stamp[..]].concat();
    let value = [b"token", &stamp[..]].concat();
    let read = cluster.tr();
    assert_eq!(read.value_of(&read.ask_get(&key, false)), Ok(Some("event".to_owned())));
    assert_eq!(read.get("head"), Ok(Some(text(&value))));
}

#[test]
fn commits_that_arrive_together_share_a_version_and_stamps_still_grow() {
    let config = SimConfig { batch_us_max: 50_000, ..SimConfig::default() };
    let mut shared = 0;
    for seed in 0..20 {
        let cluster = Cluster::with_config(seed, config);
        let trs: Vec<Tr<'_>> = (0..8).map(|_| cluster.tr()).collect();
        let mut waiting = Vec::new();
        for tr in &trs {
            tr.atomic(14, b"..........\0\0\0\0", b"");
            waiting.push((tr.ask_stamp(), tr.ask_commit()));
        }
        let mut stamps = Vec::new();
        for (stamp, commit) in &waiting {
            assert_eq!(cluster.done(commit), Ok(()));
            stamps.push(stamp_of(stamp).expect("a stamp"));
        }
        stamps.sort();
        stamps.dedup();
        assert_eq!(stamps.len(), 8, "every stamp is used once");
        shared += stamps.iter().filter(|stamp| stamp[8..] != [0, 0]).count();
        let (rows, _) = cluster.tr().range(&request("", "\u{7f}")).expect("rows");
        let keys: Vec<Vec<u8>> = rows.iter().map(|(key, _)| key.to_vec()).collect();
        assert_eq!(keys, stamps);
    }
    assert!(shared > 20, "only {shared} commits shared a version");
}

/// In one batch an earlier commit conflicts with the reads of a later one.
#[test]
fn commits_of_one_batch_are_decided_in_order() {
    let config = SimConfig { batch_us_max: 50_000, ..SimConfig::default() };
    for seed in 0..20 {
        let cluster = Cluster::with_config(seed, config);
        cluster.put(&[("counter", "0")]);
        let trs: Vec<Tr<'_>> = (0..6).map(|_| cluster.tr()).collect();
        for tr in &trs {
            tr.get("counter").expect("a value");
        }
        let commits: Vec<Promise> = trs
            .iter()
            .enumerate()
            .map(|(place, tr)| {
                tr.set("counter", &place.to_string());
                tr.ask_commit()
            })
            .collect();
        let outcomes: Vec<_> = commits.iter().map(|commit| cluster.done(commit)).collect();
        let committed = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let refused = outcomes.iter().filter(|outcome| **outcome == Err(NOT_COMMITTED)).count();
        assert_eq!((committed, refused), (1, 5), "seed {seed}");
    }
}

#[test]
fn a_transaction_that_wrote_nothing_has_no_version() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.get("a").expect("a value");
    let stamp = tr.ask_stamp();
    assert_eq!(tr.commit(), Ok(()));
    assert_eq!((tr.version(), stamp_of(&stamp)), (-1, Err(NO_COMMIT_VERSION)));
}

/// Calls that report nothing leave their error to the next one that can.
#[test]
fn limits_are_checked() {
    type Case = (&'static str, fn(&Tr<'_>), Result<(), i32>);
    let long = |bytes: usize| "k".repeat(bytes);
    let cases: [Case; 18] = [
        ("the longest key", |tr| tr.set(&"k".repeat(10_000), ""), Ok(())),
        ("a longer key", |tr| tr.set(&"k".repeat(10_001), ""), Err(KEY_TOO_LARGE)),
        ("the longest value", |tr| tr.set("k", &"v".repeat(100_000)), Ok(())),
        ("a longer value", |tr| tr.set("k", &"v".repeat(100_001)), Err(VALUE_TOO_LARGE)),
        ("a long atomic key", |tr| tr.atomic(2, &[b'k'; 10_001], b"1"), Err(KEY_TOO_LARGE)),
        ("a long operand", |tr| tr.atomic(2, b"k", &[0; 100_001]), Err(VALUE_TOO_LARGE)),
        ("an unknown operation", |tr| tr.atomic(3, b"k", b"1"), Err(INVALID_MUTATION_TYPE)),
        ("a clear of a longer key", |tr| tr.clear(&"k".repeat(10_001)), Ok(())),
        ("a clear of a longer range", |tr| tr.clear_range("k", &"k".repeat(20_000)), Ok(())),
        ("an inverted range", |tr| tr.clear_range("b", "a"), Err(INVERTED_RANGE)),
        ("a system key", |tr| tr.atomic(2, b"\xff/k", b"1"), Err(KEY_OUTSIDE_LEGAL_RANGE)),
        (
            "a system key with the option",
            |tr| {
                tr.option(301, b"").expect("an option");
                tr.atomic(2, b"\xff/k", b"1");
            },
            Ok(()),
        ),
        ("a special key", |tr| tr.atomic(2, b"\xff\xff/k", b"1"), Err(SPECIAL_KEYS_WRITE_DISABLED)),
        ("the metadata version", |tr| tr.atomic(15, b"\xff/metadataVersion", &[0; 14]), Ok(())),
        (
            "another metadata version",
            |tr| tr.atomic(15, b"\xff/metadataVersion", &[1; 14]),
            Err(CLIENT_INVALID_OPERATION),
        ),
        (
            "a stamp that does not fit",
            |tr| tr.atomic(15, b"k", b"..........\x01\0\0\0"),
            Err(CLIENT_INVALID_OPERATION),
        ),
        (
            "10 MB",
            |tr| (0..100).for_each(|n| tr.set(&format!("{n:03}"), &"v".repeat(99_880))),
            Ok(()),
        ),
        (
            "more than 10 MB",
            |tr| (0..101).for_each(|n| tr.set(&format!("{n:03}"), &"v".repeat(99_880))),
            Err(TRANSACTION_TOO_LARGE),
        ),
    ];
    assert_eq!(long(3), "kkk");
    for (name, call, expected) in cases {
        let cluster = Cluster::new(1);
        let tr = cluster.tr();
        call(&tr);
        assert_eq!(tr.commit(), expected, "{name}");
    }
}

#[test]
fn writes_of_one_key_count_once_and_the_option_lowers_the_limit() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    for _ in 0..200 {
        tr.set("k", &"v".repeat(99_000));
    }
    assert_eq!(tr.commit(), Ok(()), "only the last value is sent");
    for (bytes, expected) in [(50, Ok(())), (500, Err(TRANSACTION_TOO_LARGE))] {
        let tr = cluster.tr();
        tr.number(503, 300);
        tr.set("k", &"v".repeat(bytes));
        assert_eq!(tr.commit(), expected, "{bytes}");
    }
}

#[test]
fn sizes() {
    type Case = (&'static str, fn(&Tr<'_>), u64);
    // A mutation is 28 more than its strings, a conflict range 24 more than its keys.
    let cases: [Case; 7] = [
        ("nothing", |_| {}, 0),
        ("set", |tr| tr.set("key", "value"), 28 + 8 + 24 + 7),
        ("atomic", |tr| tr.atomic(2, b"key", b"value"), 28 + 8 + 24 + 7),
        ("clear", |tr| tr.clear("key"), 24 + 7 + 24 + 7),
        ("clear range", |tr| tr.clear_range("a", "bcd"), 24 + 4 + 24 + 4),
        ("get", |tr| drop(tr.get("key")), 24 + 7),
        ("snapshot get", |tr| drop(tr.get_snapshot("key")), 0),
    ];
    for (name, call, expected) in cases {
        let cluster = Cluster::new(1);
        let tr = cluster.tr();
        call(&tr);
        assert_eq!(tr.size(), expected, "{name}");
    }
}

#[test]
fn nothing_may_be_asked_while_it_commits() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.set("a", "1");
    let commit = tr.ask_commit();
    let get = tr.ask_get(b"a", false);
    assert_eq!(code(&get), Err(USED_DURING_COMMIT));
    assert_eq!(code(&commit), Err(USED_DURING_COMMIT), "the commit fails with it");

    let tr = cluster.tr();
    tr.option(701, b"").expect("no protection");
    tr.set("a", "1");
    let commit = tr.ask_commit();
    assert_eq!(code(&tr.ask_get(b"a", false)), Err(USED_DURING_COMMIT));
    assert_eq!(cluster.done(&commit), Ok(()));
    assert_eq!(tr.get("a"), Err(USED_DURING_COMMIT), "also afterwards");
    tr.reset();
    assert_eq!(tr.get("a"), Ok(Some("1".to_owned())));
}

#[test]
fn a_commit_waits_for_the_reads_before_it() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    let get = tr.ask_get(b"a", false);
    tr.set("b", "1");
    let commit = tr.ask_commit();
    cluster.run(&commit);
    assert!(get.reply().is_some());
    assert_eq!(code(&commit), Ok(()));
    let reader = cluster.tr();
    let get = reader.ask_get(b"a", false);
    reader.set("c", "1");
    cluster.run(&get);
    cluster.put(&[("a", "2")]);
    assert_eq!(reader.commit(), Err(NOT_COMMITTED), "and depends on them");
}

#[test]
fn what_is_pending_fails_when_the_transaction_ends() {
    type End = (&'static str, fn(Tr<'_>));
    let ends: [End; 3] =
        [("cancel", |tr| tr.cancel()), ("reset", |tr| tr.reset()), ("destroy", |tr| tr.destroy())];
    for (name, end) in ends {
        let cluster = Cluster::new(1);
        let tr = cluster.tr();
        let get = tr.ask_get(b"a", false);
        let watch = tr.watch("b");
        tr.set("c", "1");
        let stamp = tr.ask_stamp();
        let commit = tr.ask_commit();
        end(tr);
        for promise in [get, watch, stamp, commit] {
            assert_eq!(code(&promise), Err(TRANSACTION_CANCELLED), "{name}");
        }
    }
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.cancel();
    assert_eq!(tr.get("a"), Err(TRANSACTION_CANCELLED));
    assert_eq!(tr.commit(), Err(TRANSACTION_CANCELLED));
    tr.reset();
    assert_eq!(tr.get("a"), Ok(None));
}

/// A commit that was sent is decided, even if nobody waits for it any more.
#[test]
fn a_destroyed_transaction_may_still_commit() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.read_version().expect("a version");
    tr.set("a", "1");
    let commit = tr.ask_commit();
    tr.destroy();
    assert_eq!(code(&commit), Err(TRANSACTION_CANCELLED));
    cluster.sleep(100_000);
    assert_eq!(cluster.value("a"), Some("1".to_owned()));
}

#[test]
fn a_transaction_outlives_its_handle() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    let left = cluster.tr();
    cluster.with(|world| world.close_database(cluster.database));
    assert_eq!(tr.get("a"), Ok(None));
    tr.set("b", "1");
    assert_eq!(tr.commit(), Ok(()));
    tr.destroy();
    assert!(cluster.with(|world| world.databases.contains_key(&cluster.database)));
    left.destroy();
    assert!(cluster.with(|world| world.databases.is_empty() && world.transactions.is_empty()));
}

#[test]
fn a_waiter_is_called_once_and_also_if_it_comes_late() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    let cluster = Cluster::new(1);
    let calls = Arc::new(AtomicU32::new(0));
    let count = || {
        let calls = calls.clone();
        Box::new(move || {
            calls.fetch_add(1, Ordering::Relaxed);
        }) as crate::future::Waiter
    };
    let tr = cluster.tr();
    let get = tr.ask_get(b"a", false);
    assert!(get.wait(count()).is_none());
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    cluster.run(&get);
    cluster.sleep(1_000);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    cluster.with(|world| world.abandon(&get));
    cluster.sleep(1_000);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    let late = get.wait(count()).expect("given back to be called now");
    late();
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    // One whose future was destroyed is called as well, so that what it holds is freed.
    let get = cluster.tr().ask_get(b"a", false);
    assert!(get.wait(count()).is_none());
    cluster.with(|world| world.abandon(&get));
    cluster.sleep(1_000);
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[test]
fn conflicting_keys_are_reported() {
    let cluster = Cluster::new(1);
    let prefix = "\\xff\\xff/transaction/conflicting_keys/";
    for is_asked in [true, false] {
        let tr = cluster.tr();
        if is_asked {
            tr.option(712, b"").expect("an option");
        }
        tr.get("b").expect("a value");
        tr.range(&request("x", "y")).expect("rows");
        tr.get("c").expect("a value");
        cluster.put(&[("b", "2"), ("xx", "2"), ("cc", "2")]);
        tr.set("a", "1");
        assert_eq!(tr.commit(), Err(NOT_COMMITTED));
        let all = RangeRequest {
            begin: Selector::new(b"\xff\xff/transaction/conflicting_keys/", false, 1),
            end: Selector::new(b"\xff\xff/transaction/conflicting_keys/\xff\xff", false, 1),
            ..request("", "")
        };
        let (rows, _) = tr.range(&all).expect("rows");
        let expected = match is_asked {
            true => format!("{prefix}b=1 {prefix}b\\x00=0 {prefix}x=1 {prefix}y=0"),
            false => String::new(),
        };
        assert_eq!(show(&rows), expected);
        assert_eq!(tr.on_error(NOT_COMMITTED), Ok(()));
        assert_eq!(tr.range(&all).expect("rows").0, vec![], "gone after a retry");
    }
}

#[test]
fn special_keys() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.get("r").expect("a value");
    tr.set("w", "1");
    let get = |key: &[u8]| tr.value_of(&tr.ask_get(key, false));
    let one = || Ok(Some("1".to_owned()));
    assert_eq!(get(b"\xff\xff/transaction/read_conflict_range/r"), one());
    assert_eq!(get(b"\xff\xff/transaction/write_conflict_range/w"), one());
    assert_eq!(get(b"\xff\xff/transaction/write_conflict_range/r"), Ok(None));
    assert_eq!(get(b"\xff\xff/connection_string"), Ok(Some("test".to_owned())));
    assert_eq!(get(b"\xff\xff/nothing"), Err(SPECIAL_KEYS_NO_MODULE_FOUND));
    let across = RangeRequest {
        begin: Selector::new(b"\xff\xff/transaction/", false, 1),
        end: Selector::new(b"\xff\xff/u", false, 1),
        ..request("", "")
    };
    assert_eq!(tr.range(&across), Err(SPECIAL_KEYS_CROSS_MODULE_READ));
    tr.option(713, b"").expect("relaxed");
    assert_eq!(tr.range(&across).expect("rows").0.len(), 4);
}

#[test]
fn the_metadata_version_changes_when_it_is_told_to() {
    let cluster = Cluster::new(1);
    let key = b"\xff/metadataVersion";
    let tr = cluster.tr();
    assert_eq!(tr.value_of(&tr.ask_get(key, false)), Ok(None));
    tr.atomic(15, key, &[0; 14]);
    assert_eq!(tr.commit(), Ok(()));
    let version = tr.version();
    let stamp = [&version.to_be_bytes()[..], &[0, 0]].concat();
    let tr = cluster.tr();
    assert_eq!(tr.value_of(&tr.ask_get(key, false)), Ok(Some(text(&stamp))));
}

#[test]
fn a_cluster_file_that_cannot_be_used_shows_in_the_transactions() {
    let cluster = Cluster::new(1);
    let database = cluster.with(|world| world.open_database("/no/such/cluster/file"));
    let lost = Cluster { host: cluster.host.clone(), database };
    assert_eq!(lost.tr().get("a"), Err(NO_CLUSTER_FILE_FOUND));
    assert_eq!(lost.tr().on_error(NO_CLUSTER_FILE_FOUND), Err(NO_CLUSTER_FILE_FOUND));
}
