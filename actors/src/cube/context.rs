//! Append-only contexts: `[preamble][preloaded memories][turns] + [missing memories][new turn]`.
//! Pure.
//!
//! Invariant: a context only grows at its end, so that what was computed for it is an exact prefix
//! of the next prompt. It is laid out anew only where something in it is gone: a memory, a turn
//! that the caller no longer sends, or room in the window.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use memcube_schemas::{
    ConversationId, MemoryId,
    activation::{BlockSource, ContextMemory, ContextRecord, ContextSegment},
    conversation::Role,
    limits::{CONTEXT_MEMORIES_MAX, CONTEXT_SEGMENTS_MAX},
    memory::MemoryItem,
};
use sha2::{Digest, Sha256};

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
pub(crate) struct Layout {
    pub(crate) prompt: Prompt,
    /// The context up to and with the new turn.
    pub(crate) record: ContextRecord,
    pub(crate) memories: Vec<UsedMemory>,
    /// Memories that found no room.
    pub(crate) left_out: Vec<MemoryId>,
    /// Turns that found no room.
    pub(crate) turns_left_out: usize,
}

/// Why a context should be laid out anew when nobody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Most of its memories are of no use any more.
    Stale,
    /// It fills most of the window.
    TooLong,
    /// It consists of many small pieces.
    Scattered,
}

/// Whether a context should be laid out anew when nobody waits, and why.
#[must_use]
pub fn rebuild(record: &ContextRecord, window_tokens: usize) -> Option<Rebuild> {
    /// Segments behind the sealed ones: each ends a block, however short.
    const SCATTERED_MAX: usize = 32;
    let tokens = |memories: &mut dyn Iterator<Item = &ContextMemory>| -> u64 {
        memories.map(|memory| u64::from(memory.tokens)).sum()
    };
    let is_stale = |memory: &&ContextMemory| memory.wanted_at + STALE_AFTER_TURNS < record.turn;
    let all = tokens(&mut record.memories());
    let stale = tokens(&mut record.memories().filter(is_stale));
    if usize::try_from(record.tokens).unwrap_or(usize::MAX) > window_tokens / 4 * 3 {
        Some(Rebuild::TooLong)
    } else if stale * 2 > all {
        Some(Rebuild::Stale)
    } else if record.segments.len().saturating_sub(index(record.sealed)) > SCATTERED_MAX {
        Some(Rebuild::Scattered)
    } else {
        None
    }
}

/// One part of a prompt.
#[derive(Debug, Clone)]
enum Part {
    Preamble(String),
    Memories(Vec<Placed>),
    Turn(ChatTurn),
}

/// A memory and when it was last wanted.
#[derive(Debug, Clone)]
struct Placed {
    item: Arc<MemoryItem>,
    wanted_at: u32,
    was_preloaded: bool,
    tokens: usize,
}

/// A context that is being laid out.
struct Plan {
    parts: Vec<Part>,
    /// So many parts are one run.
    sealed: usize,
    turn: u32,
}

/// Lays out the next prompt on top of what is known of the conversation.
///
/// # Errors
/// What the tokenizer says.
pub(crate) fn lay_out(
    conversation: &ConversationId,
    known: Option<(&ContextRecord, &[Arc<MemoryItem>])>,
    wanted: &Wanted,
    engine: &dyn Engine,
) -> EngineResult<Layout> {
    let mut plan = match known {
        Some((record, items)) => resume(record, items, wanted),
        None => begin(wanted, 0),
    };
    plan.want(&wanted.memories);
    if let Some(message) = &wanted.message {
        plan.parts.push(Part::Turn(message.clone()));
    }
    finish(conversation, plan, wanted, engine)
}

/// Lays a context out anew: the memories that are still of use, then all turns, as one run.
///
/// # Errors
/// What the tokenizer says.
pub(crate) fn lay_out_anew(
    conversation: &ConversationId,
    record: &ContextRecord,
    items: &[Arc<MemoryItem>],
    wanted: &Wanted,
    engine: &dyn Engine,
) -> EngineResult<Layout> {
    let turn = record.turn;
    let kept = record.memories().filter(|memory| memory.wanted_at + STALE_AFTER_TURNS >= turn);
    let mut placed: Vec<Placed> = kept.filter_map(|memory| current(memory, items)).collect();
    let held: BTreeSet<MemoryId> = placed.iter().map(|memory| memory.item.id).collect();
    let new = wanted.memories.iter().filter(|item| !held.contains(&item.id));
    placed.extend(new.map(|item| Placed::new(Arc::clone(item), turn)));
    placed.sort_by_key(|memory| memory.item.id);
    let mut plan = begin(wanted, turn);
    if !placed.is_empty() {
        plan.parts.insert(1, Part::Memories(placed));
    }
    plan.sealed = plan.parts.len();
    finish(conversation, plan, wanted, engine)
}

