//! `memcube-sim planted`

use anyhow::Result;
use clap::{Args, value_parser};
use memcube_actors::defects::Defect;
use memcube_simulations::{
    plan::StoreKind,
    planted::{self, Planted, PlantedLine},
};

use super::{
    options::{defect, jobs_or_default, store},
    output,
    verdict::{PASSED, VIOLATED},
};

#[derive(Debug, Args)]
pub(crate) struct PlantedArgs {
    /// Look for this bug alone; may be repeated [default: all].
    #[arg(long = "defect", value_name = "BUG", value_parser = defect)]
    defects: Vec<Defect>,
    /// Look over this state store alone [default: each bug over its own].
    #[arg(long, value_name = "STORE", value_parser = store)]
    store: Option<StoreKind>,
    /// Runs at the same time [default: one a CPU].
    #[arg(long, value_name = "J", value_parser = value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

pub(crate) fn run(args: &PlantedArgs) -> Result<u8> {
    let wanted = |planted: &&Planted| {
        (args.defects.is_empty() || args.defects.contains(&planted.defect))
            && args.store.is_none_or(|store| planted.store == store)
            && planted.store.is_built()
    };
    let table: Vec<Planted> = planted::TABLE.iter().filter(wanted).copied().collect();
    let mut told = Ok(());
    let report = planted::check(&table, jobs_or_default(args.jobs), &mut |planted| {
        if told.is_ok() {
            told = tell(planted);
        }
    })?;
    told?;
    let found = report.lines.iter().filter(|line| line.passed()).count();
    output::line(format_args!("{found} of {}", output::count(table.len(), "bug", "bugs")))?;
    Ok(if report.passed() { PASSED } else { VIOLATED })
}

fn tell(told: &PlantedLine) -> Result<()> {
    let Planted { defect, scenario, store, within_seeds } = told.planted;
    let verdict = if told.passed() { "found" } else { "FAILED" };
    let how = told.found.as_ref().map_or_else(
        || format!("not found in seeds 1 to {within_seeds}"),
        |(seed, failure)| format!("seed {seed:<4}  {failure}"),
    );
    let without = told.without.as_ref().map_or_else(String::new, |(seed, failure)| {
        format!("; without it, seed {seed} fails as well: {failure}")
    });
    let name = planted::name(defect);
    let without = format!("{without}{}", store.option());
    output::line(format_args!("{verdict:<6}  {name:<20}  {scenario:<12}  {how}{without}"))
}
