//! What goes out of RAM and off the device, because it is forgotten or because this node may not
//! have heard that it is.

use std::collections::BTreeSet;

use memcube_schemas::{BlobId, BlockKey, ConversationId, CubeId, MemoryId, TenantId, Version};

use super::{ActivationCache, Contents, Forgotten, Parked, RamBlock};
use crate::{cube::CubeKey, metrics as names};

/// Cubes whose last claim is remembered. Of those beyond, nothing is kept when they come back.
const CLAIMS_MAX: usize = 65_536;

/// Something that is held in RAM or on the device, for a cube.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Whose.
    pub tenant: TenantId,
    /// For which cube.
    pub cube: CubeId,
    /// The memories that it contains or was computed after.
    pub memories: BTreeSet<MemoryId>,
    /// The conversation that it contains or was computed after.
    pub conversation: Option<ConversationId>,
}

impl ActivationCache {
    /// Says that a cube is this node's from now on, by an ownership row in place of a former one.
    /// What was kept of it before stays only if no other node can have changed it since: this one
    /// would not have heard of what was forgotten there.
    pub(crate) fn claimed(&self, key: &CubeKey, former: Option<Version>, now: Version) {
        let mut held = self.held();
        let known = held.claims.get(key).copied();
        if held.claims.len() >= CLAIMS_MAX && known.is_none() {
            held.claims.clear();
        }
        held.claims.insert(key.clone(), now);
        drop(held);
        if known.is_none() || known != former {
            self.forget_cube(&key.tenant, &key.cube, &[]);
        }
    }

    /// What is held, for whom and with which memories.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let held = self.held();
        let holding = |tenant: &TenantId, cube: &CubeId, contents: &Contents| Holding {
            tenant: tenant.clone(),
            cube: cube.clone(),
            memories: contents.memories.clone(),
            conversation: contents.conversation.clone(),
        };
        let blocks = held.ram.entries().flat_map(|(tenant, found)| {
            let owned = found.owners.iter();
            let all = owned.flat_map(|(cube, all)| all.iter().map(move |one| (cube, one)));
            all.map(move |(cube, contents)| holding(tenant, cube, contents)).collect::<Vec<_>>()
        });
        let parked = held.parked.entries();
        let parked = parked.map(|(tenant, one)| holding(tenant, &one.cube, &one.sources));
        blocks.chain(parked).collect()
    }

    /// Drops everything of a cube that contains or was computed after what is forgotten, from
    /// the device and from RAM; the copies of these blobs go from the disk. When it returns,
    /// nothing of it can be used any more, nor kept by whoever is computing with it.
    pub fn forget(
        &self,
        tenant: &TenantId,
        cube: &CubeId,
        forgotten: &Forgotten,
        blobs: &[BlobId],
    ) {
        self.forget_where(tenant, cube, blobs, |contents| forgotten.touches(contents));
    }

    /// Drops everything of a cube.
    pub fn forget_cube(&self, tenant: &TenantId, cube: &CubeId, blobs: &[BlobId]) {
        self.forget_where(tenant, cube, blobs, |_| true);
    }

    fn forget_where(
        &self,
        tenant: &TenantId,
        cube: &CubeId,
        blobs: &[BlobId],
        is_meant: impl Fn(&Contents) -> bool,
    ) {
        let mut held = self.held();
        for leased in held.leases.values_mut() {
            let is_same = leased.key.tenant == *tenant && leased.key.cube == *cube;
            let is_touched = leased.sources.as_ref().is_none_or(|sources| is_meant(sources));
            leased.is_revoked |= is_same && is_touched;
        }
        let is_parked = |parked: &Parked| parked.cube == *cube && is_meant(&parked.sources);
        let sessions = held.parked.of_tenant(tenant);
        let sessions: Vec<u64> =
            sessions.filter(|(_, parked)| is_parked(parked)).map(|(number, _)| *number).collect();
        let is_owned = |found: &RamBlock| {
            found.owners.get(cube).is_some_and(|all| all.iter().any(|sources| is_meant(sources)))
        };
        let blocks = held.ram.of_tenant(tenant);
        let blocks: Vec<BlockKey> =
            blocks.filter(|(_, found)| is_owned(found)).map(|(key, _)| *key).collect();
        let parked: Vec<_> =
            sessions.iter().map(|number| held.parked.remove(tenant, number)).collect();
        let dropped: Vec<_> = blocks.iter().map(|key| held.ram.remove(tenant, key)).collect();
        held.publish();
        drop(held);
        metrics::counter!(names::ACTIVATION_INVALIDATED_TOTAL).increment(dropped.len() as u64);
        drop((parked, dropped));
        if let Some(cold) = &self.shared.cold {
            cold.drop_copies(tenant, blobs);
        }
    }
}
