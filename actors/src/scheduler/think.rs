//! One thought about the next turn: what it may need, what of that is worth its cost, and having it
//! ready.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use memcube_schemas::{
    MemoryId,
    limits::PRELOAD_MS_MAX,
    scene::{PlannedMemory, PreloadKind, PreloadState, SceneEntry},
};

use super::{
    budget::Budgets,
    conversation::{Found, Thought, Unsettled, Weighed},
    handle::SchedulerRules,
    inbox::SceneKey,
    log::{DecisionLog, Log},
    plan::{Budget, Plan, TokenCosts, plan},
    predict::{Prediction, Predictor},
    predictors::Predictors,
};
use crate::{
    cube::{Look, PreloadMessage, PreloadOutcome, PreloadRequest, Preloader, seconds},
    directory::Cubes,
    embedder::{EmbedderHandle, Priority},
    environment::Environment,
    error::Result,
    inference::{Cancel, InferenceHandle},
    metrics as names,
};

/// Microseconds that a token is thought to cost before any was measured.
const TOKEN_US: f64 = 400.0;
/// How much one measurement counts against all before it.
const TOKEN_US_SHARE: f64 = 0.2;
/// Why nothing is computed ahead for a tenant that has spent its tokens.
const SPENT: &str = "the tenant's tokens of this minute are spent";
/// Memories of a working set.
const WORKING_SET: usize = 20;
/// Tokens between memories, and what is said, that a context keeps free: half of the window.
const WINDOW_SHARE: usize = 2;

/// What all thoughts of a node share.
pub(super) struct Shared {
    pub(super) environment: Environment,
    pub(super) rules: SchedulerRules,
    pub(super) predictors: Predictors,
    pub(super) log: Option<Log>,
    budgets: Mutex<Budgets>,
    /// Microseconds that a token costs to compute, as measured.
    token_us: Mutex<f64>,
    /// Counts thoughts.
    serial: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        environment: Environment,
        rules: SchedulerRules,
        predictors: Predictors,
        log: Option<Arc<dyn DecisionLog>>,
    ) -> Self {
        let budgets = Mutex::new(Budgets::new(rules.tenant_tokens_per_minute));
        let log = log.map(Log);
        Self {
            environment,
            rules,
            predictors,
            log,
            budgets,
            token_us: Mutex::new(TOKEN_US),
            serial: AtomicU64::new(0),
        }
    }

    /// Another number for each thought.
    pub(super) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    fn budgets(&self) -> std::sync::MutexGuard<'_, Budgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token_us(&self) -> f64 {
        *self.token_us.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many tokens took so long.
    fn measured(&self, tokens: usize, took_us: u64) {
        if tokens > 0 {
            let per_token = took_us as f64 / tokens as f64;
            let mut known = self.token_us.lock().unwrap_or_else(PoisonError::into_inner);
            *known += TOKEN_US_SHARE * (per_token - *known);
        }
    }
}

/// What a thought works with.
pub(super) struct Thinker<'a> {
    pub(super) shared: &'a Shared,
    pub(super) cubes: Cubes,
    pub(super) key: &'a SceneKey,
    pub(super) preloader: Preloader,
    /// Set when the turn that is thought about has come.
    pub(super) stop: Cancel,
}

/// A decision, and what it rests on.
struct Decision {
    found: Found,
    message: PreloadMessage,
}

