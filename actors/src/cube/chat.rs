//! A turn of a chat: recall, a prompt on top of what is cached, a reply as it comes, and what is
//! kept of it for the next turn. And the same ahead of time, without a reply.

mod elsewhere;
mod request;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    BlockKey, ConversationId, ModelId, Version,
    activation::{ContextRecord, KvBlock, ModelFingerprint},
    call::{ContextAnswer, ContextQuery, CubeAnswer, CubeCall},
    memory::MemoryItem,
};
use tokio::sync::oneshot;

use super::{
    CubeHandle, CubeMessage,
    activation::{Keep, Kept},
    context::{self, Layout, Messages, Rebuild, Renderer, Wanted},
    converse,
    handle::unexpected_reply,
};
use crate::{
    defects::Defect,
    error::{Error, ErrorKind, Result},
    inference::{
        Cancel, Finished, GenerateRequest, InferenceHandle, LocalModel, Place, ReplyEvent,
        ReplyStream, Sampling,
        activation_cache::{Lease, StoredBlock, chain::Chain},
        remote::RemoteHandle,
    },
};

pub use self::request::{ChatOpening, ChatRequest, PreloadOutcome, PreloadRequest};

/// How often a prompt is made again because a memory in it changed meanwhile.
const TRIES_MAX: usize = 4;

/// A reply as it comes. Whoever drops it stops the model.
#[derive(Debug)]
pub struct ChatStream {
    opening: ChatOpening,
    stream: ReplyStream,
    pub(super) after: Option<After>,
    pub(super) keeping: Option<oneshot::Receiver<Result<Kept>>>,
    pub(super) text: String,
    /// When the model was asked, on this node's monotonic clock.
    pub(super) asked_us: u64,
}

/// What is kept once a reply has ended.
#[derive(Debug)]
pub(super) struct After {
    cube: CubeHandle,
    inference: InferenceHandle,
    record: ContextRecord,
}

impl ChatStream {
    /// What is known before the first token.
    #[must_use]
    pub const fn opening(&self) -> &ChatOpening {
        &self.opening
    }

    /// What comes next; `None` after the end or an error. What is kept for the next turn goes on in
    /// the background.
    pub async fn next(&mut self) -> Option<Result<ReplyEvent>> {
        let event = self.stream.next().await?;
        match &event {
            Ok(ReplyEvent::Text(text)) => self.text.push_str(text),
            Ok(ReplyEvent::Finished(finished)) => self.finish(finished),
            Ok(ReplyEvent::ToolCalls(_)) | Err(_) => {}
        }
        Some(event)
    }

    fn finish(&mut self, finished: &Finished) {
        let Some(After { cube, inference, mut record }) = self.after.take() else { return };
        context::replied(&mut record, &self.text, finished.timings.reply_tokens);
        let (sender, receiver) = oneshot::channel();
        self.keeping = Some(receiver);
        let finished = finished.clone();
        let environment = cube.cubes().environment().clone();
        environment.spawn(async move {
            let kept = cube.keep(&inference, record, &finished).await;
            if let Err(error) = &kept {
                tracing::debug!(cube = %cube.id(), %error, "a context could not be kept");
            }
            // Most callers do not wait for it.
            let _ = sender.send(kept);
        });
    }

    /// Reads the text of the reply to its end; calls of tools are left out.
    ///
    /// # Errors
    /// What went wrong on the way.
    pub async fn collect(&mut self) -> Result<(String, Finished)> {
        while let Some(event) = self.next().await {
            if let ReplyEvent::Finished(finished) = event? {
                return Ok((self.text.clone(), *finished));
            }
        }
        Err(Error::unavailable("the language model has ended; restart memcube"))
    }

    /// Waits until what is kept for the next turn is durable; `None` if nothing is.
    pub async fn kept(&mut self) -> Option<Result<Kept>> {
        self.keeping.take()?.await.ok()
    }
}

/// What a model reads, and the model.
enum MadePrompt {
    Here {
        model: LocalModel,
        chain: Arc<Chain>,
        stored: BTreeMap<BlockKey, KvBlock>,
    },
    /// `is_read` if the server has read and said all of it.
    Elsewhere {
        model: RemoteHandle,
        messages: Messages,
        is_read: bool,
    },
}

impl MadePrompt {
    /// Tokens of it, as far as they are known.
    fn tokens(&self) -> usize {
        match self {
            Self::Here { chain, .. } => chain.tokens.len(),
            Self::Elsewhere { messages, .. } => messages.tokens,
        }
    }
}

