//! Bugs that are planted to be found: what a simulation does not find here, it would not find in
//! earnest either.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use anyhow::Result;
use memcube_actors::defects::Defect;

use crate::{
    plan::StoreKind,
    process::{Flow, Verdict, run_isolated},
    shrink::Failure,
    workloads,
};

/// A bug, and where it must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planted {
    /// The bug.
    pub defect: Defect,
    /// The scenario that finds it.
    pub scenario: &'static str,
    /// Over which state store.
    pub store: StoreKind,
    /// Among the seeds from 1 to this one.
    pub within_seeds: u64,
}

/// All planted bugs.
pub const TABLE: [Planted; Defect::ALL.len()] = [
    planted(Defect::AckBeforeCommit, "crash_storm", 60),
    planted(Defect::NoFenceCheck, "hand_over", 60),
    planted(Defect::RetryWithoutToken, "crash_storm", 60),
    planted(Defect::IndexBeforeCommit, "assistant", 60),
    planted(Defect::LostEvent, "assistant", 60),
    planted(Defect::StaleReadAfterMove, "hand_over", 60),
    planted(Defect::DoubleHydrate, "crash_storm", 60),
    planted(Defect::ForgottenVector, "assistant", 60),
    planted(Defect::DuplicateFrame, "hand_over", 200),
    planted(Defect::TenantMixUp, "tenants", 60),
    planted(Defect::LostWake, "assistant", 60),
    planted(Defect::LeakedPlace, "assistant", 60),
    Planted {
        store: StoreKind::Foundationdb,
        ..planted(Defect::TrustMaybeCommitted, "crash_storm", 200)
    },
    planted(Defect::UncheckedCandidate, "tenant_search", 60),
    planted(Defect::SkippedEvent, "assistant", 60),
    planted(Defect::TrimPastConsumer, "assistant", 60),
    planted(Defect::LostTail, "assistant", 60),
    planted(Defect::SnapshotBeforeBlob, "assistant", 60),
    planted(Defect::ForeignBlock, "chat", 60),
    planted(Defect::DeletedInContext, "chat", 60),
    planted(Defect::ModelBlindKey, "chat", 60),
    planted(Defect::PreloadForOther, "scheduler", 60),
    planted(Defect::LeakedPreload, "scheduler", 60),
    planted(Defect::UnboundedEvents, "scheduler", 60),
];

const fn planted(defect: Defect, scenario: &'static str, within_seeds: u64) -> Planted {
    Planted { defect, scenario, store: StoreKind::InMemory, within_seeds }
}

/// The name of a defect on the command line and in plans.
#[must_use]
pub fn name(defect: Defect) -> String {
    // A variant without fields is written as its name.
    let written = serde_json::to_value(defect).ok();
    written.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The defect of a name.
#[must_use]
pub fn named(text: &str) -> Option<Defect> {
    Defect::ALL.into_iter().find(|defect| name(*defect) == text)
}

/// What became of one planted bug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlantedLine {
    /// The bug, and where it must be found.
    pub planted: Planted,
    /// The first seed that found it, and how.
    pub found: Option<(u64, Failure)>,
    /// The first of the same seeds that fails without the bug as well, and how.
    pub without: Option<(u64, Failure)>,
}

impl PlantedLine {
    /// Whether a checker saw the bug, and nothing where there is none. A run that dies with a bug
    /// is not one that found it.
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(self.found, Some((_, Failure::Checker(_)))) && self.without.is_none()
    }
}

/// What became of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlantedReport {
    /// In the order of the table.
    pub lines: Vec<PlantedLine>,
}

impl PlantedReport {
    /// Whether all bugs were found.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.lines.iter().all(PlantedLine::passed)
    }
}

/// Looks for the planted bugs, one after the other. `progress` hears of each.
///
/// # Errors
/// When a scenario is unknown, or when processes cannot be started.
pub fn check(
    table: &[Planted],
    jobs: usize,
    progress: &mut dyn FnMut(&PlantedLine),
) -> Result<PlantedReport> {
    let mut report = PlantedReport::default();
    // How far a scenario has been run without any bug, and what failed there.
    let mut clean: BTreeMap<(&str, StoreKind), Clean> = BTreeMap::new();
    for planted in table {
        let Planted { defect, scenario, store, within_seeds } = *planted;
        let world = (scenario, store);
        let found = first_failure(world, Some(defect), 1, within_seeds, jobs)?;
        let last = found.as_ref().map_or(within_seeds, |(seed, _)| *seed);
        let clean = clean.entry(world).or_default();
        if clean.failure.is_none() && clean.until < last {
            clean.failure = first_failure(world, None, clean.until + 1, last, jobs)?;
            clean.until = last;
        }
        let without = clean.failure.clone().filter(|(seed, _)| *seed <= last);
        let line = PlantedLine { planted: *planted, found, without };
        progress(&line);
        report.lines.push(line);
    }
    Ok(report)
}

/// A scenario without bugs.
#[derive(Default)]
struct Clean {
    /// The last seed that was run.
    until: u64,
    /// The first one that failed all the same.
    failure: Option<(u64, Failure)>,
}

/// The lowest of the seeds that fails.
fn first_failure(
    (scenario, store): (&str, StoreKind),
    defect: Option<Defect>,
    first: u64,
    last: u64,
    jobs: usize,
) -> Result<Option<(u64, Failure)>> {
    let found: RefCell<BTreeMap<u64, Failure>> = RefCell::default();
    let refused = Cell::new(None);
    let plans = (first..=last).map_while(|seed| {
        // Seeds start in their order, so the lowest one that fails is under way by now.
        if !found.borrow().is_empty() {
            return None;
        }
        let mut plan = workloads::plan(scenario, seed, store)
            .map_err(|error| refused.set(Some(error)))
            .ok()?;
        plan.defects.extend(defect);
        Some((plan, false))
    });
    run_isolated(plans, jobs, &mut |plan, verdict: Verdict| {
        if let Some(failure) = Failure::of(&verdict) {
            found.borrow_mut().insert(plan.seed, failure);
        }
        Flow::Continue
    })?;
    refused.take().map_or(Ok(()), Err)?;
    Ok(found.into_inner().pop_first())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_is_in_the_table_once() {
        let listed: Vec<Defect> = TABLE.iter().map(|planted| planted.defect).collect();
        assert_eq!(listed, Defect::ALL);
        let scenarios: Vec<&str> =
            workloads::CATALOGUE.iter().map(|workload| workload.name).collect();
        assert!(TABLE.iter().all(|planted| scenarios.contains(&planted.scenario)));
    }

    #[test]
    fn names_are_those_of_plans() {
        assert_eq!(name(Defect::AckBeforeCommit), "ack-before-commit");
        assert!(Defect::ALL.into_iter().all(|defect| named(&name(defect)) == Some(defect)));
        assert_eq!(named("bad-luck"), None);
    }
}
