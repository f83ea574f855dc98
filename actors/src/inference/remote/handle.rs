//! The front door of a model elsewhere: places, leases, turns, and tries until the first word.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::StreamExt;
use memcube_schemas::{
    ConversationId,
    activation::{KvDtype, ModelFingerprint},
    limits::{INFERENCE_REQUESTS_MAX, REMOTE_PRELOADS_MAX},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    RemoteError, RemoteFailure, RemoteModel, RemotePart, RemoteParts, RemoteRequest,
    RemoteSettings, RemoteStream, RemoteUsage,
    extras::Extras,
    reply::Replying,
    turns::{Ask, Turn, TurnsHandle},
};
use crate::{
    cube::CubeKey,
    directory::QueueDepth,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    inference::{
        activation_cache::{ActivationCache, CacheSettings, Lease, Sources},
        device::Urgency,
        engine::EngineFacts,
        fill::Reuse,
        generate::waiting,
        request::{FinishReason, Finished, ReplyStream, Timings},
    },
    metrics as names,
};

/// Tokens for 1,000 bytes of text before anything is known about a model: four bytes a token.
const TOKENS_PER_1000_BYTES: u64 = 250;
/// Bounds of what is learned: a token has 20 bytes at the most, and one at the least.
const TOKENS_PER_1000_BYTES_BOUNDS: (u64, u64) = (50, 1_000);
/// A prompt of fewer bytes says more about its marks than about its text.
const LEARNED_BYTES_MIN: usize = 256;
/// Tokens that a server puts around each message.
pub(crate) const MESSAGE_TOKENS: usize = 4;
/// The first pause before another try, and the longest; both may be doubled by chance, so that
/// those who failed together do not come back together.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// Nothing of a model elsewhere is kept here.
const NO_CACHE: CacheSettings = CacheSettings {
    ram_bytes_max: 0,
    tenant_ram_bytes_max: 0,
    device_bytes_max: 0,
    tenant_device_bytes_max: 0,
    cold_in_8_bits: false,
};

/// The front door of a language model elsewhere. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RemoteHandle {
    model: Arc<dyn RemoteModel>,
    facts: Arc<EngineFacts>,
    settings: RemoteSettings,
    cache: ActivationCache,
    environment: Environment,
    turns: TurnsHandle,
    places: Arc<Semaphore>,
    preloads: Arc<Semaphore>,
    tokens_per_1000_bytes: Arc<AtomicU64>,
    extras: Extras,
}

impl fmt::Debug for RemoteHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteHandle({})", self.facts.fingerprint.model)
    }
}

/// A prompt for a model elsewhere.
pub(crate) struct Asked {
    pub(crate) request: RemoteRequest,
    pub(crate) conversation: ConversationId,
    /// The memories in it, and the conversation.
    pub(crate) sources: Sources,
    /// Tokens of the prompt, as far as that can be estimated.
    pub(crate) prompt_tokens: usize,
    /// Bytes from which that was estimated.
    pub(crate) prompt_bytes: usize,
    /// Milliseconds that all of it may take.
    pub(crate) ms_max: u64,
}

/// A reply that has begun.
pub(super) struct Begun {
    pub(super) asked: Asked,
    pub(super) first: RemotePart,
    pub(super) rest: RemoteStream,
    pub(super) turn: Turn,
    pub(super) urgency: Urgency,
    /// When it began and when it has to end, on this node's monotonic clock.
    pub(super) times: (u64, u64),
    /// Held until the end, so that it is known here who is being answered.
    pub(super) _lease: Lease,
    pub(super) _places: Vec<OwnedSemaphorePermit>,
}

impl RemoteHandle {
    pub(crate) async fn start(parts: RemoteParts, environment: Environment) -> Result<Self> {
        let RemoteParts { model, settings } = parts;
        let facts = facts(&*model);
        let turns = TurnsHandle::spawn(settings, environment.clone()).await?;
        Ok(Self {
            cache: ActivationCache::new(environment.clone(), facts.clone(), NO_CACHE, None),
            facts: Arc::new(facts),
            model,
            settings,
            environment,
            turns,
            places: Arc::new(Semaphore::new(INFERENCE_REQUESTS_MAX)),
            preloads: Arc::new(Semaphore::new(REMOTE_PRELOADS_MAX)),
            tokens_per_1000_bytes: Arc::new(AtomicU64::new(TOKENS_PER_1000_BYTES)),
            extras: Extras::default(),
        })
    }

    pub(crate) fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    /// Holds who makes a prompt, so that nothing is sent of what was forgotten meanwhile.
    pub(crate) const fn cache(&self) -> &ActivationCache {
        &self.cache
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.turns.is_alive()
    }

