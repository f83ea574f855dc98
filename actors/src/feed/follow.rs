//! Named consumers of the feeds of all tenants: whatever derives something from them and remembers
//! in the store how far it is, such as an index.
//!
//! *Where is news?* Every commit writes the pointer of its shard, so the pointers of a ring name
//! the
//! shards of all tenants that have records, and the version of a pointer's row is that of the last
//! commit there. Consumers share the pointers, so none of them may remove one: a consumer has news
//! in a shard if its own cursor lies before the end of the pointer's version. The housekeeper
//! removes a pointer when it has trimmed the last record of its shard and every consumer is past
//! it; so the pointers are as many as the shards that changed within the time that records are
//! kept. (A pointer for each consumer would make every commit write one row a consumer, and know
//! them.)
//!
//! *Who works?* Anybody may, and placement says who should ([`View::keeps`]). Two that work on the
//! same shard both act, and one of them moves the cursor: moving it checks its row. So what a
//! consumer does has to bear repetition, and a crash between acting and moving repeats it, too.
//!
//! *What is kept for a consumer?* From its cursor row's first commit on, nothing after the cursor
//! is
//! trimmed: that commit writes the floor's row as well, which every trim checks. A consumer that
//! joins a shard of which something was trimmed before starts with a cursor behind the floor, and
//! stays there until it has made up for it from the cubes' rows.
//!
//! [`View::keeps`]: crate::cluster::View::keeps

use std::{ops::Range, time::Duration};

use futures_util::future::{BoxFuture, select_all};
use memcube_schemas::{
    Stamp, TenantId, Version,
    codec::{decode, encode},
    feed::FeedMark,
    keys,
};

use super::{FeedPage, FeedReader, read::mark_of};
use crate::{
    cube::commit,
    error::{Error, ErrorKind, Result},
    storage::{Check, Mutation, RangePage, RangeRead, StoreError},
};

/// How often rings are looked at without their doorbells, in case that one was not heard.
const POLL_EVERY: Duration = Duration::from_secs(5);
/// Pointers read at once.
const POINTERS_PER_READ: usize = 256;

/// A shard of a tenant's feed that a consumer has not worked off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct News {
    /// Whose feed.
    pub tenant: TenantId,
    /// Which shard of it.
    pub shard: u16,
}

/// How far a consumer is in a shard of a tenant's feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    tenant: TenantId,
    shard: u16,
    cursor: Stamp,
    /// The commit that wrote the cursor's row.
    row: Version,
    missed: bool,
}

impl Place {
    /// Everything up to here is done.
    #[must_use]
    pub const fn cursor(&self) -> Stamp {
        self.cursor
    }

    /// Whether records after the cursor were trimmed before this consumer joined: it has to make up
    /// for them from the cubes' rows, and then to move to where the feed was before it began that.
    #[must_use]
    pub const fn missed(&self) -> bool {
        self.missed
    }
}

/// A consumer that the store knows by name. Cheap to clone.
#[derive(Clone)]
pub struct Follower {
    reader: FeedReader,
    consumer: String,
}

impl Follower {
    /// A consumer of this name. The name is stored, and never changed.
    #[must_use]
    pub fn new(reader: FeedReader, consumer: &str) -> Self {
        Self { reader, consumer: consumer.to_owned() }
    }

    /// What reads the feeds.
    #[must_use]
    pub const fn reader(&self) -> &FeedReader {
        &self.reader
    }

    /// The shards told on a ring that have news for this consumer.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer, `Corrupt` when a row cannot be read.
    pub async fn news(&self, ring: u16) -> Result<Vec<News>> {
        let mut news = Vec::new();
        let mut range = keys::feed_pointers(ring);
        loop {
            let read = RangeRead::page(range.clone(), POINTERS_PER_READ);
            let output = self.reader.store().read(vec![read]).await?;
            let Some(page) = output.pages.into_iter().next() else { return Ok(news) };
            news.extend(self.not_worked_off(&page).await?);
            match page.entries.last() {
                Some(last) if page.more => range = range.after(&last.key),
                Some(_) | None => return Ok(news),
            }
        }
    }

