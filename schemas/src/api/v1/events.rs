//! Bodies about what happens to cubes.

use serde::{Deserialize, Serialize};

use crate::ids::{CubeId, MemoryId, Version};

/// What an event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A cube was made.
    Made,
    /// Memories of a cube changed.
    Changed,
    /// A cube was deleted with everything in it.
    Erased,
    /// The cube came whole out of a backup: list its memories.
    Restored,
}

impl EventKind {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Changed => "changed",
            Self::Erased => "erased",
            Self::Restored => "restored",
        }
    }
}

/// What became of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was said again.
    Repeated,
    /// Its text, status, labels or data changed.
    Updated,
    /// It was forgotten, its history kept.
    Deleted,
    /// It was forgotten together with its history.
    Purged,
}

body! {
    /// One memory that a commit changed.
    response ChangeBody {
        /// Which memory.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        memory: MemoryId,
        /// What became of it.
        change: ChangeKind,
        /// Its revision after the change; of a memory that is gone, the last one.
        revision: u32,
    }
}

body! {
    /// One commit of one cube. It names memories and tells no texts.
    response EventBody {
        /// The cursor after this event: resume with `after=` or `Last-Event-ID`.
        id: String,
        /// What it tells of.
        event: EventKind,
        /// Which cube.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        cube: CubeId,
        /// The cube's version after the commit: 0 when it is made, then 1, 2, … without a gap.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        version: Version,
        /// When (RFC 3339), on the clock of the node that committed.
        at: String,
        /// The memories that changed; empty unless the event is `changed`.
        changes: Vec<ChangeBody>,
    }
}

body! {
    /// A page of events, in the order of the commits.
    response EventsResponse {
        /// The events.
        events: Vec<EventBody>,
        /// Everything up to here has been told: ask on with `after=`.
        cursor: String,
        /// Whether there is more already.
        more: bool,
    }
}

body! {
    /// The end of a stream of events, as its last event `closed`.
    response StreamClosed {
        /// Stable name of the reason, as in a problem: `overloaded` when the reader was too slow,
        /// `gone` when it was so slow that events were trimmed, `unavailable` when the server
        /// stops.
        code: String,
        /// What happened and what to do.
        detail: String,
    }
}
