//! From decided changes to one commit: item, vector, history, request record and manifest together,
//! under the condition that this actor still owns the cube.

use std::collections::BTreeSet;

use memcube_schemas::{
    Epoch, Incarnation, MemoryId, ModelId, NodeId, RequestId, Version,
    codec::encode,
    command::CubeEvent,
    cube::{CubeManifest, Ownership, RequestRecord},
    feed::{FeedChange, FeedRecord, ItemChange},
    keys::{self, KeyRange},
    limits::TAIL_RECORD_ITEMS_MAX,
    memory::{ChangeReason, MemoryItem, MemoryRevision, MemoryVector},
    snapshot::TailRecord,
};

use super::snapshots;
use super::state::{Claim, CubeKey, CubeState};
use crate::{
    defects::Defect,
    environment::Environment,
    storage::{Check, Commit, Mutation, SharedStore, StoreError},
};

/// How often a commit with an unknown outcome is looked up before the cube gives up.
const OUTCOME_LOOKUPS_MAX: usize = 5;

/// One change together with who made it.
pub(crate) struct Recorded<'a> {
    pub(crate) event: &'a CubeEvent,
    pub(crate) by: &'a str,
}

/// The manifest as it will be once these events are applied.
pub(crate) fn next_manifest<'a>(
    state: &CubeState,
    events: impl Iterator<Item = &'a CubeEvent>,
    version: Version,
    now_ms: i64,
) -> CubeManifest {
    let mut manifest = state.manifest.clone();
    manifest.version = version;
    manifest.updated_at_ms = now_ms;
    for event in events {
        match event {
            CubeEvent::MemoryAdded { vector, .. } => {
                manifest.items += 1;
                if vector.is_some() {
                    manifest.embedder.clone_from(&state.model);
                }
            }
            CubeEvent::MemoryDeleted { .. } => manifest.items = manifest.items.saturating_sub(1),
            CubeEvent::MemoryRepeated { .. } | CubeEvent::MemoryUpdated { .. } => {}
        }
    }
    manifest
}

