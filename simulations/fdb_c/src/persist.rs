//! A commit log on disk, so that a store outlives its process.
//!
//! Invariant: a batch of commits is one record, and no client is told of a commit before the
//! record is on disk. So only the last record can be torn, and cutting it off loses nothing that
//! was acknowledged; damage anywhere else is an error and never cut away.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::atomic::AtomicOp;
use crate::conflicts::KeyRange;
use crate::errors::{
    Code, FILE_CORRUPT, FILE_NOT_READABLE, FILE_NOT_WRITABLE, IO_ERROR, LOCK_FILE_FAILURE,
};
use crate::mvcc::Bytes;
use crate::overlay::Mutation;
use crate::store::Store;

const MAGIC: &[u8; 8] = b"FDBCLOG1";
/// Length of the body, checksum of the length, checksum of the body.
const HEADER_BYTES: usize = 12;
/// A log is written anew at open when it is this many times what it holds, and larger than this.
const COMPACT_FACTOR: u64 = 4;
const COMPACT_BYTES_MIN: u64 = 1 << 20;
/// Rows of one record of a compacted log.
const COMPACT_BATCH_BYTES: usize = 1 << 20;

pub(crate) struct CommitLog {
    file: File,
    /// Held for as long as the log is open; beside the log, which compaction replaces.
    _lock: File,
    body: Vec<u8>,
}

impl CommitLog {
    /// Opens or makes the log at `path` and brings its commits into `store`.
    pub(crate) fn open(path: &Path, store: &mut Store) -> Result<CommitLog, Code> {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let lock = open_for_writing(&beside(".lock"))?;
        lock.try_lock().map_err(|_| LOCK_FILE_FAILURE)?;
        let mut file = open_for_writing(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|_| FILE_NOT_READABLE)?;
        let kept = replay(&bytes, store)?;
        let mut log = CommitLog { file, _lock: lock, body: Vec::new() };
        let live: u64 = live_bytes(store);
        if kept > COMPACT_BYTES_MIN && kept > COMPACT_FACTOR * live {
            log.file = compact(&beside(".new"), path, store)?;
        } else if kept < MAGIC.len() as u64 {
            log.start().map_err(|_| FILE_NOT_WRITABLE)?;
        } else {
            log.cut_to(kept).map_err(|_| FILE_NOT_WRITABLE)?;
        }
        sync_directory(path)?;
        Ok(log)
    }

    fn start(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(MAGIC)?;
        self.file.sync_all()
    }

    fn cut_to(&mut self, bytes: u64) -> std::io::Result<()> {
        self.file.set_len(bytes)?;
        self.file.seek(SeekFrom::Start(bytes))?;
        self.file.sync_all()
    }

    /// Adds a commit to the record that `sync` writes.
    pub(crate) fn append(&mut self, version: u64, batch: u16, mutations: &[Mutation]) {
        encode(&mut self.body, version, batch, mutations);
    }

    /// Makes what was appended durable.
    pub(crate) fn sync(&mut self) -> Result<(), Code> {
        if self.body.is_empty() {
            return Ok(());
        }
        let body = std::mem::take(&mut self.body);
        let record = framed(&body);
        let written = self.file.write_all(&record).and_then(|()| self.file.sync_data());
        written.map_err(|_| IO_ERROR)
    }
}

fn encode(body: &mut Vec<u8>, version: u64, batch: u16, mutations: &[Mutation]) {
    body.extend_from_slice(&version.to_le_bytes());
    body.extend_from_slice(&batch.to_le_bytes());
    body.extend_from_slice(&(mutations.len() as u32).to_le_bytes());
    for mutation in mutations {
        let (op, key, value) = match mutation {
            Mutation::Set { key, value } => (0, key, value),
            Mutation::Clear(range) => (1, &range.begin, &range.end),
            Mutation::Atomic { op, key, operand } => (op.code() as u8, key, operand),
            // Filled in before they are applied.
            Mutation::StampedKey { template: key, value }
            | Mutation::StampedValue { key, template: value } => (0, key, value),
        };
        body.push(op);
        for part in [key, value] {
            body.extend_from_slice(&(part.len() as u32).to_le_bytes());
            body.extend_from_slice(part);
        }
    }
}

