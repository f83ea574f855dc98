//! How much may be computed ahead for each tenant: a bucket that fills with time. Pure.

use std::collections::BTreeMap;

use memcube_schemas::{TenantId, limits::SCHEDULER_TENANTS_MAX};

/// A minute.
const MINUTE_US: u64 = 60_000_000;

/// What one tenant has left.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at_us: u64,
}

/// Tokens that may be computed ahead, by tenant.
#[derive(Debug)]
pub(crate) struct Budgets {
    tokens_per_minute: u64,
    tenants: BTreeMap<TenantId, Bucket>,
}

impl Budgets {
    /// So many for each tenant in a minute; 0 for any number.
    pub(crate) const fn new(tokens_per_minute: u64) -> Self {
        Self { tokens_per_minute, tenants: BTreeMap::new() }
    }

    /// What the tenant may spend now.
    pub(crate) fn left(&mut self, tenant: &TenantId, now_us: u64) -> u64 {
        if self.tokens_per_minute == 0 {
            return u64::MAX;
        }
        self.bucket(tenant, now_us).tokens.max(0.0) as u64
    }

    /// The tenant has spent so much, perhaps more than it had: then it waits until that is paid.
    pub(crate) fn spend(&mut self, tenant: &TenantId, tokens: u64, now_us: u64) {
        if self.tokens_per_minute > 0 {
            self.bucket(tenant, now_us).tokens -= tokens as f64;
        }
    }

    fn bucket(&mut self, tenant: &TenantId, now_us: u64) -> &mut Bucket {
        let full = self.tokens_per_minute as f64;
        let filled = |bucket: &Bucket| {
            let passed = now_us.saturating_sub(bucket.at_us) as f64 / MINUTE_US as f64;
            (bucket.tokens + passed * full).min(full)
        };
        if !self.tenants.contains_key(tenant) && self.tenants.len() >= SCHEDULER_TENANTS_MAX {
            // A full bucket is as good as none, so whoever has most left loses least.
            let fullest = self.tenants.iter().max_by(|(left_id, left), (right_id, right)| {
                filled(left).total_cmp(&filled(right)).then_with(|| right_id.cmp(left_id))
            });
            if let Some(fullest) = fullest.map(|(tenant, _)| tenant.clone()) {
                self.tenants.remove(&fullest);
            }
        }
        let bucket =
            self.tenants.entry(tenant.clone()).or_insert(Bucket { tokens: full, at_us: now_us });
        bucket.tokens = filled(bucket);
        bucket.at_us = now_us;
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    #[test]
    fn what_is_spent_comes_back_with_time() {
        let mut budgets = Budgets::new(600);
        let (acme, bolt) = (tenant("acme"), tenant("bolt"));
        assert_eq!(budgets.left(&acme, 0), 600);
        budgets.spend(&acme, 500, 0);
        let table = [(0, 100), (MINUTE_US / 10, 160), (MINUTE_US, 600), (9 * MINUTE_US, 600)];
        for (now_us, left) in table {
            assert_eq!(budgets.left(&acme, now_us), left, "after {now_us} us");
        }
        budgets.spend(&acme, 1_200, 9 * MINUTE_US);
        assert_eq!(budgets.left(&acme, 9 * MINUTE_US), 0);
        assert_eq!(budgets.left(&acme, 10 * MINUTE_US), 0);
        assert_eq!(budgets.left(&acme, 11 * MINUTE_US), 600);
        assert_eq!(budgets.left(&bolt, 9 * MINUTE_US), 600);
    }

    #[test]
    fn tenants_are_bounded_and_debts_outlast_others() {
        let mut budgets = Budgets::new(600);
        budgets.spend(&tenant("debtor"), 600, 0);
        for number in 0..2 * SCHEDULER_TENANTS_MAX {
            let _ = budgets.left(&tenant(&format!("t{number}")), 0);
        }
        assert!(budgets.tenants.len() <= SCHEDULER_TENANTS_MAX);
        assert_eq!(budgets.left(&tenant("debtor"), 0), 0);
        assert_eq!(Budgets::new(0).left(&tenant("acme"), 0), u64::MAX);
    }
}
