//! The suite that every state store backend passes: [`run_all`] with its [`Backend`].
//!
//! Small cases, each on a fresh store and named in the failure; `random` compares thousands of
//! random operations with the executable specification. No case sleeps or reads a clock.

mod doorbells;
mod probe;
mod random;

use std::{collections::BTreeSet, panic::AssertUnwindSafe};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use memcube_schemas::{
    Version,
    keys::KeyRange,
    limits::{KEY_BYTES_MAX, MUTATIONS_PER_COMMIT_MAX, STAMPED_VALUE_BYTES_MAX, VALUE_BYTES_MAX},
};

use self::probe::{Probe, absent, add, at, clear, clear_range, key_range, set, stamp_of, stamped};
use super::{Commit, CommitToken, RangeRead, SharedStore, StoreError};

/// How the suite gets hold of a backend.
pub trait Backend: Send {
    /// Opens a store that is empty and independent of those opened before.
    fn open(&mut self) -> impl Future<Output = SharedStore> + Send;

    /// Opens again what a crash at this moment would leave of a store. The suite has no other
    /// handle on it and no call in flight.
    fn crash_and_reopen(&mut self, store: SharedStore) -> impl Future<Output = SharedStore> + Send;
}

type Case<B> = for<'a> fn(&'a mut B, Probe) -> BoxFuture<'a, ()>;

/// A case, and what of the port's contract it checks.
struct Named<B> {
    name: &'static str,
    guarantee: &'static str,
    case: Case<B>,
}

/// Runs every case.
///
/// # Panics
/// When a case fails, with the names and the guarantees of all that failed; each prints its own
/// reason.
pub async fn run_all<B: Backend>(backend: &mut B) {
    let mut failed = Vec::new();
    for Named { name, guarantee, case } in cases::<B>() {
        let probe = Probe::new(backend.open().await);
        if AssertUnwindSafe(case(backend, probe)).catch_unwind().await.is_err() {
            failed.push(format!("{name}: {guarantee}"));
        }
    }
    assert!(failed.is_empty(), "conformance cases failed:\n  {}", failed.join("\n  "));
}

macro_rules! named {
    ($($case:path => $guarantee:literal),* $(,)?) => {
        vec![$(Named {
            name: stringify!($case),
            guarantee: $guarantee,
            case: |backend, probe| Box::pin($case(backend, probe)),
        }),*]
    };
}

/// Every guarantee, and the case that checks it.
fn cases<B: Backend>() -> Vec<Named<B>> {
    named![
        a_commit_is_read_back =>
            "an acknowledged commit is read by every later read, with its version",
        an_empty_store_reads_empty =>
            "a store that nobody wrote to holds nothing, and reading nothing is no error",
        pages_come_in_order_with_limit_and_more =>
            "pages come in key order, either way round, and say whether the limit cut them",
        ranges_are_half_open =>
            "a range holds its start and not its end, and bytes sort as bytes",
        ranges_of_one_read_share_a_version =>
            "all ranges of a read are of one version, also while commits go on",
        versions_grow =>
            "a commit that begins after another was answered has a greater version",
        an_empty_commit_has_a_version =>
            "a commit without mutations takes effect as well, and is found by its token",
        checks_that_hold_let_a_commit_pass =>
            "checks compare with the last commit of a key, and others' keys do not matter",
        a_failed_check_names_its_key_and_changes_nothing =>
            "the first check that fails is named, and nothing of the commit takes effect",
        mutations_take_effect_in_order =>
            "mutations of one commit see those before them",
        clear_range_respects_its_bounds =>
            "clearing a range takes its start and leaves its end",
        counters_add_and_wrap =>
            "additions wrap, and take any value of the key for a number",
        counters_add_up_over_concurrent_commits =>
            "no addition is lost, however many commits add at a time",
        versionstamped_keys_sort_in_commit_order =>
            "stamped keys sort as their commits do, and never collide",
        a_repeated_token_has_no_second_effect =>
            "a token takes effect once, also over a crash and among repetitions at a time",
        a_token_that_failed_is_free =>
            "a token whose commit was refused may be used again",
        unknown_tokens_have_no_outcome =>
            "a token that was never used has no outcome",
        too_large_is_refused_and_changes_nothing =>
            "what is larger than the limits is refused, and nothing of it takes effect",
        the_largest_key_and_value_fit =>
            "what is just as large as the limits is taken",
        check_and_retry_loses_no_increment =>
            "reading, checking and writing loses nothing among concurrent writers",
        concurrent_commits_to_disjoint_keys_succeed =>
            "commits to different keys do not refuse each other",
        a_crash_keeps_every_acknowledged_commit =>
            "what was acknowledged survives a crash, and versions grow over it",
        doorbells::a_doorbell_rings_when_its_key_changes =>
            "whoever waits for a key is woken by a change of its value",
        doorbells::a_doorbell_does_not_miss_a_change_before_it_listens =>
            "a change between the look and the wait is not missed",
        random::agrees_with_the_specification =>
            "thousands of random operations are answered as the executable specification does",
    ]
}

