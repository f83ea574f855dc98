//! Cuts a failing plan down to what it takes to fail, by trying what can be left out.
//!
//! Only a plan that fails in the same way counts: at the same checker. Draws hang on the numbers of
//! steps and not on their order, so what stays in a plan behaves as it did before.

use std::{collections::BTreeSet, fmt, ops::Range};

use anyhow::Result;

use crate::{
    plan::{Action, Fault, FaultClass, Plan},
    process::{Verdict, run_all},
};

/// Fewer nodes make no cluster.
const NODES_MIN: u32 = 3;

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShrinkSettings {
    /// Runs after which the plan is good enough.
    pub runs_max: usize,
    /// Plans that are tried at the same time.
    pub jobs: usize,
}

impl Default for ShrinkSettings {
    fn default() -> Self {
        Self { runs_max: 400, jobs: 1 }
    }
}

/// In which way a run failed. Two runs that fail in the same way have one cause, it is hoped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// This checker complained first.
    Checker(String),
    /// The process died.
    Died,
}

impl Failure {
    /// The way a run failed, if it did.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Finished(report) => {
                report.violations.first().map(|first| Self::Checker(first.checker.clone()))
            }
            Verdict::Died { .. } => Some(Self::Died),
        }
    }

    /// Whether a run failed in this way, whatever else is wrong with it.
    #[must_use]
    pub fn is_in(&self, verdict: &Verdict) -> bool {
        match (self, verdict) {
            (Self::Checker(wanted), Verdict::Finished(report)) => {
                report.violations.iter().any(|violation| violation.checker == *wanted)
            }
            (Self::Died, Verdict::Died { .. }) => true,
            (Self::Checker(_), Verdict::Died { .. }) | (Self::Died, Verdict::Finished(_)) => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checker(checker) => f.write_str(checker),
            Self::Died => f.write_str("died"),
        }
    }
}

/// How big a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Nodes.
    pub nodes: u32,
    /// Seconds of work.
    pub seconds: u32,
    /// Classes of faults that strike at random.
    pub faults: usize,
    /// Faults that strike at a time.
    pub events: usize,
    /// Callers.
    pub scripts: usize,
    /// Steps of all callers.
    pub steps: usize,
}

impl Size {
    /// The size of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            nodes: plan.nodes,
            seconds: plan.seconds,
            faults: plan.faults.len(),
            events: plan.events.len(),
            scripts: plan.scripts.len(),
            steps: steps(plan),
        }
    }
}

/// A plan that was cut down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shrunk {
    /// The smallest plan that was found to fail.
    pub plan: Plan,
    /// In which way all the plans fail.
    pub failure: Failure,
    /// What became of the smallest plan.
    pub verdict: Verdict,
    /// The plan as it was given.
    pub before: Size,
    /// The plan as it is now.
    pub after: Size,
    /// Runs that it took.
    pub runs: usize,
    /// Whether nothing more can be left out, as far as was tried. Otherwise the runs were used up.
    pub finished: bool,
}

/// Tries plans, and returns what became of them, in their order.
pub type Try<'a> = dyn FnMut(Vec<Plan>) -> Result<Vec<Verdict>> + 'a;

/// Shrinks a plan, every try in a process of its own. `None` if the plan does not fail at all.
///
/// # Errors
/// When processes cannot be started.
pub fn shrink(
    plan: Plan,
    settings: ShrinkSettings,
    progress: &mut dyn FnMut(&Plan, usize),
) -> Result<Option<Shrunk>> {
    shrink_by(plan, settings, &mut |plans| run_all(plans, settings.jobs), progress)
}

