//! The server is killed while it takes memories, again and again, on one directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::support::{Answer, Client, Numbers, PATIENCE, ServerProcess};

const KILLS: usize = 50;
const CUBES: [&str; 3] = ["ann", "bob", "cem"];
const WRITERS: usize = 6;
/// Adds that are acknowledged before the server is killed, at the most.
const ACKNOWLEDGED_MAX: u64 = 40;

/// What a writer sent and what it heard. The text is unique, and the key is made of it.
#[derive(Debug, Clone)]
struct Sent {
    cube: &'static str,
    text: String,
    id: Option<String>,
}

/// A text with one word that no other text has.
fn text(round: usize, writer: usize, number: usize) -> String {
    format!("in round {round} writer {writer} left note zq{round}x{writer}x{number} behind")
}

fn unique_word(text: &str) -> &str {
    text.split(' ').find(|word| word.starts_with("zq")).expect("every text has one")
}

fn send(client: &Client, cube: &str, text: &str) -> Option<Answer> {
    let call = client.call("POST", &format!("/v1/cubes/{cube}/memories"));
    let call = call.header("idempotency-key", unique_word(text));
    call.json(json!({ "text": text })).send_blocking().ok()
}

fn id_of(answer: Answer) -> String {
    let added = answer.expect(201);
    assert_eq!(added["memories"].as_array().map(Vec::len), Some(1), "{added}");
    assert_eq!(added["memories"][0]["folded"], false, "{added}");
    added["memories"][0]["id"].as_str().expect("an id").to_owned()
}

/// Lets writers write until the server is killed; returns what each of them sent.
fn write_until_killed(server: ServerProcess, round: usize, kill_after: usize) -> Vec<Sent> {
    let acknowledged = AtomicUsize::new(0);
    let is_killed = AtomicBool::new(false);
    let sent = Mutex::new(Vec::new());
    let (enough, wait) = std::sync::mpsc::channel();
    let client = server.client.clone();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (client, enough) = (client.clone(), enough.clone());
            let (acknowledged, is_killed, sent) = (&acknowledged, &is_killed, &sent);
            scope.spawn(move || {
                for number in 0.. {
                    let cube = CUBES[(writer + number) % CUBES.len()];
                    let text = text(round, writer, number);
                    let answer = send(&client, cube, &text);
                    let is_over = answer.is_none();
                    let id = answer.map(id_of);
                    sent.lock().expect("a lock").push(Sent { cube, text, id });
                    if is_over {
                        assert!(is_killed.load(Ordering::SeqCst), "nothing else ends a connection");
                        return;
                    }
                    if acknowledged.fetch_add(1, Ordering::SeqCst) + 1 == kill_after {
                        enough.send(()).expect("somebody waits");
                    }
                }
            });
        }
        wait.recv_timeout(PATIENCE).expect("enough adds are acknowledged");
        is_killed.store(true, Ordering::SeqCst);
        server.kill();
    });
    sent.into_inner().expect("a lock")
}

fn search(client: &Client, cube: &str, query: &str) -> Vec<Value> {
    let call = client.call("POST", &format!("/v1/cubes/{cube}/search"));
    let found = call.json(json!({"query": query, "top_k": 3})).send_blocking().expect("an answer");
    found.expect(200)["hits"].as_array().expect("a list").clone()
}

/// What is stored: every text once, each with its id.
pub(crate) fn stored(client: &Client) -> BTreeMap<&'static str, BTreeSet<String>> {
    CUBES
        .into_iter()
        .map(|cube| {
            let texts = client.texts_blocking(cube);
            let distinct: BTreeSet<String> = texts.iter().cloned().collect();
            assert_eq!(distinct.len(), texts.len(), "some memory of {cube} is there twice");
            (cube, distinct)
        })
        .collect()
}

fn check_found(client: &Client, sent: &Sent) {
    let hits = search(client, sent.cube, &format!("where is {}", unique_word(&sent.text)));
    let hit = hits.iter().find(|hit| hit["memory"]["text"] == sent.text.as_str());
    let hit = hit.unwrap_or_else(|| panic!("{sent:?} is not found but {hits:#?}"));
    assert_eq!(hit["memory"]["id"].as_str(), sent.id.as_deref(), "{sent:?}");
    assert_eq!(hit["memory"]["occurrences"], 1, "{sent:?}");
}

#[test]
fn fifty_kills_lose_nothing_that_was_acknowledged_and_double_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = || ServerProcess::start(directory.path());
    let server = kill_again_and_again(KILLS, start, |_, _| {});
    let (status, log) = server.terminate();
    assert!(status.success(), "{log}");
}

/// Kills the server while it takes memories; `look` sees it after each restart. The last one is
/// returned.
pub(crate) fn kill_again_and_again(
    kills: usize,
    start: impl Fn() -> ServerProcess,
    mut look: impl FnMut(usize, &ServerProcess),
) -> ServerProcess {
    let mut numbers = Numbers::new(7);
    let mut known = BTreeMap::<&str, BTreeSet<String>>::new();
    let (mut total, mut interrupted, mut survived) = (0, 0, 0);
    let mut server = start();
    for cube in CUBES {
        let made = server.client.call("POST", "/v1/cubes").json(json!({ "id": cube }));
        made.send_blocking().expect("an answer").expect(201);
    }
    for round in 0..kills {
        let kill_after = 1 + usize::try_from(numbers.below(ACKNOWLEDGED_MAX)).expect("small");
        let mut sent = write_until_killed(server, round, kill_after);
        server = start();
        let mut after = stored(&server.client);
        let unanswered = sent.iter_mut().filter(|sent| sent.id.is_none()).collect::<Vec<_>>();
        interrupted += unanswered.len();
        for sent in unanswered {
            // It may have happened or not; after a retry with its key it has happened once.
            survived += usize::from(after.get_mut(sent.cube).expect("a cube").remove(&sent.text));
            let answer = send(&server.client, sent.cube, &sent.text).expect("an answer");
            sent.id = Some(id_of(answer));
            known.entry(sent.cube).or_default().insert(sent.text.clone());
        }
        for sent in &sent {
            known.entry(sent.cube).or_default().insert(sent.text.clone());
        }
        assert_eq!(stored(&server.client), known, "after kill {round}");
        for sent in &sent {
            check_found(&server.client, sent);
        }
        // A retry of what had been acknowledged changes nothing, also after the restart.
        let repeated = &sent[usize::try_from(numbers.next() % sent.len() as u64).expect("small")];
        let again = send(&server.client, repeated.cube, &repeated.text).expect("an answer");
        assert_eq!(Some(id_of(again)), repeated.id);
        total += sent.len();
        look(round, &server);
    }
    assert_eq!(stored(&server.client), known);
    assert!(total > 10 * kills && interrupted > kills, "{total} sent, {interrupted} interrupted");
    // Otherwise the kills came at moments that test nothing.
    assert!(survived > 0, "no interrupted add was stored: kills never met a commit");
    assert!(survived < interrupted, "every interrupted add was stored: kills came too late");
    server
}
