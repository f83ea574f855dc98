//! Backups and restores on paused time, over the in-memory store and an object store in RAM.

mod damage;
mod restores;
mod witness;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{TryStreamExt, future::BoxFuture};
use memcube_schemas::{
    CubeId, MemoryId, NodeId, RequestId, TenantId, Version,
    backup::{BackupManifest, is_object_name},
    codec::{decode, encode},
    command::Selection as Which,
    conversation::{Message, Role},
    cube::{ApiKeyRecord, CubeManifest},
    feed::{FeedChange, FeedRecord},
    keys,
};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, memory::InMemory, path::Path};

use super::*;
use crate::{
    CubeHandle, Cubes, Error, ErrorKind, NodeParts, TenantContext,
    cube::{AddRequest, DeleteRequest, SearchRequest, UpdateRequest},
    embedder::{EmbedderHandle, ScriptedEmbedder},
    environment::{Entropy, SeededEntropy},
    scheduler::jobs::JobRules,
    storage::{
        Commit, CommitToken, Entry, InMemoryStore, Mutation, RangeRead, ReadOutput, StateStore,
        StoreError,
    },
};

/// A store with a node on it.
struct Place {
    cubes: Cubes,
    store: SharedStore,
    environment: Environment,
}

impl Place {
    async fn new(seed: u64) -> Self {
        Self::on(Arc::new(InMemoryStore::default()), seed, Some(32)).await
    }

    async fn on(store: SharedStore, seed: u64, dimensions: Option<usize>) -> Self {
        let environment = Environment::scripted(seed);
        let embedder = match dimensions {
            Some(dimensions) => {
                let model = Arc::new(ScriptedEmbedder::new(dimensions));
                Some(EmbedderHandle::spawn(model, environment.clone()).await.expect("started"))
            }
            None => None,
        };
        let cubes = Cubes::start(NodeParts {
            vectors: None,
            blobs: None,
            store: Arc::clone(&store),
            environment: environment.clone(),
            embedder,
            node: NodeId::new("test").expect("valid"),
            passivate_after_ms: 60_000,
            hot_cubes_max: 10_000,
            jobs: JobRules::default(),
            cluster: None,
        })
        .await
        .expect("started");
        Self { cubes, store, environment }
    }

    async fn cube(&self, tenant: &str, id: &str) -> CubeHandle {
        self.cubes.ensure(&caller(tenant), cube_id(id)).await.expect("made")
    }

    async fn back_up(&self, to: &Objects, selection: Selection) -> BackupManifest {
        self.try_back_up(to, selection).await.expect("backed up")
    }

    async fn try_back_up(&self, to: &Objects, selection: Selection) -> Result<BackupManifest> {
        let request =
            BackupRequest { part_bytes_max: 80 << 10, ..BackupRequest::new(selection, "test") };
        back_up(&self.store, &self.environment, &to.sink(), request, &|_| {}).await
    }

    async fn restore(&self, from: &Objects, request: RestoreRequest) -> RestoreOutcome {
        let mut archive = from.open().await.expect("a backup");
        restore(&self.store, &self.environment, &mut archive, request, &|_| {})
            .await
            .expect("tried")
    }

    /// What a caller can read of a cube, in one text: the same texts mean the same cube.
    async fn export(&self, tenant: &str, id: &str) -> String {
        let cube = self.cubes.cube(&caller(tenant), cube_id(id));
        let mut text = format!("{:?}\n", cube.describe().await.expect("there"));
        let mut after = None;
        loop {
            let page = cube.list(after, 500).await.expect("listed");
            for item in &page.items {
                let (_, history) = cube.history(item.id).await.expect("read");
                text.push_str(&format!("{item:?}\n{history:?}\n"));
            }
            after = page.items.last().map(|item| item.id);
            if !page.more {
                return text;
            }
        }
    }
}

/// Objects of a backup.
#[derive(Clone)]
struct Objects(Arc<InMemory>);

impl Objects {
    fn new() -> Self {
        Self(Arc::new(InMemory::new()))
    }

    fn shared(&self) -> Arc<dyn ObjectStore> {
        Arc::<InMemory>::clone(&self.0)
    }

    fn prefix() -> Path {
        Path::from("backups/first")
    }