/// The context after the reply.
pub(crate) fn replied(record: &mut ContextRecord, reply: &str, reply_tokens: usize) {
    record.segments.push(ContextSegment::Turn(Role::Assistant, digest(reply)));
    record.turn += 1;
    record.tokens = record.tokens.saturating_add(number(reply_tokens));
}

/// Whether a record is small enough to be kept.
pub(crate) fn fits(record: &ContextRecord) -> bool {
    record.segments.len() <= CONTEXT_SEGMENTS_MAX
        && record.memories().count() <= CONTEXT_MEMORIES_MAX
}

/// Takes a memory out of a context; returns whether it was in it.
pub(crate) fn take_out(record: &mut ContextRecord, memories: &BTreeSet<MemoryId>) -> bool {
    let before = record.memories().count();
    let mut sealed = index(record.sealed);
    let mut at = 0;
    let mut gone_tokens = 0_u32;
    record.segments.retain_mut(|segment| {
        let place = at;
        at += 1;
        let ContextSegment::Memories(held) = segment else { return true };
        held.retain(|memory| {
            let stays = !memories.contains(&memory.source.id);
            gone_tokens += if stays { 0 } else { memory.tokens };
            stays
        });
        if held.is_empty() && place < index(record.sealed) {
            sealed -= 1;
        }
        !held.is_empty()
    });
    record.sealed = number(sealed);
    record.tokens = record.tokens.saturating_sub(gone_tokens);
    record.memories().count() != before
}

/// The first 16 bytes of the SHA-256 of a text.
fn digest(text: &str) -> [u8; 16] {
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash[..16]);
    digest
}

impl Placed {
    const fn new(item: Arc<MemoryItem>, wanted_at: u32) -> Self {
        Self { item, wanted_at, was_preloaded: false, tokens: 0 }
    }
}

/// A memory of a record as it is now, if it is still what it was.
fn current(memory: &ContextMemory, items: &[Arc<MemoryItem>]) -> Option<Placed> {
    let BlockSource { id, revision } = memory.source;
    let item = items.iter().find(|item| item.id == id && item.revision == revision)?;
    let (item, wanted_at) = (Arc::clone(item), memory.wanted_at);
    Some(Placed { item, wanted_at, was_preloaded: true, tokens: 0 })
}

/// A context that nothing is known of.
fn begin(wanted: &Wanted, turn: u32) -> Plan {
    let preamble = Part::Preamble(wanted.preamble.clone());
    let turns = wanted.turns.iter().cloned().map(Part::Turn);
    let parts: Vec<Part> = [preamble].into_iter().chain(turns).collect();
    Plan { sealed: parts.len(), parts, turn }
}

/// The part of a known context that still holds, and the turns that are new.
fn resume(record: &ContextRecord, items: &[Arc<MemoryItem>], wanted: &Wanted) -> Plan {
    let mut plan = Plan { parts: Vec::new(), sealed: index(record.sealed), turn: record.turn };
    let mut turns = wanted.turns.as_slice();
    for segment in &record.segments {
        match segment {
            ContextSegment::Preamble(known) if *known == digest(&wanted.preamble) => {
                plan.parts.push(Part::Preamble(wanted.preamble.clone()));
            }
            ContextSegment::Preamble(_) => return begin(wanted, record.turn),
            ContextSegment::Memories(memories) => {
                let placed: Vec<Placed> =
                    memories.iter().filter_map(|memory| current(memory, items)).collect();
                if !placed.is_empty() {
                    plan.parts.push(Part::Memories(placed));
                } else if plan.parts.len() < plan.sealed {
                    plan.sealed -= 1;
                }
            }
            ContextSegment::Turn(role, known) => match turns.split_first() {
                Some((turn, rest)) if turn.role == *role && digest(&turn.text) == *known => {
                    plan.parts.push(Part::Turn(turn.clone()));
                    turns = rest;
                }
                // Something else was said from here on.
                Some(_) | None => break,
            },
        }
    }
    plan.sealed = plan.sealed.min(plan.parts.len());
    plan.parts.extend(turns.iter().cloned().map(Part::Turn));
    plan
}

impl Plan {
    fn placed(&mut self) -> impl Iterator<Item = &mut Placed> {
        self.parts.iter_mut().flat_map(|part| match part {
            Part::Memories(memories) => memories.as_mut_slice(),
            Part::Preamble(_) | Part::Turn(_) => &mut [],
        })
    }

