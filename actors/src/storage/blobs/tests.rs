//! Blobs whose stores stop at every step: what is referred to is there, and the rest goes.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt, future::BoxFuture, stream::BoxStream};
use memcube_schemas::{
    codec::decode,
    cube::{CubeManifest, SnapshotRef},
};
use object_store::{
    CopyOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutResult, memory::InMemory,
};

use super::*;
use crate::{
    cube::SNAPSHOT,
    storage::{Commit, CommitToken, InMemoryStore, RangeRead, ReadOutput, StateStore, StoreError},
};

/// Counts steps of both stores; at one of them the power goes, before or after it took effect.
#[derive(Debug, Default)]
struct Power {
    steps: AtomicUsize,
    off_at: Option<usize>,
}

impl Power {
    fn until(off_at: usize) -> Arc<Self> {
        Arc::new(Self { steps: AtomicUsize::new(0), off_at: Some(off_at) })
    }

    /// One moment at which the power may go: whoever waits here then waits for ever.
    async fn moment(&self) {
        let step = self.steps.fetch_add(1, Ordering::Relaxed);
        if self.off_at.is_some_and(|off_at| step >= off_at) {
            std::future::pending::<()>().await;
        }
    }
}

/// An object store that the power of the test goes through.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    disk: Arc<InMemory>,
    power: Arc<Power>,
    /// What every call fails with, if anything.
    failing: Arc<Mutex<Option<&'static str>>>,
    /// Milliseconds that every call takes.
    delay_ms: Arc<AtomicUsize>,
}

impl Objects {
    pub(crate) fn new() -> Self {
        let (disk, power, failing) = Default::default();
        Self { disk, power, failing, delay_ms: Arc::default() }
    }

    fn with(&self, power: &Arc<Power>) -> Self {
        Self { power: Arc::clone(power), ..self.clone() }
    }

    /// From now on every call fails with these words, or none does.
    pub(crate) fn fail(&self, with: Option<&'static str>) {
        *self.failing.lock().expect("no panic") = with;
    }

    /// From now on every call takes so many milliseconds.
    pub(crate) fn delay(&self, milliseconds: usize) {
        self.delay_ms.store(milliseconds, Ordering::Relaxed);
    }

    pub(crate) async fn names(&self) -> Vec<String> {
        let listed: Vec<ObjectMeta> = self.disk.list(None).try_collect().await.expect("listed");
        listed.iter().filter_map(|object| Some(object.location.filename()?.to_owned())).collect()
    }

    /// Changes the bytes of every object.
    pub(crate) async fn damage(&self, with: impl Fn(&mut Vec<u8>)) {
        let listed: Vec<ObjectMeta> = self.disk.list(None).try_collect().await.expect("listed");
        for object in listed {
            let read = self.disk.get(&object.location).await.expect("there");
            let mut bytes = read.bytes().await.expect("read").to_vec();
            with(&mut bytes);
            self.disk.put(&object.location, bytes.into()).await.expect("written");
        }
    }

    async fn step<T>(
        &self,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        self.power.moment().await;
        let delay_ms = self.delay_ms.load(Ordering::Relaxed) as u64;
        if delay_ms > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(delay_ms)).await;
        }
        let failing = *self.failing.lock().expect("no panic");
        if let Some(words) = failing {
            return Err(object_store::Error::Generic { store: "test", source: words.into() });
        }
        let done = work.await;
        self.power.moment().await;
        done
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

