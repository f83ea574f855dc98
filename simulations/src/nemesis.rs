//! What goes wrong, and when: draws the faults of a plan, and inflicts those that have a time.

use std::{collections::BTreeMap, future::poll_fn, task::Poll};

use futures_util::future::BoxFuture;

use crate::{
    conditions::Conditions,
    dice::Dice,
    plan::{Fault, FaultClass, StoreKind, TimedFault},
};

/// Faults of one kind in a run, at the most.
const EVENTS_PER_KIND_MAX: u64 = 6;
/// A clock jumps forwards or backwards by this much, at the most.
const CLOCK_JUMP_MS_MAX: i64 = 3_000;
/// How long a node takes to start, at a guess: it counts as down for so much longer.
const BOOT_MS: u64 = 1_000;

/// Kinds of faults that have a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FaultKind {
    /// The power goes.
    Crash,
    /// A process is asked to stop, and starts again.
    Restart,
    /// A process stands still.
    Pause,
    /// No message passes between two nodes.
    CutLink,
    /// A node reaches no other node and no caller.
    Isolate,
    /// A node does not reach the store.
    CutStore,
    /// The store fails and recovers.
    StoreRecovery,
    /// The store's disk is full.
    StoreFull,
    /// A connection to the store refuses everything.
    StaleHandle,
    /// A wall clock jumps.
    ClockJump,
    /// Callers' connections break.
    CutClients,
}

impl FaultKind {
    /// All of them.
    pub(crate) const ALL: [Self; 11] = [
        Self::Crash,
        Self::Restart,
        Self::Pause,
        Self::CutLink,
        Self::Isolate,
        Self::CutStore,
        Self::StoreRecovery,
        Self::StoreFull,
        Self::StaleHandle,
        Self::ClockJump,
        Self::CutClients,
    ];

    /// The name of its draws, which stay the same when other kinds are not allowed.
    const fn stream(self) -> &'static str {
        match self {
            Self::Crash => "nemesis.crash",
            Self::Restart => "nemesis.restart",
            Self::Pause => "nemesis.pause",
            Self::CutLink => "nemesis.cut-link",
            Self::Isolate => "nemesis.isolate",
            Self::CutStore => "nemesis.cut-store",
            Self::StoreRecovery => "nemesis.store-recovery",
            Self::StoreFull => "nemesis.store-full",
            Self::StaleHandle => "nemesis.stale-handle",
            Self::ClockJump => "nemesis.clock-jump",
            Self::CutClients => "nemesis.cut-clients",
        }
    }

    /// How long it lasts, from and to, in milliseconds.
    const fn lasts_ms(self) -> (u64, u64) {
        match self {
            Self::Crash => (200, 8_000),
            Self::Pause => (100, 6_000),
            Self::CutLink
            | Self::Isolate
            | Self::CutStore
            | Self::StaleHandle
            | Self::CutClients => (500, 10_000),
            Self::StoreRecovery => (200, 3_000),
            Self::StoreFull => (500, 4_000),
            Self::ClockJump | Self::Restart => (0, 0),
        }
    }
}

/// Draws the faults of a plan that have a time: of every kind, on or off, none to six over the run.
/// At any time one node at least is not down, if there is more than one.
#[must_use]
pub(crate) fn draw_events(dice: Dice, nodes: u32, seconds: u32) -> Vec<TimedFault> {
    draw_events_of(dice, nodes, seconds, &FaultKind::ALL)
}

/// The same, of these kinds alone.
#[must_use]
pub(crate) fn draw_events_of(
    dice: Dice,
    nodes: u32,
    seconds: u32,
    allowed: &[FaultKind],
) -> Vec<TimedFault> {
    let mut events = Vec::new();
    for kind in allowed {
        let dice = dice.fork(kind.stream(), 0);
        if !dice.chance("on", 0, 500) {
            continue;
        }
        let count = dice.below("count", 0, EVENTS_PER_KIND_MAX + 1);
        let drawn = (0..count).map(|number| draw_event(dice, number, nodes, seconds, *kind));
        events.extend(drawn);
    }
    events.sort_by_key(|event| event.at_ms);
    keep_one_up(nodes, &mut events);
    events
}

