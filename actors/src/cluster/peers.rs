//! Calls from node to node over a transport that loses, repeats and reorders.
//!
//! Invariant: a call is executed at most once. A receiver executes a number once in a life of the
//! sender, and only what is meant for its own present life; whatever it cannot tell apart from a
//! repetition it drops. So a caller that hears nothing does not know, and says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    Incarnation, NodeId,
    codec::{decode, encode},
    limits::{
        CUBE_CALL_MS_MAX, PEER_CALLS_MAX, PEER_CHANGE_MS_MAX, PEER_FRAME_BYTES_MAX,
        PEER_READ_MS_MAX, PEER_SERVING_MAX, PEER_WINDOW_CALLS, PEER_WINDOW_KEPT_MS,
    },
    peer::{PeerAnswer, PeerBody, PeerCall, PeerFailure, PeerFrame},
};
use tokio::sync::{Semaphore, oneshot, watch};

use super::{
    placement::View,
    transport::{Inbox, Transport},
};
use crate::{
    defects::Defect,
    directory::QueueDepth,
    environment::Environment,
    error::{Error, Result},
    metrics as names,
};

/// Lives of senders whose numbers are kept at the same time.
const SENDERS_MAX: usize = 1_024;

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It was not sent: nothing happened.
    NotSent,
    /// Too many wait already; it was not sent.
    Full,
    /// It does not fit into a frame; it was not sent.
    TooLarge,
    /// It may have been executed, and may still be.
    Lost,
}

/// Executes what other nodes ask.
pub(crate) trait Serve: Send + Sync + 'static {
    fn serve(self: Arc<Self>, from: NodeId, call: PeerCall) -> BoxFuture<'static, PeerAnswer>;
}

/// The other nodes, as this one calls them.
pub(crate) struct Peers {
    transport: Arc<dyn Transport>,
    environment: Environment,
    views: watch::Receiver<View>,
    server: OnceLock<Weak<dyn Serve>>,
    serving: Arc<Semaphore>,
    is_closed: AtomicBool,
    is_killed: AtomicBool,
    state: Mutex<State>,
    myself: Weak<Self>,
}

#[derive(Default)]
struct State {
    last_call: u64,
    pending: BTreeMap<u64, Pending>,
    /// Numbers seen of each sender, until it is long dead.
    windows: BTreeMap<Incarnation, Window>,
}

struct Pending {
    /// The life of this node that asks: numbers of calls start anew with each.
    from: Incarnation,
    to: Incarnation,
    reply: oneshot::Sender<std::result::Result<PeerAnswer, Unanswered>>,
}

/// The newest numbers of one sender; what lies below counts as seen.
#[derive(Default)]
struct Window {
    seen: BTreeSet<u64>,
    floor: u64,
    /// Since when the sender is not seen alive.
    gone_since_us: Option<u64>,
}

impl Window {
    /// Whether it is still needed: frames of a sender that is gone may arrive for a while.
    fn is_kept(&mut self, is_alive: bool, now_us: u64) -> bool {
        if is_alive {
            self.gone_since_us = None;
            return true;
        }
        let since_us = *self.gone_since_us.get_or_insert(now_us);
        now_us.saturating_sub(since_us) < PEER_WINDOW_KEPT_MS * 1_000
    }

    /// Whether a number is new.
    fn admits(&mut self, call: u64) -> bool {
        if call <= self.floor || !self.seen.insert(call) {
            return false;
        }
        if self.seen.len() > PEER_WINDOW_CALLS {
            self.floor = self.seen.pop_first().unwrap_or(self.floor);
        }
        true
    }
}

impl Peers {
    /// Begins to listen. Calls are refused until somebody serves them.
    pub(crate) fn start(
        transport: Arc<dyn Transport>,
        environment: Environment,
        views: watch::Receiver<View>,
    ) -> Arc<Self> {
        let peers = Arc::new_cyclic(|myself| Self {
            transport: Arc::clone(&transport),
            environment,
            views,
            server: OnceLock::new(),
            serving: Arc::new(Semaphore::new(PEER_SERVING_MAX)),
            is_closed: AtomicBool::new(false),
            is_killed: AtomicBool::new(false),
            state: Mutex::default(),
            myself: Weak::clone(myself),
        });
        let inbox: Weak<dyn Inbox> = peers.myself.clone();
        transport.listen(inbox);
        peers.drop_calls_to_the_dead();
        peers
    }

