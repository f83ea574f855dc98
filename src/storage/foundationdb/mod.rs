//! The state store in a FoundationDB cluster, which any number of nodes share.
//!
//! `client` finds the C library, `layout` says how rows lie, `attempts` is the loop around one
//! transaction, `commits` and `reads` are what the port asks for, `error` translates. No
//! transaction outlives the call that began it.
//!
//! Under load the store refuses rather than queues: places for commits are counted, and what
//! FoundationDB throttles is `Overloaded`.

mod attempts;
pub mod check;
pub mod client;
mod commits;
mod error;
mod layout;
mod reads;

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use foundationdb::{Database, options::DatabaseOption};
use futures_util::future::BoxFuture;
use memcube_actors::{
    metrics::STORE_COMMIT_SECONDS,
    storage::{Commit, CommitToken, RangeRead, ReadOutput, StateStore, StoreError},
};
use memcube_schemas::{Version, limits::STORE_QUEUE_MAX};
use tokio::{
    sync::{Mutex, Semaphore},
    time::Instant,
};

use crate::settings::StoreSettings;

use self::{
    attempts::{Attempts, Decision, Done, Obstacle, TIMEOUT_MS},
    client::Client,
    layout::{LAYOUT, Layout},
};

/// Attempts after which a transaction gives up.
const RETRIES_MAX: i32 = 50;
/// What the client waits between two attempts at the most.
const RETRY_DELAY_MS_MAX: i32 = 1_000;
/// Reads that run at a time; more wait for their turn.
const READS_MAX: usize = 256;
/// Doorbells of one handle that FoundationDB watches; it takes 10,000. Further ones are asked again
/// after a while instead.
const WATCHES_MAX: usize = 1_000;
/// How long a doorbell waits before it tells its caller to look, so that none is forgotten.
const WATCH: Duration = Duration::from_secs(30);
/// The same for a doorbell that has no watch.
const POLL: Duration = Duration::from_secs(1);
/// Locks that additions of one handle to the same counter wait at.
const ADD_LOCKS: usize = 64;

/// How to open a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The cluster file; none means the default one of the client.
    pub cluster_file: Option<String>,
    /// The name under which everything lies, so that installations share a cluster.
    pub prefix: String,
    /// Plants a bug: an attempt looks at its token only when the attempt just before may have
    /// committed.
    #[cfg(feature = "defects")]
    pub trusts_maybe_committed: bool,
}

impl Options {
    /// As the settings say.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the path of the cluster file cannot be handed to C.
    pub fn from_settings(settings: &StoreSettings) -> Result<Self, StoreError> {
        let file = settings.fdb_cluster_file.as_deref().map(|path| {
            let text = path.to_str().filter(|text| !text.contains('\0'));
            text.map(str::to_owned).ok_or_else(|| {
                error::unavailable(format!(
                    "the path `{}` in `store.fdb-cluster-file` is no plain text; use another",
                    path.display()
                ))
            })
        });
        Ok(Self::new(file.transpose()?, &settings.fdb_prefix))
    }

    /// A store under this prefix.
    #[must_use]
    pub fn new(cluster_file: Option<String>, prefix: &str) -> Self {
        Self {
            cluster_file,
            prefix: prefix.to_owned(),
            #[cfg(feature = "defects")]
            trusts_maybe_committed: false,
        }
    }
}

/// A handle on the state in a FoundationDB cluster. Clones share it.
#[derive(Clone)]
pub struct FoundationDbStore(Arc<Inner>);

struct Inner {
    database: Database,
    layout: Layout,
    /// How messages name the cluster file.
    cluster_file: String,
    /// Commits under way.
    places: Semaphore,
    reads: Semaphore,
    watches: Semaphore,
    add_locks: Vec<Mutex<()>>,
    /// Commits of this handle.
    commits: AtomicU64,
    #[cfg(feature = "defects")]
    trusts_maybe_committed: bool,
}

impl FoundationDbStore {
    /// Connects, and makes sure that the layout there is one that this version understands.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the cluster cannot be reached or a newer version wrote
    /// there, with the setting to look at.
    pub async fn open(client: Client, options: &Options) -> Result<Self, StoreError> {
        let file = options.cluster_file.as_deref();
        if let Some(file) = file.filter(|file| !client.is_simulated() && !Path::new(file).is_file())
        {
            return Err(error::unavailable(format!(
                "there is no cluster file `{file}`; set `store.fdb-cluster-file` to the cluster \
                 file"
            )));
        }
        let store = Self::new(client, options)?;
        store.0.check_layout().await?;
        Ok(store)
    }

