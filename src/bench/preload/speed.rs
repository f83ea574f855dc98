//! How long a decision takes in a cube of many memories: the index by itself, without its actor,
//! store and model.

use std::{collections::BTreeMap, hint::black_box, sync::Arc, time::Instant};

use memcube_actors::{
    Error, Result,
    cube::recall::RecallIndex,
    scheduler::{
        plan::{Budget, Held, TokenCosts, plan},
        predict::Predictor,
        scene::{Scene, SceneTurn},
    },
};
use memcube_schemas::{
    ConversationId, MemoryId, conversation::Role, limits::ITEMS_PER_CUBE_MAX, memory::MemoryItem,
    scene::Passage,
};
use serde::Serialize;

use super::super::{Durations, words::Words};

/// Values of a vector, as MiniLM's.
const DIMENSIONS: usize = 384;
const TURN_WORDS: std::ops::Range<usize> = 12..40;
const SEED: u64 = 20_260_101;
const WARM_UP_TURNS: usize = 20;
const TURNS: usize = 1_000;
/// Memories that a turn needed, and that the cache holds.
const NEEDED: usize = 5;
const RESIDENT: usize = 20;
const MINUTE_MS: i64 = 60_000;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecisionReport {
    /// Memories in the cube.
    pub items: usize,
    /// Decisions.
    pub turns: usize,
    /// What the cube knows about the next turn: similarities and features of all candidates.
    pub scene_ms: Durations,
    /// Weighing candidates, and choosing what to preload.
    pub predict_and_plan_ms: Durations,
    /// Both.
    pub decision_ms: Durations,
}

/// Fills an index with synthetic memories, and decides before each turn of a synthetic
/// conversation; every other decision is made while something is typed.
///
/// # Errors
/// `Invalid` for a number that a cube cannot hold.
pub(super) fn run(items: usize) -> Result<DecisionReport> {
    if !(1..=ITEMS_PER_CUBE_MAX).contains(&items) {
        let bounds = format!("`--items` must be between 1 and {ITEMS_PER_CUBE_MAX}");
        return Err(Error::invalid(bounds));
    }
    let words = Words::new(SEED);
    let mut index = RecallIndex::default();
    let mut by_id: BTreeMap<MemoryId, Arc<MemoryItem>> = BTreeMap::new();
    for number in 0..items {
        let item = words.item(number);
        index.insert(&item, Some(&words.vector(DIMENSIONS)));
        by_id.insert(item.id, Arc::new(item));
    }
    let passage = |words: &Words| Passage {
        text: words.text(TURN_WORDS),
        vector: Some(words.vector(DIMENSIONS)),
    };
    let budget = Budget {
        tokens_max: 2_000,
        context_tokens_max: 2_000,
        bytes_max: u64::MAX,
        us_max: 10_000_000,
    };
    let costs = TokenCosts { us: 1_000.0, bytes: 1_000, waste: 0.01 };
    let conversation = Some(ConversationId::new("running")?);
    let (mut scene, mut predictor) = (Scene::default(), Predictor::default());
    let mut held = Held::default();
    let (mut scene_ms, mut predict_ms, mut both_ms) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..WARM_UP_TURNS + TURNS {
        let is_typing = turn % 2 == 1;
        scene.typing(is_typing.then(|| passage(&words)));
        let now_ms = i64::try_from(turn).unwrap_or_default() * MINUTE_MS;
        let start = Instant::now();
        let candidates = index.scene(&scene.query(conversation.clone(), now_ms), &by_id);
        let known = start.elapsed();
        let predictions = predictor.predict(&candidates, &held.memories, is_typing);
        black_box(plan(&predictions, &held, &budget, &costs));
        let decided = start.elapsed();
        if turn >= WARM_UP_TURNS {
            let ms = |time: std::time::Duration| time.as_secs_f64() * 1_000.0;
            scene_ms.push(ms(known));
            predict_ms.push(ms(decided - known));
            both_ms.push(ms(decided));
        }
        let ids = || predictions.iter().map(|prediction| prediction.candidate.id);
        held.memories = ids().take(RESIDENT).collect();
        let needed: Vec<MemoryId> = ids().step_by(7).take(NEEDED).collect();
        predictor.learn(&candidates, &needed.iter().copied().collect(), is_typing);
        let role = if is_typing { Role::User } else { Role::Assistant };
        let said = SceneTurn { role, speaker: None, passage: passage(&words), at_ms: now_ms };
        scene.turn_finished(said, &needed);
    }
    Ok(DecisionReport {
        items,
        turns: TURNS,
        scene_ms: Durations::of(scene_ms),
        predict_and_plan_ms: Durations::of(predict_ms),
        decision_ms: Durations::of(both_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cube_is_measured() {
        let report = run(100).expect("it runs");
        assert_eq!((report.items, report.turns), (100, TURNS));
        assert!(report.scene_ms.p50 > 0.0 && report.decision_ms.p50 >= report.scene_ms.p50);
        for items in [0, ITEMS_PER_CUBE_MAX + 1] {
            let error = run(items).expect_err("no such cube").to_string();
            assert!(error.contains("--items"), "{error}");
        }
    }
}
