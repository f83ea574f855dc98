//! People ask all cubes of their tenant at once, while others remember and forget there: tables
//! that
//! lag behind must neither hide what was said nor show what is gone.

use super::{Habits, steps};
use crate::{
    dice::Dice,
    plan::{Action, Plan, Script},
};

const HABITS: Habits =
    Habits { add: 40, search: 30, get: 5, update: 10, delete: 12, list: 3, think_ms: (150, 1_800) };
/// How many searches of a thousand ask the whole tenant.
const ACROSS: u64 = 850;

pub(super) fn draw(dice: Dice, plan: &mut Plan) {
    plan.nodes = 3 + u32::try_from(dice.below("nodes", 0, 2)).unwrap_or(0);
    plan.vectors = true;
    let callers = [
        ("acme", "ann"),
        ("acme", "bo"),
        ("acme", "cy"),
        ("acme", "ann"),
        ("bolt", "ann"),
        ("bolt", "di"),
    ];
    plan.scripts = callers
        .into_iter()
        .zip(0..)
        .map(|((tenant, cube), number)| {
            let caller = dice.fork("caller", number);
            let mut steps = steps(caller, plan.seconds, &HABITS);
            for step in &mut steps {
                if let Action::Search { pick } = step.action
                    && caller.chance("across", step.id, u32::try_from(ACROSS).unwrap_or(0))
                {
                    step.action = Action::SearchTenant { pick };
                }
            }
            Script { tenant: tenant.to_owned(), cube: cube.to_owned(), voice: None, steps }
        })
        .collect();
}
