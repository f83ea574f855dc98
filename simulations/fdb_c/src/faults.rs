//! What goes wrong in a simulated cluster, and how often.

use crate::errors::{
    CLUSTER_VERSION_CHANGED, COMMIT_UNKNOWN_RESULT, Code, DATABASE_LOCKED, NOT_COMMITTED,
    TRANSACTION_TOO_OLD,
};
use crate::random::Random;

/// Faults by kind, each in how many of a thousand operations it happens. All are off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Commits refused with 1020 although nothing conflicts.
    pub not_committed: u16,
    /// Commits that are applied and answered with 1021.
    pub unknown_applied: u16,
    /// Commits that are lost and answered with 1021.
    pub unknown_lost: u16,
    /// Commits that are applied seconds later, and answered with 1021 after that.
    pub unknown_late: u16,
    /// Reads and commits refused with 1007.
    pub too_old: u16,
    /// Reads refused with 1009.
    pub future_version: u16,
    /// Reads refused with 1037.
    pub process_behind: u16,
    /// Commits refused with 1038.
    pub database_locked: u16,
    /// Commits that are applied and answered with 1039.
    pub version_changed_applied: u16,
    /// Commits that are lost and answered with 1039.
    pub version_changed_lost: u16,
    /// Read versions refused with 1213.
    pub throttled: u16,
    /// Commits of transactions with a timeout that are never answered, so that 1031 comes: a third
    /// of them applied at once, a third lost, a third applied at any time, also after the 1031.
    pub unanswered: u16,
    /// Commits that take a second longer.
    pub slow_commit: u16,
    /// Read versions that take longer than the window of 5 s.
    pub stalled_read_version: u16,
    /// Batches of commits during which the cluster recovers: what is in flight is answered with
    /// 1021, and the versions jump.
    pub recovery: u16,
    /// Watches that are told of a change the moment it happens, before the writer knows.
    pub watch_early: u16,
    /// Watches that are told of a change seconds later.
    pub watch_late: u16,
    /// Watches that fire although nothing changed.
    pub watch_spurious: u16,
}

/// What shall become of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Decided by the servers, after a delay.
    Decided { delay_us: u64 },
    /// Refused by the servers with this error.
    Refused(Code),
    /// Lost; the client is told this.
    Lost(Code),
    /// Decided by the servers after a delay; the client is told this instead of the outcome.
    Hidden { code: Code, delay_us: u64 },
    /// As above, and the client is told nothing.
    Unanswered { is_lost: bool, delay_us: u64 },
}

impl Faults {
    /// Draws the fate of a commit.
    pub(crate) fn draw(&self, random: &mut Random, timeout_us: u64) -> Fate {
        if random.chance(self.not_committed) {
            return Fate::Refused(NOT_COMMITTED);
        }
        if random.chance(self.too_old) {
            return Fate::Refused(TRANSACTION_TOO_OLD);
        }
        if random.chance(self.database_locked) {
            return Fate::Refused(DATABASE_LOCKED);
        }
        if random.chance(self.unknown_applied) {
            return Fate::Hidden { code: COMMIT_UNKNOWN_RESULT, delay_us: 0 };
        }
        if random.chance(self.unknown_lost) {
            return Fate::Lost(COMMIT_UNKNOWN_RESULT);
        }
        if random.chance(self.unknown_late) {
            let delay_us = random.between(100_000, 4_000_000);
            return Fate::Hidden { code: COMMIT_UNKNOWN_RESULT, delay_us };
        }
        if random.chance(self.version_changed_applied) {
            return Fate::Hidden { code: CLUSTER_VERSION_CHANGED, delay_us: 0 };
        }
        if random.chance(self.version_changed_lost) {
            return Fate::Lost(CLUSTER_VERSION_CHANGED);
        }
        if timeout_us > 0 && random.chance(self.unanswered) {
            return match random.between(0, 2) {
                0 => Fate::Unanswered { is_lost: true, delay_us: 0 },
                1 => Fate::Unanswered { is_lost: false, delay_us: 0 },
                _ => {
                    let delay_us = random.between(0, timeout_us + timeout_us / 2);
                    Fate::Unanswered { is_lost: false, delay_us }
                }
            };
        }
        if random.chance(self.slow_commit) {
            return Fate::Decided { delay_us: random.between(200_000, 2_000_000) };
        }
        Fate::Decided { delay_us: 0 }
    }
}
