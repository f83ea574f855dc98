//! The nodes, the conversation, and one turn of it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use memcube_actors::{
    Cubes, Error, Result, TenantContext,
    cube::{
        AddRequest, ChatRequest, ChatTurn, ConverseRequest, CubeHandle, PreloadRequest,
        SearchRequest,
    },
    inference::{Engine, InferenceParts},
    scheduler::log::{DecisionLog, DecisionRecord},
};
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    conversation::{ConversationEvent, ConversationEventKind, Message, Role},
    limits::REPLY_MS_DEFAULT,
};
use serde::Serialize;

use super::{Durations, Mode, Sample, ScenesOptions};
use crate::{
    bench::words::Words,
    import::{self, Format},
    inference::candle::engine::CandleEngine,
    node::{Node, scheduler_parts},
    settings::{Settings, StoreKind},
};

const PREAMBLE: &str = "You are a friend of the user, and remember what was said before.";
/// Tokens of a reply: enough to be one, and few, because speaking is not what is measured.
const REPLY_TOKENS: usize = 12;
/// Between two events while somebody types.
const TYPING_EVERY: Duration = Duration::from_millis(500);
/// The share of a message that is typed when the last of its events comes.
const TYPED_LAST: f64 = 0.9;
/// Messages of one add.
const ADDED_AT_ONCE: usize = 64;
/// A node that computes longer than this after a turn does not come to an end.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// Words of what is computed while somebody else asks, and of what they ask.
const DISTURBING_WORDS: usize = 1_500;
const ASKED_WORDS: usize = 150;

/// What a preload costs somebody else's request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Disturbed {
    /// Time to the first token while nothing is computed ahead.
    pub alone_ms: Durations,
    /// The same while a long prompt of another conversation is computed ahead.
    pub beside_ms: Durations,
    /// How much longer that takes, by the medians: 0.05 is 5 %.
    pub delay: f64,
}

/// Adds up what was saved and what was computed in vain.
#[derive(Default)]
struct Spent {
    saved_tokens: AtomicU64,
    wasted_tokens: AtomicU64,
    /// Where the settings want decisions written down.
    file: Option<Arc<dyn DecisionLog>>,
}

impl DecisionLog for Spent {
    fn write(&self, record: DecisionRecord) {
        self.saved_tokens.fetch_add(record.outcome.saved_tokens, Ordering::Relaxed);
        self.wasted_tokens.fetch_add(record.outcome.wasted_tokens, Ordering::Relaxed);
        if let Some(file) = &self.file {
            file.write(record);
        }
    }
}

/// One node a mode, over one copy of the weights.
pub(super) struct World {
    nodes: Vec<(Node, Arc<Spent>)>,
}

async fn node(
    engine: &CandleEngine,
    settings: &Settings,
    mode: Mode,
) -> Result<(Node, Arc<Spent>)> {
    let mut settings = settings.clone();
    settings.store.kind = StoreKind::InMemory;
    settings.scheduler.enabled = false;
    let mut parts = scheduler_parts(&settings)?;
    let node = Box::pin(Node::builder().with_settings(settings).start()).await?;
    let model: Arc<dyn Engine> = Arc::new(engine.clone());
    node.cubes().serve_model(InferenceParts::new(model)).await?;
    // One of them, for memories have other names on each node.
    let file = parts.log.take().filter(|_| mode == Mode::Typing);
    let spent = Arc::new(Spent { file, ..Spent::default() });
    match mode {
        Mode::Scheduled | Mode::Typing => {
            parts.log = Some(Arc::clone(&spent) as Arc<dyn DecisionLog>);
            node.cubes().schedule(parts).await?;
        }
        Mode::Off | Mode::Limit => {}
    }
    Ok((node, spent))
}

fn tenant() -> Result<TenantContext> {
    Ok(TenantContext::authenticated(TenantId::new("bench")?, "bench"))
}

impl World {
    pub(super) async fn start(engine: &CandleEngine, settings: &Settings) -> Result<Self> {
        let mut nodes = Vec::new();
        for mode in Mode::ALL {
            nodes.push(node(engine, settings, mode).await?);
        }
        Ok(Self { nodes })
    }

    pub(super) async fn shut_down(&self) {
        for (node, _) in &self.nodes {
            node.shut_down().await;
        }
    }

    /// Tokens of memories that each node saved, and computed in vain.
    pub(super) fn spent(&self) -> Vec<(u64, u64)> {
        let spent = self.nodes.iter().map(|(_, spent)| {
            let of = |tokens: &AtomicU64| tokens.load(Ordering::Relaxed);
            (of(&spent.saved_tokens), of(&spent.wasted_tokens))
        });
        spent.collect()
    }

