//! One table: opened when it is first needed, made by its first rows.
//!
//! Invariant: a search never sees a table change into another one. It holds the table for reading;
//! whoever makes or drops it waits. Rows that are written meanwhile do no harm: the watermark is
//! read first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use arrow_array::{RecordBatch, RecordBatchIterator};
use arrow_schema::Schema;
use futures_util::{TryStreamExt, future::try_join};
use lancedb::{
    DistanceType, Table,
    database::CreateTableMode,
    index::{
        Index,
        scalar::{BTreeIndexBuilder, FtsIndexBuilder, FullTextSearchQuery},
        vector::IvfHnswSqIndexBuilder,
    },
    query::{ExecutableQuery, QueryBase, Select},
    table::{CompactionOptions, Duration, NewColumnTransform, OptimizeAction, OptimizeOptions},
};
use memcube_actors::storage::vector_index::{
    Candidate, Candidates, IndexResult, RowChange, SearchSpec, VectorIndexError, VectorRow,
};
use memcube_schemas::{CubeId, MemoryId, Stamp};
use tokio::sync::{Mutex as AsyncMutex, RwLock};

use super::{
    Shared,
    columns::{self, MARK_KEY, Row, VECTOR},
    failed, filter, lock,
};

/// Failures in a row after which a table counts as damaged, and is built again.
const FAILURES_MAX: u32 = 5;
/// Keys in one condition of a deletion.
const KEYS_PER_DELETE: usize = 512;
/// Seconds for which former versions of a table stay: no search takes longer.
const FORMER_VERSIONS_SECONDS: i64 = 120;
/// Candidates of the approximate index for each one wanted, scored exactly afterwards.
const REFINE_FACTOR: u32 = 4;

/// A table, whether it is there or not.
pub(super) struct Handle {
    shared: Arc<Shared>,
    name: String,
    state: RwLock<State>,
    /// Held by whoever writes.
    writing: AsyncMutex<()>,
    failures: AtomicU32,
}

enum State {
    Unopened,
    Missing,
    Open(Opened),
}

