//! The vector index in LanceDB tables (<https://github.com/lancedb/lancedb>), in a directory of
//! this
//! node alone.
//!
//! One table for each shard of a tenant and model, with a column for the cube: a search of one cube
//! goes through a scalar index, so that a thousand cubes need no thousand tables. A row of its own
//! carries the watermark and is written in the same commit of Lance as the rows that it stands for.

mod columns;
mod filter;
mod handle;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::future::BoxFuture;
use lancedb::Connection;
use memcube_actors::{
    Error, Result,
    storage::vector_index::{
        Candidates, IndexResult, RowChange, SearchSpec, TableId, VectorIndex, VectorIndexError,
    },
};
use memcube_schemas::Stamp;

use self::handle::Handle;

/// Tables that are kept open; one more closes the least recently used.
const TABLES_OPEN_MAX: usize = 1_024;

/// How the index is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanceOptions {
    /// The directory of the tables.
    pub directory: PathBuf,
    /// Rows of one table from which on searches over all cubes use an approximate index.
    pub approximate_rows_min: usize,
}

/// A vector index on disk.
pub struct LanceIndex {
    shared: Arc<Shared>,
    handles: Mutex<Handles>,
}

/// What all tables need.
pub(crate) struct Shared {
    connection: Connection,
    options: LanceOptions,
}

/// Tables that were asked for, by their names, each with the turn in which it was used last.
#[derive(Default)]
struct Handles {
    turn: u64,
    by_name: BTreeMap<String, (u64, Arc<Handle>)>,
}

impl LanceIndex {
    /// Opens the directory, which is made if it is missing.
    ///
    /// # Errors
    /// `Unavailable` when the directory cannot be made or written, with the setting that names it.
    pub async fn open(options: LanceOptions) -> Result<Self> {
        let directory = options.directory.clone();
        let refused = |reason: String| {
            Error::unavailable(format!(
                "cannot open the vector tables in `{}`: {reason}; check `vectors.url`",
                directory.display()
            ))
        };
        tokio::fs::create_dir_all(&directory).await.map_err(|error| refused(error.to_string()))?;
        let path = directory.to_str().ok_or_else(|| refused("the path is no UTF-8".to_owned()))?;
        let connection = Box::pin(lancedb::connect(path).execute()).await;
        let connection = connection.map_err(|error| refused(error.to_string()))?;
        let shared = Arc::new(Shared { connection, options });
        Ok(Self { shared, handles: Mutex::default() })
    }

    fn handle(&self, table: &TableId) -> Arc<Handle> {
        let name = name_of(table);
        let mut handles = lock(&self.handles);
        handles.turn += 1;
        let turn = handles.turn;
        if let Some((used, handle)) = handles.by_name.get_mut(&name) {
            *used = turn;
            return Arc::clone(handle);
        }
        if handles.by_name.len() >= TABLES_OPEN_MAX {
            // One that somebody still uses stays: two handles of one table would not hear of each
            // other's changes.
            let idle = handles.by_name.iter().filter(|(_, (_, one))| Arc::strong_count(one) == 1);
            let oldest = idle.min_by_key(|(_, (used, _))| *used).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                handles.by_name.remove(&oldest);
            }
        }
        let handle = Arc::new(Handle::new(Arc::clone(&self.shared), name.clone()));
        handles.by_name.insert(name, (turn, Arc::clone(&handle)));
        handle
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics while it holds the tables")
}

/// The name of a table. Tenants are named in letters that a table may have; of the model only a
/// hash
/// is told, since its name may hold any.
fn name_of(table: &TableId) -> String {
    let model = table.model.as_ref().map_or("", |model| model.as_str());
    let hash = model.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}.{}.{hash:016x}", table.tenant, table.shard)
}

/// What Lance says, as the port says it.
fn failed(error: &lancedb::Error) -> VectorIndexError {
    let reason = error.to_string();
    if matches!(error, lancedb::Error::TableCorrupted { .. }) {
        return VectorIndexError::Corrupt { reason };
    }
    VectorIndexError::Unavailable {
        reason: format!("{reason}; check the disk of `vectors.url`, then retry"),
    }
}

impl VectorIndex for LanceIndex {
    fn apply(
        &self,
        table: &TableId,
        changes: Vec<RowChange>,
        watermark: Option<Stamp>,
    ) -> BoxFuture<'_, IndexResult<()>> {
        let handle = self.handle(table);
        Box::pin(async move { handle.apply(changes, watermark).await })
    }

    fn watermark(&self, table: &TableId) -> BoxFuture<'_, IndexResult<Option<Stamp>>> {
        let handle = self.handle(table);
        Box::pin(async move { handle.watermark().await })
    }

    fn search(
        &self,
        table: &TableId,
        spec: SearchSpec,
    ) -> BoxFuture<'_, IndexResult<Option<Candidates>>> {
        let handle = self.handle(table);
        Box::pin(async move { handle.search(spec).await })
    }

    fn optimize(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        let handle = self.handle(table);
        Box::pin(async move { handle.optimize().await })
    }

    fn drop_table(&self, table: &TableId) -> BoxFuture<'_, IndexResult<()>> {
        let handle = self.handle(table);
        Box::pin(async move { handle.drop_table().await })
    }
}
