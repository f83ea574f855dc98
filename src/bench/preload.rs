//! Replays conversations of a folder made by `memeval.strip`, and before every turn names the
//! memories that it is predicted to need, on the path that a server takes: importer, reader,
//! embedder, cube, scene, predictor. Other policies name theirs in the same run.

mod replay;
mod speed;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use memcube_actors::{Error, Result, TenantContext, scheduler::policy::Policy};
use memcube_schemas::{ConversationId, CubeId, TenantId};
use serde::{Deserialize, Serialize};

pub use speed::DecisionReport;

use super::{Durations, files};
use crate::{
    import::{self, Format, ImportedConversation},
    node::Node,
    settings::{Settings, StoreKind},
};
use replay::{Named, Replay};

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
    /// A file with questions in fixed orders, to be predicted as well.
    pub streams: Option<PathBuf>,
    /// Whether what other policies name is written, too: each to its own file beside `out`.
    pub baselines: bool,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreloadReport {
    /// Conversations replayed.
    pub conversations: usize,
    /// Turns predicted.
    pub turns: usize,
    /// Questions predicted.
    pub questions: usize,
    /// How long a prediction took, embedding excluded: the cube's actor and the predictor.
    pub decision_ms: Durations,
    /// The same in a cube of synthetic memories, for each size that was asked for.
    pub decisions: Vec<DecisionReport>,
}

/// Questions about one cube, in a fixed order.
#[derive(Debug, Clone, Deserialize)]
struct Stream {
    id: String,
    cube: String,
    questions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    event: &'a str,
    resident: &'a [String],
}

/// How long decisions take in cubes of these sizes.
///
/// # Errors
/// `Invalid` for a number that a cube cannot hold.
pub fn decisions(items: &[usize]) -> Result<Vec<DecisionReport>> {
    items.iter().map(|items| speed::run(*items)).collect()
}

/// Replays every conversation of the folder in a cube of its own, then the questions about it, and
/// writes what was predicted. `on_step` hears what is done, how far, and of how much.
///
/// # Errors
/// `Invalid` when a file cannot be read or written, and whatever a node may answer.
pub async fn run(
    options: PreloadOptions,
    on_step: &(dyn Fn(&str, usize, usize) + Sync),
) -> Result<PreloadReport> {
    let PreloadOptions { mut settings, data, out, typed, streams, baselines } = options;
    if !(0.0..=1.0).contains(&typed) {
        return Err(Error::invalid("`--typed` must be between 0 and 1"));
    }
    settings.store.kind = StoreKind::InMemory;
    let files = files::conversation_files(&data)?;
    let mut streams = streams.as_deref().map(read_streams).transpose()?.unwrap_or_default();
    // Before the long work, so that a typing error costs nothing.
    let mut outputs = Outputs::create(&out, baselines)?;
    let node = Box::pin(Node::builder().with_settings(settings).start()).await?;
    let context = TenantContext::authenticated(TenantId::new("bench")?, "bench");
    let (mut turns, mut questions, mut all_ms) = (0, 0, Vec::new());
    for (number, file) in files.iter().enumerate() {
        on_step("replay", number, files.len());
        let mut replays: BTreeMap<String, Replay<'_>> = BTreeMap::new();
        let in_file =
            |error: import::ImportError| Error::invalid(format!("`{}`: {error}", file.display()));
        for conversation in import::open(file, Some(Format::Memeval)).map_err(in_file)? {
            let ImportedConversation { cube, conversation, messages } =
                conversation.map_err(in_file)?;
            let conversation = ConversationId::new(conversation)?;
            if !replays.contains_key(&cube) {
                let handle = node.cubes().ensure(&context, CubeId::new(cube.as_str())?).await?;
                replays.insert(cube.clone(), Replay::new(node.cubes(), handle, typed));
            }
            let Some(replay) = replays.get_mut(&cube) else { continue };
            for (turn, named) in replay.conversation(&conversation, messages).await? {
                turns += 1;
                for kind in ["link", "demand"] {
                    outputs.write(&format!("{cube}/{kind}/{turn}"), &named)?;
                }
            }
        }
        for (cube, mut replay) in replays {
            all_ms.append(&mut replay.decision_ms);
            for Stream { id, questions: asked, .. } in streams.remove(&cube).unwrap_or_default() {
                replay = replay.again();
                for (place, named) in replay.questions(&asked).await?.iter().enumerate() {
                    questions += 1;
                    outputs.write(&format!("{id}/{place}"), named)?;
                }
            }
        }
    }
    outputs.finish()?;
    node.shut_down().await;
    if let Some(cube) = streams.keys().next() {
        return Err(Error::invalid(format!(
            "there are streams of questions about the cube `{cube}`, of which `{}` holds no \
             conversation",
            data.display()
        )));
    }
    let decision_ms = Durations::of(all_ms);
    let conversations = files.len();
    Ok(PreloadReport { conversations, turns, questions, decision_ms, decisions: Vec::new() })
}

