//! Keeps the tables of a node in step with the event feed.
//!
//! Receives: its own ticks; through its handle, wishes to build a table.
//! Sends: rows to the vector index, cursors to the state store.
//! Owns: which shards of which tenants have news, and the builds that are under way.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::FutureExt;
use memcube_schemas::{
    TenantId, Version,
    keys::{self, FEED_RINGS},
    limits::{INDEX_SHARDS_KNOWN_MAX, INDEX_WISHES_MAX, PAGE_ITEMS_MAX},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::{
    VectorSettings,
    build::Build,
    follow::{Deriving, Followed},
};
use crate::{
    error::{Error, Result},
    metrics as names,
    storage::{RangeRead, vector_index::TableId},
};

/// Tables that one tick brings up to date before others get a turn.
const TABLES_PER_TICK: usize = 64;
/// Steps of a build in one tick.
const BUILD_STEPS_PER_TICK: usize = 8;
/// Pause between two ticks while there is work: the mailbox is looked at in between.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// A shard of a tenant.
type Shard = (TenantId, u16);

/// The front door of the indexer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct IndexerHandle {
    actor: ActorRef<IndexerMessage>,
    wishes: Arc<Mutex<BTreeMap<Shard, Wish>>>,
}

/// What somebody wants to be done about a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    /// Build it if there is none.
    IfMissing,
    /// Build it anew.
    Anew,
}

