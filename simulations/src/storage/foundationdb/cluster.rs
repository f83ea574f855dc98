//! The simulated cluster in this world's terms: virtual time, and the faults of the plan.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fdb_c::sim::{self, Applied, Faults, SimConfig};
use tokio::sync::Notify;

use crate::{
    conditions::Conditions,
    plan::{FaultClass, Plan},
};

/// The cluster file of the world.
pub(super) const FILE: &str = "sim:world";
/// The name of the store in it.
const STORE: &str = "world";
/// The operation of a mutation that writes a value.
pub(super) const SET: u32 = 0;

/// Starts an empty cluster, whose time is that of the world. The bell rings when it has something
/// to do earlier than before.
pub(super) fn start(plan: &Plan, conditions: &Conditions) -> Arc<Notify> {
    let config = SimConfig { faults: faults(conditions), ..SimConfig::default() };
    sim::start(plan.seed, config);
    let clock = conditions.clone();
    sim::set_clock(Box::new(move || micros(clock.elapsed())));
    let bell = Arc::new(Notify::new());
    let rung = Arc::clone(&bell);
    sim::on_scheduled(Box::new(move || rung.notify_one()));
    bell
}

/// How often each class of faults struck so far.
pub(super) fn injected() -> BTreeMap<FaultClass, u64> {
    let mut injected = BTreeMap::new();
    for (kind, count) in sim::injected() {
        let class = match kind {
            "too_old" => FaultClass::FdbTooOld,
            "future_version" => FaultClass::FdbFutureVersion,
            "not_committed" => FaultClass::FdbConflict,
            "unknown_applied" | "unknown_late" => FaultClass::FdbUnknownApplied,
            "unknown_lost" => FaultClass::FdbUnknownLost,
            "unanswered" => FaultClass::FdbTimedOut,
            "version_changed_applied" | "version_changed_lost" => FaultClass::FdbVersionChanged,
            "throttled" | "process_behind" | "database_locked" => FaultClass::FdbThrottled,
            "slow_commit" => FaultClass::FdbSlowCommit,
            "stalled_read_version" => FaultClass::FdbSlowVersion,
            "recovery" => FaultClass::FdbRecovery,
            "watch_early" | "watch_late" | "watch_spurious" => FaultClass::FdbWatch,
            _ => continue,
        };
        *injected.entry(class).or_default() += count;
    }
    injected
}

/// Lets everything happen that is due.
pub(super) fn run_until(now: Duration) {
    sim::run_until(micros(now));
}

/// When something else is due.
pub(super) fn next_at() -> Option<Duration> {
    sim::next_at().map(Duration::from_micros)
}

/// Whoever decided commits is gone: what is on the way is unknown, and versions jump.
pub(super) fn recover() {
    sim::recover(STORE);
}

/// Nothing goes wrong any more.
pub(super) fn heal() {
    sim::heal();
}

/// Cuts a connection, or joins it again.
pub(super) fn cut(connection: u64, is_cut: bool) {
    sim::partition(connection, is_cut);
}

/// The connection that was opened last.
pub(super) fn last_connection() -> u64 {
    sim::handles().last().map_or(0, |handle| handle.id)
}

/// The commits that took effect, from the one with this number on.
pub(super) fn applied_from(number: usize) -> Vec<Applied> {
    sim::applied_from(STORE, number)
}

/// The version of the last commit, or of the last read.
pub(super) fn last_version() -> u64 {
    sim::last_version(STORE)
}

/// Leaves out versions.
#[cfg(test)]
pub(super) fn skip_versions(count: u64) {
    sim::skip_versions(STORE, count);
}

/// The rows of the cluster as they lie there.
#[cfg(test)]
pub(super) fn raw_rows() -> Vec<(Vec<u8>, Vec<u8>)> {
    sim::snapshot(STORE)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What the intensities of a plan are to the cluster.
fn faults(conditions: &Conditions) -> Faults {
    let per_mille = |class| u16::try_from(conditions.intensity(class)).unwrap_or(u16::MAX);
    let half = |class| per_mille(class).div_ceil(2);
    Faults {
        too_old: per_mille(FaultClass::FdbTooOld),
        future_version: per_mille(FaultClass::FdbFutureVersion),
        not_committed: per_mille(FaultClass::FdbConflict),
        unknown_applied: half(FaultClass::FdbUnknownApplied),
        unknown_late: half(FaultClass::FdbUnknownApplied),
        unknown_lost: per_mille(FaultClass::FdbUnknownLost),
        unanswered: per_mille(FaultClass::FdbTimedOut),
        version_changed_applied: half(FaultClass::FdbVersionChanged),
        version_changed_lost: half(FaultClass::FdbVersionChanged),
        throttled: half(FaultClass::FdbThrottled),
        process_behind: half(FaultClass::FdbThrottled),
        database_locked: half(FaultClass::FdbThrottled),
        slow_commit: per_mille(FaultClass::FdbSlowCommit),
        stalled_read_version: per_mille(FaultClass::FdbSlowVersion),
        recovery: per_mille(FaultClass::FdbRecovery),
        watch_early: per_mille(FaultClass::FdbWatch),
        watch_late: per_mille(FaultClass::FdbWatch),
        watch_spurious: per_mille(FaultClass::FdbWatch),
    }
}
