//! Events of conversations, what is prepared because of them, and what was learned from it.

use std::sync::Arc;

use memcube::Node;
use memcube_actors::{
    embedder::ScriptedEmbedder,
    inference::{
        Engine,
        scripted::{ScriptedCosts, ScriptedEngine},
    },
    metrics::{PRELOADS_TOTAL, SCENE_EVENTS_TOTAL},
};
use serde_json::{Value, json};

use crate::support::{Answer, Client, TestNode, check_table, eventually, in_memory};

const EVENTS: &str = "/v1/conversations/talk/events";
const SCENES: &str = "/v1/conversations/talk/scenes?cube=ann";
/// A model that takes no time.
const AT_ONCE: ScriptedCosts =
    ScriptedCosts { prefill_us: 0, look_back_ns: 0, step_us: 0, copy_ns: 0 };

const FACTS: [&str; 6] = [
    "the greyhound is called Miso and hates rain",
    "the cello lesson moved to Thursday evening",
    "the flight to Lisbon leaves at seven in the morning",
    "mother bakes rye bread every Sunday",
    "the chess club meets in the old library",
    "the choir sings a requiem in November",
];

async fn node() -> (TestNode, Vec<String>) {
    let engine: Arc<dyn Engine> = Arc::new(ScriptedEngine::new(8_192, 1 << 30, AT_ONCE));
    let builder = Node::builder()
        .with_settings(in_memory())
        .with_embedder(Arc::new(ScriptedEmbedder::new(32)))
        .with_engine(engine);
    let node = TestNode::build(builder).await;
    node.client.cube("ann").await;
    let mut known = Vec::new();
    for fact in FACTS {
        known.push(node.client.fact("ann", fact).await);
    }
    (node, known)
}

async fn say(client: &Client, turns: &mut Vec<Value>, text: &str) -> Value {
    turns.push(json!({"role": "user", "content": text}));
    let body = json!({"cube": "ann", "conversation": "talk", "messages": turns});
    let reply = client.post("/v1/chat/completions", body).await.expect(200);
    turns.push(reply["choices"][0]["message"].clone());
    reply
}

async fn entries(client: &Client) -> Vec<Value> {
    let told = client.get(SCENES).await.expect(200);
    told["entries"].as_array().expect("a list").clone()
}

