//! Keys and values that were computed before: on the device, in RAM, on disk, in the object store.
//!
//! Invariant: a block is found only under the key that names everything it depends on, and only by
//! its tenant. A memory that is forgotten ([`ActivationCache::forget`]) is in no session and no
//! block of RAM afterwards, and what is being computed with it is never kept.

pub mod chain;
mod contents;
pub(crate) mod estimate;
mod forgetting;
mod lru;
mod quantise;
mod segments;
pub(crate) mod stored;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use memcube_schemas::{
    BlockKey, CubeId, TenantId, Version,
    activation::KvBlock,
    limits::{KV_DEVICE_BYTES_DEFAULT, KV_RAM_BYTES_DEFAULT},
};

pub(crate) use self::contents::{Contents, Sources};
use self::{
    chain::Chain,
    estimate::{Decision, Estimates},
    lru::ByteLru,
    stored::{ColdTiers, LoadError, LoadedBlock},
};
pub use self::{
    chain::{ChainBlock, Prompt, Segment},
    contents::Forgotten,
    estimate::Tier,
    forgetting::Holding,
    quantise::{QuantisationError, dequantise, quantise},
    stored::StoredBlock,
};
use super::engine::{EngineFacts, KvBytes, Session};
use crate::{
    cube::{CubeKey, seconds},
    defects::Defect,
    environment::Environment,
    error::{Error, Result},
    metrics as names,
};

/// How much the tiers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSettings {
    /// Bytes of blocks in RAM.
    pub ram_bytes_max: u64,
    /// Bytes of blocks in RAM that one tenant may have.
    pub tenant_ram_bytes_max: u64,
    /// Bytes of sessions that stay on the device when nobody uses them.
    pub device_bytes_max: u64,
    /// Bytes of such sessions that one tenant may have.
    pub tenant_device_bytes_max: u64,
    /// Whether disk and object store hold 8 bits a number. Smaller, and not exact.
    pub cold_in_8_bits: bool,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            ram_bytes_max: KV_RAM_BYTES_DEFAULT,
            tenant_ram_bytes_max: KV_RAM_BYTES_DEFAULT / 2,
            device_bytes_max: KV_DEVICE_BYTES_DEFAULT,
            tenant_device_bytes_max: KV_DEVICE_BYTES_DEFAULT / 2,
            cold_in_8_bits: false,
        }
    }
}

/// A block in RAM, and the cubes that have computed or used it.
struct RamBlock {
    block: Arc<KvBytes>,
    /// More than one where the same words came from several memories or conversations.
    owners: BTreeMap<CubeId, Vec<Sources>>,
}

impl RamBlock {
    /// From now on it is this cube's as well, with these memories.
    fn own(&mut self, cube: &CubeId, sources: Sources) {
        let known = self.owners.entry(cube.clone()).or_default();
        if !known.contains(&sources) {
            known.push(sources);
        }
    }
}

/// A session that nobody uses.
struct Parked {
    session: Box<dyn Session>,
    /// What it holds: keys, and where each block ends.
    blocks: Vec<(BlockKey, usize)>,
    cube: CubeId,
    sources: Sources,
}

/// Something that is being computed.
struct Leased {
    key: CubeKey,
    /// What the prompt contains; `None` as long as nobody knows.
    sources: Option<Sources>,
    is_revoked: bool,
}

struct Held {
    ram: ByteLru<BlockKey, RamBlock>,
    parked: ByteLru<u64, Parked>,
    leases: BTreeMap<u64, Leased>,
    /// The version of the ownership row by which each cube was last this node's.
    claims: BTreeMap<CubeKey, Version>,
    next_number: u64,
    estimates: Estimates,
}

struct Shared {
    environment: Environment,
    facts: EngineFacts,
    cold: Option<ColdTiers>,
    held: Mutex<Held>,
}

/// All tiers for one engine. Cheap to clone.
#[derive(Clone)]
pub struct ActivationCache {
    shared: Arc<Shared>,
}

impl fmt::Debug for ActivationCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ActivationCache")
    }
}

/// The right to keep what is computed for a cube, until one of the memories in it is forgotten.
pub(crate) struct Lease {
    cache: ActivationCache,
    number: u64,
    pub(crate) key: CubeKey,
    /// Everything that the whole prompt contains.
    pub(crate) sources: Sources,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.cache.held().leases.remove(&self.number);
    }
}

impl ActivationCache {
    pub(crate) fn new(
        environment: Environment,
        facts: EngineFacts,
        settings: CacheSettings,
        cold: Option<ColdTiers>,
    ) -> Self {
        let held = Held {
            ram: ByteLru::new(settings.ram_bytes_max, settings.tenant_ram_bytes_max),
            parked: ByteLru::new(settings.device_bytes_max, settings.tenant_device_bytes_max),
            leases: BTreeMap::new(),
            claims: BTreeMap::new(),
            next_number: 0,
            estimates: Estimates::default(),
        };
        Self { shared: Arc::new(Shared { environment, facts, cold, held: Mutex::new(held) }) }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.shared.held.lock().expect("invariant: nothing panics while it holds the cache")
    }

