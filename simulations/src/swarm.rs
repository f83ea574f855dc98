//! Many seeds of many scenarios, and what they have seen together.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    dice::Dice,
    plan::{FaultClass, Plan, StoreKind},
    process::{Flow, Verdict, run_isolated},
    shrink::Failure,
    sometimes, workloads,
};

/// The share of seeds that are run twice: 5 %, as FoundationDB does.
pub const RECHECK_PER_MILLE: u32 = 50;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmSettings {
    /// Names in the catalogue; every seed is run in each of them.
    pub scenarios: Vec<String>,
    /// Which state store the nodes share.
    pub store: StoreKind,
    /// The seeds count up from here.
    pub first_seed: u64,
    /// When to stop.
    pub until: Until,
    /// Runs at the same time.
    pub jobs: usize,
    /// How many seeds in a thousand are run a second time, to see whether the trace is the same.
    pub recheck_per_mille: u32,
}

/// When a swarm stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After so many seconds; runs that are under way come to their end.
    Seconds(u64),
    /// After so many seeds of every scenario.
    Seeds(u64),
}

/// What a swarm has seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwarmReport {
    /// Which state store the nodes shared.
    pub store: StoreKind,
    /// Runs by scenario; those that were only to compare are not counted, here and below.
    pub seeds: BTreeMap<String, u64>,
    /// Simulated milliseconds of all runs.
    pub simulated_ms: u64,
    /// Time on the clock.
    pub wall: Duration,
    /// CPU time of all runs, also of those that were only to compare; unknown without `fork`.
    pub cpu: Option<Duration>,
    /// Calls of callers.
    pub operations: u64,
    /// Calls that were answered with success.
    pub acknowledged: u64,
    /// How often each fault struck.
    pub faults: BTreeMap<String, u64>,
    /// In how many runs each *sometimes* point was reached.
    pub reached: BTreeMap<String, u64>,
    /// Runs that failed.
    pub failures: Vec<SwarmFailure>,
    /// Runs that were done twice and compared.
    pub rechecked: u64,
    /// Those of them that did not end alike.
    pub mismatches: Vec<Mismatch>,
    /// Hashes of all traces.
    pub hashes: BTreeSet<u64>,
}

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmFailure {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// In which way.
    pub failure: Failure,
    /// What the first complaint says.
    pub what: String,
}

/// Two runs of one plan that did not end alike: something depends on more than the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// How the runs ended: with a trace of this hash, or by dying.
    pub endings: [String; 2],
}

/// Runs a swarm. `progress` hears of every run that ends.
///
/// # Errors
/// When a scenario is unknown, or when processes cannot be started.
pub fn run(
    settings: &SwarmSettings,
    progress: &mut dyn FnMut(&SwarmReport),
) -> Result<SwarmReport> {
    // A scenario that does not exist is told before anything runs.
    for scenario in &settings.scenarios {
        workloads::plan(scenario, settings.first_seed, settings.store)?;
    }
    let clock = Clock::start();
    let mut tally = Tally::new(settings);
    let mut queue = Queue { settings, clock: &clock, next: 0, again: None };
    let refused = Cell::new(None);
    let plans = std::iter::from_fn(|| {
        let plan = queue.next()?.map_err(|error| refused.set(Some(error))).ok()?;
        Some((plan, false))
    });
    run_isolated(plans, settings.jobs, &mut |plan, verdict| {
        tally.absorb(&plan, verdict);
        (tally.report.wall, tally.report.cpu) = (clock.wall(), clock.cpu());
        progress(&tally.report);
        Flow::Continue
    })?;
    refused.take().map_or(Ok(()), Err)?;
    tally.report.failures.sort_by(|a, b| (&a.scenario, a.seed).cmp(&(&b.scenario, b.seed)));
    Ok(tally.report)
}

fn is_rechecked(settings: &SwarmSettings, seed: u64) -> bool {
    Dice::new(seed).chance("recheck", 0, settings.recheck_per_mille)
}

/// The plans to run: seed after seed, each in every scenario, some of them twice.
struct Queue<'a> {
    settings: &'a SwarmSettings,
    clock: &'a Clock,
    next: u64,
    again: Option<Plan>,
}

