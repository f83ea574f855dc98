//! Contexts grow at their end only, fit, and show what is there.

use memcube_schemas::{Version, memory::MemoryKind, memory::MemoryStatus};
use proptest::prelude::*;

use super::*;
use crate::inference::scripted::{ScriptedCosts, ScriptedEngine};

pub(super) fn engine() -> ScriptedEngine {
    ScriptedEngine::new(8_192, 1 << 30, ScriptedCosts::default())
}

pub(super) fn talk() -> ConversationId {
    ConversationId::new("talk").expect("valid")
}

pub(super) fn item(number: u64, revision: u32) -> Arc<MemoryItem> {
    Arc::new(MemoryItem {
        id: MemoryId::from_parts(number, 0),
        kind: MemoryKind::Fact,
        status: MemoryStatus::Activated,
        text: format!("fact {number} as of {revision}"),
        speaker: None,
        role: Role::User,
        said_at_ms: None,
        learned_at_ms: 0,
        updated_at_ms: 0,
        conversation: None,
        previous: None,
        part: None,
        tags: Vec::new(),
        info: String::new(),
        sources: Vec::new(),
        occurrences: 1,
        tokens: 4,
        revision,
        version: Version(1),
    })
}

pub(super) fn turn(role: Role, text: &str) -> ChatTurn {
    ChatTurn::new(role, text)
}

pub(super) fn wanted(turns: &[ChatTurn], message: &str, memories: &[u64]) -> Wanted {
    Wanted {
        preamble: "be kind".to_owned(),
        turns: turns.to_vec(),
        message: Some(turn(Role::User, message)),
        memories: memories.iter().map(|number| item(*number, 1)).collect(),
        is_complete: true,
        tokens_max: 8_000,
        now_ms: 0,
    }
}

