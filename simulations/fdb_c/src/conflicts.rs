//! Ranges of keys: sets of them, and the versions at which they were last written.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::mvcc::Bytes;

/// The first key after `key`.
pub(crate) fn key_after(key: &[u8]) -> Bytes {
    let mut after = key.to_vec();
    after.push(0);
    after.into()
}

/// A half-open range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRange {
    pub(crate) begin: Bytes,
    pub(crate) end: Bytes,
}

impl KeyRange {
    #[cfg(test)]
    pub(crate) fn new(begin: &[u8], end: &[u8]) -> KeyRange {
        KeyRange { begin: begin.into(), end: end.into() }
    }

    pub(crate) fn single(key: &[u8]) -> KeyRange {
        KeyRange { begin: key.into(), end: key_after(key) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.begin >= self.end
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        *self.begin <= *key && *key < *self.end
    }

    #[cfg(test)]
    pub(crate) fn intersects(&self, other: &KeyRange) -> bool {
        self.begin < other.end && other.begin < self.end
    }

    /// Both keys together.
    pub(crate) fn bytes(&self) -> u64 {
        (self.begin.len() + self.end.len()) as u64
    }
}

/// A set of keys as disjoint ranges that do not touch.
#[derive(Debug, Clone, Default)]
pub(crate) struct RangeSet(BTreeMap<Bytes, Bytes>);

impl RangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = KeyRange> + '_ {
        self.0.iter().map(|(begin, end)| KeyRange { begin: begin.clone(), end: end.clone() })
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        let before = self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        before.last_end().is_some_and(|end| *key < **end)
    }

    pub(crate) fn intersects(&self, range: &KeyRange) -> bool {
        if range.is_empty() {
            return false;
        }
        let before = self.0.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&*range.end)));
        before.last_end().is_some_and(|end| range.begin < *end)
    }

    pub(crate) fn insert(&mut self, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        let mut begin = range.begin.clone();
        let mut end = range.end.clone();
        // Those that begin inside or at the end, and the one before if it reaches here, melt in.
        let touching: Vec<(Bytes, Bytes)> = self
            .0
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(&*range.end)))
            .rev()
            .take_while(|(_, other_end)| **other_end >= range.begin)
            .map(|(other_begin, other_end)| (other_begin.clone(), other_end.clone()))
            .collect();
        for (other_begin, other_end) in touching {
            self.0.remove(&other_begin);
            begin = begin.min(other_begin);
            end = end.max(other_end);
        }
        self.0.insert(begin, end);
    }

    pub(crate) fn remove(&mut self, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        for overlap in self.overlaps(range) {
            self.0.remove(&overlap.begin);
            if overlap.begin < range.begin {
                self.0.insert(overlap.begin, range.begin.clone());
            }
            if range.end < overlap.end {
                self.0.insert(range.end.clone(), overlap.end);
            }
        }
    }

    /// The parts of the set inside `range`.
    pub(crate) fn within(&self, range: &KeyRange) -> Vec<KeyRange> {
        let clip = |overlap: KeyRange| KeyRange {
            begin: overlap.begin.max(range.begin.clone()),
            end: overlap.end.min(range.end.clone()),
        };
        self.overlaps(range).into_iter().map(clip).collect()
    }

    /// The parts of `range` outside of the set.
    pub(crate) fn gaps(&self, range: &KeyRange) -> Vec<KeyRange> {
        let mut gaps = Vec::new();
        let mut from = range.begin.clone();
        for overlap in self.overlaps(range) {
            if from < overlap.begin {
                gaps.push(KeyRange { begin: from, end: overlap.begin });
            }
            from = overlap.end;
        }
        if from < range.end {
            gaps.push(KeyRange { begin: from, end: range.end.clone() });
        }
        gaps
    }

    /// Whole members that share a key with `range`, in order.
    fn overlaps(&self, range: &KeyRange) -> Vec<KeyRange> {
        if range.is_empty() {
            return Vec::new();
        }
        let mut found: Vec<KeyRange> = self
            .0
            .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&*range.end)))
            .rev()
            .take_while(|(_, end)| **end > range.begin)
            .map(|(begin, end)| KeyRange { begin: begin.clone(), end: end.clone() })
            .collect();
        found.reverse();
        found
    }
}

trait LastEnd<'a> {
    fn last_end(self) -> Option<&'a Bytes>;
}

impl<'a, I: DoubleEndedIterator<Item = (&'a Bytes, &'a Bytes)>> LastEnd<'a> for I {
    fn last_end(mut self) -> Option<&'a Bytes> {
        self.next_back().map(|(_, end)| end)
    }
}

/// At which version every key was last written, as steps: what a key maps to holds up to the next.
#[derive(Debug, Default)]
pub(crate) struct WriteLog {
    steps: BTreeMap<Bytes, u64>,
    /// Steps that were left when the log was last tidied.
    tidy_steps: usize,
}

