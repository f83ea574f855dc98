//! Which parts a context has, and in which order: what is known of it, and what is new. Pure.

use std::{collections::BTreeSet, sync::Arc};

use memcube_schemas::{
    MemoryId,
    activation::{BlockSource, ContextMemory, ContextRecord, ContextSegment, NEVER_WANTED},
    conversation::Role,
    memory::MemoryItem,
};

use super::{ChatTurn, Wanted, index, record::digest};

/// Of the memories that may be wanted, so many of the likeliest are parts of their own, and so many
/// of the others are one part: every part takes some tokens for its beginning and its end.
const EXPECTED_ALONE: usize = 4;
const EXPECTED_TOGETHER: usize = 4;
/// What a token costs that stays in a context in vain, against one that is computed: whatever is
/// computed behind it attends to it. When a turn has come, little, for idle time takes it back
/// afterwards; ahead of a turn more, for what is computed instead takes nobody's time.
const IN_VAIN_NOW: f64 = 0.1;
const IN_VAIN_AHEAD: f64 = 0.3;
/// Tokens in vain for which everything behind them is computed again in idle time, and how many
/// turns from the end they may stand: in front of more, that takes too long.
const TAKEN_BACK_TOKENS: usize = 32;
const TAKEN_BACK_TURNS: usize = 6;

/// One part of a prompt.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Preamble(String),
    Memories(Vec<Placed>),
    Turn(ChatTurn),
}

/// A memory and when it was last wanted.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) item: Arc<MemoryItem>,
    pub(super) wanted_at: u32,
    pub(super) was_preloaded: bool,
    pub(super) tokens: usize,
}

/// A context that is being laid out.
pub(crate) struct Plan {
    pub(crate) parts: Vec<Part>,
    /// So many parts are one run.
    pub(super) sealed: usize,
    pub(super) turn: u32,
}

impl Placed {
    pub(super) const fn new(item: Arc<MemoryItem>, wanted_at: u32) -> Self {
        Self { item, wanted_at, was_preloaded: false, tokens: 0 }
    }
}

/// A memory of a record as it is now, if it is still what it was.
pub(super) fn current(memory: &ContextMemory, items: &[Arc<MemoryItem>]) -> Option<Placed> {
    let BlockSource { id, revision } = memory.source;
    let item = items.iter().find(|item| item.id == id && item.revision == revision)?;
    let (item, wanted_at, tokens) = (Arc::clone(item), memory.wanted_at, index(memory.tokens));
    Some(Placed { item, wanted_at, was_preloaded: true, tokens })
}

/// A context that nothing is known of.
pub(super) fn begin(wanted: &Wanted, turn: u32) -> Plan {
    let preamble = Part::Preamble(wanted.preamble.clone());
    let turns = wanted.turns.iter().cloned().map(Part::Turn);
    let parts: Vec<Part> = [preamble].into_iter().chain(turns).collect();
    Plan { sealed: parts.len(), parts, turn }
}

