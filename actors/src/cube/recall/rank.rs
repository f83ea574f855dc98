//! From scores to hits: fuse the arms, order, drop repetitions, cut.

use std::{collections::BTreeMap, sync::Arc};

use memcube_schemas::{MemoryId, memory::MemoryItem};

use super::{ArmScores, Found, Hit, RecallRequest, across::Choosable, index::RecallIndex, query};

/// The constants of recall, chosen once by leave-one-conversation-out on the visible conversations
/// and rounded on a flat optimum; `docs/adr/0004-recall.md` has the table behind them.
pub(crate) mod weights {
    /// BM25's saturation: the usual value.
    pub(crate) const BM25_K1: f32 = 1.2;
    /// BM25's length normalisation: the usual value.
    pub(crate) const BM25_B: f32 = 0.75;
    /// What an item borrows from one before, one behind, two before, two behind.
    pub(crate) const WINDOW: [f32; 4] = [0.6, 0.4, 0.3, 0.2];
    /// Items of more terms than this open less to their neighbours: they speak for themselves.
    pub(crate) const WINDOW_FULL_TERMS: f32 = 20.0;
    /// Weight of the lexical z-score.
    pub(crate) const LEXICAL: f32 = 1.0;
    /// Weight of the dense z-score.
    pub(crate) const DENSE: f32 = 1.3;
    /// Spread of dot products below which they tell nothing apart.
    pub(crate) const DENSE_SPREAD_MIN: f32 = 0.05;
    /// The item is by the one speaker whom the question names.
    pub(crate) const SPEAKER: f32 = 3.0;
    /// The item was said at, or speaks of, the time that the question names.
    pub(crate) const DATE: f32 = 3.0;
    /// The item is by a person, not by an assistant.
    pub(crate) const ROLE: f32 = 3.0;
    /// Somebody speaks of themselves.
    pub(crate) const PERSONAL: f32 = 1.5;
    /// A short question: it asks, it does not tell.
    pub(crate) const QUESTION: f32 = -1.5;
    /// Questions of this many terms or more tell something as well.
    pub(crate) const QUESTION_TERMS_MAX: usize = 12;
    /// Items with substance against mere exclamations.
    pub(crate) const LENGTH: f32 = 1.0;
    /// Terms from which on an item counts as one with substance.
    pub(crate) const LENGTH_FULL_TERMS: f32 = 10.0;
    /// The item places an event in time.
    pub(crate) const TIME_WORDS: f32 = 1.0;

    /// Relativity is a logistic function of these, fitted so that about 95 % of the true hits among
    /// the first ten reach 0.45, and 5 % of the hits in somebody else's conversation.
    pub(crate) const RELATIVITY_COVERAGE: f32 = 16.0;
    pub(crate) const RELATIVITY_COSINE: f32 = 16.0;
    pub(crate) const RELATIVITY_OFFSET: f32 = -7.2;
    /// The same without a dense arm; it separates less well.
    pub(crate) const RELATIVITY_LEXICAL_COVERAGE: f32 = 25.0;
    pub(crate) const RELATIVITY_LEXICAL_OFFSET: f32 = -2.5;
}

/// The scores of every slot, by arm, and what the question asks besides words.
struct Arms {
    lexical: Option<Vec<f32>>,
    lexical_z: Standard,
    /// The best BM25 score that an item could have.
    lexical_best: f32,
    /// Dot products, with those of the neighbours that lend their words.
    dense: Option<Vec<f32>>,
    dense_z: Standard,
    /// Mean and inverse spread of the dot products before they were smeared.
    dense_own: Standard,
    speaker: Option<u32>,
    /// Statements that name the speaker: slots in order. They are as good as said by that speaker.
    about_speaker: Vec<u32>,
    date: query::DateWanted,
}

/// Turns values into z-scores: how many standard deviations they lie above the mean.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Standard {
    mean: f32,
    inverse_spread: f32,
}

impl Standard {
    /// Over `count` values; others must be 0. A spread below `spread_min` counts as that much, so
    /// that a handful of like values makes no difference.
    pub(super) fn of(values: &[f32], count: usize, spread_min: f32) -> Self {
        // Eight sums side by side: fast, and in the same order on every processor.
        const LANES: usize = 8;
        let (mut sums, mut squares) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        for chunk in values.chunks(LANES) {
            for (lane, value) in chunk.iter().enumerate() {
                let value = f64::from(*value);
                sums[lane] += value;
                squares[lane] += value * value;
            }
        }
        let count = count.max(1) as f64;
        let mean = sums.iter().sum::<f64>() / count;
        let variance = (squares.iter().sum::<f64>() / count - mean * mean).max(0.0);
        let spread = (variance.sqrt() as f32).max(spread_min);
        Self { mean: mean as f32, inverse_spread: 1.0 / spread }
    }

    pub(super) fn z(self, value: f32) -> f32 {
        (value - self.mean) * self.inverse_spread
    }
}