impl Queue<'_> {
    fn next(&mut self) -> Option<Result<Plan>> {
        if let Some(plan) = self.again.take() {
            return Some(Ok(plan));
        }
        let scenarios = self.settings.scenarios.len() as u64;
        let round = self.next.checked_div(scenarios)?;
        let over = match self.settings.until {
            Until::Seconds(seconds) => self.clock.wall() >= Duration::from_secs(seconds),
            Until::Seeds(seeds) => round >= seeds,
        };
        if over {
            return None;
        }
        let at = usize::try_from(self.next % scenarios).unwrap_or_default();
        let seed = self.settings.first_seed.wrapping_add(round);
        self.next += 1;
        let plan = workloads::plan(&self.settings.scenarios[at], seed, self.settings.store);
        if is_rechecked(self.settings, seed) {
            self.again = plan.as_ref().ok().cloned();
        }
        Some(plan)
    }
}

/// The report while it grows.
struct Tally<'a> {
    settings: &'a SwarmSettings,
    report: SwarmReport,
    /// How runs ended whose second run is still to come.
    waiting: BTreeMap<(String, u64), String>,
}

impl<'a> Tally<'a> {
    fn new(settings: &'a SwarmSettings) -> Self {
        let report = SwarmReport { store: settings.store, ..SwarmReport::default() };
        Self { settings, report, waiting: BTreeMap::new() }
    }

    fn absorb(&mut self, plan: &Plan, verdict: Verdict) {
        if is_rechecked(self.settings, plan.seed) {
            let ending = match &verdict {
                Verdict::Finished(report) => format!("{:016x}", report.trace_hash),
                Verdict::Died { .. } => "died".to_owned(),
            };
            let key = (plan.scenario.clone(), plan.seed);
            if let Some(first) = self.waiting.remove(&key) {
                self.compare(key, [first, ending]);
                return;
            }
            self.waiting.insert(key, ending);
        }
        self.count(plan, verdict);
    }

    fn compare(&mut self, (scenario, seed): (String, u64), endings: [String; 2]) {
        self.report.rechecked += 1;
        if endings[0] != endings[1] {
            self.report.mismatches.push(Mismatch { scenario, seed, endings });
        }
    }

    fn count(&mut self, plan: &Plan, verdict: Verdict) {
        let total = &mut self.report;
        *total.seeds.entry(plan.scenario.clone()).or_default() += 1;
        let failure = Failure::of(&verdict);
        let what = match verdict {
            Verdict::Died { how } => how,
            Verdict::Finished(report) => {
                total.simulated_ms += report.simulated_ms;
                total.operations += report.operations;
                total.acknowledged += report.acknowledged;
                total.hashes.insert(report.trace_hash);
                for (fault, times) in report.faults {
                    *total.faults.entry(fault).or_default() += times;
                }
                for point in report.reached {
                    *total.reached.entry(point).or_default() += 1;
                }
                report.violations.into_iter().next().map_or_else(String::new, |first| first.what)
            }
        };
        if let Some(failure) = failure {
            let (scenario, seed) = (plan.scenario.clone(), plan.seed);
            total.failures.push(SwarmFailure { scenario, seed, failure, what });
        }
    }
}

/// The real time, which only the report of a swarm looks at.
struct Clock {
    started: Instant,
    cpu_before: Option<Duration>,
}

impl Clock {
    fn start() -> Self {
        #[expect(clippy::disallowed_methods, reason = "for the speed in the report")]
        Self { started: Instant::now(), cpu_before: children_cpu() }
    }

    fn wall(&self) -> Duration {
        #[expect(clippy::disallowed_methods, reason = "for the speed in the report")]
        self.started.elapsed()
    }

    fn cpu(&self) -> Option<Duration> {
        Some(children_cpu()?.saturating_sub(self.cpu_before?))
    }
}

/// CPU time of all processes that this one has started and waited for.
#[cfg(unix)]
fn children_cpu() -> Option<Duration> {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeVal,
    };
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
    let duration = |time: TimeVal| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or_default());
        seconds + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or_default())
    };
    Some(duration(usage.user_time()) + duration(usage.system_time()))
}

