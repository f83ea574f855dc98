//! The network between the nodes, and between callers and nodes: it delays, loses, repeats and
//! reorders, and is cut here and there.
//!
//! Everything that happens to the n-th message of a link is drawn for that link and that n.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use memcube_actors::cluster::{Inbox, Transport};
use memcube_schemas::NodeId;

use crate::{
    clock::sleep_ms,
    conditions::{Conditions, Occasion, Place},
    plan::FaultClass,
};

/// How long a message takes when nothing is wrong.
const DELAY_MS: (u64, u64) = (1, 5);
/// How much a delayed message takes on top: mostly little, sometimes very much.
const SLOW_MS: (u64, u64) = (20, 1_500);
/// How much a message takes on top when messages overtake each other.
const REORDER_MS_MAX: u64 = 30;
/// How long after the first copy the second arrives.
const SECOND_COPY_MS: (u64, u64) = (1, 3_000);
/// Times that an arriving message lets other tasks go first, at the most.
const YIELDS_MAX: u64 = 2;
/// What stands before the number in a node's name.
const NAME_PREFIX: &str = "node-";

/// The name of a node.
pub(crate) fn node_name(index: u32) -> String {
    format!("{NAME_PREFIX}{index}")
}

/// The number in a node's name.
fn node_index(node: &NodeId) -> Option<u32> {
    node.as_str().strip_prefix(NAME_PREFIX)?.parse().ok()
}

/// What became of a request or an answer on its way between a caller and a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It is there.
    Arrived,
    /// It is gone: the caller hears nothing.
    Lost,
    /// Nobody took it: the caller knows at once that nothing happened.
    Refused,
}

/// The network. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub(crate) struct Network(Arc<Shared>);

struct Shared {
    conditions: Conditions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Messages sent over each link.
    sent: BTreeMap<(u32, u32), u64>,
    /// Who listens at a node, and in which of its lives.
    inboxes: BTreeMap<u32, (u64, Weak<dyn Inbox>)>,
}