    /// Says who executes calls.
    pub(crate) fn serve_with(&self, server: Weak<dyn Serve>) {
        // Only the first one counts; there is one directory a node.
        let _ = self.server.set(server);
    }

    /// Executes no further call: the others are sent elsewhere.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Lets the last answers leave, then takes this node off the network.
    pub(crate) async fn hang_up(&self) {
        self.transport.close().await;
    }

    /// Neither sends nor hears anything any more, as after a crash.
    pub(crate) fn kill(&self) {
        self.close();
        self.is_killed.store(true, Ordering::Release);
        self.state().pending.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("invariant: nothing panics while it holds the calls")
    }

    /// Asks a node, and waits for its answer.
    pub(crate) async fn call(
        &self,
        to: &NodeId,
        call: PeerCall,
    ) -> std::result::Result<PeerAnswer, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let patience = patience(&call);
        let (number, frame) = {
            let view = self.views.borrow();
            let life = view.others.get(to).copied().ok_or(Unanswered::NotSent)?;
            if self.is_killed.load(Ordering::Acquire) {
                return Err(Unanswered::NotSent);
            }
            let mut state = self.state();
            if state.pending.len() >= PEER_CALLS_MAX {
                return Err(Unanswered::Full);
            }
            state.last_call += 1;
            let number = state.last_call;
            state.pending.insert(number, Pending { from: view.incarnation, to: life, reply });
            (number, self.frame(&view, life, number, PeerBody::Call(call)))
        };
        let given_up = Forget { peers: self, number };
        if frame.len() > PEER_FRAME_BYTES_MAX {
            return Err(Unanswered::TooLarge);
        }
        self.transport.send(to, frame);
        let answered = tokio::time::timeout(patience, answer).await;
        drop(given_up);
        match answered {
            Ok(Ok(Err(unanswered))) => {
                metrics::counter!(names::PEER_CALLS_TOTAL, "outcome" => "unsent").increment(1);
                self.environment.reach("peers.call-unsent", to.as_str());
                Err(unanswered)
            }
            Ok(Ok(Ok(answer))) => {
                metrics::counter!(names::PEER_CALLS_TOTAL, "outcome" => "answered").increment(1);
                Ok(answer)
            }
            Ok(Err(_)) | Err(_) => {
                metrics::counter!(names::PEER_CALLS_TOTAL, "outcome" => "lost").increment(1);
                self.environment.reach("peers.answer-lost", to.as_str());
                Err(Unanswered::Lost)
            }
        }
    }

    fn frame(&self, view: &View, to: Incarnation, call: u64, body: PeerBody) -> Vec<u8> {
        encode(&PeerFrame {
            from: view.me.clone(),
            from_incarnation: view.incarnation,
            to_incarnation: to,
            call,
            body,
        })
    }

    /// Whoever waits for a life that has ended waits in vain: it is told at once.
    fn drop_calls_to_the_dead(self: &Arc<Self>) {
        let (mut views, myself) = (self.views.clone(), self.myself.clone());
        self.environment.spawn(async move {
            while views.changed().await.is_ok() {
                let Some(peers) = myself.upgrade() else { return };
                let view = views.borrow_and_update().clone();
                let is_alive = |life: &Incarnation| view.others.values().any(|other| other == life);
                let mut state = peers.state();
                state.pending.retain(|_, pending| is_alive(&pending.to));
                let now_us = peers.environment.monotonic_us();
                state.windows.retain(|life, window| window.is_kept(is_alive(life), now_us));
            }
        });
    }

    fn answer(&self, frame: PeerFrame, answer: PeerAnswer) {
        let PeerFrame { call, from_incarnation, to_incarnation, .. } = frame;
        let mut state = self.state();
        let asked = state.pending.get(&call).filter(|pending| pending.from == to_incarnation);
        let is_expected = asked.is_some_and(|pending| pending.to == from_incarnation);
        if asked.is_some() && !is_expected && answer == PeerAnswer::WrongLife {
            // The life that was asked is over. What it did with the call, nobody can say any more.
            state.pending.remove(&call);
        } else if is_expected && let Some(pending) = state.pending.remove(&call) {
            // Whoever asked may have given up.
            let _ = pending.reply.send(Ok(answer));
        }
    }

    fn execute(self: Arc<Self>, frame: PeerFrame, call: PeerCall) {
        let view = self.views.borrow().clone();
        if frame.to_incarnation != view.incarnation {
            self.environment.reach("peers.wrong-life", "");
            self.send_answer(&view, &frame, PeerAnswer::WrongLife);
            return;
        }
        let is_known = view.others.get(&frame.from) == Some(&frame.from_incarnation);
        if !self.is_new(&frame, is_known) {
            self.environment.reach("peers.repeated-frame", "");
            metrics::counter!(names::PEER_FRAMES_REPEATED_TOTAL).increment(1);
            return;
        }
        if !is_known {
            // A sender that this node has not seen yet, or takes for dead. The number counts as
            // seen all the same: whoever is told that nothing was done must be able to rely on it.
            self.send_answer(&view, &frame, PeerAnswer::WrongLife);
            return;
        }
        let Ok(place) = Arc::clone(&self.serving).try_acquire_owned() else {
            let error = Error::overloaded("the queue of calls from other nodes", 100);
            self.send_answer(&view, &frame, PeerAnswer::Failed(error.into()));
            return;
        };
        let server = self.server.get().and_then(Weak::upgrade);
        let Some(server) = server.filter(|_| view.is_serving && !self.is_closed()) else {
            // It is starting or shutting down: the caller looks again.
            self.send_answer(&view, &frame, PeerAnswer::WrongLife);
            return;
        };
        let environment = self.environment.clone();
        environment.spawn(async move {
            // Whoever asked has given up by then; a cube's place is given back when it answers.
            let limit = Duration::from_millis(CUBE_CALL_MS_MAX);
            let served = tokio::time::timeout(limit, server.serve(frame.from.clone(), call)).await;
            let answer = served.unwrap_or_else(|_| {
                PeerAnswer::Failed(Error::unavailable("the call took too long").into())
            });
            self.send_answer(&view, &frame, answer);
            drop(place);
        });
    }

    fn is_new(&self, frame: &PeerFrame, is_known: bool) -> bool {
        if self.environment.plants(Defect::DuplicateFrame) {
            return true;
        }
        let mut state = self.state();
        let is_stranger = !is_known && !state.windows.contains_key(&frame.from_incarnation);
        if is_stranger && state.windows.len() >= SENDERS_MAX {
            // Far more lives than an installation has nodes. This one gets no answer.
            return false;
        }
        state.windows.entry(frame.from_incarnation).or_default().admits(frame.call)
    }

    fn send_answer(&self, view: &View, asked: &PeerFrame, answer: PeerAnswer) {
        let body = PeerBody::Answer(answer);
        let mut frame = self.frame(view, asked.from_incarnation, asked.call, body);
        if frame.len() > PEER_FRAME_BYTES_MAX {
            let error = Error::invalid(format!(
                "the answer takes {} bytes between nodes, the limit is {PEER_FRAME_BYTES_MAX}: ask \
                 for less at once; if this was a change, it was made",
                frame.len()
            ));
            let body = PeerBody::Answer(PeerAnswer::Failed(error.into()));
            frame = self.frame(view, asked.from_incarnation, asked.call, body);
        }
        if !self.is_killed.load(Ordering::Acquire) {
            self.transport.send(&asked.from, frame);
        }
    }

    /// How full the queues between nodes are.
    pub(crate) fn queues(&self) -> [QueueDepth; 2] {
        let pending = self.state().pending.len();
        let serving = PEER_SERVING_MAX - self.serving.available_permits();
        [
            QueueDepth { name: "calls to other nodes", depth: pending, bound: PEER_CALLS_MAX },
            QueueDepth { name: "calls from other nodes", depth: serving, bound: PEER_SERVING_MAX },
        ]
    }
}