impl RecallIndex {
    /// The items that fit the question best, best first; ties go to the newer one.
    #[must_use]
    pub fn search(
        &self,
        request: &RecallRequest,
        items: &BTreeMap<MemoryId, Arc<MemoryItem>>,
    ) -> Found {
        let RecallRequest { request, vector } = request;
        let arms = self.arms(&request.query, vector.as_deref());
        let fused: Vec<f32> = (0..self.slots.len()).map(|slot| self.fused(&arms, slot)).collect();
        let mut chosen = Chosen::new(request.top_k, request.token_budget);
        let mut looked_at = 0;
        // Most searches are served by the first few; a narrow filter may look at all.
        let mut depth = request.top_k * 2 + 64;
        loop {
            let best = best_slots(&fused, &self.slots.ids, depth);
            for slot in best.iter().skip(looked_at).map(|slot| *slot as usize) {
                let Some(item) = items.get(&self.slots.ids[slot]) else { continue };
                if !super::lets_through(&request.filter, item) {
                    continue;
                }
                let hit = self.hit(&arms, slot, item, vector.as_deref());
                if hit.relativity >= request.relativity_min {
                    chosen.offer(hit);
                }
                if chosen.is_full() {
                    break;
                }
            }
            looked_at = best.len();
            if chosen.is_full() || best.len() < depth {
                let confidence = self.confidence(&arms, &fused);
                return Found { hits: chosen.hits, confidence };
            }
            depth *= 16;
        }
    }

    fn arms(&self, text: &str, vector: Option<&[f32]>) -> Arms {
        let query = query::analyze(&self.analyzer, text, |name| self.speakers.contains_key(name));
        let live = self.slots.live();
        let lexical = self.lexical.scores(&self.slots, &query.terms);
        let lexical_z = lexical
            .as_ref()
            .map_or_else(Standard::default, |scores| Standard::of(scores, live, f32::EPSILON));
        let lexical_best = self.lexical.best_possible(&self.slots, &query.all_terms);
        let dots = vector.and_then(|vector| self.dense.scan(vector));
        let mut dense_own = Standard::default();
        let mut dense_z = Standard::default();
        let dense = dots.map(|dots| {
            dense_own = Standard::of(&dots, live, weights::DENSE_SPREAD_MIN);
            let smeared = self.lexical.smear(&dots);
            let own: Vec<f32> =
                (0..smeared.len()).map(|slot| self.own_z(dense_own, smeared[slot], slot)).collect();
            dense_z = Standard::of(&own, live, f32::EPSILON);
            smeared
        });
        let speaker = query.speaker.as_ref().and_then(|name| self.speakers.get(name));
        Arms {
            lexical,
            lexical_z,
            lexical_best,
            dense,
            dense_z,
            dense_own,
            speaker: speaker.map(|speaker| speaker.number),
            about_speaker: self.facts_with(query.speaker_term.as_deref()),
            date: query.date,
        }
    }

    fn facts_with(&self, term: Option<&str>) -> Vec<u32> {
        let holders = term.into_iter().flat_map(|term| self.lexical.holders(term));
        holders.filter(|slot| self.is_fact[*slot as usize]).collect()
    }

    /// The smeared z-score of a slot, from its smeared dot product: smearing is linear.
    fn own_z(&self, own: Standard, smeared: f32, slot: usize) -> f32 {
        if self.slots.is_live[slot] {
            (smeared - own.mean * self.lexical.total(slot)) * own.inverse_spread
        } else {
            0.0
        }
    }

    fn lexical_z(&self, arms: &Arms, slot: usize) -> f32 {
        arms.lexical.as_ref().map_or(0.0, |scores| arms.lexical_z.z(scores[slot]))
    }

    fn dense_z(&self, arms: &Arms, slot: usize) -> f32 {
        arms.dense
            .as_ref()
            .map_or(0.0, |smeared| arms.dense_z.z(self.own_z(arms.dense_own, smeared[slot], slot)))
    }

    fn fused(&self, arms: &Arms, slot: usize) -> f32 {
        weights::LEXICAL * self.lexical_z(arms, slot)
            + weights::DENSE * self.dense_z(arms, slot)
            + self.speaker(arms, slot)
            + self.date(arms, slot)
            + self.priors[slot]
    }

    fn speaker(&self, arms: &Arms, slot: usize) -> f32 {
        let is_speaker = arms.speaker == Some(self.speaker_of[slot]);
        let is_about =
            || self.is_fact[slot] && arms.about_speaker.binary_search(&(slot as u32)).is_ok();
        if is_speaker || is_about() { weights::SPEAKER } else { 0.0 }
    }

    fn date(&self, arms: &Arms, slot: usize) -> f32 {
        if arms.date.is_empty() {
            return 0.0;
        }
        let fits = self.moments.row(slot).iter().map(|moment| arms.date.fit(*moment));
        weights::DATE * fits.fold(0.0, f32::max)
    }

