//! Commits: from the client to the batch of the servers and back, with what may go wrong between.

use crate::atomic;
use crate::conflicts::RangeSet;
use crate::errors::{COMMIT_UNKNOWN_RESULT, Code, NO_COMMIT_VERSION, TRANSACTION_TOO_LARGE};
use crate::faults::Fate;
use crate::future::{Payload, Promise};
use crate::store::{CommitRequest, Committed, QueuedCommit, Refused, Respond};
use crate::transaction::{CommitState, Transaction};
use crate::world::World;

/// How long real servers wait for further commits of a batch; one fsync pays for all of them.
const BATCH_US: u64 = 1_000;

type Outcome = Result<Committed, Refused>;

impl Transaction {
    fn is_read_only(&self) -> bool {
        self.overlay.is_empty() && self.write_conflicts.is_empty()
    }

    fn request(&self, read_version: u64) -> CommitRequest {
        CommitRequest {
            read_version,
            reads: self.read_conflicts.iter().collect(),
            writes: self.write_conflicts.iter().collect(),
            mutations: self.overlay.mutations(),
        }
    }
}

impl CommitRequest {
    fn bytes(&self) -> u64 {
        let ranges = self.reads.iter().chain(&self.writes);
        let ranges = ranges.map(|range| range.bytes() + crate::limits::RANGE_OVERHEAD_BYTES);
        ranges.sum::<u64>()
            + self.mutations.iter().map(crate::overlay::Mutation::bytes).sum::<u64>()
    }
}

impl World {
    pub(crate) fn commit(&mut self, id: u64) -> Promise {
        let transaction = match self.enter(id) {
            Ok(transaction) => transaction,
            Err(code) => return self.failed(code),
        };
        let promise = transaction.promise();
        transaction.commit = CommitState::WaitsForReads(promise.clone());
        self.commit_if_read(id);
        promise
    }

