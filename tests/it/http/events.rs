//! `/v1/events`

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufRead,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use memcube_actors::{
    TenantContext,
    feed::{FeedRequest, FeedTrimmer},
    housekeeper::Chore,
};
use memcube_schemas::{TenantId, limits::FEED_STREAMS_PER_TENANT_MAX};
use serde_json::{Value, json};

use crate::support::{
    Client, PATIENCE, ServerProcess, TENANT, TestNode, check_table, memcube, run,
};

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq)]
struct Message {
    id: Option<String>,
    event: String,
    data: Value,
}

/// A connection that reads events until it breaks.
struct Stream {
    lines: Box<dyn Iterator<Item = std::io::Result<String>> + Send>,
}

impl Stream {
    fn open(client: &Client, path: &str, last: Option<&str>) -> Self {
        Self::try_open(client, path, last).expect("the stream opens")
    }

    fn try_open(client: &Client, path: &str, last: Option<&str>) -> Option<Self> {
        let call = client.call("GET", path).header("accept", "text/event-stream");
        // A client that has seen nothing sends an empty one.
        let call = call.header("last-event-id", last.unwrap_or_default());
        let reader = call.open_blocking().ok()?;
        Some(Self { lines: Box::new(reader.lines()) })
    }

    /// The next event with a name; `None` when the connection breaks.
    fn next(&mut self) -> Option<Message> {
        let mut message = Message::default();
        loop {
            let line = self.lines.next()?.ok()?;
            match line.split_once(": ") {
                None if line.is_empty() && !message.event.is_empty() => return Some(message),
                Some(("id", id)) => message.id = Some(id.to_owned()),
                Some(("event", name)) => name.clone_into(&mut message.event),
                Some(("data", data)) => message.data = serde_json::from_str(data).expect("JSON"),
                Some(_) | None => {}
            }
        }
    }

    /// The next event that tells of a commit.
    fn next_commit(&mut self) -> Option<Message> {
        loop {
            let message = self.next()?;
            if message.event != "progress" {
                return Some(message);
            }
        }
    }
}

fn brief(event: &Value) -> String {
    let changes = event["changes"].as_array().expect("a list").iter();
    let changes: Vec<&str> = changes.map(|one| one["change"].as_str().expect("a word")).collect();
    let word = |name: &str| event[name].as_str().expect("a text").to_owned();
    format!("{} {} {} {}", word("event"), word("cube"), event["version"], changes.join(","))
        .trim_end()
        .to_owned()
}

