//! The evidence, read once for all checkers: every commit as what it did to which cube, every row
//! at the end by its cube.
//!
//! The commits are replayed on an empty store, so that a cleared range is known by the rows that it
//! removed, and so that rows which no commit explains come to light.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Bound::{Excluded, Included},
    rc::Rc,
};

use memcube_actors::storage::{Check, Mutation, counter_after_add};
use memcube_schemas::{
    BlockKey, ConversationId, CubeId, MemoryId, ModelId, RequestId, TenantId, Version,
    activation::{ContextRecord, KvBlock},
    codec::{DecodeError, decode},
    conversation::Role,
    cube::{CubeManifest, Ownership, RequestRecord},
    feed::FeedRecord,
    keys::KeyRange,
    memory::{MemoryItem, MemoryRevision, MemoryVector},
};

use super::timeline::{Timeline, timelines};
use crate::{
    evidence::{CommitRecord, Evidence, Row},
    marker::marker_of,
    rows::{RowKey, feed_prefix, range_start},
};

/// Names a cube of a tenant.
pub(super) type CubeName = (TenantId, CubeId);

/// An item with the marker in its text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MarkedItem {
    pub(super) item: MemoryItem,
    pub(super) marker: Option<String>,
}

impl MarkedItem {
    fn new(item: MemoryItem) -> Self {
        let marker = marker_of(&item.text);
        Self { item, marker }
    }

    /// Whether it carries this marker.
    pub(super) fn is_marked(&self, marker: &str) -> bool {
        self.marker.as_deref() == Some(marker)
    }

    /// The marker, for people.
    pub(super) fn mark(&self) -> &str {
        self.marker.as_deref().unwrap_or("a text without a marker")
    }
}

/// What a commit did to one row.
#[derive(Debug)]
pub(super) struct Effect {
    /// The cube whose row it is.
    pub(super) cube: CubeName,
    pub(super) change: Change,
}

/// What became of a row; `None` where it was removed.
#[derive(Debug)]
pub(super) enum Change {
    Ownership(Option<Ownership>),
    Manifest(Option<CubeManifest>),
    Item(MemoryId, Option<Rc<MarkedItem>>),
    KvBlock(BlockKey, Option<Box<KvBlock>>),
    Context(ConversationId, Option<Box<ContextRecord>>),
    /// A former version of an item was written or removed.
    History(MemoryId, u32, bool),
    /// A vector or the outcome of a request was written or removed, or a row that was not there was
    /// removed once more.
    Other,
    /// A record of the feed tells of the cube.
    Feed(FeedRecord),
}

/// A commit, read.
#[derive(Debug)]
pub(super) struct ReadCommit<'a> {
    pub(super) record: &'a CommitRecord,
    /// Only what touches a cube, in order.
    pub(super) effects: Vec<Effect>,
}

impl ReadCommit<'_> {
    /// What it did to one cube.
    pub(super) fn changes<'b>(&'b self, cube: &'b CubeName) -> impl Iterator<Item = &'b Change> {
        self.effects.iter().filter(move |effect| effect.cube == *cube).map(|effect| &effect.change)
    }

    /// The cubes that it touched.
    pub(super) fn cubes(&self) -> Vec<&CubeName> {
        let mut cubes: Vec<&CubeName> = self.effects.iter().map(|effect| &effect.cube).collect();
        cubes.sort();
        cubes.dedup();
        cubes
    }

    /// Whether it had the condition that this key is absent.
    pub(super) fn demands_absence(&self, wanted: &[u8]) -> bool {
        self.record.checks.iter().any(|check| match check {
            Check::Absent { key } => key == wanted,
            Check::At { .. } => false,
        })
    }
}

/// The rows of one cube at the end.
#[derive(Debug, Default)]
pub(super) struct CubeRows {
    pub(super) ownership: Option<Ownership>,
    pub(super) manifest: Option<CubeManifest>,
    pub(super) items: BTreeMap<MemoryId, MarkedItem>,
    pub(super) history: BTreeMap<(MemoryId, u32), MemoryRevision>,
    pub(super) vectors: BTreeMap<(ModelId, MemoryId), MemoryVector>,
    pub(super) requests: BTreeMap<RequestId, RequestRecord>,
    pub(super) blocks: BTreeMap<BlockKey, KvBlock>,
}

