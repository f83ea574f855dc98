//! Faults: each does what it says, and what its error promises is true.

use std::fmt::Write;

use super::{Cluster, STORE, Tr};
use crate::errors::{
    CLUSTER_VERSION_CHANGED, COMMIT_UNKNOWN_RESULT, Code, DATABASE_LOCKED, FUTURE_VERSION,
    NOT_COMMITTED, PROCESS_BEHIND, TAG_THROTTLED, TRANSACTION_TIMED_OUT, TRANSACTION_TOO_OLD,
};
use crate::faults::Faults;
use crate::limits::RECOVERY_VERSIONS;

const ALWAYS: u16 = 1_000;

/// A commit of one row under these faults: what it was told, and whether the row was there then
/// and a while later.
fn commit_under(seed: u64, faults: Faults, timeout_ms: i64) -> (Result<(), Code>, bool, bool) {
    let cluster = Cluster::new(seed);
    let tr = cluster.tr();
    tr.number(500, timeout_ms);
    tr.get("other").expect("a value");
    tr.set("a", "1");
    cluster.with(|world| world.faults = faults);
    let outcome = tr.commit();
    cluster.with(|world| world.faults = Faults::default());
    let then = cluster.value("a").is_some();
    cluster.sleep(20_000_000);
    (outcome, then, cluster.value("a").is_some())
}

#[test]
fn commits_fail_as_they_are_told() {
    let none = Faults::default();
    for (name, faults, expected, is_applied) in [
        ("none", none, Ok(()), true),
        ("1020", Faults { not_committed: ALWAYS, ..none }, Err(NOT_COMMITTED), false),
        ("1007", Faults { too_old: ALWAYS, ..none }, Err(TRANSACTION_TOO_OLD), false),
        ("1038", Faults { database_locked: ALWAYS, ..none }, Err(DATABASE_LOCKED), false),
        ("1021 +", Faults { unknown_applied: ALWAYS, ..none }, Err(COMMIT_UNKNOWN_RESULT), true),
        ("1021 -", Faults { unknown_lost: ALWAYS, ..none }, Err(COMMIT_UNKNOWN_RESULT), false),
        ("1021 late", Faults { unknown_late: ALWAYS, ..none }, Err(COMMIT_UNKNOWN_RESULT), true),
        (
            "1039 +",
            Faults { version_changed_applied: ALWAYS, ..none },
            Err(CLUSTER_VERSION_CHANGED),
            true,
        ),
        (
            "1039 -",
            Faults { version_changed_lost: ALWAYS, ..none },
            Err(CLUSTER_VERSION_CHANGED),
            false,
        ),
        ("slow", Faults { slow_commit: ALWAYS, ..none }, Ok(()), true),
        ("no timeout", Faults { unanswered: ALWAYS, ..none }, Ok(()), true),
    ] {
        for seed in 0..10 {
            let (outcome, then, later) = commit_under(seed, faults, 0);
            assert_eq!(outcome, expected, "{name}");
            // The fate of a commit is settled before its error is told.
            assert_eq!((then, later), (is_applied, is_applied), "{name}");
        }
    }
}

