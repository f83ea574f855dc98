//! A child process that is a copy of this one.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// What a child exits with when its work panicked.
const PANICKED: i32 = 101;

/// Starts a child that does the work and exits: with 0, or with 101 if the work panicked. It runs
/// neither destructors nor exit handlers, which belong to the parent. Returns the child's id.
///
/// Only the calling thread lives on in the child. A parent should have no other: a lock that
/// another thread holds at this moment stays locked in the child for ever.
///
/// # Errors
/// When the system has no room for another process.
pub fn fork_child(work: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: the child is a copy of this process with this thread alone. The C library keeps its
    // own locks, such as the allocator's, usable over a fork; ours are the caller's business.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child > 0 {
        return Ok(child);
    }
    // A child whose parent is gone has nobody to answer to.
    #[cfg(target_os = "linux")]
    // SAFETY: plain numbers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    let outcome = catch_unwind(AssertUnwindSafe(work));
    // SAFETY: ends this process, which is the child.
    unsafe { libc::_exit(if outcome.is_ok() { 0 } else { PANICKED }) }
}
