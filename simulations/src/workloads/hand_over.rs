//! Cubes move from node to node while they are written to and read from.

use super::{Habits, steps};
use crate::{
    dice::Dice,
    plan::{Action, Plan, Script, Step},
};

const HABITS: Habits =
    Habits { add: 40, search: 20, get: 15, update: 10, delete: 5, list: 10, think_ms: (20, 600) };
/// Time between two moves of one cube.
const MOVE_MS: (u64, u64) = (300, 5_000);

pub(super) fn draw(dice: Dice, plan: &mut Plan) {
    plan.nodes = 3 + u32::try_from(dice.below("nodes", 0, 3)).unwrap_or(0);
    for (cube, number) in ["ann", "ann", "bo"].into_iter().zip(0..) {
        plan.scripts.push(Script {
            tenant: "acme".to_owned(),
            cube: cube.to_owned(),
            voice: None,
            steps: steps(dice.fork("caller", number), plan.seconds, &HABITS),
        });
    }
    for (cube, number) in ["ann", "bo"].into_iter().zip(0..) {
        let steps = moves(dice.fork("mover", number), plan);
        plan.scripts.push(Script {
            tenant: "acme".to_owned(),
            cube: cube.to_owned(),
            voice: None,
            steps,
        });
    }
}

fn moves(dice: Dice, plan: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at_ms = 0;
    for id in 1.. {
        let (low, high) = MOVE_MS;
        let think_ms = low + dice.below("think", id, high - low + 1);
        at_ms += think_ms;
        if at_ms > u64::from(plan.seconds) * 1_000 {
            break;
        }
        let to = dice.below("to", id, u64::from(plan.nodes));
        let action = Action::HandOver { to: u32::try_from(to).unwrap_or(0) };
        steps.push(Step { id, think_ms, action });
    }
    steps
}
