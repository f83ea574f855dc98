//! Searches over many cubes on paused time: what is found, what never is, and how the tables come
//! back into step.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    CubeId, MemoryId, NodeId, Stamp, TenantId,
    call::{SearchFilter, SearchRequest},
    codec::encode,
    command::Selection,
    conversation::{Message, Role},
    feed::FeedMark,
    keys::{self, FEED_SHARDS},
    limits::CUBES_ASKED_MAX,
    memory::MemoryStatus,
};

use super::{TenantSearchOutcome, TenantSearchRequest, VectorParts, VectorSettings};
use crate::{
    CubeHandle, Cubes, NodeParts, TenantContext,
    cube::{AddRequest, DeleteRequest, UpdateRequest},
    embedder::{EmbedderHandle, ScriptedEmbedder},
    environment::{Environment, Faults},
    error::{ErrorKind, Result},
    scheduler::jobs::JobRules,
    storage::{
        Commit, InMemoryStore, InMemoryVectorIndex, Mutation, SharedStore, SharedVectorIndex,
        vector_index::{
            Candidates, IndexResult, RowChange, SearchSpec, TableId, VectorIndex, VectorIndexError,
        },
    },
};

const DIMENSIONS: usize = 64;
const COLD_ITEMS_MIN: u64 = 40;

struct World {
    cubes: Cubes,
    store: SharedStore,
    environment: Environment,
}

/// What a world is made of, apart from what is usual.
struct Making {
    store: SharedStore,
    environment: Environment,
    index: Option<SharedVectorIndex>,
    dimensions: usize,
}

impl Making {
    fn usual() -> Self {
        let environment = Environment::scripted(11);
        let index = InMemoryVectorIndex::new(environment.clone(), 100_000);
        let store = Arc::new(InMemoryStore::default());
        Self { store, environment, index: Some(Arc::new(index)), dimensions: DIMENSIONS }
    }

    async fn start(self) -> World {
        let Self { store, environment, index, dimensions } = self;
        let model = Arc::new(ScriptedEmbedder::new(dimensions));
        let embedder = EmbedderHandle::spawn(model, environment.clone()).await.expect("started");
        let settings = VectorSettings {
            apply_after_ms: 1_000,
            optimize_after_ms: 60_000,
            cold_cube_items_min: COLD_ITEMS_MIN,
        };
        let cubes = Cubes::start(NodeParts {
            store: Arc::clone(&store),
            environment: environment.clone(),
            embedder: Some(embedder),
            node: NodeId::new("test").expect("valid"),
            passivate_after_ms: 600_000,
            hot_cubes_max: 1_000,
            jobs: JobRules::default(),
            cluster: None,
            blobs: None,
            vectors: index.map(|index| VectorParts { index, settings }),
        });
        World { cubes: cubes.await.expect("started"), store, environment }
    }
}

impl World {
    async fn cube(&self, id: &str) -> CubeHandle {
        self.cubes.ensure(&context(), cube_id(id)).await.expect("made")
    }

    async fn add(&self, id: &str, texts: &[&str]) -> Vec<MemoryId> {
        let added = self.cube(id).await.add(said(texts)).await.expect("added");
        added.memories.iter().map(|memory| memory.id).collect()
    }

    async fn delete(&self, id: &str, ids: Vec<MemoryId>) {
        let request = DeleteRequest { selection: Selection::Ids(ids), purge: false };
        self.cube(id).await.delete(request).await.expect("deleted");
    }

    /// Long enough for the tier to see everything.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(20)).await;
    }

    async fn ask(&self, query: &str) -> TenantSearchOutcome {
        self.try_asking(SearchRequest::new(query), None).await.expect("answered")
    }

    async fn try_asking(
        &self,
        request: SearchRequest,
        cubes: Option<&[&str]>,
    ) -> Result<TenantSearchOutcome> {
        let cubes = cubes.map(|cubes| cubes.iter().map(|id| cube_id(id)).collect());
        self.cubes.search_tenant(&context(), TenantSearchRequest { request, cubes }).await
    }

    async fn behind(&self) -> usize {
        let shards = self.cubes.vector_shards(&context()).await.expect("told");
        shards.iter().map(|shard| shard.behind).sum()
    }

    async fn write(&self, mutations: Vec<Mutation>) {
        let token = self.environment.commit_token();
        let commit = Commit { token, checks: Vec::new(), mutations };
        self.store.commit(commit).await.expect("written");
    }
}