fn draw_event(dice: Dice, number: u64, nodes: u32, seconds: u32, kind: FaultKind) -> TimedFault {
    let below = |stream: &str, end: u64| dice.below(stream, number, end);
    let nth = |stream: &str, end: u32| u32::try_from(below(stream, u64::from(end))).unwrap_or(0);
    let node = nth("node", nodes);
    let (shortest, longest) = kind.lasts_ms();
    let fault = match kind {
        FaultKind::Crash => Fault::Crash { node },
        FaultKind::Restart => Fault::Restart { node },
        FaultKind::Pause => Fault::Pause { node },
        FaultKind::CutLink => {
            // Any of the others.
            let to = (node + 1 + nth("to", nodes.saturating_sub(1))) % nodes.max(1);
            Fault::CutLink { from: node, to, both_ways: below("both ways", 2) == 0 }
        }
        FaultKind::Isolate => Fault::Isolate { node },
        FaultKind::CutStore => Fault::CutStore { node },
        FaultKind::StoreRecovery => Fault::StoreRecovery,
        FaultKind::StoreFull => Fault::StoreFull,
        FaultKind::StaleHandle => Fault::StaleHandle { node },
        FaultKind::ClockJump => {
            let jump = below("by", 2 * CLOCK_JUMP_MS_MAX.unsigned_abs() + 1);
            let by_ms = i64::try_from(jump).unwrap_or(0) - CLOCK_JUMP_MS_MAX;
            Fault::ClockJump { node, by_ms }
        }
        FaultKind::CutClients => Fault::CutClients { node },
    };
    let at_ms = below("at", u64::from(seconds) * 1_000);
    TimedFault { at_ms, for_ms: shortest + below("for", longest - shortest + 1), fault }
}

/// Leaves out every crash at which no other node would be up.
fn keep_one_up(nodes: u32, events: &mut Vec<TimedFault>) {
    let mut up_from = BTreeMap::new();
    events.retain(|event| {
        let Fault::Crash { node } = event.fault else { return true };
        let is_down = |other: u32| up_from.get(&other).is_some_and(|up_ms| *up_ms > event.at_ms);
        if nodes > 1 && (0..nodes).filter(|other| *other != node).all(is_down) {
            return false;
        }
        // A node that is down already stays down as long as the longer of the two wants.
        let up_ms = event.at_ms + event.for_ms + BOOT_MS;
        let up = up_from.entry(node).or_insert(0);
        *up = up_ms.max(*up);
        true
    });
}

/// Draws the faults of a plan that strike at random: each on or off, and how often in a thousand
/// chances, where every magnitude is as likely as any other.
#[must_use]
pub(crate) fn draw_faults(dice: Dice, store: StoreKind) -> BTreeMap<FaultClass, u32> {
    const INTENSITY_MAX: u64 = 80;
    let is_on = |class: &FaultClass| {
        class.strikes_on(store) && dice.fork(class.as_str(), 0).chance("on", 0, 500)
    };
    let intensity = |class: FaultClass| {
        let dice = dice.fork(class.as_str(), 0);
        match class {
            FaultClass::Jitter => 1_000,
            // Once at every start of a node, which are few.
            FaultClass::ModelChange | FaultClass::DiskLost => 200 + dice.below("lives", 0, 600),
            // Most events are short, and a preload is but one of many things that a node does.
            FaultClass::SchedulerPanic => 1 + dice.below("panics", 0, 20),
            FaultClass::PreloadPanic => 10 + dice.below("panics", 0, 100),
            // Rare, because each of them stops a part of the world for seconds.
            FaultClass::CubePanic
            | FaultClass::HydratePanic
            | FaultClass::DevicePanic
            | FaultClass::FdbRecovery
            | FaultClass::FdbSlowVersion => 1 + dice.below("panics", 0, 8),
            FaultClass::NetworkDelay
            | FaultClass::NetworkDrop
            | FaultClass::NetworkDuplicate
            | FaultClass::NetworkReorder
            | FaultClass::StoreSlow
            | FaultClass::StoreConflict
            | FaultClass::StoreUnknownApplied
            | FaultClass::StoreUnknownLost
            | FaultClass::StoreZombie
            | FaultClass::StoreUnavailable
            | FaultClass::StoreOverloaded
            | FaultClass::DeviceSlow
            | FaultClass::DeviceOutOfMemory
            | FaultClass::DeviceFail
            | FaultClass::DeviceNotFinite
            | FaultClass::BlobSlow
            | FaultClass::BlobFail
            | FaultClass::BlobTorn
            | FaultClass::BlobNotYet
            | FaultClass::BlobRot
            | FaultClass::FdbTooOld
            | FaultClass::FdbFutureVersion
            | FaultClass::FdbConflict
            | FaultClass::FdbUnknownApplied
            | FaultClass::FdbUnknownLost
            | FaultClass::FdbTimedOut
            | FaultClass::FdbVersionChanged
            | FaultClass::FdbThrottled
            | FaultClass::FdbSlowCommit
            | FaultClass::FdbWatch => {
                // Whole numbers alone: the logarithm of a float is not the same on every machine.
                let octave = 2_u64 << dice.below("octave", 0, 6);
                octave + dice.below("within", 0, octave.min(INTENSITY_MAX + 1 - octave))
            }
        }
    };
    let on = FaultClass::ALL.into_iter().filter(is_on);
    on.map(|class| (class, u32::try_from(intensity(class)).unwrap_or(0))).collect()
}

