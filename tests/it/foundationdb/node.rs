//! Nodes on FoundationDB, over HTTP: what one acknowledged, the next one on the same cluster finds.

use std::sync::Arc;

use memcube::Node;
use serde_json::json;

use super::{FoundationDbStore, Options, client, fresh, open, open_fresh};
use crate::{
    backup::{embedded, move_between},
    support::{TestNode, in_memory},
};

async fn start(options: &Options) -> TestNode {
    let store = FoundationDbStore::open(client(), options).await.expect("opened");
    let builder = Node::builder().with_settings(in_memory()).with_store(Arc::new(store));
    TestNode::build(builder).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_found_by_the_next_node() {
    let options = fresh();
    let node = start(&options).await;
    node.client.cube("c").await;
    let id = node.client.fact("c", "Ann moved to Lisbon").await;
    let long = "x".repeat(16_000);
    node.client.fact("c", &long).await;
    let path = format!("/v1/cubes/c/memories/{id}");
    node.client.patch(&path, json!({ "text": "Ann moved to Porto" })).await.expect(200);
    let texts = node.client.texts("c").await;
    assert_eq!(texts.len(), 2);
    node.stop().await;

    let node = start(&options).await;
    assert_eq!(node.client.texts("c").await, texts);
    assert_eq!(node.client.search("c", "Porto").await[0], "Ann moved to Porto");
    node.client.delete(&path).await.expect(200);
    assert_eq!(node.client.texts("c").await, [long]);
    node.stop().await;
    open(&options).await.erase().await.expect("erased");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_move_from_a_directory_to_a_cluster_and_back() {
    let (first, last) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let (store, options) = open_fresh().await;
    move_between(embedded(first.path()), Arc::new(store)).await;
    open(&options).await.erase().await.expect("erased");
    let (store, options) = open_fresh().await;
    move_between(Arc::new(store), embedded(last.path())).await;
    open(&options).await.erase().await.expect("erased");
}