/// After 1031, and only after it, a commit may still be on its way.
#[test]
fn a_timeout_leaves_everything_open() {
    let faults = Faults { unanswered: ALWAYS, ..Faults::default() };
    let (mut applied, mut lost, mut late) = (0, 0, 0);
    for seed in 0..60 {
        match commit_under(seed, faults, 500) {
            (Err(TRANSACTION_TIMED_OUT), true, true) => applied += 1,
            (Err(TRANSACTION_TIMED_OUT), false, true) => late += 1,
            (Err(TRANSACTION_TIMED_OUT), false, false) => lost += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(applied > 5 && lost > 5 && late > 1, "{applied} {lost} {late}");
}

#[test]
fn reads_fail_as_they_are_told() {
    let none = Faults::default();
    for (faults, expected) in [
        (Faults { too_old: ALWAYS, ..none }, TRANSACTION_TOO_OLD),
        (Faults { future_version: ALWAYS, ..none }, FUTURE_VERSION),
        (Faults { process_behind: ALWAYS, ..none }, PROCESS_BEHIND),
        (Faults { throttled: ALWAYS, ..none }, TAG_THROTTLED),
        (Faults { stalled_read_version: ALWAYS, ..none }, TRANSACTION_TOO_OLD),
    ] {
        let cluster = Cluster::new(1);
        cluster.with(|world| world.faults = faults);
        let tr = cluster.tr();
        assert_eq!(tr.get("a"), Err(expected));
        tr.set("b", "1");
        assert_eq!(tr.commit(), Err(expected), "a commit fails with the reads before it");
    }
}

#[test]
fn a_recovery_answers_1021_and_moves_the_versions() {
    let (mut made, mut lost) = (0, 0);
    for seed in 0..40 {
        let cluster = Cluster::new(seed);
        let before = cluster.put(&[("acknowledged", "1")]);
        let old = cluster.tr();
        old.get("acknowledged").expect("a value");
        let tr = cluster.tr();
        tr.set("a", "1");
        cluster.with(|world| world.faults = Faults { recovery: ALWAYS, ..Faults::default() });
        assert_eq!(tr.commit(), Err(COMMIT_UNKNOWN_RESULT));
        cluster.with(|world| world.faults = Faults::default());
        match cluster.value("a") {
            Some(_) => made += 1,
            None => lost += 1,
        }
        assert_eq!(cluster.value("acknowledged"), Some("1".to_owned()));
        assert_eq!(old.get("acknowledged"), Err(TRANSACTION_TOO_OLD));
        let after = cluster.put(&[("b", "1")]);
        assert!(after - before > RECOVERY_VERSIONS as i64, "{before} {after}");
        cluster.sleep(1_000_000);
        let later = cluster.put(&[("b", "2")]);
        assert!((1_000_000..1_100_000).contains(&(later - after)), "they go on with the clock");
    }
    assert!(made > 5 && lost > 5, "{made} {lost}");
}

#[test]
fn a_recovery_catches_commits_on_their_way() {
    for seed in 0..20 {
        let cluster = Cluster::new(seed);
        let trs: Vec<Tr<'_>> = (0..10).map(|_| cluster.tr()).collect();
        let commits: Vec<_> = trs
            .iter()
            .enumerate()
            .map(|(place, tr)| {
                tr.set(&place.to_string(), "1");
                tr.ask_commit()
            })
            .collect();
        cluster.sleep(4_000);
        let told: Vec<_> = commits.iter().map(|commit| commit.reply().is_some()).collect();
        cluster.with(|world| world.recover(STORE));
        for (place, commit) in commits.iter().enumerate() {
            let outcome = cluster.done(commit);
            let is_there = cluster.value(&place.to_string()).is_some();
            if told[place] {
                assert_eq!((outcome, is_there), (Ok(()), true), "it was told before");
            }
            assert!(outcome.is_err() || is_there, "seed {seed}: acknowledged and lost");
        }
    }
}

#[test]
fn nothing_passes_a_partition() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "1")]);
    let other = cluster.with(|world| world.open_database(&format!("sim:{STORE}")));
    let other = Cluster { host: cluster.host.clone(), database: other };
    cluster.with(|world| world.partition(cluster.database, true));
    let tr = cluster.tr();
    let get = tr.ask_get(b"a", false);
    other.put(&[("a", "2")]);
    cluster.sleep(10_000_000);
    assert!(get.reply().is_none());
    assert_eq!(other.value("a"), Some("2".to_owned()), "the other handle is not cut");
    cluster.with(|world| world.partition(cluster.database, false));
    assert_eq!(tr.value_of(&get), Ok(Some("2".to_owned())));
}

