//! A store on disk outlives a kill: what a process was told is committed is there afterwards.

#![expect(clippy::disallowed_methods, reason = "real threads are what is tested here")]

use std::collections::BTreeSet;
use std::ffi::{CString, c_int};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;

use fdb_c::api::*;

const LOG: &str = "MEMCUBE_FDB_C_KILL_LOG";
const ROUNDS: u32 = 4;

/// Opens the store of `log` with a real network thread. Once per process.
fn open(log: &Path) -> *mut FDBDatabase {
    let path = CString::new(format!("sim@file:{}", log.display())).expect("a path");
    let mut database = ptr::null_mut();
    // SAFETY: the calls of a program that begins, in their order; the path ends with a zero, and
    // `database` is a place for the handle.
    unsafe {
        assert_eq!(fdb_select_api_version_impl(730, 730), 0);
        assert_eq!(fdb_setup_network(), 0);
        std::thread::spawn(|| fdb_run_network());
        assert_eq!(fdb_create_database(path.as_ptr(), &raw mut database), 0);
    }
    database
}

/// Sets a key to its own bytes; gives the error.
fn put(database: *mut FDBDatabase, key: &[u8]) -> c_int {
    let length = key.len() as c_int;
    let mut transaction = ptr::null_mut();
    // SAFETY: the handles live until they are destroyed here, and the byte strings have this
    // length.
    unsafe {
        assert_eq!(fdb_database_create_transaction(database, &raw mut transaction), 0);
        fdb_transaction_set(transaction, key.as_ptr(), length, key.as_ptr(), length);
        let commit = fdb_transaction_commit(transaction);
        assert_eq!(fdb_future_block_until_ready(commit), 0);
        let code = fdb_future_get_error(commit);
        fdb_future_destroy(commit);
        fdb_transaction_destroy(transaction);
        code
    }
}

/// Whether a key is set to its own bytes.
fn is_there(database: *mut FDBDatabase, key: &[u8]) -> bool {
    let mut transaction = ptr::null_mut();
    let (mut present, mut value, mut length) = (0, ptr::null(), 0);
    // SAFETY: as above; the value is read while its future lives.
    unsafe {
        assert_eq!(fdb_database_create_transaction(database, &raw mut transaction), 0);
        let get = fdb_transaction_get(transaction, key.as_ptr(), key.len() as c_int, 0);
        assert_eq!(fdb_future_block_until_ready(get), 0);
        let code = fdb_future_get_value(get, &raw mut present, &raw mut value, &raw mut length);
        assert_eq!(code, 0);
        let found = std::slice::from_raw_parts(value, length as usize) == key;
        fdb_future_destroy(get);
        fdb_transaction_destroy(transaction);
        present == 1 && found
    }
}

/// The process that is killed: commits from three threads, and says on its output what it was
/// told.
#[test]
fn child() {
    let Some(log) = std::env::var_os(LOG) else { return };
    let database = open(Path::new(&log)) as usize;
    let process = std::process::id();
    let threads = (0..3).map(|thread| {
        std::thread::spawn(move || {
            for number in 0.. {
                let key = format!("{process}/{thread}/{number}");
                assert_eq!(put(database as *mut FDBDatabase, key.as_bytes()), 0);
                let line = format!("committed {key}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).expect("written");
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
}

#[test]
fn what_was_acknowledged_outlives_a_kill() {
    let name = format!("memcube-fdb-c-kill-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).expect("a directory");
    let log = directory.join("log");
    let mut told = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "child", "--nocapture"])
            .env(LOG, &log)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let keys = lines.map_while(Result::ok);
        let mut keys = keys.filter_map(|line| line.split("committed ").nth(1).map(str::to_owned));
        told.extend(keys.by_ref().take(20 + 30 * round as usize));
        child.kill().expect("killed");
        // What it managed to say before.
        told.extend(keys);
        child.wait().expect("waited");
    }
    // SAFETY: nobody else is in this part of the process yet.
    let database = open(&log);
    assert!(told.len() >= 200, "{} commits", told.len());
    for key in &told {
        assert!(is_there(database, key.as_bytes()), "{key} was acknowledged and is gone");
    }
    // SAFETY: the handle is destroyed here and nowhere else.
    unsafe {
        fdb_database_destroy(database);
        assert_eq!(fdb_stop_network(), 0);
    }
    std::fs::remove_dir_all(&directory).expect("removed");
}
