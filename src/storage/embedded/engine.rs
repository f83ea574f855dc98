//! fjall as this store uses it: one keyspace, tuned small, its errors in the port's words.
//!
//! Rows: `0x01` ++ version → tokens of a group (see `commit_log`), and `0x02` ++ key → version (8
//! bytes, big-endian) ++ value. One keyspace, because then one flush moves rows of both kinds
//! together.

use std::{
    error::Error,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::Duration,
};

use fjall::{
    CompressionType, Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable,
    Snapshot,
};
use memcube_actors::storage::{Entry, RangePage, RangeRead, StoreError};
use memcube_schemas::{Version, keys::KeyRange};

use super::directory::{corrupt, locked};

const KEYSPACE: &str = "state";
/// First byte of the rows of the commit log.
pub(super) const LOG_ROWS: u8 = 1;
const STATE_ROWS: u8 = 2;
const VERSION_BYTES: usize = 8;

/// Blocks kept in RAM. Hot cubes live in actors, so this serves little more than hydration.
const BLOCK_CACHE_BYTES: u64 = 8 << 20;
/// A memtable before it is written out; up to three wait behind a slow disk.
const MEMTABLE_BYTES_MAX: u64 = 8 << 20;
/// Journals on disk before the engine hurries to write memtables out.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;
const OPEN_FILES_MAX: usize = 128;
/// Memtables that wait to be written out before commits wait too; at four the engine halts.
const SEALED_MEMTABLES_MAX: usize = 2;
/// Tables that wait to be compacted before commits wait too; at 30 the engine halts.
const L0_TABLES_MAX: usize = 24;
const BACKGROUND_POLL: Duration = Duration::from_millis(1);
/// One for flushes and one for compaction, so that the first never waits for the second.
const WORKERS: usize = 2;

/// The open database.
#[derive(Clone)]
pub(super) struct Engine {
    database: Database,
    state: Keyspace,
}

/// A value and the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) version: Version,
    pub(super) value: Vec<u8>,
}

/// First version (8 bytes, big-endian) and tokens of a group.
pub(super) type LogRow = (Vec<u8>, Vec<u8>);

/// The rows that one group changes; `None` removes a key.
pub(super) struct GroupRows<'a> {
    pub(super) state: Vec<(&'a [u8], Option<&'a Stored>)>,
    pub(super) log_row: (Version, Vec<u8>),
    pub(super) expired_log_rows: Vec<Version>,
}

/// Why a group was not written.
pub(super) enum WriteFailure {
    /// Nothing of it will ever be seen.
    NotWritten(String),
    /// It may or may not be there after a restart.
    Undecided(String),
}

