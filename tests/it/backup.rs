//! Backup and restore: of a running server, of a directory, between kinds of stores, and with
//! kills.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use memcube::{
    Node,
    backup::{
        Archive, BackupRequest, ObjectSink, RestoreRequest, Selection, back_up, restore, verify,
    },
    environment,
    storage::{EmbeddedStore, objects},
};
use memcube_actors::storage::{InMemoryStore, SharedStore};
use serde_json::{Value, json};

use crate::support::{
    Answer, Client, KEY, Numbers, ServerProcess, TestNode, check_table, in_memory, memcube,
};

/// A cube id that needs care in paths and addresses.
const STRANGE: &str = "a/b \u{e4} 100%";
const STRANGE_ENCODED: &str = "a%2Fb%20%C3%A4%20100%25";

/// What a command said: whether it succeeded, its output, its errors.
struct Said {
    success: bool,
    output: Vec<u8>,
    errors: String,
}

impl Said {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.output)
            .unwrap_or_else(|error| panic!("{error}: {}", self.errors))
    }
}

fn say(mut command: Command) -> Said {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Said { success: output.status.success(), output: output.stdout, errors }
}

/// A command on a data directory, without a model.
fn on(directory: &Path, arguments: &[&str]) -> Said {
    let mut command = memcube(directory, arguments);
    command.args(["--json", "--embedder", "none", "--data-dir"]).arg(directory);
    say(command)
}

/// The bytes of `memcube export`.
fn export(directory: &Path, cube: &str) -> Vec<u8> {
    let said = on(directory, &["export", "--cube", cube]);
    assert!(said.success, "{}", said.errors);
    said.output
}

/// The first lines in which two exports differ.
fn difference(old: &[u8], new: &[u8]) -> Option<String> {
    let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (old, new) = (lines(old), lines(new));
    if old == new {
        return None;
    }
    let pair = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    Some(pair.map_or_else(
        || format!("{} and {} lines", old.lines().count(), new.lines().count()),
        |(old, new)| format!("`{old}` became `{new}`"),
    ))
}

fn post(client: &Client, path: &str, body: Value) -> Answer {
    client.call("POST", path).json(body).send_blocking().expect("an answer")
}

/// Memories with repetitions, changes, deletions and purges behind them.
fn fill(client: &Client, cube: &str, id: &str, count: usize) {
    post(client, "/v1/cubes", json!({ "id": id, "name": "for a test", "owner": "u1" })).expect(201);
    let path = format!("/v1/cubes/{cube}/memories");
    let turn = |n: usize| {
        json!({ "role": "user", "name": "Ann", "content": format!("sentence {n} of many"),
            "chat_time": "2023-05-08T13:56:00Z", "message_id": format!("m{n}") })
    };
    let turns: Vec<Value> = (0..count).map(turn).collect();
    let body =
        json!({ "messages": turns, "conversation": "c1", "tags": ["x"], "info": { "k": 1 } });
    let added = client.call("POST", &path).header("idempotency-key", "first").json(body);
    let added = added.send_blocking().expect("an answer").expect(201);
    let memory =
        |n: usize| format!("{path}/{}", added["memories"][n]["id"].as_str().expect("an id"));
    post(client, &path, json!({ "messages": [turn(0)], "conversation": "c1" })).expect(201);
    let change = |n: usize, text: &str| {
        let call = client.call("PATCH", &memory(n)).json(json!({ "text": text }));
        call.send_blocking().expect("an answer").expect(200);
    };
    change(1, "changed once");
    change(1, "changed twice");
    for path in [memory(2), format!("{}?purge=true", memory(3))] {
        client.call("DELETE", &path).send_blocking().expect("an answer").expect(200);
    }
}

