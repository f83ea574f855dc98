//! Whoever follows a feed is told every commit once and in order, and nothing is trimmed that a
//! consumer has not done.
//!
//! Every stretch that somebody was told is held against the commits: it has to be exactly what was
//! committed between its ends. The stretches of a stream follow each other; of a consumer, every
//! move of its cursor in the store must be a stretch that it was told. It takes the records for the
//! truth (`event-log` judges those), and cannot see whether followers were told soon (liveness
//! can).

use std::collections::BTreeMap;

use memcube_actors::{
    feed::FeedEvent,
    storage::{Mutation, versionstamped_key},
};
use memcube_schemas::{
    Stamp, TenantId,
    codec::decode,
    feed::{FeedMark, FeedRecord},
    keys,
};

use super::{case::Case, findings::Findings};
use crate::{
    evidence::{CommitRecord, FeedStretch, Violation},
    rows::{RowKey, feed_prefix},
    world::CONSUMER,
};

pub(super) const NAME: &str = "feed";

/// A shard of a tenant's feed.
type Shard = (TenantId, u16);

/// Reads the feeds out of the commits, and judges their followers.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let mut feeds = Feeds::default();
    for commit in &case.evidence.commits {
        feeds.commit(commit, &mut findings);
    }
    for (tenant, stretches) in &case.evidence.followed {
        feeds.check_stream(tenant, stretches, &mut findings);
    }
    for (shard, stretches) in &case.evidence.consumed {
        feeds.check_consumer(shard, stretches, &mut findings);
    }
    feeds.check_rows(case, &mut findings);
    findings.into_violations()
}

/// All feeds, as the commits made them.
#[derive(Default)]
struct Feeds {
    /// Every record that was ever written.
    records: BTreeMap<TenantId, BTreeMap<Stamp, (u16, FeedRecord)>>,
    floors: BTreeMap<Shard, Stamp>,
    /// How far each consumer is, by the key of its row.
    cursors: BTreeMap<Shard, BTreeMap<Vec<u8>, Stamp>>,
    /// Every move of the world's own consumer.
    moves: BTreeMap<Shard, Vec<(Stamp, Stamp)>>,
}

impl Feeds {
    fn commit(&mut self, commit: &CommitRecord, findings: &mut Findings) {
        for (position, mutation) in commit.mutations.iter().enumerate() {
            match mutation {
                Mutation::SetVersionstamped { prefix, value } => {
                    let key = versionstamped_key(prefix, commit.version, position);
                    let told = feed_prefix(prefix).zip(keys::feed_stamp(&key));
                    // What cannot be read is an oddity, which another checker tells of.
                    if let (Some(((tenant, shard), stamp)), Ok(record)) = (told, decode(value)) {
                        self.records.entry(tenant).or_default().insert(stamp, (shard, record));
                    }
                }
                Mutation::Set { key, value } => {
                    if let (RowKey::FeedMark { tenant, shard }, Ok(mark)) =
                        (RowKey::parse(key), decode::<FeedMark>(value))
                    {
                        self.mark((tenant, shard), key, mark.stamp, findings);
                    }
                }
                Mutation::Clear { key } => {
                    if let RowKey::FeedMark { tenant, shard } = RowKey::parse(key) {
                        self.cursors.entry((tenant, shard)).or_default().remove(key);
                    }
                }
                Mutation::ClearRange { .. } | Mutation::Add { .. } => {}
            }
        }
    }

    fn mark(&mut self, shard: Shard, key: &[u8], stamp: Stamp, findings: &mut Findings) {
        let title = title(&shard);
        let (tenant, number) = &shard;
        if key == keys::feed_floor(tenant, *number) {
            let before = self.floors.insert(shard.clone(), stamp).unwrap_or_default();
            findings.expect(stamp >= before, || {
                format!("{title}: the floor went back from {before} to {stamp}")
            });
            for cursor in self.cursors.get(&shard).into_iter().flat_map(BTreeMap::values) {
                // A consumer that joins late writes the floor as it is.
                findings.expect(stamp <= *cursor || stamp == before, || {
                    format!("{title}: trimmed up to {stamp}, but a consumer is at {cursor}")
                });
            }
            return;
        }
        let is_ours = key == keys::feed_cursor(tenant, *number, CONSUMER);
        let before = self.cursors.entry(shard.clone()).or_default().insert(key.to_vec(), stamp);
        let Some(before) = before else { return };
        findings.expect(stamp > before, || {
            format!("{title}: a cursor went from {before} to {stamp}")
        });
        if is_ours {
            self.moves.entry(shard).or_default().push((before, stamp));
        }
    }

