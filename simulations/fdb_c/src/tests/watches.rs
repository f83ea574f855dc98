//! 4.2 point 8: watches.

use super::{Cluster, code};
use crate::errors::{
    ACCESSED_UNREADABLE, COMMIT_UNKNOWN_RESULT, KEY_OUTSIDE_LEGAL_RANGE, KEY_TOO_LARGE,
    NOT_COMMITTED, PROCESS_BEHIND, TOO_MANY_WATCHES, TRANSACTION_CANCELLED, WATCHES_DISABLED,
};
use crate::faults::Faults;

#[test]
fn a_watch_fires_when_the_value_differs() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "1")]);
    let tr = cluster.tr();
    let watch = tr.watch("a");
    assert_eq!(tr.commit(), Ok(()));
    cluster.sleep(1_000_000);
    assert!(watch.reply().is_none());
    cluster.put(&[("a", "1"), ("b", "2")]);
    cluster.sleep(1_000_000);
    assert!(watch.reply().is_none(), "the same value is no change");
    cluster.put(&[("a", "2")]);
    assert_eq!(cluster.done(&watch), Ok(()));
}

#[test]
fn a_watch_fires_when_the_key_appears_or_goes() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    let watch = tr.watch("a");
    tr.commit().expect("a commit");
    cluster.put(&[("a", "1")]);
    assert_eq!(cluster.done(&watch), Ok(()));
    let tr = cluster.tr();
    let watch = tr.watch("a");
    tr.commit().expect("a commit");
    let tr = cluster.tr();
    tr.clear_range("", "z");
    tr.commit().expect("a commit");
    assert_eq!(cluster.done(&watch), Ok(()));
}

/// What changed between the read and the arming is not missed; what came back is.
#[test]
fn the_baseline_is_what_the_transaction_saw() {
    for (values, fires) in [(vec!["2"], true), (vec!["2", "1"], false), (vec!["1"], false)] {
        let cluster = Cluster::new(1);
        cluster.put(&[("a", "1")]);
        let tr = cluster.tr();
        let watch = tr.watch("a");
        tr.read_version().expect("a version");
        cluster.sleep(100_000);
        for value in &values {
            cluster.put(&[("a", value)]);
        }
        // It wrote nothing, so the change is no conflict.
        assert_eq!(tr.commit(), Ok(()));
        cluster.sleep(1_000_000);
        assert_eq!(watch.reply().is_some(), fires, "{values:?}");
    }
}

#[test]
fn own_writes_before_are_the_baseline_and_after_fire_at_once() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "1")]);
    let tr = cluster.tr();
    tr.set("a", "own");
    let watch = tr.watch("a");
    assert_eq!(tr.commit(), Ok(()));
    cluster.sleep(1_000_000);
    assert!(watch.reply().is_none(), "its own value was the baseline");
    cluster.put(&[("a", "1")]);
    assert_eq!(cluster.done(&watch), Ok(()));

    let tr = cluster.tr();
    let watch = tr.watch("a");
    cluster.sleep(100_000);
    tr.set("a", "1");
    assert!(watch.reply().is_none(), "the same value");
    tr.set("a", "own");
    assert_eq!(code(&watch), Ok(()));

    // Also if the read was not answered when the write came.
    let tr = cluster.tr();
    let watch = tr.watch("a");
    tr.set("a", "own");
    assert_eq!(cluster.done(&watch), Ok(()));
}

#[test]
fn a_watch_needs_its_commit() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "1")]);
    let tr = cluster.tr();
    let watch = tr.watch("a");
    cluster.put(&[("a", "2")]);
    cluster.sleep(1_000_000);
    assert!(watch.reply().is_none(), "not committed");
    tr.set("b", "1");
    assert_eq!(tr.commit(), Err(NOT_COMMITTED), "a watch is a read");
    assert_eq!(code(&watch), Err(NOT_COMMITTED));

    let tr = cluster.tr();
    let watch = tr.watch("a");
    tr.reset();
    assert_eq!(code(&watch), Err(TRANSACTION_CANCELLED));

    cluster.with(|world| world.faults = Faults { unknown_applied: 1_000, ..Faults::default() });
    let tr = cluster.tr();
    let watch = tr.watch("a");
    tr.set("b", "1");
    assert_eq!(tr.commit(), Err(COMMIT_UNKNOWN_RESULT));
    assert_eq!(code(&watch), Err(COMMIT_UNKNOWN_RESULT));
}