/// A prompt that was made, and what else is known of it.
struct Made {
    lease: Lease,
    layout: Layout<MadePrompt>,
    version: Version,
    is_local: bool,
    recall_us: u64,
    rebuilt: Option<Rebuild>,
}

impl CubeHandle {
    /// Answers a turn of a chat out of the cube's memories.
    ///
    /// # Errors
    /// `Unavailable` without a language model or when it fails, `NotFound` without such a cube,
    /// `Invalid` when even the new turn alone does not fit, `Overloaded`, `Conflict` when memories
    /// in the prompt keep changing.
    pub async fn chat(&self, request: ChatRequest) -> Result<ChatStream> {
        let inference = self.model()?;
        if request.tokens_max == 0 {
            return Err(Error::invalid("a reply has at least one token"));
        }
        elsewhere::check_extra(&inference, request.extra.as_deref())?;
        let mut last = None;
        for _ in 0..TRIES_MAX {
            let made = self.make_prompt(&inference, &request).await?;
            let Layout { prompt, record, memories, left_out, turns_left_out } = made.layout;
            let opening = ChatOpening {
                memories,
                left_out,
                turns_left_out,
                version: made.version,
                recall_us: made.recall_us,
                prompt_tokens: prompt.tokens(),
            };
            let asked_us = self.cubes().environment().monotonic_us();
            let begun = match prompt {
                MadePrompt::Here { model, chain, stored } => {
                    let generate = GenerateRequest {
                        chain,
                        stored,
                        sampling: request.sampling,
                        seed: request.seed,
                        tokens_max: request.tokens_max,
                        stops: request.stops.clone(),
                        ms_max: request.ms_max,
                        is_cached: made.is_local,
                        stop: Cancel::default(),
                    };
                    model.reply(made.lease, generate)
                }
                MadePrompt::Elsewhere { model, messages, .. } => {
                    let asked = elsewhere::asked(messages, &request);
                    model.reply(made.lease, asked).await
                }
            };
            match begun {
                Ok(stream) => {
                    let (cube, inference) = (self.clone(), inference.clone());
                    let after = made.is_local.then_some(After { cube, inference, record });
                    let text = String::new();
                    return Ok(ChatStream {
                        opening,
                        stream,
                        after,
                        keeping: None,
                        text,
                        asked_us,
                    });
                }
                Err(error) if error.kind() == ErrorKind::Conflict => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::internal("no prompt was made")))
    }

    /// Computes ahead what the next turn of a conversation will begin with: what was said, and
    /// memories that it will need. Lays the context out anew where that is due. Whoever waits for
    /// an answer goes first.
    ///
    /// # Errors
    /// As `chat`; `Unavailable` when another node owns the cube.
    pub async fn preload(&self, request: PreloadRequest) -> Result<PreloadOutcome> {
        self.preload_until(request, &Cancel::default()).await
    }

    /// The same until it is stopped: then what is computed by then stays in the cache, and the
    /// context is as it was.
    pub(super) async fn preload_until(
        &self,
        request: PreloadRequest,
        stop: &Cancel,
    ) -> Result<PreloadOutcome> {
        let inference = self.model()?;
        let mut last = None;
        for _ in 0..TRIES_MAX {
            let made = self.make_ahead(&inference, &request).await?;
            if !made.is_local {
                return Err(Error::unavailable("another node owns the cube; preload there"));
            }
            let Layout { prompt, record, .. } = made.layout;
            let tokens = prompt.tokens();
            let computed = match prompt {
                MadePrompt::Here { model, chain, stored } => {
                    let generate = GenerateRequest {
                        chain,
                        stored,
                        sampling: Sampling::GREEDY,
                        seed: 0,
                        tokens_max: 0,
                        stops: Vec::new(),
                        ms_max: request.ms_max,
                        is_cached: true,
                        stop: stop.clone(),
                    };
                    model.preload(made.lease, generate).await
                }
                MadePrompt::Elsewhere { is_read: true, .. } => Ok(elsewhere::nothing_to_do()),
                MadePrompt::Elsewhere { model, messages, is_read: false } => {
                    let extra = model.extra(self.key(), &request.conversation);
                    let asked = elsewhere::asked_ahead(messages, &request, extra);
                    model.preload(made.lease, asked).await
                }
            };
            match computed {
                Ok(_) if stop.is_set() => return Err(elsewhere::overtaken()),
                Ok(finished) => {
                    let kept = self.keep(&inference, record, &finished).await?;
                    let rebuilt = made.rebuilt;
                    return Ok(PreloadOutcome { rebuilt, tokens, finished, kept });
                }
                Err(error) if error.kind() == ErrorKind::Conflict => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::internal("no prompt was made")))
    }

