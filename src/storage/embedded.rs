//! The state store in one directory of this machine: group commit over fjall.
//!
//! One thread commits (`writer`): it takes every commit that waits, resolves them one after the
//! other (`resolve`), writes them as one batch, syncs once, publishes a snapshot, and answers.
//! Reads see the published snapshot only, so they never show what a crash could still take away.
//! `directory` guards the directory, `commit_log` remembers tokens, `engine` is all that knows
//! fjall.

mod commit_log;
mod directory;
mod engine;
mod resolve;
mod writer;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, TrySendError},
    },
    thread::JoinHandle,
    time::Instant,
};

use fjall::Snapshot;
use futures_util::future::BoxFuture;
use memcube_actors::storage::{
    Commit, CommitToken, Doorbells, RangePage, RangeRead, ReadOutput, StateStore, StoreError,
};
use memcube_schemas::{Version, keys::KeyRange, limits::STORE_QUEUE_MAX};
use tokio::sync::{Semaphore, oneshot};

use self::{
    commit_log::CommitLog,
    directory::Directory,
    engine::Engine,
    writer::{Request, Writer},
};
use super::count;

/// Range reads that run at the same time; each takes a blocking thread and one page of RAM.
const RANGE_READS_MAX: usize = 16;
/// Single keys that are read on the caller's thread.
const INLINE_KEYS_MAX: usize = 16;

/// Durable state in one directory, for one process.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// `None` once the store closes.
    requests: Option<mpsc::SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// What readers and the writer share.
struct Shared {
    engine: Engine,
    published: RwLock<Arc<Published>>,
    range_reads: Semaphore,
    doorbells: Doorbells,
    /// Whether commits are taken: not any more after a failed write.
    is_writable: AtomicBool,
    /// Last, so that the directory stays locked until the engine has closed.
    directory: Directory,
}

/// The durable state that reads see.
struct Published {
    version: Version,
    snapshot: Snapshot,
}

impl EmbeddedStore {
    /// Opens the store in a directory, which is made if it is not there. Blocks for the recovery.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when another process has the directory open, a newer version
    /// wrote it, or it cannot be used; [`StoreError::Corrupt`] when its files are damaged, or lack
    /// commits that were acknowledged.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let (directory, acknowledged) = Directory::open(dir)?;
        let engine = Engine::open(&directory.engine_path(), acknowledged == Version(0))?;
        let snapshot = engine.snapshot();
        let log = catch_panic(|| engine.log_rows(&snapshot))?;
        let log = CommitLog::from_rows(log).map_err(|what| directory::corrupt(dir, &what))?;
        let version = log.last();
        if version < acknowledged {
            let what = format!(
                "the files end at commit {version}, but commit {acknowledged} was acknowledged"
            );
            return Err(directory::corrupt(dir, &what));
        }
        let shared = Arc::new(Shared {
            engine,
            published: RwLock::new(Arc::new(Published { version, snapshot })),
            range_reads: Semaphore::new(RANGE_READS_MAX),
            doorbells: Doorbells::default(),
            is_writable: AtomicBool::new(true),
            directory,
        });
        let writer = Writer::new(Arc::clone(&shared), log);
        let (requests, receiver) = mpsc::sync_channel(STORE_QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("memcube-store".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| StoreError::Unavailable {
                reason: format!("cannot start the thread of the state store: {error}"),
            })?;
        tracing::info!(dir = %dir.display(), %version, "state store opened");
        Ok(Self { shared, requests: Some(requests), thread: Some(thread) })
    }

    fn request(&self, request: Request) -> Result<(), StoreError> {
        let requests = self.requests.as_ref().expect("invariant: only `drop` takes the sender");
        requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Disconnected(_) => StoreError::Unavailable {
                reason: "the thread of the state store has ended, its log tells why; restart \
                         memcube"
                    .to_owned(),
            },
        })
    }

    async fn submit(&self, commit: Commit) -> Result<Version, StoreError> {
        let (reply, answer) = oneshot::channel();
        commit
            .check_limits()
            .and_then(|()| self.request(Request::Commit { commit, since: Instant::now(), reply }))
            .inspect_err(|error| count(&Err(error.clone())))?;
        // The thread drops a request only by dying with it.
        answer.await.unwrap_or(Err(StoreError::Unknown))
    }
}

impl StateStore for EmbeddedStore {
    fn read(&self, ranges: Vec<RangeRead>) -> BoxFuture<'_, Result<ReadOutput, StoreError>> {
        Box::pin(async move {
            // Single keys come from the memtable or from one block: cheaper than a change of
            // threads.
            if ranges.len() <= INLINE_KEYS_MAX && ranges.iter().all(|read| is_one_key(&read.range))
            {
                return self.shared.read(&ranges);
            }
            let closed = "invariant: the semaphore is never closed";
            let _permit = self.shared.range_reads.acquire().await.expect(closed);
            let shared = Arc::clone(&self.shared);
            tokio::task::spawn_blocking(move || shared.read(&ranges)).await.unwrap_or_else(|_| {
                Err(StoreError::Unavailable { reason: "memcube is stopping".to_owned() })
            })
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(self.submit(commit))
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let rung = self.shared.doorbells.listen(key.clone());
            let read = self.shared.read(&[RangeRead::key(key)])?;
            let found = read.pages.first().and_then(|page| page.entries.first());
            if found.map(|entry| entry.version) == seen {
                // The bell goes with the store at the latest.
                let _ = rung.await;
            }
            Ok(())
        })
    }

    fn is_writable(&self) -> bool {
        self.shared.is_writable.load(Ordering::Acquire)
    }

    fn outcome(&self, token: CommitToken) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.request(Request::Outcome { token, reply })?;
            answer.await.unwrap_or(Err(StoreError::Unknown))
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // The thread serves what is queued, and ends when the sender is gone.
        drop(self.requests.take());
        let thread = self.thread.take().expect("invariant: only `drop` takes the thread");
        if thread.join().is_err() {
            tracing::error!("the thread of the state store panicked");
        }
    }
}

impl Shared {
    fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, published: Published) {
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(published);
    }

    fn read(&self, ranges: &[RangeRead]) -> Result<ReadOutput, StoreError> {
        let published = self.published();
        let page = |read| self.engine.page(&published.snapshot, read);
        let pages: Vec<RangePage> = catch_panic(|| ranges.iter().map(page).collect())?;
        Ok(ReadOutput { version: published.version, pages })
    }
}

fn is_one_key(range: &KeyRange) -> bool {
    range.end.split_last().is_some_and(|(last, key)| *last == 0 && key == range.start)
}

/// The engine asserts some of what it expects to find in files: for a reader that is damage.
fn catch_panic<T>(read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(StoreError::Corrupt {
            reason: "the storage engine gave up on its files; stop memcube, keep a copy of its \
                     data directory, then restore it from a backup"
                .to_owned(),
        })
    })
}
