//! The FoundationDB backend under everything that a cluster does to it: each answer is conclusive,
//! and the port's contract holds.

use std::collections::BTreeMap;

use futures_util::{FutureExt, future::join_all};
use memcube_actors::storage::conformance;
use memcube_schemas::Incarnation;

use super::*;
use crate::{dice::Dice, plan::Fault, trace::Trace};

/// A cluster with nodes, whose only life is their first.
struct World {
    conditions: Conditions,
    disk: FoundationDbDisk,
    handles: Vec<SharedStore>,
}

impl World {
    fn new(seed: u64, faults: &[(FaultClass, u32)], defects: &[Defect]) -> Self {
        let intensities: BTreeMap<_, _> = faults.iter().copied().collect();
        let conditions = Conditions::new(Dice::new(seed), Trace::new(true), intensities);
        let mut plan = Plan::quiet("test", seed);
        plan.defects.extend(defects.iter().copied());
        let disk = FoundationDbDisk::new(&plan, conditions.clone()).expect("a cluster");
        let handles = (0..3).map(|node| open(&conditions, &disk, node)).collect();
        Self { conditions, disk, handles }
    }

    fn with(class: FaultClass) -> Self {
        Self::new(1, &[(class, 1_000)], &[])
    }

    fn handle(&self) -> &SharedStore {
        &self.handles[0]
    }

    /// Heals the cluster, and waits until nothing is on its way.
    async fn heal(&self) {
        self.conditions.heal();
        while self.disk.late_commits() > 0 {
            sleep_ms(500).await;
        }
    }

    /// Whether the row is there; asked when nothing goes wrong any more.
    async fn has(&self, key: &str) -> bool {
        self.disk.rows().await.contains_key(key.as_bytes())
    }

    async fn took_ms<T>(&self, work: impl Future<Output = T>) -> (T, u64) {
        let start = self.conditions.now_ms();
        let done = work.await;
        (done, self.conditions.now_ms() - start)
    }
}

fn open(conditions: &Conditions, disk: &FoundationDbDisk, node: u32) -> SharedStore {
    let life = conditions.boot(node);
    disk.handle(node, life, Arc::new(move || Incarnation(10 + life)))
}

/// A commit that writes a key without a condition.
fn set(token: u128, key: &str) -> Commit {
    let (key, value) = (key.as_bytes().to_vec(), token.to_be_bytes().to_vec());
    Commit {
        token: CommitToken(token),
        checks: Vec::new(),
        mutations: vec![Mutation::Set { key, value }],
    }
}

fn is_unavailable<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable { .. }))
}

struct Backend(Option<World>);

impl conformance::Backend for Backend {
    async fn open(&mut self) -> SharedStore {
        // The world before ends before the next one begins.
        self.0 = None;
        let world = World::new(7, &[], &[]);
        let handle = Arc::clone(world.handle());
        self.0 = Some(world);
        handle
    }

    async fn crash_and_reopen(&mut self, store: SharedStore) -> SharedStore {
        drop(store);
        let world = self.0.as_ref().expect("one was opened");
        world.conditions.begin(&Fault::Crash { node: 0 });
        open(&world.conditions, &world.disk, 0)
    }
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_is_a_state_store_like_any_other() {
    conformance::run_all(&mut Backend(None)).await;
}

/// What a commit may be answered with under a fault, and whether it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Answered with its version.
    Well,
    /// In doubt, and it never takes effect.
    InDoubtLost,
    /// In doubt, and it may or may not take effect.
    InDoubt,
    /// Refused, and it never takes effect.
    Refused,
}

