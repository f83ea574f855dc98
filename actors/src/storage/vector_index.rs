//! The port to the vector tier: tables of vectors and words that span the cubes of a tenant.
//!
//! Everything in it is derived from the rows of the state store: it may lag behind, be dropped and
//! be built again. Invariant: a table holds at least what its watermark says, so whoever adds the
//! changes after the watermark and checks each candidate against its row misses nothing and shows
//! nothing that is gone. `in_memory_vectors` is the executable specification,
//! `vector_conformance` the suite that every backend passes.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, ModelId, Stamp, TenantId,
    call::SearchFilter,
    memory::{MemoryItem, MemoryKind},
};

use crate::error::{Error, ErrorKind};

/// A shared vector index.
pub type SharedVectorIndex = Arc<dyn VectorIndex>;

/// One table: a shard of a tenant under one model. Another model has tables of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// Whose.
    pub tenant: TenantId,
    /// Which shard of the tenant's feed it follows.
    pub shard: u16,
    /// The model of its vectors; `None` where no model is configured.
    pub model: Option<ModelId>,
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.shard)
    }
}

/// What a table knows of one memory: enough to choose candidates, never the text itself.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorRow {
    /// Its cube.
    pub cube: CubeId,
    /// Which memory.
    pub id: MemoryId,
    /// The revision of the memory that the row was made of.
    pub revision: u32,
    /// Unit vector; `None` for a memory without one.
    pub vector: Option<Vec<f32>>,
    /// Index terms of the text, separated by blanks.
    pub terms: String,
    /// What sort of memory it is.
    pub kind: MemoryKind,
    /// The conversation it was said in.
    pub conversation: Option<ConversationId>,
    /// Its labels.
    pub tags: Vec<String>,
    /// When it was said: Unix milliseconds.
    pub said_at_ms: Option<i64>,
}

impl VectorRow {
    /// The row of an item.
    #[must_use]
    pub fn of(cube: &CubeId, item: &MemoryItem, terms: String, vector: Option<Vec<f32>>) -> Self {
        Self {
            cube: cube.clone(),
            id: item.id,
            revision: item.revision,
            vector,
            terms,
            kind: item.kind,
            conversation: item.conversation.clone(),
            tags: item.tags.clone(),
            said_at_ms: item.said_at_ms,
        }
    }

    /// Whether the memory meets all conditions.
    #[must_use]
    pub fn passes(&self, filter: &SearchFilter) -> bool {
        let said = |holds: &dyn Fn(i64) -> bool| self.said_at_ms.is_some_and(holds);
        let conversation = filter.conversation.as_ref();
        conversation.is_none_or(|wanted| self.conversation.as_ref() == Some(wanted))
            && (filter.kinds.is_empty() || filter.kinds.contains(&self.kind))
            && filter.tags.iter().all(|tag| self.tags.contains(tag))
            && filter.said_from_ms.is_none_or(|from| said(&|at| at >= from))
            && filter.said_before_ms.is_none_or(|before| said(&|at| at < before))
    }
}

/// A change of a table. Changes of one `apply` take effect in order.
#[derive(Debug, Clone, PartialEq)]
pub enum RowChange {
    /// Writes a row in place of a former one of the same memory.
    Put(Box<VectorRow>),
    /// Removes the row of a memory, if it is there.
    Remove {
        /// Its cube.
        cube: CubeId,
        /// Which memory.
        id: MemoryId,
    },
    /// Removes every row of a cube.
    RemoveCube {
        /// Which cube.
        cube: CubeId,
    },
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchSpec {
    /// The unit vector of the question; `None` leaves the dense arm out.
    pub vector: Option<Vec<f32>>,
    /// Index terms of the question, separated by blanks; empty leaves the lexical arm out.
    pub terms: String,
    /// Only these cubes; `None` means all.
    pub cubes: Option<Vec<CubeId>>,
    /// Conditions on memories.
    pub filter: SearchFilter,
    /// Candidates of each arm at the most.
    pub limit: usize,
}

/// A memory that may answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its cube.
    pub cube: CubeId,
    /// Which memory.
    pub id: MemoryId,
    /// The revision that the scores were made of.
    pub revision: u32,
    /// Dot product of its vector with the question's, exact; `None` without a vector.
    pub dense: Option<f32>,
    /// How well its words fit, in the table's own measure; `None` when only its vector does.
    pub lexical: Option<f32>,
}

/// What a table knows about a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates {
    /// Every change up to here was looked at; later ones perhaps.
    pub watermark: Stamp,
    /// The best of each arm, in the order of cubes and memories.
    pub found: Vec<Candidate>,
}

/// Why a vector index failed; each kind says what the caller should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VectorIndexError {
    /// It cannot work now: retry later, or follow the reason.
    Unavailable {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A table cannot be read: it is dropped and built again.
    Corrupt {
        /// What was found.
        reason: String,
    },
}

impl fmt::Display for VectorIndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { reason } => write!(f, "the vector index is unavailable: {reason}"),
            Self::Corrupt { reason } => write!(f, "a table of vectors is damaged: {reason}"),
        }
    }
}

impl std::error::Error for VectorIndexError {}

impl From<VectorIndexError> for Error {
    fn from(error: VectorIndexError) -> Self {
        // Whatever is wrong with something derived is passing: it is built again.
        let kind = match &error {
            VectorIndexError::Unavailable { .. } | VectorIndexError::Corrupt { .. } => {
                ErrorKind::Unavailable
            }
        };
        Self::new(kind, error.to_string())
    }
}

/// Shorthand for what an index answers.
pub type IndexResult<T> = Result<T, VectorIndexError>;

/// An index over the vectors and words of many cubes.
pub trait VectorIndex: Send + Sync + 'static {
    /// Applies changes to a table, which is made if it is missing; with a watermark, the table
    /// stands for everything up to it afterwards. The watermark takes effect with the changes or
    /// after them, never before. Applying the same again has no further effect.
    fn apply(
        &self,
        table: &TableId,
        changes: Vec<RowChange>,
        watermark: Option<Stamp>,
    ) -> BoxFuture<'_, IndexResult<()>>;

    /// Up to where a table is whole; `None` while there is none, or it is still being built.
    fn watermark(&self, table: &TableId) -> BoxFuture<'_, IndexResult<Option<Stamp>>>;

    /// Finds candidates; `None` while the table is missing or still being built.
    fn search(
        &self,
        table: &TableId,
        spec: SearchSpec,
    ) -> BoxFuture<'_, IndexResult<Option<Candidates>>>;

    /// Tidies a table up: merges small files, forgets former versions, brings its indexes up to
    /// date. What it holds stays the same.
    fn optimize(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>>;

    /// Removes a table with everything in it.
    fn drop_table(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>>;
}