/// A row of the event feed.
#[derive(Debug)]
pub(super) struct FeedRow {
    pub(super) shard: u16,
    /// The version of the commit in its key.
    pub(super) store: Version,
    pub(super) record: FeedRecord,
}

/// Everything that the checkers look at.
#[derive(Debug)]
pub(super) struct Case<'a> {
    pub(super) evidence: &'a Evidence,
    pub(super) commits: Vec<ReadCommit<'a>>,
    /// Every cube that has a row at the end.
    pub(super) cubes: BTreeMap<CubeName, CubeRows>,
    /// Every record that the feed ever had, by the cube that it names, in the order of their
    /// stamps. Not all are there at the end: old ones are trimmed.
    pub(super) feed: BTreeMap<CubeName, Vec<FeedRow>>,
    /// What every cube held after each commit.
    pub(super) timelines: BTreeMap<CubeName, Timeline>,
    /// Keys and values that cannot be read, and rows that the commits do not explain.
    pub(super) oddities: Vec<String>,
}

impl<'a> Case<'a> {
    /// Reads the evidence.
    pub(super) fn read(evidence: &'a Evidence) -> Self {
        let mut replay = Replay::default();
        let commits: Vec<ReadCommit<'_>> =
            evidence.commits.iter().map(|record| replay.commit(record)).collect();
        let mut oddities = replay.differences(&evidence.rows);
        oddities.append(&mut replay.oddities);
        let timelines = timelines(&commits);
        let mut case = Self {
            evidence,
            commits,
            timelines,
            cubes: BTreeMap::new(),
            feed: replay.feed,
            oddities,
        };
        for (key, row) in &evidence.rows {
            if let Err(error) = case.read_row(RowKey::parse(key), row) {
                case.oddities.push(format!("row {}: {error}", printable(key)));
            }
        }
        case
    }

    /// Whether an item is what a model said to a turn that was to be remembered with it.
    pub(super) fn is_reply(&self, cube: &CubeName, item: &MemoryItem) -> bool {
        let said = item.sources.first().map(|turn| turn.content.trim());
        let replies = self.evidence.replies.get(cube);
        item.role == Role::Assistant
            && replies.zip(said).is_some_and(|(replies, said)| replies.contains(said))
    }

    fn read_row(&mut self, key: RowKey, row: &Row) -> Result<(), DecodeError> {
        let value = row.value.as_slice();
        match key {
            RowKey::Node
            | RowKey::ApiKey
            | RowKey::News
            | RowKey::SchemaGate
            | RowKey::FeedMark { .. }
            | RowKey::Blob { .. }
            | RowKey::BlobReference { .. }
            | RowKey::Predictor { .. }
            | RowKey::Tail { .. }
            | RowKey::Restoring { .. } => {}
            RowKey::Unknown => self.oddities.push("a row has a key of no known kind".to_owned()),
            RowKey::Manifest { tenant, cube } => {
                self.cube(tenant, cube).manifest = Some(decode(value)?);
            }
            RowKey::Ownership { tenant, cube } => {
                self.cube(tenant, cube).ownership = Some(decode(value)?);
            }
            RowKey::Item { tenant, cube, id } => {
                let item = MarkedItem::new(decode(value)?);
                self.cube(tenant, cube).items.insert(id, item);
            }
            RowKey::History { tenant, cube, id, revision } => {
                let former = decode(value)?;
                self.cube(tenant, cube).history.insert((id, revision), former);
            }
            RowKey::Vector { tenant, cube, model, id } => {
                let vector = decode(value)?;
                self.cube(tenant, cube).vectors.insert((model, id), vector);
            }
            RowKey::Request { tenant, cube, request } => {
                let record = decode(value)?;
                self.cube(tenant, cube).requests.insert(request, record);
            }
            RowKey::KvBlock { tenant, cube, block } => {
                let row = decode(value)?;
                self.cube(tenant, cube).blocks.insert(block, row);
            }
            RowKey::Context { tenant, cube, .. } => {
                decode::<ContextRecord>(value)?;
                self.cube(tenant, cube);
            }
            // Read with its commit; one that no commit explains is an oddity.
            RowKey::Feed { .. } => {
                decode::<FeedRecord>(value)?;
            }
        }
        Ok(())
    }

