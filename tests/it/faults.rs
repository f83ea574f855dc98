//! Cubes that panic, cubes that cannot be read, cubes that leave RAM: the others go on.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use memcube::{Node, Settings, environment};
use memcube_actors::{
    environment::Faults,
    storage::{Commit, CommitToken, InMemoryStore, Mutation, RangeRead, SharedStore},
};
use memcube_schemas::{
    CubeId, MemoryId, ModelId, RequestId, TenantId, codec, cube::Ownership, keys,
};
use serde_json::{Value, json};

use crate::support::{
    Answer, Client, PATIENCE, TENANT, TestNode, assert_says, embedded, eventually, in_memory,
};

/// Panics at a point when its detail holds a word.
struct Panics {
    point: &'static str,
    word: &'static str,
    count: AtomicUsize,
}

impl Panics {
    fn at(point: &'static str, word: &'static str) -> Arc<Self> {
        Arc::new(Self { point, word, count: AtomicUsize::new(0) })
    }
}

impl Faults for Panics {
    fn reach(&self, point: &'static str, detail: &str) {
        if point == self.point && detail.contains(self.word) {
            self.count.fetch_add(1, Ordering::SeqCst);
            panic!("injected at {point}: {detail}");
        }
    }
}

async fn node_with(faults: &Arc<Panics>) -> TestNode {
    let environment = environment::system().with_faults(Arc::clone(faults) as Arc<dyn Faults>);
    let node = Node::builder().with_settings(in_memory()).with_environment(environment);
    let node = TestNode::build(node).await;
    for cube in ["calm", "wild"] {
        node.client.cube(cube).await;
    }
    node
}

async fn add(client: &Client, cube: &str, text: &str) -> Answer {
    client.post(&format!("/v1/cubes/{cube}/memories"), json!({ "text": text })).await
}

