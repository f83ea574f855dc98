//! Whoever follows a feed is told every commit once and in order, and nothing is trimmed that a
//! consumer has not done.
//!
//! Every stretch that somebody was told is held against the commits: it has to be exactly what was
//! committed between its ends. The stretches of a stream follow each other; of a consumer, every
//! move of its cursor in the store must be a stretch that it was told. It takes the records for the
//! truth (`event-log` judges those), and cannot see whether followers were told soon (liveness
//! can).

use std::collections::{BTreeMap, BTreeSet};

use memcube_actors::{feed::FeedEvent, storage::Mutation};
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
    let shards: BTreeSet<&Shard> =
        case.evidence.consumed.keys().chain(feeds.moves.keys()).collect();
    for shard in shards {
        let stretches = case.evidence.consumed.get(shard).map_or(&[][..], Vec::as_slice);
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
                    let key = commit.stamped_key(prefix, position);
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
        findings
            .expect(stamp > before, || format!("{title}: a cursor went from {before} to {stamp}"));
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
        let between =
            || format!("{tenant}{shard}: after {} up to {}", told(stretch.from), stretch.to);
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

#[cfg(test)]
mod tests {
    use memcube_schemas::{Version, codec::encode};

    use super::*;
    use crate::checkers::builder::{Scene, said};

    /// Three cubes in as many shards, each with some commits, and what a follower has to be told.
    struct Told {
        scene: Scene,
        events: Vec<(u16, FeedEvent)>,
    }

    impl Told {
        fn new() -> Self {
            let mut scene = Scene::new();
            for cube in ["ann", "bob", "cy"] {
                scene.enter("acme", cube);
                scene.add(0, &format!("mk{cube}"));
            }
            let mut feeds = Feeds::default();
            let mut findings = Findings::of(NAME);
            for commit in &scene.evidence.commits {
                feeds.commit(commit, &mut findings);
            }
            let events = feeds.between(&scene.cube.0, None, None, end());
            assert_eq!(events.len(), 6);
            Self { scene, events }
        }

        /// The follower is told these in one stretch each.
        fn stretch(&mut self, from: Option<usize>, to: usize, events: &[usize]) {
            let stamp = |place: usize| self.events[place].1.stamp;
            let events = events.iter().map(|place| self.events[*place].1.clone()).collect();
            let stretch =
                FeedStretch { from: from.map(stamp), to: stamp(to), events: Some(events) };
            let tenant = self.scene.cube.0.clone();
            self.scene.evidence.followed.entry(tenant).or_default().push(stretch);
        }

        fn shard(&self, place: usize) -> Shard {
            (self.scene.cube.0.clone(), self.events[place].0)
        }

        /// A consumer's cursor, or the floor, is set to where an event stands.
        fn mark(&mut self, consumer: Option<&str>, place: usize) {
            let (tenant, shard) = self.shard(place);
            let key = match consumer {
                Some(name) => keys::feed_cursor(&tenant, shard, name),
                None => keys::feed_floor(&tenant, shard),
            };
            let value = encode(&FeedMark { stamp: self.events[place].1.stamp });
            let mut mutations = vec![Mutation::Set { key, value }];
            if consumer.is_none() {
                let mut range = keys::feed(&tenant, shard);
                let last = keys::feed_record(&tenant, shard, self.events[place].1.stamp);
                range.end = range.clone().after(&last).start;
                mutations.push(Mutation::ClearRange { range });
            }
            self.scene.commit(mutations);
        }

        fn verdict(self) -> Vec<String> {
            said(&check(&Case::read(&self.scene.finish())))
        }
    }

    fn end() -> Stamp {
        Stamp::end_of(Version(1 << 40))
    }

    #[track_caller]
    fn complains(told: Told, words: &str) {
        let verdict = told.verdict();
        assert!(verdict.len() == 1 && verdict[0].contains(words), "{words}: {verdict:#?}");
    }

    #[test]
    fn followers_that_are_told_everything_pass() {
        let mut told = Told::new();
        told.stretch(None, 2, &[0, 1, 2]);
        told.stretch(Some(2), 3, &[3]);
        told.stretch(Some(3), 3, &[]);
        told.stretch(Some(3), 5, &[4, 5]);
        told.mark(Some("other"), 1);
        told.mark(None, 0);
        assert_eq!(told.verdict(), [""; 0]);
    }

    #[test]
    fn an_event_that_is_skipped_repeated_or_moved_is_seen() {
        let mut told = Told::new();
        told.stretch(None, 3, &[0, 1, 3]);
        complains(told, "was not told");
        let mut told = Told::new();
        told.stretch(None, 1, &[0, 1]);
        told.stretch(Some(1), 3, &[1, 2, 3]);
        complains(told, "was not told");
        let mut told = Told::new();
        told.stretch(None, 1, &[0, 1, 2]);
        complains(told, "told out of place");
        let mut told = Told::new();
        told.stretch(None, 1, &[0, 1]);
        told.stretch(Some(2), 3, &[3]);
        complains(told, "a stretch begins after");
    }

    #[test]
    fn what_was_trimmed_may_be_missing_at_the_beginning_only() {
        let mut told = Told::new();
        told.mark(None, 0);
        told.stretch(None, 3, &[1, 2, 3]);
        assert_eq!(told.verdict(), [""; 0]);
        let mut told = Told::new();
        told.mark(None, 1);
        told.stretch(None, 0, &[0]);
        told.stretch(Some(0), 3, &[2, 3]);
        complains(told, "was not told");
    }

    #[test]
    fn a_trim_past_a_consumer_and_a_floor_that_goes_back_are_seen() {
        let mut told = Told::new();
        told.mark(Some("other"), 0);
        told.mark(None, 1);
        complains(told, "but a consumer is at");
        let mut told = Told::new();
        told.mark(None, 1);
        told.mark(None, 0);
        let verdict = told.verdict();
        assert!(verdict[0].contains("the floor went back"), "{verdict:#?}");
    }

    #[test]
    fn a_cursor_that_goes_back_or_moves_without_a_word_is_seen() {
        let mut told = Told::new();
        told.mark(Some("other"), 1);
        told.mark(Some("other"), 0);
        complains(told, "a cursor went from");
        let mut told = Told::new();
        told.mark(Some(CONSUMER), 0);
        told.mark(Some(CONSUMER), 1);
        complains(told, "not as it was told");
    }

    #[test]
    fn a_row_that_is_gone_or_kept_without_reason_is_seen() {
        let mut told = Told::new();
        let (tenant, shard) = told.shard(0);
        let key = keys::feed_record(&tenant, shard, told.events[0].1.stamp);
        let row = told.scene.evidence.rows.remove(&key).expect("there");
        complains(told, "is gone from above");
        let mut told = Told::new();
        told.mark(None, 0);
        told.scene.evidence.rows.insert(key, row);
        complains(told, "is kept below");
    }
}
