//! Every commit takes effect at most once.
//!
//! It cannot see a commit that was sent again under another token: that is for those who look at
//! items.

use std::collections::BTreeMap;

use super::{case::Case, findings::Findings};
use crate::evidence::{CommitRecord, Violation};

pub(super) const NAME: &str = "once";

/// Looks for tokens that took effect again.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let mut first = BTreeMap::new();
    for CommitRecord { version, node, incarnation, token, .. } in &case.evidence.commits {
        if let Some(before) = first.insert(token, version) {
            findings.report(format!(
                "a commit of {node}.{incarnation} took effect at {before}, and again at {version}"
            ));
        }
    }
    findings.into_violations()
}

#[cfg(test)]
mod tests {
    use memcube_actors::storage::CommitToken;
    use memcube_schemas::{Incarnation, NodeId, Version};

    use super::*;
    use crate::{checkers::builder::said, evidence::Evidence};

    #[test]
    fn a_token_takes_effect_once() {
        let commit = |version, token| CommitRecord {
            version: Version(version),
            place: 0,
            at_ms: version,
            node: NodeId::new("n1").expect("valid"),
            incarnation: Incarnation(7),
            token: CommitToken(token),
            checks: Vec::new(),
            mutations: Vec::new(),
        };
        let check_these = |commits| {
            let evidence = Evidence { commits, ..Evidence::default() };
            said(&check(&Case::read(&evidence)))
        };
        let none: [&str; 0] = [];
        assert_eq!(check_these(vec![commit(1, 1), commit(2, 2)]), none);
        let told = check_these(vec![commit(1, 1), commit(2, 2), commit(3, 1)]);
        assert_eq!(told, ["a commit of n1.7 took effect at 1, and again at 3"]);
    }
}