/// Waits until nothing is being prepared, and so many thoughts are over.
async fn prepared(client: &Client, count: usize) -> Vec<Value> {
    eventually("the next turn is prepared", || async move {
        let entries = entries(client).await;
        entries.len() >= count && entries.iter().all(|entry| entry["state"] != "running")
    })
    .await;
    entries(client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typed_turn_is_prepared_and_the_timeline_tells_what_became_of_it() {
    let (node, known) = node().await;
    let client = &node.client;
    let mut turns = Vec::new();
    say(client, &mut turns, "good morning").await;
    let first = prepared(client, 1).await;
    assert_eq!(
        (&first[0]["reason"], &first[0]["kind"]),
        (&json!("turn_finished"), &json!("activation"))
    );
    let typed = json!({"cube": "ann", "event": {"kind": "typing",
        "text": "when is my cello lesson on Thursday evening"}});
    assert_eq!(client.post(EVENTS, typed).await.expect(202), json!({"accepted": true}));
    prepared(client, 2).await;
    let told = client.get(SCENES).await.expect(200);
    assert_eq!(told["working_set"][0], json!(known[1]), "{told}");
    assert!(told["back_in_us"].as_u64() > Some(0));
    let reply = say(client, &mut turns, "when is my cello lesson on Thursday evening?").await;
    let recalled = reply["memcube"]["memories"].to_string();
    assert!(recalled.contains(&known[1]), "{reply}");
    let after = prepared(client, 3).await;
    let outcome = after.iter().rev().find_map(|entry| entry["outcome"].as_object());
    let outcome = outcome.expect("the turn has come");
    let ready = format!("{}{}", outcome["hits"], outcome["held"]);
    assert!(ready.contains(&known[1]), "{outcome:?}");
    let metrics = client.get("/metrics").await.text;
    for name in [PRELOADS_TOTAL, SCENE_EVENTS_TOTAL] {
        assert!(metrics.contains(name), "{name} is missing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_checked_and_strangers_see_nothing() {
    let (node, _) = node().await;
    let table = r#"
POST /v1/conversations/talk/events {"cube": "ann", "event": {"kind": "paused"}}
    202 …
POST /v1/conversations/talk/events {"cube": "ann", "event": {"kind": "closed"}, "id": "e1", "at_ms": 5}
    202 …
POST /v1/conversations/talk/events {"cube": "ann", "event": {"kind": "tool_called", "name": "weather"}}
    202 …
POST /v1/conversations/talk/events {"cube": "nobody", "event": {"kind": "paused"}}
    404 not_found: there is no cube `nobody`
POST /v1/conversations/talk/events {"cube": "ann", "event": {"kind": "topic_marked", "text": " "}}
    422 invalid: `text` of a `topic_marked` event is empty
POST /v1/conversations/talk/events {"cube": "ann", "event": {"kind": "dreams"}}
    422 invalid: …unknown variant `dreams`…
POST /v1/conversations/talk/events {"cube": "ann", "event": {"kind": "typing"}}
    422 invalid: …missing field `text`…
POST /v1/conversations/talk/events {"cube": "ann"}
    422 invalid: …missing field `event`…
POST /v1/conversations/talk/events {
    400 invalid: the body is not valid JSON…
GET /v1/conversations/talk/scenes
    422 invalid…
GET /v1/conversations/talk/scenes?cube=nobody
    404 not_found: there is no cube `nobody`
GET /v1/conversations/unknown/scenes?cube=ann
    200 …
"#;
    check_table(&node.client, "", Answer::summary, table).await;
    let long = "x".repeat(memcube_schemas::limits::EVENT_TEXT_BYTES_MAX + 1);
    let body = json!({"cube": "ann", "event": {"kind": "typing", "text": long}});
    let refused = node.client.post(EVENTS, body).await;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(refused.text.contains("send the last part of it"), "{}", refused.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_predictor_knows_is_told_and_forgotten_on_request() {
    let (node, _) = node().await;
    let client = &node.client;
    let told = client.get("/v1/predictor").await.expect(200);
    assert_eq!((&told["turns"], &told["generation"]), (&json!(0), &json!(0)));
    let names: Vec<&str> = told["weights"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|w| w["input"].as_str())
        .collect();
    assert!(names.contains(&"recent_turns") && names.contains(&"next_speaker"), "{names:?}");
    let mut turns = Vec::new();
    for (count, text) in [(1, "the cello lesson"), (2, "the flight to Lisbon"), (3, "rye bread")] {
        say(client, &mut turns, text).await;
        prepared(client, count).await;
    }
    let learned = client.get("/v1/predictor").await.expect(200);
    assert!(learned["turns"].as_u64() > Some(0), "{learned}");
    let reset = client.delete("/v1/predictor").await.expect(200);
    assert_eq!((&reset["turns"], &reset["generation"]), (&json!(0), &json!(1)));
    assert_eq!(client.get("/v1/predictor").await.expect(200), reset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_scheduler_says_so_and_answers_as_before() {
    let mut settings = in_memory();
    settings.scheduler.enabled = false;
    let node = TestNode::with_settings(settings).await;
    node.client.cube("ann").await;
    let table = r#"
POST /v1/conversations/talk/events {"cube": "ann", "event": {"kind": "paused"}}
    202 …
GET /v1/conversations/talk/scenes?cube=ann
    200 …
GET /v1/predictor
    503 unavailable: this server prepares no turns; set `scheduler.enabled` to `true`
"#;
    check_table(&node.client, "", Answer::summary, table).await;
}
