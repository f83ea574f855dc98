//! Ranks memories of many cubes against each other.
//!
//! z-scores tell how far an item stands out in its own cube; across cubes only measures count that
//! do not depend on what else a cube holds: the evidence behind relativity (the share of the
//! question's words that an item covers, and its cosine), and what recall adds for speaker, date
//! and
//! form. All of them live on the scale of one standard deviation, so they are summed as they are in
//! a cube.

use std::{collections::BTreeMap, sync::Arc};

use memcube_schemas::{CubeId, MemoryId, call::SearchRequest, memory::MemoryItem};

use super::{
    ArmScores, Hit,
    analysis::Analyzer,
    features::{Form, form, without_dates},
    query::{self, Query},
    rank::{
        Chosen, logistic,
        weights::{
            BM25_B, BM25_K1, DATE, RELATIVITY_COSINE, RELATIVITY_COVERAGE,
            RELATIVITY_LEXICAL_COVERAGE, RELATIVITY_LEXICAL_OFFSET, RELATIVITY_OFFSET, SPEAKER,
        },
    },
};

/// Relativity is kept this far from 0 and 1 when it is turned back into evidence.
const RELATIVITY_EDGE: f32 = 1e-6;

/// A memory that may answer a question to many cubes.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) cube: CubeId,
    pub(crate) item: Arc<MemoryItem>,
    /// Dot product of its vector with the question's.
    pub(crate) dense: Option<f32>,
}

/// A hit and the cube that holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct CubeHit {
    /// Which cube.
    pub cube: CubeId,
    /// What was found there, and why.
    pub hit: Hit,
}

/// The index terms of a text, separated by blanks: what a table of words is made of and asked for.
pub(crate) fn index_terms(text: &str) -> String {
    Analyzer::default().terms(text).join(" ")
}

/// Scores contenders; `is_dense` says whether the question has a vector. In no order yet.
pub(crate) fn score(request: &SearchRequest, is_dense: bool, of: Vec<Contender>) -> Vec<CubeHit> {
    let analyzer = Analyzer::default();
    let described: Vec<Described> = of.iter().map(|one| describe(&analyzer, &one.item)).collect();
    let is_speaker = |name: &str| {
        described.iter().any(|one| one.form.speaker.as_deref().is_some_and(|who| who == name))
    };
    let query = query::analyze(&analyzer, &request.query, is_speaker);
    let words = Words::of(&described, &query);
    let score = |(contender, described): (Contender, &Described)| {
        let Contender { cube, item, dense } = contender;
        let lexical = words.score(described, &query.terms);
        let coverage = if words.best > 0.0 { lexical / words.best } else { 0.0 };
        let dense = dense.unwrap_or(0.0);
        let evidence = if is_dense {
            RELATIVITY_COVERAGE * coverage + RELATIVITY_COSINE * dense + RELATIVITY_OFFSET
        } else {
            RELATIVITY_LEXICAL_COVERAGE * coverage + RELATIVITY_LEXICAL_OFFSET
        };
        let scores = ArmScores {
            dense,
            lexical,
            speaker: speaker(&query, described),
            date: date(&query, described),
            form: described.form.prior,
            ..ArmScores::default()
        };
        let fused = evidence + scores.speaker + scores.date + scores.form;
        let scores = ArmScores { fused, ..scores };
        CubeHit { cube, hit: Hit { item, relativity: logistic(evidence), scores } }
    };
    of.into_iter().zip(&described).map(score).collect()
}

/// Brings the hit of a cube's own search onto the scale of [`score`].
pub(crate) fn rescale(cube: &CubeId, mut hit: Hit) -> CubeHit {
    let relativity = hit.relativity.clamp(RELATIVITY_EDGE, 1.0 - RELATIVITY_EDGE);
    let evidence = (relativity / (1.0 - relativity)).ln();
    let ArmScores { speaker, date, form, .. } = hit.scores;
    hit.scores.fused = evidence + speaker + date + form;
    CubeHit { cube: cube.clone(), hit }
}

