//! The front door of a cube: finds or hydrates its actor, prepares texts, waits for the answer.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use memcube_schemas::{
    ConversationId, CubeId, MemoryId, RequestId, Version,
    call::{CubeAnswer, CubeCall, ItemPage, SearchOutcome},
    codec::decode,
    command::{
        AddPart, AddedMemory, ChangedText, CubeCommand, CubeReply, MemoryChange, MemoryDraft,
        Selection,
    },
    cube::CubeManifest,
    keys,
    limits::{
        CUBE_CALL_MS_MAX, EMBED_CHUNK_TEXTS, ITEM_TEXT_BYTES_MAX, MEMORIES_PER_ADD_MAX,
        PAGE_ITEMS_MAX,
    },
    memory::{MemoryItem, MemoryRevision},
    scene::{SceneAnswer, SceneQuery},
};

use super::{
    CubeKey, parts,
    recall::{RecallRequest, SearchRequest, embedding_text},
    requests::{
        AddOutcome, AddRequest, DeleteRequest, UpdateRequest, check_add, check_info, check_search,
        check_tags, estimate_tokens, fact_draft,
    },
    seconds,
    state::text_hash,
};
use crate::{
    directory::Cubes,
    embedder::Priority,
    error::{Error, ErrorKind, Result},
    metrics as names,
    reader::{ReadOptions, read_messages},
    storage::RangeRead,
    tenant::TenantContext,
};

/// The front door of one cube, for one caller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CubeHandle {
    cubes: Cubes,
    context: TenantContext,
    key: CubeKey,
}

impl CubeHandle {
    pub(crate) fn new(cubes: Cubes, context: TenantContext, cube: CubeId) -> Self {
        let key = CubeKey { tenant: context.tenant().clone(), cube };
        Self { cubes, context, key }
    }

    pub(super) const fn cubes(&self) -> &Cubes {
        &self.cubes
    }

    pub(super) const fn key(&self) -> &CubeKey {
        &self.key
    }

    /// The cube's identifier.
    #[must_use]
    pub const fn id(&self) -> &CubeId {
        &self.key.cube
    }

    /// Reads messages into memories and stores them. The answer means durable and findable.
    ///
    /// # Errors
    /// `Invalid` past a limit, `NotFound` without such a cube, `Overloaded`, `Unavailable`.
    pub async fn add(&self, request: AddRequest) -> Result<AddOutcome> {
        check_add(&request)?;
        let options = ReadOptions {
            conversation: request.conversation.clone(),
            tags: request.tags.clone(),
            info: request.info.clone(),
            remember_system_and_tool: request.remember_system_and_tool,
        };
        let messages = request.messages.clone();
        let read = self.cubes.environment().compute(move || read_messages(&messages, &options));
        let mut drafts =
            read.await.ok_or_else(|| Error::internal("the reader failed; see the log"))?;
        let remembered = drafts.iter().filter(|draft| draft.part.is_none_or(|(part, _)| part == 1));
        let ignored_messages = request.messages.len().saturating_sub(remembered.count());
        drafts.extend(
            request
                .facts
                .iter()
                .filter(|fact| !fact.trim().is_empty())
                .map(|fact| fact_draft(fact.trim(), &request)),
        );
        if drafts.len() > MEMORIES_PER_ADD_MAX {
            return Err(Error::invalid(format!(
                "these messages make {} memories, the limit is {MEMORIES_PER_ADD_MAX}; send them \
                 in several calls",
                drafts.len()
            )));
        }
        // Fails early, before the expensive part, when there is no such cube.
        self.in_time(self.cubes.find(&self.key)).await?;
        self.embed_drafts(&mut drafts).await?;
        let (memories, version) = self.add_drafts(&drafts, request.request).await?;
        for memory in &memories {
            let folded = if memory.folded { "true" } else { "false" };
            metrics::counter!(names::MEMORIES_ADDED_TOTAL, "folded" => folded).increment(1);
        }
        Ok(AddOutcome { memories, ignored_messages, version })
    }

