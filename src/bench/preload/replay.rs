//! Conversations and streams of questions, turn by turn, on the path that a server takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use memcube_actors::{
    Cubes, Result,
    cube::{AddRequest, CubeHandle, SearchRequest},
    embedder::Priority,
    reader::parse_chat_time,
    scheduler::{
        policy::{Policy, Ranker},
        scene::{Scene, SceneTurn},
    },
};
use memcube_schemas::{
    ConversationId, MemoryId,
    conversation::{Message, Role},
    limits::QUERY_BYTES_MAX,
    scene::{Passage, SceneCandidate},
};

/// Memories named before each turn: the scorer looks at the first 100.
const NAMED_MAX: usize = 100;
/// Memories that the cache holds.
const RESIDENT: usize = 20;
/// Memories that a turn is taken to have needed: the first that recall finds for it.
const NEEDED: usize = 5;
/// Memories that recall is taken to have found for it.
const FOUND: usize = 10;

/// The turns that each policy wants to have ready, most wanted first.
pub(super) type Named = BTreeMap<Policy, Vec<String>>;

/// A cube whose conversations, or questions, are replayed.
pub(super) struct Replay<'a> {
    cubes: &'a Cubes,
    cube: CubeHandle,
    /// How much of each turn is typed when it is predicted: from 0 to 1.
    typed: f64,
    scene: Scene,
    rankers: Vec<Ranker>,
    /// The messages that each memory was made from.
    turns_of: BTreeMap<MemoryId, Vec<String>>,
    /// What the last prediction was about, for the policies to learn from.
    candidates: Vec<SceneCandidate>,
    is_typing: bool,
    now_ms: i64,
    /// How long our decisions took: asking the cube, and ranking.
    pub(super) decision_ms: Vec<f64>,
}

impl<'a> Replay<'a> {
    pub(super) fn new(cubes: &'a Cubes, cube: CubeHandle, typed: f64) -> Self {
        let rankers = Policy::ALL.map(|policy| Ranker::new(policy, RESIDENT)).into();
        Self {
            cubes,
            cube,
            typed,
            scene: Scene::default(),
            rankers,
            turns_of: BTreeMap::new(),
            candidates: Vec::new(),
            is_typing: false,
            now_ms: 0,
            decision_ms: Vec::new(),
        }
    }

    /// Begins anew in the same cube, knowing nothing of what was said.
    pub(super) fn again(self) -> Self {
        let turns_of = self.turns_of;
        Self { turns_of, ..Self::new(self.cubes, self.cube, self.typed) }
    }

    /// One conversation: what was named before each of its messages, by the message's id.
    pub(super) async fn conversation(
        &mut self,
        conversation: &ConversationId,
        messages: Vec<Message>,
    ) -> Result<Vec<(String, Named)>> {
        let mut all = Vec::with_capacity(messages.len());
        self.scene.begin_conversation();
        for message in messages {
            let said = message.chat_time.as_deref().and_then(parse_chat_time);
            self.now_ms = said.map_or(self.now_ms, |time| time.unix_ms);
            let named = self.predict(Some(conversation), &message.content).await?;
            let turn = message.message_id.clone().unwrap_or_default();
            let text = match &message.speaker {
                Some(speaker) => format!("{speaker}: {}", message.content),
                None => message.content.clone(),
            };
            let (role, speaker) = (message.role, message.speaker.clone());
            self.said(Some(conversation), role, speaker, text).await?;
            let conversation = Some(conversation.clone());
            let add = AddRequest { messages: vec![message], conversation, ..AddRequest::default() };
            for memory in self.cube.add(add).await?.memories {
                self.turns_of.entry(memory.id).or_default().push(turn.clone());
            }
            all.push((turn, named));
        }
        Ok(all)
    }

    /// Questions about everything in the cube: what was named before each of them.
    pub(super) async fn questions(&mut self, questions: &[String]) -> Result<Vec<Named>> {
        let mut all = Vec::with_capacity(questions.len());
        for question in questions {
            all.push(self.predict(None, question).await?);
            self.said(None, Role::User, None, question.clone()).await?;
        }
        Ok(all)
    }

    /// The turns that each policy wants for what is said next.
    async fn predict(
        &mut self,
        conversation: Option<&ConversationId>,
        next: &str,
    ) -> Result<Named> {
        let typed = beginning(next, self.typed);
        self.is_typing = !typed.is_empty();
        let typed = if self.is_typing { Some(self.passage(typed.to_owned()).await?) } else { None };
        self.scene.typing(typed);
        let start = Instant::now();
        let query = self.scene.query(conversation.cloned(), self.now_ms);
        self.candidates = self.cube.scene(query).await?.candidates;
        let mut ranked = Vec::new();
        for ranker in &mut self.rankers {
            let mut wanted = ranker.rank(&self.candidates, self.is_typing);
            if ranker.policy() == Policy::Predictor {
                self.decision_ms.push(start.elapsed().as_secs_f64() * 1_000.0);
            }
            wanted.truncate(NAMED_MAX);
            ranked.push((ranker.policy(), wanted));
        }
        let turns = |wanted: Vec<MemoryId>| {
            let mut seen = BTreeSet::new();
            let all = wanted.iter().filter_map(|id| self.turns_of.get(id)).flatten();
            all.filter(|turn| seen.insert(*turn)).cloned().collect()
        };
        Ok(ranked.into_iter().map(|(policy, wanted)| (policy, turns(wanted))).collect())
    }

    /// Something is said: recall looks for what it needs, and the policies learn.
    async fn said(
        &mut self,
        conversation: Option<&ConversationId>,
        role: Role,
        speaker: Option<String>,
        text: String,
    ) -> Result<()> {
        let found = if text.trim().is_empty() {
            Vec::new()
        } else {
            self.found(conversation, &text).await?
        };
        let needed = &found[..found.len().min(NEEDED)];
        let passage = self.passage(text).await?;
        let turn = SceneTurn { role, speaker, passage, at_ms: self.now_ms };
        self.scene.turn_finished(turn, needed);
        for ranker in &mut self.rankers {
            ranker.turn_finished(&self.candidates, needed, &found, self.is_typing);
        }
        Ok(())
    }

    /// What recall finds for a turn, outside of its own conversation, best first.
    async fn found(
        &self,
        conversation: Option<&ConversationId>,
        text: &str,
    ) -> Result<Vec<MemoryId>> {
        const ASKED: usize = 50;
        let query = beginning_bytes(text, QUERY_BYTES_MAX).to_owned();
        let search = SearchRequest { top_k: ASKED, ..SearchRequest::new(query) };
        let found = self.cube.search(search).await?;
        let others = found
            .hits
            .iter()
            .filter(|hit| conversation.is_none() || hit.item.conversation.as_ref() != conversation);
        Ok(others.take(FOUND).map(|hit| hit.item.id).collect())
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