#[cfg(not(unix))]
fn children_cpu() -> Option<Duration> {
    None
}

impl SwarmReport {
    /// Runs, those that were only to compare not counted.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.seeds.values().sum()
    }

    /// The *sometimes* points that no run reached: what the swarm has not tested.
    #[must_use]
    pub fn never_reached(&self) -> Vec<&'static str> {
        let names = sometimes::POINTS.iter().map(|point| point.name);
        names.filter(|name| !self.reached.contains_key(*name)).collect()
    }

    /// The report in fixed columns.
    #[must_use]
    pub fn text(&self) -> String {
        self.text_with(&Known::all(self.store))
    }

    /// The report as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        self.markdown_with(&Known::all(self.store))
    }

    fn text_with(&self, known: &Known) -> String {
        let texts: Vec<String> = self.sections(known).iter().map(Section::text).collect();
        texts.join("\n")
    }

    fn markdown_with(&self, known: &Known) -> String {
        let texts: Vec<String> = self.sections(known).iter().map(Section::markdown).collect();
        format!("# Swarm\n\n{}", texts.join("\n"))
    }

    fn sections(&self, known: &Known) -> Vec<Section> {
        let mut sections = vec![
            Section::new("totals", &["what", "how much"], self.totals()),
            Section::new("scenarios", &["scenario", "runs", "failed"], self.by_scenario()),
            Section::new("faults", &["fault", "struck"], self.by_fault(known)),
            Section::new("sometimes points", &["point", "runs"], self.by_point(known)),
        ];
        if !self.mismatches.is_empty() {
            let rows = self.mismatches.iter().map(|mismatch| {
                let [first, second] = mismatch.endings.clone();
                vec![mismatch.scenario.clone(), mismatch.seed.to_string(), first, second]
            });
            let head = ["scenario", "seed", "first run", "second run"];
            sections.push(Section::new("runs that differ", &head, rows.collect()));
        }
        if !self.failures.is_empty() {
            let rows =
                self.failures.iter().map(|SwarmFailure { scenario, seed, failure, what }| {
                    let store = self.store.option();
                    let replay = format!("memcube-sim run {scenario} --seed {seed}{store}");
                    vec![replay, failure.to_string(), one_line(what)]
                });
            let head = ["replay", "failure", "what"];
            sections.push(Section::new("failures", &head, rows.collect()));
        }
        sections
    }

    fn totals(&self) -> Vec<Vec<String>> {
        let simulated = self.simulated_ms as f64 / 1_000.0;
        let acknowledged = percent(self.acknowledged, self.operations);
        let mut rows = vec![
            ["runs", &self.runs().to_string()].map(str::to_owned),
            ["failed", &self.failures.len().to_string()].map(str::to_owned),
            ["simulated", &format!("{:.2} hours", simulated / 3_600.0)].map(str::to_owned),
            ["wall", &format!("{:.1} s", self.wall.as_secs_f64())].map(str::to_owned),
        ];
        if let Some(cpu) = self.cpu.map(|cpu| cpu.as_secs_f64()).filter(|cpu| *cpu > 0.0) {
            let told = format!(
                "{cpu:.1} s: {:.0} simulated s and {:.1} runs per CPU s",
                simulated / cpu,
                (self.runs() + self.rechecked) as f64 / cpu
            );
            rows.push(["CPU".to_owned(), told]);
        }
        let operations = format!("{}, {acknowledged} acknowledged", self.operations);
        rows.push(["operations".to_owned(), operations]);
        rows.push(["traces".to_owned(), format!("{} different", self.hashes.len())]);
        let differ = self.mismatches.len();
        rows.push(["run twice".to_owned(), format!("{}, {differ} differ", self.rechecked)]);
        rows.into_iter().map(Vec::from).collect()
    }

    fn by_scenario(&self) -> Vec<Vec<String>> {
        let rows = self.seeds.iter().map(|(scenario, seeds)| {
            let failed = self.failures.iter().filter(|failure| failure.scenario == *scenario);
            vec![scenario.clone(), seeds.to_string(), failed.count().to_string()]
        });
        rows.collect()
    }

    /// Faults in the catalogue are there also if they never struck.
    fn by_fault(&self, known: &Known) -> Vec<Vec<String>> {
        let mut faults: BTreeMap<&str, u64> =
            known.faults.iter().map(|fault| (*fault, 0)).collect();
        faults.extend(self.faults.iter().map(|(fault, times)| (fault.as_str(), *times)));
        faults.into_iter().map(|(fault, times)| vec![fault.to_owned(), times.to_string()]).collect()
    }

    fn by_point(&self, known: &Known) -> Vec<Vec<String>> {
        let mut points: BTreeMap<&str, u64> =
            known.points.iter().map(|point| (*point, 0)).collect();
        points.extend(self.reached.iter().map(|(point, runs)| (point.as_str(), *runs)));
        let rows = points.into_iter().map(|(point, runs)| {
            let runs = if runs == 0 { "never reached".to_owned() } else { runs.to_string() };
            vec![point.to_owned(), runs]
        });
        rows.collect()
    }
}

