//! One transaction on the client's side: its state, its writes, and what ends it.
//!
//! Invariant: a reset makes a new generation, and what was asked by an older one changes nothing
//! any more.

use std::sync::Arc;

use crate::atomic::AtomicOp;
use crate::conflicts::{KeyRange, RangeSet};
use crate::errors::{
    CLIENT_INVALID_OPERATION, Code, INVALID_MUTATION_TYPE, INVERTED_RANGE, KEY_OUTSIDE_LEGAL_RANGE,
    KEY_TOO_LARGE, READ_VERSION_ALREADY_SET, SPECIAL_KEYS_WRITE_DISABLED, TRANSACTION_CANCELLED,
    USED_DURING_COMMIT, VALUE_TOO_LARGE, VERSION_INVALID,
};
use crate::future::{Payload, Promise};
use crate::limits::{
    KEY_BYTES_MAX, MUTATION_OVERHEAD_BYTES, RANGE_OVERHEAD_BYTES, SYSTEM_KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
};
use crate::mvcc::Bytes;
use crate::options::Options;
use crate::overlay::{Overlay, stamped_range};
use crate::watch::PendingWatch;
use crate::world::World;

/// The key whose value comes with every read version.
pub(crate) const METADATA_VERSION_KEY: &[u8] = b"\xff/metadataVersion";

/// Goes on once the read version is known, or cannot be.
pub(crate) type WithVersion = Box<dyn FnOnce(&mut World, Result<u64, Code>) + Send>;

#[derive(Default)]
pub(crate) enum ReadVersion {
    #[default]
    Unasked,
    Asked(Vec<WithVersion>),
    Known(u64),
    Failed(Code),
}

/// How far the commit is.
#[derive(Default)]
pub(crate) enum CommitState {
    #[default]
    NotStarted,
    /// Reads that were asked before are not answered yet.
    WaitsForReads(Promise),
    Sent(Promise),
    Over,
}

pub(crate) struct Transaction {
    pub(crate) database: u64,
    pub(crate) generation: u64,
    pub(crate) born_us: u64,
    /// Grows with every change of the timeout, so that an older one does not go off.
    pub(crate) timeout_armed: u64,
    pub(crate) options: Options,
    pub(crate) read_version: ReadVersion,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) read_conflicts: RangeSet,
    pub(crate) write_conflicts: RangeSet,
    pub(crate) stamped_keys: Vec<Bytes>,
    pub(crate) bytes: u64,
    /// Reads that are not answered, and the error of one that was.
    pub(crate) reading: usize,
    pub(crate) reading_failed: Option<Code>,
    pub(crate) has_read: bool,
    pub(crate) commit: CommitState,
    /// Why everything fails until the transaction is reset.
    pub(crate) broken: Option<Code>,
    /// An error of a call that could not report it.
    pub(crate) deferred: Option<Code>,
    pub(crate) committed_version: i64,
    pub(crate) stamp: Option<Result<Bytes, Code>>,
    pub(crate) wants_stamp: Vec<Promise>,
    pub(crate) watches: Vec<PendingWatch>,
    pub(crate) conflicting: RangeSet,
    pub(crate) retries: u64,
    pub(crate) backoff_us: u64,
    /// Everything that was promised and is not settled.
    pub(crate) promised: Vec<Promise>,
}

impl Transaction {
    pub(crate) fn new(
        database: u64,
        options: Options,
        born_us: u64,
        backoff_us: u64,
    ) -> Transaction {
        Transaction {
            database,
            generation: 0,
            born_us,
            timeout_armed: 0,
            options,
            read_version: ReadVersion::Unasked,
            overlay: Arc::default(),
            read_conflicts: RangeSet::default(),
            write_conflicts: RangeSet::default(),
            stamped_keys: Vec::new(),
            bytes: 0,
            reading: 0,
            reading_failed: None,
            has_read: false,
            commit: CommitState::NotStarted,
            broken: None,
            deferred: None,
            committed_version: -1,
            stamp: None,
            wants_stamp: Vec::new(),
            watches: Vec::new(),
            conflicting: RangeSet::default(),
            retries: 0,
            backoff_us,
            promised: Vec::new(),
        }
    }