    pub(crate) fn queues(&self) -> [QueueDepth; 2] {
        [waiting(&self.places), self.turns.queue()]
    }

    pub(crate) fn kill(&self) {
        self.turns.kill();
    }

    pub(crate) async fn stop(&self) {
        self.turns.stop().await;
    }

    /// What the last turn of a conversation passed through.
    pub(crate) fn extra(&self, key: &CubeKey, talk: &ConversationId) -> Option<Arc<str>> {
        self.extras.of(key, talk)
    }

    /// How many tokens 1,000 bytes of text are, as far as this server has shown.
    pub(crate) fn tokens_per_1000_bytes(&self) -> u64 {
        self.tokens_per_1000_bytes.load(Ordering::Relaxed)
    }

    /// Begins a reply: waits for a turn, asks, tries again what may pass. Ends with the first word,
    /// so that whoever asked learns in time what went wrong.
    ///
    /// # Errors `Overloaded` when too many wait, the budget or the time does not suffice, or the
    /// server says so. `Conflict` when a memory of the cube was forgotten since the lease began,
    /// and nothing was answered yet. `Invalid` and `Unavailable` by what the server says, or does
    /// not.
    pub(crate) async fn reply(&self, lease: Lease, asked: Asked) -> Result<ReplyStream> {
        self.extras.note(&lease.key, &asked.conversation, asked.request.extra.as_ref());
        let begun = self.begin(lease, asked, Urgency::Foreground).await?;
        Ok(Replying::new(self.clone(), begun).start())
    }

    /// Lets the server read a prompt ahead: it says one token, which nobody needs.
    ///
    /// # Errors
    /// As `reply`.
    pub(crate) async fn preload(&self, lease: Lease, asked: Asked) -> Result<Finished> {
        if !self.settings.preloads {
            count_preload("off");
            let reason = FinishReason::Preloaded;
            let (reuse, timings) = (Reuse::default(), Timings::default());
            return Ok(Finished { reason, reuse, timings, unstored: Vec::new() });
        }
        let read = async {
            let begun = self.begin(lease, asked, Urgency::Preload).await?;
            let (_, finished) = Replying::new(self.clone(), begun).start().collect().await?;
            Ok(Finished { reason: FinishReason::Preloaded, ..finished })
        };
        let read: Result<Finished> = read.await;
        count_preload(if read.is_ok() { "ok" } else { "error" });
        read
    }

    async fn begin(&self, mut lease: Lease, asked: Asked, urgency: Urgency) -> Result<Begun> {
        let full = |_| Error::overloaded("the language model's queue", 1_000);
        let mut places = vec![Arc::clone(&self.places).try_acquire_owned().map_err(full)?];
        if urgency == Urgency::Preload {
            places.push(Arc::clone(&self.preloads).try_acquire_owned().map_err(full)?);
        }
        let window_tokens = self.facts.window_tokens;
        if asked.prompt_tokens >= window_tokens {
            return Err(Error::invalid(format!(
                "about {} tokens do not fit into a window of {window_tokens}; shorten the \
                 messages, start a new conversation, or raise `inference.window-tokens` if the \
                 model allows it",
                asked.prompt_tokens
            )));
        }
        let start_us = self.environment.monotonic_us();
        let ms_max = asked.ms_max.min(self.settings.ms_max);
        let deadline_us = start_us.saturating_add(ms_max.saturating_mul(1_000));
        if !self.cache.narrow(&mut lease, Arc::clone(&asked.sources)) {
            return Err(forgotten());
        }
        let tokens = asked.prompt_tokens.saturating_add(asked.request.tokens_max) as u64;
        let tenant = lease.key.tenant.clone();
        let mut turn =
            self.turns.take(Ask { tenant, urgency, tokens, deadline_us }, start_us).await?;
        let request = Arc::new(asked.request.clone());
        match self.first(&lease, &request, deadline_us).await {
            Ok((first, rest)) => {
                let (_lease, _places) = (lease, places);
                let times = (start_us, deadline_us);
                Ok(Begun { asked, first, rest, turn, urgency, times, _lease, _places })
            }
            Err(error) => {
                turn.settle(0);
                Err(error)
            }
        }
    }

