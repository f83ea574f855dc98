//! From scores to hits: fuse the arms, order, drop repetitions, cut.

use std::{collections::BTreeMap, sync::Arc};

use memcube_schemas::{MemoryId, memory::MemoryItem};

use super::{ArmScores, Found, Hit, RecallRequest, index::RecallIndex, query};

/// The constants of recall, chosen once by leave-one-conversation-out on the visible conversations and
/// rounded on a flat optimum; `docs/adr/0004-recall.md` has the table behind them.
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

    /// Relativity is a logistic function of these, fitted so that about 95 % of the true hits among the
    /// first ten reach 0.45, and 5 % of the hits in somebody else's conversation.
    pub(crate) const RELATIVITY_COVERAGE: f32 = 16.0;
    pub(crate) const RELATIVITY_COSINE: f32 = 16.0;
    pub(crate) const RELATIVITY_OFFSET: f32 = -7.2;
    /// The same without a dense arm; it separates less well.
    pub(crate) const RELATIVITY_LEXICAL_COVERAGE: f32 = 25.0;
    pub(crate) const RELATIVITY_LEXICAL_OFFSET: f32 = -2.5;
}

/// The scores of every slot, by arm.
struct Arms {
    lexical: Option<Vec<f32>>,
    lexical_z: Vec<f32>,
    /// The best BM25 score that an item could have.
    lexical_best: f32,
    /// Dot products, each averaged over the neighbours that lend their words.
    dense: Option<Vec<f32>>,
    dense_z: Vec<f32>,
    speaker: Option<String>,
    date: query::DateWanted,
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
        let mut ranked: Vec<(f32, u32)> = (0..self.slots.len())
            .filter(|slot| self.slots.is_live[*slot])
            .map(|slot| (self.fused(&arms, slot), slot as u32))
            .collect();
        let confidence = self.confidence(&arms, &ranked);
        let mut chosen = Chosen::new(request.top_k, request.token_budget);
        let mut sorted = 0;
        while sorted < ranked.len() && !chosen.is_full() {
            sorted = sort_further(&mut ranked, sorted, request.top_k);
            let from = chosen.looked_at;
            for (_, slot) in &ranked[from..sorted] {
                chosen.looked_at += 1;
                let Some(item) = items.get(&self.slots.ids[*slot as usize]) else { continue };
                if !request.filter.lets_through(item) {
                    continue;
                }
                let hit = self.hit(&arms, *slot as usize, item, vector.as_deref());
                if hit.relativity < request.relativity_min {
                    continue;
                }
                chosen.offer(hit);
                if chosen.is_full() {
                    break;
                }
            }
        }
        Found { hits: chosen.hits, confidence }
    }

    fn arms(&self, text: &str, vector: Option<&[f32]>) -> Arms {
        let query = query::analyze(&self.analyzer, text, |name| self.speakers.contains_key(name));
        let lexical = self.lexical.scores(&self.slots, &query.terms);
        let lexical_z = match &lexical {
            Some(scores) => self.z_scores(scores, f32::EPSILON),
            None => vec![0.0; self.slots.len()],
        };
        let lexical_best = self.lexical.best_possible(&self.slots, &query.all_terms);
        let dots = vector.and_then(|vector| self.dense.scan(vector));
        let dense_z = match &dots {
            Some(dots) => {
                let own = self.z_scores(dots, weights::DENSE_SPREAD_MIN);
                self.z_scores(&self.lexical.smear(&self.slots, &own), f32::EPSILON)
            }
            None => vec![0.0; self.slots.len()],
        };
        let query::Query { speaker, date, .. } = query;
        Arms { lexical, lexical_z, lexical_best, dense: dots, dense_z, speaker, date }
    }

    /// How many standard deviations each value lies above the mean of the live slots; a spread below
    /// `spread_min` counts as that much, so that a handful of like values makes no difference.
    fn z_scores(&self, values: &[f32], spread_min: f32) -> Vec<f32> {
        let live = || values.iter().zip(&self.slots.is_live).filter(|(_, is_live)| **is_live);
        let count = self.slots.live().max(1) as f64;
        let mean = live().map(|(value, _)| f64::from(*value)).sum::<f64>() / count;
        let square = live().map(|(value, _)| (f64::from(*value) - mean).powi(2)).sum::<f64>();
        let spread = ((square / count).sqrt() as f32).max(spread_min);
        let mean = mean as f32;
        values
            .iter()
            .zip(&self.slots.is_live)
            .map(|(value, is_live)| if *is_live { (value - mean) / spread } else { 0.0 })
            .collect()
    }

    fn fused(&self, arms: &Arms, slot: usize) -> f32 {
        weights::LEXICAL * arms.lexical_z[slot]
            + weights::DENSE * arms.dense_z[slot]
            + self.speaker(arms, slot)
            + self.date(arms, slot)
            + self.forms[slot].prior
    }

    fn speaker(&self, arms: &Arms, slot: usize) -> f32 {
        let is_asked = arms.speaker.is_some() && self.forms[slot].speaker == arms.speaker;
        if is_asked { weights::SPEAKER } else { 0.0 }
    }

    fn date(&self, arms: &Arms, slot: usize) -> f32 {
        if arms.date.is_empty() {
            return 0.0;
        }
        let moments = &self.forms[slot].moments;
        weights::DATE * moments.iter().map(|moment| arms.date.fit(*moment)).fold(0.0, f32::max)
    }

    fn hit(
        &self,
        arms: &Arms,
        slot: usize,
        item: &Arc<MemoryItem>,
        vector: Option<&[f32]>,
    ) -> Hit {
        let scores = ArmScores {
            dense: vector.map_or(0.0, |vector| self.dense.exact(slot, vector)),
            dense_z: arms.dense_z[slot],
            lexical: arms.lexical.as_ref().map_or(0.0, |scores| scores[slot]),
            lexical_z: arms.lexical_z[slot],
            speaker: self.speaker(arms, slot),
            date: self.date(arms, slot),
            form: self.forms[slot].prior,
            fused: self.fused(arms, slot),
        };
        let relativity = logistic(self.evidence(arms, slot, scores.lexical));
        Hit { item: Arc::clone(item), relativity, scores }
    }

    /// How well an item fits, before it is mapped to 0 to 1, in a measure that does not depend on what else the cube holds:
    /// the share of the question's words that it covers, and its cosine, neighbours included.
    fn evidence(&self, arms: &Arms, slot: usize, lexical: f32) -> f32 {
        let coverage = if arms.lexical_best > 0.0 { lexical / arms.lexical_best } else { 0.0 };
        match &arms.dense {
            Some(dots) => {
                weights::RELATIVITY_COVERAGE * coverage
                    + weights::RELATIVITY_COSINE * self.lexical.average(&self.slots, dots, slot)
                    + weights::RELATIVITY_OFFSET
            }
            None => {
                weights::RELATIVITY_LEXICAL_COVERAGE * coverage + weights::RELATIVITY_LEXICAL_OFFSET
            }
        }
    }

    /// How sure recall is that the cube knows an answer, from 0 to 1: when the question names a speaker,
    /// how far the best item of that speaker stands out against the best of the others, since a question
    /// about something that somebody else said finds that; otherwise the best relativity.
    fn confidence(&self, arms: &Arms, scored: &[(f32, u32)]) -> f32 {
        if arms.speaker.is_none() {
            let relativities = scored.iter().map(|(_, slot)| {
                let slot = *slot as usize;
                let lexical = arms.lexical.as_ref().map_or(0.0, |scores| scores[slot]);
                self.evidence(arms, slot, lexical)
            });
            return logistic(relativities.fold(f32::NEG_INFINITY, f32::max));
        }
        let mut best = [f32::NEG_INFINITY; 2];
        for (fused, slot) in scored {
            let speaker = self.speaker(arms, *slot as usize);
            let best = &mut best[usize::from(speaker > 0.0)];
            *best = best.max(fused - speaker);
        }
        let margin = best[1] - best[0];
        if margin.is_finite() { logistic(margin) } else { 0.5 }
    }
}

