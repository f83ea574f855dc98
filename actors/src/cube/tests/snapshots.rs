//! Cubes that come from snapshots: the same as from their rows, whatever happened before.

use std::collections::BTreeMap;

use memcube_schemas::{ConversationId, cube::CubeManifest};
use tokio::sync::watch;

use super::*;
use crate::{
    BlobParts,
    cluster::View,
    cube::{
        hydrate::Hydrator,
        load::Loaded,
        recall::RecallRequest,
        snapshots::{LeftBehind, MadeSnapshot},
    },
    environment::{Entropy, SeededEntropy},
    error::Result,
    storage::{
        Blobs,
        blobs::{Plain, Swept, tests::Objects},
    },
};

/// A cube gets snapshots from this many items on.
const ITEMS_MIN: usize = 4;
/// Longer than an idle cube stays in RAM.
const LONG: Duration = Duration::from_secs(70);
const WORDS: [&str; 24] = [
    "garden",
    "cello",
    "Lisbon",
    "greyhound",
    "tea",
    "yesterday",
    "kitchen",
    "because",
    "running",
    "Ann",
    "winter",
    "the",
    "blue",
    "sing",
    "market",
    "seven",
    "book",
    "we",
    "river",
    "May",
    "salt",
    "lamp",
    "train",
    "quiet",
];

struct Kept {
    world: World,
    objects: Objects,
    blobs: Blobs,
}

impl Kept {
    async fn new(seed: u64) -> Self {
        Self::over(Arc::new(InMemoryStore::default()), Objects::new(), seed).await
    }

    async fn over(store: SharedStore, objects: Objects, seed: u64) -> Self {
        let environment = Environment::scripted(seed);
        let parts = BlobParts {
            objects: Arc::new(objects.clone()),
            seal: Arc::new(Plain),
            grace_ms: 3_600_000,
            snapshot_items_min: ITEMS_MIN,
        };
        let blobs = Blobs::new(
            Arc::new(objects.clone()),
            Arc::clone(&store),
            environment.clone(),
            Arc::new(Plain),
        );
        let world = World::with_blobs(store, environment, 100, Some(parts)).await;
        Self { world, objects, blobs }
    }

