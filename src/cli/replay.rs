//! `memcube replay`

use std::{fs::File, io::BufReader, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use memcube_actors::scheduler::policy::Policy;

use super::{options::Options, output};
use crate::replay::replay;

const EXAMPLES: &str = "\
A server writes the log with `scheduler.decision-log` set, for example by
`MEMCUBE__SCHEDULER__DECISION_LOG=decisions.jsonl memcube serve`. It holds identifiers and numbers,
and no text.

Example:
  memcube replay --log decisions.jsonl
  memcube replay --log decisions.jsonl --policy last-three --policy predictor --resident 50";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplayArgs {
    /// The decision log.
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// What is tried on it: `predictor` (ours), `last-turn`, `last-three`, `lru`, `memos-monitor`;
    /// may be given several times [default: all].
    #[arg(long = "policy", value_name = "POLICY")]
    policies: Vec<Policy>,
    /// Memories that the cache of a conversation holds.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    resident: u16,
}

pub(crate) fn run(options: &Options, args: ReplayArgs) -> Result<()> {
    let path = args.log.display();
    let file = File::open(&args.log).with_context(|| format!("cannot read `{path}`"))?;
    let policies = if args.policies.is_empty() { Policy::ALL.to_vec() } else { args.policies };
    let reports = replay(BufReader::new(file), &policies, args.resident.into())?;
    if options.json {
        return output::json(&reports);
    }
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let rows: Vec<[String; 6]> = reports
        .iter()
        .map(|report| {
            [
                report.policy.to_owned(),
                report.turns.to_string(),
                percent(report.hit),
                percent(report.cover),
                format!("{:.1}", report.loads),
                percent(report.useful),
            ]
        })
        .collect();
    output::table(["policy", "turns", "hit", "cover", "loads a turn", "useful"], &rows)
}
