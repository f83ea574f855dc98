//! What a review found once the store took its time: moves beside changes, calls that outlast
//! patience, and frames between lives that no longer know each other.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    Incarnation, Version,
    peer::{PeerAnswer, PeerCall},
};
use tokio::{sync::watch, time::Instant};

use super::*;
use crate::{
    cluster::{
        View,
        peers::{Peers, Serve, Unanswered},
    },
    storage::{ReadOutput, StoreError},
};

/// A store that takes as long as it is told, and moves no cube while it is told so.
#[derive(Default)]
struct SlowStore {
    inner: Arc<InMemoryStore>,
    read_ms: AtomicU64,
    /// How long the news of a commit is under way: it has happened by then.
    commit_ms: AtomicU64,
    keeps_owners: AtomicBool,
}

impl SlowStore {
    fn takes_for_reads(&self, milliseconds: u64) {
        self.read_ms.store(milliseconds, Ordering::Relaxed);
    }

    fn takes_for_commits(&self, milliseconds: u64) {
        self.commit_ms.store(milliseconds, Ordering::Relaxed);
    }

    fn keeps_owners(&self, yes: bool) {
        self.keeps_owners.store(yes, Ordering::Relaxed);
    }

    fn refuses(&self, commit: &Commit) -> bool {
        let is_owner = |mutation: &Mutation| match mutation {
            Mutation::Set { key, .. } => *key == keys::ownership(context().tenant(), &ann()),
            Mutation::Clear { .. }
            | Mutation::ClearRange { .. }
            | Mutation::Add { .. }
            | Mutation::SetVersionstamped { .. } => false,
        };
        self.keeps_owners.load(Ordering::Relaxed) && commit.mutations.iter().any(is_owner)
    }
}

impl StateStore for SlowStore {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            tokio::time::sleep(milliseconds(&self.read_ms)).await;
            self.inner.read(ranges).await
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            if self.refuses(&commit) {
                return Err(StoreError::Overloaded);
            }
            let outcome = self.inner.commit(commit).await;
            tokio::time::sleep(milliseconds(&self.commit_ms)).await;
            outcome
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

fn milliseconds(of: &AtomicU64) -> Duration {
    Duration::from_millis(of.load(Ordering::Relaxed))
}

/// A world whose store is slow from when it is told so.
async fn slow(count: u64) -> (World, Arc<SlowStore>) {
    let store = Arc::new(SlowStore::default());
    let shared: SharedStore = Arc::<SlowStore>::clone(&store);
    let mut world = World::without_nodes(Arc::clone(&store.inner), shared);
    for number in 0..count {
        world.boot(number).await;
    }
    settle().await;
    (world, store)
}

/// Such a world with the cube `ann`, which holds one item, and the number of its owner.
async fn slow_with_ann(count: u64) -> (World, Arc<SlowStore>, usize) {
    let (world, store) = slow(count).await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("old")).await.expect("added");
    let owner = world.number_of(&world.owner("ann").await);
    (world, store, owner)
}

fn ann() -> CubeId {
    cube_id("ann")
}

