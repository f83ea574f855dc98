//! Memories that were computed each by itself, in RAM beside the blocks of prompts: within the same
//! bounds, and forgotten in the same way.

use std::{collections::BTreeMap, sync::Arc};

use super::{ActivationCache, Contents, Lease, RamBlock, Segment, Tier, count_evicted};
use crate::inference::engine::KvBytes;

impl ActivationCache {
    /// What was computed for a memory by itself.
    pub(crate) fn segment(&self, lease: &Lease, segment: &Segment) -> Option<Arc<KvBytes>> {
        let mut held = self.held();
        let found = held.ram.get(&lease.key.tenant, &segment.key)?;
        found.own(&lease.key.cube, Contents::of_memory(segment.source.id));
        Some(Arc::clone(&found.block))
    }

    /// Keeps what was computed for a memory by itself, unless one of the prompt that it stands in
    /// was forgotten meanwhile.
    pub(crate) fn admit_segment(&self, lease: &Lease, segment: &Segment, block: Arc<KvBytes>) {
        let mut held = self.held();
        if held.leases.get(&lease.number).is_none_or(|leased| leased.is_revoked) {
            return;
        }
        let tenant = &lease.key.tenant;
        let sources = Contents::of_memory(segment.source.id);
        if let Some(known) = held.ram.get(tenant, &segment.key) {
            known.own(&lease.key.cube, sources);
            return;
        }
        let bytes = block.bytes();
        let owners = BTreeMap::from([(lease.key.cube.clone(), vec![sources])]);
        let gone = held.ram.admit(tenant, segment.key, RamBlock { block, owners }, bytes);
        held.publish();
        drop(held);
        count_evicted(Tier::Ram, gone.len());
    }
}
