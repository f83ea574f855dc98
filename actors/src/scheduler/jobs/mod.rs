//! Background jobs of a node: what nobody waits for, done a few at a time, fairly between tenants.
//!
//! `fair` says whose turn it is and `board` what waits and runs, both pure; `actor` runs it,
//! `handle` is the front door, `status` what it tells.
//!
//! Invariant: whatever a tenant submits, it waits within bounds and holds at most half of the
//! places, so that another tenant's job finds a free one.
//!
//! Jobs live in the RAM of one node: what must not be lost at a crash is durable elsewhere, and is
//! submitted anew by whoever finds it there.

mod actor;
mod board;
mod fair;
mod handle;
mod records;
mod status;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, num::NonZeroU32, str::FromStr};

use futures_util::future::BoxFuture;
use memcube_schemas::{CubeId, TenantId};

pub use self::{
    handle::JobsHandle,
    status::{JobCounts, JobState, JobView, JobsStatus},
};
use crate::error::{Error, Result};

/// What a job does when it is its turn.
pub type Work = Box<dyn FnOnce() -> BoxFuture<'static, Result<()>> + Send>;

/// What kind of work a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobKind {
    /// Has ready what the next turn of a conversation will need. Goes before the other jobs of its
    /// tenant: the user may be back any moment.
    Preload,
    /// Computes keys and values of memories that are asked for often.
    Blocks,
    /// Removes what is old from event feeds.
    Feed,
    /// Removes blobs that nothing refers to.
    Blobs,
    /// Removes the rows of nodes that are gone.
    Nodes,
    /// Chores that whoever embeds memcube has added.
    Other,
}

impl JobKind {
    /// All kinds, in their order.
    pub const ALL: [Self; 6] =
        [Self::Preload, Self::Blocks, Self::Feed, Self::Blobs, Self::Nodes, Self::Other];

    /// As it is written on the wire, in metrics and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preload => "preload",
            Self::Blocks => "blocks",
            Self::Feed => "feed",
            Self::Blobs => "blobs",
            Self::Nodes => "nodes",
            Self::Other => "other",
        }
    }

    /// Whether somebody may soon wait for it.
    const fn is_urgent(self) -> bool {
        match self {
            Self::Preload => true,
            Self::Blocks | Self::Feed | Self::Blobs | Self::Nodes | Self::Other => false,
        }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join("`, `");
            Error::invalid(format!("there are no jobs of kind `{text}`; kinds are `{known}`"))
        })
    }
}

/// Names a job of one life of a node; the next life counts from the start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(u64);

impl JobId {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_number);
        number.map(Self).ok_or_else(|| Error::invalid("the id of a job is a number"))
    }
}

/// Something to be done in the background.
pub struct Job {
    /// For whom; `None` for the node itself.
    pub tenant: Option<TenantId>,
    /// The cube that it works on: when that is deleted, so is the job.
    pub cube: Option<CubeId>,
    /// What kind of work it is.
    pub kind: JobKind,
    /// Tells jobs of one tenant and kind apart. While one waits, another of the same name is not
    /// taken in: it would do the same.
    pub name: String,
    /// Milliseconds after which it is given up, and counts as failed.
    pub ms_max: u64,
    /// Does it. The future may be dropped at any point at which it waits (the time is over, the
    /// cube was deleted, the node stops), and must leave nothing behind then that a later job of
    /// the same name cannot take up.
    pub work: Work,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, cube, kind, name, ms_max, work: _ } = self;
        f.debug_struct("Job")
            .field("tenant", tenant)
            .field("cube", cube)
            .field("kind", kind)
            .field("name", name)
            .field("ms_max", ms_max)
            .finish_non_exhaustive()
    }
}

/// How many jobs run at a time, and whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRules {
    /// Jobs of tenants that run at the same time. One tenant has at most half of the places.
    pub at_once: usize,
    /// Jobs of the node itself that run at the same time. They have places of their own: upkeep and
    /// tenants do not wait for each other.
    pub house_at_once: usize,
    /// How much of the time of all jobs falls to a tenant, next to others that have work as well; 1
    /// for who is not named.
    pub weights: BTreeMap<TenantId, NonZeroU32>,
}

impl Default for JobRules {
    fn default() -> Self {
        Self { at_once: 4, house_at_once: 2, weights: BTreeMap::new() }
    }
}

impl JobRules {
    /// Places that one tenant may hold.
    fn tenant_at_once(&self) -> usize {
        (self.at_once / 2).max(1)
    }

    fn weight(&self, tenant: &TenantId) -> NonZeroU32 {
        self.weights.get(tenant).copied().unwrap_or(NonZeroU32::MIN)
    }
}
