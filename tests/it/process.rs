//! The real program: starting, stopping, and what it says when it cannot work.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::support::{
    Client, KEY, Numbers, ServerProcess, assert_says, memcube, run, serve_command,
    serve_command_limited,
};

fn post(client: &Client, path: &str, body: Value) -> crate::support::Answer {
    client.call("POST", path).json(body).send_blocking().expect("an answer")
}

fn get(client: &Client, path: &str) -> crate::support::Answer {
    client.call("GET", path).send_blocking().expect("an answer")
}

#[test]
fn a_server_says_where_it_is_and_ends_in_order() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = ServerProcess::start(directory.path());
    assert_eq!(server.ready["api_key"], KEY);
    assert_eq!(server.ready.as_object().map(serde_json::Map::len), Some(2), "{}", server.ready);
    assert!(server.client.address.starts_with("http://127.0.0.1:"), "{}", server.client.address);
    post(&server.client, "/v1/cubes", json!({"id": "c"})).expect(201);
    post(&server.client, "/v1/cubes/c/memories", json!({"text": "it stays"})).expect(201);
    let (status, log) = server.terminate();
    assert!(status.success(), "{status}: {log}");
    assert!(!log.contains(KEY), "the key is in the log");
    let server = ServerProcess::start(directory.path());
    assert_eq!(server.client.texts_blocking("c"), ["it stays"]);
}

/// The first start makes a key; the next ones know it, and let nobody else in.
#[test]
fn the_first_start_makes_a_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = || {
        let mut command = serve_command(directory.path());
        command.env_remove("MEMCUBE_API_KEY");
        ServerProcess::spawn(command)
    };
    let server = start();
    let key = server.ready["api_key"].as_str().expect("a key").to_owned();
    assert!(key.starts_with("mck_") && key.len() > 40, "{key}");
    let owner = server.client.with_authorization(Some(&format!("Bearer {key}")));
    assert_eq!(get(&owner, "/v1/cubes").status, 200);
    assert_eq!(get(&server.client, "/v1/cubes").status, 401, "not the key of other tests");
    server.kill();
    let server = start();
    assert_eq!(server.ready["api_key"], key.as_str());
}

#[test]
fn unusable_keys_are_refused_at_the_start() {
    for key in ["short", "with space in the middle of it", &"x".repeat(257)] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = serve_command(directory.path());
        command.env("MEMCUBE_API_KEY", key);
        let (status, log) = run(command);
        assert_eq!(status.code(), Some(1), "{key}: {log}");
        assert!(log.contains("an API key must have 16 to 256 printable characters"), "{log}");
    }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = ServerProcess::start(directory.path());
    post(&server.client, "/v1/cubes", json!({"id": "c"})).expect(201);
    let (status, log) = run(serve_command(directory.path()));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("error: "), "{log}");
    assert!(log.contains("another memcube is using"), "{log}");
    assert!(log.contains("--data-dir"), "it says what to do: {log}");
    assert!(server.is_running());
    post(&server.client, "/v1/cubes/c/memories", json!({"text": "undisturbed"})).expect(201);
}

#[test]
fn an_address_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = memcube(directory.path(), &["serve", "--embedder", "none", "--listen"]);
    command.arg(&address).arg("--data-dir").arg(directory.path());
    let (status, log) = run(command);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot listen on {address}")), "{log}");
    assert!(log.contains("--listen"), "it says what to do: {log}");
}

/// Words that no compressor makes much smaller.
fn noise(numbers: &mut Numbers, words: usize) -> String {
    let words: Vec<String> = (0..words).map(|_| format!("{:016x}", numbers.next())).collect();
    words.join(" ")
}

