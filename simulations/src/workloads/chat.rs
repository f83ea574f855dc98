//! People talk to language models that know their memories, while memories change and go. Callers
//! of two tenants say the same, so that one could be answered from what was computed for the other.

use super::{Habits, steps};
use crate::{
    dice::Dice,
    plan::{Action, Plan, Script, Step},
};

const HABITS: Habits =
    Habits { add: 34, search: 30, get: 8, update: 9, delete: 9, list: 10, think_ms: (50, 900) };
/// Simulated seconds: chats take long to compute, and to judge.
const SECONDS: u32 = 40;
/// How many turns in a thousand look for memories, and how many callers go away before the end.
const RECALLS: u32 = 700;
const LEAVES: u32 = 120;
/// Time between two moves of one cube.
const MOVE_MS: (u64, u64) = (3_000, 20_000);

pub(super) fn draw(dice: Dice, plan: &mut Plan) {
    plan.models = true;
    plan.seconds = SECONDS;
    // The first two say the same; so do the last two, whose cubes are deleted now and then.
    let callers = [
        ("acme", "ann", 0, 0),
        ("bolt", "ann", 0, 0),
        ("acme", "ann", 2, 0),
        ("bolt", "di", 3, 15),
        ("acme", "di", 3, 15),
    ];
    for (tenant, cube, voice, erases) in callers {
        let caller = dice.fork("caller", u64::from(voice));
        let mut steps = steps(caller, plan.seconds, &HABITS);
        for step in &mut steps {
            talk(caller, step, erases);
        }
        let (tenant, cube) = (tenant.to_owned(), cube.to_owned());
        plan.scripts.push(Script { tenant, cube, voice: Some(voice), steps });
    }
    for ((tenant, cube), number) in [("acme", "ann"), ("bolt", "ann")].into_iter().zip(0..) {
        let steps = moves(dice.fork("mover", number), plan);
        let (tenant, cube) = (tenant.to_owned(), cube.to_owned());
        plan.scripts.push(Script { tenant, cube, voice: None, steps });
    }
}

/// Makes most searches, and some other steps, part of a talk.
fn talk(dice: Dice, step: &mut Step, erases: u32) {
    let id = step.id;
    let pick = dice.draw("pick", id);
    // Two conversations go on at any time, for some ten turns each.
    let scene = u32::try_from(id / 24 + dice.below("scene", id, 2)).unwrap_or(0);
    let chat = || Action::Chat {
        scene,
        topic: u32::try_from(dice.below("topic", id, 4)).unwrap_or(0),
        // Now and then the instructions of a conversation change.
        preamble: if dice.chance("preamble", id, 50) { 1 } else { scene % 3 },
        recalls: dice.chance("recalls", id, RECALLS),
        leaves_after: dice
            .chance("leaves", id, LEAVES)
            .then(|| u32::try_from(1 + dice.below("after", id, 5)).unwrap_or(1)),
    };
    step.action = match &step.action {
        Action::Search { .. } => chat(),
        Action::Add { .. } if dice.chance("chats", id, 400) => chat(),
        Action::Add { scene: said, .. } => Action::Add {
            topic: u32::try_from(dice.below("topic", id, 4)).unwrap_or(0),
            scene: *said,
        },
        Action::Get { .. } if dice.chance("freezes", id, 500) => Action::Freeze { pick },
        Action::Get { .. } => Action::Preload { scene, pick },
        Action::List if dice.chance("erases", id, erases * 10) => Action::Erase,
        Action::List if dice.chance("preloads", id, 400) => Action::Preload { scene, pick },
        Action::List
        | Action::Update { .. }
        | Action::Delete { .. }
        | Action::SearchTenant { .. }
        | Action::HandOver { .. }
        | Action::Burst { .. }
        | Action::Chat { .. }
        | Action::Converse { .. }
        | Action::Type { .. }
        | Action::Note { .. }
        | Action::Flood { .. }
        | Action::Preload { .. }
        | Action::Freeze { .. }
        | Action::Erase => return,
    };
}

pub(super) fn moves(dice: Dice, plan: &Plan) -> Vec<Step> {
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
