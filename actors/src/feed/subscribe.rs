//! Hands new events of a node's tenants to whoever streams them.
//!
//! Receives: streams that join; word of news from this node's own commits and from doorbells; pages
//! that were read; its own ticks. Sends: reads to the state store; batches of events to streams,
//! over bounded channels.
//! Owns: for every tenant with streams, how far its feed has been read; one wait for each ring that
//! those tenants' news are told on, shared by all of them.
//!
//! Invariant: of one tenant one read is under way at a time, each from the end of the one before,
//! so batches follow each other without gap and overlap. What comes too fast for a stream is not
//! kept: the stream is cut off, and its reader resumes by its cursor.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use memcube_schemas::{
    Stamp, TenantId,
    keys::{self, FEED_SHARDS},
    limits::FEED_PAGE_RECORDS_DEFAULT,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, oneshot};

use super::{
    FeedEvent, FeedPage, FeedReader, FeedScope, TellingStore,
    news::Streams,
    subscription::{FeedRequest, Subscription},
};
use crate::{
    environment::Environment,
    error::{Error, ErrorKind, Result},
    metrics as names,
    storage::{RangeRead, SharedStore},
    tenant::TenantContext,
};

/// How often feeds are read without any word of news, in case that one was lost.
const POLL_EVERY: Duration = Duration::from_secs(5);
/// Pause after a store that did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two looks at a doorbell that keeps ringing.
const RING_PAUSE: Duration = Duration::from_millis(10);

/// The events between two places of a tenant's feed: all of them.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Everything up to here came before.
    pub(super) from: Stamp,
    /// Everything up to here is in it.
    pub(super) to: Stamp,
    pub(super) events: Vec<FeedEvent>,
}

/// Where batches for a stream go.
pub(crate) struct Subscriber {
    pub(super) batches: mpsc::Sender<Arc<Batch>>,
    /// Why there will be no more.
    pub(super) end: oneshot::Sender<Error>,
}

pub(crate) enum FeedMessage {
    /// A stream wants what comes after a place. It hears up to where batches were handed out
    /// before.
    Join {
        tenant: TenantId,
        after: Stamp,
        subscriber: Subscriber,
        reply: oneshot::Sender<Stamp>,
    },
    /// A tenant has news.
    News {
        tenant: TenantId,
    },
    /// Some tenant on this ring has news, or nobody knows.
    Rung {
        ring: u16,
    },
    /// A page was read for the hub of this number.
    Read {
        tenant: TenantId,
        hub: u64,
        page: Box<Result<FeedPage>>,
    },
    Tick,
}

/// The front door of the event feed of a node. Cheap to clone.
#[derive(Clone)]
pub struct FeedHandle {
    actor: ActorRef<FeedMessage>,
    reader: FeedReader,
    streams: Arc<Streams>,
}

impl std::fmt::Debug for FeedHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FeedHandle")
    }
}

impl FeedHandle {
    /// A page of the caller's feed after a cursor, or from the oldest record that is kept.
    ///
    /// # Errors
    /// As [`FeedReader::page`].
    pub async fn page(
        &self,
        context: &TenantContext,
        scope: &FeedScope,
        after: Option<Stamp>,
        limit: usize,
    ) -> Result<FeedPage> {
        self.reader.page(context.tenant(), scope, after, limit).await
    }

    /// The place after everything that has been committed so far.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn newest(&self, context: &TenantContext) -> Result<Stamp> {
        self.reader.newest(context.tenant()).await
    }

    /// Opens a stream of the caller's events.
    ///
    /// # Errors
    /// `Gone` when events after the cursor were trimmed, `Overloaded` when there are too many
    /// streams, `Unavailable` when the store does not answer.
    pub async fn subscribe(
        &self,
        context: &TenantContext,
        request: FeedRequest,
    ) -> Result<Subscription> {
        let place = self.streams.take_place(context.tenant())?;
        metrics::gauge!(names::FEED_STREAMS).set(self.streams.count() as f64);
        let (handle, tenant) = (self.clone(), context.tenant().clone());
        Subscription::open(handle, tenant, request, place).await
    }

    /// What reads the feeds of all tenants: for whoever derives something from them.
    #[must_use]
    pub const fn reader(&self) -> &FeedReader {
        &self.reader
    }

    /// Joins the streams that are handed new events; tells up to where they had been handed out.
    pub(super) async fn join(
        &self,
        tenant: TenantId,
        after: Stamp,
        subscriber: Subscriber,
    ) -> Result<Stamp> {
        let (reply, answer) = oneshot::channel();
        let join = FeedMessage::Join { tenant, after, subscriber, reply };
        self.actor.cast(join).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// Ends all streams at once.
    pub(crate) fn kill(&self) {
        self.actor.kill();
    }

    /// Ends all streams.
    pub(crate) async fn stop(&self) {
        // One that is gone already has nothing left to end.
        let _ = self.actor.stop_and_wait(None, None).await;
    }
}

pub(super) fn stopped() -> Error {
    Error::unavailable("this node is stopping; resume from the last cursor")
}

pub(crate) struct EventFeed;

