//! The scheduler of a node, and what cubes and callers tell it.

use memcube_schemas::{
    ConversationId,
    call::{CubeAnswer, CubeCall},
    command::{CubeCommand, MemoryDraft},
    conversation::{ConversationEvent, ConversationEventKind},
    limits::EVENT_TEXT_BYTES_MAX,
    memory::MemoryKind,
    scene::SceneTimeline,
};

use super::Cubes;
use crate::{
    cube::{CubeHandle, CubeKey},
    error::{Error, Result},
    scheduler::{SceneKey, SchedulerHandle, SchedulerParts, recover},
};

/// Memories of one add that may be the last turns of a conversation.
const NEWEST_DRAFTS: usize = 4;

/// A memory that was just made, as the turn that it was.
fn said(draft: &MemoryDraft, at_ms: i64) -> Option<ConversationEvent> {
    let conversation = draft.conversation.clone()?;
    let is_first = draft.part.is_none_or(|(part, _)| part == 1);
    let is_turn = draft.kind == MemoryKind::Episode && is_first;
    let (role, speaker) = (draft.role, draft.speaker.clone());
    let text = draft.source.content.clone();
    let kind = ConversationEventKind::TurnFinished { role, speaker, text };
    is_turn.then_some(ConversationEvent { conversation, id: None, at_ms, kind })
}

impl Cubes {
    /// Starts the scheduler of this node, which from now on prepares the next turns of
    /// conversations. It can be started once.
    ///
    /// # Errors
    /// `Internal` when it was started before, or cannot be started.
    pub async fn schedule(&self, parts: SchedulerParts) -> Result<()> {
        let node = std::sync::Arc::downgrade(&self.shared);
        let (store, environment) = (self.store().clone(), self.environment().clone());
        let jobs = self.jobs().clone();
        let started = SchedulerHandle::start(node, store, environment, jobs, parts).await?;
        match self.shared.scheduler.set(started) {
            Ok(()) => {
                let cubes = std::sync::Arc::downgrade(&self.shared);
                self.environment().spawn(async move { recover(&cubes).await });
                Ok(())
            }
            Err(second) => {
                second.stop().await;
                Err(Error::internal("the scheduler was started twice"))
            }
        }
    }

    /// The scheduler of this node, if it has one.
    #[must_use]
    pub fn scheduler(&self) -> Option<&SchedulerHandle> {
        self.shared.scheduler.get()
    }

    /// Answers what is asked of the scheduler of the cube's node; `None` if the cube is asked.
    pub(crate) async fn ask_scheduler(
        &self,
        key: &CubeKey,
        call: &CubeCall,
    ) -> Option<Result<CubeAnswer>> {
        match call {
            CubeCall::Note(event) => Some(self.note(key, event).await),
            CubeCall::Scenes(conversation) => Some(self.timeline(key, conversation).await),
            CubeCall::Change(_)
            | CubeCall::Get(_)
            | CubeCall::List { .. }
            | CubeCall::Search(_)
            | CubeCall::Describe
            | CubeCall::Erase
            | CubeCall::Context(_)
            | CubeCall::Scene(_) => None,
        }
    }

    /// Tells the scheduler what a call to a cube of this node has done.
    pub(crate) fn tell_scheduler(&self, key: &CubeKey, call: &CubeCall) {
        if matches!(call, CubeCall::Erase) {
            self.jobs().cancel_of_cube(&key.tenant, &key.cube);
        }
        let Some(scheduler) = self.scheduler() else { return };
        match call {
            CubeCall::Change(CubeCommand::AddMemories { drafts, .. }) => {
                let at_ms = self.environment().unix_ms();
                for draft in &drafts[drafts.len().saturating_sub(NEWEST_DRAFTS)..] {
                    if let Some(event) = said(draft, at_ms) {
                        scheduler.remembered(key, event);
                    }
                }
            }
            CubeCall::Erase => scheduler.forget(key),
            CubeCall::Change(
                CubeCommand::UpdateMemory { .. } | CubeCommand::DeleteMemories { .. },
            )
            | CubeCall::Get(_)
            | CubeCall::List { .. }
            | CubeCall::Search(_)
            | CubeCall::Describe
            | CubeCall::Context(_)
            | CubeCall::Scene(_)
            | CubeCall::Note(_)
            | CubeCall::Scenes(_) => {}
        }
    }

    async fn note(&self, key: &CubeKey, event: &ConversationEvent) -> Result<CubeAnswer> {
        // The cube is there, and in RAM before its next turn needs it.
        self.slot(key).await?;
        if let Some(scheduler) = self.scheduler() {
            scheduler.note(key, event.clone())?;
        }
        Ok(CubeAnswer::Noted)
    }

    async fn timeline(&self, key: &CubeKey, conversation: &ConversationId) -> Result<CubeAnswer> {
        self.slot(key).await?;
        let scene = SceneKey { cube: key.clone(), conversation: conversation.clone() };
        let timeline = match self.scheduler() {
            Some(scheduler) => scheduler.timeline(scene).await?,
            None => SceneTimeline::default(),
        };
        Ok(CubeAnswer::Scenes(Box::new(timeline)))
    }
}

impl CubeHandle {
    /// Tells the scheduler what happens in a conversation, so that its next turn is prepared.
    ///
    /// # Errors
    /// `Invalid` for a text that is too long, `NotFound` without such a cube, `Overloaded` when too
    /// many events wait.
    pub async fn note(&self, event: ConversationEvent) -> Result<()> {
        let bytes = event.kind.text_bytes();
        if bytes > EVENT_TEXT_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the event has {bytes} bytes of text, the limit is {EVENT_TEXT_BYTES_MAX}; send \
                 the last part of it"
            )));
        }
        let name = event.kind.as_str();
        if let ConversationEventKind::TopicMarked { text } = &event.kind
            && text.trim().is_empty()
        {
            return Err(Error::invalid(format!("`text` of a `{name}` event is empty")));
        }
        self.ask_of_scheduler(CubeCall::Note(Box::new(event))).await.map(|_| ())
    }

    /// What the scheduler did for a conversation, and what it thinks that the next turn needs.
    ///
    /// # Errors
    /// `NotFound` without such a cube, `Unavailable`.
    pub async fn scenes(&self, conversation: &ConversationId) -> Result<SceneTimeline> {
        match self.ask_of_scheduler(CubeCall::Scenes(conversation.clone())).await? {
            CubeAnswer::Scenes(timeline) => Ok(*timeline),
            CubeAnswer::Changed(_)
            | CubeAnswer::Item(_)
            | CubeAnswer::Page(_)
            | CubeAnswer::Found(_)
            | CubeAnswer::Manifest(_)
            | CubeAnswer::Erased
            | CubeAnswer::Context(_)
            | CubeAnswer::Scene(_)
            | CubeAnswer::Noted => Err(Error::internal("an answer to another question came")),
        }
    }
}
