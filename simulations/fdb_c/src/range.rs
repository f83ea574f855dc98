//! Range reads: key selectors, limits, streaming modes, and which keys an answer depends on.

use std::iter::Peekable;

use crate::conflicts::{KeyRange, key_after};
use crate::errors::{
    CLIENT_INVALID_OPERATION, Code, EXACT_MODE_WITHOUT_LIMITS, RANGE_LIMITS_INVALID,
};
use crate::limits::{ITERATION_BYTES, MODE_BYTES};
use crate::mvcc::{Bytes, Mvcc};
use crate::overlay::{KeyWrites, Overlay};

pub(crate) type Row = (Bytes, Bytes);

/// A key by its place: the `offset`-th after the last one less than `key`, or equal to it if
/// `or_equal` was asked (which `new` folds into the key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) key: Bytes,
    pub(crate) offset: i32,
}

impl Selector {
    pub(crate) fn new(key: &[u8], or_equal: bool, offset: i32) -> Selector {
        let key = if or_equal { key_after(key) } else { key.into() };
        Selector { key, offset }
    }
}

/// How much one reply may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) rows: Option<u64>,
    pub(crate) bytes: Option<u64>,
}

impl Limits {
    /// From the arguments of the C interface, where zero means no limit.
    pub(crate) fn new(
        rows: i32,
        target_bytes: i32,
        mode: i32,
        iteration: i32,
    ) -> Result<Limits, Code> {
        let given = |value: i32| match u64::try_from(value) {
            Ok(0) => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(RANGE_LIMITS_INVALID),
        };
        let (rows, target) = (given(rows)?, given(target_bytes)?);
        if rows.is_none() && target.is_none() && mode == 0 {
            return Err(EXACT_MODE_WITHOUT_LIMITS);
        }
        let of_mode = match mode {
            -1 if iteration <= 0 => return Err(CLIENT_INVALID_OPERATION),
            -1 => {
                let place = (iteration as usize).min(ITERATION_BYTES.len()) - 1;
                Some(ITERATION_BYTES[place])
            }
            -2 => MODE_BYTES[4],
            0..=4 => MODE_BYTES[mode as usize],
            _ => return Err(CLIENT_INVALID_OPERATION),
        };
        let bytes = match (target, of_mode) {
            (Some(target), Some(of_mode)) => Some(target.min(of_mode)),
            (target, of_mode) => target.or(of_mode),
        };
        Ok(Limits { rows, bytes })
    }

    /// Takes a row off; true once nothing more may follow.
    fn take(&mut self, row: &Row) -> bool {
        let bytes = 8 + (row.0.len() + row.1.len()) as u64;
        self.rows = self.rows.map(|rows| rows.saturating_sub(1));
        self.bytes = self.bytes.map(|left| left.saturating_sub(bytes));
        self.rows == Some(0) || self.bytes == Some(0)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct RangeRequest {
    pub(crate) begin: Selector,
    pub(crate) end: Selector,
    pub(crate) limits: Limits,
    pub(crate) reverse: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeReply {
    pub(crate) rows: Vec<Row>,
    pub(crate) more: bool,
    /// The begin selector ran off the beginning of the keys.
    to_begin: bool,
    /// The end selector ran off their end.
    through_end: bool,
}

/// The rows at one version, with a transaction's own writes on top.
pub(crate) struct View<'a> {
    pub(crate) rows: &'a Mvcc,
    pub(crate) version: u64,
    pub(crate) overlay: Option<&'a Overlay>,
    /// No key from here on can be read.
    pub(crate) max_key: &'a [u8],
}

type DbRows<'a> = Box<dyn DoubleEndedIterator<Item = (&'a Bytes, &'a Bytes)> + 'a>;
type OwnRows<'a> = Box<dyn DoubleEndedIterator<Item = (&'a Bytes, &'a KeyWrites)> + 'a>;

/// Rows of a view in order, or in reverse.
struct Scan<'a, D, O>
where
    D: Iterator<Item = (&'a Bytes, &'a Bytes)>,
    O: Iterator<Item = (&'a Bytes, &'a KeyWrites)>,
{
    database: Peekable<D>,
    own: Peekable<O>,
    overlay: Option<&'a Overlay>,
    reverse: bool,
}

impl<'a, D, O> Iterator for Scan<'a, D, O>
where
    D: Iterator<Item = (&'a Bytes, &'a Bytes)>,
    O: Iterator<Item = (&'a Bytes, &'a KeyWrites)>,
{
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        loop {
            let order = match (self.database.peek(), self.own.peek()) {
                (None, None) => return None,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((one, _)), Some((other, _))) if self.reverse => other.cmp(one),
                (Some((one, _)), Some((other, _))) => one.cmp(other),
            };
            let found = if order.is_le() { self.database.next() } else { None };
            let is_cleared = |key: &Bytes| self.overlay.is_some_and(|own| own.is_cleared(key));
            let found = found.filter(|(key, _)| !is_cleared(key));
            if order.is_lt() {
                if let Some((key, value)) = found {
                    return Some((key.clone(), value.clone()));
                }
                continue;
            }
            let Some((key, writes)) = self.own.next() else { continue };
            if let Some(value) = writes.over(found.map(|(_, value)| value)) {
                return Some((key.clone(), value));
            }
        }
    }
}

