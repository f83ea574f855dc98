//! Restores onto something, under another name, killed, and two at a time.

use futures_util::FutureExt;

use super::*;
use crate::environment::Faults;

/// Panics at the so-manieth time that a point is reached: a kill, as far as the store can tell.
struct KillAt {
    point: &'static str,
    left: AtomicUsize,
}

impl Faults for KillAt {
    fn reach(&self, point: &'static str, _detail: &str) {
        if point == self.point && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            panic!("killed at `{point}`");
        }
    }
}

fn kill_at(point: &'static str, time: usize) -> Environment {
    let faults = KillAt { point, left: AtomicUsize::new(time) };
    Environment::scripted(77).with_faults(Arc::new(faults))
}

/// A backup of `ann`, which takes several commits to put back, and of `bob`, with their exports.
async fn backed_up() -> (Objects, Place) {
    let here = Place::new(1).await;
    fill(&here.cube("acme", "ann").await, 700).await;
    fill(&here.cube("acme", "bob").await, 5).await;
    let objects = Objects::new();
    here.back_up(&objects, Selection::default()).await;
    (objects, here)
}

fn messages(outcome: &RestoreOutcome) -> Vec<String> {
    outcome.failures.iter().map(|failure| failure.error.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_cube_that_is_there_is_never_replaced() {
    let (objects, here) = backed_up().await;
    let there = Place::new(2).await;
    there.cube("acme", "ann").await.add(said(&["mine"], None)).await.expect("added");
    let mine = rows_of(&there.store, "acme", "ann").await;

    let dry = RestoreRequest { dry_run: true, ..RestoreRequest::default() };
    let planned = there.restore(&objects, dry).await;
    assert_eq!((planned.restored, planned.failures.len()), (1, 1));
    assert_eq!(rows_of(&there.store, "acme", "bob").await.len(), 0, "a dry run writes nothing");

    let outcome = there.restore(&objects, RestoreRequest::default()).await;
    assert_eq!((outcome.restored, outcome.failures.len()), (1, 1));
    assert_eq!(outcome.failures[0].error.kind(), ErrorKind::Conflict);
    assert!(messages(&outcome)[0].contains("there is a cube `ann` already"), "{outcome:?}");
    assert_eq!(rows_of(&there.store, "acme", "ann").await, mine);
    assert_eq!(there.export("acme", "bob").await, here.export("acme", "bob").await);

    // Once more: `bob` is as the backup has it, and stays.
    let again = there.restore(&objects, RestoreRequest::default()).await;
    assert_eq!((again.restored, again.unchanged, again.failures.len()), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn one_cube_comes_back_under_another_id() {
    let (objects, here) = backed_up().await;
    let request = |cubes: &[&str], rename: Option<&str>| RestoreRequest {
        selection: only(cubes),
        rename: rename.map(cube_id),
        dry_run: false,
    };
    let outcome = here.restore(&objects, request(&["ann"], Some("ann of monday"))).await;
    assert_eq!((outcome.restored, outcome.failures.len()), (1, 0));
    let (old, new) = tokio::join!(here.export("acme", "ann"), here.export("acme", "ann of monday"));
    assert_eq!(new.replacen("ann of monday", "ann", 1), old);
    // Each goes its own way from here on.
    let cube = here.cube("acme", "ann of monday").await;
    cube.delete(DeleteRequest { selection: Which::All, purge: true }).await.expect("deleted");
    assert_eq!(here.export("acme", "ann").await, old);

    let table = [
        (request(&["ann", "bob"], Some("x")), "another id is for one cube, and 2 are selected"),
        (request(&["cy"], None), "the backup holds no cube `cy`"),
        (
            RestoreRequest { rename: Some(cube_id("x")), ..RestoreRequest::default() },
            "another id is for one cube, and 2 are selected",
        ),
    ];
    for (request, expected) in table {
        let mut archive = objects.open().await.expect("there");
        let refused = restore(&here.store, &here.environment, &mut archive, request, &|_| {}).await;
        assert_eq!(refused.expect_err("refused").to_string(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_is_killed_anywhere_shows_nothing_and_can_be_repeated() {
    let (objects, here) = backed_up().await;
    let export = here.export("acme", "ann").await;
    let (mut killed, mut time) = (0, 1);
    for point in ["restore.commit", "restore.last-commit"] {
        loop {
            let there = Place::new(2).await;
            let mut archive = objects.open().await.expect("there");
            let (environment, request) = (kill_at(point, time), RestoreRequest::default());
            let run = restore(&there.store, &environment, &mut archive, request, &|_| {});
            let is_killed = std::panic::AssertUnwindSafe(run).catch_unwind().await.is_err();
            if is_killed {
                killed += 1;
                let manifests = keys::manifests(&tenant_id("acme"));
                let ann = keys::manifest(&tenant_id("acme"), &cube_id("ann"));
                let read = vec![RangeRead::all(manifests)];
                let seen = there.store.read(read).await.expect("read").pages.remove(0).entries;
                assert!(seen.iter().all(|row| row.key != ann) || point == "restore.last-commit");
            }
            let again = there.restore(&objects, RestoreRequest::default()).await;
            assert!(again.is_whole(), "{point} {time}: {again:?}");
            assert_eq!(there.export("acme", "ann").await, export, "{point} {time}");
            let rows = rows_of(&here.store, "acme", "ann").await;
            assert_eq!(rows_of(&there.store, "acme", "ann").await, rows, "{point} {time}");
            if !is_killed {
                break;
            }
            time += 1;
        }
        time = 1;
    }
    assert!(killed > 5, "{killed} kills");
}

#[tokio::test(start_paused = true)]
async fn nobody_builds_on_half_a_restore_and_it_can_be_thrown_away() {
    let (objects, _) = backed_up().await;
    let there = Place::new(2).await;
    let mut archive = objects.open().await.expect("there");
    let (environment, request) = (kill_at("restore.commit", 3), RestoreRequest::default());
    let run = restore(&there.store, &environment, &mut archive, request, &|_| {});
    assert!(std::panic::AssertUnwindSafe(run).catch_unwind().await.is_err());
    assert!(!rows_of(&there.store, "acme", "ann").await.is_empty(), "some rows are left");

    let refused = there.cubes.create(&caller("acme"), cube_id("ann"), None, None).await;
    let refused = refused.expect_err("not on top of those");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("run `memcube restore` again"), "{refused}");
    assert!(there.cubes.ensure(&caller("acme"), cube_id("ann")).await.is_err());
    let told = there.cubes.describe(&caller("acme"), &cube_id("ann")).await.expect("told");
    assert!(told.quarantine.is_some_and(|why| why.contains("is being restored")));
    let cube = there.cubes.cube(&caller("acme"), cube_id("ann"));
    assert_eq!(cube.describe().await.expect_err("not visible").kind(), ErrorKind::NotFound);

    cube.erase().await.expect("thrown away");
    assert!(rows_of(&there.store, "acme", "ann").await.is_empty());
    assert_eq!(cube.erase().await.expect_err("gone").kind(), ErrorKind::NotFound);
    let cube = there.cube("acme", "ann").await;
    assert_eq!(cube.describe().await.expect("made").version, Version(0));
    cube.add(said(&["mine"], None)).await.expect("added");
    assert_eq!(cube.list(None, 10).await.expect("listed").items.len(), 1);
}

/// Gives way at every point, so that others get in between.
struct Yielding(InMemoryStore, SeededEntropy);

impl StateStore for Yielding {
    fn read(
        &self,
        ranges: Vec<RangeRead>,
    ) -> BoxFuture<'_, std::result::Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            self.pause().await;
            self.0.read(ranges).await
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, std::result::Result<Version, StoreError>> {
        Box::pin(async move {
            self.pause().await;
            // Now and then for no reason, or with an answer that is lost.
            match self.1.next_u64() % 10 {
                0 => Err(StoreError::Conflict { key: Vec::new() }),
                1 => {
                    let _ = self.0.commit(commit).await;
                    Err(StoreError::Unknown)
                }
                2 => Err(StoreError::Overloaded),
                _ => self.0.commit(commit).await,
            }
        })
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, std::result::Result<(), StoreError>> {
        self.0.changed(key, seen)
    }

    fn outcome(
        &self,
        token: CommitToken,
    ) -> BoxFuture<'_, std::result::Result<Option<Version>, StoreError>> {
        self.0.outcome(token)
    }
}

impl Yielding {
    async fn pause(&self) {
        tokio::time::sleep(Duration::from_micros(self.1.next_u64() % 3_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn restores_at_the_same_time_do_not_mix_also_over_a_store_in_trouble() {
    let (objects, here) = backed_up().await;
    let rows = rows_of(&here.store, "acme", "ann").await;
    let mut refused = 0;
    for seed in 0..30 {
        let store = Yielding(InMemoryStore::default(), SeededEntropy::new(seed));
        let store: SharedStore = Arc::new(store);
        let one = |number: u64| {
            let (store, objects) = (Arc::clone(&store), objects.clone());
            async move {
                let environment = Environment::scripted(seed << 4 | number);
                let mut archive = objects.open().await.expect("there");
                let request = RestoreRequest::default();
                restore(&store, &environment, &mut archive, request, &|_| {}).await.expect("tried")
            }
        };
        let (left, right) = tokio::join!(one(1), one(2));
        refused += left.failures.len() + right.failures.len();
        // Whatever became of the two: one more, alone, and everything is there.
        let last = one(3).await;
        assert!(last.is_whole(), "seed {seed}: {last:?}");
        assert_eq!(rows_of(&store, "acme", "ann").await, rows, "seed {seed}");
    }
    assert!(refused > 10, "they did meet: {refused}");
}

#[tokio::test(start_paused = true)]
async fn the_feed_tells_of_a_restored_cube_and_goes_on_from_there() {
    let (objects, here) = backed_up().await;
    let due = here.cube("acme", "ann").await.describe().await.expect("described").version;
    let there = Place::new(2).await;
    there
        .restore(&objects, RestoreRequest { selection: only(&["ann"]), ..Default::default() })
        .await;
    there.cube("acme", "ann").await.add(said(&["more"], None)).await.expect("added");
    let tenant = tenant_id("acme");
    let shard = keys::feed_shard(&cube_id("ann"));
    let read = vec![
        RangeRead::all(keys::feed(&tenant, shard)),
        RangeRead::key(keys::feed_pointer(&tenant, shard)),
        RangeRead::key(keys::feed_doorbell(keys::feed_ring(&tenant, shard))),
    ];
    let pages = there.store.read(read).await.expect("read").pages;
    let records: Vec<FeedRecord> =
        pages[0].entries.iter().map(|row| decode(&row.value).expect("readable")).collect();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].version, &records[0].change), (due, &FeedChange::CubeRestored));
    assert_eq!(records[1].version, due.next());
    assert!(records[0].epoch < records[1].epoch, "the node claimed it after the restore");
    assert!(pages[1..].iter().all(|page| page.entries.len() == 1), "it rings");
}

#[tokio::test(start_paused = true)]
async fn another_model_embeds_what_was_restored_anew() {
    let (objects, here) = backed_up().await;
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let there = Place::on(store, 2, Some(16)).await;
    assert!(there.restore(&objects, RestoreRequest::default()).await.is_whole());
    let cube = there.cube("acme", "ann").await;
    let hit = &cube.search(SearchRequest::new("changed it again")).await.expect("found").hits[0];
    assert!(hit.scores.dense > 0.0, "its vector was made anew");

    // And a backup that is taken while that happens has no vector of the former model.
    let again = Objects::new();
    there.back_up(&again, only(&["ann"])).await;
    let last = Place::on(Arc::new(InMemoryStore::default()), 3, Some(16)).await;
    assert!(last.restore(&again, RestoreRequest::default()).await.is_whole());
    let left = rows_of(&there.store, "acme", "ann").await;
    assert_eq!(rows_of(&last.store, "acme", "ann").await, left);
    drop(here);
}
