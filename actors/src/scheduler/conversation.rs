//! What the scheduler knows of one conversation, and when the next turn is worth a thought. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use memcube_schemas::{
    MemoryId, RequestId,
    conversation::{ConversationEvent, ConversationEventKind, Role},
    limits::{SCENE_ENTRIES_MAX, SCENE_EVENT_IDS_MAX, SCENE_PROMPT_BYTES_MAX},
    scene::{
        Passage, PreloadState, SceneCandidate, SceneEntry, SceneOutcome, SceneReason, SceneTimeline,
    },
};
use tokio::sync::oneshot;

use super::{
    inbox::AnsweredTurn,
    outcome::{Prepared, settle},
    scene::{Scene, SceneTurn},
};
use crate::{
    cube::{PromptSoFar, UsedMemory},
    inference::Cancel,
};

/// Pauses of the user that are remembered.
const PAUSES: usize = 8;
/// Microseconds that a user whose pauses are not known is thought to take.
const PAUSE_US: u64 = 8_000_000;
/// The least that is counted on.
const PAUSE_US_MIN: u64 = 300_000;
/// Microseconds until somebody who types has usually finished.
const TYPING_US: u64 = 2_000_000;
/// Microseconds between two thoughts while somebody types.
const TYPING_EVERY_US: u64 = 400_000;
/// Turns that one add usually remembers, and one that was an event before them.
const REMEMBERED_TURNS: usize = 3;
/// Characters below which what is typed says nothing.
const TYPED_CHARS_MIN: usize = 8;

/// Where the talk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The user may say something.
    Open,
    /// A model answers.
    Answering,
    /// The user has turned away: there is time.
    Paused,
}

/// A thought about the next turn that is under way.
#[derive(Debug)]
pub(super) struct Running {
    number: u64,
    /// Dropped to end it.
    _cancel: oneshot::Sender<()>,
    /// Set when more is known than it knows.
    newer: Cancel,
}

/// A turn whose needs are not known yet, and what was prepared for it.
#[derive(Debug, Clone)]
pub(super) struct Unsettled {
    pub(super) number: u64,
    pub(super) text: String,
    pub(super) prepared: Prepared,
    pub(super) weighed: [Weighed; 2],
}

/// A thought about the next turn that is to begin.
#[derive(Debug)]
pub(super) struct Thought {
    pub(super) number: u64,
    pub(super) reason: SceneReason,
    pub(super) at_ms: i64,
    pub(super) scene: Scene,
    pub(super) prompt: Option<PromptSoFar>,
    /// Microseconds until the user is likely back.
    pub(super) back_in_us: u64,
    pub(super) is_typing: bool,
    pub(super) unsettled: Option<Unsettled>,
    pub(super) cancelled: oneshot::Receiver<()>,
    /// Set when more is known than this thought knows.
    pub(super) newer: Cancel,
}

/// What a thought has found out, before anything is preloaded.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) vectors: BTreeMap<String, Vec<f32>>,
    pub(super) weighed: Weighed,
    pub(super) working_set: Vec<MemoryId>,
    pub(super) entry: SceneEntry,
    /// What a turn needed that had not been settled.
    pub(super) settled: Option<(Unsettled, Vec<MemoryId>)>,
}

/// What was weighed for a turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Weighed {
    pub(super) candidates: Vec<SceneCandidate>,
    /// What the context held already.
    pub(super) held: BTreeSet<MemoryId>,
}

/// What a turn has taught: what was weighed for it, silent and typed, and what it needed.
#[derive(Debug, PartialEq)]
pub(super) struct Lesson {
    pub(super) weighed: [Weighed; 2],
    pub(super) needed: BTreeSet<MemoryId>,
    pub(super) outcome: SceneOutcome,
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    scene: Scene,
    prompt: Option<PromptSoFar>,
    phase: Phase,
    /// Why the next turn is worth a thought, if it is.
    due: Option<SceneReason>,
    /// When somebody who types may be thought about again.
    typing_from_us: u64,
    pub(super) running: Option<Running>,
    prepared: Prepared,
    weighed: [Weighed; 2],
    unsettled: Option<Unsettled>,
    working_set: Vec<MemoryId>,
    entries: VecDeque<SceneEntry>,
    next_number: u64,
    seen: VecDeque<RequestId>,
    last_turn_ms: i64,
    last_typed_ms: i64,
    pauses_us: VecDeque<u64>,
    answered_us: Option<u64>,
    pub(super) used_us: u64,
}

