//! FoundationDB's client library, loaded when it is used.
//!
//! The `foundationdb` crate calls functions named `fdb_*`. They are defined here, and each jumps to
//! where the library, once loaded, has the function of that name. So one binary builds on every
//! machine, and uses a cluster where the client is installed. Tests and simulations install the
//! functions of a test double instead.
//!
//! Invariant: a [`Client`] exists only after every function has its address, so no jump goes
//! nowhere.

#![allow(unsafe_code, reason = "calls a C library by the addresses of its functions")]

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicPtr, Ordering},
    },
};

use foundationdb::{
    Database,
    api::{FdbApiBuilder, NetworkAutoStop},
};
use memcube_actors::storage::StoreError;

/// Names under which the library may be found, where the system looks for libraries.
#[cfg(target_os = "macos")]
const LIBRARY_NAMES: [&str; 2] = ["libfdb_c.dylib", "/usr/local/lib/libfdb_c.dylib"];
#[cfg(not(target_os = "macos"))]
const LIBRARY_NAMES: [&str; 1] = ["libfdb_c.so"];

/// Where a function of the library is, by its name in C.
pub type Lookup = fn(&str) -> Option<*const c_void>;

/// `FDBCallback` of the C header.
type Callback = Option<unsafe extern "C" fn(*mut c_void, *mut c_void)>;

/// Defines functions that jump to their namesakes in the library. Pointers to what only the library
/// looks into are plain pointers here, which makes no difference to how they are passed.
macro_rules! jumps {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        /// The addresses of the functions.
        mod addresses {
            use super::{AtomicPtr, c_void};
            $(
                #[expect(non_upper_case_globals, reason = "named as the function that it finds")]
                pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            )*
        }

        const FUNCTIONS: &[(&str, &AtomicPtr<c_void>)] =
            &[$((stringify!($name), &addresses::$name)),*];

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) $(-> $result)? {
                let address = addresses::$name.load(Ordering::Acquire);
                assert!(!address.is_null(), "invariant: the client is loaded before it is called");
                // SAFETY: it is the address of the C function of this name, whose parameters and
                // result are those of FoundationDB's header.
                unsafe {
                    let function = std::mem::transmute::<
                        *mut c_void,
                        unsafe extern "C" fn($($type),*) $(-> $result)?,
                    >(address);
                    function($($argument),*)
                }
            }
        )*
    };
}

