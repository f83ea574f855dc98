//! Reads an event feed: pages after a cursor, of all shards of a tenant or of one.
//!
//! Invariant: a page holds every record of its scope after the cursor that it was asked for and up
//! to the cursor that it answers with, in the order of the stamps. All shards are read at one
//! version; where a shard's rows were cut short, nothing beyond the smallest cut is answered,
//! because the shard that was cut there may have something in between.

use std::collections::BTreeSet;

use memcube_schemas::{
    CubeId, Stamp, TenantId, Version,
    codec::decode,
    feed::FeedMark,
    keys::{self, FEED_SHARDS, KeyRange},
    limits::{FEED_FILTER_CUBES_MAX, FEED_PAGE_RECORDS_MAX},
};

use super::FeedEvent;
use crate::{
    defects::Defect,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    storage::{RangePage, RangeRead, ReadOutput, SharedStore},
};

/// Which cubes' events are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FeedScope {
    /// Those of all cubes of the tenant.
    #[default]
    All,
    /// Those of these cubes.
    Cubes(BTreeSet<CubeId>),
}

impl FeedScope {
    /// The events of these cubes; of all cubes if none is named.
    ///
    /// # Errors
    /// `Invalid` when too many are named.
    pub fn of_cubes(cubes: impl IntoIterator<Item = CubeId>) -> Result<Self> {
        let cubes: BTreeSet<CubeId> = cubes.into_iter().collect();
        if cubes.len() > FEED_FILTER_CUBES_MAX {
            return Err(Error::invalid(format!(
                "{} cubes are named, at most {FEED_FILTER_CUBES_MAX} are taken; name none to \
                 follow all of them",
                cubes.len()
            )));
        }
        Ok(if cubes.is_empty() { Self::All } else { Self::Cubes(cubes) })
    }

    /// Whether events of this cube are wanted.
    #[must_use]
    pub fn has(&self, cube: &CubeId) -> bool {
        match self {
            Self::All => true,
            Self::Cubes(cubes) => cubes.contains(cube),
        }
    }

    /// The shards in which there may be such events.
    fn shards(&self) -> BTreeSet<u16> {
        match self {
            Self::All => (0..FEED_SHARDS).collect(),
            Self::Cubes(cubes) => cubes.iter().map(keys::feed_shard).collect(),
        }
    }
}

/// A stretch of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedPage {
    /// In the order of the store.
    pub events: Vec<FeedEvent>,
    /// The place up to which this page is complete: read on after it.
    pub cursor: Stamp,
    /// The version of the store that was read.
    pub version: Version,
    /// Whether there is more after the cursor already.
    pub more: bool,
}

/// Reads feeds. Cheap to clone.
#[derive(Clone)]
pub struct FeedReader {
    store: SharedStore,
    environment: Environment,
}

impl FeedReader {
    /// Reads from this store.
    #[must_use]
    pub const fn new(store: SharedStore, environment: Environment) -> Self {
        Self { store, environment }
    }

    pub(super) const fn store(&self) -> &SharedStore {
        &self.store
    }

    pub(super) const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The place after everything that has been committed so far.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn newest(&self, tenant: &TenantId) -> Result<Stamp> {
        let read = RangeRead::key(keys::feed_floor(tenant, 0));
        Ok(Stamp::end_of(self.store.read(vec![read]).await?.version))
    }

    /// A page of a tenant's feed after a cursor, or from the oldest record that is kept.
    ///
    /// # Errors
    /// `Gone` when records after the cursor were trimmed, or when the cursor is not one of this
    /// store; `Invalid` when the page is too large; `Unavailable` when the store does not answer;
    /// `Corrupt` when a record cannot be read.
    pub async fn page(
        &self,
        tenant: &TenantId,
        scope: &FeedScope,
        after: Option<Stamp>,
        limit: usize,
    ) -> Result<FeedPage> {
        check_limit(limit)?;
        let shards = scope.shards();
        let output = self.read_shards(tenant, &shards, after, limit).await?;
        let floors = output.pages.iter().take(shards.len());
        check_cursor(after, output.version, floors)?;
        let pages = output.pages.iter().skip(shards.len());
        let takes_widest = self.environment.plants(Defect::SkippedEvent);
        let mut page = merge(pages, output.version, takes_widest)?;
        if page.more {
            self.environment.reach("feed.page-cut", "");
        }
        page.events.retain(|event| scope.has(&event.record.cube));
        shorten(&mut page, limit);
        Ok(page)
    }

