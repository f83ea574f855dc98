//! The embedded state store: the conformance suite, crashes, damage, and disks that give out.

mod crash;
mod damage;
mod disk_full;

use std::{fs, io, path::Path, process::Command, sync::Arc};

use futures_util::FutureExt;
use memcube::storage::EmbeddedStore;
use memcube_actors::storage::{
    Commit, CommitToken, Mutation, RangeRead, SharedStore, StateStore, StoreError,
    conformance::{Backend, run_all},
};
use memcube_schemas::{Version, keys::KeyRange};
use tempfile::TempDir;

/// A crash leaves what the files hold at that moment: the copy of an open directory.
#[derive(Default)]
struct Embedded {
    /// Kept until the end; the last is the one in use.
    directories: Vec<TempDir>,
}

impl Backend for Embedded {
    async fn open(&mut self) -> SharedStore {
        let directory = tempfile::tempdir().expect("a directory");
        let store = EmbeddedStore::open(directory.path()).expect("opened");
        self.directories.push(directory);
        Arc::new(store)
    }

    async fn crash_and_reopen(&mut self, store: SharedStore) -> SharedStore {
        let left = tempfile::tempdir().expect("a directory");
        let open = self.directories.last().expect("one is open");
        copy_directory(open.path(), left.path()).expect("copied");
        drop(store);
        let store = EmbeddedStore::open(left.path()).expect("opened what the crash left");
        self.directories.push(left);
        Arc::new(store)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    run_all(&mut Embedded::default()).await;
}

#[tokio::test]
async fn a_clean_close_keeps_everything() {
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..3 {
        let store = EmbeddedStore::open(directory.path()).expect("opened");
        assert_eq!(entries(&store).await.expect("read").len(), round as usize * 10);
        for number in 0..10 {
            let key = format!("{round}/{number}");
            store.commit(set(round * 10 + number, &key, b"x")).await.expect("committed");
        }
    }
}

/// Handing in is what counts: a caller that stops waiting does not take its commit back.
#[tokio::test]
async fn commits_in_the_queue_survive_the_close() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(directory.path()).expect("opened");
    for number in 0..100 {
        let mut commit = store.commit(set(number, &number.to_string(), b"x"));
        // Polled once, then dropped.
        let _ = (&mut commit).now_or_never();
    }
    drop(store);
    let store = EmbeddedStore::open(directory.path()).expect("opened");
    assert_eq!(entries(&store).await.expect("read").len(), 100);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(directory.path()).expect("opened");
    let mut refused = 0;
    let mut waiting = Vec::new();
    for number in 0..200_000 {
        let mut commit = store.commit(set(number, "k", b"x"));
        match (&mut commit).now_or_never() {
            Some(Err(StoreError::Overloaded)) => refused += 1,
            Some(other) => assert!(other.is_ok(), "{other:?}"),
            None => waiting.push(commit),
        }
        if refused > 10 {
            break;
        }
    }
    assert!(refused > 10, "more than the queue holds was taken");
    for commit in waiting {
        commit.await.expect("what was taken is committed");
    }
}

#[tokio::test]
async fn a_directory_has_one_user() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(directory.path()).expect("opened");
    let refused = reason(EmbeddedStore::open(directory.path()));
    assert!(refused.contains("another memcube is using"), "{refused}");
    assert!(refused.contains("--data-dir"), "{refused}");

    let output = child("embedded_store::opens_in_a_child", directory.path()).output();
    let output = String::from_utf8(output.expect("a child").stdout).expect("text");
    assert!(
        output.contains("refused: the state store is unavailable: another memcube"),
        "{output}"
    );
    drop(store);
    EmbeddedStore::open(directory.path()).expect("free again");
}

#[test]
fn opens_in_a_child() {
    let Some(directory) = child_directory() else { return };
    match EmbeddedStore::open(&directory) {
        Ok(_) => println!("opened"),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn unusable_directories_are_refused_with_a_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "x").expect("written");
    let refused = reason(EmbeddedStore::open(&file.join("below")));
    assert!(refused.contains("writable directory"), "{refused}");

    let newer = directory.path().join("newer");
    drop(EmbeddedStore::open(&newer).expect("opened"));
    let marker = newer.join("memcube-store");
    let mut bytes = fs::read(&marker).expect("read");
    let digit = bytes.iter().position(|byte| *byte == b'1').expect("format 1");
    bytes[digit] = b'9';
    fs::write(&marker, bytes).expect("written");
    let refused = reason(EmbeddedStore::open(&newer));
    assert!(refused.contains("written by a newer memcube (format 9"), "{refused}");
}

/// A start that was interrupted before it was complete does not prevent the next one.
#[tokio::test]
async fn interrupted_creations_are_repeated() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(EmbeddedStore::open(directory.path()).expect("opened"));
    let engine = directory.path().join("fjall");
    fs::remove_file(engine.join("version")).expect("removed");
    fs::remove_dir_all(engine.join("keyspaces")).expect("removed");
    drop(EmbeddedStore::open(directory.path()).expect("the engine had no marker yet"));
    fs::remove_dir_all(&engine).expect("removed");
    fs::write(directory.path().join("memcube-store"), "memcube st").expect("written");
    let store = EmbeddedStore::open(directory.path()).expect("not even the marker was complete");
    store.commit(set(1, "a", b"x")).await.expect("committed");
    drop(store);
    fs::remove_file(engine.join("version")).expect("removed");
    let damaged = reason(EmbeddedStore::open(directory.path()));
    assert!(damaged.contains("`version` is missing"), "{damaged}");
}

fn reason(opened: Result<EmbeddedStore, StoreError>) -> String {
    match opened {
        Ok(_) => panic!("it must be refused"),
        Err(error) => error.to_string(),
    }
}

fn set(token: u64, key: &str, value: &[u8]) -> Commit {
    let mutation = Mutation::Set { key: key.as_bytes().to_vec(), value: value.to_vec() };
    Commit { token: CommitToken(token.into()), checks: Vec::new(), mutations: vec![mutation] }
}

/// Everything in a store, by key.
async fn entries(store: &EmbeddedStore) -> Result<Vec<(Vec<u8>, Version, Vec<u8>)>, StoreError> {
    let everything = KeyRange { start: Vec::new(), end: vec![0xff] };
    let mut read = store.read(vec![RangeRead::all(everything)]).await?;
    let entries = read.pages.remove(0).entries;
    Ok(entries.into_iter().map(|entry| (entry.key, entry.version, entry.value)).collect())
}

/// Bytes that no compressor makes smaller, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

const CHILD_DIRECTORY: &str = "MEMCUBE_TEST_CHILD_DIRECTORY";

/// This test binary again, running one test only, on a directory.
fn child(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
    command.env(CHILD_DIRECTORY, directory);
    command
}

/// The directory that the parent named; `None` in an ordinary run of the tests.
fn child_directory() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD_DIRECTORY).map(Into::into)
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            copy_without_zeros(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// The engine makes its journal 64 MB long before it writes: keeps the length, not the zeros.
fn copy_without_zeros(from: &Path, to: &Path) -> io::Result<()> {
    let bytes = fs::read(from)?;
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    fs::write(to, &bytes[..used])?;
    fs::File::options().write(true).open(to)?.set_len(bytes.len() as u64)
}
