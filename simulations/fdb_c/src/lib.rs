//! A test double of FoundationDB's C client: its semantics, limits and faults in one process.
//!
//! Programs link it in the place of `libfdb_c.so` (feature `export`, as a `cdylib`), or look its
//! functions up by name with [`symbol`] (as an ordinary library). It runs with a real network
//! thread, or in a simulation under virtual time: see [`sim`]. What it holds and what it does not
//! is in its README.
//!
//! In the order of a request: [`api`] takes it, `transaction` and `overlay` note writes, `read`
//! and `commit` carry it to the `store` and back, over `mvcc`, `conflicts`, `range` and `atomic`;
//! `watch`, `retry` and `options` do what their names say; `world` holds everything and the heap
//! of events; `persist` keeps a store on disk.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "the boundary to C is made of pointers")]
#[allow(clippy::too_many_arguments, reason = "the signatures are those of `fdb_c.h`")]
pub mod api;
mod atomic;
mod commit;
mod conflicts;
mod database;
mod errors;
mod faults;
mod future;
mod limits;
mod mapped;
mod mvcc;
mod options;
mod overlay;
mod persist;
mod random;
mod range;
mod read;
mod retry;
pub mod sim;
mod special;
mod store;
#[cfg(test)]
mod tests;
mod transaction;
mod watch;
mod world;

/// The function of the C interface with the name `name`, for example `fdb_get_error`.
pub fn symbol(name: &str) -> Option<*const std::ffi::c_void> {
    api::symbol(name)
}
