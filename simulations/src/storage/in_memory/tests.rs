//! Every fault of the store strikes when it should, and none breaks the port's contract.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use memcube_actors::storage::{SharedStore, conformance};
use memcube_schemas::{Incarnation, keys::KeyRange};

use super::*;
use crate::{conditions::tests::with_faults, plan::Fault};

/// A store with one node, whose only life is its first.
struct World {
    conditions: Conditions,
    store: InMemoryDisk,
    handle: SharedStore,
}

impl World {
    fn new(classes: &[FaultClass]) -> Self {
        let conditions = with_faults(classes);
        let store = InMemoryDisk::new(conditions.clone());
        let handle = open(&conditions, &store, 0);
        Self { conditions, store, handle }
    }

    /// A store that held a row before the faults began.
    async fn with_row(classes: &[FaultClass], key: &str) -> Self {
        let world = Self::new(classes);
        world.store.0.disk.commit(set(1_000, key)).await.expect("committed");
        world
    }

    /// Commits made by nodes, and whether a key has a value.
    fn has(&self, key: &str) -> bool {
        self.store.0.disk.entries().iter().any(|entry| entry.key == key.as_bytes())
    }

    async fn read(&self, key: &str) -> Result<usize, StoreError> {
        let read = RangeRead::key(key.as_bytes().to_vec());
        Ok(self.handle.read(vec![read]).await?.pages[0].entries.len())
    }

    async fn took_ms<T>(&self, work: impl Future<Output = T>) -> (T, u64) {
        let start = self.conditions.now_ms();
        let done = work.await;
        (done, self.conditions.now_ms() - start)
    }
}

fn open(conditions: &Conditions, store: &InMemoryDisk, node: u32) -> SharedStore {
    let life = conditions.boot(node);
    store.handle(node, life, Arc::new(move || Incarnation(10 + life)))
}

/// A commit that writes a key without a condition.
fn set(token: u128, key: &str) -> Commit {
    let (key, value) = (key.as_bytes().to_vec(), b"x".to_vec());
    Commit {
        token: CommitToken(token),
        checks: Vec::new(),
        mutations: vec![Mutation::Set { key, value }],
    }
}

/// A commit that makes a key which must not be there.
fn make(token: u128, key: &str) -> Commit {
    let checks = vec![Check::Absent { key: key.as_bytes().to_vec() }];
    Commit { checks, ..set(token, key) }
}

fn is_unavailable<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable { .. }))
}

struct Backend(Option<World>);

impl conformance::Backend for Backend {
    async fn open(&mut self) -> SharedStore {
        let world = World::new(&[]);
        let handle = world.handle.clone();
        self.0 = Some(world);
        handle
    }

