//! One stream of events, on the side of whoever reads it.
//!
//! A stream reads pages by itself until it has caught up, then it is handed batches that all
//! streams of its tenant share. What it has passed on is known by its cursor: a batch that lies
//! behind the cursor is dropped, and one that begins ahead of it is a gap, which is read from the
//! store.

use std::sync::Arc;

use memcube_schemas::{
    Stamp, TenantId,
    limits::{FEED_PAGE_RECORDS_DEFAULT, FEED_STREAM_BATCHES_MAX},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    FeedEvent, FeedPage, FeedScope,
    news::StreamPlace,
    subscribe::{Batch, FeedHandle, Subscriber, stopped},
};
use crate::error::{Error, Result};

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedStart {
    /// With what is committed from now on.
    #[default]
    Now,
    /// With the oldest event that is kept.
    Oldest,
    /// With what comes after this place.
    After(Stamp),
}

/// Which events a stream is to bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedRequest {
    /// Of which cubes.
    pub scope: FeedScope,
    /// From where on.
    pub start: FeedStart,
    /// How many records to read at once while it catches up.
    pub page_records: usize,
}

impl Default for FeedRequest {
    fn default() -> Self {
        Self {
            scope: FeedScope::All,
            start: FeedStart::Now,
            page_records: FEED_PAGE_RECORDS_DEFAULT,
        }
    }
}

/// What a stream brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedBatch {
    /// In order; there may be none, if only other cubes have news.
    pub events: Vec<FeedEvent>,
    /// The place up to which everything has been brought: resume after it.
    pub cursor: Stamp,
}

/// A stream of events. It takes one of the places that a node has for streams until it is dropped.
pub struct Subscription {
    feed: FeedHandle,
    tenant: TenantId,
    scope: FeedScope,
    page_records: usize,
    /// Everything up to here has been passed on; `None` before the oldest event.
    cursor: Option<Stamp>,
    /// What was read while the stream was opened.
    first: Option<FeedBatch>,
    phase: Phase,
    _place: StreamPlace,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Subscription");
        shown.field("tenant", &self.tenant).field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

enum Phase {
    /// Reads by itself.
    Alone,
    /// Has caught up, and is about to join the other streams of its tenant.
    CaughtUp,
    /// Is handed batches.
    Together(Joined),
    /// Nothing comes any more.
    Ended,
}

struct Joined {
    batches: mpsc::Receiver<Arc<Batch>>,
    end: oneshot::Receiver<Error>,
    /// Whether something lies between the cursor and the next batch.
    is_behind: bool,
}

impl Subscription {
    /// Opens a stream. Whatever is wrong with the cursor comes out here.
    pub(super) async fn open(
        feed: FeedHandle,
        tenant: TenantId,
        request: FeedRequest,
        place: StreamPlace,
    ) -> Result<Self> {
        let FeedRequest { scope, start, page_records } = request;
        let after = match start {
            FeedStart::Now => Some(feed.reader().newest(&tenant).await?),
            FeedStart::Oldest => None,
            FeedStart::After(stamp) => Some(stamp),
        };
        let first = feed.reader().page(&tenant, &scope, after, page_records).await?;
        let mut stream = Self {
            feed,
            tenant,
            scope,
            page_records,
            cursor: after,
            first: None,
            phase: Phase::Alone,
            _place: place,
        };
        let batch = stream.pass_on(first);
        stream.first = Some(batch);
        Ok(stream)
    }

    /// The next events. The first batch comes at once, also without events, and tells the place at
    /// which the stream begins.
    ///
    /// Nothing is lost when the future is dropped before it ends.
    ///
    /// # Errors
    /// `Overloaded` when the reader was too slow and the stream was cut off, `Gone` when it was so
    /// slow that events were trimmed, `Unavailable` when the node stops or the store does not
    /// answer. The stream has ended then; open another one after the last cursor.
    pub async fn next(&mut self) -> Result<FeedBatch> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let next = self.bring().await;
        if next.is_err() {
            self.phase = Phase::Ended;
        }
        next
    }

    async fn bring(&mut self) -> Result<FeedBatch> {
        loop {
            match &mut self.phase {
                Phase::Ended => return Err(stopped()),
                // Only once it has passed on what it had read: a join may be given up.
                Phase::CaughtUp => self.phase = Phase::Together(self.join().await?),
                Phase::Together(joined) if !joined.is_behind => {
                    let Some(batch) = joined.batches.recv().await else {
                        return Err(joined.end.try_recv().unwrap_or_else(|_| stopped()));
                    };
                    joined.is_behind = self.cursor.is_none_or(|cursor| batch.from > cursor);
                    if !joined.is_behind
                        && let Some(batch) = self.take(&batch)
                    {
                        return Ok(batch);
                    }
                }
                Phase::Alone | Phase::Together(_) => {
                    let page = self.read().await?;
                    return Ok(self.pass_on(page));
                }
            }
        }
    }

    async fn join(&self) -> Result<Joined> {
        let (sender, batches) = mpsc::channel(FEED_STREAM_BATCHES_MAX);
        let (end, ended) = oneshot::channel();
        let after = self.cursor.unwrap_or_default();
        let subscriber = Subscriber { batches: sender, end };
        let handed_out = self.feed.join(self.tenant.clone(), after, subscriber).await?;
        Ok(Joined { batches, end: ended, is_behind: handed_out > after })
    }

    async fn read(&self) -> Result<FeedPage> {
        let reader = self.feed.reader();
        reader.page(&self.tenant, &self.scope, self.cursor, self.page_records).await
    }

    fn pass_on(&mut self, page: FeedPage) -> FeedBatch {
        self.cursor = Some(page.cursor);
        match &mut self.phase {
            Phase::Together(joined) => joined.is_behind = page.more,
            Phase::Alone if !page.more => self.phase = Phase::CaughtUp,
            Phase::Alone | Phase::CaughtUp | Phase::Ended => {}
        }
        FeedBatch { events: page.events, cursor: page.cursor }
    }

    /// What is new in a batch, if anything is.
    fn take(&mut self, batch: &Batch) -> Option<FeedBatch> {
        let cursor = self.cursor.filter(|cursor| *cursor < batch.to)?;
        let is_new =
            |event: &&FeedEvent| event.stamp > cursor && self.scope.has(&event.record.cube);
        let events = batch.events.iter().filter(is_new).cloned().collect();
        self.cursor = Some(batch.to);
        Some(FeedBatch { events, cursor: batch.to })
    }
}