impl Conversation {
    pub(super) fn new(now_us: u64) -> Self {
        Self {
            scene: Scene::default(),
            prompt: None,
            phase: Phase::Open,
            due: None,
            typing_from_us: 0,
            running: None,
            prepared: Prepared::default(),
            weighed: Default::default(),
            unsettled: None,
            working_set: Vec::new(),
            entries: VecDeque::new(),
            next_number: 1,
            seen: VecDeque::new(),
            last_turn_ms: i64::MIN,
            last_typed_ms: i64::MIN,
            pauses_us: VecDeque::new(),
            answered_us: None,
            used_us: now_us,
        }
    }

    /// Bytes of what was said, as far as it is kept.
    pub(super) fn prompt_bytes(&self) -> usize {
        self.prompt.as_ref().map_or(0, PromptSoFar::bytes)
    }

    /// Takes an event in. One that was seen before, or that later ones have overtaken, changes
    /// nothing.
    pub(super) fn event(&mut self, event: &ConversationEvent, now_us: u64) {
        self.take_in(event, 1, now_us);
    }

    /// Something was remembered of the conversation, which may be known as an event by now.
    pub(super) fn remembered(&mut self, event: &ConversationEvent, now_us: u64) {
        self.take_in(event, REMEMBERED_TURNS, now_us);
    }

    /// `repeated_within`: so many of the last turns are not taken in a second time.
    fn take_in(&mut self, event: &ConversationEvent, repeated_within: usize, now_us: u64) {
        self.used_us = now_us;
        if let Some(id) = &event.id {
            if self.seen.contains(id) {
                return;
            }
            self.seen.push_back(id.clone());
            if self.seen.len() > SCENE_EVENT_IDS_MAX {
                self.seen.pop_front();
            }
        }
        match &event.kind {
            ConversationEventKind::TurnFinished { role, speaker, text } => {
                if event.at_ms < self.last_turn_ms || text.trim().is_empty() {
                    return;
                }
                self.last_turn_ms = event.at_ms;
                if self.scene.has_said(*role, text, repeated_within) {
                    return;
                }
                if self.phase == Phase::Answering {
                    // What is written down of a turn whose answer is not over yet.
                    self.scene.turn_finished(turn(*role, speaker.clone(), text, event.at_ms), &[]);
                    return;
                }
                if *role == Role::User {
                    self.pause_ended(now_us);
                    self.turn_came(text);
                }
                self.scene.turn_finished(turn(*role, speaker.clone(), text, event.at_ms), &[]);
                self.answered_us = Some(now_us);
                self.phase = Phase::Open;
                // What the model reads next is no longer what it was.
                self.prompt = None;
                self.due = Some(SceneReason::TurnFinished);
            }
            ConversationEventKind::Typing { text } => {
                if event.at_ms < self.last_turn_ms.max(self.last_typed_ms) {
                    return;
                }
                self.last_typed_ms = event.at_ms;
                self.type_on(text);
            }
            ConversationEventKind::Paused => self.phase = Phase::Paused,
            ConversationEventKind::Resumed => {
                self.phase = Phase::Open;
                self.due.get_or_insert(SceneReason::Resumed);
            }
            ConversationEventKind::ToolCalled { name, arguments } => {
                self.scene.typing(Some(passage(&format!("{name} {arguments}"))));
                self.due = Some(SceneReason::ToolCalled);
            }
            ConversationEventKind::TopicMarked { text } => {
                self.scene.begin_conversation();
                self.scene.typing(Some(passage(text)));
                self.due = Some(SceneReason::TopicMarked);
            }
            ConversationEventKind::Closed => {
                self.due = None;
                self.overtake("the conversation is over");
                self.scene = Scene::default();
                self.prompt = None;
                self.working_set.clear();
            }
        }
    }

    fn type_on(&mut self, text: &str) {
        // Whoever types is there.
        self.phase = Phase::Open;
        let says_something = text.trim().chars().count() >= TYPED_CHARS_MIN;
        self.scene.typing(says_something.then(|| passage(text)));
        if says_something {
            self.due.get_or_insert(SceneReason::Typing);
            if let Some(running) = &self.running {
                running.newer.set();
            }
        }
    }