/// Files may not grow past this many blocks of 512 bytes: see `embedded_store/disk_full.rs`.
const FILE_BLOCKS_MAX: usize = 600;

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    for _ in 0..2 {
        // The second start shortens the journal from what the first one reserved.
        let (status, log) = ServerProcess::start(directory.path()).terminate();
        assert!(status.success(), "{log}");
    }
    let limited = serve_command_limited(directory.path(), FILE_BLOCKS_MAX);
    let mut server = ServerProcess::spawn(limited);
    let client = server.client.clone();
    post(&client, "/v1/cubes", json!({"id": "c"})).expect(201);
    assert_eq!(get(&client, "/readyz").status, 200);
    let mut numbers = Numbers::new(3);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let text = format!("note {} {}", acknowledged.len(), noise(&mut numbers, 100));
        let answer = post(&client, "/v1/cubes/c/memories", json!({ "text": text }));
        if answer.status != 201 {
            break answer;
        }
        acknowledged.push(text);
        assert!(acknowledged.len() < 10_000, "the disk never fills");
    };
    assert!(acknowledged.len() > 5, "{}", acknowledged.len());
    assert!(refused.summary().starts_with("503 unavailable: "), "{}", refused.summary());
    let later = post(&client, "/v1/cubes/c/memories", json!({"text": "one more"}));
    let full =
        "503 unavailable: … writing to the disk failed … restart memcube after freeing space …";
    assert_says(&later.summary(), full, "later adds");
    let cube = post(&client, "/v1/cubes", json!({"id": "d"}));
    assert!(cube.summary().contains("writing to the disk failed"), "{}", cube.summary());
    let memos = json!({"user_id": "c", "messages": "one more"});
    let memos = post(&client, "/product/add", memos).summary();
    assert!(memos.starts_with("503 envelope: ") && memos.contains("the disk"), "{memos}");
    let ready = get(&client, "/readyz").expect(503);
    assert_eq!((&ready["ready"], &ready["store"]), (&json!(false), &json!(false)), "{ready}");
    assert_eq!(get(&client, "/healthz").status, 200, "the process stays up");
    // A cube that is still in RAM is read; one that is not cannot be claimed, and says why.
    let read = get(&client, "/v1/cubes/c/memories?limit=1000");
    if read.status == 200 {
        let texts: Vec<&str> = read.body["memories"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|memory| memory["text"].as_str().expect("a text"))
            .collect();
        assert_eq!(texts, acknowledged, "what is durable, and nothing else");
    } else {
        assert_says(&read.summary(), full, "reads");
    }
    assert!(server.is_running());
    server.kill();
    // Space again.
    let server = ServerProcess::start(directory.path());
    let texts = server.client.texts_blocking("c");
    assert!(texts.starts_with(&acknowledged), "{} of {}", texts.len(), acknowledged.len());
    assert!(texts.len() <= acknowledged.len() + 1, "one was under way");
    post(&server.client, "/v1/cubes/c/memories", json!({"text": "it works again"})).expect(201);
    assert_eq!(get(&server.client, "/readyz").status, 200);
}

/// A directory of a server that was killed with memories in it.
fn filled() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let server = ServerProcess::start(directory.path());
    post(&server.client, "/v1/cubes", json!({"id": "c"})).expect(201);
    for number in 0..20 {
        let text = format!("memory number {number}");
        post(&server.client, "/v1/cubes/c/memories", json!({ "text": text })).expect(201);
    }
    server.kill();
    directory
}

/// Below a directory, the one path that ends so.
fn find(directory: &Path, end: &str) -> PathBuf {
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.ends_with(end) {
                return path;
            }
        }
    }
    panic!("there is no {end} below {}", directory.display());
}

#[test]
fn a_damaged_store_is_refused_at_every_start() {
    type Inflict = fn(&mut Vec<u8>);
    let cases: [(&str, Inflict, &str); 3] = [
        ("memcube-store", |bytes| bytes[3] ^= 0x10, "state"),
        ("fjall/0.jnl", |bytes| bytes[300..700].fill(0), "acknowledged"),
        ("fjall/version", |bytes| bytes.clear(), "damaged"),
    ];
    for (file, inflict, word) in cases {
        let directory = filled();
        let path = find(directory.path(), file);
        let mut bytes = fs::read(&path).expect("read");
        inflict(&mut bytes);
        fs::write(&path, &bytes).expect("written");
        for attempt in 0..2 {
            let (status, log) = run(serve_command(directory.path()));
            assert_eq!(status.code(), Some(1), "{file}, attempt {attempt}: {log}");
            assert!(!log.contains("panicked"), "{file}: {log}");
            let error = log.lines().find(|line| line.starts_with("error: "));
            let error = error.unwrap_or_else(|| panic!("{file}: no error in {log}"));
            assert!(error.contains(word), "{file}: {error}");
            assert!(error.contains("state"), "{file}: it says where: {error}");
        }
    }
}

