//! The activation memory of a cube: which contexts its conversations have, which blocks of keys and
//! values are stored for them, and what becomes of both when a memory changes.
//!
//! Invariant: no context and no block outlives a memory that it contains. Their rows are cleared in
//! the commit that changes the memory, and what is in RAM goes before that is answered.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use memcube_schemas::{
    BlobId, BlockKey, ConversationId, MemoryId,
    activation::{BlockSource, ContextRecord, KvBlock},
    call::{ContextAnswer, ContextQuery},
    codec::encode,
    command::CubeEvent,
    keys,
    limits::{CONTEXTS_PER_CUBE_MAX, KV_BLOCKS_PER_CUBE_MAX, KV_BYTES_PER_CUBE_MAX},
    memory::MemoryItem,
};
use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    CubeMessage, Running, context,
    context::take_out,
    passivated,
    state::{CubeKey, CubeState},
};
use crate::{
    defects::Defect,
    error::Result,
    inference::activation_cache::{Forgotten, StoredBlock},
    storage::{Check, Mutation, blobs::release},
};

/// As what a cube refers to the blob of a block: this, and the block's key.
const ACTIVATION: &str = "activation/";

/// The block for whose sake a cube refers to a blob.
pub(crate) fn activation_block(purpose: &str) -> Option<BlockKey> {
    purpose.strip_prefix(ACTIVATION)?.parse().ok()
}

fn purpose(block: BlockKey) -> String {
    format!("{ACTIVATION}{block}")
}

/// The contexts and blocks of one cube.
#[derive(Debug, Default)]
pub(crate) struct CubeActivation {
    pub(crate) contexts: BTreeMap<ConversationId, ContextRecord>,
    pub(crate) blocks: BTreeMap<BlockKey, KvBlock>,
    /// A planted bug: memories that are gone, and that contexts still show.
    ghosts: BTreeMap<MemoryId, Arc<MemoryItem>>,
}

/// What a change of memories takes along.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Gone {
    pub(crate) forgotten: Forgotten,
    blocks: Vec<KvBlock>,
    /// Contexts as they are without the memories.
    contexts: Vec<ContextRecord>,
}

impl Gone {
    pub(crate) fn blobs(&self) -> Vec<BlobId> {
        self.blocks.iter().map(|block| block.blob).collect()
    }

    /// What the commit that changes the memories writes as well.
    pub(super) fn mutations(&self, key: &CubeKey) -> Vec<Mutation> {
        let blocks = self.blocks.iter().flat_map(|block| clear_block(key, block));
        let CubeKey { tenant, cube } = key;
        let conversations = self.forgotten.conversations.iter();
        let cleared = conversations
            .map(|conversation| Mutation::Clear { key: keys::context(tenant, cube, conversation) });
        let changed = self.contexts.iter().map(|record| set_context(key, record));
        blocks.chain(cleared).chain(changed).collect()
    }
}

impl CubeActivation {
    /// What contains something of this, or was computed after it.
    pub(crate) fn touched_by(&self, forgotten: Forgotten) -> Gone {
        let Forgotten { memories, conversations } = &forgotten;
        let is_direct = |block: &KvBlock| {
            block.sources.iter().any(|source| memories.contains(&source.id))
                || block.conversation.as_ref().is_some_and(|said| conversations.contains(said))
        };
        let blocks = self.with_descendants(is_direct);
        let mut contexts = Vec::new();
        for record in self.contexts.values() {
            let mut without = record.clone();
            if !conversations.contains(&record.conversation) && take_out(&mut without, memories) {
                contexts.push(without);
            }
        }
        Gone { forgotten, blocks, contexts }
    }

    /// Blocks of a kind, and all that stand behind them.
    fn with_descendants(&self, is_meant: impl Fn(&KvBlock) -> bool) -> Vec<KvBlock> {
        let mut in_order: Vec<&KvBlock> = self.blocks.values().collect();
        in_order.sort_by_key(|block| block.start);
        let mut meant: BTreeSet<BlockKey> = BTreeSet::new();
        for block in in_order {
            let is_behind = block.parent.is_some_and(|parent| meant.contains(&parent));
            if is_behind || is_meant(block) {
                meant.insert(block.key);
            }
        }
        meant.iter().filter_map(|key| self.blocks.get(key)).cloned().collect()
    }

