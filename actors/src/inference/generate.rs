//! Replies: a prompt goes into a session, tokens come out one after the other, and what was
//! computed is kept for the next turn.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use memcube_schemas::limits::{INFERENCE_REQUESTS_MAX, KV_DISK_BYTES_DEFAULT, REPLY_PIECES_MAX};
use object_store::ObjectStore;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    activation_cache::{
        ActivationCache, CacheSettings, ChainBlock, Contents, Lease, Segment, Tier,
        stored::ColdTiers,
    },
    device::{DeviceHandle, Until, Urgency},
    engine::{Cancel, Engine, EngineError, EngineFacts, KvBytes, Sampling, Session, Token},
    fill::{Filled, Filling, Reuse, Trouble},
    reply::ReplyText,
    request::{FinishReason, Finished, GenerateRequest, ReplyEvent, ReplyStream, Timings},
};
use crate::{
    cube::seconds,
    directory::QueueDepth,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    metrics as names,
    storage::Blobs,
};

/// What a node needs for a language model.
pub struct InferenceParts {
    /// The model on its device.
    pub engine: Arc<dyn Engine>,
    /// How much the tiers hold.
    pub cache: CacheSettings,
    /// A local directory in front of the object store, and bytes that it may hold.
    pub disk: Option<(Arc<dyn ObjectStore>, u64)>,
    /// Whether the object store is a local disk itself.
    pub objects_are_local: bool,
    /// Turns independent segments on: memories behind the exact prefix of a prompt come from what
    /// was computed for each of them by itself, and so many of the first tokens of each are
    /// computed where they stand. **Not exact**; replies say so. `None` is off.
    pub segment_repair_tokens: Option<usize>,
}

impl InferenceParts {
    /// A model, with everything else as usual.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            engine,
            cache: CacheSettings::default(),
            disk: None,
            objects_are_local: false,
            segment_repair_tokens: None,
        }
    }

    /// The same with a local directory in front of the object store.
    #[must_use]
    pub fn with_disk(mut self, disk: Arc<dyn ObjectStore>) -> Self {
        self.disk = Some((disk, KV_DISK_BYTES_DEFAULT));
        self
    }
}

/// The front door of a language model on a device of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LocalModel {
    device: DeviceHandle,
    cache: ActivationCache,
    environment: Environment,
    places: Arc<Semaphore>,
    segment_repair_tokens: Option<usize>,
}

impl fmt::Debug for LocalModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalModel({})", self.facts().fingerprint.model)
    }
}

impl LocalModel {
    pub(crate) async fn start(
        parts: InferenceParts,
        blobs: Option<&Blobs>,
        environment: Environment,
    ) -> Result<Self> {
        let InferenceParts { engine, cache, disk, objects_are_local, segment_repair_tokens } =
            parts;
        let cold = blobs.map(|blobs| {
            let tier = if objects_are_local { Tier::Disk } else { Tier::Objects };
            let mirror = disk.map(|(objects, bytes)| (blobs.mirror(objects), bytes));
            let in_8_bits = cache.cold_in_8_bits;
            ColdTiers::new(blobs.clone(), tier, mirror, in_8_bits, environment.clone())
        });
        let facts = engine.facts().clone();
        let cache = ActivationCache::new(environment.clone(), facts, cache, cold);
        let device = DeviceHandle::spawn(engine, environment.clone()).await?;
        let places = Arc::new(Semaphore::new(INFERENCE_REQUESTS_MAX));
        Ok(Self { device, cache, environment, places, segment_repair_tokens })
    }

    pub(crate) fn facts(&self) -> &EngineFacts {
        self.device.facts()
    }

