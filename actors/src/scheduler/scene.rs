//! The scene of a conversation: its last turns, what they had a use for, and what is being typed.
//! Pure.

use std::collections::{BTreeMap, VecDeque};

use memcube_schemas::{
    ConversationId, MemoryId,
    conversation::Role,
    limits::{SCENE_ACCESSES_MAX, SCENE_CANDIDATES_MAX},
    scene::{Access, NextSpeaker, Passage, SceneQuery},
};

/// Turns that a scene remembers.
pub const SCENE_TURNS: usize = 8;
/// Turns that count as recent, and how much each counts against the one after it.
const RECENT_TURNS: usize = 3;
const RECENT_DECAY: f32 = 0.8;
/// How much each turn of the scene counts against the one after it.
const SCENE_DECAY: f32 = 0.85;
/// Turns of the former conversation that a new one begins with.
const CARRIED_TURNS: usize = 3;
/// The share of a use that is left after a turn.
const ACCESS_DECAY: f32 = 0.9;
/// Uses below this are forgotten.
const ACCESS_MIN: f32 = 0.01;

/// Bytes of a turn that count: an embedding sees no more of it.
const TURN_BYTES_MAX: usize = 4 << 10;

/// Something that was said.
#[derive(Debug, Clone, PartialEq)]
pub struct SceneTurn {
    /// By whom, in the sense of chat APIs.
    pub role: Role,
    /// The speaker's name, if known.
    pub speaker: Option<String>,
    /// What, with its vector.
    pub passage: Passage,
    /// When: Unix milliseconds.
    pub at_ms: i64,
}

/// What is known of a conversation.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    turns: VecDeque<SceneTurn>,
    /// How many of them, at the front, are of the former conversation.
    carried: usize,
    typed: Option<Passage>,
    accessed: BTreeMap<MemoryId, Access>,
}

impl Scene {
    /// Whether nothing was said yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Another conversation begins: the end of the former one counts until something is said.
    pub fn begin_conversation(&mut self) {
        let excess = self.turns.len().saturating_sub(CARRIED_TURNS);
        self.turns.drain(..excess);
        self.carried = self.turns.len();
        self.typed = None;
    }

    /// Somebody has finished a turn, and recall found a use for these memories.
    pub fn turn_finished(&mut self, turn: SceneTurn, used: &[MemoryId]) {
        self.typed = None;
        let at_ms = turn.at_ms;
        self.turns.push_back(turn);
        if self.turns.len() > SCENE_TURNS {
            self.turns.pop_front();
            self.carried = self.carried.saturating_sub(1);
        }
        for access in self.accessed.values_mut() {
            access.recency *= ACCESS_DECAY;
        }
        self.used(used, at_ms);
    }

    /// A turn had a use for these memories, as is known now.
    pub fn used(&mut self, used: &[MemoryId], at_ms: i64) {
        for id in used {
            let new = Access { id: *id, recency: 0.0, count: 0, at_ms };
            let access = self.accessed.entry(*id).or_insert(new);
            access.at_ms = at_ms;
            access.recency += 1.0;
            access.count = access.count.saturating_add(1);
        }
        self.forget_faded();
    }

    /// Texts without a vector, as far as they count.
    #[must_use]
    pub fn unembedded(&self) -> Vec<String> {
        let said = self.turns.iter().map(|turn| &turn.passage).chain(&self.typed);
        let bare = said.filter(|passage| passage.vector.is_none());
        bare.map(|passage| counted(&passage.text).to_owned()).collect()
    }

    /// Vectors of texts that had none.
    pub fn embedded(&mut self, vectors: &BTreeMap<String, Vec<f32>>) {
        let said = self.turns.iter_mut().map(|turn| &mut turn.passage).chain(&mut self.typed);
        for passage in said.filter(|passage| passage.vector.is_none()) {
            passage.vector = vectors.get(counted(&passage.text)).cloned();
        }
    }

    /// Whether this stands among so many of the last turns already.
    #[must_use]
    pub fn has_said(&self, role: Role, text: &str, within: usize) -> bool {
        self.turns
            .iter()
            .rev()
            .take(within)
            .any(|turn| turn.role == role && turn.passage.text == text)
    }