impl Inbox for Peers {
    fn undelivered(&self, frame: &[u8]) {
        // An answer that did not arrive is lost: whoever asked waits, and then does not know.
        let Ok(PeerFrame { from_incarnation, to_incarnation, call, body, .. }) = decode(frame)
        else {
            return;
        };
        let mut state = self.state();
        let asked = state.pending.get(&call).filter(|pending| {
            let is_mine = pending.from == from_incarnation && pending.to == to_incarnation;
            is_mine && matches!(body, PeerBody::Call(_))
        });
        if asked.is_some()
            && let Some(pending) = state.pending.remove(&call)
        {
            let _ = pending.reply.send(Err(Unanswered::NotSent));
        }
    }

    fn deliver(&self, frame: Vec<u8>) {
        let Some(peers) = self.myself.upgrade() else { return };
        if self.is_killed.load(Ordering::Acquire) {
            return;
        }
        match decode::<PeerFrame>(&frame) {
            Ok(mut frame) => {
                let body = std::mem::replace(&mut frame.body, PeerBody::Answer(PeerAnswer::Done));
                match body {
                    PeerBody::Call(call) => peers.execute(frame, call),
                    PeerBody::Answer(answer) => peers.answer(frame, answer),
                }
            }
            Err(error) => tracing::warn!(%error, "a frame from another node cannot be read"),
        }
    }
}

