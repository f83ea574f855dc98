//! What a checker writes down.

use crate::evidence::Violation;

/// A broken run breaks the same promise many times; so many are enough to see the pattern.
const VIOLATIONS_MAX: usize = 20;

/// The violations of one checker.
#[derive(Debug)]
pub(super) struct Findings {
    checker: &'static str,
    violations: Vec<Violation>,
}

impl Findings {
    pub(super) const fn of(checker: &'static str) -> Self {
        Self { checker, violations: Vec::new() }
    }

    /// Writes down what is wrong, unless enough was written down before.
    pub(super) fn report(&mut self, what: impl Into<String>) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation::new(self.checker, what));
        }
    }

    /// Writes something down where a promise does not hold.
    pub(super) fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.report(what());
        }
    }

    pub(super) fn into_violations(self) -> Vec<Violation> {
        self.violations
    }
}