impl Network {
    /// A network where nobody listens.
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self(Arc::new(Shared { conditions, state: Mutex::default() }))
    }

    /// The transport of one life of a node.
    pub(crate) fn transport(&self, node: u32, life: u64) -> Arc<dyn Transport> {
        Arc::new(NodeTransport { network: self.clone(), node, life })
    }

    /// Carries the n-th request of a client to a node.
    pub(crate) async fn to_node(&self, client: u32, node: u32, n: u64) -> Passage {
        let conditions = &self.0.conditions;
        let occasion = conditions.occasion(Place::Request { client, node }, n);
        if conditions.strikes(FaultClass::NetworkDrop, occasion) {
            return Passage::Lost;
        }
        sleep_ms(self.delay_ms(occasion)).await;
        if !conditions.is_up(node) || !conditions.is_open_to_clients(node) {
            return Passage::Refused;
        }
        // A paused node takes the request when it goes on, unless it dies before.
        if conditions.runs(node, conditions.life(node)).await {
            conditions.jitter(occasion, YIELDS_MAX).await;
            Passage::Arrived
        } else {
            Passage::Lost
        }
    }

    /// Carries the answer to that request, given in this life of the node, back to the client. It
    /// is never refused.
    #[expect(clippy::wrong_self_convention, reason = "it is the way that leads from a node")]
    pub(crate) async fn from_node(&self, client: u32, node: u32, life: u64, n: u64) -> Passage {
        let conditions = &self.0.conditions;
        let occasion = conditions.occasion(Place::Answer { client, node }, n);
        let sent = conditions.runs(node, life).await && conditions.is_open_to_clients(node);
        if !sent || conditions.strikes(FaultClass::NetworkDrop, occasion) {
            return Passage::Lost;
        }
        sleep_ms(self.delay_ms(occasion)).await;
        if conditions.is_open_to_clients(node) { Passage::Arrived } else { Passage::Lost }
    }

    /// How long this message takes.
    fn delay_ms(&self, occasion: Occasion) -> u64 {
        let conditions = &self.0.conditions;
        let mut delay_ms = occasion.between("delay", DELAY_MS.0, DELAY_MS.1);
        if conditions.strikes(FaultClass::NetworkDelay, occasion) {
            delay_ms += heavy_tail(occasion.between("slow", 0, 1_000));
        }
        if conditions.strikes(FaultClass::NetworkReorder, occasion) {
            delay_ms += occasion.between("reorder", 0, REORDER_MS_MAX);
        }
        delay_ms
    }

    /// Sends a frame from a node that lives.
    fn send(&self, from: u32, life: u64, to: u32, frame: Vec<u8>) {
        let conditions = &self.0.conditions;
        let n = self.count(from, to);
        let occasion = conditions.occasion(Place::Link { from, to }, n);
        if conditions.is_cut(from, to) {
            conditions.note(&link(from, to), "cut", format_args!("#{n}"));
            return;
        }
        if from == to {
            // Nothing is wrong with the way to oneself.
            let frame = Frame { from, life, to, n, bytes: frame, is_only: true };
            self.carry(frame, occasion, DELAY_MS.0);
            return;
        }
        if conditions.strikes(FaultClass::NetworkDrop, occasion) {
            return;
        }
        let delay_ms = self.delay_ms(occasion);
        let is_only = !conditions.strikes(FaultClass::NetworkDuplicate, occasion);
        let frame = Frame { from, life, to, n, bytes: frame, is_only };
        if !is_only {
            let later_ms = occasion.between("second", SECOND_COPY_MS.0, SECOND_COPY_MS.1);
            self.carry(frame.clone(), occasion, delay_ms + later_ms);
        }
        self.carry(frame, occasion, delay_ms);
    }

    fn count(&self, from: u32, to: u32) -> u64 {
        let mut state = self.state();
        let sent = state.sent.entry((from, to)).or_insert(0);
        *sent += 1;
        *sent
    }

    #[expect(clippy::disallowed_methods, reason = "a frame on its way belongs to no node")]
    fn carry(&self, frame: Frame, occasion: Occasion, delay_ms: u64) {
        let network = self.clone();
        drop(tokio::spawn(async move { network.deliver(frame, occasion, delay_ms).await }));
    }

    async fn deliver(&self, frame: Frame, occasion: Occasion, delay_ms: u64) {
        let conditions = &self.0.conditions;
        let Frame { from, life, to, n, .. } = frame;
        // What a paused node sends leaves it after the pause.
        if !conditions.runs(from, life).await {
            return;
        }
        sleep_ms(delay_ms).await;
        if conditions.is_cut(from, to) {
            conditions.note(&link(from, to), "cut", format_args!("#{n} on its way"));
            return;
        }
        if !conditions.is_up(to) {
            self.give_back(&frame, occasion);
            return;
        }
        let receiver = conditions.life(to);
        if !conditions.runs(to, receiver).await {
            return;
        }
        conditions.jitter(occasion, YIELDS_MAX).await;
        if let Some(inbox) = self.inbox(to) {
            let bytes = frame.bytes.len();
            conditions.note(&link(from, to), "deliver", format_args!("#{n} {bytes}B"));
            inbox.deliver(frame.bytes);
        } else {
            self.give_back(&frame, occasion);
        }
    }

    /// Tells the sender that nobody was there, as a machine does on which nobody listens; sometimes
    /// not, as when the machine is gone as well. Of two copies, the other may have arrived.
    fn give_back(&self, frame: &Frame, occasion: Occasion) {
        let Frame { from, life, to, n, .. } = *frame;
        let conditions = &self.0.conditions;
        let is_told = frame.is_only && occasion.between("told", 0, 1) == 1;
        if !is_told || !conditions.is_current(from, life) {
            return;
        }
        if let Some(inbox) = self.inbox(from) {
            conditions.note(&link(from, to), "refused", format_args!("#{n}"));
            inbox.undelivered(&frame.bytes);
        }
    }

    /// Who listens at a node in its present life.
    fn inbox(&self, node: u32) -> Option<Arc<dyn Inbox>> {
        let state = self.state();
        let (life, inbox) = state.inboxes.get(&node)?;
        if self.0.conditions.is_current(node, *life) { inbox.upgrade() } else { None }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("invariant: nothing panics while it holds the network")
    }
}

