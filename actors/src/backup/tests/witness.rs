//! Backups of cubes while clients write them, held against what the store truly held: the restored
//! cube must be, row by row, the cube as it was right after one of its commits.

use std::fmt::Write;

use super::*;
use crate::storage::versionstamped_key;

/// A store that takes its time, and remembers every commit.
struct Witness {
    inner: InMemoryStore,
    log: Mutex<Vec<(Version, Vec<Mutation>)>>,
    entropy: SeededEntropy,
    /// Milliseconds that a call takes at the most.
    slowest_ms: u64,
}

impl Witness {
    fn new(seed: u64, slowest_ms: u64) -> Self {
        let (inner, log) = (InMemoryStore::default(), Mutex::default());
        Self { inner, log, entropy: SeededEntropy::new(seed), slowest_ms }
    }

    async fn take_time(&self) {
        let draw = self.entropy.next_u64() % (self.slowest_ms * 1_000);
        tokio::time::sleep(Duration::from_micros(draw)).await;
    }

    /// All rows of a cube right after each commit that left it with this manifest.
    fn states(&self, id: &str, manifest: &[u8]) -> Vec<BTreeMap<Vec<u8>, Vec<u8>>> {
        let (tenant, cube) = (tenant_id("acme"), cube_id(id));
        let ranges = keys::everything_of_cube(&tenant, &cube);
        let key = keys::manifest(&tenant, &cube);
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut states = Vec::new();
        for (version, mutations) in self.log.lock().expect("no panic").iter() {
            let mut is_touched = false;
            for (position, mutation) in mutations.iter().enumerate() {
                match mutation {
                    Mutation::Set { key, value } => {
                        is_touched |= ranges.iter().any(|range| range.contains(key));
                        rows.insert(key.clone(), value.clone());
                    }
                    Mutation::Clear { key } => drop(rows.remove(key)),
                    Mutation::ClearRange { range } => rows.retain(|key, _| !range.contains(key)),
                    Mutation::SetVersionstamped { prefix, value } => {
                        rows.insert(versionstamped_key(prefix, *version, position), value.clone());
                    }
                    Mutation::Add { .. } => panic!("no cube counts"),
                }
            }
            if is_touched && rows.get(&key).is_some_and(|value| value == manifest) {
                let inside = |key: &[u8]| ranges.iter().any(|range| range.contains(key));
                let state = rows.iter().filter(|(key, _)| inside(key));
                states.push(state.map(|(key, value)| (key.clone(), value.clone())).collect());
            }
        }
        states
    }
}

impl StateStore for Witness {
    fn read(
        &self,
        ranges: Vec<RangeRead>,
    ) -> BoxFuture<'_, std::result::Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            self.take_time().await;
            let output = self.inner.read(ranges).await;
            self.take_time().await;
            output
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, std::result::Result<Version, StoreError>> {
        Box::pin(async move {
            self.take_time().await;
            let mutations = commit.mutations.clone();
            let version = self.inner.commit(commit).await?;
            self.log.lock().expect("no panic").push((version, mutations));
            self.take_time().await;
            Ok(version)
        })
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, std::result::Result<(), StoreError>> {
        self.inner.changed(key, seen)
    }

    fn outcome(
        &self,
        token: CommitToken,
    ) -> BoxFuture<'_, std::result::Result<Option<Version>, StoreError>> {
        self.inner.outcome(token)
    }
}

/// One client: changes a cube at random until it is told to stop.
struct Writer {
    cube: CubeHandle,
    cubes: Cubes,
    entropy: SeededEntropy,
    number: u64,
    /// Whether it also deletes the cube and makes it anew.
    erases: bool,
    stop: Arc<AtomicBool>,
    known: Vec<MemoryId>,
}

impl Writer {
    fn draw(&self, below: u64) -> u64 {
        self.entropy.next_u64() % below
    }

    fn some_memory(&self) -> Option<MemoryId> {
        let count = self.known.len() as u64;
        if count == 0 { None } else { Some(self.known[usize::try_from(self.draw(count)).ok()?]) }
    }

    async fn run(mut self) {
        let mut step = 0;
        while !self.stop.load(Ordering::Relaxed) {
            step += 1;
            // Any of it may fail: the item is gone, the cube is being written or made anew.
            let _ = self.step(step).await;
            tokio::time::sleep(Duration::from_millis(self.draw(30))).await;
        }
    }

    async fn step(&mut self, step: u64) -> Result<()> {
        match self.draw(100) {
            0..40 => {
                let count = 1 + self.draw(4);
                let texts: Vec<String> =
                    (0..count).map(|n| format!("writer {} says {step}.{n}", self.number)).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let key = format!("{}-{step}", self.number);
                let key = self.draw(2).eq(&0).then_some(key.as_str());
                let added = self.cube.add(said(&texts, key)).await?;
                self.known.extend(added.memories.iter().map(|memory| memory.id));
            }
            40..50 => {
                self.cube.add(said(&["the same words again"], None)).await?;
            }
            50..75 => {
                if let Some(id) = self.some_memory() {
                    let new = format!("writer {} changed it at {step}", self.number);
                    self.cube.update(id, text(new)).await?;
                }
            }
            75..97 => {
                if let Some(id) = self.some_memory() {
                    self.cube.delete(delete(vec![id], self.draw(2) == 0)).await?;
                }
            }
            97 if self.erases => {
                self.cube.erase().await?;
                self.cubes.ensure(&caller("acme"), self.cube.id().clone()).await?;
            }
            _ => {
                let selection = Which::All;
                self.cube.delete(DeleteRequest { selection, purge: self.draw(2) == 0 }).await?;
            }
        }
        Ok(())
    }
}

