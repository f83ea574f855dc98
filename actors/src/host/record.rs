//! What the host remembers of one cube: whether it is in RAM, who waits for it, and how it failed.

use std::{collections::VecDeque, sync::Arc};

use memcube_schemas::limits::{CUBE_PANIC_WINDOW_MS, CUBE_PANICS_MAX};
use ractor::ActorId;

use super::{Ask, Ended};
use crate::{directory::Slot, error::Result};

/// Each further panic of a cube delays its restart by this much.
const RESTART_DELAY_MS: u64 = 100;

#[derive(Default)]
pub(super) enum Phase {
    #[default]
    Cold,
    Hydrating,
    Hot(Arc<Slot>),
    /// Asked to leave RAM, still finishing.
    Leaving(Arc<Slot>),
}

#[derive(Default)]
pub(super) struct Record {
    pub(super) phase: Phase,
    /// Callers that wait for the cube to be hot.
    pub(super) waiting: Vec<Ask<Result<Arc<Slot>>>>,
    /// Callers that wait to hear why an incarnation ended.
    pub(super) asking: Vec<(ActorId, Ask<Ended>)>,
    pub(super) last_end: Option<(ActorId, Ended)>,
    pub(super) panics_ms: VecDeque<u64>,
    pub(super) not_before_ms: u64,
    pub(super) quarantine: Option<String>,
}

impl Record {
    /// Counts a panic; too many in a short time put the cube into quarantine.
    pub(super) fn count_panic(&mut self, now_ms: u64, reason: &str) {
        self.panics_ms.push_back(now_ms);
        while self.panics_ms.front().is_some_and(|at| now_ms - at > CUBE_PANIC_WINDOW_MS) {
            self.panics_ms.pop_front();
        }
        let count = self.panics_ms.len();
        if count >= CUBE_PANICS_MAX {
            self.quarantine = Some(format!("it failed {count} times in a row, last: {reason}"));
        } else {
            self.not_before_ms = now_ms + RESTART_DELAY_MS * (count as u64 - 1);
        }
    }

    pub(super) fn is_forgettable(&self, now_ms: u64) -> bool {
        let has_recent_panic = self
            .panics_ms
            .back()
            .is_some_and(|at| now_ms.saturating_sub(*at) < CUBE_PANIC_WINDOW_MS);
        matches!(self.phase, Phase::Cold)
            && self.waiting.is_empty()
            && self.asking.is_empty()
            && self.quarantine.is_none()
            && !has_recent_panic
    }
}
