//! Whoever follows the feeds of the tenants: a stream of each, over connections that break and
//! nodes that change, and consumers that the store knows by name, which crash in the middle of
//! their work. What they are told is evidence.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use memcube_actors::{
    Error, ErrorKind, TenantContext,
    feed::{FeedBatch, FeedRequest, FeedStart, Follower, News, Subscription},
};
use memcube_schemas::{Stamp, TenantId, keys};
use tokio::time::{Instant, sleep, timeout};

use super::{Inner, node::RunningNode};
use crate::{
    dice::Dice,
    evidence::{FeedStretch, Violation},
    network::Passage,
};

/// Followers are numbered from here on, as clients of the network.
const FOLLOWERS_FROM: u32 = 20_000;
/// The name under which the store knows the consumers of the world.
pub(crate) const CONSUMER: &str = "checker";
/// How many of that name work at the same time.
const CONSUMERS: u32 = 2;
/// How long a follower waits for anything before it takes a connection for broken.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long it may take after the heal until everything was told.
const CATCH_UP: Duration = Duration::from_secs(60);
/// How long a follower stays away between two connections, mostly, and now and then.
const AWAY_MS: (u64, u64) = (1_500, 15_000);

/// Why a connection ended.
enum Ended {
    /// For no reason of the follower's.
    Broke,
    /// Everything up to the wanted place was told.
    Done,
}

impl Inner {
    /// Follows every tenant of the plan until the future is dropped.
    pub(super) async fn follow_all(self: &Arc<Self>) {
        let streams = self.tenants().into_iter().zip(0..);
        let streams = streams.map(|(tenant, number)| self.follow(tenant, number, None));
        let consumers = (0..CONSUMERS).map(|number| self.consume(number, None));
        tokio::join!(
            futures_util::future::join_all(streams),
            futures_util::future::join_all(consumers)
        );
    }

    /// Lets every follower come to the end of its feed, which must not take long.
    pub(super) async fn finish_following(self: &Arc<Self>) {
        let end = Stamp::end_of(self.store.version());
        let streams = self.tenants().into_iter().zip(0..).map(|(tenant, number)| async move {
            let name = format!("the feed of `{tenant}`");
            (timeout(CATCH_UP, self.follow(tenant, number, Some(end))).await.is_ok(), name)
        });
        let consumer = async {
            let name = format!("what the consumer `{CONSUMER}` has to do");
            (timeout(CATCH_UP, self.consume(0, Some(end))).await.is_ok(), name)
        };
        let (mut told, consumed) = tokio::join!(futures_util::future::join_all(streams), consumer);
        told.push(consumed);
        for (_, name) in told.iter().filter(|(is_done, _)| !is_done) {
            let what = format!("{name} was not told to its end within {CATCH_UP:?} of the heal");
            self.accuse(Violation::new("liveness", what));
        }
    }

    fn tenants(&self) -> BTreeSet<TenantId> {
        let scripts = self.plan.scripts.iter();
        scripts.filter_map(|script| TenantId::new(script.tenant.as_str()).ok()).collect()
    }

    /// Streams a tenant's feed over one node after the other.
    async fn follow(self: &Arc<Self>, tenant: TenantId, number: u32, until: Option<Stamp>) {
        let dice = self.dice.fork("follower", u64::from(number));
        let context = TenantContext::authenticated(tenant.clone(), "follower");
        for occasion in occasions(until) {
            if let Some((node, running)) = self.reach_node(number, dice, occasion).await {
                let draw = |what: &str, bound: u64| dice.below(what, occasion, bound);
                let page_records = 1 + usize::try_from(draw("page", 12)).unwrap_or(1);
                let cursor = self.cursor_of(&tenant);
                let start = cursor.map_or(FeedStart::Oldest, FeedStart::After);
                let request = FeedRequest { start, page_records, ..FeedRequest::default() };
                let opened =
                    timeout(PATIENCE, running.cubes.feed().subscribe(&context, request)).await;
                match opened {
                    Ok(Ok(stream)) => {
                        let connection = Connection {
                            inner: self,
                            tenant: &tenant,
                            number,
                            node,
                            dice,
                            occasion,
                        };
                        if let Ended::Done = connection.listen(stream, &running, until).await {
                            return;
                        }
                    }
                    Ok(Err(error)) => self.begin_anew_if_gone(&tenant, &error),
                    Err(_) => {}
                }
            }
            self.stay_away(dice, occasion, until.is_some()).await;
        }
    }

