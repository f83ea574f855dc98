//! Replays conversations of a folder made by `memeval.strip`, and before every turn names the
//! memories that it is predicted to need, on the path that a server takes: importer, reader,
//! embedder, cube, scene, predictor.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use memcube_actors::{
    Cubes, Error, Result, TenantContext,
    cube::{AddRequest, CubeHandle, SearchRequest},
    embedder::Priority,
    scheduler::{
        predict::{Prediction, Predictor},
        scene::{Scene, SceneTurn},
    },
};
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    conversation::Message,
    scene::{Passage, SceneCandidate},
};
use serde::Serialize;

use super::{Durations, files};
use crate::{
    import::{self, Format, ImportedConversation},
    node::Node,
    settings::{Settings, StoreKind},
};

/// Memories named before each turn: the scorer looks at the first 100.
const NAMED_MAX: usize = 100;
/// Memories that the cache holds.
const RESIDENT: usize = 20;
/// Memories that a turn is taken to have needed: the first that recall finds for it.
const NEEDED: usize = 5;

/// What to measure.
#[derive(Debug, Clone)]
pub struct PreloadOptions {
    /// Of the node; its store is in RAM, whatever they say.
    pub settings: Settings,
    /// The folder with conversations.
    pub data: PathBuf,
    /// The file to write the predictions to.
    pub out: PathBuf,
    /// The share of each turn that has been typed when it is predicted: from 0 to 1.
    pub typed: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreloadReport {
    /// Conversations replayed.
    pub conversations: usize,
    /// Turns predicted.
    pub turns: usize,
    /// How long a prediction took, embedding excluded.
    pub decision_ms: Durations,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    event: String,
    resident: &'a [String],
}

/// Replays every conversation of the folder in a cube of its own, and writes what was predicted.
/// `on_step` hears what is done, how far, and of how much.
///
/// # Errors
/// `Invalid` when a file cannot be read or written, and whatever a node may answer.
pub async fn run(
    options: PreloadOptions,
    on_step: &(dyn Fn(&str, usize, usize) + Sync),
) -> Result<PreloadReport> {
    let PreloadOptions { mut settings, data, out, typed } = options;
    settings.store.kind = StoreKind::InMemory;
    let files = files::conversation_files(&data)?;
    let cannot_write = |error: std::io::Error| files::cannot("write", &out, &error);
    // Before the long work, so that a typing error costs nothing.
    let mut out_file = BufWriter::new(File::create(&out).map_err(cannot_write)?);
    let node = Box::pin(Node::builder().with_settings(settings).start()).await?;
    let context = TenantContext::authenticated(TenantId::new("bench")?, "bench");
    let (mut conversations, mut all_ms) = (0, Vec::new());
    for (number, file) in files.iter().enumerate() {
        on_step("replay", number, files.len());
        let mut replay = Replay::new(node.cubes(), &context, typed);
        let named = replay.file(file).await?;
        conversations += 1;
        all_ms.append(&mut replay.decision_ms);
        for (event, resident) in named {
            for kind in ["link", "demand"] {
                let (cube, turn) = &event;
                let line = Line { event: format!("{cube}/{kind}/{turn}"), resident: &resident };
                serde_json::to_writer(&mut out_file, &line)
                    .map_err(std::io::Error::from)
                    .and_then(|()| out_file.write_all(b"\n"))
                    .map_err(cannot_write)?;
            }
        }
    }
    out_file.flush().map_err(cannot_write)?;
    node.shut_down().await;
    let turns = all_ms.len();
    Ok(PreloadReport { conversations, turns, decision_ms: Durations::of(all_ms) })
}

/// Cube and turn, and the turns that were predicted.
type Named = ((String, String), Vec<String>);

/// One file that is replayed.
struct Replay<'a> {
    cubes: &'a Cubes,
    context: &'a TenantContext,
    typed: f64,
    scene: Scene,
    predictor: Predictor,
    resident: BTreeSet<MemoryId>,
    /// What the last prediction was about, for the predictor to learn from.
    candidates: (Vec<SceneCandidate>, bool),
    decision_ms: Vec<f64>,
}

impl<'a> Replay<'a> {
    fn new(cubes: &'a Cubes, context: &'a TenantContext, typed: f64) -> Self {
        Self {
            cubes,
            context,
            typed,
            scene: Scene::default(),
            predictor: Predictor::default(),
            resident: BTreeSet::new(),
            candidates: (Vec::new(), false),
            decision_ms: Vec::new(),
        }
    }

