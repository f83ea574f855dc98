//! Tells the event feed of this node's own commits, so that streams need not wait for a doorbell.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    TenantId, Version, keys,
    limits::{FEED_STREAMS_MAX, FEED_STREAMS_PER_TENANT_MAX},
};
use ractor::ActorRef;

use super::subscribe::FeedMessage;
use crate::{
    error::{Error, Result},
    storage::{
        Commit, CommitToken, Mutation, RangeRead, ReadOutput, SharedStore, StateStore, StoreError,
    },
};

/// The streams of a node, counted by tenant, and who of them has been told of news.
#[derive(Debug, Default)]
pub(super) struct Streams {
    tenants: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    total: usize,
    tenants: BTreeMap<TenantId, Streaming>,
}

#[derive(Debug, Default)]
struct Streaming {
    streams: usize,
    /// Whether a message about news is on its way already: one is enough.
    is_told: bool,
}

impl Streams {
    /// Takes a place for one more stream.
    pub(super) fn take_place(self: &Arc<Self>, tenant: &TenantId) -> Result<StreamPlace> {
        let mut counted = self.counted();
        if counted.total >= FEED_STREAMS_MAX {
            return Err(Error::overloaded("the list of event streams of this node", 5_000));
        }
        let streaming = counted.tenants.entry(tenant.clone()).or_default();
        if streaming.streams >= FEED_STREAMS_PER_TENANT_MAX {
            return Err(Error::overloaded("the list of event streams of this tenant", 5_000));
        }
        streaming.streams += 1;
        counted.total += 1;
        drop(counted);
        Ok(StreamPlace { streams: Arc::clone(self), tenant: tenant.clone() })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.counted().total
    }

    /// Whether to send word that this tenant has news.
    fn is_worth_telling(&self, tenant: &TenantId) -> bool {
        let mut counted = self.counted();
        let Some(streaming) = counted.tenants.get_mut(tenant) else { return false };
        !std::mem::replace(&mut streaming.is_told, true)
    }

    /// The word has arrived.
    pub(super) fn heard(&self, tenant: &TenantId) {
        if let Some(streaming) = self.counted().tenants.get_mut(tenant) {
            streaming.is_told = false;
        }
    }

    fn leave(&self, tenant: &TenantId) {
        let mut counted = self.counted();
        counted.total = counted.total.saturating_sub(1);
        if let Some(streaming) = counted.tenants.get_mut(tenant) {
            streaming.streams = streaming.streams.saturating_sub(1);
            if streaming.streams == 0 {
                counted.tenants.remove(tenant);
            }
        }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.tenants.lock().expect("invariant: nothing panics while it counts the streams")
    }
}

/// The place of one stream; given back when it is dropped.
#[derive(Debug)]
pub(super) struct StreamPlace {
    streams: Arc<Streams>,
    tenant: TenantId,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.streams.leave(&self.tenant);
    }
}

/// A state store that tells the event feed of every commit which leaves a record there, once it is
/// durable. A commit whose answer is lost is not told of: its doorbell rings all the same.
pub(crate) struct TellingStore {
    inner: SharedStore,
    streams: Arc<Streams>,
    feed: ActorRef<FeedMessage>,
}

impl TellingStore {
    pub(super) const fn new(
        inner: SharedStore,
        streams: Arc<Streams>,
        feed: ActorRef<FeedMessage>,
    ) -> Self {
        Self { inner, streams, feed }
    }

    fn tell(&self, tenant: TenantId) {
        if self.streams.is_worth_telling(&tenant) {
            // A feed that has ended serves nobody.
            let _ = self.feed.cast(FeedMessage::News { tenant });
        }
    }
}

/// The tenant whose feed a commit writes to.
fn told_tenant(commit: &Commit) -> Option<TenantId> {
    // The records of the feed stand at the end.
    commit.mutations.iter().rev().find_map(|mutation| match mutation {
        Mutation::Set { key, .. } if keys::is_feed_pointer(key) => {
            keys::pointed_feed(key).map(|(tenant, _)| tenant)
        }
        Mutation::Set { .. }
        | Mutation::Clear { .. }
        | Mutation::ClearRange { .. }
        | Mutation::Add { .. }
        | Mutation::SetVersionstamped { .. } => None,
    })
}

impl StateStore for TellingStore {
    fn read(
        &self,
        ranges: Vec<RangeRead>,
    ) -> BoxFuture<'_, std::result::Result<ReadOutput, StoreError>> {
        self.inner.read(ranges)
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, std::result::Result<Version, StoreError>> {
        if self.streams.count() == 0 {
            return self.inner.commit(commit);
        }
        let tenant = told_tenant(&commit);
        Box::pin(async move {
            let version = self.inner.commit(commit).await?;
            if let Some(tenant) = tenant {
                self.tell(tenant);
            }
            Ok(version)
        })
    }

    fn is_writable(&self) -> bool {
        self.inner.is_writable()
    }

    fn changed(
        &self,
        key: Vec<u8>,
        seen: Option<Version>,
    ) -> BoxFuture<'_, std::result::Result<(), StoreError>> {
        self.inner.changed(key, seen)
    }

    fn outcome(
        &self,
        token: CommitToken,
    ) -> BoxFuture<'_, std::result::Result<Option<Version>, StoreError>> {
        self.inner.outcome(token)
    }
}
