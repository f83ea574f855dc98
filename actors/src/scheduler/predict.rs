//! How likely each memory is to be needed by the next turn: a logistic model over what a cube knows
//! of the memories near the scene, that learns from what turns did need. Pure.

use std::collections::BTreeSet;

use memcube_schemas::{
    MemoryId,
    predictor::PredictorRecord,
    scene::{SceneCandidate, SceneFeatures},
};

/// Inputs of a model: features, whether the cache holds it, and the constant term.
const INPUTS: usize = 15;

type Inputs = [f32; INPUTS];

/// What the inputs are called, where people read weights.
pub const INPUT_NAMES: [&str; INPUTS] = [
    "last_turn",
    "recent_turns",
    "scene",
    "typed",
    "next_speaker",
    "used_lately",
    "used_often",
    "substance",
    "follows_similar",
    "beside_used",
    "days_since",
    "time_of_day",
    "few_memories",
    "resident",
    "constant",
];

/// What a model knows before it has seen anything, as log odds: chosen on the visible conversations
/// of the benchmark and rounded. Similarity to the last few turns counts most; what the next
/// speaker has said counts more than what others said; what followed something like the last turn
/// may follow again; what is in the cache stays unless something is clearly better. How often
/// something was of use, what stands beside it, its age and its time of day made nothing better
/// there and are left to learning. Likelihoods were calibrated on what recall found for the turns;
/// those of typing once more on turns that somebody typed to the end in 3.7 s, of which half was
/// needed where it had said an eighth. Between those two, for whoever types less is right less
/// often.
const PRIOR: [Inputs; 2] = [
    // Before anything is typed.
    [0.3, 0.6, 0.2, 0.0, 0.85, 0.1, 0.0, 0.4, 0.2, 0.0, 0.0, 0.0, 1.0, 0.6, -5.9],
    // While something is typed.
    [0.13, 0.34, 0.13, 1.2, 0.53, 0.13, 0.0, 0.53, 0.0, 0.0, 0.0, 0.0, 1.0, 0.27, -6.45],
];
/// How far one turn moves the weights: little, for a tenant's turns are many. Twenty times as much
/// predicts what recall finds about a tenth better after some hundred turns, but loads half as much
/// again, as the weights outgrow that of what is in the cache.
const LEARNING_RATE: f32 = 0.0001;
/// How strongly the weights are drawn back to the prior, so that nothing runs away.
const DRAWN_BACK: f32 = 0.1;
/// No weight leaves the prior by more than this, whatever it is taught.
const DRIFT_MAX: f32 = 2.0;

/// A memory, and how likely it is to be needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// What is known of it.
    pub candidate: SceneCandidate,
    /// From 0 to 1.
    pub probability: f32,
}

/// The weights of a tenant. They start as the prior, and every turn moves them a little.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictor {
    weights: [Inputs; 2],
    turns: u64,
}

impl Default for Predictor {
    fn default() -> Self {
        Self { weights: PRIOR, turns: 0 }
    }
}

fn inputs(features: &SceneFeatures, is_resident: bool) -> Inputs {
    let SceneFeatures {
        last,
        recent,
        scene,
        typed,
        speaker,
        recency,
        frequency,
        substance,
        successor,
        neighbour,
        gap,
        hour,
        few,
    } = *features;
    let resident = if is_resident { 1.0 } else { 0.0 };
    [
        last, recent, scene, typed, speaker, recency, frequency, substance, successor, neighbour,
        gap, hour, few, resident, 1.0,
    ]
}

fn probability(inputs: &Inputs, weights: &Inputs) -> f32 {
    let odds: f32 = inputs.iter().zip(weights).map(|(input, weight)| input * weight).sum();
    1.0 / (1.0 + (-odds).exp())
}

impl Predictor {
    /// Weights that were learned before; `None` if they belong to other inputs.
    #[must_use]
    pub fn from_record(record: &PredictorRecord) -> Option<Self> {
        let [silent, typing] = &record.weights;
        let weights = |weights: &Vec<f32>| -> Option<Inputs> {
            let weights: Inputs = weights.as_slice().try_into().ok()?;
            weights.iter().all(|weight| weight.is_finite()).then_some(weights)
        };
        (record.inputs == INPUT_NAMES.join(" ")).then_some(())?;
        Some(Self { weights: [weights(silent)?, weights(typing)?], turns: record.turns })
    }

