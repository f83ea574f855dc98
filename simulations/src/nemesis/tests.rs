//! Plans are drawn as promised, and inflicted at their times.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use super::*;
use crate::{clock::sleep_ms, conditions::tests::with_faults};

const SECONDS: u32 = 30;

fn draw(seed: u64, nodes: u32) -> Vec<TimedFault> {
    draw_events(Dice::new(seed), nodes, SECONDS)
}

#[test]
fn events_are_a_swarm_within_their_bounds() {
    let mut names = BTreeSet::new();
    let mut lengths = BTreeSet::new();
    for seed in 0..300 {
        let events = draw(seed, 3);
        assert_eq!(events, draw(seed, 3), "the same seed");
        assert!(events.is_sorted_by_key(|event| event.at_ms));
        lengths.insert(events.len());
        for TimedFault { at_ms, for_ms, fault } in &events {
            names.insert(fault_name(fault));
            assert!(*at_ms < u64::from(SECONDS) * 1_000);
            let bounds_ms = match fault {
                Fault::Crash { .. } => 200..=8_000,
                Fault::Pause { .. } => 100..=6_000,
                Fault::StoreRecovery => 200..=3_000,
                Fault::StoreFull => 500..=4_000,
                Fault::Restart { .. } => 0..=0,
                Fault::ClockJump { by_ms, .. } => {
                    assert!(by_ms.abs() <= 3_000);
                    0..=0
                }
                Fault::CutLink { from, to, .. } => {
                    assert!(from != to && *from < 3 && *to < 3);
                    500..=10_000
                }
                Fault::Isolate { .. }
                | Fault::CutStore { .. }
                | Fault::StaleHandle { .. }
                | Fault::CutClients { .. } => 500..=10_000,
            };
            assert!(bounds_ms.contains(for_ms), "{fault:?} {for_ms}");
        }
    }
    assert_eq!(names.len(), FaultKind::ALL.len());
    assert!(lengths.contains(&0) || lengths.iter().any(|length| *length < 5));
    assert!(lengths.iter().any(|length| *length > 20));
}

#[test]
fn one_node_is_up_at_any_time() {
    let crashes = |seed, nodes| {
        let crash = [FaultKind::Crash];
        draw_events_of(Dice::new(seed), nodes, 10, &crash)
    };
    let mut most_down = 0;
    for seed in 0..500 {
        for nodes in [2, 3] {
            let events = crashes(seed, nodes);
            for moment in (0..20_000).step_by(50) {
                let is_down = |event: &&TimedFault| {
                    (event.at_ms..event.at_ms + event.for_ms).contains(&moment)
                };
                let down: BTreeSet<String> = events
                    .iter()
                    .filter(is_down)
                    .map(|event| format!("{:?}", event.fault))
                    .collect();
                assert!(down.len() < nodes as usize, "seed {seed}");
                most_down = most_down.max(down.len());
            }
        }
    }
    assert_eq!(most_down, 2, "it does happen that all but one are down");
    assert!((0..20).any(|seed| !crashes(seed, 1).is_empty()), "a node alone may crash");
    assert!(draw_events_of(Dice::new(1), 3, 10, &[]).is_empty());
}

#[test]
fn what_is_allowed_does_not_change_the_rest() {
    let allowed = [FaultKind::Pause, FaultKind::StoreFull];
    let is_allowed =
        |event: &TimedFault| matches!(event.fault, Fault::Pause { .. } | Fault::StoreFull);
    for seed in 0..50 {
        let some = draw_events_of(Dice::new(seed), 3, SECONDS, &allowed);
        let of_all: Vec<_> = draw(seed, 3).into_iter().filter(is_allowed).collect();
        assert_eq!(some, of_all);
    }
}

