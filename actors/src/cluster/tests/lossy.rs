//! Networks that lose frames: without a word, or saying so.

use std::sync::{
    Mutex, Weak,
    atomic::{AtomicBool, Ordering},
};

use memcube_schemas::{
    Incarnation,
    limits::CUBE_CALL_MS_MAX,
    peer::{PeerAnswer, PeerBody, PeerCall, PeerFrame},
};
use tokio::{sync::watch, time::Instant};

use super::*;
use crate::cluster::{
    Inbox, View,
    peers::{Peers, Unanswered},
};

/// Sends frames of a node, or does not.
struct Lossy {
    inner: Arc<dyn Transport>,
    inbox: Mutex<Option<Weak<dyn Inbox>>>,
    is_cut: AtomicBool,
    /// Whether it tells of frames that it lost.
    tells: bool,
}

impl Lossy {
    fn over(inner: Arc<dyn Transport>, tells: bool) -> Arc<Self> {
        let is_cut = AtomicBool::new(false);
        Arc::new(Self { inner, inbox: Mutex::default(), is_cut, tells })
    }

    fn cut(&self, yes: bool) {
        self.is_cut.store(yes, Ordering::Relaxed);
    }

    fn inbox(&self) -> Arc<dyn Inbox> {
        let inbox = self.inbox.lock().expect("not poisoned").clone();
        inbox.and_then(|inbox| inbox.upgrade()).expect("somebody listens")
    }
}

impl Transport for Lossy {
    fn send(&self, to: &NodeId, frame: Vec<u8>) {
        if !self.is_cut.load(Ordering::Relaxed) {
            self.inner.send(to, frame);
        } else if self.tells {
            self.inbox().undelivered(&frame);
        }
    }

    fn listen(&self, inbox: Weak<dyn Inbox>) {
        *self.inbox.lock().expect("not poisoned") = Some(Weak::clone(&inbox));
        self.inner.listen(inbox);
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

/// Two nodes; what the second one sends goes through the network that is returned, and the first
/// one owns `ann`.
async fn two_nodes(tells: bool) -> (World, Arc<Lossy>) {
    let mut world = World::of(1).await;
    let environment = world.next_environment();
    let lossy = Lossy::over(world.hub.transport(node(1), environment.clone()), tells);
    let transport = Arc::clone(&lossy);
    world.start_over(transport, 1, environment, None).await;
    settle().await;
    world.make("ann").await;
    world.cube(0, "ann").add(fact("first")).await.expect("added");
    if world.number_of(&world.owner("ann").await) != 0 {
        world.hand_over("ann", 0, 0).await.expect("handed over");
    }
    (world, lossy)
}

#[tokio::test(start_paused = true)]
async fn a_change_that_certainly_reached_nobody_is_sent_again() {
    let (world, lossy) = two_nodes(true).await;
    lossy.cut(true);
    let mend = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        lossy.cut(false);
    };
    let cube = world.cube(1, "ann");
    let (added, ()) = tokio::join!(cube.add(fact("second")), mend);
    added.expect("it was sent again, without doubt that it happened before");
    assert_eq!(texts(&world.cube(0, "ann")).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_may_have_arrived_is_not_sent_again() {
    let (world, lossy) = two_nodes(false).await;
    lossy.cut(true);
    let refused = world.cube(1, "ann").add(fact("second")).await.expect_err("no answer");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("outcome is unknown"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_for_a_node_that_lives_and_does_not_answer_than_for_a_cube() {
    for tells in [true, false] {
        let (world, lossy) = two_nodes(tells).await;
        lossy.cut(true);
        let start = Instant::now();
        let refused = world.cube(1, "ann").list(None, 1).await.expect_err("out of reach");
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        assert_eq!(refused.message().contains("`node-0` cannot be reached"), tells, "{refused}");
        let limit = Duration::from_millis(CUBE_CALL_MS_MAX + 100);
        assert!(start.elapsed() < limit, "it took {:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_no_frame_holds_is_refused() {
    let (world, _lossy) = two_nodes(true).await;
    let name = "x".repeat(memcube_schemas::limits::PEER_FRAME_BYTES_MAX);
    let context = TenantContext::authenticated(context().tenant().clone(), name);
    let cube = world.nodes[1].cube(&context, cube_id("ann"));
    let refused = cube.list(None, 1).await.expect_err("too large");
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
}

/// Only the call itself that came back counts, not an answer or a call of another life.
#[tokio::test(start_paused = true)]
async fn frames_that_come_back_are_told_apart() {
    let hub = LocalHub::new();
    let environment = Environment::scripted(1);
    let lossy = Lossy::over(hub.transport(node(0), environment.clone()), true);
    let (views, view) = watch::channel(View::alone(node(0), Incarnation(1)));
    let peers = Peers::start(Arc::clone(&lossy) as Arc<dyn Transport>, environment, view);
    views.send_modify(|view| view.others.extend([(node(1), Incarnation(2))]));
    let call = || PeerCall::Prepare { tenant: context().tenant().clone(), cube: cube_id("ann") };
    let sent = |call: u64, from: u64, to: u64, body| {
        encode(&PeerFrame {
            from: node(0),
            from_incarnation: Incarnation(from),
            to_incarnation: Incarnation(to),
            call,
            body,
        })
    };
    let called = node(1);
    let mut calling = std::pin::pin!(peers.call(&called, call()));
    assert!(futures_util::poll!(&mut calling).is_pending(), "`n1` is not there");
    for strange in [
        sent(1, 1, 2, PeerBody::Answer(PeerAnswer::Done)),
        sent(1, 9, 2, PeerBody::Call(call())),
        sent(1, 1, 9, PeerBody::Call(call())),
        sent(7, 1, 2, PeerBody::Call(call())),
        b"no frame".to_vec(),
    ] {
        lossy.inbox().undelivered(&strange);
        assert!(futures_util::poll!(&mut calling).is_pending());
    }
    lossy.inbox().undelivered(&sent(1, 1, 2, PeerBody::Call(call())));
    assert_eq!(calling.await, Err(Unanswered::NotSent));
}
