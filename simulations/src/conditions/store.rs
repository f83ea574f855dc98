//! What is broken between the nodes and the state store.

#[cfg(feature = "fdb")]
use std::collections::BTreeSet;

use super::Conditions;
#[cfg(feature = "fdb")]
use super::NodeConditions;

/// How it stands with the ways to the store.
#[cfg(feature = "fdb")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoreWays {
    /// Recoveries of the store that have begun.
    pub(crate) recoveries: u64,
    /// Whether the store takes no calls at all.
    pub(crate) is_down: bool,
    /// Nodes that do not reach it.
    pub(crate) cut: BTreeSet<u32>,
    /// Whether nothing goes wrong any more.
    pub(crate) is_healed: bool,
}

impl Conditions {
    /// Waits until the ways to the store are others than these, and returns what they are then.
    #[cfg(feature = "fdb")]
    pub(crate) async fn store_ways_change(&self, seen: &StoreWays) -> StoreWays {
        self.until(|state| {
            let is_cut = |(node, of): (&u32, &NodeConditions)| (of.store_cuts > 0).then_some(*node);
            let ways = StoreWays {
                recoveries: state.recoveries,
                is_down: state.store_downs > 0,
                cut: state.nodes.iter().filter_map(is_cut).collect(),
                is_healed: self.is_healed(),
            };
            (ways != *seen).then_some(ways)
        })
        .await
    }

    /// Ends when the node reaches the store.
    pub(crate) async fn store_reached(&self, node: u32) {
        self.until(|state| (state.node(node).store_cuts == 0).then_some(())).await;
    }

    /// The number of a new handle of the node on the store.
    pub(crate) fn open_handle(&self, node: u32) -> u64 {
        let mut state = self.state();
        let node = state.node(node);
        node.handles += 1;
        node.handles
    }

    /// Whether the handle with this number refuses everything.
    pub(crate) fn is_stale(&self, node: u32, handle: u64) -> bool {
        handle < self.state().node(node).stale_below
    }

    /// Whether the store takes no commits.
    pub(crate) fn is_store_full(&self) -> bool {
        self.state().store_fulls > 0
    }

    /// Whether the store takes no calls at all.
    pub(crate) fn is_store_down(&self) -> bool {
        self.state().store_downs > 0
    }

    /// How many recoveries of the store began, and how many are over.
    pub(crate) fn recoveries(&self) -> (u64, u64) {
        let state = self.state();
        (state.recoveries, state.recoveries_over)
    }
}