    /// Remembers all but the last turns of a conversation on every node.
    pub(super) async fn talk(&self, file: &Path, options: &ScenesOptions) -> Result<Talk> {
        let in_file =
            |error: import::ImportError| Error::invalid(format!("`{}`: {error}", file.display()));
        let (mut sessions, mut name) = (Vec::new(), String::new());
        for conversation in import::open(file, Some(Format::Memeval)).map_err(in_file)? {
            let conversation = conversation.map_err(in_file)?;
            name.clone_from(&conversation.cube);
            sessions.push((conversation.conversation, conversation.messages));
        }
        // As many of the last sessions as have enough turns of the one who speaks.
        let speaker = sessions.first().and_then(|(_, messages)| messages.first()?.speaker.clone());
        let mut said: Vec<Message> = Vec::new();
        while said.len() < options.turns {
            let Some((_, messages)) = sessions.pop() else { break };
            let own = messages.into_iter().filter(|message| message.speaker == speaker);
            said.splice(0..0, own.filter(|message| !message.content.trim().is_empty()));
        }
        said.truncate(options.turns);
        let mut places = Vec::new();
        let mut memories = 0;
        for (node, _) in &self.nodes {
            let cube = node.cubes().ensure(&tenant()?, CubeId::new(name.as_str())?).await?;
            memories = 0;
            for (session, messages) in &sessions {
                for part in messages.chunks(ADDED_AT_ONCE) {
                    let request = AddRequest {
                        messages: part.to_vec(),
                        conversation: Some(ConversationId::new(session.as_str())?),
                        ..AddRequest::default()
                    };
                    memories += cube.add(request).await?.memories.len();
                }
            }
            let conversation = ConversationId::new("measured")?;
            let turns = Vec::new();
            places.push(Place { cubes: node.cubes().clone(), cube, conversation, turns });
        }
        let said = said.into_iter().map(|message| message.content).collect();
        Ok(Talk { places, said, memories })
    }

    /// Measures a request alone, and beside a preload of another conversation, in turns.
    pub(super) async fn disturbed(&self, rounds: usize) -> Result<Disturbed> {
        let (node, _) = &self.nodes[0];
        let words = Words::new(7);
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        let cube = node.cubes().ensure(&tenant()?, CubeId::new("disturbed")?).await?;
        for round in 0..rounds {
            let text = |count: usize| words.text(count..count + 1);
            alone.push(ask(&cube, format!("alone-{round}"), text(ASKED_WORDS)).await?);
            let preload = PreloadRequest {
                conversation: ConversationId::new(format!("ahead-{round}"))?,
                preamble: PREAMBLE.to_owned(),
                turns: vec![ChatTurn::new(Role::User, text(DISTURBING_WORDS))],
                memories: Vec::new(),
                ms_max: REPLY_MS_DEFAULT,
            };
            let computing = cube.clone();
            let ahead = tokio::spawn(async move { computing.preload(preload).await });
            // Well into it.
            tokio::time::sleep(Duration::from_millis(150)).await;
            beside.push(ask(&cube, format!("beside-{round}"), text(ASKED_WORDS)).await?);
            let was_over = ahead.is_finished();
            ahead.await.map_err(|error| Error::internal(error.to_string()))??;
            if was_over {
                return Err(Error::internal("the preload was over before the request"));
            }
        }
        let (alone_ms, beside_ms) = (Durations::of(alone), Durations::of(beside));
        let delay = beside_ms.p50 / alone_ms.p50 - 1.0;
        Ok(Disturbed { alone_ms, beside_ms, delay })
    }
}

/// Milliseconds to the first token of a prompt of which nothing is cached.
async fn ask(cube: &CubeHandle, conversation: String, text: String) -> Result<f64> {
    let chat = ChatRequest {
        recall: None,
        tokens_max: 1,
        ..ChatRequest::new(ConversationId::new(conversation)?, text)
    };
    let request = ConverseRequest { remember: false, ..ConverseRequest::new(chat) };
    let mut stream = cube.converse(request).await?;
    let (_, finished) = stream.collect().await?;
    Ok(finished.first_token_us as f64 / 1_000.0)
}

/// A node in the middle of the conversation.
struct Place {
    cubes: Cubes,
    cube: CubeHandle,
    conversation: ConversationId,
    turns: Vec<ChatTurn>,
}