/// Everything that is kept, by pages.
fn read_all(client: &Client, query: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut place = "from=start".to_owned();
    loop {
        let path = format!("/v1/events?wait=0&{query}&{place}");
        let page = client.call("GET", &path).send_blocking().expect("an answer").expect(200);
        events.extend(page["events"].as_array().expect("a list").iter().cloned());
        place = format!("after={}", page["cursor"].as_str().expect("a cursor"));
        if page["more"] == false {
            return events;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_what_happens_and_names_the_memories() {
    let node = TestNode::start().await;
    let client = node.client.clone();
    let mut stream = tokio::task::block_in_place(|| Stream::open(&client, "/v1/events", None));
    let begin = tokio::task::block_in_place(|| stream.next()).expect("where it begins");
    assert_eq!(begin.event, "progress");
    assert_eq!(begin.data["cursor"].as_str(), begin.id.as_deref());
    client.cube("c").await;
    let id = client.fact("c", "I sing").await;
    client.patch(&format!("/v1/cubes/c/memories/{id}"), json!({"text": "I hum"})).await.expect(200);
    client.delete(&format!("/v1/cubes/c/memories/{id}?purge=true")).await.expect(200);
    client.delete("/v1/cubes/c").await.expect(200);
    let expected = [
        "made c 0",
        "changed c 1 added",
        "changed c 2 updated",
        "changed c 3 purged",
        "erased c 3",
    ];
    let told = tokio::task::block_in_place(|| {
        let told = expected.iter().map(|_| stream.next_commit().expect("told"));
        told.collect::<Vec<Message>>()
    });
    let brief: Vec<String> = told.iter().map(|message| brief(&message.data)).collect();
    assert_eq!(brief, expected);
    for message in &told {
        assert_eq!(message.data["id"].as_str(), message.id.as_deref());
        assert_eq!(message.data["event"], message.event.as_str());
        assert!(!message.data.to_string().contains("sing"), "no texts: {}", message.data);
    }
    assert_eq!(told[1].data["changes"][0]["memory"], id.as_str());
    assert_eq!(told[2].data["changes"][0]["revision"], 2);
    let resumed = told[1].id.as_deref();
    let mut again = tokio::task::block_in_place(|| Stream::open(&client, "/v1/events", resumed));
    let first = tokio::task::block_in_place(|| again.next_commit()).expect("told");
    assert_eq!(first, told[2]);
    // A server stops in order although somebody listens.
    let start = Instant::now();
    node.stop().await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(tokio::task::block_in_place(|| stream.next()), None);
}

#[tokio::test]
async fn pages_tell_the_same_and_cubes_can_be_chosen() {
    let node = TestNode::start().await;
    for cube in ["ann", "bo", "cem"] {
        node.client.cube(cube).await;
    }
    for number in 0..5 {
        for cube in ["ann", "bo", "cem"] {
            node.client.fact(cube, &format!("number {number}")).await;
        }
    }
    let client = node.client.clone();
    let read = tokio::task::spawn_blocking(move || {
        let whole = read_all(&client, "limit=1000");
        for limit in [1, 2, 7, 18] {
            assert_eq!(read_all(&client, &format!("limit={limit}")), whole, "{limit}");
        }
        let chosen = read_all(&client, "limit=2&cube=ann&cube=cem");
        let others = whole.iter().filter(|event| event["cube"] != "bo").cloned();
        assert_eq!(chosen, others.collect::<Vec<Value>>());
        whole
    });
    let whole = read.await.expect("read");
    assert_eq!(whole.len(), 18);
    let ids: Vec<&str> = whole.iter().map(|event| event["id"].as_str().expect("an id")).collect();
    assert!(ids.is_sorted());
    let now = node.client.get("/v1/events?wait=0").await.expect(200);
    assert_eq!((&now["events"], &now["more"]), (&json!([]), &json!(false)));
    assert!(now["cursor"].as_str().expect("a cursor") > ids[17]);
    let page =
        node.client.call("GET", "/v1/events?from=start").header("accept", "application/json");
    assert_eq!(page.send().await.expect(200)["events"].as_array().map(Vec::len), Some(18));
}

#[tokio::test]
async fn what_cannot_be_answered_says_what_to_do() {
    let node = TestNode::start().await;
    node.client.cube("c").await;
    node.client.fact("c", "old").await;
    let first = node.client.get("/v1/events?wait=0&from=start&limit=1").await.expect(200);
    let early = first["events"][0]["id"].as_str().expect("an id").to_owned();
    let reader = node.node.cubes().feed().reader().clone();
    let trimmer = FeedTrimmer::new(reader, 0, 1_000);
    assert_eq!(trimmer.run(&node.node.cubes().view()).await, Ok(2));
    check_table(
        &node.client,
        &early,
        crate::support::Answer::summary,
        "
        GET /v1/events?after=7
            422 invalid: `7` is no cursor; pass the `id` of the last event …
        GET /v1/events?wait=0&from=yesterday
            422 invalid: `from` is `start` or `now`, not `yesterday`
        GET /v1/events?wait=0&limit=1001
            422 invalid: `limit` must be between 1 and 1000
        GET /v1/events?cubes=c
            422 invalid: there is no parameter `cubes`; there are `cube`, …
        GET /v1/events?after=ID
            410 gone: events after `ID` were trimmed, up to …; list the memories, then follow …
        GET /v1/events?wait=0&after=ID
            410 gone: events after `ID` were trimmed, …
        GET /v1/events?after=00000fffffffffffffffffff
            410 gone: the cursor `00000fffffffffffffffffff` lies ahead of everything …
        POST /v1/events
            405 invalid: `/v1/events` does not take POST
        GET /v1/events?wait=0&after=ID&from=start
            410 gone: …
        ",
    )
    .await;
    let stranger = node.client.with_authorization(None);
    assert_eq!(stranger.get("/v1/events").await.status, 401);
    let from_start = node.client.get("/v1/events?wait=0&from=start").await.expect(200);
    assert_eq!(from_start["events"], json!([]));

    let context = TenantContext::authenticated(TenantId::new(TENANT).expect("valid"), "test");
    let feed = node.node.cubes().feed();
    let mut streams = Vec::new();
    for _ in 0..FEED_STREAMS_PER_TENANT_MAX {
        streams.push(feed.subscribe(&context, FeedRequest::default()).await.expect("opened"));
    }
    let refused = node.client.get("/v1/events").await;
    assert!(refused.summary().starts_with("429 overloaded: "), "{}", refused.summary());
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_one_cube_passes_over_the_others_and_says_so() {
    let node = TestNode::start().await;
    let client = node.client.clone();
    for cube in ["quiet", "loud"] {
        client.cube(cube).await;
    }
    let path = "/v1/events?cube=quiet";
    let mut stream = tokio::task::block_in_place(|| Stream::open(&client, path, None));
    let begin = tokio::task::block_in_place(|| stream.next()).expect("where it begins");
    // The stream tells its progress, so that whoever resumes need not pass over all that again.
    let told = tokio::task::spawn_blocking(move || stream.next());
    let mut number = 0;
    while !told.is_finished() {
        number += 1;
        client.fact("loud", &format!("number {number}")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = told.await.expect("it ends").expect("told");
    assert_eq!(told.event, "progress");
    assert!(told.id > begin.id, "{told:?}");
}

const CUBES: usize = 8;
const KILLS: usize = 4;
const ADDS_BETWEEN: usize = 60;

/// What happened in a run with kills: the address of the server now, and what was acknowledged.
#[derive(Default)]
struct Shared {
    client: Mutex<Option<Client>>,
    acknowledged: Mutex<BTreeMap<String, BTreeSet<String>>>,
    adds: AtomicUsize,
    is_over: AtomicBool,
}

impl Shared {
    fn client(&self) -> Option<Client> {
        self.client.lock().expect("a lock").clone()
    }

    fn write(&self, writer: usize) {
        for number in 0.. {
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            let cube = format!("cube{}", (writer + number) % CUBES);
            let text = format!("writer {writer} number {number}");
            // One that is not answered is sent again under its key, until it is.
            let id = loop {
                let client = self.client().expect("there is a server");
                let call = client.call("POST", &format!("/v1/cubes/{cube}/memories"));
                let call = call.header("idempotency-key", &text.replace(' ', "-"));
                if let Ok(answer) = call.json(json!({ "text": text })).send_blocking() {
                    break answer.expect(201)["memories"][0]["id"]
                        .as_str()
                        .expect("an id")
                        .to_owned();
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            self.acknowledged.lock().expect("a lock").entry(cube).or_default().insert(id);
            self.adds.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Follows from the very first event, over all servers, until nothing is left to be told.
    fn follow(&self, query: &str) -> Vec<Value> {
        let path = format!("/v1/events?from=start{query}");
        let (mut last, mut seen): (Option<String>, Vec<Value>) = (None, Vec::new());
        loop {
            let opened =
                self.client().and_then(|client| Stream::try_open(&client, &path, last.as_deref()));
            let Some(mut stream) = opened else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            while let Some(message) = stream.next() {
                last = message.id.or(last);
                match message.event.as_str() {
                    "progress" => {}
                    "made" if message.data["cube"] == "the end" => return seen,
                    _ => seen.push(message.data),
                }
            }
        }
    }
}

#[test]
fn readers_of_a_server_that_is_killed_again_and_again_hear_every_commit_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let shared = Shared::default();
    let server = ServerProcess::start(directory.path());
    for cube in 0..CUBES {
        let made = json!({ "id": format!("cube{cube}") });
        let made = server.client.call("POST", "/v1/cubes").json(made).send_blocking();
        made.expect("an answer").expect(201);
    }
    let (told, server) = std::thread::scope(|scope| {
        let mut server = server;
        *shared.client.lock().expect("a lock") = Some(server.client.clone());
        let readers: Vec<_> = ["", "", "&cube=cube3&cube=the%20end"]
            .map(|query| {
                let shared = &shared;
                scope.spawn(move || shared.follow(query))
            })
            .into();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let shared = &shared;
                scope.spawn(move || shared.write(writer))
            })
            .collect();
        for kill in 1..=KILLS {
            let start = Instant::now();
            while shared.adds.load(Ordering::SeqCst) < kill * ADDS_BETWEEN {
                assert!(start.elapsed() < PATIENCE, "the writers stand still");
                std::thread::sleep(Duration::from_millis(1));
            }
            server.kill();
            server = ServerProcess::start(directory.path());
            *shared.client.lock().expect("a lock") = Some(server.client.clone());
        }
        shared.is_over.store(true, Ordering::SeqCst);
        writers.into_iter().for_each(|writer| writer.join().expect("it ends"));
        let end = server.client.call("POST", "/v1/cubes").json(json!({ "id": "the end" }));
        end.send_blocking().expect("an answer").expect(201);
        let told = readers.into_iter().map(|reader| reader.join().expect("it ends"));
        (told.collect::<Vec<Vec<Value>>>(), server)
    });
    let mut kept = read_all(&server.client, "limit=100");
    assert_eq!(kept.pop().expect("the end")["cube"], "the end");
    assert_eq!(told[0], kept);
    assert_eq!(told[1], kept);
    let of_one = kept.iter().filter(|event| event["cube"] == "cube3").cloned();
    assert_eq!(told[2], of_one.collect::<Vec<Value>>());
    let mut versions = BTreeMap::<String, u64>::new();
    let mut added = BTreeMap::<String, BTreeSet<String>>::new();
    for event in &kept {
        let cube = event["cube"].as_str().expect("a cube").to_owned();
        let due = versions.entry(cube.clone()).and_modify(|version| *version += 1).or_default();
        assert_eq!(event["version"], *due, "{event}");
        for change in event["changes"].as_array().expect("a list") {
            assert_eq!(change["change"], "added", "{event}");
            let memory = change["memory"].as_str().expect("an id").to_owned();
            assert!(added.entry(cube.clone()).or_default().insert(memory), "told twice: {event}");
        }
    }
    assert_eq!(added, shared.acknowledged.into_inner().expect("a lock"));
}

#[test]
fn the_command_line_tells_events_and_resumes() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = ServerProcess::start(directory.path());
    for cube in ["a", "b"] {
        let made = server.client.call("POST", "/v1/cubes").json(json!({ "id": cube }));
        made.send_blocking().expect("an answer").expect(201);
    }
    let events = |more: &[&str]| {
        let mut command = memcube(directory.path(), &["events", "--data-dir"]);
        command.arg(directory.path()).args(more).stdin(std::process::Stdio::null());
        let output = command.output().expect("it runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>()
    };
    let all = events(&[]);
    assert_eq!(all.iter().map(brief).collect::<Vec<String>>(), ["made a 0", "made b 0"]);
    let first = all[0]["id"].as_str().expect("an id");
    assert_eq!(events(&["--after", first]), all[1..]);
    assert_eq!(events(&["--cube", "a"]), all[..1]);
    let wrong = memcube(directory.path(), &["events", "--after", "7"]);
    let (status, log) = run(wrong);
    assert!(!status.success() && log.contains("24 hexadecimal digits"), "{log}");

    // Follows over a restart on the same port, which the system keeps free for a moment.
    let mut command = memcube(directory.path(), &["events", "--follow", "--from-start"]);
    command.arg("--data-dir").arg(directory.path());
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::null());
    let mut child = command.spawn().expect("it starts");
    let lines = std::io::BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut told =
        lines.map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
    assert_eq!(told.by_ref().take(2).collect::<Vec<Value>>(), all);
    let address = server.client.address.trim_start_matches("http://").to_owned();
    server.kill();
    let mut again = memcube(directory.path(), &["serve", "--json", "--embedder", "none"]);
    again.args(["--listen", &address, "--data-dir"]).arg(directory.path());
    let server = ServerProcess::spawn(again);
    let path = "/v1/cubes/b/memories";
    let added = server.client.call("POST", path).json(json!({ "text": "after the restart" }));
    added.send_blocking().expect("an answer").expect(201);
    let next = told.next().expect("a line");
    assert_eq!(brief(&next), "changed b 1 added");
    child.kill().expect("killed");
    child.wait().expect("reaped");
}
