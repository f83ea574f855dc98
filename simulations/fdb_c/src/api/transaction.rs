//! Transactions.

use std::ffi::c_int;
use std::sync::Arc;

use super::{FDBFuture, FDBTransaction, c_api, copied, put, status};
use crate::conflicts::KeyRange;
use crate::errors::Code;
use crate::future::Promise;
use crate::range::{Limits, RangeRequest, Selector};
use crate::world::World;

impl FDBTransaction {
    fn ask(&self, call: impl FnOnce(&mut World, u64) -> Promise) -> *mut FDBFuture {
        let promise = self.host.with(|world| call(world, self.id));
        FDBFuture::give(&self.host, promise)
    }

    fn tell(&self, call: impl FnOnce(&mut World, u64)) {
        self.host.with(|world| call(world, self.id));
    }
}

/// The range from two keys of the caller.
///
/// # Safety
/// Both point to readable bytes of their length.
unsafe fn range_of(
    begin: *const u8,
    begin_length: c_int,
    end: *const u8,
    end_length: c_int,
) -> KeyRange {
    // SAFETY: as the caller says.
    unsafe { KeyRange { begin: copied(begin, begin_length), end: copied(end, end_length) } }
}

/// A selector from a key of the caller.
///
/// # Safety
/// `key` points to readable bytes of that length.
unsafe fn selector_of(key: *const u8, length: c_int, or_equal: c_int, offset: c_int) -> Selector {
    // SAFETY: as the caller says.
    let key = unsafe { copied(key, length) };
    Selector::new(&key, or_equal != 0, offset)
}

fn request_of(
    (begin, end): (Selector, Selector),
    limits: Result<Limits, Code>,
    reverse: c_int,
) -> Result<RangeRequest, Code> {
    Ok(RangeRequest { begin, end, limits: limits?, reverse: reverse != 0 })
}