/// Shrinks a plan by any way to try one. `progress` hears of every plan that still fails, and of
/// the number of runs so far.
///
/// # Errors
/// What `try_out` returns.
pub fn shrink_by(
    plan: Plan,
    settings: ShrinkSettings,
    try_out: &mut Try<'_>,
    progress: &mut dyn FnMut(&Plan, usize),
) -> Result<Option<Shrunk>> {
    let Some(verdict) = try_out(vec![plan.clone()])?.pop() else { return Ok(None) };
    let Some(failure) = Failure::of(&verdict) else { return Ok(None) };
    let before = Size::of(&plan);
    let mut shrinker =
        Shrinker { best: plan, verdict, failure, runs: 1, settings, try_out, progress };
    let mut finished = false;
    while !finished && shrinker.may_run() {
        let at_start = shrinker.best.clone();
        shrinker.round()?;
        finished = shrinker.best == at_start && shrinker.may_run();
    }
    let Shrinker { best, verdict, failure, runs, .. } = shrinker;
    let after = Size::of(&best);
    Ok(Some(Shrunk { plan: best, failure, verdict, before, after, runs, finished }))
}

struct Shrinker<'a, 'b> {
    best: Plan,
    verdict: Verdict,
    failure: Failure,
    runs: usize,
    settings: ShrinkSettings,
    try_out: &'a mut Try<'b>,
    progress: &'a mut dyn FnMut(&Plan, usize),
}

impl Shrinker<'_, '_> {
    /// Leaves out what can be left out, the most telling things first.
    fn round(&mut self) -> Result<()> {
        self.minimise(|plan| plan.faults.len(), without_faults)?;
        self.minimise(|plan| plan.events.len(), without_events)?;
        self.minimise(steps, without_steps)?;
        for smaller in [fewer_nodes, shorter, hastier, milder] {
            while self.take_first(smaller(&self.best))? {}
        }
        Ok(())
    }

    /// Delta debugging (Zeller, Hildebrandt 2002): leaves out everything, then halves, quarters,
    /// and so on down to single things.
    fn minimise(
        &mut self,
        count: fn(&Plan) -> usize,
        without: fn(&Plan, Range<usize>) -> Plan,
    ) -> Result<()> {
        let mut chunk = count(&self.best);
        while chunk > 0 && self.may_run() {
            let mut start = 0;
            while start < count(&self.best) && self.may_run() {
                let end = count(&self.best);
                let starts = (start..end).step_by(chunk).take(self.settings.jobs.max(1));
                let ranges: Vec<_> = starts.map(|from| from..(from + chunk).min(end)).collect();
                let plans = ranges.iter().map(|range| without(&self.best, range.clone())).collect();
                match self.first_failing(plans)? {
                    // What came after the range is now where the range was.
                    Some(at) => start = ranges[at].start,
                    None => start = ranges.last().map_or(end, |last| last.end),
                }
            }
            chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
        }
        Ok(())
    }

    /// Goes on with the first of the candidates that fails, if any does.
    fn take_first(&mut self, mut candidates: Vec<Plan>) -> Result<bool> {
        while !candidates.is_empty() && self.may_run() {
            let rest = candidates.split_off(self.settings.jobs.clamp(1, candidates.len()));
            if self.first_failing(candidates)?.is_some() {
                return Ok(true);
            }
            candidates = rest;
        }
        Ok(false)
    }