impl WriteLog {
    /// Notes that `range` was written at `version`, which is at least every version noted before.
    pub(crate) fn note(&mut self, range: &KeyRange, version: u64) {
        if range.is_empty() {
            return;
        }
        let after = self.at(&range.end);
        let inside: Vec<Bytes> = self
            .steps
            .range::<[u8], _>((Bound::Included(&*range.begin), Bound::Excluded(&*range.end)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in inside {
            self.steps.remove(&key);
        }
        self.steps.insert(range.begin.clone(), version);
        self.steps.entry(range.end.clone()).or_insert(after);
    }

    /// Whether a key of `range` was written after `version`.
    pub(crate) fn written_after(&self, range: &KeyRange, version: u64) -> bool {
        if range.is_empty() {
            return false;
        }
        let inside = (Bound::Excluded(&*range.begin), Bound::Excluded(&*range.end));
        self.at(&range.begin) > version
            || self.steps.range::<[u8], _>(inside).any(|(_, written)| *written > version)
    }

    fn at(&self, key: &[u8]) -> u64 {
        let before = self.steps.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        before.max_by(|(one, _), (other, _)| one.cmp(other)).map_or(0, |(_, version)| *version)
    }

    /// Drops what no transaction as young as `oldest` can conflict with.
    pub(crate) fn forget_before(&mut self, oldest: u64) {
        if self.steps.len() < 2 * self.tidy_steps + 1_024 {
            return;
        }
        let mut last = 0;
        self.steps.retain(|_, version| {
            if *version <= oldest {
                *version = 0;
            }
            let keep = *version != last;
            last = *version;
            keep
        });
        self.tidy_steps = self.steps.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(&str, &str)]) -> RangeSet {
        let mut set = RangeSet::default();
        for (begin, end) in ranges {
            set.insert(&KeyRange::new(begin.as_bytes(), end.as_bytes()));
        }
        set
    }

    fn show(ranges: impl IntoIterator<Item = KeyRange>) -> String {
        let one = |range: KeyRange| {
            let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            format!("{}-{}", text(&range.begin), text(&range.end))
        };
        ranges.into_iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ranges_melt_split_and_leave_gaps() {
        for (given, expected) in [
            (vec![("a", "b"), ("c", "d")], "a-b c-d"),
            (vec![("a", "b"), ("b", "d")], "a-d"),
            (vec![("c", "e"), ("a", "d")], "a-e"),
            (vec![("a", "z"), ("c", "d")], "a-z"),
            (vec![("b", "c"), ("d", "e"), ("g", "h"), ("a", "f")], "a-f g-h"),
            (vec![("b", "a")], ""),
        ] {
            assert_eq!(show(set(&given).iter()), expected, "{given:?}");
        }
        let mut held = set(&[("b", "d"), ("f", "h")]);
        assert_eq!(show(held.gaps(&KeyRange::new(b"a", b"z"))), "a-b d-f h-z");
        assert_eq!(show(held.gaps(&KeyRange::new(b"c", b"g"))), "d-f");
        assert_eq!(show(held.within(&KeyRange::new(b"c", b"g"))), "c-d f-g");
        held.remove(&KeyRange::new(b"c", b"g"));
        assert_eq!(show(held.iter()), "b-c g-h");
        assert!(held.contains(b"b") && !held.contains(b"c") && held.contains(b"gz"));
        assert!(held.intersects(&KeyRange::new(b"a", b"bb")));
        assert!(!held.intersects(&KeyRange::new(b"c", b"g")));
    }

    #[test]
    fn a_write_is_seen_by_every_range_that_holds_it_and_no_other() {
        let mut log = WriteLog::default();
        log.note(&KeyRange::new(b"b", b"d"), 10);
        log.note(&KeyRange::new(b"c", b"f"), 20);
        log.note(&KeyRange::single(b"x"), 30);
        for (begin, end, version, expected) in [
            ("a", "b", 0, false),
            ("a", "bb", 9, true),
            ("a", "bb", 10, false),
            ("a", "cc", 10, true),
            ("e", "ee", 19, true),
            ("e", "ee", 20, false),
            ("f", "x", 0, false),
            ("x", "y", 29, true),
            ("x\0", "y", 0, false),
            ("a", "z", 30, false),
        ] {
            let range = KeyRange::new(begin.as_bytes(), end.as_bytes());
            assert_eq!(log.written_after(&range, version), expected, "{begin}-{end} at {version}");
        }
    }

    #[test]
    fn tidying_changes_no_answer_inside_the_window() {
        let mut log = WriteLog::default();
        let mut random = crate::random::Random::new(7);
        let mut naive: Vec<(KeyRange, u64)> = Vec::new();
        for version in 1..=6_000_u64 {
            let begin = random.between(0, 4_000);
            let end = begin + random.between(1, 3);
            let range = KeyRange::new(&begin.to_be_bytes(), &end.to_be_bytes());
            log.note(&range, version);
            naive.push((range, version));
            log.forget_before(version.saturating_sub(500));
        }
        assert!(log.steps.len() < 4_000, "{} steps", log.steps.len());
        for _ in 0..2_000 {
            let begin = random.between(0, 4_000);
            let end = begin + random.between(1, 30);
            let range = KeyRange::new(&begin.to_be_bytes(), &end.to_be_bytes());
            let version = random.between(5_500, 6_000);
            let expected =
                naive.iter().any(|(other, at)| *at > version && other.intersects(&range));
            assert_eq!(log.written_after(&range, version), expected);
        }
    }
}
