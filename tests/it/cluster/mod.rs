//! Several nodes in this process over one store, that reach each other through real sockets.
//!
//! No store can be shared by processes on a machine without FoundationDB, so the nodes are not
//! processes of their own; all that lies between them is what lies between machines.

mod door;
mod moves;
mod network;
mod tls;

use std::{path::Path, sync::Arc};

use memcube::{
    Node, Settings,
    actors::{
        cluster::{ClusterParts, Transport},
        storage::{InMemoryStore, RangeRead, StateStore},
    },
    cluster::HttpTransport,
    schemas::{CubeId, NodeId, TenantId, codec::decode, cube::Ownership, keys},
    settings::Secret,
};
use serde_json::Value;

use crate::support::{TENANT, TestNode, eventually, in_memory};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn node_id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

/// Settings of a node that listens on a free port of this machine.
fn settings(name: &str) -> Settings {
    let mut settings = in_memory();
    settings.cluster.enabled = true;
    settings.cluster.node = Some(node_id(name));
    settings.cluster.listen = "127.0.0.1:0".parse().expect("valid");
    settings.cluster.secret = Some(Secret::new(SECRET));
    settings
}

/// A node whose transport a test can cut.
struct Member {
    inner: TestNode,
    transport: Arc<HttpTransport>,
}

impl Member {
    async fn start(settings: Settings, store: &Arc<InMemoryStore>) -> Self {
        let name = settings.cluster.node.clone().expect("a name");
        let transport = HttpTransport::bind(name.clone(), &settings.cluster).await;
        let transport = transport.expect("it listens");
        let rhythm = settings.cluster.rhythm();
        let parts = ClusterParts { transport: Arc::clone(&transport) as _, settings: rhythm };
        let store: Arc<InMemoryStore> = Arc::clone(store);
        let builder = Node::builder().with_settings(settings).with_store(store);
        let inner = TestNode::build(builder.with_cluster(name, parts)).await;
        Self { inner, transport }
    }

    /// Ends it as a crash would: without a word, and with its sockets closed.
    fn kill(&self) {
        self.inner.node.cubes().kill();
        self.transport.cut();
    }
}

impl std::ops::Deref for Member {
    type Target = TestNode;

    fn deref(&self) -> &TestNode {
        &self.inner
    }
}

/// Nodes `n0`, `n1` and so on over one store.
struct Cluster {
    store: Arc<InMemoryStore>,
    nodes: Vec<Member>,
}

impl Cluster {
    async fn of(count: usize) -> Self {
        Self::with(count, |_| {}).await
    }

    async fn with(count: usize, change: impl Fn(&mut Settings)) -> Self {
        let mut cluster = Self { store: Arc::default(), nodes: Vec::new() };
        for number in 0..count {
            let mut settings = settings(&format!("n{number}"));
            change(&mut settings);
            cluster.nodes.push(Member::start(settings, &cluster.store).await);
        }
        cluster.all_see(count).await;
        cluster
    }

    /// Waits until every node sees so many, itself included.
    async fn all_see(&self, count: usize) {
        eventually("all nodes see each other", || async {
            let mut living = self.nodes.iter().filter(|member| member.node.cubes().is_alive());
            living.all(|member| member.node.cubes().view().others.len() + 1 == count)
        })
        .await;
    }

    /// The number of the node that owns a cube, if somebody ever did.
    async fn owner(&self, cube: &str) -> Option<usize> {
        let (tenant, cube) = (TenantId::new(TENANT), CubeId::new(cube));
        let key = keys::ownership(&tenant.expect("valid"), &cube.expect("valid"));
        let output = self.store.read(vec![RangeRead::key(key)]).await.expect("read");
        let entry = output.pages[0].entries.first()?;
        let row: Ownership = decode(&entry.value).expect("an ownership row");
        let number = row.node.as_str().strip_prefix('n').expect("one of ours");
        Some(number.parse().expect("a number"))
    }

    async fn stop(self) {
        for member in self.nodes {
            member.inner.stop().await;
        }
    }
}

