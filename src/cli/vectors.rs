//! `memcube vectors`

use anyhow::Result;
use clap::Subcommand;
use memcube_schemas::api::v1::VectorsResponse;

use super::{
    connect::connect,
    options::{Options, ServerArgs},
    output,
};

#[derive(Debug, Subcommand)]
pub(crate) enum VectorsCommand {
    /// Show how far the vector tier is.
    Show(ServerArgs),
    /// Build the vector tier anew from the memories, in the background of a running server.
    Rebuild(ServerArgs),
}

pub(crate) fn run(options: &Options, command: VectorsCommand) -> Result<()> {
    match command {
        VectorsCommand::Show(server) => {
            let connection = connect(options, &server)?;
            show(options, &connection.client.vectors()?)
        }
        VectorsCommand::Rebuild(server) => {
            let connection = connect(options, &server)?;
            let begun = connection.client.rebuild_vectors()?;
            if options.json {
                return output::json(&begun);
            }
            output::line(
                "the vector tier is being built anew; `memcube vectors show` tells how far",
            )
        }
    }
}

fn show(options: &Options, vectors: &VectorsResponse) -> Result<()> {
    if options.json {
        return output::json(vectors);
    }
    if vectors.shards.is_empty() {
        return output::line(
            "no vector tier; set `vectors.kind` to `in-ram` or `lance` to search many cubes",
        );
    }
    output::line(format_args!("vector tier `{}`", vectors.kind))?;
    output::line("shard  ready  commits behind")?;
    for shard in &vectors.shards {
        let ready = if shard.ready { "yes" } else { "no" };
        output::line(format_args!("{:<5}  {ready:<5}  {}", shard.shard, shard.behind))?;
    }
    Ok(())
}
