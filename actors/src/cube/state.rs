//! What a cube knows, and the pure core of every change: `decide` says what a command would do,
//! `apply` does it. Neither awaits, reads a clock, or touches a store.

use std::{collections::BTreeMap, sync::Arc};

use memcube_schemas::{
    ConversationId, CubeId, Epoch, MemoryId, ModelId, RequestId, TenantId, Version,
    command::CubeEvent,
    cube::{CubeManifest, RequestRecord},
    limits::REQUEST_RECORDS_MAX,
    memory::MemoryItem,
};

use super::{activation::CubeActivation, recall::RecallIndex};

/// Names one cube of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CubeKey {
    pub(crate) tenant: TenantId,
    pub(crate) cube: CubeId,
}

/// The right to write a cube, as it was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) epoch: Epoch,
    /// The store version of the ownership row; every commit checks that it still stands.
    pub(crate) row: Version,
}

/// Everything that one cube holds in RAM.
pub(crate) struct CubeState {
    pub(crate) key: CubeKey,
    pub(crate) claim: Claim,
    pub(crate) manifest: CubeManifest,
    /// The model of the vectors that new items bring along.
    pub(crate) model: Option<ModelId>,
    pub(crate) items: BTreeMap<MemoryId, Arc<MemoryItem>>,
    /// Finds an exact repetition: hash of the text → newest item that has it.
    pub(crate) by_text: BTreeMap<u64, MemoryId>,
    /// The item said last in each conversation.
    pub(crate) tails: BTreeMap<ConversationId, MemoryId>,
    pub(crate) requests: BTreeMap<RequestId, RequestRecord>,
    request_ages: BTreeMap<(Version, RequestId), ()>,
    /// Whether the snapshot that the manifest names can be read, as far as is known.
    pub(crate) has_snapshot: bool,
    /// Changes since that snapshot.
    pub(crate) tail_items: usize,
    /// Whether an item came without a vector although there is a model. Read from its rows the next
    /// time, the cube gets it; a snapshot would hide that it is missing.
    pub(crate) lacks_vectors: bool,
    pub(crate) recall: RecallIndex,
    pub(crate) activation: CubeActivation,
}

impl CubeState {
    /// A cube as it is found in the store, without its items yet.
    pub(crate) fn new(
        key: CubeKey,
        claim: Claim,
        manifest: CubeManifest,
        model: Option<ModelId>,
    ) -> Self {
        Self {
            key,
            claim,
            manifest,
            model,
            items: BTreeMap::new(),
            by_text: BTreeMap::new(),
            tails: BTreeMap::new(),
            requests: BTreeMap::new(),
            request_ages: BTreeMap::new(),
            has_snapshot: false,
            tail_items: 0,
            lacks_vectors: false,
            recall: RecallIndex::default(),
            activation: CubeActivation::default(),
        }
    }

    /// Takes in an item; items of one cube come in the order of their ids.
    pub(crate) fn insert(&mut self, item: MemoryItem, vector: Option<&[f32]>) {
        self.by_text.insert(text_hash(&item.text), item.id);
        if let Some(conversation) = &item.conversation {
            self.tails.insert(conversation.clone(), item.id);
        }
        self.recall_item(&item, vector);
        self.items.insert(item.id, Arc::new(item));
    }

    /// Takes in everything at once: unchanged items of a snapshot with the index that knows them,
    /// and the items that have changed since, both in the order of their ids.
    pub(crate) fn take_in(
        &mut self,
        items: impl Iterator<Item = (u64, MemoryItem)>,
        recall: RecallIndex,
        changed: Vec<(MemoryItem, Option<Vec<f32>>)>,
    ) {
        self.recall = recall;
        for (item, vector) in &changed {
            self.recall_item(item, vector.as_deref());
        }
        let changed = changed.into_iter().map(|(item, _)| (text_hash(&item.text), item));
        let mut merged: Vec<(u64, MemoryItem)> = items.chain(changed).collect();
        // Two sorted runs, which the sort finds and merges.
        merged.sort_by_key(|(_, item)| item.id);
        // Of two items with one text the newer counts, as where one is inserted after the other.
        self.by_text = merged.iter().map(|(hash, item)| (*hash, item.id)).collect();
        let mut spoken: Option<(&ConversationId, MemoryId)> = None;
        for (_, item) in &merged {
            let Some(conversation) = &item.conversation else { continue };
            match &mut spoken {
                Some((same, last)) if *same == conversation => *last = item.id,
                _ => {
                    let before = spoken.replace((conversation, item.id));
                    self.tails.extend(before.map(|(id, last)| (id.clone(), last)));
                }
            }
        }
        self.tails.extend(spoken.map(|(id, last)| (id.clone(), last)));
        self.items = merged.into_iter().map(|(_, item)| (item.id, Arc::new(item))).collect();
    }