    /// The engine, for what takes no device: tokens and texts.
    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        self.device.engine()
    }

    pub(crate) const fn cache(&self) -> &ActivationCache {
        &self.cache
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.device.is_alive()
    }

    pub(crate) fn queues(&self) -> [QueueDepth; 2] {
        [waiting(&self.places), self.device.queue()]
    }

    pub(crate) fn kill(&self) {
        self.device.kill();
    }

    pub(crate) async fn stop(&self) {
        self.device.stop().await;
    }

    /// Begins a reply for a cube.
    ///
    /// # Errors
    /// `Overloaded` when too many requests wait, `Invalid` when the prompt does not fit.
    /// `Conflict` when a memory of the cube was forgotten since the lease began.
    pub(crate) fn reply(&self, lease: Lease, request: GenerateRequest) -> Result<ReplyStream> {
        let job = self.job(lease, request, Urgency::Foreground)?;
        let (sender, events) = mpsc::channel(REPLY_PIECES_MAX);
        let ms_max = job.request.ms_max.saturating_add(READER_MS_MAX);
        self.environment.spawn(async move {
            let listener = sender.clone();
            let replying: BoxFuture<'_, Vec<Segment>> = Box::pin(job.reply(sender));
            let wanted = tokio::select! {
                biased;
                // Dropped in the middle, the job cancels what the device does for it.
                () = listener.closed() => {
                    metrics::counter!(names::REPLIES_TOTAL, "outcome" => "cancelled").increment(1);
                    Vec::new()
                }
                wanted = replying => wanted,
                () = tokio::time::sleep(Duration::from_millis(ms_max)) => {
                    metrics::counter!(names::REPLIES_TOTAL, "outcome" => "unread").increment(1);
                    Vec::new()
                }
            };
            drop(listener);
            if !wanted.is_empty() {
                let making: BoxFuture<'_, ()> = Box::pin(job.make_segments(&wanted));
                making.await;
            }
        });
        Ok(ReplyStream::new(events))
    }

    /// Computes a prompt ahead, without a reply. Whoever waits for an answer goes first.
    ///
    /// # Errors
    /// As `reply`, and whatever the engine says.
    pub(crate) async fn preload(&self, lease: Lease, request: GenerateRequest) -> Result<Finished> {
        self.job(lease, request, Urgency::Preload)?.preload().await
    }

    fn job(&self, mut lease: Lease, request: GenerateRequest, urgency: Urgency) -> Result<Job> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| Error::overloaded("the language model's queue", 1_000))?;
        let window_tokens = self.facts().window_tokens;
        let tokens = request.chain.tokens.len();
        if tokens == 0 || tokens >= window_tokens {
            return Err(invalid(&EngineError::ContextTooLong { tokens, window_tokens }));
        }
        let start_us = self.environment.monotonic_us();
        let deadline_us = start_us.saturating_add(request.ms_max.saturating_mul(1_000));
        let until = Until { urgency, deadline_us, cancel: Cancel::default(), yields: false };
        if !self.cache.narrow(&mut lease, Contents::of_chain(&request.chain)) {
            let message = "a memory was changed while the prompt was made; make it again";
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(Job { inference: self.clone(), request, until, lease, start_us, _place: place })
    }
}

/// How many requests are being answered or wait for it.
pub(super) fn waiting(places: &Semaphore) -> QueueDepth {
    let depth = INFERENCE_REQUESTS_MAX.saturating_sub(places.available_permits());
    QueueDepth { name: "requests for the language model", depth, bound: INFERENCE_REQUESTS_MAX }
}

/// Microseconds that making the segments of one prompt may take.
const SEGMENTS_US_MAX: u64 = 60_000_000;
/// Milliseconds after a reply's deadline that its reader may take, before it is cut off.
pub(super) const READER_MS_MAX: u64 = 10_000;

/// One request.
struct Job {
    inference: LocalModel,
    request: GenerateRequest,
    until: Until,
    lease: Lease,
    start_us: u64,
    _place: OwnedSemaphorePermit,
}

/// What the device has no memory for is tried again with less.
const WITHOUT_MEMORY: [&str; 2] = ["evicted", "recomputed"];

impl Job {
    async fn preload(self) -> Result<Finished> {
        let filled = self.fill(None).await?;
        let Filled { session, reuse, computed, .. } = filled;
        count_prompt(&reuse);
        let unstored = self.keep(session, &reuse, computed, None).await;
        let total_us = self.elapsed_us();
        let timings = Timings { first_token_us: total_us, total_us, reply_tokens: 0 };
        Ok(Finished { reason: FinishReason::Preloaded, reuse, timings, unstored })
    }

    fn elapsed_us(&self) -> u64 {
        self.inference.environment.monotonic_us().saturating_sub(self.start_us)
    }

