//! Turns texts into vectors: one actor in front of one model, so that texts of all cubes share
//! forward passes.
//!
//! Receives: jobs of texts, and the end of its own forward passes.
//! Sends: forward passes to the compute port; vectors to whoever asked.
//! Owns: the queues. One pass runs at a time, and what arrives meanwhile makes the next one, so a
//! lone text waits for nothing and a crowd is packed. Queries go before bulk work.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use memcube_schemas::{
    ModelId,
    limits::{EMBED_BATCH_TEXTS_MAX, EMBED_QUEUE_TEXTS_MAX},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::{
    cube::seconds,
    directory::QueueDepth,
    environment::Environment,
    error::{Error, Result},
    metrics as names,
};

/// One text as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Unit length.
    pub vector: Vec<f32>,
    /// Word pieces of the whole text, special tokens not counted.
    pub tokens: u32,
}

/// A model that embeds. Calls block and use processors; they run on the compute port only.
pub trait Embedder: Send + Sync + 'static {
    /// Which model, with its weights.
    fn model(&self) -> &ModelId;
    /// Embeds texts, one result each, in order. A result does not depend on the other texts.
    ///
    /// # Errors
    /// A sentence for people when the model cannot be run.
    fn embed(&self, texts: &[&str]) -> std::result::Result<Vec<Embedding>, String>;
}

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody who searches.
    Query,
    /// Memories that are added.
    Bulk,
}

impl Priority {
    const fn label(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Bulk => "bulk",
        }
    }
}

type JobId = u64;

pub(crate) struct Job {
    texts: Vec<String>,
    priority: Priority,
    reply: oneshot::Sender<Result<Vec<Embedding>>>,
    places: QueuedTexts,
}

pub(crate) enum EmbedderMessage {
    Embed(Job),
    /// A forward pass ended.
    Embedded {
        places: Vec<Place>,
        result: Result<Vec<Embedding>>,
    },
}

/// One text of one job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    job: JobId,
    index: usize,
}

/// The front door of the embedder. Cheap to clone.
#[derive(Clone)]
pub struct EmbedderHandle {
    actor: ActorRef<EmbedderMessage>,
    model: ModelId,
    queued_texts: Arc<AtomicUsize>,
}

impl fmt::Debug for EmbedderHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbedderHandle").field("model", &self.model).finish_non_exhaustive()
    }
}

impl EmbedderHandle {
    /// Starts an embedder in front of a model.
    ///
    /// # Errors
    /// `Internal` when the actor cannot be started.
    pub async fn spawn(model: Arc<dyn Embedder>, environment: Environment) -> Result<Self> {
        let id = model.model().clone();
        let (actor, _) = EmbedderActor::spawn(None, EmbedderActor, (model, environment))
            .await
            .map_err(|error| Error::internal(format!("the embedder did not start: {error}")))?;
        Ok(Self { actor, model: id, queued_texts: Arc::new(AtomicUsize::new(0)) })
    }

    /// The model whose vectors come back.
    #[must_use]
    pub const fn model(&self) -> &ModelId {
        &self.model
    }

    /// Embeds texts, one result each, in order.
    ///
    /// # Errors
    /// `Overloaded` when too many texts wait, `Unavailable` when the model fails.
    pub async fn embed(&self, texts: Vec<String>, priority: Priority) -> Result<Vec<Embedding>> {
        let count = texts.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let places = QueuedTexts::take(&self.queued_texts, count)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { texts, priority, reply, places };
        let stopped = || Error::unavailable("the embedder has stopped; restart memcube");
        self.actor.cast(EmbedderMessage::Embed(job)).map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Whether the embedder takes texts.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(
            self.actor.get_status(),
            ractor::ActorStatus::Starting | ractor::ActorStatus::Running
        )
    }

    /// How full its queue is.
    pub(crate) fn queue(&self) -> QueueDepth {
        let depth = self.queued_texts.load(Ordering::Acquire);
        QueueDepth { name: "texts for the embedder", depth, bound: EMBED_QUEUE_TEXTS_MAX }
    }

    /// Ends the embedder at once.
    pub(crate) fn kill(&self) {
        self.actor.kill();
    }

