//! Append-only contexts: `[preamble][preloaded memories][turns] + [missing memories][new turn]`.
//! Pure.
//!
//! Invariant: a context only grows at its end, so that what was computed for it is an exact prefix
//! of the next prompt. Only memories that were computed ahead go again when they are of no use
//! after all: from the very end at once, from before the last turns in idle time. It is laid out
//! anew only where something in it is gone: a memory, a turn that the caller no longer sends, or
//! room in the window.

mod messages;
mod plan;
mod record;

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use memcube_schemas::{
    ConversationId, MemoryId, ModelId,
    activation::{BlockSource, ContextMemory, ContextRecord, ContextSegment, NEVER_WANTED},
    conversation::Role,
    memory::MemoryItem,
};

pub(crate) use self::plan::{Part, Plan};
pub use self::record::{Rebuild, rebuild};
pub(crate) use self::{
    messages::{Messages, Wording},
    record::{fits, is_same, replied, take_out},
};
use self::{
    plan::{Placed, begin, current, resume},
    record::digest,
};

use crate::inference::{
    activation_cache::Prompt,
    engine::{ChatMessage, Engine, EngineResult, Rendered, Token},
};

/// What stands above memories in a prompt.
pub const HEADING: &str = "What you remember:\n";
/// Turns after which a memory that nobody had a use for counts as stale.
const STALE_AFTER_TURNS: u32 = 8;

/// Something that was said in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTurn {
    /// By whom.
    pub role: Role,
    /// What.
    pub text: String,
    /// The whole message as JSON, as its caller wrote it, for models that understand more than
    /// text: calls of tools and their results, names. Others read `text` only.
    pub wire: Option<Arc<str>>,
}

impl ChatTurn {
    /// A turn that is text and nothing else.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, text: text.into(), wire: None }
    }

    /// The same with the message as its caller wrote it.
    #[must_use]
    pub fn with_wire(mut self, wire: impl Into<Arc<str>>) -> Self {
        self.wire = Some(wire.into());
        self
    }
}

/// What a prompt is to hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) preamble: String,
    pub(crate) turns: Vec<ChatTurn>,
    /// The new turn; `None` for what is computed ahead.
    pub(crate) message: Option<ChatTurn>,
    /// Memories that this turn has a use for, best first.
    pub(crate) memories: Vec<Arc<MemoryItem>>,
    /// Whether these are all: what was computed ahead for others is not needed then.
    pub(crate) is_complete: bool,
    /// Tokens that the prompt may have.
    pub(crate) tokens_max: usize,
    pub(crate) now_ms: i64,
}

/// A memory in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedMemory {
    /// Which, and as of which revision.
    pub source: BlockSource,
    /// Whether it stood in the context before this turn.
    pub was_preloaded: bool,
    /// Whether this turn has a use for it, as far as recall can tell.
    pub is_wanted: bool,
}

/// A prompt, and the context that it leaves behind.
#[derive(Debug, Clone)]
pub(crate) struct Layout<P = Prompt> {
    pub(crate) prompt: P,
    /// The context up to and with the new turn.
    pub(crate) record: ContextRecord,
    pub(crate) memories: Vec<UsedMemory>,
    /// Memories that found no room.
    pub(crate) left_out: Vec<MemoryId>,
    /// Turns that found no room.
    pub(crate) turns_left_out: usize,
}

impl<P> Layout<P> {
    /// The prompt, and the rest.
    pub(crate) fn take_prompt(self) -> (P, Layout<()>) {
        let Self { prompt, record, memories, left_out, turns_left_out } = self;
        (prompt, Layout { prompt: (), record, memories, left_out, turns_left_out })
    }

    /// The same with another prompt.
    pub(crate) fn with<Q>(self, prompt: Q) -> Layout<Q> {
        let Self { prompt: _, record, memories, left_out, turns_left_out } = self;
        Layout { prompt, record, memories, left_out, turns_left_out }
    }
}

/// Makes of the parts of a context what a model reads, and counts its tokens.
pub(crate) trait Renderer {
    /// What one part becomes.
    type Laid;
    /// What all of them become.
    type Prompt;

    /// Whose tokens are counted.
    fn model(&self) -> &ModelId;

    /// One part; tells every memory in it how many tokens it takes.
    fn lay(&self, part: &mut Part, is_first: bool) -> EngineResult<Self::Laid>;

    /// Tokens of a part.
    fn tokens(&self, laid: &Self::Laid) -> usize;

    /// Tokens between the last part and a reply.
    fn opening_tokens(&self) -> usize;

    /// One prompt of all parts, so many of which are one run; with what opens a reply, if one is
    /// asked for.
    fn join(
        &self,
        conversation: &ConversationId,
        plan: &Plan,
        laid: Vec<Self::Laid>,
        is_answered: bool,
    ) -> Self::Prompt;
}