    fn model(&self) -> Result<InferenceHandle> {
        let none = || Error::unavailable("no language model is configured");
        self.cubes().inference().cloned().ok_or_else(none)
    }

    async fn make_prompt(
        &self,
        inference: &InferenceHandle,
        request: &ChatRequest,
    ) -> Result<Made> {
        self.find_cube().await?;
        // Before anything is read, so that nothing is forgotten unnoticed from here on.
        let lease = inference.cache().lease(self.key().clone());
        let environment = self.cubes().environment();
        let start = environment.monotonic_us();
        let memories = match &request.recall {
            Some(search) => {
                let found = self.search(converse::widened(search, &request.turns)).await?.hits;
                let found = found.into_iter().map(|hit| hit.item).collect();
                converse::unsaid(found, search, &request.turns)
            }
            None => Vec::new(),
        };
        let recall_us = environment.monotonic_us().saturating_sub(start);
        let window_tokens = elsewhere::window_tokens(inference, request.extra.as_deref());
        let wanted = Wanted {
            preamble: request.preamble.clone(),
            turns: request.turns.clone(),
            message: Some(request.message.clone()),
            memories,
            is_complete: request.recall.is_some(),
            // At least half of the window is for the prompt, whatever the reply may need.
            tokens_max: (window_tokens - request.tokens_max.min(window_tokens / 2))
                .saturating_sub(1),
            now_ms: environment.unix_ms(),
        };
        let model = inference.facts().fingerprint.model.clone();
        let known = self.read_context(model, &request.conversation, Vec::new()).await?;
        let made =
            self.prepare(inference, lease, &request.conversation, wanted, &known, None).await?;
        Ok(Made { recall_us, ..made })
    }

