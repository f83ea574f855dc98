//! What the scheduler may do with a cube: ask what the next turn may need, and have that ready. It
//! sees no text of a memory, and can change none.

use std::{collections::BTreeSet, sync::Arc};

use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    activation::NEVER_WANTED,
    limits::QUERY_BYTES_MAX,
    scene::{PreloadKind, SceneCandidate, SceneQuery},
};

use super::{
    CubeHandle, CubeKey, PreloadOutcome, PreloadRequest, SearchRequest, context::ChatTurn,
};
use crate::{
    directory::Cubes,
    error::{Error, Result},
    inference::Cancel,
    scheduler::plan::Held,
    tenant::TenantContext,
};

/// Memories that a turn is taken to have needed, where nobody says what it needed: the first that
/// recall finds for it.
const NEEDED: usize = 5;
/// As whom the scheduler asks.
const PRINCIPAL: &str = "scheduler";

/// A cube, for the scheduler.
#[derive(Debug, Clone)]
pub(crate) struct Preloader {
    cube: CubeHandle,
}

/// What is to be ready for the next turn of a conversation.
#[derive(Debug, Clone)]
pub enum PreloadMessage {
    /// The cube is in RAM. Whoever was told the candidates has seen to that.
    Plaintext,
    /// What was said and these memories are in the model's cache.
    Activation(PreloadRequest),
    /// An adapter is on top of the model.
    Parameter {
        /// Its name.
        adapter: String,
    },
}

impl PreloadMessage {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> PreloadKind {
        match self {
            Self::Plaintext => PreloadKind::Plaintext,
            Self::Activation(_) => PreloadKind::Activation,
            Self::Parameter { .. } => PreloadKind::Parameter,
        }
    }

    /// The same without some memories.
    pub(crate) fn without(mut self, memories: &BTreeSet<MemoryId>) -> Self {
        if let Self::Activation(request) = &mut self {
            request.memories.retain(|id| !memories.contains(id));
        }
        self
    }
}

/// What is known about the next turn.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    /// What it may need.
    pub(crate) candidates: Vec<SceneCandidate>,
    /// What the conversation's context contains already.
    pub(crate) held: Held,
}

/// What a conversation's prompt is made of, besides memories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PromptSoFar {
    pub(crate) preamble: Arc<str>,
    pub(crate) turns: Arc<Vec<ChatTurn>>,
}

impl PromptSoFar {
    pub(crate) fn bytes(&self) -> usize {
        self.preamble.len() + self.turns.iter().map(|turn| turn.text.len()).sum::<usize>()
    }
}

impl Preloader {
    pub(crate) fn new(cubes: Cubes, tenant: TenantId, cube: CubeId) -> Self {
        let context = TenantContext::authenticated(tenant, PRINCIPAL);
        Self { cube: cubes.cube(&context, cube) }
    }

    pub(crate) fn key(&self) -> &CubeKey {
        self.cube.key()
    }

    /// Brings the cube into RAM, here or where its owner is.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub(crate) async fn hydrate(&self) -> Result<()> {
        self.cube.describe().await.map(|_| ())
    }

    /// What the next turn may need, and what of it is ready.
    ///
    /// # Errors
    /// `NotFound`, `Overloaded`, `Unavailable`.
    pub(crate) async fn look(&self, query: SceneQuery) -> Result<Look> {
        let conversation = query.conversation.clone();
        let candidates = self.cube.scene(query).await?.candidates;
        let mut held = Held::default();
        let inference = self.cube.cubes().inference();
        if let (Some(inference), Some(conversation)) = (inference, conversation) {
            let model = inference.facts().fingerprint.model.clone();
            let known = self.cube.read_context(model, &conversation, Vec::new()).await?;
            let end = known.record.iter().flat_map(|record| record.end());
            held.end = end.map(|memory| (memory.source.id, memory.tokens)).collect();
            for memory in known.record.iter().flat_map(|record| record.memories()) {
                let id = memory.source.id;
                // What was in vain is about to be taken back from where it stands.
                if memory.wanted_at != NEVER_WANTED || held.end.contains_key(&id) {
                    held.memories.insert(id);
                    held.tokens += memory.tokens as usize;
                }
            }
        }
        Ok(Look { candidates, held })
    }

    /// The memories that a turn needed, as far as recall can tell: of other conversations.
    ///
    /// # Errors
    /// As `look`.
    pub(crate) async fn needed(
        &self,
        conversation: &ConversationId,
        said: &str,
    ) -> Result<Vec<MemoryId>> {
        const ASKED: usize = 50;
        if said.trim().is_empty() {
            return Ok(Vec::new());
        }
        let query = &said[..said.floor_char_boundary(QUERY_BYTES_MAX.min(said.len()))];
        let search = SearchRequest { top_k: ASKED, ..SearchRequest::new(query) };
        let found = self.cube.search(search).await?.hits;
        let others =
            found.iter().filter(|hit| hit.item.conversation.as_ref() != Some(conversation));
        Ok(others.take(NEEDED).map(|hit| hit.item.id).collect())
    }

    /// Whether a model of this node can compute ahead for the cube.
    pub(crate) fn can_compute(&self) -> bool {
        self.cube.cubes().inference().is_some() && self.cube.cubes().is_hot_here(self.key())
    }

    /// Has something ready for the next turn, unless it is stopped before; what was computed for
    /// it, if anything was.
    ///
    /// # Errors
    /// As `CubeHandle::preload`.
    pub(crate) async fn preload(
        &self,
        message: PreloadMessage,
        stop: &Cancel,
    ) -> Result<Option<PreloadOutcome>> {
        match message {
            PreloadMessage::Plaintext => Ok(None),
            PreloadMessage::Activation(request) => {
                self.cube.preload_until(request, stop).await.map(Some)
            }
            PreloadMessage::Parameter { adapter } => Err(Error::unavailable(format!(
                "the adapter `{adapter}` cannot be attached: this language model takes none"
            ))),
        }
    }
}