    /// Marks memories that are wanted, and appends those that are missing, in the order in which
    /// they were made.
    fn want(&mut self, memories: &[Arc<MemoryItem>]) {
        let turn = self.turn;
        let ids: BTreeSet<MemoryId> = memories.iter().map(|item| item.id).collect();
        let mut held = BTreeSet::new();
        for placed in self.placed().filter(|placed| ids.contains(&placed.item.id)) {
            placed.wanted_at = turn;
            held.insert(placed.item.id);
        }
        let missing = memories.iter().filter(|item| !held.contains(&item.id));
        let mut missing: Vec<Placed> =
            missing.map(|item| Placed::new(Arc::clone(item), turn)).collect();
        missing.sort_by_key(|placed| placed.item.id);
        missing.dedup_by_key(|placed| placed.item.id);
        if !missing.is_empty() {
            self.parts.push(Part::Memories(missing));
        }
    }

    /// Takes the oldest memory out: first of those that nobody wants now.
    fn drop_oldest_memory(&mut self, wanted: &BTreeSet<MemoryId>) -> Option<(MemoryId, usize)> {
        let oldest = self.placed().map(|placed| (wanted.contains(&placed.item.id), placed.item.id));
        let (_, oldest) = oldest.min()?;
        let mut tokens = 0;
        for part in &mut self.parts {
            if let Part::Memories(memories) = part {
                memories.retain(|placed| {
                    let stays = placed.item.id != oldest;
                    tokens += if stays { 0 } else { placed.tokens };
                    stays
                });
            }
        }
        self.parts.retain(|part| !matches!(part, Part::Memories(memories) if memories.is_empty()));
        Some((oldest, tokens))
    }

    /// Takes the oldest turn out, but never the last one.
    fn drop_oldest_turn(&mut self) -> bool {
        let is_turn = |part: &Part| matches!(part, Part::Turn(_));
        if self.parts.iter().filter(|part| is_turn(part)).count() < 2 {
            return false;
        }
        let Some(at) = self.parts.iter().position(is_turn) else { return false };
        self.parts.remove(at);
        true
    }
}

/// The tokens of a part, and which of them come from which memory.
#[derive(Default)]
struct Laid {
    tokens: Vec<Token>,
    memories: Vec<(Range<usize>, BlockSource)>,
    /// Where the opening of a reply ends, if it is one.
    opening: Option<usize>,
}

fn lay(part: &mut Part, is_first: bool, engine: &dyn Engine) -> EngineResult<Laid> {
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

fn lay_all(plan: &mut Plan, engine: &dyn Engine) -> EngineResult<Vec<Laid>> {
    let mut is_first = true;
    let mut laid = Vec::with_capacity(plan.parts.len());
    for part in &mut plan.parts {
        let part = lay(part, is_first, engine)?;
        is_first &= part.tokens.is_empty();
        laid.push(part);
    }
    Ok(laid)
}

fn source(item: &MemoryItem) -> BlockSource {
    BlockSource { id: item.id, revision: item.revision }
}

/// Makes a plan fit, and a prompt of it.
fn finish(
    conversation: &ConversationId,
    mut plan: Plan,
    wanted: &Wanted,
    engine: &dyn Engine,
) -> EngineResult<Layout> {
    let opening = if wanted.message.is_some() { engine.open_reply() } else { Vec::new() };
    let ids: BTreeSet<MemoryId> = wanted.memories.iter().map(|item| item.id).collect();
    let (mut left_out, mut turns_left_out) = (Vec::new(), 0);
    let mut laid = lay_all(&mut plan, engine)?;
    let count = |laid: &[Laid]| laid.iter().map(|part| part.tokens.len()).sum::<usize>();
    let mut tokens = count(&laid) + opening.len();
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
        laid = lay_all(&mut plan, engine)?;
        while count(&laid) + opening.len() > wanted.tokens_max && plan.drop_oldest_turn() {
            turns_left_out += 1;
            laid = lay_all(&mut plan, engine)?;
        }
        let new = usize::from(wanted.message.is_some());
        plan.sealed = plan.parts.len().saturating_sub(new);
    }
    let mut prompt = join(&laid, plan.sealed, &opening);
    let turns = plan.parts.iter().position(|part| matches!(part, Part::Turn(_)));
    prompt.turns = turns.map(|first| (count(&laid[..first]), conversation.clone()));
    let memories = plan.placed().map(|placed| UsedMemory {
        source: source(&placed.item),
        was_preloaded: placed.was_preloaded,
        is_wanted: ids.contains(&placed.item.id),
    });
    let memories = memories.collect();
    let record = ContextRecord {
        conversation: conversation.clone(),
        model: engine.facts().fingerprint.model.clone(),
        segments: plan.parts.iter().map(segment).collect(),
        sealed: number(plan.sealed),
        turn: plan.turn,
        tokens: number(prompt.tokens.len()),
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