    /// A model begins to answer.
    pub(super) fn begins(&mut self, now_us: u64) {
        self.used_us = now_us;
        self.phase = Phase::Answering;
        self.overtake("the next turn came first");
        self.pause_ended(now_us);
    }

    /// The answer broke off, so that the turn may come again.
    pub(super) fn broke_off(&mut self, now_us: u64) {
        self.used_us = now_us;
        if self.phase == Phase::Answering {
            self.phase = Phase::Open;
            self.due.get_or_insert(SceneReason::Resumed);
        }
    }

    /// A model has answered: what the turn needed is known.
    pub(super) fn answered(&mut self, turn: &AnsweredTurn, now_us: u64, at_ms: i64) -> Lesson {
        self.used_us = now_us;
        self.overtake("the next turn came first");
        let AnsweredTurn { prompt, used } = turn;
        let needed = used.iter().filter(|memory| memory.is_wanted);
        let needed: Vec<MemoryId> = needed.map(|memory| memory.source.id).collect();
        let prepared = std::mem::take(&mut self.prepared);
        let weighed = std::mem::take(&mut self.weighed);
        self.unsettled = None;
        let outcome = settle(&prepared, used);
        self.set_outcome(self.next_number, outcome.clone());
        let said = prompt.turns.iter().rev().take(2).rev();
        for said in said.filter(|said| !said.text.trim().is_empty()) {
            let is_user = said.role == Role::User;
            let used = if is_user { needed.as_slice() } else { &[] };
            if self.scene.has_said(said.role, &said.text, 2) {
                self.scene.used(used, at_ms);
                continue;
            }
            self.scene.turn_finished(self::turn(said.role, None, &said.text, at_ms), used);
        }
        let is_kept = prompt.bytes() <= SCENE_PROMPT_BYTES_MAX;
        self.prompt = is_kept.then(|| prompt.clone());
        self.phase = Phase::Open;
        self.answered_us = Some(now_us);
        self.due = Some(SceneReason::TurnFinished);
        Lesson { weighed, needed: needed.into_iter().collect(), outcome }
    }

    /// A user's turn came of which nobody says what it needed.
    fn turn_came(&mut self, text: &str) {
        self.overtake("the next turn came first");
        self.unsettled = Some(Unsettled {
            number: self.next_number,
            text: text.to_owned(),
            prepared: std::mem::take(&mut self.prepared),
            weighed: std::mem::take(&mut self.weighed),
        });
    }

    fn pause_ended(&mut self, now_us: u64) {
        let Some(answered_us) = self.answered_us.take() else { return };
        self.pauses_us.push_back(now_us.saturating_sub(answered_us));
        if self.pauses_us.len() > PAUSES {
            self.pauses_us.pop_front();
        }
    }

    /// Microseconds until the user is likely back: the middle one of the last pauses.
    pub(super) fn back_in_us(&self, is_typing: bool) -> u64 {
        if is_typing {
            return TYPING_US;
        }
        let mut pauses: Vec<u64> = self.pauses_us.iter().copied().collect();
        pauses.sort_unstable();
        let usual = pauses.get(pauses.len() / 2).copied().unwrap_or(PAUSE_US);
        match self.phase {
            // Nobody knows how long, but not soon.
            Phase::Paused => usual.max(PAUSE_US),
            Phase::Open | Phase::Answering => usual.max(PAUSE_US_MIN),
        }
    }

    /// Microseconds until the next turn is worth a thought; `None` if it is not, or one is under
    /// way.
    pub(super) fn due_in_us(&self, now_us: u64) -> Option<u64> {
        let reason = self.due?;
        if self.running.is_some() || self.phase == Phase::Answering {
            return None;
        }
        match reason {
            SceneReason::Typing => Some(self.typing_from_us.saturating_sub(now_us)),
            SceneReason::TurnFinished
            | SceneReason::TopicMarked
            | SceneReason::ToolCalled
            | SceneReason::Resumed => Some(0),
        }
    }

