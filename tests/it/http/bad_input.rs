//! Whatever arrives, the answer has a status, a code, and says what to do; and the server goes on.

use memcube_schemas::limits;
use serde_json::{Value, json};

use crate::support::{Client, TestNode, assert_says};

const MEMORIES: &str = "/v1/cubes/c/memories";
const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn node_with_cube() -> TestNode {
    let node = TestNode::start().await;
    node.client.cube("c").await;
    node
}

/// One request: its method and path, its body, and the answer in one line.
async fn check(client: &Client, request: &str, body: impl Into<Vec<u8>>, expected: &str) {
    let (method, path) = request.split_once(' ').expect("method and path");
    let body = body.into();
    let call = client.call(method, path);
    let call = if body.is_empty() && method != "POST" { call } else { call.bytes(body) };
    assert_says(&call.send().await.summary(), expected, request);
}

async fn check_json(client: &Client, request: &str, body: Value, expected: &str) {
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
    check(
        c,
        add,
        "",
        "400 invalid: the body is not valid JSON: EOF while parsing a value at line 1 column 0",
    )
    .await;
    check(
        c,
        add,
        "{",
        "400 invalid: the body is not valid JSON: EOF … an object at line 1 column 1",
    )
    .await;
    check(
        c,
        add,
        "{\"text\": \"a\"",
        "400 invalid: the body is not valid … object at line 1 column 12",
    )
    .await;
    check(
        c,
        add,
        "{\"text\": \"a\"} trailing",
        "400 invalid: the body is not valid … at line 1 column 15",
    )
    .await;
    check(
        c,
        add,
        "{'text': 'a'}",
        "400 invalid: the body is not valid JSON: … a string at line 1 column 2",
    )
    .await;
    check(
        c,
        add,
        "{\"text\": \"a\nb\"}",
        "400 invalid: the body is not valid … at line 2 column 0",
    )
    .await;
    check(
        c,
        add,
        "{\"text\": \"\\ud800\"}",
        "400 invalid: the body is not valid … at line 1 column 17",
    )
    .await;
    check(
        c,
        add,
        b"{\"text\": \"\xff\xfe\"}",
        "400 invalid: the body is not UTF-8 from byte 10 on",
    )
    .await;
    check(
        c,
        add,
        "[".repeat(100_000),
        "400 invalid: the body is not valid … value at line 1 column 4",
    )
    .await;
    let nested = format!("{{\"info\": {}1{}}}", "{\"a\":".repeat(500), "}".repeat(500));
    check(
        c,
        add,
        nested,
        "400 invalid: the body is not valid JSON: … exceeded at line 1 column 640",
    )
    .await;
    check(
        c,
        "POST /product/add",
        "{",
        "400 envelope: the body is not valid … object at line 1 column 1",
    )
    .await;
    check(c, "POST /product/add", b"\xff", "400 envelope: the body is not UTF-8 from byte 0 on")
        .await;
    check(
        c,
        "POST /product/add",
        "{\"user_id\": \"u\"} trailing",
        "400 envelope: the body is not … at line 1 column 18",
    )
    .await;
    assert_eq!(c.texts("c").await, Vec::<String>::new());
    still_works(c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_another_shape() {
    let node = node_with_cube().await;
    let c = &node.client;
    let add = "POST /v1/cubes/c/memories";
    check_json(c, add, json!(null), "422 invalid: body at `.`: invalid type: … at line 1 column 4")
        .await;
    check_json(
        c,
        add,
        json!({"messages": "hello"}),
        "422 invalid: body at `messages`: … at line 1 column 19",
    )
    .await;
    check_json(
        c,
        add,
        json!({"messages": [{"content": 7}]}),
        "422 invalid: body at … at line 1 column 25",
    )
    .await;
    check_json(
        c,
        add,
        json!({"messages": [{"content": "a"}, {}]}),
        "422 invalid: body at … at line 1 column 31",
    )
    .await;
    check_json(
        c,
        add,
        json!({"messages": [{"role": "boss", "content": "a"}]}),
        "422 invalid: body at … at line 1 column 41",
    )
    .await;
    check_json(
        c,
        add,
        json!({"messages": [{"content": "a", "mood": 1}]}),
        "422 invalid: body at … at line 1 column 34",
    )
    .await;
    check_json(
        c,
        add,
        json!({"text": "a", "colour": "red"}),
        "422 invalid: body at `colour`: … at line 1 column 9",
    )
    .await;
    check_json(
        c,
        add,
        json!({"text": "a", "tags": "t"}),
        "422 invalid: body at `tags`: … at line 1 column 11",
    )
    .await;
    check_json(
        c,
        add,
        json!({"text": "a", "info": []}),
        "422 invalid: body at `info`: … at line 1 column 8",
    )
    .await;
    check_json(
        c,
        add,
        json!({"text": "a", "conversation": ""}),
        "422 invalid: body at … at line 1 column 18",
    )
    .await;
    check(
        c,
        add,
        "{\"text\": \"a\", \"text\": \"b\"}",
        "422 invalid: body at `.`: … at line 1 column 20",
    )
    .await;
    let search = "POST /v1/cubes/c/search";
    check_json(
        c,
        search,
        json!({}),
        "422 invalid: body at `.`: missing field `query` at line 1 column 2",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": ["a"]}),
        "422 invalid: body at `query`: … at line 1 column 9",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": "a", "top_k": -1}),
        "422 invalid: body at `top_k`: … at line 1 column 23",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": "a", "top_k": 1.5}),
        "422 invalid: body at `top_k`: … at line 1 column 24",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": "a", "filter": {"kinds": ["rumour"]}}),
        "422 invalid: body at … at line 1 column 28",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": "a", "filter": {"colour": 1}}),
        "422 invalid: body at … at line 1 column 19",
    )
    .await;
    check_json(
        c,
        "POST /v1/cubes",
        json!({"id": 7}),
        "422 invalid: body at `id`: invalid … at line 1 column 7",
    )
    .await;
    check_json(
        c,
        "POST /v1/cubes",
        json!({"id": "a", "kind": "b"}),
        "422 invalid: body at `kind`: … at line 1 column 16",
    )
    .await;
    // MemOS's clients send more than there is a meaning for.
    let more = json!({"user_id": "u", "messages": "hello", "colour": "red", "async_mode": "sync"});
    check_json(c, "POST /product/add", more, "200 envelope: Memory added successfully").await;
    let more = json!({"user_id": "u", "query": "hello", "colour": "red", "rerank": true});
    check_json(c, "POST /product/search", more, "200 envelope: Search completed successfully")
        .await;
    still_works(c).await;
}

/// A list is not an object whose fields happen to come in the right order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_not_taken_for_objects() {
    let node = node_with_cube().await;
    for (path, body) in [
        ("/v1/cubes", json!(["made-by-a-list", null, null])),
        ("/v1/cubes/c/memories", json!([[], "a statement", null, [], null, false])),
        ("/v1/cubes/c/search", json!(["a query", null, null, null, null])),
        ("/product/search", json!(["a query", "u", null, null, null, null])),
    ] {
        let answer = node.client.post(path, body).await;
        assert_eq!(answer.status, 422, "POST {path}: {}", answer.text);
    }
    assert_eq!(node.client.texts("c").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_make_no_sense() {
    let node = node_with_cube().await;
    let c = &node.client;
    let add = "POST /v1/cubes/c/memories";
    check_json(c, add, json!({}), "422 invalid: nothing to remember: give `messages` or `text`")
        .await;
    check_json(
        c,
        add,
        json!({"messages": []}),
        "422 invalid: nothing to remember: give `messages` or `text`",
    )
    .await;
    let tags: Vec<String> = (0..=limits::TAGS_MAX).map(|tag| tag.to_string()).collect();
    check_json(c, add, json!({"text": "a", "tags": tags}), "422 invalid: 65 tags, the limit is 64")
        .await;
    let tag = "t".repeat(limits::TAG_BYTES_MAX + 1);
    check_json(
        c,
        add,
        json!({"text": "a", "tags": [tag]}),
        "422 invalid: a tag has 257 bytes, … the limit is 256",
    )
    .await;
    let info = "i".repeat(limits::INFO_BYTES_MAX);
    check_json(
        c,
        add,
        json!({"text": "a", "info": {"i": info}}),
        "422 invalid: `info` has 16392 … the limit is 16384",
    )
    .await;
    let search = "POST /v1/cubes/c/search";
    check_json(c, search, json!({"query": ""}), "422 invalid: `query` is empty; ask for something")
        .await;
    check_json(
        c,
        search,
        json!({"query": " \n\t"}),
        "422 invalid: `query` is empty; ask for something",
    )
    .await;
    let long = "q".repeat(limits::QUERY_BYTES_MAX + 1);
    check_json(
        c,
        search,
        json!({"query": long}),
        "422 invalid: `query` has 65537 bytes, the limit is 65536",
    )
    .await;
    let fits = "q".repeat(limits::QUERY_BYTES_MAX);
    check_json(c, search, json!({"query": fits}), "200").await;
    check_json(
        c,
        search,
        json!({"query": "a", "top_k": 0}),
        "422 invalid: `top_k` must be between 1 and 1000",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": "a", "top_k": 1001}),
        "422 invalid: `top_k` must be … be between 1 and 1000",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": "a", "relativity_min": 1.1}),
        "422 invalid: `relativity_min` must … be between 0 and 1",
    )
    .await;
    check_json(
        c,
        search,
        json!({"query": "a", "relativity_min": -0.1}),
        "422 invalid: `relativity_min` must … be between 0 and 1",
    )
    .await;
    let when = json!({"query": "a", "filter": {"said_from": "the day before"}});
    check_json(
        c,
        search,
        when,
        "422 invalid: `the day before` is not a … like `2023-05-08T13:56:00Z`",
    )
    .await;
    check(c, "GET /v1/cubes?limit=0", "", "422 invalid: `limit` must be between 1 and 1000").await;
    check(c, "GET /v1/cubes?limit=1001", "", "422 invalid: `limit` must be between 1 and 1000")
        .await;
    check(
        c,
        "GET /v1/cubes?limit=many",
        "",
        "422 invalid: Failed to deserialize … digit found in string",
    )
    .await;
    check(
        c,
        "GET /v1/cubes?page=2",
        "",
        "422 invalid: Failed to deserialize … `cursor` or `limit`",
    )
    .await;
    check(c, "GET /v1/cubes?cursor=", "", "422 invalid: invalid cube id: it is empty").await;
    check(
        c,
        "GET /v1/cubes/c/memories?limit=0",
        "",
        "422 invalid: `limit` must be between 1 and 1000",
    )
    .await;
    check(
        c,
        "GET /v1/cubes/c/memories?limit=1001",
        "",
        "422 invalid: `limit` must be between 1 and 1000",
    )
    .await;
    check(
        c,
        "GET /v1/cubes/c/memories?limit=-1",
        "",
        "422 invalid: Failed to deserialize … digit found in string",
    )
    .await;
    check(
        c,
        "GET /v1/cubes/c/memories?cursor=nonsense",
        "",
        "422 invalid: invalid memory id: … 74b-bcce-b302099a8057`",
    )
    .await;
    still_works(c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_nothing() {
    let node = node_with_cube().await;
    let c = &node.client;
    let text = json!({"text": "a"});
    check_json(
        c,
        "POST /v1/cubes/nobody/memories",
        text.clone(),
        "404 not_found: there is no cube `nobody`",
    )
    .await;
    check_json(
        c,
        "POST /v1/cubes/nobody/search",
        json!({"query": "a"}),
        "404 not_found: there is no cube … is no cube `nobody`",
    )
    .await;
    check(c, "GET /v1/cubes/nobody/memories", "", "404 not_found: there is no cube `nobody`").await;
    check(
        c,
        "DELETE /v1/cubes/nobody/memories?all=true",
        "",
        "404 not_found: there is no cube `nobody`",
    )
    .await;
    check(
        c,
        &format!("GET /v1/cubes/nobody/memories/{UNKNOWN}"),
        "",
        "404 not_found: there is no cube … is no cube `nobody`",
    )
    .await;
    check(
        c,
        &format!("GET /v1/cubes/nobody/memories/{UNKNOWN}/history"),
        "",
        "404 not_found: there is no cube … is no cube `nobody`",
    )
    .await;
    check(
        c,
        &format!("GET {MEMORIES}/{UNKNOWN}"),
        "",
        "404 not_found: there is no memory … in this cube",
    )
    .await;
    check(
        c,
        &format!("DELETE {MEMORIES}/{UNKNOWN}"),
        "",
        "404 not_found: there is no memory … in this cube",
    )
    .await;
    check_json(
        c,
        &format!("PATCH {MEMORIES}/{UNKNOWN}"),
        text.clone(),
        "404 not_found: there is no memory … in this cube",
    )
    .await;
    check(
        c,
        &format!("GET {MEMORIES}/seven"),
        "",
        "422 invalid: invalid memory id: … 74b-bcce-b302099a8057`",
    )
    .await;
    check(
        c,
        &format!("GET {MEMORIES}/{UNKNOWN}0"),
        "",
        "422 invalid: invalid memory id: … 74b-bcce-b302099a8057`",
    )
    .await;
    check(
        c,
        &format!("DELETE {MEMORIES}/seven"),
        "",
        "422 invalid: invalid memory id: … 74b-bcce-b302099a8057`",
    )
    .await;
    check_json(
        c,
        &format!("PATCH {MEMORIES}/seven"),
        text,
        "422 invalid: invalid memory id: … 74b-bcce-b302099a8057`",
    )
    .await;
    check(
        c,
        &format!("GET {MEMORIES}/seven/history"),
        "",
        "422 invalid: invalid memory id: … 74b-bcce-b302099a8057`",
    )
    .await;
    check(
        c,
        &format!("GET /v1/cubes/{}", "x".repeat(257)),
        "",
        "422 invalid: invalid cube id: it … the limit is 256",
    )
    .await;
    check(
        c,
        "GET /v1/cubes/a%00b",
        "",
        "422 invalid: invalid cube id: the character '\\0' is not allowed",
    )
    .await;
    check(
        c,
        &format!("DELETE {MEMORIES}/{UNKNOWN}?purge=maybe"),
        "",
        "422 invalid: Failed to deserialize … not `true` or `false`",
    )
    .await;
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
        let body =
            json!({"messages": [{"content": content}, {"role": "assistant", "content": ""}]});
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
    check_json(
        &node.client,
        add,
        long,
        "422 invalid: message 1 has 4194305 … limit is 4194304; cut it",
    )
    .await;
    let content = "a".repeat(limits::MESSAGE_BYTES_MAX + 1);
    check_json(
        &node.client,
        add,
        json!({ "text": content }),
        "422 invalid: message 0 has 4194305 … is 4194304; cut it",
    )
    .await;
    let user = json!({"user_id": "u", "messages": content});
    check_json(
        &node.client,
        "POST /product/add",
        user,
        "422 envelope: message 0 has … is 4194304; cut it",
    )
    .await;
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
    check_json(
        &node.client,
        "POST /v1/cubes/c/memories",
        many,
        "422 invalid: 10001 messages in one … send them in several",
    )
    .await;
    let mut many = messages(limits::MESSAGES_PER_ADD_MAX + 1);
    for message in &mut many {
        message["role"] = json!("user");
    }
    let many = json!({"user_id": "u", "messages": many});
    check_json(
        &node.client,
        "POST /product/add",
        many,
        "422 envelope: 10001 messages in … send them in several",
    )
    .await;
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
    check(c, add, padded(limits::REQUEST_BODY_BYTES_MAX), "201").await;
    check(
        c,
        add,
        padded(limits::REQUEST_BODY_BYTES_MAX + 1),
        "413 too_large: the body has more … in several requests",
    )
    .await;
    let memos = "POST /product/add";
    check(
        c,
        memos,
        padded(limits::REQUEST_BODY_BYTES_MAX + 1),
        "413 envelope: the body has more … in several requests",
    )
    .await;
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