#[derive(Clone)]
struct Opened {
    table: Table,
    watermark: Arc<Mutex<Option<Stamp>>>,
    dimensions: Option<usize>,
    /// Whether there is an approximate index.
    is_approximate: Arc<AtomicBool>,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>, name: String) -> Self {
        Self {
            shared,
            name,
            state: RwLock::new(State::Unopened),
            writing: AsyncMutex::default(),
            failures: AtomicU32::new(0),
        }
    }

    pub(super) async fn watermark(&self) -> IndexResult<Option<Stamp>> {
        if self.failures.load(Ordering::Relaxed) >= FAILURES_MAX {
            let reason = format!("`{}` failed {FAILURES_MAX} times in a row", self.name);
            return Err(VectorIndexError::Corrupt { reason });
        }
        self.open().await?;
        match &*self.state.read().await {
            State::Open(opened) => Ok(*lock(&opened.watermark)),
            State::Unopened | State::Missing => Ok(None),
        }
    }

    /// Opens the table if nobody has yet.
    async fn open(&self) -> IndexResult<()> {
        if !matches!(&*self.state.read().await, State::Unopened) {
            return Ok(());
        }
        let mut state = self.state.write().await;
        if matches!(&*state, State::Unopened) {
            let opening = self.shared.connection.open_table(&self.name).execute();
            *state = match Box::pin(opening).await {
                Ok(table) => State::Open(self.counted(Opened::of(table).await)?),
                Err(lancedb::Error::TableNotFound { .. }) => State::Missing,
                Err(error) => return self.counted(Err(error)),
            };
        }
        Ok(())
    }

    /// Counts failures in a row.
    fn counted<T>(&self, result: lancedb::Result<T>) -> IndexResult<T> {
        match result {
            Ok(value) => {
                self.failures.store(0, Ordering::Relaxed);
                Ok(value)
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                Err(failed(&error))
            }
        }
    }

    pub(super) async fn search(&self, spec: SearchSpec) -> IndexResult<Option<Candidates>> {
        self.open().await?;
        let state = self.state.read().await;
        let State::Open(opened) = &*state else { return Ok(None) };
        let Some(watermark) = *lock(&opened.watermark) else { return Ok(None) };
        let (dense, lexical) = self.counted(Box::pin(opened.search(&spec)).await)?;
        Ok(Some(Candidates { watermark, found: merged(dense, lexical) }))
    }

    pub(super) async fn apply(
        &self,
        changes: Vec<RowChange>,
        watermark: Option<Stamp>,
    ) -> IndexResult<()> {
        self.open().await?;
        let _writing = self.writing.lock().await;
        let changes = Collapsed::of(changes);
        let dimensions =
            changes.rows.values().flatten().find_map(|row| row.vector.as_ref().map(Vec::len));
        let opened = match &*self.state.read().await {
            State::Open(opened) => Some(opened.clone()),
            State::Unopened | State::Missing => None,
        };
        match opened {
            Some(opened) => {
                let opened = match (opened.dimensions, dimensions) {
                    (None, Some(dimensions)) => self.widen(opened, dimensions).await?,
                    (Some(_), _) | (None, None) => opened,
                };
                self.counted(Box::pin(opened.apply(&changes, watermark)).await)
            }
            None => {
                let made = Box::pin(self.make(&changes, watermark, dimensions)).await;
                *self.state.write().await = State::Open(self.counted(made)?);
                Ok(())
            }
        }
    }

    /// Makes the table of its first rows.
    async fn make(
        &self,
        changes: &Collapsed,
        watermark: Option<Stamp>,
        dimensions: Option<usize>,
    ) -> lancedb::Result<Opened> {
        let mut rows = vec![Row::Mark(watermark)];
        rows.extend(changes.puts().map(Row::Memory));
        let batch = columns::batch(&rows, dimensions)?;
        let making = self.shared.connection.create_table(&self.name, batch);
        // What a crash left of an earlier try has no place in it.
        let table = making.mode(CreateTableMode::Overwrite).execute().await?;
        Opened::of(table).await
    }

    /// Gives a table that had no vectors yet a column for them.
    async fn widen(&self, opened: Opened, dimensions: usize) -> IndexResult<Opened> {
        let schema = Arc::new(Schema::new(vec![columns::vector_field(dimensions)]));
        let adding =
            opened.table.add_columns().transform(NewColumnTransform::AllNulls(schema)).execute();
        self.counted(Box::pin(adding).await)?;
        let opened = Opened { dimensions: Some(dimensions), ..opened };
        *self.state.write().await = State::Open(opened.clone());
        Ok(opened)
    }

    pub(super) async fn optimize(&self) -> IndexResult<()> {
        self.open().await?;
        let _writing = self.writing.lock().await;
        let opened = match &*self.state.read().await {
            State::Open(opened) => opened.clone(),
            State::Unopened | State::Missing => return Ok(()),
        };
        let rows_min = self.shared.options.approximate_rows_min;
        self.counted(Box::pin(opened.optimize(rows_min)).await)
    }

    pub(super) async fn drop_table(&self) -> IndexResult<()> {
        let _writing = self.writing.lock().await;
        let mut state = self.state.write().await;
        let dropped = Box::pin(self.shared.connection.drop_table(&self.name, &[])).await;
        match dropped {
            Ok(()) | Err(lancedb::Error::TableNotFound { .. }) => {
                *state = State::Missing;
                self.failures.store(0, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(failed(&error)),
        }
    }
}

impl Opened {
    /// Takes over a table: reads its watermark, and makes what is missing of its indexes.
    async fn of(table: Table) -> lancedb::Result<Self> {
        let indices = table.list_indices().await?;
        let is_indexed =
            |column: &str| indices.iter().any(|index| index.columns.iter().any(|of| of == column));
        for column in ["key", "cube"] {
            if !is_indexed(column) {
                let index = Index::BTree(BTreeIndexBuilder::default());
                table.create_index(&[column], index).execute().await?;
            }
        }
        if !is_indexed("terms") {
            // The terms come from memcube's own analysis: cut at blanks, and nothing else.
            let words = FtsIndexBuilder::default()
                .base_tokenizer("whitespace".to_owned())
                .stem(false)
                .remove_stop_words(false)
                .lower_case(false)
                .ascii_folding(false)
                .max_token_length(None);
            table.create_index(&["terms"], Index::FTS(words)).execute().await?;
        }
        let is_approximate = Arc::new(AtomicBool::new(is_indexed(VECTOR)));
        let dimensions = columns::dimensions(&*table.schema().await?);
        let of_mark = filter::is_one_of("key", [MARK_KEY].into_iter());
        let mark = table.query().only_if(of_mark).select(Select::columns(&["mark"]));
        let mark: Vec<RecordBatch> = mark.execute().await?.try_collect().await?;
        let watermark = Arc::new(Mutex::new(columns::mark(&mark)));
        Ok(Self { table, watermark, dimensions, is_approximate })
    }

    /// What each arm finds.
    async fn search(&self, spec: &SearchSpec) -> lancedb::Result<(Vec<Candidate>, Vec<Candidate>)> {
        let filter = filter::of(spec);
        let filter = filter.as_deref();
        try_join(Box::pin(self.dense(spec, filter)), Box::pin(self.lexical(spec, filter))).await
    }

    async fn dense(
        &self,
        spec: &SearchSpec,
        filter: Option<&str>,
    ) -> lancedb::Result<Vec<Candidate>> {
        let vector = spec.vector.as_ref().filter(|vector| self.dimensions == Some(vector.len()));
        let Some(vector) = vector else { return Ok(Vec::new()) };
        let mut query = self.table.query().nearest_to(vector.as_slice())?;
        query = query.column(VECTOR).distance_type(DistanceType::Dot).limit(spec.limit);
        // Among the rows of a few cubes the scalar index leaves little to scan, and an approximate
        // one would look for neighbours of which most are filtered out.
        query = if spec.cubes.is_none() && self.is_approximate.load(Ordering::Relaxed) {
            query.refine_factor(REFINE_FACTOR)
        } else {
            query.bypass_vector_index()
        };
        query = query.select(Select::columns(&["key", "revision", "_distance"]));
        if let Some(filter) = filter {
            query = query.only_if(filter);
        }
        let batches: Vec<RecordBatch> = query.execute().await?.try_collect().await?;
        Ok(columns::candidates(&batches, None))
    }

    async fn lexical(
        &self,
        spec: &SearchSpec,
        filter: Option<&str>,
    ) -> lancedb::Result<Vec<Candidate>> {
        if spec.terms.is_empty() {
            return Ok(Vec::new());
        }
        let words = FullTextSearchQuery::new(spec.terms.clone()).with_column("terms".to_owned())?;
        let mut query = self.table.query().full_text_search(words).limit(spec.limit);
        let mut wanted = vec!["key", "revision", "_score"];
        if self.dimensions.is_some() && spec.vector.is_some() {
            wanted.push(VECTOR);
        }
        query = query.select(Select::columns(&wanted));
        if let Some(filter) = filter {
            query = query.only_if(filter);
        }
        let batches: Vec<RecordBatch> = query.execute().await?.try_collect().await?;
        Ok(columns::candidates(&batches, spec.vector.as_deref()))
    }

    async fn apply(&self, changes: &Collapsed, watermark: Option<Stamp>) -> lancedb::Result<()> {
        if !changes.cubes.is_empty() {
            self.table.delete(filter::of_cubes(changes.cubes.iter()).as_str()).await?;
        }
        let gone: Vec<String> =
            changes.removes().map(|(cube, id)| columns::key(cube, id)).collect();
        for keys in gone.chunks(KEYS_PER_DELETE) {
            let keys = filter::is_one_of("key", keys.iter().map(String::as_str));
            self.table.delete(keys.as_str()).await?;
        }
        let mut rows: Vec<Row<'_>> = changes.puts().map(Row::Memory).collect();
        rows.extend(watermark.map(|watermark| Row::Mark(Some(watermark))));
        if rows.is_empty() {
            return Ok(());
        }
        let batch = columns::batch(&rows, self.dimensions)?;
        let schema = batch.schema();
        let mut merge = self.table.merge_insert(&["key"]);
        merge.when_matched_update_all(None).when_not_matched_insert_all();
        merge.execute(Box::new(RecordBatchIterator::new([Ok(batch)], schema))).await?;
        if watermark.is_some() {
            *lock(&self.watermark) = watermark;
        }
        Ok(())
    }

    async fn optimize(&self, approximate_rows_min: usize) -> lancedb::Result<()> {
        let options = CompactionOptions::default();
        self.table.optimize(OptimizeAction::Compact { options, remap_options: None }).await?;
        let prune = OptimizeAction::Prune {
            older_than: Some(Duration::seconds(FORMER_VERSIONS_SECONDS)),
            delete_unverified: None,
            error_if_tagged_old_versions: None,
        };
        self.table.optimize(prune).await?;
        self.table.optimize(OptimizeAction::Index(OptimizeOptions::default())).await?;
        let is_large = self.table.count_rows(None).await? >= approximate_rows_min;
        if is_large && self.dimensions.is_some() && !self.is_approximate.load(Ordering::Relaxed) {
            let index = IvfHnswSqIndexBuilder::default().distance_type(DistanceType::Dot);
            self.table.create_index(&[VECTOR], Index::IvfHnswSq(index)).execute().await?;
            self.is_approximate.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What changes come to when only the last one of each memory counts.
struct Collapsed {
    /// Cubes all of whose former rows go.
    cubes: BTreeSet<CubeId>,
    /// What then becomes of memories; `None` removes one.
    rows: BTreeMap<(CubeId, MemoryId), Option<VectorRow>>,
}

impl Collapsed {
    fn of(changes: Vec<RowChange>) -> Self {
        let mut collapsed = Self { cubes: BTreeSet::new(), rows: BTreeMap::new() };
        for change in changes {
            match change {
                RowChange::Put(row) => {
                    collapsed.rows.insert((row.cube.clone(), row.id), Some(*row));
                }
                RowChange::Remove { cube, id } => {
                    collapsed.rows.insert((cube, id), None);
                }
                RowChange::RemoveCube { cube } => {
                    collapsed.rows.retain(|(of, _), _| *of != cube);
                    collapsed.cubes.insert(cube);
                }
            }
        }
        collapsed
    }

    fn puts(&self) -> impl Iterator<Item = &VectorRow> {
        self.rows.values().flatten()
    }

    fn removes(&self) -> impl Iterator<Item = (&CubeId, MemoryId)> {
        self.rows.iter().filter(|(_, row)| row.is_none()).map(|((cube, id), _)| (cube, *id))
    }
}

/// The candidates of both arms, each once, in the order of cubes and memories.
fn merged(dense: Vec<Candidate>, lexical: Vec<Candidate>) -> Vec<Candidate> {
    let mut found: BTreeMap<(CubeId, MemoryId), Candidate> = BTreeMap::new();
    for candidate in dense.into_iter().chain(lexical) {
        let place = (candidate.cube.clone(), candidate.id);
        match found.get_mut(&place) {
            Some(known) => {
                known.dense = known.dense.or(candidate.dense);
                known.lexical = known.lexical.or(candidate.lexical);
            }
            None => drop(found.insert(place, candidate)),
        }
    }
    found.into_values().collect()
}