async fn a_commit_is_read_back<B: Backend>(_: &mut B, probe: Probe) {
    let version = probe.commit([], [set("a", "1"), set("b", "")]).await.expect("committed");
    assert_eq!(probe.get("a").await, Some((version, b"1".to_vec())));
    assert_eq!(probe.get("b").await, Some((version, Vec::new())));
    assert_eq!(probe.get("c").await, None);
    let second = probe.commit([], [set("a", "2"), clear("b")]).await.expect("committed");
    assert_eq!(probe.get("a").await, Some((second, b"2".to_vec())));
    assert_eq!(probe.get("b").await, None);
}

async fn an_empty_store_reads_empty<B: Backend>(_: &mut B, probe: Probe) {
    let read = probe.store.read(vec![RangeRead::all(key_range("", "z"))]).await.expect("read");
    assert!(read.pages.len() == 1 && read.pages[0].entries.is_empty() && !read.pages[0].more);
    let read = probe.store.read(Vec::new()).await.expect("read");
    assert!(read.pages.is_empty());
}

async fn pages_come_in_order_with_limit_and_more<B: Backend>(_: &mut B, probe: Probe) {
    probe.commit([], ["c", "a", "d", "b"].map(|key| set(key, "x"))).await.expect("committed");
    let table = [
        (usize::MAX, false, "abcd", false),
        (4, false, "abcd", false),
        (3, false, "abc", true),
        (0, false, "", true),
        (usize::MAX, true, "dcba", false),
        (1, true, "d", true),
    ];
    for (limit, reverse, expected, more) in table {
        let read = RangeRead { range: key_range("a", "z"), limit, reverse };
        let page = probe.page(read).await;
        let keys: Vec<u8> = page.entries.iter().flat_map(|entry| entry.key.clone()).collect();
        assert_eq!(
            (String::from_utf8_lossy(&keys).as_ref(), page.more),
            (expected, more),
            "{limit}"
        );
    }
    let empty = RangeRead { range: key_range("e", "z"), limit: 0, reverse: false };
    assert!(!probe.page(empty).await.more, "nothing was cut");
}

async fn ranges_are_half_open<B: Backend>(_: &mut B, probe: Probe) {
    let keys = ["a", "b", "b\0", "bb", "c", "\u{7f}"];
    probe.commit([], keys.map(|key| set(key, "x"))).await.expect("committed");
    assert_eq!(probe.keys(key_range("a", "c")).await, ["a", "b", "b\0", "bb"]);
    assert_eq!(probe.keys(key_range("b", "bb")).await, ["b", "b\0"]);
    assert_eq!(probe.keys(KeyRange::only(b"b".to_vec())).await, ["b"]);
    assert_eq!(probe.keys(key_range("a", "c").after(b"b")).await, ["b\0", "bb"]);
    assert!(probe.keys(key_range("b", "b")).await.is_empty());
    assert!(probe.keys(key_range("c", "a")).await.is_empty(), "ends before it starts");
    assert_eq!(probe.keys(key_range("", "\u{7f}")).await, ["a", "b", "b\0", "bb", "c"]);
}

