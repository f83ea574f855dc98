//! Whatever arrives, the answer has a status, a code, and says what to do; and the server goes on.

use memcube_schemas::limits;
use serde_json::{Value, json};

use crate::support::{Answer, Client, TestNode, assert_says, check_table};

const MEMORIES: &str = "/v1/cubes/c/memories";

async fn node_with_cube() -> TestNode {
    let node = TestNode::start().await;
    node.client.cube("c").await;
    node
}

/// One request whose body is too odd or too long for a table.
async fn check(client: &Client, path: &str, body: impl Into<Vec<u8>>, expected: &str) {
    let answer = client.call("POST", path).bytes(body).send().await;
    assert_says(&answer.summary(), expected, path);
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
    let table = r#"
POST /v1/cubes/c/memories
    400 invalid: the body is not valid JSON: EOF while parsing a value at line 1 column 0
POST /v1/cubes/c/memories {
    400 invalid: the body is not valid JSON: EOF while parsing an object at line 1 column 1
POST /v1/cubes/c/memories {"text": "a"
    400 invalid: the body is not valid JSON: EOF while parsing an object at line 1 column 12
POST /v1/cubes/c/memories {"text": "a"} trailing
    400 invalid: the body is not valid JSON: trailing characters at line 1 column 15
POST /v1/cubes/c/memories {'text': 'a'}
    400 invalid: the body is not valid JSON: key must be a string at line 1 column 2
POST /v1/cubes/c/memories {"text": "\ud800"}
    400 invalid: the body is not valid JSON: unexpected end of hex escape at line 1 column 17
PATCH /v1/cubes/c/memories/01890a5d-ac96-774b-bcce-b302099a8057 {
    400 invalid: the body is not valid JSON: EOF while parsing an object at line 1 column 1
POST /v1/cubes/c/search nonsense
    400 invalid: the body is not valid JSON: expected ident at line 1 column 2
POST /v1/cubes nonsense
    400 invalid: the body is not valid JSON: expected ident at line 1 column 2
POST /product/add {
    400 envelope: the body is not valid JSON: EOF while parsing an object at line 1 column 1
POST /product/add {"user_id": "u"} trailing
    400 envelope: the body is not valid JSON: trailing characters at line 1 column 18
POST /product/search {
    400 envelope: the body is not valid JSON: EOF while parsing an object at line 1 column 1
"#;
    check_table(&node.client, "", Answer::summary, table).await;
    let (c, memos) = (&node.client, "/product/add");
    check(c, MEMORIES, "{\"text\": \"a\nb\"}", "400 invalid: … control character …").await;
    let utf8 = b"{\"text\": \"\xff\xfe\"}";
    check(c, MEMORIES, utf8, "400 invalid: the body is not UTF-8 from byte 10 on").await;
    check(c, memos, b"\xff", "400 envelope: the body is not UTF-8 from byte 0 on").await;
    check(c, MEMORIES, "[".repeat(100_000), "400 invalid: the body is not valid JSON: …").await;
    let nested = format!("{{\"info\": {}1{}}}", "{\"a\":".repeat(500), "}".repeat(500));
    check(c, MEMORIES, nested, "400 invalid: … recursion limit exceeded …").await;
    assert_eq!(node.client.texts("c").await, Vec::<String>::new(), "nothing was remembered");
    still_works(&node.client).await;
}

/// Unknown fields are mistakes on `/v1`; MemOS's clients send more than there is a meaning for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_another_shape() {
    let node = node_with_cube().await;
    let table = r#"
POST /v1/cubes/c/memories null
    422 invalid: body at `.`: invalid type: null, expected struct AddMemoriesRequest …
POST /v1/cubes/c/memories 7
    422 invalid: body at `.`: invalid type: integer `7`, expected struct AddMemoriesRequest …
POST /v1/cubes/c/memories {"messages": "hello"}
    422 invalid: body at `messages`: invalid type: string "hello", expected a sequence …
POST /v1/cubes/c/memories {"messages": [{"content": 7}]}
    422 invalid: body at `messages[0].content`: invalid type: integer `7`, expected a string …
POST /v1/cubes/c/memories {"messages": [{"content": "a"}, {}]}
    422 invalid: body at `messages[1]`: missing field `content` …
POST /v1/cubes/c/memories {"messages": [{"role": "boss", "content": "a"}]}
    422 invalid: body at `messages[0].role`: unknown variant `boss`, expected one of `user`, `assistant`, `system`, `tool` …
POST /v1/cubes/c/memories {"messages": [{"content": "a", "mood": 1}]}
    422 invalid: body at `messages[0].mood`: unknown field `mood`, expected one of `role`, `content`, `name`, `chat_time`, `message_id` …
POST /v1/cubes/c/memories {"text": "a", "colour": "red"}
    422 invalid: body at `colour`: unknown field `colour`, expected one of `messages`, `text`, `conversation`, `tags`, `info`, `remember_system_and_tool` …
POST /v1/cubes/c/memories {"text": "a", "tags": "t"}
    422 invalid: body at `tags`: invalid type: string "t", expected a sequence …
POST /v1/cubes/c/memories {"text": "a", "info": []}
    422 invalid: body at `info`: invalid type: sequence, expected a map …
POST /v1/cubes/c/memories {"text": "a", "conversation": ""}
    422 invalid: body at `conversation`: invalid conversation id: it is empty …
POST /v1/cubes/c/memories {"text": "a", "text": "b"}
    422 invalid: body at `.`: duplicate field `text` …
POST /v1/cubes/c/search {}
    422 invalid: body at `.`: missing field `query` …
POST /v1/cubes/c/search {"query": ["a"]}
    422 invalid: body at `query`: invalid type: sequence, expected a string …
POST /v1/cubes/c/search {"query": "a", "top_k": -1}
    422 invalid: body at `top_k`: invalid value: integer `-1`, expected usize …
POST /v1/cubes/c/search {"query": "a", "top_k": 1.5}
    422 invalid: body at `top_k`: invalid type: floating point `1.5`, expected usize …
POST /v1/cubes/c/search {"query": "a", "filter": {"kinds": ["rumour"]}}
    422 invalid: body at `filter.kinds[0]`: unknown variant `rumour`, expected one of `fact`, `episode`, `preference` …
POST /v1/cubes/c/search {"query": "a", "filter": {"colour": 1}}
    422 invalid: body at `filter.colour`: unknown field `colour`, expected one of `tags`, `conversation`, `kinds`, `said_from`, `said_before` …
POST /v1/cubes {"id": 7}
    422 invalid: body at `id`: invalid type: integer `7`, expected a string …
POST /v1/cubes {"id": "a", "kind": "b"}
    422 invalid: body at `kind`: unknown field `kind`, expected one of `id`, `name`, `owner` …
POST /product/add {"user_id": "u", "messages": "hello", "colour": "red", "async_mode": "sync"}
    200 envelope: Memory added successfully
POST /product/search {"user_id": "u", "query": "hello", "colour": "red", "rerank": true}
    200 envelope: Search completed successfully
"#;
    check_table(&node.client, "", Answer::summary, table).await;
    assert_eq!(node.client.texts("c").await, Vec::<String>::new(), "nothing was remembered");
    still_works(&node.client).await;
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
    let table = r#"
POST /v1/cubes/c/memories {}
    422 invalid: nothing to remember: give `messages` or `text`
POST /v1/cubes/c/memories {"messages": []}
    422 invalid: nothing to remember: give `messages` or `text`
POST /v1/cubes/c/search {"query": ""}
    422 invalid: `query` is empty; ask for something
POST /v1/cubes/c/search {"query": " \n\t"}
    422 invalid: `query` is empty; ask for something
POST /v1/cubes/c/search {"query": "a", "top_k": 0}
    422 invalid: `top_k` must be between 1 and 1000
POST /v1/cubes/c/search {"query": "a", "top_k": 1001}
    422 invalid: `top_k` must be between 1 and 1000
POST /v1/cubes/c/search {"query": "a", "relativity_min": 1.1}
    422 invalid: `relativity_min` must be between 0 and 1
POST /v1/cubes/c/search {"query": "a", "relativity_min": -0.1}
    422 invalid: `relativity_min` must be between 0 and 1
POST /v1/cubes/c/search {"query": "a", "filter": {"said_from": "the day before"}}
    422 invalid: `the day before` is not a time; write it like `2023-05-08T13:56:00Z`
GET /v1/cubes?limit=0
    422 invalid: `limit` must be between 1 and 1000
GET /v1/cubes?limit=1001
    422 invalid: `limit` must be between 1 and 1000
GET /v1/cubes?limit=many
    422 invalid: Failed to deserialize query string: limit: invalid digit found in string
GET /v1/cubes?page=2
    422 invalid: Failed to deserialize query string: page: unknown field `page`, expected `cursor` or `limit`
GET /v1/cubes?cursor=
    422 invalid: invalid cube id: it is empty
GET /v1/cubes/c/memories?limit=0
    422 invalid: `limit` must be between 1 and 1000
GET /v1/cubes/c/memories?limit=1001
    422 invalid: `limit` must be between 1 and 1000
GET /v1/cubes/c/memories?limit=-1
    422 invalid: Failed to deserialize query string: limit: invalid digit found in string
GET /v1/cubes/c/memories?cursor=nonsense
    422 invalid: invalid memory id: expected a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`
"#;
    check_table(&node.client, "", Answer::summary, table).await;
    let (c, search) = (&node.client, "/v1/cubes/c/search");
    let tags: Vec<String> = (0..=limits::TAGS_MAX).map(|tag| tag.to_string()).collect();
    let tag = "t".repeat(limits::TAG_BYTES_MAX + 1);
    let info = "i".repeat(limits::INFO_BYTES_MAX);
    let long = "q".repeat(limits::QUERY_BYTES_MAX + 1);
    for (path, body, expected) in [
        (MEMORIES, json!({"text": "a", "tags": tags}), "422 invalid: 65 tags, the limit is 64"),
        (
            MEMORIES,
            json!({"text": "a", "tags": [tag]}),
            "422 invalid: a tag has 257 bytes, the limit is 256",
        ),
        (
            MEMORIES,
            json!({"text": "a", "info": {"i": info}}),
            "422 invalid: `info` has … the limit is 16384",
        ),
        (
            search,
            json!({"query": long}),
            "422 invalid: `query` has 65537 bytes, the limit is 65536",
        ),
        (search, json!({"query": long[1..]}), "200"),
    ] {
        check(c, path, body.to_string(), expected).await;
    }
    still_works(&node.client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_nothing() {
    let node = node_with_cube().await;
    let table = r#"
POST /v1/cubes/nobody/memories {"text": "a"}
    404 not_found: there is no cube `nobody`
POST /v1/cubes/nobody/search {"query": "a"}
    404 not_found: there is no cube `nobody`
GET /v1/cubes/nobody/memories
    404 not_found: there is no cube `nobody`
DELETE /v1/cubes/nobody/memories?all=true
    404 not_found: there is no cube `nobody`
GET /v1/cubes/nobody/memories/01890a5d-ac96-774b-bcce-b302099a8057
    404 not_found: there is no cube `nobody`
GET /v1/cubes/nobody/memories/01890a5d-ac96-774b-bcce-b302099a8057/history
    404 not_found: there is no cube `nobody`
GET /v1/cubes/c/memories/01890a5d-ac96-774b-bcce-b302099a8057
    404 not_found: there is no memory `01890a5d-ac96-774b-bcce-b302099a8057` in this cube
DELETE /v1/cubes/c/memories/01890a5d-ac96-774b-bcce-b302099a8057
    404 not_found: there is no memory `01890a5d-ac96-774b-bcce-b302099a8057` in this cube
PATCH /v1/cubes/c/memories/01890a5d-ac96-774b-bcce-b302099a8057 {"text": "a"}
    404 not_found: there is no memory `01890a5d-ac96-774b-bcce-b302099a8057` in this cube
GET /v1/cubes/c/memories/seven
    422 invalid: invalid memory id: expected a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`
GET /v1/cubes/c/memories/01890a5d-ac96-774b-bcce-b302099a80570
    422 invalid: invalid memory id: expected a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`
DELETE /v1/cubes/c/memories/seven
    422 invalid: invalid memory id: expected a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`
PATCH /v1/cubes/c/memories/seven {"text": "a"}
    422 invalid: invalid memory id: expected a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`
GET /v1/cubes/c/memories/seven/history
    422 invalid: invalid memory id: expected a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`
GET /v1/cubes/a%00b
    422 invalid: invalid cube id: the character '\0' is not allowed
DELETE /v1/cubes/c/memories/01890a5d-ac96-774b-bcce-b302099a8057?purge=maybe
    422 invalid: Failed to deserialize query string: purge: provided string was not `true` or `false`
"#;
    check_table(&node.client, "", Answer::summary, table).await;
    let long = node.client.get(&format!("/v1/cubes/{}", "x".repeat(257))).await;
    let expected = "422 invalid: invalid cube id: it has 257 bytes, the limit is 256";
    assert_says(&long.summary(), expected, "a long id");
    still_works(&node.client).await;
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
        ("GET", "/v1/jobs/%ff"),
        ("GET", "/product/scheduler/status?user_id=a&user_id=b"),
        ("GET", "/product/scheduler/task_queue_status?user_id=a&user_id=b"),
        ("POST", "/product/scheduler/wait?user_name=a&timeout_seconds=NaN"),
        ("GET", "/product/scheduler/wait/stream?user_name=a&poll_interval=x"),
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
    let content = "a".repeat(limits::MESSAGE_BYTES_MAX + 1);
    for (path, body, expected) in [
        (
            MEMORIES,
            json!({"messages": [{"content": "a"}, {"content": content}]}),
            "422 invalid: message 1 has",
        ),
        (MEMORIES, json!({ "text": content }), "422 invalid: message 0 has"),
        (
            "/product/add",
            json!({"user_id": "u", "messages": content}),
            "422 envelope: message 0 has",
        ),
    ] {
        let expected = format!("{expected} 4194305 bytes, the limit is 4194304; cut it");
        check(&node.client, path, body.to_string(), &expected).await;
    }
    assert_eq!(node.client.texts("c").await, Vec::<String>::new(), "none of them");
    still_works(&node.client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_messages_are_taken_and_one_more_is_not() {
    let node = node_with_cube().await;
    let messages = |count: usize| {
        let message = |number| json!({"role": "user", "content": format!("turn {number}")});
        (0..count).map(message).collect::<Vec<_>>()
    };
    let many = messages(limits::MESSAGES_PER_ADD_MAX + 1);
    for (path, body, kind) in [
        (MEMORIES, json!({ "messages": many }), "invalid"),
        ("/product/add", json!({"user_id": "u", "messages": many}), "envelope"),
    ] {
        let said = "10001 messages in one call, the limit is 10000; send them in several";
        check(&node.client, path, body.to_string(), &format!("422 {kind}: {said}")).await;
    }
    assert_eq!(node.client.texts("c").await, Vec::<String>::new());
    let most = json!({"messages": messages(limits::MESSAGES_PER_ADD_MAX), "conversation": "s"});
    let added = node.client.post(MEMORIES, most).await.expect(201);
    assert_eq!(added["memories"].as_array().map(Vec::len), Some(limits::MESSAGES_PER_ADD_MAX));
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
    let (c, most) = (&node.client, limits::REQUEST_BODY_BYTES_MAX);
    let said = format!("the body has more than {most} bytes; send it in several requests");
    check(c, MEMORIES, padded(most), "201").await;
    check(c, MEMORIES, padded(most + 1), &format!("413 too_large: {said}")).await;
    check(c, "/product/add", padded(most + 1), &format!("413 envelope: {said}")).await;
    assert_eq!(c.texts("c").await, ["padded"]);
    still_works(c).await;
}

/// A request that is within every limit must be possible: 429 would send its caller round for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_request_within_the_limits_is_not_overload() {
    let node = node_with_cube().await;
    // Short words: as many memories as bytes can make.
    let content = "a b ".repeat(limits::MESSAGE_BYTES_MAX / 4 - 1);
    let messages: Vec<Value> = (0..4).map(|_| json!({ "content": content })).collect();
    let answer = node.client.post(MEMORIES, json!({ "messages": messages })).await;
    let said: String = answer.summary().chars().take(300).collect();
    assert!(matches!(answer.status, 201 | 422), "{said}");
    still_works(&node.client).await;
}
