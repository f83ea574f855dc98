//! The vector index as maps: exact, and the same in every process. The executable specification,
//! and what small installations run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::future::BoxFuture;
use memcube_schemas::{CubeId, MemoryId, Stamp};

use super::vector_index::{
    Candidate, Candidates, IndexResult, RowChange, SearchSpec, TableId, VectorIndex,
    VectorIndexError, VectorRow,
};
use crate::environment::Environment;

/// BM25's saturation and length normalisation: the usual values.
const BM25_K1: f32 = 1.2;
const BM25_B: f32 = 0.75;

type Place = (CubeId, MemoryId);

/// A vector index in RAM. A clone shares the tables.
#[derive(Debug, Clone)]
pub struct InMemoryVectorIndex {
    environment: Environment,
    rows_max: usize,
    tables: Arc<Mutex<BTreeMap<TableId, Arc<Mutex<Table>>>>>,
}

#[derive(Debug, Default, Clone)]
struct Table {
    watermark: Option<Stamp>,
    rows: BTreeMap<Place, VectorRow>,
    /// How often each term stands in which row.
    postings: BTreeMap<String, BTreeMap<Place, u32>>,
    terms: u64,
}

impl InMemoryVectorIndex {
    /// An empty index that refuses more rows than this in one table.
    #[must_use]
    pub fn new(environment: Environment, rows_max: usize) -> Self {
        Self { environment, rows_max, tables: Arc::default() }
    }

    /// The same tables for another life of their node.
    #[must_use]
    pub fn in_environment(&self, environment: Environment) -> Self {
        Self { environment, ..self.clone() }
    }

    /// A copy that shares nothing: what a reader with a stale view would see.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let copy = |(id, table): (&TableId, &Arc<Mutex<Table>>)| {
            (id.clone(), Arc::new(Mutex::new(lock(table).clone())))
        };
        let tables = lock(&self.tables).iter().map(copy).collect();
        Self { tables: Arc::new(Mutex::new(tables)), ..self.clone() }
    }

    fn table(&self, id: &TableId) -> Option<Arc<Mutex<Table>>> {
        lock(&self.tables).get(id).map(Arc::clone)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics while it holds the tables")
}

