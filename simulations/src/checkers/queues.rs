//! Queues are bounded, and empty when everything is over.
//!
//! It cannot see what happened between two samples, nor queues that nobody samples.

use super::{case::Case, findings::Findings};
use crate::evidence::Violation;

pub(super) const NAME: &str = "queues";

/// Looks at every sample of every queue.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    for sample in &case.evidence.queues {
        let (queue, node, at_ms) = (&sample.queue, &sample.node, sample.at_ms);
        let (depth, bound) = (sample.depth, sample.bound);
        findings.expect(depth <= bound, || {
            format!("`{queue}` of {node} held {depth} at {at_ms} ms, its bound is {bound}")
        });
        findings.expect(depth == 0 || !sample.at_rest, || {
            format!("`{queue}` of {node} still held {depth} at {at_ms} ms, when all was over")
        });
    }
    findings.into_violations()
}

#[cfg(test)]
mod tests {
    use memcube_schemas::NodeId;

    use super::*;
    use crate::{
        checkers::builder::said,
        evidence::{Evidence, QueueSample},
    };

    fn check_one(depth: usize, at_rest: bool) -> Vec<String> {
        let node = NodeId::new("n1").expect("valid");
        let queue = "cube".to_owned();
        let sample = QueueSample { node, queue, depth, bound: 8, at_ms: 30, at_rest };
        let evidence = Evidence { queues: vec![sample], ..Evidence::default() };
        said(&check(&Case::read(&evidence)))
    }

    #[test]
    fn a_queue_stays_in_its_bound_and_runs_empty() {
        let none: [&str; 0] = [];
        assert_eq!(check_one(8, false), none);
        assert_eq!(check_one(0, true), none);
        assert_eq!(check_one(9, false), ["`cube` of n1 held 9 at 30 ms, its bound is 8"]);
        assert_eq!(check_one(1, true), ["`cube` of n1 still held 1 at 30 ms, when all was over"]);
    }
}