fn logistic(evidence: f32) -> f32 {
    1.0 / (1.0 + (-evidence).exp())
}

/// Orders at least the next few entries of a list whose first `sorted` are in order already.
fn sort_further(ranked: &mut [(f32, u32)], sorted: usize, top_k: usize) -> usize {
    const STEP: usize = 64;
    let better = |left: &(f32, u32), right: &(f32, u32)| {
        right.0.total_cmp(&left.0).then(right.1.cmp(&left.1))
    };
    let rest = &mut ranked[sorted..];
    let step = (top_k * 2 + STEP + sorted).min(rest.len());
    if step < rest.len() {
        rest.select_nth_unstable_by(step, better);
    }
    rest[..step].sort_unstable_by(better);
    sorted + step
}

/// Hits that were taken so far.
struct Chosen {
    hits: Vec<Hit>,
    looked_at: usize,
    top_k: usize,
    tokens_left: Option<u32>,
    is_out_of_tokens: bool,
}

impl Chosen {
    fn new(top_k: usize, token_budget: Option<u32>) -> Self {
        Self {
            hits: Vec::new(),
            looked_at: 0,
            top_k,
            tokens_left: token_budget,
            is_out_of_tokens: false,
        }
    }

    fn is_full(&self) -> bool {
        self.is_out_of_tokens || self.hits.len() >= self.top_k
    }

    /// Takes a hit unless it says what a better one says already, or no tokens are left for it.
    fn offer(&mut self, hit: Hit) {
        if self.hits.iter().any(|better| says_the_same(&better.item, &hit.item)) {
            return;
        }
        if let Some(left) = self.tokens_left {
            if hit.item.tokens > left {
                self.is_out_of_tokens = true;
                return;
            }
            self.tokens_left = Some(left - hit.item.tokens);
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
