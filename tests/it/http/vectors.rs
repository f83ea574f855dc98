//! `/v1/search` and `/v1/vectors`

use std::time::Duration;

use memcube::{Settings, settings::VectorsKind};
use serde_json::{Value, json};

use crate::support::{Client, TestNode, check_table, embedded, eventually, in_memory, text_of};

const SEARCH: &str = "/v1/search";

fn with(kind: VectorsKind) -> Settings {
    let mut settings = in_memory();
    settings.vectors.kind = kind;
    settings.vectors.apply_after_ms = 20;
    settings
}

async fn fill(client: &Client) {
    for (cube, text) in [
        ("ingrid", "The old kayak was painted green"),
        ("tomas", "Two ginger kittens moved in"),
        ("tomas", "The kayak trip starts at sunrise"),
    ] {
        // One that is there already stays as it is.
        let _ = client.post("/v1/cubes", json!({ "id": cube })).await;
        client.fact(cube, text).await;
    }
}

/// The hits as `cube: text`, best first.
async fn hits(client: &Client, body: Value) -> Vec<String> {
    let found = client.post(SEARCH, body).await.expect(200);
    let hits = found["hits"].as_array().expect("a list").clone();
    let tokens: u64 =
        hits.iter().map(|hit| hit["memory"]["tokens"].as_u64().expect("tokens")).sum();
    assert_eq!(found["tokens"], tokens, "the sum of the hits");
    let hit = |hit: &Value| {
        format!("{}: {}", hit["cube"].as_str().expect("a cube"), text_of(&hit["memory"]))
    };
    hits.iter().map(hit).collect()
}

pub(crate) async fn settle(client: &Client) {
    eventually("the tier is up to date", || async {
        let state = client.get("/v1/vectors").await.expect(200);
        let shards = state["shards"].as_array().expect("a list").clone();
        !shards.is_empty()
            && shards.iter().filter(|shard| shard["behind"] != 0).count() == 0
            && shards.iter().any(|shard| shard["ready"] == true)
    })
    .await;
}

/// What every kind of tier must answer.
pub(crate) async fn check_searches(client: &Client, is_tiered: bool) {
    fill(client).await;
    for round in 0..2 {
        let found = hits(client, json!({"query": "green kayak", "top_k": 2})).await;
        let expected =
            ["ingrid: The old kayak was painted green", "tomas: The kayak trip starts at sunrise"];
        assert_eq!(found, expected, "{round}");
        let found = hits(client, json!({"query": "kayak", "cubes": ["tomas"]})).await;
        assert_eq!(found[0], "tomas: The kayak trip starts at sunrise");
        assert!(found.iter().all(|hit| hit.starts_with("tomas: ")), "{found:?}");
        if is_tiered {
            settle(client).await;
        }
    }
    let id = client.fact("ingrid", "A secret about penguins").await;
    let found = hits(client, json!({"query": "secret penguins", "top_k": 1})).await;
    assert_eq!(found, ["ingrid: A secret about penguins"]);
    client.delete(&format!("/v1/cubes/ingrid/memories/{id}")).await.expect(200);
    for _ in 0..2 {
        let found = hits(client, json!({"query": "secret penguins"})).await;
        assert!(found.iter().all(|hit| !hit.contains("penguins")), "{found:?}");
        if is_tiered {
            settle(client).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_cubes_are_searched_with_and_without_a_tier() {
    for kind in [VectorsKind::None, VectorsKind::InRam] {
        let node = TestNode::with_settings(with(kind)).await;
        check_searches(&node.client, kind != VectorsKind::None).await;
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_in_ram_is_built_anew_at_every_start_and_on_demand() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = embedded(directory.path());
    settings.vectors = with(VectorsKind::InRam).vectors;
    let node = TestNode::with_settings(settings.clone()).await;
    fill(&node.client).await;
    settle(&node.client).await;
    node.stop().await;
    let node = TestNode::with_settings(settings).await;
    for _ in 0..2 {
        let found = hits(&node.client, json!({"query": "kittens", "top_k": 1})).await;
        assert_eq!(found, ["tomas: Two ginger kittens moved in"]);
        node.client.post("/v1/vectors/rebuild", json!({})).await.expect(202);
        tokio::time::sleep(Duration::from_millis(50)).await;
        settle(&node.client).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_search_is_told() {
    let node = TestNode::start().await;
    node.client.cube("c").await;
    check_table(
        &node.client,
        "",
        crate::support::Answer::summary,
        r#"
        POST /v1/search {"query": " "}
            422 invalid: `query` is empty…
        POST /v1/search {"query": "x", "top_k": 0}
            422 invalid: `top_k` must be between 1 and 1000
        POST /v1/search {"query": "x", "relativity_min": 2}
            422 invalid: `relativity_min`…
        POST /v1/search {"query": "x", "cubes": []}
            422 invalid: name between 1 and 1000 cubes…
        POST /v1/search {"query": "x", "cubes": ["c", "nobody"]}
            404 not_found: there is no cube `nobody`
        POST /v1/search {"query": "x", "cube": "c"}
            422 …unknown field `cube`…
        POST /v1/vectors/rebuild {}
            422 invalid: this node has no vector tier; set `vectors.kind`…
        GET /v1/search
            405 …
        "#,
    )
    .await;
    let state = node.client.get("/v1/vectors").await.expect(200);
    assert_eq!(state, json!({"kind": "none", "shards": []}));
    for number in 0..64 {
        node.client.cube(&format!("c{number}")).await;
    }
    let said = node.client.post(SEARCH, json!({"query": "x"})).await.summary();
    crate::support::assert_says(
        &said,
        "422 invalid: without a vector tier a search spans at most 64 cubes… `vectors.kind` …",
        "65 cubes",
    );
    node.stop().await;
}
