//! A scripted model elsewhere on paused time: in time, within bounds, in turn, and nothing is sent
//! of what was forgotten.

use std::time::Duration;

use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    limits::{
        INFERENCE_REQUESTS_MAX, REMOTE_PRELOADS_MAX, REMOTE_REPLY_BYTES_MAX, REMOTE_REQUESTS_MAX,
    },
};

use super::{
    scripted::{RemoteCosts, RemoteFault, ScriptedRemote},
    *,
};
use crate::{
    cube::CubeKey,
    environment::Environment,
    error::Result,
    inference::{
        activation_cache::{Contents, Forgotten, Lease, Tier},
        request::{Finished, ReplyStream},
    },
};

struct World {
    server: ScriptedRemote,
    remote: RemoteHandle,
    environment: Environment,
}

const SETTINGS: RemoteSettings = RemoteSettings {
    ms_max: 60_000,
    silence_ms_max: 5_000,
    retries: 2,
    tokens_per_minute: 0,
    tenant_tokens_per_minute: 0,
    preloads: true,
};

impl World {
    async fn new() -> Self {
        Self::with(SETTINGS, RemoteCosts::default()).await
    }

    async fn with(settings: RemoteSettings, costs: RemoteCosts) -> Self {
        let model = ModelId::new("scripted").expect("valid");
        let server = ScriptedRemote::new(model, 8_192, costs);
        let environment = Environment::scripted(3);
        let parts = RemoteParts { model: Arc::new(server.clone()), settings };
        let remote = RemoteHandle::start(parts, environment.clone()).await.expect("started");
        Self { server, remote, environment }
    }

    fn lease(&self) -> Lease {
        self.remote.cache().lease(key("acme"))
    }

    async fn ask(&self, text: &str) -> Result<ReplyStream> {
        self.remote.reply(self.lease(), asked(text)).await
    }

    async fn say(&self, text: &str) -> Result<(String, Finished)> {
        self.ask(text).await?.collect().await
    }

    fn now_ms(&self) -> u64 {
        self.environment.monotonic_us() / 1_000
    }

    /// Nothing is left of anything.
    async fn check_idle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(self.server.open_replies(), 0, "connections");
        assert_eq!(self.remote.queues().map(|queue| queue.depth), [0, 0]);
    }
}

fn key(tenant: &str) -> CubeKey {
    CubeKey {
        tenant: TenantId::new(tenant).expect("valid"),
        cube: CubeId::new("ann").expect("valid"),
    }
}

fn memory(id: u64) -> MemoryId {
    MemoryId::from_parts(id, 0)
}

fn asked(text: &str) -> Asked {
    let turn =
        RemoteTurn { role: Role::User, memories: String::new(), text: text.to_owned(), wire: None };
    let conversation = ConversationId::new("talk").expect("valid");
    Asked {
        conversation: conversation.clone(),
        request: RemoteRequest {
            messages: vec![turn],
            sampling: Sampling::GREEDY,
            seed: 0,
            tokens_max: 40,
            stops: Vec::new(),
            extra: None,
        },
        sources: Contents::said_in(conversation, [memory(1)].into_iter()),
        prompt_tokens: text.len().div_ceil(4),
        prompt_bytes: text.len(),
        ms_max: 30_000,
    }
}

