//! What lies in the cluster: chunks go with their rows, tokens with their age, and a newer layout
//! keeps this release out.

use foundationdb::{Database, RangeOption, tuple};
use memcube_actors::storage::Check;
use memcube_schemas::keys::KeyRange;

use super::{
    Client, Commit, CommitToken, FoundationDbStore, Mutation, RangeRead, StateStore, StoreError,
    client, cluster_file, fresh, open, open_fresh, set,
};

fn database(_: Client) -> Database {
    Database::from_path(&cluster_file()).expect("opened")
}

/// Every key under a prefix, without it.
pub(super) async fn raw_keys(prefix: &str) -> Vec<Vec<u8>> {
    let root = tuple::pack(&(prefix,));
    let end = [&root[..], &[0xff]].concat();
    let database = database(client());
    let transaction = database.create_trx().expect("begun");
    let mut next = Some(RangeOption::from((root.clone(), end)));
    let (mut keys, mut iteration) = (Vec::new(), 1);
    while let Some(option) = next {
        let found = transaction.get_range(&option, iteration, true).await.expect("read");
        keys.extend(found.iter().map(|row| row.key()[root.len()..].to_vec()));
        iteration += 1;
        next = option.next_range(&found);
    }
    keys
}

/// How many keys a family has.
async fn count(prefix: &str, family: i32) -> usize {
    let root = tuple::pack(&(family,));
    raw_keys(prefix).await.iter().filter(|key| key.starts_with(&root)).count()
}

const CHUNKS: i32 = 2;
const TOKENS: i32 = 3;
const AGES: i32 = 4;

async fn commit(store: &FoundationDbStore, token: u128, mutations: Vec<Mutation>) {
    let commit = Commit { token: CommitToken(token), checks: Vec::new(), mutations };
    store.commit(commit).await.expect("committed");
}

#[tokio::test]
async fn chunks_go_with_their_rows() {
    let (store, options) = open_fresh().await;
    let large = vec![7; 200_000];
    let key = |name: &str| name.as_bytes().to_vec();
    let put = |name: &str| Mutation::Set { key: key(name), value: large.clone() };
    // What happens to a large value, and the chunks that are left of it and of its neighbours.
    let table: [(&str, Mutation, usize); 6] = [
        ("a smaller one", Mutation::Set { key: key("b"), value: b"x".to_vec() }, 12),
        ("another large one", put("b"), 16),
        ("none", Mutation::Clear { key: key("b") }, 12),
        ("a number", Mutation::Add { key: key("b"), delta: 1 }, 12),
        (
            "no range",
            Mutation::ClearRange { range: KeyRange { start: key("b"), end: key("c") } },
            8,
        ),
        (
            "nothing at all",
            Mutation::ClearRange { range: KeyRange { start: key(""), end: key("z") } },
            0,
        ),
    ];
    for (round, (what, mutation, chunks)) in table.into_iter().enumerate() {
        let token = 10 * round as u128;
        commit(&store, token, ["a", "b", "b\0", "c"].map(put).to_vec()).await;
        assert_eq!(count(&options.prefix, CHUNKS).await, 16);
        commit(&store, token + 1, vec![mutation]).await;
        assert_eq!(count(&options.prefix, CHUNKS).await, chunks, "{what}");
    }
    // In one commit as in several.
    commit(&store, 100, vec![put("a"), Mutation::Clear { key: key("a") }, put("b")]).await;
    assert_eq!(count(&options.prefix, CHUNKS).await, 4);
    let read = store.read(vec![RangeRead::key(key("b"))]).await.expect("read");
    assert_eq!(read.pages[0].entries[0].value, large);
    store.erase().await.expect("erased");
}

#[tokio::test]
async fn a_counter_that_was_something_large_counts_its_first_bytes() {
    let (store, _) = open_fresh().await;
    let mut large = vec![0; 100_000];
    large[0] = 41;
    store.commit(set(1, "n", &large)).await.expect("committed");
    let add = |token| Commit {
        token: CommitToken(token),
        checks: Vec::new(),
        mutations: vec![Mutation::Add { key: b"n".to_vec(), delta: 1 }],
    };
    store.commit(add(2)).await.expect("committed");
    let read = store.read(vec![RangeRead::key(b"n".to_vec())]).await.expect("read");
    assert_eq!(read.pages[0].entries[0].value, 42_i64.to_le_bytes());
    store.erase().await.expect("erased");
}

#[tokio::test]
async fn every_commit_leaves_a_token_with_its_age() {
    let (store, options) = open_fresh().await;
    let first = store.commit(set(1, "a", b"1")).await.expect("committed");
    store.commit(set(2, "a", b"2")).await.expect("committed");
    // Neither a repetition nor a refusal leaves one, nor does a question.
    assert_eq!(store.commit(set(1, "a", b"3")).await, Ok(first));
    let absent = vec![Check::Absent { key: b"a".to_vec() }];
    let refused = store.commit(Commit { checks: absent, ..set(3, "a", b"4") }).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!(store.outcome(CommitToken(3)).await, Ok(None));
    assert_eq!(count(&options.prefix, TOKENS).await, 2);
    assert_eq!(count(&options.prefix, AGES).await, 2);
    store.erase().await.expect("erased");
}

#[tokio::test]
async fn a_newer_layout_is_refused() {
    let options = fresh();
    let store = open(&options).await;
    let key = [&tuple::pack(&(&*options.prefix, 0))[..], b"layout"].concat();
    let table: [(&[u8], &str); 2] =
        [(&[0, 0, 0, 2], "install that version"), (b"?", "layout number")];
    for (number, told) in table {
        let database = database(client());
        let transaction = database.create_trx().expect("begun");
        transaction.set(&key, number);
        transaction.commit().await.expect("committed");
        let refused = FoundationDbStore::open(client(), &options).await.map(drop);
        let error = refused.expect_err("refused").to_string();
        assert!(error.contains(told) && error.contains("store.fdb-prefix"), "{error}");
    }
    store.erase().await.expect("erased");
}
