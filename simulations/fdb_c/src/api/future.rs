//! Futures: whether they are ready, what they hold, and whom to call.

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::sync::{Arc, OnceLock};

use super::{c_api, put};
use crate::conflicts::KeyRange;
use crate::errors::{CLIENT_INVALID_OPERATION, Code, FUTURE_NOT_SET};
use crate::future::{Payload, Promise};
use crate::mapped::MappedRow;
use crate::mvcc::Bytes;
use crate::range::Row;
use crate::world::Host;

/// A key in place.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct FDBKey {
    key: *const u8,
    key_length: c_int,
}

/// A row in place.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct FDBKeyValue {
    key: *const u8,
    key_length: c_int,
    value: *const u8,
    value_length: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FDBKeySelector {
    key: FDBKey,
    or_equal: c_int,
    offset: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FDBGetRangeReqAndResult {
    begin: FDBKeySelector,
    end: FDBKeySelector,
    data: *const FDBKeyValue,
    size: c_int,
    capacity: c_int,
}

/// A row of an index with the rows it led to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FDBMappedKeyValue {
    key: FDBKey,
    value: FDBKey,
    get_range: FDBGetRangeReqAndResult,
    buffer: [c_uchar; 32],
}

/// Arrays in the layout of the interface; what they point to belongs to the promise.
enum Laid {
    Keys(Vec<FDBKey>),
    Rows(Vec<FDBKeyValue>),
    Mapped { rows: Vec<FDBMappedKeyValue>, _inner: Vec<Vec<FDBKeyValue>> },
    Strings(Vec<*const c_char>),
}

/// What an opaque pointer of the interface points to.
pub struct FDBFuture {
    host: Arc<Host>,
    promise: Promise,
    laid: OnceLock<Laid>,
}

// SAFETY: the pointers in `laid` lead to the promise's payload, which nobody changes once it is
// settled and which lives as long as the future.
unsafe impl Send for FDBFuture {}
// SAFETY: as above; what is shared is only read.
unsafe impl Sync for FDBFuture {}

/// The function to call once a future is ready.
pub type FDBCallback = Option<unsafe extern "C" fn(future: *mut FDBFuture, parameter: *mut c_void)>;

/// A callback on its way to the thread that runs it.
struct Callback {
    call: unsafe extern "C" fn(*mut FDBFuture, *mut c_void),
    parameter: *mut c_void,
    /// Keeps the future alive until after the call, even if it is destroyed before.
    future: Arc<FDBFuture>,
}

// SAFETY: whoever sets a callback agrees to be called on the network thread.
unsafe impl Send for Callback {}

impl Callback {
    fn run(self) {
        let future = Arc::as_ptr(&self.future).cast_mut();
        // SAFETY: the caller of `fdb_future_set_callback` said that it may be called with this.
        unsafe { (self.call)(future, self.parameter) };
    }
}

impl FDBFuture {
    /// Gives a promise out as a pointer.
    pub(super) fn give(host: &Arc<Host>, promise: Promise) -> *mut FDBFuture {
        let future = FDBFuture { host: host.clone(), promise, laid: OnceLock::new() };
        Arc::into_raw(Arc::new(future)).cast_mut()
    }

    fn payload(&self) -> Result<&Payload, Code> {
        match self.promise.reply() {
            None => Err(FUTURE_NOT_SET),
            Some(reply) => reply.as_ref().map_err(|code| *code),
        }
    }

    fn laid(&self, lay: impl FnOnce() -> Laid) -> &Laid {
        self.laid.get_or_init(lay)
    }
}

fn length(bytes: &[u8]) -> c_int {
    c_int::try_from(bytes.len()).unwrap_or(c_int::MAX)
}

fn key_of(key: &Bytes) -> FDBKey {
    FDBKey { key: key.as_ptr(), key_length: length(key) }
}

fn row_of((key, value): &Row) -> FDBKeyValue {
    FDBKeyValue {
        key: key.as_ptr(),
        key_length: length(key),
        value: value.as_ptr(),
        value_length: length(value),
    }
}

