//! Next turns that are prepared: what is in place when the user speaks, and why; events that come
//! late, twice, or in floods; what is left after crashes.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32},
};

use memcube_schemas::{
    ConversationId,
    conversation::{ConversationEvent, ConversationEventKind},
    scene::{PreloadKind, PreloadState, SceneReason, SceneTimeline},
};

use super::{
    activation::{Chatting, Talk},
    *,
};
use crate::{
    scheduler::{
        SchedulerParts, SchedulerRules,
        log::{DecisionLog, DecisionRecord},
    },
    storage::blobs::tests::Objects,
};

/// Keeps decisions in RAM.
#[derive(Default)]
struct Noted(Mutex<Vec<DecisionRecord>>);

impl DecisionLog for Noted {
    fn write(&self, record: DecisionRecord) {
        self.0.lock().expect("no panic").push(record);
    }
}

/// Panics at an event as often as told.
#[derive(Default)]
struct Crashing {
    events: AtomicU32,
    preloads: AtomicBool,
}

impl Faults for Crashing {
    fn reach(&self, point: &'static str, _detail: &str) {
        let left = |crashes: &AtomicU32| {
            crashes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).is_ok()
        };
        assert!(point != "scheduler.event" || !left(&self.events), "told to");
        let crashes = point == "scheduler.preload" && self.preloads.load(Ordering::Acquire);
        assert!(!crashes, "told to");
    }
}

async fn scheduling(environment: Environment) -> (Chatting, Arc<Noted>) {
    scheduling_by(environment, SchedulerRules::default()).await
}

async fn scheduling_by(environment: Environment, rules: SchedulerRules) -> (Chatting, Arc<Noted>) {
    let store = Arc::new(InMemoryStore::default());
    let chatting = Chatting::over(store, Objects::new(), environment).await;
    let log = Arc::new(Noted::default());
    let written = Some(Arc::clone(&log) as Arc<dyn DecisionLog>);
    let parts = SchedulerParts { rules, log: written };
    chatting.world.cubes.schedule(parts).await.expect("started");
    (chatting, log)
}

const TOPICS: [&str; 12] = [
    "the greyhound is called Miso and hates rain",
    "the cello lesson moved to Thursday evening",
    "the flight to Lisbon leaves at seven in the morning",
    "mother bakes rye bread every Sunday",
    "the bicycle has a flat tyre since March",
    "the doctor said to drink more water",
    "the novel about whales is very long",
    "the garden needs new tomato plants",
    "the landlord repairs the heating next week",
    "the chess club meets in the old library",
    "the camera lost its lens cap at the lake",
    "the choir sings a requiem in November",
];

async fn knowing(chatting: &Chatting, id: &str) -> (CubeHandle, Vec<MemoryId>) {
    let cube = chatting.world.cube(id).await;
    let added = cube.add(said(&TOPICS)).await.expect("added");
    (cube, added.memories.iter().map(|memory| memory.id).collect())
}

async fn say(cube: &CubeHandle, talk: &mut Talk, message: &str) -> (ChatOpening, FinishedTurn) {
    let mut chat = talk.request(message);
    chat.recall = Some(SearchRequest { top_k: 1, ..SearchRequest::new(message) });
    let said = chat.message.clone();
    let mut stream = cube.converse(ConverseRequest::new(chat)).await.expect("begun");
    let opening = stream.opening().clone();
    let (text, finished) = stream.collect().await.expect("said");
    talk.turns.push(said);
    talk.turns.push(ChatTurn::new(Role::Assistant, text));
    (opening, finished)
}

/// The user thinks for a while: time is paused, and passes when all wait.
async fn pause() {
    tokio::time::sleep(Duration::from_secs(8)).await;
}

fn event(talk: &Talk, at_ms: i64, kind: ConversationEventKind) -> ConversationEvent {
    ConversationEvent { conversation: talk.conversation.clone(), id: None, at_ms, kind }
}

fn typing(text: &str) -> ConversationEventKind {
    ConversationEventKind::Typing { text: text.to_owned() }
}

async fn timeline(cube: &CubeHandle, talk: &Talk) -> SceneTimeline {
    cube.scenes(&talk.conversation).await.expect("told")
}

