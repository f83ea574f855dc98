//! Rows with their history: what was true at every version of the window.
//!
//! Invariant: the versions of a chain grow, and a read at a version inside the window always gives
//! the same answer.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// A key or a value, shared by those who hold it.
pub(crate) type Bytes = Arc<[u8]>;

/// One key's values by version; `None` is a deletion.
type Chain = Vec<(u64, Option<Bytes>)>;

#[derive(Default)]
pub(crate) struct Mvcc {
    rows: BTreeMap<Bytes, Chain>,
    /// Keys whose chain can lose something once its version leaves the window, oldest first.
    superseded: VecDeque<(u64, Bytes)>,
}

fn visible(chain: &Chain, version: u64) -> Option<&Bytes> {
    let after = chain.partition_point(|(written, _)| *written <= version);
    chain[..after].last().and_then(|(_, value)| value.as_ref())
}

impl Mvcc {
    pub(crate) fn get(&self, key: &[u8], version: u64) -> Option<&Bytes> {
        visible(self.rows.get(key)?, version)
    }

    /// Rows of `begin..end` as of `version`, in the order of their keys.
    pub(crate) fn range<'a>(
        &'a self,
        begin: &[u8],
        end: &[u8],
        version: u64,
    ) -> Box<dyn DoubleEndedIterator<Item = (&'a Bytes, &'a Bytes)> + 'a> {
        if begin >= end {
            return Box::new(std::iter::empty());
        }
        let rows = self.rows.range::<[u8], _>((Bound::Included(begin), Bound::Excluded(end)));
        Box::new(rows.filter_map(move |(key, chain)| Some((key, visible(chain, version)?))))
    }

    /// Sets or deletes `key` at `version`, which is at least every version written before.
    pub(crate) fn write(&mut self, version: u64, key: &Bytes, value: Option<Bytes>) {
        let chain = match self.rows.get_mut(key) {
            Some(chain) => chain,
            None if value.is_none() => return,
            None => self.rows.entry(key.clone()).or_default(),
        };
        match chain.last_mut() {
            // Another commit of the same version: readers only ever see the last one.
            Some((last, kept)) if *last == version => *kept = value,
            Some((_, None)) if value.is_none() => {}
            _ => chain.push((version, value)),
        }
        self.superseded.push_back((version, key.clone()));
    }

    /// Deletes what lies in `begin..end` at `version`.
    pub(crate) fn clear(&mut self, version: u64, begin: &[u8], end: &[u8]) {
        let doomed: Vec<Bytes> =
            self.range(begin, end, version).map(|(key, _)| key.clone()).collect();
        for key in doomed {
            self.write(version, &key, None);
        }
    }

    /// Drops what no read at `oldest` or later can see.
    pub(crate) fn forget_before(&mut self, oldest: u64) {
        while self.superseded.front().is_some_and(|(version, _)| *version <= oldest) {
            let Some((_, key)) = self.superseded.pop_front() else { return };
            let Some(chain) = self.rows.get_mut(&key) else { continue };
            let after = chain.partition_point(|(written, _)| *written <= oldest);
            chain.drain(..after.saturating_sub(1));
            if matches!(chain.as_slice(), [(written, None)] if *written <= oldest) {
                self.rows.remove(&key);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn entries(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Bytes {
        Bytes::from(text.as_bytes())
    }

    #[test]
    fn a_read_sees_what_was_true_at_its_version() {
        let mut rows = Mvcc::default();
        rows.write(10, &key("a"), Some(key("1")));
        rows.write(20, &key("a"), Some(key("2")));
        rows.write(20, &key("b"), Some(key("3")));
        rows.clear(30, b"a", b"b");
        rows.write(30, &key("c"), Some(key("4")));
        for (version, expected) in [
            (9, vec![]),
            (10, vec![("a", "1")]),
            (19, vec![("a", "1")]),
            (20, vec![("a", "2"), ("b", "3")]),
            (30, vec![("b", "3"), ("c", "4")]),
            (99, vec![("b", "3"), ("c", "4")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(k, v)| (key(k), key(v))).collect();
            let found: Vec<_> =
                rows.range(b"", b"\xff", version).map(|(k, v)| (k.clone(), v.clone())).collect();
            assert_eq!(found, expected, "at {version}");
            for (name, value) in &expected {
                assert_eq!(rows.get(name, version), Some(value), "at {version}");
            }
        }
    }

    #[test]
    fn the_window_bounds_what_is_kept() {
        let mut rows = Mvcc::default();
        for version in 1..=100 {
            rows.write(version, &key("a"), Some(key(&version.to_string())));
        }
        rows.write(50 + 100, &key("b"), Some(key("x")));
        rows.write(51 + 100, &key("b"), None);
        assert_eq!(rows.entries(), 102);
        rows.forget_before(90);
        assert_eq!(rows.get(b"a", 90), Some(&key("90")));
        assert_eq!(rows.entries(), 11 + 2);
        rows.forget_before(1_000);
        assert_eq!((rows.get(b"a", 1_000), rows.entries()), (Some(&key("100")), 1));
    }
}
