//! Faults that strike at random.

use serde::{Deserialize, Serialize};

use super::StoreKind;

/// A fault that may strike whenever there is a chance: at a message, a commit, a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultClass {
    /// A message takes long.
    NetworkDelay,
    /// A message is lost.
    NetworkDrop,
    /// A message arrives twice.
    NetworkDuplicate,
    /// A message is overtaken by later ones.
    NetworkReorder,
    /// A read or a commit takes long.
    StoreSlow,
    /// A commit is refused although its checks hold.
    StoreConflict,
    /// A commit takes effect, and its answer is lost.
    StoreUnknownApplied,
    /// A commit takes no effect, and its answer is lost.
    StoreUnknownLost,
    /// A commit takes effect long after its answer was lost.
    StoreZombie,
    /// A read or a commit is refused: the store is not reachable.
    StoreUnavailable,
    /// A commit is refused: the store's queue is full.
    StoreOverloaded,
    /// A forward pass takes long.
    DeviceSlow,
    /// A forward pass fails: the device is out of memory.
    DeviceOutOfMemory,
    /// A forward pass of a language model fails, and its session is of no use any more.
    DeviceFail,
    /// A language model computes something that is not a number.
    DeviceNotFinite,
    /// A language model panics.
    DevicePanic,
    /// A node starts with another model, tokenizer or adapter than before.
    ModelChange,
    /// A node starts with an empty disk in place of its former one.
    DiskLost,
    /// An object is read or written slowly.
    BlobSlow,
    /// An object cannot be read or written.
    BlobFail,
    /// Half of an object was written before the writer died.
    BlobTorn,
    /// An object that was written is not found for a while.
    BlobNotYet,
    /// A bit of an object is another one when it is read.
    BlobRot,
    /// A cube panics while it decides.
    CubePanic,
    /// A cube panics while it is hydrated.
    HydratePanic,
    /// A shard of the scheduler panics over an event.
    SchedulerPanic,
    /// A preload panics.
    PreloadPanic,
    /// Tasks that are ready run in another order.
    Jitter,
    /// A read or a commit of a FoundationDB transaction finds its version too old.
    FdbTooOld,
    /// A read of a FoundationDB transaction finds its version not there yet.
    FdbFutureVersion,
    /// A FoundationDB transaction is refused for a conflict that was none.
    FdbConflict,
    /// A FoundationDB transaction took effect, and is answered with `commit_unknown_result`.
    FdbUnknownApplied,
    /// A FoundationDB transaction took no effect, and is answered so.
    FdbUnknownLost,
    /// A FoundationDB transaction times out, and may take effect later.
    FdbTimedOut,
    /// A FoundationDB transaction is answered with `cluster_version_changed`.
    FdbVersionChanged,
    /// A FoundationDB transaction is refused because the cluster is busy.
    FdbThrottled,
    /// A FoundationDB commit takes long.
    FdbSlowCommit,
    /// A FoundationDB transaction waits long for its version.
    FdbSlowVersion,
    /// The FoundationDB cluster recovers: what is on the way is unknown, and versions jump.
    FdbRecovery,
    /// A watch of FoundationDB tells late, or of nothing.
    FdbWatch,
}

impl FaultClass {
    /// All of them.
    pub const ALL: [Self; 40] = [
        Self::NetworkDelay,
        Self::NetworkDrop,
        Self::NetworkDuplicate,
        Self::NetworkReorder,
        Self::StoreSlow,
        Self::StoreConflict,
        Self::StoreUnknownApplied,
        Self::StoreUnknownLost,
        Self::StoreZombie,
        Self::StoreUnavailable,
        Self::StoreOverloaded,
        Self::DeviceSlow,
        Self::DeviceOutOfMemory,
        Self::DeviceFail,
        Self::DeviceNotFinite,
        Self::DevicePanic,
        Self::ModelChange,
        Self::DiskLost,
        Self::BlobSlow,
        Self::BlobFail,
        Self::BlobTorn,
        Self::BlobNotYet,
        Self::BlobRot,
        Self::CubePanic,
        Self::HydratePanic,
        Self::SchedulerPanic,
        Self::PreloadPanic,
        Self::Jitter,
        Self::FdbTooOld,
        Self::FdbFutureVersion,
        Self::FdbConflict,
        Self::FdbUnknownApplied,
        Self::FdbUnknownLost,
        Self::FdbTimedOut,
        Self::FdbVersionChanged,
        Self::FdbThrottled,
        Self::FdbSlowCommit,
        Self::FdbSlowVersion,
        Self::FdbRecovery,
        Self::FdbWatch,
    ];