    /// Makes it so.
    pub(super) fn apply(&mut self, gone: Gone) {
        for block in gone.blocks {
            self.blocks.remove(&block.key);
        }
        for conversation in &gone.forgotten.conversations {
            self.contexts.remove(conversation);
        }
        for record in gone.contexts {
            self.contexts.insert(record.conversation.clone(), record);
        }
    }

    pub(super) fn blobs(&self) -> Vec<BlobId> {
        self.blocks.values().map(|block| block.blob).collect()
    }

    /// What erasing the cube writes beside clearing its ranges.
    pub(super) fn let_go(&self, key: &CubeKey) -> Vec<Mutation> {
        let blocks = self.blocks.values();
        blocks
            .map(|block| release(&key.tenant, block.blob, &key.cube, &purpose(block.key)))
            .collect()
    }
}

/// What events change or take away. What is said again stays what it is; a memory that is deleted
/// may stand in its conversation in other words, which therefore goes as well.
fn forgotten_by<'a>(events: impl Iterator<Item = &'a CubeEvent>) -> Forgotten {
    let mut forgotten = Forgotten::default();
    for event in events {
        match event {
            CubeEvent::MemoryUpdated { former, .. } => drop(forgotten.memories.insert(former.id)),
            CubeEvent::MemoryDeleted { former, .. } => {
                forgotten.memories.insert(former.id);
                forgotten.conversations.extend(former.conversation.clone());
            }
            CubeEvent::MemoryAdded { .. } | CubeEvent::MemoryRepeated { .. } => {}
        }
    }
    forgotten
}

fn clear_block(key: &CubeKey, block: &KvBlock) -> [Mutation; 2] {
    let CubeKey { tenant, cube } = key;
    [
        Mutation::Clear { key: keys::kv_block(tenant, cube, block.key) },
        release(tenant, block.blob, cube, &purpose(block.key)),
    ]
}

fn set_context(key: &CubeKey, record: &ContextRecord) -> Mutation {
    let key = keys::context(&key.tenant, &key.cube, &record.conversation);
    Mutation::Set { key, value: encode(record) }
}

/// What a conversation leaves behind after a turn.
pub(crate) struct Keep {
    pub(crate) record: ContextRecord,
    pub(crate) blocks: Vec<StoredBlock>,
    pub(crate) reply: oneshot::Sender<Result<Kept>>,
    /// Its place in the cube's queue.
    pub(crate) place: OwnedSemaphorePermit,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// Blocks that are stored.
    pub blocks: usize,
    /// Blocks that are not, because a memory in them has changed meanwhile, or the block is there.
    pub refused: usize,
    /// Whether the context is the one that the next turn begins with.
    pub context: bool,
}

/// A commit of contexts and blocks under way.
pub(super) struct Keeping {
    kept: Kept,
    record: Option<ContextRecord>,
    blocks: Vec<StoredBlock>,
    evicted: Vec<KvBlock>,
    forgotten: Vec<ConversationId>,
    reply: oneshot::Sender<Result<Kept>>,
    _place: OwnedSemaphorePermit,
}

impl Keeping {
    /// Whether a check on this key concerns a blob, and so says nothing about the cube.
    pub(super) fn is_refused_by(&self, key: &[u8]) -> bool {
        self.blocks.iter().any(|stored| stored.prepared.row_key() == key)
    }

    pub(super) fn refuse(self, error: &crate::Error) {
        let _ = self.reply.send(Err(error.clone()));
    }

