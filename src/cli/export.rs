//! `memcube export`

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use memcube_schemas::{
    CubeId, UserId, Version,
    api::v1::{CubeBody, MemoryBody},
    limits::PAGE_ITEMS_MAX,
};
use serde::Serialize;
use serde_json::json;

use super::{
    Client,
    connect::connect,
    options::{Options, ServerArgs},
    output,
};

/// The version of the form of exported files.
const EXPORT_VERSION: u32 = 1;

const EXAMPLES: &str = "\
Examples:
  memcube export > me.jsonl
  memcube export --cube project-x --out project-x.jsonl

The first line describes the cube; each further line is one memory, oldest first.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExportArgs {
    /// Cube to export.
    #[arg(long, value_name = "ID", default_value = "me")]
    cube: CubeId,
    /// File to write; `-` is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    #[command(flatten)]
    server: ServerArgs,
}

/// The first line.
#[derive(Debug, Serialize)]
struct Header<'a> {
    memcube_export: u32,
    cube: ExportedCube<'a>,
}

/// What an export tells of the cube: nothing that depends on the node that was asked, so that equal
/// cubes have equal exports.
#[derive(Debug, Serialize)]
struct ExportedCube<'a> {
    id: &'a CubeId,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a UserId>,
    created_at: &'a str,
    updated_at: &'a str,
    version: Version,
    items: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedder: Option<&'a str>,
}

impl<'a> From<&'a CubeBody> for ExportedCube<'a> {
    fn from(cube: &'a CubeBody) -> Self {
        let CubeBody { id, name, owner, created_at, updated_at, version, items, embedder, .. } =
            cube;
        Self {
            id,
            name,
            owner: owner.as_ref(),
            created_at,
            updated_at,
            version: *version,
            items: *items,
            embedder: embedder.as_deref(),
        }
    }
}

pub(crate) fn run(options: &Options, args: ExportArgs) -> Result<()> {
    let connection = connect(options, &args.server)?;
    let cube = connection.client.cube(args.cube.as_str())?;
    if args.out == Path::new("-") {
        let mut stdout = Lines { sink: BufWriter::new(io::stdout().lock()), failed: stdout_failed };
        write_all(&connection.client, &cube, &mut stdout)?;
        return Ok(());
    }
    let memories = write_file(&connection.client, &cube, &args.out)?;
    if options.json {
        let cube = args.cube.as_str();
        return output::json(&json!({ "cube": cube, "memories": memories, "file": args.out }));
    }
    let memories = output::count(memories, "memory", "memories");
    output::line(format_args!("wrote {memories} of `{}` to `{}`", args.cube, args.out.display()))
}

/// Where lines go, and what its errors mean.
struct Lines<W: Write, F: Fn(io::Error) -> anyhow::Error> {
    sink: W,
    failed: F,
}

fn stdout_failed(error: io::Error) -> anyhow::Error {
    output::stdout_error(error)
}

impl<W: Write, F: Fn(io::Error) -> anyhow::Error> Lines<W, F> {
    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.sink.write_all(&line).map_err(&self.failed)
    }
}

/// Writes beside the file first: an export that broke off never looks like a whole one.
fn write_file(client: &Client, cube: &CubeBody, out: &Path) -> Result<u64> {
    let mut name = out.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let cannot = || format!("cannot write `{}`", out.display());
    let file = File::create(&part).with_context(cannot)?;
    let failed = |error: io::Error| anyhow::Error::new(error).context(cannot());
    let mut lines = Lines { sink: BufWriter::new(file), failed };
    let written = write_all(client, cube, &mut lines).and_then(|memories| {
        lines.sink.get_ref().sync_all().with_context(cannot)?;
        std::fs::rename(&part, out).with_context(cannot)?;
        Ok(memories)
    });
    written.inspect_err(|_| {
        let _ = std::fs::remove_file(&part);
    })
}

fn write_all<W: Write, F: Fn(io::Error) -> anyhow::Error>(
    client: &Client,
    cube: &CubeBody,
    lines: &mut Lines<W, F>,
) -> Result<u64> {
    lines.line(&Header { memcube_export: EXPORT_VERSION, cube: cube.into() })?;
    let bar = output::steps_bar(cube.items);
    let mut memories = 0;
    let mut cursor: Option<String> = None;
    loop {
        let page = client.memories(cube.id.as_str(), cursor.as_deref(), PAGE_ITEMS_MAX)?;
        for memory in &page.memories {
            let memory: &MemoryBody = memory;
            lines.line(memory)?;
            memories += 1;
        }
        bar.set_position(memories);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    lines.sink.flush().map_err(&lines.failed)?;
    bar.finish_and_clear();
    Ok(memories)
}
