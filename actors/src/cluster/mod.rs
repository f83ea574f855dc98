//! Several nodes over one store: who is alive, which node owns which cube, and how a call gets
//! there.
//!
//! Safety rests on the store alone: a claim raises the epoch of a cube's ownership row, every
//! commit checks that row, and in a cluster every read does too. Heartbeats, views and routes only
//! say where to look first, so they may be wrong, and detection may be quick.

pub(crate) mod hand_over;
pub(crate) mod membership;
pub(crate) mod peers;
pub(crate) mod placement;
pub(crate) mod route;
#[cfg(test)]
mod tests;
mod transport;

use std::sync::Arc;

pub use self::{
    placement::View,
    transport::{Inbox, LocalHub, Transport},
};

/// What makes a node one of several.
#[derive(Clone)]
pub struct ClusterParts {
    /// How it reaches the others.
    pub transport: Arc<dyn Transport>,
    /// How often, and how patiently.
    pub settings: ClusterSettings,
}

/// Rhythm and patience of a node among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds without a heartbeat after which the others take a node for dead. Safety does
    /// not depend on it; too short a time costs hand-overs, too long a time keeps cubes of a dead
    /// node waiting.
    pub dead_after_ms: u64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self { heartbeat_ms: 400, dead_after_ms: 1_600 }
    }
}
