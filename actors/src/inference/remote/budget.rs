//! Tokens that may be spent in a minute. Pure.
//!
//! Not one of the crates that limit rates: what a request costs is estimated before it is sent and
//! known after its answer, so a bucket has to give back, and to go below zero.

use std::collections::BTreeMap;

use memcube_schemas::{TenantId, limits::REMOTE_TENANT_BUDGETS_MAX};

/// Levels are counted in tokens times this, so that every microsecond adds a whole number.
const UNIT: i128 = 60_000_000;

/// A bucket that holds what may be spent in a minute, and fills by the microsecond.
#[derive(Debug, Clone)]
struct Bucket {
    per_minute: u64,
    level: i128,
    at_us: u64,
}

impl Bucket {
    const fn full(per_minute: u64, now_us: u64) -> Self {
        Self { per_minute, level: per_minute as i128 * UNIT, at_us: now_us }
    }

    const fn capacity(&self) -> i128 {
        self.per_minute as i128 * UNIT
    }

    fn fill(&mut self, now_us: u64) {
        let gained = i128::from(self.per_minute) * i128::from(now_us.saturating_sub(self.at_us));
        self.level = (self.level + gained).min(self.capacity());
        self.at_us = self.at_us.max(now_us);
    }

    /// Microseconds until so many tokens may be spent and a share of the capacity is left. What is
    /// more than a minute's worth may be spent from a full bucket.
    fn wait_us(&self, tokens: u64, left: i128) -> u64 {
        let needed = (i128::from(tokens) * UNIT + left).min(self.capacity());
        let missing = (needed - self.level).max(0);
        let rate = i128::from(self.per_minute.max(1));
        u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX)
    }
}

/// The budgets of a node: of all, and of each tenant.
#[derive(Debug)]
pub(super) struct Budget {
    all: Option<Bucket>,
    tenant_per_minute: u64,
    tenants: BTreeMap<TenantId, Bucket>,
}

impl Budget {
    /// Full budgets; 0 means any number of tokens.
    pub(super) fn new(per_minute: u64, tenant_per_minute: u64, now_us: u64) -> Self {
        let all = (per_minute > 0).then(|| Bucket::full(per_minute, now_us));
        Self { all, tenant_per_minute, tenants: BTreeMap::new() }
    }

    /// Microseconds until a tenant may spend so many tokens. What is not urgent leaves half of what
    /// there is to others.
    pub(super) fn wait_us(
        &mut self,
        tenant: &TenantId,
        tokens: u64,
        is_urgent: bool,
        now_us: u64,
    ) -> u64 {
        let mut wait_us = 0;
        for bucket in self.all.iter_mut().chain(self.tenants.get_mut(tenant)) {
            bucket.fill(now_us);
            let left = if is_urgent { 0 } else { bucket.capacity() / 2 };
            wait_us = wait_us.max(bucket.wait_us(tokens, left));
        }
        wait_us
    }

    /// Spends tokens, or gives back with a negative number.
    pub(super) fn spend(&mut self, tenant: &TenantId, tokens: i64, now_us: u64) {
        if self.tenant_per_minute > 0 && !self.tenants.contains_key(tenant) {
            self.make_room(now_us);
            let bucket = Bucket::full(self.tenant_per_minute, now_us);
            self.tenants.insert(tenant.clone(), bucket);
        }
        for bucket in self.all.iter_mut().chain(self.tenants.get_mut(tenant)) {
            bucket.fill(now_us);
            let level = bucket.level - i128::from(tokens) * UNIT;
            bucket.level = level.min(bucket.capacity());
        }
    }

    /// A full bucket is as good as none.
    fn make_room(&mut self, now_us: u64) {
        if self.tenants.len() < REMOTE_TENANT_BUDGETS_MAX {
            return;
        }
        self.tenants.values_mut().for_each(|bucket| bucket.fill(now_us));
        self.tenants.retain(|_, bucket| bucket.level < bucket.capacity());
        if self.tenants.len() >= REMOTE_TENANT_BUDGETS_MAX {
            let fullest = self.tenants.iter().max_by_key(|(_, bucket)| bucket.level);
            if let Some(fullest) = fullest.map(|(tenant, _)| tenant.clone()) {
                self.tenants.remove(&fullest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_US: u64 = 60_000_000;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    #[test]
    fn a_minutes_worth_may_be_spent_at_once_and_comes_back_in_a_minute() {
        let (ann, bo) = (tenant("ann"), tenant("bo"));
        let mut budget = Budget::new(6_000, 0, 0);
        assert_eq!(budget.wait_us(&ann, 6_000, true, 0), 0);
        budget.spend(&ann, 6_000, 0);
        // (tokens, urgent, at, wait)
        let table = [
            (1, true, 0, 10_000),
            (100, true, 0, 1_000_000),
            (6_000, true, 0, MINUTE_US),
            (9_000, true, 0, MINUTE_US),
            (100, false, 0, 31_000_000),
            (100, true, 999_999, 1),
            (100, true, 1_000_000, 0),
            (3_000, false, MINUTE_US, 0),
            (3_001, false, MINUTE_US, 0),
        ];
        for (tokens, is_urgent, now_us, wait_us) in table {
            let told = budget.wait_us(&bo, tokens, is_urgent, now_us);
            assert_eq!(told, wait_us, "{tokens} tokens at {now_us} us");
        }
        budget.spend(&ann, 12_000, MINUTE_US);
        assert_eq!(budget.wait_us(&ann, 1, true, MINUTE_US), MINUTE_US + 10_000, "below zero");
        budget.spend(&ann, -11_000, MINUTE_US);
        assert_eq!(budget.wait_us(&ann, 5_000, true, MINUTE_US), 0, "given back");
    }

    #[test]
    fn a_tenant_spends_its_own_budget_and_not_that_of_others() {
        let (ann, bo) = (tenant("ann"), tenant("bo"));
        let mut budget = Budget::new(0, 60, 0);
        budget.spend(&ann, 60, 0);
        assert_eq!(budget.wait_us(&ann, 1, true, 0), 1_000_000);
        assert_eq!(budget.wait_us(&bo, 60, true, 0), 0);
        for n in 0..REMOTE_TENANT_BUDGETS_MAX + 10 {
            budget.spend(&tenant(&format!("t{n}")), 1, 0);
        }
        assert!(budget.tenants.len() <= REMOTE_TENANT_BUDGETS_MAX);
        assert_eq!(budget.wait_us(&ann, 1, true, 0), 1_000_000, "the emptiest stay");
    }

    #[test]
    fn without_budgets_everything_may_be_spent() {
        let ann = tenant("ann");
        let mut budget = Budget::new(0, 0, 0);
        budget.spend(&ann, i64::MAX, 0);
        assert_eq!(budget.wait_us(&ann, u64::MAX, false, 0), 0);
        assert!(budget.tenants.is_empty());
    }
}