jumps! {
    fdb_get_max_api_version() -> c_int;
    fdb_select_api_version_impl(runtime: c_int, header: c_int) -> c_int;
    fdb_get_error(code: c_int) -> *const c_char;
    fdb_error_predicate(predicate: c_int, code: c_int) -> c_int;
    fdb_network_set_option(option: c_uint, value: *const u8, length: c_int) -> c_int;
    fdb_setup_network() -> c_int;
    fdb_run_network() -> c_int;
    fdb_stop_network() -> c_int;
    fdb_future_destroy(future: *mut c_void);
    fdb_future_is_ready(future: *mut c_void) -> c_int;
    fdb_future_set_callback(
        future: *mut c_void, callback: Callback, parameter: *mut c_void
    ) -> c_int;
    fdb_future_get_error(future: *mut c_void) -> c_int;
    fdb_future_get_int64(future: *mut c_void, out: *mut i64) -> c_int;
    fdb_future_get_key(future: *mut c_void, key: *mut *const u8, length: *mut c_int) -> c_int;
    fdb_future_get_value(
        future: *mut c_void, present: *mut c_int, value: *mut *const u8, length: *mut c_int
    ) -> c_int;
    fdb_future_get_keyvalue_array(
        future: *mut c_void, rows: *mut *const c_void, count: *mut c_int, more: *mut c_int
    ) -> c_int;
    fdb_future_get_mappedkeyvalue_array(
        future: *mut c_void, rows: *mut *const c_void, count: *mut c_int, more: *mut c_int
    ) -> c_int;
    fdb_future_get_key_array(
        future: *mut c_void, keys: *mut *const c_void, count: *mut c_int
    ) -> c_int;
    fdb_future_get_string_array(
        future: *mut c_void, strings: *mut *mut *const c_char, count: *mut c_int
    ) -> c_int;
    fdb_create_database(path: *const c_char, database: *mut *mut c_void) -> c_int;
    fdb_database_destroy(database: *mut c_void);
    fdb_database_set_option(
        database: *mut c_void, option: c_uint, value: *const u8, length: c_int
    ) -> c_int;
    fdb_database_create_transaction(
        database: *mut c_void, transaction: *mut *mut c_void
    ) -> c_int;
    fdb_database_get_main_thread_busyness(database: *mut c_void) -> f64;
    fdb_database_get_client_status(database: *mut c_void) -> *mut c_void;
    fdb_transaction_destroy(transaction: *mut c_void);
    fdb_transaction_cancel(transaction: *mut c_void);
    fdb_transaction_reset(transaction: *mut c_void);
    fdb_transaction_set_option(
        transaction: *mut c_void, option: c_uint, value: *const u8, length: c_int
    ) -> c_int;
    fdb_transaction_set_read_version(transaction: *mut c_void, version: i64);
    fdb_transaction_get_read_version(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_get(
        transaction: *mut c_void, key: *const u8, length: c_int, snapshot: c_int
    ) -> *mut c_void;
    fdb_transaction_get_key(
        transaction: *mut c_void, key: *const u8, length: c_int, or_equal: c_int, offset: c_int,
        snapshot: c_int
    ) -> *mut c_void;
    fdb_transaction_get_addresses_for_key(
        transaction: *mut c_void, key: *const u8, length: c_int
    ) -> *mut c_void;
    fdb_transaction_get_range(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, begin_or_equal: c_int,
        begin_offset: c_int, end: *const u8, end_length: c_int, end_or_equal: c_int,
        end_offset: c_int, limit: c_int, target_bytes: c_int, mode: c_int, iteration: c_int,
        snapshot: c_int, reverse: c_int
    ) -> *mut c_void;
    fdb_transaction_get_mapped_range(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, begin_or_equal: c_int,
        begin_offset: c_int, end: *const u8, end_length: c_int, end_or_equal: c_int,
        end_offset: c_int, mapper: *const u8, mapper_length: c_int, limit: c_int,
        target_bytes: c_int, mode: c_int, iteration: c_int, snapshot: c_int, reverse: c_int
    ) -> *mut c_void;
    fdb_transaction_set(
        transaction: *mut c_void, key: *const u8, key_length: c_int, value: *const u8,
        value_length: c_int
    );
    fdb_transaction_atomic_op(
        transaction: *mut c_void, key: *const u8, key_length: c_int, operand: *const u8,
        operand_length: c_int, operation: c_uint
    );
    fdb_transaction_clear(transaction: *mut c_void, key: *const u8, length: c_int);
    fdb_transaction_clear_range(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8,
        end_length: c_int
    );
    fdb_transaction_watch(transaction: *mut c_void, key: *const u8, length: c_int) -> *mut c_void;
    fdb_transaction_commit(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_get_committed_version(transaction: *mut c_void, version: *mut i64) -> c_int;
    fdb_transaction_get_approximate_size(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_get_versionstamp(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_on_error(transaction: *mut c_void, code: c_int) -> *mut c_void;
    fdb_transaction_add_conflict_range(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8,
        end_length: c_int, kind: c_uint
    ) -> c_int;
    fdb_transaction_get_estimated_range_size_bytes(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8,
        end_length: c_int
    ) -> *mut c_void;
    fdb_transaction_get_range_split_points(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8,
        end_length: c_int, chunk_bytes: i64
    ) -> *mut c_void;
}

/// The client library of this process, ready to open databases.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    is_simulated: bool,
}

/// What became of the library in this process: it can be started only once.
enum State {
    Idle,
    /// Its thread runs, until the process ends.
    Running(#[expect(dead_code, reason = "its drop stops the thread")] NetworkAutoStop),
    /// Whoever simulates completes its futures.
    Simulated,
    /// It was tried, and cannot be tried again.
    Failed(StoreError),
    Stopped,
}

static STATE: Mutex<State> = Mutex::new(State::Idle);

impl Client {
    /// Loads the library from this path, or from where the system looks for libraries, and starts
    /// its thread. A process does this once: later calls return the same client, whatever the path.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be loaded, with what to do.
    pub fn load(path: Option<&Path>) -> Result<Self, StoreError> {
        Self::start(|| {
            let library = open_library(path)?;
            // Never unloaded: its thread may run until the process ends.
            let library = Box::leak(Box::new(library));
            install(|name| {
                // SAFETY: the address is used only as that of the C function of this name.
                let symbol = unsafe { library.get::<*const c_void>(name.as_bytes()) };
                symbol.ok().map(|symbol| *symbol)
            })?;
            boot()
        })
    }

    /// Uses these functions in place of a library's, and starts their thread. Once a process, as
    /// [`Client::load`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when a function is missing, or the thread cannot start.
    ///
    /// # Safety
    /// What `lookup` returns for a name must be the address of a function with the parameters, the
    /// result and the meaning that FoundationDB's header `fdb_c.h` has under that name.
    pub unsafe fn install(lookup: Lookup) -> Result<Self, StoreError> {
        Self::start(|| {
            install(lookup)?;
            boot()
        })
    }

    /// Uses these functions, and starts no thread: the caller makes them complete their futures.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when a function is missing.
    ///
    /// # Safety
    /// As [`Client::install`].
    pub unsafe fn simulated(lookup: Lookup) -> Result<Self, StoreError> {
        Self::start(|| {
            install(lookup)?;
            Ok(State::Simulated)
        })
    }

    fn start(start: impl FnOnce() -> Result<State, StoreError>) -> Result<Self, StoreError> {
        let mut state = state();
        if matches!(*state, State::Idle) {
            *state = start().unwrap_or_else(State::Failed);
        }
        match &*state {
            State::Running(_) => Ok(Self { is_simulated: false }),
            State::Simulated => Ok(Self { is_simulated: true }),
            State::Failed(error) => Err(error.clone()),
            State::Idle | State::Stopped => Err(unavailable("memcube is stopping".to_owned())),
        }
    }

    /// Whether the caller completes the futures.
    pub(super) const fn is_simulated(self) -> bool {
        self.is_simulated
    }

    /// Opens a database. Nothing is sent.
    pub(super) fn database(self, cluster_file: Option<&str>) -> Result<Database, StoreError> {
        Database::new(cluster_file).map_err(|error| super::error::connecting(error, cluster_file))
    }
}

fn open_library(path: Option<&Path>) -> Result<libloading::Library, StoreError> {
    // SAFETY: loading runs the initialisers of the library that the operator installed or named.
    let open = |name: &std::ffi::OsStr| unsafe { libloading::Library::new(name) };
    if let Some(path) = path {
        return open(path.as_os_str()).map_err(|error| cannot_load(&path.display(), &error));
    }
    let mut reason = None;
    for name in LIBRARY_NAMES {
        match open(name.as_ref()) {
            Ok(library) => return Ok(library),
            Err(error) => reason = reason.or(Some(error)),
        }
    }
    let reason = reason.expect("invariant: there is a name to try");
    Err(cannot_load(&LIBRARY_NAMES[0], &reason))
}

fn cannot_load(name: &dyn std::fmt::Display, error: &libloading::Error) -> StoreError {
    unavailable(format!(
        "`{name}` cannot be loaded: {error}; install the FoundationDB client package \
         (`foundationdb-clients`) or set `store.fdb-client-library`"
    ))
}

/// Stores the addresses of all functions, or none.
fn install(lookup: impl Fn(&str) -> Option<*const c_void>) -> Result<(), StoreError> {
    let mut found = Vec::with_capacity(FUNCTIONS.len());
    for (name, _) in FUNCTIONS {
        let Some(address) = lookup(name).filter(|address| !address.is_null()) else {
            return Err(unavailable(format!(
                "the FoundationDB client library has no function `{name}`; install version 7.3 or \
                 later of the client package, or set `store.fdb-client-library`"
            )));
        };
        found.push(address);
    }
    for ((_, slot), address) in FUNCTIONS.iter().zip(found) {
        slot.store(address.cast_mut(), Ordering::Release);
    }
    Ok(())
}

fn boot() -> Result<State, StoreError> {
    let failed = |error: foundationdb::FdbError| {
        let code = error.code();
        unavailable(format!(
            "the FoundationDB client cannot start: {error} (FoundationDB error {code}); install \
             version 7.3 or later of the client package, or set `store.fdb-client-library`"
        ))
    };
    let builder = FdbApiBuilder::default().build().map_err(failed)?;
    // SAFETY: `stop` runs when the process exits, and drops what this returns.
    let network = unsafe { builder.boot() }.map_err(failed)?;
    // SAFETY: the handler has no precondition. One that cannot be registered leaves a thread that
    // ends with the process.
    let _ = unsafe { atexit(stop) };
    Ok(State::Running(network))
}

unsafe extern "C" {
    /// Of the C standard library.
    fn atexit(handler: extern "C" fn()) -> c_int;
}

/// Ends the client's thread before the library's own clean-up runs under it.
extern "C" fn stop() {
    let running = std::mem::replace(&mut *state(), State::Stopped);
    drop(running);
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn unavailable(reason: String) -> StoreError {
    StoreError::Unavailable { reason }
}
