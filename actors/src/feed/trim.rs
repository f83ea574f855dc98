//! Removes what is old from the feeds.
//!
//! Invariant: nothing is removed that a named consumer has not worked off, whatever the clocks say.
//! A trim removes the rows and moves the floor in one commit, under the condition that the floor is
//! as it was read together with the cursors: a consumer that joins writes the floor's row, too, and
//! cursors only move on.
//!
//! Age comes from the owners' clocks (`FeedRecord::at_ms`). A record is removed only together with
//! all that stand before it, so a clock that is behind removes nothing that is younger and stands
//! further in front. A record that claims to be of the future says nothing about age, and goes with
//! the next one that does.

use futures_util::future::BoxFuture;
use memcube_schemas::{
    Stamp, TenantId,
    codec::decode,
    feed::{FeedMark, FeedRecord},
    keys::{self, FEED_RINGS, KeyRange},
    limits::FEED_TRIM_RECORDS_MAX,
};

use super::{
    FeedReader,
    follow::{set, unchanged},
};
use crate::{
    cluster::View,
    cube::commit,
    defects::Defect,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    housekeeper::Chore,
    metrics as names,
    scheduler::jobs::JobKind,
    storage::{Check, Entry, Mutation, RangePage, RangeRead, StoreError},
};

/// Rings whose pointers are read at once, and pointers of one of them.
const RINGS_PER_READ: usize = 32;
const POINTERS_PER_PAGE: usize = 64;
/// Records that a first look at a shard reads: mostly even the oldest ones are too young.
const FIRST_LOOK_RECORDS: usize = 8;
/// How often a trim is tried again that met somebody else's.
const TRIES: usize = 3;

/// Trims the feeds of all tenants. In a cluster each ring is the work of one node.
pub struct FeedTrimmer {
    reader: FeedReader,
    keep_ms: u64,
    period_ms: u64,
}

impl FeedTrimmer {
    /// Keeps records for so many milliseconds, and looks every so often.
    #[must_use]
    pub const fn new(reader: FeedReader, keep_ms: u64, period_ms: u64) -> Self {
        Self { reader, keep_ms, period_ms }
    }

    fn environment(&self) -> &Environment {
        self.reader.environment()
    }

    async fn trim_rings(&self, rings: &[u16]) -> Result<u64> {
        let mut removed = 0;
        let mut ranges: Vec<KeyRange> =
            rings.iter().map(|ring| keys::feed_pointers(*ring)).collect();
        while !ranges.is_empty() {
            let page = |range: &KeyRange| RangeRead::page(range.clone(), POINTERS_PER_PAGE);
            let output = self.reader.store().read(ranges.iter().map(page).collect()).await?;
            let mut rest = Vec::new();
            for (range, page) in ranges.into_iter().zip(&output.pages) {
                for pointer in &page.entries {
                    let Some((tenant, shard)) = keys::pointed_feed(&pointer.key) else { continue };
                    removed += self.trim_shard(&tenant, shard).await?;
                }
                let last = page.entries.last().filter(|_| page.more);
                rest.extend(last.map(|last| range.after(&last.key)));
            }
            ranges = rest;
        }
        Ok(removed)
    }

    /// Removes what is old from one shard, and its pointer with the last record; returns how many
    /// records went.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer, `Corrupt` when a row cannot be read.
    pub async fn trim_shard(&self, tenant: &TenantId, shard: u16) -> Result<u64> {
        let (mut removed, mut tries, mut limit) = (0, 0, FIRST_LOOK_RECORDS);
        loop {
            let step = self.look(tenant, shard, limit).await?;
            if step.mutations.is_empty() && (step.is_last || limit == FEED_TRIM_RECORDS_MAX) {
                return Ok(removed);
            }
            limit = FEED_TRIM_RECORDS_MAX;
            if step.mutations.is_empty() {
                continue;
            }
            let (records, is_last) = (step.records, step.is_last);
            if self.carry_out(step).await? {
                removed += records;
            } else {
                // Somebody else trims here, or a consumer has joined: look again, or next time.
                tries += 1;
            }
            if is_last || tries > TRIES {
                return Ok(removed);
            }
        }
    }

