//! What goes wrong in a simulated cluster, and how often.

use crate::errors::{
    CLUSTER_VERSION_CHANGED, COMMIT_UNKNOWN_RESULT, Code, DATABASE_LOCKED, NOT_COMMITTED,
    TRANSACTION_TOO_OLD,
};
use crate::world::World;

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
    /// Commits that take up to two seconds longer.
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

impl World {
    /// Draws the fate of a commit whose transaction has so long to live, or forever.
    pub(crate) fn draw_fate(&mut self, timeout_us: Option<u64>) -> Fate {
        let faults = self.faults;
        let certain = [
            ("not_committed", faults.not_committed, Fate::Refused(NOT_COMMITTED)),
            ("too_old", faults.too_old, Fate::Refused(TRANSACTION_TOO_OLD)),
            ("database_locked", faults.database_locked, Fate::Refused(DATABASE_LOCKED)),
            ("unknown_applied", faults.unknown_applied, HIDDEN),
            ("unknown_lost", faults.unknown_lost, Fate::Lost(COMMIT_UNKNOWN_RESULT)),
            (
                "version_changed_applied",
                faults.version_changed_applied,
                Fate::Hidden { code: CLUSTER_VERSION_CHANGED, delay_us: 0 },
            ),
            (
                "version_changed_lost",
                faults.version_changed_lost,
                Fate::Lost(CLUSTER_VERSION_CHANGED),
            ),
        ];
        for (kind, per_mille, fate) in certain {
            if self.is_hit(kind, per_mille) {
                return fate;
            }
        }
        if self.is_hit("unknown_late", faults.unknown_late) {
            let delay_us = self.random.between(100_000, 4_000_000);
            return Fate::Hidden { code: COMMIT_UNKNOWN_RESULT, delay_us };
        }
        if let Some(timeout_us) = timeout_us.filter(|_| faults.unanswered > 0)
            && self.is_hit("unanswered", faults.unanswered)
        {
            let (is_lost, delay_us) = match self.random.between(0, 2) {
                0 => (true, 0),
                1 => (false, 0),
                _ => (false, self.random.between(0, timeout_us + timeout_us / 2)),
            };
            return Fate::Unanswered { is_lost, delay_us };
        }
        let delay_us = match self.is_hit("slow_commit", faults.slow_commit) {
            true => self.random.between(200_000, 2_000_000),
            false => 0,
        };
        Fate::Decided { delay_us }
    }
}

const HIDDEN: Fate = Fate::Hidden { code: COMMIT_UNKNOWN_RESULT, delay_us: 0 };
