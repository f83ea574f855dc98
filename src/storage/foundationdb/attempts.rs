//! The attempts at one transaction: bounded in number and in time, and honest about what may have
//! taken effect.
//!
//! The crate's own loops are not used: `Database::run` tells an attempt whether *the last one* may
//! have committed, and forgets it when a conflict comes in between.

use std::{ops::ControlFlow, time::Duration};

use foundationdb::{Database, FdbError, Transaction};
use memcube_actors::storage::StoreError;
use memcube_schemas::Version;
use tokio::time::Instant;

use super::error;

/// What all attempts at one transaction may take together; the client ends them then.
pub(super) const TIMEOUT_MS: i32 = 5_000;
/// How much longer nothing may come back before this side gives up on the client itself.
const GRACE_MS: u64 = 1_000;

/// What an attempt came to, short of its commit.
pub(super) enum Decision<T> {
    /// The answer, for which nothing is to be written.
    Answer(T),
    /// To commit what the transaction holds.
    Commit,
}

/// What the attempts came to.
pub(super) enum Done<T> {
    /// The answer of an attempt that wrote nothing.
    Answer(T),
    /// The last attempt committed, at this version; none if it wrote nothing.
    Committed(Option<Version>),
}

/// Why an attempt failed before its commit.
pub(super) enum Obstacle {
    /// FoundationDB says so; perhaps another attempt helps.
    Database(FdbError),
    /// No other attempt helps.
    Refused(StoreError),
    /// The client did not come back.
    Silent,
}

impl From<FdbError> for Obstacle {
    fn from(error: FdbError) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for Obstacle {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// Why all attempts failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// Whether one of them may have taken effect, or may yet.
    pub(super) may_have_committed: bool,
}

/// A transaction that is attempted until it is done.
pub(super) struct Attempts<'a> {
    /// `None` between attempts, and after the last.
    transaction: Option<Transaction>,
    cluster_file: &'a str,
    deadline: Instant,
    /// Whether any attempt may have taken effect, or may yet.
    may_have_committed: bool,
    /// The same of the last attempt alone, which is what the crate would tell.
    last_may_have_committed: bool,
}

impl<'a> Attempts<'a> {
    pub(super) fn begin(database: &Database, cluster_file: &'a str) -> Result<Self, StoreError> {
        let transaction =
            database.create_trx().map_err(|error| error::failed(error, cluster_file))?;
        let timeout_ms = u64::from(TIMEOUT_MS.unsigned_abs()) + GRACE_MS;
        Ok(Self {
            transaction: Some(transaction),
            cluster_file,
            deadline: Instant::now() + Duration::from_millis(timeout_ms),
            may_have_committed: false,
            last_may_have_committed: false,
        })
    }

    /// The transaction of the next attempt.
    pub(super) fn transaction(&self) -> &Transaction {
        self.transaction.as_ref().expect("invariant: an attempt follows only a `Continue`")
    }

    /// Whether the last attempt, and only that, may have taken effect.
    #[cfg(feature = "defects")]
    pub(super) const fn last_may_have_committed(&self) -> bool {
        self.last_may_have_committed
    }

    /// Lets an attempt run for as long as there is time.
    pub(super) async fn within<T>(
        &self,
        attempt: impl Future<Output = Result<T, Obstacle>>,
    ) -> Result<T, Obstacle> {
        let timed = tokio::time::timeout_at(self.deadline, attempt).await;
        timed.unwrap_or(Err(Obstacle::Silent))
    }

    /// Finishes an attempt: commits if that is what it decided, and gets ready for another one if
    /// it failed and another one may help.
    pub(super) async fn settle<T>(
        &mut self,
        attempt: Result<Decision<T>, Obstacle>,
    ) -> ControlFlow<Result<Done<T>, Failure>> {
        match attempt {
            Ok(Decision::Answer(answer)) => ControlFlow::Break(Ok(Done::Answer(answer))),
            Ok(Decision::Commit) => match self.commit().await {
                Ok(version) => ControlFlow::Break(Ok(Done::Committed(version))),
                Err(flow) => flow.map_break(Err),
            },
            Err(Obstacle::Refused(error)) => ControlFlow::Break(Err(self.failure(error))),
            Err(Obstacle::Silent) => ControlFlow::Break(Err(self.silence())),
            Err(Obstacle::Database(error)) => {
                let transaction = self.transaction.take().expect("invariant: it was attempted");
                self.last_may_have_committed = false;
                let next = transaction.on_error(error);
                let next = tokio::time::timeout_at(self.deadline, next).await;
                self.next_attempt(next.ok()).map_break(Err)
            }
        }
    }

    async fn commit(&mut self) -> Result<Option<Version>, ControlFlow<Failure>> {
        let transaction = self.transaction.take().expect("invariant: it was attempted");
        let Ok(result) = tokio::time::timeout_at(self.deadline, transaction.commit()).await else {
            self.may_have_committed = true;
            return Err(ControlFlow::Break(self.silence()));
        };
        let failed = match result {
            Ok(committed) => {
                // It is negative for a transaction that wrote nothing.
                let version = committed.committed_version().ok();
                return Ok(version.and_then(|version| u64::try_from(version).ok()).map(Version));
            }
            Err(failed) => failed,
        };
        self.last_may_have_committed = failed.is_maybe_committed();
        self.may_have_committed |= !error::is_harmless(failed.code());
        let next = tokio::time::timeout_at(self.deadline, failed.on_error()).await;
        Err(self.next_attempt(next.ok()))
    }

    /// Takes what `on_error` returned: a transaction for another attempt, or why there is none.
    fn next_attempt(
        &mut self,
        next: Option<Result<Transaction, FdbError>>,
    ) -> ControlFlow<Failure> {
        match next {
            Some(Ok(transaction)) => {
                self.transaction = Some(transaction);
                ControlFlow::Continue(())
            }
            Some(Err(error)) => {
                ControlFlow::Break(self.failure(error::failed(error, self.cluster_file)))
            }
            None => ControlFlow::Break(self.silence()),
        }
    }

    fn silence(&self) -> Failure {
        self.failure(error::silent(self.cluster_file))
    }

    const fn failure(&self, error: StoreError) -> Failure {
        Failure { error, may_have_committed: self.may_have_committed }
    }
}
