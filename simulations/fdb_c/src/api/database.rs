//! Databases and tenants.

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

use super::{
    FDBDatabase, FDBFuture, FDBTenant, FDBTransaction, c_api, copied, network, put, status,
};
use crate::errors::{Code, TENANTS_DISABLED};
use crate::future::{Payload, Promise};

fn open(path: &str) -> Result<FDBDatabase, Code> {
    let host = network::host()?;
    let id = host.with(|world| world.open_database(path));
    Ok(FDBDatabase { host, id })
}

/// Gives a new handle out, or the error.
///
/// # Safety
/// `place` can be written.
unsafe fn give<T>(place: *mut *mut T, made: Result<T, Code>) -> c_int {
    match made {
        Ok(made) => {
            // SAFETY: the caller says that it can be written.
            unsafe { put(place, Arc::into_raw(Arc::new(made)).cast_mut()) };
            0
        }
        Err(code) => code,
    }
}

c_api! {
    /// Opens the cluster that a cluster file names.
    fn fdb_create_database(path: *const c_char, out: *mut *mut FDBDatabase) -> c_int {
        let path = match path.is_null() {
            true => String::new(),
            // SAFETY: the caller gives a string that ends with a zero.
            false => unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned(),
        };
        // SAFETY: the caller gives a place for the handle.
        unsafe { give(out, open(&path)) }
    }

    /// Closes a handle. Its transactions live on.
    fn fdb_database_destroy(database: *mut FDBDatabase) {
        // SAFETY: `give` made the pointer, and the caller destroys it once.
        let database = unsafe { Arc::from_raw(database.cast_const()) };
        database.host.with(|world| world.close_database(database.id));
    }

    /// Sets an option of a handle.
    fn fdb_database_set_option(
        database: *mut FDBDatabase,
        option: c_int,
        value: *const u8,
        value_length: c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living handle and a byte string of that length.
        let (database, value) = unsafe { (&*database, copied(value, value_length)) };
        let option = option.unsigned_abs();
        status(database.host.with(|world| world.set_database_option(database.id, option, &value)))
    }

    /// Makes a transaction.
    fn fdb_database_create_transaction(
        database: *mut FDBDatabase,
        out: *mut *mut FDBTransaction,
    ) -> c_int {
        // SAFETY: the caller gives a living handle.
        let database = unsafe { &*database };
        let host = database.host.clone();
        let made = host.with(|world| world.new_transaction(database.id));
        // SAFETY: the caller gives a place for the handle.
        unsafe { give(out, made.map(|id| FDBTransaction { host, id })) }
    }

    /// How busy the network thread is, from 0 to 1. The double does not measure it.
    fn fdb_database_get_main_thread_busyness(_database: *mut FDBDatabase) -> f64 {
        0.0
    }

    /// Says in JSON how the connection is.
    fn fdb_database_get_client_status(database: *mut FDBDatabase) -> *mut FDBFuture {
        // SAFETY: the caller gives a living handle.
        let database = unsafe { &*database };
        let promise = Promise::new();
        let status = Payload::Key(crate::special::CLIENT_STATUS.into());
        database.host.with(|world| world.settle(&promise, Ok(status)));
        FDBFuture::give(&database.host, promise)
    }

    /// Fails: tenants are disabled, as in a cluster that was not told to have them.
    fn fdb_database_open_tenant(
        _database: *mut FDBDatabase,
        _name: *const u8,
        _name_length: c_int,
        _out: *mut *mut FDBTenant,
    ) -> c_int {
        TENANTS_DISABLED
    }

    /// Fails: tenants are disabled.
    fn fdb_tenant_create_transaction(
        _tenant: *mut FDBTenant,
        _out: *mut *mut FDBTransaction,
    ) -> c_int {
        TENANTS_DISABLED
    }

    /// There is no tenant to destroy.
    fn fdb_tenant_destroy(_tenant: *mut FDBTenant) {}
}