    /// A page of one shard of a tenant's feed, for consumers that keep a cursor for each shard.
    ///
    /// # Errors
    /// As `page`.
    pub async fn shard_page(
        &self,
        tenant: &TenantId,
        shard: u16,
        after: Option<Stamp>,
        limit: usize,
    ) -> Result<FeedPage> {
        check_limit(limit)?;
        let shards = BTreeSet::from([shard]);
        let output = self.read_shards(tenant, &shards, after, limit).await?;
        check_cursor(after, output.version, output.pages.iter().take(1))?;
        merge(output.pages.iter().skip(1), output.version, false)
    }

    /// The floors of these shards, and then a page of each, at one version.
    async fn read_shards(
        &self,
        tenant: &TenantId,
        shards: &BTreeSet<u16>,
        after: Option<Stamp>,
        limit: usize,
    ) -> Result<ReadOutput> {
        let share = limit.div_ceil(shards.len().max(1));
        let floors = shards.iter().map(|shard| RangeRead::key(keys::feed_floor(tenant, *shard)));
        let pages =
            shards.iter().map(|shard| RangeRead::page(range_after(tenant, *shard, after), share));
        Ok(self.store.read(floors.chain(pages).collect()).await?)
    }
}

/// The records of a shard after a place.
pub(super) fn range_after(tenant: &TenantId, shard: u16, after: Option<Stamp>) -> KeyRange {
    let range = keys::feed(tenant, shard);
    match after {
        Some(stamp) => range.after(&keys::feed_record(tenant, shard, stamp)),
        None => range,
    }
}

/// The mark in a row that holds one, or nowhere yet.
pub(super) fn mark_of(page: &RangePage) -> Result<Option<Stamp>> {
    let row = page.entries.first();
    row.map(|row| Ok(decode::<FeedMark>(&row.value)?.stamp)).transpose()
}

fn check_limit(limit: usize) -> Result<()> {
    if (1..=FEED_PAGE_RECORDS_MAX).contains(&limit) {
        return Ok(());
    }
    Err(Error::invalid(format!("`limit` must be between 1 and {FEED_PAGE_RECORDS_MAX}")))
}

/// Refuses a cursor after which something is missing.
fn check_cursor<'a>(
    after: Option<Stamp>,
    version: Version,
    floors: impl Iterator<Item = &'a RangePage>,
) -> Result<()> {
    // Who begins with the oldest record that is kept misses nothing that it asked for.
    let Some(after) = after else { return Ok(()) };
    let newest = Stamp::end_of(version);
    let what_to_do =
        format!("list the memories, then follow the feed from its newest cursor `{newest}`");
    if after > newest {
        return Err(Error::new(
            ErrorKind::Gone,
            format!(
                "the cursor `{after}` lies ahead of everything in this store, so it is of another \
                 one, or this one was restored; {what_to_do}"
            ),
        ));
    }
    for floor in floors {
        if let Some(floor) = mark_of(floor)?
            && floor > after
        {
            return Err(Error::new(
                ErrorKind::Gone,
                format!("events after `{after}` were trimmed, up to `{floor}`; {what_to_do}"),
            ));
        }
    }
    Ok(())
}

/// Puts the pages of shards, read at one version, in one order.
fn merge<'a>(
    pages: impl Iterator<Item = &'a RangePage>,
    version: Version,
    takes_widest: bool,
) -> Result<FeedPage> {
    let mut events = Vec::new();
    let mut cuts: Vec<Stamp> = Vec::new();
    for page in pages {
        let mut last = None;
        for entry in &page.entries {
            let stamp = keys::feed_stamp(&entry.key)
                .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a feed key carries no stamp"))?;
            events.push(FeedEvent { stamp, record: decode(&entry.value)? });
            last = Some(stamp);
        }
        cuts.extend(last.filter(|_| page.more));
    }
    let cut = if takes_widest { cuts.iter().max() } else { cuts.iter().min() }.copied();
    if let Some(cut) = cut {
        events.retain(|event| event.stamp <= cut);
    }
    events.sort_unstable_by_key(|event| event.stamp);
    let cursor = cut.unwrap_or_else(|| Stamp::end_of(version));
    Ok(FeedPage { events, cursor, version, more: cut.is_some() })
}