    /// Says that a prompt of a cube is about to be made, before anything of the cube is read for
    /// it: from now on nothing is forgotten unnoticed.
    pub(crate) fn lease(&self, key: CubeKey) -> Lease {
        let mut held = self.held();
        held.next_number += 1;
        let number = held.next_number;
        let leased = Leased { key: key.clone(), sources: None, is_revoked: false };
        held.leases.insert(number, leased);
        Lease { cache: self.clone(), number, key, sources: Sources::default() }
    }

    /// Says which memories the prompt contains. `false` if anything of the cube was forgotten since
    /// the lease began: then the prompt may contain it, and has to be made again.
    pub(crate) fn narrow(&self, lease: &mut Lease, sources: Sources) -> bool {
        let mut held = self.held();
        let Some(leased) = held.leases.get_mut(&lease.number) else { return false };
        leased.sources = Some(Arc::clone(&sources));
        lease.sources = sources;
        !leased.is_revoked
    }

    /// Whether a memory of it was forgotten meanwhile.
    pub(crate) fn is_revoked(&self, lease: &Lease) -> bool {
        self.held().leases.get(&lease.number).is_none_or(|leased| leased.is_revoked)
    }

    /// Takes the parked session that holds the most of a chain's first blocks, and how many, cut
    /// off after them. At most `usable` of them count.
    pub(crate) fn take_session(
        &self,
        lease: &Lease,
        chain: &Chain,
        usable: usize,
    ) -> Option<(Box<dyn Session>, usize)> {
        let tenant = &lease.key.tenant;
        let mut held = self.held();
        let wanted = &chain.blocks[..usable];
        let common = |parked: &Parked| {
            let pairs = parked.blocks.iter().zip(wanted);
            pairs.take_while(|((key, _), block)| *key == block.key).count()
        };
        let found = held.parked.of_tenant(tenant).map(|(number, parked)| (common(parked), *number));
        let (blocks, number) = found.filter(|(blocks, _)| *blocks > 0).max()?;
        let parked = held.parked.remove(tenant, &number)?;
        held.publish();
        drop(held);
        let mut session = parked.session;
        session.truncate(parked.blocks.get(blocks - 1).map_or(0, |(_, end)| *end));
        metrics::counter!(names::ACTIVATION_HITS_TOTAL, "tier" => Tier::Device.as_str())
            .increment(blocks as u64);
        Some((session, blocks))
    }

    /// Keeps a session for the next turn, unless a memory in it was forgotten meanwhile.
    pub(crate) fn park(
        &self,
        lease: &Lease,
        session: Box<dyn Session>,
        blocks: Vec<(BlockKey, usize)>,
    ) {
        let mut held = self.held();
        let is_good = held.leases.get(&lease.number).is_some_and(|leased| !leased.is_revoked);
        if !is_good || blocks.is_empty() {
            return;
        }
        let bytes = session.bytes();
        let (cube, sources) = (lease.key.cube.clone(), Arc::clone(&lease.sources));
        let parked = Parked { session, blocks, cube, sources };
        let number = lease.number;
        let gone = held.parked.admit(&lease.key.tenant, number, parked, bytes);
        held.publish();
        drop(held);
        count_evicted(Tier::Device, gone.len());
    }

    /// Lets go of all sessions that nobody uses; returns whether there were any.
    pub fn free_device(&self) -> bool {
        let mut held = self.held();
        let gone: Vec<_> = std::iter::from_fn(|| held.parked.evict_oldest()).collect();
        held.publish();
        drop(held);
        count_evicted(Tier::Device, gone.len());
        !gone.is_empty()
    }

    /// A block in RAM.
    pub(crate) fn in_ram(&self, lease: &Lease, chain: &Chain, at: usize) -> Option<Arc<KvBytes>> {
        let block = chain.blocks.get(at)?;
        let mut held = self.held();
        if let Some(found) = held.ram.get(&lease.key.tenant, &block.key) {
            found.own(&lease.key.cube, Contents::of(&chain.blocks[..=at]));
            return Some(Arc::clone(&found.block));
        }
        if self.shared.environment.plants(Defect::ForeignBlock) {
            let fits = |found: &&RamBlock| {
                (found.block.start, found.block.tokens) == (block.span.start, block.span.len())
            };
            return held.ram.values().find(fits).map(|found| Arc::clone(&found.block));
        }
        None
    }

    /// Keeps a block in RAM, unless a memory in it was forgotten meanwhile.
    pub(crate) fn admit(&self, lease: &Lease, chain: &Chain, at: usize, block: Arc<KvBytes>) {
        let Some(key) = chain.blocks.get(at).map(|block| block.key) else { return };
        let mut held = self.held();
        if held.leases.get(&lease.number).is_none_or(|leased| leased.is_revoked) {
            return;
        }
        let sources = Contents::of(&chain.blocks[..=at]);
        let tenant = &lease.key.tenant;
        if let Some(known) = held.ram.get(tenant, &key) {
            known.own(&lease.key.cube, sources);
            return;
        }
        let bytes = block.bytes();
        let owners = BTreeMap::from([(lease.key.cube.clone(), vec![sources])]);
        let gone = held.ram.admit(tenant, key, RamBlock { block, owners }, bytes);
        held.publish();
        drop(held);
        count_evicted(Tier::Ram, gone.len());
    }

