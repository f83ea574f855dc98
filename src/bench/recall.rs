//! Ranks the memories for the questions of a folder made by `memeval.strip`, on the path that a
//! server takes: importer, reader, embedder, cube, recall.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use memcube_actors::{
    Cubes, Error, Result, TenantContext,
    cube::{AddRequest, SearchOutcome, SearchRequest},
};
use memcube_schemas::{ConversationId, CubeId, TenantId};
use serde::{Deserialize, Serialize};

use super::{
    Durations,
    files::{QUESTIONS_FILE, cannot, conversation_files},
};
use crate::{
    import::{self, Format},
    node::Node,
    settings::{Settings, StoreKind},
};

/// Hits that are ranked for each question: the scorer looks at the first 100.
const TOP_K: usize = 100;
/// Messages in one add: two forward passes of the model.
const BATCH_MESSAGES: usize = 64;

/// What to measure.
#[derive(Debug, Clone)]
pub struct RecallOptions {
    /// Of the node; its store is in RAM, whatever they say.
    pub settings: Settings,
    /// The folder with conversations and questions.
    pub data: PathBuf,
    /// The file to write the rankings to.
    pub out: PathBuf,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecallReport {
    /// Conversations imported.
    pub conversations: usize,
    /// Memories in all cubes together.
    pub items: u64,
    /// Questions asked.
    pub questions: usize,
    /// How long the import took.
    pub import_seconds: f64,
    /// How long the searches took, embedding of the question included.
    pub search_ms: Durations,
}

#[derive(Debug, Deserialize)]
struct Question {
    q: String,
    conv: String,
    question: String,
}

#[derive(Debug, Serialize)]
struct Ranking<'a> {
    q: &'a str,
    ranked: Vec<&'a str>,
    conf: f32,
    ms: f64,
}

/// Imports every conversation of the folder into a cube of its own, asks every question, and writes
/// the rankings in the order of the questions. `on_step` hears what is done, how far, and of how
/// much.
///
/// # Errors
/// `Invalid` when a file cannot be read or written, and whatever a node may answer.
pub async fn run(
    options: RecallOptions,
    on_step: &(dyn Fn(&str, usize, usize) + Sync),
) -> Result<RecallReport> {
    let RecallOptions { mut settings, data, out } = options;
    settings.store.kind = StoreKind::InMemory;
    let files = conversation_files(&data)?;
    let questions = read_questions(&data.join(QUESTIONS_FILE))?;
    // Before the long work, so that a typing error costs nothing.
    let out_file = File::create(&out).map_err(|error| cannot("write", &out, &error))?;
    let node = Box::pin(Node::builder().with_settings(settings).start()).await?;
    let bench = Bench {
        cubes: node.cubes(),
        context: TenantContext::authenticated(TenantId::new("bench")?, "bench"),
    };
    let measured = bench.measure(&files, &questions, out_file, on_step).await;
    node.shut_down().await;
    measured.map_err(|error| match error {
        Failure::Write(error) => cannot("write", &out, &error),
        Failure::Node(error) => error,
    })
}

enum Failure {
    Write(std::io::Error),
    Node(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Node(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

struct Bench<'a> {
    cubes: &'a Cubes,
    context: TenantContext,
}

impl Bench<'_> {
    async fn measure(
        &self,
        files: &[PathBuf],
        questions: &[Question],
        out: File,
        on_step: &(dyn Fn(&str, usize, usize) + Sync),
    ) -> std::result::Result<RecallReport, Failure> {
        let start = Instant::now();
        let mut items_of: BTreeMap<CubeId, u64> = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            on_step("import", number, files.len());
            self.import(file, &mut items_of).await?;
        }
        let import_seconds = (start.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0;
        let mut out = BufWriter::new(out);
        let mut all_ms = Vec::with_capacity(questions.len());
        for (number, question) in questions.iter().enumerate() {
            on_step("search", number, questions.len());
            let (outcome, ms) = self.search(question).await?;
            all_ms.push(ms);
            let ranking = Ranking {
                q: &question.q,
                ranked: turns(&outcome),
                conf: outcome.confidence,
                ms: (ms * 1_000.0).round() / 1_000.0,
            };
            serde_json::to_writer(&mut out, &ranking).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(RecallReport {
            conversations: items_of.len(),
            items: items_of.values().sum(),
            questions: questions.len(),
            import_seconds,
            search_ms: Durations::of(all_ms),
        })
    }

    async fn import(&self, file: &Path, items_of: &mut BTreeMap<CubeId, u64>) -> Result<()> {
        let in_file =
            |error: import::ImportError| Error::invalid(format!("`{}`: {error}", file.display()));
        for conversation in import::open(file, Some(Format::Memeval)).map_err(in_file)? {
            let conversation = conversation.map_err(in_file)?;
            let id = CubeId::new(conversation.cube)?;
            let cube = self.cubes.ensure(&self.context, id.clone()).await?;
            for messages in conversation.messages.chunks(BATCH_MESSAGES) {
                cube.add(AddRequest {
                    messages: messages.to_vec(),
                    conversation: Some(ConversationId::new(conversation.conversation.as_str())?),
                    ..AddRequest::default()
                })
                .await?;
            }
            items_of.insert(id, cube.describe().await?.items);
        }
        Ok(())
    }

    async fn search(&self, question: &Question) -> Result<(SearchOutcome, f64)> {
        let cube = self.cubes.cube(&self.context, CubeId::new(question.conv.as_str())?);
        let request = SearchRequest { top_k: TOP_K, ..SearchRequest::new(&question.question) };
        let start = Instant::now();
        let outcome = cube.search(request).await.map_err(|error| {
            let message = format!("question `{}`: {}", question.q, error.message());
            Error::new(error.kind(), message)
        })?;
        Ok((outcome, start.elapsed().as_secs_f64() * 1_000.0))
    }
}

/// The turns behind the hits, best first, each once.
fn turns(outcome: &SearchOutcome) -> Vec<&str> {
    let sources = outcome.hits.iter().flat_map(|hit| &hit.item.sources);
    let mut ranked: Vec<&str> = Vec::with_capacity(outcome.hits.len());
    for turn in sources.filter_map(|source| source.message_id.as_deref()) {
        if !ranked.contains(&turn) {
            ranked.push(turn);
        }
    }
    ranked
}

fn read_questions(path: &Path) -> Result<Vec<Question>> {
    let text = fs::read_to_string(path).map_err(|error| cannot("read", path, &error))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| {
                let line = number + 1;
                Error::invalid(format!("`{}` line {line}: no question: {error}", path.display()))
            })
        })
        .collect()
}