#[test]
fn a_running_server_is_backed_up_and_everything_comes_back_elsewhere() {
    let (here, there) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let place = tempfile::tempdir().expect("three");
    let to = place.path().join("first backup");
    let to = to.to_str().expect("text");
    let server = ServerProcess::start(here.path());
    fill(&server.client, STRANGE_ENCODED, STRANGE, 40);
    fill(&server.client, "big", "big", 2_000);
    post(&server.client, "/v1/cubes", json!({ "id": "busy" })).expect(201);
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (client, stop) = (server.client.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                let text = format!("busy note {written}");
                post(&client, "/v1/cubes/busy/memories", json!({ "text": text })).expect(201);
                written += 1;
            }
        })
    };
    let said = on(here.path(), &["backup", "--to", to]);
    stop.store(true, Ordering::Relaxed);
    writing.join().expect("it wrote");
    assert!(said.success, "{}", said.errors);
    let told = said.json();
    assert_eq!((&told["cubes"], &told["left_out"]), (&json!(3), &json!([])), "{told}");
    assert!(told["api_keys"].as_u64().is_some_and(|keys| keys >= 1), "{told}");
    assert!(on(here.path(), &["backup", "verify", "--from", to]).success);
    let again = on(here.path(), &["backup", "--to", to]);
    assert!(!again.success && again.errors.contains("choose another place"), "{}", again.errors);
    let running = on(here.path(), &["restore", "--from", to]);
    assert!(!running.success && running.errors.contains("a server runs on"), "{}", running.errors);
    let busy = server.client.texts_blocking("busy");
    assert!(server.terminate().0.success());

    let dry = on(there.path(), &["restore", "--from", to, "--dry-run"]);
    assert_eq!((dry.success, &dry.json()["restored"]), (true, &json!(3)), "{}", dry.errors);
    let restored = on(there.path(), &["restore", "--from", to]);
    assert!(restored.success, "{}", restored.errors);
    assert_eq!(restored.json()["restored"], 3);
    for cube in [STRANGE, "big"] {
        let (old, new) = (export(here.path(), cube), export(there.path(), cube));
        assert_eq!(difference(&old, &new), None, "{cube}");
        assert!(old.len() > 5_000);
    }
    let again = on(there.path(), &["restore", "--from", to]);
    assert_eq!((again.success, &again.json()["unchanged"]), (true, &json!(3)), "{}", again.errors);
    let renamed = on(there.path(), &["restore", "--from", to, "--cube", "big", "--as", "big 2"]);
    assert!(renamed.success, "{}", renamed.errors);

    let server = ServerProcess::start(there.path());
    let kept = server.client.texts_blocking("busy");
    assert!(busy.starts_with(&kept), "one version of it: {} of {}", kept.len(), busy.len());
    let retried = server.client.call("POST", "/v1/cubes/big/memories");
    let retried = retried.header("idempotency-key", "first").json(json!({ "text": "other" }));
    let retried = retried.send_blocking().expect("an answer");
    assert_eq!(retried.status, 409, "requests are known again: {}", retried.text);
    assert_eq!(server.client.texts_blocking("big").len(), 1_998);
}

#[test]
fn a_directory_without_a_server_is_backed_up_and_mistakes_are_told() {
    let (here, there) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let to = here.path().join("backup");
    let to = to.to_str().expect("text");
    let nothing = on(here.path(), &["backup", "--to", to]);
    assert!(
        !nothing.success && nothing.errors.contains("there is nothing in"),
        "{}",
        nothing.errors
    );
    let server = ServerProcess::start(here.path());
    fill(&server.client, "ann", "ann", 10);
    fill(&server.client, "bob", "bob", 10);
    assert!(server.terminate().0.success());
    let said = on(here.path(), &["backup", "--to", to, "--cube", "ann"]);
    assert_eq!((said.success, &said.json()["cubes"]), (true, &json!(1)), "{}", said.errors);
    assert!(on(there.path(), &["restore", "--from", to]).success);
    assert_eq!(difference(&export(here.path(), "ann"), &export(there.path(), "ann")), None);
    for (arguments, words) in [
        (vec!["backup", "--to", "x/y", "--cube", "nobody"], "there is no cube `nobody`"),
        (vec!["backup", "--to", "ftp://x/y"], "give a directory, or an address such as"),
        (vec!["backup", "verify", "--from", "no/where"], "there is no complete backup at"),
        (vec!["restore", "--from", "no/where"], "there is no complete backup at"),
        (vec!["restore", "--from", to, "--cube", "bob"], "the backup holds no cube `bob`"),
    ] {
        let said = on(here.path(), &arguments);
        assert!(!said.success && said.errors.contains(words), "{arguments:?}: {}", said.errors);
    }
    // One flipped bit, and one manifest of tomorrow.
    let parts = std::fs::read_dir(Path::new(to).join("parts")).expect("a directory");
    let rows = parts.map(|entry| entry.expect("an entry").path());
    let rows = rows.into_iter().find(|path| path.to_string_lossy().contains("rows"));
    let rows = rows.expect("a part with rows");
    let mut bytes = std::fs::read(&rows).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&rows, &bytes).expect("written");
    let name = rows.file_name().expect("a name").to_str().expect("text");
    let empty = tempfile::tempdir().expect("three");
    for command in ["backup verify", "restore"] {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.extend(["--from", to]);
        let said = on(empty.path(), &arguments);
        assert!(!said.success && said.errors.contains(name), "{command}: {}", said.errors);
    }
    let manifest = Path::new(to).join("manifest");
    let mut bytes = std::fs::read(&manifest).expect("read");
    bytes[3] = 99;
    std::fs::write(&manifest, &bytes).expect("written");
    let said = on(empty.path(), &["restore", "--from", to]);
    assert!(!said.success && said.errors.contains("format version 99"), "{}", said.errors);
}