/// The part of a known context that still holds, and the turns that are new.
pub(super) fn resume(record: &ContextRecord, items: &[Arc<MemoryItem>], wanted: &Wanted) -> Plan {
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
    pub(super) fn placed(&mut self) -> impl Iterator<Item = &mut Placed> {
        self.parts.iter_mut().flat_map(|part| match part {
            Part::Memories(memories) => memories.as_mut_slice(),
            Part::Preamble(_) | Part::Turn(_) => &mut [],
        })
    }

    /// Marks memories that are wanted, and appends those that are missing, in the order in which
    /// they were made.
    pub(super) fn want(&mut self, memories: &[Arc<MemoryItem>]) {
        let turn = self.turn;
        let ids: BTreeSet<MemoryId> = memories.iter().map(|item| item.id).collect();
        let mut held = BTreeSet::new();
        for placed in self.placed().filter(|placed| ids.contains(&placed.item.id)) {
            placed.wanted_at = turn;
            held.insert(placed.item.id);
        }
        let missing = memories.iter().filter(|item| !held.contains(&item.id));
        let missing: Vec<Arc<MemoryItem>> = missing.cloned().collect();
        self.append(&missing, turn);
    }

    fn append(&mut self, memories: &[Arc<MemoryItem>], wanted_at: u32) {
        let placed = memories.iter().map(|item| Placed::new(Arc::clone(item), wanted_at));
        let mut placed: Vec<Placed> = placed.collect();
        placed.sort_by_key(|placed| placed.item.id);
        placed.dedup_by_key(|placed| placed.item.id);
        if !placed.is_empty() {
            self.parts.push(Part::Memories(placed));
        }
    }

    /// Appends memories that may be wanted, likeliest first, in small parts, so that little is in
    /// vain between those that turn out to be wanted.
    pub(super) fn expect(&mut self, memories: &[Arc<MemoryItem>]) {
        let mut alone = EXPECTED_ALONE.saturating_sub(self.parts.len() - self.end());
        let mut held: BTreeSet<MemoryId> = self.placed().map(|placed| placed.item.id).collect();
        let missing = memories.iter().filter(|item| held.insert(item.id)).cloned();
        let mut missing = missing.collect::<Vec<_>>();
        while !missing.is_empty() {
            let together = if alone > 0 { 1 } else { EXPECTED_TOGETHER };
            alone = alone.saturating_sub(1);
            let rest = missing.split_off(missing.len().min(together));
            self.append(&missing, NEVER_WANTED);
            missing = rest;
        }
    }

    /// Where the end begins: the memories behind everything that was said.
    fn end(&self) -> usize {
        let is_memories = |part: &Part| matches!(part, Part::Memories(_));
        let said = self.parts.iter().rposition(|part| !is_memories(part));
        said.map_or(0, |last| last + 1).max(self.sealed).min(self.parts.len())
    }

    /// Cuts off what stands at the end because it might have been wanted, where keeping it costs
    /// more than computing again what is wanted of it.
    pub(super) fn cut_end(&mut self, wanted: &BTreeSet<MemoryId>, is_ahead: bool) {
        let in_vain = if is_ahead { IN_VAIN_AHEAD } else { IN_VAIN_NOW };
        let end = self.end();
        let (mut worth, mut most, mut stays) = (0.0, 0.0, end);
        for (at, part) in self.parts.iter().enumerate().skip(end) {
            let Part::Memories(memories) = part else { continue };
            for Placed { item, tokens, .. } in memories {
                let value = if wanted.contains(&item.id) { 1.0 } else { -in_vain };
                worth += value * *tokens as f64;
            }
            if worth > most {
                (most, stays) = (worth, at + 1);
            }
        }
        self.parts.truncate(stays);
    }

    /// Takes out what stands before the last turns because it might have been wanted, and was not.
    pub(super) fn take_back(&mut self) {
        let (open, end) = (self.sealed, self.end());
        let mut turns = 0;
        let recent = self.parts.iter().enumerate().skip(open).rev().take_while(|(_, part)| {
            turns += usize::from(matches!(part, Part::Turn(_)));
            turns <= TAKEN_BACK_TURNS
        });
        let Some(first) = recent.last().map(|(at, _)| at) else { return };
        let between = first.min(end)..end;
        let tokens = |part: &Part| -> usize {
            let Part::Memories(memories) = part else { return 0 };
            let in_vain = memories.iter().filter(|placed| placed.wanted_at == NEVER_WANTED);
            in_vain.map(|placed| placed.tokens).sum()
        };
        let all: usize = self.parts[between.clone()].iter().map(tokens).sum();
        if all < TAKEN_BACK_TOKENS {
            return;
        }
        for part in &mut self.parts[between] {
            if let Part::Memories(memories) = part {
                memories.retain(|placed| placed.wanted_at != NEVER_WANTED);
            }
        }
        self.parts.retain(|part| !matches!(part, Part::Memories(memories) if memories.is_empty()));
    }

    /// Takes the oldest memory out: first of those that nobody wants now.
    pub(super) fn drop_oldest_memory(
        &mut self,
        wanted: &BTreeSet<MemoryId>,
    ) -> Option<(MemoryId, usize)> {
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

    /// Takes the oldest turn out, and the results of tools that it called, but never the last one.
    /// Returns how many went.
    pub(super) fn drop_oldest_turn(&mut self) -> usize {
        let said = |part: &Part| match part {
            Part::Turn(turn) => Some(turn.role),
            Part::Preamble(_) | Part::Memories(_) => None,
        };
        let turns = self.parts.iter().enumerate().filter_map(|(at, part)| Some((at, said(part)?)));
        let turns: Vec<(usize, Role)> = turns.collect();
        let Some(rest) = turns.get(1..turns.len().saturating_sub(1)) else { return 0 };
        // Nobody understands a result without its call.
        let results = rest.iter().take_while(|(_, role)| *role == Role::Tool).count();
        for (at, _) in turns.iter().take(1 + results).rev() {
            self.parts.remove(*at);
        }
        1 + results
    }
}
