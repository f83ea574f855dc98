//! Bodies about background jobs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::CubeId;

/// How far a background job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobCondition {
    /// It is not its turn yet, or its kind is paused.
    Waiting,
    /// It runs.
    Running,
    /// It has ended well.
    Done,
    /// It has ended with an error, or took too long.
    Failed,
    /// Its cube was deleted, or the node stops.
    Cancelled,
}

body! {
    /// One background job.
    response JobBody {
        /// Names it, until the node stops.
        id: u64,
        /// What kind of work it is, such as `preload`.
        kind: String,
        /// Its name among those of its kind.
        name: String,
        /// The cube that it works on.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        cube: Option<CubeId>,
        /// How far it is.
        condition: JobCondition,
        /// When it was submitted (RFC 3339).
        submitted_at: String,
        /// Milliseconds that it waited, or has waited by now.
        waited_ms: u64,
        /// Milliseconds that it ran, or has run by now.
        ran_ms: u64,
        /// Why it failed.
        error: Option<String>,
    }
}

body! {
    /// How many background jobs there are, and were since the node started.
    response JobCountsBody {
        /// Jobs that wait.
        waiting: u64,
        /// Jobs that run.
        running: u64,
        /// Jobs that ended well.
        done: u64,
        /// Jobs that failed.
        failed: u64,
        /// Jobs that were cancelled.
        cancelled: u64,
    }
}

body! {
    /// The background jobs of the node that answers.
    response JobsResponse {
        /// The caller's, all kinds together.
        counts: JobCountsBody,
        /// The caller's by kind.
        kinds: BTreeMap<String, JobCountsBody>,
        /// Kinds of which no job of the caller begins now.
        paused: Vec<String>,
        /// The caller's jobs: some that run, some that wait, and the last ones that have ended.
        recent: Vec<JobBody>,
        /// Those of the node itself, such as its upkeep, by kind.
        node: BTreeMap<String, JobCountsBody>,
    }
}

body! {
    /// Pauses or resumes the caller's background jobs on the node that answers.
    request PauseJobsRequest {
        /// Only those of this kind; all kinds if left out.
        #[serde(default)]
        kind: Option<String>,
    }
}