impl EventFeed {
    /// Starts the event feed over a store, and returns the store as everybody who commits has to
    /// use it.
    pub(crate) async fn start(
        store: SharedStore,
        environment: Environment,
    ) -> Result<(FeedHandle, SharedStore)> {
        let streams = Arc::<Streams>::default();
        let reader = FeedReader::new(Arc::clone(&store), environment);
        let feeding = Feeding {
            reader: reader.clone(),
            streams: Arc::clone(&streams),
            hubs: BTreeMap::new(),
            rings: BTreeMap::new(),
            hubs_made: 0,
            is_ticking: false,
        };
        let (actor, _) = Self::spawn(None, Self, feeding)
            .await
            .map_err(|error| Error::internal(format!("the event feed did not start: {error}")))?;
        let telling = TellingStore::new(store, Arc::clone(&streams), actor.clone());
        Ok((FeedHandle { actor, reader, streams }, Arc::new(telling)))
    }
}

/// A tenant's feed, as far as it has been handed out.
struct Hub {
    /// Tells it from an earlier one of the same tenant.
    number: u64,
    /// Everything up to here has been read.
    read: Stamp,
    /// The end of the last batch; nothing happened since, up to `read`.
    handed_out: Stamp,
    subscribers: Vec<Subscriber>,
    is_reading: bool,
    /// Whether there was word of news while a read was under way.
    is_due: bool,
}

/// A ring whose doorbell is waited for, as long as this is kept.
struct Ring {
    hubs: usize,
    _stop: oneshot::Sender<()>,
}

pub(crate) struct Feeding {
    reader: FeedReader,
    streams: Arc<Streams>,
    hubs: BTreeMap<TenantId, Hub>,
    rings: BTreeMap<u16, Ring>,
    hubs_made: u64,
    is_ticking: bool,
}

impl Actor for EventFeed {
    type Msg = FeedMessage;
    type State = Feeding;
    type Arguments = Feeding;

    async fn pre_start(
        &self,
        _myself: ActorRef<FeedMessage>,
        feeding: Feeding,
    ) -> std::result::Result<Feeding, ActorProcessingErr> {
        Ok(feeding)
    }

    async fn handle(
        &self,
        myself: ActorRef<FeedMessage>,
        message: FeedMessage,
        feeding: &mut Feeding,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            FeedMessage::Join { tenant, after, subscriber, reply } => {
                // A stream that was given up meanwhile leaves at the next batch or tick.
                let _ = reply.send(feeding.join(&myself, tenant, after, subscriber));
            }
            FeedMessage::News { tenant } => {
                feeding.streams.heard(&tenant);
                feeding.read(&myself, &tenant);
            }
            FeedMessage::Rung { ring } => feeding.rung(&myself, ring),
            FeedMessage::Read { tenant, hub, page } => {
                feeding.has_read(&myself, &tenant, hub, *page)
            }
            FeedMessage::Tick => feeding.tick(&myself),
        }
        Ok(())
    }
}

impl Feeding {
    fn join(
        &mut self,
        myself: &ActorRef<FeedMessage>,
        tenant: TenantId,
        after: Stamp,
        subscriber: Subscriber,
    ) -> Stamp {
        if !self.hubs.contains_key(&tenant) {
            self.hubs_made += 1;
            let hub = Hub {
                number: self.hubs_made,
                read: after,
                handed_out: after,
                subscribers: Vec::new(),
                is_reading: false,
                is_due: false,
            };
            self.hubs.insert(tenant.clone(), hub);
            for ring in rings_of(&tenant) {
                self.listen(myself, ring);
            }
            self.arm(myself);
        }
        let hub = self.hubs.get_mut(&tenant).expect("invariant: it was made just now");
        hub.subscribers.push(subscriber);
        let handed_out = hub.handed_out;
        // What was committed after the stream's own last read, before anybody listened for it.
        self.read(myself, &tenant);
        handed_out
    }

    fn arm(&mut self, myself: &ActorRef<FeedMessage>) {
        if !std::mem::replace(&mut self.is_ticking, true) {
            myself.send_after(POLL_EVERY, || FeedMessage::Tick);
        }
    }

    fn tick(&mut self, myself: &ActorRef<FeedMessage>) {
        self.is_ticking = false;
        let tenants: Vec<TenantId> = self.hubs.keys().cloned().collect();
        for tenant in tenants {
            self.drop_deserters(&tenant);
            self.read(myself, &tenant);
        }
        metrics::gauge!(names::FEED_STREAMS).set(self.streams.count() as f64);
        if !self.hubs.is_empty() {
            self.arm(myself);
        }
    }

    fn rung(&mut self, myself: &ActorRef<FeedMessage>, ring: u16) {
        let on_ring = |tenant: &&TenantId| rings_of(tenant).contains(&ring);
        let tenants: Vec<TenantId> = self.hubs.keys().filter(on_ring).cloned().collect();
        for tenant in tenants {
            self.read(myself, &tenant);
        }
    }