    /// Where a tenant's follower is; `None` before the oldest event.
    fn cursor_of(&self, tenant: &TenantId) -> Option<Stamp> {
        self.followed().get(tenant).and_then(|told| told.last()).map(|stretch| stretch.to)
    }

    fn begin_anew_if_gone(&self, tenant: &TenantId, error: &Error) {
        match error.kind() {
            ErrorKind::Gone => {
                self.reach("feed.follower-too-late");
                let from = self.cursor_of(tenant).unwrap_or_default();
                // As a client would: it reads what is there now, and goes on from here.
                let to = Stamp::end_of(self.store.version());
                let stretch = FeedStretch { from: Some(from), to, events: None };
                self.followed().entry(tenant.clone()).or_default().push(stretch);
            }
            ErrorKind::Unavailable | ErrorKind::Overloaded => {}
            ErrorKind::NotFound
            | ErrorKind::Invalid
            | ErrorKind::Conflict
            | ErrorKind::Fenced
            | ErrorKind::Corrupt
            | ErrorKind::Internal => {
                self.accuse(Violation::new("errors", format!("following `{tenant}`: {error}")));
            }
        }
    }

    /// Works off the news of all tenants of the plan, under a name that others use, too.
    async fn consume(self: &Arc<Self>, number: u32, until: Option<Stamp>) {
        let client = 1_000 + number;
        let dice = self.dice.fork("consumer", u64::from(number));
        let shards =
            |tenant: TenantId| (0..keys::FEED_SHARDS).map(move |shard| (tenant.clone(), shard));
        let rings: BTreeSet<u16> = self
            .tenants()
            .into_iter()
            .flat_map(shards)
            .map(|(tenant, shard)| keys::feed_ring(&tenant, shard))
            .collect();
        for occasion in occasions(until) {
            if let Some((_, running)) = self.reach_node(client, dice, occasion).await {
                let follower = Follower::new(running.cubes.feed().reader().clone(), CONSUMER);
                let work = async {
                    let is_last = until.is_some();
                    let news = find_news(&follower, &rings, is_last, dice, occasion).await?;
                    for (told, place) in news.iter().zip(0..) {
                        let dice = dice.fork("shard", occasion << 8 | place);
                        self.work_off(&follower, told, dice).await?;
                    }
                    Ok(is_last && news.is_empty())
                };
                match timeout(PATIENCE, work).await {
                    Ok(Ok(true)) => return,
                    Ok(Ok(false)) | Err(_) => {}
                    Ok(Err(error)) => self.judge_consumer(&error),
                }
            }
            self.stay_away(dice, occasion, until.is_some()).await;
        }
    }

    async fn work_off(&self, follower: &Follower, news: &News, dice: Dice) -> Result<(), Error> {
        let mut place = follower.place(news).await?;
        let did = |from: Stamp, to: Stamp, events| {
            let stretch = FeedStretch { from: Some(from), to, events };
            let shard = (news.tenant.clone(), news.shard);
            self.consumed().entry(shard).or_default().push(stretch);
        };
        if place.missed() {
            self.reach("feed.consumer-missed");
            let to = follower.reader().newest(&news.tenant).await?;
            did(place.cursor(), to, None);
            place = follower.advance(place, to).await?;
        }
        for step in 0.. {
            let limit = 1 + usize::try_from(dice.below("limit", step, 6)).unwrap_or(1);
            let page = follower.page(&place, limit).await?;
            did(place.cursor(), page.cursor, Some(page.events));
            if !self.conditions.is_healed() && dice.chance("crash", step, 100) {
                // It acted, and did not come to say so.
                return Ok(());
            }
            place = follower.advance(place, page.cursor).await?;
            if !page.more {
                break;
            }
        }
        Ok(())
    }

    fn judge_consumer(&self, error: &Error) {
        match error.kind() {
            ErrorKind::Conflict => self.reach("feed.consumer-overtaken"),
            ErrorKind::Unavailable | ErrorKind::Overloaded => {}
            ErrorKind::NotFound
            | ErrorKind::Invalid
            | ErrorKind::Fenced
            | ErrorKind::Gone
            | ErrorKind::Corrupt
            | ErrorKind::Internal => {
                self.accuse(Violation::new("errors", format!("consumer `{CONSUMER}`: {error}")));
            }
        }
    }

