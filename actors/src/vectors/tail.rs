//! Reads what happened in a shard of a tenant's feed after a place in it.

use std::collections::BTreeSet;

use memcube_schemas::{
    CubeId, MemoryId, Stamp, TenantId, Version,
    codec::decode,
    feed::{FeedChange, FeedMark, FeedRecord},
    keys,
};

use crate::{
    error::Result,
    storage::{RangePage, RangeRead, SharedStore},
};

/// What changed, without order: whoever reads it looks at the rows as they are now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Memories that were added, changed or deleted.
    pub(crate) items: BTreeSet<(CubeId, MemoryId)>,
    /// Cubes that were deleted; one of the same name may have been made since.
    pub(crate) erased: BTreeSet<CubeId>,
    /// Commits that were read.
    pub(crate) records: usize,
}

/// A part of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Everything from the place asked about up to another.
    Read {
        changed: Changed,
        /// The last record that was read; where none is left, the end of the version that was read.
        upto: Stamp,
        /// Whether there are further ones.
        more: bool,
    },
    /// Records after that place were cut off, or do not name what they brought: a cube out of a
    /// backup.
    Gap,
}

/// The ranges to read for one page of a tail; [`page`] understands what they hold.
pub(crate) fn ranges(
    tenant: &TenantId,
    shard: u16,
    after: Stamp,
    records: usize,
) -> [RangeRead; 2] {
    let range = keys::feed(tenant, shard).after(&keys::feed_record(tenant, shard, after));
    [RangeRead::key(keys::feed_floor(tenant, shard)), RangeRead::page(range, records)]
}

/// Understands what [`ranges`] read at a version.
pub(crate) fn page(after: Stamp, version: Version, pages: &[RangePage]) -> Result<Tail> {
    let [floor, records] = pages else {
        return Ok(Tail::Read { changed: Changed::default(), upto: after, more: false });
    };
    if let Some(entry) = floor.entries.first()
        && decode::<FeedMark>(&entry.value)?.stamp > after
    {
        return Ok(Tail::Gap);
    }
    let mut changed = Changed::default();
    let mut upto = after;
    for entry in &records.entries {
        let record: FeedRecord = decode(&entry.value)?;
        if record.change == FeedChange::CubeRestored {
            return Ok(Tail::Gap);
        }
        changed.add(record);
        upto = keys::feed_stamp(&entry.key).unwrap_or(upto);
    }
    if !records.more {
        upto = upto.max(Stamp::end_of(version));
    }
    Ok(Tail::Read { changed, upto, more: records.more })
}

/// Reads one page of one tail.
pub(crate) async fn read(
    store: &SharedStore,
    tenant: &TenantId,
    shard: u16,
    after: Stamp,
    records: usize,
) -> Result<Tail> {
    let output = store.read(ranges(tenant, shard, after, records).into()).await?;
    page(after, output.version, &output.pages)
}

impl Changed {
    fn add(&mut self, record: FeedRecord) {
        self.records += 1;
        match record.change {
            FeedChange::CubeMade | FeedChange::CubeRestored => {}
            FeedChange::Items(items) => {
                let items = items.into_iter().map(|(id, _, _)| (record.cube.clone(), id));
                self.items.extend(items);
            }
            FeedChange::CubeErased => {
                self.erased.insert(record.cube);
            }
        }
    }

    /// Adds what came after.
    pub(crate) fn extend(&mut self, other: Self) {
        self.items.extend(other.items);
        self.erased.extend(other.erased);
        self.records += other.records;
    }
}
