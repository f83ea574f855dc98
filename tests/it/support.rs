//! What black-box tests need: a node in this process, the real server, and one client for both.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use memcube::{
    Node, NodeBuilder, Settings, environment,
    gateway::{self, Serving, TenantGate},
    settings::{EmbedderKind, StoreKind},
    storage::EmbeddedStore,
};
use memcube_actors::embedder::ScriptedEmbedder;
use serde_json::Value;
use ureq::http::{HeaderMap, Request};

/// The key that every test server lets in.
pub(crate) const KEY: &str = "mck_0123456789abcdef0123456789abcdef";
/// The tenant behind it.
pub(crate) const TENANT: &str = "default";
/// Nothing that a test waits for takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a server answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// The body, if it is JSON.
    pub(crate) body: Value,
}

impl Answer {
    /// The body of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header in ASCII"))
    }

    /// One line: the status, and what an error says. Problems and envelopes are told apart.
    pub(crate) fn summary(&self) -> String {
        let text = |name: &str| self.body[name].as_str().map(str::to_owned);
        let kind = self.header("content-type").unwrap_or("no type").to_owned();
        let status = self.status;
        match (kind.as_str(), text("code"), text("detail"), text("message")) {
            ("application/problem+json", Some(code), Some(detail), _) => {
                assert_eq!(self.body["status"], status, "{}", self.text);
                assert_eq!(self.body["type"], format!("about:blank#{code}"));
                assert_eq!(self.body["request_id"].as_str(), self.header("x-request-id"));
                format!("{status} {code}: {detail}")
            }
            ("application/json", _, _, Some(message)) => {
                assert_eq!(self.body["code"], status, "{}", self.text);
                format!("{status} envelope: {message}")
            }
            ("application/json", ..) => format!("{status}"),
            _ => format!("{status} NOT JSON ({kind}): {}", self.text),
        }
    }
}

/// A client with a key. Cheap to clone; answers with an error status are answers as well.
#[derive(Clone)]
pub(crate) struct Client {
    agent: ureq::Agent,
    pub(crate) address: String,
    authorization: Option<String>,
}

/// Without idle connections every request has one of its own: a server that answers before it has
/// read a body, as to a stranger, closes the connection then, which the next request must not meet.
fn agent(idle_connections_max: usize) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .max_idle_connections(idle_connections_max)
        .max_idle_connections_per_host(idle_connections_max)
        .build()
        .new_agent()
}

impl Client {
    pub(crate) fn new(address: impl Into<String>) -> Self {
        let agent = agent(0);
        let authorization = Some(format!("Bearer {KEY}"));
        Self { agent, address: address.into(), authorization }
    }

    /// The same client with another `Authorization`, or none.
    pub(crate) fn with_authorization(&self, authorization: Option<&str>) -> Self {
        Self { authorization: authorization.map(str::to_owned), ..self.clone() }
    }

    /// The same client with connections that stay open, for many requests that succeed.
    pub(crate) fn pooled(&self) -> Self {
        Self { agent: agent(4), ..self.clone() }
    }

    pub(crate) fn call(&self, method: &str, path: &str) -> Call {
        let (method, path) = (method.to_owned(), path.to_owned());
        Call { client: self.clone(), method, path, headers: Vec::new(), body: None }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path).send().await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path).send().await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path).json(body).send().await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call("PATCH", path).json(body).send().await
    }

    /// Makes a cube.
    pub(crate) async fn cube(&self, id: &str) -> Value {
        self.post("/v1/cubes", serde_json::json!({ "id": id })).await.expect(201)
    }

    /// Remembers one statement; returns its id.
    pub(crate) async fn fact(&self, cube: &str, text: &str) -> String {
        let path = format!("/v1/cubes/{cube}/memories");
        let added = self.post(&path, serde_json::json!({ "text": text })).await.expect(201);
        added["memories"][0]["id"].as_str().expect("an id").to_owned()
    }

    /// The texts of the hits, best first.
    pub(crate) async fn search(&self, cube: &str, query: &str) -> Vec<String> {
        let body = serde_json::json!({ "query": query });
        let found = self.post(&format!("/v1/cubes/{cube}/search"), body).await.expect(200);
        let hits = found["hits"].as_array().expect("a list");
        hits.iter().map(|hit| text_of(&hit["memory"])).collect()
    }

    /// The texts of all memories of a cube, in order, read by pages.
    pub(crate) async fn texts(&self, cube: &str) -> Vec<String> {
        let (client, cube) = (self.clone(), cube.to_owned());
        let read = tokio::task::spawn_blocking(move || client.texts_blocking(&cube));
        read.await.expect("the reader ends")
    }

    pub(crate) fn texts_blocking(&self, cube: &str) -> Vec<String> {
        let mut texts = Vec::new();
        let mut path = format!("/v1/cubes/{cube}/memories?limit=1000");
        loop {
            let page = self.call("GET", &path).send_blocking().expect("an answer").expect(200);
            texts.extend(page["memories"].as_array().expect("a list").iter().map(text_of));
            let Some(cursor) = page["next_cursor"].as_str() else { return texts };
            path = format!("/v1/cubes/{cube}/memories?limit=1000&cursor={cursor}");
        }
    }
}