/// Everything that a commit writes.
pub(crate) fn mutations(
    state: &CubeState,
    recorded: &[Recorded<'_>],
    requests: &[(RequestId, RequestRecord)],
    manifest: &CubeManifest,
) -> Vec<Mutation> {
    let CubeKey { tenant, cube } = &state.key;
    let mut mutations = Vec::with_capacity(recorded.len() * 2 + requests.len() + 1);
    for change in recorded {
        record_event(&mut mutations, state, change, manifest);
    }
    for id in state.requests_to_forget(requests.len()) {
        mutations.push(Mutation::Clear { key: keys::request(tenant, cube, &id) });
    }
    for (id, record) in requests {
        mutations
            .push(Mutation::Set { key: keys::request(tenant, cube, id), value: encode(record) });
    }
    mutations.push(set_manifest(&state.key, manifest));
    let changes = recorded.iter().map(|change| item_change(change.event)).collect();
    mutations.extend(feed(
        &state.key,
        &FeedRecord {
            cube: cube.clone(),
            epoch: state.claim.epoch,
            version: manifest.version,
            at_ms: manifest.updated_at_ms,
            change: FeedChange::Items(changes),
        },
    ));
    mutations
}

/// Tells which items a commit changes, for whoever reads the cube from a snapshot.
pub(super) fn tail(key: &CubeKey, recorded: &[Recorded<'_>], version: Version) -> Vec<Mutation> {
    let CubeKey { tenant, cube } = key;
    let items: BTreeSet<MemoryId> =
        recorded.iter().map(|change| item_change(change.event).0).collect();
    let items: Vec<MemoryId> = items.into_iter().collect();
    let record = |(part, items): (u16, &[MemoryId])| {
        let key = match part {
            0 => keys::tail(tenant, cube, version),
            part => keys::tail_part(tenant, cube, version, part),
        };
        Mutation::Set { key, value: encode(&TailRecord { items: items.to_vec() }) }
    };
    (0..).zip(items.chunks(TAIL_RECORD_ITEMS_MAX)).map(record).collect()
}

/// What making a cube writes.
pub(crate) fn made(key: &CubeKey, manifest: &CubeManifest) -> Vec<Mutation> {
    let record = FeedRecord {
        cube: key.cube.clone(),
        epoch: Epoch::default(),
        version: manifest.version,
        at_ms: manifest.created_at_ms,
        change: FeedChange::CubeMade,
    };
    [set_manifest(key, manifest)].into_iter().chain(feed(key, &record)).collect()
}

/// What makes a cube visible whose rows were put back from a backup.
pub(crate) fn restored(
    key: &CubeKey,
    claim: &Claim,
    manifest: &CubeManifest,
    now_ms: i64,
) -> Vec<Mutation> {
    let record = FeedRecord {
        cube: key.cube.clone(),
        epoch: claim.epoch,
        version: manifest.version,
        at_ms: now_ms,
        change: FeedChange::CubeRestored,
    };
    let mark = Mutation::Clear { key: keys::restoring(&key.tenant, &key.cube) };
    [set_manifest(key, manifest), mark].into_iter().chain(feed(key, &record)).collect()
}

/// Tells of a commit in the feed of its tenant, says that it has news, and rings.
fn feed(key: &CubeKey, record: &FeedRecord) -> [Mutation; 3] {
    let shard = keys::feed_shard(&key.cube);
    let prefix = keys::feed_prefix(&key.tenant, shard);
    let pointer = keys::feed_pointer(&key.tenant, shard);
    let doorbell = keys::feed_doorbell(keys::feed_ring(&key.tenant, shard));
    [
        Mutation::SetVersionstamped { prefix, value: encode(record) },
        Mutation::Set { key: pointer, value: Vec::new() },
        Mutation::Set { key: doorbell, value: Vec::new() },
    ]
}

fn item_change(event: &CubeEvent) -> (MemoryId, ItemChange, u32) {
    match event {
        CubeEvent::MemoryAdded { item, .. } => (item.id, ItemChange::Added, item.revision),
        CubeEvent::MemoryRepeated { item } => (item.id, ItemChange::Repeated, item.revision),
        CubeEvent::MemoryUpdated { item, .. } => (item.id, ItemChange::Updated, item.revision),
        CubeEvent::MemoryDeleted { former, purge } => {
            let change = if *purge { ItemChange::Purged } else { ItemChange::Deleted };
            (former.id, change, former.revision)
        }
    }
}

pub(crate) fn set_manifest(key: &CubeKey, manifest: &CubeManifest) -> Mutation {
    Mutation::Set { key: keys::manifest(&key.tenant, &key.cube), value: encode(manifest) }
}

fn record_event(
    mutations: &mut Vec<Mutation>,
    state: &CubeState,
    change: &Recorded<'_>,
    manifest: &CubeManifest,
) {
    let key = &state.key;
    match change.event {
        CubeEvent::MemoryAdded { item, vector } => {
            mutations.push(set_item(key, item));
            mutations.extend(set_vector(key, state.model.as_ref(), item, vector.as_deref()));
        }
        CubeEvent::MemoryRepeated { item } => mutations.push(set_item(key, item)),
        CubeEvent::MemoryUpdated { former, item, vector } => {
            mutations.push(keep_former(key, former, change.by, ChangeReason::Updated, manifest));
            mutations.push(set_item(key, item));
            if former.text != item.text {
                mutations.extend(clear_vector(state, former));
            }
            mutations.extend(set_vector(key, state.model.as_ref(), item, vector.as_deref()));
        }
        CubeEvent::MemoryDeleted { former, purge } => {
            let CubeKey { tenant, cube } = key;
            mutations.push(Mutation::Clear { key: keys::item(tenant, cube, former.id) });
            mutations.extend(clear_vector(state, former));
            if *purge {
                let range = keys::history_of_item(tenant, cube, former.id);
                mutations.push(Mutation::ClearRange { range });
            } else {
                let reason = ChangeReason::Deleted;
                mutations.push(keep_former(key, former, change.by, reason, manifest));
            }
        }
    }
}

fn set_item(key: &CubeKey, item: &MemoryItem) -> Mutation {
    Mutation::Set { key: keys::item(&key.tenant, &key.cube, item.id), value: encode(item) }
}

/// The vector row of an item, where a model is configured and made one.
pub(crate) fn set_vector(
    key: &CubeKey,
    model: Option<&ModelId>,
    item: &MemoryItem,
    vector: Option<&[f32]>,
) -> Option<Mutation> {
    let (model, values) = (model?, vector?);
    Some(Mutation::Set {
        key: keys::vector(&key.tenant, &key.cube, model, item.id),
        value: encode(&MemoryVector { values: values.to_vec() }),
    })
}

/// Removes the vector of a text that is no longer there.
fn clear_vector(state: &CubeState, item: &MemoryItem) -> Option<Mutation> {
    let model = state.manifest.embedder.as_ref().or(state.model.as_ref())?;
    let CubeKey { tenant, cube } = &state.key;
    Some(Mutation::Clear { key: keys::vector(tenant, cube, model, item.id) })
}

fn keep_former(
    key: &CubeKey,
    former: &MemoryItem,
    by: &str,
    reason: ChangeReason,
    manifest: &CubeManifest,
) -> Mutation {
    let revision = MemoryRevision {
        former: former.clone(),
        changed_at_ms: manifest.updated_at_ms,
        changed_by: by.to_owned(),
        reason,
        version: manifest.version,
    };
    Mutation::Set {
        key: keys::history(&key.tenant, &key.cube, former.id, former.revision),
        value: encode(&revision),
    }
}

/// What deleting a whole cube clears.
///
/// Of a cube that cannot be read nobody knows the version, nor the snapshot, whose reference then
/// the sweep removes.
pub(crate) fn erase(
    key: &CubeKey,
    claim: &Claim,
    manifest: Option<&CubeManifest>,
    now_ms: i64,
) -> Vec<Mutation> {
    let version = manifest.map_or(Version(0), |manifest| manifest.version);
    let snapshot = manifest.and_then(|manifest| manifest.snapshot.as_ref());
    let let_go = snapshot.map(|snapshot| snapshots::let_go(key, snapshot.blob));
    let ranges: Vec<KeyRange> = keys::everything_of_cube(&key.tenant, &key.cube);
    let record = FeedRecord {
        cube: key.cube.clone(),
        epoch: claim.epoch,
        version,
        at_ms: now_ms,
        change: FeedChange::CubeErased,
    };
    let clear = ranges.into_iter().map(|range| Mutation::ClearRange { range });
    clear.chain(let_go).chain(feed(key, &record)).collect()
}

/// Names the next owner of a cube.
pub(crate) fn pass_ownership(
    key: &CubeKey,
    claim: &Claim,
    node: NodeId,
    incarnation: Incarnation,
) -> Mutation {
    let next = Ownership { epoch: claim.epoch.next(), node, incarnation };
    Mutation::Set { key: keys::ownership(&key.tenant, &key.cube), value: encode(&next) }
}

/// Whether a key is that of a vector of this cube.
pub(crate) fn is_vector(state: &CubeState, key: &[u8]) -> bool {
    let models = state.manifest.embedder.as_ref().or(state.model.as_ref());
    let CubeKey { tenant, cube } = &state.key;
    models.is_some_and(|model| keys::vectors(tenant, cube, model).contains(key))
}

/// The condition under which this owner may write.
pub(crate) fn ownership_check(key: &CubeKey, claim: &Claim) -> Check {
    Check::At { key: keys::ownership(&key.tenant, &key.cube), version: claim.row }
}

/// Commits, and finds out what became of a commit whose outcome is unknown: its token makes a
/// second try harmless.
pub(crate) async fn commit(
    store: &SharedStore,
    environment: &Environment,
    checks: Vec<Check>,
    mutations: Vec<Mutation>,
) -> Result<Version, StoreError> {
    let mut commit = Commit { token: environment.commit_token(), checks, mutations };
    let token = commit.token;
    let mut outcome = store.commit(commit.clone()).await;
    for _ in 0..OUTCOME_LOOKUPS_MAX {
        match outcome {
            Err(StoreError::Unknown) => environment.reach("store.outcome-unknown", ""),
            Ok(_) | Err(_) => return outcome,
        }
        if environment.plants(Defect::RetryWithoutToken) {
            commit.token = environment.commit_token();
            outcome = store.commit(commit.clone()).await;
            continue;
        }
        outcome = match store.outcome(token).await {
            Ok(Some(version)) => Ok(version),
            Ok(None) => store.commit(commit.clone()).await,
            Err(_) => Err(StoreError::Unknown),
        };
    }
    outcome
}