    async fn make_ahead(
        &self,
        inference: &InferenceHandle,
        request: &PreloadRequest,
    ) -> Result<Made> {
        self.find_cube().await?;
        let lease = inference.cache().lease(self.key().clone());
        let model = inference.facts().fingerprint.model.clone();
        let known = self.read_context(model, &request.conversation, Vec::new()).await?;
        let mut memories: Vec<Arc<MemoryItem>> = Vec::with_capacity(request.memories.len());
        for id in &request.memories {
            match self.get(*id).await {
                Ok(item) if item.status.is_recalled() => memories.push(item),
                Ok(_) => {}
                // It is gone since somebody thought that it would be needed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let extra = elsewhere::extra(inference, self.key(), &request.conversation);
        let window_tokens = elsewhere::window_tokens(inference, extra.as_deref());
        let wanted = Wanted {
            preamble: request.preamble.clone(),
            turns: request.turns.clone(),
            message: None,
            memories,
            is_complete: !request.memories.is_empty(),
            // A quarter is left for what is said and answered.
            tokens_max: window_tokens / 4 * 3,
            now_ms: self.cubes().environment().unix_ms(),
        };
        let due = known.record.as_ref().and_then(|record| context::rebuild(record, window_tokens));
        let made =
            self.prepare(inference, lease, &request.conversation, wanted, &known, due).await?;
        Ok(Made { rebuilt: due, ..made })
    }

    /// Brings a cold cube into RAM. That revokes all leases, because nobody knows what was
    /// forgotten before, and so comes before one is taken.
    async fn find_cube(&self) -> Result<()> {
        self.in_time(self.cubes().find(self.key())).await
    }

    /// Asks the cube for a context, and for the rows of blocks.
    pub(super) async fn read_context(
        &self,
        model: ModelId,
        conversation: &ConversationId,
        blocks: Vec<BlockKey>,
    ) -> Result<ContextAnswer> {
        let query = ContextQuery { conversation: conversation.clone(), model, blocks };
        let call = CubeCall::Context(Box::new(query));
        let CubeAnswer::Context(answer) = self.call("context", call).await? else {
            return Err(unexpected_reply());
        };
        Ok(*answer)
    }

    /// Makes a prompt of what is wanted and known, for where the model runs.
    async fn prepare(
        &self,
        inference: &InferenceHandle,
        lease: Lease,
        conversation: &ConversationId,
        wanted: Wanted,
        known: &ContextAnswer,
        due: Option<Rebuild>,
    ) -> Result<Made> {
        match inference.place() {
            Place::Here(model) => {
                let engine = Arc::clone(model.engine());
                let laid = self.lay_out(engine, conversation, wanted, known, due).await?;
                self.make(model, lease, laid, known.version).await
            }
            Place::Elsewhere(model) => {
                let wording = Arc::new(elsewhere::wording(model));
                let laid = self.lay_out(wording, conversation, wanted, known, due).await?;
                let (messages, layout) = laid.take_prompt();
                let is_read = known.record.as_ref();
                let is_read = is_read.is_some_and(|known| context::is_same(known, &layout.record));
                let model = model.clone();
                let layout = layout.with(MadePrompt::Elsewhere { model, messages, is_read });
                let is_local = self.cubes().is_hot_here(self.key());
                let (version, recall_us, rebuilt) = (known.version, 0, None);
                Ok(Made { lease, layout, version, is_local, recall_us, rebuilt })
            }
        }
    }

    /// Lays a prompt out, off the event loop: it may be long, and has to be cut into tokens. Boxed,
    /// because the compiler cannot tell of this future in others that they may go to other threads.
    fn lay_out<R>(
        &self,
        renderer: Arc<R>,
        conversation: &ConversationId,
        wanted: Wanted,
        known: &ContextAnswer,
        due: Option<Rebuild>,
    ) -> BoxFuture<'_, Result<Layout<R::Prompt>>>
    where
        R: Renderer + Send + Sync + ?Sized + 'static,
        R::Prompt: Send + 'static,
    {
        let conversation = conversation.clone();
        let (record, items) = (known.record.clone(), known.items.clone());
        let laid = self.cubes().environment().compute(move || match (&record, due) {
            (Some(record), Some(_)) => {
                context::lay_out_anew(&conversation, record, &items, &wanted, &*renderer)
            }
            (record, _) => {
                let known = record.as_ref().map(|record| (record, items.as_slice()));
                context::lay_out(&conversation, known, &wanted, &*renderer)
            }
        });
        Box::pin(async move {
            let laid = laid.await.ok_or_else(|| Error::internal("making a prompt panicked"))?;
            laid.map_err(|error| Error::unavailable(error.to_string()))
        })
    }

    /// Cuts a prompt into blocks, and asks which of them are stored.
    async fn make(
        &self,
        inference: &LocalModel,
        lease: Lease,
        layout: Layout,
        version: Version,
    ) -> Result<Made> {
        let (prompt, layout) = layout.take_prompt();
        let mut fingerprint = inference.facts().fingerprint.clone();
        if self.cubes().environment().plants(Defect::ModelBlindKey) {
            fingerprint = ModelFingerprint { tokenizer: [0; 32], adapter: None, ..fingerprint };
        }
        let chain = Arc::new(Chain::of(prompt, &fingerprint, &self.key().tenant));
        let is_local = self.cubes().is_hot_here(self.key());
        let mut stored = BTreeMap::new();
        if is_local && inference.cache().is_durable() {
            let keys = chain.blocks.iter().map(|block| block.key).collect();
            let conversation = layout.record.conversation.clone();
            let model = inference.facts().fingerprint.model.clone();
            let answer = self.read_context(model, &conversation, keys).await?;
            stored.extend(answer.blocks.into_iter().map(|row| (row.key, row)));
        }
        let model = inference.clone();
        let layout = layout.with(MadePrompt::Here { model, chain, stored });
        let (recall_us, rebuilt) = (0, None);
        Ok(Made { lease, layout, version, is_local, recall_us, rebuilt })
    }

    /// Stores blocks, and makes them and the context count.
    async fn keep(
        &self,
        inference: &InferenceHandle,
        record: ContextRecord,
        finished: &Finished,
    ) -> Result<Kept> {
        let mut blocks: Vec<StoredBlock> = Vec::new();
        let cache = inference.cache();
        if cache.is_durable() {
            let limit = memcube_schemas::limits::KV_BLOCKS_PER_COMMIT_MAX;
            for (block, numbers) in finished.unstored.iter().take(limit) {
                match cache.store(&self.key().tenant, block, Arc::clone(numbers)).await {
                    Ok(stored) => blocks.push(stored),
                    Err(error) => {
                        tracing::debug!(%error, "a block could not be stored");
                        break;
                    }
                }
            }
        }
        let slot = self.cubes().slot(self.key()).await?;
        let (reply, answer) = oneshot::channel();
        let keep = Keep { record, blocks, reply, place: slot.take_place()? };
        let gone = || Error::unavailable("the cube has left RAM; nothing is kept");
        slot.actor.cast(CubeMessage::Keep(Box::new(keep))).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}
