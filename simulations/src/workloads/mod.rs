//! The catalogue: who does what, one file a workload. A workload draws a plan from a seed; the plan
//! says everything else.

mod assistant;
mod chat;
mod crash_storm;
mod hand_over;
mod scheduler;
mod tenant_search;
mod tenants;

use anyhow::{Context, Result};

use crate::{
    dice::Dice,
    nemesis,
    plan::{Action, Plan, Step, StoreKind},
};

/// One entry of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    draw: fn(Dice, &mut Plan),
}

/// All of them.
pub const CATALOGUE: &[Workload] = &[
    Workload {
        name: "assistant",
        about: "people talk to assistants that add, search, update and delete, scene after scene",
        draw: assistant::draw,
    },
    Workload {
        name: "tenants",
        about: "tenants with cubes of the same names, one of them noisy",
        draw: tenants::draw,
    },
    Workload {
        name: "hand_over",
        about: "cubes move from node to node while they are written to",
        draw: hand_over::draw,
    },
    Workload {
        name: "crash_storm",
        about: "nodes crash and stall again and again",
        draw: crash_storm::draw,
    },
    Workload {
        name: "tenant_search",
        about: "searches over all cubes of a tenant, whose vector tables lag behind and fail",
        draw: tenant_search::draw,
    },
    Workload {
        name: "chat",
        about: "chats over cached contexts whose memories change and go, on devices that fail",
        draw: chat::draw,
    },
    Workload {
        name: "scheduler",
        about: "next turns of talks are prepared by schedulers that crash and are flooded",
        draw: scheduler::draw,
    },
];

/// Draws the plan of a seed over a kind of state store. The faults alone differ with the kind.
///
/// # Errors
/// When there is no such workload; the error lists what exists.
pub fn plan(scenario: &str, seed: u64, store: StoreKind) -> Result<Plan> {
    let names = || CATALOGUE.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
    let workload = CATALOGUE
        .iter()
        .find(|workload| workload.name == scenario)
        .with_context(|| format!("there is no scenario `{scenario}`; there are: {}", names()))?;
    let dice = Dice::new(seed).fork(workload.name, 0);
    let mut plan = Plan::quiet(scenario, seed);
    plan.store = store;
    plan.faults = nemesis::draw_faults(dice.fork("faults", 0), store);
    (workload.draw)(dice, &mut plan);
    plan.faults.retain(|class, _| {
        (plan.models || !class.needs_models())
            && (plan.scheduler.is_some() || !class.needs_scheduler())
    });
    let mut events = nemesis::draw_events(dice.fork("events", 0), plan.nodes, plan.seconds);
    plan.events.append(&mut events);
    plan.events.sort_by_key(|event| event.at_ms);
    Ok(plan)
}

/// How likely each kind of step is, in parts of their sum.
struct Habits {
    add: u64,
    search: u64,
    get: u64,
    update: u64,
    delete: u64,
    list: u64,
    /// Time between two steps, in milliseconds.
    think_ms: (u64, u64),
}

/// Draws the steps of one caller that fill the time.
fn steps(dice: Dice, seconds: u32, habits: &Habits) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at_ms = 0;
    let mut scene = 0;
    for id in 1.. {
        let (low, high) = habits.think_ms;
        let think_ms = low + dice.below("think", id, high - low + 1);
        at_ms += think_ms;
        if at_ms > u64::from(seconds) * 1_000 {
            break;
        }
        // A scene lasts about ten steps; then the talk is of something else.
        if dice.chance("scene", id, 100) {
            scene += 1;
        }
        steps.push(Step { id, think_ms, action: action(dice, id, scene, habits) });
    }
    steps
}

fn action(dice: Dice, id: u64, scene: u32, habits: &Habits) -> Action {
    let Habits { add, search, get, update, delete, list, .. } = *habits;
    let pick = dice.draw("pick", id);
    let kinds = [
        (add, Action::Add { topic: scene * 3 + u32::from(pick.is_multiple_of(3)), scene }),
        (search, Action::Search { pick }),
        (get, Action::Get { pick }),
        (update, Action::Update { pick }),
        (delete, Action::Delete { pick, purge: pick.is_multiple_of(2) }),
        (list, Action::List),
    ];
    let sum = kinds.iter().map(|(weight, _)| weight).sum();
    let mut left = dice.below("action", id, sum);
    for (weight, action) in kinds {
        if left < weight {
            return action;
        }
        left -= weight;
    }
    Action::List
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_one_plan_and_the_plan_can_be_saved() {
        let worlds = CATALOGUE
            .iter()
            .flat_map(|workload| StoreKind::ALL.into_iter().map(move |store| (workload, store)));
        for (workload, store) in worlds {
            let [first, again, other] =
                [3, 3, 4].map(|seed| plan(workload.name, seed, store).expect("drawn"));
            assert_eq!(first.store, store);
            assert_eq!(first, again);
            assert_ne!(first, other);
            assert!((3..=7).contains(&first.nodes), "{}", workload.name);
            let saved = serde_json::to_string(&first).expect("saved");
            assert_eq!(serde_json::from_str::<Plan>(&saved).expect("read back"), first);
        }
        let unknown = plan("asistant", 1, StoreKind::InMemory).expect_err("refused").to_string();
        assert!(
            unknown.contains(
                "assistant, tenants, hand_over, crash_storm, tenant_search, chat, scheduler"
            ),
            "{unknown}"
        );
    }
}
