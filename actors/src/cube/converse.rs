//! A turn of a chat that is remembered: the reply as it comes, then the turn as memories, and only
//! then the end. What the next turn will begin with is computed when nobody waits.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use memcube_schemas::{
    ConversationId, RequestId,
    conversation::{Message, Role},
    limits::{MESSAGE_BYTES_MAX, REPLY_MS_DEFAULT, TOP_K_MAX},
    memory::MemoryItem,
};
use tokio::time::timeout;

use super::{
    AddOutcome, AddRequest, ChatOpening, ChatRequest, ChatStream, CubeHandle, PreloadRequest,
    PromptSoFar, SearchRequest, context::ChatTurn,
};
use crate::{
    error::{Error, ErrorKind, Result},
    inference::{FinishReason, Finished, ReplyEvent, Reuse},
    scheduler::{AnsweredTurn, SceneKey, SchedulerHandle},
};

/// How often a turn is written again whose write failed for now.
const WRITE_TRIES_MAX: u32 = 4;
/// Milliseconds before the first further try; they double with each one.
const WRITE_BACK_OFF_MS: u64 = 100;
/// Milliseconds that the end of a turn waits for what was computed to be kept, besides the write of
/// the turn itself.
const KEPT_WAIT_MS_MAX: u64 = 5_000;
/// Memories of the conversation itself that a search may find in vain, at the most.
const SAID_HITS_MAX: usize = 256;

/// One turn of a chat, and what becomes of it.
#[derive(Debug, Clone)]
pub struct ConverseRequest {
    /// What is said, and how it is answered.
    pub chat: ChatRequest,
    /// Whether the turn becomes memories, and what was computed for it is kept beyond this process.
    pub remember: bool,
    /// Names the turn, so that it is remembered once, however often it is sent. Drawn if left out.
    pub request: Option<RequestId>,
}

impl ConverseRequest {
    /// A turn that is remembered.
    #[must_use]
    pub const fn new(chat: ChatRequest) -> Self {
        Self { chat, remember: true, request: None }
    }
}

/// What comes of a turn, in order.
#[derive(Debug, Clone)]
pub enum TurnEvent {
    /// More text.
    Text(String),
    /// More of the tools that the model calls: a JSON array, as `delta.tool_calls` of OpenAI's
    /// wire.
    ToolCalls(Arc<str>),
    /// The end. The turn is durable.
    Finished(Box<FinishedTurn>),
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedTurn {
    /// Why the reply ended.
    pub reason: FinishReason,
    /// Where the prompt's tokens came from.
    pub reuse: Reuse,
    /// Tokens of the reply.
    pub reply_tokens: usize,
    /// What was remembered of the turn; nothing if that was not wanted, or an earlier try of the
    /// same turn did it.
    pub remembered: Option<AddOutcome>,
    /// Microseconds from the request to the first token, recall included.
    pub first_token_us: u64,
    /// Microseconds from the request to now.
    pub total_us: u64,
}

/// A turn as it comes. Whoever drops it before the end stops the model, and nothing of the turn is
/// remembered.
#[derive(Debug)]
pub struct TurnStream {
    cube: CubeHandle,
    stream: ChatStream,
    /// What is written at the end.
    turn: Option<Turn>,
    start_us: u64,
    /// When the model was asked.
    asked_us: u64,
    answering: Option<Answering>,
}

/// Tells the scheduler that a turn is being answered, and whether it was.
#[derive(Debug)]
struct Answering {
    scheduler: SchedulerHandle,
    scene: SceneKey,
    is_over: bool,
}

impl Answering {
    /// A turn begins; `None` without a scheduler.
    fn begin(cube: &CubeHandle, conversation: &ConversationId) -> Option<Self> {
        let scheduler = cube.cubes().scheduler()?.clone();
        let scene = SceneKey { cube: cube.key().clone(), conversation: conversation.clone() };
        scheduler.begins(&scene);
        Some(Self { scheduler, scene, is_over: false })
    }

    fn answered(mut self, turn: AnsweredTurn) {
        self.is_over = true;
        self.scheduler.answered(&self.scene, turn);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.is_over {
            self.scheduler.broke_off(&self.scene);
        }
    }
}

/// What was said, for when it is remembered.
#[derive(Debug)]
struct Turn {
    chat: ChatRequest,
    said_at: String,
    /// The name of the write.
    request: RequestId,
    /// Whether the caller chose the name.
    is_named: bool,
}

impl TurnStream {
    /// What is known before the first token.
    #[must_use]
    pub const fn opening(&self) -> &ChatOpening {
        self.stream.opening()
    }

