//! A turn of a chat: recall, a prompt on top of what is cached, a reply as it comes, and what is
//! kept of it for the next turn. And the same ahead of time, without a reply.

use std::{collections::BTreeMap, sync::Arc};

use memcube_schemas::{
    BlockKey, ConversationId, MemoryId, Version,
    activation::{ContextRecord, KvBlock, ModelFingerprint},
    call::{ContextAnswer, ContextQuery, CubeAnswer, CubeCall},
    conversation::Role,
    limits::{REPLY_MS_DEFAULT, REPLY_TOKENS_DEFAULT},
    memory::MemoryItem,
};
use tokio::sync::oneshot;

use super::{
    CubeHandle, CubeMessage, SearchRequest,
    activation::{Keep, Kept},
    context::{self, ChatTurn, Layout, Rebuild, UsedMemory, Wanted},
    handle::unexpected_reply,
};
use crate::{
    defects::Defect,
    error::{Error, ErrorKind, Result},
    inference::{
        Finished, GenerateRequest, InferenceHandle, ReplyEvent, ReplyStream, Sampling,
        activation_cache::{Lease, StoredBlock, chain::Chain},
    },
};

/// How often a prompt is made again because a memory in it changed meanwhile.
const TRIES_MAX: usize = 4;

/// One turn of a chat.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// Which conversation; its context grows from turn to turn.
    pub conversation: ConversationId,
    /// Instructions, the same for every turn.
    pub preamble: String,
    /// What was said before, as the caller has it.
    pub turns: Vec<ChatTurn>,
    /// What is said now.
    pub message: ChatTurn,
    /// How memories are looked for; `None` for none but those in the context.
    pub recall: Option<SearchRequest>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Where the random numbers of the choice begin.
    pub seed: u64,
    /// Tokens of the reply at the most.
    pub tokens_max: usize,
    /// Texts before which it ends.
    pub stops: Vec<String>,
    /// Milliseconds that all of it may take.
    pub ms_max: u64,
}

impl ChatRequest {
    /// A first turn with memories, and everything else as usual.
    pub fn new(conversation: ConversationId, message: impl Into<String>) -> Self {
        let message = ChatTurn { role: Role::User, text: message.into() };
        Self {
            conversation,
            preamble: String::new(),
            turns: Vec::new(),
            recall: Some(SearchRequest::new(message.text.clone())),
            message,
            sampling: Sampling::GREEDY,
            seed: 0,
            tokens_max: REPLY_TOKENS_DEFAULT,
            stops: Vec::new(),
            ms_max: REPLY_MS_DEFAULT,
        }
    }
}

/// What is to be computed ahead for a conversation.
#[derive(Debug, Clone)]
pub struct PreloadRequest {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Instructions, as the next turn will have them.
    pub preamble: String,
    /// What was said so far, the last reply included.
    pub turns: Vec<ChatTurn>,
    /// Memories that the next turn will need.
    pub memories: Vec<MemoryId>,
    /// Milliseconds that it may take.
    pub ms_max: u64,
}

/// What a preload did.
#[derive(Debug, Clone)]
pub struct PreloadOutcome {
    /// Why the context was laid out anew, if it was.
    pub rebuilt: Option<Rebuild>,
    /// Tokens of the context.
    pub tokens: usize,
    /// Where they came from, and what it took.
    pub finished: Finished,
    /// What is kept of it.
    pub kept: Kept,
}

/// What is known before the first token.
#[derive(Debug, Clone)]
pub struct ChatOpening {
    /// The memories in the prompt.
    pub memories: Vec<UsedMemory>,
    /// Memories that found no room in the window, oldest first.
    pub left_out: Vec<MemoryId>,
    /// Turns that found no room.
    pub turns_left_out: usize,
    /// The version of the cube that was read.
    pub version: Version,
    /// Microseconds that recall took.
    pub recall_us: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// A reply as it comes. Whoever drops it stops the model.
#[derive(Debug)]
pub struct ChatStream {
    opening: ChatOpening,
    stream: ReplyStream,
    after: Option<After>,
    keeping: Option<oneshot::Receiver<Result<Kept>>>,
    text: String,
}

/// What is kept once a reply has ended.
#[derive(Debug)]
struct After {
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
            Err(_) => {}
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

