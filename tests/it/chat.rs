//! Chats with the real language model: through the real server, killed and started again, and from
//! the command line.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use memcube::Settings;
use memcube_actors::metrics as names;
use serde_json::{Value, json};

use crate::support::{Client, PATIENCE, ServerProcess, memcube, serve_command};

const CHAT: &str = "/v1/chat/completions";
const MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The folder with the model, which must be there.
fn model_dir() -> PathBuf {
    let dir = Settings::default().inference.model_dir;
    let has_model = dir.join(MODEL_FILE).is_file();
    assert!(has_model, "there is no model in {}; run `make language-model`", dir.display());
    dir
}

/// Lets the program find the model, which it cannot from its own home.
fn with_model(mut command: Command) -> Command {
    command.env("MEMCUBE_LANGUAGE_MODEL_DIR", model_dir());
    command
}

pub(crate) fn serve(directory: &Path) -> ServerProcess {
    let mut command = serve_command(directory);
    command.args(["--language-model", "local"]);
    ServerProcess::spawn(with_model(command))
}

fn post(client: &Client, path: &str, body: Value) -> Value {
    let call = client.call("POST", path).json(body);
    call.send_blocking().expect("an answer").expect(200)
}

/// The sum over all labels of a metric, of those series that name `label`.
fn metric(client: &Client, name: &str, label: &str) -> f64 {
    let answer = client.call("GET", "/metrics").send_blocking().expect("an answer");
    let series = answer.text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    series.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("it")).sum()
}

/// Waits until more tokens were read than these: what follows a reply in idle time has begun.
fn wait_for_tokens(client: &Client, more_than: f64) -> f64 {
    let start = Instant::now();
    loop {
        let tokens = metric(client, names::PROMPT_TOKENS_TOTAL, "");
        if tokens > more_than {
            return tokens;
        }
        assert!(start.elapsed() < PATIENCE, "{tokens} tokens, and not more than {more_than}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A conversation as its caller has it.
struct Talk(Vec<Value>);

impl Talk {
    fn new() -> Self {
        let rules = "You are a kind and patient friend, who answers in a few words. ";
        Self(vec![json!({"role": "system", "content": rules.repeat(4)})])
    }

    fn say(&mut self, client: &Client, text: &str) -> Value {
        self.0.push(json!({"role": "user", "content": text}));
        let body = json!({"user": "ann", "max_tokens": 8, "messages": self.0});
        let reply = post(client, CHAT, body);
        self.0.push(reply["choices"][0]["message"].clone());
        reply
    }
}

#[test]
fn after_a_crash_the_next_turn_uses_blocks_from_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut talk = Talk::new();
    let server = serve(directory.path());
    let mut read = 0.0;
    for text in ["My dog is called Otto.", "He likes the river."] {
        let reply = talk.say(&server.client, text);
        let tokens = reply["usage"]["prompt_tokens"].as_f64().expect("a number");
        // A turn is computed ahead once what it left behind is on disk.
        read = wait_for_tokens(&server.client, read + tokens);
    }
    server.kill();

    let server = serve(directory.path());
    assert_eq!(server.client.texts_blocking("ann").len(), 4, "both turns are there");
    let reply = talk.say(&server.client, "What is he called?");
    let timings = &reply["memcube"]["timings"];
    assert!(timings["tokens_from_cache"].as_u64() > Some(60), "{reply}");
    let hits = metric(&server.client, names::ACTIVATION_HITS_TOTAL, "tier=\"disk\"");
    assert!(hits > 0.0, "{reply}");
}

#[test]
fn what_the_cube_knows_is_in_the_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = serve(directory.path());
    let client = &server.client;
    let add = client.call("POST", "/v1/cubes").json(json!({"id": "ann"}));
    add.send_blocking().expect("an answer").expect(201);
    let text = "My dog is called Otto.";
    let add = client.call("POST", "/v1/cubes/ann/memories").json(json!({ "text": text }));
    add.send_blocking().expect("an answer").expect(201);
    let ask = |recall: bool| {
        let reply = post(
            client,
            CHAT,
            json!({
                "cube": "ann", "max_tokens": 24, "memcube": {"recall": recall, "remember": false},
                "messages": [{"role": "user", "content": "What is my dog called?"}],
            }),
        );
        reply["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
    };
    let (with, without) = (ask(true), ask(false));
    assert!(with.contains("Otto"), "{with}");
    assert!(!without.contains("Otto"), "{without}");
}

/// `memcube chat` on a directory of its own, without an embedding model.
fn chat(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = memcube(directory, &["chat", "--embedder", "none", "--data-dir"]);
    command.arg(directory.join("data")).args(arguments);
    with_model(command)
}

fn said(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn one_text_gets_one_answer_and_a_pipe_a_conversation() {
    let directory = tempfile::tempdir().expect("a directory");
    let one = chat(directory.path(), &["--max-tokens", "8", "--json", "My dog is called Otto."]);
    let (out, err) = texts(&said(one, ""));
    let answer: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}\n{err}"));
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(answer["text"].as_str().is_some_and(|text| !text.is_empty()), "{out}");
    assert_eq!(answer["memcube"]["remembered"]["ids"].as_array().map(Vec::len), Some(2), "{out}");
    assert_eq!(answer["usage"]["completion_tokens"], 8, "{out}");

    let input =
        "/help\n\nWhat is my dog called?\n/memories\nAnd now?\n/new\n/nonsense\n/quit\nno\n";
    let talk = chat(directory.path(), &["--max-tokens", "16"]);
    let output = said(talk, input);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    assert!(out.contains("user: My dog is called Otto."), "the memories are shown:\n{out}\n{err}");
    for part in
        ["/memories  shows", "tokens from the cache", "a new conversation", "no `/nonsense`"]
    {
        assert!(err.contains(part), "{part} in:\n{err}");
    }
    assert_eq!(err.matches("first token after").count(), 2, "one line an answer:\n{err}");
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_program() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = chat(directory.path(), &[]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("its input");
    let mut out = BufReader::new(child.stdout.take().expect("its output"));
    stdin.write_all(b"Tell me a very long story about a heron.\n").expect("written");
    // The first piece of the answer is there.
    let mut begun = Vec::new();
    out.read_until(b' ', &mut begun).expect("read");
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("`kill` runs").success());
    stdin.write_all(b"/memories\n/quit\n").expect("written");
    drop(stdin);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).expect("read");
    let output = child.wait_with_output().expect("it ends");
    let (_, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    assert!(err.contains("stopped; nothing of it is remembered"), "{err}");
    let server = serve_command(&directory.path().join("data"));
    let server = ServerProcess::spawn(server);
    assert!(server.client.texts_blocking("me").is_empty());
}

#[test]
fn without_a_model_it_says_how_to_get_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = chat(directory.path(), &["hello"]);
    command.env("MEMCUBE_LANGUAGE_MODEL_DIR", directory.path().join("nowhere"));
    let output = said(command, "");
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("make language-model") && err.contains("nowhere"), "{err}");

    // A server that runs without one.
    let data = directory.path().join("data");
    let server = ServerProcess::spawn(serve_command(&data));
    let output = said(chat(directory.path(), &["hello"]), "");
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("--language-model local") && err.contains("make language-model"), "{err}");
    drop(server);
}
