//! What a transaction wrote so far, as its own reads see it and as its commit will send it.
//!
//! Invariant: a read that asked before a write does not see it. Reads keep their own reference to
//! the overlay of the moment they were asked, and a write copies it if one is held.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::atomic::{self, AtomicOp, STAMP_BYTES};
use crate::conflicts::{KeyRange, RangeSet};
use crate::errors::{CLIENT_INVALID_OPERATION, Code};
use crate::limits::MUTATION_OVERHEAD_BYTES;
use crate::mvcc::Bytes;

/// One change, as a commit carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mutation {
    Set {
        key: Bytes,
        value: Bytes,
    },
    Clear(KeyRange),
    Atomic {
        op: AtomicOp,
        key: Bytes,
        operand: Bytes,
    },
    /// The place of the stamp is in the last four bytes of the key.
    StampedKey {
        template: Bytes,
        value: Bytes,
    },
    /// The place of the stamp is in the last four bytes of the value.
    StampedValue {
        key: Bytes,
        template: Bytes,
    },
}

impl Mutation {
    /// What it counts in a transaction's size.
    pub(crate) fn bytes(&self) -> u64 {
        let payload = match self {
            Mutation::Set { key, value } => key.len() + value.len(),
            Mutation::Clear(range) => range.begin.len() + range.end.len(),
            Mutation::Atomic { key, operand, .. } => key.len() + operand.len(),
            Mutation::StampedKey { template, value } => template.len() + value.len(),
            Mutation::StampedValue { key, template } => key.len() + template.len(),
        };
        payload as u64 + MUTATION_OVERHEAD_BYTES
    }
}

/// What one key's writes stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Base {
    /// Whatever the database holds: a read has to look there.
    Database,
    /// Set or cleared by the transaction itself.
    Known(Option<Bytes>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyOp {
    Set(Bytes),
    Atomic(AtomicOp, Bytes),
    Stamped(Bytes),
}

/// The writes of one key, in order.
#[derive(Debug, Clone)]
pub(crate) struct KeyWrites {
    base: Base,
    ops: Vec<KeyOp>,
}

impl KeyWrites {
    fn known(value: Option<Bytes>) -> KeyWrites {
        KeyWrites { base: Base::Known(value), ops: Vec::new() }
    }

    /// Whether the value is what the transaction wrote, whatever the database holds.
    fn is_independent(&self) -> bool {
        let replaces = |op: &KeyOp| matches!(op, KeyOp::Set(_) | KeyOp::Stamped(_));
        matches!(self.base, Base::Known(_)) || self.ops.iter().any(replaces)
    }

    /// The value after these writes, when the database holds `found`.
    pub(crate) fn over(&self, found: Option<&Bytes>) -> Option<Bytes> {
        let mut value = match &self.base {
            Base::Database => found.cloned(),
            Base::Known(value) => value.clone(),
        };
        for op in &self.ops {
            value = match op {
                KeyOp::Set(value) => Some(value.clone()),
                KeyOp::Atomic(op, operand) => op.apply(value.as_ref(), operand),
                // Only a transaction that bypasses the check sees this: the stamp is not filled in.
                KeyOp::Stamped(template) => {
                    Some(template[..template.len().saturating_sub(4)].into())
                }
            };
        }
        value
    }

    fn push(&mut self, op: KeyOp, is_unreadable: bool) {
        match (&mut self.base, &op) {
            (Base::Known(value), KeyOp::Atomic(op, operand))
                if self.ops.is_empty() && !is_unreadable =>
            {
                *value = op.apply(value.as_ref(), operand);
            }
            _ => self.ops.push(op),
        }
    }

    fn mutations(&self, key: &Bytes, into: &mut Vec<Mutation>) {
        match &self.base {
            Base::Database => {}
            Base::Known(Some(value)) => {
                into.push(Mutation::Set { key: key.clone(), value: value.clone() });
            }
            Base::Known(None) => into.push(Mutation::Clear(KeyRange::single(key))),
        }
        for op in &self.ops {
            into.push(match op.clone() {
                KeyOp::Set(value) => Mutation::Set { key: key.clone(), value },
                KeyOp::Atomic(op, operand) => Mutation::Atomic { op, key: key.clone(), operand },
                KeyOp::Stamped(template) => Mutation::StampedValue { key: key.clone(), template },
            });
        }
    }
}

/// What the overlay says about one key.
pub(crate) enum Look {
    /// Its value depends on the version of the commit.
    Unreadable,
    Known(Option<Bytes>),
    Unmodified,
    /// The database's value with these writes on top.
    Dependent(KeyWrites),
}

#[derive(Debug, Clone)]
struct StampedKey {
    template: Bytes,
    /// The least key it can become.
    lowest: Bytes,
    value: Bytes,
}

/// All writes of a transaction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overlay {
    keys: BTreeMap<Bytes, KeyWrites>,
    cleared: RangeSet,
    unreadable: RangeSet,
    /// Writes that a stamped key set apart, because they come before it.
    earlier: Vec<Mutation>,
    stamped_keys: Vec<StampedKey>,
}

