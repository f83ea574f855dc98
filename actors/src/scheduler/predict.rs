//! How likely each memory is to be needed by the next turn: a logistic model over what a cube knows
//! of the memories near the scene, that learns from what turns did need. Pure.

use std::collections::BTreeSet;

use memcube_schemas::{
    MemoryId,
    scene::{SceneCandidate, SceneFeatures},
};

/// Features and the constant term.
const WEIGHTS: usize = 10;

/// What is known of a candidate, in the order of the weights.
type Inputs = [f32; WEIGHTS];

/// What a model knows before it has seen anything, chosen on the visible conversations of the
/// benchmark and rounded: similarity to the last few turns counts most, what the next speaker said
/// counts double as much as what others said, and what is in the cache stays unless something is
/// clearly better.
const PRIOR: [Inputs; 2] = [
    // Before anything is typed.
    [0.28, 0.57, 0.28, 0.0, 0.8, 0.1, 0.0, 0.4, 0.4, 0.0],
    // While something is typed.
    [0.1, 0.25, 0.1, 0.9, 0.4, 0.1, 0.0, 0.4, 0.2, 0.0],
];
/// From the sum of weighted features to log odds.
const SCALE: f32 = 1.3;
const OFFSET: f32 = -6.5;

/// A memory, and how likely it is to be needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// What is known of it.
    pub candidate: SceneCandidate,
    /// From 0 to 1.
    pub probability: f32,
}

/// The weights of a tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictor {
    weights: [Inputs; 2],
}

impl Default for Predictor {
    fn default() -> Self {
        Self { weights: PRIOR }
    }
}

fn inputs(features: &SceneFeatures, is_resident: bool) -> Inputs {
    let SceneFeatures { last, recent, scene, typed, speaker, recency, frequency, substance } =
        *features;
    let resident = if is_resident { 1.0 } else { 0.0 };
    [last, recent, scene, typed, speaker, recency, frequency, substance, resident, 1.0]
}

impl Predictor {
    /// The candidates, likeliest first; ties go to the newer memory. `resident` is what the cache
    /// holds already.
    #[must_use]
    pub fn predict(
        &self,
        candidates: &[SceneCandidate],
        resident: &BTreeSet<MemoryId>,
        is_typing: bool,
    ) -> Vec<Prediction> {
        let weights = &self.weights[usize::from(is_typing)];
        let mut predictions: Vec<Prediction> = candidates
            .iter()
            .map(|candidate| {
                let inputs = inputs(&candidate.features, resident.contains(&candidate.id));
                let sum: f32 = inputs.iter().zip(weights).map(|(x, weight)| x * weight).sum();
                let odds = SCALE * sum + OFFSET;
                Prediction { candidate: *candidate, probability: 1.0 / (1.0 + (-odds).exp()) }
            })
            .collect();
        predictions.sort_by(|left, right| {
            let by_id = || right.candidate.id.cmp(&left.candidate.id);
            right.probability.total_cmp(&left.probability).then_with(by_id)
        });
        predictions
    }
}