    fn sink(&self) -> ObjectSink {
        ObjectSink::new(self.shared(), Self::prefix())
    }

    async fn open(&self) -> Result<Archive> {
        Archive::open(self.shared(), Self::prefix()).await
    }

    /// The names of all objects, below the prefix.
    async fn names(&self) -> Vec<String> {
        let found: Vec<_> = self.0.list(None).try_collect().await.expect("listed");
        let name = |path: &Path| {
            let parts = path.prefix_match(&Self::prefix()).expect("below the prefix");
            parts.map(|part| part.as_ref().to_owned()).collect::<Vec<String>>().join("/")
        };
        found.iter().map(|object| name(&object.location)).collect()
    }

    async fn bytes(&self, name: &str) -> Bytes {
        let path = parts::object_path(&Self::prefix(), name);
        self.0.get(&path).await.expect("there").bytes().await.expect("read")
    }

    async fn put(&self, name: &str, bytes: impl Into<Bytes>) {
        let path = parts::object_path(&Self::prefix(), name);
        self.0.put(&path, PutPayload::from_bytes(bytes.into())).await.expect("put");
    }
}

fn caller(tenant: &str) -> TenantContext {
    TenantContext::authenticated(tenant_id(tenant), "tester")
}

fn tenant_id(tenant: &str) -> TenantId {
    TenantId::new(tenant).expect("valid")
}

fn cube_id(id: &str) -> CubeId {
    CubeId::new(id).expect("valid")
}

fn only(cubes: &[&str]) -> Selection {
    Selection { tenant: None, cubes: Some(cubes.iter().map(|id| cube_id(id)).collect()) }
}

fn said(texts: &[&str], request: Option<&str>) -> AddRequest {
    let message = |text: &&str| Message {
        role: Role::User,
        speaker: Some("Ann".to_owned()),
        content: (*text).to_owned(),
        chat_time: Some("2023-05-08T13:56:00Z".to_owned()),
        message_id: None,
    };
    AddRequest {
        messages: texts.iter().map(message).collect(),
        request: request.map(|key| RequestId::new(key).expect("valid")),
        ..AddRequest::default()
    }
}

fn text(text: impl Into<String>) -> UpdateRequest {
    UpdateRequest { text: Some(text.into()), ..UpdateRequest::default() }
}

fn delete(ids: Vec<MemoryId>, purge: bool) -> DeleteRequest {
    DeleteRequest { selection: Which::Ids(ids), purge }
}

/// The rows that belong to a cube, except who owns it.
async fn rows_of(store: &SharedStore, tenant: &str, id: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let ranges = keys::everything_of_cube(&tenant_id(tenant), &cube_id(id));
    let reads = ranges.into_iter().map(RangeRead::all).collect();
    let pages = store.read(reads).await.expect("read").pages;
    let row = |entry: Entry| (entry.key, entry.value);
    pages.into_iter().flat_map(|page| page.entries).map(row).collect()
}

async fn api_keys(store: &SharedStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pages = store.read(vec![RangeRead::all(keys::api_keys())]).await.expect("read").pages;
    pages.into_iter().flat_map(|page| page.entries).map(|row| (row.key, row.value)).collect()
}