impl Thinker<'_> {
    /// Thinks, and has ready what is worth it. `tell` hears what was found before anything is
    /// preloaded.
    pub(super) async fn think(
        &self,
        thought: &mut Thought,
        tell: impl FnOnce(Found),
    ) -> SceneEntry {
        let start_us = self.shared.environment.monotonic_us();
        let mut entry = SceneEntry::begun(thought.number, thought.at_ms, thought.reason);
        let failed = |entry: SceneEntry, error: &crate::Error| SceneEntry {
            state: PreloadState::Failed,
            detail: Some(error.to_string()),
            ..entry
        };
        let took_us = || self.shared.environment.monotonic_us().saturating_sub(start_us);
        let decision = match self.decide(thought, &entry).await {
            Ok(decision) => decision,
            Err(error) => return SceneEntry { took_us: took_us(), ..failed(entry, &error) },
        };
        let Decision { found, message } = decision;
        entry = found.entry.clone();
        tell(found);
        self.shared.environment.reach("scheduler.preload", self.key.cube.cube.as_str());
        let is_worth_it = !entry.planned.is_empty() || !thought.is_typing;
        if !is_worth_it || (entry.planned.is_empty() && entry.kind == PreloadKind::Plaintext) {
            entry.state = PreloadState::Nothing;
            return SceneEntry { took_us: took_us(), ..entry };
        }
        let preload_us = self.shared.environment.monotonic_us();
        let preloaded = self.preloader.preload(message, &self.stop).await;
        let preload_us = self.shared.environment.monotonic_us().saturating_sub(preload_us);
        entry = match preloaded {
            Ok(outcome) => {
                let computed = outcome.as_ref().map_or(0, |outcome| self.account(outcome));
                self.shared.measured(computed, preload_us);
                let state = PreloadState::Loaded;
                SceneEntry { state, computed_tokens: computed as u64, ..entry }
            }
            Err(error) => failed(entry, &error),
        };
        SceneEntry { took_us: took_us(), ..entry }
    }

    /// What a preload cost, of the tenant's budget.
    fn account(&self, outcome: &PreloadOutcome) -> usize {
        let computed = outcome.finished.reuse.computed_tokens;
        let now_us = self.shared.environment.monotonic_us();
        self.shared.budgets().spend(&self.key.cube.tenant, computed as u64, now_us);
        metrics::counter!(names::PRELOAD_TOKENS_TOTAL).increment(computed as u64);
        computed
    }

    async fn decide(&self, thought: &mut Thought, blank: &SceneEntry) -> Result<Decision> {
        let settled = self.settle(thought).await?;
        let vectors = match self.cubes.embedder() {
            Some(embedder) => embed(embedder, thought.scene.unembedded()).await?,
            None => BTreeMap::new(),
        };
        thought.scene.embedded(&vectors);
        let query = thought.scene.query(Some(self.key.conversation.clone()), thought.at_ms);
        let look = self.preloader.look(query).await?;
        let predictor = self.shared.predictors.of(&self.key.cube.tenant).await;
        let start_us = self.shared.environment.monotonic_us();
        let predictions = predictor.predict(&look.candidates, &look.held, thought.is_typing);
        let model = self.cubes.inference().filter(|_| self.preloader.can_compute());
        let prompt = thought.prompt.clone();
        let now_us = self.shared.environment.monotonic_us();
        let left = self.shared.budgets().left(&self.key.cube.tenant, now_us);
        let budget = self.budget(&look, model, thought, left);
        let waste = self.shared.rules.waste;
        let token_us =
            if model.is_some() && prompt.is_some() { self.shared.token_us() } else { 0.0 };
        let bytes = model.map_or(0, |model| model.facts().kv_bytes_per_token);
        let costs = TokenCosts { us: token_us, bytes, waste };
        let planned = plan(&predictions, &look.held, look.held_tokens, &budget, &costs);
        let decided_us = self.shared.environment.monotonic_us().saturating_sub(start_us);
        metrics::histogram!(names::SCENE_DECISION_SECONDS).record(seconds(decided_us));
        let message = match (prompt, model) {
            // What was said costs tokens as well.
            (Some(prompt), Some(_)) if left > 0 => PreloadMessage::Activation(PreloadRequest {
                conversation: self.key.conversation.clone(),
                preamble: prompt.preamble.to_string(),
                turns: prompt.turns.to_vec(),
                memories: planned.append.clone(),
                ms_max: PRELOAD_MS_MAX,
            }),
            (_, _) => PreloadMessage::Plaintext,
        };
        let entry = SceneEntry {
            kind: message.kind(),
            detail: (left == 0).then(|| SPENT.to_owned()),
            candidates: u32::try_from(look.candidates.len()).unwrap_or(u32::MAX),
            held: u32::try_from(look.held.len()).unwrap_or(u32::MAX),
            planned: explain(&planned, &predictions, &predictor, thought.is_typing),
            budget_tokens: room(&budget, &costs, look.held_tokens),
            expected_tokens: planned.expected_tokens as f32,
            decided_us,
            ..blank.clone()
        };
        let working_set: Vec<MemoryId> =
            predictions.iter().take(WORKING_SET).map(|known| known.candidate.id).collect();
        let weighed = Weighed { candidates: look.candidates, held: look.held };
        let found = Found { vectors, weighed, working_set, entry, settled };
        Ok(Decision { found, message })
    }

    /// Finds out what a turn needed of which nobody says it.
    async fn settle(&self, thought: &mut Thought) -> Result<Option<(Unsettled, Vec<MemoryId>)>> {
        let Some(unsettled) = thought.unsettled.take() else { return Ok(None) };
        let needed = self.preloader.needed(&self.key.conversation, &unsettled.text).await?;
        Ok(Some((unsettled, needed)))
    }

    fn budget(
        &self,
        look: &Look,
        model: Option<&InferenceHandle>,
        thought: &Thought,
        left: u64,
    ) -> Budget {
        let rules = &self.shared.rules;
        let each = rules.tokens_max.min(usize::try_from(left).unwrap_or(usize::MAX));
        let wanted = look.held_tokens.saturating_add(each);
        let window = model.map(|model| model.facts().window_tokens / WINDOW_SHARE);
        Budget {
            tokens_max: wanted.min(window.unwrap_or(usize::MAX)),
            bytes_max: rules.bytes_max,
            us_max: thought.back_in_us,
        }
    }
}

/// Tokens that a plan can spend.
fn room(budget: &Budget, costs: &TokenCosts, held_tokens: usize) -> u64 {
    let of_time = if costs.us > 0.0 { budget.us_max as f64 / costs.us } else { f64::MAX };
    let of_bytes = budget.bytes_max.checked_div(costs.bytes).unwrap_or(u64::MAX);
    let room = budget.tokens_max.saturating_sub(held_tokens) as u64;
    room.min(of_time as u64).min(of_bytes)
}

fn explain(
    planned: &Plan,
    predictions: &[Prediction],
    predictor: &Predictor,
    is_typing: bool,
) -> Vec<PlannedMemory> {
    let chosen = predictions.iter().filter(|known| planned.append.contains(&known.candidate.id));
    chosen
        .map(|known| PlannedMemory {
            id: known.candidate.id,
            probability: known.probability,
            tokens: known.candidate.tokens,
            because: predictor.because(&known.candidate.features, is_typing).to_owned(),
        })
        .collect()
}

async fn embed(
    embedder: &EmbedderHandle,
    texts: Vec<String>,
) -> Result<BTreeMap<String, Vec<f32>>> {
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.trim().is_empty()).collect();
    if texts.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Behind everybody who waits for an answer.
    let embeddings = embedder.embed(texts.clone(), Priority::Bulk).await?;
    let vectors = embeddings.into_iter().map(|embedding| embedding.vector);
    Ok(texts.into_iter().zip(vectors).collect())
}