fn count<T>(items: &[T]) -> c_int {
    c_int::try_from(items.len()).unwrap_or(c_int::MAX)
}

fn lay_mapped(rows: &[MappedRow]) -> Laid {
    let inner: Vec<Vec<FDBKeyValue>> =
        rows.iter().map(|row| row.rows.iter().map(row_of).collect()).collect();
    let selector = |key: &Bytes| FDBKeySelector { key: key_of(key), or_equal: 0, offset: 1 };
    let lay = |(row, found): (&MappedRow, &Vec<FDBKeyValue>)| {
        let KeyRange { begin, end } = &row.range;
        FDBMappedKeyValue {
            key: key_of(&row.key),
            value: key_of(&row.value),
            get_range: FDBGetRangeReqAndResult {
                begin: selector(begin),
                end: selector(end),
                data: found.as_ptr(),
                size: count(found),
                capacity: count(found),
            },
            buffer: [0; 32],
        }
    };
    // The inner arrays do not move when their vector does.
    Laid::Mapped { rows: rows.iter().zip(&inner).map(lay).collect(), _inner: inner }
}

/// Reads a payload of one kind, or gives the error: the promise's own, or that it is another kind.
macro_rules! payload {
    ($future:expr, $pattern:pat => $value:expr) => {
        match $future.payload() {
            Ok($pattern) => $value,
            Ok(_) => return CLIENT_INVALID_OPERATION,
            Err(code) => return code,
        }
    };
}

