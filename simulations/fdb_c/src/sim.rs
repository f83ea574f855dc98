//! The simulated mode: one thread, no network thread, virtual time, and faults.
//!
//! `start` makes a world for the calling thread; databases opened on it afterwards belong to it.
//! Whoever drives the simulation sleeps until `next_at` on its own clock and calls `run_until`.
//! Callbacks of the C interface happen inside of `run_until` and nowhere else.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

pub use crate::faults::Faults;
pub use crate::store::{Applied, AppliedMutation};
use crate::world::{Host, World};

/// How a simulated cluster behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimConfig {
    /// The least a message takes one way, in microseconds.
    pub latency_us_min: u64,
    /// The most a message takes one way, in microseconds.
    pub latency_us_max: u64,
    /// The most the servers wait for further commits of a batch, in microseconds.
    pub batch_us_max: u64,
    /// The first delay of `on_error`, in microseconds.
    pub backoff_us_first: u64,
    /// What goes wrong from the start.
    pub faults: Faults,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            latency_us_min: 100,
            latency_us_max: 2_000,
            batch_us_max: 2_000,
            backoff_us_first: crate::limits::BACKOFF_FIRST_US,
            faults: Faults::default(),
        }
    }
}

/// An open database handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// Grows with every handle that is opened.
    pub id: u64,
    /// The name of its store.
    pub store: String,
    /// What follows `#` in its cluster file: `sim:<store>#<label>`.
    pub label: String,
}

struct Simulation {
    host: Arc<Host>,
    clock: Option<Rc<dyn Fn() -> u64>>,
    on_scheduled: Option<Rc<dyn Fn()>>,
}

thread_local! {
    static SIMULATION: RefCell<Option<Simulation>> = const { RefCell::new(None) };
}

/// Begins a simulation on this thread. An earlier one ends; its handles stay with it.
pub fn start(seed: u64, config: SimConfig) {
    let host = Host::new(World::new(seed, config, true));
    let simulation = Simulation { host, clock: None, on_scheduled: None };
    SIMULATION.with(|slot| slot.replace(Some(simulation)));
}

/// Ends the simulation of this thread: databases opened afterwards are real ones again.
pub fn stop() {
    SIMULATION.with(|slot| slot.replace(None));
}

/// Tells the time between two calls of `run_until`, in microseconds. Without it, a call happens at
/// the time of the last `run_until`.
pub fn set_clock(clock: Box<dyn Fn() -> u64>) {
    change(|simulation| simulation.clock = Some(clock.into()));
}

/// Calls `hook` whenever something earlier than before is to do, so that a sleeping pump wakes.
pub fn on_scheduled(hook: Box<dyn Fn()>) {
    change(|simulation| simulation.on_scheduled = Some(hook.into()));
}

fn change(change: impl FnOnce(&mut Simulation)) {
    SIMULATION.with(|slot| {
        if let Some(simulation) = slot.borrow_mut().as_mut() {
            change(simulation);
        }
    });
}

/// The world of this thread, if it simulates.
pub(crate) fn host() -> Option<Arc<Host>> {
    // Handles may be dropped while the thread ends and its locals are gone.
    let host = SIMULATION.try_with(|slot| slot.borrow().as_ref().map(|one| one.host.clone()));
    host.ok().flatten()
}

pub(crate) fn clock_us() -> u64 {
    let clock =
        SIMULATION.try_with(|slot| slot.borrow().as_ref().and_then(|one| one.clock.clone()));
    clock.ok().flatten().map_or(0, |clock| clock())
}

pub(crate) fn ring() {
    let hook =
        SIMULATION.try_with(|slot| slot.borrow().as_ref().and_then(|one| one.on_scheduled.clone()));
    if let Some(hook) = hook.ok().flatten() {
        hook();
    }
}

fn with<T>(call: impl FnOnce(&mut World) -> T) -> T {
    let host = host().expect("no simulation on this thread: call `fdb_c::sim::start` first");
    host.with(call)
}

/// When something is next to do, in microseconds.
pub fn next_at() -> Option<u64> {
    host()?.with(|world| world.next_at())
}

/// Lets everything happen that is due by `now_us`.
pub fn run_until(now_us: u64) {
    if let Some(host) = host() {
        host.run_until(now_us);
    }
}

/// Changes what goes wrong from now on.
pub fn set_faults(faults: Faults) {
    with(|world| world.faults = faults);
}

/// Ends all faults and heals all partitions.
pub fn heal() {
    with(|world| {
        world.faults = Faults::default();
        let handles: Vec<u64> = world.databases.keys().copied().collect();
        handles.into_iter().for_each(|id| world.partition(id, false));
    });
}

/// How often each kind of fault happened so far, by the name of its field in [`Faults`].
pub fn injected() -> Vec<(&'static str, u64)> {
    with(|world| world.injected.iter().map(|(kind, count)| (*kind, *count)).collect())
}

/// The open handles, in the order in which they were opened.
pub fn handles() -> Vec<Handle> {
    with(|world| {
        let handles = world.databases.iter().filter(|(_, one)| !one.is_closed);
        let handle = |(id, one): (&u64, &crate::database::Database)| Handle {
            id: *id,
            store: one.store.clone(),
            label: one.label.clone(),
        };
        handles.map(handle).collect()
    })
}

/// Cuts a handle off from its cluster, or heals it. While it is cut nothing arrives and nothing
/// returns. A commit that met the cut is applied or not, and its client is told 1021 after it
/// healed, unless a timeout told it 1031 before.
pub fn partition(handle: u64, is_cut: bool) {
    with(|world| world.partition(handle, is_cut));
}

/// Lets the cluster of a store recover: commits in flight have an unknown result, and the versions
/// jump by 100,000,000.
pub fn recover(store: &str) {
    with(|world| world.recover(store));
}

/// Every commit of a store, in order.
pub fn applied(store: &str) -> Vec<Applied> {
    with(|world| world.stores.get(store).map(|one| one.applied.clone()).unwrap_or_default())
}

/// The commits of a store from the one with this number on, in order.
pub fn applied_from(store: &str, number: usize) -> Vec<Applied> {
    with(|world| {
        let applied = world.stores.get(store).map_or(&[][..], |one| &one.applied);
        applied.get(number..).unwrap_or_default().to_vec()
    })
}

/// The rows of a store, system keys left out.
pub fn snapshot(store: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    with(|world| {
        let Some(store) = world.stores.get(store) else { return Vec::new() };
        let rows = store.rows.range(b"", b"\xff", store.last());
        rows.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    })
}

/// The greatest version a store gave to a commit or to a reader.
pub fn last_version(store: &str) -> u64 {
    with(|world| world.stores.get(store).map_or(0, |store| store.last()))
}

/// Moves the versions of a store ahead without a recovery.
pub fn skip_versions(store: &str, versions: u64) {
    with(|world| {
        if let Some(store) = world.stores.get_mut(store) {
            store.skip_versions(versions);
        }
    });
}
