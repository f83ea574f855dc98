//! One thought about the next turn: what it may need, what of that is worth its cost, and having it
//! ready.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    cube::{PreloadMessage, PreloadOutcome, PreloadRequest, Preloader, seconds},
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
/// Memories that are computed before others are begun: they count even if the turn comes before the
/// rest is there.
const ROUND: usize = 4;
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

/// What a thought tells before it is over.
pub(super) enum Progress {
    /// What may be needed. Nothing is preloaded by then.
    Found(Box<Found>),
    /// These memories are ready, with the tokens that they take.
    Loaded(Vec<(MemoryId, u32)>),
}

/// A decision, and what it rests on.
struct Decision {
    found: Found,
    plan: Plan,
    message: PreloadMessage,
}

impl Thinker<'_> {
    /// Thinks, and has ready what is worth it. `tell` hears how far it is.
    pub(super) async fn think(&self, thought: &mut Thought, tell: impl Fn(Progress)) -> SceneEntry {
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
        let Decision { found, plan, message } = decision;
        entry = found.entry.clone();
        tell(Progress::Found(Box::new(found)));
        self.shared.environment.reach("scheduler.preload", self.key.cube.cube.as_str());
        let is_worth_it = !entry.planned.is_empty() || !thought.is_typing;
        if !is_worth_it || (entry.planned.is_empty() && entry.kind == PreloadKind::Plaintext) {
            entry.state = PreloadState::Nothing;
            return SceneEntry { took_us: took_us(), ..entry };
        }
        let tokens = entry.planned.iter().map(|planned| (planned.id, planned.tokens)).collect();
        let loaded = self.preload(message, &plan, &tokens, &thought.newer, tell).await;
        entry = match loaded {
            Ok(computed) => {
                let state = PreloadState::Loaded;
                SceneEntry { state, computed_tokens: computed as u64, ..entry }
            }
            Err(error) => failed(entry, &error),
        };
        SceneEntry { took_us: took_us(), ..entry }
    }

    /// Has ready what is planned, a few memories at a time where the model runs here, and no more
    /// once something newer is known. Returns how many tokens were computed.
    async fn preload(
        &self,
        message: PreloadMessage,
        plan: &Plan,
        tokens: &BTreeMap<MemoryId, u32>,
        newer: &Cancel,
        tell: impl Fn(Progress),
    ) -> Result<usize> {
        let is_here = self.cubes.inference().is_some_and(|model| model.place().is_here());
        let round = if is_here { ROUND } else { usize::MAX };
        let (mut computed, mut ready) = (0, 0);
        loop {
            let added = &plan.append[ready..];
            let added = &added[..added.len().min(round)];
            ready += added.len();
            let later: BTreeSet<MemoryId> = plan.append[ready..].iter().copied().collect();
            let start_us = self.shared.environment.monotonic_us();
            let message = message.clone().without(&later);
            let outcome = self.preloader.preload(message, &self.stop).await?;
            let took_us = self.shared.environment.monotonic_us().saturating_sub(start_us);
            let each = outcome.as_ref().map_or(0, |outcome| self.account(outcome));
            self.shared.measured(each, took_us);
            computed += each;
            let tokens_of = |id: &MemoryId| Some((*id, *tokens.get(id)?));
            tell(Progress::Loaded(added.iter().filter_map(tokens_of).collect()));
            if later.is_empty() || newer.is_set() {
                return Ok(computed);
            }
        }
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
        let predictions =
            predictor.predict(&look.candidates, &look.held.memories, thought.is_typing);
        let model = self.cubes.inference().filter(|_| self.preloader.can_compute());
        let prompt = thought.prompt.clone();
        let now_us = self.shared.environment.monotonic_us();
        let left = self.shared.budgets().left(&self.key.cube.tenant, now_us);
        let budget = self.budget(model, thought, left);
        let waste = self.shared.rules.waste;
        let token_us =
            if model.is_some() && prompt.is_some() { self.shared.token_us() } else { 0.0 };
        let bytes = model.map_or(0, |model| model.facts().kv_bytes_per_token);
        let costs = TokenCosts { us: token_us, bytes, waste };
        let plan = plan(&predictions, &look.held, &budget, &costs);
        let decided_us = self.shared.environment.monotonic_us().saturating_sub(start_us);
        metrics::histogram!(names::SCENE_DECISION_SECONDS).record(seconds(decided_us));
        let message = match (prompt, model) {
            // What was said costs tokens as well.
            (Some(prompt), Some(_)) if left > 0 => PreloadMessage::Activation(PreloadRequest {
                conversation: self.key.conversation.clone(),
                preamble: prompt.preamble.to_string(),
                turns: prompt.turns.to_vec(),
                memories: plan.ready.clone(),
                ms_max: PRELOAD_MS_MAX,
            }),
            (_, _) => PreloadMessage::Plaintext,
        };
        let entry = SceneEntry {
            kind: message.kind(),
            detail: (left == 0).then(|| SPENT.to_owned()),
            candidates: u32::try_from(look.candidates.len()).unwrap_or(u32::MAX),
            held: u32::try_from(look.held.memories.len()).unwrap_or(u32::MAX),
            planned: explain(&plan, &predictions, &predictor, thought.is_typing),
            budget_tokens: plan.room as u64,
            expected_tokens: plan.expected_tokens as f32,
            decided_us,
            ..blank.clone()
        };
        let working_set: Vec<MemoryId> =
            predictions.iter().take(WORKING_SET).map(|known| known.candidate.id).collect();
        let weighed = Weighed { candidates: look.candidates, held: look.held.memories };
        let found = Found { vectors, weighed, working_set, entry, settled };
        Ok(Decision { found, plan, message })
    }

    /// Finds out what a turn needed of which nobody says it.
    async fn settle(&self, thought: &mut Thought) -> Result<Option<(Unsettled, Vec<MemoryId>)>> {
        let Some(unsettled) = thought.unsettled.take() else { return Ok(None) };
        let needed = self.preloader.needed(&self.key.conversation, &unsettled.text).await?;
        Ok(Some((unsettled, needed)))
    }

    fn budget(&self, model: Option<&InferenceHandle>, thought: &Thought, left: u64) -> Budget {
        let rules = &self.shared.rules;
        let each = rules.tokens_max.min(usize::try_from(left).unwrap_or(usize::MAX));
        let window = model.map(|model| model.facts().window_tokens / WINDOW_SHARE);
        Budget {
            tokens_max: each,
            context_tokens_max: window.unwrap_or(usize::MAX),
            bytes_max: rules.bytes_max,
            us_max: thought.back_in_us,
        }
    }
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