    /// What comes next; `None` after the end or an error.
    pub async fn next(&mut self) -> Option<Result<TurnEvent>> {
        match self.stream.next().await? {
            Ok(ReplyEvent::Text(text)) => Some(Ok(TurnEvent::Text(text))),
            Ok(ReplyEvent::ToolCalls(calls)) => Some(Ok(TurnEvent::ToolCalls(calls))),
            Ok(ReplyEvent::Finished(finished)) => Some(self.finish(*finished).await),
            Err(error) => Some(Err(error)),
        }
    }

    /// Reads the text of the reply to its end; calls of tools are left out.
    ///
    /// # Errors
    /// What went wrong on the way.
    pub async fn collect(&mut self) -> Result<(String, FinishedTurn)> {
        let mut reply = String::new();
        while let Some(event) = self.next().await {
            match event? {
                TurnEvent::Text(text) => reply.push_str(&text),
                TurnEvent::ToolCalls(_) => {}
                TurnEvent::Finished(finished) => return Ok((reply, *finished)),
            }
        }
        Err(Error::unavailable("the language model has ended; restart memcube"))
    }

    async fn finish(&mut self, finished: Finished) -> Result<TurnEvent> {
        let mut remembered = None;
        if let Some(turn) = self.turn.take() {
            let reply = self.stream.text.clone();
            let keeping = self.stream.keeping.take();
            let kept = async move {
                match keeping {
                    Some(keeping) => matches!(keeping.await, Ok(Ok(_))),
                    None => false,
                }
            };
            let kept = kept.boxed().shared();
            // A next turn that comes at once finds what this one leaves behind.
            let soon = timeout(Duration::from_millis(KEPT_WAIT_MS_MAX), kept.clone());
            let (written, _) = tokio::join!(self.write(&turn, &reply), soon);
            remembered = written.map_err(|error| {
                error.with_note("the reply is complete, but the turn is not remembered")
            })?;
            // How the caller will write down calls of tools, nobody knows yet.
            if finished.reason != FinishReason::ToolCalls {
                self.prepare_next(turn.chat, ChatTurn::new(Role::Assistant, reply), kept);
            }
        }
        let Finished { reason, reuse, timings, .. } = finished;
        let now_us = self.cube.cubes().environment().monotonic_us();
        Ok(TurnEvent::Finished(Box::new(FinishedTurn {
            reason,
            reuse,
            reply_tokens: timings.reply_tokens,
            remembered,
            first_token_us: self.asked_us.saturating_sub(self.start_us) + timings.first_token_us,
            total_us: now_us.saturating_sub(self.start_us),
        })))
    }

