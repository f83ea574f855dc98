//! What is broken right now. The nemesis changes it, and every decorator of a port asks it.
//!
//! A node has *lives*, counted from zero: a crash ends one, and everything that an ended life still
//! tries stays without effect, because it waits for ever in [`Conditions::running`].

mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    dice::Dice,
    nemesis::fault_name,
    plan::{Fault, FaultClass},
    trace::Trace,
};

#[cfg(feature = "fdb")]
pub(crate) use self::store::StoreWays;

/// Where something may go wrong: it names the stream of the draws, and the actor in the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Messages from one node to another.
    Link { from: u32, to: u32 },
    /// Requests of a client to a node.
    Request { client: u32, node: u32 },
    /// Answers of a node to a client.
    Answer { client: u32, node: u32 },
    /// Calls of a node to the state store.
    Store { node: u32 },
    /// Forward passes, and other heavy work.
    Device { node: u32 },
    /// Calls of a node to the object store.
    Blobs { node: u32 },
    /// Tasks of a node.
    Tasks { node: u32 },
    /// What the cubes of a node do.
    Cubes { node: u32 },
    /// The clock of a node.
    Clock { node: u32 },
}

impl Place {
    /// The name of its stream, and its number there.
    const fn stream(self) -> (&'static str, u64) {
        match self {
            Self::Link { from, to } => ("link", pair(from, to)),
            Self::Request { client, node } => ("request", pair(client, node)),
            Self::Answer { client, node } => ("answer", pair(client, node)),
            Self::Store { node } => ("store", node as u64),
            Self::Device { node } => ("device", node as u64),
            Self::Blobs { node } => ("blobs", node as u64),
            Self::Tasks { node } => ("tasks", node as u64),
            Self::Cubes { node } => ("cubes", node as u64),
            Self::Clock { node } => ("clock", node as u64),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { from, to } => write!(f, "{from}>{to}"),
            Self::Request { client, node } => write!(f, "c{client}>{node}"),
            Self::Answer { client, node } => write!(f, "{node}>c{client}"),
            Self::Store { node }
            | Self::Device { node }
            | Self::Blobs { node }
            | Self::Tasks { node }
            | Self::Cubes { node }
            | Self::Clock { node } => write!(f, "node-{node}"),
        }
    }
}

const fn pair(first: u32, second: u32) -> u64 {
    (first as u64) << 32 | second as u64
}

/// One occasion for things to go wrong: its draws depend on nothing but the seed, the place and the
/// number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occasion {
    dice: Dice,
    place: Place,
    id: u64,
}

impl Occasion {
    /// A number from `low` to `high`, both included.
    #[must_use]
    pub(crate) fn between(self, stream: &str, low: u64, high: u64) -> u64 {
        low + self.dice.below(stream, self.id, high - low + 1)
    }
}

/// Counts how often a key was touched, for ids that stay the same when work on other keys is
/// removed from a plan.
#[derive(Debug, Default)]
pub(crate) struct Touches(BTreeMap<u64, u64>);