    /// Asks until there is a first word.
    async fn first(
        &self,
        lease: &Lease,
        request: &Arc<RemoteRequest>,
        deadline_us: u64,
    ) -> Result<(RemotePart, RemoteStream)> {
        let mut pauses = self.pauses();
        loop {
            // Before every try: what is forgotten while a request waits is not sent.
            if self.cache.is_revoked(lease) {
                self.environment.reach("inference.forgotten-before-asking", "");
                return Err(forgotten());
            }
            let error = match self.try_once(request, deadline_us).await {
                Ok(begun) => return Ok(begun),
                Err(error) => error,
            };
            let kind = error.failure.as_str();
            metrics::counter!(names::REMOTE_FAILURES_TOTAL, "kind" => kind).increment(1);
            let pause = if error.failure.is_passing() { pauses.next() } else { None };
            let asked_for = Duration::from_millis(error.retry_after_ms.unwrap_or(0));
            let pause = pause.map(|pause| pause.max(asked_for));
            let Some(pause) = pause.filter(|pause| *pause < self.left(deadline_us)) else {
                tracing::warn!(%error, kind, "the language model did not answer");
                return Err(error.into());
            };
            tracing::debug!(%error, kind, ?pause, "the language model is asked again");
            metrics::counter!(names::REMOTE_RETRIES_TOTAL, "kind" => kind).increment(1);
            tokio::time::sleep(pause).await;
        }
    }

    fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        let seed = u64::try_from(self.environment.random_u128() >> 64).unwrap_or(0);
        let backoff = ExponentialBuilder::new().with_min_delay(PAUSE_MIN).with_max_delay(PAUSE_MAX);
        let backoff = backoff.with_max_times(self.settings.retries);
        backoff.with_jitter().with_jitter_seed(seed).build()
    }

    pub(super) fn left(&self, deadline_us: u64) -> Duration {
        Duration::from_micros(deadline_us.saturating_sub(self.environment.monotonic_us()))
    }

    /// How long the server may say nothing.
    pub(super) fn patience(&self, deadline_us: u64) -> Duration {
        Duration::from_millis(self.settings.silence_ms_max).min(self.left(deadline_us))
    }

    pub(super) const fn environment(&self) -> &Environment {
        &self.environment
    }

    pub(super) fn silent(&self) -> RemoteError {
        let ms = self.settings.silence_ms_max;
        RemoteError::new(
            RemoteFailure::Silent,
            format!(
                "the model server has said nothing for {ms} ms, or the request's deadline has \
                 passed; look at its log, or raise `inference.first-token-timeout-ms`"
            ),
        )
    }

    async fn try_once(
        &self,
        request: &Arc<RemoteRequest>,
        deadline_us: u64,
    ) -> std::result::Result<(RemotePart, RemoteStream), RemoteError> {
        let asking = async {
            let mut stream = self.model.reply(Arc::clone(request)).await?;
            match stream.next().await {
                Some(first) => Ok((first?, stream)),
                None => Err(cut()),
            }
        };
        let asked = tokio::time::timeout(self.patience(deadline_us), asking).await;
        asked.unwrap_or_else(|_| Err(self.silent()))
    }

    /// Learns how long tokens are: an eighth of what is new, or all of it at first.
    pub(super) fn learn(&self, asked: &Asked, usage: RemoteUsage) {
        let marks = asked.request.messages.len() * MESSAGE_TOKENS;
        let (bytes, tokens) = (asked.prompt_bytes, usage.prompt_tokens.saturating_sub(marks));
        if bytes < LEARNED_BYTES_MIN || tokens == 0 {
            return;
        }
        let (least, most) = TOKENS_PER_1000_BYTES_BOUNDS;
        let seen = (tokens as u64 * 1_000).div_ceil(bytes as u64).clamp(least, most);
        let known = self.tokens_per_1000_bytes();
        let next = match known {
            TOKENS_PER_1000_BYTES => seen,
            known => (known * 7 + seen).div_ceil(8),
        };
        self.tokens_per_1000_bytes.store(next, Ordering::Relaxed);
    }
}

pub(super) fn cut() -> RemoteError {
    let message = "the model server has closed the connection before the end; look at its log";
    RemoteError::new(RemoteFailure::Cut, message)
}

fn forgotten() -> Error {
    let message = "a memory was changed while the prompt was made; make it again";
    Error::new(ErrorKind::Conflict, message)
}

fn count_preload(outcome: &'static str) {
    metrics::counter!(names::REMOTE_PRELOADS_TOTAL, "outcome" => outcome).increment(1);
}

/// What a model elsewhere is, in the terms of one that runs here: it has no keys and values.
fn facts(model: &dyn RemoteModel) -> EngineFacts {
    let super::RemoteFacts { model, window_tokens } = model.facts().clone();
    let fingerprint = ModelFingerprint {
        model,
        tokenizer: [0; 32],
        adapter: None,
        rope: String::new(),
        dtype: KvDtype::F32,
        layout: String::new(),
    };
    EngineFacts { fingerprint, window_tokens, kv_bytes_per_token: 0, end_of_reply: Vec::new() }
}
