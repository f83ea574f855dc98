//! Seeded randomness and simulated clocks under dependencies that ask the operating system.
//!
//! A program that links this crate has functions `getrandom`, `getentropy` and `clock_gettime` of
//! its own in front of the C library's. They pass every call through, but on a thread that called
//! [`enter`]: there, random bytes are a stream of the seed, and the clocks show simulated time. So
//! the order of a std hash map, which depends on random keys, replays from the seed; keys are drawn
//! once a thread, hence one fresh thread a run.
//!
//! What it does not catch: system calls that go past the C library (`getrandom` 0.2 does),
//! addresses as a source of randomness (`hashbrown`'s and `ahash`'s default hashers), and calls
//! inside the C library. Only Linux with glibc on 64 bits is interposed, see [`ACTIVE`]; elsewhere
//! the functions are there and change nothing.
//!
//! The only crate of the workspace with unsafe code, and never part of a release.

#![cfg_attr(
    not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")),
    allow(dead_code, reason = "nothing is interposed there")
)]

mod clock;
#[cfg(unix)]
mod fork;
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod symbols;

use std::{cell::Cell, marker::PhantomData, time::Duration};

pub use clock::{REALTIME_START, now, set_now};
#[cfg(unix)]
pub use fork::fork_child;

/// Whether this platform is interposed at all.
pub const ACTIVE: bool =
    cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"));

/// What a simulated thread sees. Plain data without a destructor, so that it can be read at any
/// moment of a thread's life, also while the thread is being torn down.
#[derive(Clone, Copy)]
struct Simulated {
    /// State of the splitmix64 stream.
    random: u64,
    /// The simulated time since the start.
    now: fn() -> Duration,
}

thread_local! {
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
}

/// Simulates randomness and clocks on this thread, until the guard is dropped: random bytes are a
/// stream of `seed`, `CLOCK_REALTIME` is [`REALTIME_START`] and `now`, and `CLOCK_MONOTONIC` is a
/// second and `now`.
///
/// `now` must not panic. Clocks that it reads itself are the real ones.
pub fn enter(seed: u64, now: fn() -> Duration) -> Guard {
    let before = SIMULATED.replace(Some(Simulated { random: seed, now }));
    Guard { before, this_thread: PhantomData }
}

/// Gives the thread back what it had before [`enter`].
#[must_use = "dropping the guard ends the simulation of this thread"]
pub struct Guard {
    before: Option<Simulated>,
    /// Raw pointers are not `Send`: the guard restores the thread that it was made on.
    this_thread: PhantomData<*const ()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        SIMULATED.set(self.before);
    }
}

/// Fills the bytes from this thread's stream, or tells that the thread is not simulated.
fn fill(bytes: &mut [u8]) -> bool {
    let Some(mut simulated) = SIMULATED.get() else { return false };
    for chunk in bytes.chunks_mut(size_of::<u64>()) {
        let word = splitmix64(&mut simulated.random).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    SIMULATED.set(Some(simulated));
    true
}

/// The next number of the stream (Steele, Lea, Flood 2014).
const fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
