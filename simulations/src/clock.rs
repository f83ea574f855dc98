//! The clocks of a node: virtual time, wrongly set.

use std::time::Duration;

use memcube_actors::environment::Clock;

use crate::conditions::{Conditions, Place};

/// The first of January 2026: where virtual wall clocks start.
pub(crate) const START_UNIX_MS: i64 = 1_767_225_600_000;
/// How far a wall clock may be off when its node starts.
const SKEW_MS_MAX: i64 = 2_000;

/// The clocks of one life of a node.
pub(crate) struct NodeClock {
    conditions: Conditions,
    node: u32,
    skew_ms: i64,
}

impl NodeClock {
    /// Clocks that are as wrong as drawn for this life.
    pub(crate) fn new(conditions: Conditions, node: u32, life: u64) -> Self {
        let width = 2 * SKEW_MS_MAX.unsigned_abs();
        let drawn = conditions.occasion(Place::Clock { node }, life).between("skew", 0, width);
        let skew_ms = i64::try_from(drawn).unwrap_or(0) - SKEW_MS_MAX;
        Self { conditions, node, skew_ms }
    }
}

impl Clock for NodeClock {
    fn unix_ms(&self) -> i64 {
        let now_ms = i64::try_from(self.conditions.now_ms()).unwrap_or(i64::MAX);
        START_UNIX_MS + now_ms + self.skew_ms + self.conditions.clock_offset_ms(self.node)
    }

    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.conditions.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Sleeps that many virtual milliseconds; none is no sleep at all.
pub(crate) async fn sleep_ms(milliseconds: u64) {
    if milliseconds > 0 {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{conditions::tests::with_faults, plan::Fault};

    #[tokio::test(start_paused = true)]
    async fn clocks_go_with_virtual_time_and_jump() {
        let conditions = with_faults(&[]);
        let clock = NodeClock::new(conditions.clone(), 1, 0);
        let skew = clock.unix_ms() - START_UNIX_MS;
        sleep_ms(1_234).await;
        assert_eq!(clock.unix_ms() - START_UNIX_MS, 1_234 + skew);
        assert_eq!(clock.monotonic_us(), 1_234_000);
        conditions.begin(&Fault::ClockJump { node: 1, by_ms: -3_000 });
        conditions.begin(&Fault::ClockJump { node: 2, by_ms: 500 });
        assert_eq!(clock.unix_ms() - START_UNIX_MS, 1_234 + skew - 3_000);
        assert_eq!(clock.monotonic_us(), 1_234_000, "runs on");
    }

    #[tokio::test(start_paused = true)]
    async fn every_life_has_a_skew_of_its_own() {
        let conditions = with_faults(&[]);
        let skew = |life| NodeClock::new(conditions.clone(), 1, life).skew_ms;
        let skews: Vec<i64> = (0..200).map(skew).collect();
        assert!(skews.iter().all(|skew| skew.abs() <= SKEW_MS_MAX));
        assert!(skews.iter().any(|skew| *skew < -1_000) && skews.iter().any(|skew| *skew > 1_000));
        assert_eq!(skew(3), skews[3]);
    }
}