    /// Holds what is to be kept against the cube as it is now.
    fn decide(state: &CubeState, keep: Keep) -> Self {
        let Keep { record, blocks, reply, place } = keep;
        let known = &state.activation.blocks;
        let mut accepted: BTreeMap<BlockKey, StoredBlock> = BTreeMap::new();
        let offered = blocks.len();
        for stored in blocks {
            let row = &stored.row;
            let is_rooted = row
                .parent
                .is_none_or(|parent| known.contains_key(&parent) || accepted.contains_key(&parent));
            let are_current = row.sources.iter().all(|source| is_current(state, source));
            if is_rooted && are_current && !known.contains_key(&row.key) {
                accepted.insert(row.key, stored);
            }
        }
        let is_good = record.memories().all(|memory| is_current(state, &memory.source));
        let record = Some(record).filter(|record| is_good && context::fits(record));
        let kept = Kept {
            blocks: accepted.len(),
            refused: offered - accepted.len(),
            context: record.is_some(),
        };
        let new: Vec<&KvBlock> = accepted.values().map(|stored| &stored.row).collect();
        let evicted = state.activation.beyond(&new, KV_BLOCKS_PER_CUBE_MAX, KV_BYTES_PER_CUBE_MAX);
        let forgotten = record.as_ref().map(|record| state.activation.contexts_beyond(record));
        Self {
            kept,
            record,
            blocks: accepted.into_values().collect(),
            evicted,
            forgotten: forgotten.unwrap_or_default(),
            reply,
            _place: place,
        }
    }

    fn checks(&self) -> Vec<Check> {
        self.blocks.iter().map(|stored| stored.prepared.check()).collect()
    }

    fn mutations(&self, key: &CubeKey, now_ms: i64) -> Vec<Mutation> {
        let CubeKey { tenant, cube } = key;
        let mut mutations: Vec<Mutation> =
            self.evicted.iter().flat_map(|block| clear_block(key, block)).collect();
        for conversation in &self.forgotten {
            mutations.push(Mutation::Clear { key: keys::context(tenant, cube, conversation) });
        }
        for StoredBlock { row, prepared } in &self.blocks {
            mutations.extend(prepared.refer(cube, &purpose(row.key), now_ms));
            let key = keys::kv_block(tenant, cube, row.key);
            mutations.push(Mutation::Set { key, value: encode(row) });
        }
        mutations.extend(self.record.as_ref().map(|record| set_context(key, record)));
        mutations
    }
}

/// Whether a memory still is what it was.
fn is_current(state: &CubeState, source: &BlockSource) -> bool {
    let item = state.items.get(&source.id);
    item.is_some_and(|item| item.revision == source.revision && item.status.is_recalled())
        || state.activation.ghosts.contains_key(&source.id)
}

impl CubeActivation {
    /// The blocks that have to go so that there is room for new ones: the oldest, with all that
    /// stand behind them. What new ones stand on stays.
    fn beyond(&self, new: &[&KvBlock], blocks_max: usize, bytes_max: u64) -> Vec<KvBlock> {
        let mut needed: BTreeSet<BlockKey> = BTreeSet::new();
        for row in new {
            let mut above = row.parent;
            while let Some(block) = above.filter(|key| needed.insert(*key)) {
                above = self.blocks.get(&block).and_then(|block| block.parent);
            }
        }
        let mut count = self.blocks.len() + new.len();
        let mut bytes: u64 = self.blocks.values().chain(new.iter().copied()).map(|b| b.bytes).sum();
        let free = self.blocks.values().filter(|block| !needed.contains(&block.key));
        let mut oldest: Vec<&KvBlock> = free.collect();
        // Of one age, those that stand furthest behind go first.
        oldest.sort_by_key(|block| (block.stored_at_ms, Reverse(block.start), block.key));
        let mut gone = BTreeSet::new();
        for block in oldest {
            if count <= blocks_max && bytes <= bytes_max {
                break;
            }
            count -= 1;
            bytes -= block.bytes;
            gone.insert(block.key);
        }
        self.with_descendants(|block| gone.contains(&block.key))
    }

    /// The conversations that were used least recently, as far as there are too many.
    fn contexts_beyond(&self, new: &ContextRecord) -> Vec<ConversationId> {
        let is_new = !self.contexts.contains_key(&new.conversation);
        let excess =
            (self.contexts.len() + usize::from(is_new)).saturating_sub(CONTEXTS_PER_CUBE_MAX);
        let others = self.contexts.values().filter(|known| known.conversation != new.conversation);
        let mut ages: Vec<_> =
            others.map(|known| (known.used_at_ms, known.conversation.clone())).collect();
        ages.sort();
        ages.into_iter().take(excess).map(|(_, conversation)| conversation).collect()
    }
}