    fn cube(&mut self, tenant: TenantId, cube: CubeId) -> &mut CubeRows {
        self.cubes.entry((tenant, cube)).or_default()
    }
}

/// A key or a value, mostly that of a commit.
type Bytes<'a> = Cow<'a, [u8]>;

/// The store as the commits make it.
#[derive(Default)]
struct Replay<'a> {
    rows: BTreeMap<Bytes<'a>, (Version, Bytes<'a>)>,
    feed: BTreeMap<CubeName, Vec<FeedRow>>,
    oddities: Vec<String>,
}

impl<'a> Replay<'a> {
    fn commit(&mut self, record: &'a CommitRecord) -> ReadCommit<'a> {
        let mut effects = Vec::new();
        for (position, mutation) in record.mutations.iter().enumerate() {
            self.mutate(record, position, mutation, &mut effects);
        }
        ReadCommit { record, effects }
    }

    fn mutate(
        &mut self,
        commit: &CommitRecord,
        position: usize,
        mutation: &'a Mutation,
        effects: &mut Vec<Effect>,
    ) {
        let version = commit.version;
        match mutation {
            Mutation::Set { key, value } => {
                self.rows.insert(Cow::Borrowed(key), (version, Cow::Borrowed(value)));
                match written(RowKey::parse(key), value) {
                    Ok(effect) => effects.extend(effect),
                    Err(error) => self.oddities.push(format!("commit {version}: {error}")),
                }
            }
            Mutation::Clear { key } => {
                let was_there = self.rows.remove(key.as_slice()).is_some();
                effects.extend(removed(RowKey::parse(key), was_there));
            }
            Mutation::ClearRange { range } => self.clear_range(range, effects),
            Mutation::Add { key, delta } => {
                let before = self.rows.get(key.as_slice()).map(|(_, value)| value.as_ref());
                let after = counter_after_add(before, *delta).to_vec();
                self.rows.insert(Cow::Borrowed(key), (version, Cow::Owned(after)));
            }
            Mutation::SetVersionstamped { prefix, value } => {
                let key = commit.stamped_key(prefix, position);
                self.rows.insert(Cow::Owned(key), (version, Cow::Borrowed(value)));
                let Some((tenant, shard)) = feed_prefix(prefix) else {
                    let what = format!("commit {version}: a stamped key outside of any feed");
                    return self.oddities.push(what);
                };
                match decode::<FeedRecord>(value) {
                    Ok(record) => {
                        let cube = (tenant, record.cube.clone());
                        let row = FeedRow { shard, store: version, record: record.clone() };
                        self.feed.entry(cube.clone()).or_default().push(row);
                        effects.push(Effect { cube, change: Change::Feed(record) });
                    }
                    Err(error) => self.oddities.push(format!("commit {version}: {error}")),
                }
            }
        }
    }

    fn clear_range(&mut self, range: &KeyRange, effects: &mut Vec<Effect>) {
        // Also a range that removes nothing shows who thought that the cube was his.
        let touched = range_start(&range.start);
        effects.extend(touched.map(|cube| Effect { cube, change: Change::Other }));
        if range.start >= range.end {
            return;
        }
        let inside: Vec<Bytes<'a>> = self
            .rows
            .range::<[u8], _>((Included(range.start.as_slice()), Excluded(range.end.as_slice())))
            .map(|(key, _)| key.clone())
            .collect();
        for key in inside {
            self.rows.remove(&key);
            effects.extend(removed(RowKey::parse(&key), true));
        }
    }

    /// Rows at the end that are not as the commits left them.
    fn differences(&self, rows: &BTreeMap<Vec<u8>, Row>) -> Vec<String> {
        let mut differences = Vec::new();
        for (key, row) in rows {
            let what = match self.rows.get(key.as_slice()) {
                None => "is there, and no commit wrote it",
                Some((version, _)) if *version != row.version => {
                    "has the version of another commit"
                }
                Some((_, value)) if **value != *row.value => "is not as its commit wrote it",
                Some(_) => continue,
            };
            differences.push(format!("row {} {what}", printable(key)));
        }
        let lost = self.rows.keys().filter(|key| !rows.contains_key(key.as_ref()));
        differences.extend(lost.map(|key| format!("row {} is lost", printable(key))));
        differences
    }
}

/// What writing a row means. Values that no checker follows from commit to commit are not read.
fn written(key: RowKey, value: &[u8]) -> Result<Option<Effect>, DecodeError> {
    let (cube, change) = match key {
        RowKey::Manifest { tenant, cube } => {
            ((tenant, cube), Change::Manifest(Some(decode(value)?)))
        }
        RowKey::Ownership { tenant, cube } => {
            ((tenant, cube), Change::Ownership(Some(decode(value)?)))
        }
        RowKey::Item { tenant, cube, id } => {
            let item = Rc::new(MarkedItem::new(decode(value)?));
            ((tenant, cube), Change::Item(id, Some(item)))
        }
        RowKey::KvBlock { tenant, cube, block } => {
            ((tenant, cube), Change::KvBlock(block, Some(Box::new(decode(value)?))))
        }
        RowKey::Context { tenant, cube, conversation } => {
            ((tenant, cube), Change::Context(conversation, Some(Box::new(decode(value)?))))
        }
        RowKey::History { tenant, cube, id, revision } => {
            ((tenant, cube), Change::History(id, revision, true))
        }
        RowKey::Vector { tenant, cube, .. }
        | RowKey::Request { tenant, cube, .. }
        | RowKey::Tail { tenant, cube, .. }
        | RowKey::Restoring { tenant, cube } => ((tenant, cube), Change::Other),
        // A feed row is written under a versionstamp; the agreement checker sees one that was not.
        RowKey::Node
        | RowKey::ApiKey
        | RowKey::News
        | RowKey::SchemaGate
        | RowKey::FeedMark { .. }
        | RowKey::Blob { .. }
        | RowKey::BlobReference { .. }
        | RowKey::Predictor { .. }
        | RowKey::Feed { .. }
        | RowKey::Unknown => return Ok(None),
    };
    Ok(Some(Effect { cube, change }))
}

fn removed(key: RowKey, was_there: bool) -> Option<Effect> {
    let (cube, change) = match key {
        RowKey::Manifest { tenant, cube } => ((tenant, cube), Change::Manifest(None)),
        RowKey::Ownership { tenant, cube } => ((tenant, cube), Change::Ownership(None)),
        RowKey::Item { tenant, cube, id } => ((tenant, cube), Change::Item(id, None)),
        RowKey::KvBlock { tenant, cube, block } => ((tenant, cube), Change::KvBlock(block, None)),
        RowKey::Context { tenant, cube, conversation } => {
            ((tenant, cube), Change::Context(conversation, None))
        }
        RowKey::History { tenant, cube, id, revision } => {
            ((tenant, cube), Change::History(id, revision, false))
        }
        RowKey::Vector { tenant, cube, .. }
        | RowKey::Request { tenant, cube, .. }
        | RowKey::Tail { tenant, cube, .. }
        | RowKey::Restoring { tenant, cube } => ((tenant, cube), Change::Other),
        RowKey::Node
        | RowKey::ApiKey
        | RowKey::News
        | RowKey::SchemaGate
        | RowKey::FeedMark { .. }
        | RowKey::Blob { .. }
        | RowKey::BlobReference { .. }
        | RowKey::Predictor { .. }
        | RowKey::Feed { .. }
        | RowKey::Unknown => return None,
    };
    Some(Effect { cube, change: if was_there { change } else { Change::Other } })
}

/// A key for people: what is printable as it is, the rest in hexadecimal digits.
fn printable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}