/// Adds as a client should: it comes again when it is told to, with the same key.
async fn add_patiently(client: &Client, cube: &str, text: &str) -> Value {
    let start = Instant::now();
    let key: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    loop {
        let call = client.call("POST", &format!("/v1/cubes/{cube}/memories"));
        let call = call.header("idempotency-key", &key).json(json!({ "text": text }));
        let answer = call.send().await;
        if answer.status == 201 {
            return answer.body;
        }
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(start.elapsed() < PATIENCE, "{}", answer.text);
        let wait_ms = answer.body["retry_after_ms"].as_u64().expect("it says when to come again");
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

async fn condition(client: &Client, cube: &str) -> (String, Option<String>) {
    let read = client.get(&format!("/v1/cubes/{cube}")).await.expect(200);
    let text = |name: &str| read[name].as_str().map(str::to_owned);
    (text("condition").expect("a condition"), text("quarantine_reason"))
}

/// Adds and searches one cube without pause until it is told to stop; nothing may fail.
fn traffic(client: &Client, cube: &'static str, stop: &Arc<AtomicBool>) -> Traffic {
    let (client, stop) = (client.pooled(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut number = 0;
        while !stop.load(Ordering::SeqCst) {
            let text = format!("calm fact {number}");
            add(&client, cube, &text).await.expect(201);
            let found = client.search(cube, &text).await;
            assert!(found.contains(&text), "{text} in {found:?}");
            number += 1;
        }
        number
    })
}

type Traffic = tokio::task::JoinHandle<usize>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_one_cube_does_not_disturb_another() {
    let faults = Panics::at("cube.decide", "poison");
    let node = node_with(&faults).await;
    let stop = Arc::new(AtomicBool::new(false));
    let calm = traffic(&node.client, "calm", &stop);
    add(&node.client, "wild", "before").await.expect(201);
    let failed = add(&node.client, "wild", "poison").await;
    assert_says(
        &failed.summary(),
        "503 unavailable: the cube `wild` failed and was restarted … poison … read before retrying",
        "the answer to the one who sent it",
    );
    assert!(failed.header("retry-after").is_some(), "{}", failed.text);
    add_patiently(&node.client, "wild", "after").await;
    assert_eq!(node.client.texts("wild").await, ["before", "after"]);
    assert_eq!(node.client.search("wild", "before").await.len(), 2);
    assert_eq!(condition(&node.client, "wild").await, ("hot".to_owned(), None));
    stop.store(true, Ordering::SeqCst);
    let number = calm.await.expect("the neighbour never fails");
    assert_eq!(node.client.texts("calm").await.len(), number);
    assert_eq!(faults.count.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_message_ends_in_quarantine_until_it_is_released() {
    let faults = Panics::at("cube.decide", "poison");
    let node = node_with(&faults).await;
    let client = &node.client;
    let stop = Arc::new(AtomicBool::new(false));
    let calm = traffic(client, "calm", &stop);
    let id = client.fact("wild", "kept in spite of all").await;
    eventually("the cube is in quarantine", || async {
        let answer = add(client, "wild", "poison").await;
        assert!(matches!(answer.status, 500 | 503), "{}", answer.text);
        condition(client, "wild").await.0 == "quarantined"
    })
    .await;
    assert_eq!(faults.count.load(Ordering::SeqCst), 3, "the limit of panics");
    let (_, reason) = condition(client, "wild").await;
    let reason = reason.expect("a reason");
    assert_says(&reason, "it failed 3 times in a row, last: … poison …", "the reason");
    let refused = "500 corrupt: the cube `wild` is in quarantine: … poison … then release it";
    for (method, path, body) in [
        ("POST", "/memories".to_owned(), Some(json!({"text": "harmless"}))),
        ("POST", "/search".to_owned(), Some(json!({"query": "kept"}))),
        ("GET", "/memories".to_owned(), None),
        ("GET", format!("/memories/{id}"), None),
        ("PATCH", format!("/memories/{id}"), Some(json!({"text": "changed"}))),
        ("DELETE", format!("/memories/{id}"), None),
    ] {
        let call = client.call(method, &format!("/v1/cubes/wild{path}"));
        let call = match body {
            Some(body) => call.json(body),
            None => call,
        };
        assert_says(&call.send().await.summary(), refused, &format!("{method} {path}"));
    }
    let memos = json!({"query": "kept", "user_id": "wild"});
    let memos = client.post("/product/search", memos).await;
    assert_says(&memos.summary(), "500 envelope: the cube `wild` is in quarantine: …", "memos");
    let listed = client.get("/v1/cubes").await.expect(200);
    assert_eq!(listed["cubes"][1]["condition"], "quarantined", "{listed}");
    assert_eq!(listed["cubes"][1]["quarantine_reason"], reason.as_str());
    let metrics = client.get("/metrics").await.text;
    let panics = memcube_actors::metrics::CUBE_PANICS_TOTAL;
    let counted = metrics.lines().find_map(|line| line.strip_prefix(panics));
    let counted: f64 = counted.expect("it is counted").trim().parse().expect("a number");
    assert!(counted >= 3.0, "{counted}");
    let released = client.post("/v1/cubes/wild/release", json!({})).await.expect(200);
    assert_eq!(released["condition"], "cold", "{released}");
    add(client, "wild", "harmless").await.expect(201);
    assert_eq!(client.texts("wild").await, ["kept in spite of all", "harmless"]);
    let again = client.post("/v1/cubes/wild/release", json!({})).await;
    assert_says(&again.summary(), "404 not_found: the cube `wild` is not in quarantine", "again");
    stop.store(true, Ordering::SeqCst);
    calm.await.expect("the neighbour never fails");
}

/// Whoever cannot mend a cube can still be rid of it, and start afresh under the same name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cube_in_quarantine_can_be_deleted() {
    let node = node_with(&Panics::at("cube.decide", "poison")).await;
    let client = &node.client;
    client.fact("wild", "soon gone").await;
    eventually("the cube is in quarantine", || async {
        add(client, "wild", "poison").await;
        condition(client, "wild").await.0 == "quarantined"
    })
    .await;
    assert_eq!(client.delete("/v1/cubes/wild").await.status, 200);
    assert_eq!(client.get("/v1/cubes/wild").await.status, 404);
    assert_eq!(rows(node.node.store(), "wild").await, []);
    client.cube("wild").await;
    assert_eq!(client.texts("wild").await, Vec::<String>::new());
    add(client, "wild", "a new life").await.expect(201);
}

/// Changes that shared a commit with the poison, or waited behind it, are not lost: their callers
/// are told, and a retry with the same key makes each of them happen once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_shares_a_cube_with_poison_happens_once_after_a_retry() {
    let faults = Panics::at("cube.decide", "poison");
    let node = node_with(&faults).await;
    let good: Vec<String> = (0..40).map(|number| format!("good fact {number}")).collect();
    let poison = async {
        // Two panics: one more would be quarantine.
        for _ in 0..2 {
            let answer = add(&node.client, "wild", "poison").await;
            assert_eq!(answer.status, 503, "{}", answer.text);
        }
    };
    let adds = good.iter().map(|text| add_patiently(&node.client, "wild", text));
    futures_util::future::join(poison, futures_util::future::join_all(adds)).await;
    // The second panic may have been the last thing that happened.
    add_patiently(&node.client, "wild", "the end").await;
    let mut texts = node.client.texts("wild").await;
    texts.sort();
    let mut expected = good.clone();
    expected.push("the end".to_owned());
    expected.sort();
    assert_eq!(texts, expected);
    let listed = node.client.get("/v1/cubes/wild/memories?limit=1000").await.expect(200);
    for memory in listed["memories"].as_array().expect("a list") {
        assert_eq!(memory["occurrences"], 1, "{memory}");
    }
    assert!(faults.count.load(Ordering::SeqCst) <= 2);
}

/// A cube that panics while it is read must answer its callers, and not keep them for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_a_cube_is_read_is_answered() {
    let node = node_with(&Panics::at("cube.hydrate", "wild")).await;
    let limit = Duration::from_secs(10);
    let answer = tokio::time::timeout(limit, add(&node.client, "wild", "a")).await;
    let answer = answer.expect("the caller is answered, and does not wait for ever");
    assert_says(&answer.summary(), "500 corrupt: … injected at cube.hydrate …", "the add");
    let (condition, reason) = condition(&node.client, "wild").await;
    assert_eq!(condition, "quarantined");
    assert!(reason.expect("a reason").contains("injected at cube.hydrate"));
    add(&node.client, "calm", "undisturbed").await.expect(201);
}

/// Everything of one cube, except who owns it: that changes whenever somebody reads it.
async fn rows(store: &SharedStore, cube: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let ranges = keys::everything_of_cube(&tenant(), &cube_id(cube));
    let read = store.read(ranges.into_iter().map(RangeRead::all).collect()).await.expect("read");
    let entries = read.pages.into_iter().flat_map(|page| page.entries);
    entries.map(|entry| (entry.key, entry.value)).collect()
}

fn tenant() -> TenantId {
    TenantId::new(TENANT).expect("valid")
}

fn cube_id(cube: &str) -> CubeId {
    CubeId::new(cube).expect("valid")
}

async fn write(store: &SharedStore, token: u128, key: Vec<u8>, value: Vec<u8>) {
    let mutations = vec![Mutation::Set { key, value }];
    let commit = Commit { token: CommitToken(token), checks: Vec::new(), mutations };
    store.commit(commit).await.expect("committed");
}

async fn read_row(store: &SharedStore, key: &[u8]) -> Vec<u8> {
    let read = store.read(vec![RangeRead::key(key.to_vec())]).await.expect("read");
    read.pages[0].entries.first().expect("the row is there").value.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cube_with_a_damaged_row_is_quarantined_and_kept_as_it_is() {
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let start = || {
        let builder = Node::builder().with_settings(in_memory()).with_store(Arc::clone(&store));
        TestNode::build(builder)
    };
    let node = start().await;
    let key = RequestId::new("once").expect("valid");
    let mut id = String::new();
    for cube in ["calm", "wild"] {
        node.client.cube(cube).await;
        id = node.client.fact(cube, &format!("the first of {cube}")).await;
        let call = node.client.call("POST", &format!("/v1/cubes/{cube}/memories"));
        let call = call.header("idempotency-key", key.as_str());
        call.json(json!({"text": format!("the second of {cube}")})).send().await.expect(201);
    }
    node.node.shut_down().await;
    let id: MemoryId = id.parse().expect("an id");
    let model = ModelId::new("scripted-64").expect("valid");
    let (tenant, wild) = (tenant(), cube_id("wild"));
    for (number, (key, damage, name)) in [
        (keys::item(&tenant, &wild, id), Damage::Garbage, "memory item"),
        (keys::item(&tenant, &wild, id), Damage::Bit, "memory item"),
        (keys::item(&tenant, &wild, id), Damage::Cut, "memory item"),
        (keys::item(&tenant, &wild, id), Damage::Empty, "memory item"),
        (keys::vector(&tenant, &wild, &model, id), Damage::Bit, "memory vector"),
        (keys::request(&tenant, &wild, &key), Damage::Bit, "request record"),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{name}, {damage:?}");
        let good = read_row(&store, &key).await;
        let token = number as u128 * 2 + 1;
        write(&store, token, key.clone(), damage.inflict(good.clone())).await;
        let before = rows(&store, "wild").await;
        let node = start().await;
        let refused = add(&node.client, "wild", "one more").await;
        let said = format!("500 corrupt: the cube `wild` is in quarantine: … {name} … release it");
        assert_says(&refused.summary(), &said, &what);
        let (condition, reason) = condition(&node.client, "wild").await;
        assert_eq!(condition, "quarantined", "{what}");
        assert!(reason.expect("a reason").contains(name), "{what}");
        assert_eq!(node.client.search("calm", "first").await.len(), 2, "{what}");
        add(&node.client, "calm", &format!("more {number}")).await.expect(201);
        node.client.delete("/v1/cubes/calm/memories?conversation=none").await.expect(200);
        assert!(rows(&store, "wild").await == before, "{what}: something was overwritten");
        write(&store, token + 1, key, good).await;
        let released = node.client.post("/v1/cubes/wild/release", json!({})).await;
        assert_eq!(released.status, 200, "{what}");
        let texts = node.client.texts("wild").await;
        assert_eq!(texts, ["the first of wild", "the second of wild"], "{what}, mended");
        node.client.delete("/v1/cubes/calm/memories?all=true&purge=true").await.expect(200);
        for place in ["first", "second"] {
            add(&node.client, "calm", &format!("the {place} of calm")).await.expect(201);
        }
        node.node.shut_down().await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Garbage,
    Bit,
    Cut,
    Empty,
}

impl Damage {
    fn inflict(self, mut value: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Garbage => b"garbage".to_vec(),
            Self::Bit => {
                let middle = value.len() / 2;
                value[middle] ^= 0x04;
                value
            }
            Self::Cut => {
                value.truncate(value.len() - 3);
                value
            }
            Self::Empty => Vec::new(),
        }
    }
}

/// One cube whose manifest cannot be read must not hide all the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_manifest_does_not_hide_the_other_cubes() {
    let node = TestNode::start().await;
    for cube in ["calm", "wild"] {
        node.client.cube(cube).await;
    }
    let key = keys::manifest(&tenant(), &cube_id("wild"));
    write(node.node.store(), 1, key, b"garbage".to_vec()).await;
    for path in ["/v1/cubes/wild", "/v1/cubes/wild/memories"] {
        let answer = node.client.get(path).await;
        assert!(answer.summary().starts_with("500 corrupt: "), "{path}: {}", answer.text);
    }
    add(&node.client, "calm", "undisturbed").await.expect(201);
    let listed = node.client.get("/v1/cubes").await;
    assert_eq!(listed.status, 200, "the list of cubes: {}", listed.text);
    assert!(listed.text.contains("\"calm\""), "{}", listed.text);
}

/// How often a cube came into RAM.
async fn epoch(store: &SharedStore, cube: &str) -> u64 {
    let row = read_row(store, &keys::ownership(&tenant(), &cube_id(cube))).await;
    codec::decode::<Ownership>(&row).expect("readable").epoch.0
}

/// Cubes that are written all the time, while the settings send them out of RAM: nothing fails, and
/// nothing is lost.
async fn check_passivation(settings: Settings) {
    let node = TestNode::with_settings(settings).await;
    let cubes = ["ann", "bob", "cem", "dea"];
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for cube in cubes {
        node.client.cube(cube).await;
        node.client.fact(cube, "the first").await;
        writers.push(traffic(&node.client, cube, &stop));
    }
    let store = Arc::clone(node.node.store());
    eventually("three of four cubes left RAM and came back", || async {
        let mut came_back = 0;
        for cube in cubes {
            came_back += usize::from(epoch(&store, cube).await > 1);
        }
        came_back >= 3
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    for (cube, writer) in cubes.into_iter().zip(writers) {
        let number = writer.await.expect("no call failed");
        let texts: BTreeSet<String> = node.client.texts(cube).await.into_iter().collect();
        assert_eq!(texts.len(), number + 1, "{cube}");
        assert_eq!(node.client.get(&format!("/v1/cubes/{cube}")).await.body["items"], number + 1);
    }
    drop(store);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_cubes_than_fit_into_ram_are_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = embedded(directory.path());
    settings.cube.hot_cubes_max = 1;
    check_passivation(settings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_cubes_leave_ram_and_come_back_as_they_were() {
    let mut settings = in_memory();
    settings.cube.passivate_after_ms = 1;
    let node = TestNode::with_settings(settings).await;
    let client = &node.client;
    client.cube("c").await;
    for number in 0..20 {
        client.fact("c", &format!("fact {number}")).await;
    }
    let id = client.fact("c", "archived").await;
    let path = format!("/v1/cubes/c/memories/{id}");
    client.patch(&path, json!({"status": "archived", "tags": ["t"]})).await.expect(200);
    let search = json!({"query": "fact 7", "top_k": 1000});
    let found = client.post("/v1/cubes/c/search", search.clone()).await.expect(200);
    let texts = client.texts("c").await;
    assert_eq!(condition(client, "c").await.0, "hot");
    eventually("it left RAM", || async { condition(client, "c").await.0 == "cold" }).await;
    let again = client.post("/v1/cubes/c/search", search).await.expect(200);
    assert_eq!(again, found, "the same list, version included");
    assert_eq!(client.texts("c").await, texts);
    assert_eq!(client.get(&path).await.expect(200)["tags"], json!(["t"]));
    assert!(epoch(node.node.store(), "c").await > 1);
}