/// The best hits, best first; ties go to the newer memory. What a cube says twice counts once.
pub(crate) fn choose(request: &SearchRequest, mut hits: Vec<CubeHit>) -> Vec<CubeHit> {
    hits.sort_by(|left, right| {
        let by_score = right.hit.scores.fused.total_cmp(&left.hit.scores.fused);
        let newer = || right.hit.item.id.cmp(&left.hit.item.id);
        by_score.then_with(newer).then_with(|| left.cube.cmp(&right.cube))
    });
    let mut chosen = Chosen::new(request.top_k, request.token_budget);
    for hit in hits {
        if chosen.is_full() {
            break;
        }
        if hit.hit.relativity >= request.relativity_min {
            chosen.offer(hit);
        }
    }
    chosen.hits
}

/// What is known of a contender besides its score.
struct Described {
    form: Form,
    /// How often it holds each term.
    terms: BTreeMap<String, f32>,
    length: f32,
}

fn describe(analyzer: &Analyzer, item: &MemoryItem) -> Described {
    let body = without_dates(&item.text);
    let speaker = item.speaker.as_deref().unwrap_or(item.role.as_str());
    let own = body.strip_prefix(speaker).and_then(|rest| rest.strip_prefix(": "));
    let own = own.unwrap_or(&body);
    let form = form(item, own, analyzer.terms(own).len());
    let all = analyzer.terms(&item.text);
    let length = all.len() as f32;
    let mut terms = BTreeMap::new();
    for term in all {
        *terms.entry(term).or_default() += 1.0;
    }
    Described { form, terms, length }
}

fn speaker(query: &Query, of: &Described) -> f32 {
    let is_speaker = query.speaker.is_some() && query.speaker == of.form.speaker;
    let term = query.speaker_term.as_ref();
    let is_about = of.form.is_fact && term.is_some_and(|term| of.terms.contains_key(term));
    if is_speaker || is_about { SPEAKER } else { 0.0 }
}

fn date(query: &Query, of: &Described) -> f32 {
    if query.date.is_empty() {
        return 0.0;
    }
    DATE * of.form.moments.iter().map(|moment| query.date.fit(*moment)).fold(0.0, f32::max)
}

/// How much the question's words tell, judged by the contenders: a word that few of them hold tells
/// more.
struct Words {
    idf: BTreeMap<String, f32>,
    average: f32,
    /// The best score that an item could have.
    best: f32,
}

impl Words {
    fn of(described: &[Described], query: &Query) -> Self {
        let all = described.len() as f32;
        let idf = |term: &String| {
            let holders = described.iter().filter(|one| one.terms.contains_key(term)).count();
            let holders = holders as f32;
            (1.0 + (all - holders + 0.5) / (holders + 0.5)).ln()
        };
        let idf: BTreeMap<String, f32> =
            query.all_terms.iter().map(|term| (term.clone(), idf(term))).collect();
        let lengths: f32 = described.iter().map(|one| one.length).sum();
        let best = query.all_terms.iter().map(|term| (BM25_K1 + 1.0) * idf[term]).sum();
        Self { idf, average: (lengths / all.max(1.0)).max(1.0), best }
    }

    /// BM25, without the neighbours that lend their words inside a cube.
    fn score(&self, of: &Described, terms: &[String]) -> f32 {
        let score = |term: &String| {
            let frequency = of.terms.get(term).copied().unwrap_or(0.0);
            let norm = BM25_K1 * (1.0 - BM25_B + BM25_B * of.length / self.average);
            self.idf
                .get(term)
                .map_or(0.0, |idf| idf * frequency * (BM25_K1 + 1.0) / (frequency + norm))
        };
        terms.iter().map(score).sum()
    }
}

/// What [`Chosen`] takes in.
pub(super) trait Choosable {
    fn item(&self) -> &MemoryItem;
    /// Whether saying the same makes one of them superfluous.
    fn competes_with(&self, other: &Self) -> bool;
}

impl Choosable for CubeHit {
    fn item(&self) -> &MemoryItem {
        &self.hit.item
    }

    fn competes_with(&self, other: &Self) -> bool {
        self.cube == other.cube
    }
}

impl Choosable for Hit {
    fn item(&self) -> &MemoryItem {
        &self.item
    }

    fn competes_with(&self, _other: &Self) -> bool {
        true
    }
}

/// The key by which a memory is known in a tenant.
pub(crate) type Place = (CubeId, MemoryId);
