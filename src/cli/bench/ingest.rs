//! How long it takes to remember a conversation while it is held: through HTTP, a few messages at a
//! time, with everything included.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use memcube_schemas::{
    ConversationId, CubeId,
    api::v1::{AddMemoriesRequest, CreateCubeRequest, SearchBody},
};
use serde::Serialize;

use crate::{
    bench::Durations,
    cli::{Client, LocalServer, import::message_body},
    import::{self, ImportedConversation},
    settings::Settings,
};

/// Searches that are measured after the import.
const SEARCHES: usize = 200;
const CUBE: &str = "bench";

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct IngestReport {
    pub(crate) messages: usize,
    pub(crate) memories: usize,
    /// Messages in one request.
    pub(crate) batch: usize,
    /// From the first add to the last.
    pub(crate) seconds: f64,
    pub(crate) add_ms: Durations,
    pub(crate) searches: usize,
    pub(crate) search_ms: Durations,
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays in a directory named after a benchmark hurts nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Imports a file into a fresh cube of a server of its own, on the disk of the data directory, then
/// searches with the words of the messages.
pub(crate) fn run(
    mut settings: Settings,
    data: &Path,
    batch: usize,
    on_step: &dyn Fn(usize, usize),
) -> Result<IngestReport> {
    if batch == 0 {
        bail!("`--batch` must be at least 1");
    }
    let in_file = || format!("`{}`", data.display());
    let conversations: Vec<ImportedConversation> =
        import::open(data, None).and_then(Iterator::collect).with_context(in_file)?;
    let scratch = settings.store.data_dir.join(format!("bench-ingest-{}", std::process::id()));
    settings.store.data_dir.clone_from(&scratch);
    let _scratch = Scratch(scratch);
    let server = LocalServer::start(settings)?;
    let client = Client::new(&server.address, &server.api_key);
    let total = conversations.iter().map(|conversation| conversation.messages.len()).sum();
    client.create_cube(&CreateCubeRequest { id: CubeId::new(CUBE)?, name: None, owner: None })?;
    let mut report = IngestReport {
        messages: 0,
        memories: 0,
        batch,
        seconds: 0.0,
        add_ms: Durations::default(),
        searches: 0,
        search_ms: Durations::default(),
    };
    let mut add_ms = Vec::with_capacity(total / batch + 1);
    let start = Instant::now();
    for conversation in &conversations {
        for messages in conversation.messages.chunks(batch) {
            let request = AddMemoriesRequest {
                messages: messages.iter().cloned().map(message_body).collect(),
                text: None,
                conversation: Some(ConversationId::new(conversation.conversation.as_str())?),
                tags: Vec::new(),
                info: None,
                remember_system_and_tool: false,
            };
            let key = format!("bench-{}", add_ms.len());
            let (added, ms) = timed(|| client.add(CUBE, &request, &key));
            add_ms.push(ms);
            report.memories += added?.memories.len();
            report.messages += messages.len();
            on_step(report.messages, total);
        }
    }
    report.seconds = (start.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0;
    report.add_ms = Durations::of(add_ms);
    let search_ms = search(&client, &conversations, total)?;
    report.searches = search_ms.len();
    report.search_ms = Durations::of(search_ms);
    Ok(report)
}

/// Searches with the words of messages from all over the file.
fn search(
    client: &Client,
    conversations: &[ImportedConversation],
    total: usize,
) -> Result<Vec<f64>> {
    let messages = conversations.iter().flat_map(|conversation| &conversation.messages);
    let asked = messages.step_by((total / SEARCHES).max(1));
    let asked = asked.filter(|message| !message.content.trim().is_empty()).take(SEARCHES);
    let mut all_ms = Vec::with_capacity(SEARCHES);
    for message in asked {
        let request = SearchBody {
            query: message.content.clone(),
            top_k: None,
            token_budget: None,
            relativity_min: None,
            filter: None,
        };
        let (found, ms) = timed(|| client.search(CUBE, &request));
        found?;
        all_ms.push(ms);
    }
    Ok(all_ms)
}

/// What a call gives, and how many milliseconds it took.
fn timed<T>(call: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = call();
    (result, start.elapsed().as_secs_f64() * 1_000.0)
}