    async fn not_worked_off(&self, pointers: &RangePage) -> Result<Vec<News>> {
        let pointed = |key: &[u8]| {
            let feed = keys::pointed_feed(key).map(|(tenant, shard)| News { tenant, shard });
            feed.ok_or_else(|| Error::new(ErrorKind::Corrupt, "a pointer names no feed"))
        };
        let mut told = Vec::with_capacity(pointers.entries.len());
        for pointer in &pointers.entries {
            told.push((pointed(&pointer.key)?, Stamp::end_of(pointer.version)));
        }
        let cursors = told.iter().map(|(news, _)| {
            RangeRead::key(keys::feed_cursor(&news.tenant, news.shard, &self.consumer))
        });
        let output = self.reader.store().read(cursors.collect()).await?;
        let mut news = Vec::new();
        for ((told, last), cursor) in told.into_iter().zip(&output.pages) {
            if mark_of(cursor)?.is_none_or(|cursor| cursor < last) {
                news.push(told);
            }
        }
        Ok(news)
    }

    /// How far this consumer is. At its first look at a shard it joins it: from then on nothing
    /// that it has not worked off is trimmed.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer, `Corrupt` when a row cannot be read,
    /// `Conflict` when another one of this name joined just now: try again.
    pub async fn place(&self, news: &News) -> Result<Place> {
        let News { tenant, shard } = news;
        let cursor_key = keys::feed_cursor(tenant, *shard, &self.consumer);
        let floor_key = keys::feed_floor(tenant, *shard);
        let reads = [&cursor_key, &floor_key].map(|key| RangeRead::key(key.clone()));
        let output = self.reader.store().read(reads.into()).await?;
        let [cursor, floor] = output.pages.as_slice() else {
            return Err(Error::internal("a read of two keys gave another number of pages"));
        };
        let floor_mark = mark_of(floor)?.unwrap_or_default();
        let place = |cursor: Stamp, row: Version| Place {
            tenant: tenant.clone(),
            shard: *shard,
            cursor,
            row,
            missed: floor_mark > cursor,
        };
        if let Some(row) = cursor.entries.first() {
            return Ok(place(decode::<FeedMark>(&row.value)?.stamp, row.version));
        }
        let begin = Stamp::default();
        // The floor is written as it is, so that a trim which did not see the new cursor fails.
        let checks = vec![Check::Absent { key: cursor_key.clone() }, unchanged(&floor_key, floor)];
        let mutations = vec![set(cursor_key, begin), set(floor_key, floor_mark)];
        let (store, environment) = (self.reader.store(), self.reader.environment());
        let row = commit(store, environment, checks, mutations).await?;
        Ok(place(begin, row))
    }

    /// What comes after a place.
    ///
    /// # Errors
    /// As [`FeedReader::shard_page`]; `Gone` for a place that has missed something.
    pub async fn page(&self, place: &Place, limit: usize) -> Result<FeedPage> {
        let after = (place.missed || place.cursor > Stamp::default()).then_some(place.cursor);
        self.reader.shard_page(&place.tenant, place.shard, after, limit).await
    }