#[test]
fn intensities_are_a_swarm_within_their_bounds() {
    let draw = |store| move |seed| draw_faults(Dice::new(seed), store);
    let [plans, on_fdb] = StoreKind::ALL.map(|store| (0..400).map(draw(store)).collect::<Vec<_>>());
    assert_eq!(plans[3], draw(StoreKind::InMemory)(3));
    for class in FaultClass::ALL {
        let of = |plans: &[BTreeMap<FaultClass, u32>]| -> Vec<u32> {
            plans.iter().filter_map(|plan| plan.get(&class).copied()).collect()
        };
        // What strikes both stores is drawn alike for both.
        let drawn = match StoreKind::ALL.map(|store| class.strikes_on(store)) {
            [true, true] => {
                assert_eq!(of(&plans), of(&on_fdb), "{class:?}");
                of(&plans)
            }
            [true, false] => of(&plans),
            [false, true] => of(&on_fdb),
            [false, false] => panic!("{class:?} strikes no store"),
        };
        assert_eq!(of(&plans).is_empty(), !class.strikes_on(StoreKind::InMemory));
        assert_eq!(of(&on_fdb).is_empty(), !class.strikes_on(StoreKind::Foundationdb));
        assert!((140..=260).contains(&drawn.len()), "{class:?}: {}", drawn.len());
        let (low, high) = match class.as_str() {
            "jitter" => (1_000, 1_000),
            "model-change" | "disk-lost" => (200, 799),
            "cube-panic" | "hydrate-panic" | "device-panic" | "fdb-recovery"
            | "fdb-slow-version" => (1, 8),
            "scheduler-panic" => (1, 20),
            "preload-panic" => (10, 109),
            _ => (2, 80),
        };
        assert!(drawn.iter().all(|value| (low..=high).contains(value)), "{class:?}");
        if high == 80 {
            let weak = drawn.iter().filter(|value| **value < 16).count();
            assert!((drawn.len() / 3..drawn.len() * 2 / 3).contains(&weak), "{class:?}");
        }
    }
}

/// Writes down what it is told, and takes its time to boot.
struct World {
    conditions: Conditions,
    boot_ms: u64,
    told: Mutex<Vec<(u64, &'static str, u32)>>,
}

impl World {
    fn new(boot_ms: u64) -> Arc<Self> {
        let conditions = with_faults(&[]);
        for node in 0..3 {
            conditions.boot(node);
        }
        Arc::new(Self { conditions, boot_ms, told: Mutex::default() })
    }

    fn tell(&self, what: &'static str, node: u32) {
        self.told.lock().unwrap().push((self.conditions.now_ms(), what, node));
    }

    async fn inflict(&self, events: &[TimedFault]) -> Vec<(u64, &'static str, u32)> {
        inflict(events, &self.conditions, self).await;
        self.told.lock().unwrap().clone()
    }
}

impl Hooks for World {
    fn crash(&self, node: u32) {
        assert!(!self.conditions.is_up(node));
        self.tell("crash", node);
    }

    fn boot(&self, node: u32) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let life = self.conditions.boot(node);
            self.tell("boot", node);
            sleep_ms(self.boot_ms).await;
            assert!(self.conditions.is_current(node, life), "a dead life boots on");
            self.tell("booted", node);
        })
    }

    fn restart(&self, node: u32) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            sleep_ms(self.boot_ms).await;
            self.conditions.stop(node);
            self.tell("stopped", node);
            self.boot(node).await;
        })
    }
}

