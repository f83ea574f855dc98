//! 4.2 point 7: `on_error`, its delays and limits, and timeouts.

use super::Cluster;
use crate::errors::{
    self, ACCESSED_UNREADABLE, CLIENT_INVALID_OPERATION, CLUSTER_VERSION_CHANGED,
    COMMIT_UNKNOWN_RESULT, FUTURE_VERSION, GRV_PROXY_MEMORY, NOT_COMMITTED, PROCESS_BEHIND,
    TAG_THROTTLED, TRANSACTION_CANCELLED, TRANSACTION_TIMED_OUT, TRANSACTION_TOO_LARGE,
    TRANSACTION_TOO_OLD, USED_DURING_COMMIT,
};

/// Code, whether it may be committed, whether it is certainly not and may be tried again.
#[test]
fn predicates() {
    for (code, maybe, retryable_not) in [
        (TRANSACTION_TOO_OLD, false, true),
        (FUTURE_VERSION, false, true),
        (NOT_COMMITTED, false, true),
        (COMMIT_UNKNOWN_RESULT, true, false),
        (TRANSACTION_CANCELLED, false, false),
        (TRANSACTION_TIMED_OUT, false, false),
        (ACCESSED_UNREADABLE, false, false),
        (PROCESS_BEHIND, false, true),
        (1038, false, true),
        (CLUSTER_VERSION_CHANGED, true, false),
        (1042, false, true),
        (1051, false, true),
        (1078, false, true),
        (TAG_THROTTLED, false, true),
        (1223, false, true),
        (USED_DURING_COMMIT, false, false),
        (TRANSACTION_TOO_LARGE, false, false),
        (0, false, false),
    ] {
        assert_eq!(errors::predicate(50_001, code), maybe, "{code}");
        assert_eq!(errors::predicate(50_002, code), retryable_not, "{code}");
        assert_eq!(errors::predicate(50_000, code), maybe || retryable_not, "{code}");
        assert!(!errors::predicate(1, code), "{code}");
        assert_ne!(errors::text(code), c"UNKNOWN_ERROR", "{code}");
    }
}

#[test]
fn what_is_tried_again_and_after_how_long() {
    for (code, expected, longest_us) in [
        (NOT_COMMITTED, Ok(()), 10_000),
        (COMMIT_UNKNOWN_RESULT, Ok(()), 10_000),
        (TAG_THROTTLED, Ok(()), 10_000),
        (TRANSACTION_TOO_OLD, Ok(()), 10_000),
        (FUTURE_VERSION, Ok(()), 10_000),
        (CLUSTER_VERSION_CHANGED, Ok(()), 0),
        (TRANSACTION_TIMED_OUT, Err(TRANSACTION_TIMED_OUT), 0),
        (USED_DURING_COMMIT, Err(USED_DURING_COMMIT), 0),
        (TRANSACTION_TOO_LARGE, Err(TRANSACTION_TOO_LARGE), 0),
        (0, Err(CLIENT_INVALID_OPERATION), 0),
    ] {
        let cluster = Cluster::new(1);
        let tr = cluster.tr();
        tr.set("a", "1");
        let before_us = cluster.now_us();
        assert_eq!(tr.on_error(code), expected, "{code}");
        let delay_us = cluster.now_us() - before_us;
        assert!(delay_us <= longest_us, "{code}: {delay_us}");
        let after = match expected {
            // As new: what was written is forgotten.
            Ok(()) => Ok(None),
            Err(_) => Err(TRANSACTION_CANCELLED),
        };
        assert_eq!(tr.get("a"), after, "{code}");
    }
}

#[test]
fn delays_double_up_to_the_longest() {
    // The longest delays of many tries, over many seeds: random, so only their bounds are known.
    let longest = |most: Option<i64>, code: i32, tries: usize| {
        let mut longest = vec![0; tries];
        for seed in 0..40 {
            let cluster = Cluster::new(seed);
            let tr = cluster.tr();
            if let Some(most) = most {
                tr.number(502, most);
            }
            for longest in &mut longest {
                let before_us = cluster.now_us();
                tr.on_error(code).expect("another try");
                *longest = (cluster.now_us() - before_us).max(*longest);
            }
        }
        longest
    };
    let bounds = [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000].map(|ms| ms * 1_000);
    for (found, bound) in longest(None, NOT_COMMITTED, 9).into_iter().zip(bounds) {
        assert!((bound * 7 / 10..=bound).contains(&found), "{found} of {bound}");
    }
    for found in longest(Some(5), NOT_COMMITTED, 5) {
        assert!(found <= 5_000, "{found}");
    }
    let resource = longest(None, GRV_PROXY_MEMORY, 9);
    assert!(resource[8] > 1_000_000, "memory of the proxies is waited for longer: {resource:?}");
}

