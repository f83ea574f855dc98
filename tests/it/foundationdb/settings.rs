//! Wrong settings: each is told with its name and with what to do.

use std::{fs, path::Path};

use memcube::{
    Node,
    settings::{EmbedderKind, Settings, StoreKind},
};
use memcube_actors::ErrorKind;

use super::{FoundationDbStore, Options, client, real_cluster_file};
use crate::support::memcube;

async fn refusal(options: &Options) -> String {
    let opened = FoundationDbStore::open(client(), options).await;
    opened.map(drop).expect_err("refused").to_string()
}

#[tokio::test]
async fn a_cluster_file_that_is_not_there() {
    let options = Options::new(Some("/nonexistent/fdb.cluster".to_owned()), "memcube");
    let told = refusal(&options).await;
    assert!(told.contains("no cluster file `/nonexistent/fdb.cluster`"), "{told}");
    assert!(told.contains("set `store.fdb-cluster-file`"), "{told}");
}

#[test]
fn settings_are_read_and_checked() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let load = |text: &str| {
        fs::write(file.path(), text).expect("written");
        Settings::load(Some(file.path()))
    };
    let settings = load(
        "[store]\nkind = \"foundationdb\"\nfdb-cluster-file = \"/a\"\n\
         fdb-client-library = \"/b\"\nfdb-prefix = \"c\"\n",
    );
    let store = settings.expect("they are valid").store;
    assert_eq!(store.kind, StoreKind::FoundationDb);
    assert_eq!(store.fdb_cluster_file.as_deref(), Some(Path::new("/a")));
    assert_eq!(store.fdb_client_library.as_deref(), Some(Path::new("/b")));
    assert_eq!(store.fdb_prefix, "c");
    for prefix in ["", &"p".repeat(65)] {
        let text = format!("[store]\nfdb-prefix = \"{prefix}\"\n");
        let error = load(&text).expect_err("refused").to_string();
        assert!(error.contains("`store.fdb-prefix` must have between 1 and 64 bytes"), "{error}");
    }
}

/// A process of its own, because a process loads the client once.
#[test]
fn a_client_library_that_cannot_be_loaded() {
    let home = tempfile::tempdir().expect("a directory");
    let config = home.path().join("memcube.toml");
    let library = home.path().join("libfdb_c.so");
    let text = format!(
        "[store]\nkind = \"foundationdb\"\nfdb-client-library = \"{}\"\n[embedder]\nkind = \"none\"\n",
        library.display()
    );
    fs::write(&config, text).expect("written");
    let config = config.to_str().expect("a plain path");
    for contents in [None, Some("not a library")] {
        if let Some(contents) = contents {
            fs::write(&library, contents).expect("written");
        }
        for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["doctor"]] {
            let arguments = [command, &["--config", config]].concat();
            let output = memcube(home.path(), &arguments).output().expect("it runs");
            assert!(!output.status.success());
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8_lossy(&told);
            assert!(told.contains("libfdb_c.so` cannot be loaded"), "{told}");
            assert!(told.contains("set `store.fdb-client-library`"), "{told}");
        }
    }
}

/// Nobody answers: the double has no cluster behind such a file, and a real client finds none.
#[tokio::test]
async fn a_cluster_that_does_not_answer() {
    if real_cluster_file().is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), "nobody:nobody@127.0.0.1:1").expect("written");
    let path = file.path().to_str().expect("a plain path").to_owned();
    let told = refusal(&Options::new(Some(path), "memcube")).await;
    assert!(told.contains("did not answer in time"), "{told}");
    assert!(told.contains("`store.fdb-cluster-file`"), "{told}");
}

#[tokio::test]
async fn a_node_says_why_it_does_not_start() {
    let mut settings = Settings::default();
    settings.store.kind = StoreKind::FoundationDb;
    settings.store.fdb_cluster_file = Some("/nonexistent/fdb.cluster".into());
    settings.embedder.kind = EmbedderKind::None;
    client();
    let started = Box::pin(Node::builder().with_settings(settings).start()).await;
    let error = started.map(drop).expect_err("it does not start");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("`store.fdb-cluster-file`"), "{error}");
}