impl IndexerHandle {
    /// Wishes for a table; beyond the bound the wish is forgotten.
    pub(crate) fn wish(&self, tenant: &TenantId, shard: u16, wish: Wish) {
        let mut wishes = lock(&self.wishes);
        if wishes.len() < INDEX_WISHES_MAX {
            let known = wishes.entry((tenant.clone(), shard)).or_insert(wish);
            *known = wish.max(*known);
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(
            self.actor.get_status(),
            ractor::ActorStatus::Starting | ractor::ActorStatus::Running
        )
    }

    /// Ends at once, as a crash would.
    pub(crate) fn kill(&self) {
        self.actor.kill();
    }

    /// Ends after the tick that is under way.
    pub(crate) async fn stop(&self) {
        // One that is gone already has nothing left to end.
        let _ = self.actor.stop_and_wait(None, None).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics while it holds the wishes")
}

pub(crate) enum IndexerMessage {
    Tick,
}

pub(crate) struct Indexer;

pub(crate) struct Indexing {
    deriving: Deriving,
    settings: VectorSettings,
    wishes: Arc<Mutex<BTreeMap<Shard, Wish>>>,
    /// When each ring was last rung, as far as it was looked at.
    rings: BTreeMap<u16, Version>,
    /// The last news of shards that were looked at.
    seen: BTreeMap<Shard, Version>,
    /// Shards with news.
    news: BTreeSet<Shard>,
    /// Shards that failed, and wait until the others had their turn.
    failed: BTreeSet<Shard>,
    builds: VecDeque<Build>,
    /// Tables that changed since they were tidied up.
    untidy: BTreeSet<TableId>,
    tidy_at_us: u64,
}

impl Indexer {
    /// Starts to follow the feed.
    ///
    /// # Errors
    /// `Internal` when the actor cannot be started.
    pub(crate) async fn start(
        deriving: Deriving,
        settings: VectorSettings,
    ) -> Result<IndexerHandle> {
        let wishes = Arc::default();
        let tidy_at_us = deriving.environment.monotonic_us() + settings.optimize_after_ms * 1_000;
        let indexing = Indexing {
            deriving,
            settings,
            wishes: Arc::clone(&wishes),
            rings: BTreeMap::new(),
            seen: BTreeMap::new(),
            news: BTreeSet::new(),
            failed: BTreeSet::new(),
            builds: VecDeque::new(),
            untidy: BTreeSet::new(),
            tidy_at_us,
        };
        let (actor, _) = Self::spawn(None, Self, indexing)
            .await
            .map_err(|error| Error::internal(format!("the indexer did not start: {error}")))?;
        Ok(IndexerHandle { actor, wishes })
    }
}

impl Actor for Indexer {
    type Msg = IndexerMessage;
    type State = Indexing;
    type Arguments = Indexing;

    async fn pre_start(
        &self,
        myself: ActorRef<IndexerMessage>,
        indexing: Indexing,
    ) -> std::result::Result<Indexing, ActorProcessingErr> {
        indexing.arm(&myself);
        Ok(indexing)
    }

    async fn handle(
        &self,
        myself: ActorRef<IndexerMessage>,
        message: IndexerMessage,
        indexing: &mut Indexing,
    ) -> std::result::Result<(), ActorProcessingErr> {
        let IndexerMessage::Tick = message;
        // What a tick has not finished, the next one takes up again, so a panic costs one tick.
        let is_busy = match AssertUnwindSafe(indexing.tick()).catch_unwind().await {
            Ok(is_busy) => is_busy,
            Err(_) => {
                metrics::counter!(names::VECTOR_FAILURES_TOTAL).increment(1);
                tracing::error!("the vector tier panicked; it goes on");
                // Nobody knows how far a build was: from the start.
                for build in &mut indexing.builds {
                    *build = Build::of(build.table.clone());
                }
                false
            }
        };
        if is_busy {
            myself.send_after(BUSY_PAUSE, || IndexerMessage::Tick);
        } else {
            indexing.arm(&myself);
        }
        Ok(())
    }
}

impl Indexing {
    fn arm(&self, myself: &ActorRef<IndexerMessage>) {
        let pause = Duration::from_millis(self.settings.apply_after_ms);
        myself.send_after(pause, || IndexerMessage::Tick);
    }

    /// One round over all that is to be done. Returns whether there is more. What fails is tried
    /// again in the next round.
    async fn tick(&mut self) -> bool {
        let mut failures = Vec::new();
        self.take_wishes();
        if let Err(error) = self.look_for_news().await {
            failures.push(error);
        }
        if self.news.is_empty() {
            self.news = std::mem::take(&mut self.failed);
        }
        let shards: Vec<Shard> = self.news.iter().take(TABLES_PER_TICK).cloned().collect();
        for shard in shards {
            if let Err(error) = self.follow(&shard).await {
                self.news.remove(&shard);
                self.failed.insert(shard);
                failures.push(error);
            }
        }
        if let Err(error) = self.build().await {
            failures.push(error);
        }
        if let Err(error) = self.tidy_up().await {
            failures.push(error);
        }
        for error in &failures {
            metrics::counter!(names::VECTOR_FAILURES_TOTAL).increment(1);
            tracing::warn!(%error, "the vector tier lags behind; it tries again");
        }
        failures.is_empty() && !(self.news.is_empty() && self.builds.is_empty())
    }

    fn take_wishes(&mut self) {
        let wishes = std::mem::take(&mut *lock(&self.wishes));
        for ((tenant, shard), wish) in wishes {
            match wish {
                Wish::IfMissing => {
                    self.news.insert((tenant, shard));
                }
                Wish::Anew => {
                    let table = self.deriving.table(tenant, shard);
                    self.builds.retain(|build| build.table != table);
                    self.builds.push_back(Build::of(table));
                }
            }
        }
    }

    /// Looks at the doorbells, and where one rang, at who has news.
    async fn look_for_news(&mut self) -> Result<()> {
        let read = RangeRead::page(keys::feed_doorbells(), usize::from(FEED_RINGS));
        let output = self.deriving.store.read(vec![read]).await?;
        let bells = output.pages.into_iter().flat_map(|page| page.entries);
        for bell in bells {
            let Some(ring) = keys::rung(&bell.key) else { continue };
            if self.rings.get(&ring) != Some(&bell.version) {
                self.look_at_ring(ring).await?;
                self.rings.insert(ring, bell.version);
            }
        }
        Ok(())
    }

    async fn look_at_ring(&mut self, ring: u16) -> Result<()> {
        let mut range = keys::feed_pointers(ring);
        loop {
            let read = RangeRead::page(range.clone(), PAGE_ITEMS_MAX);
            let output = self.deriving.store.read(vec![read]).await?;
            let Some(page) = output.pages.into_iter().next() else { return Ok(()) };
            for pointer in &page.entries {
                let Some(shard) = keys::pointed_feed(&pointer.key) else { continue };
                if self.seen.get(&shard) != Some(&pointer.version) {
                    self.news.insert(shard.clone());
                    self.seen.insert(shard, pointer.version);
                }
            }
            while self.seen.len() > INDEX_SHARDS_KNOWN_MAX {
                self.seen.pop_first();
            }
            match page.entries.last() {
                Some(last) if page.more => range = range.after(&last.key),
                Some(_) | None => return Ok(()),
            }
        }
    }

    async fn follow(&mut self, shard: &Shard) -> Result<()> {
        let table = self.deriving.table(shard.0.clone(), shard.1);
        if self.builds.iter().any(|build| build.table == table) {
            // The build comes first, and asks for a look at the feed when it is done.
            self.news.remove(shard);
            return Ok(());
        }
        let followed = self.deriving.follow(&table).await?;
        if followed != Followed::More {
            self.news.remove(shard);
        }
        if followed == Followed::ToBuild {
            self.builds.push_back(Build::of(table.clone()));
        }
        self.untidy.insert(table);
        Ok(())
    }

    async fn build(&mut self) -> Result<()> {
        for _ in 0..BUILD_STEPS_PER_TICK {
            let Some(build) = self.builds.front_mut() else { return Ok(()) };
            match build.step(&self.deriving).await {
                Ok(false) => {}
                Ok(true) => {
                    let table = build.table.clone();
                    self.builds.pop_front();
                    self.news.insert((table.tenant.clone(), table.shard));
                    tracing::info!(%table, "built a table of vectors");
                }
                Err(error) => {
                    // From the start, and after the others.
                    let table = build.table.clone();
                    self.builds.pop_front();
                    self.builds.push_back(Build::of(table));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Tidies up one table after the other, when it is time.
    async fn tidy_up(&mut self) -> Result<()> {
        let now_us = self.deriving.environment.monotonic_us();
        if now_us < self.tidy_at_us || !self.builds.is_empty() {
            return Ok(());
        }
        match self.untidy.pop_first() {
            Some(table) => Ok(self.deriving.index.optimize(&table).await?),
            None => {
                self.tidy_at_us = now_us + self.settings.optimize_after_ms * 1_000;
                Ok(())
            }
        }
    }
}