    fn hit(&self, arms: &Arms, slot: usize, item: &Arc<MemoryItem>, vector: Option<&[f32]>) -> Hit {
        let scores = ArmScores {
            dense: vector.map_or(0.0, |vector| self.dense.exact(slot, vector)),
            dense_z: self.dense_z(arms, slot),
            lexical: arms.lexical.as_ref().map_or(0.0, |scores| scores[slot]),
            lexical_z: self.lexical_z(arms, slot),
            speaker: self.speaker(arms, slot),
            date: self.date(arms, slot),
            form: self.priors[slot],
            fused: self.fused(arms, slot),
        };
        let relativity = logistic(self.evidence(arms, slot));
        Hit { item: Arc::clone(item), relativity, scores }
    }

    /// How well an item fits, before it is mapped to 0 to 1, in a measure that does not depend on
    /// what else the cube holds: the share of the question's words that it covers, and its cosine,
    /// averaged with its neighbours'.
    fn evidence(&self, arms: &Arms, slot: usize) -> f32 {
        let lexical = arms.lexical.as_ref().map_or(0.0, |scores| scores[slot]);
        let coverage = if arms.lexical_best > 0.0 { lexical / arms.lexical_best } else { 0.0 };
        match &arms.dense {
            Some(smeared) => {
                weights::RELATIVITY_COVERAGE * coverage
                    + weights::RELATIVITY_COSINE * smeared[slot] / self.lexical.total(slot)
                    + weights::RELATIVITY_OFFSET
            }
            None => {
                weights::RELATIVITY_LEXICAL_COVERAGE * coverage + weights::RELATIVITY_LEXICAL_OFFSET
            }
        }
    }

    /// How sure recall is that the cube knows an answer, from 0 to 1: when the question names a
    /// speaker, how far the best item of that speaker stands out against the best of the others,
    /// since a question about something that somebody else said finds that; otherwise the best
    /// relativity.
    fn confidence(&self, arms: &Arms, fused: &[f32]) -> f32 {
        let live = (0..fused.len()).filter(|slot| self.slots.is_live[*slot]);
        if arms.speaker.is_none() {
            let evidence = live.map(|slot| self.evidence(arms, slot));
            return logistic(evidence.fold(f32::NEG_INFINITY, f32::max));
        }
        let mut best = [f32::NEG_INFINITY; 2];
        for slot in live {
            let speaker = self.speaker(arms, slot);
            let best = &mut best[usize::from(speaker > 0.0)];
            *best = best.max(fused[slot] - speaker);
        }
        let margin = best[1] - best[0];
        if margin.is_finite() { logistic(margin) } else { 0.5 }
    }
}

pub(super) fn logistic(evidence: f32) -> f32 {
    1.0 / (1.0 + (-evidence).exp())
}

/// The slots of the `depth` largest values, largest first; ties go to the newer item. Dead slots,
/// at minus infinity, are left out.
pub(super) fn best_slots(values: &[f32], ids: &[MemoryId], depth: usize) -> Vec<u32> {
    let better = |left: &(f32, u32), right: &(f32, u32)| {
        let newer = || ids[right.1 as usize].cmp(&ids[left.1 as usize]);
        right.0.total_cmp(&left.0).then_with(newer)
    };
    // Candidates pile up to twice the depth before the worse half leaves and raises the bar.
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(depth.saturating_mul(2).min(values.len()));
    let mut bar = f32::NEG_INFINITY;
    for (slot, value) in values.iter().enumerate() {
        if *value >= bar && *value > f32::NEG_INFINITY {
            best.push((*value, slot as u32));
            if best.len() >= depth.saturating_mul(2) {
                best.select_nth_unstable_by(depth, better);
                best.truncate(depth);
                bar = best.iter().map(|(value, _)| *value).fold(f32::INFINITY, f32::min);
            }
        }
    }
    best.sort_unstable_by(better);
    best.truncate(depth);
    best.into_iter().map(|(_, slot)| slot).collect()
}

/// Hits that were taken so far.
pub(super) struct Chosen<T> {
    pub(super) hits: Vec<T>,
    top_k: usize,
    tokens_left: Option<u32>,
    is_out_of_tokens: bool,
}

impl<T: Choosable> Chosen<T> {
    pub(super) fn new(top_k: usize, token_budget: Option<u32>) -> Self {
        Self { hits: Vec::new(), top_k, tokens_left: token_budget, is_out_of_tokens: false }
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_out_of_tokens || self.hits.len() >= self.top_k
    }

    /// Takes a hit unless it says what a better one says already, or no tokens are left for it.
    pub(super) fn offer(&mut self, hit: T) {
        let is_said =
            |better: &T| better.competes_with(&hit) && says_the_same(better.item(), hit.item());
        if self.hits.iter().any(is_said) {
            return;
        }
        if let Some(left) = self.tokens_left {
            if hit.item().tokens > left {
                self.is_out_of_tokens = true;
                return;
            }
            self.tokens_left = Some(left - hit.item().tokens);
        }
        self.hits.push(hit);
    }
}

/// The same words of the same speaker, at another time.
fn says_the_same(left: &MemoryItem, right: &MemoryItem) -> bool {
    let words = |item: &MemoryItem| super::embedding_text(&item.text);
    left.tokens.abs_diff(right.tokens) <= 4
        && left.speaker == right.speaker
        && words(left) == words(right)
}