    /// Adds drafts, in as many commits as they need.
    async fn add_drafts(
        &self,
        drafts: &[MemoryDraft],
        request: Option<RequestId>,
    ) -> Result<(Vec<AddedMemory>, Version)> {
        let total = drafts.len();
        let mut part = AddPart { offset: 0, total, fingerprint: fingerprint(drafts), after: None };
        let mut added: Vec<AddedMemory> = Vec::with_capacity(total);
        loop {
            let rest = &drafts[part.offset..];
            let drafts = rest[..parts::part(rest)].to_vec();
            let command = CubeCommand::AddMemories { drafts, request: request.clone(), part };
            let reply = self.change("add", command).await;
            let reply = reply.map_err(|error| match part.offset {
                0 => error,
                done => error.with_note(&format!(
                    "{done} of {total} memories are remembered; with an idempotency key, a retry \
                     goes on from there"
                )),
            })?;
            let CubeReply::Added { memories, until, version } = reply else {
                return Err(unexpected_reply());
            };
            part.after = memories.last().map(|memory| memory.id).or(part.after);
            added.extend(memories);
            if until == total {
                return Ok((added, version));
            }
            // An earlier try of the same request may have cut it elsewhere.
            part.offset = until;
        }
    }

    async fn embed_drafts(&self, drafts: &mut [MemoryDraft]) -> Result<()> {
        let Some(embedder) = self.cubes.embedder() else {
            for draft in drafts {
                draft.tokens = estimate_tokens(draft.text.len());
            }
            return Ok(());
        };
        for chunk in drafts.chunks_mut(EMBED_CHUNK_TEXTS) {
            let texts: Vec<String> =
                chunk.iter().map(|draft| embedding_text(&draft.text)).collect();
            let lengths: Vec<usize> = texts.iter().map(String::len).collect();
            let embeddings = embedder.embed(texts, Priority::Bulk).await?;
            for ((draft, embedding), length) in chunk.iter_mut().zip(embeddings).zip(lengths) {
                // What is not embedded, the dates, is cheap to estimate.
                let dates = draft.text.len().saturating_sub(length);
                draft.tokens = embedding.tokens + estimate_tokens(dates);
                draft.vector = Some(embedding.vector);
            }
        }
        Ok(())
    }

    /// Finds what the cube knows about a question.
    ///
    /// # Errors
    /// `Invalid` for an empty or oversized query, `NotFound`, `Overloaded`, `Unavailable`.
    pub async fn search(&self, request: SearchRequest) -> Result<SearchOutcome> {
        check_search(&request)?;
        let cold = self.cubes.search_cold(&self.context, &self.key, &request);
        if let Some(outcome) = self.in_time(cold).await? {
            return Ok(outcome);
        }
        self.in_time(self.cubes.find(&self.key)).await?;
        let vector = match self.cubes.embedder() {
            Some(embedder) => {
                let texts = vec![request.query.clone()];
                let mut embeddings = self.in_time(embedder.embed(texts, Priority::Query)).await?;
                embeddings.pop().map(|embedding| embedding.vector)
            }
            None => None,
        };
        let request = Box::new(RecallRequest { request, vector });
        let CubeAnswer::Found(outcome) = self.call("search", CubeCall::Search(request)).await?
        else {
            return Err(unexpected_reply());
        };
        Ok(outcome)
    }

    /// Finds what the next turn of a conversation may need.
    ///
    /// # Errors
    /// `NotFound` without such a cube, `Overloaded`, `Unavailable`.
    pub async fn scene(&self, query: SceneQuery) -> Result<SceneAnswer> {
        let call = CubeCall::Scene(Box::new(query));
        let CubeAnswer::Scene(answer) = self.call("scene", call).await? else {
            return Err(unexpected_reply());
        };
        Ok(*answer)
    }

