//! The state store on FoundationDB: the conformance suite, and what is particular about it.
//!
//! They run on the test double of `simulations/fdb_c`. With `FDB_CLUSTER_FILE` set, the same tests
//! run on that cluster, through the client library that is installed: `make conformance-fdb`.

mod layout;
mod node;
mod settings;

use std::{
    io::Write,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use memcube::storage::{
    FoundationDbStore,
    foundationdb::{Options, check, client::Client},
};
use memcube_actors::storage::{
    Commit, CommitToken, Mutation, RangeRead, SharedStore, StateStore, StoreError,
    conformance::{Backend, run_all},
};
use memcube_schemas::keys::KeyRange;
use tempfile::NamedTempFile;

/// The client of this test process: the installed one for a real cluster, else the double.
fn client() -> Client {
    if real_cluster_file().is_some() {
        return Client::load(None).expect("the client library is installed");
    }
    #[expect(unsafe_code, reason = "hands the functions of the test double to the backend")]
    // SAFETY: the double defines its functions with the signatures of `fdb_c.h`.
    let client = unsafe { Client::install(fdb_c::symbol) };
    client.expect("the double has every function")
}

fn real_cluster_file() -> Option<String> {
    std::env::var("FDB_CLUSTER_FILE").ok().filter(|path| !path.is_empty())
}

/// The cluster file that the tests share.
fn cluster_file() -> String {
    static DOUBLE: OnceLock<NamedTempFile> = OnceLock::new();
    real_cluster_file().unwrap_or_else(|| {
        let file = DOUBLE.get_or_init(|| {
            let mut file = NamedTempFile::new().expect("a temporary file");
            file.write_all(b"sim:memcube-tests").expect("written");
            file
        });
        file.path().to_str().expect("a plain path").to_owned()
    })
}

/// Options of a store that no other test uses.
fn fresh() -> Options {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("memcube-test-{}-{number}", std::process::id());
    Options::new(Some(cluster_file()), &prefix)
}

async fn open(options: &Options) -> FoundationDbStore {
    FoundationDbStore::open(client(), options).await.expect("opened")
}

/// A store that no other test uses. It is empty, and its user erases it.
async fn open_fresh() -> (FoundationDbStore, Options) {
    let options = fresh();
    (open(&options).await, options)
}

fn set(token: u128, key: &str, value: &[u8]) -> Commit {
    let mutation = Mutation::Set { key: key.as_bytes().to_vec(), value: value.to_vec() };
    Commit { token: CommitToken(token), checks: Vec::new(), mutations: vec![mutation] }
}

/// Whatever a crash of a node leaves is in the cluster.
#[derive(Default)]
struct Cluster {
    opened: Vec<Options>,
}

impl Backend for Cluster {
    async fn open(&mut self) -> SharedStore {
        let (store, options) = open_fresh().await;
        self.opened.push(options);
        Arc::new(store)
    }

    async fn crash_and_reopen(&mut self, store: SharedStore) -> SharedStore {
        drop(store);
        Arc::new(open(self.opened.last().expect("one is open")).await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let mut cluster = Cluster::default();
    let (neighbour, options) = open_fresh().await;
    cluster.opened.push(options);
    // Another installation commits meanwhile, so commits of the suite share versions with its own.
    let busy = tokio::spawn(async move {
        for token in 0.. {
            neighbour.commit(set(token, "a", b"busy")).await.expect("committed");
            tokio::task::yield_now().await;
        }
    });
    run_all(&mut cluster).await;
    busy.abort();
    for options in cluster.opened {
        open(&options).await.erase().await.expect("erased");
    }
}

#[tokio::test]
async fn prefixes_share_a_cluster_without_seeing_each_other() {
    let (left, _) = open_fresh().await;
    let (right, _) = open_fresh().await;
    left.commit(set(1, "a", b"left")).await.expect("committed");
    right.commit(set(1, "a", b"right")).await.expect("the token is another one's");
    left.erase().await.expect("erased");
    assert_eq!(keys(&left).await, Vec::<Vec<u8>>::new());
    assert_eq!(keys(&right).await, [b"a"]);
    right.erase().await.expect("erased");
}

async fn keys(store: &FoundationDbStore) -> Vec<Vec<u8>> {
    let all = KeyRange { start: Vec::new(), end: vec![0xff] };
    let read = store.read(vec![RangeRead::all(all)]).await.expect("read");
    read.pages[0].entries.iter().map(|entry| entry.key.clone()).collect()
}

#[tokio::test]
async fn a_page_ends_early_when_its_rows_are_large() {
    let (store, _) = open_fresh().await;
    let large = vec![7; 250_000];
    for number in 0..40 {
        let key = format!("{number:02}");
        store.commit(set(number, &key, &large)).await.expect("committed");
    }
    let mut range = KeyRange { start: b"0".to_vec(), end: b"9".to_vec() };
    let (mut found, mut pages) = (0, 0);
    loop {
        let read = store.read(vec![RangeRead::page(range.clone(), 1_000)]).await.expect("read");
        let page = &read.pages[0];
        assert!(page.entries.iter().all(|entry| entry.value == large));
        found += page.entries.len();
        pages += 1;
        let Some(last) = page.entries.last().filter(|_| page.more) else { break };
        range = range.after(&last.key);
    }
    assert_eq!((found, pages), (40, 2), "8 MiB a page");
    let all = KeyRange { start: b"0".to_vec(), end: b"9".to_vec() };
    let read = store.read(vec![RangeRead::all(all)]).await.expect("read");
    assert_eq!(read.pages[0].entries.len(), 40, "who asks for everything gets it");
    store.erase().await.expect("erased");
}

#[tokio::test]
async fn a_commit_that_is_too_large_is_refused_before_it_is_sent() {
    let (store, _) = open_fresh().await;
    let value = vec![7; 250_000];
    let set = |number: u32| Mutation::Set {
        key: format!("{number:02}").into_bytes(),
        value: value.clone(),
    };
    let commit = |token, count| Commit {
        token: CommitToken(token),
        checks: Vec::new(),
        mutations: (0..count).map(set).collect(),
    };
    let refused = store.commit(commit(1, 36)).await;
    let Err(StoreError::TooLarge { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("the limit is 9000000") && reason.contains("less at a time"));
    store.commit(commit(2, 35)).await.expect("just below is taken");
    assert_eq!(keys(&store).await.len(), 35);
    store.erase().await.expect("erased");
}

#[tokio::test]
async fn the_check_of_the_doctor_passes_and_leaves_nothing() {
    let options = fresh();
    let found = check::run(client(), &options, 7).await.expect("all is well");
    assert!(found.commit_median <= found.commit_slowest);
    let scratch = format!("{}-check-{:032x}", options.prefix, 7);
    assert_eq!(layout::raw_keys(&scratch).await, Vec::<Vec<u8>>::new());
}
