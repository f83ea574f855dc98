//! The event feed for readers: what the commits of a tenant's cubes did, in order, without a gap
//! and without a repeat.
//!
//! `read` reads pages after a cursor; `subscribe` hands new events to whoever streams them;
//! `follow` is for named consumers, which remember in the store how far they are; `trim` removes
//! what is old. Order, completeness and uniqueness rest on cursors alone: doorbells, polls and the
//! word of this node's own commits (`news`) only say that it may be worth reading.
//!
//! *Cursors.* A stamp names a commit's place in the order of the store. A read sees every commit up
//! to its version and none after it, in all shards of a tenant, so "everything up to this version"
//! is a cursor as well: [`Stamp::end_of`]. One stamp serves for all eight shards.

mod follow;
mod news;
mod read;
mod subscribe;
mod subscription;
#[cfg(test)]
mod tests;
mod trim;

use memcube_schemas::{Stamp, feed::FeedRecord};

pub use self::{
    follow::{Follower, News, Place},
    read::{FeedPage, FeedReader, FeedScope},
    subscribe::FeedHandle,
    subscription::{FeedBatch, FeedRequest, FeedStart, Subscription},
    trim::FeedTrimmer,
};
pub(crate) use self::{news::TellingStore, subscribe::EventFeed};

/// One commit, as its tenant's feed tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEvent {
    /// Its place in the order of the store.
    pub stamp: Stamp,
    /// What happened.
    pub record: FeedRecord,
}
