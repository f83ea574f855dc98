//! The object store that all nodes share: slow, out of order, and half written.
//!
//! The methods of `object_store::ObjectStore` are written as `async-trait` writes them, which saves
//! the dependency.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart, memory::InMemory, path::Path,
};

use crate::{
    clock::sleep_ms,
    conditions::{Conditions, Occasion, Place, Touches},
    dice::{self, Dice},
    evidence::ObjectEvent,
    plan::FaultClass,
    trace::Trace,
};

/// How long a call takes.
const USUAL_MS: (u64, u64) = (2, 10);
/// How long a slow call takes.
const SLOW_MS: (u64, u64) = (100, 3_000);
/// How long a fresh object is not found, at the most.
const NOT_YET_MS_MAX: u64 = 2_000;
/// The store's name in its errors.
const NAME: &str = "simulated";

/// The bucket of the simulated world. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub(crate) struct SimBlobs(Arc<Shared>);

struct Shared {
    conditions: Conditions,
    disk: InMemory,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often each node touched each object.
    touches: BTreeMap<u32, Touches>,
    /// From when on an object is found.
    found_from: BTreeMap<Path, u64>,
    /// What became of objects, in order.
    events: Vec<ObjectEvent>,
}

impl SimBlobs {
    /// An empty bucket.
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self(Arc::new(Shared { conditions, disk: InMemory::new(), state: Mutex::default() }))
    }

    /// The bucket as one life of a node sees it.
    pub(crate) fn handle(&self, node: u32, life: u64) -> FaultyObjectStore {
        FaultyObjectStore { blobs: self.clone(), node, life }
    }

    /// All objects as they lie there, by their places.
    pub(crate) async fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let mut contents = BTreeMap::new();
        let mut listed = self.0.disk.list(None);
        while let Some(Ok(object)) = listed.next().await {
            let Ok(read) = self.0.disk.get(&object.location).await else { continue };
            if let Ok(bytes) = read.bytes().await {
                contents.insert(object.location.to_string(), bytes.to_vec());
            }
        }
        contents
    }

    /// What has happened to objects so far.
    pub(crate) fn events(&self) -> Vec<ObjectEvent> {
        self.state().events.clone()
    }

    fn note(&self, path: &Path, bytes: Option<usize>) {
        let at_ms = self.0.conditions.now_ms();
        let bytes = bytes.map(|bytes| bytes as u64);
        self.state().events.push(ObjectEvent { at_ms, path: path.to_string(), bytes });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("invariant: nothing panics while it holds the objects")
    }
}

/// An object store behind faults, as one life of a node sees it.
#[derive(Clone)]
pub struct FaultyObjectStore {
    blobs: SimBlobs,
    node: u32,
    life: u64,
}

impl fmt::Debug for FaultyObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for FaultyObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyObjectStore(node-{})", self.node)
    }
}

impl FaultyObjectStore {
    /// An empty store of its own, for tests without a world. Faults strike so many times in a
    /// thousand calls; their times are those of the tokio runtime around, which may be paused.
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    #[must_use]
    pub fn new(seed: u64, faults: BTreeMap<FaultClass, u32>) -> Self {
        let conditions = Conditions::new(Dice::new(seed), Trace::new(false), faults);
        let life = conditions.boot(0);
        SimBlobs::new(conditions).handle(0, life)
    }

    /// From now on nothing goes wrong any more.
    pub fn heal(&self) {
        self.conditions().heal();
    }

    fn conditions(&self) -> &Conditions {
        &self.blobs.0.conditions
    }

    fn disk(&self) -> &InMemory {
        &self.blobs.0.disk
    }