    /// Whether something of the next turn is known already.
    #[must_use]
    pub const fn is_typing(&self) -> bool {
        self.typed.is_some()
    }

    /// Somebody is typing: this is what stands there so far. Nothing typed ends it.
    pub fn typing(&mut self, typed: Option<Passage>) {
        self.typed = typed.filter(|typed| !typed.text.trim().is_empty());
    }

    /// Memories are gone.
    pub fn forget(&mut self, gone: &[MemoryId]) {
        for id in gone {
            self.accessed.remove(id);
        }
    }

    fn forget_faded(&mut self) {
        self.accessed.retain(|_, access| access.recency >= ACCESS_MIN);
        while self.accessed.len() > SCENE_ACCESSES_MAX {
            let faded = self.accessed.values().min_by(|left, right| {
                left.recency.total_cmp(&right.recency).then(left.id.cmp(&right.id))
            });
            let Some(faded) = faded.map(|access| access.id) else { break };
            self.accessed.remove(&faded);
        }
    }

    /// Who is likely to speak next: a user after an assistant, else whoever of two takes turns.
    #[must_use]
    pub fn next_speaker(&self) -> Option<NextSpeaker> {
        let last = self.turns.back()?;
        if last.role == Role::Assistant {
            return Some(NextSpeaker::User);
        }
        let other = self
            .turns
            .iter()
            .rev()
            .find(|turn| turn.speaker != last.speaker || turn.role != last.role)?;
        match (&other.speaker, other.role) {
            (Some(name), _) => Some(NextSpeaker::Named(name.clone())),
            (None, Role::User) => Some(NextSpeaker::User),
            (None, Role::Assistant | Role::System | Role::Tool) => None,
        }
    }

    /// What to ask the cube about the next turn, at this time.
    #[must_use]
    pub fn query(&self, conversation: Option<ConversationId>, now_ms: i64) -> SceneQuery {
        SceneQuery {
            last: self.passage(1, 1.0),
            recent: self.passage(RECENT_TURNS, RECENT_DECAY),
            scene: self.passage(SCENE_TURNS, SCENE_DECAY),
            typed: self.typed.clone(),
            next_speaker: self.next_speaker(),
            accessed: self.accessed.values().copied().collect(),
            conversation,
            now_ms,
            candidates_max: SCENE_CANDIDATES_MAX,
        }
    }

    /// The last turns as one: all words, and the sum of the vectors, of which later ones count
    /// more. Turns of the former conversation only stand in for missing ones of this.
    fn passage(&self, turns: usize, decay: f32) -> Passage {
        let own = if self.turns.len() > self.carried { self.carried } else { 0 };
        let first = self.turns.len().saturating_sub(turns).max(own);
        let turns = || self.turns.iter().skip(first);
        let text = turns().map(|turn| turn.passage.text.as_str()).collect::<Vec<_>>().join("\n");
        let mut sum: Vec<f32> = Vec::new();
        let mut weight = 1.0;
        for vector in turns().rev().map(|turn| turn.passage.vector.as_deref()) {
            if let Some(vector) = vector {
                sum.resize(sum.len().max(vector.len()), 0.0);
                sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += weight * value);
            }
            weight *= decay;
        }
        let norm = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
        let vector = (norm > 0.0).then(|| sum.into_iter().map(|value| value / norm).collect());
        Passage { text, vector }
    }
}