/// A commit that meets a cut on either way is told 1021 when it heals, and 1031 before that if it
/// has a timeout; what it did is open until then.
#[test]
fn a_commit_across_a_partition_is_unknown() {
    let (mut applied, mut lost, mut after_timeout) = (0, 0, 0);
    for seed in 0..80 {
        let cluster = Cluster::new(seed);
        let other = cluster.with(|world| world.open_database(&format!("sim:{STORE}")));
        let other = Cluster { host: cluster.host.clone(), database: other };
        let tr = cluster.tr();
        let has_timeout = seed % 2 == 0;
        if has_timeout {
            tr.number(500, 1_000);
        }
        tr.read_version().expect("a version");
        tr.set("a", "1");
        let commit = tr.ask_commit();
        cluster.sleep(seed % 5 * 1_000);
        if commit.reply().is_some() {
            continue;
        }
        cluster.with(|world| world.partition(cluster.database, true));
        cluster.sleep(2_000_000);
        let before = other.value("a").is_some();
        let told = commit.reply().is_some();
        assert_eq!(told, has_timeout);
        cluster.with(|world| world.partition(cluster.database, false));
        let expected = if has_timeout { TRANSACTION_TIMED_OUT } else { COMMIT_UNKNOWN_RESULT };
        assert_eq!(cluster.done(&commit), Err(expected));
        let then = other.value("a").is_some();
        cluster.sleep(10_000_000);
        let later = other.value("a").is_some();
        if !has_timeout {
            assert_eq!(then, later, "seed {seed}: settled once 1021 was told");
        }
        after_timeout += usize::from(has_timeout && later && !before);
        if later { applied += 1 } else { lost += 1 }
    }
    assert!(applied > 10 && lost > 10 && after_timeout > 3, "{applied} {lost} {after_timeout}");
}

/// Everything at once, by many clients: acknowledged commits are there, refused ones are not, and
/// a run is a function of its seed.
fn swarm(seed: u64) -> String {
    let faults = Faults {
        not_committed: 20,
        unknown_applied: 30,
        unknown_lost: 30,
        unknown_late: 20,
        too_old: 10,
        future_version: 10,
        process_behind: 10,
        database_locked: 10,
        version_changed_applied: 10,
        version_changed_lost: 10,
        throttled: 10,
        unanswered: 20,
        slow_commit: 50,
        stalled_read_version: 5,
        recovery: 5,
        watch_early: 100,
        watch_late: 100,
        watch_spurious: 100,
    };
    let cluster = Cluster::new(seed);
    cluster.with(|world| world.faults = faults);
    let mut random = crate::random::Random::new(seed);
    let mut trace = String::new();
    for step in 0..60 {
        let trs: Vec<Tr<'_>> = (0..3).map(|_| cluster.tr()).collect();
        let mut asked = Vec::new();
        for (place, tr) in trs.iter().enumerate() {
            let key = format!("{step}/{place}");
            if random.chance(500) {
                tr.number(500, 3_000);
            }
            tr.set(&key, "1");
            tr.atomic(2, b"count", &1_u64.to_le_bytes());
            asked.push((key, tr.ask_commit()));
        }
        for (key, commit) in asked {
            let outcome = cluster.done(&commit);
            writeln!(trace, "{} {key} {outcome:?}", cluster.now_us()).expect("a string");
        }
    }
    cluster.with(|world| world.faults = Faults::default());
    cluster.sleep(20_000_000);
    for line in trace.lines() {
        let mut words = line.split(' ');
        let (_, key) = (words.next(), words.next().expect("a key"));
        let is_there = cluster.value(key).is_some();
        match words.next().expect("an outcome") {
            "Ok(())" => assert!(is_there, "seed {seed}: {line}"),
            "Err(1021)" | "Err(1031)" | "Err(1039)" => {}
            _ => assert!(!is_there, "seed {seed}: {line}"),
        }
    }
    let tr = cluster.tr();
    let (rows, _) = tr.range(&super::request("0", "a")).expect("rows");
    let count = (rows.len() as u64).to_le_bytes();
    assert_eq!(tr.get("count"), Ok(Some(super::text(&count))), "seed {seed}: each exactly once");
    let applied = cluster.with(|world| world.stores[STORE].applied.clone());
    assert!(applied.is_sorted_by_key(|one| (one.version, one.batch)));
    writeln!(trace, "{applied:?}").expect("a string");
    trace
}

#[test]
fn a_swarm_of_faults_keeps_every_promise_and_replays() {
    for seed in 0..25 {
        assert_eq!(swarm(seed), swarm(seed), "seed {seed}");
    }
    assert_ne!(swarm(1), swarm(2));
}