    /// Whether it strikes only where nodes have a language model.
    #[must_use]
    pub const fn needs_models(self) -> bool {
        matches!(
            self,
            Self::DeviceFail
                | Self::DeviceNotFinite
                | Self::DevicePanic
                | Self::ModelChange
                | Self::DiskLost
                | Self::BlobRot
        )
    }

    /// Whether it strikes only where nodes prepare the next turns of conversations.
    #[must_use]
    pub const fn needs_scheduler(self) -> bool {
        matches!(self, Self::SchedulerPanic | Self::PreloadPanic)
    }

    /// Whether it can strike a store of this kind. What a transaction of FoundationDB may meet is
    /// left to the simulated cluster.
    #[must_use]
    pub const fn strikes_on(self, store: StoreKind) -> bool {
        let only = match self {
            Self::StoreConflict
            | Self::StoreUnknownApplied
            | Self::StoreUnknownLost
            | Self::StoreZombie => StoreKind::InMemory,
            Self::FdbTooOld
            | Self::FdbFutureVersion
            | Self::FdbConflict
            | Self::FdbUnknownApplied
            | Self::FdbUnknownLost
            | Self::FdbTimedOut
            | Self::FdbVersionChanged
            | Self::FdbThrottled
            | Self::FdbSlowCommit
            | Self::FdbSlowVersion
            | Self::FdbRecovery
            | Self::FdbWatch => StoreKind::Foundationdb,
            Self::NetworkDelay
            | Self::NetworkDrop
            | Self::NetworkDuplicate
            | Self::NetworkReorder
            | Self::StoreSlow
            | Self::StoreUnavailable
            | Self::StoreOverloaded
            | Self::DeviceSlow
            | Self::DeviceOutOfMemory
            | Self::DeviceFail
            | Self::DeviceNotFinite
            | Self::DevicePanic
            | Self::ModelChange
            | Self::DiskLost
            | Self::BlobSlow
            | Self::BlobFail
            | Self::BlobTorn
            | Self::BlobNotYet
            | Self::BlobRot
            | Self::CubePanic
            | Self::HydratePanic
            | Self::SchedulerPanic
            | Self::PreloadPanic
            | Self::Jitter => return true,
        };
        matches!(
            (only, store),
            (StoreKind::InMemory, StoreKind::InMemory)
                | (StoreKind::Foundationdb, StoreKind::Foundationdb)
        )
    }

    /// The name in plans and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkDelay => "network-delay",
            Self::NetworkDrop => "network-drop",
            Self::NetworkDuplicate => "network-duplicate",
            Self::NetworkReorder => "network-reorder",
            Self::StoreSlow => "store-slow",
            Self::StoreConflict => "store-conflict",
            Self::StoreUnknownApplied => "store-unknown-applied",
            Self::StoreUnknownLost => "store-unknown-lost",
            Self::StoreZombie => "store-zombie",
            Self::StoreUnavailable => "store-unavailable",
            Self::StoreOverloaded => "store-overloaded",
            Self::DeviceSlow => "device-slow",
            Self::DeviceOutOfMemory => "device-out-of-memory",
            Self::DeviceFail => "device-fail",
            Self::DeviceNotFinite => "device-not-finite",
            Self::DevicePanic => "device-panic",
            Self::ModelChange => "model-change",
            Self::DiskLost => "disk-lost",
            Self::BlobSlow => "blob-slow",
            Self::BlobFail => "blob-fail",
            Self::BlobTorn => "blob-torn",
            Self::BlobNotYet => "blob-not-yet",
            Self::BlobRot => "blob-rot",
            Self::CubePanic => "cube-panic",
            Self::HydratePanic => "hydrate-panic",
            Self::SchedulerPanic => "scheduler-panic",
            Self::PreloadPanic => "preload-panic",
            Self::Jitter => "jitter",
            Self::FdbTooOld => "fdb-too-old",
            Self::FdbFutureVersion => "fdb-future-version",
            Self::FdbConflict => "fdb-conflict",
            Self::FdbUnknownApplied => "fdb-unknown-applied",
            Self::FdbUnknownLost => "fdb-unknown-lost",
            Self::FdbTimedOut => "fdb-timed-out",
            Self::FdbVersionChanged => "fdb-version-changed",
            Self::FdbThrottled => "fdb-throttled",
            Self::FdbSlowCommit => "fdb-slow-commit",
            Self::FdbSlowVersion => "fdb-slow-version",
            Self::FdbRecovery => "fdb-recovery",
            Self::FdbWatch => "fdb-watch",
        }
    }
}
