//! Whatever arrives, the answer has a status, a code, and says what to do; and the server goes on.

use expect_test::{Expect, expect};
use memcube_schemas::limits;
use serde_json::{Value, json};

use crate::support::{Client, TestNode};

const MEMORIES: &str = "/v1/cubes/c/memories";
const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn node_with_cube() -> TestNode {
    let node = TestNode::start().await;
    node.client.cube("c").await;
    node
}

/// One request: its method and path, its body, and the answer in one line.
async fn check(client: &Client, request: &str, body: impl Into<Vec<u8>>, expected: Expect) {
    let (method, path) = request.split_once(' ').expect("method and path");
    let body = body.into();
    let call = client.call(method, path);
    let call = if body.is_empty() && method != "POST" { call } else { call.bytes(body) };
    expected.assert_eq(&call.send().await.summary());
}

async fn check_json(client: &Client, request: &str, body: Value, expected: Expect) {
    check(client, request, body.to_string(), expected).await;
}

/// After all of it: adds and searches work as before.
async fn still_works(client: &Client) {
    client.fact("c", "still alive after the storm").await;
    assert_eq!(client.search("c", "storm").await[0], "still alive after the storm");
    assert_eq!(client.get("/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_not_json() {
    let node = node_with_cube().await;
    let c = &node.client;
    let add = "POST /v1/cubes/c/memories";
    check(c, add, "", expect![[]]).await;
    check(c, add, "{", expect![[]]).await;
    check(c, add, "{\"text\": \"a\"", expect![[]]).await;
    check(c, add, "{\"text\": \"a\"} trailing", expect![[]]).await;
    check(c, add, "{'text': 'a'}", expect![[]]).await;
    check(c, add, "{\"text\": \"a\nb\"}", expect![[]]).await;
    check(c, add, "{\"text\": \"\\ud800\"}", expect![[]]).await;
    check(c, add, b"{\"text\": \"\xff\xfe\"}", expect![[]]).await;
    check(c, add, "[".repeat(100_000), expect![[]]).await;
    let nested = format!("{{\"info\": {}1{}}}", "{\"a\":".repeat(500), "}".repeat(500));
    check(c, add, nested, expect![[]]).await;
    check(c, "POST /product/add", "{", expect![[]]).await;
    check(c, "POST /product/add", b"\xff", expect![[]]).await;
    check(c, "POST /product/add", "{\"user_id\": \"u\"} trailing", expect![[]]).await;
    assert_eq!(c.texts("c").await, Vec::<String>::new());
    still_works(c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_another_shape() {
    let node = node_with_cube().await;
    let c = &node.client;
    let add = "POST /v1/cubes/c/memories";
    check_json(c, add, json!([]), expect![[]]).await;
    check_json(c, add, json!(null), expect![[]]).await;
    check_json(c, add, json!({"messages": "hello"}), expect![[]]).await;
    check_json(c, add, json!({"messages": [{"content": 7}]}), expect![[]]).await;
    check_json(c, add, json!({"messages": [{"content": "a"}, {}]}), expect![[]]).await;
    check_json(c, add, json!({"messages": [{"role": "boss", "content": "a"}]}), expect![[]]).await;
    check_json(c, add, json!({"messages": [{"content": "a", "mood": 1}]}), expect![[]]).await;
    check_json(c, add, json!({"text": "a", "colour": "red"}), expect![[]]).await;
    check_json(c, add, json!({"text": "a", "tags": "t"}), expect![[]]).await;
    check_json(c, add, json!({"text": "a", "info": []}), expect![[]]).await;
    check_json(c, add, json!({"text": "a", "conversation": ""}), expect![[]]).await;
    check(c, add, "{\"text\": \"a\", \"text\": \"b\"}", expect![[]]).await;
    let search = "POST /v1/cubes/c/search";
    check_json(c, search, json!({}), expect![[]]).await;
    check_json(c, search, json!({"query": ["a"]}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "top_k": -1}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "top_k": 1.5}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "filter": {"kinds": ["rumour"]}}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "filter": {"colour": 1}}), expect![[]]).await;
    check_json(c, "POST /v1/cubes", json!({"id": 7}), expect![[]]).await;
    check_json(c, "POST /v1/cubes", json!({"id": "a", "kind": "b"}), expect![[]]).await;
    // MemOS's clients send more than there is a meaning for.
    let more = json!({"user_id": "u", "messages": "hello", "colour": "red", "async_mode": "sync"});
    check_json(c, "POST /product/add", more, expect![[]]).await;
    let more = json!({"user_id": "u", "query": "hello", "colour": "red", "rerank": true});
    check_json(c, "POST /product/search", more, expect![[]]).await;
    still_works(c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_make_no_sense() {
    let node = node_with_cube().await;
    let c = &node.client;
    let add = "POST /v1/cubes/c/memories";
    check_json(c, add, json!({}), expect![[]]).await;
    check_json(c, add, json!({"messages": []}), expect![[]]).await;
    let tags: Vec<String> = (0..=limits::TAGS_MAX).map(|tag| tag.to_string()).collect();
    check_json(c, add, json!({"text": "a", "tags": tags}), expect![[]]).await;
    let tag = "t".repeat(limits::TAG_BYTES_MAX + 1);
    check_json(c, add, json!({"text": "a", "tags": [tag]}), expect![[]]).await;
    let info = "i".repeat(limits::INFO_BYTES_MAX);
    check_json(c, add, json!({"text": "a", "info": {"i": info}}), expect![[]]).await;
    let search = "POST /v1/cubes/c/search";
    check_json(c, search, json!({"query": ""}), expect![[]]).await;
    check_json(c, search, json!({"query": " \n\t"}), expect![[]]).await;
    let long = "q".repeat(limits::QUERY_BYTES_MAX + 1);
    check_json(c, search, json!({"query": long}), expect![[]]).await;
    let fits = "q".repeat(limits::QUERY_BYTES_MAX);
    check_json(c, search, json!({"query": fits}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "top_k": 0}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "top_k": 1001}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "relativity_min": 1.1}), expect![[]]).await;
    check_json(c, search, json!({"query": "a", "relativity_min": -0.1}), expect![[]]).await;
    let when = json!({"query": "a", "filter": {"said_from": "the day before"}});
    check_json(c, search, when, expect![[]]).await;
    check(c, "GET /v1/cubes?limit=0", "", expect![[]]).await;
    check(c, "GET /v1/cubes?limit=1001", "", expect![[]]).await;
    check(c, "GET /v1/cubes?limit=many", "", expect![[]]).await;
    check(c, "GET /v1/cubes?page=2", "", expect![[]]).await;
    check(c, "GET /v1/cubes?cursor=", "", expect![[]]).await;
    check(c, "GET /v1/cubes/c/memories?limit=0", "", expect![[]]).await;
    check(c, "GET /v1/cubes/c/memories?limit=1001", "", expect![[]]).await;
    check(c, "GET /v1/cubes/c/memories?limit=-1", "", expect![[]]).await;
    check(c, "GET /v1/cubes/c/memories?cursor=nonsense", "", expect![[]]).await;
    still_works(c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_nothing() {
    let node = node_with_cube().await;
    let c = &node.client;
    let text = json!({"text": "a"});
    check_json(c, "POST /v1/cubes/nobody/memories", text.clone(), expect![[]]).await;
    check_json(c, "POST /v1/cubes/nobody/search", json!({"query": "a"}), expect![[]]).await;
    check(c, "GET /v1/cubes/nobody/memories", "", expect![[]]).await;
    check(c, "DELETE /v1/cubes/nobody/memories?all=true", "", expect![[]]).await;
    check(c, &format!("GET /v1/cubes/nobody/memories/{UNKNOWN}"), "", expect![[]]).await;
    check(c, &format!("GET /v1/cubes/nobody/memories/{UNKNOWN}/history"), "", expect![[]]).await;
    check(c, &format!("GET {MEMORIES}/{UNKNOWN}"), "", expect![[]]).await;
    check(c, &format!("DELETE {MEMORIES}/{UNKNOWN}"), "", expect![[]]).await;
    check_json(c, &format!("PATCH {MEMORIES}/{UNKNOWN}"), text.clone(), expect![[]]).await;
    check(c, &format!("GET {MEMORIES}/seven"), "", expect![[]]).await;
    check(c, &format!("GET {MEMORIES}/{UNKNOWN}0"), "", expect![[]]).await;
    check(c, &format!("DELETE {MEMORIES}/seven"), "", expect![[]]).await;
    check_json(c, &format!("PATCH {MEMORIES}/seven"), text, expect![[]]).await;
    check(c, &format!("GET {MEMORIES}/seven/history"), "", expect![[]]).await;
    check(c, &format!("GET /v1/cubes/{}", "x".repeat(257)), "", expect![[]]).await;
    check(c, "GET /v1/cubes/a%00b", "", expect![[]]).await;
    check(c, &format!("DELETE {MEMORIES}/{UNKNOWN}?purge=maybe"), "", expect![[]]).await;
    still_works(c).await;
}

/// Errors that the web framework finds itself must look like all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_cannot_be_read_are_typed_errors_too() {
    let node = node_with_cube().await;
    let c = &node.client;
    let mut bare = Vec::new();
    for (method, path) in [
        ("GET", "/v1/cubes/%ff"),
        ("DELETE", "/v1/cubes/%ff"),
        ("GET", "/v1/cubes/%ff/memories"),
        ("POST", "/v1/cubes/%ff/search"),
        ("GET", "/v1/cubes/c/memories/%ff"),
        ("GET", "/v1/cubes?limit=1&limit=2"),
        ("GET", "/product/get_memory/%ff"),
        ("GET", "/product/get_memory/x?user_id=a&user_id=b"),
        ("GET", "/product/scheduler/status?user_id=a&user_id=b"),
    ] {
        let answer = c.call(method, path).send().await;
        assert!((400..500).contains(&answer.status), "{method} {path}: {}", answer.text);
        let summary = answer.summary();
        if summary.contains("NOT JSON") {
            bare.push(format!("{method} {path}: {summary}"));
        }
    }
    assert!(bare.is_empty(), "answers without a type, a code or an envelope:\n{}", bare.join("\n"));
    still_works(c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_messages_make_no_memory() {
    let node = node_with_cube().await;
    for content in ["", " ", "\n\t \r\n", "\u{200b}\u{feff}", "\u{a0}"] {
        let body = json!({"messages": [{"content": content}, {"role": "assistant", "content": ""}]});
        let added = node.client.post(MEMORIES, body).await.expect(201);
        assert_eq!(added["memories"], json!([]), "{content:?}");
        assert_eq!(added["ignored_messages"], 2, "{content:?}");
    }
    assert_eq!(node.client.texts("c").await, Vec::<String>::new());
    still_works(&node.client).await;
}

/// A long message arrives in one piece and is remembered in many; every word of it can be found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_a_megabyte_is_cut_into_memories() {
    let node = node_with_cube().await;
    let mut content = String::new();
    for number in 0.. {
        content.push_str(&format!("Sentence {number} speaks of thing{number}. "));
        if content.len() >= 1 << 20 {
            break;
        }
    }
    let body = json!({"messages": [{"role": "assistant", "content": content}]});
    let added = node.client.post(MEMORIES, body).await.expect(201);
    let count = added["memories"].as_array().expect("a list").len();
    assert!(count > 100, "{count}");
    assert_eq!(added["ignored_messages"], 0);
    assert_eq!(node.client.texts("c").await.len(), count);
    for word in ["thing0", "thing777", "thing20000"] {
        let found = node.client.search("c", word).await;
        assert!(found[0].contains(&format!("{word}.")), "{word}: {}", found[0]);
    }
    // A word without an end, as encoded files have it, is not refused either.
    let body = json!({"messages": [{"content": "x".repeat(1 << 20)}]});
    let added = node.client.post(MEMORIES, body).await.expect(201);
    assert!(!added["memories"].as_array().expect("a list").is_empty());
    still_works(&node.client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_above_the_limit_are_refused() {
    let node = node_with_cube().await;
    let add = "POST /v1/cubes/c/memories";
    let content = "word ".repeat(limits::MESSAGE_BYTES_MAX / 5 + 1);
    let long = json!({"messages": [{"content": "a"}, {"content": content}]});
    check_json(&node.client, add, long, expect![[]]).await;
    let content = "a".repeat(limits::MESSAGE_BYTES_MAX + 1);
    check_json(&node.client, add, json!({ "text": content }), expect![[]]).await;
    let user = json!({"user_id": "u", "messages": content});
    check_json(&node.client, "POST /product/add", user, expect![[]]).await;
    assert_eq!(node.client.texts("c").await, Vec::<String>::new(), "none of them");
    still_works(&node.client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_messages_are_taken_and_one_more_is_not() {
    let node = node_with_cube().await;
    let messages = |count: usize| {
        (0..count).map(|number| json!({"content": format!("turn {number}")})).collect::<Vec<_>>()
    };
    let many = json!({"messages": messages(limits::MESSAGES_PER_ADD_MAX + 1)});
    check_json(&node.client, "POST /v1/cubes/c/memories", many, expect![[]]).await;
    let mut many = messages(limits::MESSAGES_PER_ADD_MAX + 1);
    for message in &mut many {
        message["role"] = json!("user");
    }
    let many = json!({"user_id": "u", "messages": many});
    check_json(&node.client, "POST /product/add", many, expect![[]]).await;
    assert_eq!(node.client.texts("c").await, Vec::<String>::new());
    let most = json!({"messages": messages(limits::MESSAGES_PER_ADD_MAX), "conversation": "s"});
    let added = node.client.post(MEMORIES, most).await.expect(201);
    assert_eq!(added["memories"].as_array().expect("a list").len(), limits::MESSAGES_PER_ADD_MAX);
    let texts = node.client.texts("c").await;
    assert_eq!(texts.len(), limits::MESSAGES_PER_ADD_MAX);
    assert_eq!(texts[9_999], "user: turn 9999");
    still_works(&node.client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_above_the_limit_are_refused() {
    let node = node_with_cube().await;
    let padded = |bytes: usize| {
        let mut body = b"{\"text\": \"padded\"}".to_vec();
        body.resize(bytes, b' ');
        body
    };
    let c = &node.client;
    let add = "POST /v1/cubes/c/memories";
    check(c, add, padded(limits::REQUEST_BODY_BYTES_MAX), expect![[]]).await;
    check(c, add, padded(limits::REQUEST_BODY_BYTES_MAX + 1), expect![[]]).await;
    let memos = "POST /product/add";
    check(c, memos, padded(limits::REQUEST_BODY_BYTES_MAX + 1), expect![[]]).await;
    assert_eq!(c.texts("c").await, ["padded"]);
    still_works(c).await;
}

/// A request that is within every limit must be possible: 429 would send its caller round for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_request_within_the_limits_is_not_overload() {
    let node = node_with_cube().await;
    // Short words: as many memories as bytes can make.
    let content = "a b ".repeat(limits::MESSAGE_BYTES_MAX / 4 - 1);
    let messages: Vec<Value> = (0..7).map(|_| json!({ "content": content })).collect();
    let answer = node.client.post(MEMORIES, json!({ "messages": messages })).await;
    let said: String = answer.summary().chars().take(300).collect();
    assert!(matches!(answer.status, 201 | 422), "{said}");
    still_works(&node.client).await;
}