#[tokio::test(start_paused = true)]
async fn a_node_shuts_down_although_its_last_hydration_fails() {
    let (world, store) = slow(1).await;
    store.takes_for_reads(100);
    let cube = world.cube(0, "nobody");
    let shut_down = async {
        // One read finds out where the cube belongs, the next one belongs to the hydration.
        tokio::time::sleep(Duration::from_millis(150)).await;
        tokio::time::timeout(Duration::from_secs(60), world.nodes[0].shut_down()).await
    };
    let (described, shut_down) = tokio::join!(cube.describe(), shut_down);
    shut_down.expect("nothing is left to wait for");
    // A call that had come too late for the hydration would hear that the node shuts down.
    let refused = described.expect_err("there is no such cube");
    assert_eq!(refused.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_read_beside_a_commit_that_came_before_a_move_is_answered_by_the_new_owner() {
    let (world, store, former) = slow_with_ann(2).await;
    store.takes_for_commits(300);
    let cube = world.cube(former, "ann");
    let read = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.give("ann", 1 - former).await;
        let start = Instant::now();
        (texts(&cube).await, start.elapsed())
    };
    let (added, (seen, took)) = tokio::join!(cube.add(fact("new")), read);
    added.expect("it was committed before the cube moved");
    assert_eq!(seen, ["old", "new"]);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(world.number_of(&world.owner("ann").await), 1 - former);
}

#[tokio::test(start_paused = true)]
async fn a_cube_that_changes_all_the_time_is_handed_over_all_the_same() {
    let (world, store, from) = slow_with_ann(3).await;
    let (to, asked) = ((from + 1) % 3, (from + 2) % 3);
    store.takes_for_reads(5);
    let is_moved = AtomicBool::new(false);
    let cube = world.cube(from, "ann");
    let writer = async {
        let mut written = 0;
        while !is_moved.load(Ordering::Relaxed) {
            cube.add(fact(&format!("fact {written}"))).await.expect("added");
            written += 1;
            // The target reads for longer: whatever it reads ahead is old by the time it is done.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        written
    };
    let mover = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let moved = world.hand_over("ann", asked, to).await;
        is_moved.store(true, Ordering::Relaxed);
        moved
    };
    let (written, moved) = tokio::join!(writer, mover);
    moved.expect("handed over");
    assert_eq!(world.number_of(&world.owner("ann").await), to);
    assert_eq!(texts(&world.cube(asked, "ann")).await.len(), 1 + written);
}

#[tokio::test(start_paused = true)]
async fn a_cube_is_handed_over_to_a_node_without_an_embedder_and_back() {
    let store = Arc::new(InMemoryStore::default());
    let mut world = World::without_nodes(Arc::clone(&store), store);
    world.boot(0).await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("with a vector")).await.expect("added");
    world.boot_without_embedder(1).await;
    settle().await;
    world.hand_over("ann", 0, 1).await.expect("handed over");
    assert_eq!(world.number_of(&world.owner("ann").await), 1);
    world.cube(1, "ann").add(fact("without")).await.expect("added");
    world.hand_over("ann", 1, 0).await.expect("handed back");
    assert_eq!(world.number_of(&world.owner("ann").await), 0);
    for place in 0..2 {
        assert_eq!(texts(&world.cube(place, "ann")).await, ["with a vector", "without"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_for_a_slow_hydration_on_another_node_and_happens_once() {
    let (world, store, owner) = slow_with_ann(2).await;
    // Long enough for the cube to leave RAM.
    tokio::time::sleep(Duration::from_secs(80)).await;
    // The owner reads seven times: where the cube is, its manifest, its owner, its manifest again,
    // vectors, items and requests.
    store.takes_for_reads(1_000);
    let start = Instant::now();
    world.cube(1 - owner, "ann").add(fact("from elsewhere")).await.expect("added");
    assert!(start.elapsed() >= Duration::from_secs(7), "{:?}", start.elapsed());
    // What was sent a second time would have arrived by then.
    tokio::time::sleep(Duration::from_secs(20)).await;
    store.takes_for_reads(0);
    assert_eq!(texts(&world.cube(owner, "ann")).await, ["old", "from elsewhere"]);
    assert_eq!(world.number_of(&world.owner("ann").await), owner, "it was alive all the time");
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_to_a_node_that_died_never_passes_for_done() {
    let (world, _, from) = slow_with_ann(3).await;
    let (to, asked) = ((from + 1) % 3, (from + 2) % 3);
    world.nodes[to].kill();
    for _ in 0..3 {
        world.hand_over("ann", asked, to).await.expect_err("nobody is there");
        assert_eq!(world.number_of(&world.owner("ann").await), from);
    }
    assert_eq!(texts(&world.cube(asked, "ann")).await, ["old"]);
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_that_failed_is_done_by_the_next_one() {
    let (world, store, from) = slow_with_ann(3).await;
    let (to, asked) = ((from + 1) % 3, (from + 2) % 3);
    store.keeps_owners(true);
    let refused = world.hand_over("ann", asked, to).await.expect_err("the store takes no owner");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert_eq!(world.number_of(&world.owner("ann").await), from);
    store.keeps_owners(false);
    world.hand_over("ann", asked, to).await.expect("handed over");
    assert_eq!(world.number_of(&world.owner("ann").await), to);
    assert_eq!(texts(&world.cube(asked, "ann")).await, ["old"]);
}

/// A node without cubes, as the others hear it.
struct Peer {
    peers: Arc<Peers>,
    views: watch::Sender<View>,
    /// Calls executed.
    served: Arc<Served>,
}

#[derive(Default)]
struct Served(AtomicUsize);

impl Serve for Served {
    fn serve(self: Arc<Self>, _: NodeId, _: PeerCall) -> BoxFuture<'static, PeerAnswer> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(PeerAnswer::Done))
    }
}

impl Peer {
    fn start(hub: &LocalHub, number: u64, life: u64) -> Self {
        let environment = Environment::scripted(number);
        let (views, view) = watch::channel(View::alone(node(number), Incarnation(life)));
        let peers =
            Peers::start(hub.transport(node(number), environment.clone()), environment, view);
        let served = Arc::new(Served::default());
        let server = Arc::<Served>::downgrade(&served);
        peers.serve_with(server);
        Self { peers, views, served }
    }

    fn sees(&self, number: u64, life: u64) {
        self.views.send_modify(|view| {
            view.others.insert(node(number), Incarnation(life));
        });
    }

    async fn call(&self, number: u64) -> Result<PeerAnswer, Unanswered> {
        let tenant = context().tenant().clone();
        self.peers.call(&node(number), PeerCall::Prepare { tenant, cube: ann() }).await
    }

    fn served(&self) -> usize {
        self.served.0.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_life_that_is_over_is_lost_at_once() {
    let hub = LocalHub::new();
    let (caller, called) = (Peer::start(&hub, 0, 1), Peer::start(&hub, 1, 3));
    called.sees(0, 1);
    // The life before.
    caller.sees(1, 2);
    let start = Instant::now();
    assert_eq!(caller.call(1).await, Err(Unanswered::Lost), "the life before may have executed it");
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(called.served(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_executed_only_for_a_sender_that_is_seen_alive() {
    let hub = LocalHub::new();
    let (caller, called) = (Peer::start(&hub, 0, 1), Peer::start(&hub, 1, 2));
    caller.sees(1, 2);
    assert_eq!(caller.call(1).await, Ok(PeerAnswer::WrongLife), "a stranger");
    called.sees(0, 7);
    assert_eq!(caller.call(1).await, Ok(PeerAnswer::WrongLife), "another life of the sender");
    assert_eq!(called.served(), 0);
    called.sees(0, 1);
    assert_eq!(caller.call(1).await, Ok(PeerAnswer::Done));
    assert_eq!(called.served(), 1);
}
