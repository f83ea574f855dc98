//! `memcube add` and `memcube search`

use std::io::Read;

use anyhow::{Context, Result, bail};
use clap::Args;
use memcube_schemas::{
    ConversationId, CubeId,
    api::v1::{
        AddMemoriesRequest, AddMemoriesResponse, CreateCubeRequest, MemoryBody, ScoresBody,
        SearchBody, SearchFilterBody, SearchResponse, TenantSearchBody, TenantSearchResponse,
    },
    limits::{MESSAGE_BYTES_MAX, TOP_K_DEFAULT},
};

use super::{
    Client, ClientError,
    connect::connect,
    options::{Options, ServerArgs},
    output,
};
use crate::environment;

const ADD_EXAMPLES: &str = "\
Examples:
  memcube add \"Ann moved to Lisbon in May 2024\"
  memcube add --cube project-x --tag decision We use FoundationDB from release 3 on
  git log -1 --format=%B | memcube add -";

#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(crate) struct AddArgs {
    /// Cube that remembers it; it is made if it is missing.
    #[arg(long, value_name = "ID", default_value = "me")]
    cube: CubeId,
    /// Conversation that it belongs to.
    #[arg(long, value_name = "ID")]
    conversation: Option<ConversationId>,
    /// Label; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// The statement; `-` reads it from standard input.
    #[arg(required = true, value_name = "TEXT")]
    text: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn add(options: &Options, args: AddArgs) -> Result<()> {
    let text = statement(&args.text)?;
    let connection = connect(options, &args.server)?;
    let request = AddMemoriesRequest {
        messages: Vec::new(),
        text: Some(text),
        conversation: args.conversation,
        tags: args.tags,
        info: None,
        remember_system_and_tool: false,
    };
    // A retry inside this command must not count the statement twice; the same command again may.
    let key = format!("cli-{:032x}", environment::system().random_u128());
    let added = add_to_cube(&connection.client, &args.cube, &request, &key)?;
    if options.json {
        return output::json(&added);
    }
    for memory in &added.memories {
        let text = output::one_line(&memory.text);
        let what = if memory.folded { "known already" } else { "remembered" };
        output::line(format_args!("{what} in `{}`  {}  {text}", args.cube, memory.id))?;
    }
    Ok(())
}

/// What stands on the command line, or on standard input for `-`.
pub(crate) fn statement(words: &[String]) -> Result<String> {
    let mut text = words.join(" ");
    if text == "-" {
        text.clear();
        let limit = MESSAGE_BYTES_MAX as u64 + 1;
        std::io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .context("cannot read the statement from standard input")?;
    }
    let text = text.trim();
    if text.is_empty() {
        bail!("the statement is empty; give a text, or `-` to read standard input");
    }
    Ok(text.to_owned())
}

/// Adds to a cube, which is made if it is missing.
pub(crate) fn add_to_cube(
    client: &Client,
    cube: &CubeId,
    request: &AddMemoriesRequest,
    idempotency_key: &str,
) -> Result<AddMemoriesResponse, ClientError> {
    match client.add(cube.as_str(), request, idempotency_key) {
        Err(error) if error.is_not_found() => {
            let new = CreateCubeRequest { id: cube.clone(), name: None, owner: None };
            client.ensure_cube(&new)?;
            client.add(cube.as_str(), request, idempotency_key)
        }
        answer => answer,
    }
}

const SEARCH_EXAMPLES: &str = "\
Examples:
  memcube search \"Where does Ann live?\"
  memcube search --all-cubes who plays the cello
  memcube search --cube project-x --top-k 3 --explain which database did we choose
  memcube search --token-budget 1000 --json \"what does Ann like\" | jq -r '.hits[].memory.text'";