/// Microseconds to the first token of the third turn below, if somebody computes before all that it
/// will need, and nothing else.
async fn third_turn_with_everything_cached() -> u64 {
    let chatting = Chatting::new(1).await;
    let (cube, known) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    for (message, needed) in
        [(FIRST, vec![]), (SECOND, vec![known[11]]), (THIRD, vec![known[11], known[1]])]
    {
        let chat = talk.request(message);
        let preload = PreloadRequest {
            conversation: chat.conversation,
            preamble: chat.preamble,
            turns: chat.turns,
            memories: needed,
            ms_max: 60_000,
        };
        cube.preload(preload).await.expect("preloaded");
        let (_, finished) = say(&cube, &mut talk, message).await;
        pause().await;
        if message == THIRD {
            return finished.first_token_us;
        }
    }
    unreachable!("the third turn is the last")
}

const FIRST: &str = "good morning";
const SECOND: &str = "the choir sings a requiem in November, before the lesson";
const THIRD: &str = "and when is the cello lesson on Thursday?";

#[tokio::test(start_paused = true)]
async fn a_third_turn_finds_an_older_memory_in_place_and_the_timeline_tells_why() {
    let (chatting, log) = scheduling(Environment::scripted(1)).await;
    let (cube, known) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    say(&cube, &mut talk, FIRST).await;
    pause().await;
    say(&cube, &mut talk, SECOND).await;
    pause().await;
    let (opening, third) = say(&cube, &mut talk, THIRD).await;
    let cello = opening.memories.iter().find(|memory| memory.source.id == known[1]);
    let cello = cello.expect("it is recalled");
    assert!(cello.was_preloaded && cello.is_wanted, "{opening:?}");
    // What was said and what is needed was computed before; the question is left.
    assert!(third.reuse.computed_tokens < 100, "{:?}", third.reuse);
    let limit_us = third_turn_with_everything_cached().await;
    let first_us = third.first_token_us;
    assert!(first_us * 10 <= limit_us * 11, "{first_us} us, everything cached: {limit_us} us");
    pause().await;

    let entries = timeline(&cube, &talk).await.entries;
    let before = entries.iter().rfind(|entry| entry.outcome.is_some()).expect("it is settled");
    assert_eq!(before.reason, SceneReason::TurnFinished);
    assert_eq!((before.kind, before.state), (PreloadKind::Activation, PreloadState::Loaded));
    let outcomes: Vec<_> = entries.iter().filter_map(|entry| entry.outcome.as_ref()).collect();
    let found = outcomes.iter().any(|o| o.hits.contains(&known[1]) || o.held.contains(&known[1]));
    assert!(found, "{outcomes:?}");
    let planned = entries.iter().flat_map(|entry| &entry.planned);
    let planned = planned.into_iter().find(|planned| planned.id == known[1]).expect("planned");
    assert!(planned.probability > 0.05 && !planned.because.is_empty(), "{planned:?}");
    assert!(before.computed_tokens > 0 && before.candidates > 0);

    let noted = log.0.lock().expect("no panic").clone();
    let last = noted.last().expect("decisions are logged");
    assert!(last.needed.contains(&known[1]) && !last.candidates.is_empty());
    chatting.check_rows(&cube, "after three turns").await;
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_has_spent_its_tokens_has_nothing_computed_ahead() {
    let rules = SchedulerRules { tenant_tokens_per_minute: 60, ..SchedulerRules::default() };
    let (chatting, _) = scheduling_by(Environment::scripted(12), rules).await;
    let (cube, _) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    for topic in &TOPICS[..6] {
        say(&cube, &mut talk, topic).await;
        pause().await;
    }
    let entries = timeline(&cube, &talk).await.entries;
    // A full bucket, most of a minute, and what the preload was above it that emptied it.
    let mut computed: Vec<u64> = entries.iter().map(|entry| entry.computed_tokens).collect();
    computed.sort_unstable();
    let largest = computed.pop().expect("there are entries");
    assert!(largest > 0 && computed.iter().sum::<u64>() <= 110, "{computed:?} {largest}");
    let spent = entries.iter().filter(|entry| entry.state == PreloadState::Nothing);
    assert!(spent.clone().count() > 0, "{entries:?}");
    assert!(spent.into_iter().all(|entry| entry.detail.is_some()), "{entries:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_typed_is_prepared_before_it_is_sent() {
    let (chatting, _) = scheduling(Environment::scripted(2)).await;
    let (cube, known) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    say(&cube, &mut talk, "good morning").await;
    pause().await;
    let start_ms = chatting.world.environment.unix_ms();
    let text = "when does my flight to Lisbon leave in the morning";
    for (at, end) in (0_i64..).zip((4..text.len()).step_by(6)) {
        let event = event(&talk, start_ms + at * 100, typing(&text[..end]));
        cube.note(event).await.expect("noted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = timeline(&cube, &talk).await;
    assert_eq!(told.working_set.first(), Some(&known[2]), "{told:?}");
    let of_typing = told.entries.iter().filter(|entry| entry.reason == SceneReason::Typing);
    let (count, events) = (of_typing.count(), (text.len() - 4) / 6);
    assert!(count > 0 && count < events, "{count} thoughts about {events} events");
    let (opening, _) = say(&cube, &mut talk, text).await;
    let flight = opening.memories.iter().find(|memory| memory.source.id == known[2]);
    assert!(flight.is_some_and(|memory| memory.was_preloaded), "{opening:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_model_the_working_set_is_known_and_judged() {
    let world = World::new().await;
    world.cubes.schedule(SchedulerParts::default()).await.expect("started");
    let cube = world.cube("ann").await;
    let known = cube.add(said(&TOPICS)).await.expect("added").memories;
    let talk = Talk::new("talk");
    let turn = |role: Role, text: &str| ConversationEventKind::TurnFinished {
        role,
        speaker: None,
        text: text.to_owned(),
    };
    let turns = [
        (Role::User, "mother bakes rye bread"),
        (Role::Assistant, "every Sunday?"),
        (Role::User, "mother bakes rye bread every Sunday, indeed"),
    ];
    for (at, (role, text)) in (1_i64..).zip(turns) {
        cube.note(event(&talk, at * 1_000, turn(role, text))).await.expect("noted");
        pause().await;
    }
    let told = timeline(&cube, &talk).await;
    assert_eq!(told.working_set.first(), Some(&known[3].id));
    assert_eq!(told.entries.len(), 3);
    assert!(told.entries.iter().all(|entry| entry.kind == PreloadKind::Plaintext));
    let outcome = told.entries[1].outcome.as_ref().expect("the third turn settles the second");
    assert!(outcome.hits.contains(&known[3].id), "{told:?}");
    let view = world.cubes.scheduler().expect("started").predictor(context().tenant()).await;
    assert!(view.expect("read").predictor.turns() > 0);
}

#[tokio::test(start_paused = true)]
async fn late_and_repeated_events_change_nothing() {
    let world = World::new().await;
    world.cubes.schedule(SchedulerParts::default()).await.expect("started");
    let cube = world.cube("ann").await;
    cube.add(said(&TOPICS)).await.expect("added");
    let talk = Talk::new("talk");
    let named = |id: &str, at_ms: i64, kind: ConversationEventKind| ConversationEvent {
        id: Some(RequestId::new(id).expect("valid")),
        ..event(&talk, at_ms, kind)
    };
    let turn = |text: &str| ConversationEventKind::TurnFinished {
        role: Role::User,
        speaker: None,
        text: text.to_owned(),
    };
    let count = || async { timeline(&cube, &talk).await.entries.len() };
    let table = [
        (named("a", 1_000, turn("the cello lesson")), 1),
        (named("a", 1_000, turn("the cello lesson")), 1),
        (named("b", 500, turn("something that was said before")), 1),
        (named("c", 900, typing("typed before the turn was sent")), 1),
        (named("d", 2_000, typing("typed after that")), 2),
        (named("d", 2_000, typing("typed after that")), 2),
        (named("e", 1_500, typing("overtaken by the one after it")), 2),
        (named("f", 3_000, ConversationEventKind::Paused), 2),
        (named("g", 4_000, ConversationEventKind::Resumed), 3),
        (named("h", 5_000, ConversationEventKind::Closed), 3),
    ];
    for (event, expected) in table {
        cube.note(event.clone()).await.expect("noted");
        pause().await;
        assert_eq!(count().await, expected, "{event:?}");
    }
    assert_eq!(timeline(&cube, &talk).await.working_set, []);
    let nobody = world.cubes.cube(&context(), CubeId::new("nobody").expect("valid"));
    let refused = nobody.note(event(&talk, 1, ConversationEventKind::Paused)).await;
    assert_eq!(refused.expect_err("no such cube").kind(), ErrorKind::NotFound);
    let long = "x".repeat(memcube_schemas::limits::EVENT_TEXT_BYTES_MAX + 1);
    let refused = cube.note(event(&talk, 9_000, typing(&long))).await.expect_err("too long");
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_events_is_refused_and_the_others_are_served() {
    let world = World::new().await;
    world.cubes.schedule(SchedulerParts::default()).await.expect("started");
    let cube = world.cube("ann").await;
    let quiet = TenantContext::authenticated(TenantId::new("quiet").expect("valid"), "q");
    let id = CubeId::new("q").expect("valid");
    let other = world.cubes.ensure(&quiet, id).await.expect("made");
    let talk = Talk::new("talk");
    let flood = (0_i64..10_000).map(|at| {
        let kind =
            if at % 2 == 0 { typing("faster and faster") } else { ConversationEventKind::Paused };
        cube.note(event(&talk, at, kind))
    });
    let answers = join_all(flood).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    assert!(
        refused.iter().all(|error| {
            error.kind() == ErrorKind::Overloaded && error.retry_after().is_some()
        })
    );
    other.note(event(&talk, 1, ConversationEventKind::Paused)).await.expect("there is room");
    pause().await;
    let queue = world.cubes.scheduler().expect("started").queue();
    assert_eq!(queue.depth, 0);
    cube.note(event(&talk, 20_000, ConversationEventKind::Paused)).await.expect("room again");
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_panics_starts_anew_and_loses_no_event() {
    let faults = Arc::new(Crashing::default());
    let environment = Environment::scripted(3).with_faults(Arc::clone(&faults) as Arc<dyn Faults>);
    let (chatting, _) = scheduling(environment).await;
    let (cube, known) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    faults.events.store(1, Ordering::Release);
    say(&cube, &mut talk, "the chess club, the old library, the chess club").await;
    pause().await;
    assert_eq!(faults.events.load(Ordering::Acquire), 0, "it has panicked");
    let told = timeline(&cube, &talk).await;
    assert!(told.working_set.contains(&known[9]), "{told:?}");
    // One that panics again and again is given up, and the next one is dealt with.
    faults.events.store(2, Ordering::Release);
    cube.note(event(&talk, i64::MAX - 1, ConversationEventKind::Paused)).await.expect("noted");
    pause().await;
    say(&cube, &mut talk, "mother bakes rye bread every Sunday").await;
    pause().await;
    assert!(!timeline(&cube, &talk).await.entries.is_empty());
    assert_eq!(chatting.world.cubes.scheduler().expect("started").queue().depth, 0);
}

#[tokio::test(start_paused = true)]
async fn a_preload_that_panics_leaves_no_place_taken() {
    let faults = Arc::new(Crashing::default());
    let environment = Environment::scripted(4).with_faults(Arc::clone(&faults) as Arc<dyn Faults>);
    let (chatting, _) = scheduling(environment).await;
    let (cube, _) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    faults.preloads.store(true, Ordering::Release);
    say(&cube, &mut talk, "the chess club meets in the old library").await;
    pause().await;
    let told = timeline(&cube, &talk).await;
    assert_eq!(told.entries.last().map(|entry| entry.state), Some(PreloadState::Failed));
    assert!(chatting.world.cubes.queues().iter().all(|queue| queue.depth == 0));
    faults.preloads.store(false, Ordering::Release);
    say(&cube, &mut talk, "the chess club meets in the old library").await;
    pause().await;
    let told = timeline(&cube, &talk).await;
    assert_eq!(told.entries.last().map(|entry| entry.state), Some(PreloadState::Loaded));
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_comes_first_overtakes_its_preload_and_is_not_kept_waiting() {
    let (chatting, _) = scheduling(Environment::scripted(5)).await;
    let (cube, _) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    say(&cube, &mut talk, "the choir sings a requiem in November").await;
    // At once, without a pause.
    say(&cube, &mut talk, "the choir sings a requiem").await;
    pause().await;
    let told = timeline(&cube, &talk).await;
    let states: Vec<PreloadState> = told.entries.iter().map(|entry| entry.state).collect();
    assert!(states.iter().all(|state| *state != PreloadState::Running), "{told:?}");
    assert_eq!(states.last(), Some(&PreloadState::Loaded), "{told:?}");
    assert!(chatting.world.cubes.queues().iter().all(|queue| queue.depth == 0));
    // A caller that goes away before the end of a reply is a turn that may come again.
    let chat = talk.request("and what else?");
    let stream = cube.converse(ConverseRequest::new(chat)).await.expect("begun");
    drop(stream);
    pause().await;
    let last = timeline(&cube, &talk).await.entries.last().cloned().expect("one more");
    assert_eq!(last.reason, SceneReason::Resumed);
}

#[tokio::test(start_paused = true)]
async fn what_was_learned_outlives_the_node_until_it_is_reset() {
    let (chatting, _) = scheduling(Environment::scripted(6)).await;
    let (cube, _) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    for topic in TOPICS.iter().cycle().take(20) {
        say(&cube, &mut talk, topic).await;
        talk.turns.clear();
        pause().await;
    }
    let predictor = |cubes: &Cubes| {
        let scheduler = cubes.scheduler().expect("started").clone();
        async move { scheduler.predictor(context().tenant()).await.expect("read") }
    };
    let learned = predictor(&chatting.world.cubes).await;
    assert!(learned.predictor.turns() >= 16, "{}", learned.predictor.turns());
    let World { cubes, store, .. } = chatting.world;
    cubes.shut_down().await;

    let world = World::with(Arc::clone(&store), Environment::scripted(7), 10).await;
    world.cubes.schedule(SchedulerParts::default()).await.expect("started");
    assert_eq!(predictor(&world.cubes).await, learned);
    let scheduler = world.cubes.scheduler().expect("started");
    let reset = scheduler.reset_predictor(context().tenant()).await.expect("reset");
    assert_eq!((reset.generation, reset.predictor.turns()), (1, 0));
    assert_eq!(predictor(&world.cubes).await, reset);
    world.cubes.shut_down().await;
    let world = World::with(store, Environment::scripted(8), 10).await;
    world.cubes.schedule(SchedulerParts::default()).await.expect("started");
    assert_eq!(predictor(&world.cubes).await, reset);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_brings_back_what_was_in_use() {
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let world = World::with(Arc::clone(&store), Environment::scripted(9), 10).await;
    world.cube("ann").await.add(said(&TOPICS)).await.expect("added");
    world.cubes.shut_down().await;
    let world = World::with(store, Environment::scripted(10), 10).await;
    let key = CubeKey { tenant: context().tenant().clone(), cube: CubeId::new("ann").expect("ok") };
    assert!(!world.cubes.is_hot_here(&key));
    world.cubes.schedule(SchedulerParts::default()).await.expect("started");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.cubes.is_hot_here(&key));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_cube_tells_what_was_said() {
    let (chatting, _) = scheduling(Environment::scripted(12)).await;
    let (cube, known) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    say(&cube, &mut talk, "mother bakes rye bread every Sunday").await;
    pause().await;
    let World { cubes, store, .. } = chatting.world;
    cubes.shut_down().await;
    let world = World::with(store, Environment::scripted(13), 10).await;
    world.cubes.schedule(SchedulerParts::default()).await.expect("started");
    let cube = world.cube("ann").await;
    // Nothing is said in it; only that the user is back.
    cube.note(event(&talk, 1, ConversationEventKind::Resumed)).await.expect("noted");
    pause().await;
    let told = timeline(&cube, &talk).await;
    assert_eq!(told.working_set.first(), Some(&known[3]), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_conversation_goes_with_its_cube() {
    let (chatting, _) = scheduling(Environment::scripted(11)).await;
    let (cube, _) = knowing(&chatting, "ann").await;
    let mut talk = Talk::new("talk");
    say(&cube, &mut talk, "the cello lesson").await;
    pause().await;
    assert!(!timeline(&cube, &talk).await.entries.is_empty());
    cube.erase().await.expect("erased");
    let cube = chatting.world.cube("ann").await;
    assert!(timeline(&cube, &talk).await.entries.is_empty());
    let conversation = ConversationId::new("talk").expect("valid");
    assert_eq!(cube.scenes(&conversation).await.expect("told").working_set, []);
}
