//! What a turn needed of what was prepared for it. Pure.

use std::collections::BTreeMap;

use memcube_schemas::{MemoryId, scene::SceneOutcome};

use crate::cube::UsedMemory;

/// What was prepared for a turn, since the one before it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Prepared {
    /// Memories that were planned, with their tokens.
    pub(crate) planned: BTreeMap<MemoryId, u32>,
    /// Those of them that were put in place.
    pub(crate) loaded: BTreeMap<MemoryId, u32>,
}

/// Compares what was prepared with what was used.
pub(crate) fn settle(prepared: &Prepared, used: &[UsedMemory]) -> SceneOutcome {
    let mut outcome = SceneOutcome::default();
    let mut needed = Vec::new();
    for memory in used.iter().filter(|memory| memory.is_wanted) {
        let id = memory.source.id;
        needed.push(id);
        match (prepared.planned.get(&id), memory.was_preloaded) {
            (Some(tokens), true) => {
                outcome.saved_tokens += u64::from(*tokens);
                outcome.hits.push(id);
            }
            (Some(_), false) => outcome.late.push(id),
            (None, true) => outcome.held.push(id),
            (None, false) => outcome.missed.push(id),
        }
    }
    for (id, tokens) in &prepared.loaded {
        if !needed.contains(id) {
            outcome.wasted_tokens += u64::from(*tokens);
            outcome.wasted.push(*id);
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use memcube_schemas::activation::BlockSource;

    use super::*;

    #[test]
    fn every_memory_counts_once() {
        let id = |number: u64| MemoryId::from_parts(number, 0);
        let used = |number: u64, was_preloaded: bool, is_wanted: bool| UsedMemory {
            source: BlockSource { id: id(number), revision: 1 },
            was_preloaded,
            is_wanted,
        };
        let prepared = Prepared {
            planned: [(id(1), 10), (id(2), 20), (id(3), 30)].into(),
            loaded: [(id(1), 10), (id(2), 20)].into(),
        };
        let turn = [
            used(1, true, true),
            used(2, true, false),
            used(3, false, true),
            used(4, true, true),
            used(5, false, true),
            used(6, true, false),
        ];
        let outcome = settle(&prepared, &turn);
        let expected = SceneOutcome {
            hits: vec![id(1)],
            late: vec![id(3)],
            wasted: vec![id(2)],
            held: vec![id(4)],
            missed: vec![id(5)],
            saved_tokens: 10,
            wasted_tokens: 20,
        };
        assert_eq!(outcome, expected);
        // In place, but the prompt had been laid out by then.
        assert_eq!(settle(&prepared, &[used(1, false, true)]).late, [id(1)]);
    }
}