impl VectorIndex for InMemoryVectorIndex {
    fn apply(
        &self,
        table: &TableId,
        changes: Vec<RowChange>,
        watermark: Option<Stamp>,
    ) -> BoxFuture<'_, IndexResult<()>> {
        let table = Arc::clone(lock(&self.tables).entry(table.clone()).or_default());
        Box::pin(async move {
            let mut table = lock(&table);
            let more = changes.iter().filter(|change| matches!(change, RowChange::Put(_))).count();
            if table.rows.len() + more > self.rows_max {
                let reason = format!(
                    "a table in RAM holds {} rows, the limit is {}; set `vectors.kind` to `lance`",
                    table.rows.len(),
                    self.rows_max
                );
                return Err(VectorIndexError::Unavailable { reason });
            }
            changes.into_iter().for_each(|change| table.apply(change));
            table.watermark = watermark.or(table.watermark);
            Ok(())
        })
    }

    fn watermark(&self, table: &TableId) -> BoxFuture<'_, IndexResult<Option<Stamp>>> {
        let watermark = self.table(table).and_then(|table| lock(&table).watermark);
        Box::pin(std::future::ready(Ok(watermark)))
    }

    fn search(
        &self,
        table: &TableId,
        spec: SearchSpec,
    ) -> BoxFuture<'_, IndexResult<Option<Candidates>>> {
        let table = self.table(table);
        Box::pin(async move {
            let Some(table) = table else { return Ok(None) };
            let found = self.environment.compute(move || lock(&table).search(&spec)).await;
            found.ok_or_else(|| VectorIndexError::Unavailable {
                reason: "the search failed; see the log".to_owned(),
            })
        })
    }

    fn optimize(&self, _table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn drop_table(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        lock(&self.tables).remove(table);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Table {
    fn apply(&mut self, change: RowChange) {
        match change {
            RowChange::Put(row) => {
                let place = (row.cube.clone(), row.id);
                self.remove(&place);
                for term in row.terms.split(' ').filter(|term| !term.is_empty()) {
                    let rows = self.postings.entry(term.to_owned()).or_default();
                    *rows.entry(place.clone()).or_default() += 1;
                    self.terms += 1;
                }
                self.rows.insert(place, *row);
            }
            RowChange::Remove { cube, id } => self.remove(&(cube, id)),
            RowChange::RemoveCube { cube } => {
                let first = (cube.clone(), MemoryId::from_bytes([0; 16]));
                let of_cube = self.rows.range(first..).take_while(|((of, _), _)| *of == cube);
                let places: Vec<Place> = of_cube.map(|(place, _)| place.clone()).collect();
                places.iter().for_each(|place| self.remove(place));
            }
        }
    }

    fn remove(&mut self, place: &Place) {
        let Some(row) = self.rows.remove(place) else { return };
        for term in row.terms.split(' ').filter(|term| !term.is_empty()) {
            self.terms -= 1;
            if let Some(rows) = self.postings.get_mut(term) {
                rows.remove(place);
                if rows.is_empty() {
                    self.postings.remove(term);
                }
            }
        }
    }

    fn search(&self, spec: &SearchSpec) -> Option<Candidates> {
        let watermark = self.watermark?;
        let cubes: Option<BTreeSet<&CubeId>> =
            spec.cubes.as_ref().map(|cubes| cubes.iter().collect());
        let counts = |row: &VectorRow| {
            cubes.as_ref().is_none_or(|cubes| cubes.contains(&row.cube)) && row.passes(&spec.filter)
        };
        let lexical = self.lexical(&spec.terms);
        let words = lexical.iter().filter(|(place, _)| counts(&self.rows[*place]));
        let mut chosen: BTreeSet<&Place> =
            best(words.map(|(place, score)| (*score, *place)), spec.limit);
        if let Some(query) = &spec.vector {
            let dots =
                self.rows.iter().filter(|(_, row)| counts(row)).filter_map(|(place, row)| {
                    row.vector.as_ref().map(|vector| (dot(vector, query), place))
                });
            chosen.extend(best(dots, spec.limit));
        }
        let candidate = |place: &Place| {
            let row = &self.rows[place];
            let query = spec.vector.as_ref();
            Candidate {
                cube: row.cube.clone(),
                id: row.id,
                revision: row.revision,
                dense: row.vector.as_ref().zip(query).map(|(vector, query)| dot(vector, query)),
                lexical: lexical.get(place).copied(),
            }
        };
        Some(Candidates { watermark, found: chosen.into_iter().map(candidate).collect() })
    }

    /// BM25 of every row that holds one of the terms.
    fn lexical<'a>(&'a self, terms: &str) -> BTreeMap<&'a Place, f32> {
        let mut scores: BTreeMap<&Place, f32> = BTreeMap::new();
        let all = self.rows.len() as f32;
        let average = (self.terms as f32 / all.max(1.0)).max(1.0);
        for term in terms.split(' ') {
            let Some(holders) = self.postings.get(term) else { continue };
            let rarity = (all - holders.len() as f32 + 0.5) / (holders.len() as f32 + 0.5);
            let idf = (1.0 + rarity).ln();
            for (place, count) in holders {
                let count = *count as f32;
                let length = self.rows[place].terms.split(' ').count() as f32;
                let norm = BM25_K1 * (1.0 - BM25_B + BM25_B * length / average);
                *scores.entry(place).or_default() += idf * count * (BM25_K1 + 1.0) / (count + norm);
            }
        }
        scores
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// The places of the largest scores; ties go to the first place.
fn best<'a>(scored: impl Iterator<Item = (f32, &'a Place)>, limit: usize) -> BTreeSet<&'a Place> {
    let better = |left: &(f32, &Place), right: &(f32, &Place)| {
        right.0.total_cmp(&left.0).then_with(|| left.1.cmp(right.1))
    };
    let mut scored: Vec<(f32, &Place)> = scored.collect();
    if scored.len() > limit {
        scored.select_nth_unstable_by(limit, better);
        scored.truncate(limit);
    }
    scored.into_iter().map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::vector_conformance::{VectorBackend, run_all};

    struct InRam;

    impl VectorBackend for InRam {
        async fn open(&mut self) -> Arc<dyn VectorIndex> {
            Arc::new(InMemoryVectorIndex::new(Environment::scripted(1), 1_000))
        }

        async fn reopen(&mut self, index: Arc<dyn VectorIndex>) -> Arc<dyn VectorIndex> {
            index
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_index_in_ram_passes_the_suite() {
        run_all(&mut InRam).await;
    }
}