    async fn file(&mut self, file: &Path) -> Result<Vec<Named>> {
        let in_file =
            |error: import::ImportError| Error::invalid(format!("`{}`: {error}", file.display()));
        let mut named = Vec::new();
        for conversation in import::open(file, Some(Format::Memeval)).map_err(in_file)? {
            let ImportedConversation { cube, conversation, messages } =
                conversation.map_err(in_file)?;
            let conversation = ConversationId::new(conversation)?;
            let handle = self.cubes.ensure(self.context, CubeId::new(cube.as_str())?).await?;
            self.scene.begin_conversation();
            for message in messages {
                let turn = message.message_id.clone().unwrap_or_default();
                let predicted = self.predict(&handle, &conversation, &message).await?;
                named.push(((cube.clone(), turn), predicted));
                self.said(&handle, &conversation, message).await?;
            }
        }
        Ok(named)
    }

    /// The turns that the next message is predicted to need, likeliest first.
    async fn predict(
        &mut self,
        cube: &CubeHandle,
        conversation: &ConversationId,
        next: &Message,
    ) -> Result<Vec<String>> {
        let typed = beginning(&next.content, self.typed);
        let is_typing = !typed.is_empty();
        let typed = if is_typing { Some(self.passage(typed.to_owned()).await?) } else { None };
        self.scene.typing(typed);
        let start = Instant::now();
        let answer = cube.scene(self.scene.query(Some(conversation.clone()))).await?;
        let predictions = self.predictor.predict(&answer.candidates, &self.resident, is_typing);
        self.decision_ms.push(start.elapsed().as_secs_f64() * 1_000.0);
        self.candidates = (answer.candidates, is_typing);
        let id = |prediction: &Prediction| prediction.candidate.id;
        self.resident = predictions.iter().take(RESIDENT).map(id).collect();
        let mut turns = Vec::new();
        for prediction in predictions.iter().take(NAMED_MAX) {
            let item = cube.get(id(prediction)).await?;
            let sources = item.sources.iter().filter_map(|source| source.message_id.clone());
            for turn in sources {
                if !turns.contains(&turn) {
                    turns.push(turn);
                }
            }
        }
        Ok(turns)
    }

    /// The message is said: recall looks for what it needs, the cube remembers it.
    async fn said(
        &mut self,
        cube: &CubeHandle,
        conversation: &ConversationId,
        message: Message,
    ) -> Result<()> {
        let text = match &message.speaker {
            Some(speaker) => format!("{speaker}: {}", message.content),
            None => message.content.clone(),
        };
        let used = if text.trim().is_empty() {
            Vec::new()
        } else {
            needed(cube, conversation, &text).await?
        };
        let turn = SceneTurn {
            role: message.role,
            speaker: message.speaker.clone(),
            passage: self.passage(text).await?,
        };
        self.scene.turn_finished(turn, &used);
        let (candidates, was_typing) = &self.candidates;
        self.predictor.learn(candidates, &used.into_iter().collect(), *was_typing);
        let conversation = Some(conversation.clone());
        cube.add(AddRequest { messages: vec![message], conversation, ..AddRequest::default() })
            .await?;
        Ok(())
    }

    async fn passage(&self, text: String) -> Result<Passage> {
        let vector = match self.cubes.embedder() {
            Some(embedder) => {
                let embeddings = embedder.embed(vec![text.clone()], Priority::Query).await?;
                embeddings.into_iter().next().map(|embedding| embedding.vector)
            }
            None => None,
        };
        Ok(Passage { text, vector })
    }
}

/// What recall finds for a turn, outside of its own conversation.
async fn needed(
    cube: &CubeHandle,
    conversation: &ConversationId,
    text: &str,
) -> Result<Vec<MemoryId>> {
    const ASKED: usize = 50;
    let query = beginning_bytes(text, memcube_schemas::limits::QUERY_BYTES_MAX).to_owned();
    let found = cube.search(SearchRequest { top_k: ASKED, ..SearchRequest::new(query) }).await?;
    let others =
        found.hits.iter().filter(|hit| hit.item.conversation.as_ref() != Some(conversation));
    Ok(others.take(NEEDED).map(|hit| hit.item.id).collect())
}

/// The first words of a text, up to a share of its characters.
fn beginning(text: &str, share: f64) -> &str {
    let bytes = (text.len() as f64 * share.clamp(0.0, 1.0)).round();
    beginning_bytes(text, bytes as usize)
}

fn beginning_bytes(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes.min(text.len()))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_never_cuts_a_character() {
        let table =
            [("hello", 0.0, ""), ("hello", 0.5, "hel"), ("hello", 1.0, "hello"), ("äöü", 0.5, "ä")];
        for (text, share, expected) in table {
            assert_eq!(beginning(text, share), expected, "{text} {share}");
        }
    }
}