async fn ranges_of_one_read_share_a_version<B: Backend>(_: &mut B, probe: Probe) {
    probe.commit([], [set("left", "0"), set("right", "0")]).await.expect("committed");
    let writer = probe.fork();
    let write = async move {
        for round in 1..=100 {
            let value = round.to_string();
            let both = [set("left", &value), set("right", &value)];
            writer.commit([], both).await.expect("committed");
        }
    };
    let reader = probe.fork();
    let read = async move {
        for _ in 0..100 {
            let ranges = vec![
                RangeRead::all(key_range("left", "left\u{7f}")),
                RangeRead::key(b"right".to_vec()),
            ];
            let read = reader.store.read(ranges).await.expect("read");
            let entries: Vec<_> = read.pages.iter().map(|page| page.entries[0].clone()).collect();
            assert_eq!(entries[0].value, entries[1].value);
            assert_eq!(entries[0].version, entries[1].version);
            assert!(entries[0].version <= read.version);
        }
    };
    join_all([probe::spawn(write), probe::spawn(read)]).await;
}

async fn versions_grow<B: Backend>(_: &mut B, probe: Probe) {
    let mut last = probe.version().await;
    for round in 0..20 {
        let version = probe.commit([], [set("a", &round.to_string())]).await.expect("committed");
        assert!(version > last);
        assert!(probe.version().await >= version, "a read sees what was acknowledged");
        last = version;
    }
}

async fn an_empty_commit_has_a_version<B: Backend>(_: &mut B, probe: Probe) {
    let first = probe.commit([], [set("a", "1")]).await.expect("committed");
    let token = probe.next_token();
    let empty = Commit { token, checks: vec![at("a", first)], mutations: Vec::new() };
    let second = probe.store.commit(empty).await.expect("committed");
    assert!(second > first);
    assert_eq!(probe.store.outcome(token).await, Ok(Some(second)));
    assert_eq!(probe.get("a").await, Some((first, b"1".to_vec())));
}

async fn checks_that_hold_let_a_commit_pass<B: Backend>(_: &mut B, probe: Probe) {
    let first = probe.commit([absent("a")], [set("a", "1")]).await.expect("absent");
    probe.commit([], [set("other", "x")]).await.expect("committed");
    let second = probe.commit([at("a", first), absent("b")], [set("a", "2")]).await;
    let second = second.expect("still as the first commit wrote it");
    probe.commit([at("a", second)], [clear("a")]).await.expect("as the second wrote it");
    probe.commit([absent("a")], [set("a", "3")]).await.expect("absent again");
}

async fn a_failed_check_names_its_key_and_changes_nothing<B: Backend>(_: &mut B, probe: Probe) {
    let first = probe.commit([], [set("a", "1"), set("b", "1")]).await.expect("committed");
    let second = probe.commit([], [set("a", "2")]).await.expect("committed");
    let beyond = Version(second.0 + 1_000);
    let table = [
        (vec![at("a", first)], "a"),
        (vec![absent("a")], "a"),
        (vec![at("missing", first)], "missing"),
        (vec![at("a", beyond)], "a"),
        (vec![at("a", second), absent("c"), at("b", second)], "b"),
    ];
    for (checks, key) in table {
        let mutations = [
            set("a", "9"),
            clear("b"),
            set("c", "9"),
            add("n", 1),
            clear_range("a", "z"),
            stamped("s", "9"),
        ];
        let token = probe.next_token();
        let commit = Commit { token, checks, mutations: mutations.to_vec() };
        let conflict = StoreError::Conflict { key: key.as_bytes().to_vec() };
        assert_eq!(probe.store.commit(commit).await, Err(conflict));
        assert_eq!(probe.keys(key_range("", "z")).await, ["a", "b"]);
        assert_eq!(probe.get("a").await, Some((second, b"2".to_vec())));
    }
}