/// Lays out the next prompt on top of what is known of the conversation.
///
/// # Errors
/// What the tokenizer says.
pub(crate) fn lay_out<R: Renderer + ?Sized>(
    conversation: &ConversationId,
    known: Option<(&ContextRecord, &[Arc<MemoryItem>])>,
    wanted: &Wanted,
    renderer: &R,
) -> EngineResult<Layout<R::Prompt>> {
    let mut plan = match known {
        Some((record, items)) => resume(record, items, wanted),
        None => begin(wanted, 0),
    };
    if wanted.is_complete {
        let ids = wanted.memories.iter().map(|item| item.id).collect();
        plan.cut_end(&ids, wanted.message.is_none());
    }
    match &wanted.message {
        Some(message) => {
            plan.want(&wanted.memories);
            plan.parts.push(Part::Turn(message.clone()));
        }
        None => {
            plan.take_back();
            plan.expect(&wanted.memories);
        }
    }
    finish(conversation, plan, wanted, renderer)
}

/// Lays a context out anew: the memories that are still of use, then all turns, as one run.
///
/// # Errors
/// What the tokenizer says.
pub(crate) fn lay_out_anew<R: Renderer + ?Sized>(
    conversation: &ConversationId,
    record: &ContextRecord,
    items: &[Arc<MemoryItem>],
    wanted: &Wanted,
    renderer: &R,
) -> EngineResult<Layout<R::Prompt>> {
    let turn = record.turn;
    let is_of_use = |memory: &&ContextMemory| {
        memory.wanted_at != NEVER_WANTED && memory.wanted_at + STALE_AFTER_TURNS >= turn
    };
    let kept = record.memories().filter(is_of_use);
    let mut placed: Vec<Placed> = kept.filter_map(|memory| current(memory, items)).collect();
    placed.sort_by_key(|memory| memory.item.id);
    let mut plan = begin(wanted, turn);
    if !placed.is_empty() {
        plan.parts.insert(1, Part::Memories(placed));
    }
    plan.sealed = plan.parts.len();
    plan.expect(&wanted.memories);
    finish(conversation, plan, wanted, renderer)
}

/// The tokens of a part, and which of them come from which memory.
#[derive(Default)]
pub(crate) struct Laid {
    tokens: Vec<Token>,
    memories: Vec<(Range<usize>, BlockSource)>,
    /// Where the opening of a reply ends, if it is one.
    opening: Option<usize>,
}

fn lay<E: Engine + ?Sized>(part: &mut Part, is_first: bool, engine: &E) -> EngineResult<Laid> {
    let message = |role: Role, pieces: Vec<String>| ChatMessage { role, pieces };
    match part {
        Part::Preamble(text) if text.is_empty() => Ok(Laid::default()),
        Part::Preamble(text) => {
            let rendered = engine.render(&message(Role::System, vec![text.clone()]), is_first)?;
            Ok(Laid { tokens: rendered.tokens, ..Laid::default() })
        }
        Part::Memories(memories) => {
            let lines = memories.iter().map(|placed| format!("- {}\n", placed.item.text));
            let pieces = [HEADING.to_owned()].into_iter().chain(lines).collect();
            let Rendered { tokens, piece_ends } =
                engine.render(&message(Role::System, pieces), is_first)?;
            let spans = piece_ends.windows(2).map(|ends| ends[0]..ends[1]);
            let mut spanned = Vec::with_capacity(memories.len());
            for (placed, span) in memories.iter_mut().zip(spans) {
                placed.tokens = span.len();
                spanned.push((span, source(&placed.item)));
            }
            Ok(Laid { tokens, memories: spanned, opening: None })
        }
        // As it was when it was said: behind the opening, before the closing.
        Part::Turn(turn) if turn.role == Role::Assistant => {
            let mut tokens = engine.open_reply();
            let opening = Some(tokens.len());
            tokens.extend(engine.tokenize(&turn.text)?);
            tokens.extend(engine.close_reply());
            Ok(Laid { tokens, memories: Vec::new(), opening })
        }
        Part::Turn(turn) => {
            let rendered = engine.render(&message(turn.role, vec![turn.text.clone()]), is_first)?;
            Ok(Laid { tokens: rendered.tokens, ..Laid::default() })
        }
    }
}

impl<E: Engine + ?Sized> Renderer for E {
    type Laid = Laid;
    type Prompt = Prompt;

    fn model(&self) -> &ModelId {
        &self.facts().fingerprint.model
    }

    fn lay(&self, part: &mut Part, is_first: bool) -> EngineResult<Laid> {
        lay(part, is_first, self)
    }

    fn tokens(&self, laid: &Laid) -> usize {
        laid.tokens.len()
    }

    fn opening_tokens(&self) -> usize {
        self.open_reply().len()
    }