    pub(crate) fn max_read_key(&self) -> &'static [u8] {
        if self.options.reads_system_keys { b"\xff\xff" } else { b"\xff" }
    }

    fn max_write_key(&self) -> &'static [u8] {
        if self.options.writes_system_keys { b"\xff\xff" } else { b"\xff" }
    }

    pub(crate) fn known_version(&self) -> Option<u64> {
        match self.read_version {
            ReadVersion::Known(version) => Some(version),
            ReadVersion::Unasked | ReadVersion::Asked(_) | ReadVersion::Failed(_) => None,
        }
    }

    /// Remembers a promise, so that it fails when the transaction does.
    pub(crate) fn promise(&mut self) -> Promise {
        let promise = Promise::new();
        self.remember(&promise);
        promise
    }

    pub(crate) fn remember(&mut self, promise: &Promise) {
        // Amortised: the list is only swept once it has doubled.
        if self.promised.len() >= 32 && self.promised.len().is_power_of_two() {
            self.promised.retain(|promise| promise.reply().is_none());
        }
        self.promised.push(promise.clone());
    }

    /// Whether a write of now gets a conflict range.
    fn takes_write_conflict(&mut self) -> bool {
        !std::mem::take(&mut self.options.next_write_has_no_conflict)
    }

    fn note_write(&mut self, key: &[u8], value: &[u8], has_conflict: bool) {
        self.bytes += (key.len() + value.len()) as u64 + MUTATION_OVERHEAD_BYTES;
        self.note_conflict(&KeyRange::single(key), has_conflict);
    }

    fn note_conflict(&mut self, range: &KeyRange, has_conflict: bool) {
        if has_conflict {
            self.bytes += range.bytes() + RANGE_OVERHEAD_BYTES;
            self.write_conflicts.insert(range);
        }
    }

    /// Adds what a read depends on, own writes left out.
    pub(crate) fn depend_on(&mut self, range: &KeyRange, overlay: Option<&Overlay>) {
        let parts = match overlay {
            Some(overlay) => overlay.read_through(range),
            None if range.is_empty() => Vec::new(),
            None => vec![range.clone()],
        };
        for part in parts {
            self.bytes += range.bytes() + RANGE_OVERHEAD_BYTES;
            self.read_conflicts.insert(&part);
        }
    }

    fn check_key(&self, key: &[u8]) -> Result<(), Code> {
        if key.starts_with(b"\xff\xff") {
            return Err(SPECIAL_KEYS_WRITE_DISABLED);
        }
        if key >= self.max_write_key() {
            return Err(KEY_OUTSIDE_LEGAL_RANGE);
        }
        if key.len() > key_bytes_max(key) { Err(KEY_TOO_LARGE) } else { Ok(()) }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Code> {
        if key == METADATA_VERSION_KEY {
            return Err(CLIENT_INVALID_OPERATION);
        }
        self.check_key(key)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(VALUE_TOO_LARGE);
        }
        let has_conflict = self.takes_write_conflict();
        self.note_write(key, value, has_conflict);
        Arc::make_mut(&mut self.overlay).set(key.into(), value.into());
        Ok(())
    }

    fn clear(&mut self, range: &KeyRange) -> Result<(), Code> {
        if range.begin > range.end {
            return Err(INVERTED_RANGE);
        }
        if range.begin.starts_with(b"\xff\xff") {
            return Err(SPECIAL_KEYS_WRITE_DISABLED);
        }
        let max_key = self.max_write_key();
        if *range.begin > *max_key || *range.end > *max_key {
            return Err(KEY_OUTSIDE_LEGAL_RANGE);
        }
        if range.is_empty() {
            return Ok(());
        }
        let range = &clipped(range);
        let has_conflict = self.takes_write_conflict();
        self.bytes += range.bytes() + RANGE_OVERHEAD_BYTES;
        self.note_conflict(range, has_conflict);
        Arc::make_mut(&mut self.overlay).clear(range);
        Ok(())
    }

    fn atomic_op(&mut self, key: &[u8], operand: &[u8], code: u32) -> Result<(), Code> {
        let is_stamped_value = code == 15;
        if key == METADATA_VERSION_KEY {
            if !is_stamped_value || operand != [0; 14] {
                return Err(CLIENT_INVALID_OPERATION);
            }
        } else {
            self.check_key(key)?;
        }
        if operand.len() > VALUE_BYTES_MAX {
            return Err(VALUE_TOO_LARGE);
        }
        let (name, value): (Bytes, Bytes) = (key.into(), operand.into());
        if code == 14 {
            return self.set_stamped_key(name, value);
        }
        let operation = AtomicOp::from_code(code);
        if operation.is_none() && !is_stamped_value {
            return Err(INVALID_MUTATION_TYPE);
        }
        let has_conflict = self.takes_write_conflict();
        let overlay = Arc::make_mut(&mut self.overlay);
        match operation {
            Some(operation) => overlay.atomic(operation, name, value),
            None => overlay.stamp_value(name, value)?,
        }
        self.note_write(key, operand, has_conflict);
        Ok(())
    }

    fn set_stamped_key(&mut self, template: Bytes, value: Bytes) -> Result<(), Code> {
        let version = self.known_version().unwrap_or(0);
        let payload_bytes = template.len() + value.len();
        Arc::make_mut(&mut self.overlay).stamp_key(template.clone(), value, version)?;
        self.takes_write_conflict();
        self.bytes += payload_bytes as u64 + MUTATION_OVERHEAD_BYTES;
        self.stamped_keys.push(template);
        Ok(())
    }

    fn add_conflict(&mut self, range: &KeyRange, is_write: bool) -> Result<(), Code> {
        if range.begin > range.end {
            return Err(INVERTED_RANGE);
        }
        let max_key = if is_write { self.max_write_key() } else { self.max_read_key() };
        if *range.begin > *max_key || *range.end > *max_key {
            return Err(KEY_OUTSIDE_LEGAL_RANGE);
        }
        if range.is_empty() {
            return Ok(());
        }
        let range = &clipped(range);
        self.bytes += range.bytes() + RANGE_OVERHEAD_BYTES;
        if is_write {
            self.write_conflicts.insert(range);
            return Ok(());
        }
        // Own writes are left out, as they are of a read.
        let overlay = self.overlay.clone();
        for part in overlay.read_through(range) {
            self.read_conflicts.insert(&part);
        }
        Ok(())
    }

    /// Write conflicts, with what the stamped keys may become.
    pub(crate) fn write_conflicts_so_far(&self) -> RangeSet {
        let mut ranges = self.write_conflicts.clone();
        let version = self.known_version().unwrap_or(0);
        for template in &self.stamped_keys {
            if let Ok(range) = stamped_range(template, version) {
                ranges.insert(&range);
            }
        }
        ranges
    }

    pub(crate) fn is_committing(&self) -> bool {
        !matches!(self.commit, CommitState::NotStarted)
    }
}

