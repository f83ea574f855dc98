//! The C interface as a program uses it, in simulated time.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fdb_c::api::*;
use fdb_c::sim::{self, Faults, SimConfig};

/// A database of the simulation that runs on this thread.
struct Database(*mut FDBDatabase);

struct Transaction(*mut FDBTransaction);

struct Future(*mut FDBFuture);

impl Database {
    fn open(cluster: &str) -> Database {
        let path = CString::new(cluster).expect("a path");
        let mut out = ptr::null_mut();
        // SAFETY: the path ends with a zero, and `out` is a place for the handle.
        assert_eq!(unsafe { fdb_create_database(path.as_ptr(), &raw mut out) }, 0);
        Database(out)
    }

    fn transaction(&self) -> Transaction {
        let mut out = ptr::null_mut();
        // SAFETY: the handle lives as long as `self`, and `out` is a place for the new one.
        assert_eq!(unsafe { fdb_database_create_transaction(self.0, &raw mut out) }, 0);
        Transaction(out)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: the handle is destroyed here and nowhere else.
        unsafe { fdb_database_destroy(self.0) };
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // SAFETY: the handle is destroyed here and nowhere else.
        unsafe { fdb_transaction_destroy(self.0) };
    }
}

impl Drop for Future {
    fn drop(&mut self) {
        // SAFETY: the handle is destroyed here and nowhere else.
        unsafe { fdb_future_destroy(self.0) };
    }
}

fn length(bytes: &[u8]) -> c_int {
    c_int::try_from(bytes.len()).expect("a short byte string")
}

impl Transaction {
    fn set(&self, key: &[u8], value: &[u8]) {
        let (key_length, value_length) = (length(key), length(value));
        // SAFETY: the handle lives, and the byte strings have these lengths.
        unsafe {
            fdb_transaction_set(self.0, key.as_ptr(), key_length, value.as_ptr(), value_length);
        }
    }

    fn get(&self, key: &[u8]) -> Future {
        // SAFETY: the handle lives, and the byte string has this length.
        Future(unsafe { fdb_transaction_get(self.0, key.as_ptr(), length(key), 0) })
    }

    fn commit(&self) -> Future {
        // SAFETY: the handle lives.
        Future(unsafe { fdb_transaction_commit(self.0) })
    }

    fn range(&self, begin: &[u8], end: &[u8]) -> Future {
        let (begin_length, end_length) = (length(begin), length(end));
        let (begin, end) = (begin.as_ptr(), end.as_ptr());
        // SAFETY: the handle lives, and the byte strings have these lengths.
        Future(unsafe {
            fdb_transaction_get_range(
                self.0,
                begin,
                begin_length,
                0,
                1,
                end,
                end_length,
                0,
                1,
                0,
                0,
                -2,
                0,
                0,
                0,
            )
        })
    }
}

impl Future {
    fn is_ready(&self) -> bool {
        // SAFETY: the handle lives.
        unsafe { fdb_future_is_ready(self.0) != 0 }
    }

    fn error(&self) -> c_int {
        // SAFETY: the handle lives.
        unsafe { fdb_future_get_error(self.0) }
    }

    fn run(&self) -> c_int {
        while !self.is_ready() {
            sim::run_until(sim::next_at().expect("something is to happen"));
        }
        self.error()
    }

    fn value(&self) -> Result<Option<Vec<u8>>, c_int> {
        let (mut present, mut value, mut bytes) = (0, ptr::null(), 0);
        // SAFETY: the handle lives, and the results have places.
        match unsafe {
            fdb_future_get_value(self.0, &raw mut present, &raw mut value, &raw mut bytes)
        } {
            0 if present == 0 => Ok(None),
            // SAFETY: the future says that so many bytes are there, and it lives.
            0 => Ok(Some(unsafe { std::slice::from_raw_parts(value, bytes as usize) }.to_vec())),
            code => Err(code),
        }
    }
}

