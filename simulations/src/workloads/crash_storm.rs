//! Nodes crash and stall again and again, three to seven of them, while callers go on.

use super::{Habits, steps};
use crate::{
    dice::Dice,
    plan::{Fault, Plan, Script, TimedFault},
};

const HABITS: Habits = Habits {
    add: 45,
    search: 20,
    get: 10,
    update: 10,
    delete: 5,
    list: 10,
    think_ms: (100, 1_200),
};
/// Time between two blows.
const BLOW_MS: (u64, u64) = (500, 6_000);

pub(super) fn draw(dice: Dice, plan: &mut Plan) {
    plan.nodes = 3 + u32::try_from(dice.below("nodes", 0, 5)).unwrap_or(0);
    for (cube, number) in ["ann", "bo", "cy"].into_iter().zip(0..) {
        plan.scripts.push(Script {
            tenant: "acme".to_owned(),
            cube: cube.to_owned(),
            voice: None,
            steps: steps(dice.fork("caller", number), plan.seconds, &HABITS),
        });
    }
    plan.events = storm(dice, plan);
}

fn storm(dice: Dice, plan: &Plan) -> Vec<TimedFault> {
    let mut events = Vec::new();
    let mut at_ms = 2_000;
    for id in 1.. {
        let (low, high) = BLOW_MS;
        at_ms += low + dice.below("pause", id, high - low + 1);
        if at_ms > u64::from(plan.seconds) * 1_000 {
            break;
        }
        let node = dice.below("node", id, u64::from(plan.nodes));
        let node = u32::try_from(node).unwrap_or(0);
        let for_ms = 200 + dice.below("length", id, 6_000);
        let fault = match dice.below("kind", id, 10) {
            0..6 => Fault::Crash { node },
            6..8 => Fault::Restart { node },
            _ => Fault::Pause { node },
        };
        events.push(TimedFault { at_ms, for_ms, fault });
    }
    events
}