#[test]
fn a_restore_that_is_killed_is_repeated_and_nobody_sees_half_of_it() {
    let here = tempfile::tempdir().expect("one");
    let to = here.path().join("backup");
    let to = to.to_str().expect("text");
    let server = ServerProcess::start(here.path());
    fill(&server.client, "big", "big", 3_000);
    assert!(server.terminate().0.success());
    assert!(on(here.path(), &["backup", "--to", to]).success);
    let whole = export(here.path(), "big");
    let (mut numbers, mut half) = (Numbers::new(7), 0);
    for _ in 0..8 {
        let there = tempfile::tempdir().expect("two");
        // A store that is there: the kill is to strike the restore, not the making of a store.
        assert!(on(there.path(), &["cube", "list"]).success);
        let mut command = memcube(there.path(), &["restore", "--from", to, "--data-dir"]);
        command.arg(there.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        std::thread::sleep(Duration::from_millis(10 + numbers.below(200)));
        let _ = child.kill();
        child.wait().expect("reaped");
        let seen = on(there.path(), &["export", "--cube", "big"]);
        half += usize::from(!seen.success);
        assert!(seen.output == whole || !seen.success, "half a cube is seen");
        let again = on(there.path(), &["restore", "--from", to]);
        assert!(again.success, "{}", again.errors);
        assert!(export(there.path(), "big") == whole);
    }
    assert!(half > 0, "some kill came in time");
}

fn show(answer: &Answer) -> String {
    answer.summary()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_over_http_is_for_callers_with_a_key_one_at_a_time() {
    let node = TestNode::start().await;
    node.client.cube("ann").await;
    let table = r#"
POST /v1/backups {"cubes": ["nobody"]}
    404 not_found: there is no cube `nobody`
POST /v1/backups {"cubes": [""]}
    422 invalid: body at `cubes[0]`: invalid cube id: it is empty …
POST /v1/backups {"to": "/etc"}
    422 invalid: body at `to`: unknown field `to` …
POST /v1/backups nonsense
    400 invalid: the body is not valid JSON: …
GET /v1/backups
    405 invalid: `/v1/backups` does not take GET
"#;
    check_table(&node.client, "", show, table).await;
    let stranger = node.client.with_authorization(Some("Bearer nobody at all"));
    assert_eq!(stranger.post("/v1/backups", json!({})).await.status, 401);
    node.stop().await;
}

/// Moves cubes from one store to another, and compares what `memcube export` says of both.
pub(crate) async fn move_between(from: SharedStore, to: SharedStore) {
    let place = tempfile::tempdir().expect("a directory");
    let url = place.path().to_str().expect("text").to_owned();
    let open = || objects::open(&url, std::iter::empty()).expect("opened");
    let start = |store: &SharedStore| {
        let builder = Node::builder().with_settings(in_memory()).with_store(Arc::clone(store));
        TestNode::build(builder)
    };
    let cubes = [("ann", "ann", 20), (STRANGE_ENCODED, STRANGE, 600)];
    let node = start(&from).await;
    let client = node.client.clone();
    let exports = tokio::task::spawn_blocking(move || {
        for (cube, id, count) in cubes {
            fill(&client, cube, id, count);
        }
        cubes.map(|(_, id, _)| export_of(&client, id))
    });
    let exports = exports.await.expect("filled");
    let (objects, prefix) = open();
    let request = BackupRequest::new(Selection::default(), "test");
    let sink = ObjectSink::new(objects, prefix);
    let taken = back_up(node.node.store(), &environment::system(), &sink, request, &|_| {}).await;
    assert_eq!(taken.expect("backed up").cubes, 2);
    node.stop().await;

    let (objects, prefix) = open();
    let mut archive = Archive::open(objects, prefix).await.expect("there");
    assert!(verify(&mut archive, &|_| {}).await.expect("read").is_whole());
    let request = RestoreRequest::default();
    let outcome = restore(&to, &environment::system(), &mut archive, request, &|_| {}).await;
    let outcome = outcome.expect("tried");
    assert!(outcome.is_whole() && outcome.restored == 2, "{outcome:?}");
    let node = start(&to).await;
    let client = node.client.clone();
    let restored =
        tokio::task::spawn_blocking(move || cubes.map(|(_, id, _)| export_of(&client, id)));
    let restored = restored.await.expect("exported");
    for ((_, id, _), (old, new)) in cubes.iter().zip(exports.iter().zip(&restored)) {
        assert_eq!(difference(old, new), None, "{id}");
        assert!(old.len() > 5_000);
    }
    // It is as good as the one it came from.
    assert_eq!(node.client.search("ann", "changed twice").await[0], "changed twice");
    node.client.fact("ann", "something new").await;
    node.stop().await;
}

/// What `memcube export` writes of a cube of a server.
fn export_of(client: &Client, id: &str) -> Vec<u8> {
    let home = tempfile::tempdir().expect("a directory");
    let mut command = memcube(home.path(), &["export", "--cube", id, "--api-key", KEY]);
    command.args(["--server", &client.address]);
    let said = say(command);
    assert!(said.success, "{}", said.errors);
    said.output
}

fn in_ram() -> SharedStore {
    Arc::new(InMemoryStore::new())
}

pub(crate) fn embedded(directory: &Path) -> SharedStore {
    Arc::new(EmbeddedStore::open(&directory.join("state")).expect("opened"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_move_from_ram_to_a_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    move_between(in_ram(), embedded(directory.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_move_from_a_directory_to_ram() {
    let directory = tempfile::tempdir().expect("a directory");
    move_between(embedded(directory.path()), in_ram()).await;
}
