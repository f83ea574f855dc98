//! Which parts a context has, and in which order: what is known of it, and what is new. Pure.

use std::{collections::BTreeSet, sync::Arc};

use memcube_schemas::{
    MemoryId,
    activation::{BlockSource, ContextMemory, ContextRecord, ContextSegment},
    conversation::Role,
    memory::MemoryItem,
};

use super::{ChatTurn, Wanted, index, record::digest};

/// Of the memories that may be wanted, so many of the likeliest are parts of their own, and so many
/// of the others are one part: every part takes some tokens for its beginning and its end.
const EXPECTED_ALONE: usize = 4;
const EXPECTED_TOGETHER: usize = 4;

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
    let (item, wanted_at) = (Arc::clone(item), memory.wanted_at);
    Some(Placed { item, wanted_at, was_preloaded: true, tokens: 0 })
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
        let mut missing: Vec<Placed> =
            missing.map(|item| Placed::new(Arc::clone(item), turn)).collect();
        missing.sort_by_key(|placed| placed.item.id);
        missing.dedup_by_key(|placed| placed.item.id);
        if !missing.is_empty() {
            self.parts.push(Part::Memories(missing));
        }
    }

    /// Appends memories that may be wanted, likeliest first, in small parts: of those behind the
    /// last one that turns out to be wanted, nothing is left then.
    pub(super) fn expect(&mut self, memories: &[Arc<MemoryItem>]) {
        let (first, rest) = memories.split_at(memories.len().min(EXPECTED_ALONE));
        for part in first.chunks(1).chain(rest.chunks(EXPECTED_TOGETHER)) {
            self.want(part);
        }
    }

    /// Takes out what stands at the end because it might have been wanted, and is not.
    pub(super) fn drop_unwanted_end(&mut self, wanted: &BTreeSet<MemoryId>) {
        while self.parts.len() > self.sealed
            && let Some(Part::Memories(memories)) = self.parts.last()
            && !memories.iter().any(|placed| wanted.contains(&placed.item.id))
        {
            self.parts.pop();
        }
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
