//! Tenants whose cubes have the same names. One of them is noisy: it asks for hundreds of things at
//! once, which must cost itself, and nobody else, an answer.

use super::{Habits, steps};
use crate::{
    dice::Dice,
    plan::{Action, Plan, Script, Step},
};

const QUIET: Habits =
    Habits { add: 35, search: 30, get: 10, update: 8, delete: 5, list: 12, think_ms: (200, 2_500) };
const NOISY: Habits =
    Habits { add: 80, search: 10, get: 0, update: 5, delete: 5, list: 0, think_ms: (50, 400) };
/// Questions in one burst, at the most: more than a cube's queue takes.
const BURST_MAX: u64 = 400;

pub(super) fn draw(dice: Dice, plan: &mut Plan) {
    plan.nodes = 3 + u32::try_from(dice.below("nodes", 0, 3)).unwrap_or(0);
    let names = [("acme", &QUIET), ("bolt", &QUIET), ("cyan", &QUIET), ("noise", &NOISY)];
    plan.scripts = names
        .into_iter()
        .zip(0..)
        .map(|((tenant, habits), number)| Script {
            tenant: tenant.to_owned(),
            cube: "me".to_owned(),
            voice: None,
            steps: steps(dice.fork("caller", number), plan.seconds, habits),
        })
        .collect();
    if let Some(noisy) = plan.scripts.last_mut() {
        for step in noisy.steps.iter_mut().filter(|step| dice.chance("burst", step.id, 60)) {
            *step = burst(dice, step);
        }
    }
}

fn burst(dice: Dice, step: &Step) -> Step {
    let count = u32::try_from(20 + dice.below("burst size", step.id, BURST_MAX)).unwrap_or(20);
    Step { action: Action::Burst { count }, ..step.clone() }
}