/// The streams of a file, by cube.
fn read_streams(path: &Path) -> Result<BTreeMap<String, Vec<Stream>>> {
    let text = fs::read_to_string(path).map_err(|error| files::cannot("read", path, &error))?;
    let mut streams: BTreeMap<String, Vec<Stream>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let stream: Stream = serde_json::from_str(line).map_err(|error| {
            let (path, number) = (path.display(), number + 1);
            Error::invalid(format!(
                "`{path}`, line {number}: {error}; make the file with \
                 `benches/preload_streams.py`"
            ))
        })?;
        streams.entry(stream.cube.clone()).or_default().push(stream);
    }
    Ok(streams)
}

/// The files that get what was named.
struct Outputs {
    files: Vec<(Policy, PathBuf, BufWriter<File>)>,
}

impl Outputs {
    fn create(out: &Path, baselines: bool) -> Result<Self> {
        let mut files = Vec::new();
        for policy in Policy::ALL {
            let path = match policy {
                Policy::Predictor => out.to_owned(),
                Policy::LastTurn | Policy::LastThree | Policy::LastUsed | Policy::MemosMonitor => {
                    if !baselines {
                        continue;
                    }
                    beside(out, policy)
                }
            };
            let file =
                File::create(&path).map_err(|error| files::cannot("write", &path, &error))?;
            files.push((policy, path, BufWriter::new(file)));
        }
        Ok(Self { files })
    }

    fn write(&mut self, event: &str, named: &Named) -> Result<()> {
        for (policy, path, file) in &mut self.files {
            let resident = named.get(policy).map_or(&[][..], Vec::as_slice);
            serde_json::to_writer(&mut *file, &Line { event, resident })
                .map_err(std::io::Error::from)
                .and_then(|()| file.write_all(b"\n"))
                .map_err(|error| files::cannot("write", path, &error))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        for (_, path, mut file) in self.files {
            file.flush().map_err(|error| files::cannot("write", &path, &error))?;
        }
        Ok(())
    }
}

/// `run/preload.jsonl` becomes `run/preload.last-turn.jsonl`.
fn beside(out: &Path, policy: Policy) -> PathBuf {
    let extension = out.extension().map_or_else(
        || policy.to_string(),
        |extension| format!("{policy}.{}", extension.to_string_lossy()),
    );
    out.with_extension(extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_writes_to_its_own_file() {
        let table = [
            ("run/preload.jsonl", "run/preload.last-turn.jsonl"),
            ("preload", "preload.last-turn"),
        ];
        for (out, expected) in table {
            assert_eq!(beside(Path::new(out), Policy::LastTurn), Path::new(expected));
        }
    }

    #[test]
    fn streams_are_read_by_cube_and_complaints_name_the_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("streams.jsonl");
        let line = |id: &str, cube: &str| {
            format!("{{\"id\":\"{id}\",\"cube\":\"{cube}\",\"questions\":[\"why?\"]}}\n")
        };
        let lines = [line("a/file", "a"), "\n".to_owned(), line("b/file", "b"), line("a/x", "a")];
        fs::write(&path, lines.concat()).expect("it is written");
        let streams = read_streams(&path).expect("they are read");
        let ids = |cube: &str| streams[cube].iter().map(|s| s.id.as_str()).collect::<Vec<_>>();
        assert_eq!((ids("a"), ids("b")), (vec!["a/file", "a/x"], vec!["b/file"]));
        fs::write(&path, format!("{}{{\"id\":1}}\n", line("a", "a"))).expect("it is written");
        let error = read_streams(&path).expect_err("no stream").to_string();
        assert!(error.contains("line 2") && error.contains("preload_streams.py"), "{error}");
    }
}
