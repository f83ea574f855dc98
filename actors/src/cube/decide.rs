//! The pure half of every change: what a command would do to a cube.
//!
//! Several commands share one commit, so each is decided against the state as the commands before
//! it in the same commit will leave it ([`Working`]).

use std::{collections::BTreeMap, sync::Arc};

use memcube_schemas::{
    ConversationId, MemoryId, RequestId, Version,
    command::{
        AddPart, AddedMemory, CubeCommand, CubeEvent, CubeReply, MemoryChange, MemoryDraft,
        Selection,
    },
    cube::RequestRecord,
    limits::{EVENTS_PER_COMMIT_MAX, ITEMS_PER_CUBE_MAX, SOURCES_BYTES_MAX, SOURCES_PER_ITEM_MAX},
    memory::{MemoryItem, MemoryStatus, SourceTurn},
};

use super::{
    parts,
    state::{CubeState, text_hash},
};
use crate::error::{Error, ErrorKind, Result};

/// What one command would do.
#[derive(Debug, PartialEq)]
pub(crate) struct Decision {
    pub(crate) events: Vec<CubeEvent>,
    pub(crate) reply: CubeReply,
    pub(crate) request: Option<(RequestId, RequestRecord)>,
}

/// The state of a cube with changes on top that are decided but not committed yet.
pub(crate) struct Working<'a> {
    base: &'a CubeState,
    /// The version that the coming commit will give to the cube.
    pub(crate) version: Version,
    now_ms: i64,
    items: BTreeMap<MemoryId, Option<Arc<MemoryItem>>>,
    by_text: BTreeMap<u64, MemoryId>,
    tails: BTreeMap<ConversationId, MemoryId>,
    requests: BTreeMap<RequestId, RequestRecord>,
    items_added: usize,
}

impl<'a> Working<'a> {
    pub(crate) fn on(base: &'a CubeState, now_ms: i64) -> Self {
        Self {
            base,
            version: base.manifest.version.next(),
            now_ms,
            items: BTreeMap::new(),
            by_text: BTreeMap::new(),
            tails: BTreeMap::new(),
            requests: BTreeMap::new(),
            items_added: 0,
        }
    }

    /// Decides a command and puts what it does on top of the state.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` and `Conflict` as the command's meaning has them; then nothing is
    /// changed.
    pub(crate) fn decide(
        &mut self,
        command: CubeCommand,
        next_id: &mut dyn FnMut() -> MemoryId,
    ) -> Result<Decision> {
        match command {
            CubeCommand::AddMemories { drafts, request, part } => {
                self.add(drafts, request, part, next_id)
            }
            CubeCommand::UpdateMemory { id, change, expected_revision } => {
                self.update(id, change, expected_revision)
            }
            CubeCommand::DeleteMemories { selection, purge } => self.delete(&selection, purge),
        }
    }

    fn item(&self, id: MemoryId) -> Option<&Arc<MemoryItem>> {
        match self.items.get(&id) {
            Some(changed) => changed.as_ref(),
            None => self.base.items.get(&id),
        }
    }

    fn known_item(&self, id: MemoryId) -> Result<&Arc<MemoryItem>> {
        self.item(id)
            .ok_or_else(|| Error::not_found(format!("there is no memory `{id}` in this cube")))
    }

    /// The item that holds exactly this text, and that recall still finds.
    fn same_text(&self, text: &str) -> Option<&Arc<MemoryItem>> {
        let hash = text_hash(text);
        let id = self.by_text.get(&hash).or_else(|| self.base.by_text.get(&hash))?;
        self.item(*id).filter(|item| item.text == text && item.status.is_recalled())
    }

    fn tail(&self, conversation: &ConversationId) -> Option<MemoryId> {
        let id = self.tails.get(conversation).or_else(|| self.base.tails.get(conversation))?;
        self.item(*id).map(|item| item.id)
    }

    fn put(&mut self, item: MemoryItem) {
        self.items.insert(item.id, Some(Arc::new(item)));
    }

