//! The node itself: health, readiness, metrics, the OpenAPI document, request ids, unknown routes.

use memcube_actors::metrics as names;
use serde_json::{Value, json};

use crate::support::{Answer, TestNode, check_table, embedded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_readiness_are_told_to_anybody() {
    let node = TestNode::start().await;
    let stranger = node.client.with_authorization(None);
    for path in ["/healthz", "/health"] {
        let health = stranger.get(path).await.expect(200);
        assert_eq!(health["status"], "healthy");
        assert_eq!(health["service"], "memcube");
        assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    }
    let ready = stranger.get("/readyz").await.expect(200);
    let all =
        json!({"ready": true, "store": true, "cubes": true, "embedder": true, "cluster": true});
    assert_eq!(ready, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_actors_are_gone_is_not_ready() {
    let node = TestNode::start().await;
    node.client.cube("c").await;
    node.node.shut_down().await;
    let stranger = node.client.with_authorization(None);
    crate::support::eventually("not ready", || async {
        stranger.get("/readyz").await.status == 503
    })
    .await;
    let ready = stranger.get("/readyz").await.expect(503);
    assert_eq!((&ready["ready"], &ready["cubes"]), (&json!(false), &json!(false)));
    assert_eq!(stranger.get("/healthz").await.status, 200, "the process lives");
    let refused = node.client.get("/v1/cubes/c/memories").await;
    assert_eq!(refused.summary(), "503 unavailable: this node is shutting down");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_there_after_traffic() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = TestNode::with_settings(embedded(directory.path())).await;
    node.client.cube("metered").await;
    node.client.fact("metered", "something to count").await;
    node.client.search("metered", "something").await;
    node.client.get("/v1/nothing").await;
    let answer = node.client.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    for name in [
        names::HTTP_REQUESTS_TOTAL,
        names::HTTP_REQUEST_SECONDS,
        names::CUBE_CALLS_TOTAL,
        names::CUBE_CALL_SECONDS,
        names::RECALL_SECONDS,
        names::CUBE_HYDRATE_SECONDS,
        names::CUBES_HOT,
        names::CUBES_QUARANTINED,
        names::MEMORIES_ADDED_TOTAL,
        names::EMBEDDED_TEXTS_TOTAL,
        names::EMBED_BATCH_SECONDS,
        names::EMBED_BATCH_TEXTS,
        names::STORE_COMMIT_SECONDS,
        names::STORE_COMMITS_TOTAL,
        names::STORE_GROUP_COMMITS,
    ] {
        let has_help = answer.text.contains(&format!("# HELP {name} "));
        let has_type = answer.text.contains(&format!("# TYPE {name} "));
        assert!(has_help && has_type, "{name} is missing or says nothing:\n{}", answer.text);
    }
    let add = names::HTTP_REQUESTS_TOTAL.to_owned()
        + "{route=\"/v1/cubes/{cube}/memories\",method=\"POST\",status=\"201\"}";
    assert!(answer.text.contains(&add), "no {add} in\n{}", answer.text);
    assert!(answer.text.contains("route=\"unmatched\""), "unknown routes share one label");
    assert!(!answer.text.contains("metered"), "no name of a cube becomes a label");
    assert_eq!(node.client.with_authorization(None).get("/metrics").await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openapi_document_is_the_one_checked_in() {
    let node = TestNode::start().await;
    let served = node.client.get("/openapi.json").await.expect(200);
    let generated = serde_json::to_value(memcube::gateway::openapi_document());
    assert_eq!(served, generated.expect("it is JSON"), "what is served is what the code says");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("docs/openapi.json: {error}; run `make openapi`"));
    let checked_in: Value = serde_json::from_str(&text).expect("docs/openapi.json is JSON");
    assert!(checked_in == served, "docs/openapi.json is not of this code; run `make openapi`");
}

/// What a generator of clients needs: answers for every operation, and no reference into the void.
#[test]
fn the_openapi_document_is_complete() {
    let document = serde_json::to_value(memcube::gateway::openapi_document()).expect("JSON");
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let what = format!("{method} {path}");
            assert!(operation["operationId"].is_string(), "{what} has no id");
            assert!(operation["summary"].is_string(), "{what} says nothing");
            let responses = operation["responses"].as_object().expect("responses");
            assert!(responses.keys().any(|status| status.starts_with('2')), "{what}");
            assert!(responses.values().all(|answer| answer.get("content").is_some()), "{what}");
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().expect("a pointer");
        assert!(document.pointer(pointer).is_some(), "{pointer} is not there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_have_an_id() {
    let node = TestNode::start().await;
    let long = "x".repeat(65);
    for (header, given, is_kept) in [
        ("x-request-id", "my-request.1_a", true),
        ("g-trace-id", "trace7", true),
        ("x-trace-id", "trace8", true),
        ("trace-id", "trace9", true),
        ("x-request-id", "with space", false),
        ("x-request-id", "quote\"d", false),
        ("x-request-id", long.as_str(), false),
        ("x-request-id", "", false),
    ] {
        for path in ["/v1/cubes/nobody", "/healthz", "/product/nothing"] {
            let answer = node.client.call("GET", path).header(header, given).send().await;
            let id = answer.header("x-request-id").expect("every answer has one");
            assert_eq!(id == given, is_kept, "{header}: {given:?} on {path} became {id}");
            assert!(!id.is_empty() && id.len() <= 64, "{id}");
        }
    }
    let first = node.client.get("/v1/cubes/nobody").await;
    let second = node.client.get("/v1/cubes/nobody").await;
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    assert_eq!(first.body["request_id"].as_str(), first.header("x-request-id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_routes_and_methods_are_told() {
    let node = TestNode::start().await;
    let table = r#"
GET /
    404 not_found: there is no route `GET /`; see /openapi.json
GET /v1
    404 not_found: there is no route `GET /v1`; see /openapi.json
GET /v1/cubes/
    404 not_found: there is no route `GET /v1/cubes/`; see /openapi.json
GET /v2/cubes
    404 not_found: there is no route `GET /v2/cubes`; see /openapi.json
PUT /v1/cubes
    405 invalid: `/v1/cubes` does not take PUT
DELETE /v1/cubes
    405 invalid: `/v1/cubes` does not take DELETE
GET /v1/cubes/c/search
    405 invalid: `/v1/cubes/c/search` does not take GET
GET /product/nothing
    404 envelope: there is no route `GET /product/nothing`; see /openapi.json
GET /product/add
    405 envelope: `/product/add` does not take GET
"#;
    check_table(&node.client, "", Answer::summary, table).await;
}

/// Errors of the routes that need no key are typed as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_routes_tell_wrong_methods() {
    let node = TestNode::start().await;
    let table = r#"
POST /healthz
    405 invalid: `/healthz` does not take POST
DELETE /readyz
    405 invalid: `/readyz` does not take DELETE
"#;
    check_table(&node.client, "", Answer::summary, table).await;
}