    /// Begins to think about the next turn.
    pub(super) fn think(&mut self, now_us: u64, at_ms: i64) -> Option<Thought> {
        let reason = self.due.take()?;
        let number = self.next_number;
        self.next_number += 1;
        if reason == SceneReason::Typing {
            self.typing_from_us = now_us + TYPING_EVERY_US;
        }
        let is_typing = self.scene.is_typing();
        let back_in_us = self.back_in_us(is_typing);
        let (cancel, cancelled) = oneshot::channel();
        let newer = Cancel::default();
        self.running = Some(Running { number, _cancel: cancel, newer: newer.clone() });
        self.note(SceneEntry::begun(number, at_ms, reason));
        let (scene, prompt) = (self.scene.clone(), self.prompt.clone());
        let unsettled = self.unsettled.take();
        Some(Thought {
            number,
            reason,
            at_ms,
            scene,
            prompt,
            back_in_us,
            is_typing,
            unsettled,
            cancelled,
            newer,
        })
    }

    /// A thought has found out what may be needed, and preloads it now. Tells what a turn before
    /// has taught.
    pub(super) fn found(&mut self, number: u64, found: Found, at_ms: i64) -> Option<Lesson> {
        let Found { vectors, weighed, working_set, entry, settled } = found;
        self.scene.embedded(&vectors);
        let lesson = settled.map(|(unsettled, needed)| self.settle_late(unsettled, &needed, at_ms));
        if self.running.as_ref().is_none_or(|running| running.number != number) {
            return lesson;
        }
        let planned = entry.planned.iter().map(|planned| (planned.id, planned.tokens));
        self.prepared.planned.extend(planned);
        self.weighed[usize::from(self.scene.is_typing())] = weighed;
        self.working_set = working_set;
        self.put(number, entry);
        lesson
    }

    /// A thought that is not over yet has put memories in place.
    pub(super) fn loaded(&mut self, number: u64, memories: Vec<(MemoryId, u32)>) {
        if self.running.as_ref().is_some_and(|running| running.number == number) {
            self.prepared.loaded.extend(memories);
        }
    }

    fn settle_late(&mut self, unsettled: Unsettled, needed: &[MemoryId], at_ms: i64) -> Lesson {
        let Unsettled { number, prepared, weighed, .. } = unsettled;
        let used: Vec<UsedMemory> = needed
            .iter()
            .map(|id| UsedMemory {
                source: memcube_schemas::activation::BlockSource { id: *id, revision: 0 },
                was_preloaded: prepared.loaded.contains_key(id),
                is_wanted: true,
            })
            .collect();
        let outcome = settle(&prepared, &used);
        self.set_outcome(number, outcome.clone());
        self.scene.used(needed, at_ms);
        Lesson { weighed, needed: needed.iter().copied().collect(), outcome }
    }

    /// A thought is over. One that was overtaken has been written down as such.
    pub(super) fn done(&mut self, number: u64, entry: SceneEntry) {
        if self.running.take_if(|running| running.number == number).is_none() {
            return;
        }
        self.put(number, entry);
    }

    /// Ends the thought under way: what it was for is here.
    pub(super) fn overtake(&mut self, why: &str) {
        let Some(Running { number, .. }) = self.running.take() else { return };
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.state = PreloadState::Overtaken;
            entry.detail = Some(why.to_owned());
        }
    }

    /// What the scheduler did for this conversation.
    pub(super) fn timeline(&self) -> SceneTimeline {
        SceneTimeline {
            entries: self.entries.iter().cloned().collect(),
            working_set: self.working_set.clone(),
            back_in_us: self.back_in_us(false),
        }
    }

    fn note(&mut self, entry: SceneEntry) {
        self.entries.push_back(entry);
        if self.entries.len() > SCENE_ENTRIES_MAX {
            self.entries.pop_front();
        }
    }

    fn put(&mut self, number: u64, entry: SceneEntry) {
        if let Some(known) = self.entries.iter_mut().find(|known| known.number == number) {
            let outcome = known.outcome.take();
            *known = SceneEntry { outcome, ..entry };
        }
    }

    /// Writes down what a turn needed, with the last thought before it.
    fn set_outcome(&mut self, before: u64, outcome: SceneOutcome) {
        let mut entries = self.entries.iter_mut().rev();
        if let Some(entry) = entries.find(|entry| entry.number < before && entry.outcome.is_none())
        {
            entry.outcome = Some(outcome);
        }
    }
}

fn passage(text: &str) -> Passage {
    Passage { text: text.to_owned(), vector: None }
}

fn turn(role: Role, speaker: Option<String>, text: &str, at_ms: i64) -> SceneTurn {
    SceneTurn { role, speaker, passage: passage(text), at_ms }
}

#[cfg(test)]
mod tests;
