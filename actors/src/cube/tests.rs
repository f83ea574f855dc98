//! Whole cubes on paused time: commands through the handle, restarts, passivation, fencing.

mod activation;
mod converse;
mod faults;
mod remote;
mod scheduler;
mod snapshots;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use memcube_schemas::{
    CubeId, Incarnation, MemoryId, NodeId, RequestId, TenantId, Version,
    codec::{decode, encode},
    command::Selection,
    conversation::{Message, Role},
    cube::Ownership,
    keys,
    memory::MemoryStatus,
};

use super::*;
use crate::{
    BlobParts, Cubes, NodeParts, TenantContext,
    embedder::{EmbedderHandle, ScriptedEmbedder},
    environment::Faults,
    scheduler::jobs::JobRules,
    storage::{
        Commit, CommitToken, InMemoryStore, Mutation, RangeRead, ReadOutput, StateStore, StoreError,
    },
};

const DIMENSIONS: usize = 32;

struct World {
    cubes: Cubes,
    store: SharedStore,
    environment: Environment,
}

impl World {
    async fn new() -> Self {
        Self::with(Arc::new(InMemoryStore::default()), Environment::scripted(7), 10_000).await
    }

    async fn with(store: SharedStore, environment: Environment, hot_cubes_max: usize) -> Self {
        Self::with_blobs(store, environment, hot_cubes_max, None).await
    }

    async fn with_blobs(
        store: SharedStore,
        environment: Environment,
        hot_cubes_max: usize,
        blobs: Option<BlobParts>,
    ) -> Self {
        let model = Arc::new(ScriptedEmbedder::new(DIMENSIONS));
        let embedder = EmbedderHandle::spawn(model, environment.clone()).await.expect("started");
        let cubes = Cubes::start(NodeParts {
            store: Arc::clone(&store),
            environment: environment.clone(),
            embedder: Some(embedder),
            node: NodeId::new("test").expect("valid"),
            passivate_after_ms: 60_000,
            hot_cubes_max,
            jobs: JobRules::default(),
            cluster: None,
            vectors: None,
            blobs,
        })
        .await
        .expect("started");
        Self { cubes, store, environment }
    }

    async fn cube(&self, id: &str) -> CubeHandle {
        let id = CubeId::new(id).expect("a valid id");
        self.cubes.ensure(&context(), id).await.expect("made")
    }
}

fn context() -> TenantContext {
    TenantContext::authenticated(TenantId::new("acme").expect("valid"), "tester")
}

fn said(texts: &[&str]) -> AddRequest {
    let message = |text: &&str| Message {
        role: Role::User,
        speaker: Some("Ann".to_owned()),
        content: (*text).to_owned(),
        chat_time: Some("2023-05-08T13:56:00Z".to_owned()),
        message_id: None,
    };
    AddRequest { messages: texts.iter().map(message).collect(), ..AddRequest::default() }
}

