//! Snapshots in a bucket: a real S3 server in a process of its own, which is killed, restarted,
//! asked for the wrong bucket, and lied to.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper::{Response, StatusCode, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use memcube_actors::metrics::{
    SNAPSHOT_FALLBACKS_TOTAL as FALLBACKS, SNAPSHOTS_LOADED_TOTAL as LOADED,
    SNAPSHOTS_TOTAL as SNAPSHOTS,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use serde_json::{Value, json};

use crate::{
    crash::{kill_again_and_again, stored},
    support::{PATIENCE, ServerProcess, memcube, serve_command},
};

const ACCESS_KEY: &str = "AKIAMEMCUBETEST";
const SECRET_KEY: &str = "a-secret-of-the-tests";
const BUCKET: &str = "memories";
/// Tells the child where its buckets lie, and at which address it serves them.
const CHILD_DIRECTORY: &str = "MEMCUBE_TEST_S3_DIRECTORY";
const CHILD_ADDRESS: &str = "MEMCUBE_TEST_S3_ADDRESS";
const KILLS: usize = 16;
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
const NO_SUCH_BUCKET: &str =
    "<Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>";

/// An S3 server. Killed when it is dropped.
struct S3Server {
    directory: PathBuf,
    address: String,
    child: Option<Child>,
}

impl S3Server {
    /// Starts one with an empty bucket.
    fn start(directory: &Path) -> Self {
        fs::create_dir_all(directory.join(BUCKET)).expect("a bucket");
        let mut server = Self {
            directory: directory.to_owned(),
            address: "127.0.0.1:0".to_owned(),
            child: None,
        };
        server.restart();
        server
    }

    /// Starts it at the address where it was before.
    fn restart(&mut self) {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args(["--exact", "s3::serves_until_killed", "--nocapture", "--test-threads", "1"])
            .env(CHILD_DIRECTORY, &self.directory)
            .env(CHILD_ADDRESS, &self.address);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let address = lines.find_map(|line| {
            Some(line.expect("text").split_once("serving at ")?.1.trim().to_owned())
        });
        self.address = address.expect("it says where it serves");
        self.child = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }

    /// The files of all objects.
    fn objects(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.directory.join(BUCKET)];
        let mut objects = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("listed") {
                let path = entry.expect("listed").path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if path.is_dir() {
                    folders.push(path);
                } else if name.len() == 64 {
                    objects.push(path);
                }
            }
        }
        objects
    }

    /// What makes memcube use a bucket of this server.
    fn configure(&self, command: &mut Command, bucket: &str, secret: &str) {
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("MEMCUBE__BLOBS__URL", format!("s3://{bucket}/installation-1"))
            .env("MEMCUBE__BLOBS__ENDPOINT", format!("http://{}", self.address))
            .env("MEMCUBE__BLOBS__REGION", "eu-central-1")
            .env("MEMCUBE__BLOBS__ALLOW_HTTP", "true")
            .env("MEMCUBE__BLOBS__SNAPSHOT_ITEMS_MIN", "8")
            .env("MEMCUBE__BLOBS__GRACE_MS", "2000");
    }

    fn serve(&self, directory: &Path, passivate_after_ms: u64) -> ServerProcess {
        let mut command = serve_command(directory);
        self.configure(&mut command, BUCKET, SECRET_KEY);
        command.env("MEMCUBE__CUBE__PASSIVATE_AFTER_MS", passivate_after_ms.to_string());
        ServerProcess::spawn(command)
    }

    /// What `memcube doctor` says about blobs.
    fn doctor(&self, bucket: &str, secret: &str) -> Value {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = memcube(directory.path(), &["doctor", "--json", "--listen"]);
        command.args(["127.0.0.1:0", "--data-dir"]).arg(directory.path());
        command.env("MEMCUBE__EMBEDDER__KIND", "none");
        self.configure(&mut command, bucket, secret);
        let output = command.output().expect("it runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("a list");
        checks.iter().find(|check| check["check"] == "blobs").expect("it looks at blobs").clone()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Not a test of its own: the S3 server, when a test starts this binary again.
#[test]
fn serves_until_killed() {
    let (Some(directory), Ok(address)) =
        (std::env::var_os(CHILD_DIRECTORY), std::env::var(CHILD_ADDRESS))
    else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let directory = PathBuf::from(directory);
        let files = FileSystem::new(&directory).expect("a directory");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind(address).await.expect("an address");
        println!("serving at {}", listener.local_addr().expect("an address"));
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let (service, directory) = (service.clone(), directory.clone());
            // The file system would make a bucket that is not there.
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let bucket = request.uri().path().split('/').nth(1).unwrap_or_default();
                let is_there = directory.join(bucket).is_dir();
                let service = service.clone();
                async move {
                    if is_there {
                        return hyper::service::Service::call(&service, request).await;
                    }
                    let body = s3s::Body::from(NO_SUCH_BUCKET.to_owned());
                    let response = Response::builder().status(StatusCode::NOT_FOUND).body(body);
                    Ok(response.expect("a response"))
                }
            });
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
}