/// What a swarm could have seen, and is named in the report also if it was not.
struct Known {
    faults: Vec<&'static str>,
    points: Vec<&'static str>,
}

impl Known {
    fn all(store: StoreKind) -> Self {
        let faults = FaultClass::ALL.into_iter().filter(|class| class.strikes_on(store));
        Self {
            faults: faults.map(FaultClass::as_str).collect(),
            points: sometimes::POINTS.iter().map(|point| point.name).collect(),
        }
    }
}

/// A part of the report.
struct Section {
    title: &'static str,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Section {
    fn new(title: &'static str, head: &[&'static str], rows: Vec<Vec<String>>) -> Self {
        Self { title, head: head.to_vec(), rows }
    }

    /// What two columns mean is plain; more have a head.
    fn text(&self) -> String {
        let head = self.head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<String>>();
        let rows = (head.len() > 2).then_some(&head).into_iter().chain(&self.rows);
        let mut widths: Vec<usize> = self.head.iter().map(|_| 0).collect();
        for row in rows.clone() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = format!("{}\n", self.title);
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<String>>().join("  ");
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {}", line.trim_end());
        }
        text
    }

    fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("## {}\n\n", capitalised(self.title));
        text += &line(self.head.iter().map(|cell| (*cell).to_owned()).collect());
        text += &line(self.head.iter().map(|_| "---".to_owned()).collect());
        for row in &self.rows {
            text += &line(row.iter().map(|cell| cell.replace('|', "\\|")).collect());
        }
        text
    }
}