fn crash(node: u32, at_ms: u64, for_ms: u64) -> TimedFault {
    TimedFault { at_ms, for_ms, fault: Fault::Crash { node } }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_in_order_starts_again_unless_it_crashes_meanwhile() {
    let restart = TimedFault { at_ms: 100, for_ms: 0, fault: Fault::Restart { node: 0 } };
    let told = World::new(50).inflict(std::slice::from_ref(&restart)).await;
    assert_eq!(told, [(150, "stopped", 0), (150, "boot", 0), (200, "booted", 0)]);
    let told = World::new(50).inflict(&[restart, crash(0, 120, 10)]).await;
    assert_eq!(told, [(120, "crash", 0), (130, "boot", 0), (180, "booted", 0)]);
}

#[tokio::test(start_paused = true)]
async fn crashes_and_boots_go_side_by_side() {
    let told = World::new(50).inflict(&[crash(0, 100, 200), crash(1, 320, 10)]).await;
    let expected = [
        (100, "crash", 0),
        (300, "boot", 0),
        (320, "crash", 1),
        (330, "boot", 1),
        (350, "booted", 0),
        (380, "booted", 1),
    ];
    assert_eq!(told, expected);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_stays_down_until_its_last_crash_is_over() {
    let world = World::new(0);
    let told = world.inflict(&[crash(0, 100, 200), crash(0, 150, 500), crash(0, 160, 10)]).await;
    let expected = [(100, "crash", 0), (650, "boot", 0), (650, "booted", 0)];
    assert_eq!(told, expected);
    assert_eq!(world.conditions.faults()["crash"], 1);
    assert_eq!(world.conditions.life(0), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_dies_while_it_boots() {
    let told = World::new(100).inflict(&[crash(0, 100, 100), crash(0, 250, 100)]).await;
    let expected = [
        (100, "crash", 0),
        (200, "boot", 0),
        (250, "crash", 0),
        (350, "boot", 0),
        (450, "booted", 0),
    ];
    assert_eq!(told, expected);
}

#[tokio::test(start_paused = true)]
async fn a_heal_ends_the_nemesis_with_all_nodes_up() {
    let world = World::new(50);
    let events = [crash(0, 100, 100_000), crash(1, 10_000, 100)];
    let heal = async {
        sleep_ms(1_000).await;
        world.conditions.heal();
    };
    let (told, ()) = tokio::join!(world.inflict(&events), heal);
    assert_eq!(told, [(100, "crash", 0), (1_000, "boot", 0), (1_050, "booted", 0)]);
    assert!((0..3).all(|node| world.conditions.is_up(node)));
}

#[tokio::test(start_paused = true)]
async fn every_timed_fault_begins_and_ends_at_its_time() {
    let world = World::new(0);
    let conditions = world.conditions.clone();
    let handle = conditions.open_handle(0);
    let faults = [
        Fault::Pause { node: 0 },
        Fault::CutLink { from: 0, to: 1, both_ways: true },
        Fault::Isolate { node: 2 },
        Fault::CutStore { node: 0 },
        Fault::StoreRecovery,
        Fault::StoreFull,
        Fault::StaleHandle { node: 0 },
        Fault::ClockJump { node: 0, by_ms: -5 },
        Fault::CutClients { node: 0 },
    ];
    let events = faults.map(|fault| TimedFault { at_ms: 100, for_ms: 100, fault });
    let standing = || {
        use futures_util::FutureExt;
        [
            conditions.running(0, 0).now_or_never().is_none(),
            conditions.is_cut(0, 1) && conditions.is_cut(1, 0),
            conditions.is_cut(1, 2),
            conditions.store_reached(0).now_or_never().is_none(),
            conditions.is_store_down(),
            conditions.is_store_full(),
            conditions.is_stale(0, handle),
            conditions.clock_offset_ms(0) == -5,
            !conditions.is_open_to_clients(0),
        ]
    };
    let look = async {
        sleep_ms(99).await;
        assert_eq!(standing(), [false; 9]);
        sleep_ms(51).await;
        assert_eq!(standing(), [true; 9]);
        sleep_ms(100).await;
        let mut stays = [false; 9];
        stays[7] = true;
        assert_eq!(standing(), stays, "a clock stays wrong");
    };
    let (told, ()) = tokio::join!(world.inflict(&events), look);
    assert!(told.is_empty());
    assert_eq!(conditions.faults().values().sum::<u64>(), 9);
}
