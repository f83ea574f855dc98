//! Every cube behaves as if its operations came one by one, each between its call and its answer.
//!
//! Two judges, because each is blind where the other sees. The *register* judge knows only what
//! callers were told, and searches an order for the operations on each item; it cannot see wrongs
//! that need two items to show, and gives up on histories that are too tangled. The *witness* judge
//! takes the order from the store's commits, which makes it exact and fast for whole cubes; it
//! cannot see wrongs that the store itself let pass, such as a commit of a former owner.

mod register;
mod witness;

use super::{case::Case, findings::Findings};
use crate::evidence::Violation;

pub(super) const NAME: &str = "linearizability";

/// What is wrong, and how many items could not be judged within the budget.
pub(super) fn check(case: &Case<'_>) -> (Vec<Violation>, usize) {
    let mut findings = Findings::of(NAME);
    let undecided = register::check(case, &mut findings);
    let mut witnessed = Findings::of(NAME);
    witness::check(case, &mut witnessed);
    let mut violations = findings.into_violations();
    violations.extend(witnessed.into_violations());
    (violations, undecided)
}