impl<'a> View<'a> {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.rows.get(key, self.version).cloned()
    }

    /// Rows of `begin..end` in order.
    pub(crate) fn scan(
        &self,
        begin: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Row> + 'a> {
        let end = end.min(self.max_key);
        let database: DbRows<'a> = self.rows.range(begin, end, self.version);
        let own: OwnRows<'a> = match self.overlay {
            Some(overlay) => overlay.writes(begin, end),
            None => Box::new(std::iter::empty()),
        };
        let overlay = self.overlay;
        if reverse {
            let (database, own) = (database.rev().peekable(), own.rev().peekable());
            return Box::new(Scan { database, own, overlay, reverse });
        }
        Box::new(Scan { database: database.peekable(), own: own.peekable(), overlay, reverse })
    }

    /// The key a selector stands for: the empty key before the first, `max_key` after the last.
    pub(crate) fn resolve(&self, selector: &Selector) -> Resolved {
        if selector.offset > 0 {
            let steps = (selector.offset - 1) as usize;
            return match self.scan(&selector.key, self.max_key, false).nth(steps) {
                Some((key, _)) => Resolved { key, ran_off: false },
                None => Resolved { key: self.max_key.into(), ran_off: true },
            };
        }
        let steps = selector.offset.unsigned_abs() as usize;
        match self.scan(b"", &selector.key, true).nth(steps) {
            Some((key, _)) => Resolved { key, ran_off: false },
            None => Resolved { key: Bytes::from(&b""[..]), ran_off: true },
        }
    }

    /// Where a range begins or ends. "The first at or after a key" needs no look at the rows.
    fn bound(&self, selector: &Selector) -> Resolved {
        if selector.offset == 1 {
            return Resolved { key: selector.key.clone(), ran_off: false };
        }
        self.resolve(selector)
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> RangeReply {
        // These are empty whatever the database holds, so nothing is looked up for them.
        if request.begin.offset >= request.end.offset && request.begin.key >= request.end.key {
            return RangeReply::default();
        }
        let begin = self.bound(&request.begin);
        let end = self.bound(&request.end);
        let mut reply = RangeReply {
            to_begin: begin.ran_off && request.begin.offset <= 0,
            through_end: end.ran_off && request.end.offset > 0,
            ..RangeReply::default()
        };
        let mut limits = request.limits;
        for row in self.scan(&begin.key, &end.key, request.reverse) {
            let is_full = limits.take(&row);
            reply.rows.push(row);
            if is_full {
                // Also when nothing follows: finding that out would be another read.
                reply.more = true;
                break;
            }
        }
        reply
    }
}

pub(crate) struct Resolved {
    pub(crate) key: Bytes,
    ran_off: bool,
}

impl RangeReply {
    /// The keys this answer depends on.
    pub(crate) fn depends_on(&self, request: &RangeRequest, max_key: &[u8]) -> KeyRange {
        let (first, last) = (&request.begin, &request.end);
        let (mut begin, mut end) = match (first.key < last.key, self.more) {
            (false, _) => (last.key.clone(), first.key.clone()),
            (true, true) if !request.reverse && last.offset > 0 => {
                (first.key.clone(), first.key.clone())
            }
            (true, true) if request.reverse && first.offset <= 1 => {
                (last.key.clone(), last.key.clone())
            }
            (true, _) => (first.key.clone(), last.key.clone()),
        };
        if self.to_begin && first.offset <= 0 {
            begin = Bytes::from(&b""[..]);
        }
        if self.through_end && last.offset > 0 {
            end = max_key.into();
        }
        let keys = self.rows.iter().map(|(key, _)| key);
        if let (Some(least), Some(greatest)) = (keys.clone().min(), keys.max()) {
            if request.reverse || first.offset <= 0 {
                begin = begin.min(least.clone());
            }
            if (!request.reverse || last.offset > 0) && end <= *greatest {
                end = key_after(greatest);
            }
        }
        KeyRange { begin, end }
    }
}

/// The keys the answer `found` to a selector depends on.
pub(crate) fn selector_depends_on(selector: &Selector, found: &Bytes) -> KeyRange {
    if selector.offset <= 0 {
        return KeyRange { begin: found.clone(), end: selector.key.clone() };
    }
    KeyRange { begin: selector.key.clone(), end: key_after(found) }
}
