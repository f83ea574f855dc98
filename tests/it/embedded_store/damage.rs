//! Damaged files: a typed error or correct data, never a panic, never less than was acknowledged.

use std::{
    fmt::Write,
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
};

use futures_util::FutureExt;
use memcube::storage::EmbeddedStore;
use memcube_actors::storage::{StateStore, StoreError};
use memcube_schemas::Version;

use super::{copy_directory, entries, noise, set};

type Content = Vec<(Vec<u8>, Version, Vec<u8>)>;

#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Flips one bit at this thousandth of the used part of the file.
    Flip(usize),
    /// Overwrites 512 bytes there with zeros.
    Zero(usize),
    /// Cuts the file there.
    Cut(usize),
    Remove,
}

#[tokio::test]
async fn damaged_files_are_reported_or_harmless() {
    let source = tempfile::tempdir().expect("a directory");
    let content = fill(source.path()).await;
    let mut silent = Vec::new();
    let mut report = String::new();
    let report_path = std::env::var_os("MEMCUBE_TEST_DAMAGE_REPORT");
    for file in files(source.path(), source.path()) {
        for damage in damages(report_path.is_some()) {
            let copy = tempfile::tempdir().expect("a directory");
            copy_directory(source.path(), copy.path()).expect("copied");
            if !inflict(&copy.path().join(&file), damage) {
                continue;
            }
            let found = AssertUnwindSafe(open_and_read(copy.path())).catch_unwind().await;
            let verdict = match found {
                Ok(Ok(found)) if found == content => "correct data".to_owned(),
                Ok(Ok(found)) => format!("SILENT: {} of {} entries", found.len(), content.len()),
                Ok(Err(StoreError::Corrupt { reason })) => format!("corrupt: {reason}"),
                Ok(Err(error)) => format!("error: {error}"),
                Err(_) => "PANIC".to_owned(),
            };
            if verdict.starts_with(|first: char| first.is_ascii_uppercase()) {
                silent.push(format!("{} {damage:?}: {verdict}", file.display()));
            }
            writeln!(report, "{} {damage:?}: {verdict}", file.display()).expect("written");
        }
    }
    if let Some(path) = report_path {
        fs::write(path, &report).expect("written");
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

/// A journal that lost its tail with acknowledged commits in it, in a store that was not closed.
#[tokio::test]
async fn a_journal_that_lost_its_tail_is_noticed() {
    let source = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(source.path()).expect("opened");
    for number in 0..50 {
        store.commit(set(number, &format!("{number:02}"), b"x")).await.expect("committed");
    }
    let copy = tempfile::tempdir().expect("a directory");
    copy_directory(source.path(), copy.path()).expect("copied");
    assert!(inflict(&copy.path().join("fjall/0.jnl"), Damage::Zero(900)));
    let refused = EmbeddedStore::open(copy.path()).err().expect("refused").to_string();
    assert!(refused.contains("but commit 50 was acknowledged"), "{refused}");
    // The engine has cut its journal by now: the loss must still be noticed.
    let refused = EmbeddedStore::open(copy.path()).err().expect("refused").to_string();
    assert!(refused.contains("but commit 50 was acknowledged"), "{refused}");
}

/// A store with data in tables and in its journal, closed in good order.
async fn fill(directory: &Path) -> Content {
    let store = EmbeddedStore::open(directory).expect("opened");
    for number in 0..600 {
        let key = format!("{:04}", number * 7 % 600);
        store.commit(set(number, &key, &noise(number, 16_000))).await.expect("committed");
    }
    drop(store);
    // A start writes what waits in memory to tables, and shortens the journal.
    let store = EmbeddedStore::open(directory).expect("opened");
    for number in 600..620 {
        let key = format!("{:04}", number * 7 % 600);
        store.commit(set(number, &key, &noise(number, 3_000))).await.expect("committed");
    }
    entries(&store).await.expect("read")
}

async fn open_and_read(directory: &Path) -> Result<Content, StoreError> {
    entries(&EmbeddedStore::open(directory)?).await
}

/// What each file suffers; `thorough` when somebody wants the report.
fn damages(thorough: bool) -> Vec<Damage> {
    let (flips, zeros, cuts): (&[usize], &[usize], &[usize]) = if thorough {
        (
            &[0, 5, 100, 200, 350, 500, 650, 800, 900, 999],
            &[0, 300, 600, 999],
            &[0, 250, 500, 750, 990],
        )
    } else {
        (&[0, 200, 500, 999], &[300], &[0, 500])
    };
    let mut damages = vec![Damage::Remove];
    damages.extend(flips.iter().copied().map(Damage::Flip));
    damages.extend(zeros.iter().copied().map(Damage::Zero));
    damages.extend(cuts.iter().copied().map(Damage::Cut));
    damages
}

/// Returns whether the file differs afterwards.
fn inflict(file: &Path, damage: Damage) -> bool {
    let before = fs::read(file).expect("read");
    let used = before.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut bytes = before.clone();
    match damage {
        Damage::Remove => return fs::remove_file(file).is_ok(),
        Damage::Flip(_) | Damage::Zero(_) | Damage::Cut(_) if used == 0 => return false,
        Damage::Flip(place) => bytes[used * place / 1_000] ^= 0x10,
        Damage::Zero(place) => {
            let start = used * place / 1_000;
            let end = (start + 512).min(used);
            bytes[start..end].fill(0);
        }
        Damage::Cut(place) => bytes.truncate(used * place / 1_000),
    }
    fs::write(file, &bytes).expect("written");
    bytes != before
}

/// The files below a directory, relative to `root`, in order.
fn files(root: &Path, directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(root, &path));
        } else {
            found.push(path.strip_prefix(root).expect("it is below").to_path_buf());
        }
    }
    found.sort();
    found
}