    /// Commits a step; tells whether what it rests on still held.
    pub(super) async fn carry_out(&self, step: Step) -> Result<bool> {
        let Step { checks, mutations, records, .. } = step;
        match commit(self.reader.store(), self.environment(), checks, mutations).await {
            Ok(_) => {
                metrics::counter!(names::FEED_TRIMMED_TOTAL).increment(records);
                self.environment().reach("feed.trimmed", "");
                Ok(true)
            }
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What there is to do about the first records of a shard now.
    pub(super) async fn look(&self, tenant: &TenantId, shard: u16, limit: usize) -> Result<Step> {
        let (floor_key, pointer_key) =
            (keys::feed_floor(tenant, shard), keys::feed_pointer(tenant, shard));
        let reads = vec![
            RangeRead::key(floor_key.clone()),
            RangeRead::key(pointer_key.clone()),
            RangeRead::all(keys::feed_cursors(tenant, shard)),
            RangeRead::page(keys::feed(tenant, shard), limit),
        ];
        let output = self.reader.store().read(reads).await?;
        let [floor, pointer, cursors, records] = output.pages.as_slice() else {
            return Err(Error::internal("a read of four ranges gave another number of pages"));
        };
        let bound = self.slowest(cursors)?;
        let now_ms = self.environment().unix_ms();
        let aged = aged(&records.entries)?;
        let Cut { at: cut, gone, is_decided } = cut(&aged, now_ms, self.keep_ms, bound);
        let is_empty = gone == aged.len() && !records.more;
        let is_last = is_decided || !records.more;
        let mut step = Step { is_last, records: gone as u64, ..Step::default() };
        if let Some(cut) = cut {
            let end = keys::feed_record(tenant, shard, cut);
            let mut range = keys::feed(tenant, shard);
            range.end = range.clone().after(&end).start;
            step.mutations.push(Mutation::ClearRange { range });
            step.mutations.push(set(floor_key.clone(), cut));
        }
        if let Some(pointer) = pointer.entries.first().filter(|_| is_empty)
            && bound.is_none_or(|bound| bound >= Stamp::end_of(pointer.version))
        {
            step.checks.push(Check::At { key: pointer_key.clone(), version: pointer.version });
            step.mutations.push(Mutation::Clear { key: pointer_key });
        }
        step.checks.push(unchanged(&floor_key, floor));
        Ok(step)
    }

    /// How far the slowest consumer of a shard is; `None` without consumers.
    fn slowest(&self, cursors: &RangePage) -> Result<Option<Stamp>> {
        if self.environment().plants(Defect::TrimPastConsumer) {
            return Ok(None);
        }
        let mut slowest: Option<Stamp> = None;
        for row in &cursors.entries {
            let stamp = decode::<FeedMark>(&row.value)?.stamp;
            slowest = Some(slowest.map_or(stamp, |slowest| slowest.min(stamp)));
        }
        Ok(slowest)
    }
}

/// One commit of a trim.
#[derive(Default)]
pub(super) struct Step {
    checks: Vec<Check>,
    mutations: Vec<Mutation>,
    records: u64,
    /// Whether nothing is left to look at.
    is_last: bool,
}

/// A record as far as trimming goes.
#[derive(Debug, Clone, Copy)]
struct Aged {
    stamp: Stamp,
    at_ms: i64,
}

fn aged(rows: &[Entry]) -> Result<Vec<Aged>> {
    let aged = |row: &Entry| {
        let stamp = keys::feed_stamp(&row.key)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "a feed key carries no stamp"))?;
        Ok(Aged { stamp, at_ms: decode::<FeedRecord>(&row.value)?.at_ms })
    };
    rows.iter().map(aged).collect()
}

/// What goes.
struct Cut {
    /// Up to where.
    at: Option<Stamp>,
    /// How many records.
    gone: usize,
    /// Whether a record was met that stays, and with it all that follow.
    is_decided: bool,
}

fn cut(records: &[Aged], now_ms: i64, keep_ms: u64, bound: Option<Stamp>) -> Cut {
    let horizon_ms = now_ms.saturating_sub_unsigned(keep_ms);
    let mut cut = Cut { at: None, gone: 0, is_decided: false };
    for (place, record) in records.iter().enumerate() {
        if bound.is_some_and(|bound| record.stamp > bound) {
            cut.is_decided = true;
            break;
        }
        if record.at_ms > now_ms {
            continue;
        }
        if record.at_ms > horizon_ms {
            cut.is_decided = true;
            break;
        }
        (cut.at, cut.gone) = (Some(record.stamp), place + 1);
    }
    cut
}

impl Chore for FeedTrimmer {
    fn name(&self) -> &'static str {
        "trim-feeds"
    }

    fn kind(&self) -> JobKind {
        JobKind::Feed
    }

    fn period_ms(&self) -> u64 {
        self.period_ms
    }

    fn run<'a>(&'a self, view: &'a View) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let is_ours = |ring: &u16| view.keeps(&format!("feed ring {ring}"));
            let rings: Vec<u16> = (0..FEED_RINGS).filter(is_ours).collect();
            let mut removed = 0;
            for rings in rings.chunks(RINGS_PER_READ) {
                removed += self.trim_rings(rings).await?;
            }
            Ok(removed)
        })
    }
}

#[cfg(test)]
mod tests {
    use memcube_schemas::Version;

    use super::*;

    /// What goes of records of these ages, in seconds, when those of ten seconds and more may go.
    #[track_caller]
    fn check(ages_s: &[i64], bound: Option<u64>, gone: usize) {
        let now_ms = 1_000_000;
        let stamp = |number: u64| Stamp::end_of(Version(number));
        let records: Vec<Aged> = (0..)
            .zip(ages_s)
            .map(|(number, age_s)| Aged { stamp: stamp(number), at_ms: now_ms - age_s * 1_000 })
            .collect();
        let cut = cut(&records, now_ms, 10_000, bound.map(stamp));
        assert_eq!(cut.gone, gone, "{ages_s:?} up to {bound:?}");
        assert_eq!(cut.at, gone.checked_sub(1).map(|last| records[last].stamp));
    }

    #[test]
    fn what_is_old_and_stands_in_front_goes_up_to_the_slowest_consumer() {
        check(&[], None, 0);
        check(&[9, 8], None, 0);
        check(&[30, 20, 10, 9, 1], None, 3);
        check(&[30, 20, 10, 9, 1], Some(1), 2);
        check(&[30, 20, 10], Some(7), 3);
        // A clock that is behind does not take along what is young.
        check(&[30, 5, 500, 20], None, 1);
        // A clock that is ahead holds nothing up, and goes with what comes after it.
        check(&[30, -900, 20, 5], None, 3);
        check(&[30, -900], None, 1);
        check(&[-900, -900], None, 0);
        check(&[30, -900, 20], Some(1), 1);
    }
}