fn open_for_writing(path: &Path) -> Result<File, Code> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|_| FILE_NOT_WRITABLE)
}

/// Makes the file's name durable.
fn sync_directory(path: &Path) -> Result<(), Code> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new(".")));
    directory.and_then(|directory| directory.sync_all()).map_err(|_| IO_ERROR)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_le_bytes();
    let mut record = Vec::with_capacity(HEADER_BYTES + body.len());
    record.extend_from_slice(&length);
    record.extend_from_slice(&checksum(&length).to_le_bytes());
    record.extend_from_slice(&checksum(body).to_le_bytes());
    record.extend_from_slice(body);
    record
}

/// CRC-32 (IEEE), bit by bit: a commit costs an fsync, next to which this is nothing.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let mask = (crc & 1).wrapping_neg();
            crc = (crc >> 1) ^ (0xEDB8_8320 & mask);
        }
    }
    !crc
}

/// What comes next in a log.
enum Next<'a> {
    Record(&'a [u8]),
    End,
    /// The last record was not written whole.
    Torn,
}

fn next_record(bytes: &[u8]) -> Result<Next<'_>, Code> {
    if bytes.is_empty() {
        return Ok(Next::End);
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(Next::Torn);
    };
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|place| header[at + place]));
    if word(4) != checksum(&header[..4]) {
        // The file grew and the bytes did not come: blocks that were never written read as zeros.
        return if bytes.iter().all(|byte| *byte == 0) {
            Ok(Next::Torn)
        } else {
            Err(FILE_CORRUPT)
        };
    }
    let length = word(0) as usize;
    match rest.get(..length) {
        None => Ok(Next::Torn),
        Some(body) if checksum(body) == word(8) => Ok(Next::Record(body)),
        Some(_) if rest.len() == length => Ok(Next::Torn),
        Some(_) => Err(FILE_CORRUPT),
    }
}

/// Brings the commits of a log into `store`; gives how many of its bytes are to be kept.
fn replay(bytes: &[u8], store: &mut Store) -> Result<u64, Code> {
    if bytes.len() < MAGIC.len() {
        // Torn before the first commit, or new.
        return if MAGIC.starts_with(bytes) { Ok(0) } else { Err(FILE_CORRUPT) };
    }
    if !bytes.starts_with(MAGIC) {
        return Err(FILE_CORRUPT);
    }
    let mut at = MAGIC.len();
    while let Next::Record(body) = next_record(&bytes[at..])? {
        let mut rest = body;
        while !rest.is_empty() {
            apply_commit(&mut rest, store).ok_or(FILE_CORRUPT)?;
        }
        at += HEADER_BYTES + body.len();
    }
    Ok(at as u64)
}