    /// What was committed between two places, in one shard or in all.
    fn between(
        &self,
        tenant: &TenantId,
        shard: Option<u16>,
        from: Option<Stamp>,
        to: Stamp,
    ) -> Vec<(u16, FeedEvent)> {
        let Some(records) = self.records.get(tenant) else { return Vec::new() };
        let inside = |stamp: &Stamp| from.is_none_or(|from| *stamp > from) && *stamp <= to;
        records
            .iter()
            .filter(|(stamp, (of, _))| inside(stamp) && shard.is_none_or(|shard| shard == *of))
            .map(|(stamp, (of, record))| (*of, FeedEvent { stamp: *stamp, record: record.clone() }))
            .collect()
    }

    fn check_stream(&self, tenant: &TenantId, stretches: &[FeedStretch], findings: &mut Findings) {
        let mut cursor = None;
        for stretch in stretches {
            findings.expect(stretch.from == cursor, || {
                let (from, cursor) = (told(stretch.from), told(cursor));
                format!("{tenant}: a stretch begins after {from}, the last one ended at {cursor}")
            });
            cursor = Some(stretch.to);
            let due = self.between(tenant, None, stretch.from, stretch.to);
            self.check_stretch(tenant, None, stretch, &due, findings);
        }
    }

    fn check_consumer(&self, shard: &Shard, stretches: &[FeedStretch], findings: &mut Findings) {
        let (tenant, number) = shard;
        for stretch in stretches {
            let from = stretch.from.filter(|from| *from > Stamp::default());
            let due = self.between(tenant, Some(*number), from, stretch.to);
            self.check_stretch(tenant, Some(*number), stretch, &due, findings);
        }
        for (from, to) in self.moves.get(shard).into_iter().flatten() {
            let is_told = |stretch: &FeedStretch| {
                stretch.from.unwrap_or_default() == *from && stretch.to == *to
            };
            findings.expect(stretches.iter().any(is_told), || {
                format!("{}: a cursor moved from {from} to {to}, not as it was told", title(shard))
            });
        }
    }

    /// Whether a stretch tells what was committed, no more and no less, in order.
    fn check_stretch(
        &self,
        tenant: &TenantId,
        shard: Option<u16>,
        stretch: &FeedStretch,
        due: &[(u16, FeedEvent)],
        findings: &mut Findings,
    ) {
        let floor = |shard: u16| self.floors.get(&(tenant.clone(), shard)).copied();
        let is_trimmed = |(shard, event): &&(u16, FeedEvent)| {
            floor(*shard).is_some_and(|floor| event.stamp <= floor)
        };
        let shard = shard.map_or_else(String::new, |shard| format!(", shard {shard}"));
        let between = || {
            format!("{tenant}{shard}: after {} up to {}", told(stretch.from), stretch.to)
        };
        let Some(events) = &stretch.events else {
            // It was told that something is missing.
            findings.expect(due.iter().any(|event| is_trimmed(&event)), || {
                format!("{}: said to be trimmed, and nothing was", between())
            });
            return;
        };
        let mut left = events.iter().peekable();
        for one in due {
            if left.next_if(|event| **event == one.1).is_some() {
                continue;
            }
            // Who begins with the oldest record may find that some are gone.
            if stretch.from.unwrap_or_default() == Stamp::default() && is_trimmed(&one) {
                continue;
            }
            let stamp = one.1.stamp;
            return findings.report(format!("{}: the event {stamp} was not told", between()));
        }
        if let Some(event) = left.next() {
            let stamp = event.stamp;
            findings.report(format!("{}: the event {stamp} was told out of place", between()));
        }
    }

    /// Above the floor everything is kept, below it nothing is.
    fn check_rows(&self, case: &Case<'_>, findings: &mut Findings) {
        for (tenant, records) in &self.records {
            for (stamp, (shard, _)) in records {
                let floor = self.floors.get(&(tenant.clone(), *shard)).copied();
                let is_due = *stamp > floor.unwrap_or_default();
                let key = keys::feed_record(tenant, *shard, *stamp);
                let is_kept = case.evidence.rows.contains_key(&key);
                findings.expect(is_kept == is_due, || {
                    let title = title(&(tenant.clone(), *shard));
                    let what = if is_kept { "is kept below" } else { "is gone from above" };
                    format!("{title}: the record {stamp} {what} the floor {}", told(floor))
                });
            }
        }
    }
}

fn title((tenant, shard): &Shard) -> String {
    format!("{tenant}, shard {shard}")
}

fn told(stamp: Option<Stamp>) -> String {
    stamp.map_or_else(|| "nothing".to_owned(), |stamp| stamp.to_string())
}
