//! What a conversation takes in, when its next turn is due, and what a turn has taught.

use std::sync::Arc;

use memcube_schemas::{
    ConversationId, activation::BlockSource, conversation::ConversationEventKind as Kind,
};

use super::*;
use crate::cube::ChatTurn;

fn id(number: u64) -> MemoryId {
    MemoryId::from_parts(number, 0)
}

fn event(name: &str, at_ms: i64, kind: Kind) -> ConversationEvent {
    let conversation = ConversationId::new("talk").expect("valid");
    let id = (!name.is_empty()).then(|| RequestId::new(name).expect("valid"));
    ConversationEvent { conversation, id, at_ms, kind }
}

fn said(text: &str) -> Kind {
    Kind::TurnFinished { role: Role::User, speaker: None, text: text.to_owned() }
}

fn typed(text: &str) -> Kind {
    Kind::Typing { text: text.to_owned() }
}

fn answered(message: &str, wanted: &[(u64, bool)]) -> AnsweredTurn {
    let turns = [(Role::User, message), (Role::Assistant, "I see.")];
    let turns = turns.map(|(role, text)| ChatTurn::new(role, text)).to_vec();
    let used = wanted.iter().map(|(number, was_preloaded)| UsedMemory {
        source: BlockSource { id: id(*number), revision: 1 },
        was_preloaded: *was_preloaded,
        is_wanted: true,
    });
    let prompt = PromptSoFar { preamble: "be kind".into(), turns: Arc::new(turns) };
    AnsweredTurn { prompt, used: used.collect() }
}

/// What a thought may have found out: that these memories are worth it.
fn found(thought: &Thought, planned: &[u64]) -> Found {
    let planned = planned.iter().map(|number| memcube_schemas::scene::PlannedMemory {
        id: id(*number),
        probability: 0.5,
        tokens: 10,
        because: "scene".to_owned(),
    });
    let begun = SceneEntry::begun(thought.number, thought.at_ms, thought.reason);
    Found {
        vectors: BTreeMap::new(),
        weighed: Weighed::default(),
        working_set: Vec::new(),
        entry: SceneEntry { planned: planned.collect(), ..begun },
        settled: None,
    }
}

#[test]
fn events_that_come_twice_or_late_change_nothing() {
    let mut talk = Conversation::new(0);
    talk.event(&event("one", 10, said("We moved to Lisbon.")), 0);
    let first = talk.think(0, 10).expect("due");
    talk.done(first.number, SceneEntry::begun(first.number, 10, first.reason));
    for (name, at_ms, kind) in [
        ("one", 11, said("We moved to Lisbon, and sold the car.")),
        ("two", 9, said("We live in Porto.")),
        ("three", 12, said("We moved to Lisbon.")),
        ("four", 12, said("  ")),
        ("five", 9, typed("We live in Porto")),
        ("six", 13, typed("We")),
    ] {
        talk.event(&event(name, at_ms, kind.clone()), 1);
        assert_eq!(talk.due_in_us(1), None, "{name}: {kind:?}");
    }
    talk.event(&event("seven", 13, said("It is warm there.")), 1);
    assert_eq!(talk.due_in_us(1), Some(0));
}

#[test]
fn nothing_is_due_while_a_model_answers_and_a_broken_answer_is_none() {
    let mut talk = Conversation::new(0);
    talk.begins(0);
    talk.event(&event("", 1, said("Where did we move?")), 1);
    assert_eq!(talk.due_in_us(1), None);
    talk.broke_off(2);
    assert_eq!(talk.think(2, 1).expect("due").reason, SceneReason::Resumed);
    talk.begins(3);
    assert_eq!(talk.timeline().entries[0].state, PreloadState::Overtaken);
    talk.answered(&answered("Where did we move?", &[]), 4, 2);
    assert_eq!(talk.think(4, 2).expect("due").reason, SceneReason::TurnFinished);
}

#[test]
fn what_is_typed_meanwhile_is_told_to_the_thought_under_way() {
    let mut talk = Conversation::new(0);
    talk.event(&event("", 1, said("We moved to Lisbon.")), 0);
    let silent = talk.think(0, 1).expect("due");
    talk.event(&event("", 2, typed("Is")), 1);
    assert!(!silent.newer.is_set(), "that says nothing");
    talk.event(&event("", 3, typed("Is the flat near")), 2);
    assert!(silent.newer.is_set());
    assert_eq!(talk.due_in_us(2), None, "one at a time");
    talk.done(silent.number, SceneEntry::begun(silent.number, 1, silent.reason));
    let typing = talk.think(2, 3).expect("due");
    assert!(typing.is_typing && !typing.newer.is_set());
    talk.event(&event("", 4, typed("Is the flat near the river")), 3);
    talk.done(typing.number, SceneEntry::begun(typing.number, 3, typing.reason));
    assert_eq!(talk.due_in_us(3), Some(TYPING_EVERY_US - 1), "not at every key");
}

#[test]
fn what_was_ready_before_the_turn_came_counts_even_if_the_rest_was_not() {
    let mut talk = Conversation::new(0);
    talk.answered(&answered("We moved to Lisbon.", &[]), 0, 0);
    let thought = talk.think(0, 0).expect("due");
    talk.found(thought.number, found(&thought, &[1, 2, 3]), 0);
    talk.loaded(thought.number, vec![(id(1), 10), (id(2), 10)]);
    talk.loaded(thought.number + 1, vec![(id(9), 10)]);
    talk.begins(1);
    talk.loaded(thought.number, vec![(id(3), 10)]);
    let turn = answered("Is it warm?", &[(1, true), (3, false), (4, false)]);
    let Lesson { needed, outcome, .. } = talk.answered(&turn, 2, 1);
    assert_eq!(needed, [1, 3, 4].map(id).into());
    let expected = SceneOutcome {
        hits: vec![id(1)],
        late: vec![id(3)],
        wasted: vec![id(2)],
        missed: vec![id(4)],
        saved_tokens: 10,
        wasted_tokens: 10,
        ..SceneOutcome::default()
    };
    assert_eq!(outcome, expected);
    let entries = talk.timeline().entries;
    assert_eq!(entries[0].state, PreloadState::Overtaken);
    assert_eq!(entries[0].outcome, Some(expected));
}
