//! Options that several commands share, and what makes no sense of them.

use std::{env, error, fmt, path::PathBuf, thread};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use memcube_actors::defects::Defect;
use memcube_simulations::{
    plan::{Plan, StoreKind},
    planted,
    regressions::{parse_seed, read_plan},
    workloads,
};

use super::output::in_one_sentence;

/// The seed that is taken when none is given.
const SEED_VARIABLE: &str = "MEMCUBE_SIM_SEED";

/// Something that the caller asked for makes no sense.
#[derive(Debug)]
pub(crate) struct BadInput(anyhow::Error);

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&in_one_sentence(&self.0))
    }
}

impl error::Error for BadInput {}

/// Blames an error on the input.
pub(crate) fn bad_input(error: anyhow::Error) -> anyhow::Error {
    anyhow::Error::new(BadInput(error))
}

/// Which plan: that of a seed, or one in a file.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlanOptions {
    /// Scenario to run; `memcube-sim list` tells which there are.
    #[arg(
        value_parser = scenario,
        required_unless_present = "plan",
        conflicts_with = "plan"
    )]
    scenario: Option<String>,
    /// Seed of the run [default: `MEMCUBE_SIM_SEED`, or 1].
    #[arg(long, value_name = "N", value_parser = parse_seed, conflicts_with = "plan")]
    seed: Option<u64>,
    /// State store that the nodes share: `in-memory` or `foundationdb` [default: in-memory].
    #[arg(long, value_name = "STORE", value_parser = store, conflicts_with = "plan")]
    store: Option<StoreKind>,
    /// Run the plan in this file, such as `plan` prints and `shrink` writes.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Switch a planted bug on; may be repeated.
    #[arg(long = "defect", value_name = "BUG", value_parser = defect)]
    defects: Vec<Defect>,
}

/// A plan, and the arguments that choose it again.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) plan: Plan,
    pub(crate) arguments: String,
}

impl PlanOptions {
    pub(crate) fn choose(&self) -> Result<Chosen> {
        let (mut plan, mut arguments) = match (&self.plan, &self.scenario) {
            (Some(path), _) => {
                (read_plan(path).map_err(bad_input)?, format!("--plan {}", path.display()))
            }
            (None, Some(scenario)) => {
                let seed = seed_or_default(self.seed)?;
                let store = self.store.unwrap_or_default();
                let plan = workloads::plan(scenario, seed, store).map_err(bad_input)?;
                (plan, format!("{scenario} --seed {seed}{}", store.option()))
            }
            (None, None) => return Err(bad_input(anyhow!("give a scenario or `--plan FILE`"))),
        };
        for defect in &self.defects {
            plan.defects.insert(*defect);
            arguments = format!("{arguments} --defect {}", planted::name(*defect));
        }
        Ok(Chosen { plan, arguments })
    }
}

/// The seed that was given, or that of the environment, or 1.
pub(crate) fn seed_or_default(given: Option<u64>) -> Result<u64> {
    if let Some(seed) = given {
        return Ok(seed);
    }
    let Some(text) = env::var_os(SEED_VARIABLE) else { return Ok(1) };
    let seed = parse_seed(&text.to_string_lossy());
    seed.with_context(|| format!("the variable `{SEED_VARIABLE}`")).map_err(bad_input)
}

/// As many runs at a time as were asked for, or as there are CPUs.
pub(crate) fn jobs_or_default(given: Option<u16>) -> usize {
    let cpus = || thread::available_parallelism().map_or(1, usize::from);
    given.map_or_else(cpus, usize::from)
}

/// Understands the name of a scenario.
pub(crate) fn scenario(text: &str) -> Result<String> {
    let names: Vec<&str> = workloads::CATALOGUE.iter().map(|workload| workload.name).collect();
    if !names.contains(&text) {
        bail!("there is no scenario `{text}`, but {}", names.join(", "));
    }
    Ok(text.to_owned())
}

/// Understands the name of a kind of state store.
pub(crate) fn store(text: &str) -> Result<StoreKind> {
    let store = StoreKind::named(text).with_context(|| {
        let names = StoreKind::ALL.map(StoreKind::as_str);
        format!("there is no state store `{text}`, but {}", names.join(", "))
    })?;
    if !store.is_built() {
        bail!("`memcube-sim` was built without the feature `fdb`; build it with `--features fdb`");
    }
    Ok(store)
}

/// Understands the name of a planted bug.
pub(crate) fn defect(text: &str) -> Result<Defect> {
    planted::named(text).with_context(|| {
        let names = Defect::ALL.map(planted::name);
        format!("there is no planted bug `{text}`, but {}", names.join(", "))
    })
}
