//! From decided changes to one commit: item, vector, history, request record and manifest together,
//! under the condition that this actor still owns the cube.

use memcube_schemas::{
    ModelId, RequestId, Version,
    codec::encode,
    command::CubeEvent,
    cube::{CubeManifest, RequestRecord},
    keys::{self, KeyRange},
    memory::{ChangeReason, MemoryItem, MemoryRevision, MemoryVector},
};

use super::state::{Claim, CubeKey, CubeState};
use crate::{
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
    mutations
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
pub(crate) fn erase(key: &CubeKey) -> Vec<Mutation> {
    let ranges: Vec<KeyRange> = keys::everything_of_cube(&key.tenant, &key.cube);
    ranges.into_iter().map(|range| Mutation::ClearRange { range }).collect()
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
    let commit = Commit { token: environment.commit_token(), checks, mutations };
    let token = commit.token;
    let mut outcome = store.commit(commit.clone()).await;
    for _ in 0..OUTCOME_LOOKUPS_MAX {
        match outcome {
            Err(StoreError::Unknown) => {}
            Ok(_) | Err(_) => return outcome,
        }
        outcome = match store.outcome(token).await {
            Ok(Some(version)) => Ok(version),
            Ok(None) => store.commit(commit.clone()).await,
            Err(_) => Err(StoreError::Unknown),
        };
    }
    outcome
}