    /// Tries plans side by side. Which one is taken does not depend on how many there are.
    fn first_failing(&mut self, plans: Vec<Plan>) -> Result<Option<usize>> {
        self.runs += plans.len();
        let verdicts = (self.try_out)(plans.clone())?;
        let tried = plans.into_iter().zip(verdicts).enumerate();
        for (at, (plan, verdict)) in tried {
            if self.failure.is_in(&verdict) {
                (self.progress)(&plan, self.runs);
                (self.best, self.verdict) = (plan, verdict);
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn may_run(&self) -> bool {
        self.runs < self.settings.runs_max
    }
}

fn steps(plan: &Plan) -> usize {
    plan.scripts.iter().map(|script| script.steps.len()).sum()
}

fn without_faults(plan: &Plan, range: Range<usize>) -> Plan {
    let removed: BTreeSet<FaultClass> =
        plan.faults.keys().skip(range.start).take(range.len()).copied().collect();
    let mut plan = plan.clone();
    plan.faults.retain(|class, _| !removed.contains(class));
    plan
}

fn without_events(plan: &Plan, range: Range<usize>) -> Plan {
    let mut plan = plan.clone();
    plan.events.drain(range);
    plan
}

/// Steps are counted through all scripts. Callers that have nothing left to do are dropped.
fn without_steps(plan: &Plan, range: Range<usize>) -> Plan {
    let mut plan = plan.clone();
    let mut at = 0;
    for script in &mut plan.scripts {
        script.steps.retain(|_| {
            at += 1;
            !range.contains(&(at - 1))
        });
    }
    plan.scripts.retain(|script| !script.steps.is_empty());
    plan
}

/// The smallest cluster, or one node less. What points at a node that is gone goes with it.
fn fewer_nodes(plan: &Plan) -> Vec<Plan> {
    let counts: BTreeSet<u32> =
        [NODES_MIN, plan.nodes.saturating_sub(1)].into_iter().filter(|n| *n >= NODES_MIN).collect();
    let smaller = counts.into_iter().filter(|nodes| *nodes < plan.nodes).map(|nodes| {
        let mut plan = Plan { nodes, ..plan.clone() };
        plan.events.retain(|event| highest_node(&event.fault) < nodes);
        for script in &mut plan.scripts {
            script
                .steps
                .retain(|step| !matches!(step.action, Action::HandOver { to } if to >= nodes));
        }
        plan.scripts.retain(|script| !script.steps.is_empty());
        plan
    });
    smaller.collect()
}

fn highest_node(fault: &Fault) -> u32 {
    match *fault {
        Fault::Crash { node }
        | Fault::Restart { node }
        | Fault::Pause { node }
        | Fault::Isolate { node }
        | Fault::CutStore { node }
        | Fault::StaleHandle { node }
        | Fault::ClockJump { node, .. }
        | Fault::CutClients { node } => node,
        Fault::CutLink { from, to, .. } => from.max(to),
        Fault::StoreRecovery | Fault::StoreFull => 0,
    }
}

/// Half as long.
fn shorter(plan: &Plan) -> Vec<Plan> {
    let seconds = plan.seconds / 2;
    if seconds == 0 { Vec::new() } else { vec![Plan { seconds, ..plan.clone() }] }
}

/// Callers that do not think, or think half as long; all of them, or one.
fn hastier(plan: &Plan) -> Vec<Plan> {
    let divided = |scripts: Range<usize>, by: u64| {
        let mut plan = plan.clone();
        for step in plan.scripts[scripts].iter_mut().flat_map(|script| &mut script.steps) {
            step.think_ms = step.think_ms.checked_div(by).unwrap_or(0);
        }
        plan
    };
    let all = 0..plan.scripts.len();
    let single = all.clone().map(|at| at..at + 1);
    let ranges = std::iter::once(all).chain(single);
    // Nothing at all is by zero.
    let plans = ranges.flat_map(|range| [divided(range.clone(), 0), divided(range, 2)]);
    plans.filter(|candidate| candidate != plan).collect()
}

/// Each fault half as often.
fn milder(plan: &Plan) -> Vec<Plan> {
    let halved = plan.faults.iter().filter(|(_, per_mille)| **per_mille > 1);
    let plans = halved.map(|(class, per_mille)| {
        let mut plan = plan.clone();
        plan.faults.insert(*class, per_mille / 2);
        plan
    });
    plans.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evidence::Violation,
        plan::{Script, Step, StoreKind, TimedFault},
        report::Report,
    };

    /// Five nodes, six events, three callers with twenty steps each, and all faults.
    fn big() -> Plan {
        let step = |id| Step {
            id,
            think_ms: 400 + id,
            action: if id % 10 == 9 {
                Action::HandOver { to: u32::try_from(id / 10 % 5).unwrap() }
            } else {
                Action::Search { pick: id }
            },
        };
        let script = |number: u64| Script {
            tenant: "t".to_owned(),
            cube: format!("c{number}"),
            voice: None,
            steps: (0..20).map(|id| step(number * 100 + id)).collect(),
        };
        let event = |node| TimedFault { at_ms: 1_000, for_ms: 500, fault: Fault::Crash { node } };
        Plan {
            scenario: "toy".to_owned(),
            vectors: false,
            models: false,
            scheduler: None,
            seed: 1,
            nodes: 5,
            seconds: 30,
            store: StoreKind::InMemory,
            defects: [].into(),
            faults: FaultClass::ALL.into_iter().map(|class| (class, 40)).collect(),
            events: [0, 1, 2, 3, 4, 0].map(event).into(),
            scripts: (0..3).map(script).collect(),
        }
    }

    fn failed(checker: &str) -> Verdict {
        let violations = vec![Violation::new(checker, "")];
        Verdict::Finished(Report { violations, ..Report::default() })
    }

    fn passed() -> Verdict {
        Verdict::Finished(Report::default())
    }

    fn has_step(plan: &Plan, id: u64) -> bool {
        plan.scripts.iter().flat_map(|script| &script.steps).any(|step| step.id == id)
    }

    fn shrunk(settings: ShrinkSettings, judge: &dyn Fn(&Plan) -> Verdict) -> Option<Shrunk> {
        let mut try_out = |plans: Vec<Plan>| Ok(plans.iter().map(judge).collect::<Vec<Verdict>>());
        shrink_by(big(), settings, &mut try_out, &mut |_, _| ()).unwrap()
    }

    /// Fails if two steps of different callers, a crash and a frequent fault come together.
    fn picky(plan: &Plan) -> Verdict {
        let crash = |event: &TimedFault| event.fault == Fault::Crash { node: 2 };
        let fails = has_step(plan, 7)
            && has_step(plan, 213)
            && plan.events.iter().any(crash)
            && plan.faults.get(&FaultClass::StoreSlow).is_some_and(|often| *often >= 7);
        if fails { failed("durability") } else { passed() }
    }

    #[test]
    fn what_is_not_needed_goes() {
        let shrunk = shrunk(ShrinkSettings::default(), &picky).unwrap();
        let mut expected = big();
        expected.nodes = 3;
        expected.seconds = 1;
        expected.faults = [(FaultClass::StoreSlow, 10)].into();
        expected.events.retain(|event| event.fault == Fault::Crash { node: 2 });
        for script in &mut expected.scripts {
            script.steps.retain(|step| [7, 213].contains(&step.id));
            script.steps.iter_mut().for_each(|step| step.think_ms = 0);
        }
        expected.scripts.retain(|script| !script.steps.is_empty());
        assert_eq!(shrunk.plan, expected);
        assert!(shrunk.finished && shrunk.runs < 120, "{}", shrunk.runs);
        assert_eq!((shrunk.before.steps, shrunk.after.steps), (60, 2));
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_jobs() {
        let one = shrunk(ShrinkSettings::default(), &picky).unwrap();
        for jobs in [2, 3, 16] {
            let settings = ShrinkSettings { jobs, ..ShrinkSettings::default() };
            assert_eq!(shrunk(settings, &picky).unwrap().plan, one.plan, "{jobs} jobs");
        }
    }

    #[test]
    fn another_failure_does_not_count() {
        let judge = |plan: &Plan| {
            if has_step(plan, 7) && has_step(plan, 8) {
                failed("durability")
            } else if plan.events.is_empty() {
                Verdict::Died { how: String::new() }
            } else {
                failed("liveness")
            }
        };
        let shrunk = shrunk(ShrinkSettings::default(), &judge).unwrap();
        assert_eq!(shrunk.failure, Failure::Checker("durability".to_owned()));
        assert_eq!((shrunk.after.steps, shrunk.after.events), (2, 0));
    }

    #[test]
    fn a_death_is_a_failure() {
        let shrunk = shrunk(ShrinkSettings::default(), &|_: &Plan| Verdict::Died {
            how: "it was ended by SIGABRT".to_owned(),
        })
        .unwrap();
        assert_eq!((shrunk.after.steps, shrunk.after.scripts, shrunk.after.faults), (0, 0, 0));
    }

    #[test]
    fn a_plan_that_passes_is_not_shrunk() {
        assert_eq!(shrunk(ShrinkSettings::default(), &|_: &Plan| passed()), None);
    }

    #[test]
    fn runs_are_bounded() {
        let settings = ShrinkSettings { runs_max: 10, jobs: 2 };
        let shrunk = shrunk(settings, &picky).unwrap();
        assert!(!shrunk.finished && (10..=11).contains(&shrunk.runs), "{}", shrunk.runs);
    }
}
