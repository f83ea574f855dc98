//! Nodes that check each other's certificates.

use std::path::Path;

use memcube::{actors::cluster::Transport, cluster::HttpTransport, settings::ClusterSettings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

use super::{
    Cluster,
    network::{End, check_recovery},
    node_id, settings, write_file,
};

/// Signs certificates of nodes.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("signed") }
    }

    /// Settings of a node with a certificate for these hosts; it trusts this authority.
    fn settings(&self, directory: &Path, name: &str, hosts: &[&str]) -> ClusterSettings {
        let key = KeyPair::generate().expect("a key");
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let params = CertificateParams::new(hosts).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let file = |kind: &str, text: &str| {
            Some(write_file(directory, &format!("{name}-{kind}.pem"), text))
        };
        ClusterSettings {
            tls_ca: file("ca", &self.issuer.pem()),
            tls_cert: file("cert", &certificate.pem()),
            tls_key: file("key", &key.serialize_pem()),
            ..settings(name).cluster
        }
    }
}

const HERE: [&str; 2] = ["127.0.0.1", "localhost"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_form_a_cluster() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let cluster = Cluster::with(2, |settings| {
        let name = settings.cluster.node.clone().expect("a name");
        settings.cluster = authority.settings(directory.path(), name.as_str(), &HERE);
    })
    .await;
    for number in 0..8 {
        let cube = format!("c{number}");
        cluster.nodes[0].client.cube(&cube).await;
        cluster.nodes[1].client.fact(&cube, "nobody listened").await;
        assert_eq!(cluster.nodes[0].client.texts(&cube).await, ["nobody listened"]);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_opens_no_door() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ours, theirs) = (Authority::new(), Authority::new());
    let a = End::bind("a", &ours.settings(directory.path(), "a", &HERE)).await;
    let b = End::bind("b", &ours.settings(directory.path(), "b", &HERE)).await;
    // It knows the secret, but its certificate is its own, and so is its trust.
    let stranger = End::bind("c", &theirs.settings(directory.path(), "c", &HERE)).await;
    // This one trusts our authority, but has no certificate of it.
    let mut mixed = theirs.settings(directory.path(), "d", &HERE);
    let bundle = format!("{}{}", ours.issuer.pem(), theirs.issuer.pem());
    mixed.tls_ca = Some(write_file(directory.path(), "bundle.pem", &bundle));
    let mixed = End::bind("d", &mixed).await;
    let plain = End::plain("e").await;
    a.meet("b", b.transport.address());
    a.reaches("b", &b).await;
    for (name, other) in [("c", &stranger), ("d", &mixed), ("e", &plain)] {
        a.meet(name, other.transport.address());
        a.never_reaches(name, other).await;
        other.meet("a", a.transport.address());
        other.never_reaches("a", &a).await;
    }
    a.meet("b", b.transport.address());
    a.reaches("b", &b).await;
}

/// A certificate counts for the host that it names only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_host_is_not_taken() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let a = End::bind("a", &authority.settings(directory.path(), "a", &HERE)).await;
    let mut elsewhere = authority.settings(directory.path(), "b", &["node-b.internal"]);
    elsewhere.advertise = Some("node-b.internal:0".to_owned());
    let b = End::bind("b", &elsewhere).await;
    a.meet("b", b.transport.local_address());
    a.never_reaches("b", &b).await;
    b.meet("a", a.transport.address());
    b.reaches("a", &a).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_silent_is_reached_again_with_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let mine = authority.settings(directory.path(), "a", &HERE);
    let theirs = authority.settings(directory.path(), "b", &HERE);
    check_recovery(mine, theirs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_no_use_are_told_at_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = ours.settings(directory.path(), "a", &HERE);
    let other = theirs.settings(directory.path(), "b", &HERE);
    let host = ours.settings(directory.path(), "c", &["node-c.internal"]);
    let garbage = Some(write_file(directory.path(), "garbage.pem", "no certificate"));
    let missing = Some(directory.path().join("missing.pem"));
    type Change = Box<dyn Fn(&mut ClusterSettings)>;
    let table: [(Change, &str); 7] = [
        (Box::new(|_| {}), ""),
        (
            Box::new({
                let missing = missing.clone();
                move |s| s.tls_ca.clone_from(&missing)
            }),
            "`cluster.tls-ca` `…missing.pem` is of no use: …",
        ),
        (
            Box::new({
                let garbage = garbage.clone();
                move |s| s.tls_cert.clone_from(&garbage)
            }),
            "`cluster.tls-cert` `…garbage.pem` is of no use: there is no certificate in it",
        ),
        (
            Box::new(move |s| s.tls_key.clone_from(&garbage)),
            "`cluster.tls-key` `…garbage.pem` is of no use: …",
        ),
        (
            Box::new({
                let other = other.clone();
                move |s| s.tls_cert.clone_from(&other.tls_cert)
            }),
            "`cluster.tls-cert` `…b-cert.pem` is of no use: …",
        ),
        (
            Box::new(move |s| s.tls_key.clone_from(&other.tls_key)),
            "`cluster.tls-cert` `…` and `cluster.tls-key` `…` do not work together: …",
        ),
        (
            Box::new(move |s| {
                s.tls_cert.clone_from(&host.tls_cert);
                s.tls_key.clone_from(&host.tls_key);
            }),
            "`cluster.tls-cert` `…c-cert.pem` is of no use: …",
        ),
    ];
    for (row, (change, expected)) in table.into_iter().enumerate() {
        let mut settings = good.clone();
        change(&mut settings);
        let bound = HttpTransport::bind(node_id("a"), &settings).await;
        let told = bound.err().map(|error| error.message().to_owned()).unwrap_or_default();
        crate::support::assert_says(&told, expected, &format!("row {row}"));
    }
}
