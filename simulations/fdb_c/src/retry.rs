//! What ends a transaction and what makes it new: cancel, timeout, reset, and `on_error`.

use std::sync::Arc;

use crate::conflicts::RangeSet;
use crate::errors::{
    self, CLIENT_INVALID_OPERATION, CLUSTER_VERSION_CHANGED, COMMIT_PROXY_MEMORY, Code,
    FUTURE_VERSION, GRV_PROXY_MEMORY, TRANSACTION_CANCELLED, TRANSACTION_TIMED_OUT,
    TRANSACTION_TOO_OLD,
};
use crate::future::Promise;
use crate::limits::{BACKOFF_GROWTH, FUTURE_VERSION_RETRY_US, RESOURCE_BACKOFF_MAX_US};
use crate::transaction::{CommitState, ReadVersion, Transaction};
use crate::world::World;

impl Transaction {
    /// Forgets everything but its options, retries and backoff.
    fn forget(&mut self) {
        self.generation += 1;
        self.read_version = ReadVersion::Unasked;
        self.overlay = Arc::default();
        self.read_conflicts = RangeSet::default();
        self.write_conflicts = RangeSet::default();
        self.stamped_keys.clear();
        self.bytes = 0;
        self.reading = 0;
        self.reading_failed = None;
        self.has_read = false;
        self.commit = CommitState::NotStarted;
        self.broken = None;
        self.deferred = None;
        self.committed_version = -1;
        self.stamp = None;
        self.conflicting = RangeSet::default();
    }

    /// How long `on_error` waits; `None` if the error is not one to try again after.
    fn delay_us(&mut self, code: Code, part_of: impl FnOnce(u64) -> u64) -> Option<u64> {
        if matches!(code, TRANSACTION_TOO_OLD | FUTURE_VERSION) {
            return Some(FUTURE_VERSION_RETRY_US.min(self.options.backoff_max_us));
        }
        // The client that finds another protocol tries again at once with the library for it.
        if code == CLUSTER_VERSION_CHANGED {
            return Some(0);
        }
        if !errors::is_backed_off(code) {
            return None;
        }
        let delay_us = part_of(self.backoff_us);
        let most = match code {
            COMMIT_PROXY_MEMORY | GRV_PROXY_MEMORY => RESOURCE_BACKOFF_MAX_US,
            _ => self.options.backoff_max_us,
        };
        self.backoff_us = (self.backoff_us * BACKOFF_GROWTH).min(most);
        Some(delay_us)
    }
}

impl World {
    /// Fails everything that is pending, and everything to come until a reset.
    pub(crate) fn break_transaction(&mut self, id: u64, code: Code) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        transaction.broken = Some(code);
        self.fail_pending(id, code);
    }

    /// Fails what was promised and is not settled. Watches of a committed transaction live on.
    fn fail_pending(&mut self, id: u64, code: Code) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        let mut pending = std::mem::take(&mut transaction.promised);
        pending.append(&mut transaction.wants_stamp);
        pending.extend(transaction.watches.drain(..).map(|watch| watch.promise));
        for promise in pending {
            self.fail(&promise, code);
        }
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        let is_whole = self.transactions.get(&id).is_some_and(|one| one.broken.is_none());
        if is_whole {
            self.break_transaction(id, TRANSACTION_CANCELLED);
        }
    }

    pub(crate) fn destroy(&mut self, id: u64) {
        self.fail_pending(id, TRANSACTION_CANCELLED);
        if let Some(transaction) = self.transactions.remove(&id) {
            self.leave_database(transaction.database);
        }
    }

    pub(crate) fn reset(&mut self, id: u64) {
        self.fail_pending(id, TRANSACTION_CANCELLED);
        let now_us = self.now_us;
        let first_us = self.config.backoff_us_first;
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        transaction.forget();
        transaction.retries = 0;
        transaction.born_us = now_us;
        transaction.backoff_us = first_us;
        if let Some(database) = self.databases.get(&transaction.database) {
            transaction.options = database.options.transactions.clone();
        }
        self.arm_timeout(id);
    }

    /// Lets the timeout go off when it is due, counted from when the transaction was made.
    pub(crate) fn arm_timeout(&mut self, id: u64) {
        let now_us = self.now_us;
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        transaction.timeout_armed += 1;
        let armed = transaction.timeout_armed;
        if transaction.options.timeout_us == 0 {
            return;
        }
        let due_us = transaction.born_us + transaction.options.timeout_us;
        self.schedule(
            due_us.saturating_sub(now_us),
            Box::new(move |world| {
                let transaction = world.transactions.get(&id);
                let is_due = transaction
                    .is_some_and(|one| one.timeout_armed == armed && one.broken.is_none());
                if is_due {
                    world.break_transaction(id, TRANSACTION_TIMED_OUT);
                }
            }),
        );
    }

    pub(crate) fn on_error(&mut self, id: u64, code: Code) -> Promise {
        let promise = Promise::new();
        let Some(transaction) = self.transactions.get_mut(&id) else {
            self.fail(&promise, TRANSACTION_CANCELLED);
            return promise;
        };
        if let Some(broken) = transaction.broken {
            self.fail(&promise, broken);
            return promise;
        }
        let is_over =
            transaction.options.retries_max.is_some_and(|most| transaction.retries >= most);
        transaction.retries += 1;
        let random = &mut self.random;
        let delay_us = match code {
            _ if is_over && code != CLUSTER_VERSION_CHANGED => Err(code),
            0 => Err(CLIENT_INVALID_OPERATION),
            _ => transaction.delay_us(code, |whole| random.part_of(whole)).ok_or(code),
        };
        let delay_us = match delay_us {
            Ok(delay_us) => delay_us,
            // From API version 610 on, a transaction that is not tried again is cancelled.
            Err(code) => {
                self.fail(&promise, code);
                self.break_transaction(id, TRANSACTION_CANCELLED);
                return promise;
            }
        };
        let generation = transaction.generation;
        transaction.remember(&promise);
        let kept = promise.clone();
        self.schedule(delay_us, Box::new(move |world| world.renew(id, generation, &kept)));
        promise
    }

    /// The end of the delay: the transaction begins anew.
    fn renew(&mut self, id: u64, generation: u64, promise: &Promise) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        if transaction.generation != generation || transaction.broken.is_some() {
            return;
        }
        transaction.promised.retain(|other| !other.is(promise));
        self.fail_pending(id, TRANSACTION_CANCELLED);
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        transaction.forget();
        if let Some(database) = self.databases.get(&transaction.database) {
            let defaults = &database.options.transactions;
            transaction.options = transaction.options.after_retry(defaults);
        }
        self.done(promise);
    }
}