async fn texts_found(cube: &CubeHandle, query: &str) -> Vec<String> {
    let found = cube.search(SearchRequest::new(query)).await.expect("found");
    found.hits.iter().map(|hit| hit.item.text.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_added_is_found_listed_changed_and_forgotten() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let added =
        cube.add(said(&["I play the cello.", "My cat is called Miso."])).await.expect("added");
    assert_eq!(added.version, Version(1));
    let [cello, cat] = added.memories.as_slice() else { panic!("two were added") };
    assert_eq!(cello.text, "[8 May 2023] Ann: I play the cello.");
    assert_eq!(texts_found(&cube, "what is the cat called").await[0], cat.text);

    let page = cube.list(None, 1).await.expect("listed");
    assert!(page.more && page.items[0].id == cello.id);
    let rest = cube.list(Some(cello.id), 10).await.expect("listed");
    assert_eq!(rest.items[0].previous, Some(cello.id), "neighbours are linked");

    let change = UpdateRequest { text: Some("Ann: I play the tuba.".into()), ..Default::default() };
    let changed = cube.update(cello.id, change).await.expect("changed");
    assert_eq!(changed.revision, 2);
    assert_eq!(texts_found(&cube, "tuba").await[0], "Ann: I play the tuba.");
    assert!(texts_found(&cube, "cello").await.iter().all(|text| !text.contains("cello")));

    let selection = Selection::Ids(vec![cat.id]);
    let (gone, _) = cube.delete(DeleteRequest { selection, purge: false }).await.expect("deleted");
    assert_eq!(gone, [cat.id]);
    assert!(texts_found(&cube, "cat called Miso").await.iter().all(|text| !text.contains("Miso")));
    let (current, history) = cube.history(cat.id).await.expect("kept");
    assert!(current.is_none() && history.len() == 1 && history[0].changed_by == "tester");
}

#[tokio::test(start_paused = true)]
async fn deleting_leaves_no_row_of_item_or_vector() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let id = cube.add(said(&["a secret"])).await.expect("added").memories[0].id;
    let request = DeleteRequest { selection: Selection::Ids(vec![id]), purge: true };
    cube.delete(request).await.expect("deleted");
    let tenant = context();
    let ranges = keys::everything_of_cube(tenant.tenant(), cube.id());
    let reads = ranges.into_iter().map(RangeRead::all).collect();
    let rows: Vec<_> = world
        .store
        .read(reads)
        .await
        .expect("read")
        .pages
        .into_iter()
        .flat_map(|page| page.entries)
        .collect();
    assert_eq!(rows.len(), 1, "only the manifest is left");
    assert!(cube.history(id).await.is_err_and(|error| error.kind() == ErrorKind::NotFound));
}

#[tokio::test(start_paused = true)]
async fn repetitions_are_folded_and_requests_are_idempotent() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let request = |key: &str, text: &str| AddRequest {
        request: Some(RequestId::new(key).expect("valid")),
        ..said(&[text])
    };
    let first = cube.add(request("k1", "hello")).await.expect("added");
    let retried = cube.add(request("k1", "hello")).await.expect("answered again");
    assert_eq!(first, retried);
    let item = cube.get(first.memories[0].id).await.expect("there");
    assert_eq!(item.occurrences, 1, "a retry is not a repetition");

    let folded = cube.add(request("k2", "hello")).await.expect("folded");
    assert!(folded.memories[0].folded && folded.memories[0].id == item.id);
    assert_eq!(cube.get(item.id).await.expect("there").occurrences, 2);

    let reused = cube.add(request("k1", "something else")).await.expect_err("refused");
    assert_eq!(reused.kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn the_lifecycle_is_enforced_and_archived_items_are_not_found() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let id = cube.add(said(&["the lighthouse keeper"])).await.expect("added").memories[0].id;
    let set = |status| UpdateRequest { status: Some(status), ..UpdateRequest::default() };
    cube.update(id, set(MemoryStatus::Archived)).await.expect("archived");
    assert_eq!(texts_found(&cube, "lighthouse").await.len(), 0);
    let merged = cube.update(id, set(MemoryStatus::Merged)).await.expect_err("not allowed");
    assert_eq!(merged.kind(), ErrorKind::Invalid);
    cube.update(id, set(MemoryStatus::Activated)).await.expect("back");
    let hit = &cube.search(SearchRequest::new("lighthouse")).await.expect("found").hits[0];
    assert!(hit.scores.dense > 0.0, "its vector came back as well");
    cube.update(id, set(MemoryStatus::Frozen)).await.expect("frozen");
    let delete = DeleteRequest { selection: Selection::Ids(vec![id]), purge: false };
    assert!(cube.delete(delete).await.is_err(), "frozen items are protected");
}

#[tokio::test(start_paused = true)]
async fn commands_in_one_commit_see_each_other() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let adds = (0..100).map(|n| cube.add(said(&["the same words"]).tagged(n)));
    let outcomes = join_all(adds).await;
    let made = outcomes.iter().flatten().filter(|outcome| !outcome.memories[0].folded).count();
    assert_eq!(made, 1, "ninety-nine were folded into the first");
    let version = cube.describe().await.expect("described").version;
    assert!(version.0 < 20, "they shared commits: {version}");
}

