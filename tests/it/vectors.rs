//! The vector tier in LanceDB tables: the suite of the port, whole nodes, damage.

use std::{path::Path, sync::Arc};

use memcube::{
    settings::VectorsKind,
    storage::{LanceIndex, LanceOptions},
};
use memcube_actors::storage::{
    vector_conformance::{VectorBackend, run_all},
    vector_index::VectorIndex,
};
use serde_json::json;

use crate::{
    http::vectors::{check_searches, settle},
    support::{TestNode, embedded},
};

/// Small enough for the suite to reach the approximate index in its larger cases.
const APPROXIMATE_ROWS_MIN: usize = 100_000;

/// Opens each index in a directory of its own.
struct Directories {
    all: tempfile::TempDir,
    opened: usize,
}

async fn open(directory: &Path) -> Arc<dyn VectorIndex> {
    let options = LanceOptions {
        directory: directory.to_path_buf(),
        approximate_rows_min: APPROXIMATE_ROWS_MIN,
    };
    Arc::new(LanceIndex::open(options).await.expect("the index opens"))
}

impl Directories {
    fn current(&self) -> std::path::PathBuf {
        self.all.path().join(format!("index {}", self.opened))
    }
}

impl VectorBackend for Directories {
    async fn open(&mut self) -> Arc<dyn VectorIndex> {
        self.opened += 1;
        open(&self.current()).await
    }

    async fn reopen(&mut self, index: Arc<dyn VectorIndex>) -> Arc<dyn VectorIndex> {
        drop(index);
        open(&self.current()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lance_passes_the_suite() {
    let all = tempfile::tempdir().expect("a directory");
    Box::pin(run_all(&mut Directories { all, opened: 0 })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_searches_its_tables_also_after_a_restart_and_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = embedded(directory.path());
    settings.vectors.kind = VectorsKind::Lance;
    settings.vectors.apply_after_ms = 50;
    let node = TestNode::with_settings(settings.clone()).await;
    check_searches(&node.client, true).await;
    node.stop().await;
    let tables = directory.path().join("vectors");
    assert!(tables.is_dir(), "tables lie in the data directory");

    let node = TestNode::with_settings(settings.clone()).await;
    check_searches(&node.client, true).await;
    node.stop().await;

    // Manifests without a byte: nothing of the tables can be read any more.
    for table in std::fs::read_dir(&tables).expect("listed") {
        let versions = table.expect("an entry").path().join("_versions");
        for manifest in std::fs::read_dir(versions).into_iter().flatten() {
            std::fs::write(manifest.expect("an entry").path(), b"").expect("written");
        }
    }
    let node = TestNode::with_settings(settings).await;
    let body = json!({"query": "green kayak", "top_k": 1});
    for _ in 0..2 {
        let found = node.client.post("/v1/search", body.clone()).await.expect(200);
        assert_eq!(found["hits"][0]["cube"], "ingrid", "{found}");
        node.client.fact("ingrid", "Something new, so that the tier looks").await;
        settle(&node.client).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_made_names_its_setting() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    std::fs::write(&file, b"not a directory").expect("written");
    let options = LanceOptions { directory: file.join("vectors"), approximate_rows_min: 1 };
    let error = LanceIndex::open(options).await.err().expect("it is refused");
    assert!(error.message().contains("`vectors.url`"), "{error}");
}