    fn recall_item(&mut self, item: &MemoryItem, vector: Option<&[f32]>) {
        self.lacks_vectors |= vector.is_none() && self.model.is_some();
        if item.status.is_recalled() {
            self.recall.insert(item, vector);
        } else if let Some(vector) = vector {
            self.recall.set_aside(item.id, vector.to_vec());
        }
    }

    /// Takes in outcomes of requests, oldest first.
    pub(crate) fn remember_requests(&mut self, requests: Vec<(RequestId, RequestRecord)>) {
        for (id, record) in requests {
            self.remember_request(id, record);
        }
    }

    /// Takes in the outcome of a request, and forgets the oldest ones past the limit.
    pub(crate) fn remember_request(&mut self, id: RequestId, record: RequestRecord) {
        self.request_ages.insert((record.version, id.clone()), ());
        self.requests.insert(id, record);
        while self.requests.len() > REQUEST_RECORDS_MAX {
            let Some(((_, oldest), ())) = self.request_ages.pop_first() else { break };
            self.requests.remove(&oldest);
        }
    }

    /// The requests that `remember_request` would forget if `count` new ones came in.
    pub(crate) fn requests_to_forget(&self, count: usize) -> Vec<RequestId> {
        let excess = (self.requests.len() + count).saturating_sub(REQUEST_RECORDS_MAX);
        self.request_ages.keys().take(excess).map(|(_, id)| id.clone()).collect()
    }

    /// Makes a recorded change visible.
    pub(crate) fn apply(&mut self, event: CubeEvent) {
        match event {
            CubeEvent::MemoryAdded { item, vector } => self.insert(item, vector.as_deref()),
            CubeEvent::MemoryRepeated { item } => {
                if let Some(conversation) = &item.conversation {
                    self.tails.insert(conversation.clone(), item.id);
                }
                self.items.insert(item.id, Arc::new(item));
            }
            CubeEvent::MemoryUpdated { former, item, vector } => {
                self.apply_update(&former, *item, vector);
            }
            CubeEvent::MemoryDeleted { former, .. } => self.remove(&former),
        }
    }

    fn apply_update(&mut self, former: &MemoryItem, item: MemoryItem, vector: Option<Vec<f32>>) {
        if former.text != item.text {
            self.lacks_vectors |= vector.is_none() && self.model.is_some();
            self.forget_text(former);
            self.by_text.insert(text_hash(&item.text), item.id);
        }
        let was_recalled = former.status.is_recalled();
        let is_recalled = item.status.is_recalled();
        if was_recalled != is_recalled || former.text != item.text {
            let vector = vector.or_else(|| self.recall.vector(item.id));
            self.recall.remove(item.id);
            if is_recalled {
                self.recall.insert(&item, vector.as_deref());
            } else if let Some(vector) = vector {
                self.recall.set_aside(item.id, vector);
            }
        }
        self.items.insert(item.id, Arc::new(item));
    }

    fn remove(&mut self, former: &MemoryItem) {
        self.forget_text(former);
        self.recall.remove(former.id);
        self.recall.forget_aside(former.id);
        self.items.remove(&former.id);
        if let Some(conversation) = &former.conversation
            && self.tails.get(conversation) == Some(&former.id)
        {
            match former.previous.filter(|previous| self.items.contains_key(previous)) {
                Some(previous) => self.tails.insert(conversation.clone(), previous),
                None => self.tails.remove(conversation),
            };
        }
    }

    fn forget_text(&mut self, item: &MemoryItem) {
        let hash = text_hash(&item.text);
        if self.by_text.get(&hash) == Some(&item.id) {
            self.by_text.remove(&hash);
        }
    }
}

/// FNV-1a over the bytes: fixed across processes, and only a hint (texts are compared as well).
pub(crate) fn text_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
