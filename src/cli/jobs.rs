//! `memcube jobs`

use anyhow::Result;
use clap::Args;
use memcube_schemas::api::v1::{JobCondition, JobCountsBody, JobsResponse};

use super::{
    connect::connect,
    options::{Options, ServerArgs},
    output,
};

/// What stands for every kind.
const ALL: &str = "all";

const EXAMPLES: &str = "\
Examples:
  memcube jobs                      what runs, what waits, and what has ended lately
  memcube jobs --pause blocks       let no more jobs of a kind begin; what runs goes on
  memcube jobs --resume             let all of them begin again

Jobs are those of one node and of the tenant whose API key is used; a restart resumes them.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct JobsArgs {
    /// Let no job of this kind begin; of any kind if none is named.
    #[arg(long, value_name = "KIND", num_args = 0..=1, default_missing_value = ALL)]
    pause: Option<String>,
    /// Let jobs of this kind begin again; of every kind if none is named.
    #[arg(
        long,
        value_name = "KIND",
        num_args = 0..=1,
        default_missing_value = ALL,
        conflicts_with = "pause"
    )]
    resume: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(options: &Options, args: &JobsArgs) -> Result<()> {
    let connection = connect(options, &args.server)?;
    let answer = match (&args.pause, &args.resume) {
        (Some(kind), _) => connection.client.pause_jobs(named(kind))?,
        (None, Some(kind)) => connection.client.resume_jobs(named(kind))?,
        (None, None) => connection.client.jobs()?,
    };
    if options.json { output::json(&answer) } else { show(&answer) }
}

fn named(kind: &str) -> Option<&str> {
    Some(kind).filter(|kind| *kind != ALL)
}

fn show(jobs: &JobsResponse) -> Result<()> {
    let of = |whose: &str, kind: &str, counts: &JobCountsBody| {
        let JobCountsBody { waiting, running, done, failed, cancelled } = counts;
        let numbers = [waiting, running, done, failed, cancelled].map(u64::to_string);
        let [waiting, running, done, failed, cancelled] = numbers;
        [whose.to_owned(), kind.to_owned(), waiting, running, done, failed, cancelled]
    };
    let yours = jobs.kinds.iter().map(|(kind, counts)| of("yours", kind, counts));
    let nodes = jobs.node.iter().map(|(kind, counts)| of("the node's", kind, counts));
    let rows: Vec<[String; 7]> = yours.chain(nodes).collect();
    if rows.is_empty() {
        output::line("no jobs yet")?;
    } else {
        let head = ["whose", "kind", "waiting", "running", "done", "failed", "cancelled"];
        output::table(head, &rows)?;
    }
    if !jobs.paused.is_empty() {
        output::line(format_args!("paused: {}", jobs.paused.join(", ")))?;
    }
    if jobs.recent.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let rows: Vec<[String; 6]> = jobs
        .recent
        .iter()
        .map(|job| {
            let told = match &job.error {
                Some(error) => format!("{}: {}", job.name, output::one_line(error)),
                None => job.name.clone(),
            };
            let condition = condition(job.condition).to_owned();
            let (waited, ran) = (format!("{} ms", job.waited_ms), format!("{} ms", job.ran_ms));
            [job.id.to_string(), job.kind.clone(), condition, waited, ran, told]
        })
        .collect();
    output::table(["job", "kind", "condition", "waited", "ran", "what"], &rows)
}

const fn condition(condition: JobCondition) -> &'static str {
    match condition {
        JobCondition::Waiting => "waiting",
        JobCondition::Running => "running",
        JobCondition::Done => "done",
        JobCondition::Failed => "failed",
        JobCondition::Cancelled => "cancelled",
    }
}