pub(crate) fn text_of(memory: &Value) -> String {
    memory["text"].as_str().expect("a text").to_owned()
}

/// A request on its way.
pub(crate) struct Call {
    client: Client,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Call {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn json(self, body: Value) -> Self {
        self.header("content-type", "application/json").bytes(body.to_string())
    }

    pub(crate) fn bytes(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(crate) async fn send(self) -> Answer {
        let sent = tokio::task::spawn_blocking(move || self.send_blocking()).await;
        sent.expect("the client ends").expect("the server answers")
    }

    pub(crate) fn send_blocking(self) -> Result<Answer, ureq::Error> {
        let mut response = self.run()?;
        let text = response.body_mut().with_config().limit(u64::MAX).read_to_string()?;
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        })
    }

    /// Reads a body while it comes; anything but a success is an error.
    pub(crate) fn open_blocking(self) -> Result<impl BufRead + Send + 'static, ureq::Error> {
        let response = self.run()?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(ureq::Error::StatusCode(status));
        }
        Ok(BufReader::new(response.into_body().into_reader()))
    }

    fn run(self) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let url = format!("{}{}", self.client.address, self.path);
        let mut request = Request::builder().method(self.method.as_str()).uri(url);
        if let Some(authorization) = &self.client.authorization {
            request = request.header("authorization", authorization);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match self.body {
            Some(body) => self.client.agent.run(request.body(body).expect("a request")),
            None => self.client.agent.run(request.body(()).expect("a request")),
        }
    }
}

/// Compares what was said with what is expected, where `…` stands for anything.
#[track_caller]
pub(crate) fn assert_says(said: &str, expected: &str, about: &str) {
    let mut parts = expected.split('…').map(str::trim);
    let mut rest = said.strip_prefix(parts.next().unwrap_or_default());
    let is_open = expected.ends_with('…');
    for part in parts {
        rest = rest.and_then(|rest| Some(&rest[rest.find(part)? + part.len()..]));
    }
    let is_said = rest.is_some_and(|rest| rest.is_empty() || is_open);
    assert!(is_said, "{about}\n  said:     {said}\n  expected: {expected}");
}

/// Sends what a table says, and compares the answers. A row is a line with method, path and perhaps
/// a body, and an indented line with the answer as `show` has it. `ID` stands for `id`, in both.
pub(crate) async fn check_table(
    client: &Client,
    id: &str,
    show: fn(&Answer) -> String,
    table: &str,
) {
    let mut lines = table.lines().filter(|line| !line.trim().is_empty());
    while let Some(request) = lines.next() {
        let expected = lines.next().expect("every request has an answer").trim();
        let mut parts = request.trim().splitn(3, ' ');
        let method = parts.next().expect("a method");
        let path = parts.next().expect("a path").replace("ID", id);
        let call = client.call(method, &path);
        let call = match parts.next() {
            Some(body) => call.header("content-type", "application/json").bytes(body),
            None => call,
        };
        let said = show(&call.send().await);
        let said = if id.is_empty() { said } else { said.replace(id, "ID") };
        let (said, expected) = match (sorted_answer(&said), sorted_answer(expected)) {
            (Some(said), Some(expected)) => (said, expected),
            _ => (said, expected.to_owned()),
        };
        assert_says(&said, &expected, request);
    }
}

/// A status and a JSON object with its keys in order: whether they come so depends on a feature of
/// `serde_json` that other packages may switch on.
fn sorted_answer(answer: &str) -> Option<String> {
    let (status, body) = answer.split_once(' ')?;
    Some(format!("{status} {}", sorted(serde_json::from_str(body).ok()?)))
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let ordered: std::collections::BTreeMap<String, Value> =
                object.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(values) => values.into_iter().map(sorted).collect(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other,
    }
}

/// Settings of a node in this process: nothing survives it.
pub(crate) fn in_memory() -> Settings {
    let mut settings = Settings::default();
    settings.store.kind = StoreKind::InMemory;
    settings.embedder.kind = EmbedderKind::None;
    settings
}

/// Settings of a node in this process whose state lies in a directory.
pub(crate) fn embedded(directory: &Path) -> Settings {
    let mut settings = in_memory();
    settings.store.kind = StoreKind::Embedded;
    directory.clone_into(&mut settings.store.data_dir);
    settings
}