    /// What is kept of it.
    #[must_use]
    pub fn record(&self, generation: u64, at_ms: i64) -> PredictorRecord {
        PredictorRecord {
            generation,
            inputs: INPUT_NAMES.join(" "),
            weights: self.weights.map(Vec::from),
            turns: self.turns,
            at_ms,
        }
    }

    /// Takes in what another node has learned meanwhile: the mean of both.
    pub fn join(&mut self, other: &Self) {
        for (weights, others) in self.weights.iter_mut().zip(other.weights) {
            for (weight, other) in weights.iter_mut().zip(others) {
                *weight = f32::midpoint(*weight, other);
            }
        }
        self.turns = self.turns.max(other.turns);
    }

    /// Every weight by name: before anything is typed, and while something is typed.
    pub fn weights(&self) -> impl Iterator<Item = (&'static str, [f32; 2])> {
        let [silent, typing] = self.weights;
        let both = silent.into_iter().zip(typing).map(|(silent, typing)| [silent, typing]);
        INPUT_NAMES.into_iter().zip(both)
    }

    /// What speaks most for a memory: the name of an input.
    #[must_use]
    pub fn because(&self, features: &SceneFeatures, is_typing: bool) -> &'static str {
        let weights = &self.weights[usize::from(is_typing)];
        let says = inputs(features, false).into_iter().zip(weights).zip(INPUT_NAMES);
        // The constant term says the same of all.
        let says = says.take(INPUTS - 1).map(|((input, weight), name)| (input * weight, name));
        let most = says.max_by(|(left, _), (right, _)| left.total_cmp(right));
        most.map_or("", |(_, name)| name)
    }

    /// Turns that it has learned from.
    #[must_use]
    pub const fn turns(&self) -> u64 {
        self.turns
    }

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
                let probability = probability(&inputs, weights);
                Prediction { candidate: *candidate, probability }
            })
            .collect();
        predictions.sort_by(|left, right| {
            let by_id = || right.candidate.id.cmp(&left.candidate.id);
            right.probability.total_cmp(&left.probability).then_with(by_id)
        });
        predictions
    }

    /// Learns from a turn: of these candidates, it needed those. One step of gradient descent on
    /// the logistic loss. Whether the cache held one says nothing about the turn and is left out.
    pub fn learn(
        &mut self,
        candidates: &[SceneCandidate],
        needed: &BTreeSet<MemoryId>,
        is_typing: bool,
    ) {
        if needed.is_empty() || candidates.is_empty() {
            return;
        }
        let mode = usize::from(is_typing);
        let (weights, prior) = (&mut self.weights[mode], &PRIOR[mode]);
        let mut gradient = [0.0_f32; INPUTS];
        for candidate in candidates {
            let inputs = inputs(&candidate.features, false);
            let truth = if needed.contains(&candidate.id) { 1.0 } else { 0.0 };
            let error = truth - probability(&inputs, weights);
            gradient.iter_mut().zip(inputs).for_each(|(sum, input)| *sum += error * input);
        }
        for (place, weight) in weights.iter_mut().enumerate() {
            let back = DRAWN_BACK * (*weight - prior[place]);
            let moved = *weight + LEARNING_RATE * (gradient[place] - back);
            if moved.is_finite() {
                *weight = moved.clamp(prior[place] - DRIFT_MAX, prior[place] + DRIFT_MAX);
            }
        }
        self.turns = self.turns.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(number: u64, features: SceneFeatures) -> SceneCandidate {
        SceneCandidate { id: MemoryId::from_parts(number, 0), revision: 1, tokens: 10, features }
    }

    fn order(predictions: &[Prediction]) -> Vec<MemoryId> {
        predictions.iter().map(|prediction| prediction.candidate.id).collect()
    }

    #[test]
    fn what_was_learned_is_kept_and_joined() {
        let mut taught = Predictor::default();
        let near = SceneFeatures { recent: 2.0, ..SceneFeatures::default() };
        taught.learn(&[candidate(1, near)], &[MemoryId::from_parts(1, 0)].into(), false);
        assert_ne!(taught, Predictor::default());
        let record = taught.record(3, 0);
        assert_eq!(Predictor::from_record(&record), Some(taught.clone()));
        for broken in [
            PredictorRecord { inputs: "others".to_owned(), ..record.clone() },
            PredictorRecord { weights: [vec![0.0], vec![0.0]], ..record.clone() },
            PredictorRecord {
                weights: record.weights.clone().map(|w| vec![f32::NAN; w.len()]),
                ..record
            },
        ] {
            assert_eq!(Predictor::from_record(&broken), None);
        }
        let mut other = Predictor::default();
        other.join(&taught);
        let recent = |predictor: &Predictor| predictor.weights().nth(1).expect("the second").1[0];
        let mean = f32::midpoint(recent(&Predictor::default()), recent(&taught));
        assert!((recent(&other) - mean).abs() < 1e-6);
        assert_eq!(other.turns(), 1);
        assert_eq!(taught.because(&near, false), "recent_turns");
    }

    #[test]
    fn near_memories_come_first_and_ties_go_to_the_newer_one() {
        let near = |recent: f32| SceneFeatures { recent, ..SceneFeatures::default() };
        let candidates =
            [candidate(1, near(1.0)), candidate(2, near(3.0)), candidate(3, near(1.0))];
        let predictor = Predictor::default();
        let predictions = predictor.predict(&candidates, &BTreeSet::new(), false);
        let id = |number: u64| MemoryId::from_parts(number, 0);
        assert_eq!(order(&predictions), [id(2), id(3), id(1)]);
        // What is in the cache stays where others are about as likely, not where one is nearer.
        let resident = BTreeSet::from([id(1)]);
        let predictions = predictor.predict(&candidates, &resident, false);
        assert_eq!(order(&predictions), [id(2), id(1), id(3)]);
        assert!(predictions.iter().all(|found| (0.0..1.0).contains(&found.probability)));
    }

    #[test]
    fn what_is_typed_outweighs_the_scene() {
        let scene =
            SceneFeatures { last: 2.0, recent: 2.0, scene: 2.0, ..SceneFeatures::default() };
        let typed = SceneFeatures { typed: 3.0, ..SceneFeatures::default() };
        let candidates = [candidate(1, scene), candidate(2, typed)];
        let first = |is_typing: bool| {
            let found = Predictor::default().predict(&candidates, &BTreeSet::new(), is_typing);
            found[0].candidate.id
        };
        assert_eq!(first(false), MemoryId::from_parts(1, 0));
        assert_eq!(first(true), MemoryId::from_parts(2, 0));
    }

    #[test]
    fn it_learns_what_turns_need_and_never_runs_away() {
        // Somebody who always comes back to what was used, however little it has to do with the
        // scene.
        let used = SceneFeatures { recency: 1.5, frequency: 1.0, ..SceneFeatures::default() };
        let near = SceneFeatures { recent: 2.0, ..SceneFeatures::default() };
        let candidates = [candidate(1, used), candidate(2, near)];
        let needed = BTreeSet::from([MemoryId::from_parts(1, 0)]);
        let mut predictor = Predictor::default();
        let first = |predictor: &Predictor| {
            predictor.predict(&candidates, &BTreeSet::new(), false)[0].candidate.id
        };
        assert_eq!(first(&predictor), MemoryId::from_parts(2, 0));
        for _ in 0..10_000 {
            predictor.learn(&candidates, &needed, false);
        }
        assert_eq!(first(&predictor), MemoryId::from_parts(1, 0));
        let drift = predictor.weights.iter().flatten().zip(PRIOR.iter().flatten());
        assert!(drift.into_iter().all(|(weight, prior)| (weight - prior).abs() <= DRIFT_MAX));
        // What was learned without typing says nothing about typing.
        assert_eq!(predictor.weights[1], PRIOR[1]);
        assert_eq!(predictor.turns(), 10_000);
        // Nonsense teaches nothing.
        let before = predictor.clone();
        let nonsense = SceneFeatures { last: f32::NAN, ..SceneFeatures::default() };
        predictor.learn(&[candidate(1, nonsense)], &needed, false);
        assert!(predictor.weights.iter().flatten().all(|weight| weight.is_finite()));
        predictor.learn(&[], &needed, false);
        assert_eq!(predictor.weights[1], before.weights[1]);
    }
}