    /// Reads on, now or as soon as the read under way has ended.
    fn read(&mut self, myself: &ActorRef<FeedMessage>, tenant: &TenantId) {
        let Some(hub) = self.hubs.get_mut(tenant) else { return };
        if hub.is_reading {
            hub.is_due = true;
            return;
        }
        (hub.is_reading, hub.is_due) = (true, false);
        let (number, after) = (hub.number, hub.read);
        let (reader, tenant, myself) = (self.reader.clone(), tenant.clone(), myself.clone());
        self.reader.environment().spawn(async move {
            let limit = FEED_PAGE_RECORDS_DEFAULT;
            let page = reader.page(&tenant, &FeedScope::All, Some(after), limit).await;
            // A feed that has ended serves nobody.
            let _ = myself.cast(FeedMessage::Read { tenant, hub: number, page: Box::new(page) });
        });
    }

    fn has_read(
        &mut self,
        myself: &ActorRef<FeedMessage>,
        tenant: &TenantId,
        number: u64,
        page: Result<FeedPage>,
    ) {
        let Some(hub) = self.hubs.get_mut(tenant).filter(|hub| hub.number == number) else {
            return;
        };
        hub.is_reading = false;
        match page {
            Ok(page) => {
                let reads_on = page.more || hub.is_due;
                hub.hand_out(page);
                if hub.subscribers.is_empty() {
                    self.close(tenant);
                } else if reads_on {
                    self.read(myself, tenant);
                }
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::debug!(%tenant, %error, "a feed could not be read, tried again soon");
                let tenant = tenant.clone();
                myself.send_after(RETRY_PAUSE, || FeedMessage::News { tenant });
            }
            Err(error) => {
                tracing::warn!(%tenant, %error, "the streams of a feed end");
                for subscriber in std::mem::take(&mut hub.subscribers) {
                    let _ = subscriber.end.send(error.clone());
                }
                self.close(tenant);
            }
        }
    }

    fn drop_deserters(&mut self, tenant: &TenantId) {
        let Some(hub) = self.hubs.get_mut(tenant) else { return };
        hub.subscribers.retain(|subscriber| !subscriber.batches.is_closed());
        if hub.subscribers.is_empty() {
            self.close(tenant);
        }
    }

    fn close(&mut self, tenant: &TenantId) {
        self.hubs.remove(tenant);
        for number in rings_of(tenant) {
            let Some(ring) = self.rings.get_mut(&number) else { continue };
            ring.hubs -= 1;
            if ring.hubs == 0 {
                self.rings.remove(&number);
            }
        }
    }

    /// Waits for the doorbell of a ring, unless somebody does so already.
    fn listen(&mut self, myself: &ActorRef<FeedMessage>, ring: u16) {
        if let Some(ring) = self.rings.get_mut(&ring) {
            ring.hubs += 1;
            return;
        }
        let (stop, stopped) = oneshot::channel();
        self.rings.insert(ring, Ring { hubs: 1, _stop: stop });
        let (store, myself) = (Arc::clone(self.reader.store()), myself.clone());
        self.reader.environment().spawn(async move {
            // The wait holds the store, and a wait may be long: it ends with the ring, or the feed.
            tokio::select! {
                biased;
                _ = stopped => {}
                () = hear(&store, &myself, ring) => {}
            }
        });
    }
}

impl Hub {
    fn hand_out(&mut self, page: FeedPage) {
        self.read = page.cursor;
        if page.events.is_empty() {
            return;
        }
        metrics::counter!(names::FEED_EVENTS_TOTAL).increment(page.events.len() as u64);
        let batch = Arc::new(Batch { from: self.handed_out, to: page.cursor, events: page.events });
        self.handed_out = page.cursor;
        for subscriber in std::mem::take(&mut self.subscribers) {
            match subscriber.batches.try_send(Arc::clone(&batch)) {
                Ok(()) => self.subscribers.push(subscriber),
                Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(_)) => {
                    metrics::counter!(names::FEED_STREAMS_CUT_OFF_TOTAL).increment(1);
                    let error = Error::overloaded("the buffer of this stream", 1_000);
                    let _ = subscriber.end.send(error);
                }
            }
        }
    }
}

/// The rings on which the news of a tenant are told.
fn rings_of(tenant: &TenantId) -> BTreeSet<u16> {
    (0..FEED_SHARDS).map(|shard| keys::feed_ring(tenant, shard)).collect()
}

/// Says that a ring has news whenever its doorbell rings, also for the first time. A store that
/// does not answer may have rung.
async fn hear(store: &SharedStore, feed: &ActorRef<FeedMessage>, ring: u16) {
    let key = keys::feed_doorbell(ring);
    loop {
        let looked = store.read(vec![RangeRead::key(key.clone())]).await;
        // Said after the look and before the wait: what was committed up to the look is read now,
        // and what comes after it ends the wait.
        if feed.cast(FeedMessage::Rung { ring }).is_err() {
            return;
        }
        let waited = match looked {
            Ok(output) => {
                let row = output.pages.first().and_then(|page| page.entries.first());
                store.changed(key.clone(), row.map(|row| row.version)).await
            }
            Err(error) => Err(error),
        };
        tokio::time::sleep(if waited.is_ok() { RING_PAUSE } else { RETRY_PAUSE }).await;
    }
}