#[test]
fn a_watch_outlives_its_transaction() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    let watch = tr.watch("a");
    tr.commit().expect("a commit");
    tr.destroy();
    cluster.sleep(100_000);
    assert!(watch.reply().is_none());
    cluster.put(&[("a", "1")]);
    assert_eq!(cluster.done(&watch), Ok(()));
}

#[test]
fn what_cannot_be_watched() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    assert_eq!(code(&tr.watch(&"k".repeat(10_001))), Err(KEY_TOO_LARGE));
    let watch = cluster.with(|world| world.watch(tr.id, b"\xff/x"));
    assert_eq!(code(&watch), Err(KEY_OUTSIDE_LEGAL_RANGE));
    tr.atomic(15, b"v", b"..........\0\0\0\0");
    assert_eq!(code(&tr.watch("v")), Err(ACCESSED_UNREADABLE));
    let tr = cluster.tr();
    tr.option(51, b"").expect("no own writes");
    assert_eq!(code(&tr.watch("a")), Err(WATCHES_DISABLED));
}

#[test]
fn a_watch_fails_with_the_read_of_its_baseline() {
    let cluster = Cluster::new(1);
    cluster.with(|world| world.faults = Faults { process_behind: 1_000, ..Faults::default() });
    let tr = cluster.tr();
    assert_eq!(cluster.done(&tr.watch("a")), Err(PROCESS_BEHIND));
}

#[test]
fn watches_of_a_handle_are_counted() {
    let cluster = Cluster::new(1);
    let count = || cluster.with(|world| world.databases[&cluster.database].watches);
    let most = 3_i64.to_le_bytes();
    cluster.with(|world| world.set_database_option(cluster.database, 20, &most)).expect("set");
    let tr = cluster.tr();
    let watches = ["a", "b", "c"].map(|key| tr.watch(key));
    assert_eq!(code(&tr.watch("d")), Err(TOO_MANY_WATCHES));
    tr.commit().expect("a commit");
    assert_eq!(count(), 3);
    cluster.with(|world| world.abandon(&watches[0]));
    assert_eq!(count(), 2, "one that was destroyed");
    cluster.put(&[("b", "1")]);
    cluster.done(&watches[1]).expect("fired");
    assert_eq!(count(), 1, "one that fired");
    let tr = cluster.tr();
    let pending = tr.watch("x");
    assert_eq!(count(), 2);
    tr.reset();
    assert_eq!(code(&pending), Err(TRANSACTION_CANCELLED));
    assert_eq!(count(), 1, "one that was cancelled");
}

#[test]
fn many_watches_come_and_go() {
    let cluster = Cluster::new(1);
    for round in 0..40 {
        let tr = cluster.tr();
        let watches: Vec<_> =
            (0..200).map(|number| tr.watch(&format!("{round}/{number}"))).collect();
        tr.commit().expect("a commit");
        cluster.sleep(10_000);
        for watch in &watches {
            cluster.with(|world| world.abandon(watch));
        }
    }
    let armed = cluster.with(|world| world.stores[super::STORE].armed());
    assert!(armed < 1_000, "{armed} are left");
}

#[test]
fn watches_go_wrong_as_they_are_told() {
    let watched = |faults: Faults| {
        let cluster = Cluster::new(3);
        cluster.with(|world| world.faults = faults);
        let tr = cluster.tr();
        let watch = tr.watch("a");
        tr.commit().expect("a commit");
        cluster.sleep(100_000);
        (cluster, watch)
    };
    let (cluster, watch) = watched(Faults { watch_spurious: 1_000, ..Faults::default() });
    assert_eq!(cluster.done(&watch), Ok(()), "nothing changed");

    let (cluster, watch) = watched(Faults { watch_late: 1_000, ..Faults::default() });
    cluster.put(&[("a", "1")]);
    cluster.sleep(900_000);
    assert!(watch.reply().is_none(), "a second late at least");
    assert_eq!(cluster.done(&watch), Ok(()));

    let (cluster, watch) = watched(Faults { watch_early: 1_000, ..Faults::default() });
    let tr = cluster.tr();
    tr.set("a", "1");
    let commit = tr.ask_commit();
    cluster.run(&watch);
    assert!(commit.reply().is_none(), "before the writer knows");
}