/// A conversation that goes on on every node.
pub(super) struct Talk {
    places: Vec<Place>,
    said: Vec<String>,
    pub(super) memories: usize,
}

impl Talk {
    pub(super) const fn turns(&self) -> usize {
        self.said.len()
    }

    /// Waits as long as the user does, and says the next turn.
    pub(super) async fn turn(
        &mut self,
        turn: usize,
        mode: Mode,
        options: &ScenesOptions,
    ) -> Result<(Sample, Duration)> {
        let text = self.said[turn].clone();
        let place =
            &mut self.places[Mode::ALL.iter().position(|known| *known == mode).unwrap_or(0)];
        let typing = text.chars().count() as f64 / options.typed_per_second;
        let (shortest, longest) = options.pause;
        let pause = Duration::from_secs_f64(typing).clamp(shortest, longest);
        let begun = Instant::now();
        match mode {
            Mode::Typing => place.type_slowly(&text, pause).await?,
            Mode::Limit => place.compute_all(&text, options.top_k).await?,
            Mode::Off | Mode::Scheduled => {}
        }
        tokio::time::sleep(pause.saturating_sub(begun.elapsed())).await;
        let sample = place.say(&text, options.top_k).await?;
        // Nothing of this node is left to compute while the next one is measured.
        place.settle().await?;
        Ok((sample, pause))
    }
}

impl Place {
    async fn type_slowly(&self, text: &str, pause: Duration) -> Result<()> {
        let steps = (pause.as_secs_f64() / TYPING_EVERY.as_secs_f64()).floor().max(1.0) as usize;
        for step in 1..=steps {
            tokio::time::sleep(TYPING_EVERY).await;
            let share = TYPED_LAST * step as f64 / steps as f64;
            let end = text.floor_char_boundary((text.len() as f64 * share) as usize);
            let kind = ConversationEventKind::Typing { text: text[..end].to_owned() };
            let at_ms = jiff::Timestamp::now().as_millisecond();
            let conversation = self.conversation.clone();
            self.cube.note(ConversationEvent { conversation, id: None, at_ms, kind }).await?;
        }
        Ok(())
    }

    /// Computes everything that the turn will find, as if somebody knew it.
    async fn compute_all(&self, text: &str, top_k: usize) -> Result<()> {
        let found = self.cube.search(search(text, top_k)).await?;
        let memories: Vec<MemoryId> = found.hits.iter().map(|hit| hit.item.id).collect();
        let request = PreloadRequest {
            conversation: self.conversation.clone(),
            preamble: PREAMBLE.to_owned(),
            turns: self.turns.clone(),
            memories,
            ms_max: REPLY_MS_DEFAULT,
        };
        self.cube.preload(request).await.map(|_| ())
    }

    async fn say(&mut self, text: &str, top_k: usize) -> Result<Sample> {
        let chat = ChatRequest {
            preamble: PREAMBLE.to_owned(),
            turns: self.turns.clone(),
            recall: Some(search(text, top_k)),
            tokens_max: REPLY_TOKENS,
            ..ChatRequest::new(self.conversation.clone(), text)
        };
        let message = chat.message.clone();
        let mut stream = self.cube.converse(ConverseRequest::new(chat)).await?;
        let wanted = stream.opening().memories.iter().filter(|memory| memory.is_wanted);
        let (mut needed, mut ready) = (0, 0);
        for memory in wanted {
            needed += 1;
            ready += usize::from(memory.was_preloaded);
        }
        let (reply, finished) = stream.collect().await?;
        self.turns.push(message);
        self.turns.push(ChatTurn::new(Role::Assistant, reply));
        Ok(Sample {
            ttft_us: finished.first_token_us,
            computed_tokens: finished.reuse.computed_tokens,
            needed,
            ready,
        })
    }

    /// Waits until nothing is computed ahead any more.
    async fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let tenant = tenant()?;
            let jobs = self.cubes.jobs().status(Some(tenant.tenant())).total();
            let busy = self.cubes.queues().into_iter().find(|queue| queue.depth > 0);
            if busy.is_none() && jobs.waiting == 0 && jobs.running == 0 {
                return Ok(());
            }
            if begun.elapsed() > SETTLED_WITHIN {
                return Err(Error::internal(format!("the node finds no rest: {busy:?}, {jobs:?}")));
            }
        }
    }
}

fn search(text: &str, top_k: usize) -> SearchRequest {
    let query =
        &text[..text.floor_char_boundary(memcube_schemas::limits::QUERY_BYTES_MAX.min(text.len()))];
    SearchRequest { top_k, ..SearchRequest::new(query) }
}