impl ObjectStore for Objects {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'c, object_store::Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.step(self.disk.put_opts(location, payload, options)).boxed()
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'c, object_store::Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.step(self.disk.put_multipart_opts(location, options)).boxed()
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, object_store::Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.step(self.disk.get_opts(location, options)).boxed()
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let store = self.clone();
        let delete = move |location: object_store::Result<Path>| {
            let store = store.clone();
            async move {
                let location = location?;
                store.step(store.disk.delete(&location)).await?;
                Ok(location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let found = store.step(async { Ok(store.disk.list(prefix.as_ref())) }).await;
            match found {
                Ok(found) => found,
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        listed.flatten_stream().boxed()
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, object_store::Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.step(self.disk.list_with_delimiter(prefix)).boxed()
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, object_store::Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.step(self.disk.copy_opts(from, to, options)).boxed()
    }
}

/// A state store that the power of the test goes through.
struct Rows {
    inner: InMemoryStore,
    power: Arc<Power>,
}

impl StateStore for Rows {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            self.power.moment().await;
            self.inner.read(ranges).await
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            self.power.moment().await;
            let done = self.inner.commit(commit).await;
            self.power.moment().await;
            done
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

/// One tenant with one cube, over stores that outlive the power.
struct World {
    objects: Objects,
    rows: InMemoryStore,
    environment: Environment,
    tenant: TenantId,
    cube: CubeId,
}

impl World {
    fn new() -> Self {
        Self {
            objects: Objects::new(),
            rows: InMemoryStore::default(),
            environment: Environment::scripted(11),
            tenant: TenantId::new("acme").expect("valid"),
            cube: CubeId::new("ann").expect("valid"),
        }
    }

    fn blobs(&self, power: &Arc<Power>) -> Blobs {
        let objects = Arc::new(self.objects.with(power));
        let rows = Arc::new(Rows { inner: self.rows.clone(), power: Arc::clone(power) });
        Blobs::new(objects, rows, self.environment.clone(), Arc::new(Plain))
    }

    /// As a node without faults sees it.
    fn lasting(&self) -> Blobs {
        self.blobs(&Arc::default())
    }

    async fn manifest(&self) -> CubeManifest {
        let read = RangeRead::key(keys::manifest(&self.tenant, &self.cube));
        let output = self.rows.read(vec![read]).await.expect("read");
        match output.pages[0].entries.first() {
            Some(entry) => decode(&entry.value).expect("a manifest"),
            None => CubeManifest {
                id: self.cube.clone(),
                name: "Ann".to_owned(),
                owner: None,
                created_at_ms: 0,
                updated_at_ms: 0,
                version: Version(1),
                items: 0,
                embedder: None,
                snapshot: None,
            },
        }
    }

    /// Puts bytes, and makes them the cube's snapshot in place of the former one.
    async fn replace(&self, blobs: &Blobs, bytes: &[u8]) -> BlobResult<BlobId> {
        let prepared = blobs.begin(&self.tenant, bytes.to_vec()).await?;
        self.refer(blobs, &prepared).await.map(|()| prepared.id)
    }

    async fn refer(&self, blobs: &Blobs, prepared: &PreparedBlob) -> BlobResult<()> {
        let mut manifest = self.manifest().await;
        let snapshot = SnapshotRef { blob: prepared.id, version: manifest.version };
        let former = manifest.snapshot.replace(snapshot);
        let now_ms = self.environment.unix_ms();
        let mut mutations = prepared.refer(&self.cube, SNAPSHOT, now_ms).to_vec();
        let key = keys::manifest(&self.tenant, &self.cube);
        mutations.push(Mutation::Set { key, value: encode(&manifest) });
        mutations
            .extend(former.map(|former| release(&self.tenant, former.blob, &self.cube, SNAPSHOT)));
        commit(&blobs.store, &self.environment, vec![prepared.check()], mutations).await?;
        Ok(())
    }

    /// What the manifest refers to is there, whole; and a sweep leaves nothing else.
    async fn check(&self, expected: &[&[u8]], context: &str) {
        let blobs = self.lasting();
        let snapshot = self.manifest().await.snapshot;
        if let Some(snapshot) = &snapshot {
            let bytes = blobs.get(&self.tenant, snapshot.blob).await;
            let bytes = bytes.unwrap_or_else(|error| panic!("{context}: dangling, {error}"));
            assert!(expected.contains(&bytes.as_ref()), "{context}");
        }
        blobs.sweep(&self.tenant, 0).await.expect("swept");
        let kept: Vec<String> = snapshot.iter().map(|held| held.blob.to_string()).collect();
        assert_eq!(self.objects.names().await, kept, "{context}");
        let range = keys::KeyRange { start: vec![0], end: vec![0xff] };
        let rows = self.rows.read(vec![RangeRead::all(range)]).await.expect("read");
        let rows = rows.pages[0].entries.len();
        // The manifest, the blob and the reference.
        assert_eq!(rows, if snapshot.is_some() { 3 } else { 0 }, "{context}");
    }
}

/// Runs something until the power goes.
fn until_dark<T>(work: impl Future<Output = T>) -> Option<T> {
    // Nothing in it waits for anything but the power.
    work.now_or_never()
}

#[tokio::test]
async fn what_was_put_comes_back_and_damage_is_seen() {
    let world = World::new();
    let blobs = world.lasting();
    let large: Vec<u8> = (0..2 * BLOB_PART_BYTES + 5).map(|n| (n % 251) as u8).collect();
    for bytes in [Vec::new(), b"memory".to_vec(), large] {
        let id = world.replace(&blobs, &bytes).await.expect("put");
        assert_eq!(blobs.get(&world.tenant, id).await.expect("read"), bytes);
        for place in [0, bytes.len() / 2, bytes.len() + SALT_BYTES - 1] {
            let flip = move |bytes: &mut Vec<u8>| {
                bytes.get_mut(place).into_iter().for_each(|byte| *byte ^= 1);
            };
            world.objects.damage(flip).await;
            let error = blobs.get(&world.tenant, id).await.expect_err("one bit was flipped");
            assert!(matches!(error, BlobError::Damaged { .. }), "{error}");
            world.objects.damage(flip).await;
        }
        world.objects.damage(|bytes| bytes.truncate(bytes.len() - 1)).await;
        let error = blobs.get(&world.tenant, id).await.expect_err("it is cut");
        assert!(matches!(error, BlobError::Damaged { .. }), "{error}");
        blobs.sweep(&world.tenant, 0).await.expect("swept");
    }
    let missing = blobs.get(&world.tenant, BlobId([1; 32])).await;
    assert_eq!(missing, Err(BlobError::Missing));
    world.objects.fail(Some("connection refused"));
    let error = blobs.get(&world.tenant, BlobId([1; 32])).await.expect_err("unreachable");
    assert!(matches!(error, BlobError::Unreachable { .. }), "{error}");
    assert!(probe(&world.objects, "x").await.is_err());
    world.objects.fail(None);
    probe(&world.objects, "x").await.expect("it works again");
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_no_dangling_reference_and_no_orphan() {
    const FIRST: &[u8] = b"first";
    const SECOND: &[u8] = b"second";
    let mut finished = false;
    for step in 0.. {
        let world = World::new();
        let blobs = world.blobs(&Power::until(step));
        let done = until_dark(async {
            world.replace(&blobs, FIRST).await?;
            world.replace(&blobs, SECOND).await?;
            blobs.sweep(&world.tenant, 0).await
        });
        world.check(&[FIRST, SECOND], &format!("dark at step {step}")).await;
        if let Some(swept) = done {
            assert_eq!(swept.expect("swept").removed, 1);
            assert!(step > 20, "only {step} steps");
            finished = true;
            break;
        }
    }
    assert!(finished);
}

#[tokio::test]
async fn a_sweep_between_put_and_commit_is_noticed_by_the_commit() {
    const KEPT: &[u8] = b"kept";
    for step in 0..12 {
        let world = World::new();
        let blobs = world.lasting();
        world.replace(&blobs, KEPT).await.expect("put");
        let prepared = blobs.begin(&world.tenant, b"new".to_vec()).await.expect("put");
        // A sweep that knows no grace, on another node whose power goes.
        let other = world.blobs(&Power::until(step));
        let swept = until_dark(other.sweep(&world.tenant, 0));
        let referred = world.refer(&blobs, &prepared).await;
        match referred {
            Ok(()) => assert!(swept.is_none(), "step {step}"),
            Err(BlobError::Store(StoreError::Conflict { key })) => {
                assert_eq!(key, prepared.row_key(), "step {step}");
            }
            Err(error) => panic!("step {step}: {error}"),
        }
        world.check(&[KEPT, b"new"], &format!("step {step}")).await;
    }
}

#[tokio::test]
async fn whoever_is_held_up_removes_only_what_it_doomed() {
    let world = World::new();
    let blobs = world.lasting();
    blobs.begin(&world.tenant, b"same".to_vec()).await.expect("put");
    for step in 0..8 {
        // It stops somewhere between seeing the blob and clearing its row, and its last request to
        // the object store is still on its way.
        until_dark(world.blobs(&Power::until(step)).sweep(&world.tenant, 0));
        let late = world.objects.names().await;
        let id = world.replace(&blobs, b"same").await.expect("put again");
        for name in late.iter().filter_map(|name| name.parse().ok()).filter(|late| *late != id) {
            let _ = world.objects.disk.delete(&path(&world.tenant, name)).await;
        }
        assert!(!late.contains(&id.to_string()), "no two puts share an object");
        assert_eq!(blobs.get(&world.tenant, id).await.expect("read"), b"same".as_slice());
    }
}

#[tokio::test(start_paused = true)]
async fn the_grace_spares_the_young_and_a_clock_that_is_wrong_keeps_nothing_for_ever() {
    let world = World::new();
    let blobs = world.lasting();
    blobs.begin(&world.tenant, b"young".to_vec()).await.expect("put");
    let swept = blobs.sweep(&world.tenant, 10_000).await.expect("swept");
    assert_eq!(swept, Swept { spared: 1, ..Swept::default() });
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    let swept = blobs.sweep(&world.tenant, 10_000).await.expect("swept");
    assert_eq!(swept, Swept { removed: 1, ..Swept::default() });

    // Announced by a node whose clock is a year ahead.
    let id = BlobId([9; 32]);
    let at_ms = world.environment.unix_ms() + 31_536_000_000;
    let record = BlobRecord { state: BlobState::Pending, bytes: 1, at_ms };
    let key = keys::blob(&world.tenant, id);
    let set = vec![Mutation::Set { key, value: encode(&record) }];
    commit(&blobs.store, &world.environment, Vec::new(), set).await.expect("announced");
    let object = path(&world.tenant, id);
    world.objects.disk.put(&object, "x".into()).await.expect("put");
    assert_eq!(blobs.sweep(&world.tenant, 10_000).await.expect("swept").removed, 1);
    // And one that has no row at all.
    world.objects.disk.put(&object, "x".into()).await.expect("put");
    assert_eq!(blobs.sweep(&world.tenant, 10_000).await.expect("swept").strays, 1);
    world.check(&[], "nothing is left").await;
}

#[tokio::test]
async fn tenants_with_objects_are_listed_whatever_their_names() {
    let world = World::new();
    let blobs = world.lasting();
    let names = ["-x_y.z", ".", "..", "Acme", "acme"];
    for name in names {
        let tenant = TenantId::new(name).expect("valid");
        blobs.begin(&tenant, b"x".to_vec()).await.expect("put");
    }
    let mut found = blobs.tenants().await.expect("listed");
    found.sort();
    assert_eq!(found.iter().map(TenantId::as_str).collect::<Vec<_>>(), names);
    for tenant in &found {
        assert_eq!(blobs.sweep(tenant, 0).await.expect("swept").removed, 1, "{tenant}");
    }
}

#[tokio::test]
async fn a_reference_of_a_cube_that_is_gone_is_dropped() {
    let world = World::new();
    let blobs = world.lasting();
    world.replace(&blobs, b"secret").await.expect("put");
    assert_eq!(blobs.sweep(&world.tenant, 0).await.expect("swept").kept, 1);
    let key = keys::manifest(&world.tenant, &world.cube);
    let clear = vec![Mutation::Clear { key }];
    commit(&blobs.store, &world.environment, Vec::new(), clear).await.expect("erased");
    let swept = blobs.sweep(&world.tenant, 0).await.expect("swept");
    assert_eq!((swept.references, swept.removed), (1, 1));
    world.check(&[], "nothing is left").await;
}

#[test]
fn parts_cover_everything_once() {
    let part = BLOB_PART_BYTES as u64;
    for (size, parts) in [(0, 0), (1, 1), (part, 1), (part + 1, 2), (3 * part, 3)] {
        let ranges: Vec<Range<u64>> = parts_of(0, size).collect();
        assert_eq!(ranges.len(), parts, "{size}");
        assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), size);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
    }
}

/// Adds a number to every byte.
struct Shift(u8);

impl Seal for Shift {
    fn seal(&self, _: &TenantId, bytes: Vec<u8>) -> BlobResult<Vec<u8>> {
        Ok(bytes.into_iter().map(|byte| byte.wrapping_add(self.0)).collect())
    }

    fn open(&self, _: &TenantId, sealed: Bytes) -> BlobResult<Bytes> {
        Ok(sealed.iter().map(|byte| byte.wrapping_sub(self.0)).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_the_object_store_is_sealed() {
    const FIRST: &[u8] = b"Ann adopted a greyhound";
    let world = World::new();
    let sealed = |seal| {
        let (objects, rows) = (Arc::new(world.objects.clone()), Arc::new(world.rows.clone()));
        Blobs::new(objects, rows, world.environment.clone(), Arc::new(Shift(seal)))
    };
    let id = world.replace(&sealed(7), FIRST).await.expect("put");
    let holds = |bytes: &[u8]| bytes.windows(FIRST.len()).any(|window| window == FIRST);
    let stored = world.objects.get(&path(&world.tenant, id)).await.expect("there");
    assert!(!holds(&stored.bytes().await.expect("read")), "it lies there as it was");
    assert_eq!(sealed(7).get(&world.tenant, id).await.expect("opened"), FIRST);
    assert_ne!(sealed(8).get(&world.tenant, id).await.expect("of no sense"), FIRST);
}
