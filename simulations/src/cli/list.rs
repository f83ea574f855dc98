//! `memcube-sim list`

use anyhow::Result;
use memcube_simulations::{plan::FaultClass, planted, sometimes, workloads};

use super::output::{line, table};

pub(crate) fn run() -> Result<()> {
    let scenarios = workloads::CATALOGUE.iter();
    let scenarios = scenarios.map(|workload| [workload.name, workload.about].map(str::to_owned));
    table(["scenario", ""], &scenarios.collect::<Vec<_>>())?;
    line("")?;
    let faults = FaultClass::ALL.into_iter().map(|class| [class.as_str().to_owned()]);
    table(["fault that strikes at random"], &faults.collect::<Vec<_>>())?;
    line("")?;
    let points = sometimes::POINTS.iter();
    let points = points.map(|point| [point.name, point.about].map(str::to_owned));
    table(["point that a swarm should reach", ""], &points.collect::<Vec<_>>())?;
    line("")?;
    let bugs = planted::TABLE.iter().map(|planted| {
        let within = format!("seeds 1 to {}", planted.within_seeds);
        [planted::name(planted.defect), planted.scenario.to_owned(), within]
    });
    table(["planted bug", "found by", "within"], &bugs.collect::<Vec<_>>())
}