    /// A node that takes a connection, if the one that is tried does.
    async fn reach_node(
        &self,
        number: u32,
        dice: Dice,
        occasion: u64,
    ) -> Option<(u32, Arc<RunningNode>)> {
        let node = dice.below("node", occasion, u64::from(self.plan.nodes.max(1)));
        let node = u32::try_from(node).unwrap_or(0);
        let client = FOLLOWERS_FROM + number;
        match self.network.to_node(client, node, occasion).await {
            Passage::Arrived => Some((node, self.running(node)?)),
            Passage::Refused | Passage::Lost => None,
        }
    }

    async fn stay_away(&self, dice: Dice, occasion: u64, is_calm: bool) {
        let (mostly, sometimes) = AWAY_MS;
        let bound = match (is_calm, dice.chance("long", occasion, 100)) {
            (true, _) => 100,
            (false, true) => sometimes,
            (false, false) => mostly,
        };
        sleep(Duration::from_millis(10 + dice.below("away", occasion, bound))).await;
    }
}

/// Numbers for the connections of one follower, others after the heal than before.
fn occasions(until: Option<Stamp>) -> std::ops::RangeFrom<u64> {
    if until.is_some() { 1 << 20.. } else { 0.. }
}

/// What there is to do now; unless this is the last look, waits a while for something.
async fn find_news(
    follower: &Follower,
    rings: &BTreeSet<u16>,
    is_last: bool,
    dice: Dice,
    occasion: u64,
) -> Result<Vec<News>, Error> {
    if is_last {
        let mut news = Vec::new();
        for ring in rings {
            news.extend(follower.news(*ring).await?);
        }
        return Ok(news);
    }
    let mut watch = follower.watch(rings.iter().copied());
    let wait = Duration::from_millis(500 + dice.below("wait", occasion, 4_000));
    timeout(wait, watch.next()).await.unwrap_or_else(|_| Ok(Vec::new()))
}

/// One connection of a follower.
struct Connection<'a> {
    inner: &'a Arc<Inner>,
    tenant: &'a TenantId,
    number: u32,
    node: u32,
    dice: Dice,
    occasion: u64,
}

impl Connection<'_> {
    async fn listen(
        &self,
        mut stream: Subscription,
        running: &RunningNode,
        until: Option<Stamp>,
    ) -> Ended {
        let batches = 1 + self.dice.below("batches", self.occasion, 40);
        let mut idle = Instant::now();
        for batch in 0..batches {
            let id = self.occasion << 8 | batch;
            let is_done = until.is_some_and(|until| {
                self.inner.cursor_of(self.tenant).is_some_and(|cursor| cursor >= until)
            });
            if is_done {
                return Ended::Done;
            }
            let wait = Duration::from_millis(50 + self.dice.below("patience", id, 3_000));
            match timeout(wait, stream.next()).await {
                Ok(Ok(batch)) => {
                    idle = Instant::now();
                    if !self.receive(batch, running.life, id).await {
                        return Ended::Broke;
                    }
                }
                Ok(Err(error)) => {
                    if error.kind() != ErrorKind::Gone {
                        self.inner.begin_anew_if_gone(self.tenant, &error);
                    }
                    return Ended::Broke;
                }
                // A feed without news moves nobody's cursor while nothing is read anew.
                Err(_) if until.is_some() || idle.elapsed() > PATIENCE => return Ended::Broke,
                Err(_) => {}
            }
        }
        Ended::Broke
    }

    /// Whether a batch came through.
    async fn receive(&self, batch: FeedBatch, life: u64, id: u64) -> bool {
        let client = FOLLOWERS_FROM + self.number;
        match self.inner.network.from_node(client, self.node, life, id).await {
            Passage::Arrived => {}
            Passage::Refused | Passage::Lost => return false,
        }
        let FeedBatch { events, cursor } = batch;
        let (who, count) = (format!("f{}", self.number), events.len());
        self.inner.conditions.note(&who, "is told", format_args!("{count} up to {cursor}"));
        let from = self.inner.cursor_of(self.tenant);
        let stretch = FeedStretch { from, to: cursor, events: Some(events) };
        self.inner.followed().entry(self.tenant.clone()).or_default().push(stretch);
        true
    }
}
