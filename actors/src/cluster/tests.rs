//! Several nodes in one process, on paused time: who serves a cube, and what callers notice of it.

mod lossy;
mod slow_store;

use std::{sync::Arc, time::Duration};

use memcube_schemas::{
    CubeId, NodeId, TenantId,
    codec::{decode, encode},
    cube::Ownership,
    keys,
};

use super::{ClusterParts, ClusterSettings, LocalHub, Transport};
use crate::{
    CubeHandle, Cubes, Error, ErrorKind, NodeParts, TenantContext,
    cube::{AddRequest, SearchRequest, UpdateRequest},
    embedder::{EmbedderHandle, ScriptedEmbedder},
    environment::Environment,
    scheduler::jobs::JobRules,
    storage::{Commit, CommitToken, InMemoryStore, Mutation, RangeRead, SharedStore, StateStore},
};

struct World {
    hub: LocalHub,
    /// The store as it is.
    store: Arc<InMemoryStore>,
    /// The store as the nodes reach it.
    reached: SharedStore,
    nodes: Vec<Cubes>,
}

impl World {
    async fn of(count: u64) -> Self {
        let store = Arc::new(InMemoryStore::default());
        let mut world = Self::without_nodes(Arc::clone(&store), store);
        for number in 0..count {
            world.boot(number).await;
        }
        settle().await;
        world
    }

    fn without_nodes(store: Arc<InMemoryStore>, reached: SharedStore) -> Self {
        Self { hub: LocalHub::new(), store, reached, nodes: Vec::new() }
    }

    async fn boot(&mut self, number: u64) {
        let environment = self.next_environment();
        let model = Arc::new(ScriptedEmbedder::new(16));
        let embedder = EmbedderHandle::spawn(model, environment.clone()).await.expect("started");
        self.start(number, environment, Some(embedder)).await;
    }

    async fn boot_without_embedder(&mut self, number: u64) {
        let environment = self.next_environment();
        self.start(number, environment, None).await;
    }

    fn next_environment(&self) -> Environment {
        Environment::scripted(100 + self.nodes.len() as u64)
    }

    async fn start(
        &mut self,
        number: u64,
        environment: Environment,
        embedder: Option<EmbedderHandle>,
    ) {
        let transport = self.hub.transport(node(number), environment.clone());
        self.start_over(transport, number, environment, embedder).await;
    }

    async fn start_over(
        &mut self,
        transport: Arc<dyn Transport>,
        number: u64,
        environment: Environment,
        embedder: Option<EmbedderHandle>,
    ) {
        let node = node(number);
        let parts = NodeParts {
            store: Arc::clone(&self.reached),
            environment,
            embedder,
            node,
            passivate_after_ms: 60_000,
            hot_cubes_max: 100,
            jobs: JobRules::default(),
            cluster: Some(ClusterParts { transport, settings: ClusterSettings::default() }),
            vectors: None,
            blobs: None,
        };
        self.nodes.push(Cubes::start(parts).await.expect("started"));
    }

    fn cube(&self, number: usize, id: &str) -> CubeHandle {
        self.nodes[number].cube(&context(), cube_id(id))
    }

    async fn make(&self, id: &str) {
        self.nodes[0].create(&context(), cube_id(id), None, None).await.expect("made");
    }

    async fn owner(&self, id: &str) -> Ownership {
        let key = keys::ownership(context().tenant(), &cube_id(id));
        let output = self.store.read(vec![RangeRead::key(key)]).await.expect("read");
        decode(&output.pages[0].entries[0].value).expect("an ownership row")
    }

    /// Asks one node to hand a cube over to another.
    async fn hand_over(&self, id: &str, asked: usize, to: usize) -> Result<(), Error> {
        let to = self.nodes[to].view().me;
        self.nodes[asked].hand_over(&context(), &cube_id(id), &to).await
    }

    /// Writes into the store that a node owns a cube.
    async fn give(&self, id: &str, number: usize) {
        let former = self.owner(id).await;
        let view = self.nodes[number].view();
        let next =
            Ownership { epoch: former.epoch.next(), node: view.me, incarnation: view.incarnation };
        let key = keys::ownership(context().tenant(), &cube_id(id));
        let steal = Commit {
            token: CommitToken(1),
            checks: Vec::new(),
            mutations: vec![Mutation::Set { key, value: encode(&next) }],
        };
        self.store.commit(steal).await.expect("stolen");
    }

    fn number_of(&self, owner: &Ownership) -> usize {
        let view = |cubes: &Cubes| cubes.view().me == owner.node;
        self.nodes.iter().position(view).expect("one of the nodes")
    }
}

/// Waits until every node has seen every other.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn node(number: u64) -> NodeId {
    NodeId::new(format!("node-{number}")).expect("valid")
}

fn cube_id(id: &str) -> CubeId {
    CubeId::new(id).expect("valid")
}

fn context() -> TenantContext {
    TenantContext::authenticated(TenantId::new("acme").expect("valid"), "tester")
}

fn fact(text: &str) -> AddRequest {
    AddRequest { facts: vec![text.to_owned()], ..AddRequest::default() }
}

