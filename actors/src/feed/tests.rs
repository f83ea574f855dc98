//! The feed from its cubes to its readers, on paused time: order, no gap, no repeat, whatever
//! breaks in between.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use memcube_schemas::{
    CubeId, NodeId, TenantId, Version,
    command::Selection,
    feed::{FeedChange, FeedRecord},
    keys,
    limits::{FEED_STREAM_BATCHES_MAX, FEED_STREAMS_PER_TENANT_MAX},
};

use super::*;
use crate::{
    CubeHandle, Cubes, Error, ErrorKind, NodeParts, TenantContext,
    cluster::{ClusterParts, ClusterSettings, LocalHub},
    cube::{AddRequest, DeleteRequest},
    environment::Environment,
    housekeeper::HouseRules,
    scheduler::jobs::JobRules,
    storage::{
        Commit, CommitToken, InMemoryStore, RangeRead, ReadOutput, SharedStore, StateStore,
        StoreError,
    },
};

/// Nodes over one store.
struct World {
    store: SharedStore,
    hub: LocalHub,
    nodes: Vec<Cubes>,
}

impl World {
    async fn of(count: usize) -> Self {
        Self::over(Arc::new(InMemoryStore::default()), count).await
    }

    async fn over(store: SharedStore, count: usize) -> Self {
        let mut world = Self { store, hub: LocalHub::new(), nodes: Vec::new() };
        for _ in 0..count {
            world.boot(count > 1).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        world
    }

    async fn boot(&mut self, is_cluster: bool) {
        let number = self.nodes.len();
        let environment = Environment::scripted(number as u64);
        let node = NodeId::new(format!("node-{number}")).expect("valid");
        let transport = self.hub.transport(node.clone(), environment.clone());
        let settings = ClusterSettings::default();
        let parts = NodeParts {
            blobs: None,
            store: Arc::clone(&self.store),
            environment,
            embedder: None,
            node,
            passivate_after_ms: 60_000,
            hot_cubes_max: 100,
            jobs: JobRules::default(),
            vectors: None,
            cluster: is_cluster.then_some(ClusterParts { transport, settings }),
        };
        self.nodes.push(Cubes::start(parts).await.expect("started"));
    }

    async fn cube(&self, id: &str) -> CubeHandle {
        self.nodes[0].ensure(&context(), cube_id(id)).await.expect("made")
    }

    async fn subscribe(&self, node: usize, start: FeedStart) -> Result<Subscription, Error> {
        let request = FeedRequest { start, ..FeedRequest::default() };
        self.nodes[node].feed().subscribe(&context(), request).await
    }

    fn reader(&self) -> FeedReader {
        self.nodes[0].feed().reader().clone()
    }

    /// Every record that is kept, as it lies in the store.
    async fn kept(&self) -> Vec<FeedEvent> {
        let mut kept = Vec::new();
        for shard in 0..keys::FEED_SHARDS {
            let read = RangeRead::all(keys::feed(context().tenant(), shard));
            let output = self.store.read(vec![read]).await.expect("read");
            kept.extend(output.pages[0].entries.iter().map(|row| FeedEvent {
                stamp: keys::feed_stamp(&row.key).expect("stamped"),
                record: memcube_schemas::codec::decode(&row.value).expect("readable"),
            }));
        }
        kept.sort_by_key(|event| event.stamp);
        kept
    }

    async fn keep_house(&self, feed_keep_ms: u64) {
        let rules = HouseRules { feed_keep_ms, period_ms: 1_000 };
        self.nodes[0].keep_house(rules, Vec::new()).await.expect("started");
    }
}

fn context() -> TenantContext {
    TenantContext::authenticated(TenantId::new("acme").expect("valid"), "tester")
}

fn cube_id(id: &str) -> CubeId {
    CubeId::new(id).expect("valid")
}

fn fact(text: &str) -> AddRequest {
    AddRequest { facts: vec![text.to_owned()], ..AddRequest::default() }
}

async fn add(cube: &CubeHandle, text: &str) -> Version {
    cube.add(fact(text)).await.expect("added").version
}

/// The next events, or none if nothing comes for a while.
async fn next(stream: &mut Subscription) -> Vec<FeedEvent> {
    loop {
        match tokio::time::timeout(Duration::from_secs(30), stream.next()).await {
            Ok(batch) => match batch.expect("the stream goes on").events {
                events if events.is_empty() => {}
                events => return events,
            },
            Err(_) => return Vec::new(),
        }
    }
}

/// What comes until nothing comes any more.
async fn drain(stream: &mut Subscription) -> Vec<FeedEvent> {
    let mut all = Vec::new();
    loop {
        let events = next(stream).await;
        if events.is_empty() {
            return all;
        }
        all.extend(events);
    }
}

fn told(events: &[FeedEvent]) -> Vec<String> {
    let tell = |FeedRecord { cube, version, change, .. }: &FeedRecord| match change {
        FeedChange::CubeMade => format!("{cube} made"),
        FeedChange::Items(items) => {
            let items: Vec<String> = items
                .iter()
                .map(|(_, change, revision)| format!("{change:?} {revision}"))
                .collect();
            format!("{cube} {version}: {}", items.join(", "))
        }
        FeedChange::CubeErased => format!("{cube} erased"),
        FeedChange::CubeRestored => format!("{cube} restored"),
    };
    events.iter().map(|event| tell(&event.record)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_stream_tells_what_happens_from_the_making_of_a_cube_to_its_end() {
    let world = World::of(1).await;
    let mut stream = world.subscribe(0, FeedStart::Now).await.expect("opened");
    let cube = world.cube("ann").await;
    let id = cube.add(fact("I sing")).await.expect("added").memories[0].id;
    add(&cube, "I sing").await;
    let request = DeleteRequest { selection: Selection::Ids(vec![id]), purge: true };
    cube.delete(request).await.expect("deleted");
    cube.erase().await.expect("erased");
    add(&world.cube("ann").await, "a new life").await;
    let expected = [
        "ann made",
        "ann 1: Added 1",
        "ann 2: Repeated 1",
        "ann 3: Purged 1",
        "ann erased",
        "ann made",
        "ann 1: Added 1",
    ];
    assert_eq!(told(&drain(&mut stream).await), expected);
    let mut again = world.subscribe(0, FeedStart::Oldest).await.expect("opened");
    assert_eq!(told(&drain(&mut again).await), expected);
}

#[tokio::test(start_paused = true)]
async fn an_event_of_this_node_comes_at_once_and_one_of_another_by_the_doorbell() {
    let world = World::of(2).await;
    let cube = world.cube("ann").await;
    for node in [0, 1] {
        let mut stream = world.subscribe(node, FeedStart::Now).await.expect("opened");
        stream.next().await.expect("where it begins");
        add(&cube, &format!("heard at {node}")).await;
        let start = tokio::time::Instant::now();
        assert_eq!(next(&mut stream).await.len(), 1);
        let took = start.elapsed();
        assert!(took < Duration::from_millis(50), "node {node} took {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_hear_of_their_own_tenant_and_cubes_only() {
    let world = World::of(1).await;
    let scope = FeedScope::of_cubes([cube_id("ann"), cube_id("bo")]).expect("few");
    let request = FeedRequest { scope, ..FeedRequest::default() };
    let mut stream = world.nodes[0].feed().subscribe(&context(), request).await.expect("opened");
    let stranger = TenantContext::authenticated(TenantId::new("apex").expect("valid"), "x");
    let theirs = world.nodes[0].ensure(&stranger, cube_id("ann")).await.expect("made");
    for id in ["ann", "cem", "bo", "dov"] {
        add(&world.cube(id).await, "hello").await;
        add(&theirs, &format!("hello {id}")).await;
    }
    let expected = ["ann made", "ann 1: Added 1", "bo made", "bo 1: Added 1"];
    assert_eq!(told(&drain(&mut stream).await), expected);
}

/// Writers on several cubes at once, through several nodes.
async fn write_all(world: &World, cubes: usize, adds: usize) {
    let writers = (0..cubes).map(|cube| async move {
        for number in 0..adds {
            let node = &world.nodes[(cube + number) % world.nodes.len()];
            let handle = node.ensure(&context(), cube_id(&format!("cube {cube}"))).await;
            add(&handle.expect("made"), &format!("number {number}")).await;
            let pause_ms = (cube * 7 + number * 13) % 40;
            tokio::time::sleep(Duration::from_millis(pause_ms as u64)).await;
        }
    });
    join_all(writers).await;
}

/// Follows the feed over all nodes, with connections that break: now and then the last batch was
/// not received any more.
async fn follow_brokenly(world: &World, seed: usize, is_over: &AtomicBool) -> Vec<FeedEvent> {
    let (mut cursor, mut seen, mut tries) = (None, Vec::new(), seed);
    loop {
        tries += 1;
        let request = FeedRequest {
            start: cursor.map_or(FeedStart::Oldest, FeedStart::After),
            page_records: 1 + tries % 9,
            ..FeedRequest::default()
        };
        let feed = world.nodes[tries % world.nodes.len()].feed();
        let mut stream = feed.subscribe(&context(), request).await.expect("opened");
        for batches in 0..tries % 7 + 1 {
            let wait = Duration::from_millis(200);
            let Ok(batch) = tokio::time::timeout(wait, stream.next()).await else {
                if is_over.load(Ordering::Relaxed) {
                    return seen;
                }
                break;
            };
            let batch = batch.expect("nothing fails");
            if batches == tries % 7 && tries.is_multiple_of(3) {
                break;
            }
            cursor = Some(batch.cursor);
            seen.extend(batch.events);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn readers_whose_connections_break_miss_nothing_and_hear_nothing_twice() {
    let world = World::of(3).await;
    let is_over = AtomicBool::new(false);
    let write = async {
        write_all(&world, 6, 30).await;
        is_over.store(true, Ordering::Relaxed);
    };
    let readers = join_all((0..5).map(|seed| follow_brokenly(&world, seed, &is_over)));
    let ((), seen) = tokio::join!(write, readers);
    let kept = world.kept().await;
    assert_eq!(kept.len(), 6 * 31);
    for seen in seen {
        assert_eq!(told(&seen), told(&kept));
        assert_eq!(seen, kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_too_slow_is_cut_off_and_resumes() {
    let world = World::of(1).await;
    let cube = world.cube("ann").await;
    let mut stream = world.subscribe(0, FeedStart::Now).await.expect("opened");
    let begin = stream.next().await.expect("where it begins");
    add(&cube, "the first").await;
    let mut seen = stream.next().await.expect("handed over").events;
    for number in 0..FEED_STREAM_BATCHES_MAX * 2 {
        add(&cube, &format!("number {number}")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut cursor = begin.cursor;
    let error = loop {
        match stream.next().await {
            Ok(batch) => {
                cursor = batch.cursor;
                seen.extend(batch.events);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(seen.len() < FEED_STREAM_BATCHES_MAX * 2, "{}", seen.len());
    assert!(stream.next().await.is_err(), "it stays cut off");
    let mut stream = world.subscribe(0, FeedStart::After(cursor)).await.expect("opened");
    seen.extend(drain(&mut stream).await);
    assert_eq!(seen, world.kept().await[1..]);
}

#[tokio::test(start_paused = true)]
async fn streams_have_a_bound_and_give_their_places_back() {
    let world = World::of(1).await;
    let mut streams = Vec::new();
    for _ in 0..FEED_STREAMS_PER_TENANT_MAX {
        streams.push(world.subscribe(0, FeedStart::Now).await.expect("opened"));
    }
    let error = world.subscribe(0, FeedStart::Now).await.expect_err("one too many");
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    streams.pop();
    world.subscribe(0, FeedStart::Now).await.expect("there is a place again");
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_their_node() {
    let world = World::of(1).await;
    let mut stream = world.subscribe(0, FeedStart::Now).await.expect("opened");
    stream.next().await.expect("where it begins");
    let ended = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.nodes[0].shut_down().await;
    };
    let (heard, ()) = tokio::join!(stream.next(), ended);
    let error = heard.expect_err("it ends");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("resume"), "{error}");
    drop((world.nodes, stream));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(Arc::strong_count(&world.store), 1, "nobody waits at the store any more");
}

/// A store that can be cut off, and whose doorbells are not heard.
struct Flaky {
    inner: InMemoryStore,
    is_cut: AtomicBool,
}

impl Flaky {
    fn check(&self) -> Result<(), StoreError> {
        let reason = || "cut off".to_owned();
        let is_cut = self.is_cut.load(Ordering::Relaxed);
        if is_cut { Err(StoreError::Unavailable { reason: reason() }) } else { Ok(()) }
    }
}

impl StateStore for Flaky {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            self.check()?;
            self.inner.read(ranges).await
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        self.inner.commit(commit)
    }

    fn changed(
        &self,
        _key: Vec<u8>,
        _seen: Option<Version>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::pending())
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        self.inner.outcome(token)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_outlives_a_store_that_is_away_and_doorbells_that_are_not_heard() {
    let inner = InMemoryStore::default();
    let flaky = Arc::new(Flaky { inner: inner.clone(), is_cut: AtomicBool::new(false) });
    let near = World::over(Arc::clone(&flaky) as SharedStore, 1).await;
    let far = World::over(Arc::new(inner), 1).await;
    let mut stream = near.subscribe(0, FeedStart::Now).await.expect("opened");
    let cube = far.cube("ann").await;
    assert_eq!(next(&mut stream).await.len(), 1, "found by the poll");
    flaky.is_cut.store(true, Ordering::Relaxed);
    add(&cube, "while it is away").await;
    let early = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
    assert!(early.is_err(), "{early:?}");
    flaky.is_cut.store(false, Ordering::Relaxed);
    assert_eq!(told(&next(&mut stream).await), ["ann 1: Added 1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_old_is_trimmed_and_a_cursor_before_it_is_gone() {
    let world = World::of(1).await;
    let (ann, bo) = (world.cube("ann").await, world.cube("bo").await);
    add(&ann, "old").await;
    let early = world.kept().await[1].stamp;
    tokio::time::sleep(Duration::from_secs(100)).await;
    add(&bo, "young").await;
    world.keep_house(60_000).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(told(&world.kept().await), ["bo 1: Added 1"]);

    let error = world.subscribe(0, FeedStart::After(early)).await.expect_err("trimmed");
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    assert!(error.message().contains("newest cursor"), "it says what to do: {error}");
    let mut stream = world.subscribe(0, FeedStart::Oldest).await.expect("opened");
    assert_eq!(told(&next(&mut stream).await), ["bo 1: Added 1"]);
    // A cursor at the very floor has missed nothing.
    let after = world.kept().await[0].stamp;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(told(&world.kept().await), [""; 0]);
    let mut stream = world.subscribe(0, FeedStart::After(after)).await.expect("opened");
    add(&ann, "news").await;
    assert_eq!(told(&next(&mut stream).await), ["ann 2: Added 1"]);
    let feed = world.nodes[0].feed();
    let page = feed.page(&context(), &FeedScope::All, Some(early), 10).await;
    assert_eq!(page.expect_err("trimmed").kind(), ErrorKind::Gone);
}

async fn pointers(world: &World) -> usize {
    let rings = (0..keys::FEED_RINGS).map(|ring| RangeRead::all(keys::feed_pointers(ring)));
    let output = world.store.read(rings.collect()).await.expect("read");
    output.pages.iter().map(|page| page.entries.len()).sum()
}

/// All news of a consumer, everywhere.
async fn all_news(follower: &Follower) -> Vec<News> {
    let mut news = Vec::new();
    for ring in 0..keys::FEED_RINGS {
        news.extend(follower.news(ring).await.expect("read"));
    }
    news.sort();
    news
}

/// Works everything off, in pages of this size; returns what it did.
async fn work_off(follower: &Follower, limit: usize) -> Vec<FeedEvent> {
    let mut done = Vec::new();
    for news in all_news(follower).await {
        let mut place = follower.place(&news).await.expect("known");
        loop {
            let page = follower.page(&place, limit).await.expect("nothing is missed");
            place = follower.advance(place, page.cursor).await.expect("alone");
            done.extend(page.events);
            if !page.more {
                break;
            }
        }
    }
    done.sort_by_key(|event| event.stamp);
    done
}

#[tokio::test(start_paused = true)]
async fn a_consumer_works_off_every_shard_once_and_goes_on_after_a_restart() {
    let world = World::of(1).await;
    write_all(&world, 5, 7).await;
    let follower = Follower::new(world.reader(), "index");
    let first = work_off(&follower, 3).await;
    assert_eq!(first, world.kept().await);
    assert_eq!(all_news(&follower).await, []);
    assert_eq!(work_off(&Follower::new(world.reader(), "other"), 100).await, first);

    add(&world.cube("cube 1").await, "one more").await;
    let again = Follower::new(world.reader(), "index");
    assert_eq!(all_news(&again).await.len(), 1);
    assert_eq!(told(&work_off(&again, 1).await), ["cube 1 8: Added 1"]);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_work_on_a_shard_one_moves_the_cursor() {
    let world = World::of(1).await;
    add(&world.cube("ann").await, "hello").await;
    let [one, two] = [(); 2].map(|()| Follower::new(world.reader(), "index"));
    let news = all_news(&one).await;
    assert_eq!(news.len(), 1);
    let place = one.place(&news[0]).await.expect("joined");
    let same = two.place(&news[0]).await.expect("joined");
    assert_eq!(place, same);
    let page = one.page(&place, 1).await.expect("read");
    one.advance(place, page.cursor).await.expect("the first");
    let late = two.page(&same, 10).await.expect("read");
    let error = two.advance(same, late.cursor).await.expect_err("the second");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let place = two.place(&news[0]).await.expect("known");
    assert_eq!(place.cursor(), page.cursor);
    assert_eq!(told(&two.page(&place, 10).await.expect("read").events), ["ann 1: Added 1"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_overtaken_before_a_trim_is_told_so() {
    let world = World::of(1).await;
    add(&world.cube("ann").await, "hello").await;
    let follower = Follower::new(world.reader(), "index");
    let news = all_news(&follower).await.remove(0);
    let slow = follower.place(&news).await.expect("joined");
    let quick = follower.page(&slow, 1).await.expect("read");
    let slow = follower.advance(slow, quick.cursor).await.expect("alone");
    assert_eq!(work_off(&follower, 9).await.len(), 1);
    world.keep_house(5_000).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(told(&world.kept().await), [""; 0]);
    let error = follower.page(&slow, 9).await.expect_err("its place was trimmed");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let place = follower.place(&news).await.expect("known");
    assert!(!place.missed());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_trimmed_that_a_consumer_has_not_done() {
    let world = World::of(1).await;
    let ann = world.cube("ann").await;
    add(&ann, "first").await;
    let follower = Follower::new(world.reader(), "index");
    let news = all_news(&follower).await.remove(0);
    let place = follower.place(&news).await.expect("joined");
    world.keep_house(5_000).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.kept().await.len(), 2, "it has only joined");
    let page = follower.page(&place, 1).await.expect("read");
    let place = follower.advance(place, page.cursor).await.expect("moved");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(told(&world.kept().await), ["ann 1: Added 1"]);
    assert_eq!(pointers(&world).await, 1);
    let page = follower.page(&place, 1).await.expect("read");
    let place = follower.advance(place, page.cursor).await.expect("moved");
    assert!(!page.more);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((world.kept().await.len(), pointers(&world).await), (0, 0));
    add(&ann, "second").await;
    assert_eq!(all_news(&follower).await, [news]);
    assert_eq!(follower.page(&place, 9).await.expect("read").events.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_joins_late_is_told_that_it_has_missed_something() {
    let world = World::of(1).await;
    let ann = world.cube("ann").await;
    add(&ann, "first").await;
    world.keep_house(5_000).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    add(&ann, "second").await;
    let follower = Follower::new(world.reader(), "index");
    let news = all_news(&follower).await.remove(0);
    let place = follower.place(&news).await.expect("joined");
    assert!(place.missed());
    let error = follower.page(&place, 9).await.expect_err("something is missing");
    assert_eq!(error.kind(), ErrorKind::Gone);
    // It crashed before it had made up for it.
    let place = follower.place(&news).await.expect("joined");
    assert!(place.missed());
    let begun = world.reader().newest(&news.tenant).await.expect("read");
    add(&ann, "while it reads the rows").await;
    let place = follower.advance(place, begun).await.expect("moved");
    assert!(!place.missed());
    let page = follower.page(&place, 9).await.expect("read");
    assert_eq!(told(&page.events), ["ann 3: Added 1"]);
    follower.leave(place).await.expect("left");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.kept().await.len(), 0, "nothing is kept for it any more");
}

#[tokio::test(start_paused = true)]
async fn a_trim_that_has_not_seen_a_consumer_join_fails() {
    let world = World::of(1).await;
    add(&world.cube("ann").await, "hello").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let trimmer = FeedTrimmer::new(world.reader(), 5_000, 1_000);
    let follower = Follower::new(world.reader(), "index");
    let news = all_news(&follower).await.remove(0);
    let step = trimmer.look(&news.tenant, news.shard, 9).await.expect("something is old");
    let place = follower.place(&news).await.expect("joined");
    assert_eq!(trimmer.carry_out(step).await, Ok(false));
    assert!(!follower.place(&news).await.expect("known").missed());
    assert_eq!(follower.page(&place, 9).await.expect("read").events.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_waits_for_doorbells_and_tells_of_news_once() {
    let world = World::of(1).await;
    let follower = Follower::new(world.reader(), "index");
    let mut watch = follower.watch(0..keys::FEED_RINGS);
    let idle = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    let ann = world.cube("ann").await;
    let start = tokio::time::Instant::now();
    let news = watch.next().await.expect("told");
    assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
    assert_eq!(news.len(), 1);
    assert_eq!(work_off(&follower, 9).await.len(), 1);
    let idle = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    let late = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        add(&ann, "hello").await;
    };
    let (told, ()) = tokio::join!(watch.next(), late);
    assert_eq!(told.expect("told"), news);
}

#[tokio::test(start_paused = true)]
async fn nodes_share_the_rings_and_trim_everything_between_them() {
    let world = World::of(3).await;
    for number in 0..20 {
        world.cube(&format!("cube {number}")).await;
    }
    for node in &world.nodes {
        let rules = HouseRules { feed_keep_ms: 5_000, period_ms: 1_000 };
        node.keep_house(rules, Vec::new()).await.expect("started");
        let twice = node.keep_house(rules, Vec::new()).await;
        assert_eq!(twice.map_err(|error| error.kind()), Err(ErrorKind::Internal));
    }
    let rings = |node: &Cubes| {
        let view = node.view();
        let kept = (0..keys::FEED_RINGS).filter(move |ring| view.keeps(&format!("ring {ring}")));
        kept.collect::<Vec<u16>>()
    };
    let mut owners = BTreeMap::<u16, usize>::new();
    for ring in world.nodes.iter().flat_map(rings) {
        *owners.entry(ring).or_default() += 1;
    }
    assert_eq!(owners.len(), usize::from(keys::FEED_RINGS));
    assert!(owners.values().all(|owners| *owners == 1));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((world.kept().await.len(), pointers(&world).await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_long_feed_is_trimmed_to_the_last_old_record_whatever_clocks_were_ahead() {
    let world = World::of(1).await;
    let cube = world.cube("ann").await;
    for number in 0..1_200 {
        add(&cube, &format!("old {number}")).await;
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    add(&cube, "young").await;
    let trimmer = FeedTrimmer::new(world.reader(), 60_000, 1_000);
    let shard = keys::feed_shard(cube.id());
    assert_eq!(trimmer.trim_shard(context().tenant(), shard).await, Ok(1_201));
    assert_eq!(told(&world.kept().await), ["ann 1201: Added 1"]);
    // A node whose clock is behind holds every record for one of the future, and keeps it.
    let early = FeedReader::new(Arc::clone(&world.store), Environment::scripted(9));
    let trimmer = FeedTrimmer::new(early, 1, 1_000);
    assert_eq!(trimmer.trim_shard(context().tenant(), shard).await, Ok(0));
}