#[tokio::test(start_paused = true)]
async fn what_each_fault_makes_of_a_commit() {
    let table = [
        (FaultClass::FdbUnknownApplied, Ends::Well),
        (FaultClass::FdbUnknownLost, Ends::InDoubtLost),
        (FaultClass::FdbConflict, Ends::Refused),
        (FaultClass::FdbTooOld, Ends::Refused),
        (FaultClass::FdbFutureVersion, Ends::Refused),
        (FaultClass::FdbTimedOut, Ends::InDoubt),
        (FaultClass::FdbVersionChanged, Ends::Well),
        (FaultClass::FdbSlowCommit, Ends::Well),
        (FaultClass::FdbSlowVersion, Ends::Refused),
    ];
    for (class, ends) in table {
        let world = World::with(class);
        let (answer, took_ms) = world.took_ms(world.handle().commit(set(1, "a"))).await;
        assert!(took_ms <= 6_000, "{class:?} took {took_ms}");
        let struck = {
            world.disk.record();
            world.conditions.faults().get(class.as_str()).copied().unwrap_or(0)
        };
        assert!(struck > 0, "{class:?} did not strike");
        world.heal().await;
        let made: Vec<Version> = world.disk.commits().iter().map(|made| made.version).collect();
        assert_eq!(world.has("a").await, !made.is_empty());
        match ends {
            Ends::Well => assert_eq!(made, [answer.expect("committed")], "{class:?}"),
            Ends::InDoubtLost | Ends::InDoubt => {
                assert_eq!(answer, Err(StoreError::Unknown), "{class:?}");
                assert!(made.is_empty() || ends == Ends::InDoubt, "{class:?}");
            }
            Ends::Refused => {
                assert!(is_unavailable(&answer) && made.is_empty(), "{class:?}: {answer:?}");
            }
        }
        let outcome = world.handle().outcome(CommitToken(1)).await;
        assert_eq!(outcome, Ok(made.first().copied()), "{class:?}");
        assert!(world.handle().commit(set(2, "b")).await.is_ok(), "healed {class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn reads_are_tried_again_and_say_why_they_fail() {
    for (class, told) in [
        (FaultClass::FdbTooOld, "five seconds"),
        (FaultClass::FdbFutureVersion, "five seconds"),
        (FaultClass::FdbSlowVersion, "`store.fdb-cluster-file`"),
    ] {
        let world = World::with(class);
        let read = vec![RangeRead::key(b"a".to_vec())];
        let error = world.handle().read(read.clone()).await.expect_err("it fails");
        assert!(error.to_string().contains(told), "{class:?}: {error}");
        world.heal().await;
        world.handle().read(read).await.expect("healed");
    }
    // Half of the answers are refusals: a read gets through all the same.
    for class in [FaultClass::FdbTooOld, FaultClass::FdbFutureVersion, FaultClass::FdbThrottled] {
        let world = World::new(3, &[(class, 500)], &[]);
        for _ in 0..20 {
            let read = vec![RangeRead::key(b"a".to_vec())];
            world.handle().read(read).await.expect("tried again");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_out_of_reach_is_told_with_the_setting_to_look_at() {
    for fault in [Fault::CutStore { node: 0 }, Fault::StoreRecovery] {
        let world = World::new(5, &[], &[]);
        world.conditions.begin(&fault);
        sleep_ms(10).await;
        let read = world.handle().read(vec![RangeRead::key(b"a".to_vec())]);
        let commit = world.handle().commit(set(1, "a"));
        let ((read, commit), took_ms) = world.took_ms(async { tokio::join!(read, commit) }).await;
        assert!((4_900..6_100).contains(&took_ms), "{fault:?}: {took_ms}");
        let error = read.expect_err("nobody answers").to_string();
        assert!(error.contains("did not answer in time"), "{error}");
        assert!(error.contains("`store.fdb-cluster-file`"), "{error}");
        assert!(is_unavailable(&commit), "nothing was sent: {commit:?}");
        let others = world.handles[1].commit(set(2, "b")).await;
        assert_eq!(others.is_ok(), fault == Fault::CutStore { node: 0 }, "{fault:?}");
        world.conditions.end(&fault);
        sleep_ms(10).await;
        assert!(world.handle().commit(set(1, "a")).await.is_ok(), "{fault:?}");
    }
}

/// What a node was told of its commit in the end: its version, that it did not happen, or nothing.
type Told = Result<Option<Version>, ()>;

/// Nodes that read, check and write the same few keys, while all goes wrong that can.
async fn contend(seed: u64, defects: &[Defect]) -> Vec<String> {
    let dice = Dice::new(seed);
    let faults = FaultClass::ALL.into_iter().filter(|class| class.as_str().starts_with("fdb-"));
    let faults: Vec<(FaultClass, u32)> = faults
        .filter(|class| dice.chance(class.as_str(), 0, 600))
        .map(|class| (class, u32::try_from(10 + dice.below(class.as_str(), 1, 240)).unwrap_or(10)))
        .collect();
    let world = World::new(seed, &faults, defects);
    let node = async |number: usize| {
        let mut told: BTreeMap<CommitToken, Told> = BTreeMap::new();
        for round in 0..12 {
            let id = number as u64 * 100 + round;
            let token = CommitToken(u128::from(1 + id));
            let answer = increment(&world.handles[number], token, dice.below("key", id, 2)).await;
            told.insert(token, answer);
            sleep_ms(dice.below("think", id, 300)).await;
        }
        told
    };
    let trouble = async {
        for number in 0..3 {
            sleep_ms(dice.below("trouble", number, 8_000)).await;
            let node = u32::try_from(dice.below("whom", number, 3)).unwrap_or(0);
            let fault = match dice.below("what", number, 3) {
                0 => Fault::StoreRecovery,
                1 => Fault::Pause { node },
                _ => Fault::CutStore { node },
            };
            world.conditions.begin(&fault);
            sleep_ms(dice.below("trouble lasts", number, 7_000)).await;
            world.conditions.end(&fault);
        }
    };
    let ((first, second, third), ()) =
        tokio::join!(async { tokio::join!(node(0), node(1), node(2)) }, trouble);
    world.heal().await;
    let told = [first, second, third].into_iter().flatten().collect();
    judge(&world.disk.commits(), &told)
}

/// Writes a key as long as nobody else does, and asks until it is clear what became of it.
async fn increment(store: &SharedStore, token: CommitToken, key: u64) -> Told {
    let key = format!("k{key}").into_bytes();
    let read = store.read(vec![RangeRead::key(key.clone())]).await;
    let Ok(read) = read else { return Ok(None) };
    let check = match read.pages[0].entries.first() {
        Some(entry) => Check::At { key: key.clone(), version: entry.version },
        None => Check::Absent { key: key.clone() },
    };
    let mutations = vec![
        Mutation::Set { key, value: token.0.to_be_bytes().to_vec() },
        Mutation::SetVersionstamped { prefix: b"log/".to_vec(), value: Vec::new() },
    ];
    match store.commit(Commit { token, checks: vec![check], mutations }).await {
        Ok(version) => return Ok(Some(version)),
        Err(StoreError::Unknown) => {}
        Err(_) => return Ok(None),
    }
    for _ in 0..20 {
        if let Ok(outcome) = store.outcome(token).await {
            return Ok(outcome);
        }
    }
    Err(())
}

/// Holds what was told against what happened.
fn judge(commits: &[CommitRecord], told: &BTreeMap<CommitToken, Told>) -> Vec<String> {
    let mut made: BTreeMap<CommitToken, Vec<Version>> = BTreeMap::new();
    for commit in commits {
        made.entry(commit.token).or_default().push(commit.version);
    }
    let mut wrong = Vec::new();
    for (token, told) in told {
        let made = made.get(token).map_or(&[][..], Vec::as_slice);
        let is_true = match told {
            Ok(Some(version)) => made == [*version],
            Ok(None) => made.is_empty(),
            Err(()) => made.len() < 2,
        };
        if !is_true {
            wrong.push(format!("{token:?}: told {told:?}, made {made:?}"));
        }
    }
    wrong
}

#[tokio::test(start_paused = true)]
async fn every_answer_is_conclusive() {
    for seed in 1..=60 {
        let wrong = contend(seed, &[]).await;
        assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
    }
}

/// The same with the crate's flag in place of the token's row, to show that this can be seen.
#[tokio::test(start_paused = true)]
async fn who_trusts_the_flag_of_the_last_attempt_is_found_out() {
    let mut failed = 0;
    for seed in 1..=60 {
        failed += usize::from(!contend(seed, &[Defect::TrustMaybeCommitted]).await.is_empty());
    }
    assert!(failed > 0, "no seed found it");
}

#[tokio::test(start_paused = true)]
async fn an_outcome_of_none_stays_none() {
    let (mut none, mut some) = (0, 0);
    for seed in 0..40 {
        let world = World::new(seed, &[(FaultClass::FdbTimedOut, 1_000)], &[]);
        assert_eq!(world.handle().commit(set(1, "a")).await, Err(StoreError::Unknown));
        // The fence is a commit as well.
        cluster::heal();
        let outcome = world.handles[1].outcome(CommitToken(1)).await.expect("it is decided");
        world.heal().await;
        assert_eq!(world.has("a").await, outcome.is_some(), "seed {seed}");
        if outcome.is_some() { some += 1 } else { none += 1 }
    }
    assert!(none > 5 && some > 5, "{none} {some}");
}

#[tokio::test(start_paused = true)]
async fn commits_are_recorded_with_their_sender_and_their_place() {
    let world = World::new(2, &[], &[]);
    let commits = (0..60).map(|number| {
        let key = format!("k{number}");
        world.handles[number % 3].commit(set(number as u128, &key))
    });
    let versions: Vec<Version> =
        join_all(commits).await.into_iter().map(|made| made.expect("committed")).collect();
    let made = world.disk.commits();
    assert_eq!(made.len(), 60);
    assert!(made.iter().any(|one| one.place > 0), "some shared a version");
    let places: Vec<(Version, u16)> = made.iter().map(|one| (one.version, one.place)).collect();
    assert!(places.is_sorted_by(|left, right| left < right));
    for one in &made {
        let number = usize::try_from(one.token.0).expect("small");
        assert_eq!(one.version, versions[number]);
        assert_eq!(one.node.as_str(), format!("node-{}", number % 3));
        assert_eq!(one.incarnation, Incarnation(10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_a_life_that_is_over_has_no_answer() {
    let world = World::new(4, &[], &[]);
    let mut commit = world.handle().commit(set(1, "a"));
    assert!(commit.as_mut().now_or_never().is_none());
    world.conditions.begin(&Fault::Crash { node: 0 });
    sleep_ms(10_000).await;
    assert!(commit.now_or_never().is_none());
    assert!(world.handle().commit(set(2, "b")).now_or_never().is_none());
    world.heal().await;
    assert!(!world.has("b").await);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stands_still_does_not_go_on_with_its_attempts() {
    let world = World::new(4, &[(FaultClass::FdbConflict, 1_000)], &[]);
    let pause = Fault::Pause { node: 0 };
    let mut commit = world.handle().commit(set(1, "a"));
    assert!(commit.as_mut().now_or_never().is_none());
    world.conditions.begin(&pause);
    let struck = || {
        world.disk.record();
        world.conditions.faults().get(FaultClass::FdbConflict.as_str()).copied().unwrap_or(0)
    };
    let ((), ()) = tokio::join!(
        async {
            tokio::select! {
                biased;
                _ = &mut commit => panic!("it stands still"),
                () = sleep_ms(3_000) => {}
            }
        },
        async {}
    );
    assert_eq!(struck(), 0, "nothing was sent");
    world.conditions.end(&pause);
    assert!(is_unavailable(&commit.await));
    assert!(struck() > 0);
}

#[tokio::test(start_paused = true)]
async fn old_tokens_are_swept() {
    let world = World::new(6, &[], &[]);
    // All in the part that the first sweep looks at.
    let token = |number: u128| number << 8 | 1;
    let commit = async |number: u128| {
        world.handle().commit(set(token(number), "a")).await.expect("committed");
    };
    for number in 0..300 {
        commit(number).await;
    }
    cluster::skip_versions(3_700_000_000);
    for number in 300..512 {
        commit(number).await;
    }
    sleep_ms(1_000).await;
    let family = |number: i32| {
        let root = pack(&(PREFIX, number));
        cluster::raw_rows().iter().filter(|(key, _)| key.starts_with(&root)).count()
    };
    const AGES: i32 = 4;
    assert_eq!((family(TOKENS), family(AGES)), (212, 212));
    assert_eq!(world.handle().outcome(CommitToken(token(0))).await, Ok(None));
    let kept = world.handle().outcome(CommitToken(token(300))).await;
    assert!(matches!(kept, Ok(Some(_))), "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn a_doorbell_is_heard_whatever_becomes_of_its_watch() {
    for class in [None, Some(FaultClass::FdbWatch), Some(FaultClass::FdbTooOld)] {
        let faults: Vec<_> = class.into_iter().map(|class| (class, 300)).collect();
        let world = World::new(8, &faults, &[]);
        let mut seen = None;
        for number in 0..10 {
            let heard = world.handle().changed(b"bell".to_vec(), seen);
            let commit = async {
                sleep_ms(100).await;
                world.handles[1].commit(set(number, "bell")).await
            };
            let ((heard, made), took_ms) =
                world.took_ms(async { tokio::join!(heard, commit) }).await;
            assert!(heard.is_ok() || class == Some(FaultClass::FdbTooOld), "{class:?} {heard:?}");
            assert!(took_ms < 31_000, "{class:?}: {took_ms}");
            seen = made.ok().or(seen);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn more_doorbells_than_watches_are_looked_at_now_and_then() {
    let world = World::new(9, &[], &[]);
    let wait = |number: u32| world.handle().changed(format!("k{number}").into_bytes(), None);
    let mut watched: Vec<_> = (0..1_000).map(wait).collect();
    for wait in &mut watched {
        assert!(wait.now_or_never().is_none());
    }
    let (polled, took_ms) = world.took_ms(wait(1_000)).await;
    assert_eq!((polled, took_ms), (Ok(()), 1_000));
    drop(watched);
    let mut again = wait(1_001);
    assert!((&mut again).now_or_never().is_none());
    sleep_ms(5_000).await;
    assert!((&mut again).now_or_never().is_none(), "there is room for a watch again");
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_leaves_the_same_trace() {
    let trace = async |seed: u64| {
        let faults = [(FaultClass::FdbConflict, 200), (FaultClass::FdbUnknownApplied, 200)];
        let world = World::new(seed, &faults, &[]);
        let commits = (0..40).map(|number| {
            let key = format!("k{}", number % 5);
            world.handles[number % 3].commit(set(number as u128, &key))
        });
        join_all(commits).await;
        world.disk.record();
        world.conditions.finish_trace().2
    };
    let (first, again, other) = (trace(11).await, trace(11).await, trace(12).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
}