async fn texts(cube: &CubeHandle) -> Vec<String> {
    let page = cube.list(None, 1_000).await.expect("listed");
    page.items.iter().map(|item| item.text.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn every_node_reaches_every_cube_and_each_cube_has_one_owner() {
    let world = World::of(3).await;
    let mut owners = std::collections::BTreeSet::new();
    for number in 0..12 {
        let id = format!("user {number}");
        world.make(&id).await;
        for place in 0..3 {
            let text = format!("told to node {place}");
            world.cube(place, &id).add(fact(&text)).await.expect("added");
        }
        let owner = world.owner(&id).await;
        assert_eq!(owner.epoch.0, 1, "nobody took the cube from its first owner");
        owners.insert(owner.node);
        for place in 0..3 {
            let cube = world.cube(place, &id);
            assert_eq!(texts(&cube).await.len(), 3);
            let hits = cube.search(SearchRequest::new("node")).await.expect("found").hits;
            assert_eq!(hits.len(), 3, "seen from node {place}");
        }
    }
    assert_eq!(owners.len(), 3, "cubes are spread over all nodes");
    let missing = world.cube(1, "nobody").list(None, 1).await.map(|page| page.items.len());
    assert_eq!(missing.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
}

#[tokio::test(start_paused = true)]
async fn cubes_of_a_node_that_dies_are_served_elsewhere_within_three_seconds() {
    let world = World::of(3).await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("before")).await.expect("added");
    let owner = world.owner("ann").await;
    let dead = world.number_of(&owner);
    world.nodes[dead].kill();
    let start = tokio::time::Instant::now();
    let cube = world.cube((dead + 1) % 3, "ann");
    assert_eq!(texts(&cube).await, ["before"]);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    cube.add(fact("after")).await.expect("added");
    let next = world.owner("ann").await;
    assert_eq!((next.epoch.0, next.node == owner.node), (2, false));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_says_goodbye_is_not_waited_for() {
    let world = World::of(3).await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("before")).await.expect("added");
    let gone = world.number_of(&world.owner("ann").await);
    world.nodes[gone].shut_down().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let start = tokio::time::Instant::now();
    assert_eq!(texts(&world.cube((gone + 1) % 3, "ann")).await, ["before"]);
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cube_is_handed_over_while_it_is_written_to_and_nothing_is_lost() {
    let world = World::of(3).await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("first")).await.expect("added");
    let from = world.number_of(&world.owner("ann").await);
    let to = (from + 1) % 3;
    let writers = (0..30_u64).map(|number| {
        let cube = world.cube(usize::try_from(number % 3).expect("small"), "ann");
        async move {
            tokio::time::sleep(Duration::from_millis(number)).await;
            cube.add(fact(&format!("fact {number}"))).await
        }
    });
    let mover = async {
        tokio::time::sleep(Duration::from_millis(15)).await;
        // Asked of a node that is neither the owner nor the target.
        world.hand_over("ann", (from + 2) % 3, to).await
    };
    let (added, moved) = tokio::join!(futures_util::future::join_all(writers), mover);
    moved.expect("handed over");
    for outcome in added {
        outcome.expect("added");
    }
    let owner = world.owner("ann").await;
    assert_eq!(world.number_of(&owner), to);
    for place in 0..3 {
        assert_eq!(texts(&world.cube(place, "ann")).await.len(), 31);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_to_nobody_or_of_nothing_says_so() {
    let world = World::of(2).await;
    world.make("ann").await;
    let [to_nobody, of_nothing] = [("ann", 7), ("bo", 1)].map(async |(id, to)| {
        let moved = world.nodes[0].hand_over(&context(), &cube_id(id), &node(to)).await;
        moved.expect_err("refused").kind()
    });
    assert_eq!(to_nobody.await, ErrorKind::Invalid);
    assert_eq!(of_nothing.await, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_second_process_under_the_same_id_takes_the_name_and_the_first_stops_serving() {
    let mut world = World::of(2).await;
    world.make("ann").await;
    world.boot(0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!world.nodes[0].is_alive(), "the first one noticed");
    let refused = world.cube(0, "ann").list(None, 1).await.expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(texts(&world.cube(2, "ann")).await.len(), 0, "the second one serves");
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_replaced_without_hearing_of_it_answers_no_read() {
    let world = World::of(2).await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("old")).await.expect("added");
    let former = world.number_of(&world.owner("ann").await);
    let other = 1 - former;
    // The other node takes the cube by force, as it would from a node that it thinks is dead.
    world.give("ann", other).await;
    world.cube(other, "ann").add(fact("new")).await.expect("added");
    assert_eq!(texts(&world.cube(former, "ann")).await.len(), 2, "not what it still has in RAM");
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_replaced_without_hearing_of_it_refuses_nothing() {
    let world = World::of(2).await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("old")).await.expect("added");
    let former = world.number_of(&world.owner("ann").await);
    world.give("ann", 1 - former).await;
    let added = world.cube(1 - former, "ann").add(fact("new")).await.expect("added");
    // The former owner does not know this item; that is no reason to deny it.
    let change = UpdateRequest { tags: Some(vec!["seen".to_owned()]), ..UpdateRequest::default() };
    let updated = world.cube(former, "ann").update(added.memories[0].id, change).await;
    assert_eq!(updated.expect("found where it is").tags, ["seen"]);
}