fn context() -> TenantContext {
    TenantContext::authenticated(TenantId::new("acme").expect("valid"), "tester")
}

fn cube_id(id: &str) -> CubeId {
    CubeId::new(id).expect("a valid id")
}

fn said(texts: &[&str]) -> AddRequest {
    let message = |text: &&str| Message {
        role: Role::User,
        speaker: Some("Ann".to_owned()),
        content: (*text).to_owned(),
        chat_time: None,
        message_id: None,
    };
    AddRequest { messages: texts.iter().map(message).collect(), ..AddRequest::default() }
}

/// The hits as `cube: text`, best first.
fn texts(outcome: &TenantSearchOutcome) -> Vec<String> {
    let text = |text: &str| text.rsplit(": ").next().unwrap_or_default().to_owned();
    let hit = |hit: &super::CubeHit| format!("{}: {}", hit.cube, text(&hit.hit.item.text));
    outcome.hits.iter().map(hit).collect()
}

fn assert_lacks(outcome: &TenantSearchOutcome, word: &str) {
    let texts = texts(outcome);
    assert!(texts.iter().all(|text| !text.contains(word)), "{word} in {texts:?}");
}

/// An index that can be made to fail, and whose searches can be made to see an older state.
struct Moody {
    index: InMemoryVectorIndex,
    refuses: AtomicBool,
    applied: AtomicUsize,
}

impl Moody {
    fn new(environment: &Environment) -> Arc<Self> {
        let index = InMemoryVectorIndex::new(environment.clone(), 100_000);
        Arc::new(Self { index, refuses: AtomicBool::new(false), applied: AtomicUsize::new(0) })
    }
}

impl VectorIndex for Moody {
    fn apply(
        &self,
        table: &TableId,
        changes: Vec<RowChange>,
        watermark: Option<Stamp>,
    ) -> BoxFuture<'_, IndexResult<()>> {
        if self.refuses.load(Ordering::Relaxed) {
            let reason = "the disk is full".to_owned();
            return Box::pin(async { Err(VectorIndexError::Unavailable { reason }) });
        }
        self.applied.fetch_add(changes.len(), Ordering::Relaxed);
        self.index.apply(table, changes, watermark)
    }

    fn watermark(&self, table: &TableId) -> BoxFuture<'_, IndexResult<Option<Stamp>>> {
        self.index.watermark(table)
    }

    fn search(
        &self,
        table: &TableId,
        spec: SearchSpec,
    ) -> BoxFuture<'_, IndexResult<Option<Candidates>>> {
        self.index.search(table, spec)
    }

    fn optimize(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        self.index.optimize(table)
    }

    fn drop_table(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        self.index.drop_table(table)
    }
}