    /// Replies; returns the memories of which segments should be made when that is over.
    async fn reply(&self, sender: mpsc::Sender<Result<ReplyEvent>>) -> Vec<Segment> {
        let mut wanted = Vec::new();
        let outcome = match self.try_reply(&sender).await {
            Ok((finished, missing)) => {
                wanted = missing;
                let reply_tokens = finished.timings.reply_tokens as u64;
                metrics::counter!(names::REPLY_TOKENS_TOTAL).increment(reply_tokens);
                let _ = sender.send(Ok(ReplyEvent::Finished(Box::new(finished)))).await;
                "ok"
            }
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                "error"
            }
        };
        metrics::counter!(names::REPLIES_TOTAL, "outcome" => outcome).increment(1);
        wanted
    }

    async fn try_reply(
        &self,
        sender: &mpsc::Sender<Result<ReplyEvent>>,
    ) -> Result<(Finished, Vec<Segment>)> {
        let GenerateRequest { sampling, seed, .. } = self.request;
        let filled = self.fill(Some((sampling, draw(seed, 0)))).await?;
        let Filled { session, first, reuse, computed, composed_from, missing, mut segments } =
            filled;
        let first = first.ok_or_else(|| Error::internal("no token followed the prompt"))?;
        let first_token_us = self.elapsed_us();
        let warm = if reuse.reused() > 0 { "true" } else { "false" };
        metrics::histogram!(names::TTFT_SECONDS, "warm" => warm).record(seconds(first_token_us));
        count_prompt(&reuse);
        let (session, reason, reply_tokens) = self.speak(session, first, sender).await?;
        let unstored = match session {
            Some(session) => self.keep(session, &reuse, computed, composed_from).await,
            None => Vec::new(),
        };
        let timings = Timings { first_token_us, total_us: self.elapsed_us(), reply_tokens };
        let mut number = 0..;
        segments.retain(|_| number.next().is_some_and(|number| missing.contains(&number)));
        Ok((Finished { reason, reuse, timings, unstored }, segments))
    }

    /// Makes segments of memories, which later prompts can do without, and gives up at the first
    /// trouble.
    async fn make_segments(&self, wanted: &[Segment]) {
        let deadline_us = self.inference.environment.monotonic_us().saturating_add(SEGMENTS_US_MAX);
        let until = Until { urgency: Urgency::Preload, deadline_us, ..self.until.clone() };
        let filling = Filling { until, ..self.filling(None) };
        if let Err(trouble) = filling.make_segments(wanted).await {
            tracing::debug!(?trouble, "no segments of memories were made");
        }
    }

    fn filling(&self, sampling: Option<(Sampling, u64)>) -> Filling<'_> {
        let LocalModel { device, cache, environment, .. } = &self.inference;
        Filling {
            device,
            cache,
            environment,
            lease: &self.lease,
            chain: &self.request.chain,
            stored: &self.request.stored,
            stop: &self.request.stop,
            until: self.until.clone(),
            sampling,
            repair_tokens: self.inference.segment_repair_tokens,
        }
    }

    /// Brings the prompt into a session. A device without memory lets go of what nobody uses, then
    /// of everything that is cached.
    async fn fill(&self, sampling: Option<(Sampling, u64)>) -> Result<Filled> {
        let LocalModel { cache, environment, .. } = &self.inference;
        cache.find_copies(&self.lease.key.tenant).await;
        let filling = self.filling(sampling);
        let mut trouble = match filling.fill(self.request.is_cached).await {
            Ok(filled) => return Ok(filled),
            Err(trouble) => trouble,
        };
        for then in WITHOUT_MEMORY {
            let Trouble::Engine(EngineError::OutOfMemory) = trouble else { break };
            environment.reach("inference.out-of-memory", then);
            metrics::counter!(names::DEVICE_OUT_OF_MEMORY_TOTAL, "then" => then).increment(1);
            cache.free_device();
            let with_cache = self.request.is_cached && then == WITHOUT_MEMORY[0];
            trouble = match filling.fill(with_cache).await {
                Ok(filled) => return Ok(filled),
                Err(trouble) => trouble,
            };
        }
        Err(self.explain(trouble))
    }

    fn explain(&self, trouble: Trouble) -> Error {
        let error = match trouble {
            Trouble::Device(error) => return error,
            Trouble::Engine(error) => error,
        };
        match &error {
            EngineError::OutOfMemory => {
                let then = "refused";
                metrics::counter!(names::DEVICE_OUT_OF_MEMORY_TOTAL, "then" => then).increment(1);
                Error::overloaded("the device's memory", 2_000)
            }
            EngineError::ContextTooLong { .. } => invalid(&error),
            EngineError::Cancelled
            | EngineError::NotFinite
            | EngineError::Unsuitable { .. }
            | EngineError::Failed { .. } => {
                tracing::error!(%error, kind = error.as_str(), "the language model failed");
                Error::unavailable(error.to_string())
            }
        }
    }

    /// Says one token after the other.
    async fn speak(
        &self,
        mut session: Box<dyn Session>,
        first: Token,
        sender: &mpsc::Sender<Result<ReplyEvent>>,
    ) -> Result<(Option<Box<dyn Session>>, FinishReason, usize)> {
        let LocalModel { device, environment, .. } = &self.inference;
        let GenerateRequest { sampling, seed, tokens_max, .. } = self.request;
        let facts = device.facts();
        let mut text = ReplyText::new(self.request.stops.clone());
        let (mut token, mut said) = (first, 0);
        let reason = loop {
            if facts.end_of_reply.contains(&token) {
                break FinishReason::Stop;
            }
            said += 1;
            send(sender, text.push(&device.engine().bytes_of(token))).await;
            if text.has_stopped() {
                break FinishReason::Stop;
            }
            if said >= tokens_max || session.tokens() + 1 >= facts.window_tokens {
                break FinishReason::Length;
            }
            if environment.monotonic_us() >= self.until.deadline_us {
                break FinishReason::Deadline;
            }
            let random = draw(seed, said as u64);
            let stepped = device.step(self.until.clone(), session, token, sampling, random).await;
            let (back, next) = match stepped {
                Ok(stepped) => stepped,
                // Too late for another token, not for those that were said.
                Err(error) if error.kind() == ErrorKind::Overloaded => {
                    send(sender, text.finish()).await;
                    return Ok((None, FinishReason::Deadline, said));
                }
                Err(error) => return Err(error),
            };
            session = back;
            token = match next {
                Ok(token) => token,
                // There is no room for more: what is said so far is the reply.
                Err(EngineError::OutOfMemory | EngineError::ContextTooLong { .. }) => {
                    break FinishReason::Length;
                }
                Err(error) => return Err(self.explain(Trouble::Engine(error))),
            };
        };
        send(sender, text.finish()).await;
        Ok((Some(session), reason, said))
    }

    /// Copies what was computed into RAM, and parks the session with the prompt in it. What was
    /// said goes: its numbers come from other kernels than those of a prompt. So does what was put
    /// together from segments, and all behind it.
    async fn keep(
        &self,
        mut session: Box<dyn Session>,
        reuse: &Reuse,
        computed: Vec<usize>,
        composed_from: Option<usize>,
    ) -> Vec<(ChainBlock, Arc<KvBytes>)> {
        let LocalModel { device, cache, environment, .. } = &self.inference;
        if reuse.inexact_tokens > 0 || !self.request.is_cached {
            return Vec::new();
        }
        let chain = Arc::clone(&self.request.chain);
        let held = session.tokens();
        let filled = chain.blocks.iter().take_while(|block| block.span.end <= held).count();
        let exact = &self.request.chain.blocks[..composed_from.unwrap_or(filled).min(filled)];
        let exact_tokens = exact.last().map_or(0, |block| block.span.end);
        // Too late for an answer is not too late for this. It is short.
        let urgency = Urgency::Foreground;
        let until = Until { urgency, deadline_us: u64::MAX, ..self.until.clone() };
        let work = move |_: &dyn Engine| {
            session.truncate(exact_tokens);
            let export = |at: usize| {
                let numbers = session.export(chain.blocks[at].span.clone());
                // One that cannot be copied out is computed again another time.
                numbers.ok().map(|numbers| (at, Arc::new(numbers)))
            };
            let blocks: Vec<(usize, Arc<KvBytes>)> =
                computed.into_iter().filter_map(export).collect();
            let owed_us = session.owed_us();
            ((session, blocks), owed_us)
        };
        let Ok((session, blocks)) = device.run(until, work).await else { return Vec::new() };
        let chain = &self.request.chain;
        for (at, numbers) in &blocks {
            cache.admit(&self.lease, chain, *at, Arc::clone(numbers));
        }
        let ends = exact.iter().map(|block| (block.key, block.span.end)).collect();
        cache.park(&self.lease, session, ends);
        let mut exported: BTreeMap<usize, Arc<KvBytes>> = blocks.into_iter().collect();
        let mut unstored = Vec::new();
        for (at, block) in exact.iter().enumerate() {
            if self.request.stored.contains_key(&block.key) {
                continue;
            }
            let numbers = exported.remove(&at).or_else(|| cache.in_ram(&self.lease, chain, at));
            // Without it, nothing behind it can be found again.
            let Some(numbers) = numbers else { break };
            unstored.push((block.clone(), numbers));
        }
        if cache.is_revoked(&self.lease) {
            environment.reach("inference.forgotten-meanwhile", "");
            return Vec::new();
        }
        unstored
    }
}

async fn send(sender: &mpsc::Sender<Result<ReplyEvent>>, text: String) {
    if !text.is_empty() {
        // If nobody listens any more, the job is about to be dropped.
        let _ = sender.send(Ok(ReplyEvent::Text(text))).await;
    }
}

fn invalid(error: &EngineError) -> Error {
    Error::invalid(format!("{error}; shorten the messages, or start a new conversation"))
}

/// The random number for a token: the same for the same seed and place (splitmix64).
fn draw(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(super) fn count_prompt(reuse: &Reuse) {
    let count = |from: &'static str, tokens: usize| {
        metrics::counter!(names::PROMPT_TOKENS_TOTAL, "from" => from).increment(tokens as u64);
    };
    count("computed", reuse.computed_tokens);
    count("segment", reuse.segment_tokens);
    reuse.reused_tokens.iter().for_each(|(tier, tokens)| count(tier.as_str(), *tokens));
}
