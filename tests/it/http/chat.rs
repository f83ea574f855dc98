//! OpenAI's wire over a scripted model: chats that remember, embeddings, models.

use std::{
    io::BufRead,
    sync::{Arc, Mutex},
    time::Duration,
};

use memcube::Node;
use memcube_actors::{
    embedder::ScriptedEmbedder,
    inference::{
        ChatMessage, Engine, EngineFacts, EngineResult, Rendered, Session, Token,
        scripted::{ScriptedCosts, ScriptedEngine},
    },
    storage::{Commit, Mutation},
};
use memcube_schemas::{TenantId, codec::encode, cube::ApiKeyRecord, keys};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Answer, Client, TestNode, check_table, eventually, in_memory};

const CHAT: &str = "/v1/chat/completions";
/// A model that takes no time.
const AT_ONCE: ScriptedCosts =
    ScriptedCosts { prefill_us: 0, look_back_ns: 0, step_us: 0, copy_ns: 0 };
/// A key of another tenant.
const RIVAL_KEY: &str = "mck_fedcba9876543210fedcba9876543210";

/// The scripted model, with all that it was given to read since somebody looked.
struct Reading {
    model: ScriptedEngine,
    read: Mutex<String>,
}

impl Reading {
    fn new(costs: ScriptedCosts) -> Arc<Self> {
        let model = ScriptedEngine::new(8_192, 1 << 30, costs);
        Arc::new(Self { model, read: Mutex::default() })
    }

    /// What the last prompts said, besides what the model itself had said.
    fn take(&self) -> String {
        std::mem::take(&mut self.read.lock().expect("no panic"))
    }
}

impl Engine for Reading {
    fn facts(&self) -> &EngineFacts {
        self.model.facts()
    }

    fn tokenize(&self, text: &str) -> EngineResult<Vec<Token>> {
        self.model.tokenize(text)
    }

    fn bytes_of(&self, token: Token) -> Vec<u8> {
        self.model.bytes_of(token)
    }

    fn render(&self, message: &ChatMessage, is_first: bool) -> EngineResult<Rendered> {
        self.read.lock().expect("no panic").push_str(&message.pieces.concat());
        self.model.render(message, is_first)
    }

    fn open_reply(&self) -> Vec<Token> {
        self.model.open_reply()
    }

    fn close_reply(&self) -> Vec<Token> {
        self.model.close_reply()
    }

    fn open(&self) -> EngineResult<Box<dyn Session>> {
        self.model.open()
    }
}