fn refuse(failure: RemoteFailure, retry_after_ms: Option<u64>) -> RemoteFault {
    RemoteFault::Refuse(RemoteError { retry_after_ms, ..RemoteError::new(failure, "scripted") })
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_before_the_first_word_and_nothing_else() {
    use RemoteFailure::*;
    type Row = (Vec<RemoteFault>, std::result::Result<(), ErrorKind>, usize, [u64; 2]);
    let again = |failure| refuse(failure, None);
    // Faults, what comes of it, how often the server was asked, and in how many milliseconds.
    let table: Vec<Row> = vec![
        (vec![], Ok(()), 1, [200, 400]),
        (vec![again(Failed), again(Failed)], Ok(()), 3, [900, 2_100]),
        (vec![again(Failed); 3], Err(ErrorKind::Unavailable), 3, [700, 1_700]),
        (vec![again(Unreachable)], Ok(()), 2, [400, 900]),
        (vec![refuse(Busy, Some(7_000))], Ok(()), 2, [7_200, 7_600]),
        // Later than anybody waits for it.
        (vec![refuse(Busy, Some(60_000))], Err(ErrorKind::Overloaded), 1, [0, 50]),
        (vec![again(Unauthorized)], Err(ErrorKind::Unavailable), 1, [0, 50]),
        (vec![again(NotFound)], Err(ErrorKind::Unavailable), 1, [0, 50]),
        (vec![again(Rejected)], Err(ErrorKind::Invalid), 1, [0, 50]),
        (vec![again(Garbled)], Err(ErrorKind::Unavailable), 1, [0, 50]),
        (vec![RemoteFault::Cut(0)], Ok(()), 2, [400, 900]),
        (vec![RemoteFault::Stall(0)], Ok(()), 2, [5_300, 6_000]),
        (vec![RemoteFault::Stall(0); 3], Err(ErrorKind::Unavailable), 3, [15_700, 17_000]),
        // Somebody has read the first words already.
        (vec![RemoteFault::Cut(2)], Err(ErrorKind::Unavailable), 1, [30, 200]),
        (vec![RemoteFault::Stall(2)], Err(ErrorKind::Unavailable), 1, [5_000, 5_200]),
        (
            vec![RemoteFault::Break(1, RemoteError::new(Failed, "scripted"))],
            Err(ErrorKind::Unavailable),
            1,
            [30, 200],
        ),
        (
            vec![RemoteFault::Endless(REMOTE_REPLY_BYTES_MAX / 7)],
            Err(ErrorKind::Unavailable),
            1,
            [100, 300],
        ),
    ];
    for (row, (faults, expected, times, [least_ms, most_ms])) in table.into_iter().enumerate() {
        let world = World::new().await;
        world.server.fail_next(faults);
        let start_ms = world.now_ms();
        let said = world.say("what is it that you remember of all this?").await;
        let took_ms = world.now_ms() - start_ms;
        assert_eq!(said.as_ref().map(|_| ()).map_err(Error::kind), expected, "row {row}: {said:?}");
        assert_eq!(world.server.asked().len(), times, "row {row}");
        assert!((least_ms..=most_ms).contains(&took_ms), "row {row}: {took_ms} ms");
        world.check_idle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_away_takes_the_question_back() {
    let world = World::new().await;
    // Before the first word.
    world.server.fail_next([RemoteFault::Stall(0)]);
    let waiting = tokio::time::timeout(Duration::from_secs(1), world.ask("hello"));
    assert!(waiting.await.is_err());
    world.check_idle().await;
    // In the middle.
    let mut stream = world.ask("hello").await.expect("begun");
    assert!(matches!(stream.next().await, Some(Ok(crate::inference::ReplyEvent::Text(_)))));
    assert_eq!(world.server.open_replies(), 1);
    drop(stream);
    world.check_idle().await;
    // Without reading.
    let costs = RemoteCosts { said_tokens: 100_000, say_us: 10, ..RemoteCosts::default() };
    let world = World::with(SETTINGS, costs).await;
    let mut asked = asked("hello");
    asked.request.tokens_max = 100_000;
    let stream = world.remote.reply(world.lease(), asked).await.expect("begun");
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.check_idle().await;
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_reply_with_what_there_was_time_for() {
    let world = World::new().await;
    let (whole, _) = world.say("hello").await.expect("said");
    let asked = Asked { ms_max: 130, ..asked("hello") };
    let stream = world.remote.reply(world.lease(), asked).await.expect("begun");
    let (text, finished) = stream.collect().await.expect("in time");
    assert_eq!(finished.reason, FinishReason::Deadline);
    assert!(!text.is_empty() && whole.starts_with(&text) && text != whole, "{text} of {whole}");
    world.check_idle().await;
}

#[tokio::test(start_paused = true)]
async fn any_number_of_stop_words_ends_a_reply() {
    let world = World::new().await;
    let (whole, _) = world.say("hello").await.expect("said");
    let word = whole.split(' ').nth(3).expect("a fourth word");
    let mut asked = asked("hello");
    asked.request.stops = (0..9).map(|n| format!("never{n}")).chain([word.to_owned()]).collect();
    let stream = world.remote.reply(world.lease(), asked).await.expect("begun");
    let (text, finished) = stream.collect().await.expect("said");
    assert_eq!(finished.reason, FinishReason::Stop);
    assert!(whole.starts_with(&text) && !text.contains(word));
    world.check_idle().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_while_a_request_waits_is_never_sent() {
    let world = World::new().await;
    let forget = |id| {
        let memories = [memory(id)].into_iter().collect();
        let forgotten = Forgotten { memories, ..Forgotten::default() };
        let CubeKey { tenant, cube } = key("acme");
        world.remote.cache().forget(&tenant, &cube, &forgotten, &[]);
    };
    // While the prompt was made.
    let lease = world.lease();
    forget(1);
    let refused = world.remote.reply(lease, asked("hello")).await;
    assert_eq!(refused.expect_err("made of it").kind(), ErrorKind::Conflict);
    assert!(world.server.asked().is_empty());
    // Between two tries; another memory of the cube changes nothing.
    for (id, expected) in [(9, None), (1, Some(ErrorKind::Conflict))] {
        world.server.fail_next([refuse(RemoteFailure::Busy, Some(2_000))]);
        let before = world.server.asked().len();
        let (said, ()) = tokio::join!(world.say("hello"), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            forget(id);
        });
        assert_eq!(said.err().map(|error| error.kind()), expected);
        let times = world.server.asked().len() - before;
        assert_eq!(times, if expected.is_some() { 1 } else { 2 });
    }
    world.check_idle().await;
}

#[tokio::test(start_paused = true)]
async fn answers_go_before_preloads_and_too_many_are_refused() {
    let world = World::new().await;
    let preload = || world.remote.preload(world.lease(), asked("ahead"));
    let answers = futures_util::future::join_all((0..20).map(|_| world.say("hello")));
    let preloads = futures_util::future::join_all((0..10).map(|_| preload()));
    // In this order whenever both may go on, so that the server's list shows who had turns.
    let (answers, preloads) = tokio::join!(biased; answers, preloads);
    assert!(answers.iter().all(Result::is_ok));
    let refused = preloads.iter().filter(|preload| preload.is_err()).count();
    assert_eq!(refused, 10 - REMOTE_PRELOADS_MAX);
    let order: Vec<bool> = {
        let asked = world.server.asked();
        asked.iter().map(|asked| asked.messages[0].text == "ahead").collect()
    };
    let first_ahead = order.iter().position(|is_ahead| *is_ahead).expect("some were sent");
    assert_eq!(first_ahead, 20, "nobody waits for an answer by then: {order:?}");
    world.check_idle().await;

    let many = (0..INFERENCE_REQUESTS_MAX + 5).map(|_| world.say("hello"));
    let said = futures_util::future::join_all(many).await;
    let refused: Vec<&Error> = said.iter().filter_map(|said| said.as_ref().err()).collect();
    assert_eq!(refused.len(), 5);
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::Overloaded));
    world.check_idle().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_than_so_many_are_with_the_server_at_a_time() {
    let world = World::new().await;
    let asking = futures_util::future::join_all((0..40).map(|_| world.say("hello")));
    let watching = async {
        let mut most = 0;
        for _ in 0..200 {
            most = most.max(world.server.open_replies());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        most
    };
    let (said, most) = tokio::join!(asking, watching);
    assert!(said.iter().all(Result::is_ok));
    assert_eq!(most, REMOTE_REQUESTS_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_budget_delays_or_refuses_and_is_settled_by_what_the_server_counts() {
    let settings = RemoteSettings { tokens_per_minute: 600, ..SETTINGS };
    let world = World::with(settings, RemoteCosts::default()).await;
    let long = "a text of some length, so that it counts ".repeat(40);
    let start_ms = world.now_ms();
    // 410 tokens and 40 are estimated; the server counts 328 and 12.
    world.say(&long).await.expect("within the budget");
    assert!(world.now_ms() - start_ms < 1_000);
    world.say(&long).await.expect("a little later");
    let took_ms = world.now_ms() - start_ms;
    assert!((18_000..20_000).contains(&took_ms), "190 tokens were missing: {took_ms} ms");
    // What is sent ahead would have to leave half of it.
    let refused = world.remote.preload(world.lease(), asked(&long)).await;
    assert_eq!(refused.expect_err("not now").kind(), ErrorKind::Overloaded);
    let late = Asked { ms_max: 1_000, ..asked(&long) };
    let refused = world.remote.reply(world.lease(), late).await.expect_err("not in a second");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.retry_after().is_some_and(|ms| ms > 10_000), "{refused:?}");
    assert_eq!(world.server.asked().len(), 2);
    world.check_idle().await;

    let settings = RemoteSettings { tenant_tokens_per_minute: 500, ..SETTINGS };
    let world = World::with(settings, RemoteCosts::default()).await;
    world.say(&long).await.expect("within the budget");
    let late = || Asked { ms_max: 1_000, ..asked(&long) };
    assert!(world.remote.reply(world.lease(), late()).await.is_err(), "its tenant has spent it");
    let other = world.remote.cache().lease(key("apex"));
    world.remote.reply(other, late()).await.expect("another tenant").collect().await.expect("said");
}

#[tokio::test(start_paused = true)]
async fn usage_is_told_and_teaches_how_long_tokens_are() {
    let world = World::new().await;
    let long = "a text of some length, so that it counts ".repeat(40);
    let (_, first) = world.say(&long).await.expect("said");
    let tokens = (long.len() + "<user>".len()).div_ceil(scripted::BYTES_PER_TOKEN);
    assert_eq!((first.reuse.computed_tokens, first.reuse.reused()), (tokens, 0));
    assert_eq!(world.remote.tokens_per_1000_bytes(), 199, "five bytes a token, but for marks");
    let (_, again) = world.say(&long).await.expect("said");
    assert_eq!(again.reuse.reused_tokens.get(&Tier::Remote), Some(&(tokens - 1)));
    assert_eq!(again.reuse.computed_tokens, 1);
    assert!(again.timings.first_token_us * 3 < first.timings.first_token_us);

    let off = RemoteSettings { preloads: false, ..SETTINGS };
    let world = World::with(off, RemoteCosts::default()).await;
    let finished = world.remote.preload(world.lease(), asked(&long)).await.expect("nothing to do");
    assert_eq!(finished.reason, FinishReason::Preloaded);
    assert!(world.server.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_does_not_fit_is_refused_with_the_setting() {
    let world = World::new().await;
    let refused = world.ask(&"x".repeat(4 * 8_192)).await.expect_err("too long");
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.message().contains("`inference.window-tokens`"), "{refused}");
    world.remote.kill();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!world.remote.is_alive());
    assert_eq!(world.ask("hello").await.expect_err("ended").kind(), ErrorKind::Unavailable);
}