    fn add(
        &mut self,
        drafts: Vec<MemoryDraft>,
        request: Option<RequestId>,
        part: AddPart,
        next_id: &mut dyn FnMut() -> MemoryId,
    ) -> Result<Decision> {
        let known = match &request {
            Some(id) => self.known_request(id, part)?,
            None => None,
        };
        let (fingerprint, until) = (part.fingerprint, part.offset + drafts.len());
        let mut remembered = match known {
            Some(record) if record.added.len() > part.offset || record.added.len() == until => {
                return Ok(self.repeated(record, part.offset, until));
            }
            Some(record) => record.added.clone(),
            None => Vec::new(),
        };
        let held = self.base.items.len() + self.items_added;
        if held + part.total.saturating_sub(part.offset) > ITEMS_PER_CUBE_MAX {
            return Err(Error::invalid(format!(
                "the cube holds {held} memories, and at most {ITEMS_PER_CUBE_MAX} fit; \
                 delete some or use a second cube"
            )));
        }
        let mut events = Vec::with_capacity(drafts.len());
        let mut memories = Vec::with_capacity(drafts.len());
        let mut previous = part.after;
        for draft in drafts {
            let conversation = draft.conversation.clone();
            let before = conversation.as_ref().and_then(|id| self.tail(id)).or(previous);
            let (event, added) = match self.same_text(&draft.text).cloned() {
                Some(known) => self.fold(&known, draft),
                None => self.create(draft, before, next_id()),
            };
            if let Some(conversation) = conversation {
                self.tails.insert(conversation, added.id);
            }
            previous = Some(added.id);
            events.push(event);
            memories.push(added);
        }
        let request = request.map(|id| {
            remembered.extend(memories.iter().map(|memory| (memory.id, memory.folded)));
            (id, RequestRecord { fingerprint, added: remembered, version: self.version })
        });
        if let Some((id, record)) = &request {
            self.requests.insert(id.clone(), record.clone());
        }
        let version = if events.is_empty() { self.base.manifest.version } else { self.version };
        Ok(Decision { events, reply: CubeReply::Added { memories, until, version }, request })
    }

    /// What is known of the request to which these drafts belong.
    fn known_request(&self, id: &RequestId, part: AddPart) -> Result<Option<&RequestRecord>> {
        let known = self.requests.get(id).or_else(|| self.base.requests.get(id));
        if known.is_some_and(|record| record.fingerprint != part.fingerprint) {
            let message = format!(
                "the idempotency key `{id}` was used for another request; choose a new one"
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        if known.map_or(0, |record| record.added.len()) < part.offset {
            let message = format!("what came before in the request `{id}` is forgotten; retry");
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(known)
    }

    /// The answer to a part that was added before, or to the beginning of it.
    fn repeated(&self, record: &RequestRecord, offset: usize, until: usize) -> Decision {
        let until = until.min(record.added.len());
        let memories = record.added[offset..until]
            .iter()
            .filter_map(|(id, folded)| self.item(*id).map(|item| added_memory(item, *folded)))
            .collect();
        let reply = CubeReply::Added { memories, until, version: record.version };
        Decision { events: Vec::new(), reply, request: None }
    }

    fn create(
        &mut self,
        draft: MemoryDraft,
        previous: Option<MemoryId>,
        id: MemoryId,
    ) -> (CubeEvent, AddedMemory) {
        let item = MemoryItem {
            id,
            kind: draft.kind,
            status: MemoryStatus::Activated,
            text: draft.text,
            speaker: draft.speaker,
            role: draft.role,
            said_at_ms: draft.said_at_ms,
            learned_at_ms: self.now_ms,
            updated_at_ms: self.now_ms,
            conversation: draft.conversation,
            previous,
            part: draft.part,
            tags: draft.tags,
            info: draft.info,
            sources: vec![draft.source],
            occurrences: 1,
            tokens: draft.tokens,
            revision: 1,
            version: self.version,
        };
        self.items_added += 1;
        self.by_text.insert(text_hash(&item.text), id);
        self.put(item.clone());
        let added = added_memory(&item, false);
        (CubeEvent::MemoryAdded { item, vector: draft.vector }, added)
    }

    fn fold(&mut self, known: &MemoryItem, draft: MemoryDraft) -> (CubeEvent, AddedMemory) {
        let mut item = known.clone();
        item.occurrences += 1;
        item.updated_at_ms = self.now_ms;
        item.version = self.version;
        item.sources.push(draft.source);
        bound_sources(&mut item);
        self.put(item.clone());
        let added = added_memory(&item, true);
        (CubeEvent::MemoryRepeated { item }, added)
    }

    fn update(
        &mut self,
        id: MemoryId,
        change: MemoryChange,
        expected_revision: Option<u32>,
    ) -> Result<Decision> {
        let former = Box::new(MemoryItem::clone(self.known_item(id)?));
        if let Some(expected) = expected_revision
            && expected != former.revision
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the memory `{id}` is at revision {}, not {expected}; read it again",
                    former.revision
                ),
            ));
        }
        let mut item = former.clone();
        let vector = apply_change(&mut item, change)?;
        bound_sources(&mut item);
        item.revision += 1;
        item.updated_at_ms = self.now_ms;
        item.version = self.version;
        self.by_text.insert(text_hash(&item.text), id);
        self.put(MemoryItem::clone(&item));
        let reply = CubeReply::Updated { item: item.clone() };
        let events = vec![CubeEvent::MemoryUpdated { former, item, vector }];
        Ok(Decision { events, reply, request: None })
    }

    fn delete(&mut self, selection: &Selection, purge: bool) -> Result<Decision> {
        let mut chosen = self.select(selection)?;
        // Its history keeps a copy of every item, so their bytes count.
        let fitting = parts::fitting(chosen.iter().map(|item| parts::item_bytes(item))).max(1);
        let more = chosen.len() > fitting;
        chosen.truncate(fitting);
        let ids: Vec<MemoryId> = chosen.iter().map(|item| item.id).collect();
        for id in &ids {
            self.items.insert(*id, None);
        }
        let version = if ids.is_empty() { self.base.manifest.version } else { self.version };
        let events = chosen
            .into_iter()
            .map(|former| CubeEvent::MemoryDeleted { former: MemoryItem::clone(&former), purge })
            .collect();
        Ok(Decision { events, reply: CubeReply::Deleted { ids, more, version }, request: None })
    }

    fn select(&self, selection: &Selection) -> Result<Vec<Arc<MemoryItem>>> {
        match selection {
            Selection::Ids(ids) => {
                let mut chosen: BTreeMap<MemoryId, Arc<MemoryItem>> = BTreeMap::new();
                for id in ids {
                    let item = self.known_item(*id)?;
                    if item.status == MemoryStatus::Frozen {
                        return Err(Error::invalid(format!(
                            "the memory `{id}` is frozen; set its status to `activated` first"
                        )));
                    }
                    chosen.insert(*id, Arc::clone(item));
                }
                Ok(chosen.into_values().collect())
            }
            Selection::Conversation(conversation) => {
                Ok(self.some(|item| item.conversation.as_ref() == Some(conversation)))
            }
            Selection::All => Ok(self.some(|_| true)),
        }
    }

    /// The first items that are wanted and not frozen, one more than fit into a commit.
    fn some(&self, wanted: impl Fn(&MemoryItem) -> bool) -> Vec<Arc<MemoryItem>> {
        let unchanged = self.base.items.iter().filter(|(id, _)| !self.items.contains_key(id));
        let changed = self.items.iter().filter_map(|(id, item)| Some((id, item.as_ref()?)));
        let merged: BTreeMap<_, _> = unchanged.chain(changed).collect();
        merged
            .into_values()
            .filter(|item| item.status != MemoryStatus::Frozen && wanted(item))
            .take(EVENTS_PER_COMMIT_MAX + 1)
            .cloned()
            .collect()
    }
}