/// A frame on its way.
#[derive(Clone)]
struct Frame {
    from: u32,
    life: u64,
    to: u32,
    n: u64,
    bytes: Vec<u8>,
    /// Whether it travels once only.
    is_only: bool,
}

fn link(from: u32, to: u32) -> String {
    Place::Link { from, to }.to_string()
}

/// Turns an even draw from 0 to 1000 into a delay: half of them end within an eighth of the way.
const fn heavy_tail(even: u64) -> u64 {
    SLOW_MS.0 + (SLOW_MS.1 - SLOW_MS.0) * (even * even * even) / 1_000_000_000
}

struct NodeTransport {
    network: Network,
    node: u32,
    life: u64,
}

impl NodeTransport {
    fn is_alive(&self) -> bool {
        self.network.0.conditions.is_current(self.node, self.life)
    }
}

impl Transport for NodeTransport {
    fn send(&self, to: &NodeId, frame: Vec<u8>) {
        // A life that is over sends nothing, and a node that nobody knows gets nothing.
        if let Some(to) = node_index(to).filter(|_| self.is_alive()) {
            self.network.send(self.node, self.life, to, frame);
        }
    }

    fn listen(&self, inbox: Weak<dyn Inbox>) {
        if self.is_alive() {
            self.network.state().inboxes.insert(self.node, (self.life, inbox));
        }
    }