/// What a model would read.
fn read(engine: &ScriptedEngine, tokens: &[Token]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| engine.bytes_of(*token)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All items that a record names, as they were.
pub(super) fn items(record: &ContextRecord) -> Vec<Arc<MemoryItem>> {
    let number = |id: MemoryId| u64::from_be_bytes([0, 0, 0, 0, 0, 0, 0, id.as_bytes()[5]]);
    record.memories().map(|memory| item(number(memory.source.id), memory.source.revision)).collect()
}

fn next(record: Option<&ContextRecord>, wanted: &Wanted) -> Layout {
    let known = record.map(items);
    let known = record.zip(known.as_deref());
    lay_out(&talk(), known, wanted, &engine()).expect("laid out")
}

#[test]
fn a_prompt_reads_as_it_should() {
    let engine = engine();
    let first = next(None, &wanted(&[], "hello", &[3, 1]));
    let heading = HEADING;
    let expected = format!("be kind{heading}- fact 1 as of 1\n- fact 3 as of 1\nhello");
    assert_eq!(read(&engine, &first.prompt.tokens), expected);
    for (span, source) in &first.prompt.memories {
        let line = read(&engine, &first.prompt.tokens[span.clone()]);
        assert_eq!(line, format!("- fact {} as of 1\n", source.id.as_bytes()[5]));
    }
    let mut record = first.record;
    replied(&mut record, "hi", 1);
    let turns = [turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
    let second = next(Some(&record), &wanted(&turns, "who?", &[3, 2]));
    let expected = format!("{expected}hi{heading}- fact 2 as of 1\nwho?");
    assert_eq!(read(&engine, &second.prompt.tokens), expected);
    let used = second.memories.iter().map(|used| (used.was_preloaded, used.is_wanted));
    assert_eq!(used.collect::<Vec<_>>(), [(true, false), (true, true), (false, true)]);
}

#[test]
fn what_was_expected_and_is_not_wanted_goes_from_the_end_where_that_pays() {
    let mut record = next(None, &wanted(&[], "hello", &[1])).record;
    replied(&mut record, "hi", 1);
    let turns = [turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
    let expected = [9, 8, 7, 6, 2, 3, 4, 5];
    let ahead = Wanted { message: None, ..wanted(&turns, "", &expected) };
    let ahead = next(Some(&record), &ahead);
    let ids = |memories: &[UsedMemory]| -> Vec<u8> {
        memories.iter().map(|used| used.source.id.as_bytes()[5]).collect()
    };
    // Wanted memories; those that are shown; how many of the tokens were computed ahead.
    let base = next(Some(&record), &Wanted { message: None, ..wanted(&turns, "", &[]) });
    let shared = |one: &[Token], other: &[Token]| {
        one.iter().zip(other).take_while(|(one, other)| one == other).count()
    };
    let table: [(&[u64], &[u8]); 6] = [
        (&[], &[1]),
        (&[1], &[1]),
        (&[8], &[1, 9, 8]),
        (&[9, 12], &[1, 9, 12]),
        (&[6], &[1, 9, 8, 7, 6]),
        (&[3], &[1, 9, 8, 7, 6, 2, 3, 4, 5]),
    ];
    for (memories, shown) in table {
        let asked = wanted(&turns, "who?", memories);
        let laid = next(Some(&ahead.record), &asked);
        assert_eq!(ids(&laid.memories), shown, "{memories:?}");
        let common = shared(&laid.prompt.tokens, &ahead.prompt.tokens);
        assert!(common >= base.prompt.tokens.len(), "{memories:?}: {common}");
        // Without recall, all that is there may be of use.
        let kept = next(Some(&ahead.record), &Wanted { is_complete: false, ..asked });
        assert!(kept.memories.len() >= 9, "{memories:?}");
    }
    // What is expected next takes the place of what was expected before.
    let expected: [(&[u64], &[u8]); 3] =
        [(&[], &[1]), (&[12, 9], &[1, 9, 12]), (&[5, 12], &[1, 5, 12])];
    for (memories, shown) in expected {
        let next =
            next(Some(&ahead.record), &Wanted { message: None, ..wanted(&turns, "", memories) });
        assert_eq!(ids(&next.memories), shown, "{memories:?}");
    }
}

#[test]
fn what_was_in_vain_is_taken_back_in_idle_time_and_what_was_wanted_stays() {
    let mut turns = vec![turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
    let ahead = Wanted { message: None, ..wanted(&turns, "", &[9, 8, 7, 6, 5, 4, 3, 2]) };
    let ahead = next(None, &ahead).record;
    let ids = |record: &ContextRecord| -> Vec<u8> {
        record.memories().map(|memory| memory.source.id.as_bytes()[5]).collect()
    };
    let mut record = next(Some(&ahead), &wanted(&turns, "who?", &[2, 8, 12])).record;
    assert_eq!(
        ids(&record),
        [9, 8, 7, 6, 2, 3, 4, 5, 12],
        "while somebody waits, what is there stays"
    );
    replied(&mut record, "she", 1);
    turns.extend([turn(Role::User, "who?"), turn(Role::Assistant, "she")]);
    let idle = Wanted { message: None, ..wanted(&turns, "", &[3, 14]) };
    let laid = next(Some(&record), &idle);
    assert_eq!(ids(&laid.record), [8, 2, 12, 3, 14]);
    let shown = read(&engine(), &laid.prompt.tokens);
    let said = shown.find("she").expect("said");
    assert!(shown.find("fact 2 ").is_some_and(|at| at < said), "{shown}");
    assert!(shown.find("fact 3 ").is_some_and(|at| at > said), "{shown}");
    // Nothing moves for a little, nor far from the end.
    let mut little = next(None, &Wanted { message: None, ..wanted(&turns[..2], "", &[9]) }).record;
    little =
        next(Some(&little), &Wanted { is_complete: false, ..wanted(&turns[..2], "who?", &[]) })
            .record;
    replied(&mut little, "she", 1);
    assert_eq!(ids(&next(Some(&little), &idle).record), [9, 3, 14]);
    let later: Vec<ChatTurn> = (0..8).map(|n| turn(Role::User, &format!("turn {n}"))).collect();
    let far = Wanted { turns: [turns.as_slice(), &later].concat(), ..idle };
    assert_eq!(ids(&next(Some(&record), &far).record), [9, 8, 7, 6, 2, 3, 4, 5, 12, 14]);
}

#[test]
fn what_changed_is_shown_anew_and_what_was_unsaid_is_not_shown() {
    let engine = engine();
    let mut record = next(None, &wanted(&[], "hello", &[1, 2])).record;
    replied(&mut record, "hi", 1);
    let turns = [turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
    let text = |known: &[Arc<MemoryItem>], wanted: &Wanted| {
        let laid = lay_out(&talk(), Some((&record, known)), wanted, &engine).expect("laid out");
        read(&engine, &laid.prompt.tokens)
    };
    let gone = text(&[item(2, 1)], &wanted(&turns, "and?", &[]));
    assert!(!gone.contains("fact 1") && gone.contains("fact 2"), "{gone}");
    let changed = Wanted { memories: vec![item(1, 2)], ..wanted(&turns, "and?", &[]) };
    let changed = text(&[item(1, 2), item(2, 1)], &changed);
    assert!(!changed.contains("fact 1 as of 1") && changed.contains("fact 1 as of 2"));
    let edited = [turn(Role::User, "good day"), turn(Role::Assistant, "hi")];
    let edited = text(&items(&record), &wanted(&edited, "and?", &[]));
    assert!(!edited.contains("hello") && edited.contains("good day"), "{edited}");
    let other = Wanted { preamble: "be rude".to_owned(), ..wanted(&turns, "and?", &[]) };
    assert!(!text(&items(&record), &other).contains("be kind"));
}

#[test]
fn oldest_memories_leave_first_then_oldest_turns() {
    let turns: Vec<ChatTurn> = (0..6).map(|n| turn(Role::User, &format!("turn {n}"))).collect();
    let all = next(None, &wanted(&turns, "now", &[1, 2, 3, 4, 5, 6]));
    let tokens_max = all.prompt.tokens.len() - 1;
    let mut record = all.record;
    replied(&mut record, "ok", 1);
    let tight =
        |tokens_max, memories: &[u64]| Wanted { tokens_max, ..wanted(&turns, "now", memories) };
    let said = [turns.as_slice(), &[turn(Role::User, "now"), turn(Role::Assistant, "ok")]].concat();
    let laid = next(Some(&record), &Wanted { turns: said, ..tight(tokens_max, &[1]) });
    let left: Vec<u8> = laid.left_out.iter().map(|id| id.as_bytes()[5]).collect();
    assert_eq!(left[0], 2, "the oldest that nobody wants now: {left:?}");
    assert!(left.is_sorted() && !left.contains(&1) && laid.turns_left_out == 0, "{left:?}");
    assert!(laid.prompt.tokens.len() <= tokens_max);
    let laid = next(None, &tight(14, &[1, 2, 3]));
    assert_eq!((laid.left_out.len(), laid.memories.len()), (3, 0));
    assert!(laid.turns_left_out > 0 && laid.prompt.tokens.len() <= 14, "{laid:?}");
    let laid = next(None, &tight(1, &[]));
    assert_eq!(laid.turns_left_out, 6, "the new turn stays, whatever it takes");
}

#[test]
fn a_context_is_rebuilt_when_it_is_stale_long_or_scattered() {
    let memory = |number, tokens, wanted_at| ContextMemory {
        source: BlockSource { id: MemoryId::from_parts(number, 0), revision: 1 },
        tokens,
        wanted_at,
    };
    let record = |memories: Vec<ContextMemory>, tokens, sealed, turns: usize| {
        let said = std::iter::repeat_n(ContextSegment::Turn(Role::User, [0; 16]), turns);
        ContextRecord {
            segments: [ContextSegment::Memories(memories)].into_iter().chain(said).collect(),
            sealed,
            turn: 20,
            tokens,
            ..next(None, &wanted(&[], "", &[])).record
        }
    };
    let table = [
        (record(vec![], 10, 1, 0), None),
        (record(vec![memory(1, 10, 20)], 10, 1, 0), None),
        (record(vec![memory(1, 10, 20), memory(2, 9, 1)], 10, 1, 0), None),
        (record(vec![memory(1, 10, 20), memory(2, 11, 1)], 10, 1, 0), Some(Rebuild::Stale)),
        (record(vec![memory(1, 11, 12), memory(2, 10, 11)], 10, 1, 0), None),
        (record(vec![], 751, 1, 0), Some(Rebuild::TooLong)),
        (record(vec![], 10, 1, 33), Some(Rebuild::Scattered)),
        (record(vec![], 10, 10, 33), None),
    ];
    for (record, expected) in table {
        assert_eq!(rebuild(&record, 1_000), expected, "{record:?}");
    }
}

#[test]
fn laid_out_anew_it_is_one_run_and_what_is_expected_stands_at_its_end() {
    let mut record = next(None, &wanted(&[], "hello", &[1, 2])).record;
    record.turn = 20;
    let turns = [turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
    let known = items(&record);
    let wanted = Wanted { message: None, ..wanted(&turns, "", &[5]) };
    let laid = lay_out_anew(&talk(), &record, &known, &wanted, &engine()).expect("laid out");
    let text = read(&engine(), &laid.prompt.tokens);
    assert_eq!(text, format!("be kindhellohi{HEADING}- fact 5 as of 1\n"));
    assert_eq!((laid.prompt.seams.len(), laid.record.sealed), (1, 3));
}

#[test]
fn taking_memories_out_keeps_the_rest_in_place() {
    let mut record = next(None, &wanted(&[], "hello", &[1, 2])).record;
    replied(&mut record, "hi", 1);
    let turns = [turn(Role::User, "hello"), turn(Role::Assistant, "hi")];
    let mut record = next(Some(&record), &wanted(&turns, "and?", &[3])).record;
    record.sealed = 4;
    let before = record.clone();
    let ids = |numbers: &[u64]| numbers.iter().map(|n| MemoryId::from_parts(*n, 0)).collect();
    assert!(!take_out(&mut record, &ids(&[9])));
    assert_eq!(record, before);
    assert!(take_out(&mut record, &ids(&[1])));
    assert_eq!((record.segments.len(), record.sealed), (before.segments.len(), 4));
    assert!(take_out(&mut record, &ids(&[2, 3])));
    assert_eq!((record.segments.len(), record.sealed), (before.segments.len() - 2, 3));
    assert!(record.tokens < before.tokens && record.memories().next().is_none());
}

proptest! {
    #[test]
    fn every_prompt_is_a_prefix_of_the_next_and_is_cut_where_it_ended(
        steps in prop::collection::vec(
            (prop::collection::btree_set(1_u64..12, 0..4), "[a-z ]{0,400}", "[a-z ]{0,40}"), 1..8,
        ),
    ) {
        let engine = engine();
        let mut record: Option<ContextRecord> = None;
        let (mut turns, mut before) = (Vec::new(), Prompt::default());
        for (memories, message, reply) in steps {
            let memories: Vec<u64> = memories.into_iter().collect();
            let laid = next(record.as_ref(), &wanted(&turns, &message, &memories));
            let tokens = &laid.prompt.tokens;
            prop_assert!(tokens.starts_with(&before.tokens));
            if !before.tokens.is_empty() {
                prop_assert!(laid.prompt.seams.contains(&before.tokens.len()));
                let earlier = |seam: &&usize| **seam < before.tokens.len();
                let kept: Vec<_> = laid.prompt.seams.iter().filter(earlier).collect();
                prop_assert_eq!(kept, before.seams.iter().collect::<Vec<_>>());
            }
            prop_assert_eq!(usize::try_from(laid.record.tokens).expect("fits"), tokens.len());
            before = laid.prompt.clone();
            let mut known = laid.record;
            replied(&mut known, &reply, 1);
            record = Some(known);
            turns.push(turn(Role::User, &message));
            turns.push(turn(Role::Assistant, &reply));
            // What is computed in idle time is a prefix of the next prompt as well.
            let ahead = Wanted { message: None, ..wanted(&turns, "", &[]) };
            let ahead = next(record.as_ref(), &ahead);
            let closed = ahead.prompt.tokens.len();
            let later = next(record.as_ref(), &wanted(&turns, "more", &[]));
            prop_assert!(later.prompt.tokens.starts_with(&ahead.prompt.tokens));
            prop_assert!(later.prompt.seams.contains(&closed));
            let opening = engine.open_reply();
            prop_assert!(later.prompt.tokens.ends_with(&opening));
        }
    }
}