#[tokio::test(start_paused = true)]
async fn memories_of_many_cubes_are_found_before_and_after_they_are_indexed() {
    let world = Making::usual().start().await;
    world.add("ann", &["I play the cello in Lisbon.", "My cat is called Miso."]).await;
    world.add("bo", &["We sail to Lisbon."]).await;
    for is_indexed in [false, true] {
        let found = world.ask("who plays the cello").await;
        assert_eq!(texts(&found)[0], "ann: I play the cello in Lisbon.");
        let found = world.ask("Lisbon").await;
        let cubes: Vec<&str> = found.hits.iter().take(2).map(|hit| hit.cube.as_str()).collect();
        assert!(cubes.contains(&"ann") && cubes.contains(&"bo"), "{:?}", texts(&found));
        assert_eq!(found.unindexed, 0, "cubes are asked until there are tables");
        assert_eq!(world.behind().await == 0, is_indexed);
        world.settle().await;
    }
    world.add("bo", &["The cello is out of tune."]).await;
    let found = world.ask("cello out of tune").await;
    assert_eq!((texts(&found)[0].as_str(), found.unindexed), ("bo: The cello is out of tune.", 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_or_changed_is_never_shown_as_it_was() {
    let world = Making::usual().start().await;
    let ids = world.add("ann", &["Deleted secret.", "Changed secret.", "Archived secret."]).await;
    world.add("bo", &["Erased secret."]).await;
    world.add("cy", &["A secret that stays."]).await;
    world.settle().await;
    assert_eq!(world.ask("secret").await.hits.len(), 5);
    let ann = world.cube("ann").await;
    world.delete("ann", vec![ids[0]]).await;
    let text = Some("Ann: nothing of interest".to_owned());
    ann.update(ids[1], UpdateRequest { text, ..Default::default() }).await.expect("changed");
    let status = Some(MemoryStatus::Archived);
    ann.update(ids[2], UpdateRequest { status, ..Default::default() }).await.expect("archived");
    world.cube("bo").await.erase().await.expect("erased");
    for is_indexed in [false, true] {
        let found = world.ask("secret").await;
        for word in ["Deleted", "Changed", "Archived", "Erased"] {
            assert_lacks(&found, word);
        }
        assert_eq!(texts(&found)[0], "cy: A secret that stays.", "{is_indexed}");
        let found = world.ask("nothing of interest").await;
        assert_eq!(texts(&found)[0], "ann: nothing of interest", "{is_indexed}");
        world.settle().await;
    }
    world.add("bo", &["Erased and made again."]).await;
    let status = Some(MemoryStatus::Activated);
    ann.update(ids[2], UpdateRequest { status, ..Default::default() }).await.expect("back");
    for _ in 0..2 {
        let found = texts(&world.ask("secret made again").await);
        assert!(found.contains(&"bo: Erased and made again.".to_owned()), "{found:?}");
        assert!(found.contains(&"ann: Archived secret.".to_owned()), "{found:?}");
        assert!(!found.contains(&"bo: Erased secret.".to_owned()), "{found:?}");
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_never_sees_another_s_memories() {
    let world = Making::usual().start().await;
    world.add("ann", &["The password is swordfish."]).await;
    let other = TenantContext::authenticated(TenantId::new("apex").expect("valid"), "other");
    let ann = world.cubes.ensure(&other, cube_id("ann")).await.expect("made");
    ann.add(said(&["The password is unknown."])).await.expect("added");
    for _ in 0..2 {
        let request =
            TenantSearchRequest { request: SearchRequest::new("password swordfish"), cubes: None };
        let found = world.cubes.search_tenant(&other, request).await.expect("answered");
        assert_eq!(texts(&found), ["ann: The password is unknown."]);
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn conditions_and_names_hold_with_and_without_tables() {
    let world = Making::usual().start().await;
    for (cube, tag) in [("ann", "red"), ("bo", "blue"), ("cy", "red")] {
        let request = AddRequest { tags: vec![tag.to_owned()], ..said(&["The same words."]) };
        world.cube(cube).await.add(request).await.expect("added");
    }
    let plain = SearchRequest::new("the same words");
    let tags = vec!["red".to_owned()];
    let red =
        SearchRequest { filter: SearchFilter { tags, ..SearchFilter::default() }, ..plain.clone() };
    let one = SearchRequest { top_k: 1, ..plain.clone() };
    let thrifty = SearchRequest { token_budget: Some(6), ..plain.clone() };
    let choosy = SearchRequest { relativity_min: 1.0, ..plain.clone() };
    for _ in 0..2 {
        for (request, cubes, found) in [
            (&plain, None, 3),
            (&plain, Some(&["bo", "cy", "bo"][..]), 2),
            (&red, None, 2),
            (&red, Some(&["bo"]), 0),
            (&one, None, 1),
            (&thrifty, None, 1),
            (&choosy, None, 0),
        ] {
            let outcome = world.try_asking(request.clone(), cubes).await.expect("answered");
            assert_eq!(outcome.hits.len(), found, "{request:?} {cubes:?}");
            if let Some(cubes) = cubes {
                assert!(outcome.hits.iter().all(|hit| cubes.contains(&hit.cube.as_str())));
            }
        }
        for (request, cubes, kind, part) in [
            (&plain, Some(&["ann", "nobody"][..]), ErrorKind::NotFound, "nobody"),
            (&plain, Some(&[]), ErrorKind::Invalid, "name between 1 and"),
            (&SearchRequest::new(" "), None, ErrorKind::Invalid, "query"),
        ] {
            let error = world.try_asking(request.clone(), cubes).await.expect_err("refused");
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains(part), "{part} in {error}");
        }
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_tables_a_few_cubes_are_asked_and_many_are_refused() {
    let world = Making { index: None, ..Making::usual() }.start().await;
    for number in 0..CUBES_ASKED_MAX {
        world.add(&format!("cube {number}"), &["Some words."]).await;
    }
    world.add("cube 7", &["The one about penguins."]).await;
    assert_eq!(texts(&world.ask("penguins").await)[0], "cube 7: The one about penguins.");
    world.add("one more", &["Some words."]).await;
    let refused = world.try_asking(SearchRequest::new("penguins"), None).await;
    let error = refused.expect_err("there are too many");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("vectors.kind"), "{error}");
    let named = Some(&["cube 7", "one more"][..]);
    let found = world.try_asking(SearchRequest::new("penguins"), named).await.expect("few enough");
    assert_eq!(texts(&found)[0], "cube 7: The one about penguins.");
    assert!(world.cubes.rebuild_vectors(&context()).is_err_and(|e| e.message().contains("kind")));
}

#[tokio::test(start_paused = true)]
async fn tables_and_cubes_agree_on_the_best_hits() {
    let topics = ["cello", "harbour", "bread", "violet", "engine", "glacier", "teacher", "comet"];
    let with = Making::usual().start().await;
    let without = Making { index: None, ..Making::usual() }.start().await;
    for (number, topic) in topics.iter().enumerate() {
        for (other, again) in topics.iter().enumerate() {
            let text = format!("Notes on the {topic} and a {again}, part {number} of {other}.");
            for world in [&with, &without] {
                world.add(&format!("cube {}", (number + other) % 5), &[&text]).await;
            }
        }
    }
    with.settle().await;
    for pair in topics.windows(2) {
        let query = format!("what about the {} and the {}?", pair[0], pair[1]);
        let [left, right] = [with.ask(&query).await, without.ask(&query).await];
        let best = |outcome: &TenantSearchOutcome| {
            let mut best = texts(outcome);
            best.truncate(4);
            best.sort();
            best
        };
        assert_eq!(best(&left), best(&right), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_was_cut_off_makes_the_tables_anew() {
    let world = Making::usual().start().await;
    world.add("ann", &["Known before."]).await;
    world.settle().await;
    let ids = world.add("ann", &["Cut off before it was read.", "And deleted."]).await;
    world.delete("ann", vec![ids[1]]).await;
    let (tenant, shard) = (context().tenant().clone(), keys::feed_shard(&cube_id("ann")));
    let stamp = Stamp::end_of(world.store.read(Vec::new()).await.expect("read").version);
    world
        .write(vec![
            Mutation::ClearRange { range: keys::feed(&tenant, shard) },
            Mutation::Set {
                key: keys::feed_floor(&tenant, shard),
                value: encode(&FeedMark { stamp }),
            },
        ])
        .await;
    for _ in 0..2 {
        let found = world.ask("cut off before").await;
        assert_eq!(texts(&found)[0], "ann: Cut off before it was read.");
        assert_lacks(&found, "deleted");
        world.settle().await;
    }
    assert_eq!(world.behind().await, 0);
    assert_eq!(world.ask("cut off before").await.unindexed, 0);
}

#[tokio::test(start_paused = true)]
async fn the_best_are_found_behind_many_that_are_gone() {
    let world = Making::usual().start().await;
    let many: Vec<String> = (0..900).map(|n| format!("penguin {n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let ids = world.add("ann", &many).await;
    world.add("ann", &["A penguin among many other words that stand here and there."]).await;
    world.settle().await;
    world.delete("ann", ids).await;
    let found = world.ask("penguin").await;
    assert_eq!(found.hits.len(), 1, "{:?}", texts(&found));
    assert!(found.unindexed >= 900, "the table lags behind");
}

#[tokio::test(start_paused = true)]
async fn an_index_that_fails_is_caught_up_with_later() {
    let making = Making::usual();
    let moody = Moody::new(&making.environment);
    let index: SharedVectorIndex = Arc::<Moody>::clone(&moody);
    let world = Making { index: Some(index), ..making }.start().await;
    world.add("ann", &["First words."]).await;
    world.settle().await;
    moody.refuses.store(true, Ordering::Relaxed);
    let ids = world.add("ann", &["Second words.", "Third words."]).await;
    world.delete("ann", vec![ids[1]]).await;
    world.settle().await;
    let found = world.ask("words").await;
    assert_eq!((found.hits.len(), found.unindexed), (2, 2));
    moody.refuses.store(false, Ordering::Relaxed);
    world.settle().await;
    let found = world.ask("words").await;
    assert_eq!((found.hits.len(), found.unindexed), (2, 0));
    let before = moody.applied.load(Ordering::Relaxed);
    world.settle().await;
    assert_eq!(moody.applied.load(Ordering::Relaxed), before, "nothing is applied twice for long");
    world.cubes.rebuild_vectors(&context()).expect("begun");
    world.settle().await;
    assert!(moody.applied.load(Ordering::Relaxed) > before, "a table is built anew on demand");
    assert_eq!(texts(&world.ask("second").await)[0], "ann: Second words.");
}

/// Panics at a named point, a number of times.
struct PanicAt(&'static str, AtomicUsize);

impl Faults for PanicAt {
    fn reach(&self, point: &'static str, _detail: &str) {
        if point == self.0 && self.1.load(Ordering::Relaxed) > 0 {
            self.1.fetch_sub(1, Ordering::Relaxed);
            panic!("as told, at {point}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_between_table_and_cursor_costs_nothing() {
    for point in ["vectors.applied", "vectors.build-begun"] {
        let faults = Arc::new(PanicAt(point, AtomicUsize::new(2)));
        let making = Making::usual();
        let environment =
            making.environment.clone().with_faults(Arc::<PanicAt>::clone(&faults) as _);
        let world = Making { environment, ..making }.start().await;
        world.add("ann", &["First words."]).await;
        world.settle().await;
        let ids = world.add("ann", &["Second words.", "Third words."]).await;
        world.settle().await;
        world.delete("ann", vec![ids[0]]).await;
        world.settle().await;
        assert_eq!(faults.1.load(Ordering::Relaxed), 0, "{point}");
        let found = world.ask("words").await;
        assert_eq!((found.hits.len(), found.unindexed), (2, 0), "{point}");
        assert_eq!(world.behind().await, 0, "{point}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_model_gets_tables_of_its_own() {
    let first = Making::usual();
    let (store, index) = (Arc::clone(&first.store), first.index.clone());
    let world = first.start().await;
    world.add("ann", &["I play the cello.", "My cat is called Miso."]).await;
    world.settle().await;
    world.cubes.shut_down().await;
    let environment = Environment::scripted(12);
    let world = Making { store, index, environment, dimensions: 32 }.start().await;
    for _ in 0..2 {
        let found = world.ask("who plays the cello").await;
        assert_eq!(texts(&found)[0], "ann: I play the cello.");
        assert!(found.hits[0].hit.scores.dense > 0.3, "{:?}", found.hits[0]);
        world.settle().await;
    }
    let shards = world.cubes.vector_shards(&context()).await.expect("told");
    assert_eq!(shards.len(), usize::from(FEED_SHARDS));
    assert!(shards.iter().all(|shard| shard.watermark.is_some() && shard.behind == 0));
}

#[tokio::test(start_paused = true)]
async fn a_large_cube_out_of_ram_is_searched_where_it_lies() {
    let world = Making::usual().start().await;
    let notes: Vec<String> =
        (0..COLD_ITEMS_MIN).map(|n| format!("note {n} about the harbour wall")).collect();
    world.add("large", &notes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.add("large", &["the violet umbrella hangs in the hall"]).await;
    let gone = world.add("large", &["the violet umbrella is at the baker's"]).await;
    world.add("small", &["the violet umbrella was lent to Eve"]).await;
    world.settle().await;
    // Gone before the cube leaves RAM, and perhaps not from its table yet.
    world.delete("large", gone).await;
    tokio::time::sleep(Duration::from_secs(1_300)).await;
    let is_hot =
        async |id: &str| world.cubes.describe(&context(), &cube_id(id)).await.expect("told").is_hot;
    assert!(!is_hot("large").await && !is_hot("small").await);

    let handle = |id: &str| world.cubes.cube(&context(), cube_id(id));
    let ask = || SearchRequest::new("the violet umbrella");
    let found = handle("large").search(ask()).await.expect("answered");
    assert!(found.hits[0].item.text.contains("hangs in the hall"), "{found:?}");
    assert!(found.hits.iter().all(|hit| !hit.item.text.contains("baker")), "{found:?}");
    assert!(!is_hot("large").await, "it stayed out of RAM");
    let version = handle("large").describe().await.expect("told").version;
    assert_eq!(found.version, version);

    handle("small").search(ask()).await.expect("answered");
    assert!(is_hot("small").await, "a small cube comes into RAM");
    let hot = handle("large").search(ask()).await.expect("answered");
    assert_eq!(hot.hits[0].item.id, found.hits[0].item.id);
}
