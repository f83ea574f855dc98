//! Everything there is, and the heap of what will happen: events by time and then by the order in
//! which they were scheduled.
//!
//! Invariant: nobody is called back while the world is locked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::database::Database;
use crate::errors::Code;
use crate::faults::Faults;
use crate::future::{Payload, Promise, Reply, Waiter};
use crate::random::Random;
use crate::sim::SimConfig;
use crate::store::Store;
use crate::transaction::Transaction;

/// Something that happens at a moment.
pub(crate) type Event = Box<dyn FnOnce(&mut World) + Send>;

pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) is_simulated: bool,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    waiters: VecDeque<Waiter>,
    pub(crate) random: Random,
    pub(crate) config: SimConfig,
    pub(crate) faults: Faults,
    /// How often each kind of fault happened.
    pub(crate) injected: BTreeMap<&'static str, u64>,
    pub(crate) stores: BTreeMap<String, Store>,
    pub(crate) databases: BTreeMap<u64, Database>,
    pub(crate) transactions: BTreeMap<u64, Transaction>,
    last_id: u64,
}

impl World {
    pub(crate) fn new(seed: u64, config: SimConfig, is_simulated: bool) -> World {
        World {
            now_us: 0,
            is_simulated,
            events: BTreeMap::new(),
            sequence: 0,
            waiters: VecDeque::new(),
            random: Random::new(seed),
            faults: config.faults,
            injected: BTreeMap::new(),
            config,
            stores: BTreeMap::new(),
            databases: BTreeMap::new(),
            transactions: BTreeMap::new(),
            last_id: 0,
        }
    }

    /// Ids are given in order and never twice.
    pub(crate) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn schedule(&mut self, delay_us: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now_us + delay_us, self.sequence), event);
    }

    /// Whether a fault happens that happens so often; counted if it does.
    pub(crate) fn is_hit(&mut self, kind: &'static str, per_mille: u16) -> bool {
        let is_hit = self.random.chance(per_mille);
        if is_hit {
            *self.injected.entry(kind).or_default() += 1;
        }
        is_hit
    }

    /// How long a message takes one way.
    pub(crate) fn latency_us(&mut self) -> u64 {
        if !self.is_simulated {
            return 0;
        }
        let (least, most) = (self.config.latency_us_min, self.config.latency_us_max);
        self.random.between(least, most)
    }

    /// Lets `event` happen on the other side of the handle's connection.
    pub(crate) fn travel(&mut self, database: u64, event: Event) {
        let delay_us = self.latency_us();
        self.schedule(delay_us, Box::new(move |world| world.arrive(database, event)));
    }

    fn arrive(&mut self, database: u64, event: Event) {
        match self.databases.get_mut(&database) {
            Some(database) if database.is_cut => database.parked.push(event),
            _ => event(self),
        }
    }

    /// Settles a promise; who waits for it is called once the world is unlocked.
    pub(crate) fn settle(&mut self, promise: &Promise, reply: Reply) {
        let (waiter, is_first) = promise.settle(reply);
        self.waiters.extend(waiter);
        let handle = promise.watch_of().filter(|_| is_first);
        if let Some(database) = handle.and_then(|id| self.databases.get_mut(&id)) {
            database.watches = database.watches.saturating_sub(1);
        }
    }

    pub(crate) fn done(&mut self, promise: &Promise) {
        self.settle(promise, Ok(Payload::Nothing));
    }

    pub(crate) fn fail(&mut self, promise: &Promise, code: Code) {
        self.settle(promise, Err(code));
    }

    /// When something is next to do.
    pub(crate) fn next_at(&self) -> Option<u64> {
        if !self.waiters.is_empty() {
            return Some(self.now_us);
        }
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    fn pop_due(&mut self, until_us: u64) -> Option<Event> {
        let entry = self.events.first_entry()?;
        if entry.key().0 > until_us {
            return None;
        }
        let ((at, _), event) = entry.remove_entry();
        self.now_us = self.now_us.max(at);
        Some(event)
    }
}

/// A world and the lock in front of it.
pub(crate) struct Host {
    world: Mutex<World>,
    bell: Condvar,
    pub(crate) is_simulated: bool,
}

/// What a call left behind for whoever pumps the events.
pub(crate) enum Pumped {
    Waiters(VecDeque<Waiter>),
    Idle,
}

impl Host {
    pub(crate) fn new(world: World) -> Arc<Host> {
        let is_simulated = world.is_simulated;
        Arc::new(Host { world: Mutex::new(world), bell: Condvar::new(), is_simulated })
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` on the world, and tells the pump if there is now something earlier to do.
    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut World) -> T) -> T {
        let clock_us = self.clock_us();
        let mut world = self.lock();
        world.now_us = world.now_us.max(clock_us);
        let before = world.next_at();
        let result = call(&mut world);
        let after = world.next_at();
        drop(world);
        if after.is_some() && before.is_none_or(|before| after < Some(before)) {
            self.ring();
        }
        result
    }

    fn clock_us(&self) -> u64 {
        if self.is_simulated { crate::sim::clock_us() } else { real_clock_us() }
    }

    pub(crate) fn ring(&self) {
        self.bell.notify_all();
        if self.is_simulated {
            crate::sim::ring();
        }
    }

    /// Lets the next thing happen that is due by `until_us`. Gives those to call, if any, with the
    /// world unlocked again; `None` if nothing is due.
    fn step(&self, until_us: u64) -> Option<Pumped> {
        let mut world = self.lock();
        if !world.waiters.is_empty() {
            return Some(Pumped::Waiters(std::mem::take(&mut world.waiters)));
        }
        let event = world.pop_due(until_us)?;
        event(&mut world);
        Some(Pumped::Idle)
    }

    /// Lets everything happen that is due by `until_us`, and calls those who wait for it.
    pub(crate) fn run_until(&self, until_us: u64) {
        while let Some(pumped) = self.step(until_us) {
            if let Pumped::Waiters(waiters) = pumped {
                waiters.into_iter().for_each(|waiter| waiter());
            }
        }
        let mut world = self.lock();
        world.now_us = world.now_us.max(until_us);
    }

    /// The loop of the network thread, until `is_stopped` says so after a `ring`.
    pub(crate) fn run_loop(&self, is_stopped: impl Fn() -> bool) {
        while !is_stopped() {
            self.run_until(real_clock_us());
            let world = self.lock();
            let now_us = real_clock_us();
            match world.next_at() {
                Some(at) if at <= now_us => {}
                // Bounded, because `stop` may ring between the check above and the wait.
                next => {
                    let wait_us = next.map_or(100_000, |at| (at - now_us).min(100_000));
                    let wait = Duration::from_micros(wait_us);
                    drop(self.bell.wait_timeout(world, wait));
                }
            }
        }
    }
}

/// Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "for real threads; a simulation has its own clock")]
pub(crate) fn real_clock_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