    /// Drops a block that is damaged.
    pub(crate) fn drop_damaged(&self, tenant: &TenantId, key: BlockKey, tier: Tier) {
        metrics::counter!(names::ACTIVATION_CORRUPT_TOTAL, "tier" => tier.as_str()).increment(1);
        drop(self.held().ram.remove(tenant, &key));
    }

    /// Whether blocks of these rows should be loaded, or computed from a position on.
    pub(crate) fn decide(
        &self,
        tenant: &TenantId,
        rows: &[&KvBlock],
        position: usize,
    ) -> Option<(Decision, Tier)> {
        let cold = self.shared.cold.as_ref()?;
        let first = rows.first()?;
        let tier = cold.tier_of(tenant, first);
        let now_us = self.shared.environment.monotonic_us();
        let bytes: u64 = rows.iter().map(|row| row.bytes).sum();
        let tokens: u32 = rows.iter().map(|row| row.tokens).sum();
        let held = self.held();
        let load = |bytes| held.estimates.load_us(tier, bytes, now_us);
        let compute = |tokens: u32| {
            let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
            held.estimates.compute_us(position, tokens, now_us)
        };
        let decision = estimate::decide(
            [load(bytes), load(first.bytes)],
            [compute(tokens), compute(first.tokens)],
        );
        let (tier_name, name) = (tier.as_str(), decision.as_str());
        metrics::counter!(
            names::ACTIVATION_DECISIONS_TOTAL, "tier" => tier_name, "decision" => name
        )
        .increment(1);
        Some((decision, tier))
    }

    /// So long it took to compute tokens from a position on.
    pub(crate) fn computed(&self, position: usize, tokens: usize, took_us: u64) {
        let now_us = self.shared.environment.monotonic_us();
        self.held().estimates.computed(position, tokens, took_us, now_us);
    }

    /// Loads a block from a cold tier.
    pub(crate) async fn load(
        &self,
        tenant: &TenantId,
        row: &KvBlock,
    ) -> std::result::Result<LoadedBlock, LoadError> {
        let Shared { environment, facts, cold, .. } = &*self.shared;
        let cold = cold.as_ref().ok_or(LoadError::Unavailable)?;
        let start = environment.monotonic_us();
        let loaded = cold.load(tenant, row, facts.fingerprint.dtype).await;
        let now_us = environment.monotonic_us();
        match &loaded {
            Ok(loaded) => {
                let (tier, took_us) = (loaded.tier, now_us.saturating_sub(start));
                self.held().estimates.loaded(tier, row.bytes, took_us, now_us);
                metrics::histogram!(names::ACTIVATION_LOAD_SECONDS, "tier" => tier.as_str())
                    .record(seconds(took_us));
            }
            Err(LoadError::Corrupt) => {
                let tier = cold.tier_of(tenant, row).as_str();
                metrics::counter!(names::ACTIVATION_CORRUPT_TOTAL, "tier" => tier).increment(1);
                tracing::warn!(block = %row.key, tier, "a block is damaged and is computed again");
            }
            Err(LoadError::Unavailable) => {}
        }
        loaded
    }

    /// Learns what a former life has left on the disk.
    pub(crate) async fn find_copies(&self, tenant: &TenantId) {
        if let Some(cold) = &self.shared.cold {
            cold.find_copies(tenant).await;
        }
    }

    /// Whether blocks can be kept beyond RAM.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.shared.cold.is_some()
    }

    /// Puts a block into the object store; the commit of its row makes it count.
    ///
    /// # Errors
    /// `Unavailable` without an object store, or when it does not answer.
    pub async fn store(
        &self,
        tenant: &TenantId,
        block: &ChainBlock,
        numbers: Arc<KvBytes>,
    ) -> Result<StoredBlock> {
        let Shared { facts, cold, .. } = &*self.shared;
        let none = || Error::unavailable("no object store is configured; set `blobs.url`");
        let cold = cold.as_ref().ok_or_else(none)?;
        cold.store(tenant, &facts.fingerprint, block, numbers).await
    }

    /// Bytes on the device that nobody uses now, and bytes in RAM.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let held = self.held();
        (held.parked.bytes(), held.ram.bytes())
    }

    /// Sessions that nobody uses now, and blocks in RAM.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let held = self.held();
        (held.parked.len(), held.ram.len())
    }
}

impl Held {
    fn publish(&self) {
        let (device, ram) = (self.parked.bytes() as f64, self.ram.bytes() as f64);
        metrics::gauge!(names::ACTIVATION_BYTES, "tier" => "device").set(device);
        metrics::gauge!(names::ACTIVATION_BYTES, "tier" => "ram").set(ram);
    }
}

fn count_evicted(tier: Tier, count: usize) {
    metrics::counter!(names::ACTIVATION_EVICTIONS_TOTAL, "tier" => tier.as_str())
        .increment(count as u64);
}
