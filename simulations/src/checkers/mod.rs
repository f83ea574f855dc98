//! The judges: one file each, each of them a function from the evidence to what is wrong.
//!
//! Every checker says in its header what it promises and what it cannot see. They overlap on
//! purpose: some know only what callers were told, some only what the store holds, and a bug that
//! fools one kind is plain to the other.

mod activation;
mod agreement;
mod blobs;
#[cfg(test)]
mod builder;
mod case;
mod durability;
mod event_log;
mod feed;
mod fencing;
mod findings;
mod isolation;
mod linearizability;
mod liveness;
mod once;
mod queues;
mod read_your_writes;
mod reference;
mod scheduler;
mod tenant_search;
#[cfg(test)]
mod tests;
mod timeline;

use self::case::{Case, CubeName};
use crate::evidence::{Evidence, Violation};

/// All checkers, in the order in which they run.
pub(crate) const NAMES: [&str; 15] = [
    durability::NAME,
    fencing::NAME,
    linearizability::NAME,
    read_your_writes::NAME,
    isolation::NAME,
    tenant_search::NAME,
    agreement::NAME,
    event_log::NAME,
    feed::NAME,
    blobs::NAME,
    activation::NAME,
    scheduler::NAME,
    liveness::NAME,
    queues::NAME,
    once::NAME,
];

/// What all checkers say about a run.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// What must not happen and did.
    pub(crate) violations: Vec<Violation>,
    /// Items whose history was too tangled to be judged within the budget.
    #[allow(dead_code, reason = "read by tests today, and by a report that wants to tell it")]
    pub(crate) undecided: usize,
}

/// Runs all checkers.
#[must_use]
pub(crate) fn check_all(evidence: &Evidence) -> Vec<Violation> {
    judge(evidence).violations
}

/// Runs all checkers, and counts what they could not decide.
#[must_use]
pub(crate) fn judge(evidence: &Evidence) -> Judgement {
    let case = Case::read(evidence);
    let mut violations = durability::check(&case);
    violations.extend(fencing::check(&case));
    let (found, undecided) = linearizability::check(&case);
    violations.extend(found);
    violations.extend(read_your_writes::check(&case));
    violations.extend(isolation::check(&case));
    violations.extend(tenant_search::check(&case));
    violations.extend(agreement::check(&case));
    violations.extend(event_log::check(&case));
    violations.extend(feed::check(&case));
    violations.extend(blobs::check(&case));
    violations.extend(activation::check(&case));
    violations.extend(scheduler::check(&case));
    violations.extend(liveness::check(&case));
    violations.extend(queues::check(&case));
    violations.extend(once::check(&case));
    debug_assert!(violations.iter().all(|found| NAMES.contains(&found.checker.as_str())));
    Judgement { violations, undecided }
}

/// A cube's name, for people.
fn title((tenant, cube): &CubeName) -> String {
    format!("{tenant}/{cube}")
}
