//! What the simulations found, as small as it gets.

use std::{collections::VecDeque, sync::Mutex};

use super::*;

/// A store that fails as it is told: commits in their order, and reads by their number.
#[derive(Default)]
pub(super) struct Troubled {
    inner: InMemoryStore,
    pub(super) commits: Mutex<VecDeque<Option<StoreError>>>,
    reads: AtomicUsize,
    failing_read: AtomicUsize,
}

impl StateStore for Troubled {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        if number == self.failing_read.load(Ordering::Relaxed) {
            let error = StoreError::Unavailable { reason: "told to".to_owned() };
            return Box::pin(std::future::ready(Err(error)));
        }
        self.inner.read(ranges)
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let told = self.commits.lock().expect("no panic").pop_front().flatten();
            match told {
                Some(error) => Err(error),
                None => self.inner.commit(commit).await,
            }
        })
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.changed(key, seen)
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        self.inner.outcome(token)
    }
}

async fn troubled() -> (World, Arc<Troubled>) {
    let store = Arc::new(Troubled::default());
    let shared: SharedStore = Arc::<Troubled>::clone(&store);
    (World::with(shared, Environment::scripted(2), 10).await, store)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_refused_for_the_sake_of_a_change_that_did_not_happen() {
    let (world, store) = troubled().await;
    let cube = world.cube("ann").await;
    let added = cube.add(said(&["kept", "other"])).await.expect("added").memories;
    let (id, other) = (added[0].id, added[1].id);
    // The first commit keeps the cube busy; the other two changes share the second, which fails.
    store.commits.lock().expect("no panic").extend([None, Some(StoreError::Overloaded)]);
    let delete = DeleteRequest { selection: Selection::Ids(vec![id]), purge: false };
    let change = UpdateRequest { tags: Some(vec!["new".to_owned()]), ..UpdateRequest::default() };
    let (busy, deleted, updated) = tokio::join!(
        cube.update(other, change.clone()),
        cube.delete(delete),
        cube.update(id, change)
    );
    busy.expect("updated");
    assert_eq!(deleted.expect_err("not committed").kind(), ErrorKind::Overloaded);
    assert_eq!(updated.expect_err("not committed").kind(), ErrorKind::Overloaded);
    assert_eq!(cube.get(id).await.expect("it is still there").id, id);
}

#[tokio::test(start_paused = true)]
async fn a_commit_refused_without_reason_does_not_count_as_a_cube_that_exists() {
    let (world, store) = troubled().await;
    let refused = StoreError::Conflict { key: Vec::new() };
    store.commits.lock().expect("no panic").push_back(Some(refused));
    let cube = world.cube("ann").await;
    cube.add(said(&["hello"])).await.expect("the cube is there");
    let again = world.cubes.create(&context(), cube.id().clone(), None, None).await;
    assert_eq!(again.expect_err("it exists").kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn a_hydration_never_goes_on_with_a_manifest_from_before_its_claim() {
    let (world, store) = troubled().await;
    world.cube("ann").await.add(said(&["hello"])).await.expect("added");
    let shared: SharedStore = Arc::<Troubled>::clone(&store);
    let world = World::with(shared, Environment::scripted(3), 10).await;
    let cube = world.cubes.cube(&context(), CubeId::new("ann").expect("valid"));
    // Manifest, ownership, claim, and the manifest again.
    let third = store.reads.load(Ordering::Relaxed) + 3;
    store.failing_read.store(third, Ordering::Relaxed);
    let refused = cube.describe().await.expect_err("it cannot be read");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(cube.describe().await.expect("read").items, 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_add_that_fails_in_the_middle_is_completed_by_its_retry() {
    let (world, store) = troubled().await;
    let cube = world.cube("ann").await;
    let facts: Vec<String> = (0..700).map(|number| format!("fact {number}")).collect();
    let request = Some(RequestId::new("once").expect("valid"));
    let add = AddRequest { facts, request, ..AddRequest::default() };
    // Making the cube hot takes a commit as well: the claim.
    store.commits.lock().expect("no panic").extend([None, None, Some(StoreError::Overloaded)]);
    let failed = cube.add(add.clone()).await.expect_err("the second part is refused");
    assert_eq!(failed.kind(), ErrorKind::Overloaded);
    assert!(failed.message().contains(" of 700 memories are remembered"), "{failed}");
    let held = cube.describe().await.expect("described").items;
    assert!((1..700).contains(&held), "{held}");

    let added = cube.add(add.clone()).await.expect("the rest is added");
    assert_eq!(added.memories.len(), 700);
    assert!(added.memories.iter().all(|memory| !memory.folded), "none was said twice");
    assert_eq!(cube.describe().await.expect("described").items, 700);
    let version = cube.describe().await.expect("described").version;
    let again = cube.add(add.clone()).await.expect("answered from the record");
    assert_eq!(again, added);
    assert_eq!(cube.describe().await.expect("described").version, version);

    let other = AddRequest { facts: vec!["another".to_owned()], ..add };
    assert_eq!(cube.add(other).await.expect_err("used").kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn memories_of_a_large_add_follow_each_other_over_its_parts() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let facts: Vec<String> = (0..600).map(|number| format!("fact {number}")).collect();
    let added = cube.add(AddRequest { facts, ..AddRequest::default() }).await.expect("added");
    let mut previous = None;
    for memory in added.memories {
        assert_eq!(cube.get(memory.id).await.expect("there").previous, previous);
        previous = Some(memory.id);
    }
}