#[derive(Debug, Args)]
#[command(after_help = SEARCH_EXAMPLES)]
pub(crate) struct SearchArgs {
    /// Cube to ask.
    #[arg(long, value_name = "ID", default_value = "me")]
    cube: CubeId,
    /// Ask all cubes instead of one.
    #[arg(long, conflicts_with = "cube")]
    all_cubes: bool,
    /// Hits at the most.
    #[arg(long, value_name = "N", default_value_t = TOP_K_DEFAULT as u64,
        value_parser = clap::value_parser!(u64).range(1..=1_000))]
    top_k: u64,
    /// Word pieces that all hits together may have.
    #[arg(long, value_name = "N")]
    token_budget: Option<u32>,
    /// Only memories of this conversation.
    #[arg(long, value_name = "ID")]
    conversation: Option<ConversationId>,
    /// Only memories with this label; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Show why each memory was found.
    #[arg(long)]
    explain: bool,
    /// The question.
    #[arg(required = true, value_name = "QUERY")]
    query: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn search(options: &Options, args: SearchArgs) -> Result<()> {
    let connection = connect(options, &args.server)?;
    let filter = SearchFilterBody {
        tags: args.tags,
        conversation: args.conversation,
        kinds: Vec::new(),
        said_from: None,
        said_before: None,
    };
    let (query, top_k) = (args.query.join(" "), Some(usize::try_from(args.top_k)?));
    let (token_budget, relativity_min, filter) = (args.token_budget, None, Some(filter));
    if args.all_cubes {
        let cubes = None;
        let request =
            TenantSearchBody { query, top_k, token_budget, relativity_min, filter, cubes };
        let found = connection.client.search_all(&request)?;
        return if options.json { output::json(&found) } else { show_all(&found, args.explain) };
    }
    let request = SearchBody { query, top_k, token_budget, relativity_min, filter };
    let found = connection.client.search(args.cube.as_str(), &request)?;
    if options.json {
        return output::json(&found);
    }
    if found.hits.is_empty() {
        return output::line(format_args!("`{}` knows nothing about it", args.cube));
    }
    show(&found, args.explain)
}

fn show(found: &SearchResponse, explain: bool) -> Result<()> {
    output::line("relativity  date        memory")?;
    for hit in &found.hits {
        let (date, text) = date_and_text(&hit.memory);
        output::line(format_args!("{:<10.2}  {date:<10}  {text}", hit.relativity))?;
        if explain {
            output::line(format_args!("{:24}{}", "", scores(&hit.scores, &hit.memory)))?;
        }
    }
    Ok(())
}

fn show_all(found: &TenantSearchResponse, explain: bool) -> Result<()> {
    if found.hits.is_empty() {
        return output::line("no cube knows anything about it");
    }
    let width = found.hits.iter().map(|hit| hit.cube.as_str().chars().count()).max();
    let width = width.unwrap_or(0).max(4);
    output::line(format_args!("relativity  date        {:<width$}  memory", "cube"))?;
    for hit in &found.hits {
        let (date, text) = date_and_text(&hit.memory);
        let (relativity, cube) = (hit.relativity, hit.cube.as_str());
        output::line(format_args!("{relativity:<10.2}  {date:<10}  {cube:<width$}  {text}"))?;
        if explain {
            output::line(format_args!("{:24}{}", "", scores(&hit.scores, &hit.memory)))?;
        }
    }
    Ok(())
}

fn date_and_text(memory: &MemoryBody) -> (&str, String) {
    let date = memory.said_at.as_deref().unwrap_or(&memory.learned_at);
    (date.split('T').next().unwrap_or_default(), output::one_line(&memory.text))
}

fn scores(scores: &ScoresBody, memory: &MemoryBody) -> String {
    format!(
        "fused {:.2} = dense {:+.2} (cosine {:.2}), lexical {:+.2} (BM25 {:.2}), speaker {:+.2}, \
         date {:+.2}, form {:+.2}  [{}]",
        scores.fused,
        scores.dense_z,
        scores.dense,
        scores.lexical_z,
        scores.lexical,
        scores.speaker,
        scores.date,
        scores.form,
        memory.id,
    )
}