impl CubeState {
    /// What the next prompt of a conversation begins with.
    pub(super) fn context(&self, query: &ContextQuery) -> ContextAnswer {
        let CubeActivation { contexts, blocks, ghosts } = &self.activation;
        let record = contexts.get(&query.conversation);
        let record = record.filter(|record| record.model == query.model).cloned();
        let memories = record.iter().flat_map(|record| record.memories());
        let current = memories.filter(|memory| is_current(self, &memory.source));
        let item = |id: &MemoryId| self.items.get(id).or_else(|| ghosts.get(id)).cloned();
        let items = current.filter_map(|memory| item(&memory.source.id)).collect();
        let rows = query.blocks.iter().filter_map(|key| blocks.get(key)).cloned();
        let blocks = rows.collect();
        ContextAnswer { record, items, blocks, version: self.manifest.version }
    }

    /// A planted bug: what contexts contain stays there when it is deleted.
    fn haunt(&mut self, memories: &BTreeSet<MemoryId>) {
        for id in memories {
            if let Some(item) = self.items.get(id) {
                self.activation.ghosts.insert(*id, Arc::clone(item));
            }
        }
    }
}

impl Running {
    /// What changes of a batch take along.
    pub(super) fn touched<'a>(&mut self, events: impl Iterator<Item = &'a CubeEvent>) -> Gone {
        let forgotten = forgotten_by(events);
        if self.environment.plants(Defect::DeletedInContext) {
            self.cube.haunt(&forgotten.memories);
            return Gone::default();
        }
        self.cube.activation.touched_by(forgotten)
    }

    /// Takes out of RAM and off the device whatever contains these memories. Comes before the
    /// answer to the change, and also where nobody knows what became of it.
    pub(super) fn forget(&self, gone: &Gone) {
        let Some(inference) = self.inference.get() else { return };
        let CubeKey { tenant, cube } = &self.cube.key;
        if !gone.blocks.is_empty() {
            self.environment.reach("activation.invalidated", tenant.as_str());
        }
        if !gone.forgotten.is_empty() {
            inference.cache().forget(tenant, cube, &gone.forgotten, &gone.blobs());
        }
    }

    /// Takes everything of a cube that is gone out of RAM, off the device and off the disk.
    pub(super) fn forget_all(&self) {
        let Some(inference) = self.inference.get() else { return };
        let CubeKey { tenant, cube } = &self.cube.key;
        inference.cache().forget_cube(tenant, cube, &self.cube.activation.blobs());
    }

    /// Takes everything of a cube that is another node's now out of RAM and off the device: of what
    /// is forgotten there, this one does not hear. On the disk nothing is used without a row.
    pub(super) fn let_go_of_cached(&self) {
        let Some(inference) = self.inference.get() else { return };
        inference.cache().forget_cube(&self.cube.key.tenant, &self.cube.key.cube, &[]);
    }

    /// Somebody wants contexts and blocks kept.
    pub(super) fn keep(&mut self, myself: &ActorRef<CubeMessage>, keep: Keep) {
        if self.is_passivating {
            let _ = keep.reply.send(Err(passivated()));
            return;
        }
        self.keeps.push_back(keep);
        self.start_commit(myself);
    }

    /// Commits what is to be kept, in turn with changes.
    pub(super) fn start_keep_commit(&mut self, myself: &ActorRef<CubeMessage>) -> bool {
        let is_in_turn = self.waiting.is_empty() || !self.has_kept;
        if self.in_flight.is_some() || !is_in_turn {
            return false;
        }
        let Some(keep) = self.keeps.pop_front() else { return false };
        let keeping = Keeping::decide(&self.cube, keep);
        let mutations = keeping.mutations(&self.cube.key, self.environment.unix_ms());
        self.has_kept = true;
        if mutations.is_empty() {
            let _ = keeping.reply.send(Ok(keeping.kept));
            self.start_commit(myself);
            return true;
        }
        let checks = keeping.checks();
        self.commit_kept(myself, keeping, checks, mutations);
        true
    }

    /// The commit took effect.
    pub(super) fn kept(&mut self, keeping: Keeping) {
        self.environment.reach("activation.kept", self.cube.key.cube.as_str());
        let activation = &mut self.cube.activation;
        for conversation in &keeping.forgotten {
            activation.contexts.remove(conversation);
        }
        for block in &keeping.evicted {
            activation.blocks.remove(&block.key);
        }
        for StoredBlock { row, .. } in keeping.blocks {
            activation.blocks.insert(row.key, row);
        }
        if let Some(record) = keeping.record {
            activation.contexts.insert(record.conversation.clone(), record);
        }
        let _ = keeping.reply.send(Ok(keeping.kept));
    }
}

