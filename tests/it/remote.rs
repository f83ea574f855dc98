//! A language model behind a server: every way in which a server can fail, and prompts of which
//! each begins with the one before.

mod server;

use std::time::Duration;

use futures_util::future::join_all;
use memcube::{
    Node, Settings,
    inference::openai::OpenAiModel,
    settings::{InferenceKind, Secret},
};
use memcube_actors::{
    Error, ErrorKind, TenantContext,
    cube::{
        AddRequest, ChatRequest, ChatTurn, CubeHandle, DeleteRequest, PreloadRequest, SearchRequest,
    },
    inference::{FinishReason, ReplyEvent, activation_cache::Tier},
};
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    command::Selection,
    conversation::{Message, Role},
};
use serde_json::json;

use self::server::{Does, ModelServer};
use crate::support::{eventually, in_memory};

const API_KEY: &str = "key-of-the-server";

fn settings(url: &str) -> Settings {
    let mut settings = in_memory();
    settings.inference.kind = InferenceKind::OpenAi;
    settings.inference.url = Some(url.to_owned());
    settings.inference.remote_model = Some("m".to_owned());
    settings.inference.api_key = Some(Secret::new(API_KEY));
    settings.inference.first_token_timeout_ms = 1_500;
    settings.inference.timeout_ms = 20_000;
    settings
}

async fn node(url: &str) -> Node {
    let node = Node::builder().with_settings(settings(url)).start();
    Box::pin(node).await.expect("the node starts without the server")
}

async fn cube(node: &Node) -> CubeHandle {
    let tenant = TenantContext::authenticated(TenantId::new("test").expect("valid"), "test");
    let id = CubeId::new("ann").expect("valid");
    node.cubes().create(&tenant, id.clone(), None, None).await.expect("made");
    node.cubes().cube(&tenant, id)
}

fn conversation() -> ConversationId {
    ConversationId::new("talk").expect("valid")
}

fn ask(text: &str) -> ChatRequest {
    let preamble = "You are a friend.".to_owned();
    ChatRequest { preamble, tokens_max: 100, ..ChatRequest::new(conversation(), text) }
}

