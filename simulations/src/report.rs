//! What became of a run.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::evidence::Violation;

/// The verdict on one plan, with what it takes to compare and to count runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// The workload.
    pub scenario: String,
    /// The seed that replays it.
    pub seed: u64,
    /// A hash over every line of the trace, also over those that were not kept.
    pub trace_hash: u64,
    /// Lines of the trace.
    pub events: u64,
    /// The end of the trace, or all of it if that was asked for: one line an event.
    pub trace: String,
    /// Simulated milliseconds, the heal and the last checks included.
    pub simulated_ms: u64,
    /// Calls of callers.
    pub operations: u64,
    /// Calls that were answered with success.
    pub acknowledged: u64,
    /// How often each fault struck.
    pub faults: BTreeMap<String, u64>,
    /// The *sometimes* points that were reached.
    pub reached: BTreeSet<String>,
    /// What must not happen and did; empty when all is well.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Whether nothing was wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.violations.is_empty()
    }
}