pub(crate) fn key_bytes_max(key: &[u8]) -> usize {
    if key.starts_with(b"\xff") { SYSTEM_KEY_BYTES_MAX } else { KEY_BYTES_MAX }
}

/// The same range with shorter keys: no key is longer than the limit, so none lies between.
fn clipped(range: &KeyRange) -> KeyRange {
    let clip = |key: &Bytes| match key.len() > key_bytes_max(key) {
        true => key[..key_bytes_max(key) + 1].into(),
        false => key.clone(),
    };
    KeyRange { begin: clip(&range.begin), end: clip(&range.end) }
}

impl World {
    /// The door of every operation: why it cannot be done, if it cannot.
    pub(crate) fn enter(&mut self, id: u64) -> Result<&mut Transaction, Code> {
        let transaction = self.transactions.get(&id).ok_or(TRANSACTION_CANCELLED)?;
        let database = self.databases.get(&transaction.database);
        let broken = database.and_then(|database| database.broken);
        if let Some(code) = transaction.deferred.or(broken) {
            return Err(code);
        }
        let broken = transaction.broken;
        if transaction.is_committing() {
            if !transaction.options.has_no_commit_protection && broken.is_none() {
                self.break_transaction(id, USED_DURING_COMMIT);
            }
            return Err(USED_DURING_COMMIT);
        }
        if let Some(code) = broken {
            return Err(code);
        }
        self.transactions.get_mut(&id).ok_or(TRANSACTION_CANCELLED)
    }