    /// Ends the embedder.
    pub async fn stop(&self) {
        // One that is gone already has nothing left to end.
        let _ = self.actor.stop_and_wait(None, None).await;
    }
}

/// Places in the queue. They go with the texts, and not with whoever waits for them: a caller that
/// goes away leaves its texts behind.
struct QueuedTexts {
    queued: Arc<AtomicUsize>,
    count: usize,
}

impl QueuedTexts {
    fn take(queued: &Arc<AtomicUsize>, count: usize) -> Result<Self> {
        let places = Self { queued: Arc::clone(queued), count };
        if queued.fetch_add(count, Ordering::AcqRel) + count > EMBED_QUEUE_TEXTS_MAX {
            return Err(Error::overloaded("the embedder's queue", 1_000));
        }
        Ok(places)
    }
}

impl Drop for QueuedTexts {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.count, Ordering::AcqRel);
    }
}

struct EmbedderActor;

struct Pending {
    texts: Vec<String>,
    vectors: Vec<Option<Embedding>>,
    missing: usize,
    reply: oneshot::Sender<Result<Vec<Embedding>>>,
    places: QueuedTexts,
}

struct Queues {
    model: Arc<dyn Embedder>,
    environment: Environment,
    next_job: JobId,
    jobs: BTreeMap<JobId, Pending>,
    queries: VecDeque<Place>,
    bulk: VecDeque<Place>,
    is_busy: bool,
}

impl Actor for EmbedderActor {
    type Msg = EmbedderMessage;
    type State = Queues;
    type Arguments = (Arc<dyn Embedder>, Environment);

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        (model, environment): Self::Arguments,
    ) -> std::result::Result<Queues, ActorProcessingErr> {
        Ok(Queues {
            model,
            environment,
            next_job: 0,
            jobs: BTreeMap::new(),
            queries: VecDeque::new(),
            bulk: VecDeque::new(),
            is_busy: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: EmbedderMessage,
        queues: &mut Queues,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            EmbedderMessage::Embed(job) => queues.enqueue(job),
            EmbedderMessage::Embedded { places, result } => {
                queues.is_busy = false;
                queues.deliver(&places, result);
            }
        }
        queues.start_pass(&myself);
        Ok(())
    }
}

impl Queues {
    fn enqueue(&mut self, job: Job) {
        let id = self.next_job;
        self.next_job += 1;
        let count = job.texts.len();
        let queue = match job.priority {
            Priority::Query => &mut self.queries,
            Priority::Bulk => &mut self.bulk,
        };
        queue.extend((0..count).map(|index| Place { job: id, index }));
        metrics::counter!(names::EMBEDDED_TEXTS_TOTAL, "priority" => job.priority.label())
            .increment(count as u64);
        let Job { texts, reply, places, .. } = job;
        let (vectors, missing) = (vec![None; count], count);
        let pending = Pending { texts, vectors, missing, reply, places };
        self.jobs.insert(id, pending);
    }

    /// Packs what waits, queries first, and runs it off the event loop.
    fn start_pass(&mut self, myself: &ActorRef<EmbedderMessage>) {
        if self.is_busy {
            return;
        }
        let mut places = Vec::with_capacity(EMBED_BATCH_TEXTS_MAX);
        let mut texts = Vec::with_capacity(EMBED_BATCH_TEXTS_MAX);
        while places.len() < EMBED_BATCH_TEXTS_MAX {
            let Some(place) = self.queries.pop_front().or_else(|| self.bulk.pop_front()) else {
                break;
            };
            // A job that failed, or whose caller has gone, leaves its places behind.
            let Some(pending) = self.jobs.get_mut(&place.job) else { continue };
            if pending.reply.is_closed() {
                self.jobs.remove(&place.job);
                continue;
            }
            texts.push(std::mem::take(&mut pending.texts[place.index]));
            places.push(place);
        }
        if places.is_empty() {
            return;
        }
        self.is_busy = true;
        metrics::histogram!(names::EMBED_BATCH_TEXTS).record(places.len() as f64);
        let (model, environment) = (Arc::clone(&self.model), self.environment.clone());
        let myself = myself.clone();
        self.environment.spawn(async move {
            let start = environment.monotonic_us();
            let result = run_pass(&environment, model, texts).await;
            let took = environment.monotonic_us().saturating_sub(start);
            metrics::histogram!(names::EMBED_BATCH_SECONDS).record(seconds(took));
            let _ = myself.cast(EmbedderMessage::Embedded { places, result });
        });
    }

