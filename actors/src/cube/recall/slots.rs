//! Which item stands in which slot of the arrays, and who its neighbours are.

use std::collections::{BTreeMap, BTreeSet};

use memcube_schemas::MemoryId;

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Slots of items, linked in the order in which they were said. A removed item leaves a dead slot,
/// until the index is rebuilt.
///
/// Invariant: links depend only on the live items, never on the order in which they came and went.
/// An item is linked behind its predecessor if both are live and no older item follows it.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) ids: Vec<MemoryId>,
    pub(crate) is_live: Vec<bool>,
    previous: Vec<u32>,
    next: Vec<u32>,
    by_id: BTreeMap<MemoryId, u32>,
    /// Whom each live item was said after.
    predecessors: BTreeMap<MemoryId, MemoryId>,
    /// The same turned round: predecessor and follower.
    followers: BTreeSet<(MemoryId, MemoryId)>,
    dead: usize,
}

impl Slots {
    /// Puts together what a snapshot held: items in the order of their ids, whom they were said
    /// after, and which of them have left since.
    pub(crate) fn restore(
        ids: Vec<MemoryId>,
        predecessors: &[Option<MemoryId>],
        is_live: Vec<bool>,
    ) -> Self {
        let live = || (0..ids.len()).filter(|slot| is_live[*slot]);
        let by_id = live().map(|slot| (ids[slot], slot as u32)).collect();
        let follows = |slot: usize| predecessors[slot].map(|previous| (ids[slot], previous));
        let predecessors: BTreeMap<_, _> = live().filter_map(follows).collect();
        let mut pairs: Vec<_> =
            predecessors.iter().map(|(id, previous)| (*previous, *id)).collect();
        pairs.sort_unstable();
        let dead = ids.len() - live().count();
        let mut slots = Self {
            previous: vec![NONE; ids.len()],
            next: vec![NONE; ids.len()],
            ids,
            is_live,
            by_id,
            predecessors,
            followers: BTreeSet::new(),
            dead,
        };
        for same in pairs.chunk_by(|left, right| left.0 == right.0) {
            let (previous, oldest) = same[0];
            if let (Some(previous), Some(next)) = (slots.slot(previous), slots.slot(oldest)) {
                slots.next[previous as usize] = next;
                slots.previous[next as usize] = previous;
            }
        }
        slots.followers = pairs.into_iter().collect();
        slots
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn live(&self) -> usize {
        self.ids.len() - self.dead
    }

    pub(crate) fn dead(&self) -> usize {
        self.dead
    }

    pub(crate) fn slot(&self, id: MemoryId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Whom a live item was said after.
    pub(crate) fn predecessor(&self, id: MemoryId) -> Option<MemoryId> {
        self.predecessors.get(&id).copied()
    }

    /// Whom each live item was said after.
    pub(crate) const fn predecessors(&self) -> &BTreeMap<MemoryId, MemoryId> {
        &self.predecessors
    }

    /// Appends an item behind the one that was said before it.
    pub(crate) fn push(&mut self, id: MemoryId, previous: Option<MemoryId>) -> u32 {
        let slot = u32::try_from(self.ids.len()).unwrap_or(NONE);
        self.ids.push(id);
        self.is_live.push(true);
        self.previous.push(NONE);
        self.next.push(NONE);
        self.by_id.insert(id, slot);
        if let Some(previous) = previous {
            self.predecessors.insert(id, previous);
            self.followers.insert((previous, id));
            self.link(previous);
        }
        self.link(id);
        slot
    }

    /// Takes an item out; its neighbours are cut apart, as if it had never been said.
    pub(crate) fn remove(&mut self, id: MemoryId) -> Option<u32> {
        let slot = self.by_id.remove(&id)?;
        let next = std::mem::replace(&mut self.next[slot as usize], NONE);
        if next != NONE {
            self.previous[next as usize] = NONE;
        }
        self.previous[slot as usize] = NONE;
        self.is_live[slot as usize] = false;
        self.dead += 1;
        if let Some(previous) = self.predecessors.remove(&id) {
            self.followers.remove(&(previous, id));
            self.link(previous);
        }
        Some(slot)
    }

    /// Links an item with its oldest follower, if both are live.
    fn link(&mut self, id: MemoryId) {
        let Some(slot) = self.slot(id) else { return };
        let first = (id, MemoryId::from_bytes([0; 16]));
        let follower = self.followers.range(first..).next().filter(|(of, _)| *of == id);
        let follower = follower.and_then(|(_, follower)| self.slot(*follower)).unwrap_or(NONE);
        let former = std::mem::replace(&mut self.next[slot as usize], follower);
        if former != NONE && former != follower {
            self.previous[former as usize] = NONE;
        }
        if follower != NONE {
            self.previous[follower as usize] = slot;
        }
    }

    /// The slots before and behind this one: one and two steps away, nearest first.
    pub(crate) fn window(&self, slot: u32) -> [u32; 4] {
        let step =
            |links: &[u32], from: u32| if from == NONE { NONE } else { links[from as usize] };
        let previous = step(&self.previous, slot);
        let next = step(&self.next, slot);
        [previous, next, step(&self.previous, previous), step(&self.next, next)]
    }
}