    fn address(&self) -> String {
        format!("simulated:{}", node_name(self.node))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::{conditions::tests::with_faults, plan::Fault};

    /// What arrived at a node, and when.
    struct Arrivals {
        conditions: Conditions,
        frames: Mutex<Vec<(u64, u8)>>,
    }

    impl Inbox for Arrivals {
        fn deliver(&self, frame: Vec<u8>) {
            self.frames.lock().unwrap().push((self.conditions.now_ms(), frame[0]));
        }
    }

    struct Nodes {
        conditions: Conditions,
        network: Network,
        transports: Vec<Arc<dyn Transport>>,
        arrivals: Vec<Arc<Arrivals>>,
    }

    impl Nodes {
        fn new(classes: &[FaultClass]) -> Self {
            let conditions = with_faults(classes);
            let network = Network::new(conditions.clone());
            let mut nodes =
                Self { conditions, network, transports: Vec::new(), arrivals: Vec::new() };
            for node in 0..3 {
                let (transport, arrivals) = nodes.boot(node);
                nodes.transports.push(transport);
                nodes.arrivals.push(arrivals);
            }
            nodes
        }

        fn boot(&self, node: u32) -> (Arc<dyn Transport>, Arc<Arrivals>) {
            let transport = self.network.transport(node, self.conditions.boot(node));
            let conditions = self.conditions.clone();
            let arrivals = Arc::new(Arrivals { conditions, frames: Mutex::default() });
            let inbox: Arc<dyn Inbox> = arrivals.clone();
            transport.listen(Arc::downgrade(&inbox));
            (transport, arrivals)
        }

        /// Sends numbered frames from node 0 to node 1, all at once.
        fn send(&self, numbers: std::ops::Range<u8>) {
            let to = NodeId::new(node_name(1)).unwrap();
            numbers.for_each(|number| self.transports[0].send(&to, vec![number]));
        }

        /// The numbers that arrived at node 1 within ten seconds, and the last millisecond of it.
        async fn arrived(&self) -> (Vec<u8>, u64) {
            let start = self.conditions.now_ms();
            sleep_ms(10_000).await;
            let frames = std::mem::take(&mut *self.arrivals[1].frames.lock().unwrap());
            let last_ms = frames.last().map_or(0, |(at_ms, _)| at_ms - start);
            (frames.into_iter().map(|(_, number)| number).collect(), last_ms)
        }
    }

    fn sorted(mut numbers: Vec<u8>) -> Vec<u8> {
        numbers.sort_unstable();
        numbers
    }

    #[tokio::test(start_paused = true)]
    async fn every_fault_of_the_network_strikes_until_the_heal() {
        let all: Vec<u8> = (0..50).collect();
        let twice: Vec<u8> = sorted([all.clone(), all.clone()].concat());
        let table: [(&[FaultClass], &[u8], std::ops::RangeInclusive<u64>); 6] = [
            (&[], &all, 4..=5),
            (&[FaultClass::NetworkDelay], &all, 500..=1_505),
            (&[FaultClass::NetworkDrop], &[], 0..=0),
            (&[FaultClass::NetworkDuplicate], &twice, 2_000..=3_005),
            (&[FaultClass::NetworkReorder], &all, 25..=35),
            (&[FaultClass::Jitter], &all, 4..=5),
        ];
        for (classes, expected, within_ms) in table {
            let nodes = Nodes::new(classes);
            nodes.send(0..50);
            let (numbers, last_ms) = nodes.arrived().await;
            assert!(within_ms.contains(&last_ms), "{classes:?}: {last_ms}");
            assert_eq!(sorted(numbers), expected, "{classes:?}");
            let counted: u64 = nodes.conditions.faults().values().sum();
            assert_eq!(counted, 50 * classes.len() as u64, "{classes:?}");
            nodes.conditions.heal();
            nodes.send(0..50);
            let (numbers, last_ms) = nodes.arrived().await;
            assert!((4..=5).contains(&last_ms), "healed {classes:?}: {last_ms}");
            assert_eq!(sorted(numbers), all, "healed {classes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn delays_have_a_heavy_tail() {
        assert_eq!((heavy_tail(0), heavy_tail(1_000)), SLOW_MS);
        assert!(heavy_tail(500) < 220);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_loses_what_is_sent_and_what_is_on_its_way() {
        let cut = Fault::CutLink { from: 0, to: 1, both_ways: false };
        for fault in [cut, Fault::Isolate { node: 0 }, Fault::Isolate { node: 1 }] {
            let nodes = Nodes::new(&[]);
            nodes.send(0..5);
            nodes.conditions.begin(&fault);
            nodes.send(5..10);
            sleep_ms(100).await;
            nodes.conditions.end(&fault);
            nodes.send(10..15);
            assert_eq!(sorted(nodes.arrived().await.0), [10, 11, 12, 13, 14], "{fault:?}");
        }
        let nodes = Nodes::new(&[]);
        nodes.conditions.begin(&Fault::Isolate { node: 1 });
        let myself = NodeId::new(node_name(1)).unwrap();
        nodes.transports[1].send(&myself, vec![7]);
        assert_eq!(nodes.arrived().await.0, [7], "nobody is cut off from itself");
    }

    #[tokio::test(start_paused = true)]
    async fn the_fate_of_a_frame_hangs_on_its_link_and_number_alone() {
        let arrivals = async |others: u8| {
            let nodes = Nodes::new(&[FaultClass::NetworkReorder]);
            let to = NodeId::new(node_name(1)).unwrap();
            (0..others).for_each(|number| nodes.transports[2].send(&to, vec![100 + number]));
            nodes.send(0..20);
            sleep_ms(1_000).await;
            let frames = nodes.arrivals[1].frames.lock().unwrap().clone();
            let mut frames: Vec<_> = frames.into_iter().filter(|(_, n)| *n < 100).collect();
            frames.sort_unstable();
            frames
        };
        assert_eq!(arrivals(0).await, arrivals(10).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_node_hears_and_speaks_after_the_pause() {
        for node in [0, 1] {
            let nodes = Nodes::new(&[]);
            nodes.conditions.begin(&Fault::Pause { node });
            nodes.send(0..5);
            assert!(nodes.arrived().await.0.is_empty());
            nodes.conditions.end(&Fault::Pause { node });
            assert_eq!(nodes.arrived().await.0.len(), 5);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_dead_neither_speak_nor_hear() {
        let nodes = Nodes::new(&[]);
        nodes.conditions.begin(&Fault::Crash { node: 0 });
        nodes.send(0..5);
        assert!(nodes.arrived().await.0.is_empty());

        let nodes = Nodes::new(&[]);
        nodes.send(0..5);
        nodes.conditions.begin(&Fault::Crash { node: 1 });
        let (_transport, reborn) = nodes.boot(1);
        assert!(nodes.arrived().await.0.is_empty(), "the former life's inbox is closed");
        assert_eq!(reborn.frames.lock().unwrap().len(), 5, "a new life may hear old frames");

        let nodes = Nodes::new(&[]);
        nodes.send(0..5);
        nodes.conditions.begin(&Fault::Crash { node: 1 });
        assert!(nodes.arrived().await.0.is_empty(), "nobody listens in the next life yet");

        let nodes = Nodes::new(&[]);
        nodes.conditions.begin(&Fault::Pause { node: 1 });
        nodes.send(0..5);
        sleep_ms(100).await;
        nodes.conditions.begin(&Fault::Crash { node: 1 });
        let (_transport, reborn) = nodes.boot(1);
        sleep_ms(100).await;
        assert!(reborn.frames.lock().unwrap().is_empty(), "what waited died with its life");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_answers_pass_or_not() {
        let passages = async |nodes: &Nodes| {
            let life = nodes.conditions.life(1);
            let there = nodes.network.to_node(9, 1, 1).await;
            (there, nodes.network.from_node(9, 1, life, 1).await)
        };
        let (arrived, lost, refused) = (Passage::Arrived, Passage::Lost, Passage::Refused);
        let none: &[FaultClass] = &[];
        let table = [
            (none, None, (arrived, arrived)),
            (&[FaultClass::NetworkDrop], None, (lost, lost)),
            (none, Some(Fault::Isolate { node: 1 }), (refused, lost)),
            (none, Some(Fault::CutClients { node: 1 }), (refused, lost)),
            (none, Some(Fault::CutClients { node: 0 }), (arrived, arrived)),
            (none, Some(Fault::CutLink { from: 0, to: 1, both_ways: true }), (arrived, arrived)),
        ];
        for (classes, fault, expected) in table {
            let nodes = Nodes::new(classes);
            fault.iter().for_each(|fault| nodes.conditions.begin(fault));
            assert_eq!(passages(&nodes).await, expected, "{classes:?} {fault:?}");
            nodes.conditions.heal();
            assert_eq!(passages(&nodes).await, (arrived, arrived), "healed {classes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_a_paused_node_and_die_with_it() {
        let nodes = Nodes::new(&[]);
        let (conditions, network) = (&nodes.conditions, &nodes.network);
        let life = conditions.life(1);
        conditions.begin(&Fault::Pause { node: 1 });
        let mut request = Box::pin(network.to_node(9, 1, 1));
        let mut answer = Box::pin(network.from_node(9, 1, life, 1));
        assert!(request.as_mut().now_or_never().is_none());
        sleep_ms(100).await;
        assert!(request.as_mut().now_or_never().is_none());
        assert!(answer.as_mut().now_or_never().is_none());
        conditions.begin(&Fault::Crash { node: 1 });
        assert_eq!((request.await, answer.await), (Passage::Lost, Passage::Lost));
        assert_eq!(network.to_node(9, 1, 2).await, Passage::Refused);
        let next = conditions.boot(1);
        assert_eq!(network.to_node(9, 1, 3).await, Passage::Arrived);
        assert_eq!(network.from_node(9, 1, life, 3).await, Passage::Lost, "a former life's");
        assert_eq!(network.from_node(9, 1, next, 3).await, Passage::Arrived);
    }
}
