//! Turns that are remembered: when, once, and not at all if nobody waits for the end.

use super::{
    activation::{Chatting, Talk},
    faults::Troubled,
    *,
};
use crate::{environment::Environment, inference::FinishReason, storage::blobs::tests::Objects};

async fn say(cube: &CubeHandle, talk: &mut Talk, message: &str) -> (ChatOpening, FinishedTurn) {
    let chat = talk.request(message);
    let said = chat.message.clone();
    let mut stream = cube.converse(ConverseRequest::new(chat)).await.expect("begun");
    let opening = stream.opening().clone();
    let (text, finished) = stream.collect().await.expect("said");
    talk.turns.push(said);
    talk.turns.push(ChatTurn::new(Role::Assistant, text));
    (opening, finished)
}

async fn sources(cube: &CubeHandle) -> Vec<(Role, String)> {
    let items = cube.list(None, 1_000).await.expect("listed").items;
    items.iter().map(|item| (item.role, item.sources[0].content.clone())).collect()
}

/// A question to which the scripted model has several words to say, in a world that is no other's.
async fn question() -> String {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    for n in 0..50 {
        let message = format!("tell me about garden number {n}");
        let request = ConverseRequest {
            remember: false,
            ..ConverseRequest::new(Talk::new("talk").request(&message))
        };
        let mut stream = cube.converse(request).await.expect("begun");
        if stream.collect().await.expect("said").1.reply_tokens > 3 {
            return message;
        }
    }
    panic!("it has nothing to say");
}