/// A cube with every kind of row, and a repetition, a change, a deletion and a purge behind it.
async fn fill(cube: &CubeHandle, count: usize) {
    let texts: Vec<String> = (0..count).map(|n| format!("sentence number {n} of many")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let added = cube.add(said(&texts, Some("first"))).await.expect("added").memories;
    cube.add(said(&texts[..1], Some("again"))).await.expect("counted");
    cube.update(added[1].id, text("Ann changed her mind")).await.expect("changed");
    cube.update(added[1].id, text("Ann changed it again")).await.expect("changed");
    cube.delete(delete(vec![added[2].id], false)).await.expect("deleted");
    cube.delete(delete(vec![added[3].id], true)).await.expect("purged");
}

async fn admit(store: &SharedStore, tenant: &str, hash: u8) {
    let record =
        ApiKeyRecord { tenant: tenant_id(tenant), name: "key".to_owned(), created_at_ms: 7 };
    let set = Mutation::Set { key: keys::api_key(&[hash; 32]), value: encode(&record) };
    let token = CommitToken(u128::from(hash));
    let commit = Commit { token, checks: Vec::new(), mutations: vec![set] };
    store.commit(commit).await.expect("committed");
}

#[tokio::test(start_paused = true)]
async fn a_backup_holds_every_row_and_a_restore_brings_all_back() {
    let here = Place::new(1).await;
    let strange = ["ann", "a/b \u{e4}\u{4e00} ..", "\u{10ffff}", "x'\"%00"];
    for (number, id) in strange.into_iter().enumerate() {
        fill(&here.cube("acme", id).await, 5 + number * 20).await;
    }
    fill(&here.cube("zeta", "ann").await, 9).await;
    here.cube("zeta", "empty").await;
    admit(&here.store, "acme", 1).await;
    admit(&here.store, "zeta", 2).await;

    let objects = Objects::new();
    let manifest = here.back_up(&objects, Selection::default()).await;
    assert_eq!((manifest.cubes, manifest.api_keys, manifest.left_out.len()), (6, 2, 0));
    assert!(objects.names().await.iter().all(|name| is_object_name(name)));
    let verified = verify(&mut objects.open().await.expect("there"), &|_| {}).await.expect("read");
    assert!(verified.is_whole() && verified.cubes == 6, "{verified:?}");

    let there = Place::new(2).await;
    let outcome = there.restore(&objects, RestoreRequest::default()).await;
    assert!(outcome.is_whole(), "{outcome:?}");
    assert_eq!((outcome.restored, outcome.api_keys, outcome.unchanged), (6, 2, 0));
    let cubes =
        strange.into_iter().map(|id| ("acme", id)).chain([("zeta", "ann"), ("zeta", "empty")]);
    for (tenant, id) in cubes {
        let rows = rows_of(&here.store, tenant, id).await;
        assert_eq!(rows_of(&there.store, tenant, id).await, rows, "{tenant}/{id}");
        assert_eq!(there.export(tenant, id).await, here.export(tenant, id).await);
    }
    assert_eq!(api_keys(&there.store).await, api_keys(&here.store).await);

    // A restored cube is a cube: it takes retries for what they are, and goes on from its version.
    let cube = there.cube("acme", "ann").await;
    let before = cube.describe().await.expect("described");
    let retried = cube.add(said(&["sentence number 0 of many"], Some("again"))).await;
    assert!(retried.expect("known").memories[0].folded);
    assert_eq!(cube.describe().await.expect("described"), before, "a retry changes nothing");
    let added = cube.add(said(&["something new"], None)).await.expect("added");
    assert_eq!(added.version, before.version.next());
    let found = cube.search(SearchRequest::new("changed it again")).await.expect("found");
    assert_eq!(found.hits[0].item.text, "Ann changed it again");
}

#[tokio::test(start_paused = true)]
async fn some_cubes_or_one_tenant_can_be_chosen() {
    let here = Place::new(1).await;
    for (tenant, id) in [("acme", "ann"), ("acme", "bob"), ("acme", "cy"), ("zeta", "ann")] {
        fill(&here.cube(tenant, id).await, 5).await;
    }
    admit(&here.store, "acme", 1).await;
    admit(&here.store, "zeta", 2).await;
    let table = [
        (only(&["bob", "cy"]), 2, 0),
        (only(&["ann"]), 2, 0),
        (Selection { tenant: Some(tenant_id("zeta")), ..only(&["ann"]) }, 1, 0),
        (Selection { tenant: Some(tenant_id("acme")), cubes: None }, 3, 1),
        (Selection { tenant: Some(tenant_id("nobody")), cubes: None }, 0, 0),
    ];
    for (selection, cubes, api_keys) in table {
        let manifest = here.back_up(&Objects::new(), selection.clone()).await;
        assert_eq!((manifest.cubes, manifest.api_keys), (cubes, api_keys), "{selection:?}");
    }
    let missing = here.try_back_up(&Objects::new(), only(&["bob", "dan"])).await;
    assert_eq!(missing.expect_err("not there").to_string(), "there is no cube `dan`");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_holds_a_backup_takes_no_other() {
    let here = Place::new(1).await;
    here.cube("acme", "ann").await;
    let objects = Objects::new();
    here.back_up(&objects, Selection::default()).await;
    let before = objects.bytes("manifest").await;
    let again = here.try_back_up(&objects, Selection::default()).await.expect_err("occupied");
    assert_eq!(again.kind(), ErrorKind::Conflict);
    assert!(again.to_string().contains("choose another place"), "{again}");
    assert_eq!(objects.bytes("manifest").await, before);
}

/// A sink that breaks off after so many objects.
struct Breaking {
    sink: ObjectSink,
    left: AtomicUsize,
}

impl PartSink for Breaking {
    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        self.sink.prepare()
    }

    fn put(&self, name: String, bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Box::pin(std::future::ready(Err(Error::unavailable("killed"))));
        }
        self.left.store(left - 1, Ordering::Relaxed);
        self.sink.put(name, bytes)
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_breaks_off_anywhere_is_none_and_the_next_one_is() {
    let here = Place::new(1).await;
    for id in ["ann", "bob"] {
        fill(&here.cube("acme", id).await, 60).await;
    }
    admit(&here.store, "acme", 1).await;
    let objects = Objects::new();
    let mut tries = 0;
    loop {
        let sink = Breaking { sink: objects.sink(), left: AtomicUsize::new(tries) };
        let request = BackupRequest {
            part_bytes_max: 80 << 10,
            ..BackupRequest::new(Selection::default(), "test")
        };
        let done = back_up(&here.store, &here.environment, &sink, request, &|_| {}).await;
        if done.is_ok() {
            break;
        }
        let refused = objects.open().await.expect_err("there is no manifest");
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        assert!(refused.to_string().contains("no complete backup"), "{refused}");
        tries += 1;
    }
    assert!(tries > 5, "several parts: {tries}");
    let there = Place::new(2).await;
    assert!(there.restore(&objects, RestoreRequest::default()).await.is_whole());
    assert_eq!(there.export("acme", "bob").await, here.export("acme", "bob").await);
}

#[tokio::test(start_paused = true)]
async fn a_cube_that_cannot_be_read_is_left_out_and_named() {
    let here = Place::new(1).await;
    for id in ["ann", "bob", "cy"] {
        fill(&here.cube("acme", id).await, 30).await;
    }
    let tenant = tenant_id("acme");
    let rows = rows_of(&here.store, "acme", "bob").await;
    let (key, value) = rows.iter().nth(20).expect("an item");
    let mut value = value.clone();
    *value.last_mut().expect("bytes") ^= 1;
    let manifest = keys::manifest(&tenant, &cube_id("cy"));
    let mutations = vec![
        Mutation::Set { key: key.clone(), value },
        Mutation::Set { key: manifest, value: b"mc".to_vec() },
    ];
    let commit = Commit { token: CommitToken(1), checks: Vec::new(), mutations };
    here.store.commit(commit).await.expect("committed");

    let objects = Objects::new();
    let manifest = here.back_up(&objects, Selection::default()).await;
    let names: Vec<&str> = manifest.left_out.iter().map(|cube| cube.cube.as_str()).collect();
    assert_eq!((manifest.cubes, names), (1, vec!["bob", "cy"]));
    assert!(manifest.left_out[0].reason.contains("checksum"), "{:?}", manifest.left_out);
    let there = Place::new(2).await;
    assert_eq!(there.restore(&objects, RestoreRequest::default()).await.restored, 1);
    assert_eq!(there.export("acme", "ann").await, here.export("acme", "ann").await);
}

#[tokio::test(start_paused = true)]
async fn a_cube_of_ten_thousand_items_comes_back() {
    let here = Place::new(1).await;
    let cube = here.cube("acme", "ann").await;
    for part in 0..5 {
        let texts: Vec<String> = (0..2_000).map(|n| format!("line {n} of part {part}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        cube.add(said(&texts, None)).await.expect("added");
    }
    let objects = Objects::new();
    let manifest = here.back_up(&objects, Selection::default()).await;
    assert!(manifest.row_parts.len() > 50, "{} parts", manifest.row_parts.len());
    let biggest = manifest.row_parts.iter().map(|part| part.bytes).max();
    assert!(biggest.is_some_and(|bytes| bytes <= 80 << 10), "{biggest:?} bytes");
    let there = Place::new(2).await;
    assert!(there.restore(&objects, RestoreRequest::default()).await.is_whole());
    assert_eq!(
        rows_of(&there.store, "acme", "ann").await,
        rows_of(&here.store, "acme", "ann").await
    );
}