impl Touches {
    /// The id of the next touch of the key with this hash.
    pub(crate) fn next(&mut self, key: u64) -> u64 {
        let count = self.0.entry(key).or_insert(0);
        *count += 1;
        key.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// How it stands with one node. Numbers count the faults that overlap.
#[derive(Debug, Default)]
struct NodeConditions {
    life: u64,
    is_up: bool,
    pauses: u32,
    isolations: u32,
    client_cuts: u32,
    store_cuts: u32,
    /// How often it opened the store.
    handles: u64,
    /// Handles with a lower number than this are stale.
    stale_below: u64,
    clock_offset_ms: i64,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<u32, NodeConditions>,
    cut_links: BTreeMap<(u32, u32), u32>,
    store_fulls: u32,
    store_downs: u32,
    recoveries: u64,
    recoveries_over: u64,
    faults: BTreeMap<&'static str, u64>,
    reached: BTreeSet<&'static str>,
}

impl State {
    fn node(&mut self, node: u32) -> &mut NodeConditions {
        self.nodes.entry(node).or_default()
    }

    fn cut(&mut self, from: u32, to: u32) {
        *self.cut_links.entry((from, to)).or_insert(0) += 1;
    }

    fn join(&mut self, from: u32, to: u32) {
        if let Some(cuts) = self.cut_links.get_mut(&(from, to)) {
            *cuts = cuts.saturating_sub(1);
        }
    }

    fn end_recovery(&mut self) {
        if self.store_downs > 0 {
            self.store_downs -= 1;
            self.recoveries_over += 1;
        }
    }
}

/// What is broken right now. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub(crate) struct Conditions(Arc<Shared>);

struct Shared {
    dice: Dice,
    trace: Trace,
    start: Instant,
    intensities: BTreeMap<FaultClass, u32>,
    healed: AtomicBool,
    state: Mutex<State>,
    /// Wakes whoever waits for the end of something.
    changed: Notify,
}

impl Conditions {
    /// Nothing is broken, no node is up, and time starts now. The intensities say how often in a
    /// thousand occasions a fault strikes.
    pub(crate) fn new(dice: Dice, trace: Trace, intensities: BTreeMap<FaultClass, u32>) -> Self {
        Self(Arc::new(Shared {
            dice,
            trace,
            start: Instant::now(),
            intensities,
            healed: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Virtual time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// Virtual milliseconds since the start.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The moment that many milliseconds after the start.
    pub(crate) fn moment(&self, at_ms: u64) -> Instant {
        self.0.start + Duration::from_millis(at_ms)
    }

    /// Writes a line of the trace.
    pub(crate) fn note(&self, who: &str, what: &str, detail: impl fmt::Display) {
        self.0.trace.note(self.now_ms(), who, what, detail);
    }

    /// The hash over the whole trace, the number of its lines, and those that were kept.
    pub(crate) fn finish_trace(&self) -> (u64, u64, String) {
        self.0.trace.finish()
    }

    /// The occasion with this number at this place.
    pub(crate) fn occasion(&self, place: Place, id: u64) -> Occasion {
        let (stream, number) = place.stream();
        Occasion { dice: self.0.dice.fork(stream, number), place, id }
    }

    /// Whether a fault strikes on this occasion. One that does is counted and traced.
    pub(crate) fn strikes(&self, class: FaultClass, occasion: Occasion) -> bool {
        let strikes = self.would_strike(class, occasion);
        if strikes {
            self.count(class.as_str());
            let detail = format_args!("#{:x}", occasion.id);
            self.note(&occasion.place.to_string(), class.as_str(), detail);
        }
        strikes
    }

    fn would_strike(&self, class: FaultClass, occasion: Occasion) -> bool {
        let intensity = self.0.intensities.get(&class).copied().unwrap_or(0);
        intensity > 0
            && !self.is_healed()
            && occasion.dice.chance(class.as_str(), occasion.id, intensity)
    }

    /// Lets other tasks go first, up to so many times, when the order of tasks is to be shaken.
    /// It is counted, but not traced: it strikes at every turn.
    pub(crate) async fn jitter(&self, occasion: Occasion, yields_max: u64) {
        if !self.would_strike(FaultClass::Jitter, occasion) {
            return;
        }
        self.count(FaultClass::Jitter.as_str());
        for _ in 0..occasion.between("yields", 0, yields_max) {
            tokio::task::yield_now().await;
        }
    }

    fn count(&self, fault: &'static str) {
        *self.state().faults.entry(fault).or_insert(0) += 1;
    }

    /// Remembers that a *sometimes* point was reached.
    pub(crate) fn reach(&self, point: &'static str) {
        self.state().reached.insert(point);
    }

    /// The *sometimes* points that were reached.
    pub(crate) fn reached(&self) -> BTreeSet<String> {
        self.state().reached.iter().map(|point| (*point).to_owned()).collect()
    }

    /// How often each fault struck.
    pub(crate) fn faults(&self) -> BTreeMap<String, u64> {
        self.state().faults.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    /// The node starts; returns the life that begins.
    pub(crate) fn boot(&self, node: u32) -> u64 {
        let mut state = self.state();
        let node = state.node(node);
        node.is_up = true;
        node.life
    }

    /// The life of a node, or the one that begins with its next start.
    pub(crate) fn life(&self, node: u32) -> u64 {
        self.state().node(node).life
    }

    /// Whether the node has been started and has not crashed since.
    pub(crate) fn is_up(&self, node: u32) -> bool {
        self.state().node(node).is_up
    }

    /// Whether this life of the node goes on.
    pub(crate) fn is_current(&self, node: u32, life: u64) -> bool {
        self.life(node) == life
    }

    /// Waits until the node runs in this life, and tells `false` if that life is over.
    pub(crate) async fn runs(&self, node: u32, life: u64) -> bool {
        self.until(|state| {
            let node = state.node(node);
            if node.life == life { (node.pauses == 0).then_some(true) } else { Some(false) }
        })
        .await
    }

    /// Ends at once while the node runs, waits while it is paused, and never ends once this life
    /// is over.
    pub(crate) async fn running(&self, node: u32, life: u64) {
        if !self.runs(node, life).await {
            std::future::pending().await
        }
    }

    /// Whether no message passes from one node to another.
    pub(crate) fn is_cut(&self, from: u32, to: u32) -> bool {
        let mut state = self.state();
        from != to
            && (state.cut_links.get(&(from, to)).is_some_and(|cuts| *cuts > 0)
                || state.node(from).isolations > 0
                || state.node(to).isolations > 0)
    }

    /// Whether callers reach the node's machine.
    pub(crate) fn is_open_to_clients(&self, node: u32) -> bool {
        let mut state = self.state();
        let node = state.node(node);
        node.isolations == 0 && node.client_cuts == 0
    }

    /// Waits until the node does not run in this life: it is paused, or the life is over.
    #[cfg(feature = "fdb")]
    pub(crate) async fn halts(&self, node: u32, life: u64) {
        self.until(|state| {
            let node = state.node(node);
            (node.life != life || node.pauses > 0).then_some(())
        })
        .await;
    }

    /// Counts how often a fault struck of which somebody else keeps the count.
    #[cfg(feature = "fdb")]
    pub(crate) fn struck(&self, class: FaultClass, times: u64) {
        *self.state().faults.entry(class.as_str()).or_insert(0) += times;
    }

    /// How often in a thousand occasions a fault is to strike.
    #[cfg(feature = "fdb")]
    pub(crate) fn intensity(&self, class: FaultClass) -> u32 {
        self.0.intensities.get(&class).copied().unwrap_or(0)
    }

    /// By how much the node's wall clock has jumped, all jumps together.
    pub(crate) fn clock_offset_ms(&self, node: u32) -> i64 {
        self.state().node(node).clock_offset_ms
    }

    /// Something breaks. A crash ends the node's life here; stopping its tasks is up to the world.
    pub(crate) fn begin(&self, fault: &Fault) {
        let mut state = self.state();
        match *fault {
            Fault::Crash { node } => {
                let node = state.node(node);
                node.life += 1;
                node.is_up = false;
                node.pauses = 0;
            }
            // It goes on until the world has stopped it.
            Fault::Restart { .. } => {}
            Fault::Pause { node } => state.node(node).pauses += 1,
            Fault::CutLink { from, to, both_ways } => {
                state.cut(from, to);
                if both_ways {
                    state.cut(to, from);
                }
            }
            Fault::Isolate { node } => state.node(node).isolations += 1,
            Fault::CutStore { node } => state.node(node).store_cuts += 1,
            Fault::StoreRecovery => {
                state.store_downs += 1;
                state.recoveries += 1;
            }
            Fault::StoreFull => state.store_fulls += 1,
            Fault::StaleHandle { node } => {
                let node = state.node(node);
                node.stale_below = node.handles + 1;
            }
            Fault::ClockJump { node, by_ms } => state.node(node).clock_offset_ms += by_ms,
            Fault::CutClients { node } => state.node(node).client_cuts += 1,
        }
        drop(state);
        self.count(fault_name(fault));
        self.note("nemesis", fault_name(fault), format_args!("begins: {fault:?}"));
        self.0.changed.notify_waiters();
    }

    /// The life of a node ends because its process has stopped in order.
    pub(crate) fn stop(&self, node: u32) {
        let mut state = self.state();
        let stopped = state.node(node);
        stopped.life += 1;
        stopped.is_up = false;
        stopped.pauses = 0;
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// It is over. A clock stays wrong, and a node that is down until the world starts it; a stale
    /// handle is opened anew by now.
    pub(crate) fn end(&self, fault: &Fault) {
        let mut state = self.state();
        match *fault {
            Fault::Crash { .. } | Fault::Restart { .. } | Fault::ClockJump { .. } => {}
            Fault::Pause { node } => decrease(&mut state.node(node).pauses),
            Fault::CutLink { from, to, both_ways } => {
                state.join(from, to);
                if both_ways {
                    state.join(to, from);
                }
            }
            Fault::Isolate { node } => decrease(&mut state.node(node).isolations),
            Fault::CutStore { node } => decrease(&mut state.node(node).store_cuts),
            Fault::StaleHandle { node } => state.node(node).stale_below = 0,
            Fault::StoreRecovery => state.end_recovery(),
            Fault::StoreFull => decrease(&mut state.store_fulls),
            Fault::CutClients { node } => decrease(&mut state.node(node).client_cuts),
        }
        drop(state);
        self.note("nemesis", fault_name(fault), format_args!("ends: {fault:?}"));
        self.0.changed.notify_waiters();
    }

    /// Ends everything that is broken, and lets no fault strike any more. Nodes that are down stay
    /// down, clocks stay where they jumped to, and commits that are late still arrive.
    pub(crate) fn heal(&self) {
        self.0.healed.store(true, Ordering::Relaxed);
        let mut state = self.state();
        for node in state.nodes.values_mut() {
            node.pauses = 0;
            node.isolations = 0;
            node.client_cuts = 0;
            node.store_cuts = 0;
            node.stale_below = 0;
        }
        state.cut_links.clear();
        state.store_fulls = 0;
        while state.store_downs > 0 {
            state.end_recovery();
        }
        drop(state);
        self.note("nemesis", "heal", "");
        self.0.changed.notify_waiters();
    }

    /// Whether everything was healed.
    pub(crate) fn is_healed(&self) -> bool {
        self.0.healed.load(Ordering::Relaxed)
    }

    /// Ends when everything is healed.
    pub(crate) async fn healed(&self) {
        self.until(|_| self.is_healed().then_some(())).await;
    }

    /// Waits until the look at the state finds something.
    async fn until<T>(&self, look: impl Fn(&mut State) -> Option<T> + Send) -> T {
        loop {
            // Made before the look, so that no change between look and wait is missed.
            let changed = self.0.changed.notified();
            if let Some(found) = look(&mut self.state()) {
                return found;
            }
            changed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("invariant: nothing panics while it holds the conditions")
    }
}

fn decrease(faults: &mut u32) {
    // A heal, or a crash, may have ended them all before.
    *faults = faults.saturating_sub(1);
}

#[cfg(test)]
pub(crate) mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Conditions of a world where these faults strike at every occasion.
    pub(crate) fn with_faults(classes: &[FaultClass]) -> Conditions {
        let intensities = classes.iter().map(|class| (*class, 1_000)).collect();
        Conditions::new(Dice::new(7), Trace::new(true), intensities)
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_strikes_as_often_as_planned_and_not_after_the_heal() {
        for class in FaultClass::ALL {
            for (intensity, expected) in [(1_000, 100..=100), (500, 30..=70), (0, 0..=0)] {
                let intensities = BTreeMap::from([(class, intensity)]);
                let conditions = Conditions::new(Dice::new(7), Trace::new(true), intensities);
                let strike = |id| {
                    let occasion = conditions.occasion(Place::Store { node: 1 }, id);
                    conditions.strikes(class, occasion)
                };
                let strikes = (0..100).filter(|id| strike(*id)).count();
                assert!(expected.contains(&strikes), "{class:?} {intensity}: {strikes}");
                let counted = conditions.faults().get(class.as_str()).copied().unwrap_or(0);
                assert_eq!(counted, strikes as u64);
                conditions.heal();
                assert_eq!((0..100).filter(|id| strike(*id)).count(), 0);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn draws_differ_by_place_and_number_alone() {
        let conditions = with_faults(&[]);
        let draw = |place, id| conditions.occasion(place, id).between("x", 0, u64::MAX - 1);
        let link = Place::Link { from: 0, to: 1 };
        assert_eq!(draw(link, 3), draw(link, 3));
        let others = [
            draw(link, 4),
            draw(Place::Link { from: 1, to: 0 }, 3),
            draw(Place::Request { client: 0, node: 1 }, 3),
            draw(Place::Store { node: 1 }, 3),
        ];
        assert!(others.iter().all(|other| *other != draw(link, 3)));
        let mut touches = Touches::default();
        let ids = [touches.next(1), touches.next(2), touches.next(1)];
        let mut alone = Touches::default();
        assert_eq!([alone.next(1), alone.next(1)], [ids[0], ids[2]], "key 2 plays no part");
        assert_ne!(ids[0], ids[2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_life_runs_waits_and_ends() {
        let conditions = with_faults(&[]);
        let life = conditions.boot(1);
        assert!(conditions.is_up(1) && conditions.is_current(1, life));
        assert!(conditions.running(1, life).now_or_never().is_some());

        let (pause, crash) = (Fault::Pause { node: 1 }, Fault::Crash { node: 1 });
        conditions.begin(&pause);
        let mut waits = Box::pin(conditions.running(1, life));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(conditions.running(2, 0).now_or_never().is_some(), "another node runs");
        conditions.begin(&pause);
        conditions.end(&pause);
        assert!(waits.as_mut().now_or_never().is_none(), "one pause is left");
        conditions.end(&pause);
        waits.await;

        conditions.begin(&pause);
        let waits = conditions.runs(1, life);
        conditions.begin(&crash);
        assert!(!conditions.is_up(1) && !conditions.is_current(1, life));
        assert!(!waits.await);
        assert!(conditions.running(1, life).now_or_never().is_none());
        let next = conditions.boot(1);
        assert_ne!(next, life);
        assert!(conditions.running(1, next).now_or_never().is_some(), "a crash ends a pause");
        conditions.heal();
        assert!(conditions.running(1, life).now_or_never().is_none(), "a heal revives nobody");
        let expected = [("crash".to_owned(), 1), ("pause".to_owned(), 3)];
        assert_eq!(conditions.faults(), BTreeMap::from(expected));
    }

    #[tokio::test(start_paused = true)]
    async fn links_are_cut_one_way_both_ways_and_by_isolation() {
        let one_way = Fault::CutLink { from: 0, to: 1, both_ways: false };
        let both_ways = Fault::CutLink { from: 0, to: 1, both_ways: true };
        let table = [
            (one_way, vec![(0, 1)]),
            (both_ways, vec![(0, 1), (1, 0)]),
            (Fault::Isolate { node: 1 }, vec![(0, 1), (1, 0), (1, 2), (2, 1)]),
            (Fault::CutClients { node: 1 }, vec![]),
        ];
        for (fault, expected) in table {
            let conditions = with_faults(&[]);
            let cut = || -> Vec<(u32, u32)> {
                let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to)));
                pairs.filter(|(from, to)| conditions.is_cut(*from, *to)).collect()
            };
            conditions.begin(&fault);
            conditions.begin(&fault);
            conditions.end(&fault);
            assert_eq!(cut(), expected, "{fault:?}");
            conditions.end(&fault);
            assert_eq!(cut(), [], "{fault:?}");
            conditions.begin(&fault);
            conditions.heal();
            conditions.end(&fault);
            assert_eq!(cut(), [], "healed {fault:?}");
            assert!(conditions.is_open_to_clients(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_heal_ends_what_lasts_and_wakes_who_waits() {
        let conditions = with_faults(&[]);
        let faults = [
            Fault::Pause { node: 1 },
            Fault::CutStore { node: 1 },
            Fault::StoreFull,
            Fault::StoreRecovery,
            Fault::StaleHandle { node: 1 },
            Fault::CutClients { node: 1 },
        ];
        let handle = conditions.open_handle(1);
        faults.iter().for_each(|fault| conditions.begin(fault));
        let broken = || {
            [
                !conditions.is_open_to_clients(1),
                conditions.is_store_full(),
                conditions.is_store_down(),
                conditions.is_stale(1, handle),
            ]
        };
        assert_eq!(broken(), [true; 4]);
        assert!(!conditions.is_stale(1, conditions.open_handle(1)), "opened anew");
        let mut waits = Box::pin(async {
            let (runs, reaches) = (conditions.running(1, 0), conditions.store_reached(1));
            tokio::join!(runs, reaches, conditions.healed())
        });
        assert!(waits.as_mut().now_or_never().is_none());
        conditions.heal();
        waits.await;
        assert_eq!(broken(), [false; 4]);
        assert_eq!(conditions.recoveries(), (1, 1));
    }
}