    /// The way to the store, which may take long or lead nowhere. Never ends for a life that is
    /// over.
    async fn reach(&self, what: &str, path: &str) -> Result<Occasion> {
        let (node, life) = (self.node, self.life);
        let conditions = self.conditions();
        conditions.running(node, life).await;
        let key = dice::hash(path.as_bytes()) ^ dice::hash(what.as_bytes());
        let id = self.blobs.state().touches.entry(node).or_default().next(key);
        let occasion = conditions.occasion(Place::Blobs { node }, id);
        let is_slow = conditions.strikes(FaultClass::BlobSlow, occasion);
        let (low, high) = if is_slow { SLOW_MS } else { USUAL_MS };
        sleep_ms(occasion.between("way", low, high)).await;
        conditions.running(node, life).await;
        if conditions.strikes(FaultClass::BlobFail, occasion) {
            return Err(failure("the object store is not reachable"));
        }
        Ok(occasion)
    }

    async fn put_one(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let occasion = self.reach("put", location.as_ref()).await?;
        let conditions = self.conditions();
        if conditions.strikes(FaultClass::BlobTorn, occasion) {
            let half = payload.content_length() / 2;
            let bytes = payload.iter().flat_map(|part| part.iter().copied());
            self.disk().put_opts(location, bytes.take(half).collect(), options).await?;
            self.blobs.note(location, Some(half));
            return Err(failure("the connection broke while the object was written"));
        }
        let is_new = self.disk().head(location).await.is_err();
        let bytes = payload.content_length();
        let result = self.disk().put_opts(location, payload, options).await;
        if result.is_ok() {
            self.blobs.note(location, Some(bytes));
        }
        // An object that is overwritten was found before, and stays so.
        if result.is_ok() && is_new && conditions.strikes(FaultClass::BlobNotYet, occasion) {
            let from_ms = conditions.now_ms() + occasion.between("not yet", 0, NOT_YET_MS_MAX);
            self.blobs.state().found_from.insert(location.clone(), from_ms);
        }
        conditions.running(self.node, self.life).await;
        result
    }

    async fn get_one(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let occasion = self.reach("get", location.as_ref()).await?;
        let found_from = self.blobs.state().found_from.get(location).copied().unwrap_or(0);
        let conditions = self.conditions();
        if found_from > conditions.now_ms() && !conditions.is_healed() {
            let source = "it was written a moment ago".into();
            return Err(Error::NotFound { path: location.to_string(), source });
        }
        let read = self.disk().get_opts(location, options).await?;
        if conditions.strikes(FaultClass::BlobRot, occasion) {
            return rotten(read, occasion).await;
        }
        Ok(read)
    }

    async fn delete_one(&self, location: Result<Path>) -> Result<Path> {
        let location = location?;
        self.reach("delete", location.as_ref()).await?;
        self.disk().delete(&location).await?;
        self.blobs.note(&location, None);
        Ok(location)
    }

    async fn copy_one(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.reach("copy", to.as_ref()).await?;
        self.disk().copy_opts(from, to, options).await
    }

    async fn list_level(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.reach("list", prefix.map_or("", Path::as_ref)).await?;
        self.disk().list_with_delimiter(prefix).await
    }
}