fn counted(text: &str) -> &str {
    &text[..text.floor_char_boundary(TURN_BYTES_MAX.min(text.len()))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: Role, speaker: Option<&str>, text: &str, vector: [f32; 2]) -> SceneTurn {
        let passage = Passage { text: text.to_owned(), vector: Some(vector.to_vec()) };
        SceneTurn { role, speaker: speaker.map(str::to_owned), passage, at_ms: 7 }
    }

    #[test]
    fn whoever_takes_turns_speaks_next() {
        let named = |name: &str| Some(NextSpeaker::Named(name.to_owned()));
        let (user, assistant) = (Role::User, Role::Assistant);
        type Case<'a> = (&'a [(Role, Option<&'a str>)], Option<NextSpeaker>);
        let table: [Case<'_>; 6] = [
            (&[], None),
            (&[(user, Some("Ann"))], None),
            (&[(user, Some("Ann")), (user, Some("Bo"))], named("Ann")),
            (&[(user, Some("Ann")), (user, Some("Bo")), (user, Some("Bo"))], named("Ann")),
            (&[(user, None), (assistant, None)], Some(NextSpeaker::User)),
            (&[(assistant, None), (user, None)], None),
        ];
        for (turns, next) in table {
            let mut scene = Scene::default();
            for (role, speaker) in turns {
                scene.turn_finished(turn(*role, *speaker, "x", [1.0, 0.0]), &[]);
            }
            assert_eq!(scene.next_speaker(), next, "{turns:?}");
        }
    }

    #[test]
    fn later_turns_count_more_and_former_conversations_fade() {
        let mut scene = Scene::default();
        for number in 0..10 {
            let vector = if number == 9 { [0.0, 1.0] } else { [1.0, 0.0] };
            scene.turn_finished(turn(Role::User, None, &format!("t{number}"), vector), &[]);
        }
        let query = scene.query(None, 0);
        assert_eq!(query.last.text, "t9");
        assert_eq!(query.recent.text, "t7\nt8\nt9");
        assert_eq!(query.scene.text.lines().count(), SCENE_TURNS);
        assert_eq!(query.last.vector, Some(vec![0.0, 1.0]));
        let recent = query.recent.vector.expect("there are vectors");
        let length = (0.8_f32 + 0.64).hypot(1.0);
        assert!((recent[1] - 1.0 / length).abs() < 1e-6, "{recent:?}");
        scene.begin_conversation();
        assert_eq!(scene.query(None, 0).scene.text, "t7\nt8\nt9");
        // They stand in for what is missing, and no longer.
        scene.turn_finished(turn(Role::User, None, "hello", [1.0, 0.0]), &[]);
        assert_eq!(scene.query(None, 0).scene.text, "hello");
        for number in 0..10 {
            scene.turn_finished(turn(Role::User, None, &format!("u{number}"), [1.0, 0.0]), &[]);
        }
        assert_eq!(scene.query(None, 0).scene.text.lines().count(), SCENE_TURNS);
    }

    #[test]
    fn uses_fade_and_are_bounded() {
        let id = |number: u64| MemoryId::from_parts(number, 0);
        let mut scene = Scene::default();
        scene.turn_finished(turn(Role::User, None, "a", [1.0, 0.0]), &[id(1), id(2)]);
        scene.turn_finished(turn(Role::User, None, "b", [1.0, 0.0]), &[id(2)]);
        let accessed = scene.query(None, 0).accessed;
        let table: Vec<_> = accessed.iter().map(|a| (a.id, a.recency, a.count)).collect();
        assert_eq!(table, [(id(1), 0.9, 1), (id(2), 1.9, 2)]);
        scene.forget(&[id(2)]);
        for _ in 0..50 {
            scene.turn_finished(turn(Role::User, None, "c", [1.0, 0.0]), &[]);
        }
        assert_eq!(scene.query(None, 0).accessed, []);
        let many: Vec<MemoryId> = (0..2 * SCENE_ACCESSES_MAX as u64).map(id).collect();
        scene.turn_finished(turn(Role::User, None, "d", [1.0, 0.0]), &many);
        assert_eq!(scene.query(None, 0).accessed.len(), SCENE_ACCESSES_MAX);
    }

    #[test]
    fn what_is_typed_counts_until_it_is_said() {
        let mut scene = Scene::default();
        let typed = |text: &str| Some(Passage { text: text.to_owned(), vector: None });
        for (text, counts) in [(" ", false), ("wh", true), ("", false), ("what", true)] {
            scene.typing(typed(text));
            assert_eq!(scene.query(None, 0).typed.is_some(), counts, "`{text}`");
        }
        scene.turn_finished(turn(Role::User, None, "what?", [1.0, 0.0]), &[]);
        assert_eq!(scene.query(None, 0).typed, None);
    }
}