/// Runs of each kind.
const RUNS: usize = 40;

/// How a run is to be.
#[derive(Clone, Copy)]
struct Kind {
    first_seed: u64,
    writers: u64,
    items: usize,
    erases: bool,
}

async fn run(kind: Kind, seed: u64) -> String {
    let witness = Arc::new(Witness::new(seed, 4));
    let store: SharedStore = Arc::<Witness>::clone(&witness);
    let here = Place::on(store, seed, Some(8)).await;
    let cube = here.cube("acme", "ann").await;
    let texts: Vec<String> = (0..kind.items).map(|n| format!("old sentence {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let added = cube.add(said(&texts, Some("old"))).await.expect("added").memories;
    let known: Vec<MemoryId> = added.iter().map(|memory| memory.id).collect();

    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..kind.writers).map(|number| Writer {
        cube: cube.clone(),
        cubes: here.cubes.clone(),
        entropy: SeededEntropy::new(seed << 8 | number),
        number,
        erases: kind.erases,
        stop: Arc::clone(&stop),
        known: known.clone(),
    });
    let writing = futures_util::future::join_all(writers.map(Writer::run));
    let objects = Objects::new();
    let backing_up = async {
        tokio::time::sleep(Duration::from_millis(seed % 40)).await;
        let manifest = here.back_up(&objects, Selection::default()).await;
        stop.store(true, Ordering::Relaxed);
        manifest
    };
    let (_, manifest) = tokio::join!(writing, backing_up);
    assert_eq!(manifest.left_out, [], "seed {seed}");
    let verified = verify(&mut objects.open().await.expect("there"), &|_| {}).await.expect("read");
    assert!(verified.is_whole(), "seed {seed}: {verified:?}");
    if manifest.cubes == 0 {
        // It was gone for a moment, and that was the moment.
        assert!(kind.erases, "seed {seed}");
        return "gone".to_owned();
    }
    compare(&witness, &objects, seed).await;
    let mut told = String::new();
    let _ = write!(told, "{} rows", manifest.rows);
    told
}

/// Restores the backup elsewhere, and looks for the commit whose state that is.
async fn compare(witness: &Witness, objects: &Objects, seed: u64) {
    let fresh: SharedStore = Arc::new(InMemoryStore::default());
    let environment = Environment::scripted(seed);
    let mut archive = objects.open().await.expect("there");
    let request = RestoreRequest::default();
    let outcome =
        restore(&fresh, &environment, &mut archive, request, &|_| {}).await.expect("tried");
    assert!(outcome.is_whole(), "seed {seed}: {outcome:?}");
    let restored = rows_of(&fresh, "acme", "ann").await;
    let manifest = &restored[&keys::manifest(&tenant_id("acme"), &cube_id("ann"))];
    let states = witness.states("ann", manifest);
    let version = decode::<CubeManifest>(manifest).expect("readable").version;
    assert!(!states.is_empty(), "seed {seed}: there never was such a version {version}");
    if !states.contains(&restored) {
        let state = &states[0];
        let missing = state.keys().filter(|key| !restored.contains_key(*key)).count();
        let extra = restored.keys().filter(|key| !state.contains_key(*key)).count();
        let other = state
            .iter()
            .filter(|(key, value)| restored.get(*key).is_some_and(|held| held != *value));
        let other = other.count();
        panic!(
            "seed {seed}: not the cube at version {version}: {missing} rows missing, {extra} too \
             many, {other} of another version"
        );
    }
}

async fn check(kind: Kind) {
    let mut gone = 0;
    for seed in (kind.first_seed..).take(RUNS) {
        gone += usize::from(run(kind, seed).await == "gone");
    }
    // Which of them find the cube between its deletion and its return is up to the timing of every
    // read; that most of them have something to compare is what makes this a test.
    assert!(gone * 4 <= RUNS, "most backups hold the cube: {gone} of {RUNS} do not");
}

#[tokio::test(start_paused = true)]
async fn a_large_cube_under_writers_is_backed_up_at_one_version() {
    check(Kind { first_seed: 0, writers: 4, items: 120, erases: false }).await;
}

#[tokio::test(start_paused = true)]
async fn a_small_cube_under_writers_is_backed_up_at_one_version() {
    check(Kind { first_seed: 100, writers: 2, items: 10, erases: false }).await;
}

#[tokio::test(start_paused = true)]
async fn a_cube_that_is_made_anew_meanwhile_is_backed_up_at_one_version() {
    check(Kind { first_seed: 200, writers: 4, items: 120, erases: true }).await;
}