    fn join(
        &self,
        conversation: &ConversationId,
        plan: &Plan,
        laid: Vec<Laid>,
        is_answered: bool,
    ) -> Prompt {
        let opening = if is_answered { self.open_reply() } else { Vec::new() };
        let mut prompt = join(&laid, plan.sealed, &opening);
        let turns = plan.parts.iter().position(|part| matches!(part, Part::Turn(_)));
        let before = |first: usize| laid[..first].iter().map(|part| part.tokens.len()).sum();
        prompt.turns = turns.map(|first| (before(first), conversation.clone()));
        prompt
    }
}

fn lay_all<R: Renderer + ?Sized>(plan: &mut Plan, renderer: &R) -> EngineResult<Vec<R::Laid>> {
    let mut is_first = true;
    let mut laid = Vec::with_capacity(plan.parts.len());
    for part in &mut plan.parts {
        let part = renderer.lay(part, is_first)?;
        is_first &= renderer.tokens(&part) == 0;
        laid.push(part);
    }
    Ok(laid)
}

fn source(item: &MemoryItem) -> BlockSource {
    BlockSource { id: item.id, revision: item.revision }
}

/// Makes a plan fit, and a prompt of it.
fn finish<R: Renderer + ?Sized>(
    conversation: &ConversationId,
    mut plan: Plan,
    wanted: &Wanted,
    renderer: &R,
) -> EngineResult<Layout<R::Prompt>> {
    let is_answered = wanted.message.is_some();
    let opening = if is_answered { renderer.opening_tokens() } else { 0 };
    let ids: BTreeSet<MemoryId> = wanted.memories.iter().map(|item| item.id).collect();
    let (mut left_out, mut turns_left_out) = (Vec::new(), 0);
    let mut laid = lay_all(&mut plan, renderer)?;
    let count =
        |laid: &[R::Laid]| laid.iter().map(|part| renderer.tokens(part)).sum::<usize>() + opening;
    let mut tokens = count(&laid);
    if tokens > wanted.tokens_max {
        // Some room is left for the next turns, which would otherwise have to do it again.
        let aim = wanted.tokens_max / 4 * 3;
        while tokens > aim {
            match plan.drop_oldest_memory(&ids) {
                Some((id, gone)) => {
                    left_out.push(id);
                    tokens = tokens.saturating_sub(gone);
                }
                None => break,
            }
        }
        laid = lay_all(&mut plan, renderer)?;
        while count(&laid) > wanted.tokens_max {
            let gone = plan.drop_oldest_turn();
            if gone == 0 {
                break;
            }
            turns_left_out += gone;
            laid = lay_all(&mut plan, renderer)?;
        }
        plan.sealed = plan.parts.len().saturating_sub(usize::from(is_answered));
    }
    let tokens = count(&laid);
    let prompt = renderer.join(conversation, &plan, laid, is_answered);
    let memories = plan.placed().map(|placed| UsedMemory {
        source: source(&placed.item),
        was_preloaded: placed.was_preloaded,
        is_wanted: ids.contains(&placed.item.id),
    });
    let memories = memories.collect();
    let record = ContextRecord {
        conversation: conversation.clone(),
        model: renderer.model().clone(),
        segments: plan.parts.iter().map(segment).collect(),
        sealed: number(plan.sealed),
        turn: plan.turn,
        tokens: number(tokens),
        used_at_ms: wanted.now_ms,
    };
    Ok(Layout { prompt, record, memories, left_out, turns_left_out })
}

/// One prompt of all parts. Behind the sealed ones, every part ends a block. The opening of a reply
/// belongs to the turn before it, because an earlier prompt ended there.
fn join(laid: &[Laid], sealed: usize, opening: &[Token]) -> Prompt {
    let mut prompt = Prompt::default();
    for (at, part) in laid.iter().enumerate() {
        let start = prompt.tokens.len();
        if at >= sealed {
            let is_reply = part.opening.filter(|_| at > sealed);
            prompt.seams.push(start + is_reply.unwrap_or(0));
        }
        let moved = |(span, source): &(Range<usize>, BlockSource)| {
            (span.start + start..span.end + start, *source)
        };
        prompt.memories.extend(part.memories.iter().map(moved));
        prompt.tokens.extend_from_slice(&part.tokens);
    }
    prompt.tokens.extend_from_slice(opening);
    prompt
}

fn segment(part: &Part) -> ContextSegment {
    match part {
        Part::Preamble(text) => ContextSegment::Preamble(digest(text)),
        Part::Memories(memories) => {
            let memory = |placed: &Placed| ContextMemory {
                source: source(&placed.item),
                tokens: number(placed.tokens),
                wanted_at: placed.wanted_at,
            };
            ContextSegment::Memories(memories.iter().map(memory).collect())
        }
        Part::Turn(turn) => ContextSegment::Turn(turn.role, digest(&turn.text)),
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