    /// Reads the reply to its end.
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

/// A prompt that was made, and what else is known of it.
struct Made {
    lease: Lease,
    layout: Layout,
    chain: Arc<Chain>,
    stored: BTreeMap<BlockKey, KvBlock>,
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
        let mut last = None;
        for _ in 0..TRIES_MAX {
            let made = self.make_prompt(&inference, &request).await?;
            let generate = GenerateRequest {
                chain: Arc::clone(&made.chain),
                stored: made.stored,
                sampling: request.sampling,
                seed: request.seed,
                tokens_max: request.tokens_max,
                stops: request.stops.clone(),
                ms_max: request.ms_max,
                is_cached: made.is_local,
            };
            let Layout { prompt: _, record, memories, left_out, turns_left_out } = made.layout;
            let opening = ChatOpening {
                memories,
                left_out,
                turns_left_out,
                version: made.version,
                recall_us: made.recall_us,
                prompt_tokens: made.chain.tokens.len(),
            };
            match inference.reply(made.lease, generate) {
                Ok(stream) => {
                    let (cube, inference) = (self.clone(), inference.clone());
                    let after = made.is_local.then_some(After { cube, inference, record });
                    let text = String::new();
                    return Ok(ChatStream { opening, stream, after, keeping: None, text });
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
        let inference = self.model()?;
        let mut last = None;
        for _ in 0..TRIES_MAX {
            let made = self.make_ahead(&inference, &request).await?;
            if !made.is_local {
                return Err(Error::unavailable("another node owns the cube; preload there"));
            }
            let generate = GenerateRequest {
                chain: Arc::clone(&made.chain),
                stored: made.stored,
                sampling: Sampling::GREEDY,
                seed: 0,
                tokens_max: 0,
                stops: Vec::new(),
                ms_max: request.ms_max,
                is_cached: true,
            };
            match inference.preload(made.lease, generate).await {
                Ok(finished) => {
                    let kept = self.keep(&inference, made.layout.record, &finished).await?;
                    let (rebuilt, tokens) = (made.rebuilt, made.chain.tokens.len());
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
            Some(search) => self.search(search.clone()).await?.hits,
            None => Vec::new(),
        };
        let recall_us = environment.monotonic_us().saturating_sub(start);
        let window_tokens = inference.facts().window_tokens;
        let wanted = Wanted {
            preamble: request.preamble.clone(),
            turns: request.turns.clone(),
            message: Some(request.message.clone()),
            memories: memories.into_iter().map(|hit| hit.item).collect(),
            // At least half of the window is for the prompt, whatever the reply may need.
            tokens_max: window_tokens - request.tokens_max.min(window_tokens / 2) - 1,
            now_ms: environment.unix_ms(),
        };
        let known = self.read_context(inference, &request.conversation, Vec::new()).await?;
        let laid = self.lay_out(inference, &request.conversation, wanted, &known, None).await?;
        let made = self.make(inference, lease, laid, known.version).await?;
        Ok(Made { recall_us, ..made })
    }

    async fn make_ahead(
        &self,
        inference: &InferenceHandle,
        request: &PreloadRequest,
    ) -> Result<Made> {
        self.find_cube().await?;
        let lease = inference.cache().lease(self.key().clone());
        let known = self.read_context(inference, &request.conversation, Vec::new()).await?;
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
        let window_tokens = inference.facts().window_tokens;
        let wanted = Wanted {
            preamble: request.preamble.clone(),
            turns: request.turns.clone(),
            message: None,
            memories,
            // A quarter is left for what is said and answered.
            tokens_max: window_tokens / 4 * 3,
            now_ms: self.cubes().environment().unix_ms(),
        };
        let due = known.record.as_ref().and_then(|record| context::rebuild(record, window_tokens));
        let laid = self.lay_out(inference, &request.conversation, wanted, &known, due).await?;
        let made = self.make(inference, lease, laid, known.version).await?;
        Ok(Made { rebuilt: due, ..made })
    }

    /// Brings a cold cube into RAM. That revokes all leases, because nobody knows what was
    /// forgotten before, and so comes before one is taken.
    async fn find_cube(&self) -> Result<()> {
        self.in_time(self.cubes().find(self.key())).await
    }

    /// Asks the cube for a context, and for the rows of blocks.
    async fn read_context(
        &self,
        inference: &InferenceHandle,
        conversation: &ConversationId,
        blocks: Vec<BlockKey>,
    ) -> Result<ContextAnswer> {
        let model = inference.facts().fingerprint.model.clone();
        let query = ContextQuery { conversation: conversation.clone(), model, blocks };
        let call = CubeCall::Context(Box::new(query));
        let CubeAnswer::Context(answer) = self.call("context", call).await? else {
            return Err(unexpected_reply());
        };
        Ok(*answer)
    }

    /// Lays a prompt out, off the event loop: it may be long, and has to be cut into tokens.
    async fn lay_out(
        &self,
        inference: &InferenceHandle,
        conversation: &ConversationId,
        wanted: Wanted,
        known: &ContextAnswer,
        due: Option<Rebuild>,
    ) -> Result<Layout> {
        let (engine, conversation) = (Arc::clone(inference.engine()), conversation.clone());
        let (record, items) = (known.record.clone(), known.items.clone());
        let laid = self.cubes().environment().compute(move || match (&record, due) {
            (Some(record), Some(_)) => {
                context::lay_out_anew(&conversation, record, &items, &wanted, &*engine)
            }
            (record, _) => {
                let known = record.as_ref().map(|record| (record, items.as_slice()));
                context::lay_out(&conversation, known, &wanted, &*engine)
            }
        });
        let laid = laid.await.ok_or_else(|| Error::internal("making a prompt panicked"))?;
        laid.map_err(|error| Error::unavailable(error.to_string()))
    }

    /// Cuts a prompt into blocks, and asks which of them are stored.
    async fn make(
        &self,
        inference: &InferenceHandle,
        lease: Lease,
        mut layout: Layout,
        version: Version,
    ) -> Result<Made> {
        let prompt = std::mem::take(&mut layout.prompt);
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
            let answer = self.read_context(inference, &conversation, keys).await?;
            stored.extend(answer.blocks.into_iter().map(|row| (row.key, row)));
        }
        let (recall_us, rebuilt) = (0, None);
        Ok(Made { lease, layout, chain, stored, version, is_local, recall_us, rebuilt })
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
                let stored = cache.store(&self.key().tenant, block, Arc::clone(numbers)).await;
                match stored {
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