#[test]
fn a_value_is_written_and_read() {
    sim::start(1, SimConfig::default());
    let database = Database::open("sim:one");
    let transaction = database.transaction();
    transaction.set(b"key", b"value");
    let commit = transaction.commit();
    assert!(!commit.is_ready());
    assert_eq!((commit.error(), commit.value()), (2015, Err(2015)), "not ready");
    assert_eq!(commit.run(), 0);
    assert_eq!(commit.value(), Err(2000), "a commit holds no value");

    let read = database.transaction();
    let (there, absent) = (read.get(b"key"), read.get(b"other"));
    assert_eq!((there.run(), absent.run()), (0, 0));
    assert_eq!((there.value(), absent.value()), (Ok(Some(b"value".to_vec())), Ok(None)));

    let rows = read.range(b"a", b"z");
    assert_eq!(rows.run(), 0);
    let (mut found, mut count, mut more) = (ptr::null(), 0, 0);
    // SAFETY: the handle lives, and the results have places.
    let code = unsafe {
        fdb_future_get_keyvalue_array(rows.0, &raw mut found, &raw mut count, &raw mut more)
    };
    assert_eq!((code, count, more), (0, 1, 0));
    assert!(!found.is_null());
    assert_eq!(sim::snapshot("one"), vec![(b"key".to_vec(), b"value".to_vec())]);
    assert_eq!(sim::applied("one").len(), 1);
    assert_eq!(sim::last_version("one") > 0, sim::handles().len() == 1);
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_call(_future: *mut FDBFuture, parameter: *mut c_void) {
    CALLS.fetch_add(parameter as usize, Ordering::Relaxed);
}

#[test]
fn callbacks_come_from_the_pump_and_once() {
    sim::start(1, SimConfig::default());
    let database = Database::open("sim:callbacks");
    let transaction = database.transaction();
    let get = transaction.get(b"key");
    let parameter = ptr::without_provenance_mut(1);
    // SAFETY: the handle lives, and the callback does nothing with it.
    assert_eq!(unsafe { fdb_future_set_callback(get.0, Some(count_call), parameter) }, 0);
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    sim::run_until(1_000_000);
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    drop(get);
    sim::run_until(2_000_000);
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    // A future that is destroyed before it is ready is called too.
    let fresh = database.transaction();
    let get = fresh.get(b"key");
    // SAFETY: as above.
    assert_eq!(unsafe { fdb_future_set_callback(get.0, Some(count_call), parameter) }, 0);
    drop(get);
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    sim::run_until(3_000_000);
    assert_eq!(CALLS.load(Ordering::Relaxed), 2);
}

#[test]
fn the_pump_is_woken_when_something_earlier_is_to_do() {
    sim::start(1, SimConfig::default());
    let rung = Rc::new(Cell::new(0));
    let count = rung.clone();
    sim::on_scheduled(Box::new(move || count.set(count.get() + 1)));
    let now = Rc::new(Cell::new(5_000_000));
    let clock = now.clone();
    sim::set_clock(Box::new(move || clock.get()));
    let database = Database::open("sim:pump");
    let transaction = database.transaction();
    assert_eq!((rung.get(), sim::next_at()), (0, None));
    let get = transaction.get(b"key");
    assert_eq!(rung.get(), 1);
    let next = sim::next_at().expect("something is to happen");
    assert!((5_000_000..5_010_000).contains(&next), "{next}");
    // Time passes between two runs of the pump.
    now.set(6_000_000);
    sim::run_until(6_000_000);
    let later = database.transaction();
    now.set(7_000_000);
    let other = later.get(b"key");
    assert!(sim::next_at().is_some_and(|next| next >= 7_000_000));
    assert_eq!((get.run(), other.run()), (0, 0));
}

/// What a run did, in one string.
fn run(seed: u64) -> String {
    sim::start(seed, SimConfig::default());
    let faults = Faults { unknown_lost: 200, unknown_applied: 200, ..Faults::default() };
    sim::set_faults(faults);
    let (first, second) = (Database::open("sim:run#first"), Database::open("sim:run#second"));
    let handles = sim::handles();
    assert_eq!((handles[0].label.as_str(), handles[1].label.as_str()), ("first", "second"));
    let mut trace = String::new();
    for number in 0..30_u8 {
        let database = if number % 2 == 0 { &first } else { &second };
        let transaction = database.transaction();
        transaction.set(&[number], b"1");
        let commit = transaction.commit();
        sim::partition(handles[0].id, number % 7 == 0);
        sim::run_until(u64::from(number) * 1_000_000);
        sim::heal();
        sim::set_faults(faults);
        trace += &format!("{number} {} {:?}\n", commit.run(), sim::next_at());
    }
    sim::recover("run");
    sim::skip_versions("run", 7);
    let rows = sim::snapshot("run").len();
    trace + &format!("{:?} {rows} {}", sim::injected(), sim::last_version("run"))
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let runs: Vec<String> = (0..5).map(run).collect();
    for (seed, expected) in runs.iter().enumerate() {
        assert_eq!(*expected, run(seed as u64));
    }
    assert_ne!(runs[0], runs[1]);
    assert!(runs[0].contains("1021"), "{}", runs[0]);
}

/// All that `foundationdb` 0.11.0 with `fdb-7_3` can refer to.
const SYMBOLS: [&str; 52] = [
    "fdb_get_max_api_version",
    "fdb_select_api_version_impl",
    "fdb_get_error",
    "fdb_error_predicate",
    "fdb_network_set_option",
    "fdb_setup_network",
    "fdb_run_network",
    "fdb_stop_network",
    "fdb_create_database",
    "fdb_database_destroy",
    "fdb_database_set_option",
    "fdb_database_create_transaction",
    "fdb_database_get_main_thread_busyness",
    "fdb_database_get_client_status",
    "fdb_database_open_tenant",
    "fdb_tenant_create_transaction",
    "fdb_tenant_destroy",
    "fdb_future_destroy",
    "fdb_future_is_ready",
    "fdb_future_set_callback",
    "fdb_future_get_error",
    "fdb_future_get_int64",
    "fdb_future_get_key",
    "fdb_future_get_value",
    "fdb_future_get_keyvalue_array",
    "fdb_future_get_mappedkeyvalue_array",
    "fdb_future_get_key_array",
    "fdb_future_get_string_array",
    "fdb_transaction_destroy",
    "fdb_transaction_cancel",
    "fdb_transaction_reset",
    "fdb_transaction_set_option",
    "fdb_transaction_set_read_version",
    "fdb_transaction_get_read_version",
    "fdb_transaction_get",
    "fdb_transaction_get_key",
    "fdb_transaction_get_range",
    "fdb_transaction_get_mapped_range",
    "fdb_transaction_get_addresses_for_key",
    "fdb_transaction_set",
    "fdb_transaction_clear",
    "fdb_transaction_clear_range",
    "fdb_transaction_atomic_op",
    "fdb_transaction_watch",
    "fdb_transaction_commit",
    "fdb_transaction_get_committed_version",
    "fdb_transaction_get_approximate_size",
    "fdb_transaction_get_versionstamp",
    "fdb_transaction_get_estimated_range_size_bytes",
    "fdb_transaction_get_range_split_points",
    "fdb_transaction_add_conflict_range",
    "fdb_transaction_on_error",
];

#[test]
fn every_function_is_found_by_name() {
    let mut places: Vec<_> =
        SYMBOLS.iter().map(|name| fdb_c::symbol(name).expect("a function")).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), SYMBOLS.len());
    assert!(fdb_c::symbol("fdb_nothing").is_none());
    // SAFETY: the text is a constant that ends with a zero.
    let text = unsafe { CStr::from_ptr(fdb_get_error(1020)) };
    assert!(text.to_string_lossy().contains("conflict"));
}
