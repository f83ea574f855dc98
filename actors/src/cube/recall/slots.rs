//! Which item stands in which slot of the arrays, and who its neighbours are.

use std::collections::BTreeMap;

use memcube_schemas::MemoryId;

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Slots of items, linked in the order in which they were said. A removed item leaves a dead slot,
/// until the index is rebuilt.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) ids: Vec<MemoryId>,
    pub(crate) is_live: Vec<bool>,
    pub(crate) previous: Vec<u32>,
    pub(crate) next: Vec<u32>,
    by_id: BTreeMap<MemoryId, u32>,
    dead: usize,
}

impl Slots {
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

    /// Appends an item behind the one that was said before it.
    pub(crate) fn push(&mut self, id: MemoryId, previous: Option<MemoryId>) -> u32 {
        let slot = u32::try_from(self.ids.len()).unwrap_or(NONE);
        // An item that has a successor already keeps it: only a conversation's tail is continued.
        let previous = previous
            .and_then(|id| self.slot(id))
            .filter(|slot| self.next[*slot as usize] == NONE)
            .unwrap_or(NONE);
        self.ids.push(id);
        self.is_live.push(true);
        self.previous.push(previous);
        self.next.push(NONE);
        if previous != NONE {
            self.next[previous as usize] = slot;
        }
        self.by_id.insert(id, slot);
        slot
    }

    /// Takes an item out; its neighbours become each other's.
    pub(crate) fn remove(&mut self, id: MemoryId) -> Option<u32> {
        let slot = self.by_id.remove(&id)?;
        let (previous, next) = (self.previous[slot as usize], self.next[slot as usize]);
        if previous != NONE {
            self.next[previous as usize] = next;
        }
        if next != NONE {
            self.previous[next as usize] = previous;
        }
        self.previous[slot as usize] = NONE;
        self.next[slot as usize] = NONE;
        self.is_live[slot as usize] = false;
        self.dead += 1;
        Some(slot)
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
