//! People talk to assistants. Each turn looks something up and remembers something; now and then
//! something is corrected or forgotten. One cube is shared by two callers.

use super::{Habits, steps};
use crate::{
    dice::Dice,
    plan::{Plan, Script},
};

const HABITS: Habits =
    Habits { add: 40, search: 25, get: 10, update: 12, delete: 6, list: 7, think_ms: (100, 1_500) };

pub(super) fn draw(dice: Dice, plan: &mut Plan) {
    plan.scripts = ["ann", "ann", "bo", "cy"]
        .into_iter()
        .zip(0..)
        .map(|(cube, number)| Script {
            tenant: "acme".to_owned(),
            cube: cube.to_owned(),
            voice: None,
            steps: steps(dice.fork("caller", number), plan.seconds, &HABITS),
        })
        .collect();
}
