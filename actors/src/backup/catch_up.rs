//! The second half of a scan: follows the feed until one read shows the cube at rest.

use memcube_schemas::{
    MemoryId, Stamp,
    backup::RowChange,
    codec::decode,
    cube::CubeManifest,
    feed::{FeedChange, FeedMark, FeedRecord},
    keys,
};

use super::{
    read,
    scan::{RowKind, Scan, take_first},
};
use crate::{
    cube::CubeKey,
    error::{Error, ErrorKind, Result},
    storage::{Entry, RangePage, RangeRead},
};

/// Rounds before a scan gives up. A round takes about as long as one commit of the cube.
const ROUNDS_MAX: usize = 1_024;
/// Records of the feed in one round.
const ROUND_RECORDS: usize = if cfg!(test) { 8 } else { 64 };
/// Items that one round reads again.
const ROUND_ITEMS: usize = if cfg!(test) { 8 } else { 128 };
/// Former versions of an item that a round reads; more are read page by page.
const ROUND_HISTORY: usize = if cfg!(test) { 2 } else { 16 };

/// How a scan caught up.
pub(super) enum CaughtUp {
    /// With the version of this manifest.
    At(Entry),
    /// The cube was deleted.
    Gone,
    /// It cannot: the cube was made anew, or the feed was cut off.
    Again,
}

/// What the records of one round say.
#[derive(Default)]
struct News {
    /// Whether there are more.
    more: bool,
    /// Whether the cube ended or began.
    is_other_cube: bool,
    /// Items that were changed.
    changed: Vec<MemoryId>,
}

impl Scan<'_, '_> {
    /// Goes round until nothing happened that the last round has not read.
    ///
    /// # Errors
    /// As `Scan::run`.
    pub(super) async fn catch_up(&mut self) -> Result<CaughtUp> {
        for _ in 0..ROUNDS_MAX {
            self.environment.reach("backup.round", self.key.cube.as_str());
            let again: Vec<MemoryId> = self.pending.iter().take(ROUND_ITEMS).copied().collect();
            let is_last = again.len() == self.pending.len();
            let ranges = self.round(&again, is_last);
            let output = read(self.store, self.environment, ranges).await?;
            let mut pages = output.pages.into_iter();
            let (feed, floor) = (pages.next().unwrap_or_default(), take_first(pages.next()));
            if let Some(floor) = floor
                && decode::<FeedMark>(&floor.value)?.stamp > self.cursor
            {
                return Ok(CaughtUp::Again);
            }
            let Some(row) = take_first(pages.next()) else { return Ok(CaughtUp::Gone) };
            let requests =
                if is_last { pages.next().unwrap_or_default() } else { RangePage::default() };
            let news = self.take_records(&feed)?;
            if news.is_other_cube {
                return Ok(CaughtUp::Again);
            }
            if !news.more {
                self.cursor = Stamp::end_of(output.version);
            }
            let is_whole = self.read_again(&again, pages).await?;
            self.pending.extend(news.changed.iter().filter(|id| !again.contains(id)));
            let has_vectors = self.check_vectors(&row, &news).await?;
            if is_last && is_whole && has_vectors && !news.more && self.pending.is_empty() {
                self.emit(RowKind::Request, requests.entries).await?;
                return Ok(CaughtUp::At(row));
            }
        }
        let message =
            "the cube changes faster than it can be read; take the backup at a quieter time";
        Err(Error::new(ErrorKind::Overloaded, message))
    }

    /// What one round reads, all at one version.
    fn round(&self, again: &[MemoryId], is_last: bool) -> Vec<RangeRead> {
        let CubeKey { tenant, cube } = self.key;
        let shard = keys::feed_shard(cube);
        let after = keys::feed_record(tenant, shard, self.cursor);
        let mut ranges = vec![
            RangeRead::page(keys::feed(tenant, shard).after(&after), ROUND_RECORDS),
            RangeRead::key(keys::feed_floor(tenant, shard)),
            RangeRead::key(self.manifest_key()),
        ];
        if is_last {
            ranges.extend(self.range(RowKind::Request).map(RangeRead::all));
        }
        for id in again {
            ranges.push(RangeRead::key(keys::item(tenant, cube, *id)));
            let history = keys::history_of_item(tenant, cube, *id);
            ranges.push(RangeRead::page(history, ROUND_HISTORY));
            let vector = |model| RangeRead::key(keys::vector(tenant, cube, model, *id));
            ranges.extend(self.model.as_ref().map(vector));
        }
        ranges
    }

    /// Reads records of the feed, and moves on behind them.
    fn take_records(&mut self, feed: &RangePage) -> Result<News> {
        let mut news = News { more: feed.more, ..News::default() };
        for entry in &feed.entries {
            let stamp = keys::feed_stamp(&entry.key)
                .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a key of the feed has no stamp"))?;
            self.cursor = stamp;
            let record: FeedRecord = decode(&entry.value)?;
            if record.cube != self.key.cube {
                continue;
            }
            self.told = stamp.version();
            match record.change {
                FeedChange::CubeMade | FeedChange::CubeErased | FeedChange::CubeRestored => {
                    news.is_other_cube = true;
                }
                FeedChange::Items(items) => {
                    news.changed.extend(items.iter().map(|(id, _, _)| *id));
                }
            }
        }
        Ok(news)
    }

    /// Writes down what a round has read of these items. Returns whether that was all of them at
    /// the
    /// version of the round.
    async fn read_again(
        &mut self,
        again: &[MemoryId],
        mut pages: impl Iterator<Item = RangePage>,
    ) -> Result<bool> {
        let mut is_whole = true;
        for id in again {
            self.pending.remove(id);
            self.write(RowChange::ForgetMemory(*id)).await?;
            let item = pages.next().unwrap_or_default();
            let history = pages.next().unwrap_or_default();
            let vector = match self.model {
                Some(_) => pages.next().unwrap_or_default(),
                None => RangePage::default(),
            };
            self.emit(RowKind::Item, item.entries).await?;
            self.emit(RowKind::Vector, vector.entries).await?;
            // The further pages are read later than the round; the next one confirms them.
            is_whole &= !history.more;
            let range = keys::history_of_item(&self.key.tenant, &self.key.cube, *id);
            self.scan_on(RowKind::History, range, history).await?;
        }
        Ok(is_whole)
    }

    /// Vectors may be filled in without a record, by a commit that writes the manifest all the
    /// same.
    /// Returns whether those that were read still are the ones that there are.
    async fn check_vectors(&mut self, row: &Entry, news: &News) -> Result<bool> {
        let manifest: CubeManifest = decode(&row.value)?;
        let is_told = [self.manifest_row, self.told].contains(&row.version);
        let is_untold = !news.more && !is_told;
        let is_snapshot = manifest.snapshot != self.snapshot;
        self.snapshot = manifest.snapshot;
        if !news.more {
            self.manifest_row = row.version;
        }
        if manifest.embedder == self.model && (!is_untold || is_snapshot) {
            return Ok(true);
        }
        self.environment.reach("backup.vectors-again", self.key.cube.as_str());
        self.model = manifest.embedder;
        self.write(RowChange::ForgetVectors).await?;
        self.scan_vectors().await?;
        Ok(false)
    }
}