fn capitalised(title: &str) -> String {
    let mut characters = title.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<&str>>().join(" ")
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::{evidence::Violation, report::Report};

    fn settings(recheck_per_mille: u32) -> SwarmSettings {
        SwarmSettings {
            scenarios: vec!["assistant".to_owned(), "tenants".to_owned()],
            store: StoreKind::InMemory,
            first_seed: 5,
            until: Until::Seeds(3),
            jobs: 1,
            recheck_per_mille,
        }
    }

    fn plan(scenario: &str, seed: u64) -> Plan {
        Plan { seconds: 1, ..Plan::quiet(scenario, seed) }
    }

    fn finished(trace_hash: u64, violations: Vec<Violation>) -> Verdict {
        Verdict::Finished(Report {
            trace_hash,
            simulated_ms: 1_800_000,
            operations: 40,
            acknowledged: 39,
            faults: [("store-slow".to_owned(), 4), ("crash".to_owned(), 1)].into(),
            reached: ["moved".to_owned()].into(),
            violations,
            ..Report::default()
        })
    }

    /// Four runs, two of which fail and one of which does not repeat.
    fn swarm() -> SwarmReport {
        let settings = settings(1_000);
        let mut tally = Tally::new(&settings);
        let lost = || vec![Violation::new("durability", "item 3 | is\n  gone")];
        let died = || Verdict::Died { how: "it was ended by SIGABRT".to_owned() };
        for (scenario, seed, verdicts) in [
            ("assistant", 5, [finished(1, vec![]), finished(1, vec![])]),
            ("tenants", 5, [finished(2, lost()), finished(2, lost())]),
            ("assistant", 6, [finished(3, vec![]), finished(9, vec![])]),
            ("tenants", 6, [died(), died()]),
        ] {
            for verdict in verdicts {
                tally.absorb(&plan(scenario, seed), verdict);
            }
        }
        let mut report = tally.report;
        (report.wall, report.cpu) = (Duration::from_millis(2_500), Some(Duration::from_secs(4)));
        report
    }

    fn check(rendered: &str, expected: &Expect) {
        expected.assert_eq(rendered);
    }

    fn known() -> Known {
        Known { faults: vec!["jitter", "store-slow"], points: vec!["fenced", "moved"] }
    }

    #[test]
    fn a_text_for_the_eye() {
        check(
            &swarm().text_with(&known()),
            &expect![[r#"
                totals
                  runs        4
                  failed      2
                  simulated   1.50 hours
                  wall        2.5 s
                  CPU         4.0 s: 1350 simulated s and 2.0 runs per CPU s
                  operations  120, 97.5 % acknowledged
                  traces      3 different
                  run twice   4, 1 differ

                scenarios
                  scenario   runs  failed
                  assistant  2     0
                  tenants    2     2

                faults
                  crash       3
                  jitter      0
                  store-slow  12

                sometimes points
                  fenced  never reached
                  moved   3

                runs that differ
                  scenario   seed  first run         second run
                  assistant  6     0000000000000003  0000000000000009

                failures
                  replay                            failure     what
                  memcube-sim run tenants --seed 5  durability  item 3 | is gone
                  memcube-sim run tenants --seed 6  died        it was ended by SIGABRT
            "#]],
        );
    }

    #[test]
    fn a_text_for_the_repository() {
        check(
            &swarm().markdown_with(&known()),
            &expect![[r#"
            # Swarm

            ## Totals

            | what | how much |
            | --- | --- |
            | runs | 4 |
            | failed | 2 |
            | simulated | 1.50 hours |
            | wall | 2.5 s |
            | CPU | 4.0 s: 1350 simulated s and 2.0 runs per CPU s |
            | operations | 120, 97.5 % acknowledged |
            | traces | 3 different |
            | run twice | 4, 1 differ |

            ## Scenarios

            | scenario | runs | failed |
            | --- | --- | --- |
            | assistant | 2 | 0 |
            | tenants | 2 | 2 |

            ## Faults

            | fault | struck |
            | --- | --- |
            | crash | 3 |
            | jitter | 0 |
            | store-slow | 12 |

            ## Sometimes points

            | point | runs |
            | --- | --- |
            | fenced | never reached |
            | moved | 3 |

            ## Runs that differ

            | scenario | seed | first run | second run |
            | --- | --- | --- | --- |
            | assistant | 6 | 0000000000000003 | 0000000000000009 |

            ## Failures

            | replay | failure | what |
            | --- | --- | --- |
            | memcube-sim run tenants --seed 5 | durability | item 3 \| is gone |
            | memcube-sim run tenants --seed 6 | died | it was ended by SIGABRT |
        "#]],
        );
    }

    #[test]
    fn an_empty_swarm_divides_by_nothing() {
        let totals = SwarmReport::default().totals();
        assert_eq!(totals[0][1], "0");
        assert!(totals.iter().flatten().all(|cell| !cell.contains("NaN")), "{totals:?}");
    }

    #[test]
    fn every_seed_runs_in_every_scenario() {
        let names: Vec<String> =
            workloads::CATALOGUE.iter().take(2).map(|workload| workload.name.to_owned()).collect();
        for (recheck_per_mille, times) in [(0, 1), (1_000, 2)] {
            let settings =
                SwarmSettings { scenarios: names.clone(), ..settings(recheck_per_mille) };
            let clock = Clock::start();
            let mut queue = Queue { settings: &settings, clock: &clock, next: 0, again: None };
            let plans = std::iter::from_fn(|| queue.next()).map(|plan| plan.unwrap());
            let drawn: Vec<_> = plans.map(|plan| (plan.seed, plan.scenario)).collect();
            let seeds = (5..8).flat_map(|seed| names.iter().map(move |name| (seed, name.clone())));
            let expected = seeds.flat_map(|run| vec![run; times]).collect::<Vec<_>>();
            assert_eq!(drawn, expected);
        }
    }
}