async fn mutations_take_effect_in_order<B: Backend>(_: &mut B, probe: Probe) {
    probe.commit([], [set("a", "0"), set("b", "0"), set("c", "0")]).await.expect("committed");
    let version = probe
        .commit(
            [],
            [
                set("a", "1"),
                set("b1", "1"),
                clear_range("a", "c"),
                set("b", "2"),
                set("b", "3"),
                set("d", "1"),
                clear("d"),
                add("n", 5),
                clear("n"),
                add("n", 2),
            ],
        )
        .await
        .expect("committed");
    assert_eq!(probe.keys(key_range("", "z")).await, ["b", "c", "n"]);
    assert_eq!(probe.get("b").await, Some((version, b"3".to_vec())));
    assert_eq!(probe.get("n").await, Some((version, 2_i64.to_le_bytes().to_vec())));
}

async fn clear_range_respects_its_bounds<B: Backend>(_: &mut B, probe: Probe) {
    let keys = ["a", "b", "b\0", "bz", "c", "c\0"];
    let table = [
        (("b", "c"), vec!["a", "c", "c\0"]),
        (("b\0", "c\0"), vec!["a", "b", "c\0"]),
        (("c", "b"), keys.to_vec()),
        (("b", "b"), keys.to_vec()),
        (("", "\u{7f}"), vec![]),
    ];
    for ((start, end), expected) in table {
        probe.commit([], keys.map(|key| set(key, "x"))).await.expect("committed");
        probe.commit([], [clear_range(start, end)]).await.expect("committed");
        assert_eq!(probe.keys(key_range("", "\u{7f}")).await, expected, "{start:?}..{end:?}");
    }
}

async fn counters_add_and_wrap<B: Backend>(_: &mut B, probe: Probe) {
    let table = [(5, 5), (-7, -2), (i64::MAX, i64::MAX - 2), (3, i64::MIN)];
    for (delta, expected) in table {
        probe.commit([], [add("n", delta)]).await.expect("committed");
        assert_eq!(probe.counter("n").await, expected);
    }
    probe
        .commit([], [set("short", "\u{1}"), set("long", "\u{2}\0\0\0\0\0\0\0junk")])
        .await
        .expect("set");
    probe.commit([], [add("short", 1), add("long", 1)]).await.expect("committed");
    assert_eq!((probe.counter("short").await, probe.counter("long").await), (2, 3));
}

async fn counters_add_up_over_concurrent_commits<B: Backend>(_: &mut B, probe: Probe) {
    let commits = (0..64).map(|number| {
        let probe = probe.fork();
        probe::spawn(async move {
            let delta = if number % 2 == 0 { 10 } else { -3 };
            probe.commit([], [add("n", delta), add("n", 1)]).await.expect("committed");
        })
    });
    join_all(commits.collect::<Vec<_>>()).await;
    assert_eq!(probe.counter("n").await, 32 * 10 - 32 * 3 + 64);
    let version = probe.commit([], [add("n", 1)]).await.expect("committed");
    assert_eq!(probe.get("n").await.map(|(version, _)| version), Some(version));
}