    /// Makes memories of the turn. A write whose outcome nobody knows is sent again under the same
    /// name.
    async fn write(&self, turn: &Turn, reply: &str) -> Result<Option<AddOutcome>> {
        let Turn { chat, said_at, request, is_named } = turn;
        let message = |role: Role, content: &str| Message {
            role,
            speaker: None,
            content: content.to_owned(),
            chat_time: Some(said_at.clone()),
            message_id: None,
        };
        let said = [(chat.message.role, chat.message.text.as_str()), (Role::Assistant, reply)];
        let said = said.into_iter().filter(|(role, text)| {
            matches!(role, Role::User | Role::Assistant) && !text.trim().is_empty()
        });
        let messages: Vec<Message> = said.map(|(role, text)| message(role, text)).collect();
        if messages.is_empty() {
            return Ok(None);
        }
        let add = AddRequest {
            messages,
            conversation: Some(chat.conversation.clone()),
            request: Some(request.clone()),
            ..AddRequest::default()
        };
        let mut tries = 0;
        loop {
            let error = match self.cube.add(add.clone()).await {
                Ok(outcome) => return Ok(Some(outcome)),
                // The same turn was answered before, perhaps in other words.
                Err(error) if *is_named && error.kind() == ErrorKind::Conflict => return Ok(None),
                Err(error) => error,
            };
            tries += 1;
            if tries >= WRITE_TRIES_MAX || !is_worth_another_try(&error) {
                return Err(error);
            }
            let wait_ms = error.retry_after().unwrap_or(0).max(WRITE_BACK_OFF_MS << tries);
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// Leaves the next turn to the scheduler; without one, computes what was said on top of what is
    /// kept, behind everybody who waits for an answer.
    fn prepare_next(
        &mut self,
        chat: ChatRequest,
        reply: ChatTurn,
        kept: impl Future<Output = bool> + Send + 'static,
    ) {
        let cube = self.cube.clone();
        let ChatRequest { conversation, preamble, mut turns, message, .. } = chat;
        turns.push(message);
        turns.push(reply);
        let answering = self.answering.take();
        let used = self.stream.opening().memories.clone();
        self.cube.cubes().environment().spawn(async move {
            // Without what the reply leaves behind there is nothing to add to.
            if !kept.await {
                return;
            }
            if let Some(answering) = answering {
                let prompt = PromptSoFar { preamble: preamble.into(), turns: Arc::new(turns) };
                answering.answered(AnsweredTurn { prompt, used });
                return;
            }
            let (memories, ms_max) = (Vec::new(), REPLY_MS_DEFAULT);
            let preload = PreloadRequest { conversation, preamble, turns, memories, ms_max };
            if let Err(error) = cube.preload(preload).await {
                tracing::debug!(cube = %cube.id(), %error, "a turn was not computed ahead");
            }
        });
    }
}

impl CubeHandle {
    /// Answers a turn of a chat out of the cube's memories, and remembers the turn. The reply ends
    /// once the turn is durable. Whoever drops the stream before stops the model, and nothing of
    /// the turn is remembered.
    ///
    /// # Errors
    /// As `chat`; `Invalid` when the message is too long to be remembered.
    pub async fn converse(&self, request: ConverseRequest) -> Result<TurnStream> {
        let ConverseRequest { chat, remember, request } = request;
        let environment = self.cubes().environment();
        let start_us = environment.monotonic_us();
        let bytes = chat.message.text.len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the message has {bytes} bytes, the limit is {MESSAGE_BYTES_MAX}; cut it"
            )));
        }
        let turn = if remember {
            let is_named = request.is_some();
            let drawn = || RequestId::new(format!("turn-{:032x}", environment.random_u128()));
            let request = request.map_or_else(drawn, Ok)?;
            let said_at = jiff::Timestamp::from_millisecond(environment.unix_ms());
            let said_at = said_at.map(|at| at.to_string()).unwrap_or_default();
            Some(Turn { chat: chat.clone(), said_at, request, is_named })
        } else {
            None
        };
        let answering = Answering::begin(self, &chat.conversation);
        let mut stream = self.chat(chat).await?;
        if !remember {
            // Nothing of the turn is left for the next one but what RAM happens to hold.
            stream.after = None;
        }
        let asked_us = stream.asked_us;
        Ok(TurnStream { cube: self.clone(), stream, turn, start_us, asked_us, answering })
    }
}

/// Whether the cube may take what it did not take now.
fn is_worth_another_try(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable)
}

/// The search for a turn: the conversation's own memories stand in the prompt as turns already, so
/// that others are wanted in their place.
pub(super) fn widened(search: &SearchRequest, turns: &[ChatTurn]) -> SearchRequest {
    let top_k = search.top_k.saturating_add(turns.len().min(SAID_HITS_MAX)).min(TOP_K_MAX);
    let token_budget = if turns.is_empty() { search.token_budget } else { None };
    SearchRequest { top_k, token_budget, ..search.clone() }
}

/// What was found but is not said in the turns, as much as was asked for.
pub(super) fn unsaid(
    found: Vec<Arc<MemoryItem>>,
    search: &SearchRequest,
    turns: &[ChatTurn],
) -> Vec<Arc<MemoryItem>> {
    let is_said = |item: &MemoryItem| {
        let first = item.sources.first().map(|source| source.content.as_str());
        first.is_some_and(|words| {
            // One that was changed since says something else than the turn.
            let is_as_said = item.revision == 1 || item.text.contains(words);
            let stands_in = |turn: &ChatTurn| turn.role == item.role && turn.text.contains(words);
            is_as_said && turns.iter().any(stands_in)
        })
    };
    let mut left = search.token_budget.unwrap_or(u32::MAX);
    let unsaid = found.into_iter().filter(|item| !is_said(item));
    let fits = |item: &Arc<MemoryItem>| {
        let after = left.checked_sub(item.tokens);
        left = after.unwrap_or(0);
        after.is_some()
    };
    unsaid.take_while(fits).take(search.top_k).collect()
}