    /// Runs a call that has no way to report its error: the next one that has reports it.
    fn write(&mut self, id: u64, call: impl FnOnce(&mut Transaction) -> Result<(), Code>) {
        let result = self.enter(id).and_then(call);
        if let (Err(code), Some(transaction)) = (result, self.transactions.get_mut(&id)) {
            transaction.deferred.get_or_insert(code);
        }
    }

    pub(crate) fn set(&mut self, id: u64, key: &[u8], value: &[u8]) {
        self.write(id, |transaction| transaction.set(key, value));
        self.trigger_own_watches(id, &KeyRange::single(key), true);
    }

    pub(crate) fn clear(&mut self, id: u64, key: &[u8]) {
        // Such a key cannot exist.
        if key.len() > key_bytes_max(key) {
            return;
        }
        self.clear_range(id, &KeyRange::single(key));
    }

    pub(crate) fn clear_range(&mut self, id: u64, range: &KeyRange) {
        self.write(id, |transaction| transaction.clear(range));
        self.trigger_own_watches(id, range, true);
    }

    pub(crate) fn atomic_op(&mut self, id: u64, key: &[u8], operand: &[u8], code: u32) {
        self.write(id, |transaction| transaction.atomic_op(key, operand, code));
        self.trigger_own_watches(id, &KeyRange::single(key), false);
    }

    pub(crate) fn add_conflict(
        &mut self,
        id: u64,
        range: &KeyRange,
        is_write: bool,
    ) -> Result<(), Code> {
        self.enter(id)?.add_conflict(range, is_write)
    }

    pub(crate) fn set_read_version(&mut self, id: u64, version: i64) {
        self.write(id, |transaction| {
            if !matches!(transaction.read_version, ReadVersion::Unasked) {
                return Err(READ_VERSION_ALREADY_SET);
            }
            let version = u64::try_from(version).ok().filter(|version| *version > 0);
            transaction.read_version = ReadVersion::Known(version.ok_or(VERSION_INVALID)?);
            Ok(())
        });
    }

    pub(crate) fn set_transaction_option(
        &mut self,
        id: u64,
        code: u32,
        value: &[u8],
    ) -> Result<(), Code> {
        let transaction = self.transactions.get_mut(&id).ok_or(TRANSACTION_CANCELLED)?;
        let is_used = transaction.has_read || !transaction.overlay.is_empty();
        if code == 51 && is_used {
            return Err(CLIENT_INVALID_OPERATION);
        }
        transaction.options.set(code, value)?;
        match code {
            500 => self.arm_timeout(id),
            502 => {
                let most = transaction.options.backoff_max_us;
                transaction.backoff_us = transaction.backoff_us.min(most);
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn approximate_size(&mut self, id: u64) -> Promise {
        let promise = Promise::new();
        let Some(transaction) = self.transactions.get(&id) else {
            self.fail(&promise, TRANSACTION_CANCELLED);
            return promise;
        };
        let reply = match transaction.deferred {
            Some(code) => Err(code),
            None => Ok(Payload::Int(i64::try_from(transaction.bytes).unwrap_or(i64::MAX))),
        };
        self.settle(&promise, reply);
        promise
    }

    pub(crate) fn committed_version(&mut self, id: u64) -> Result<i64, Code> {
        let transaction = self.transactions.get(&id).ok_or(TRANSACTION_CANCELLED)?;
        Ok(transaction.committed_version)
    }
}