/// Name and condition of every node, as one of them tells it.
async fn conditions(node: &TestNode) -> Vec<(String, String)> {
    let answer = node.client.get("/v1/nodes").await.expect(200);
    let text = |node: &Value, name: &str| node[name].as_str().expect("a text").to_owned();
    let nodes = answer["nodes"].as_array().expect("a list");
    nodes.iter().map(|node| (text(node, "id"), text(node, "condition"))).collect()
}

fn write_file(directory: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_answers_for_any_cube() {
    let cluster = Cluster::of(3).await;
    let mut owners = [0; 3];
    for number in 0..12 {
        let cube = format!("c{number}");
        let client = |turn: usize| &cluster.nodes[(number + turn) % 3].client;
        client(0).cube(&cube).await;
        client(1).fact(&cube, "Ann moved to Lisbon in May").await;
        client(2).fact(&cube, "Ben plays the cello").await;
        for turn in 0..3 {
            let found = client(turn).search(&cube, "where does Ann live").await;
            assert_eq!(found.first().map(String::as_str), Some("Ann moved to Lisbon in May"));
            assert_eq!(client(turn).texts(&cube).await.len(), 2, "everybody sees both");
        }
        owners[cluster.owner(&cube).await.expect("it is hot")] += 1;
    }
    assert!(owners.iter().filter(|count| **count > 0).count() > 1, "all on one: {owners:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_who_is_there() {
    let cluster = Cluster::of(2).await;
    for (number, member) in cluster.nodes.iter().enumerate() {
        let answer = member.client.get("/v1/nodes").await.expect(200);
        for (other, node) in answer["nodes"].as_array().expect("a list").iter().enumerate() {
            assert_eq!(node["id"], format!("n{other}"));
            assert_eq!(node["condition"], "alive");
            assert_eq!(node["is_me"], number == other);
            assert_eq!(node["address"], cluster.nodes[other].transport.address());
        }
        assert_eq!(member.client.get("/readyz").await.expect(200)["cluster"], true);
    }
    // One that leaves says so, and the others need not wait until it counts as dead.
    let Cluster { store: _store, mut nodes } = cluster;
    let leaver = nodes.pop().expect("a node");
    leaver.inner.stop().await;
    assert_eq!(conditions(&nodes[0]).await[1], ("n1".to_owned(), "left".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_alone_lists_itself_and_moves_nothing() {
    let node = TestNode::start().await;
    let answer = node.client.get("/v1/nodes").await.expect(200);
    let alone = serde_json::json!([
        { "id": "local", "condition": "alive", "is_me": true, "address": null }
    ]);
    assert_eq!(answer["nodes"], alone);
    node.client.cube("c").await;
    let table = r#"
POST /v1/cubes/c/hand-over {"node": "n1"}
    422 invalid: this node is not one of several
POST /v1/cubes/nobody/hand-over {"node": "n1"}
    404 not_found: there is no cube `nobody`
POST /v1/cubes/c/hand-over {"to": "n1"}
    422 invalid: body at …: unknown field `to`, expected `node`…
POST /v1/cubes/c/hand-over {"node": ""}
    422 invalid: body at …: invalid node id: it is empty…
GET /v1/cubes/c/hand-over
    405 invalid: `/v1/cubes/c/hand-over` does not take GET
"#;
    crate::support::check_table(&node.client, "", crate::support::Answer::summary, table).await;
}

/// A key that one node let in works at the others, which had started before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_works_everywhere() {
    let cluster = Cluster::of(2).await;
    let key = "mck_another_key_of_another_person";
    let stranger = cluster.nodes[0].client.with_authorization(Some(&format!("Bearer {key}")));
    assert_eq!(stranger.get("/v1/cubes").await.status, 401);
    let second = &cluster.nodes[1].node;
    let gate = memcube::gateway::TenantGate::open(second.store()).await.expect("opened");
    gate.admit(second.store(), second.environment(), key, "another").await.expect("admitted");
    assert_eq!(stranger.get("/v1/cubes").await.status, 200);
    cluster.stop().await;
}

/// The whole of it from settings, as `memcube serve` starts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_enough() {
    let store = Arc::new(InMemoryStore::default());
    let mut nodes = Vec::new();
    for name in ["n0", "n1"] {
        let builder = Node::builder().with_settings(settings(name));
        nodes.push(TestNode::build(builder.with_store(Arc::clone(&store) as _)).await);
    }
    nodes[0].client.cube("c").await;
    eventually("a cube is moved", || async {
        let body = serde_json::json!({ "node": "n1" });
        nodes[0].client.post("/v1/cubes/c/hand-over", body).await.status == 200
    })
    .await;
    nodes[0].client.fact("c", "it crossed the wire").await;
    assert_eq!(nodes[1].client.texts("c").await, ["it crossed the wire"]);
    let mut wrong = settings("n2");
    wrong.cluster.secret = None;
    wrong.cluster.dead_after_ms = 1;
    let builder = Node::builder().with_settings(wrong).with_store(store);
    let error = Box::pin(builder.start()).await.err().expect("it is refused").to_string();
    assert!(error.contains("cluster.secret") && error.contains("cluster.dead-after-ms"), "{error}");
    for node in nodes {
        node.stop().await;
    }
}

/// The commands, asking a node that has not got the cube.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_may_ask_any_node() {
    let cluster = Cluster::of(2).await;
    cluster.nodes[0].client.cube("c").await;
    cluster.nodes[0].client.fact("c", "it moves").await;
    let home = tempfile::tempdir().expect("a directory");
    let run = |asked: usize, arguments: &[&str]| {
        let mut command = crate::support::memcube(home.path(), arguments);
        command.args(["--server", &cluster.nodes[asked].client.address]);
        let output = command.output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    for target in [1, 0, 1] {
        let name = format!("n{target}");
        for asked in [0, 1] {
            let (is_good, said) = run(asked, &["cube", "hand-over", "c", "--to", &name]);
            assert!(is_good && said == format!("`c` is on `{name}` now\n"), "{said}");
            assert_eq!(cluster.owner("c").await, Some(target));
        }
    }
    let (is_good, said) = run(1, &["nodes"]);
    let rows: Vec<Vec<&str>> = said.lines().map(|row| row.split_whitespace().collect()).collect();
    assert!(is_good && rows.len() == 3, "{said}");
    assert_eq!(rows[1][..2], ["n0", "alive"]);
    assert_eq!(rows[2][..2], ["n1", "alive"]);
    assert_eq!((rows[1].len(), rows[2].len()), (3, 4), "the one that answers is marked: {said}");
    let (is_good, said) = run(0, &["cube", "hand-over", "c", "--to", "n9"]);
    assert!(!is_good && said.contains("the node `n9` is not alive"), "{said}");
    cluster.stop().await;
}

/// A command that finds no server must not pose as the node whose settings it reads.
#[test]
fn a_command_never_joins_the_cluster() {
    let home = tempfile::tempdir().expect("a directory");
    let text = format!(
        "[store]\nkind = \"foundationdb\"\ndata-dir = \"{0}\"\n\
         [cluster]\nenabled = true\nnode = \"n0\"\nsecret = \"{SECRET}\"\n",
        home.path().display()
    );
    let file = write_file(home.path(), "node.toml", &text);
    let arguments = ["nodes", "--config", file.to_str().expect("a plain path")];
    let output = crate::support::memcube(home.path(), &arguments).output().expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && said.contains("name any node with `--server`"), "{said}");
}

/// What the settings get wrong is told before anything is opened.
#[test]
fn a_server_refuses_a_cluster_without_a_shared_store() {
    let home = tempfile::tempdir().expect("a directory");
    let text = "[cluster]\nenabled = true\nlisten = \"0.0.0.0:7701\"\n";
    let file = write_file(home.path(), "node.toml", text);
    let mut command = crate::support::serve_command(home.path());
    command.arg("--config").arg(file);
    let (status, said) = crate::support::run(command);
    assert!(!status.success());
    for part in
        ["cluster.node", "cluster.secret", "there is no TLS", "cluster.advertise", "store.kind"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
}
