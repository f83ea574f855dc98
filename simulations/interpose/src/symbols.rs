//! The functions that stand in front of the C library's.
//!
//! Being defined in the program itself, they win over the shared library's when the linker
//! resolves the standard library's references, and in `dlsym` as well.

use std::{
    ffi::CStr,
    mem::transmute,
    ptr::null_mut,
    slice,
    sync::atomic::{AtomicPtr, Ordering},
    time::Duration,
};

use libc::{c_int, c_long, c_uint, c_void, clockid_t, size_t, ssize_t, timespec};

use crate::{
    clock::{self, MONOTONIC_START, REALTIME_START},
    fill,
};

/// As many bytes as `getentropy` gives at once.
const ENTROPY_BYTES_MAX: usize = 256;

/// `getrandom(2)`.
///
/// # Safety
/// `buffer` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(
    buffer: *mut c_void,
    length: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: passed on from the caller.
    if unsafe { filled(buffer, length) } {
        return length.cast_signed();
    }
    // SAFETY: the arguments are the system call's own. Random bytes are asked for rarely, so the
    // way round the C library costs nothing.
    let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
    // On 64 bits, both are 64 bits wide.
    got as ssize_t
}

/// `getentropy(3)`.
///
/// # Safety
/// `buffer` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getentropy(buffer: *mut c_void, length: size_t) -> c_int {
    if length > ENTROPY_BYTES_MAX {
        // SAFETY: the address of this thread's `errno` is always valid.
        unsafe { *libc::__errno_location() = libc::EIO };
        return -1;
    }
    // SAFETY: passed on from the caller. So few bytes come at once or not at all.
    let got = unsafe { getrandom(buffer, length, 0) };
    if got == length.cast_signed() { 0 } else { -1 }
}

/// `clock_gettime(2)`.
///
/// # Safety
/// `time` points to a `timespec` that may be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let start = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI => REALTIME_START,
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_BOOTTIME => MONOTONIC_START,
        // CPU time is not simulated.
        _ => {
            // SAFETY: passed on from the caller.
            return unsafe { real_clock_gettime(clock, time) };
        }
    };
    let Some(now) = clock::simulated() else {
        // SAFETY: passed on from the caller.
        return unsafe { real_clock_gettime(clock, time) };
    };
    // SAFETY: the caller may write there.
    unsafe { time.write(to_timespec(start.saturating_add(now))) };
    0
}

/// Fills the buffer from the stream of a simulated thread.
///
/// # Safety
/// `buffer` points to `length` bytes that may be written.
unsafe fn filled(buffer: *mut c_void, length: size_t) -> bool {
    if buffer.is_null() || length == 0 {
        return false;
    }
    // What the caller handed over need not be initialised, and a slice must be.
    // SAFETY: the caller may write `length` bytes there.
    unsafe { buffer.cast::<u8>().write_bytes(0, length) };
    // SAFETY: `length` bytes that were just initialised, and nobody else looks at them meanwhile.
    fill(unsafe { slice::from_raw_parts_mut(buffer.cast::<u8>(), length) })
}

fn to_timespec(time: Duration) -> timespec {
    timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: c_long::from(time.subsec_nanos()),
    }
}

/// The C library's `clock_gettime`, which reads the clock without entering the kernel. Looked up
/// once: a system call for every look at a clock would slow down everything that logs.
///
/// # Safety
/// `time` points to a `timespec` that may be written.
unsafe fn real_clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    type ClockGettime = unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int;
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

    let mut real = REAL.load(Ordering::Relaxed);
    if real.is_null() {
        real = next_symbol(c"clock_gettime");
        REAL.store(real, Ordering::Relaxed);
    }
    if real.is_null() {
        // SAFETY: passed on from the caller. The result is 0 or -1.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    }
    // SAFETY: a symbol of this name has this type, and it is not null.
    let real = unsafe { transmute::<*mut c_void, ClockGettime>(real) };
    // SAFETY: passed on from the caller.
    unsafe { real(clock, time) }
}

/// The symbol that would have been found had this program not defined its own.
fn next_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: the name ends in a zero byte; the handle is one of the two that are always valid.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}
