//! What stays in a tier: the least recently used goes first, within a quota for every tenant and a
//! bound for all. Pure.
//!
//! Invariant: bytes never exceed the bound, those of a tenant never its quota, and a tenant that
//! exceeds its quota takes nothing away from others.

use std::collections::{BTreeMap, BTreeSet};

use memcube_schemas::TenantId;

/// Values by tenant and key, each with its bytes.
#[derive(Debug)]
pub(crate) struct ByteLru<K, V> {
    slots: BTreeMap<(TenantId, K), Slot<V>>,
    /// By when they were last used, of all tenants and of each.
    ages: BTreeMap<u64, (TenantId, K)>,
    tenants: BTreeMap<TenantId, Share>,
    next_age: u64,
    bytes: u64,
    bytes_max: u64,
    tenant_bytes_max: u64,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    bytes: u64,
    age: u64,
}

#[derive(Debug, Default)]
struct Share {
    bytes: u64,
    ages: BTreeSet<u64>,
}

/// What had to go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Evicted<K, V> {
    pub(crate) tenant: TenantId,
    pub(crate) key: K,
    pub(crate) value: V,
}

impl<K: Ord + Clone, V> ByteLru<K, V> {
    pub(crate) const fn new(bytes_max: u64, tenant_bytes_max: u64) -> Self {
        Self {
            slots: BTreeMap::new(),
            ages: BTreeMap::new(),
            tenants: BTreeMap::new(),
            next_age: 0,
            bytes: 0,
            bytes_max,
            tenant_bytes_max,
        }
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of one tenant.
    #[cfg(test)]
    pub(crate) fn bytes_of(&self, tenant: &TenantId) -> u64 {
        self.tenants.get(tenant).map_or(0, |share| share.bytes)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes a value in, in place of a former one; returns what has to go, which is the value
    /// itself if it is larger than its tenant's quota.
    pub(crate) fn admit(
        &mut self,
        tenant: &TenantId,
        key: K,
        value: V,
        bytes: u64,
    ) -> Vec<Evicted<K, V>> {
        drop(self.remove(tenant, &key));
        if bytes > self.tenant_bytes_max.min(self.bytes_max) {
            return vec![Evicted { tenant: tenant.clone(), key, value }];
        }
        let mut evicted = Vec::new();
        while self.tenants.get(tenant).is_some_and(|s| s.bytes + bytes > self.tenant_bytes_max) {
            let oldest = self.tenants.get(tenant).and_then(|share| share.ages.first());
            let Some(oldest) = oldest.copied() else { break };
            evicted.extend(self.evict(oldest));
        }
        while self.bytes + bytes > self.bytes_max {
            let Some(oldest) = self.ages.keys().next().copied() else { break };
            evicted.extend(self.evict(oldest));
        }
        let age = self.stamp();
        self.bytes += bytes;
        let share = self.tenants.entry(tenant.clone()).or_default();
        share.bytes += bytes;
        share.ages.insert(age);
        self.ages.insert(age, (tenant.clone(), key.clone()));
        self.slots.insert((tenant.clone(), key), Slot { value, bytes, age });
        evicted
    }

    fn stamp(&mut self) -> u64 {
        self.next_age += 1;
        self.next_age
    }

    fn evict(&mut self, age: u64) -> Option<Evicted<K, V>> {
        let (tenant, key) = self.ages.get(&age)?.clone();
        let value = self.remove(&tenant, &key)?;
        Some(Evicted { tenant, key, value })
    }

    /// Takes out what was not used for longest.
    pub(crate) fn evict_oldest(&mut self) -> Option<Evicted<K, V>> {
        let oldest = self.ages.keys().next().copied()?;
        self.evict(oldest)
    }

    /// A value, which counts as used now.
    pub(crate) fn get(&mut self, tenant: &TenantId, key: &K) -> Option<&mut V> {
        let age = self.stamp();
        let slot = self.slots.get_mut(&(tenant.clone(), key.clone()))?;
        let former = std::mem::replace(&mut slot.age, age);
        let place = self.ages.remove(&former);
        self.ages.extend(place.map(|place| (age, place)));
        if let Some(share) = self.tenants.get_mut(tenant) {
            share.ages.remove(&former);
            share.ages.insert(age);
        }
        Some(&mut slot.value)
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, tenant: &TenantId, key: &K) -> Option<V> {
        let slot = self.slots.remove(&(tenant.clone(), key.clone()))?;
        self.bytes -= slot.bytes;
        self.ages.remove(&slot.age);
        if let Some(share) = self.tenants.get_mut(tenant) {
            share.bytes -= slot.bytes;
            share.ages.remove(&slot.age);
            if share.ages.is_empty() {
                self.tenants.remove(tenant);
            }
        }
        Some(slot.value)
    }

    /// The values of one tenant, the least recently used first.
    pub(crate) fn of_tenant(&self, tenant: &TenantId) -> impl Iterator<Item = (&K, &V)> {
        let ages = self.tenants.get(tenant).into_iter().flat_map(|share| share.ages.iter());
        ages.filter_map(|age| {
            let place = self.ages.get(age)?;
            Some((&place.1, &self.slots.get(place)?.value))
        })
    }

    /// All values, each with its tenant.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&TenantId, &V)> {
        self.slots.iter().map(|((tenant, _), slot)| (tenant, &slot.value))
    }

    /// All values.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.slots.values().map(|slot| &slot.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(number: u8) -> TenantId {
        TenantId::new(format!("t{number}")).expect("valid")
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = ByteLru::new(30, 30);
        for key in 0..3 {
            assert!(lru.admit(&tenant(0), key, (), 10).is_empty());
        }
        assert!(lru.get(&tenant(0), &0).is_some());
        let gone: Vec<i32> =
            lru.admit(&tenant(0), 3, (), 15).into_iter().map(|gone| gone.key).collect();
        assert_eq!(gone, [1, 2]);
        assert!(lru.get(&tenant(1), &0).is_none(), "of another tenant");
        assert_eq!(lru.admit(&tenant(0), 4, (), 31).len(), 1, "too large, and nothing else goes");
        assert_eq!((lru.bytes(), lru.len()), (25, 2));
    }

    #[test]
    fn a_greedy_tenant_harms_nobody() {
        let mut lru = ByteLru::new(100, 60);
        lru.admit(&tenant(0), 0, (), 40);
        for key in 0..100 {
            let gone = lru.admit(&tenant(1), key, (), 9);
            assert!(gone.iter().all(|gone| gone.tenant == tenant(1)), "{key}");
        }
        assert_eq!((lru.bytes_of(&tenant(0)), lru.bytes_of(&tenant(1))), (40, 54));
    }

    proptest! {
        #[test]
        fn bounds_hold(
            steps in prop::collection::vec((0_u8..3, 0_u8..12, 0_u64..40, 0_u8..4), 1..200),
        ) {
            let mut lru = ByteLru::new(100, 60);
            for (owner, key, bytes, kind) in steps {
                let owner = tenant(owner);
                match kind {
                    0 => drop(lru.remove(&owner, &key)),
                    1 => drop(lru.get(&owner, &key)),
                    _ => drop(lru.admit(&owner, key, bytes, bytes)),
                }
                prop_assert!(lru.bytes() <= 100);
                let mut all = 0;
                for owner in (0..3).map(tenant) {
                    let sum: u64 = lru.of_tenant(&owner).map(|(_, bytes)| *bytes).sum();
                    prop_assert_eq!(sum, lru.bytes_of(&owner));
                    prop_assert!(sum <= 60);
                    all += sum;
                }
                prop_assert_eq!(all, lru.bytes());
            }
        }
    }
}