#[test]
fn the_retry_limit_gives_the_error_back() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    tr.number(501, 2);
    assert_eq!(tr.on_error(NOT_COMMITTED), Ok(()));
    assert_eq!(tr.on_error(COMMIT_UNKNOWN_RESULT), Ok(()), "the limit outlives a retry");
    assert_eq!(tr.on_error(NOT_COMMITTED), Err(NOT_COMMITTED));
    assert_eq!(tr.get("a"), Err(TRANSACTION_CANCELLED), "a transaction that failed is over");
    tr.reset();
    for _ in 0..5 {
        assert_eq!(tr.on_error(NOT_COMMITTED), Ok(()), "a reset takes the limit away");
    }
}

#[test]
fn options_of_one_try_do_not_outlive_it() {
    let cluster = Cluster::new(1);
    cluster.put(&[("a", "old")]);
    let tr = cluster.tr();
    tr.option(51, b"").expect("no own writes");
    tr.option(302, b"").expect("system keys");
    tr.on_error(NOT_COMMITTED).expect("another try");
    tr.set("a", "new");
    assert_eq!(tr.get("a"), Ok(Some("new".to_owned())));
    assert!(tr.value_of(&tr.ask_get(b"\xff/x", false)).is_err());
}

#[test]
fn the_timeout_counts_from_the_beginning_and_over_retries() {
    let cluster = Cluster::new(1);
    let tr = cluster.tr();
    cluster.sleep(80_000);
    tr.number(500, 100);
    tr.on_error(FUTURE_VERSION).expect("another try");
    assert_eq!(tr.get("a"), Ok(None));
    cluster.sleep(20_000);
    assert_eq!(tr.get("a"), Err(TRANSACTION_TIMED_OUT));
    assert_eq!(tr.on_error(NOT_COMMITTED), Err(TRANSACTION_TIMED_OUT));
    assert_eq!(tr.commit(), Err(TRANSACTION_TIMED_OUT));
    tr.reset();
    assert_eq!(tr.get("a"), Ok(None));
    cluster.sleep(200_000);
    assert_eq!(tr.get("a"), Ok(None), "a reset takes the timeout away");

    let tr = cluster.tr();
    tr.number(500, 100);
    tr.number(500, 0);
    cluster.sleep(200_000);
    assert_eq!(tr.get("a"), Ok(None), "zero is none");

    let tr = cluster.tr();
    cluster.sleep(200_000);
    tr.number(500, 100);
    cluster.sleep(0);
    assert_eq!(tr.get("a"), Err(TRANSACTION_TIMED_OUT), "it is over already");
}

#[test]
fn the_timeout_of_the_database_comes_back_at_a_reset() {
    let cluster = Cluster::new(1);
    let set = cluster
        .with(|world| world.set_database_option(cluster.database, 500, &100_i64.to_le_bytes()));
    assert_eq!(set, Ok(()));
    let tr = cluster.tr();
    tr.number(500, 1_000);
    cluster.sleep(500_000);
    assert_eq!(tr.get("a"), Ok(None));
    tr.reset();
    cluster.sleep(150_000);
    assert_eq!(tr.get("a"), Err(TRANSACTION_TIMED_OUT));
}

#[test]
fn what_is_pending_fails_at_the_timeout() {
    let cluster = Cluster::new(1);
    cluster.with(|world| world.partition(cluster.database, true));
    let tr = cluster.tr();
    tr.number(500, 100);
    let get = tr.ask_get(b"a", false);
    let watch = tr.watch("b");
    let before_us = cluster.now_us();
    assert_eq!(cluster.done(&get), Err(TRANSACTION_TIMED_OUT));
    assert_eq!(cluster.now_us() - before_us, 100_000);
    assert_eq!(cluster.done(&watch), Err(TRANSACTION_TIMED_OUT));
}
