//! What of a prediction is worth preloading: the likeliest memories that fit into a budget of
//! tokens, bytes and time, if what they are expected to save exceeds what they cost. Pure.

use std::collections::{BTreeMap, BTreeSet};

use memcube_schemas::MemoryId;

use super::predict::Prediction;

/// What a plan may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Tokens that may be added.
    pub tokens_max: usize,
    /// Tokens of all memories in the context.
    pub context_tokens_max: usize,
    /// Bytes of keys and values that the tenant may still hold on the device and in RAM.
    pub bytes_max: u64,
    /// Microseconds until the user is likely back.
    pub us_max: u64,
}

/// What a token costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenCosts {
    /// Microseconds to compute one.
    pub us: f64,
    /// Bytes of its keys and values.
    pub bytes: u64,
    /// What a token computed in vain costs against one saved when somebody waits, from 0 to 1:
    /// small where the device is idle, 1 where somebody pays for each.
    pub waste: f64,
}

/// What a context holds already.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Held {
    /// All memories in it.
    pub memories: BTreeSet<MemoryId>,
    /// Their tokens.
    pub tokens: usize,
    /// Those that stand behind everything that was said, with their tokens: they were computed
    /// ahead, and go again when they are not likely any more.
    pub end: BTreeMap<MemoryId, u32>,
}

/// What is to be computed ahead.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Memories to append to the context, likeliest first.
    pub append: Vec<MemoryId>,
    /// These, and those at its end that stay there, likeliest first.
    pub ready: Vec<MemoryId>,
    /// Tokens that the appended ones take.
    pub tokens: usize,
    /// Tokens that they could have taken.
    pub room: usize,
    /// Tokens that the next turn is expected not to have to compute because of them.
    pub expected_tokens: f64,
}

/// Chooses memories in the order of their likelihood. A token that is computed ahead saves one if
/// its memory is needed, so each memory's worth for its cost is its likelihood, and the order of
/// likelihoods is that of a knapsack's greedy rule; what does not fit any more is passed over for
/// what does. What the context holds already costs nothing and is not appended.
#[must_use]
pub fn plan(predictions: &[Prediction], held: &Held, budget: &Budget, costs: &TokenCosts) -> Plan {
    let pays = |known: &&Prediction| {
        let probability = f64::from(known.probability);
        probability > costs.waste * (1.0 - probability)
    };
    // Sorted, so nothing behind the first that does not pay is worth more.
    let paying = || predictions.iter().take_while(pays);
    let end_tokens = |id: &MemoryId| held.end.get(id).map_or(0, |tokens| *tokens as usize);
    let at_end: usize = held.end.keys().map(end_tokens).sum();
    let staying: usize = paying().map(|known| end_tokens(&known.candidate.id)).sum();
    let in_context = held.tokens.saturating_sub(at_end) + staying;
    let mut plan = Plan { room: room(budget, costs, in_context), ..Plan::default() };
    for Prediction { candidate, probability } in paying() {
        let tokens = candidate.tokens as usize;
        if held.memories.contains(&candidate.id) {
            if held.end.contains_key(&candidate.id) {
                plan.ready.push(candidate.id);
            }
        } else if plan.tokens + tokens <= plan.room {
            plan.tokens += tokens;
            plan.expected_tokens += f64::from(*probability) * tokens as f64;
            plan.append.push(candidate.id);
            plan.ready.push(candidate.id);
        }
    }
    plan
}

/// Tokens that may be added to so many.
fn room(budget: &Budget, costs: &TokenCosts, in_context: usize) -> usize {
    let of_time = if costs.us > 0.0 { budget.us_max as f64 / costs.us } else { f64::MAX };
    let of_bytes = budget.bytes_max.checked_div(costs.bytes).unwrap_or(u64::MAX);
    let of_bytes = usize::try_from(of_bytes).unwrap_or(usize::MAX);
    let of_context = budget.context_tokens_max.saturating_sub(in_context);
    budget.tokens_max.min(of_context).min(of_time as usize).min(of_bytes)
}

#[cfg(test)]
mod tests {
    use memcube_schemas::scene::{SceneCandidate, SceneFeatures};

    use super::*;

    const COSTS: TokenCosts = TokenCosts { us: 1_000.0, bytes: 100, waste: 0.05 };
    const BUDGET: Budget = Budget {
        tokens_max: 1_000,
        context_tokens_max: 100,
        bytes_max: 1 << 20,
        us_max: 10_000_000,
    };

    fn id(number: u64) -> MemoryId {
        MemoryId::from_parts(number, 0)
    }

    fn prediction(number: u64, tokens: u32, probability: f32) -> Prediction {
        let features = SceneFeatures::default();
        let candidate = SceneCandidate { id: id(number), revision: 1, tokens, features };
        Prediction { candidate, probability }
    }

    #[test]
    fn the_likeliest_that_fit_and_pay_are_planned() {
        let predictions = [
            prediction(1, 40, 0.9),
            prediction(2, 70, 0.8),
            prediction(3, 50, 0.5),
            prediction(4, 10, 0.2),
            prediction(5, 1, 0.04),
        ];
        type Case<'a> = (&'a str, &'a [u64], usize, Budget, TokenCosts, &'a [u64]);
        let table: [Case<'_>; 9] = [
            ("passes over what does not fit", &[], 0, BUDGET, COSTS, &[1, 3, 4]),
            ("what is held is not named", &[1], 40, BUDGET, COSTS, &[3, 4]),
            ("the context is full", &[], 95, BUDGET, COSTS, &[]),
            ("no time", &[], 0, Budget { us_max: 0, ..BUDGET }, COSTS, &[]),
            ("little time", &[], 0, Budget { us_max: 15_000, ..BUDGET }, COSTS, &[4]),
            ("little at once", &[], 0, Budget { tokens_max: 15, ..BUDGET }, COSTS, &[4]),
            ("few bytes", &[], 0, Budget { bytes_max: 4_000, ..BUDGET }, COSTS, &[1]),
            ("waste is dear", &[], 0, BUDGET, TokenCosts { waste: 1.0, ..COSTS }, &[1]),
            ("waste is free", &[], 0, BUDGET, TokenCosts { waste: 0.0, ..COSTS }, &[1, 3, 4]),
        ];
        for (name, held, held_tokens, budget, costs, expected) in table {
            let memories = held.iter().map(|number| id(*number)).collect();
            let held = Held { memories, tokens: held_tokens, ..Held::default() };
            let plan = plan(&predictions, &held, &budget, &costs);
            let expected: Vec<MemoryId> = expected.iter().map(|number| id(*number)).collect();
            assert_eq!(plan.append, expected, "{name}");
            assert_eq!(plan.ready, expected, "{name}");
            assert!(plan.expected_tokens <= plan.tokens as f64);
        }
    }

    #[test]
    fn what_is_not_likely_any_more_makes_room_at_the_end() {
        let predictions = [prediction(1, 40, 0.9), prediction(2, 30, 0.5), prediction(3, 30, 0.01)];
        // One that was said before, one that is still likely, and one that is not.
        let held = Held {
            memories: [9, 2, 3].map(id).into(),
            tokens: 90,
            end: [(id(2), 30), (id(3), 30)].into(),
        };
        let plan = plan(&predictions, &held, &BUDGET, &COSTS);
        assert_eq!((plan.room, plan.append), (40, vec![id(1)]));
        assert_eq!(plan.ready, [id(1), id(2)]);
    }
}
