//! What a block or a session contains, and what is forgotten of it.

use std::{collections::BTreeSet, sync::Arc};

use memcube_schemas::{ConversationId, MemoryId};

use super::chain::{Chain, ChainBlock};

/// What is forgotten of a cube.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Memories that were changed or deleted.
    pub memories: BTreeSet<MemoryId>,
    /// Conversations something of which was deleted.
    pub conversations: BTreeSet<ConversationId>,
}

impl Forgotten {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memories.is_empty() && self.conversations.is_empty()
    }

    pub(super) fn touches(&self, contents: &Contents) -> bool {
        let Contents { memories, conversation } = contents;
        let is_said = |conversation| self.conversations.contains(conversation);
        !memories.is_disjoint(&self.memories) || conversation.as_ref().is_some_and(is_said)
    }
}

/// What something contains or was computed after.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(super) memories: BTreeSet<MemoryId>,
    pub(super) conversation: Option<ConversationId>,
}

impl Contents {
    /// Those of a prompt's first blocks.
    pub(super) fn of(blocks: &[ChainBlock]) -> Sources {
        let memories = blocks.iter().flat_map(|block| &block.sources).map(|source| source.id);
        let conversation = blocks.last().and_then(|block| block.conversation.clone());
        Arc::new(Self { memories: memories.collect(), conversation })
    }

    /// Memories, and what was said in a conversation.
    pub(crate) fn said_in(
        conversation: ConversationId,
        memories: impl Iterator<Item = MemoryId>,
    ) -> Sources {
        Arc::new(Self { memories: memories.collect(), conversation: Some(conversation) })
    }

    /// Those of one memory by itself.
    pub(super) fn of_memory(memory: MemoryId) -> Sources {
        Arc::new(Self { memories: BTreeSet::from([memory]), conversation: None })
    }

    /// Those of a whole prompt.
    pub(crate) fn of_chain(chain: &Chain) -> Sources {
        Self::of(&chain.blocks)
    }
}

pub(crate) type Sources = Arc<Contents>;
