//! What a verdict looks like, and what the program exits with. The codes of failures are those of
//! TigerBeetle's simulator.

use std::path::PathBuf;

use anyhow::{Context, Result};
use memcube_simulations::{
    plan::Plan,
    process::{Flow, Verdict, run_isolated},
    report::Report,
    shrink::Failure,
};

/// All is well.
pub(crate) const PASSED: u8 = 0;
/// What was asked makes no sense.
pub(crate) const BAD_INPUT: u8 = 2;
/// A run died.
pub(crate) const DIED: u8 = 127;
/// Nothing wrong was done, but something was not done at all.
pub(crate) const NOT_LIVE: u8 = 128;
/// Something wrong was done.
pub(crate) const VIOLATED: u8 = 129;

/// The checker whose complaints are milder than all others'.
const LIVENESS: &str = "liveness";

/// Runs one plan in a process of its own, and keeps its whole trace.
pub(crate) fn judge(plan: &Plan) -> Result<Verdict> {
    let mut judged = None;
    run_isolated(std::iter::once((plan.clone(), true)), 1, &mut |_, verdict| {
        judged = Some(verdict);
        Flow::Continue
    })?;
    judged.context("the run ended without a verdict")
}

/// The exit code of a verdict.
pub(crate) fn exit_code(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Died { .. } => DIED,
        Verdict::Finished(report) => {
            let checkers = report.violations.iter().map(|violation| violation.checker.as_str());
            checkers.map(code_of_checker).max().unwrap_or(PASSED)
        }
    }
}

/// The exit code of several runs that failed: a death hides what else is wrong, so it comes first.
pub(crate) fn exit_code_of_all<'a>(failures: impl Iterator<Item = &'a Failure>) -> u8 {
    let codes = failures.map(|failure| match failure {
        Failure::Died => DIED,
        Failure::Checker(checker) => code_of_checker(checker),
    });
    codes.fold(PASSED, |all, code| match (all, code) {
        (DIED, _) | (_, DIED) => DIED,
        (all, code) => all.max(code),
    })
}

fn code_of_checker(checker: &str) -> u8 {
    if checker == LIVENESS { NOT_LIVE } else { VIOLATED }
}

/// What there is to say about a run in one line.
pub(crate) fn summary(plan: &Plan, report: &Report) -> String {
    let verdict = if report.passed() { "passed" } else { "failed" };
    format!(
        "{verdict}  {}  seed {}  {} nodes  {:.1} simulated s  {} operations  {} acknowledged  \
         {} faults  trace {:016x}",
        plan.scenario,
        plan.seed,
        plan.nodes,
        report.simulated_ms as f64 / 1_000.0,
        report.operations,
        report.acknowledged,
        report.faults.values().sum::<u64>(),
        report.trace_hash,
    )
}

/// Where things about a run are kept if nobody says where.
pub(crate) fn default_path(plan: &Plan, extension: &str) -> PathBuf {
    // The scenario of a plan file is anybody's text, and not to lead out of the folder.
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    let scenario: String = plan.scenario.chars().map(plain).collect();
    PathBuf::from(format!("target/sim/{scenario}-{}.{extension}", plan.seed))
}

#[cfg(test)]
mod tests {
    use memcube_simulations::evidence::Violation;

    use super::*;

    #[test]
    fn the_worst_decides() {
        let finished = |checkers: &[&str]| {
            let violations = checkers.iter().map(|checker| Violation::new(checker, "")).collect();
            Verdict::Finished(Report { violations, ..Report::default() })
        };
        assert_eq!(exit_code(&finished(&[])), PASSED);
        assert_eq!(exit_code(&finished(&["liveness", "liveness"])), NOT_LIVE);
        assert_eq!(exit_code(&finished(&["liveness", "durability"])), VIOLATED);
        assert_eq!(exit_code(&Verdict::Died { how: String::new() }), DIED);
    }

    #[test]
    fn a_death_comes_first() {
        let checker = |name: &str| Failure::Checker(name.to_owned());
        let code = |failures: &[Failure]| exit_code_of_all(failures.iter());
        assert_eq!(code(&[]), PASSED);
        assert_eq!(code(&[checker("liveness"), checker("fence"), checker("liveness")]), VIOLATED);
        assert_eq!(code(&[checker("fence"), Failure::Died, checker("liveness")]), DIED);
    }
}
