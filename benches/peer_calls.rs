//! What it costs to ask a cube on another node: two nodes in one process, over loopback sockets,
//! without TLS and with it, against asking the node that has the cube.
//!
//! Every call reads one page of a cube that is hot, and the owner confirms with the store (in RAM)
//! that it still is. Run it through `peer_calls.sh`. Option: `--seconds N`.

#![expect(clippy::print_stdout, reason = "it is a program that prints a table")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use memcube::{
    AddRequest, CubeHandle, Node, Settings, TenantContext,
    actors::storage::InMemoryStore,
    schemas::{CubeId, NodeId, TenantId},
    settings::{EmbedderKind, Secret},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

const CALLERS: usize = 64;
const ITEMS: usize = 10;

fn main() {
    // `cargo bench` passes `--bench`.
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().position(|argument| argument == "--seconds");
    let seconds = seconds.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(5);
    let duration = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    println!(
        "| the cube is asked | p50 (µs) | p99 (µs) | calls/s, 1 caller | calls/s, {CALLERS} |"
    );
    println!("|---|---|---|---|---|");
    let directory = tempfile::tempdir().expect("a directory");
    for (name, is_remote, tls) in [
        ("where it is", false, None),
        ("from another node", true, None),
        ("from another node, TLS", true, Some(directory.path())),
    ] {
        let line = runtime.block_on(Box::pin(measure(is_remote, tls, duration)));
        println!("| {name} {line}");
    }
}

async fn measure(is_remote: bool, tls: Option<&Path>, duration: Duration) -> String {
    let store = Arc::new(InMemoryStore::default());
    let authority = authority();
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let mut settings = settings(name);
        if let Some(directory) = tls {
            certify(&authority, directory, name, &mut settings);
        }
        let builder = Node::builder().with_settings(settings).with_store(Arc::clone(&store) as _);
        nodes.push(Box::pin(builder.start()).await.expect("a node"));
    }
    while nodes.iter().any(|node| node.cubes().view().others.is_empty()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let tenant = TenantId::new("bench").expect("valid");
    let context = TenantContext::authenticated(tenant, "bench");
    let id = CubeId::new("asked").expect("valid");
    nodes[0].cubes().create(&context, id.clone(), None, None).await.expect("a cube");
    for number in 0..ITEMS {
        let text = format!("item {number} of a page that somebody reads");
        let cube = nodes[0].cubes().cube(&context, id.clone());
        let request = AddRequest { facts: vec![text], ..AddRequest::default() };
        cube.add(request).await.expect("added");
    }
    let owner = NodeId::new("b").expect("valid");
    nodes[0].cubes().hand_over(&context, &id, &owner).await.expect("handed over");
    let asked = if is_remote { &nodes[0] } else { &nodes[1] };
    let cube = asked.cubes().cube(&context, id);
    calls(&cube, 1, duration / 5).await;
    let mut took = calls(&cube, 1, duration).await;
    let many = calls(&cube, CALLERS, duration).await.len();
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_micros();
    let per_second = |calls: usize| calls as f64 / duration.as_secs_f64();
    for node in nodes {
        node.shut_down().await;
    }
    format!(
        "| {} | {} | {:.0} | {:.0} |",
        at(0.5),
        at(0.99),
        per_second(took.len()),
        per_second(many)
    )
}

/// How long each call took that so many callers made, each the next when it had an answer.
async fn calls(cube: &CubeHandle, callers: usize, duration: Duration) -> Vec<Duration> {
    let until = Instant::now() + duration;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let cube = cube.clone();
        running.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                let start = Instant::now();
                let page = cube.list(None, ITEMS).await.expect("an answer");
                assert_eq!(page.items.len(), ITEMS);
                took.push(start.elapsed());
            }
            took
        });
    }
    running.join_all().await.into_iter().flatten().collect()
}

fn settings(name: &str) -> Settings {
    let mut settings = Settings::default();
    settings.embedder.kind = EmbedderKind::None;
    settings.cluster.enabled = true;
    settings.cluster.node = Some(NodeId::new(name).expect("valid"));
    settings.cluster.listen = "127.0.0.1:0".parse().expect("valid");
    settings.cluster.secret = Some(Secret::new("0123456789abcdef"));
    settings
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("signed")
}

fn certify(
    authority: &CertifiedIssuer<'static, KeyPair>,
    directory: &Path,
    name: &str,
    settings: &mut Settings,
) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, authority).expect("signed");
    let write = |kind: &str, text: &str| {
        let path = directory.join(format!("{name}-{kind}.pem"));
        std::fs::write(&path, text).expect("written");
        Some(path)
    };
    settings.cluster.tls_ca = write("ca", &authority.pem());
    settings.cluster.tls_cert = write("cert", &certificate.pem());
    settings.cluster.tls_key = write("key", &key.serialize_pem());
}