    /// Reads one item.
    ///
    /// # Errors
    /// `NotFound` without such a cube or item.
    pub async fn get(&self, id: MemoryId) -> Result<Arc<MemoryItem>> {
        let CubeAnswer::Item(item) = self.call("get", CubeCall::Get(id)).await? else {
            return Err(unexpected_reply());
        };
        Ok(item)
    }

    /// Reads items in the order in which they were made, after one of them.
    ///
    /// # Errors
    /// `Invalid` when the page is too large, `NotFound` without such a cube.
    pub async fn list(&self, after: Option<MemoryId>, limit: usize) -> Result<ItemPage> {
        if limit == 0 || limit > PAGE_ITEMS_MAX {
            return Err(Error::invalid(format!("`limit` must be between 1 and {PAGE_ITEMS_MAX}")));
        }
        let CubeAnswer::Page(page) = self.call("list", CubeCall::List { after, limit }).await?
        else {
            return Err(unexpected_reply());
        };
        Ok(page)
    }

    /// Reads the former versions of an item, oldest first; also of a deleted one.
    ///
    /// # Errors
    /// `NotFound` when the cube never held such an item, or its history was purged.
    pub async fn history(
        &self,
        id: MemoryId,
    ) -> Result<(Option<Arc<MemoryItem>>, Vec<MemoryRevision>)> {
        let current = match self.get(id).await {
            Ok(item) => Some(item),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.describe().await?;
                None
            }
            Err(error) => return Err(error),
        };
        let range = keys::history_of_item(&self.key.tenant, &self.key.cube, id);
        let output = self.cubes.store().read(vec![RangeRead::all(range)]).await?;
        let entries = output.pages.into_iter().flat_map(|page| page.entries);
        let revisions: Vec<MemoryRevision> =
            entries.map(|entry| Ok(decode(&entry.value)?)).collect::<Result<_>>()?;
        if current.is_none() && revisions.is_empty() {
            return Err(Error::not_found(format!("this cube has no history of `{id}`")));
        }
        Ok((current, revisions))
    }

    /// Changes one item; its former version is kept.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when `expected_revision` no longer holds, `Invalid` when the
    /// lifecycle refuses the new status.
    pub async fn update(&self, id: MemoryId, request: UpdateRequest) -> Result<MemoryItem> {
        let text = match request.text {
            Some(text) => Some(self.changed_text(text).await?),
            None => None,
        };
        if let Some(tags) = &request.tags {
            check_tags(tags)?;
        }
        check_info(request.info.as_deref().unwrap_or(""))?;
        let UpdateRequest { status, tags, info, expected_revision, .. } = request;
        let change = MemoryChange { text, status, tags, info };
        let command = CubeCommand::UpdateMemory { id, change, expected_revision };
        match self.change("update", command).await? {
            CubeReply::Updated { item } => Ok(*item),
            CubeReply::Added { .. } | CubeReply::Deleted { .. } => Err(unexpected_reply()),
        }
    }

    async fn changed_text(&self, text: String) -> Result<ChangedText> {
        if text.trim().is_empty() || text.len() > ITEM_TEXT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "`text` must have between 1 and {ITEM_TEXT_BYTES_MAX} bytes"
            )));
        }
        let Some(embedder) = self.cubes.embedder() else {
            let tokens = estimate_tokens(text.len());
            return Ok(ChangedText { text, vector: None, tokens });
        };
        let texts = vec![embedding_text(&text)];
        let embedding = embedder.embed(texts, Priority::Bulk).await?.pop();
        let embedding =
            embedding.ok_or_else(|| Error::internal("the embedder returned nothing"))?;
        Ok(ChangedText { text, vector: Some(embedding.vector), tokens: embedding.tokens })
    }

    /// Forgets items. A large selection is forgotten by several commits.
    ///
    /// # Errors
    /// `NotFound` when an id is unknown, `Invalid` when an item is frozen; then nothing is deleted.
    pub async fn delete(&self, request: DeleteRequest) -> Result<(Vec<MemoryId>, Version)> {
        let DeleteRequest { mut selection, purge } = request;
        let mut gone: Vec<MemoryId> = Vec::new();
        loop {
            let command = CubeCommand::DeleteMemories { selection: selection.clone(), purge };
            let reply = self.change("delete", command).await;
            let reply = reply.map_err(|error| match gone.len() {
                0 => error,
                count => error.with_note(&format!("{count} memories are deleted; retry")),
            })?;
            let CubeReply::Deleted { ids, more, version } = reply else {
                return Err(unexpected_reply());
            };
            if let Selection::Ids(wanted) = &mut selection {
                let ids: BTreeSet<MemoryId> = ids.iter().copied().collect();
                wanted.retain(|id| !ids.contains(id));
            }
            gone.extend(ids);
            // A large selection is deleted by several commits, each of them whole.
            if !more {
                return Ok((gone, version));
            }
        }
    }

    /// Reads the cube's manifest.
    ///
    /// # Errors
    /// `NotFound` without such a cube.
    pub async fn describe(&self) -> Result<CubeManifest> {
        let CubeAnswer::Manifest(manifest) = self.call("describe", CubeCall::Describe).await?
        else {
            return Err(unexpected_reply());
        };
        Ok(manifest)
    }

    /// Deletes the cube with everything in it. It cannot be undone.
    ///
    /// # Errors
    /// `NotFound` without such a cube, `Unavailable` while it is being written.
    pub async fn erase(&self) -> Result<()> {
        match self.call("erase", CubeCall::Erase).await {
            Ok(_) => Ok(()),
            // A cube that cannot be read, or is in quarantine, can still be deleted.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.cubes.erase_unread(&self.key).await
            }
            // So can one of which a restore that broke off has left some rows.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.cubes.discard_restore(&self.key).await? { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Asks the scheduler of the node that owns the cube.
    pub(crate) async fn ask_of_scheduler(&self, call: CubeCall) -> Result<CubeAnswer> {
        self.call("scheduler", call).await
    }

    async fn change(&self, name: &'static str, command: CubeCommand) -> Result<CubeReply> {
        let CubeAnswer::Changed(reply) = self.call(name, CubeCall::Change(command)).await? else {
            return Err(unexpected_reply());
        };
        Ok(reply)
    }

    pub(super) async fn call(&self, name: &'static str, call: CubeCall) -> Result<CubeAnswer> {
        let environment = self.cubes.environment();
        let start = environment.monotonic_us();
        let result = self.in_time(self.cubes.ask(&self.context, &self.key, call)).await;
        let took = environment.monotonic_us().saturating_sub(start);
        metrics::histogram!(names::CUBE_CALL_SECONDS, "command" => name).record(seconds(took));
        let outcome = if result.is_ok() { "ok" } else { "error" };
        metrics::counter!(names::CUBE_CALLS_TOTAL, "command" => name, "outcome" => outcome)
            .increment(1);
        result
    }

    /// Gives up after the time that a caller waits at the most.
    pub(super) async fn in_time<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = Duration::from_millis(CUBE_CALL_MS_MAX);
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "the cube `{}` did not answer within {CUBE_CALL_MS_MAX} ms; retry, and give an \
                 idempotency key with an add",
                self.key.cube
            ))
            .retry_after_ms(1_000))
        })
    }
}

/// Tells two adds apart: by texts in their order, conversation, labels and data.
fn fingerprint(drafts: &[MemoryDraft]) -> u64 {
    drafts.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, draft| {
        let conversation = draft.conversation.as_ref().map_or("", ConversationId::as_str);
        let parts = [draft.text.as_str(), conversation, draft.info.as_str()];
        let parts = parts.into_iter().chain(draft.tags.iter().map(String::as_str));
        parts.fold(hash, |hash, part| hash.rotate_left(5) ^ text_hash(part))
    })
}

pub(super) fn unexpected_reply() -> Error {
    Error::internal("the cube gave an answer to another question")
}
