//! Adds by the names (`task_id`) that MemOS's clients gave them.
//!
//! An add is complete when it is answered, so there is one thing to know of it: that it was
//! answered. This node remembers it until it stops, or until many more were added.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use memcube_actors::TenantContext;
use memcube_schemas::{
    TenantId,
    limits::{MEMOS_TASK_BYTES_MAX, MEMOS_TASKS_PER_TENANT_MAX, TEXT_ID_BYTES_MAX},
};

use crate::gateway::errors::Failure;

/// One add.
#[derive(Debug, Clone)]
pub(super) struct Task {
    tenant: TenantId,
    user: String,
    id: String,
}

impl Task {
    pub(super) fn new(caller: &TenantContext, user: &str, id: String) -> Result<Self, Failure> {
        for (name, text, bytes_max) in
            [("task_id", id.as_str(), MEMOS_TASK_BYTES_MAX), ("user_id", user, TEXT_ID_BYTES_MAX)]
        {
            let bytes = text.len();
            if bytes > bytes_max {
                return Err(Failure::invalid(format!(
                    "`{name}` has {bytes} bytes, the limit is {bytes_max}"
                )));
            }
        }
        Ok(Self { tenant: caller.tenant().clone(), user: user.to_owned(), id })
    }
}

/// The adds of one tenant: user and name, in their order.
#[derive(Debug, Default)]
struct OfTenant {
    known: BTreeSet<(String, String)>,
    order: VecDeque<(String, String)>,
}

/// What was added of late, by its name.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    tenants: Mutex<BTreeMap<TenantId, OfTenant>>,
}

impl Tasks {
    /// Notes that an add is durable.
    pub(super) fn completed(&self, task: Task) {
        let Task { tenant, user, id } = task;
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = tenants.entry(tenant).or_default();
        let name = (user, id);
        if !of_tenant.known.insert(name.clone()) {
            return;
        }
        of_tenant.order.push_back(name);
        if of_tenant.order.len() > MEMOS_TASKS_PER_TENANT_MAX
            && let Some(oldest) = of_tenant.order.pop_front()
        {
            of_tenant.known.remove(&oldest);
        }
    }

    pub(super) fn is_completed(&self, caller: &TenantContext, user: &str, id: &str) -> bool {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (user.to_owned(), id.to_owned());
        tenants.get(caller.tenant()).is_some_and(|of_tenant| of_tenant.known.contains(&name))
    }

    /// The adds of a user, in the order of their names.
    pub(super) fn of_user(&self, caller: &TenantContext, user: &str) -> Vec<String> {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_tenant) = tenants.get(caller.tenant()) else { return Vec::new() };
        let from = of_tenant.known.range((user.to_owned(), String::new())..);
        from.take_while(|(of, _)| of == user).map(|(_, id)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_are_remembered_by_tenant_and_user_within_bounds() {
        let caller =
            |name: &str| TenantContext::authenticated(TenantId::new(name).expect("valid"), "test");
        let (ann, bo) = (caller("ann"), caller("bo"));
        let tasks = Tasks::default();
        let add = |caller: &TenantContext, user: &str, id: &str| {
            tasks.completed(Task::new(caller, user, id.to_owned()).expect("valid"));
        };
        add(&ann, "u", "t1");
        add(&ann, "u", "t1");
        add(&ann, "v", "t2");
        assert!(tasks.is_completed(&ann, "u", "t1"));
        for (caller, user, id) in [(&bo, "u", "t1"), (&ann, "v", "t1"), (&ann, "u", "t2")] {
            assert!(!tasks.is_completed(caller, user, id), "{user} {id}");
        }
        assert_eq!(tasks.of_user(&ann, "u"), ["t1"]);
        for number in 0..MEMOS_TASKS_PER_TENANT_MAX - 1 {
            add(&ann, "w", &number.to_string());
        }
        assert!(!tasks.is_completed(&ann, "u", "t1"), "the oldest goes");
        assert!(tasks.is_completed(&ann, "v", "t2"));
        let long = "x".repeat(MEMOS_TASK_BYTES_MAX + 1);
        assert!(Task::new(&ann, "u", long).is_err());
    }
}
