//! The transport by itself: what arrives, what is lost, and that it comes back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use memcube::{
    actors::cluster::{Inbox, Transport},
    cluster::HttpTransport,
    schemas::limits::{PEER_FRAME_BYTES_COUNTED_MIN, PEER_FRAME_BYTES_MAX, PEER_SENDING_BYTES_MAX},
    settings::{ClusterSettings, Secret},
};
use tokio::net::TcpListener;

use super::{node_id, settings};
use crate::support::eventually;

/// Keeps what arrives.
#[derive(Default)]
pub(super) struct Arrivals(Mutex<Vec<Vec<u8>>>);

impl Arrivals {
    pub(super) fn count(&self) -> usize {
        self.0.lock().expect("not poisoned").len()
    }

    pub(super) fn has(&self, frame: &[u8]) -> bool {
        self.0.lock().expect("not poisoned").iter().any(|arrived| arrived == frame)
    }
}

impl Inbox for Arrivals {
    fn deliver(&self, frame: Vec<u8>) {
        self.0.lock().expect("not poisoned").push(frame);
    }
}

/// One end of the wire, without a node behind it.
pub(super) struct End {
    pub(super) transport: Arc<HttpTransport>,
    pub(super) arrivals: Arc<Arrivals>,
}

impl End {
    pub(super) async fn bind(name: &str, settings: &ClusterSettings) -> Self {
        let transport = HttpTransport::bind(node_id(name), settings).await.expect("it listens");
        let arrivals = Arc::new(Arrivals::default());
        let inbox: Arc<dyn Inbox> = Arc::clone(&arrivals) as _;
        transport.listen(Arc::downgrade(&inbox) as Weak<dyn Inbox>);
        Self { transport, arrivals }
    }

    pub(super) async fn plain(name: &str) -> Self {
        Self::bind(name, &settings(name).cluster).await
    }

    pub(super) fn meet(&self, name: &str, address: impl ToString) {
        self.transport.meet(&BTreeMap::from([(node_id(name), address.to_string())]));
    }

    /// Sends until something arrives.
    pub(super) async fn reaches(&self, name: &str, other: &Self) {
        let frame = format!("for {name}, after {}", other.arrivals.count()).into_bytes();
        eventually(&format!("`{name}` is reached"), || async {
            self.transport.send(&node_id(name), frame.clone());
            tokio::time::sleep(Duration::from_millis(20)).await;
            other.arrivals.has(&frame)
        })
        .await;
    }

    /// Sends for a while, and nothing arrives.
    pub(super) async fn never_reaches(&self, name: &str, other: &Self) {
        let before = other.arrivals.count();
        for _ in 0..20 {
            self.transport.send(&node_id(name), b"unheard".to_vec());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(other.arrivals.count(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_whole_whatever_their_size_and_name() {
    let name = "knoten zwei/ü%";
    let (a, b) = (End::plain("a").await, End::plain(name).await);
    a.meet(name, b.transport.address());
    for size in [0, 1, 70_000, 3 << 20, 40 << 20] {
        let frame: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
        a.transport.send(&node_id(name), frame.clone());
        eventually(&format!("{size} bytes arrive"), || async { b.arrivals.has(&frame) }).await;
    }
    assert_eq!(b.arrivals.count(), 5, "each once");
    // It has heard where `a` is, and can answer before the membership tells.
    b.transport.send(&node_id("a"), b"back".to_vec());
    eventually("an answer arrives", || async { a.arrivals.has(b"back") }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_too_large_or_for_nobody_are_lost_and_others_are_not() {
    let (a, b) = (End::plain("a").await, End::plain("b").await);
    a.meet("b", b.transport.address());
    a.transport.send(&node_id("b"), vec![0; PEER_FRAME_BYTES_MAX + 1]);
    a.transport.send(&node_id("nobody"), vec![0; 10]);
    a.reaches("b", &b).await;
    assert!(b.arrivals.0.lock().expect("not poisoned").iter().all(|frame| frame.len() < 100));
    // The address of `b` in place of that of `c`: frames for `c` are none of `b`'s business.
    a.meet("c", b.transport.address());
    a.never_reaches("c", &b).await;
}

/// A listener that takes connections and never says anything, as a frozen process does.
async fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("it listens");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// What waits for a silent node has a bound in number, and sending never blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_holds_nobody_up() {
    let a = End::plain("a").await;
    let (_listener, address) = silent().await;
    let healthy = End::plain("h").await;
    let others = BTreeMap::from([
        (node_id("silent"), address.to_string()),
        (node_id("h"), healthy.transport.address()),
    ]);
    a.transport.meet(&others);
    let places = PEER_SENDING_BYTES_MAX / PEER_FRAME_BYTES_COUNTED_MIN;
    let start = Instant::now();
    for _ in 0..places + 1_000 {
        a.transport.send(&node_id("silent"), vec![7; 100]);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "sending took {:?}", start.elapsed());
    let start = Instant::now();
    a.reaches("h", &healthy).await;
    assert!(start.elapsed() < Duration::from_secs(2), "`h` was held up {:?}", start.elapsed());
}

/// A node that froze and comes back on the same address is reached again, without a restart of the
/// others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_silent_is_reached_again() {
    check_recovery(settings("a").cluster, settings("b").cluster).await;
}

pub(super) async fn check_recovery(mine: ClusterSettings, mut theirs: ClusterSettings) {
    let a = End::bind("a", &mine).await;
    let (listener, address) = silent().await;
    a.meet("b", format!("localhost:{}", address.port()));
    for _ in 0..10 {
        a.transport.send(&node_id("b"), b"into the void".to_vec());
    }
    // Its end of the connections stays open for the whole test.
    let mut held = Vec::new();
    let hold = async {
        loop {
            held.push(listener.accept().await.expect("a connection"));
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), hold).await;
    assert!(!held.is_empty(), "it was asked");
    drop(listener);
    theirs.listen = address;
    let b = End::bind("b", &theirs).await;
    let start = Instant::now();
    a.reaches("b", &b).await;
    assert!(start.elapsed() < Duration::from_secs(6), "it took {:?}", start.elapsed());
    // And once more when its process is killed and started anew.
    b.transport.cut();
    drop(b);
    let mut again = None;
    eventually("the port is free again", || {
        again = std::net::TcpListener::bind(address).ok();
        let is_free = again.take().is_some();
        async move { is_free }
    })
    .await;
    let b = End::bind("b", &theirs).await;
    a.reaches("b", &b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_secret_is_neither_heard_nor_told_anything() {
    let (a, mut other) = (End::plain("a").await, settings("b").cluster);
    other.secret = Some(Secret::new("another secret!!".replace(' ', "-")));
    let b = End::bind("b", &other).await;
    a.meet("b", b.transport.address());
    b.meet("a", a.transport.address());
    a.never_reaches("b", &b).await;
    b.never_reaches("a", &a).await;
}

/// What is on its way when a node stops in order still arrives, and nothing after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_words_arrive() {
    let (a, b) = (End::plain("a").await, End::plain("b").await);
    a.meet("b", b.transport.address());
    for number in 0..500_u32 {
        a.transport.send(&node_id("b"), number.to_be_bytes().to_vec());
    }
    a.transport.close().await;
    assert_eq!(b.arrivals.count(), 500);
    b.meet("a", a.transport.address());
    b.never_reaches("a", &a).await;
}