#[test]
fn a_wrong_or_missing_model_is_told() {
    let files = ["model.safetensors", "tokenizer.json", "config.json"];
    let cases: [(&[&str], &str); 2] = [(&files, "its SHA-256 is"), (&[], "cannot be read")];
    for (garbage, said) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        let model = tempfile::tempdir().expect("a directory");
        for file in garbage {
            fs::write(model.path().join(file), "garbage").expect("written");
        }
        let mut command = memcube(directory.path(), &["serve", "--listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(directory.path().join("data"));
        command.arg("--model-dir").arg(model.path());
        let (status, log) = run(command);
        assert_eq!(status.code(), Some(1), "{log}");
        for part in [said, "make model", "model.safetensors"] {
            assert!(log.contains(part), "{part} in {log}");
        }
    }
}

/// The mistakes that `memcube serve` must name, with a settings file and variables.
#[track_caller]
fn check_settings(file: &str, variables: &[(&str, &str)], mistakes: &[&str]) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("memcube.toml");
    fs::write(&path, file).expect("written");
    let mut command = serve_command(directory.path());
    command.arg("--config").arg(&path).envs(variables.iter().copied());
    let (status, log) = run(command);
    assert_eq!(status.code(), Some(1), "{log}");
    for mistake in mistakes {
        assert!(log.contains(mistake), "{mistake} is not told in:\n{log}");
    }
    let told = log.lines().filter(|line| line.trim_start().starts_with("- ")).count();
    assert_eq!(told, mistakes.len(), "one line a mistake:\n{log}");
    assert!(!log.contains(KEY), "the key is printed:\n{log}");
    assert!(!directory.path().join("state").exists(), "nothing was made before the settings held");
}

#[test]
fn all_mistakes_in_the_settings_are_told_at_once() {
    check_settings(
        "[http]\nlisten = 7\nport = 1\n[store]\nkind = \"cloud\"\n[log]\nformat = \"xml\"\n",
        &[("MEMCUBE__CUBE__HOT_CUBES_MAX", "-3"), ("MEMCUBE__EMBEDDER__THREADS", "many")],
        &[
            "http.listen",
            "http.port",
            "store.kind",
            "log.format",
            "cube.hot-cubes-max",
            "embedder.threads",
        ],
    );
    check_settings(
        "[cube]\nhot-cubes-max = 0\npassivate-after-ms = 0\n",
        &[],
        &["cube.hot-cubes-max", "cube.passivate-after-ms"],
    );
    check_settings("[htpp]\nlisten = \"127.0.0.1:0\"\n", &[], &["htpp.listen"]);
    check_settings("listen = \"127.0.0.1:0\"\n", &[], &["listen"]);
    check_settings("[http\n", &[], &["memcube.toml"]);
    check_settings("", &[("MEMCUBE__HTTP__PORT", "7")], &["http.port"]);
}

/// At once means all: those of form, and those of sense.
#[test]
fn mistakes_of_every_sort_are_told_together() {
    check_settings(
        "[http]\nlisten = 7\n[cube]\nhot-cubes-max = 0\n[log]\nfilter = \"memcube=loud\"\n",
        &[("MEMCUBE__EMBEDDER__THREADS", "5000")],
        &["http.listen", "cube.hot-cubes-max", "log.filter", "embedder.threads"],
    );
}

#[test]
fn a_settings_file_that_is_not_there_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = serve_command(directory.path());
    command.arg("--config").arg(directory.path().join("nowhere.toml"));
    let (status, log) = run(command);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("there is no settings file") && log.contains("nowhere.toml"), "{log}");
}

#[test]
fn settings_come_from_file_then_variables_then_the_command_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("memcube.toml");
    fs::write(&path, "[http]\nlisten = \"127.0.0.1:1\"\n[embedder]\nkind = \"none\"\n")
        .expect("written");
    let mut command = memcube(directory.path(), &["serve", "--json"]);
    command.arg("--config").arg(&path);
    command.env("MEMCUBE__HTTP__LISTEN", "127.0.0.1:0");
    command.env("MEMCUBE__STORE__DATA_DIR", directory.path().join("from-variable"));
    command.arg("--data-dir").arg(directory.path().join("from-option"));
    let server = ServerProcess::spawn(command);
    assert!(!server.client.address.ends_with(":1"), "{}", server.client.address);
    assert!(directory.path().join("from-option/state").exists());
    assert!(!directory.path().join("from-variable").exists());
}