/// The name of a fault with a time, in counts and traces.
pub(crate) const fn fault_name(fault: &Fault) -> &'static str {
    match fault {
        Fault::Crash { .. } => "crash",
        Fault::Restart { .. } => "restart",
        Fault::Pause { .. } => "pause",
        Fault::CutLink { .. } => "cut-link",
        Fault::Isolate { .. } => "isolate",
        Fault::CutStore { .. } => "cut-store",
        Fault::StoreRecovery => "store-recovery",
        Fault::StoreFull => "store-full",
        Fault::StaleHandle { .. } => "stale-handle",
        Fault::ClockJump { .. } => "clock-jump",
        Fault::CutClients { .. } => "cut-clients",
    }
}

/// What the world does when a node dies and comes back.
pub(crate) trait Hooks: Send + Sync {
    /// Ends all tasks of the node. Its life is over already.
    fn crash(&self, node: u32);

    /// Starts the node, from [`Conditions::boot`] on. Dropped half-way when the node dies again.
    fn boot(&self, node: u32) -> BoxFuture<'_, ()>;

    /// Stops the node in order, then starts it. Dropped half-way when the node dies meanwhile.
    fn restart(&self, node: u32) -> BoxFuture<'_, ()>;
}

/// A step of the nemesis: a fault begins or ends.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Ends(&'a Fault),
    Begins(&'a Fault),
}

/// Inflicts events at their times, and returns when the last is over, or everything is healed. All
/// nodes that it crashed are up again by then.
pub(crate) async fn inflict(events: &[TimedFault], conditions: &Conditions, hooks: &dyn Hooks) {
    let mut steps: Vec<(u64, Step<'_>)> = Vec::with_capacity(2 * events.len());
    for TimedFault { at_ms, for_ms, fault } in events {
        steps.push((*at_ms, Step::Begins(fault)));
        steps.push((at_ms.saturating_add(*for_ms), Step::Ends(fault)));
    }
    // What ends in a millisecond ends before anything else begins in it, if it did not begin there.
    steps.sort_by_key(|(at_ms, _)| *at_ms);
    let mut nemesis = Nemesis { conditions, hooks, down: BTreeMap::new(), boots: Boots::default() };
    for (at_ms, step) in steps {
        if !nemesis.wait_until(at_ms).await {
            break;
        }
        match step {
            Step::Begins(fault) => nemesis.begin(fault),
            Step::Ends(fault) => nemesis.end(fault),
        }
    }
    nemesis.finish().await;
}

struct Nemesis<'a> {
    conditions: &'a Conditions,
    hooks: &'a dyn Hooks,
    /// Nodes that are down, and how many crashes struck them since they were up.
    down: BTreeMap<u32, u32>,
    boots: Boots<'a>,
}

impl Nemesis<'_> {
    /// Waits for a time while nodes start. Tells `false` if everything is healed before.
    async fn wait_until(&mut self, at_ms: u64) -> bool {
        if self.conditions.is_healed() {
            return false;
        }
        let moment = self.conditions.moment(at_ms);
        tokio::select! {
            biased;
            () = self.conditions.healed() => false,
            () = tokio::time::sleep_until(moment) => true,
            () = self.boots.drive() => unreachable!("invariant: driving boots never ends"),
        }
    }

    fn begin(&mut self, fault: &Fault) {
        if let Fault::Crash { node } = *fault {
            let crashes = self.down.entry(node).or_insert(0);
            *crashes += 1;
            if *crashes > 1 {
                self.conditions.note("nemesis", fault_name(fault), "skipped: it is down");
                return;
            }
            self.boots.0.remove(&node);
            self.conditions.begin(fault);
            self.hooks.crash(node);
            return;
        }
        self.conditions.begin(fault);
        if let Fault::Restart { node } = *fault
            && !self.down.contains_key(&node)
            && !self.boots.0.contains_key(&node)
        {
            self.boots.0.insert(node, self.hooks.restart(node));
        }
    }

    fn end(&mut self, fault: &Fault) {
        self.conditions.end(fault);
        if let Fault::Crash { node } = *fault {
            let crashes = self.down.entry(node).or_insert(0);
            *crashes = crashes.saturating_sub(1);
            if *crashes == 0 {
                self.boot(node);
            }
        }
    }

    fn boot(&mut self, node: u32) {
        self.down.remove(&node);
        self.boots.0.insert(node, self.hooks.boot(node));
    }

    /// Starts what is still down, and waits until all of it is up.
    async fn finish(mut self) {
        for node in self.down.keys().copied().collect::<Vec<_>>() {
            self.boot(node);
        }
        self.boots.finish().await;
    }
}

/// Nodes that are starting.
#[derive(Default)]
struct Boots<'a>(BTreeMap<u32, BoxFuture<'a, ()>>);

impl Boots<'_> {
    /// Lets all of them start, one beside the other. Never ends.
    async fn drive(&mut self) {
        poll_fn(|context| {
            self.0.retain(|_, boot| boot.as_mut().poll(context).is_pending());
            Poll::Pending
        })
        .await
    }

    /// Waits until all have started.
    async fn finish(&mut self) {
        poll_fn(|context| {
            self.0.retain(|_, boot| boot.as_mut().poll(context).is_pending());
            if self.0.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await
    }
}

#[cfg(test)]
mod tests;