    /// A cube with some items that has left RAM, and left a snapshot behind.
    async fn cold(&self) -> CubeHandle {
        let cube = self.world.cube("ann").await;
        let texts: Vec<String> = (0..8).map(|n| format!("turn {n} about the garden")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        cube.add(said(&texts)).await.expect("added");
        tokio::time::sleep(LONG).await;
        assert!(self.manifest().await.snapshot.is_some(), "it left a snapshot");
        cube
    }

    async fn manifest(&self) -> CubeManifest {
        let id = CubeId::new("ann").expect("valid");
        let read = RangeRead::key(keys::manifest(context().tenant(), &id));
        let output = self.world.store.read(vec![read]).await.expect("read");
        decode(&output.pages[0].entries[0].value).expect("a manifest")
    }

    async fn sweep(&self) -> Swept {
        self.blobs.sweep(context().tenant(), 0).await.expect("swept")
    }

    fn hydrator(&self, with_snapshots: bool) -> Hydrator {
        let World { cubes, store, environment } = &self.world;
        let (_, views) =
            watch::channel(View::alone(NodeId::new("checker").expect("valid"), Incarnation(9)));
        let snapshots = with_snapshots.then(|| SnapshotKeeper::new(self.blobs.clone(), ITEMS_MIN));
        let embedder = cubes.embedder().cloned();
        Hydrator::new(Arc::clone(store), environment.clone(), snapshots, embedder, views)
    }

    /// Hydrates the cube from its rows, and from its snapshot if that can be used.
    async fn both(&self) -> (CubeState, Option<CubeState>) {
        let key = CubeKey {
            tenant: context().tenant().clone(),
            cube: CubeId::new("ann").expect("valid"),
        };
        let rows = self.hydrator(false).hydrate(key.clone()).await.expect("hydrated");
        let manifest = self.manifest().await;
        let bare = CubeState::new(key, rows.claim.clone(), manifest, rows.model.clone());
        match self.hydrator(true).load(bare).await.expect("loaded") {
            Loaded::Whole(state) => (rows, Some(*state)),
            Loaded::Not(_) => (rows, None),
        }
    }
}

fn context_conversation(number: u64) -> ConversationId {
    ConversationId::new(format!("talk {number}")).expect("valid")
}

/// Everything that a cube would answer.
fn compare(rows: &CubeState, snapshot: &CubeState, context: &str) {
    assert_eq!(rows.items, snapshot.items, "{context}");
    assert_eq!(rows.by_text, snapshot.by_text, "{context}");
    assert_eq!(rows.tails, snapshot.tails, "{context}");
    assert_eq!(rows.requests, snapshot.requests, "{context}");
    assert_eq!(rows.requests_to_forget(9_999), snapshot.requests_to_forget(9_999), "{context}");
    assert_eq!(rows.model, snapshot.model, "{context}");
    for id in rows.items.keys() {
        assert_eq!(rows.recall.vector(*id), snapshot.recall.vector(*id), "{context}: {id}");
    }
    let model = ScriptedEmbedder::new(DIMENSIONS);
    let queries = WORDS.chunks(3).map(|words| words.join(" "));
    for query in queries.chain(["What does Bo say about the river in May 2023?".to_owned()]) {
        let embedded = crate::embedder::Embedder::embed(&model, &[&query]).expect("embedded");
        for vector in [None, Some(embedded[0].vector.clone())] {
            let request = SearchRequest { top_k: 50, ..SearchRequest::new(&query) };
            let request = RecallRequest { request, vector };
            let found = rows.recall.search(&request, &rows.items);
            let again = snapshot.recall.search(&request, &snapshot.items);
            let lines = |found: &recall::Found| {
                let line = |hit: &Hit| (hit.item.id, format!("{:.4}", hit.scores.fused));
                found.hits.iter().map(line).collect::<Vec<_>>()
            };
            assert!(lines(&found) == lines(&again), "{context}: {query}");
            assert!((found.confidence - again.confidence).abs() < 1e-4, "{context}: {query}");
        }
    }
}

/// Changes a cube at random.
struct Changes {
    entropy: SeededEntropy,
    known: Vec<MemoryId>,
}

impl Changes {
    fn below(&self, bound: u64) -> u64 {
        self.entropy.next_u64() % bound
    }

    fn text(&self) -> String {
        // Short ones are often the same as one before.
        let words = 1 + self.below(4) * self.below(4);
        let word = |_| WORDS[self.below(WORDS.len() as u64) as usize];
        (0..words).map(word).collect::<Vec<_>>().join(" ")
    }

    fn any(&self) -> Option<MemoryId> {
        let count = self.known.len() as u64;
        (count > 0).then(|| self.known[self.below(count) as usize])
    }