impl Overlay {
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.cleared.is_empty()
            && self.earlier.is_empty()
            && self.stamped_keys.is_empty()
    }

    pub(crate) fn set(&mut self, key: Bytes, value: Bytes) {
        match self.keys.get_mut(&key) {
            Some(writes) if self.unreadable.contains(&key) => writes.ops.push(KeyOp::Set(value)),
            _ => drop(self.keys.insert(key, KeyWrites::known(Some(value)))),
        }
    }

    pub(crate) fn atomic(&mut self, op: AtomicOp, key: Bytes, operand: Bytes) {
        self.push(key, KeyOp::Atomic(op, operand));
    }

    pub(crate) fn clear(&mut self, range: &KeyRange) {
        for key in self.keys_within(range) {
            self.keys.remove(&key);
        }
        self.stamped_keys.retain(|stamped| !range.contains(&stamped.lowest));
        self.unreadable.remove(range);
        self.cleared.insert(range);
    }

    /// Fails if the stamp does not fit into the value.
    pub(crate) fn stamp_value(&mut self, key: Bytes, template: Bytes) -> Result<(), Code> {
        atomic::stamp_place(&template).ok_or(CLIENT_INVALID_OPERATION)?;
        self.unreadable.insert(&KeyRange::single(&key));
        self.push(key, KeyOp::Stamped(template));
        Ok(())
    }

    /// Fails if the stamp does not fit into the key. What the key may become can no longer be read.
    pub(crate) fn stamp_key(
        &mut self,
        template: Bytes,
        value: Bytes,
        read_version: u64,
    ) -> Result<(), Code> {
        let range = stamped_range(&template, read_version)?;
        self.set_apart(&range);
        self.unreadable.insert(&range);
        self.stamped_keys.push(StampedKey { template, lowest: range.begin, value });
        Ok(())
    }

    fn push(&mut self, key: Bytes, op: KeyOp) {
        let is_unreadable = self.unreadable.contains(&key);
        let is_cleared = self.cleared.contains(&key);
        let writes = self.keys.entry(key).or_insert_with(|| KeyWrites {
            base: if is_cleared { Base::Known(None) } else { Base::Database },
            ops: Vec::new(),
        });
        writes.push(op, is_unreadable);
    }

    /// Moves the writes of `range` to those that come first.
    fn set_apart(&mut self, range: &KeyRange) {
        self.earlier.extend(self.cleared.within(range).into_iter().map(Mutation::Clear));
        self.cleared.remove(range);
        for key in self.keys_within(range) {
            if let Some(writes) = self.keys.remove(&key) {
                writes.mutations(&key, &mut self.earlier);
            }
        }
    }

    fn keys_within(&self, range: &KeyRange) -> Vec<Bytes> {
        if range.is_empty() {
            return Vec::new();
        }
        let bounds = (Bound::Included(&*range.begin), Bound::Excluded(&*range.end));
        self.keys.range::<[u8], _>(bounds).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn look(&self, key: &[u8], sees_unreadable: bool) -> Look {
        if !sees_unreadable && self.unreadable.contains(key) {
            return Look::Unreadable;
        }
        match self.keys.get(key) {
            Some(writes) if writes.is_independent() => Look::Known(writes.over(None)),
            Some(writes) => Look::Dependent(writes.clone()),
            None if self.cleared.contains(key) => Look::Known(None),
            None => Look::Unmodified,
        }
    }

    pub(crate) fn is_cleared(&self, key: &[u8]) -> bool {
        self.cleared.contains(key)
    }

    /// Whether anything was written in `range`.
    pub(crate) fn touches(&self, range: &KeyRange) -> bool {
        self.cleared.intersects(range)
            || self.unreadable.intersects(range)
            || self.writes(&range.begin, &range.end).next().is_some()
    }

    pub(crate) fn is_unreadable(&self, range: &KeyRange) -> bool {
        self.unreadable.intersects(range)
    }

    /// Keys with writes of their own in `begin..end`, in order.
    pub(crate) fn writes<'a>(
        &'a self,
        begin: &[u8],
        end: &[u8],
    ) -> Box<dyn DoubleEndedIterator<Item = (&'a Bytes, &'a KeyWrites)> + 'a> {
        if begin >= end {
            return Box::new(std::iter::empty());
        }
        Box::new(self.keys.range::<[u8], _>((Bound::Included(begin), Bound::Excluded(end))))
    }

    /// The parts of `range` whose content came from the database: what a read of it depends on.
    pub(crate) fn read_through(&self, range: &KeyRange) -> Vec<KeyRange> {
        let mut parts = Vec::new();
        for gap in self.cleared.gaps(range) {
            let mut from = gap.begin;
            for (key, writes) in self.writes(&from.clone(), &gap.end) {
                if writes.is_independent() {
                    parts.push(KeyRange { begin: from, end: key.clone() });
                    from = crate::conflicts::key_after(key);
                }
            }
            parts.push(KeyRange { begin: from, end: gap.end });
        }
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// Everything, in the order in which it takes effect.
    pub(crate) fn mutations(&self) -> Vec<Mutation> {
        let mut mutations = self.earlier.clone();
        mutations.extend(self.cleared.iter().map(Mutation::Clear));
        for (key, writes) in &self.keys {
            writes.mutations(key, &mut mutations);
        }
        mutations.extend(self.stamped_keys.iter().map(|stamped| Mutation::StampedKey {
            template: stamped.template.clone(),
            value: stamped.value.clone(),
        }));
        mutations
    }
}

/// Where a stamped key may end up, for a transaction that reads at `read_version`.
pub(crate) fn stamped_range(template: &[u8], read_version: u64) -> Result<KeyRange, Code> {
    atomic::stamp_place(template).ok_or(CLIENT_INVALID_OPERATION)?;
    let highest = atomic::stamped(template, [0xff; STAMP_BYTES]);
    Ok(KeyRange {
        begin: atomic::stamped(template, atomic::stamp(read_version, 0)),
        end: crate::conflicts::key_after(&highest),
    })
}