/// The sum of a metric over its labels, or over those with this text.
fn metric(server: &ServerProcess, name: &str, with: &str) -> f64 {
    let answer = server.client.call("GET", "/metrics").send_blocking().expect("an answer");
    let lines = answer.text.lines().filter(|line| line.starts_with(name) && line.contains(with));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < PATIENCE, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn add(server: &ServerProcess, text: &str) {
    let call = server.client.call("POST", "/v1/cubes/ann/memories");
    call.json(json!({ "text": text })).send_blocking().expect("an answer").expect(201);
}

#[test]
fn kills_of_both_servers_lose_nothing_that_was_acknowledged_and_double_nothing() {
    let bucket = tempfile::tempdir().expect("a directory");
    let directory = tempfile::tempdir().expect("a directory");
    let s3 = std::cell::RefCell::new(S3Server::start(bucket.path()));
    let start = || s3.borrow().serve(directory.path(), 600_000);
    let (mut loaded, mut fallbacks) = (0.0, 0.0);
    let server = kill_again_and_again(KILLS, start, |round, server| {
        loaded += metric(server, LOADED, "");
        fallbacks += metric(server, FALLBACKS, "unreachable");
        // The S3 server is down in the middle, for a quarter of the time.
        if round == KILLS / 4 {
            s3.borrow_mut().kill();
        } else if round == KILLS / 2 {
            s3.borrow_mut().restart();
        }
    });
    assert!(loaded > 0.0, "no cube was hydrated from a snapshot");
    assert!(fallbacks > 0.0, "no cube was hydrated while the bucket was away");
    // What crashes have left behind is swept away: one snapshot a cube remains.
    let cubes = stored(&server.client).len();
    wait_for("the sweep", || s3.borrow().objects().len() <= cubes);
    let (status, log) = server.terminate();
    assert!(status.success(), "{log}");
    let server = start();
    let before = stored(&server.client);
    assert!(metric(&server, LOADED, "") >= 1.0);
    server.kill();
    s3.borrow_mut().kill();
    let server = start();
    assert_eq!(stored(&server.client), before, "from rows, without the bucket");
    assert!(metric(&server, FALLBACKS, "unreachable") >= 1.0);
}

#[test]
fn one_bit_in_the_bucket_is_noticed_and_the_snapshot_replaced() {
    let bucket = tempfile::tempdir().expect("a directory");
    let directory = tempfile::tempdir().expect("a directory");
    let s3 = S3Server::start(bucket.path());
    let server = s3.serve(directory.path(), 600_000);
    let made = server.client.call("POST", "/v1/cubes").json(json!({ "id": "ann" }));
    made.send_blocking().expect("an answer").expect(201);
    for number in 0..20 {
        add(&server, &format!("note {number}"));
    }
    wait_for("a snapshot", || metric(&server, SNAPSHOTS, "committed") >= 1.0);
    let texts = server.client.texts_blocking("ann");
    server.kill();
    let [object] = s3.objects().try_into().expect("one object");
    let mut bytes = fs::read(&object).expect("read");
    let place = bytes.len() / 2;
    bytes[place] ^= 1;
    fs::write(&object, &bytes).expect("written");
    let server = s3.serve(directory.path(), 600_000);
    assert_eq!(server.client.texts_blocking("ann"), texts);
    assert_eq!(metric(&server, FALLBACKS, "damaged"), 1.0);
    add(&server, "one more");
    wait_for("a new snapshot", || metric(&server, SNAPSHOTS, "committed") >= 1.0);
    wait_for("the sweep", || !object.exists());
    let texts = server.client.texts_blocking("ann");
    server.kill();
    let server = s3.serve(directory.path(), 600_000);
    assert_eq!(server.client.texts_blocking("ann"), texts);
    assert_eq!((metric(&server, LOADED, ""), metric(&server, FALLBACKS, "")), (1.0, 0.0));
}

#[test]
fn what_is_wrong_with_the_bucket_is_told_with_the_setting_to_mend_and_memories_are_served() {
    let bucket = tempfile::tempdir().expect("a directory");
    let mut s3 = S3Server::start(bucket.path());
    let good = s3.doctor(BUCKET, SECRET_KEY);
    assert_eq!(good["status"], "ok", "{good}");
    let wrong = s3.doctor("no-such-bucket", SECRET_KEY);
    let forbidden = s3.doctor(BUCKET, "not-the-secret");
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = serve_command(directory.path());
    s3.configure(&mut command, "no-such-bucket", SECRET_KEY);
    let server = ServerProcess::spawn(command);
    s3.kill();
    let away = s3.doctor(BUCKET, SECRET_KEY);
    for (finding, word) in [
        (wrong, "no such bucket; set `blobs.url`"),
        (forbidden, "credentials"),
        (away, "`blobs.endpoint`"),
    ] {
        assert_eq!(finding["status"], "failed", "{finding}");
        let detail = finding["detail"].as_str().expect("text");
        assert!(detail.contains(word), "{word} in {detail}");
        assert!(!detail.contains(SECRET_KEY), "{detail}");
        assert!(finding["remedy"].is_string(), "{finding}");
    }
    let made = server.client.call("POST", "/v1/cubes").json(json!({ "id": "ann" }));
    made.send_blocking().expect("an answer").expect(201);
    for number in 0..10 {
        add(&server, &format!("note {number}"));
    }
    wait_for("a failed snapshot", || metric(&server, SNAPSHOTS, "failed") >= 1.0);
    assert_eq!(server.client.texts_blocking("ann").len(), 10);
    let (status, log) = server.terminate();
    assert!(status.success(), "{log}");
    assert!(log.contains("no snapshot could be made"), "{log}");
}