/// How long a call is waited for.
fn patience(call: &PeerCall) -> Duration {
    let milliseconds = match call {
        PeerCall::Cube { call, .. } if call.may_be_repeated() => PEER_READ_MS_MAX,
        PeerCall::Cube { .. }
        | PeerCall::Prepare { .. }
        | PeerCall::Take { .. }
        | PeerCall::HandOver { .. } => PEER_CHANGE_MS_MAX,
    };
    Duration::from_millis(milliseconds)
}

/// Forgets a call when whoever asked stops waiting, whatever the reason.
struct Forget<'a> {
    peers: &'a Peers,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.peers.state().pending.remove(&self.number);
    }
}

/// An answer as a result, for calls that return nothing.
pub(crate) fn done(answer: PeerAnswer) -> Result<()> {
    match answer {
        PeerAnswer::Done => Ok(()),
        PeerAnswer::Failed(failure) => Err(failure.into()),
        PeerAnswer::Moved(node) => {
            Err(Error::unavailable(format!("the cube has moved to `{node}`; retry")))
        }
        PeerAnswer::WrongLife => Err(Error::unavailable("the node restarts; retry")),
        PeerAnswer::Cube(_) => Err(Error::internal("a node gave an answer to another question")),
    }
}

impl From<Error> for PeerFailure {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind(),
            message: error.message().to_owned(),
            retry_after_ms: error.retry_after(),
        }
    }
}

impl From<PeerFailure> for Error {
    fn from(failure: PeerFailure) -> Self {
        let error = Self::new(failure.kind, failure.message);
        match failure.retry_after_ms {
            Some(milliseconds) => error.retry_after_ms(milliseconds),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_of_a_sender_outlives_it_for_a_while() {
        let mut window = Window::default();
        assert!(window.admits(1));
        let kept_us = PEER_WINDOW_KEPT_MS * 1_000;
        assert!(window.is_kept(false, 5), "it has just gone");
        assert!(window.is_kept(false, kept_us));
        assert!(window.is_kept(true, kept_us + 6), "it is back");
        assert!(window.is_kept(false, 2 * kept_us), "and gone again");
        assert!(!window.admits(1));
        assert!(!window.is_kept(false, 3 * kept_us));
    }

    #[test]
    fn a_number_is_admitted_once_and_what_is_too_old_never() {
        let mut window = Window::default();
        assert!(window.admits(2), "numbers may arrive in any order");
        assert!(window.admits(1));
        assert!(!window.admits(2));
        for call in 3..3 + PEER_WINDOW_CALLS as u64 {
            assert!(window.admits(call));
        }
        assert!(!window.admits(1), "fell out of the window");
        assert!(window.seen.len() <= PEER_WINDOW_CALLS);
    }
}
