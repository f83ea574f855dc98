//! `memcube cube`

use std::io::{self, IsTerminal};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use memcube_schemas::{
    CubeId, NodeId, UserId,
    api::v1::{CreateCubeRequest, CubeBody, CubeCondition},
};
use serde_json::json;

use super::{
    Client,
    connect::connect,
    options::{Options, ServerArgs},
    output,
};

#[derive(Debug, Subcommand)]
pub(crate) enum CubeCommand {
    /// List all cubes.
    List(ServerArgs),
    /// Make a cube.
    Create(CreateArgs),
    /// Show one cube.
    Show(OneArgs),
    /// Delete a cube with everything in it, histories included.
    Delete(DeleteArgs),
    /// Let a cube out of quarantine, after its cause was mended.
    Release(OneArgs),
    /// Move a cube to another node of the cluster.
    HandOver(HandOverArgs),
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// The cube.
    id: CubeId,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  memcube cube create ann --name \"Ann's assistant\"")]
pub(crate) struct CreateArgs {
    /// Its identifier, usually that of the user or agent.
    id: CubeId,
    /// Name for people [default: the id].
    #[arg(long)]
    name: Option<String>,
    /// Whom it belongs to.
    #[arg(long, value_name = "USER")]
    owner: Option<UserId>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  memcube cube delete ann --yes")]
pub(crate) struct DeleteArgs {
    /// The cube.
    id: CubeId,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  memcube cube hand-over ann --to node-2\n\n\
    `memcube nodes` lists the nodes.")]
pub(crate) struct HandOverArgs {
    /// The cube.
    id: CubeId,
    /// The node that takes it.
    #[arg(long, value_name = "NODE")]
    to: NodeId,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(options: &Options, command: CubeCommand) -> Result<()> {
    match command {
        CubeCommand::List(server) => list(options, &server),
        CubeCommand::Create(args) => {
            let connection = connect(options, &args.server)?;
            let request = CreateCubeRequest { id: args.id, name: args.name, owner: args.owner };
            print(options, "made", &connection.client.create_cube(&request)?)
        }
        CubeCommand::Show(args) => {
            let connection = connect(options, &args.server)?;
            show(options, &connection.client.cube(args.id.as_str())?)
        }
        CubeCommand::Delete(args) => {
            let connection = connect(options, &args.server)?;
            if !args.yes {
                confirm(&connection.client.cube(args.id.as_str())?)?;
            }
            print(options, "deleted", &connection.client.delete_cube(args.id.as_str())?)
        }
        CubeCommand::Release(args) => {
            let connection = connect(options, &args.server)?;
            print(options, "released", &connection.client.release_cube(args.id.as_str())?)
        }
        CubeCommand::HandOver(args) => {
            let connection = connect(options, &args.server)?;
            let moved = connection.client.hand_over(args.id.as_str(), &args.to)?;
            if options.json {
                return output::json(&moved);
            }
            output::line(format_args!("`{}` is on `{}` now", moved.cube, moved.node))
        }
    }
}

fn list(options: &Options, server: &ServerArgs) -> Result<()> {
    let connection = connect(options, server)?;
    let cubes = all(&connection.client)?;
    if options.json {
        return output::json(&json!({ "cubes": cubes }));
    }
    if cubes.is_empty() {
        return output::line("no cube yet; `memcube add TEXT` makes the first one");
    }
    let rows: Vec<[String; 5]> = cubes
        .iter()
        .map(|cube| {
            [
                cube.id.to_string(),
                cube.items.to_string(),
                condition(cube.condition).to_owned(),
                cube.updated_at.clone(),
                cube.name.clone(),
            ]
        })
        .collect();
    output::table(["cube", "memories", "condition", "last change", "name"], &rows)
}

fn all(client: &Client) -> Result<Vec<CubeBody>> {
    Ok(client.cubes()?)
}

const fn condition(condition: CubeCondition) -> &'static str {
    match condition {
        CubeCondition::Hot => "hot",
        CubeCondition::Cold => "cold",
        CubeCondition::Quarantined => "quarantined",
    }
}

fn print(options: &Options, done: &str, cube: &CubeBody) -> Result<()> {
    if options.json {
        return output::json(cube);
    }
    let memories = output::count(cube.items, "memory", "memories");
    output::line(format_args!("{done} `{}` ({memories})", cube.id))
}

fn show(options: &Options, cube: &CubeBody) -> Result<()> {
    if options.json {
        return output::json(cube);
    }
    output::line(format_args!(
        "cube        {}\nname        {}\nowner       {}\nmemories    {}\nversion     {}\n\
         condition   {}\nmade        {}\nlast change {}\nvectors of  {}",
        cube.id,
        cube.name,
        cube.owner.as_ref().map_or("-", UserId::as_str),
        cube.items,
        cube.version,
        condition(cube.condition),
        cube.created_at,
        cube.updated_at,
        cube.embedder.as_deref().unwrap_or("-"),
    ))?;
    match &cube.quarantine_reason {
        Some(reason) => output::line(format_args!(
            "it takes no calls: {reason}\nmend the cause, then `memcube cube release {}`",
            cube.id
        )),
        None => Ok(()),
    }
}

fn confirm(cube: &CubeBody) -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("deleting `{}` cannot be undone; say `--yes` to do it", cube.id);
    }
    let memories = output::count(cube.items, "memory", "memories");
    output::note(format_args!(
        "This deletes `{}` with {memories} for good. Type its id to go on:",
        cube.id
    ));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() != cube.id.as_str() {
        bail!("nothing was deleted");
    }
    Ok(())
}