/// The same with one bit changed; what lies in the bucket stays as it is.
async fn rotten(read: GetResult, occasion: Occasion) -> Result<GetResult> {
    let (meta, range, attributes) =
        (read.meta.clone(), read.range.clone(), read.attributes.clone());
    let extensions = read.extensions.clone();
    let mut bytes = read.bytes().await?.to_vec();
    if let Some(last) = bytes.len().checked_sub(1) {
        let at = usize::try_from(occasion.between("rot", 0, last as u64)).unwrap_or(0);
        bytes[at] ^= 1;
    }
    let payload = stream::once(std::future::ready(Ok(bytes.into()))).boxed();
    let payload = GetResultPayload::Stream(payload);
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

fn failure(reason: &'static str) -> Error {
    Error::Generic { store: NAME, source: reason.into() }
}

impl ObjectStore for FaultyObjectStore {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.put_one(location, payload, options).boxed()
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        let (store, location) = (self.clone(), location.clone());
        let PutMultipartOptions { tags, attributes, extensions } = options;
        let options = PutOptions { tags, attributes, extensions, ..PutOptions::default() };
        let upload = BufferedUpload { store, location, options, parts: Vec::new() };
        async move { Ok(Box::new(upload) as Box<dyn MultipartUpload>) }.boxed()
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.get_one(location, options).boxed()
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |location| {
            let store = store.clone();
            async move { store.delete_one(location).await }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let objects = async move {
            match store.reach("list", prefix.as_ref().map_or("", Path::as_ref)).await {
                Ok(_) => store.disk().list(prefix.as_ref()),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        objects.flatten_stream().boxed()
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.list_level(prefix).boxed()
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.copy_one(from, to, options).boxed()
    }
}

/// Parts that are put as one object at the end, so that the faults of a put strike them too.
#[derive(Debug)]
struct BufferedUpload {
    store: FaultyObjectStore,
    location: Path,
    options: PutOptions,
    parts: Vec<PutPayload>,
}

impl MultipartUpload for BufferedUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.parts.push(part);
        std::future::ready(Ok(())).boxed()
    }

    fn complete<'a, 'c>(&'a mut self) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        Self: 'c,
    {
        let parts = std::mem::take(&mut self.parts);
        let whole = parts.into_iter().flatten().collect();
        let options = self.options.clone();
        async move { self.store.put_one(&self.location, whole, options).await }.boxed()
    }

    fn abort<'a, 'c>(&'a mut self) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        Self: 'c,
    {
        self.parts.clear();
        std::future::ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::{conditions::tests::with_faults, plan::Fault};

    struct World {
        conditions: Conditions,
        blobs: SimBlobs,
        store: Arc<dyn ObjectStore>,
        path: Path,
    }

    impl World {
        fn new(classes: &[FaultClass]) -> Self {
            let conditions = with_faults(classes);
            let blobs = SimBlobs::new(conditions.clone());
            let store = Arc::new(blobs.handle(0, conditions.boot(0)));
            Self { conditions, blobs, store, path: Path::from("a/b") }
        }

        async fn put(&self) -> Result<PutResult> {
            self.store.put(&self.path, PutPayload::from_static(b"0123456789")).await
        }

        async fn get(&self) -> Result<Vec<u8>> {
            Ok(self.store.get(&self.path).await?.bytes().await?.to_vec())
        }

        /// What is really there.
        async fn bytes(&self) -> Option<Vec<u8>> {
            let object = self.blobs.0.disk.get(&self.path).await.ok()?;
            Some(object.bytes().await.expect("in memory").to_vec())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_faults_it_is_an_object_store_like_any_other() {
        let world = World::new(&[]);
        let (store, path) = (&world.store, &world.path);
        world.put().await.expect("put");
        assert_eq!(world.get().await.expect("get"), b"0123456789");
        assert_eq!(store.head(path).await.expect("head").size, 10);
        assert_eq!(store.get_range(path, 2..4).await.expect("range").as_ref(), b"23");
        let copy = Path::from("a/c");
        store.copy(path, &copy).await.expect("copied");
        let listed: Vec<_> = store.list(None).try_collect().await.expect("listed");
        assert_eq!(listed.len(), 2);
        let level = store.list_with_delimiter(None).await.expect("listed");
        assert_eq!(level.common_prefixes, [Path::from("a")]);
        store.delete(path).await.expect("deleted");
        assert!(matches!(world.get().await, Err(Error::NotFound { .. })));

        let mut upload = store.put_multipart(path).await.expect("started");
        upload.put_part(PutPayload::from_static(b"01")).await.expect("a part");
        upload.put_part(PutPayload::from_static(b"23")).await.expect("a part");
        assert_eq!(world.bytes().await, None);
        upload.complete().await.expect("complete");
        assert_eq!(world.get().await.expect("get"), b"0123");
        assert!(world.conditions.faults().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_store_takes_long_until_the_heal() {
        let world = World::new(&[FaultClass::BlobSlow]);
        for (low, high) in [SLOW_MS, USUAL_MS] {
            let start = world.conditions.now_ms();
            world.put().await.expect("put");
            let put_ms = world.conditions.now_ms() - start;
            assert!((low..=high).contains(&put_ms), "{put_ms}");
            world.get().await.expect("get");
            let get_ms = world.conditions.now_ms() - start - put_ms;
            assert!((low..=high).contains(&get_ms), "{get_ms}");
            world.conditions.heal();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_store_refuses_everything_until_the_heal() {
        let world = World::new(&[FaultClass::BlobFail]);
        let (store, path) = (&world.store, &world.path);
        assert!(world.put().await.is_err());
        assert_eq!(world.bytes().await, None);
        assert!(matches!(world.get().await, Err(Error::Generic { .. })));
        assert!(store.delete(path).await.is_err());
        assert!(store.copy(path, &Path::from("c")).await.is_err());
        assert!(store.list_with_delimiter(None).await.is_err());
        assert!(store.list(None).try_collect::<Vec<_>>().await.is_err());
        world.conditions.heal();
        world.put().await.expect("put");
        assert_eq!(world.get().await.expect("get"), b"0123456789");
    }

    #[tokio::test(start_paused = true)]
    async fn a_torn_put_leaves_half_of_the_object_until_the_heal() {
        let world = World::new(&[FaultClass::BlobTorn]);
        assert!(world.put().await.is_err());
        assert_eq!(world.get().await.expect("get"), b"01234");
        let mut upload = world.store.put_multipart(&world.path).await.expect("started");
        upload.put_part(PutPayload::from_static(b"01")).await.expect("a part");
        assert!(upload.complete().await.is_err());
        assert_eq!(world.get().await.expect("get"), b"0");
        world.conditions.heal();
        world.put().await.expect("put");
        assert_eq!(world.get().await.expect("get"), b"0123456789");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fresh_object_is_not_found_for_a_while_or_until_the_heal() {
        let world = World::new(&[FaultClass::BlobNotYet]);
        world.put().await.expect("put");
        assert!(matches!(world.get().await, Err(Error::NotFound { .. })));
        assert!(matches!(world.store.head(&world.path).await, Err(Error::NotFound { .. })));
        assert!(world.bytes().await.is_some());
        sleep_ms(NOT_YET_MS_MAX).await;
        world.get().await.expect("found");
        world.put().await.expect("overwritten");
        world.get().await.expect("found again at once");

        let world = World::new(&[FaultClass::BlobNotYet]);
        world.put().await.expect("put");
        world.conditions.heal();
        world.get().await.expect("found");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_without_a_world_has_faults_of_its_own() {
        let store = FaultyObjectStore::new(7, BTreeMap::from([(FaultClass::BlobFail, 1_000)]));
        let path = Path::from("a");
        assert!(store.put(&path, PutPayload::from_static(b"1")).await.is_err());
        store.heal();
        store.put(&path, PutPayload::from_static(b"1")).await.expect("put");
    }

    #[tokio::test(start_paused = true)]
    async fn a_life_that_is_over_writes_nothing_and_a_paused_one_later() {
        let world = World::new(&[]);
        world.conditions.begin(&Fault::Pause { node: 0 });
        let mut put = Box::pin(world.put());
        assert!(put.as_mut().now_or_never().is_none());
        sleep_ms(100).await;
        assert!(put.as_mut().now_or_never().is_none());
        assert_eq!(world.bytes().await, None);
        world.conditions.end(&Fault::Pause { node: 0 });
        put.await.expect("put");

        let on_its_way = PutPayload::from_static(b"on its way");
        let mut on_its_way = Box::pin(world.store.put(&world.path, on_its_way));
        assert!(on_its_way.as_mut().now_or_never().is_none());
        world.conditions.begin(&Fault::Crash { node: 0 });
        let late = world.store.put(&world.path, PutPayload::from_static(b"late"));
        assert!(late.now_or_never().is_none());
        sleep_ms(100).await;
        assert!(on_its_way.now_or_never().is_none());
        assert_eq!(world.bytes().await.expect("there"), b"0123456789");
    }
}