    /// Moves on: everything up to the cursor of the page that was read is done. What had been
    /// missed counts as made up for.
    ///
    /// # Errors
    /// `Conflict` when somebody else has moved this consumer's cursor: ask for the place again, and
    /// do not count on having been the only one to act. `Unavailable` when the outcome is not
    /// known: ask again as well.
    pub async fn advance(&self, place: Place, to: Stamp) -> Result<Place> {
        if to <= place.cursor {
            return Ok(place);
        }
        let key = keys::feed_cursor(&place.tenant, place.shard, &self.consumer);
        let checks = vec![Check::At { key: key.clone(), version: place.row }];
        let (store, environment) = (self.reader.store(), self.reader.environment());
        match commit(store, environment, checks, vec![set(key, to)]).await {
            Ok(row) => Ok(Place { cursor: to, row, missed: false, ..place }),
            Err(StoreError::Conflict { .. }) => Err(Error::new(
                ErrorKind::Conflict,
                format!("another `{}` has worked on this shard; ask for its place", self.consumer),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Leaves a shard: nothing is kept for this consumer there any more.
    ///
    /// # Errors
    /// `Conflict` when its cursor was moved meanwhile, `Unavailable` when the store does not
    /// answer.
    pub async fn leave(&self, place: Place) -> Result<()> {
        let key = keys::feed_cursor(&place.tenant, place.shard, &self.consumer);
        let checks = vec![Check::At { key: key.clone(), version: place.row }];
        let (store, environment) = (self.reader.store(), self.reader.environment());
        commit(store, environment, checks, vec![Mutation::Clear { key }]).await?;
        Ok(())
    }

    /// Waits for news on some of the rings.
    #[must_use]
    pub fn watch(&self, rings: Range<u16>) -> Watch {
        let rings = rings.map(|ring| Ring { ring, seen: None, is_due: true }).collect();
        Watch { follower: self.clone(), rings }
    }
}

/// A consumer's wait for news, on one doorbell a ring.
pub struct Watch {
    follower: Follower,
    rings: Vec<Ring>,
}

struct Ring {
    ring: u16,
    /// The commit that rang last, as far as this watch has looked.
    seen: Option<Version>,
    is_due: bool,
}

impl Watch {
    /// The shards that have news, as soon as there are some. What is not worked off is named again
    /// after the next ring of its doorbell, or after a few seconds.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer, `Corrupt` when a row cannot be read; the rings
    /// that were not looked at stay due.
    pub async fn next(&mut self) -> Result<Vec<News>> {
        loop {
            let mut news = Vec::new();
            for ring in &mut self.rings {
                if !ring.is_due {
                    continue;
                }
                // The doorbell first: what rings from then on ends the wait.
                let bell = RangeRead::key(keys::feed_doorbell(ring.ring));
                let output = self.follower.reader.store().read(vec![bell]).await?;
                let row = output.pages.first().and_then(|page| page.entries.first());
                ring.seen = row.map(|row| row.version);
                news.extend(self.follower.news(ring.ring).await?);
                ring.is_due = false;
            }
            if !news.is_empty() {
                return Ok(news);
            }
            self.wait().await?;
        }
    }

    /// Waits for the first doorbell, or until it is time to look all the same.
    async fn wait(&mut self) -> Result<()> {
        let store = self.follower.reader.store();
        let bells: Vec<BoxFuture<'_, _>> = self
            .rings
            .iter()
            .map(|ring| store.changed(keys::feed_doorbell(ring.ring), ring.seen))
            .collect();
        if bells.is_empty() {
            return std::future::pending().await;
        }
        let rung = tokio::select! {
            biased;
            (heard, rung, _) = select_all(bells) => {
                // One that failed may have missed something.
                heard.map(|()| Some(rung))
            }
            () = tokio::time::sleep(POLL_EVERY) => Ok(None),
        };
        match rung {
            Ok(Some(rung)) => self.rings[rung].is_due = true,
            Ok(None) => self.rings.iter_mut().for_each(|ring| ring.is_due = true),
            Err(error) => {
                self.rings.iter_mut().for_each(|ring| ring.is_due = true);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// The condition that a row is as it was read.
pub(super) fn unchanged(key: &[u8], read: &RangePage) -> Check {
    let key = key.to_vec();
    match read.entries.first() {
        Some(row) => Check::At { key, version: row.version },
        None => Check::Absent { key },
    }
}

pub(super) fn set(key: Vec<u8>, stamp: Stamp) -> Mutation {
    Mutation::Set { key, value: encode(&FeedMark { stamp }) }
}