async fn versionstamped_keys_sort_in_commit_order<B: Backend>(_: &mut B, probe: Probe) {
    let mut expected = Vec::new();
    for round in 0..5 {
        let names = [format!("{round}.0"), format!("{round}.1")];
        let mutations = [stamped("log/", &names[0]), set("x", "y"), stamped("log/", &names[1])];
        let version = probe.commit([], mutations).await.expect("committed");
        for (name, position) in names.into_iter().zip([0_u16, 2]) {
            expected.push((version, position, name.into_bytes()));
        }
    }
    let log = || RangeRead::all(key_range("log/", "log0"));
    let found = probe.page(log()).await.entries;
    let mut places = Vec::new();
    let found = found.into_iter().map(|entry| {
        let (version, place, position) = stamp_of(&entry.key, "log/");
        places.push(place);
        (version, position, entry.value)
    });
    assert_eq!(found.collect::<Vec<_>>(), expected);
    // Whoever else commits to the same system may share a version, so a place may be any number.
    assert!(places.chunks(2).all(|of_commit| of_commit[0] == of_commit[1]), "{places:?}");

    let commits = (0..50).map(|_| {
        let probe = probe.fork();
        probe::spawn(async move {
            probe
                .commit([], [stamped("log/", "c"), stamped("log/", "c")])
                .await
                .expect("committed");
        })
    });
    join_all(commits.collect::<Vec<_>>()).await;
    assert_eq!(probe.page(log()).await.entries.len(), 10 + 100, "none collided");
}

async fn a_repeated_token_has_no_second_effect<B: Backend>(backend: &mut B, probe: Probe) {
    let token = probe.next_token();
    let commit =
        Commit { token, checks: vec![absent("a")], mutations: vec![set("a", "1"), add("n", 1)] };
    let version = probe.store.commit(commit.clone()).await.expect("committed");
    probe.commit([], [set("a", "2")]).await.expect("committed");
    assert_eq!(probe.store.commit(commit.clone()).await, Ok(version));
    let probe = probe.reopen(backend).await;
    assert_eq!(probe.store.outcome(token).await, Ok(Some(version)));
    assert_eq!(probe.store.commit(commit.clone()).await, Ok(version));
    assert_eq!(
        (probe.get("a").await.map(|(_, value)| value), probe.counter("n").await),
        (Some(b"2".to_vec()), 1)
    );

    let twice =
        Commit { token: CommitToken(u128::MAX), checks: vec![], mutations: vec![add("n", 1)] };
    let same = (0..32).map(|_| probe.store.commit(twice.clone()));
    let versions: BTreeSet<_> =
        join_all(same).await.into_iter().map(|version| version.expect("committed")).collect();
    assert_eq!((versions.len(), probe.counter("n").await), (1, 2), "one effect, one version");
}

async fn a_token_that_failed_is_free<B: Backend>(_: &mut B, probe: Probe) {
    probe.commit([], [set("a", "1")]).await.expect("committed");
    let token = probe.next_token();
    let mut commit = Commit { token, checks: vec![absent("a")], mutations: vec![set("b", "1")] };
    assert!(probe.store.commit(commit.clone()).await.is_err());
    assert_eq!(probe.store.outcome(token).await, Ok(None));
    commit.checks.clear();
    let version = probe.store.commit(commit).await.expect("committed");
    assert_eq!(probe.store.outcome(token).await, Ok(Some(version)));
}

async fn unknown_tokens_have_no_outcome<B: Backend>(backend: &mut B, probe: Probe) {
    let unknown = CommitToken(0xdead);
    assert_eq!(probe.store.outcome(unknown).await, Ok(None));
    probe.commit([], [set("a", "1")]).await.expect("committed");
    let probe = probe.reopen(backend).await;
    assert_eq!(probe.store.outcome(unknown).await, Ok(None));
}

