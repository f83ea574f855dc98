//! `memcube import`

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;
use indicatif::ProgressBar;
use memcube_schemas::{
    ConversationId, CubeId,
    api::v1::{AddMemoriesRequest, AddMemoriesResponse, MessageBody},
    conversation::Message,
    limits::MESSAGES_PER_ADD_MAX,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    Client,
    connect::connect,
    memories::add_to_cube,
    options::{Options, ServerArgs},
    output,
};
use crate::import::{self, Format, ImportedConversation};

const EXAMPLES: &str = "\
Examples:
  memcube import conversations.json                    a ChatGPT export
  memcube import --cube ann --format locomo locomo10.json
  memcube import chats/*.jsonl

A repeated import does no harm: what was imported before is not remembered twice. So after an error,
mend the file and run the command again.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportArgs {
    /// Format of the files; if left out, it is told from the first record.
    #[arg(long, value_name = "FORMAT", value_parser = format_parser())]
    format: Option<Format>,
    /// Cube that remembers everything; if left out, the one that the file names.
    #[arg(long, value_name = "ID")]
    cube: Option<CubeId>,
    /// Messages in one request.
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u64).range(1..=MESSAGES_PER_ADD_MAX as u64))]
    batch: u64,
    /// Also remember what the roles `system` and `tool` say.
    #[arg(long)]
    remember_system_and_tool: bool,
    /// Files to import.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

fn format_parser() -> impl clap::builder::TypedValueParser<Value = Format> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(Format::ALL.map(Format::as_str))
        .try_map(|name| name.parse::<Format>())
}

/// What became of an import.
#[derive(Debug, Default, Serialize)]
struct Summary {
    conversations: u64,
    messages: u64,
    /// Memories that were made or counted once more; a long message makes several.
    memories: u64,
    /// Those that a cube held already.
    folded: u64,
    /// Messages that made no memory.
    ignored: u64,
    seconds: f64,
}

/// Where imported messages go.
struct Target<'a> {
    client: &'a Client,
    cube: Option<CubeId>,
    batch: usize,
    remember_system_and_tool: bool,
}

pub(crate) fn run(options: &Options, args: ImportArgs) -> Result<()> {
    let start = Instant::now();
    for file in &args.files {
        // Before anything is sent, so that a typing error costs nothing.
        import::open(file, args.format).with_context(|| in_file(file))?;
    }
    let connection = connect(options, &args.server)?;
    let target = Target {
        client: &connection.client,
        cube: args.cube,
        batch: usize::try_from(args.batch)?,
        remember_system_and_tool: args.remember_system_and_tool,
    };
    let mut summary = Summary::default();
    for file in &args.files {
        import_file(&target, file, args.format, &mut summary).inspect_err(|_| {
            let sent = output::count(summary.messages, "message", "messages");
            output::note(format_args!("{sent} imported before the error"));
        })?;
    }
    summary.seconds = (start.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0;
    if options.json {
        return output::json(&summary);
    }
    output::line(format_args!(
        "imported {} of {}: {} ({} known already), {} ignored, {:.1} s",
        output::count(summary.messages, "message", "messages"),
        output::count(summary.conversations, "conversation", "conversations"),
        output::count(summary.memories, "memory", "memories"),
        summary.folded,
        output::count(summary.ignored, "message", "messages"),
        summary.seconds,
    ))
}

fn in_file(file: &Path) -> String {
    format!("`{}`", file.display())
}

fn import_file(
    target: &Target<'_>,
    file: &Path,
    format: Option<Format>,
    summary: &mut Summary,
) -> Result<()> {
    let mut import = import::open(file, format).with_context(|| in_file(file))?;
    let bar = output::bytes_bar(import.progress().bytes_total);
    bar.set_prefix(file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned());
    let sent = (|| {
        while let Some(conversation) = import.next() {
            let conversation = conversation.with_context(|| in_file(file))?;
            send(target, conversation, summary, &bar).with_context(|| in_file(file))?;
            bar.set_position(import.progress().bytes_read);
        }
        Ok(())
    })();
    bar.finish_and_clear();
    sent
}

fn send(
    target: &Target<'_>,
    conversation: ImportedConversation,
    summary: &mut Summary,
    bar: &ProgressBar,
) -> Result<()> {
    let ImportedConversation { cube, conversation, messages } = conversation;
    let cube = match &target.cube {
        Some(cube) => cube.clone(),
        None => CubeId::new(cube)?,
    };
    for (number, messages) in messages.chunks(target.batch).enumerate() {
        let request = batch_request(target, &conversation, messages)?;
        let key = batch_key(&cube, number, &request)?;
        let added = add_to_cube(target.client, &cube, &request, &key)
            .with_context(|| format!("conversation `{conversation}`"))?;
        summary.count(messages.len(), &added);
        bar.set_message(output::count(summary.messages, "message", "messages"));
    }
    summary.conversations += 1;
    Ok(())
}

impl Summary {
    fn count(&mut self, messages: usize, added: &AddMemoriesResponse) {
        self.messages += messages as u64;
        self.memories += added.memories.len() as u64;
        self.folded += added.memories.iter().filter(|memory| memory.folded).count() as u64;
        self.ignored += added.ignored_messages as u64;
    }
}

fn batch_request(
    target: &Target<'_>,
    conversation: &str,
    messages: &[Message],
) -> Result<AddMemoriesRequest> {
    Ok(AddMemoriesRequest {
        messages: messages.iter().cloned().map(message_body).collect(),
        text: None,
        conversation: Some(ConversationId::new(conversation)?),
        tags: Vec::new(),
        info: None,
        remember_system_and_tool: target.remember_system_and_tool,
    })
}

/// A message as it goes over the wire.
pub(crate) fn message_body(message: Message) -> MessageBody {
    MessageBody {
        role: message.role,
        content: message.content,
        name: message.speaker,
        chat_time: message.chat_time,
        message_id: message.message_id,
    }
}

/// Names a batch by what is in it, so that the same batch has no second effect, under whichever
/// file name, while a conversation that has grown since is sent again from there on.
fn batch_key(cube: &CubeId, number: usize, request: &AddMemoriesRequest) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(cube.as_str());
    hash.update(number.to_le_bytes());
    hash.update(serde_json::to_vec(request)?);
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("import-{hex}"))
}