#[cfg(test)]
mod tests {
    use memcube_schemas::{
        ModelId,
        activation::{KvDtype, ModelFingerprint},
    };

    use super::*;

    fn block(key: u8, parent: Option<u8>, start: u32, stored_at_ms: i64) -> KvBlock {
        KvBlock {
            key: BlockKey([key; 32]),
            parent: parent.map(|parent| BlockKey([parent; 32])),
            start,
            tokens: 1,
            model: ModelFingerprint {
                model: ModelId::new("m").expect("valid"),
                tokenizer: [0; 32],
                adapter: None,
                rope: String::new(),
                dtype: KvDtype::F32,
                layout: String::new(),
            },
            dtype: KvDtype::F32,
            bytes: 10,
            checksums: Vec::new(),
            sources: Vec::new(),
            conversation: None,
            blob: BlobId([key; 32]),
            stored_at_ms,
        }
    }

    #[test]
    fn the_oldest_blocks_go_with_what_stands_behind_them() {
        // 1 ← 2 ← 3, of which 3 is young; 4 ← 5; 6 alone.
        let known = [
            block(1, None, 0, 100),
            block(2, Some(1), 1, 100),
            block(3, Some(2), 2, 900),
            block(4, None, 0, 200),
            block(5, Some(4), 1, 200),
            block(6, None, 0, 300),
        ];
        let mut activation = CubeActivation::default();
        activation.blocks.extend(known.into_iter().map(|block| (block.key, block)));
        let new = [block(7, None, 0, 999), block(8, Some(5), 2, 999), block(9, Some(3), 3, 999)];
        let table: [(&[usize], usize, u64, &[u8]); 8] = [
            (&[0], 7, 1_000, &[]),
            (&[0], 6, 1_000, &[2, 3]),
            (&[0], 5, 1_000, &[1, 2, 3]),
            (&[0], 3, 1_000, &[1, 2, 3, 4, 5]),
            (&[0], 100, 69, &[2, 3]),
            // What a new one stands on stays, whatever its age.
            (&[1], 2, 1_000, &[1, 2, 3, 6]),
            (&[2], 5, 1_000, &[4, 5]),
            (&[1, 2], 1, 1_000, &[6]),
        ];
        for (number, (chosen, blocks_max, bytes_max, gone)) in table.into_iter().enumerate() {
            let chosen: Vec<&KvBlock> = chosen.iter().map(|at| &new[*at]).collect();
            let found = activation.beyond(&chosen, blocks_max, bytes_max);
            let found: Vec<u8> = found.iter().map(|block| block.key.0[0]).collect();
            assert_eq!(found, gone, "row {number}");
        }
    }

    #[test]
    fn the_conversations_that_were_used_least_recently_go() {
        let record = |number: usize| ContextRecord {
            conversation: ConversationId::new(format!("talk {number}")).expect("valid"),
            model: ModelId::new("m").expect("valid"),
            segments: Vec::new(),
            sealed: 0,
            turn: 0,
            tokens: 0,
            used_at_ms: 1_000 - i64::try_from(number).expect("small"),
        };
        let mut activation = CubeActivation::default();
        let records = (0..CONTEXTS_PER_CUBE_MAX).map(record);
        activation.contexts.extend(records.map(|record| (record.conversation.clone(), record)));
        assert_eq!(activation.contexts_beyond(&record(5)), []);
        let oldest = record(CONTEXTS_PER_CUBE_MAX - 1).conversation;
        assert_eq!(activation.contexts_beyond(&record(999)), [oldest]);
    }
}
