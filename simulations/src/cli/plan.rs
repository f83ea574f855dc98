//! `memcube-sim plan`

use anyhow::Result;
use clap::Args;

use super::{options::PlanOptions, output};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    plan: PlanOptions,
}

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    output::json_pretty(&args.plan.choose()?.plan)
}