    /// Sends the commit that waits for reads, if the last of them is answered.
    pub(crate) fn commit_if_read(&mut self, id: u64) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        if transaction.reading > 0 || transaction.broken.is_some() {
            return;
        }
        let promise = match &transaction.commit {
            CommitState::WaitsForReads(promise) => promise.clone(),
            CommitState::NotStarted | CommitState::Sent(_) | CommitState::Over => return,
        };
        transaction.commit = CommitState::Sent(promise);
        let generation = transaction.generation;
        if let Some(code) = transaction.reading_failed {
            return self.finish_commit(id, generation, Err(code.into()));
        }
        if transaction.is_read_only() {
            let finish = move |world: &mut World| world.finish_read_only(id, generation);
            return self.schedule(0, Box::new(finish));
        }
        // A size that is too large shows before a version is asked for.
        if transaction.request(0).bytes() > transaction.options.size_limit {
            return self.finish_commit(id, generation, Err(TRANSACTION_TOO_LARGE.into()));
        }
        let go_on = move |world: &mut World, version: Result<u64, Code>| match version {
            Ok(version) => world.send_commit(id, generation, version),
            Err(code) => world.finish_commit(id, generation, Err(code.into())),
        };
        self.with_version(id, Box::new(go_on));
    }

    fn finish_read_only(&mut self, id: u64, generation: u64) {
        let Some(transaction) = self.commit_of(id, generation) else { return };
        transaction.stamp = Some(Err(NO_COMMIT_VERSION));
        self.tell_stamp(id);
        self.arm_watches(id);
        self.settle_commit(id, Ok(Payload::Nothing));
    }

    /// The transaction, if it still waits for this commit.
    fn commit_of(&mut self, id: u64, generation: u64) -> Option<&mut Transaction> {
        let transaction = self.transactions.get_mut(&id)?;
        let waits = transaction.generation == generation && transaction.broken.is_none();
        waits.then_some(transaction)
    }

    fn send_commit(&mut self, id: u64, generation: u64, version: u64) {
        let now_us = self.now_us;
        let Some(transaction) = self.commit_of(id, generation) else { return };
        let database = transaction.database;
        let request = transaction.request(version);
        let timeout_us = match transaction.options.timeout_us {
            0 => None,
            timeout_us => Some((transaction.born_us + timeout_us).saturating_sub(now_us)),
        };
        let fate = self.draw_fate(timeout_us);
        let answer = move |world: &mut World, outcome: Outcome| {
            world.return_outcome(database, id, generation, outcome);
        };
        let silent: Respond = Box::new(|_, _| {});
        match fate {
            Fate::Decided { delay_us } => {
                self.deliver(database, delay_us, request, None, Box::new(answer));
            }
            Fate::Refused(code) => {
                self.deliver(database, 0, request, Some(code), Box::new(answer));
            }
            Fate::Hidden { code, delay_us } => {
                let hide = move |world: &mut World, _: Outcome| answer(world, Err(code.into()));
                self.deliver(database, delay_us, request, None, Box::new(hide));
            }
            Fate::Lost(code) => {
                self.travel(database, Box::new(move |world| answer(world, Err(code.into()))));
            }
            Fate::Unanswered { is_lost: true, .. } => {}
            Fate::Unanswered { delay_us, .. } => {
                self.deliver(database, delay_us, request, None, silent);
            }
        }
    }

    /// Brings a commit to the servers.
    fn deliver(
        &mut self,
        database: u64,
        delay_us: u64,
        request: CommitRequest,
        refusal: Option<Code>,
        respond: Respond,
    ) {
        let latency_us = self.latency_us();
        let generation = self.store_of(database).map_or(0, |store| store.generation);
        let queued = QueuedCommit { request, respond, fate: refusal };
        let store = self.databases.get(&database).map(|one| one.store.clone()).unwrap_or_default();
        let arrive = move |world: &mut World| {
            let is_cut = world.databases.get(&database).is_some_and(|one| one.is_cut);
            if is_cut {
                let later = move |world: &mut World| world.enqueue_after_cut(&store, queued);
                return world.park(database, Box::new(later));
            }
            let now = world.stores.get(&store).map_or(0, |store| store.generation);
            if now != generation {
                // The servers it was sent to are gone.
                return (queued.respond)(world, Err(COMMIT_UNKNOWN_RESULT.into()));
            }
            world.enqueue(&store, queued);
        };
        self.schedule(latency_us + delay_us, Box::new(arrive));
    }

    fn park(&mut self, database: u64, event: crate::world::Event) {
        if let Some(database) = self.databases.get_mut(&database) {
            database.parked.push(event);
        }
    }

    /// What a cut held back arrives when it heals, or never; the client cannot know which.
    fn enqueue_after_cut(&mut self, store: &str, queued: QueuedCommit) {
        let respond = queued.respond;
        let hide = |world: &mut World, _: Outcome| {
            respond(world, Err(COMMIT_UNKNOWN_RESULT.into()));
        };
        if self.random.chance(500) {
            return hide(self, Err(COMMIT_UNKNOWN_RESULT.into()));
        }
        let queued = QueuedCommit { respond: Box::new(hide), ..queued };
        self.enqueue(store, queued);
    }

    fn enqueue(&mut self, name: &str, queued: QueuedCommit) {
        let delay_us = match self.is_simulated {
            true => self.random.between(0, self.config.batch_us_max),
            false => BATCH_US,
        };
        let Some(store) = self.stores.get_mut(name) else { return };
        store.queue.push(queued);
        if store.is_closing {
            return;
        }
        store.is_closing = true;
        let name = name.to_owned();
        self.schedule(delay_us, Box::new(move |world| world.close_batch(&name)));
    }

    /// Commits what has arrived under one version.
    fn close_batch(&mut self, name: &str) {
        if self.is_hit("recovery", self.faults.recovery) {
            return self.recover(name);
        }
        let Some(store) = self.stores.get_mut(name) else { return };
        store.is_closing = false;
        let batch = std::mem::take(&mut store.queue);
        let outcomes = self.commit_batch(name, &batch);
        for (queued, outcome) in batch.into_iter().zip(outcomes) {
            (queued.respond)(self, outcome);
        }
    }

    /// Decides a batch, makes it durable, and lets watches fire.
    fn commit_batch(&mut self, name: &str, batch: &[QueuedCommit]) -> Vec<Outcome> {
        let now_us = self.now_us;
        let Some(store) = self.stores.get_mut(name) else { return Vec::new() };
        if let Some(code) = store.broken {
            return batch.iter().map(|_| Err(code.into())).collect();
        }
        if batch.is_empty() {
            return Vec::new();
        }
        let (outcomes, changed) = store.commit_batch(now_us, batch);
        if let Some(disk) = &mut store.disk {
            // What could not be made durable is in nobody's hands: no outcome is known, and
            // nothing is served any more, because readers would see what a restart forgets.
            if let Err(code) = disk.sync() {
                store.broken = Some(code);
                return batch.iter().map(|_| Err(COMMIT_UNKNOWN_RESULT.into())).collect();
            }
        }
        let fired = store.fired(&changed);
        self.fire_watches(fired);
        outcomes
    }

    /// The cluster loses the servers that decide commits: what is in flight has an unknown result,
    /// and the versions jump.
    pub(crate) fn recover(&mut self, name: &str) {
        let Some(store) = self.stores.get_mut(name) else { return };
        store.is_closing = false;
        let (mut made, mut lost) = (Vec::new(), Vec::new());
        for queued in std::mem::take(&mut store.queue) {
            if self.random.chance(500) { made.push(queued) } else { lost.push(queued) }
        }
        self.commit_batch(name, &made);
        if let Some(store) = self.stores.get_mut(name) {
            store.generation += 1;
            store.skip_versions(crate::limits::RECOVERY_VERSIONS);
        }
        for queued in made.into_iter().chain(lost) {
            (queued.respond)(self, Err(COMMIT_UNKNOWN_RESULT.into()));
        }
    }

    /// Brings the outcome back to the client.
    fn return_outcome(&mut self, database: u64, id: u64, generation: u64, outcome: Outcome) {
        let latency_us = self.latency_us();
        let of_servers = self.store_of(database).map_or(0, |store| store.generation);
        let arrive = move |world: &mut World| {
            let now = world.store_of(database).map_or(0, |store| store.generation);
            let is_cut = world.databases.get(&database).is_some_and(|one| one.is_cut);
            // Whoever was to say it is gone, or cannot be heard.
            let outcome = if is_cut || now != of_servers {
                Err(COMMIT_UNKNOWN_RESULT.into())
            } else {
                outcome
            };
            if is_cut {
                let later = move |world: &mut World| world.finish_commit(id, generation, outcome);
                return world.park(database, Box::new(later));
            }
            world.finish_commit(id, generation, outcome);
        };
        self.schedule(latency_us, Box::new(arrive));
    }

    fn finish_commit(&mut self, id: u64, generation: u64, outcome: Outcome) {
        let Some(transaction) = self.commit_of(id, generation) else { return };
        match outcome {
            Ok(Committed { version, batch }) => {
                transaction.committed_version = i64::try_from(version).unwrap_or(i64::MAX);
                transaction.stamp = Some(Ok(atomic::stamp(version, batch)[..].into()));
                self.tell_stamp(id);
                self.arm_watches(id);
                self.settle_commit(id, Ok(Payload::Nothing));
            }
            Err(refused) => {
                if transaction.options.reports_conflicts {
                    let mut conflicting = RangeSet::default();
                    refused.conflicting.iter().for_each(|range| conflicting.insert(range));
                    transaction.conflicting = conflicting;
                }
                transaction.stamp = Some(Err(refused.code));
                self.tell_stamp(id);
                self.fail_watches(id, refused.code);
                self.settle_commit(id, Err(refused.code));
            }
        }
    }

    fn settle_commit(&mut self, id: u64, reply: crate::future::Reply) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        let before = std::mem::replace(&mut transaction.commit, CommitState::Over);
        if let CommitState::Sent(promise) = before {
            self.settle(&promise, reply);
        }
    }

    pub(crate) fn versionstamp(&mut self, id: u64) -> Promise {
        let transaction = match self.enter(id) {
            Ok(transaction) => transaction,
            Err(code) => return self.failed(code),
        };
        let promise = Promise::new();
        transaction.wants_stamp.push(promise.clone());
        promise
    }

    fn tell_stamp(&mut self, id: u64) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        let Some(stamp) = transaction.stamp.clone() else { return };
        for promise in std::mem::take(&mut transaction.wants_stamp) {
            self.settle(&promise, stamp.clone().map(Payload::Key));
        }
    }
}
