//! The state store that all nodes share, behind everything that can go wrong on the way to it and
//! back. A plan says which: the executable specification in RAM, or memcube's own backend for
//! FoundationDB over a simulated cluster.
//!
//! Invariant: the port's contract holds whatever strikes. A commit that was answered with
//! `Conflict` never takes effect, nor does one for whose token `outcome` answered `None`.

#[cfg(feature = "fdb")]
mod foundationdb;
mod in_memory;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::BoxFuture;
use memcube_actors::storage::{Check, Commit, Mutation, SharedStore, StoreError};
use memcube_schemas::{Incarnation, NodeId, Version};

#[cfg(feature = "fdb")]
use self::foundationdb::FoundationDbDisk;
use self::in_memory::InMemoryDisk;
use crate::{
    conditions::Conditions,
    evidence::{CommitRecord, Row},
    plan::{Plan, StoreKind},
};

/// What a recovery adds to the version.
const RECOVERY_VERSIONS: u64 = 100_000_000;

/// Who a node is in the life that sends a commit.
pub(crate) type IncarnationOf = Arc<dyn Fn() -> Incarnation + Send + Sync>;

/// Who sends a commit.
#[derive(Clone)]
struct Sender {
    node: NodeId,
    incarnation: Incarnation,
}

/// The store of the simulated world, and what really happened in it.
trait Disk: Send + Sync {
    /// Opens the store for one life of a node. A handle that went stale is replaced by a new one.
    fn handle(&self, node: u32, life: u64, incarnation: IncarnationOf) -> SharedStore;

    /// Takes the record of all commits that took effect, in order.
    fn commits(&self) -> Vec<CommitRecord>;

    /// All rows.
    fn rows(&self) -> BoxFuture<'_, BTreeMap<Vec<u8>, Row>>;

    /// The version of the last commit.
    fn version(&self) -> Version;

    /// How many commits may still take effect although their senders gave them up.
    fn late_commits(&self) -> usize;
}

/// The store of the simulated world. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub(crate) struct SimStore(Arc<dyn Disk>);

impl SimStore {
    /// An empty store of the plan's kind.
    ///
    /// # Errors
    /// When the simulated cluster cannot be set up, or was not built in.
    pub(crate) fn new(plan: &Plan, conditions: Conditions) -> anyhow::Result<Self> {
        Ok(Self(match plan.store {
            StoreKind::InMemory => Arc::new(InMemoryDisk::new(conditions)),
            #[cfg(feature = "fdb")]
            StoreKind::Foundationdb => Arc::new(FoundationDbDisk::new(plan, conditions)?),
            #[cfg(not(feature = "fdb"))]
            StoreKind::Foundationdb => anyhow::bail!(
                "these simulations were built without the feature `fdb`; build them with \
                 `--features fdb`"
            ),
        }))
    }

    /// Opens the store for one life of a node. A handle that went stale is replaced by a new one.
    pub(crate) fn handle(&self, node: u32, life: u64, incarnation: IncarnationOf) -> SharedStore {
        self.0.handle(node, life, incarnation)
    }

    /// Takes the record of all commits that took effect, in order.
    pub(crate) fn commits(&self) -> Vec<CommitRecord> {
        self.0.commits()
    }

    /// All rows.
    pub(crate) async fn rows(&self) -> BTreeMap<Vec<u8>, Row> {
        self.0.rows().await
    }

    /// The version of the last commit.
    pub(crate) fn version(&self) -> Version {
        self.0.version()
    }

    /// How many commits may still take effect although their senders gave them up.
    pub(crate) fn late_commits(&self) -> usize {
        self.0.late_commits()
    }
}

/// The first key that a commit touches.
fn first_key(commit: &Commit) -> &[u8] {
    let written = || match commit.mutations.first() {
        Some(Mutation::Set { key, .. } | Mutation::Clear { key } | Mutation::Add { key, .. }) => {
            key
        }
        Some(Mutation::ClearRange { range }) => &range.start,
        Some(Mutation::SetVersionstamped { prefix, .. }) => prefix,
        None => &[][..],
    };
    commit.checks.first().map_or_else(written, Check::key)
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable { reason: reason.to_owned() }
}