c_api! {
    /// Destroys a transaction; what it has pending fails.
    fn fdb_transaction_destroy(transaction: *mut FDBTransaction) {
        // SAFETY: this library made the pointer, and the caller destroys it once.
        let transaction = unsafe { Arc::from_raw(transaction.cast_const()) };
        transaction.tell(|world, id| world.destroy(id));
    }

    /// Fails what is pending and everything to come until a reset.
    fn fdb_transaction_cancel(transaction: *mut FDBTransaction) {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.tell(|world, id| world.cancel(id));
    }

    /// Makes the transaction as new.
    fn fdb_transaction_reset(transaction: *mut FDBTransaction) {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.tell(|world, id| world.reset(id));
    }

    /// Sets an option.
    fn fdb_transaction_set_option(
        transaction: *mut FDBTransaction,
        option: c_int,
        value: *const u8,
        value_length: c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living transaction and a byte string of that length.
        let (transaction, value) = unsafe { (&*transaction, copied(value, value_length)) };
        let option = option.unsigned_abs();
        let (host, id) = (&transaction.host, transaction.id);
        status(host.with(|world| world.set_transaction_option(id, option, &value)))
    }

    /// Reads at a version that the caller knows.
    fn fdb_transaction_set_read_version(transaction: *mut FDBTransaction, version: i64) {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.tell(|world, id| world.set_read_version(id, version));
    }

    /// The version the transaction reads at.
    fn fdb_transaction_get_read_version(transaction: *mut FDBTransaction) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.ask(|world, id| world.read_version(id))
    }

    /// Reads a value.
    fn fdb_transaction_get(
        transaction: *mut FDBTransaction,
        key: *const u8,
        key_length: c_int,
        snapshot: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction and a byte string of that length.
        let (transaction, key) = unsafe { (&*transaction, copied(key, key_length)) };
        transaction.ask(|world, id| world.get(id, &key, snapshot != 0))
    }

    /// Resolves a key selector.
    fn fdb_transaction_get_key(
        transaction: *mut FDBTransaction,
        key: *const u8,
        key_length: c_int,
        or_equal: c_int,
        offset: c_int,
        snapshot: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction and a byte string of that length.
        let (transaction, selector) =
            unsafe { (&*transaction, selector_of(key, key_length, or_equal, offset)) };
        transaction.ask(|world, id| world.get_key(id, selector, snapshot != 0))
    }

    /// Where a key is stored.
    fn fdb_transaction_get_addresses_for_key(
        transaction: *mut FDBTransaction,
        _key: *const u8,
        _key_length: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.ask(|world, id| world.addresses(id))
    }

    /// Reads rows.
    fn fdb_transaction_get_range(
        transaction: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        begin_or_equal: c_int,
        begin_offset: c_int,
        end: *const u8,
        end_length: c_int,
        end_or_equal: c_int,
        end_offset: c_int,
        limit: c_int,
        target_bytes: c_int,
        mode: c_int,
        iteration: c_int,
        snapshot: c_int,
        reverse: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, begin, end) = unsafe {
            (
                &*transaction,
                selector_of(begin, begin_length, begin_or_equal, begin_offset),
                selector_of(end, end_length, end_or_equal, end_offset),
            )
        };
        let limits = Limits::new(limit, target_bytes, mode, iteration);
        transaction.ask(|world, id| match request_of((begin, end), limits, reverse) {
            Ok(request) => world.get_range(id, request, snapshot != 0),
            Err(code) => world.failed(code),
        })
    }

    /// Reads an index and the rows it leads to.
    fn fdb_transaction_get_mapped_range(
        transaction: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        begin_or_equal: c_int,
        begin_offset: c_int,
        end: *const u8,
        end_length: c_int,
        end_or_equal: c_int,
        end_offset: c_int,
        mapper: *const u8,
        mapper_length: c_int,
        limit: c_int,
        target_bytes: c_int,
        mode: c_int,
        iteration: c_int,
        snapshot: c_int,
        reverse: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, begin, end, mapper) = unsafe {
            (
                &*transaction,
                selector_of(begin, begin_length, begin_or_equal, begin_offset),
                selector_of(end, end_length, end_or_equal, end_offset),
                copied(mapper, mapper_length),
            )
        };
        let limits = Limits::new(limit, target_bytes, mode, iteration);
        transaction.ask(|world, id| match request_of((begin, end), limits, reverse) {
            Ok(request) => world.get_mapped_range(id, request, &mapper, snapshot != 0),
            Err(code) => world.failed(code),
        })
    }

    /// Sets a value.
    fn fdb_transaction_set(
        transaction: *mut FDBTransaction,
        key: *const u8,
        key_length: c_int,
        value: *const u8,
        value_length: c_int,
    ) {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, key, value) =
            unsafe { (&*transaction, copied(key, key_length), copied(value, value_length)) };
        transaction.tell(|world, id| world.set(id, &key, &value));
    }

    /// Changes a value without reading it.
    fn fdb_transaction_atomic_op(
        transaction: *mut FDBTransaction,
        key: *const u8,
        key_length: c_int,
        param: *const u8,
        param_length: c_int,
        operation: c_int,
    ) {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, key, param) =
            unsafe { (&*transaction, copied(key, key_length), copied(param, param_length)) };
        transaction.tell(|world, id| world.atomic_op(id, &key, &param, operation.unsigned_abs()));
    }

    /// Deletes a key.
    fn fdb_transaction_clear(
        transaction: *mut FDBTransaction,
        key: *const u8,
        key_length: c_int,
    ) {
        // SAFETY: the caller gives a living transaction and a byte string of that length.
        let (transaction, key) = unsafe { (&*transaction, copied(key, key_length)) };
        transaction.tell(|world, id| world.clear(id, &key));
    }

    /// Deletes a range of keys.
    fn fdb_transaction_clear_range(
        transaction: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        end: *const u8,
        end_length: c_int,
    ) {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, range) =
            unsafe { (&*transaction, range_of(begin, begin_length, end, end_length)) };
        transaction.tell(|world, id| world.clear_range(id, &range));
    }

    /// Waits for a change of a key.
    fn fdb_transaction_watch(
        transaction: *mut FDBTransaction,
        key: *const u8,
        key_length: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction and a byte string of that length.
        let (transaction, key) = unsafe { (&*transaction, copied(key, key_length)) };
        transaction.ask(|world, id| world.watch(id, &key))
    }

    /// Commits.
    fn fdb_transaction_commit(transaction: *mut FDBTransaction) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.ask(|world, id| world.commit(id))
    }

    /// The version of the commit, or -1 if nothing was written.
    fn fdb_transaction_get_committed_version(
        transaction: *mut FDBTransaction,
        out_version: *mut i64,
    ) -> c_int {
        // SAFETY: the caller gives a living transaction.
        let transaction = unsafe { &*transaction };
        match transaction.host.with(|world| world.committed_version(transaction.id)) {
            Ok(version) => {
                // SAFETY: the caller gives a place for the result.
                unsafe { put(out_version, version) };
                0
            }
            Err(code) => code,
        }
    }

    /// How large the commit would be.
    fn fdb_transaction_get_approximate_size(transaction: *mut FDBTransaction) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.ask(|world, id| world.approximate_size(id))
    }

    /// The versionstamp of the commit, once it is done.
    fn fdb_transaction_get_versionstamp(transaction: *mut FDBTransaction) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.ask(|world, id| world.versionstamp(id))
    }

    /// About how many bytes a range holds.
    fn fdb_transaction_get_estimated_range_size_bytes(
        transaction: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        end: *const u8,
        end_length: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, range) =
            unsafe { (&*transaction, range_of(begin, begin_length, end, end_length)) };
        transaction.ask(|world, id| world.about_range(id, range, None))
    }

    /// Keys that split a range into pieces of about `chunk_size` bytes.
    fn fdb_transaction_get_range_split_points(
        transaction: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        end: *const u8,
        end_length: c_int,
        chunk_size: i64,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, range) =
            unsafe { (&*transaction, range_of(begin, begin_length, end, end_length)) };
        transaction.ask(|world, id| world.about_range(id, range, Some(chunk_size)))
    }

    /// Adds a conflict range without reading or writing.
    fn fdb_transaction_add_conflict_range(
        transaction: *mut FDBTransaction,
        begin: *const u8,
        begin_length: c_int,
        end: *const u8,
        end_length: c_int,
        kind: c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living transaction and byte strings of those lengths.
        let (transaction, range) =
            unsafe { (&*transaction, range_of(begin, begin_length, end, end_length)) };
        let (host, id) = (&transaction.host, transaction.id);
        status(host.with(|world| world.add_conflict(id, &range, kind == 1)))
    }

    /// Waits and makes the transaction ready for another try, if the error is one to try again
    /// after; gives the error back otherwise.
    fn fdb_transaction_on_error(
        transaction: *mut FDBTransaction,
        code: c_int,
    ) -> *mut FDBFuture {
        // SAFETY: the caller gives a living transaction.
        unsafe { &*transaction }.ask(|world, id| world.on_error(id, code))
    }
}