/// Cuts a page that has become longer than was asked for: every shard had its share rounded up.
fn shorten(page: &mut FeedPage, limit: usize) {
    if page.events.len() > limit {
        page.events.truncate(limit);
        page.cursor = page.events.last().map_or(page.cursor, |event| event.stamp);
        page.more = true;
    }
}

#[cfg(test)]
mod tests {
    use memcube_schemas::{
        Epoch,
        codec::encode,
        feed::{FeedChange, FeedRecord},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::storage::Entry;

    fn stamp(number: u64) -> Stamp {
        // Three commits share a version, as they may.
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&(number / 3).to_be_bytes());
        bytes[8..].copy_from_slice(&u32::try_from(number % 3).expect("small").to_be_bytes());
        Stamp(bytes)
    }

    fn rows(numbers: &[u64], limit: usize) -> RangePage {
        let tenant = TenantId::new("acme").expect("valid");
        let entry = |number: &u64| Entry {
            key: keys::feed_record(&tenant, 0, stamp(*number)),
            value: encode(&FeedRecord {
                cube: CubeId::new(format!("cube {}", number % 5)).expect("valid"),
                epoch: Epoch(1),
                version: Version(*number),
                at_ms: 0,
                change: FeedChange::Items(Vec::new()),
            }),
            version: Version(*number / 3),
        };
        let entries = numbers.iter().take(limit).map(entry).collect();
        RangePage { entries, more: numbers.len() > limit }
    }

    /// Reads everything by pages, and returns the numbers in the order in which they came.
    fn read_all(shards: &[Vec<u64>], share: usize, limit: usize, takes_widest: bool) -> Vec<u64> {
        let mut after: Option<Stamp> = None;
        let mut read = Vec::new();
        for _ in 0..1_000 {
            let left = shards.iter().map(|shard| -> Vec<u64> {
                let is_left = |number: &&u64| after.is_none_or(|after| stamp(**number) > after);
                shard.iter().filter(is_left).copied().collect()
            });
            let pages: Vec<RangePage> = left.map(|left| rows(&left, share)).collect();
            let mut page = merge(pages.iter(), Version(1_000), takes_widest).expect("read");
            shorten(&mut page, limit);
            assert!(page.events.len() <= limit);
            read.extend(page.events.iter().map(|event| event.record.version.0));
            assert!(after.is_none_or(|after| page.cursor > after), "it goes on");
            after = Some(page.cursor);
            if !page.more {
                return read;
            }
        }
        panic!("it never ends");
    }

    proptest! {
        #[test]
        fn pages_of_any_size_tell_everything_once_and_in_order(
            places in proptest::collection::vec(0_usize..4, 0..60),
            share in 1_usize..6, limit in 1_usize..9,
        ) {
            let mut shards = vec![Vec::new(); 4];
            for (number, place) in places.iter().enumerate() {
                shards[*place].push(number as u64);
            }
            let all: Vec<u64> = (0..places.len() as u64).collect();
            prop_assert_eq!(read_all(&shards, share, limit, false), all);
        }
    }

    #[test]
    fn the_planted_bug_skips_events() {
        let shards = [vec![0, 1, 2, 3], vec![4, 5, 6, 7]];
        assert_eq!(read_all(&shards, 2, 9, true), [0, 1, 4, 5, 6, 7]);
    }

    #[test]
    fn a_cursor_is_good_from_the_floor_to_the_newest() {
        let floor = RangePage {
            entries: vec![Entry {
                key: Vec::new(),
                value: encode(&FeedMark { stamp: stamp(6) }),
                version: Version(9),
            }],
            more: false,
        };
        let none = RangePage::default();
        let check =
            |after: Option<Stamp>| check_cursor(after, Version(9), [&none, &floor].into_iter());
        for good in [None, Some(stamp(6)), Some(stamp(7)), Some(Stamp::end_of(Version(9)))] {
            assert_eq!(check(good), Ok(()));
        }
        for (bad, why) in [(stamp(5), "were trimmed"), (stamp(30), "lies ahead")] {
            let error = check(Some(bad)).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Gone);
            assert!(error.message().contains(why), "{error}");
        }
    }
}