    fn deliver(&mut self, places: &[Place], result: Result<Vec<Embedding>>) {
        let embeddings = match result {
            Ok(embeddings) => embeddings,
            Err(error) => {
                for place in places {
                    if let Some(Pending { reply, places, .. }) = self.jobs.remove(&place.job) {
                        drop(places);
                        let _ = reply.send(Err(error.clone()));
                    }
                }
                return;
            }
        };
        for (place, embedding) in places.iter().zip(embeddings) {
            let Some(pending) = self.jobs.get_mut(&place.job) else { continue };
            pending.vectors[place.index] = Some(embedding);
            pending.missing -= 1;
            if pending.missing == 0
                && let Some(done) = self.jobs.remove(&place.job)
            {
                let Pending { vectors, reply, places, .. } = done;
                // Before the answer, so that whoever has it finds the queue empty.
                drop(places);
                let _ = reply.send(Ok(vectors.into_iter().flatten().collect()));
            }
        }
    }
}

async fn run_pass(
    environment: &Environment,
    model: Arc<dyn Embedder>,
    texts: Vec<String>,
) -> Result<Vec<Embedding>> {
    let count = texts.len();
    let embeddings = environment
        .compute(move || {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            model.embed(&texts)
        })
        .await
        .ok_or_else(|| Error::unavailable("the embedding model failed; see the log"))?
        .map_err(|reason| Error::unavailable(format!("the embedding model failed: {reason}")))?;
    if embeddings.len() == count {
        Ok(embeddings)
    } else {
        Err(Error::internal(format!("{} vectors came back for {count} texts", embeddings.len())))
    }
}

/// A deterministic embedder without a model, for tests and simulations: every word votes for a few
/// dimensions, so that texts which share words lie close together. It understands nothing.
#[derive(Debug)]
pub struct ScriptedEmbedder {
    model: ModelId,
    dimensions: usize,
}

impl ScriptedEmbedder {
    /// An embedder of that many dimensions.
    ///
    /// # Panics
    /// Never: its model id is valid.
    #[must_use]
    pub fn new(dimensions: usize) -> Self {
        let model = ModelId::new(format!("scripted-{dimensions}"))
            .expect("invariant: the name is printable and short");
        Self { model, dimensions }
    }
}

impl Embedder for ScriptedEmbedder {
    fn model(&self) -> &ModelId {
        &self.model
    }

    fn embed(&self, texts: &[&str]) -> std::result::Result<Vec<Embedding>, String> {
        Ok(texts.iter().map(|text| self.embed_one(text)).collect())
    }
}

impl ScriptedEmbedder {
    fn embed_one(&self, text: &str) -> Embedding {
        const VOTES: u64 = 4;
        let mut vector = vec![0.0_f32; self.dimensions];
        let mut tokens = 0;
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            tokens += 1;
            let hash = crate::cube::text_hash(&word.to_lowercase());
            for vote in 0..VOTES {
                let bits = hash.rotate_left(16 * u32::try_from(vote).unwrap_or(0));
                let place = usize::try_from(bits % self.dimensions as u64).unwrap_or(0);
                vector[place] += if bits >> 63 == 0 { 1.0 } else { -1.0 };
            }
        }
        let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|value| *value /= norm);
        }
        Embedding { vector, tokens }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_leaves_no_place_taken() {
        let model = Arc::new(ScriptedEmbedder::new(8));
        let embedder = EmbedderHandle::spawn(model, Environment::scripted(1)).await.expect("up");
        let text = || vec!["a text".to_owned(), "another".to_owned()];
        for priority in [Priority::Query, Priority::Bulk] {
            let asked = embedder.embed(text(), priority);
            // Long enough to be asked, and too short for an answer.
            assert!(tokio::time::timeout(Duration::ZERO, asked).await.is_err());
        }
        assert_eq!(embedder.embed(text(), Priority::Bulk).await.expect("answered").len(), 2);
        assert_eq!(embedder.queue().depth, 0);
    }
}