/// A node in this process with its gateway on a free port, and the scripted embedder.
pub(crate) struct TestNode {
    pub(crate) node: Arc<Node>,
    serving: Serving,
    pub(crate) client: Client,
}

impl TestNode {
    pub(crate) async fn start() -> Self {
        Self::with_settings(in_memory()).await
    }

    pub(crate) async fn with_settings(settings: Settings) -> Self {
        Self::build(Node::builder().with_settings(settings)).await
    }

    pub(crate) async fn build(builder: NodeBuilder) -> Self {
        let builder = builder.with_embedder(Arc::new(ScriptedEmbedder::new(64)));
        Self::serve(Box::pin(builder.start()).await.expect("the node starts")).await
    }

    pub(crate) async fn serve(node: Node) -> Self {
        let node = Arc::new(node);
        let gate = TenantGate::open(node.store()).await.expect("the gate opens");
        gate.admit(node.store(), &environment::system(), KEY, "test").await.expect("admitted");
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let serving = gateway::serve(Arc::clone(&node), Arc::new(gate), listen).await;
        let serving = serving.expect("the gateway starts");
        let client = Client::new(format!("http://{}", serving.address));
        Self { node, serving, client }
    }

    /// Stops in order: what was acknowledged is in the store, and the store is free again.
    pub(crate) async fn stop(self) {
        self.serving.stop().await.expect("the gateway ends");
        self.node.shut_down().await;
        let settings = self.node.settings().store.clone();
        drop(self.node);
        if settings.kind == StoreKind::Embedded {
            // The last actor lets go of the store a moment after it was told to stop.
            let state = settings.data_dir.join("state");
            eventually("the store is free", || async { EmbeddedStore::open(&state).is_ok() }).await;
        }
    }
}

/// A command line of the real program, without anything from this process's environment.
pub(crate) fn memcube(home: &Path, arguments: &[&str]) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_memcube")), home, arguments)
}

fn clean(mut command: Command, home: &Path, arguments: &[&str]) -> Command {
    command.env_clear().env("HOME", home).env("MEMCUBE_API_KEY", KEY).args(arguments);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// `memcube serve` on a directory, without a model.
pub(crate) fn serve_command(directory: &Path) -> Command {
    let mut command = memcube(directory, &["serve", "--listen", "127.0.0.1:0", "--json"]);
    command.args(["--embedder", "none", "--data-dir"]).arg(directory);
    command
}

/// The same, on a disk that takes no file longer than this many blocks of 512 bytes.
pub(crate) fn serve_command_limited(directory: &Path, file_blocks_max: usize) -> Command {
    let serve = serve_command(directory);
    let script = format!("trap '' XFSZ; ulimit -f {file_blocks_max}; exec \"$0\" \"$@\"");
    let mut command = clean(Command::new("sh"), directory, &["-c", &script]);
    command.arg(serve.get_program()).args(serve.get_args());
    command
}

/// The real server in a process of its own; killed and reaped when it is dropped.
pub(crate) struct ServerProcess {
    child: Child,
    pub(crate) client: Client,
    /// What it printed when it was ready.
    pub(crate) ready: Value,
    log: Option<JoinHandle<String>>,
}

impl ServerProcess {
    pub(crate) fn start(directory: &Path) -> Self {
        Self::spawn(serve_command(directory))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let log = child.stderr.take().map(collect);
        let mut lines = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = lines.read_line(&mut line);
            // Nobody listens when it took too long.
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(PATIENCE).unwrap_or_default();
        let mut server = Self { child, client: Client::new(""), ready: Value::Null, log };
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            let _ = server.child.kill();
            panic!("the server printed {line:?}, and logged:\n{}", server.end().1);
        };
        let address = ready["address"].as_str().expect("an address");
        server.client = Client::new(address);
        server.ready = ready;
        server
    }

    /// SIGKILL: the process has no say in it.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// SIGTERM: the process ends in order. Returns how, and what it logged.
    pub(crate) fn terminate(mut self) -> (ExitStatus, String) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().expect("`kill` runs");
        assert!(sent.success());
        let status = wait(&mut self.child);
        (status, self.end().1)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }

    fn end(&mut self) -> (Option<ExitStatus>, String) {
        let status = self.child.wait().ok();
        let log = self.log.take().map(|log| log.join().expect("the log ends"));
        (status, log.unwrap_or_default())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // One that ended already is only reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command that must end by itself; returns how, and what it printed as errors.
pub(crate) fn run(mut command: Command) -> (ExitStatus, String) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let log = collect(child.stderr.take().expect("its errors"));
    let status = wait(&mut child);
    (status, log.join().expect("the log ends"))
}

/// Waits for an end that must come.
fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("asked") {
            return status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the process did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // Cut off when the process is killed: what came until then counts.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Asks again and again until something holds; fails when it takes too long.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A small generator of reproducible numbers (xorshift64*).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