    async fn crash_and_reopen(&mut self, store: SharedStore) -> SharedStore {
        drop(store);
        let world = self.0.as_ref().expect("one was opened");
        world.conditions.begin(&Fault::Crash { node: 0 });
        open(&world.conditions, &world.store, 0)
    }
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_is_a_state_store_like_any_other() {
    conformance::run_all(&mut Backend(None)).await;
}

#[tokio::test(start_paused = true)]
async fn every_fault_of_a_commit_strikes_until_the_heal() {
    let conflict = StoreError::Conflict { key: b"a".to_vec() };
    let unreachable = unavailable("the state store is not reachable");
    // The answer to a commit, whether it took effect by then, and whether it did later.
    let table = [
        (FaultClass::StoreConflict, Some(conflict), false, false),
        (FaultClass::StoreUnknownApplied, Some(StoreError::Unknown), true, true),
        (FaultClass::StoreUnknownLost, Some(StoreError::Unknown), false, false),
        (FaultClass::StoreZombie, Some(StoreError::Unknown), false, true),
        (FaultClass::StoreUnavailable, Some(unreachable), false, false),
        (FaultClass::StoreOverloaded, Some(StoreError::Overloaded), false, false),
        (FaultClass::StoreSlow, None, true, true),
        (FaultClass::Jitter, None, true, true),
    ];
    for (class, error, is_made, is_made_later) in table {
        let world = World::new(&[class]);
        let answer = world.handle.commit(make(1, "a")).await;
        assert_eq!(answer.err(), error, "{class:?}");
        // A zombie may land while its sender still waits for the answer.
        if class != FaultClass::StoreZombie {
            assert_eq!(world.has("a"), is_made, "{class:?}");
        }
        sleep_ms(10_000).await;
        assert_eq!(world.has("a"), is_made_later, "{class:?}");
        let struck = u64::from(class != FaultClass::Jitter);
        assert_eq!(world.conditions.faults().values().sum::<u64>(), struck, "{class:?}");

        world.conditions.heal();
        let (answer, took_ms) = world.took_ms(world.handle.commit(make(2, "b"))).await;
        assert!(answer.is_ok() && took_ms < 10, "healed {class:?}: {answer:?} {took_ms}");
        assert_eq!(world.store.commits().len(), 1 + usize::from(is_made_later), "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn reads_and_outcomes_are_slow_or_refused_until_the_heal() {
    for class in [FaultClass::StoreSlow, FaultClass::StoreUnavailable] {
        let world = World::with_row(&[class], "a").await;
        let (read, read_ms) = world.took_ms(world.read("a")).await;
        let token = CommitToken(1_000);
        let (outcome, outcome_ms) = world.took_ms(world.handle.outcome(token)).await;
        if class == FaultClass::StoreSlow {
            assert!(read == Ok(1) && (100..=6_000).contains(&read_ms), "{read:?} {read_ms}");
            assert!(outcome.is_ok() && (100..=6_000).contains(&outcome_ms), "{outcome:?}");
        } else {
            assert!(is_unavailable(&read) && is_unavailable(&outcome), "{read:?} {outcome:?}");
        }
        world.conditions.heal();
        let (read, read_ms) = world.took_ms(world.read("a")).await;
        assert!(read == Ok(1) && read_ms <= 3, "healed {class:?}");
        assert_eq!(world.handle.outcome(token).await, Ok(Some(Version(1))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_spurious_conflict_needs_a_check_and_a_commit_that_is_not_there() {
    let world = World::with_row(&[FaultClass::StoreConflict], "a").await;
    assert!(world.handle.commit(set(1, "b")).await.is_ok(), "no check, no conflict");
    let again = Commit { token: CommitToken(1_000), ..make(0, "a") };
    assert_eq!(world.handle.commit(again).await, Ok(Version(1)));
    assert!(world.handle.commit(make(2, "c")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn commits_are_recorded_once_with_their_sender() {
    let world = World::new(&[]);
    let version = world.handle.commit(make(1, "a")).await.expect("committed");
    assert_eq!(world.handle.commit(make(1, "a")).await, Ok(version));
    assert!(world.handle.commit(make(2, "a")).await.is_err());
    world.conditions.begin(&Fault::Crash { node: 0 });
    let handle = open(&world.conditions, &world.store, 0);
    handle.commit(set(3, "a")).await.expect("committed");
    let commits = world.store.commits();
    let seen: Vec<_> = commits
        .iter()
        .map(|made| (made.version, made.node.as_str(), made.incarnation, made.token))
        .collect();
    let expected = [
        (Version(1), "node-0", Incarnation(10), CommitToken(1)),
        (Version(2), "node-0", Incarnation(11), CommitToken(3)),
    ];
    assert_eq!(seen, expected);
    assert_eq!((commits[0].checks.len(), commits[0].mutations.len()), (1, 1));
    assert_eq!(
        world.store.rows().await[b"a".as_slice()],
        Row { version: Version(2), value: b"x".into() }
    );
    assert_eq!(world.store.version(), Version(2));
}

#[tokio::test(start_paused = true)]
async fn an_outcome_of_none_stays_none() {
    let world = World::new(&[FaultClass::StoreZombie]);
    let mut answers = BTreeSet::new();
    for number in 0..100 {
        let key = format!("k{number}");
        let token = CommitToken(number);
        assert!(world.handle.commit(make(number, &key)).await.is_err());
        let outcome = world.handle.outcome(token).await;
        sleep_ms(10_000).await;
        let later = world.handle.outcome(token).await.expect("it is decided");
        assert_eq!(world.has(&key), later.is_some());
        match outcome {
            Ok(outcome) => assert_eq!(outcome, later, "what was told stays true"),
            Err(_) => assert!(later.is_some(), "it was on its way"),
        }
        answers.insert((outcome.is_err(), later.is_some()));
    }
    let all = [(false, false), (false, true), (true, true)];
    assert_eq!(answers, BTreeSet::from(all));
    assert_eq!(world.store.late_commits(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_zombie_lands_after_its_node_has_died() {
    let world = World::new(&[FaultClass::StoreZombie]);
    assert!(world.handle.commit(make(1, "a")).await.is_err());
    world.conditions.begin(&Fault::Crash { node: 0 });
    sleep_ms(10_000).await;
    assert!(world.has("a"));
    assert_eq!(world.store.commits()[0].incarnation, Incarnation(10), "its sender's");
}

/// A zombie on its way, and nothing that goes wrong from here on.
async fn haunted(key: &str) -> World {
    let world = World::new(&[FaultClass::StoreZombie]);
    for token in 1.. {
        let commit = make(token, key);
        assert!(world.handle.commit(commit).await.is_err());
        if world.store.late_commits() == 1 {
            break;
        }
        // It landed while its sender waited. Once more, from the start.
        let clear = Mutation::Clear { key: key.as_bytes().to_vec() };
        let commit = Commit { mutations: vec![clear], ..set(1_000 + token, key) };
        world.store.0.disk.commit(commit).await.expect("committed");
    }
    world.conditions.heal();
    world.store.commits();
    world
}

fn token_of_zombie(world: &World) -> u128 {
    world.store.state().zombies.keys().next().expect("there is one").0
}

#[tokio::test(start_paused = true)]
async fn a_zombie_does_not_land_twice_nor_after_a_refusal() {
    // It was sent again, and is there.
    let world = haunted("a").await;
    let token = token_of_zombie(&world);
    assert!(world.handle.commit(make(token, "a")).await.is_ok());
    sleep_ms(10_000).await;
    assert_eq!(world.store.commits().len(), 1);

    // It was sent again, and refused for good.
    let world = haunted("a").await;
    let token = token_of_zombie(&world);
    world.handle.commit(make(90, "a")).await.expect("committed");
    assert!(matches!(
        world.handle.commit(make(token, "a")).await,
        Err(StoreError::Conflict { .. })
    ));
    let clear = vec![Mutation::Clear { key: b"a".to_vec() }];
    world.handle.commit(Commit { mutations: clear, ..set(91, "a") }).await.expect("committed");
    sleep_ms(10_000).await;
    assert!(!world.has("a"));
}

#[tokio::test(start_paused = true)]
async fn a_zombie_does_not_land_after_a_spurious_conflict() {
    let world = World::new(&[FaultClass::StoreConflict, FaultClass::StoreZombie]);
    let mut refused = 0;
    for token in 0..20 {
        let key = format!("k{token}");
        // Without a check there is no conflict.
        assert_eq!(world.handle.commit(set(token, &key)).await, Err(StoreError::Unknown));
        if world.store.late_commits() > 0
            && let Err(StoreError::Conflict { .. }) = world.handle.commit(make(token, &key)).await
        {
            refused += 1;
            sleep_ms(10_000).await;
            assert!(!world.has(&key));
        }
    }
    assert!(refused > 5, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_zombie_is_lost_where_a_real_store_would_refuse_it() {
    // Its key was there meanwhile, and is gone again.
    let world = haunted("a").await;
    world.handle.commit(make(90, "a")).await.expect("committed");
    let clear = vec![Mutation::Clear { key: b"a".to_vec() }];
    world.handle.commit(Commit { mutations: clear, ..set(91, "a") }).await.expect("committed");
    sleep_ms(10_000).await;
    assert!(!world.has("a"));

    // The store failed, or was full, when it arrived.
    for fault in [Fault::StoreRecovery, Fault::StoreFull] {
        let world = haunted("a").await;
        world.conditions.begin(&fault);
        sleep_ms(10_000).await;
        world.conditions.end(&fault);
        assert!(!world.has("a"), "{fault:?}");
        assert_eq!(world.store.late_commits(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_a_life_that_is_over_has_no_effect_and_no_answer() {
    let world = World::new(&[]);
    let mut commit = world.handle.commit(make(1, "a"));
    assert!(commit.as_mut().now_or_never().is_none());
    world.conditions.begin(&Fault::Crash { node: 0 });
    sleep_ms(1_000).await;
    assert!(commit.now_or_never().is_none());
    assert!(world.handle.commit(make(2, "a")).now_or_never().is_none());
    assert!(world.read("a").now_or_never().is_none());
    assert!(!world.has("a"));
    assert_eq!(world.handle.outcome(CommitToken(1)).now_or_never(), None);
}

#[tokio::test(start_paused = true)]
async fn a_commit_on_the_wire_takes_effect_though_its_node_is_paused() {
    let world = World::new(&[]);
    let pause = Fault::Pause { node: 0 };
    let handle = world.handle.clone();
    let commit = async move { handle.commit(make(1, "a")).await };
    let end = async {
        tokio::task::yield_now().await;
        world.conditions.begin(&pause);
        sleep_ms(100).await;
        assert!(world.has("a"));
        world.conditions.end(&pause);
    };
    let ((answer, ()), took_ms) = world.took_ms(async { tokio::join!(commit, end) }).await;
    assert!(answer.is_ok() && took_ms == 100);
    world.conditions.begin(&pause);
    let mut later = world.handle.commit(make(2, "b"));
    assert!(later.as_mut().now_or_never().is_none());
    sleep_ms(100).await;
    assert!(later.as_mut().now_or_never().is_none() && !world.has("b"), "it was not sent");
}

#[tokio::test(start_paused = true)]
async fn a_store_out_of_reach_hangs_until_it_is_reached_or_five_seconds_are_over() {
    let cut = Fault::CutStore { node: 0 };
    for (cut_ms, is_reached) in [(2_000, true), (8_000, false)] {
        let world = World::with_row(&[], "a").await;
        world.conditions.begin(&cut);
        let other = open(&world.conditions, &world.store, 1);
        assert!(other.commit(set(5, "o")).await.is_ok(), "only one node is cut off");
        let calls = async {
            let commit = world.handle.commit(make(1, "b"));
            let outcome = world.handle.outcome(CommitToken(1_000));
            tokio::join!(world.read("a"), commit, outcome)
        };
        let end = async {
            sleep_ms(cut_ms).await;
            assert!(!world.has("b"));
            world.conditions.end(&cut);
        };
        let ((read, commit, outcome), ()) = tokio::join!(calls, end);
        if is_reached {
            assert!(read == Ok(1) && commit.is_ok() && outcome.is_ok());
        } else {
            assert!(is_unavailable(&read) && is_unavailable(&outcome));
            assert_eq!(commit, Err(StoreError::Unknown));
        }
        sleep_ms(10_000).await;
        assert_eq!(world.has("b"), is_reached);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_handle_refuses_until_the_store_is_opened_anew() {
    let world = World::with_row(&[], "a").await;
    let stale = Fault::StaleHandle { node: 0 };
    world.conditions.begin(&stale);
    let (read, took_ms) = world.took_ms(world.read("a")).await;
    assert!(is_unavailable(&read) && took_ms == 0);
    assert!(is_unavailable(&world.handle.commit(set(1, "b")).await));
    assert!(is_unavailable(&world.handle.outcome(CommitToken(1)).await));
    let anew = open(&world.conditions, &world.store, 0);
    assert!(anew.commit(set(2, "b")).await.is_ok());
    assert!(is_unavailable(&world.read("a").await), "the old one stays stale");
    world.conditions.end(&stale);
    assert_eq!(world.read("a").await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_full_store_is_read_but_takes_no_commits() {
    let world = World::with_row(&[], "a").await;
    assert!(world.handle.is_writable());
    world.conditions.begin(&Fault::StoreFull);
    assert!(!world.handle.is_writable());
    assert_eq!(world.handle.commit(set(1, "b")).await, Err(unavailable("disk full")));
    assert_eq!(world.read("a").await, Ok(1));
    world.conditions.end(&Fault::StoreFull);
    assert!(world.handle.is_writable() && world.handle.commit(set(1, "b")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_recovery_refuses_loses_what_is_on_its_way_and_jumps() {
    let world = World::with_row(&[], "a").await;
    let mut on_its_way = world.handle.commit(make(1, "b"));
    assert!(on_its_way.as_mut().now_or_never().is_none());
    world.conditions.begin(&Fault::StoreRecovery);
    assert_eq!(on_its_way.await, Err(StoreError::Unknown));
    assert!(is_unavailable(&world.read("a").await));
    assert!(is_unavailable(&world.handle.outcome(CommitToken(1)).await));
    let mut answers = BTreeSet::new();
    for number in 0..50 {
        let answer = world.handle.commit(make(100 + number, "c")).await;
        answers.insert(answer.expect_err("it is down") == StoreError::Unknown);
    }
    assert_eq!(answers, BTreeSet::from([false, true]));
    assert_eq!(world.store.version(), Version(1));
    world.conditions.end(&Fault::StoreRecovery);

    assert_eq!(world.store.version(), Version(1 + RECOVERY_VERSIONS));
    let range = KeyRange { start: b"a".to_vec(), end: b"z".to_vec() };
    let read = world.handle.read(vec![RangeRead::all(range)]).await.expect("read");
    assert_eq!(read.version, Version(1 + RECOVERY_VERSIONS));
    assert_eq!(read.pages[0].entries.len(), 1, "nothing that was on its way");
    let version = world.handle.commit(make(2, "b")).await;
    assert_eq!(version, Ok(Version(2 + RECOVERY_VERSIONS)));
}

#[tokio::test(start_paused = true)]
async fn the_fate_of_a_commit_hangs_on_its_key_alone() {
    let fates = async |others: u128| {
        let intensities = BTreeMap::from([
            (FaultClass::StoreUnknownLost, 300),
            (FaultClass::StoreConflict, 300),
            (FaultClass::StoreSlow, 300),
        ]);
        let trace = crate::trace::Trace::new(false);
        let conditions = Conditions::new(dice::Dice::new(3), trace, intensities);
        let store = InMemoryDisk::new(conditions.clone());
        let handle = open(&conditions, &store, 0);
        let mut fates = Vec::new();
        for number in 0..50 {
            for other in 0..others {
                let _ = handle.commit(set(10_000 + number * others + other, "other")).await;
            }
            let start = conditions.now_ms();
            let mut commit = make(number, "a");
            commit.mutations.clear();
            let error = handle.commit(commit).await.err();
            fates.push((error, conditions.now_ms() - start));
        }
        fates
    };
    let alone = fates(0).await;
    assert_eq!(alone, fates(3).await);
    let kinds: BTreeSet<_> = alone.iter().map(|(error, _)| format!("{error:?}")).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
}
