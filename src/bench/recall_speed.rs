//! How fast recall is by itself: the index of one cube, without its actor, store and model.

use std::{collections::BTreeMap, hint::black_box, path::Path, sync::Arc, time::Instant};

use memcube_actors::{
    Error, Result,
    cube::recall::{RecallIndex, RecallRequest, SearchRequest},
};
use memcube_schemas::{MemoryId, limits::ITEMS_PER_CUBE_MAX, memory::MemoryItem};
use serde::Serialize;

use super::{Durations, words::Words};

/// Values of a vector, as MiniLM's.
const DIMENSIONS: usize = 384;
const QUERY_WORDS: std::ops::Range<usize> = 3..9;
const SEED: u64 = 20_260_101;
/// Queries that are asked before the clock runs.
const WARM_UP_QUERIES: usize = 20;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpeedReport {
    /// Memories in the index.
    pub items: usize,
    /// Different questions asked.
    pub queries: usize,
    /// How long it took to build the index.
    pub insert_seconds: f64,
    /// How long the searches took, embedding of the question excluded.
    pub search_ms: Durations,
}

/// Fills an index with synthetic memories and asks it. `vectors` names a file that gets the vectors
/// of memories and then of queries as little-endian f32, so that other engines can search the same.
///
/// # Errors
/// `Invalid` for a number that a cube cannot hold, `Unavailable` when the file cannot be written.
pub fn run(items: usize, queries: usize, vectors: Option<&Path>) -> Result<SpeedReport> {
    if !(1..=ITEMS_PER_CUBE_MAX).contains(&items) || queries == 0 {
        return Err(Error::invalid(format!(
            "`--items` must be between 1 and {ITEMS_PER_CUBE_MAX}, and `--queries` at least 1"
        )));
    }
    let words = Words::new(SEED);
    let mut index = RecallIndex::default();
    let mut by_id: BTreeMap<MemoryId, Arc<MemoryItem>> = BTreeMap::new();
    let mut inserting = std::time::Duration::ZERO;
    let mut bytes = Vec::new();
    let mut keep = |vector: &[f32]| {
        if vectors.is_some() {
            bytes.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
        }
    };
    for number in 0..items {
        let item = words.item(number);
        let vector = words.vector(DIMENSIONS);
        keep(&vector);
        let start = Instant::now();
        index.insert(&item, Some(&vector));
        inserting += start.elapsed();
        by_id.insert(item.id, Arc::new(item));
    }
    let request = || RecallRequest {
        request: SearchRequest::new(words.text(QUERY_WORDS)),
        vector: Some(words.vector(DIMENSIONS)),
    };
    for _ in 0..WARM_UP_QUERIES {
        black_box(index.search(&request(), &by_id));
    }
    let mut all_ms = Vec::with_capacity(queries);
    for _ in 0..queries {
        let request = request();
        keep(request.vector.as_deref().unwrap_or_default());
        let start = Instant::now();
        black_box(index.search(&request, &by_id));
        all_ms.push(start.elapsed().as_secs_f64() * 1_000.0);
    }
    if let Some(path) = vectors {
        std::fs::write(path, bytes).map_err(|error| {
            Error::unavailable(format!("cannot write `{}`: {error}", path.display()))
        })?;
    }
    Ok(SpeedReport {
        items,
        queries,
        insert_seconds: (inserting.as_secs_f64() * 1_000.0).round() / 1_000.0,
        search_ms: Durations::of(all_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_index_is_measured() {
        let report = run(200, 10, None).expect("it runs");
        assert_eq!((report.items, report.queries), (200, 10));
        assert!(report.search_ms.max > 0.0, "{report:?}");
        assert!(run(0, 10, None).is_err());
        assert!(run(10, 0, None).is_err());
    }
}