    async fn add(&mut self, cube: &CubeHandle) {
        let texts: Vec<String> = (0..=self.below(5)).map(|_| self.text()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let speaker = ["Ann", "Bo", "user"][self.below(3) as usize];
        let mut request = said(&texts);
        for message in &mut request.messages {
            message.speaker = Some(speaker.to_owned());
        }
        request.conversation = (self.below(4) > 0).then(|| context_conversation(self.below(3)));
        if self.below(3) == 0 {
            let key = format!("k{}", self.below(1 << 40));
            request.request = Some(RequestId::new(key).expect("valid"));
        }
        if self.below(4) == 0 {
            request.facts = vec![format!("Bo likes {}.", self.text())];
        }
        let added = cube.add(request).await.expect("added");
        self.known.extend(added.memories.iter().map(|memory| memory.id));
    }

    async fn update(&self, cube: &CubeHandle) -> Result<()> {
        let Some(id) = self.any() else { return Ok(()) };
        let change = match self.below(4) {
            0 => UpdateRequest { text: Some(self.text()), ..Default::default() },
            1 => UpdateRequest { status: Some(MemoryStatus::Archived), ..Default::default() },
            2 => UpdateRequest { status: Some(MemoryStatus::Activated), ..Default::default() },
            _ => UpdateRequest { tags: Some(vec![self.text()]), ..Default::default() },
        };
        cube.update(id, change).await.map(drop)
    }

    async fn delete(&self, cube: &CubeHandle, purge: bool) -> Result<()> {
        let Some(id) = self.any() else { return Ok(()) };
        let selection = Selection::Ids(vec![id]);
        cube.delete(DeleteRequest { selection, purge }).await.map(drop)
    }

    async fn step(&mut self, cube: &CubeHandle) {
        // Some changes are refused: of items that are gone, or that the lifecycle does not allow.
        match self.below(20) {
            0..=9 => self.add(cube).await,
            10..=14 => drop(self.update(cube).await),
            15..=17 => drop(self.delete(cube, false).await),
            18 if self.below(3) == 0 => drop(self.delete(cube, true).await),
            _ => tokio::time::sleep(LONG).await,
        }
        tokio::time::sleep(Duration::from_millis(self.below(20_000))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cube_from_its_snapshot_is_the_same_as_from_its_rows() {
    let (mut loaded, mut tails) = (0, BTreeMap::<usize, usize>::new());
    for seed in 0..24 {
        let kept = Kept::new(seed).await;
        let cube = kept.world.cube("ann").await;
        let mut changes = Changes { entropy: SeededEntropy::new(seed), known: Vec::new() };
        for step in 0..60 {
            changes.step(&cube).await;
            if step % 6 == 5 {
                let (rows, snapshot) = kept.both().await;
                let has_snapshot = rows.manifest.snapshot.is_some();
                assert_eq!(has_snapshot, snapshot.is_some(), "seed {seed}, step {step}");
                if let Some(snapshot) = snapshot {
                    compare(&rows, &snapshot, &format!("seed {seed}, step {step}"));
                    loaded += 1;
                    *tails.entry(snapshot.tail_items).or_default() += 1;
                }
            }
        }
        let swept = kept.sweep().await;
        let held = usize::from(kept.manifest().await.snapshot.is_some());
        assert_eq!((swept.kept, kept.objects.names().await.len()), (held, held), "seed {seed}");
    }
    assert!(loaded > 100, "only {loaded} snapshots were used");
    let without = tails.get(&0).copied().unwrap_or(0);
    assert!(without > 10 && loaded - without > 50, "few with or without a tail: {tails:?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_a_snapshot_the_rows_are_read_and_it_is_replaced() {
    type Damage = fn(&mut Vec<u8>);
    let table: [(&str, Damage); 4] = [
        ("one bit", |bytes| bytes[1_000] ^= 0x10),
        ("cut", |bytes| bytes.truncate(bytes.len() - 1)),
        ("empty", Vec::clear),
        ("longer", |bytes| bytes.push(0)),
    ];
    for (name, damage) in table {
        let kept = Kept::new(1).await;
        let cube = kept.cold().await;
        let before = kept.manifest().await.snapshot;
        kept.objects.damage(damage).await;
        let (rows, snapshot) = kept.both().await;
        assert!(snapshot.is_none() && rows.items.len() == 8, "{name}");
        assert!(texts_found(&cube, "turn 3").await[0].contains("turn 3"), "{name}");
        cube.add(said(&["one more"])).await.expect("added");
        tokio::time::sleep(LONG).await;
        assert_ne!(kept.manifest().await.snapshot, before, "{name}: it was replaced");
        let (rows, snapshot) = kept.both().await;
        compare(&rows, &snapshot.expect("a good one"), name);
        assert_eq!(kept.sweep().await.kept, 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_another_cube_or_of_a_newer_format_is_not_used() {
    let kept = Kept::new(1).await;
    let cube = kept.cold().await;
    let snapshot = kept.manifest().await.snapshot.expect("there");
    let tenant = context();
    let good = kept.blobs.get(tenant.tenant(), snapshot.blob).await.expect("read").to_vec();
    // The head stands behind its length: magic bytes, kind, format.
    let mut newer = good.clone();
    newer[7] += 1;
    let strange = b"no snapshot at all".to_vec();
    let cut = good[..good.len() / 2].to_vec();
    for bytes in [newer, strange, cut, Vec::new()] {
        let prepared = kept.blobs.begin(tenant.tenant(), bytes).await.expect("put");
        let mut manifest = kept.manifest().await;
        let version = manifest.snapshot.as_ref().map_or(Version(0), |former| former.version);
        manifest.snapshot = Some(memcube_schemas::cube::SnapshotRef { blob: prepared.id, version });
        let mut mutations = prepared.refer(cube.id(), SNAPSHOT, 0).to_vec();
        let key = keys::manifest(tenant.tenant(), cube.id());
        mutations.push(Mutation::Set { key, value: encode(&manifest) });
        let World { store, environment, .. } = &kept.world;
        commit(store, environment, vec![prepared.check()], mutations).await.expect("planted");
        let (rows, loaded) = kept.both().await;
        assert!(loaded.is_none() && rows.items.len() == 8);
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_object_store_is_away_cubes_come_from_rows_and_serve() {
    let kept = Kept::new(1).await;
    let cube = kept.cold().await;
    let before = kept.manifest().await.snapshot;
    kept.objects.fail(Some("connection refused"));
    for round in 0..3 {
        cube.add(said(&[&format!("round {round}")])).await.expect("added");
        tokio::time::sleep(LONG).await;
    }
    assert_eq!(cube.list(None, 100).await.expect("listed").items.len(), 11);
    assert_eq!(kept.manifest().await.snapshot, before, "the former one is still good");
    kept.objects.fail(None);
    tokio::time::sleep(LONG).await;
    cube.add(said(&["the last one"])).await.expect("added");
    tokio::time::sleep(LONG).await;
    assert_ne!(kept.manifest().await.snapshot, before);
    let (rows, snapshot) = kept.both().await;
    compare(&rows, &snapshot.expect("loaded"), "afterwards");
    assert_eq!(rows.items.len(), 12);
}

#[tokio::test(start_paused = true)]
async fn what_is_purged_or_erased_is_gone_from_the_object_store() {
    let kept = Kept::new(1).await;
    let cube = kept.cold().await;
    let secret =
        cube.add(said(&["the secret number is 4711"])).await.expect("added").memories[0].id;
    cube.add(said(&["seven", "more", "turns", "so", "that", "it", "counts"])).await.expect("added");
    tokio::time::sleep(LONG).await;
    let holds_secret = async |kept: &Kept| {
        let found = std::cell::Cell::new(false);
        kept.objects
            .damage(|bytes| found.set(found.get() || bytes.windows(4).any(|part| part == b"4711")))
            .await;
        found.get()
    };
    assert!(holds_secret(&kept).await, "the snapshot holds it");
    let selection = Selection::Ids(vec![secret]);
    cube.delete(DeleteRequest { selection, purge: true }).await.expect("purged");
    kept.sweep().await;
    assert!(!holds_secret(&kept).await);
    tokio::time::sleep(LONG).await;
    assert!(kept.manifest().await.snapshot.is_some(), "there is a new one");
    let (rows, snapshot) = kept.both().await;
    compare(&rows, &snapshot.expect("loaded"), "after the purge");

    cube.erase().await.expect("erased");
    assert_eq!(kept.sweep().await.removed, 1);
    assert_eq!(kept.objects.names().await.len(), 0);
    let rows = read_all_rows(&kept.world).await;
    let is_blob =
        |key: &[u8]| [keys::blobs(context().tenant())].iter().any(|range| range.contains(key));
    assert!(rows.iter().all(|row| !is_blob(&row.key)));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_comes_late_is_refused_once_the_cube_was_claimed() {
    let kept = Kept::new(1).await;
    let cube = kept.cold().await;
    for n in 0..4 {
        cube.add(said(&[&format!("late {n}")])).await.expect("added");
    }
    // Made from a copy of now; by the time it is ready, somebody else has claimed the cube.
    let (state, _) = kept.both().await;
    let before = kept.manifest().await;
    let made = kept.blobs.begin(&state.key.tenant, state.capture().encode()).await.expect("put");
    let World { store, environment, .. } = &kept.world;
    let newer = kept.hydrator(false).hydrate(state.key.clone()).await.expect("claimed");
    let late = MadeSnapshot::new(made, state.manifest.version);
    let left = |claim: &Claim| {
        LeftBehind::new(Arc::clone(store), environment.clone(), state.key.clone(), claim.clone())
    };
    left(&state.claim).commit(late).await;
    assert_eq!(kept.manifest().await.snapshot, before.snapshot, "refused");
    let made = kept.blobs.begin(&state.key.tenant, state.capture().encode()).await.expect("put");
    let id = made.id;
    let timely = MadeSnapshot::new(made, state.manifest.version);
    left(&newer.claim).commit(timely).await;
    assert_eq!(kept.manifest().await.snapshot.map(|snapshot| snapshot.blob), Some(id));
    let (rows, snapshot) = kept.both().await;
    let snapshot = snapshot.expect("loaded");
    assert_eq!(snapshot.tail_items, 0, "the tail was cut");
    compare(&rows, &snapshot, "committed behind");
}

#[tokio::test(start_paused = true)]
async fn another_model_makes_the_snapshot_useless_and_new_vectors_drop_it() {
    let kept = Kept::new(1).await;
    kept.cold().await;
    let store = Arc::clone(&kept.world.store);
    kept.world.cubes.shut_down().await;
    let environment = Environment::scripted(8);
    let model = Arc::new(ScriptedEmbedder::new(DIMENSIONS * 2));
    let embedder = EmbedderHandle::spawn(model, environment.clone()).await.expect("started");
    let (_, views) = watch::channel(View::alone(NodeId::new("b").expect("valid"), Incarnation(9)));
    let keeper = SnapshotKeeper::new(kept.blobs.clone(), ITEMS_MIN);
    let hydrator = Hydrator::new(store, environment, Some(keeper), Some(embedder), views);
    let key =
        CubeKey { tenant: context().tenant().clone(), cube: CubeId::new("ann").expect("valid") };
    let state = hydrator.hydrate(key).await.expect("hydrated");
    let id = *state.items.keys().next().expect("an item");
    assert_eq!(state.recall.vector(id).map(|vector| vector.len()), Some(DIMENSIONS * 2));
    assert!(kept.manifest().await.snapshot.is_none());
    assert_eq!(kept.sweep().await.removed, 1);
}

/// A reader that was told to prepare holds what it read; the owner goes on.
#[tokio::test(start_paused = true)]
async fn what_was_read_ahead_does_not_outlive_another_snapshot() {
    let kept = Kept::new(1).await;
    let cube = kept.world.cube("ann").await;
    let texts: Vec<String> = (0..8).map(|n| format!("turn {n} about the garden")).collect();
    cube.add(said(&texts.iter().map(String::as_str).collect::<Vec<_>>())).await.expect("added");
    let key =
        CubeKey { tenant: context().tenant().clone(), cube: CubeId::new("ann").expect("valid") };
    let reader = kept.hydrator(true);
    let (rows, _) = kept.both().await;
    reader.prepare(key.clone()).await.expect("read ahead");
    let made = kept.blobs.begin(&key.tenant, rows.capture().encode()).await.expect("put");
    let snapshot = MadeSnapshot::new(made, rows.manifest.version);
    let World { store, environment, .. } = &kept.world;
    let left = |claim: &Claim| {
        LeftBehind::new(Arc::clone(store), environment.clone(), key.clone(), claim.clone())
    };
    left(&rows.claim).commit(snapshot).await;
    assert!(kept.manifest().await.snapshot.is_some(), "committed");
    // Without the snapshot it would write no tail, and whoever reads the snapshot would miss that.
    let state = reader.hydrate(key.clone()).await.expect("hydrated");
    assert!(state.has_snapshot, "it knows of the snapshot");
    let (rows, snapshot) = kept.both().await;
    compare(&rows, &snapshot.expect("loaded"), "read ahead");
}