/// Drops the sources beyond those that an item lists; repetitions beyond are only counted.
fn bound_sources(item: &mut MemoryItem) {
    let mut left = SOURCES_BYTES_MAX;
    let fits = |source: &&SourceTurn| {
        let fits = source.content.len() <= left;
        left = left.saturating_sub(source.content.len());
        fits
    };
    let kept = item.sources.iter().take(SOURCES_PER_ITEM_MAX).take_while(fits).count();
    item.sources.truncate(kept.max(1));
}

/// Changes an item in place; returns the vector of a new text.
fn apply_change(item: &mut MemoryItem, change: MemoryChange) -> Result<Option<Vec<f32>>> {
    if let Some(status) = change.status
        && status != item.status
    {
        if !item.status.may_become(status) {
            return Err(Error::invalid(format!(
                "a memory that is `{}` cannot become `{}`",
                item.status.as_str(),
                status.as_str()
            )));
        }
        item.status = status;
    }
    let changes_content = change.text.is_some() || change.tags.is_some() || change.info.is_some();
    if changes_content && item.status == MemoryStatus::Frozen {
        return Err(Error::invalid(format!(
            "the memory `{}` is frozen; set its status to `activated` first",
            item.id
        )));
    }
    if let Some(tags) = change.tags {
        item.tags = tags;
    }
    if let Some(info) = change.info {
        item.info = info;
    }
    let Some(text) = change.text else { return Ok(None) };
    item.text = text.text;
    item.tokens = text.tokens;
    Ok(text.vector)
}

fn added_memory(item: &MemoryItem, folded: bool) -> AddedMemory {
    AddedMemory { id: item.id, text: item.text.clone(), kind: item.kind, folded }
}
