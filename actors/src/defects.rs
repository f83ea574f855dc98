//! Planted bugs: mistakes that one could make in this code, each behind a switch, so that the
//! simulations can show that they find them. Without the feature `defects` none of them can be
//! switched on, and the compiler removes them.

/// A mistake that can be switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defects", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defects", serde(rename_all = "kebab-case"))]
pub enum Defect {
    /// The cube answers before its commit is durable.
    AckBeforeCommit,
    /// A commit does not check that its owner still owns the cube.
    NoFenceCheck,
    /// A commit with an unknown outcome is sent again under a fresh token, without a look.
    RetryWithoutToken,
    /// The cube changes its index before the commit, and keeps the change when the commit fails.
    IndexBeforeCommit,
    /// Some commits leave no record in the event feed.
    LostEvent,
    /// Reads are answered from RAM without asking whether the cube has moved.
    StaleReadAfterMove,
    /// A cube is hydrated without a claim of its own, so that it lives twice.
    DoubleHydrate,
    /// Deleting an item leaves its vector behind.
    ForgottenVector,
    /// A frame that arrives twice is executed twice.
    DuplicateFrame,
    /// A call from another node runs for the tenant of the call before it.
    TenantMixUp,
    /// After a failed commit, the cube goes on waiting for its outcome.
    LostWake,
    /// A call whose commit failed keeps its place in the queue.
    LeakedPlace,
    /// A search over several cubes shows what a table names without a look at its row.
    UncheckedCandidate,
    /// A cube with a snapshot does not tell which items have changed since.
    LostTail,
    /// A snapshot is committed before its object is in place.
    SnapshotBeforeBlob,
    /// A page of the event feed goes on after the widest of its cuts.
    SkippedEvent,
    /// The event feed is trimmed without a look at its consumers.
    TrimPastConsumer,
    /// The FoundationDB backend looks at a commit's token only if the attempt just before may have
    /// committed: what happened further back is forgotten.
    TrustMaybeCommitted,
    /// A block that is missing in RAM is replaced by another one of the same place and length,
    /// whatever its text and whosever it is.
    ForeignBlock,
    /// A deleted memory stays in the contexts that contain it, and so do their blocks.
    DeletedInContext,
    /// The name of a block does not tell which model computed it.
    ModelBlindKey,
    /// The scheduler prepares a turn for the tenant of the turn before.
    PreloadForOther,
    /// A preload that is overtaken keeps its place among the background jobs.
    LeakedPreload,
    /// The scheduler takes in events without a bound.
    UnboundedEvents,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::AckBeforeCommit,
        Self::NoFenceCheck,
        Self::RetryWithoutToken,
        Self::IndexBeforeCommit,
        Self::LostEvent,
        Self::StaleReadAfterMove,
        Self::DoubleHydrate,
        Self::ForgottenVector,
        Self::DuplicateFrame,
        Self::TenantMixUp,
        Self::LostWake,
        Self::LeakedPlace,
        Self::TrustMaybeCommitted,
        Self::UncheckedCandidate,
        Self::SkippedEvent,
        Self::TrimPastConsumer,
        Self::LostTail,
        Self::SnapshotBeforeBlob,
        Self::ForeignBlock,
        Self::DeletedInContext,
        Self::ModelBlindKey,
        Self::PreloadForOther,
        Self::LeakedPreload,
        Self::UnboundedEvents,
    ];
}
