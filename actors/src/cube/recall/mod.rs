//! Recall: what a cube knows about a question, found in its RAM.
//!
//! Two arms score every item, a dense one (dot products of MiniLM vectors) and a lexical one (BM25
//! over a window of neighbouring turns). Their z-scores are summed, not their ranks (measured on
//! LoCoMo: 65.0 against 56.1 recall@10), features of speaker, date and form are added, and the best
//! are cut to the caller's number and token budget. [`RecallIndex`] is pure: the same query on the
//! same items gives the same list.

mod across;
mod analysis;
mod dense;
#[cfg(test)]
mod dense_tests;
mod features;
mod index;
mod lexical;
mod query;
mod ragged;
mod rank;
mod restore;
mod scene;
mod simd;
mod slots;

pub use memcube_schemas::call::{ArmScores, Hit, RecallRequest, SearchFilter, SearchRequest};
use memcube_schemas::memory::MemoryItem;

pub use across::CubeHit;
pub(crate) use across::{Contender, Place, choose, index_terms, rescale, score};
pub use index::RecallIndex;
pub(crate) use restore::{Captured, Restored};

/// Whether an item meets all conditions.
pub(crate) fn lets_through(filter: &SearchFilter, item: &MemoryItem) -> bool {
    let in_conversation = filter
        .conversation
        .as_ref()
        .is_none_or(|conversation| item.conversation.as_ref() == Some(conversation));
    let said = |holds: &dyn Fn(i64) -> bool| item.said_at_ms.is_some_and(holds);
    in_conversation
        && (filter.kinds.is_empty() || filter.kinds.contains(&item.kind))
        && filter.tags.iter().all(|tag| item.tags.contains(tag))
        && filter.said_from_ms.is_none_or(|from| said(&|at| at >= from))
        && filter.said_before_ms.is_none_or(|before| said(&|at| at < before))
}

/// What recall found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// Best first.
    pub hits: Vec<Hit>,
    /// How sure recall is that the cube knows an answer, from 0 to 1.
    pub confidence: f32,
}

/// The part of a memory's text that is embedded: without dates, which say nothing about the meaning
/// and pull all turns of a day together.
#[must_use]
pub fn embedding_text(text: &str) -> String {
    features::without_dates(text)
}
