//! What callers asked and what they were told: all that a user could know.

use memcube_schemas::{CubeId, MemoryId, TenantId, Version};
use serde::Serialize;

/// A point of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub struct Moment {
    /// Counts all moments of the run, so that two of the same millisecond are ordered.
    pub order: u64,
    /// Simulated milliseconds since the start.
    pub ms: u64,
    /// The version of the state store at that time.
    pub store: Version,
}

/// One call of one caller. A *marker* is a word that stands in the text of one memory only; an item
/// is recognised by it, also when the call that made it was never answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Position in the history.
    pub id: usize,
    /// Which caller.
    pub client: u32,
    /// On behalf of whom.
    pub tenant: TenantId,
    /// Which cube.
    pub cube: CubeId,
    /// What was asked.
    pub call: Call,
    /// When it was asked.
    pub invoked: Moment,
    /// When it was answered, or given up; `None` while it runs.
    pub returned: Option<Moment>,
    /// What the caller was told.
    pub outcome: Outcome,
}

/// What a caller asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Call {
    /// Remember a text with this marker.
    Add {
        /// The marker.
        marker: String,
    },
    /// Read one item.
    Get {
        /// Which.
        id: MemoryId,
    },
    /// Give an item a text with another marker.
    Update {
        /// Which.
        id: MemoryId,
        /// The new marker.
        marker: String,
        /// Refuse if the item has another revision by now.
        expected_revision: Option<u32>,
    },
    /// Forget an item, with or without its history.
    Delete {
        /// Which.
        id: MemoryId,
        /// Erase the history as well.
        purge: bool,
    },
    /// Read all items. Only lists of a single page are recorded.
    List,
    /// Look for the item with this marker.
    Search {
        /// The marker.
        marker: String,
    },
    /// Look for the item with this marker in all cubes of the tenant.
    SearchTenant {
        /// The marker.
        marker: String,
    },
}

/// An item as a caller saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Which.
    pub id: MemoryId,
    /// The marker in its text.
    pub marker: String,
    /// Its revision.
    pub revision: u32,
    /// The name of the tenant in its text.
    pub tenant: String,
}

/// What a caller was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// Nothing yet.
    Pending,
    /// To `Add`: it is durable and findable.
    Added {
        /// The new item.
        id: MemoryId,
        /// The cube's version after it.
        version: Version,
    },
    /// To `Get`: the item.
    Item(Seen),
    /// To `Get`, `Update` or `Delete`: there is no such item.
    Missing,
    /// To `Update`: as it is now.
    Updated {
        /// The item.
        seen: Seen,
        /// The cube's version after it.
        version: Version,
    },
    /// To `Update`: the item has another revision. Nothing was changed.
    OtherRevision,
    /// To `Delete`: it is gone.
    Deleted {
        /// The cube's version after it.
        version: Version,
    },
    /// To `List`: all items at this version of the cube.
    Listed {
        /// In the order of their ids.
        items: Vec<Seen>,
        /// The version that was read.
        version: Version,
    },
    /// To `Search`: the hits at this version of the cube.
    Found {
        /// Best first; the search asked for far more hits than the cube has items.
        hits: Vec<Seen>,
        /// The version that was searched.
        version: Version,
    },
    /// To `SearchTenant`: the hits and the cubes that hold them.
    FoundAcross {
        /// Best first; the search asked for far more hits than the tenant has items.
        hits: Vec<(CubeId, Seen)>,
    },
    /// It was refused and certainly had no effect.
    Refused {
        /// Why.
        reason: String,
    },
    /// Nobody knows: it may have happened, and may still happen.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// All calls of a run, in the order in which they were made.
#[derive(Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
}

impl History {
    /// All operations.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Records a call, and returns its number.
    pub fn invoke(
        &mut self,
        client: u32,
        tenant: &TenantId,
        cube: &CubeId,
        call: Call,
        invoked: Moment,
    ) -> usize {
        let id = self.operations.len();
        self.operations.push(Operation {
            id,
            client,
            tenant: tenant.clone(),
            cube: cube.clone(),
            call,
            invoked,
            returned: None,
            outcome: Outcome::Pending,
        });
        id
    }

    /// Records the answer to a call.
    ///
    /// # Panics
    /// When there is no such call.
    pub fn answer(&mut self, id: usize, returned: Moment, outcome: Outcome) {
        let operation = &mut self.operations[id];
        operation.returned = Some(returned);
        operation.outcome = outcome;
    }
}