impl Engine {
    /// Opens the database, or makes it if `make`.
    pub(super) fn open(path: &Path, make: bool) -> Result<Self, StoreError> {
        // The engine asserts some of what it expects to find in files.
        catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(path, make)))
            .unwrap_or_else(|_| Err(corrupt(path, "the storage engine gave up on its files")))
    }

    fn open_unguarded(path: &Path, make: bool) -> Result<Self, StoreError> {
        if make {
            remove_unfinished(path)?;
        } else {
            check_markers(path)?;
        }
        let database = Database::builder(path)
            .cache_size(BLOCK_CACHE_BYTES)
            .max_cached_files(Some(OPEN_FILES_MAX))
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(WORKERS)
            .manual_journal_persist(true)
            // Recovery compresses again to verify checksums: another release of the compressor
            // that chooses other bytes would make a sound journal look damaged.
            .journal_compression(CompressionType::None)
            .open()
            .map_err(|error| open_error(path, &error))?;
        if !make && !database.keyspace_exists(KEYSPACE) {
            return Err(corrupt(path, "the engine's list of keyspaces is damaged"));
        }
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        let state =
            database.keyspace(KEYSPACE, options).map_err(|error| open_error(path, &error))?;
        Ok(Self { database, state })
    }

    /// What has been written until now, whether or not it is durable.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.database.snapshot()
    }

    /// Writes a group as one batch, and brings it to the disk.
    pub(super) fn write(&self, rows: &GroupRows<'_>) -> Result<(), WriteFailure> {
        self.wait_for_background()
            .map_err(|error| WriteFailure::NotWritten(write_reason(&error)))?;
        let mut batch = self.database.batch();
        for (key, stored) in &rows.state {
            match stored {
                Some(stored) => batch.insert(&self.state, state_row(key), encode(stored)),
                None => batch.remove(&self.state, state_row(key)),
            }
        }
        let (first_version, tokens) = &rows.log_row;
        batch.insert(&self.state, log_row(*first_version), tokens.as_slice());
        for first_version in &rows.expired_log_rows {
            batch.remove(&self.state, log_row(*first_version));
        }
        // Without its end marker, which is written last, a batch is discarded at recovery: an error
        // up to there is final. After it only the disk knows.
        batch
            .durability(None)
            .commit()
            .map_err(|error| WriteFailure::NotWritten(write_reason(&error)))?;
        self.database
            .persist(PersistMode::SyncData)
            .map_err(|error| WriteFailure::Undecided(write_reason(&error)))
    }

    /// Waits while flushes and compactions are behind.
    ///
    /// The engine does the same a little later, but there it would wait for ever once its workers
    /// have failed. Here the attempt to persist tells.
    fn wait_for_background(&self) -> fjall::Result<()> {
        while self.state.sealed_memtable_count() >= SEALED_MEMTABLES_MAX
            || self.state.l0_table_count() >= L0_TABLES_MAX
        {
            self.database.persist(PersistMode::Buffer)?;
            std::thread::sleep(BACKGROUND_POLL);
        }
        Ok(())
    }

    /// Reads one key.
    pub(super) fn get(&self, at: &Snapshot, key: &[u8]) -> Result<Option<Stored>, StoreError> {
        let found = at.get(&self.state, state_row(key)).map_err(|error| read_error(&error))?;
        found.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Reads one page.
    pub(super) fn page(&self, at: &Snapshot, read: &RangeRead) -> Result<RangePage, StoreError> {
        let mut rows = self.rows(at, &read.range, read.reverse);
        let mut entries = Vec::new();
        while entries.len() < read.limit {
            let Some(row) = rows.next() else { return Ok(RangePage { entries, more: false }) };
            let (row, bytes) = row.into_inner().map_err(|error| read_error(&error))?;
            let key = row[1..].to_vec();
            let Stored { version, value } = decode(&key, &bytes)?;
            entries.push(Entry { key, value, version });
        }
        Ok(RangePage { entries, more: rows.next().is_some() })
    }

    /// The keys of a range.
    pub(super) fn keys(&self, at: &Snapshot, range: &KeyRange) -> Result<Vec<Vec<u8>>, StoreError> {
        self.rows(at, range, false)
            .map(|row| Ok(row.key().map_err(|error| read_error(&error))?[1..].to_vec()))
            .collect()
    }

    /// The rows of the commit log, oldest first.
    pub(super) fn log_rows(&self, at: &Snapshot) -> Result<Vec<LogRow>, StoreError> {
        at.prefix(&self.state, [LOG_ROWS])
            .map(|row| {
                let (row, tokens) = row.into_inner().map_err(|error| read_error(&error))?;
                Ok((row[1..].to_vec(), tokens.to_vec()))
            })
            .collect()
    }

    fn rows(
        &self,
        at: &Snapshot,
        range: &KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Guard>> {
        if range.start >= range.end {
            return Box::new(std::iter::empty());
        }
        let rows = at.range(&self.state, state_row(&range.start)..state_row(&range.end));
        if reverse { Box::new(rows.rev()) } else { Box::new(rows) }
    }
}

/// Refuses a database without its markers, because the engine takes that for an unfinished
/// creation: it would silently start an empty database, or delete the directory of the keyspace.
fn check_markers(path: &Path) -> Result<(), StoreError> {
    for marker in ["version", "keyspaces/0/current", "keyspaces/1/current"] {
        if !path.join(marker).exists() {
            return Err(corrupt(path, &format!("the engine's file `{marker}` is missing")));
        }
    }
    Ok(())
}

/// Removes what is left of a creation that was interrupted before any commit.
fn remove_unfinished(path: &Path) -> Result<(), StoreError> {
    if path.join("version").exists() || !path.exists() {
        return Ok(());
    }
    let tolerate_missing = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(corrupt(path, &format!("the engine's file `version` is missing ({error})")))
        }
        Ok(()) | Err(_) => Ok(()),
    };
    // Keyspaces hold data, so this refuses a directory that is not empty.
    tolerate_missing(std::fs::remove_dir(path.join("keyspaces")))?;
    tolerate_missing(std::fs::remove_file(path.join("0.jnl")))
}

fn state_row(key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + key.len());
    row.push(STATE_ROWS);
    row.extend_from_slice(key);
    row
}

fn log_row(first_version: Version) -> Vec<u8> {
    let mut row = vec![LOG_ROWS];
    row.extend_from_slice(&first_version.0.to_be_bytes());
    row
}

fn encode(stored: &Stored) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(VERSION_BYTES + stored.value.len());
    bytes.extend_from_slice(&stored.version.0.to_be_bytes());
    bytes.extend_from_slice(&stored.value);
    bytes
}

fn decode(key: &[u8], bytes: &[u8]) -> Result<Stored, StoreError> {
    let Some((version, value)) = bytes.split_first_chunk::<VERSION_BYTES>() else {
        return Err(StoreError::Corrupt {
            reason: format!("the value of the key {key:02x?} has no version"),
        });
    };
    Ok(Stored { version: Version(u64::from_be_bytes(*version)), value: value.to_vec() })
}

/// The I/O error at the bottom of an error of the engine, if it is one.
fn io_error(error: &fjall::Error) -> Option<&io::Error> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Whether an I/O error means that bytes are not where the engine's own records say.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | InvalidData | InvalidInput | NotFound)
}

fn open_error(path: &Path, error: &fjall::Error) -> StoreError {
    if matches!(error, fjall::Error::Locked) {
        return locked(path);
    }
    match io_error(error) {
        Some(error) if !is_damage(error) => StoreError::Unavailable {
            reason: format!(
                "cannot open `{}`: {error}; check its permissions and free space, then restart \
                 memcube",
                path.display()
            ),
        },
        _ => corrupt(path, &format!("the storage engine cannot read its files ({error})")),
    }
}

fn read_error(error: &fjall::Error) -> StoreError {
    match io_error(error) {
        Some(error) if !is_damage(error) => {
            StoreError::Unavailable { reason: format!("cannot read from the disk: {error}") }
        }
        _ => StoreError::Corrupt {
            reason: format!(
                "a stored block cannot be read ({error}); stop memcube, keep a copy of its data \
                 directory, then restore it from a backup"
            ),
        },
    }
}

fn write_reason(error: &fjall::Error) -> String {
    match (error, io_error(error)) {
        (_, Some(error)) => format!("writing to the disk failed: {error}"),
        (fjall::Error::Poisoned, None) => {
            "writing tables to the disk failed in the background, often for lack of space"
                .to_owned()
        }
        (error, None) => format!("the storage engine failed to write: {error}"),
    }
}