async fn too_large_is_refused_and_changes_nothing<B: Backend>(_: &mut B, probe: Probe) {
    let before = probe.commit([], [set("a", "1")]).await.expect("committed");
    let long_key = "k".repeat(KEY_BYTES_MAX + 1);
    let long_value = "v".repeat(VALUE_BYTES_MAX + 1);
    let table = [
        vec![set("a", "2"), set(&long_key, "x")],
        vec![set("a", "2"), set("b", &long_value)],
        vec![clear(&long_key)],
        vec![add(&long_key, 1)],
        vec![stamped(&long_key[..KEY_BYTES_MAX - 11], "x")],
        vec![stamped("s", &long_value[..=STAMPED_VALUE_BYTES_MAX])],
        vec![clear("x"); MUTATIONS_PER_COMMIT_MAX + 1],
    ];
    for mutations in table {
        let refused = probe.commit([], mutations).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    }
    let refused = probe.commit([absent(&long_key)], []).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    assert_eq!(probe.keys(key_range("", "z")).await, ["a"]);
    assert_eq!(probe.get("a").await, Some((before, b"1".to_vec())));
}

async fn the_largest_key_and_value_fit<B: Backend>(backend: &mut B, probe: Probe) {
    let key = "k".repeat(KEY_BYTES_MAX);
    let value = "v".repeat(VALUE_BYTES_MAX);
    let prefix = "p".repeat(KEY_BYTES_MAX - 12);
    let version = probe.commit([absent(&key)], [set(&key, &value), stamped(&prefix, "s")]).await;
    let probe = probe.reopen(backend).await;
    assert_eq!(probe.get(&key).await, Some((version.expect("committed"), value.into_bytes())));
    let stamped = probe.page(RangeRead::all(key_range("p", "q"))).await;
    assert_eq!(stamped.entries.len(), 1);
}

async fn check_and_retry_loses_no_increment<B: Backend>(_: &mut B, probe: Probe) {
    probe.commit([], [set("n", "0")]).await.expect("committed");
    let increments = (0..8).map(|_| {
        let probe = probe.fork();
        probe::spawn(async move {
            for _ in 0..10 {
                while !probe.increment_by_check("n").await {}
            }
        })
    });
    join_all(increments.collect::<Vec<_>>()).await;
    assert_eq!(probe.get("n").await.map(|(_, value)| value), Some(b"80".to_vec()));
}

async fn concurrent_commits_to_disjoint_keys_succeed<B: Backend>(_: &mut B, probe: Probe) {
    let commits = (0..200).map(|number| {
        let probe = probe.fork();
        async move {
            let key = format!("{number:03}");
            let version = probe.commit([absent(&key)], [set(&key, &key)]).await.expect("committed");
            assert_eq!(probe.get(&key).await, Some((version, key.into_bytes())));
            version
        }
    });
    let last = join_all(commits).await.into_iter().max().expect("two hundred");
    assert!(probe.version().await >= last, "a read sees what was acknowledged");
}

async fn a_crash_keeps_every_acknowledged_commit<B: Backend>(backend: &mut B, mut probe: Probe) {
    let mut versions = Vec::new();
    for round in 0..3 {
        for number in 0..30 {
            let key = format!("{round}/{number:02}");
            versions
                .push(probe.commit([], [set(&key, &key), add("n", 1)]).await.expect("committed"));
        }
        let removed = format!("{round}/07");
        probe.commit([], [clear(&removed)]).await.expect("committed");
        let before = probe.page(RangeRead::all(key_range("", "z"))).await;
        let version = probe.version().await;
        probe = probe.reopen(backend).await;
        assert_eq!(probe.page(RangeRead::all(key_range("", "z"))).await, before);
        assert!(probe.version().await >= version);
        assert_eq!(probe.counter("n").await, (round + 1) * 30);
    }
    assert!(versions.is_sorted_by(|left, right| left < right), "versions grow over crashes");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::InMemoryStore, *};

    struct InMemory(InMemoryStore);

    impl Backend for InMemory {
        async fn open(&mut self) -> SharedStore {
            self.0 = InMemoryStore::new();
            Arc::new(self.0.clone())
        }

        async fn crash_and_reopen(&mut self, _: SharedStore) -> SharedStore {
            Arc::new(self.0.clone())
        }
    }

    #[tokio::test]
    async fn the_in_memory_store_conforms() {
        run_all(&mut InMemory(InMemoryStore::new())).await;
    }
}