fn apply_commit(rest: &mut &[u8], store: &mut Store) -> Option<()> {
    let version = u64::from_le_bytes(take(rest, 8)?.try_into().ok()?);
    take(rest, 2)?;
    let count = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
    for _ in 0..count {
        let op = take(rest, 1)?[0];
        let (key, value) = (take_bytes(rest)?, take_bytes(rest)?);
        let mutation = match op {
            0 => Mutation::Set { key, value },
            1 => Mutation::Clear(KeyRange { begin: key, end: value }),
            code => {
                let op = AtomicOp::from_code(u32::from(code))?;
                Mutation::Atomic { op, key, operand: value }
            }
        };
        store.write(version, &mutation);
    }
    store.resume_at(version);
    // Nobody reads at the versions of an earlier process.
    store.rows.forget_before(version);
    Some(())
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

fn take_bytes(rest: &mut &[u8]) -> Option<Bytes> {
    let length = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
    take(rest, length as usize).map(Bytes::from)
}

fn live_bytes(store: &Store) -> u64 {
    let rows = store.rows.range(b"", b"\xff\xff", store.last());
    rows.map(|(key, value)| (key.len() + value.len()) as u64).sum()
}

/// Writes the rows of `store` to `new`, and puts that in the place of `path`.
fn compact(new: &Path, path: &Path, store: &Store) -> Result<File, Code> {
    let written = || -> std::io::Result<File> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(new)?;
        file.write_all(MAGIC)?;
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        let mut rows = store.rows.range(b"", b"\xff\xff", store.last()).peekable();
        // A record at least, because the version has to outlive the rows.
        loop {
            if let Some((key, value)) = rows.next() {
                batch_bytes += key.len() + value.len();
                batch.push(Mutation::Set { key: key.clone(), value: value.clone() });
            }
            if batch_bytes < COMPACT_BATCH_BYTES && rows.peek().is_some() {
                continue;
            }
            let mut log = Vec::new();
            encode(&mut log, store.last(), 0, &std::mem::take(&mut batch));
            file.write_all(&framed(&log))?;
            batch_bytes = 0;
            if rows.peek().is_none() {
                break;
            }
        }
        file.sync_all()?;
        std::fs::rename(new, path)?;
        Ok(file)
    };
    written().map_err(|_| FILE_NOT_WRITABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own for each test, gone at its end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let name = format!("memcube-fdb-c-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).expect("a directory");
            Directory(path)
        }

        fn log(&self) -> PathBuf {
            self.0.join("log")
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    fn set(key: &str, value: &str) -> Mutation {
        Mutation::Set { key: key.as_bytes().into(), value: value.as_bytes().into() }
    }

    fn rows(store: &Store) -> Vec<(Bytes, Bytes)> {
        let rows = store.rows.range(b"", b"\xff\xff", store.last());
        rows.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn open(path: &Path) -> Result<(CommitLog, Store), Code> {
        let mut store = Store::default();
        let log = CommitLog::open(path, &mut store)?;
        Ok((log, store))
    }

    /// Three records of two commits each; gives the rows after each.
    fn write_some(path: &Path) -> Vec<Vec<(Bytes, Bytes)>> {
        let (mut log, mut store) = open(path).expect("a log");
        let mut after = vec![rows(&store)];
        for record in 0..3_u64 {
            for batch in 0..2_u16 {
                let version = 100 + record;
                let key = format!("{record}/{batch}");
                let mutations = [
                    set(&key, "value"),
                    Mutation::Atomic {
                        op: AtomicOp::Add,
                        key: b"count"[..].into(),
                        operand: [1, 0][..].into(),
                    },
                    Mutation::Clear(KeyRange::new(b"0/1", b"0/2")),
                ];
                for mutation in &mutations {
                    store.write(version, mutation);
                }
                store.resume_at(version);
                log.append(version, batch, &mutations);
            }
            log.sync().expect("synced");
            after.push(rows(&store));
        }
        after
    }

    #[test]
    fn commits_outlive_their_process() {
        let directory = Directory::new("outlive");
        let after = write_some(&directory.log());
        let (mut log, mut store) = open(&directory.log()).expect("a log");
        assert_eq!((rows(&store), store.last()), (after[3].clone(), 102));
        log.append(103, 0, &[set("more", "1")]);
        log.sync().expect("synced");
        drop(log);
        store = open(&directory.log()).expect("a log").1;
        assert_eq!((rows(&store).len(), store.last()), (after[3].len() + 1, 103));
    }

    /// A log that ends anywhere holds the records that are whole, and takes new ones after them.
    #[test]
    fn a_torn_tail_is_cut_off() {
        let directory = Directory::new("torn");
        let after = write_some(&directory.log());
        let whole = std::fs::read(directory.log()).expect("the log");
        let mut seen = std::collections::BTreeSet::new();
        for bytes in (0..whole.len()).step_by(3) {
            std::fs::write(directory.log(), &whole[..bytes]).expect("written");
            let (mut log, store) = open(&directory.log()).expect("a log");
            let records = after.iter().position(|one| *one == rows(&store));
            seen.insert(records.expect("a state that was there"));
            log.append(200, 0, &[set("more", "1")]);
            log.sync().expect("synced");
            drop(log);
            let (_, again) = open(&directory.log()).expect("a log");
            assert_eq!((rows(&again).len(), again.last()), (rows(&store).len() + 1, 200));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
        // Blocks of the last record that never came read as zeros.
        for zeros in [1, 12, 40, 5_000] {
            let torn = [&whole[..], &vec![0; zeros]].concat();
            std::fs::write(directory.log(), &torn).expect("written");
            let (_, store) = open(&directory.log()).expect("a log");
            assert_eq!(rows(&store), after[3], "{zeros} zeros");
        }
    }

    /// A bit that flips in a record that is not the last is never taken for a torn tail.
    #[test]
    fn damage_is_an_error_and_nothing_is_cut() {
        let directory = Directory::new("damage");
        let after = write_some(&directory.log());
        let whole = std::fs::read(directory.log()).expect("the log");
        let last_record = {
            let mut at = MAGIC.len();
            let mut last = at;
            while let Ok(Next::Record(body)) = next_record(&whole[at..]) {
                last = at;
                at += HEADER_BYTES + body.len();
            }
            last
        };
        for place in (0..whole.len()).step_by(2) {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << (place % 8);
            std::fs::write(directory.log(), &damaged).expect("written");
            match open(&directory.log()) {
                Err(code) => {
                    assert_eq!(code, FILE_CORRUPT, "byte {place}");
                    let kept = std::fs::read(directory.log()).expect("the log");
                    assert_eq!(kept, damaged, "byte {place}");
                }
                Ok((_, store)) => {
                    assert!(place >= last_record, "byte {place} of {last_record}");
                    assert_eq!(rows(&store), after[2], "byte {place}");
                }
            }
        }
    }

    #[test]
    fn one_process_at_a_time() {
        let directory = Directory::new("lock");
        let (log, _) = open(&directory.log()).expect("a log");
        assert_eq!(open(&directory.log()).err(), Some(LOCK_FILE_FAILURE));
        drop(log);
        assert!(open(&directory.log()).is_ok());
        let nowhere = directory.0.join("no/such/directory/log");
        assert_eq!(open(&nowhere).err(), Some(FILE_NOT_WRITABLE));
        let other = directory.0.join("other");
        std::fs::write(&other, "not a commit log").expect("written");
        assert_eq!(open(&other).err(), Some(FILE_CORRUPT));
    }

    #[test]
    fn a_long_log_of_few_rows_is_written_anew() {
        let directory = Directory::new("compact");
        let (mut log, _) = open(&directory.log()).expect("a log");
        let value = "x".repeat(10_000);
        for version in 1..400 {
            log.append(version, 0, &[set(&format!("{}", version % 7), &value)]);
        }
        log.append(400, 0, &[set("last", "1")]);
        log.sync().expect("synced");
        drop(log);
        let long = std::fs::metadata(directory.log()).expect("the log").len();
        let (mut log, store) = open(&directory.log()).expect("a log");
        let before = rows(&store);
        let short = std::fs::metadata(directory.log()).expect("the log").len();
        assert!(long > 3_000_000 && short < 100_000, "{long} {short}");
        log.append(401, 0, &[set("more", "1")]);
        log.sync().expect("synced");
        drop(log);
        let (_, store) = open(&directory.log()).expect("a log");
        assert_eq!((before.len(), rows(&store).len(), store.last()), (8, 9, 401));
    }
}
