//! Watches: set by a transaction, armed by its commit, fired by a value that differs from the one
//! the transaction saw. A value that came back may go unnoticed, as in the real thing.

use crate::conflicts::KeyRange;
use crate::errors::{
    Code, KEY_OUTSIDE_LEGAL_RANGE, KEY_TOO_LARGE, OPERATION_CANCELLED, TOO_MANY_WATCHES,
    WATCHES_DISABLED,
};
use crate::future::{Payload, Promise};
use crate::mvcc::Bytes;
use crate::overlay::Look;
use crate::store::ArmedWatch;
use crate::transaction::{METADATA_VERSION_KEY, key_bytes_max};
use crate::world::World;

/// A watch whose transaction has not committed.
pub(crate) struct PendingWatch {
    pub(crate) key: Bytes,
    pub(crate) promise: Promise,
    /// The answer to the read that tells what is watched for.
    baseline: Promise,
    /// What the transaction itself set before that answer came.
    own: Option<Option<Bytes>>,
}

impl PendingWatch {
    fn seen(&self) -> Option<Option<Bytes>> {
        match self.baseline.reply() {
            Some(Ok(Payload::Value(value))) => Some(value.clone()),
            _ => None,
        }
    }
}

impl World {
    pub(crate) fn watch(&mut self, id: u64, key: &[u8]) -> Promise {
        let transaction = match self.enter(id) {
            Ok(transaction) => transaction,
            Err(code) => return self.failed(code),
        };
        if transaction.options.ignores_own_writes {
            return self.failed(WATCHES_DISABLED);
        }
        if key >= transaction.max_read_key() && key != METADATA_VERSION_KEY {
            return self.failed(KEY_OUTSIDE_LEGAL_RANGE);
        }
        if key.len() > key_bytes_max(key) {
            return self.failed(KEY_TOO_LARGE);
        }
        let database = transaction.database;
        if let Some(handle) = self.databases.get_mut(&database) {
            if handle.watches >= handle.options.watches_max {
                return self.failed(TOO_MANY_WATCHES);
            }
            handle.watches += 1;
        }
        // Like the real one, this is a read with all that it brings: a read version, a conflict
        // range, and a commit that waits for it.
        let baseline = self.get(id, key, false);
        let promise = Promise::watch(database);
        if let Some(Err(code)) = baseline.reply() {
            let code = *code;
            self.fail(&promise, code);
            return promise;
        }
        if let Some(transaction) = self.transactions.get_mut(&id) {
            let watch =
                PendingWatch { key: key.into(), promise: promise.clone(), baseline, own: None };
            transaction.watches.push(watch);
        }
        promise
    }

    /// A watch fires at once when its own transaction changes what it saw. What an atomic operation
    /// makes of it is not known (`is_known`), and counts as a change.
    pub(crate) fn trigger_own_watches(&mut self, id: u64, range: &KeyRange, is_known: bool) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        if transaction.watches.is_empty() || transaction.deferred.is_some() {
            return;
        }
        let overlay = transaction.overlay.clone();
        let mut fired = Vec::new();
        for watch in transaction.watches.iter_mut().filter(|watch| range.contains(&watch.key)) {
            let Look::Known(value) = overlay.look(&watch.key, true) else {
                fired.push(watch.promise.clone());
                continue;
            };
            match watch.seen() {
                Some(seen) if is_known && seen == value => {}
                None if is_known => watch.own = Some(value),
                Some(_) | None => fired.push(watch.promise.clone()),
            }
        }
        for promise in fired {
            self.done(&promise);
        }
    }

    /// The same for what was set before the answer about the baseline came. A watch whose baseline
    /// cannot be read fails with that.
    pub(crate) fn compare_own_watches(&mut self, id: u64) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        let mut over = Vec::new();
        for watch in &mut transaction.watches {
            match watch.baseline.reply() {
                Some(Err(code)) => over.push((watch.promise.clone(), Err(*code))),
                Some(Ok(Payload::Value(seen))) => {
                    if watch.own.take().is_some_and(|own| own != *seen) {
                        over.push((watch.promise.clone(), Ok(Payload::Nothing)));
                    }
                }
                Some(Ok(_)) | None => {}
            }
        }
        for (promise, reply) in over {
            self.settle(&promise, reply);
        }
    }

    /// Leaves the watches of a committed transaction with the servers.
    pub(crate) fn arm_watches(&mut self, id: u64) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        let database = transaction.database;
        for watch in std::mem::take(&mut transaction.watches) {
            if watch.promise.reply().is_some() {
                continue;
            }
            let Some(baseline) = watch.seen() else { continue };
            let armed = ArmedWatch { baseline, promise: watch.promise, database };
            let key = watch.key;
            self.travel(database, Box::new(move |world| world.arm_watch(key, armed)));
        }
    }

    fn arm_watch(&mut self, key: Bytes, watch: ArmedWatch) {
        if watch.promise.reply().is_some() {
            return;
        }
        let database = watch.database;
        if self.is_hit("watch_spurious", self.faults.watch_spurious) {
            let promise = watch.promise.clone();
            let delay_us = self.random.between(0, 10_000_000);
            let fire = move |world: &mut World| world.done(&promise);
            self.schedule(delay_us, Box::new(move |world| world.travel(database, Box::new(fire))));
        }
        let now_us = self.now_us;
        let Some(store) = self.store_of(database) else { return };
        let version = store.current(now_us);
        if store.rows.get(&key, version) != watch.baseline.as_ref() {
            return self.fire_watches(vec![watch]);
        }
        store.arm(key, watch);
    }

    pub(crate) fn fire_watches(&mut self, fired: Vec<ArmedWatch>) {
        for watch in fired {
            let promise = watch.promise;
            if self.is_hit("watch_early", self.faults.watch_early) {
                self.done(&promise);
                continue;
            }
            let delay_us = match self.is_hit("watch_late", self.faults.watch_late) {
                true => self.random.between(1_000_000, 20_000_000),
                false => 0,
            };
            let database = watch.database;
            let fire = move |world: &mut World| world.done(&promise);
            let send = move |world: &mut World| world.travel(database, Box::new(fire));
            self.schedule(delay_us, Box::new(send));
        }
    }

    /// The watches of a commit that failed fail with it.
    pub(crate) fn fail_watches(&mut self, id: u64, code: Code) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        for watch in std::mem::take(&mut transaction.watches) {
            self.fail(&watch.promise, code);
        }
    }

    /// Nobody waits for this promise any more.
    pub(crate) fn abandon(&mut self, promise: &Promise) {
        self.fail(promise, OPERATION_CANCELLED);
    }
}
