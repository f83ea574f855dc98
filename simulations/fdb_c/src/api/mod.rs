//! The C interface: the functions of `fdb_c.h`, as much of it as the `foundationdb` crate links.
//!
//! This is the only place with unsafe code. Every handle is a counted reference made into a
//! pointer; every byte string is copied on its way in; what a future points out lives as long as
//! the future.

mod database;
mod future;
mod network;
mod transaction;

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use crate::errors::Code;
use crate::mvcc::Bytes;
use crate::world::Host;

pub use database::*;
pub use future::*;
pub use network::*;
pub use transaction::*;

/// Defines functions of the C interface. With the feature `export` they keep their names in the
/// library, and `symbol` finds them by name in any case.
macro_rules! c_api {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $out:ty)? $body:block
    )*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            /// As in `fdb_c.h`: pointers are what this library gave out and are not destroyed,
            /// byte strings have the length that is said, and places for results can be written.
            #[cfg_attr(feature = "export", unsafe(no_mangle))]
            pub unsafe extern "C" fn $name($($arg: $kind),*) $(-> $out)? $body
        )*

        /// The function of this part with the name `name`.
        pub(super) fn symbol(name: &str) -> Option<*const std::ffi::c_void> {
            match name {
                $(stringify!($name) => Some($name as *const std::ffi::c_void),)*
                _ => None,
            }
        }
    };
}
pub(crate) use c_api;

/// The function of the C interface with the name `name`.
pub(crate) fn symbol(name: &str) -> Option<*const c_void> {
    network::symbol(name)
        .or_else(|| database::symbol(name))
        .or_else(|| future::symbol(name))
        .or_else(|| transaction::symbol(name))
}

/// What an opaque pointer of the interface points to.
pub struct FDBDatabase {
    host: Arc<Host>,
    id: u64,
}

/// What an opaque pointer of the interface points to.
pub struct FDBTransaction {
    host: Arc<Host>,
    id: u64,
}

/// What an opaque pointer of the interface points to. Tenants are disabled, so there is none.
pub struct FDBTenant {
    _private: (),
}

fn status(result: Result<(), Code>) -> c_int {
    result.err().unwrap_or(0)
}

/// Copies a byte string of the caller.
///
/// # Safety
/// `bytes` points to `length` readable bytes, or `length` is zero.
unsafe fn copied(bytes: *const u8, length: c_int) -> Bytes {
    let length = usize::try_from(length).unwrap_or(0);
    if bytes.is_null() || length == 0 {
        return Bytes::from(&[][..]);
    }
    // SAFETY: the caller says that so many bytes can be read there.
    unsafe { std::slice::from_raw_parts(bytes, length) }.into()
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `place` is null or can be written.
unsafe fn put<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: the caller says that it can be written.
        unsafe { place.write(value) };
    }
}
