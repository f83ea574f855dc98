//! The decision log: what was weighed for a turn, and what the turn needed, so that other policies
//! can be tried on it. It holds identifiers and numbers, never a text.

use std::sync::Arc;

use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    scene::{SceneCandidate, SceneOutcome},
};
use serde::{Deserialize, Serialize};

use super::{conversation::Lesson, inbox::SceneKey};

/// One turn that was prepared for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Whose.
    pub tenant: TenantId,
    /// Of which cube.
    pub cube: CubeId,
    /// In which conversation.
    pub conversation: ConversationId,
    /// When the turn came: Unix milliseconds.
    pub at_ms: i64,
    /// Whether something of the turn had been typed by then.
    pub is_typing: bool,
    /// What was weighed, with what was known of each.
    pub candidates: Vec<SceneCandidate>,
    /// Those that were in the context before.
    pub held: Vec<MemoryId>,
    /// What the turn needed.
    pub needed: Vec<MemoryId>,
    /// What became of what was prepared.
    pub outcome: SceneOutcome,
}

/// Where decisions are written down. Called on the scheduler's path: must return at once.
pub trait DecisionLog: Send + Sync {
    /// Writes one down, or drops it if that would take long.
    fn write(&self, record: DecisionRecord);
}

/// A log, for the shards.
#[derive(Clone)]
pub(super) struct Log(pub(super) Arc<dyn DecisionLog>);

impl Log {
    /// A turn has come.
    pub(super) fn note(&self, scene: &SceneKey, lesson: &Lesson, at_ms: i64) {
        // What was typed last tells most.
        let mut weighed = lesson.weighed.iter().zip([false, true]).rev();
        let known = weighed.find(|(weighed, _)| !weighed.candidates.is_empty());
        let Some((weighed, is_typing)) = known else { return };
        self.0.write(DecisionRecord {
            tenant: scene.cube.tenant.clone(),
            cube: scene.cube.cube.clone(),
            conversation: scene.conversation.clone(),
            at_ms,
            is_typing,
            candidates: weighed.candidates.clone(),
            held: weighed.held.iter().copied().collect(),
            needed: lesson.needed.iter().copied().collect(),
            outcome: lesson.outcome.clone(),
        });
    }
}