impl AddRequest {
    fn tagged(mut self, number: usize) -> Self {
        self.tags = vec![number.to_string()];
        self
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_finds_everything_again() {
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let ids: Vec<MemoryId> = {
        let world = World::with(Arc::clone(&store), Environment::scripted(1), 10).await;
        let cube = world.cube("ann").await;
        let added = cube.add(said(&["one apple", "two pears", "three plums"])).await;
        world.cubes.shut_down().await;
        added.expect("added").memories.iter().map(|memory| memory.id).collect()
    };
    let world = World::with(store, Environment::scripted(2), 10).await;
    let cube = world.cube("ann").await;
    let listed = cube.list(None, 10).await.expect("listed");
    assert_eq!(listed.items.iter().map(|item| item.id).collect::<Vec<_>>(), ids);
    assert!(texts_found(&cube, "plums").await[0].contains("three plums"));
    let next = cube.add(said(&["four figs"])).await.expect("added").memories[0].id;
    assert!(ids.iter().all(|id| *id < next), "ids go on growing");
}

#[tokio::test(start_paused = true)]
async fn cubes_leave_ram_and_come_back_while_they_are_written() {
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let world = World::with(store, Environment::scripted(3), 1).await;
    let (ann, bo) = (world.cube("ann").await, world.cube("bo").await);
    for round in 0..30 {
        let text = format!("round {round}");
        let (left, right) = tokio::join!(ann.add(said(&[&text])), bo.add(said(&[&text])));
        left.expect("added");
        right.expect("added");
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    for cube in [&ann, &bo] {
        assert_eq!(cube.list(None, 100).await.expect("listed").items.len(), 30);
    }
    let epoch = read_ownership(&world, "ann").await.epoch;
    assert!(epoch.0 > 2, "it was hydrated several times, last in epoch {epoch}");
}

async fn read_ownership(world: &World, cube: &str) -> Ownership {
    let tenant = context();
    let key = keys::ownership(tenant.tenant(), &CubeId::new(cube).expect("valid"));
    let output = world.store.read(vec![RangeRead::key(key)]).await.expect("read");
    decode(&output.pages[0].entries[0].value).expect("an ownership row")
}

#[tokio::test(start_paused = true)]
async fn a_replaced_owner_is_refused_by_the_store_and_asks_again() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    cube.add(said(&["before"])).await.expect("added");
    // Another node claims the cube, and writes as its owner.
    let tenant = context();
    let key = keys::ownership(tenant.tenant(), cube.id());
    let former = read_ownership(&world, "ann").await;
    let node = NodeId::new("other").expect("valid");
    let next = Ownership { epoch: former.epoch.next(), node, incarnation: Incarnation(1) };
    let value = encode(&next);
    let steal = Commit {
        token: CommitToken(1),
        checks: Vec::new(),
        mutations: vec![Mutation::Set { key, value }],
    };
    world.store.commit(steal).await.expect("stolen");
    cube.add(said(&["after"])).await.expect("claimed back and added");
    assert_eq!(read_ownership(&world, "ann").await.epoch.0, former.epoch.0 + 2);
    assert_eq!(cube.list(None, 10).await.expect("listed").items.len(), 2);
}

/// Panics at every command whose text holds a word.
struct PanicOn(&'static str);

impl Faults for PanicOn {
    fn reach(&self, point: &'static str, detail: &str) {
        assert!(point != "cube.decide" || !detail.contains(self.0), "poison: {}", self.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_cube_is_restarted_then_quarantined_and_its_neighbours_serve() {
    let environment = Environment::scripted(5).with_faults(Arc::new(PanicOn("poison")));
    let world = World::with(Arc::new(InMemoryStore::default()), environment, 10).await;
    let (sick, well) = (world.cube("sick").await, world.cube("well").await);
    sick.add(said(&["kept"])).await.expect("added");
    for attempt in 1..=3 {
        let error = sick.add(said(&["poison"])).await.expect_err("it panics");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "attempt {attempt}: {error}");
        well.add(said(&[&format!("fine {attempt}")])).await.expect("not disturbed");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let error = sick.list(None, 10).await.expect_err("in quarantine");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let described = world.cubes.describe(&context(), sick.id()).await.expect("described");
    assert!(described.quarantine.is_some_and(|reason| reason.contains("poison")));
    assert_eq!(well.list(None, 10).await.expect("listed").items.len(), 3);

    world.cubes.release(&context(), sick.id()).await.expect("released");
    assert_eq!(sick.list(None, 10).await.expect("listed").items.len(), 1, "nothing was lost");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_puts_its_cube_into_quarantine_and_is_left_as_it_is() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let tenant = context();
    let key = keys::item(tenant.tenant(), cube.id(), MemoryId::from_parts(1, 1));
    let garbage = b"garbage".to_vec();
    let mutations = vec![Mutation::Set { key: key.clone(), value: garbage.clone() }];
    let commit = Commit { token: CommitToken(9), checks: Vec::new(), mutations };
    world.store.commit(commit).await.expect("damaged");
    let error = cube.add(said(&["hello"])).await.expect_err("it cannot be read");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.message().contains("quarantine"), "{error}");
    let output = world.store.read(vec![RangeRead::key(key)]).await.expect("read");
    assert_eq!(output.pages[0].entries[0].value, garbage);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_cube_is_told_and_not_made() {
    let world = World::new().await;
    let cube = world.cubes.cube(&context(), CubeId::new("nobody").expect("valid"));
    let error = cube.add(said(&["hello"])).await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(read_all_rows(&world).await.is_empty());
}

async fn read_all_rows(world: &World) -> Vec<crate::storage::Entry> {
    let range = keys::KeyRange { start: vec![0], end: vec![0xff] };
    let output = world.store.read(vec![RangeRead::all(range)]).await.expect("read");
    output.pages.into_iter().flat_map(|page| page.entries).collect()
}

/// A store whose commits sometimes have an unknown outcome, and sometimes did happen.
struct Forgetful {
    inner: InMemoryStore,
    commits: AtomicUsize,
}

impl StateStore for Forgetful {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        self.inner.read(ranges)
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            match self.commits.fetch_add(1, Ordering::Relaxed) % 5 {
                1 => Err(StoreError::Unknown),
                3 => self.inner.commit(commit).await.and(Err(StoreError::Unknown)),
                _ => self.inner.commit(commit).await,
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

#[tokio::test(start_paused = true)]
async fn unknown_outcomes_are_resolved_and_nothing_is_added_twice() {
    let store = Forgetful { inner: InMemoryStore::default(), commits: AtomicUsize::new(0) };
    let world = World::with(Arc::new(store), Environment::scripted(4), 10).await;
    let cube = world.cube("ann").await;
    for n in 0..40 {
        let outcome = cube.add(said(&[&format!("number {n}")])).await.expect("added");
        assert!(!outcome.memories[0].folded);
    }
    let items = cube.list(None, 100).await.expect("listed").items;
    assert_eq!(items.len(), 40);
    assert!(items.iter().all(|item| item.occurrences == 1));
    assert!(world.environment.unix_ms() > 0);
}

async fn scored(cube: &CubeHandle, query: &str) -> Vec<(MemoryId, String)> {
    let found = cube.search(SearchRequest::new(query)).await.expect("found");
    let line = |hit: &Hit| {
        let scores = hit.scores;
        (hit.item.id, format!("{:.3} {:.3} {:.3}", scores.dense_z, scores.lexical_z, scores.fused))
    };
    found.hits.iter().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn the_same_version_gives_the_same_list_also_after_changes_and_a_restart() {
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let world = World::with(Arc::clone(&store), Environment::scripted(1), 10).await;
    let cube = world.cube("ann").await;
    let texts: Vec<String> =
        (0..12).map(|n| format!("turn {n} about the garden, part {}", n % 5)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let request = AddRequest {
        conversation: Some(memcube_schemas::ConversationId::new("one").expect("valid")),
        ..said(&texts)
    };
    let ids: Vec<MemoryId> =
        cube.add(request).await.expect("added").memories.iter().map(|memory| memory.id).collect();
    let text = Some("Ann: turn 3 is about the kitchen".to_owned());
    cube.update(ids[3], UpdateRequest { text, ..Default::default() }).await.expect("changed");
    for (id, status) in
        [(6, MemoryStatus::Archived), (8, MemoryStatus::Archived), (6, MemoryStatus::Activated)]
    {
        let change = UpdateRequest { status: Some(status), ..Default::default() };
        cube.update(ids[id], change).await.expect("changed");
    }
    let selection = Selection::Ids(vec![ids[10]]);
    cube.delete(DeleteRequest { selection, purge: false }).await.expect("deleted");
    let queries = ["garden part 2", "kitchen", "turn 11"];
    let before = join_all(queries.map(|query| scored(&cube, query))).await;
    world.cubes.shut_down().await;

    let world = World::with(store, Environment::scripted(2), 10).await;
    let cube = world.cube("ann").await;
    let after = join_all(queries.map(|query| scored(&cube, query))).await;
    assert_eq!(before, after);
    assert!(before.iter().all(|list| list.len() == 10));
}

#[tokio::test(start_paused = true)]
async fn a_statement_about_a_person_counts_as_much_as_what_that_person_says() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    cube.add(said(&["I have a greyhound.", "I like tea.", "I sing."])).await.expect("added");
    let facts = vec!["Ann lives in Lisbon.".to_owned(), "Bo lives in Porto.".to_owned()];
    cube.add(AddRequest { facts, ..AddRequest::default() }).await.expect("added");
    assert_eq!(texts_found(&cube, "Where does Ann live?").await[0], "Ann lives in Lisbon.");
}

#[tokio::test(start_paused = true)]
async fn a_cube_in_quarantine_can_be_deleted() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let tenant = context();
    let key = keys::item(tenant.tenant(), cube.id(), MemoryId::from_parts(1, 1));
    let mutations = vec![Mutation::Set { key, value: b"garbage".to_vec() }];
    let commit = Commit { token: CommitToken(9), checks: Vec::new(), mutations };
    world.store.commit(commit).await.expect("damaged");
    assert!(cube.list(None, 1).await.is_err());
    cube.erase().await.expect("deleted");
    let error = cube.list(None, 1).await.expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let again = world.cube("ann").await;
    again.add(said(&["a new life"])).await.expect("added");
}

#[tokio::test(start_paused = true)]
async fn bulk_deletion_takes_several_commits_and_spares_frozen_items() {
    let world = World::new().await;
    let cube = world.cube("ann").await;
    let facts: Vec<String> = (0..10_000).map(|n| format!("fact {n}")).collect();
    for chunk in [facts, (0..500).map(|n| format!("note {n}")).collect()] {
        let request = AddRequest { facts: chunk, ..AddRequest::default() };
        cube.add(request).await.expect("added");
    }
    let kept = cube.list(None, 1).await.expect("listed").items[0].id;
    let frozen = UpdateRequest { status: Some(MemoryStatus::Frozen), ..Default::default() };
    cube.update(kept, frozen).await.expect("frozen");
    let request = DeleteRequest { selection: Selection::All, purge: true };
    let (gone, _) = cube.delete(request).await.expect("deleted");
    assert_eq!(gone.len(), 10_499);
    let left = cube.list(None, 10).await.expect("listed").items;
    assert_eq!(left.iter().map(|item| item.id).collect::<Vec<_>>(), [kept]);
}
