//! Simulated time of a thread.

use std::{cell::Cell, time::Duration};

use crate::SIMULATED;

/// What `CLOCK_REALTIME` shows at simulated time zero: 2026-01-01T00:00:00Z.
pub const REALTIME_START: Duration = Duration::from_secs(1_767_225_600);

/// What `CLOCK_MONOTONIC` shows at simulated time zero. It is small on purpose: std waits until an
/// absolute monotonic time, and one that lies behind the real clock returns at once instead of
/// holding up the simulation.
pub(crate) const MONOTONIC_START: Duration = Duration::from_secs(1);

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Whether a `now` runs on this thread, which then reads real clocks.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Sets the time that [`now`] tells on this thread.
pub fn set_now(now: Duration) {
    NOW.set(now);
}

/// The time that was last set on this thread; zero before. Made to be handed to [`crate::enter`].
#[must_use]
pub fn now() -> Duration {
    NOW.get()
}

/// Simulated time since the start, or `None` on a thread that is not simulated.
pub(crate) fn simulated() -> Option<Duration> {
    let simulated = SIMULATED.get()?;
    if ASKING.replace(true) {
        return None;
    }
    let now = (simulated.now)();
    ASKING.set(false);
    Some(now)
}