type Row = (&'static str, Vec<Does>, Result<&'static str, (ErrorKind, &'static str)>, usize);

/// What the server does, what is said or goes wrong, and how often it is asked.
fn table() -> Vec<Row> {
    use Does::{
        CutsAfter, Ignores, LeavesAfter, Raw, Refuses, Says, SendsForEver, StallsAfter,
        TalksForEver,
    };
    use ErrorKind::{Invalid, Overloaded, Unavailable};
    let words = Ok("word0 word1 word2 word3 ");
    let failed = Refuses(500, None, "oh");
    let no_model = r#"{"error": {"message": "no such model", "code": "model_not_found"}}"#;
    let too_long = r#"{"error": {"message": "maximum context length is 9 tokens"}}"#;
    let quota = r#"{"error": {"message": "pay", "code": "insufficient_quota"}}"#;
    let whole =
        r#"{"choices": [{"message": {"content": "all at once"}, "finish_reason": "stop"}]}"#;
    let renamed = r#"{"error": {"message": "use max_completion_tokens", "param": "max_tokens"}}"#;
    vec![
        ("all is well", vec![Says], words, 1),
        (
            "a wrong key",
            vec![Refuses(401, None, r#"{"error": {"message": "bad key key-of-th****"}}"#)],
            Err((Unavailable, "does not accept the key; set `inference.api-key`")),
            1,
        ),
        ("a weak key", vec![Refuses(403, None, "")], Err((Unavailable, "`inference.api-key`")), 1),
        (
            "no such model",
            vec![Refuses(404, None, no_model)],
            Err((Unavailable, "no such model; set `inference.remote-model`")),
            1,
        ),
        ("too long", vec![Refuses(400, None, too_long)], Err((Invalid, "maximum context")), 1),
        ("another dialect", vec![Refuses(400, None, renamed)], words, 2),
        ("busy, then well", vec![Refuses(429, Some("1"), ""), Says], words, 2),
        ("busy for long", vec![Refuses(429, Some("90"), "")], Err((Overloaded, "too much")), 1),
        ("no money", vec![Refuses(429, Some("1"), quota)], Err((Unavailable, "pay")), 1),
        ("fails twice", vec![failed.clone(), failed.clone(), Says], words, 3),
        (
            "fails",
            vec![failed; 3],
            Err((Unavailable, "has failed (500 Internal Server Error): oh")),
            3,
        ),
        ("ignores once", vec![Ignores, Says], words, 2),
        ("ignores", vec![Ignores; 3], Err((Unavailable, "`inference.first-token-timeout-ms`")), 3),
        ("stalls at first", vec![StallsAfter(0), Says], words, 2),
        ("stalls", vec![StallsAfter(2)], Err((Unavailable, "has said nothing for 1500 ms")), 1),
        ("cut at first", vec![CutsAfter(0), Says], words, 2),
        ("cut", vec![CutsAfter(2)], Err((Unavailable, "look at its log")), 1),
        ("leaves", vec![LeavesAfter(3)], Err((Unavailable, "before the end of a reply")), 1),
        (
            "a web page",
            vec![Raw("text/html; charset=utf-8", "<html>")],
            Err((Unavailable, "its answer is of type `text/html; charset=utf-8`")),
            1,
        ),
        (
            "garbage",
            vec![Raw("text/event-stream", "data: {{{\n\n")],
            Err((Unavailable, "does not speak OpenAI's chat completions")),
            1,
        ),
        (
            "garbage in one piece",
            vec![Raw("application/json", "{{{")],
            Err((Unavailable, "no reply")),
            1,
        ),
        ("all in one piece", vec![Raw("application/json", whole)], Ok("all at once"), 1),
        ("talks for ever", vec![TalksForEver], Err((Unavailable, "bytes for one reply")), 1),
        ("sends for ever", vec![SendsForEver], Err((Unavailable, "without an end")), 1),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_server_does_it_is_an_answer_or_an_error_that_says_what_to_do() {
    let rows = table().into_iter().map(|(name, script, expected, times)| async move {
        let server = ModelServer::start(script).await;
        let node = node(&server.url).await;
        let said = match cube(&node).await.chat(ask("hello")).await {
            Ok(mut stream) => stream.collect().await,
            Err(error) => Err(error),
        };
        let said = said.map(|(text, _)| text);
        match (&said, expected) {
            (Ok(said), Ok(expected)) => assert_eq!(said, expected, "{name}"),
            (Err(error), Err((kind, piece))) => {
                assert_eq!(error.kind(), kind, "{name}: {error}");
                assert!(error.message().contains(piece), "{name}: {error}");
                assert!(!error.message().contains("key-of"), "{name}: {error}");
            }
            (said, expected) => panic!("{name}: {said:?}, and {expected:?} was expected"),
        }
        assert_eq!(server.asked().len(), times, "{name}");
        for (headers, body) in server.asked() {
            assert_eq!(headers["authorization"], format!("Bearer {API_KEY}").as_str(), "{name}");
            assert_eq!(body["model"], "m", "{name}");
        }
        eventually(name, || async { server.open() == 0 }).await;
        node.shut_down().await;
    });
    join_all(rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_listens_it_says_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    drop(listener);
    let node = node(&url).await;
    let refused = cube(&node).await.chat(ask("hello")).await.expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let message = refused.message();
    assert!(message.contains("refused") && message.contains("`inference.url`"), "{message}");
    node.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_goes_away_closes_the_connection() {
    let server = ModelServer::start([Does::StallsAfter(2), Does::Ignores]).await;
    let node = node(&server.url).await;
    let cube = cube(&node).await;
    let mut stream = cube.chat(ask("hello")).await.expect("begun");
    assert!(matches!(stream.next().await, Some(Ok(ReplyEvent::Text(_)))));
    assert_eq!(server.open(), 1);
    drop(stream);
    eventually("closed in the middle", || async { server.open() == 0 }).await;
    let waiting = tokio::time::timeout(Duration::from_millis(300), cube.chat(ask("hello")));
    assert!(waiting.await.is_err());
    eventually("closed before the first word", || async { server.open() == 0 }).await;
    assert_eq!(server.asked().len(), 2);
    node.shut_down().await;
}

async fn remember(cube: &CubeHandle, texts: &[&str]) -> Vec<MemoryId> {
    let message = |text: &&str| Message {
        role: Role::User,
        speaker: None,
        content: (*text).to_owned(),
        chat_time: None,
        message_id: None,
    };
    let messages = texts.iter().map(message).collect();
    let added = cube.add(AddRequest { messages, ..AddRequest::default() }).await.expect("added");
    added.memories.iter().map(|memory| memory.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_prompt_begins_with_the_one_before_and_forgets_what_is_deleted() {
    let server = ModelServer::start([]).await;
    let node = node(&server.url).await;
    let cube = cube(&node).await;
    let facts = ["Ann moved to Lisbon in May", "Ann has a greyhound", "Bo plays the tuba"];
    let ids = remember(&cube, &facts).await;
    let mut turns = Vec::new();
    let mut say = async |message: &str| {
        let recall = SearchRequest { top_k: 1, ..SearchRequest::new(message) };
        let asked = ChatRequest { turns: turns.clone(), recall: Some(recall), ..ask(message) };
        let mut stream = cube.chat(asked.clone()).await.expect("begun");
        let (text, finished) = stream.collect().await.expect("said");
        stream.kept().await.expect("kept").expect("durable");
        turns.extend([asked.message, ChatTurn::new(Role::Assistant, text)]);
        (finished, turns.clone())
    };
    let (finished, _) = say("where did Ann move, Lisbon?").await;
    assert!(finished.reuse.reused_tokens[&Tier::Remote] > 0, "{finished:?}");
    let (_, turns) = say("and her greyhound?").await;
    let ahead = PreloadRequest {
        conversation: conversation(),
        preamble: ask("").preamble,
        turns,
        memories: vec![ids[2]],
        ms_max: 10_000,
    };
    let ahead = cube.preload(ahead).await.expect("read ahead");
    assert!(ahead.kept.context && ahead.finished.reason == FinishReason::Preloaded);
    say("who plays the tuba?").await;
    let prompts = server.prompts();
    assert_eq!(prompts.len(), 4);
    for pair in prompts.windows(2) {
        assert!(pair[1].starts_with(&pair[0]), "{}\n---\n{}", pair[0], pair[1]);
    }
    assert!(facts.iter().all(|fact| prompts[3].contains(fact)), "{}", prompts[3]);
    let tokens: Vec<_> =
        server.asked().iter().map(|(_, body)| body["max_tokens"].clone()).collect();
    assert_eq!(tokens, [json!(100), json!(100), json!(1), json!(100)]);
    // Only the two parts that nobody touched are still there.
    let selection = Selection::Ids(vec![ids[0]]);
    cube.delete(DeleteRequest { selection, purge: false }).await.expect("deleted");
    say("what else?").await;
    let last = server.prompts().pop().expect("asked");
    assert!(!last.contains(facts[0]) && last.contains(facts[1]), "{last}");
    node.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_go_there_and_calls_come_back() {
    let server = ModelServer::start([Does::CallsTool]).await;
    let node = node(&server.url).await;
    let cube = cube(&node).await;
    let tools = json!({"tools": [{"type": "function", "function": {"name": "clock"}}]});
    let extra = Some(tools.to_string().into());
    let mut stream = cube.chat(ChatRequest { extra, ..ask("time?") }).await.expect("begun");
    let Some(Ok(ReplyEvent::ToolCalls(calls))) = stream.next().await else { panic!("no calls") };
    let (_, finished) = stream.collect().await.expect("ended");
    assert_eq!(finished.reason, FinishReason::ToolCalls);
    assert_eq!(server.asked()[0].1["tools"], tools["tools"]);

    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "a"}]});
    let result = json!({"role": "tool", "tool_call_id": "a", "content": "noon"});
    let turns = vec![
        ChatTurn::new(Role::User, "time?"),
        ChatTurn::new(Role::Assistant, "").with_wire(call.to_string()),
    ];
    let message = ChatTurn::new(Role::Tool, "noon").with_wire(result.to_string());
    let asked = ChatRequest { turns, message, recall: None, ..ask("") };
    cube.chat(asked).await.expect("begun").collect().await.expect("said");
    let messages = server.asked()[1].1["messages"].clone();
    assert_eq!((&messages[2], &messages[3]), (&call, &result), "{messages} after {calls}");
    node.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_asks_for_the_models() {
    let server = ModelServer::start([]).await;
    let check = async |change: fn(&mut Settings)| -> Result<String, Error> {
        let mut settings = settings(&server.url);
        change(&mut settings);
        OpenAiModel::of(&settings.inference)?.check().await
    };
    let told = check(|_| {}).await.expect("it has the model");
    assert_eq!(told, format!("`m` at {}", server.url));
    type Change = fn(&mut Settings);
    let table: [(Change, &str); 4] = [
        (
            |s| s.inference.remote_model = Some("gone".into()),
            "one of those that it has: `m`, `other`",
        ),
        (|s| s.inference.url = s.inference.url.take().map(|url| url + "/v2"), "`inference.url`"),
        (|s| s.inference.url = None, "`inference.url` is missing"),
        (|s| s.inference.tls_ca = Some("/nowhere".into()), "`inference.tls-ca` `/nowhere`"),
    ];
    for (change, expected) in table {
        let error = check(change).await.expect_err(expected);
        assert!(error.message().contains(expected), "{error}");
    }
    assert!(server.asked().is_empty());
}

/// The other process answers with a model of its own, which needs the local engine.
#[cfg(feature = "candle")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_memcube_answers_with_its_model_and_what_it_has_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    let server = tokio::task::spawn_blocking(move || crate::chat::serve(&path)).await;
    let server = server.expect("it starts");
    let mut settings = settings(&format!("{}/v1", server.client.address));
    let list = server.client.get("/v1/models").await.expect(200);
    let model = list["data"].as_array().expect("a list").iter();
    let model = model.filter_map(|model| model["id"].as_str()).find(|id| id.contains("smollm"));
    settings.inference.remote_model = model.map(str::to_owned);
    settings.inference.api_key = Some(Secret::new(crate::support::KEY));
    settings.inference.first_token_timeout_ms = 60_000;
    let told = OpenAiModel::of(&settings.inference).expect("an address").check().await;
    assert!(told.expect("it has the model").contains("smollm"));
    let node = Node::builder().with_settings(settings);
    let node = Box::pin(node.start()).await.expect("the node starts");
    let cube = cube(&node).await;
    remember(&cube, &["Ann has a greyhound called Luna"]).await;
    // What the other one knows itself stays out of it.
    let extra = json!({"user": "guest", "memcube": {"recall": false}});
    let mut turns = Vec::new();
    let mut read = 0;
    for message in ["What is Ann's greyhound called?", "Say it again.", "And again."] {
        let extra = Some(extra.to_string().into());
        let asked = ChatRequest { turns: turns.clone(), extra, tokens_max: 8, ..ask(message) };
        let mut stream = cube.chat(asked.clone()).await.expect("begun");
        let (text, finished) = stream.collect().await.expect("said");
        stream.kept().await.expect("kept").expect("durable");
        assert!(!text.is_empty() && finished.timings.reply_tokens > 0, "{finished:?}");
        let reused = finished.reuse.reused();
        assert!(reused >= read, "{message}: {reused} of {read} tokens");
        read = reused + finished.reuse.computed_tokens;
        turns.extend([asked.message, ChatTurn::new(Role::Assistant, text)]);
    }
    assert!(read > 60, "{read} tokens");
    node.shut_down().await;
}