async fn chatting(engine: &Arc<Reading>) -> TestNode {
    let engine: Arc<dyn Engine> = Arc::<Reading>::clone(engine);
    TestNode::build(Node::builder().with_settings(in_memory()).with_engine(engine)).await
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// The pieces of a streamed answer; the last line must be `[DONE]`.
fn pieces(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let lines = answer.text.lines().filter_map(|line| line.strip_prefix("data: "));
    let lines: Vec<&str> = lines.collect();
    let (last, rest) = lines.split_last().expect("an answer");
    assert_eq!(*last, "[DONE]", "{}", answer.text);
    rest.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn ids(memories: &Value) -> Vec<String> {
    let ids = memories.as_array().expect("a list").iter();
    ids.map(|memory| memory["id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_tells_its_memories_and_becomes_one() {
    let engine = Reading::new(AT_ONCE);
    let node = chatting(&engine).await;
    node.client.cube("ann").await;
    let fact = node.client.fact("ann", "Ann's greyhound is called Otto").await;
    let body = json!({"model": "scripted-chat", "cube": "ann", "messages": [
        {"role": "system", "content": "be kind"}, user("what is my greyhound called")]});
    let reply = node.client.post(CHAT, body).await.expect(200);
    assert_eq!(
        (&reply["object"], &reply["model"]),
        (&json!("chat.completion"), &json!("scripted-chat@1"))
    );
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    let choice = &reply["choices"][0];
    let text = choice["message"]["content"].as_str().expect("a text");
    assert!(!text.is_empty());
    assert_eq!(
        (&choice["message"]["role"], &choice["finish_reason"]),
        (&json!("assistant"), &json!("stop"))
    );
    let usage = &reply["usage"];
    let number = |value: &Value| value.as_u64().expect("a number");
    let total = number(&usage["prompt_tokens"]) + number(&usage["completion_tokens"]);
    assert_eq!(number(&usage["total_tokens"]), total);

    let memcube = &reply["memcube"];
    assert_eq!((&memcube["cube"], &memcube["version"]), (&json!("ann"), &json!(1)));
    assert_eq!(memcube["memories"], json!([{"id": fact, "revision": 1}]));
    assert_eq!((&memcube["left_out"], &memcube["turns_left_out"]), (&json!([]), &json!(0)));
    assert!(memcube["conversation"].as_str().is_some_and(|name| name.starts_with("chat-")));
    let timings = &memcube["timings"];
    let computed = number(&timings["tokens_computed"]) + number(&timings["tokens_from_cache"]);
    assert_eq!(computed, number(&usage["prompt_tokens"]));
    assert!(timings["ttft_ms"].as_f64() <= timings["total_ms"].as_f64(), "{timings}");
    assert!(timings["recall_ms"].as_f64() > Some(0.0), "{timings}");
    assert!(engine.take().contains("greyhound is called Otto"));

    let remembered = memcube["remembered"]["ids"].as_array().expect("ids").len();
    assert_eq!((remembered, &memcube["remembered"]["version"]), (2, &json!(2)));
    let texts = node.client.texts("ann").await;
    assert!(texts[1].ends_with("user: what is my greyhound called"), "{texts:?}");
    assert!(texts[2].ends_with(&format!("assistant: {}", text.trim())), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_the_same_piece_by_piece() {
    let node = chatting(&Reading::new(AT_ONCE)).await;
    let ask = |remember: bool, stream: bool| {
        json!({"user": "ann", "messages": [user("tell me something")], "stream": stream,
            "stream_options": {"include_usage": true}, "memcube": {"remember": remember}})
    };
    let whole = node.client.post(CHAT, ask(false, false)).await.expect(200);
    assert!(whole["memcube"].get("remembered").is_none(), "{whole}");
    assert!(node.client.texts("ann").await.is_empty());

    let pieces = pieces(&node.client.post(CHAT, ask(true, true)).await);
    let [first, .., last, usage] = pieces.as_slice() else { panic!("{pieces:?}") };
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(first["memcube"]["memories"], json!([]));
    assert_eq!(first["memcube"]["cube"], "ann");
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert!(last["memcube"]["timings"]["total_ms"].is_number(), "{last}");
    assert_eq!(last["memcube"]["remembered"]["ids"].as_array().map(Vec::len), Some(2));
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    let text: String = (pieces.iter())
        .filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().expect("a text"));
    for piece in &pieces {
        assert_eq!(
            (&piece["object"], &piece["id"]),
            (&json!("chat.completion.chunk"), &first["id"])
        );
    }
    assert_eq!(node.client.texts("ann").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_once_is_known_elsewhere_until_it_is_deleted() {
    let engine = Reading::new(AT_ONCE);
    let node = chatting(&engine).await;
    let ask = |talk: &str, text: &str| {
        let messages = json!([user(text)]);
        json!({"user": "ann", "conversation": talk, "messages": messages})
    };
    let said = "my heron is called Amadeus";
    let first = node.client.post(CHAT, ask("one", said)).await.expect(200);
    let memory = first["memcube"]["remembered"]["ids"][0].as_str().expect("an id").to_owned();
    engine.take();
    let question = "what is my heron called";
    let second = node.client.post(CHAT, ask("two", question)).await.expect(200);
    assert!(ids(&second["memcube"]["memories"]).contains(&memory), "{second}");
    assert!(engine.take().contains("heron is called Amadeus"));

    node.client.delete(&format!("/v1/cubes/ann/memories/{memory}")).await.expect(200);
    engine.take();
    for conversation in ["two", "three"] {
        let later = node.client.post(CHAT, ask(conversation, question)).await.expect(200);
        assert!(!ids(&later["memcube"]["memories"]).contains(&memory), "{later}");
        let read = engine.take();
        assert!(read.contains(question) && !read.contains("Amadeus"), "{conversation}: {read}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_turn_of_a_conversation_finds_what_was_computed() {
    let node = chatting(&Reading::new(AT_ONCE)).await;
    let mut messages = vec![json!({"role": "system", "content": "be kind ".repeat(50)})];
    let mut names = Vec::new();
    for turn in 0..3 {
        messages.push(user(&format!("tell me about garden {turn}")));
        let body = json!({"user": "ann", "messages": messages});
        let reply = node.client.post(CHAT, body).await.expect(200);
        messages.push(reply["choices"][0]["message"].clone());
        names.push(reply["memcube"]["conversation"].clone());
        let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        assert_eq!(cached, reply["memcube"]["timings"]["tokens_from_cache"].as_u64());
        assert_eq!(cached > Some(100), turn > 0, "turn {turn}: {reply}");
    }
    assert!(names.iter().all(|name| *name == names[0]), "derived from how it began: {names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_stops_the_model_and_nothing_is_remembered() {
    let slow = ScriptedCosts { prefill_us: 20_000, ..ScriptedCosts::default() };
    let engine = Reading::new(slow);
    let node = chatting(&engine).await;
    let long = "a story about a greyhound ".repeat(40);
    for stream in [true, false] {
        let body = json!({"user": "ann", "stream": stream, "messages": [user(&long)]});
        let call = node.client.call("POST", CHAT).json(body);
        if stream {
            let opened = tokio::task::spawn_blocking(move || {
                let mut lines = call.open_blocking().expect("it begins");
                let mut line = String::new();
                lines.read_line(&mut line).expect("a first piece");
                line
            });
            // The connection ends with the reader.
            let line = opened.await.expect("read");
            assert!(line.starts_with("data: "), "{line}");
        } else {
            let address = node.client.address.clone();
            let request = format!(
                "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
                 content-type: application/json\r\ncontent-length: ",
                crate::support::KEY
            );
            let body = json!({"user": "ann", "messages": [user(&long)]}).to_string();
            let request = format!("{request}{}\r\n\r\n{body}", body.len());
            let address = address.strip_prefix("http://").expect("an address");
            let mut connection = tokio::net::TcpStream::connect(address).await.expect("connected");
            tokio::io::AsyncWriteExt::write_all(&mut connection, request.as_bytes())
                .await
                .expect("sent");
            eventually("it computes", || async { engine.model.bytes_used() > 0 }).await;
            drop(connection);
        }
        // A session that had come to its end would be kept for the next turn.
        eventually("the model stops", || async { engine.model.bytes_used() == 0 }).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(engine.model.bytes_used(), 0);
    assert!(node.client.texts("ann").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_another_tenant_sees_nothing() {
    let engine = Reading::new(AT_ONCE);
    let shared: Arc<dyn Engine> = Arc::<Reading>::clone(&engine);
    let builder = Node::builder().with_settings(in_memory()).with_engine(shared);
    let builder = builder.with_embedder(Arc::new(ScriptedEmbedder::new(64)));
    let node = Box::pin(builder.start()).await.expect("the node starts");
    let hash: [u8; 32] = Sha256::digest(RIVAL_KEY.as_bytes()).into();
    let tenant = TenantId::new("rival").expect("valid");
    let record = ApiKeyRecord { tenant, name: "rival".to_owned(), created_at_ms: 0 };
    let set = Mutation::Set { key: keys::api_key(&hash), value: encode(&record) };
    let token = node.environment().commit_token();
    let commit = Commit { token, checks: Vec::new(), mutations: vec![set] };
    node.store().commit(commit).await.expect("a second tenant");
    let node = TestNode::serve(node).await;
    let rival = node.client.with_authorization(Some(&format!("Bearer {RIVAL_KEY}")));

    let ask = |whose: &str, text: &str| json!({whose: "ann", "conversation": "talk", "messages": [user(text)]});
    let said = "my heron is called Amadeus, and nobody else may know";
    node.client.post(CHAT, ask("user", said)).await.expect(200);
    engine.take();
    let refused = rival.post(CHAT, ask("cube", "what is my heron called")).await;
    assert!(refused.summary().starts_with("404 not_found: there is no cube `ann`"));
    let reply = rival.post(CHAT, ask("user", said)).await.expect(200);
    assert_eq!(reply["memcube"]["memories"], json!([]));
    assert_eq!(reply["memcube"]["timings"]["tokens_from_cache"], 0, "the same words, computed");
    let own = reply["memcube"]["remembered"]["ids"].as_array().expect("ids").clone();
    let later = ask("user", "what is my heron called");
    let later = rival.post(CHAT, later).await.expect(200);
    let used = ids(&later["memcube"]["memories"]);
    assert!(!used.is_empty() && used.iter().all(|id| own.contains(&json!(id))), "{later}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_is_sent_again_under_its_key_is_remembered_once() {
    let node = chatting(&Reading::new(AT_ONCE)).await;
    for _ in 0..2 {
        let body = json!({"user": "ann", "messages": [user("my heron is called Amadeus")]});
        let call = node.client.call("POST", CHAT).header("idempotency-key", "turn-1");
        call.json(body).send().await.expect(200);
    }
    let texts = node.client.texts("ann").await;
    assert_eq!(texts.len(), 2, "{texts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_answered_says_what_to_do() {
    let node = chatting(&Reading::new(AT_ONCE)).await;
    node.client.cube("c").await;
    let table = r#"
POST /v1/chat/completions {
    400 invalid: the body is not valid JSON: EOF while parsing an object at line 1 column 1
POST /v1/chat/completions []
    400 invalid: the body is a list, not an object
POST /v1/chat/completions {"messages": "hello"}
    400 invalid: body at `messages`: invalid type: string "hello", expected a sequence …
POST /v1/chat/completions {"user": "c", "messages": [], "memcube": {"recal": true}}
    400 invalid: body at `memcube.recal`: unknown field `recal`, …
POST /v1/chat/completions {"messages": [{"role": "user", "content": "hello"}]}
    400 invalid: whose memories? send `user` with the name of the user, …
POST /v1/chat/completions {"user": "c"}
    400 invalid: `messages` is empty; …
POST /v1/chat/completions {"user": "c", "messages": [{"role": "assistant", "content": "hello"}]}
    400 invalid: the last message is of `assistant`; it must be of `user`, or of `tool`, …
POST /v1/chat/completions {"user": "c", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    400 invalid: `messages[0].content[0]` has the type `image_url`, which cannot be read here; …
POST /v1/chat/completions {"user": "c", "n": 2, "messages": [{"role": "user", "content": "hello"}]}
    400 invalid: `n`: one reply is given; leave it out
POST /v1/chat/completions {"user": "c", "tools": [{"type": "function", "function": {"name": "f"}}], "messages": [{"role": "user", "content": "hello"}]}
    400 invalid: this language model takes no tools; …
POST /v1/chat/completions {"user": "c", "response_format": {"type": "json_object"}, "messages": [{"role": "user", "content": "hello"}]}
    400 invalid: this language model cannot be held to a form; …
POST /v1/chat/completions {"user": "c", "model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
    404 model_not_found: there is no model `gpt-4o` for this; send `scripted-chat@1`, or leave `model` out
POST /v1/chat/completions {"cube": "nobody", "messages": [{"role": "user", "content": "hello"}]}
    404 not_found: there is no cube `nobody`; make it with `POST /v1/cubes` and `{"id": "nobody"}`, or send `user` …
GET /v1/chat/completions
    405 invalid: `/v1/chat/completions` does not take GET
GET /v1/models/nothing
    404 model_not_found: there is no model `nothing`; `GET /v1/models` lists them
POST /v1/embeddings {"input": [1, 2, 3]}
    400 invalid: `input` is of tokens, which belong to another model; send texts
POST /v1/embeddings {"input": "a", "encoding_format": "hex"}
    400 invalid: `encoding_format` is `hex`; it must be `float` or `base64`
POST /v1/embeddings {"input": "a", "dimensions": 65}
    400 invalid: `dimensions` must be between 1 and 64
POST /v1/embeddings {"input": "a", "model": "text-embedding-3-small"}
    404 model_not_found: there is no model `text-embedding-3-small` for this; …
"#;
    check_table(&node.client, "", Answer::summary, table).await;
    // Too long for the window, however much is left out.
    let body = json!({"user": "c", "messages": [user(&"long ".repeat(10_000))]});
    let refused = node.client.post(CHAT, body).await;
    assert!(refused.summary().starts_with("400 invalid: "), "{}", refused.text);
    assert!(refused.text.contains("shorten the messages"), "{}", refused.text);
    assert!(node.client.texts("c").await.is_empty());
}

/// OpenAI's clients read `error`; ours read what is beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_told_in_openais_form_as_well() {
    let node = chatting(&Reading::new(AT_ONCE)).await;
    let message = json!([user("hello")]);
    let stranger = node.client.with_authorization(None);
    for (client, body, status, kind, code, param) in [
        (&stranger, json!({}), 401, "authentication_error", "unauthorized", json!(null)),
        (
            &node.client,
            json!({"messages": message}),
            400,
            "invalid_request_error",
            "invalid",
            json!("user"),
        ),
        (
            &node.client,
            json!({"messages": message, "user": "u", "model": "gpt-4o"}),
            404,
            "invalid_request_error",
            "model_not_found",
            json!("model"),
        ),
        (
            &node.client,
            json!({"messages": 3}),
            400,
            "invalid_request_error",
            "invalid",
            json!("messages"),
        ),
    ] {
        let answer = client.post(CHAT, body.clone()).await;
        let detail = answer.body["detail"].clone();
        let told = answer.expect(status);
        let expected = json!({"message": detail, "type": kind, "code": code, "param": param});
        assert_eq!(told["error"], expected, "{body}");
        assert_eq!((&told["status"], &told["code"]), (&json!(status), &json!(code)));
    }
    let elsewhere = node.client.get("/v1/cubes/nobody").await.expect(404);
    assert!(elsewhere.get("error").is_none(), "only where OpenAI's clients call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_models_it_is_told_how_to_get_one() {
    let node = Node::builder().with_settings(in_memory());
    let node = TestNode::serve(Box::pin(node.start()).await.expect("the node starts")).await;
    let table = r#"
POST /v1/chat/completions {"user": "u", "messages": [{"role": "user", "content": "hello"}]}
    503 unavailable: this server has no language model; fetch one with `make language-model` and start the server with `--language-model local`
POST /v1/embeddings {"input": "a"}
    503 unavailable: this server has no embedding model; fetch one with `make model` …
GET /v1/models
    200
"#;
    check_table(&node.client, "", Answer::summary, table).await;
    assert_eq!(node.client.get("/v1/models").await.expect(200)["data"], json!([]));
    assert_eq!(node.client.get("/v1/cubes/u").await.status, 404, "no cube was made for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_and_texts_embedded() {
    let node = chatting(&Reading::new(AT_ONCE)).await;
    let listed = node.client.get("/v1/models").await.expect(200);
    let models = listed["data"].as_array().expect("a list");
    assert_eq!(models.len(), 2, "{listed}");
    assert_eq!(models[0]["id"], "scripted-chat@1");
    assert_eq!(models[0]["memcube"], json!({"kind": "language", "window_tokens": 8_192}));
    assert_eq!(models[1]["memcube"], json!({"kind": "embedding"}));
    for model in models {
        let id = model["id"].as_str().expect("an id");
        assert_eq!(node.client.get(&format!("/v1/models/{id}")).await.expect(200), *model);
    }
    let embed = async |body: Value| node.client.post("/v1/embeddings", body).await.expect(200);
    let both = embed(json!({"input": ["a cat", "a dog"], "model": models[1]["id"]})).await;
    assert_eq!(both["model"], models[1]["id"]);
    let vector = |entry: &Value| -> Vec<f64> {
        let numbers = entry["embedding"].as_array().expect("numbers").iter();
        numbers.map(|number| number.as_f64().expect("a number")).collect()
    };
    let (cat, dog) = (vector(&both["data"][0]), vector(&both["data"][1]));
    assert_eq!((cat.len(), &both["data"][1]["index"]), (64, &json!(1)));
    assert_ne!(cat, dog);
    assert!(both["usage"]["total_tokens"].as_u64() > Some(0));
    let one = embed(json!({"input": "a cat", "dimensions": 8})).await;
    let short = vector(&one["data"][0]);
    let length = short.iter().map(|x| x * x).sum::<f64>();
    assert!(short.len() == 8 && (length - 1.0).abs() < 1e-5, "{short:?}");
    let coded = embed(json!({"input": "a cat", "encoding_format": "base64"})).await;
    assert_eq!(
        coded["data"][0]["embedding"].as_str().map(str::len),
        Some((64 * 4_usize).div_ceil(3) * 4)
    );
}

/// More requests than the model takes are told to come later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_chats_are_told_when_to_come_again() {
    let engine = Reading::new(ScriptedCosts { prefill_us: 100_000, ..ScriptedCosts::default() });
    let node = chatting(&engine).await;
    let client: Client = node.client.clone();
    let ask = move || {
        let body = json!({"user": "ann", "stream": true, "messages": [user("hello there")]});
        client.call("POST", CHAT).json(body)
    };
    let asked = tokio::task::spawn_blocking(move || {
        let mut open = Vec::new();
        for _ in 0..=memcube_schemas::limits::INFERENCE_REQUESTS_MAX {
            match ask().open_blocking() {
                Ok(reply) => open.push(reply),
                Err(_) => return ask().send_blocking().expect("an answer"),
            }
        }
        panic!("all {} were taken", open.len());
    });
    let refused = asked.await.expect("asked");
    assert!(refused.header("retry-after").is_some(), "{}", refused.text);
    let told = refused.expect(429);
    assert_eq!(told["error"]["type"], "rate_limit_error");
}