    /// A handle, without a word to the cluster.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the cluster file cannot be used.
    pub fn new(client: Client, options: &Options) -> Result<Self, StoreError> {
        let file = options.cluster_file.as_deref();
        let database = client.database(file)?;
        for option in [
            DatabaseOption::TransactionTimeout(TIMEOUT_MS),
            DatabaseOption::TransactionRetryLimit(RETRIES_MAX),
            DatabaseOption::TransactionMaxRetryDelay(RETRY_DELAY_MS_MAX),
        ] {
            database.set_option(option).map_err(|failure| error::connecting(failure, file))?;
        }
        Ok(Self(Arc::new(Inner {
            database,
            layout: Layout::new(&options.prefix),
            cluster_file: error::named(file),
            places: Semaphore::new(STORE_QUEUE_MAX),
            reads: Semaphore::new(READS_MAX),
            watches: Semaphore::new(WATCHES_MAX),
            add_locks: (0..ADD_LOCKS).map(|_| Mutex::new(())).collect(),
            commits: AtomicU64::new(0),
            #[cfg(feature = "defects")]
            trusts_maybe_committed: options.trusts_maybe_committed,
        })))
    }
}

impl Inner {
    /// Writes the number of the layout at the first start, and refuses a newer one.
    async fn check_layout(&self) -> Result<(), StoreError> {
        let key = self.layout.layout_key();
        let mut attempts = Attempts::begin(&self.database, &self.cluster_file)?;
        loop {
            let transaction = attempts.transaction();
            let attempt = async {
                let Some(found) = transaction.get(&key, false).await? else {
                    transaction.set(&key, &LAYOUT.to_be_bytes());
                    return Ok(Decision::Commit);
                };
                understand_layout(&found)?;
                Ok::<_, Obstacle>(Decision::Answer(()))
            };
            let attempt = attempts.within(attempt).await;
            match attempts.settle(attempt).await {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Ok(Done::Answer(()) | Done::Committed(_))) => return Ok(()),
                ControlFlow::Break(Err(failure)) => return Err(failure.error),
            }
        }
    }

    async fn changed(&self, key: &[u8], seen: Option<Version>) -> Result<(), StoreError> {
        let Ok(_place) = self.watches.try_acquire() else {
            tokio::time::sleep(POLL).await;
            return Ok(());
        };
        let row = self.layout.row(key);
        let mut attempts = Attempts::begin(&self.database, &self.cluster_file)?;
        let watch = loop {
            let transaction = attempts.transaction();
            let attempt = async {
                let found = transaction.get(&row, true).await?;
                let found = found.map(|found| layout::row(key, &found).map(|row| row.version));
                if found.transpose()? != seen {
                    return Ok(None);
                }
                // The value that it compares with is the one just read: both are of one version.
                Ok::<_, Obstacle>(Some(transaction.watch(&row)))
            };
            match attempts.within(attempt).await {
                Ok(None) => return Ok(()),
                // A watch begins with the commit of its transaction, which writes nothing.
                Ok(Some(watch)) => match attempts.settle(Ok(Decision::<()>::Commit)).await {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(Ok(_)) => break watch,
                    ControlFlow::Break(Err(failure)) => return Err(failure.error),
                },
                Err(obstacle) => match attempts.settle(Err::<Decision<()>, _>(obstacle)).await {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(Ok(_)) => return Ok(()),
                    ControlFlow::Break(Err(failure)) => return Err(failure.error),
                },
            }
        };
        match tokio::time::timeout(WATCH, watch).await {
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(failure)) => Err(error::failed(failure, &self.cluster_file)),
        }
    }
}

fn understand_layout(found: &[u8]) -> Result<(), StoreError> {
    let found = <[u8; 4]>::try_from(found).map(u32::from_be_bytes);
    let found = found.map_err(|_| layout::corrupt("a layout number that is none".to_owned()))?;
    if found > LAYOUT {
        return Err(error::unavailable(format!(
            "a newer memcube wrote this store (layout {found}, this one knows {LAYOUT}); install \
             that version, or set `store.fdb-prefix` to another name"
        )));
    }
    Ok(())
}

impl StateStore for FoundationDbStore {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move { self.0.read(&ranges).await })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            let since = Instant::now();
            let result = self.0.commit(commit).await;
            super::count(&result);
            metrics::histogram!(STORE_COMMIT_SECONDS).record(since.elapsed().as_secs_f64());
            if let Some(round) = self.0.is_sweep_due() {
                let inner = Arc::clone(&self.0);
                // Nobody waits for it, and the next one does what this one does not.
                drop(tokio::spawn(async move {
                    if let Err(error) = inner.sweep(round).await {
                        tracing::debug!(%error, "old commit tokens were not removed");
                    }
                }));
            }
            result
        })
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.0.changed(&key, seen).await })
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        Box::pin(self.0.outcome(token))
    }
}
