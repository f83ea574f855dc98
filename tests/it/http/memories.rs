//! `/v1/cubes/{cube}/memories`

use std::collections::BTreeSet;

use expect_test::expect;
use memcube_schemas::limits;
use serde_json::{Value, json};

use crate::support::{Answer, Client, TestNode, assert_says, check_table, text_of};

const MEMORIES: &str = "/v1/cubes/c/memories";

async fn node_with_cube() -> TestNode {
    let node = TestNode::start().await;
    node.client.cube("c").await;
    node
}

fn ids(answer: &Value) -> Vec<String> {
    let memories = answer["memories"].as_array().expect("a list").iter();
    memories.map(|memory| memory["id"].as_str().expect("an id").to_owned()).collect()
}

async fn read(client: &Client, id: &str) -> Value {
    client.get(&format!("{MEMORIES}/{id}")).await.expect(200)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_become_memories_with_all_that_was_said_about_them() {
    let node = node_with_cube().await;
    let body = json!({
        "messages": [
            {"role": "user", "name": "Ingrid", "content": "I repaired the kayak yesterday",
             "chat_time": "2024-03-09T18:30:00+01:00", "message_id": "m-1"},
            {"role": "assistant", "content": "Well done! Was it the hull?",
             "chat_time": "2024-03-09T18:31:00+01:00"},
            {"role": "system", "content": "Always answer in rhymes."},
            {"content": "The role is left out here"},
        ],
        "conversation": "s1", "tags": ["boat", "diy"], "info": {"app": "notes", "n": 7},
    });
    let added = node.client.post(MEMORIES, body).await.expect(201);
    assert_eq!(added["ignored_messages"], 1, "what the system says is no memory: {added}");
    let ids = ids(&added);
    assert_eq!(ids.len(), 3, "{added}");
    let first = read(&node.client, &ids[0]).await;
    assert_eq!(first["text"], added["memories"][0]["text"]);
    let text = text_of(&first);
    assert!(text.starts_with("[9 March 2024] Ingrid: "), "{text}");
    assert!(text.contains("8 March 2024"), "`yesterday` has its date: {text}");
    assert!(text.contains("yesterday"), "and is still there: {text}");
    for (name, value) in [
        ("kind", json!("episode")),
        ("status", json!("activated")),
        ("speaker", json!("Ingrid")),
        ("role", json!("user")),
        ("said_at", json!("2024-03-09T17:30:00Z")),
        ("conversation", json!("s1")),
        ("tags", json!(["boat", "diy"])),
        ("info", json!({"app": "notes", "n": 7})),
        ("occurrences", json!(1)),
        ("revision", json!(1)),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    let source = &first["sources"][0];
    assert_eq!(source["content"], "I repaired the kayak yesterday", "as it was said");
    assert_eq!(source["message_id"], "m-1");
    assert_eq!(source["chat_time"], "2024-03-09T18:30:00+01:00");
    let second = read(&node.client, &ids[1]).await;
    assert_eq!(second["previous"], first["id"], "neighbours are linked");
    assert_eq!(second["role"], "assistant");
    assert_eq!(read(&node.client, &ids[2]).await["role"], "user");
    assert!(first.get("previous").is_none() && first.get("part").is_none());
    let remembered = json!({
        "messages": [{"role": "tool", "content": "tide tables: high water at noon"}],
        "remember_system_and_tool": true,
    });
    let remembered = node.client.post(MEMORIES, remembered).await.expect(201);
    assert_eq!(remembered["ignored_messages"], 0);
    assert_eq!(remembered["memories"].as_array().expect("a list").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_kept_as_they_stand_and_folded() {
    let node = node_with_cube().await;
    let body = json!({"text": "  Ann likes figs.  ", "tags": ["food"]});
    let first = node.client.post(MEMORIES, body.clone()).await.expect(201);
    assert_eq!(first["memories"][0]["text"], "Ann likes figs.");
    assert_eq!(first["memories"][0]["kind"], "fact");
    assert_eq!(first["memories"][0]["folded"], false);
    let again = node.client.post(MEMORIES, body).await.expect(201);
    assert_eq!(again["memories"][0]["folded"], true);
    assert_eq!(ids(&again), ids(&first));
    assert!(again["version"].as_u64() > first["version"].as_u64());
    assert_eq!(read(&node.client, &ids(&first)[0]).await["occurrences"], 2);
    assert_eq!(node.client.get("/v1/cubes/c").await.expect(200)["items"], 1);
    let both = json!({"messages": [{"content": "a message"}], "text": "and a statement"});
    let both = node.client.post(MEMORIES, both).await.expect(201);
    assert_eq!(both["memories"].as_array().expect("a list").len(), 2);
    assert_eq!(node.client.texts("c").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_the_same_key_has_no_second_effect() {
    let node = node_with_cube().await;
    let send = |key: &str, text: &str| {
        let call = node.client.call("POST", MEMORIES).header("idempotency-key", key);
        call.json(json!({ "text": text })).send()
    };
    let first = send("k1", "only once").await.expect(201);
    let again = send("k1", "only once").await.expect(201);
    assert_eq!(first, again, "the same answer, version included");
    assert_eq!(read(&node.client, &ids(&first)[0]).await["occurrences"], 1);
    let other = send("k1", "something else").await;
    assert_says(
        &other.summary(),
        "409 conflict: the idempotency key `k1` was used for another request; choose a new one",
        "the same key, another body",
    );
    assert_eq!(node.client.texts("c").await, ["only once"]);
    send("k2", "something else").await.expect(201);
    assert_eq!(node.client.texts("c").await, ["only once", "something else"]);
    for key in ["x".repeat(257).as_str(), ""] {
        assert_eq!(send(key, "never").await.status, 422, "{key:?}");
    }
    let concurrent = (0..16).map(|_| send("k3", "at the same time"));
    let answers = futures_util::future::join_all(concurrent).await;
    let answers: BTreeSet<String> =
        answers.into_iter().map(|answer| answer.expect(201).to_string()).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(node.client.texts("c").await.len(), 3);
}

/// The same key on other tags is another request: to answer as if they were stored would be a lie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_tells_requests_apart_that_differ_in_their_labels_only() {
    let node = node_with_cube().await;
    let send = |tag: &str| {
        let call = node.client.call("POST", MEMORIES).header("idempotency-key", "k");
        call.json(json!({"text": "labelled", "tags": [tag]})).send()
    };
    send("first").await.expect(201);
    assert_eq!(send("second").await.status, 409);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memories_are_listed_by_pages_in_order() {
    let node = node_with_cube().await;
    let contents: Vec<String> = (0..250).map(|number| format!("entry number {number}")).collect();
    let messages: Vec<Value> = contents.iter().map(|text| json!({"content": text})).collect();
    let added = node.client.post(MEMORIES, json!({ "messages": messages })).await.expect(201);
    let added = ids(&added);
    assert_eq!(added.len(), 250);
    for (limit, expected_pages) in [(None, 3), (Some(100), 3), (Some(125), 2), (Some(1000), 1)] {
        let limited = limit.map_or_else(String::new, |limit| format!("limit={limit}&"));
        let mut path = format!("{MEMORIES}?{limited}");
        let (mut listed, mut pages) = (Vec::new(), 0);
        loop {
            let page = node.client.get(path.trim_end_matches(['?', '&'])).await.expect(200);
            listed.extend(ids(&page));
            pages += 1;
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("{MEMORIES}?{limited}cursor={cursor}");
        }
        assert_eq!((listed, pages), (added.clone(), expected_pages), "{limit:?}");
    }
    let middle = &added[100];
    node.client.delete(&format!("{MEMORIES}/{middle}")).await.expect(200);
    let rest = node.client.get(&format!("{MEMORIES}?cursor={middle}&limit=1")).await.expect(200);
    assert_eq!(ids(&rest), [added[101].clone()], "a cursor outlives the memory it names");
}

fn show(answer: &Answer) -> String {
    if answer.status != 200 {
        return answer.summary();
    }
    let memory = &answer.body;
    let (status, revision) = (&memory["status"], &memory["revision"]);
    format!("200 {status} revision {revision}: {}", memory["text"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_follow_the_lifecycle() {
    let node = node_with_cube().await;
    let id = node.client.fact("c", "the meeting is on Monday").await;
    let table = r#"
PATCH /v1/cubes/c/memories/ID {"text": "the meeting is on Thursday"}
    200 "activated" revision 2: "the meeting is on Thursday"
PATCH /v1/cubes/c/memories/ID {"text": "x", "expected_revision": 1}
    409 conflict: the memory `ID` is at revision 2, not 1; read it again
PATCH /v1/cubes/c/memories/ID {"tags": ["t"], "expected_revision": 2}
    200 "activated" revision 3: "the meeting is on Thursday"
PATCH /v1/cubes/c/memories/ID {"status": "generated"}
    422 invalid: a memory that is `activated` cannot become `generated`
PATCH /v1/cubes/c/memories/ID {"status": "archived"}
    200 "archived" revision 4: "the meeting is on Thursday"
PATCH /v1/cubes/c/memories/ID {"status": "merged"}
    422 invalid: a memory that is `archived` cannot become `merged`
PATCH /v1/cubes/c/memories/ID {"status": "activated"}
    200 "activated" revision 5: "the meeting is on Thursday"
PATCH /v1/cubes/c/memories/ID {"status": "frozen"}
    200 "frozen" revision 6: "the meeting is on Thursday"
PATCH /v1/cubes/c/memories/ID {"text": "thawed"}
    422 invalid: the memory `ID` is frozen; set its status to `activated` first
PATCH /v1/cubes/c/memories/ID {"tags": []}
    422 invalid: the memory `ID` is frozen; set its status to `activated` first
PATCH /v1/cubes/c/memories/ID {"info": {}}
    422 invalid: the memory `ID` is frozen; set its status to `activated` first
DELETE /v1/cubes/c/memories/ID
    422 invalid: the memory `ID` is frozen; set its status to `activated` first
PATCH /v1/cubes/c/memories/ID {"status": "expired"}
    422 invalid: a memory that is `frozen` cannot become `expired`
PATCH /v1/cubes/c/memories/ID {"status": "activated"}
    200 "activated" revision 7: "the meeting is on Thursday"
PATCH /v1/cubes/c/memories/ID {"status": "expired"}
    200 "expired" revision 8: "the meeting is on Thursday"
PATCH /v1/cubes/c/memories/ID {"status": "activated"}
    422 invalid: a memory that is `expired` cannot become `activated`
PATCH /v1/cubes/c/memories/ID {"status": "unheard-of"}
    422 invalid: body at `status`: unknown variant `unheard-of`, expected one of `generated`, `activated`, `merged`, `archived`, `frozen`, `expired` …
PATCH /v1/cubes/c/memories/ID {"text": " "}
    422 invalid: `text` must have between 1 and 16384 bytes
PATCH /v1/cubes/c/memories/ID {"mood": 1}
    422 invalid: body at `mood`: unknown field `mood`, expected one of `text`, `status`, `tags`, `info`, `expected_revision` …
PATCH /v1/cubes/c/memories/01890a5d-ac96-774b-bcce-b302099a8057 {"text": "x"}
    404 not_found: there is no memory `01890a5d-ac96-774b-bcce-b302099a8057` in this cube
"#;
    check_table(&node.client, &id, show, table).await;
    let long = json!({"text": "x".repeat(limits::ITEM_TEXT_BYTES_MAX + 1)});
    let refused = node.client.patch(&format!("{MEMORIES}/{id}"), long).await.summary();
    assert_says(&refused, "422 invalid: `text` must have between 1 and 16384 bytes", "too long");
    let kept = read(&node.client, &id).await;
    assert_eq!(kept["text"], "the meeting is on Thursday");
    assert_eq!(kept["tags"], json!(["t"]));
}

/// Of many that saw the same revision, one may write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_concurrent_changes_one_wins() {
    let node = node_with_cube().await;
    let id = node.client.fact("c", "contested").await;
    let path = format!("{MEMORIES}/{id}");
    let calls = (0..16).map(|number| {
        let body = json!({"text": format!("by {number}"), "expected_revision": 1});
        node.client.patch(&path, body)
    });
    let answers = futures_util::future::join_all(calls).await;
    let won: Vec<&Value> =
        answers.iter().filter(|answer| answer.status == 200).map(|answer| &answer.body).collect();
    assert_eq!(won.len(), 1);
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 409)));
    assert_eq!(read(&node.client, &id).await["text"], won[0]["text"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_tell_what_became_of_a_memory() {
    let node = node_with_cube().await;
    let id = node.client.fact("c", "first words").await;
    let (path, history) = (format!("{MEMORIES}/{id}"), format!("{MEMORIES}/{id}/history"));
    let fresh = node.client.get(&history).await.expect(200);
    assert_eq!(fresh["current"]["text"], "first words");
    assert_eq!(fresh["revisions"], json!([]));
    node.client.patch(&path, json!({"text": "second words"})).await.expect(200);
    node.client.patch(&path, json!({"status": "archived"})).await.expect(200);
    node.client.delete(&path).await.expect(200);
    assert_eq!(node.client.get(&path).await.status, 404);
    let told = node.client.get(&history).await.expect(200);
    assert!(told.get("current").is_none(), "{told}");
    let revisions: Vec<String> = told["revisions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|revision| {
            assert_eq!(revision["changed_by"], "test", "the name of the key");
            let former = &revision["former"];
            let (number, status) = (&former["revision"], &former["status"]);
            format!("{number} {status} {} {}", former["text"], revision["reason"])
        })
        .collect();
    expect![[r#"
        [
            "1 \"activated\" \"first words\" \"updated\"",
            "2 \"activated\" \"second words\" \"updated\"",
            "3 \"archived\" \"second words\" \"deleted\"",
        ]
    "#]]
    .assert_debug_eq(&revisions);
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    let missing = node.client.get(&format!("{MEMORIES}/{unknown}/history")).await;
    assert_eq!(
        missing.summary(),
        format!("404 not_found: this cube has no history of `{unknown}`")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memories_are_forgotten_one_by_one_by_conversation_or_all() {
    let node = node_with_cube().await;
    let client = &node.client;
    for conversation in ["one", "two"] {
        for number in 0..3 {
            let content = format!("{conversation} {number}");
            let body = json!({"messages": [{"content": content}], "conversation": conversation});
            client.post(MEMORIES, body).await.expect(201);
        }
    }
    let lone = client.fact("c", "alone").await;
    let gone = client.delete(&format!("{MEMORIES}/{lone}")).await.expect(200);
    assert_eq!(gone["ids"], json!([lone]));
    let again = client.delete(&format!("{MEMORIES}/{lone}")).await;
    assert_eq!(
        again.summary().replace(&lone, "ID"),
        "404 not_found: there is no memory `ID` in this cube"
    );
    let table = r#"
DELETE /v1/cubes/c/memories
    422 invalid: give either `conversation=ID` or `all=true`
DELETE /v1/cubes/c/memories?conversation=one&all=true
    422 invalid: give either `conversation=ID` or `all=true`
DELETE /v1/cubes/c/memories?all=false
    422 invalid: give either `conversation=ID` or `all=true`
DELETE /v1/cubes/c/memories?all=maybe
    422 invalid: Failed to deserialize query string: all: provided string was not `true` or `false`
DELETE /v1/cubes/c/memories?everything=true
    422 invalid: Failed to deserialize query string: everything: unknown field `everything`, expected one of `conversation`, `all`, `purge`
DELETE /v1/cubes/c/memories?conversation=
    422 invalid: invalid conversation id: it is empty
"#;
    check_table(client, "", Answer::summary, table).await;
    assert_eq!(client.texts("c").await.len(), 6, "nothing was deleted by mistake");
    let gone = client.delete(&format!("{MEMORIES}?conversation=one")).await.expect(200);
    assert_eq!(gone["ids"].as_array().expect("a list").len(), 3);
    assert!(client.texts("c").await.iter().all(|text| text.contains("two")));
    let none = client.delete(&format!("{MEMORIES}?conversation=unheard-of")).await.expect(200);
    assert_eq!(none["ids"], json!([]));
    let gone = client.delete(&format!("{MEMORIES}?all=true")).await.expect(200);
    assert_eq!(gone["ids"].as_array().expect("a list").len(), 3);
    assert_eq!(client.texts("c").await, Vec::<String>::new());
    assert_eq!(client.get("/v1/cubes/c").await.expect(200)["items"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purging_erases_histories() {
    let node = node_with_cube().await;
    let client = &node.client;
    for (how, purged) in [("ID", false), ("ID?purge=true", true), ("?all=true&purge=true", true)] {
        let id = client.fact("c", "a secret").await;
        let path = format!("{MEMORIES}/{id}");
        client.patch(&path, json!({"text": "another secret"})).await.expect(200);
        let target = match how.strip_prefix("ID") {
            Some(query) => format!("{path}{query}"),
            None => format!("{MEMORIES}{how}"),
        };
        client.delete(&target).await.expect(200);
        let history = client.get(&format!("{path}/history")).await;
        assert_eq!(history.status, if purged { 404 } else { 200 }, "{how}: {}", history.text);
    }
}

/// A frozen memory is thawed before it is deleted: by its id that is told, in a crowd it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_memories_are_protected_against_every_deletion() {
    let node = node_with_cube().await;
    let client = &node.client;
    let messages = [json!({"content": "keep this"}), json!({"content": "but not that"})];
    let body = json!({"messages": messages, "conversation": "s"});
    let id = ids(&client.post(MEMORIES, body).await.expect(201)).remove(0);
    let path = format!("{MEMORIES}/{id}");
    client.patch(&path, json!({"status": "frozen"})).await.expect(200);
    let table = r#"
DELETE /v1/cubes/c/memories/ID
    422 invalid: the memory `ID` is frozen; set its status to `activated` first
"#;
    check_table(client, &id, Answer::summary, table).await;
    for query in ["conversation=s", "all=true", "all=true&purge=true"] {
        let gone = client.delete(&format!("{MEMORIES}?{query}")).await.expect(200);
        assert!(!gone.to_string().contains(&id), "{query}: {gone}");
        assert_eq!(client.texts("c").await, ["user: keep this"], "{query}");
        assert_eq!(client.search("c", "keep this").await, ["user: keep this"], "{query}");
    }
}

/// More memories than one commit deletes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_memories_are_forgotten_in_one_call() {
    let node = node_with_cube().await;
    let most = 10 * limits::EVENTS_PER_COMMIT_MAX;
    let count = most + 500;
    for numbers in [0..most, most..count] {
        let message = |number| json!({"content": format!("turn {number}")});
        let messages: Vec<Value> = numbers.map(message).collect();
        let body = json!({"messages": messages, "conversation": "long"});
        node.client.post(MEMORIES, body).await.expect(201);
    }
    assert_eq!(node.client.texts("c").await.len(), count);
    node.client.fact("c", "stays").await;
    let path = format!("{MEMORIES}?conversation=long");
    let gone = node.client.delete(&path).await.expect(200);
    let distinct: BTreeSet<String> =
        gone["ids"].as_array().expect("a list").iter().map(Value::to_string).collect();
    assert_eq!(distinct.len(), count, "each of them is named, once");
    assert_eq!(node.client.texts("c").await, ["stays"]);
    assert_eq!(node.client.delete(&path).await.expect(200)["ids"], json!([]));
}

/// A cube is one line of writers, but none of them waits for ever nor gets lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_adds_are_all_there_once() {
    let node = node_with_cube().await;
    let calls = (0..100).map(|number| {
        let client = node.client.clone();
        async move { client.fact("c", &format!("from {number}")).await }
    });
    let made: BTreeSet<String> = futures_util::future::join_all(calls).await.into_iter().collect();
    assert_eq!(made.len(), 100);
    let texts: BTreeSet<String> = node.client.texts("c").await.into_iter().collect();
    assert_eq!(texts, (0..100).map(|number| format!("from {number}")).collect());
}