c_api! {
    /// Cancels a future and gives it up.
    fn fdb_future_destroy(future: *mut FDBFuture) {
        // SAFETY: `give` made the pointer, and the caller destroys it once.
        let future = unsafe { Arc::from_raw(future.cast_const()) };
        // Settled or not, whoever was to be called is called, so that nothing leaks.
        future.host.with(|world| world.abandon(&future.promise));
    }

    /// Cancels a future.
    fn fdb_future_cancel(future: *mut FDBFuture) {
        // SAFETY: the caller gives a living future.
        let future = unsafe { &*future };
        future.host.with(|world| world.abandon(&future.promise));
    }

    /// Whether the future is ready.
    fn fdb_future_is_ready(future: *mut FDBFuture) -> c_int {
        // SAFETY: the caller gives a living future.
        c_int::from(unsafe { &*future }.promise.reply().is_some())
    }

    /// Blocks the calling thread until the future is ready.
    fn fdb_future_block_until_ready(future: *mut FDBFuture) -> c_int {
        // SAFETY: the caller gives a living future.
        unsafe { &*future }.promise.block();
        0
    }

    /// Calls `callback` once the future is ready: on the network thread, or now if it is.
    fn fdb_future_set_callback(
        future: *mut FDBFuture,
        callback: FDBCallback,
        parameter: *mut c_void,
    ) -> c_int {
        let Some(call) = callback else { return CLIENT_INVALID_OPERATION };
        // SAFETY: `give` made the pointer, and the caller says that it is not destroyed; the count
        // is raised for the reference made here.
        let kept = unsafe {
            Arc::increment_strong_count(future.cast_const());
            Arc::from_raw(future.cast_const())
        };
        let promise = kept.promise.clone();
        let callback = Callback { call, parameter, future: kept };
        if let Some(now) = promise.wait(Box::new(move || callback.run())) {
            now();
        }
        0
    }

    /// The error the future holds, or zero.
    fn fdb_future_get_error(future: *mut FDBFuture) -> c_int {
        // SAFETY: the caller gives a living future.
        unsafe { &*future }.payload().err().unwrap_or(0)
    }

    /// The number the future holds.
    fn fdb_future_get_int64(future: *mut FDBFuture, out: *mut i64) -> c_int {
        // SAFETY: the caller gives a living future.
        let number = payload!(unsafe { &*future }, Payload::Int(number) => *number);
        // SAFETY: the caller gives a place for the result.
        unsafe { put(out, number) };
        0
    }

    /// The key the future holds.
    fn fdb_future_get_key(
        future: *mut FDBFuture,
        out_key: *mut *const u8,
        out_key_length: *mut c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living future.
        let key = payload!(unsafe { &*future }, Payload::Key(key) => key);
        // SAFETY: the caller gives places for the results.
        unsafe {
            put(out_key, key.as_ptr());
            put(out_key_length, length(key));
        }
        0
    }

    /// The value the future holds, if there is one.
    fn fdb_future_get_value(
        future: *mut FDBFuture,
        out_present: *mut c_int,
        out_value: *mut *const u8,
        out_value_length: *mut c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living future.
        let value = payload!(unsafe { &*future }, Payload::Value(value) => value.as_deref());
        let bytes = value.unwrap_or_default();
        // SAFETY: the caller gives places for the results.
        unsafe {
            put(out_present, c_int::from(value.is_some()));
            put(out_value, bytes.as_ptr());
            put(out_value_length, length(bytes));
        }
        0
    }

    /// The rows the future holds.
    fn fdb_future_get_keyvalue_array(
        future: *mut FDBFuture,
        out_rows: *mut *const FDBKeyValue,
        out_count: *mut c_int,
        out_more: *mut c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living future.
        let future = unsafe { &*future };
        let (rows, more) = payload!(future, Payload::Rows { rows, more } => (rows, *more));
        let Laid::Rows(laid) = future.laid(|| Laid::Rows(rows.iter().map(row_of).collect())) else {
            return CLIENT_INVALID_OPERATION;
        };
        // SAFETY: the caller gives places for the results.
        unsafe {
            put(out_rows, laid.as_ptr());
            put(out_count, count(laid));
            put(out_more, c_int::from(more));
        }
        0
    }

    /// The mapped rows the future holds.
    fn fdb_future_get_mappedkeyvalue_array(
        future: *mut FDBFuture,
        out_rows: *mut *const FDBMappedKeyValue,
        out_count: *mut c_int,
        out_more: *mut c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living future.
        let future = unsafe { &*future };
        let (rows, more) = payload!(future, Payload::Mapped { rows, more } => (rows, *more));
        let Laid::Mapped { rows: laid, .. } = future.laid(|| lay_mapped(rows)) else {
            return CLIENT_INVALID_OPERATION;
        };
        // SAFETY: the caller gives places for the results.
        unsafe {
            put(out_rows, laid.as_ptr());
            put(out_count, count(laid));
            put(out_more, c_int::from(more));
        }
        0
    }

    /// The keys the future holds.
    fn fdb_future_get_key_array(
        future: *mut FDBFuture,
        out_keys: *mut *const FDBKey,
        out_count: *mut c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living future.
        let future = unsafe { &*future };
        let keys = payload!(future, Payload::Keys(keys) => keys);
        let Laid::Keys(laid) = future.laid(|| Laid::Keys(keys.iter().map(key_of).collect())) else {
            return CLIENT_INVALID_OPERATION;
        };
        // SAFETY: the caller gives places for the results.
        unsafe {
            put(out_keys, laid.as_ptr());
            put(out_count, count(laid));
        }
        0
    }

    /// The strings the future holds.
    fn fdb_future_get_string_array(
        future: *mut FDBFuture,
        out_strings: *mut *const *const c_char,
        out_count: *mut c_int,
    ) -> c_int {
        // SAFETY: the caller gives a living future.
        let future = unsafe { &*future };
        let strings = payload!(future, Payload::Strings(strings) => strings);
        let lay = || Laid::Strings(strings.iter().map(|string| string.as_ptr()).collect());
        let Laid::Strings(laid) = future.laid(lay) else { return CLIENT_INVALID_OPERATION };
        // SAFETY: the caller gives places for the results.
        unsafe {
            put(out_strings, laid.as_ptr());
            put(out_count, count(laid));
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that `fdb_c.h` gives with its packing.
    #[test]
    fn layouts() {
        assert_eq!(size_of::<FDBKey>(), 12);
        assert_eq!(size_of::<FDBKeyValue>(), 24);
        assert_eq!(size_of::<FDBKeySelector>(), 20);
        assert_eq!(size_of::<FDBMappedKeyValue>(), 112);
        assert_eq!(std::mem::offset_of!(FDBMappedKeyValue, get_range), 24);
    }
}
