//! People talk to assistants that prepare the next turn: they pause, type, mark topics and close
//! conversations, while memories change and go, and one tenant floods the scheduler with events now
//! and then. Two tenants have a cube of the same name with conversations of the same names, so that
//! one could be prepared for with what is of the other.

use super::{Habits, chat::moves, steps};
use crate::{
    dice::Dice,
    plan::{Action, Happening, Plan, SchedulerPlan, Script, Step},
};

const HABITS: Habits =
    Habits { add: 26, search: 40, get: 14, update: 5, delete: 7, list: 8, think_ms: (100, 2_200) };
/// Simulated seconds: chats take long to compute, and to judge.
const SECONDS: u32 = 40;
/// How many callers in a thousand go away before the end of a reply.
const LEAVES: u32 = 100;
/// How many tenants in a thousand may compute only little ahead, and how much that is: tokens in a
/// minute, from and to.
const TIGHT: u32 = 500;
const TIGHT_TOKENS: (u64, u64) = (20, 600);
/// Events of a burst, from and to.
const FLOOD: (u64, u64) = (400, 900);

pub(super) fn draw(dice: Dice, plan: &mut Plan) {
    plan.models = true;
    plan.seconds = SECONDS;
    let (low, high) = TIGHT_TOKENS;
    let tight = low + dice.below("tokens", 0, high - low + 1);
    let tenant_tokens_per_minute = if dice.chance("tight", 0, TIGHT) { tight } else { 0 };
    plan.scheduler = Some(SchedulerPlan { tenant_tokens_per_minute });
    // The first two say the same; the last one's cube is deleted now and then.
    let callers = [
        ("acme", "ann", 0, 0),
        ("bolt", "ann", 0, 0),
        ("acme", "bo", 2, 0),
        ("bolt", "di", 3, 25),
        ("loud", "ann", 4, 0),
    ];
    for (tenant, cube, voice, erases) in callers {
        let caller = dice.fork("caller", u64::from(voice));
        let mut steps = steps(caller, plan.seconds, &HABITS);
        for step in &mut steps {
            talk(caller, step, erases, tenant == "loud");
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

/// Makes most steps part of a talk.
fn talk(dice: Dice, step: &mut Step, erases: u32, is_loud: bool) {
    let id = step.id;
    let below = |stream: &str, end: u64| u32::try_from(dice.below(stream, id, end)).unwrap_or(0);
    // Two conversations go on at any time, for some ten turns each.
    let scene = u32::try_from(id / 20).unwrap_or(0) + below("scene", 2);
    let topic = below("topic", 4);
    let leaves_after = dice.chance("leaves", id, LEAVES).then(|| 1 + below("after", 5));
    let (low, high) = FLOOD;
    let flood =
        || Action::Flood { count: u32::try_from(low).unwrap_or(0) + below("flood", high - low) };
    let happening = || match below("what", 12) {
        0..=2 => Happening::Topic,
        3 => Happening::Tool,
        4 | 5 => Happening::Pause,
        6 => Happening::Resume,
        7 | 8 => Happening::Turn,
        9 | 10 => Happening::Close,
        _ => Happening::Stray,
    };
    step.action = match &step.action {
        Action::Search { .. } if is_loud && dice.chance("floods", id, 350) => flood(),
        Action::Search { .. } if dice.chance("searches", id, 100) => return,
        Action::Search { .. } => Action::Converse { scene, topic, leaves_after },
        Action::Add { .. } if dice.chance("talks", id, 300) => {
            Action::Converse { scene, topic, leaves_after }
        }
        Action::Add { scene: said, .. } => Action::Add { topic, scene: *said },
        Action::Get { .. } => Action::Type { scene, topic },
        Action::List if dice.chance("erases", id, erases * 10) => Action::Erase,
        Action::List if dice.chance("notes", id, 700) => {
            Action::Note { scene, topic, what: happening() }
        }
        Action::Update { pick } if dice.chance("freezes", id, 300) => {
            Action::Freeze { pick: *pick }
        }
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