/// Until everything in the background has ended: time is paused, and passes when all wait.
async fn idle() {
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_durable_when_its_end_is_told_and_computed_ahead_afterwards() {
    let chatting = Chatting::new(1).await;
    let (cube, known) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let (opening, finished) = say(&cube, &mut talk, &question().await).await;
    let remembered = finished.remembered.expect("it is remembered");
    assert!(remembered.version > opening.version);
    assert_eq!(remembered.memories.len(), 2);
    assert!(known.contains(&opening.memories[0].source.id));
    assert!(0 < finished.first_token_us && finished.first_token_us <= finished.total_us);
    let all = sources(&cube).await;
    let turns: Vec<(Role, String)> =
        talk.turns.iter().map(|turn| (turn.role, turn.text.trim().to_owned())).collect();
    assert_eq!(all[known.len()..], turns);
    for memory in &remembered.memories {
        let item = cube.get(memory.id).await.expect("it is there");
        assert_eq!(item.conversation, Some(talk.conversation.clone()));
        assert!(item.said_at_ms.is_some(), "it is known when it was said");
    }
    // What the turn leaves behind is there at once, and the reply is computed when nobody waits.
    assert!(!chatting.rows(&cube).await.0.is_empty());
    idle().await;
    let before = chatting.engine.prefilled_tokens();
    let (opening, next) = say(&cube, &mut talk, "and the greyhound?").await;
    assert!(next.reuse.computed_tokens * 2 < opening.prompt_tokens, "{:?}", next.reuse);
    assert_eq!(chatting.engine.prefilled_tokens() - before, next.reuse.computed_tokens as u64);
    assert!(next.reuse.reused() > 0);
    chatting.check_rows(&cube, "after a turn").await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_remembered_of_a_turn_whose_end_nobody_waits_for() {
    let chatting = Chatting::new(1).await;
    let (cube, known) = chatting.knowing("ann").await;
    let chat = Talk::new("talk").request(&question().await);
    let mut stream = cube.converse(ConverseRequest::new(chat)).await.expect("begun");
    let first = stream.next().await.expect("a first event").expect("text");
    assert!(matches!(first, TurnEvent::Text(_)), "{first:?}");
    drop(stream);
    idle().await;
    assert_eq!(sources(&cube).await.len(), known.len());
    assert_eq!(chatting.engine.bytes_used(), 0, "the session is gone with its reader");
    assert_eq!(chatting.rows(&cube).await.1, []);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_remembered_leaves_no_row() {
    let chatting = Chatting::new(1).await;
    let (cube, known) = chatting.knowing("ann").await;
    let chat = Talk::new("talk").request(&question().await);
    let request = ConverseRequest { remember: false, ..ConverseRequest::new(chat) };
    let mut stream = cube.converse(request).await.expect("begun");
    let (text, finished) = stream.collect().await.expect("said");
    assert!(!text.is_empty() && finished.remembered.is_none());
    idle().await;
    assert_eq!(sources(&cube).await.len(), known.len());
    assert_eq!(chatting.rows(&cube).await, (Vec::new(), Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_sent_twice_under_one_name_is_remembered_once() {
    let chatting = Chatting::new(1).await;
    let (cube, known) = chatting.knowing("ann").await;
    let named = |message: &str| ConverseRequest {
        request: Some(RequestId::new("turn 1").expect("valid")),
        ..ConverseRequest::new(Talk::new("talk").request(message))
    };
    let question = question().await;
    for (message, is_first) in [(question.as_str(), true), ("and the greyhound?", false)] {
        let mut stream = cube.converse(named(message)).await.expect("begun");
        let (_, finished) = stream.collect().await.expect("said");
        assert_eq!(finished.remembered.is_some(), is_first, "{message}");
        idle().await;
        assert_eq!(sources(&cube).await.len(), known.len() + 2, "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_for_now_is_tried_again_and_one_that_keeps_failing_is_told() {
    for (failures, is_remembered) in [(2, true), (1_000, false)] {
        let store = Arc::new(Troubled::default());
        let shared: SharedStore = Arc::<Troubled>::clone(&store);
        let objects = Objects::new();
        let chatting = Chatting::over(shared, objects, Environment::scripted(3)).await;
        let (cube, known) = chatting.knowing("ann").await;
        let chat = Talk::new("talk").request(&question().await);
        let mut stream = cube.converse(ConverseRequest::new(chat)).await.expect("begun");
        let trouble = || Some(StoreError::Unavailable { reason: "told to".to_owned() });
        store.commits.lock().expect("no panic").extend((0..failures).map(|_| trouble()));
        let ended = stream.collect().await;
        store.commits.lock().expect("no panic").clear();
        assert_eq!(ended.is_ok(), is_remembered, "{ended:?}");
        if let Err(error) = ended {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.message().contains("the turn is not remembered"), "{error}");
        }
        idle().await;
        let more = if is_remembered { 2 } else { 0 };
        assert_eq!(sources(&cube).await.len(), known.len() + more, "{failures} failures");
    }
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_the_turns_is_not_told_again_as_memories() {
    let chatting = Chatting::new(1).await;
    let (cube, known) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let fact = "the heron of garden number 3 is called Amadeus";
    say(&cube, &mut talk, fact).await;
    let (opening, _) = say(&cube, &mut talk, "what is the heron of garden number 3 called").await;
    let is_known = |memory: &UsedMemory| known.contains(&memory.source.id);
    assert!(opening.memories.iter().all(is_known), "{:?}", opening.memories);
    assert!(opening.memories.len() >= 4, "others come in their place");

    // Elsewhere the same memory is one like any other.
    let other = Talk::new("other").request("what is the heron of garden number 3 called");
    let stream = cube.chat(other).await.expect("begun");
    assert!(stream.opening().memories.iter().any(|memory| !is_known(memory)));
    drop(stream);

    // So it is in its own conversation, once it says something else than the turn.
    let items = cube.list(None, 1_000).await.expect("listed").items;
    let item = items.iter().find(|item| item.text.contains("Amadeus")).expect("remembered");
    let text = "the heron of garden number 3 is called Wolfgang".to_owned();
    let change = UpdateRequest { text: Some(text), ..UpdateRequest::default() };
    cube.update(item.id, change).await.expect("changed");
    let (opening, _) = say(&cube, &mut talk, "what is that heron of garden number 3 called").await;
    assert!(opening.memories.iter().any(|memory| memory.source.id == item.id));
}

#[tokio::test(start_paused = true)]
async fn turns_that_cannot_be_answered_or_remembered_are_refused() {
    let chatting = Chatting::new(1).await;
    let (cube, known) = chatting.knowing("ann").await;
    let long = "x".repeat(memcube_schemas::limits::MESSAGE_BYTES_MAX + 1);
    let missing = CubeId::new("nobody").expect("valid");
    let nobody = chatting.world.cubes.cube(&context(), missing);
    let table: [(&CubeHandle, &str, usize, ErrorKind, &str); 3] = [
        (&cube, &long, 16, ErrorKind::Invalid, "cut it"),
        (&cube, "hello", 0, ErrorKind::Invalid, "at least one token"),
        (&nobody, "hello", 16, ErrorKind::NotFound, "nobody"),
    ];
    for (cube, message, tokens_max, kind, part) in table {
        let chat = ChatRequest {
            recall: None,
            tokens_max,
            ..ChatRequest::new(Talk::new("talk").conversation, message)
        };
        let error = cube.converse(ConverseRequest::new(chat)).await.expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(sources(&cube).await.len(), known.len());
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_cut_is_remembered_as_far_as_it_came() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let chat = ChatRequest { tokens_max: 2, ..Talk::new("talk").request(&question().await) };
    let mut stream = cube.converse(ConverseRequest::new(chat)).await.expect("begun");
    let (text, finished) = stream.collect().await.expect("said");
    assert_eq!((finished.reason, finished.reply_tokens), (FinishReason::Length, 2));
    let last = sources(&cube).await.pop();
    assert_eq!(last, Some((Role::Assistant, text.trim().to_owned())));
}
