//! Which node is reached where: what the membership says, and what a node that is not known yet
//! says of itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicBool},
    time::Duration,
};

use axum::http::Uri;
use memcube_schemas::{
    NodeId,
    limits::{PEER_SENDING_BYTES_MAX, PEERS_MAX},
};
use tokio::{sync::Semaphore, time::Instant};

use super::FRAMES_PATH;

/// How long an address counts that came with a frame. By then the membership knows it.
const HEARD_KEPT: Duration = Duration::from_secs(10);

/// What is on its way to one node.
pub(super) struct Traffic {
    /// One permit a byte.
    pub(super) room: Arc<Semaphore>,
    /// Whether the last frame did not arrive: told once, when it changes.
    pub(super) is_silent: AtomicBool,
}

struct Road {
    /// What its heartbeat says.
    known: Option<Uri>,
    /// What came with a frame of it, and when. A node that has just started, or started anew
    /// elsewhere, calls before the others have seen its heartbeat, and wants to hear the answer.
    heard: Option<(Uri, Instant)>,
    traffic: Arc<Traffic>,
}

impl Road {
    fn new() -> Self {
        let room = Arc::new(Semaphore::new(PEER_SENDING_BYTES_MAX));
        let traffic = Arc::new(Traffic { room, is_silent: AtomicBool::new(false) });
        Self { known: None, heard: None, traffic }
    }

    fn heard(&self, now: Instant) -> Option<&Uri> {
        let (uri, at) = self.heard.as_ref()?;
        (now.saturating_duration_since(*at) < HEARD_KEPT).then_some(uri)
    }

    fn is_needed(&self, now: Instant) -> bool {
        self.known.is_some() || self.heard(now).is_some()
    }
}

/// The roads to all nodes.
pub(super) struct Roads {
    scheme: &'static str,
    roads: Mutex<BTreeMap<NodeId, Road>>,
}

impl Roads {
    pub(super) const fn new(scheme: &'static str) -> Self {
        Self { scheme, roads: Mutex::new(BTreeMap::new()) }
    }

    fn roads(&self) -> MutexGuard<'_, BTreeMap<NodeId, Road>> {
        self.roads.lock().expect("invariant: nothing panics while it holds the roads")
    }

    fn uri(&self, address: &str) -> Option<Uri> {
        crate::settings::split_address(address)?;
        format!("{}://{address}{FRAMES_PATH}", self.scheme).parse().ok()
    }

    /// Learns what the heartbeats of all living nodes say.
    pub(super) fn meet(&self, others: &BTreeMap<NodeId, String>, now: Instant) {
        let mut roads = self.roads();
        for (node, road) in roads.iter_mut().filter(|(node, _)| !others.contains_key(*node)) {
            if road.known.take().is_some() {
                tracing::debug!(%node, "no longer among the living");
            }
        }
        roads.retain(|_, road| road.is_needed(now));
        for (node, address) in others {
            let uri = self.uri(address);
            let is_full = roads.len() >= PEERS_MAX && !roads.contains_key(node);
            if uri.is_none() || is_full {
                tracing::debug!(%node, address, "a node that cannot be reached: no address of use");
                continue;
            }
            let road = roads.entry(node.clone()).or_insert_with(Road::new);
            if road.known != uri {
                road.known = uri;
                road.heard = None;
            }
        }
    }

    /// Learns the address that came with a frame.
    pub(super) fn hear(&self, node: &NodeId, address: &str, now: Instant) {
        let Some(uri) = self.uri(address) else { return };
        let mut roads = self.roads();
        if roads.len() >= PEERS_MAX && !roads.contains_key(node) {
            return;
        }
        let road = roads.entry(node.clone()).or_insert_with(Road::new);
        let is_known = road.known.as_ref() == Some(&uri);
        road.heard = (!is_known).then_some((uri, now));
    }

    /// The way to a node.
    pub(super) fn to(&self, node: &NodeId, now: Instant) -> Option<(Uri, Arc<Traffic>)> {
        let roads = self.roads();
        let road = roads.get(node)?;
        let uri = road.heard(now).or(road.known.as_ref())?;
        Some((uri.clone(), Arc::clone(&road.traffic)))
    }

    /// What is on its way to every node.
    pub(super) fn traffic(&self) -> Vec<Arc<Traffic>> {
        self.roads().values().map(|road| Arc::clone(&road.traffic)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    struct World {
        roads: Roads,
        start: Instant,
    }

    impl World {
        fn meet(&self, others: &[(&str, &str)]) {
            let others = others.iter().map(|(name, at)| (node(name), (*at).to_owned())).collect();
            self.roads.meet(&others, self.start);
        }

        fn hear(&self, name: &str, address: &str, second: u64) {
            self.roads.hear(&node(name), address, self.start + Duration::from_secs(second));
        }

        fn way(&self, name: &str, second: u64) -> String {
            let way = self.roads.to(&node(name), self.start + Duration::from_secs(second));
            way.map_or_else(|| "none".to_owned(), |(uri, _)| uri.to_string())
        }
    }

    #[test]
    fn the_newest_word_on_an_address_counts() {
        let world = World { roads: Roads::new("http"), start: Instant::now() };
        assert_eq!(world.way("b", 0), "none");
        world.hear("b", "h:1", 0);
        assert_eq!(world.way("b", 9), "http://h:1/v1/frames", "it said so itself");
        assert_eq!(world.way("b", 10), "none", "but not for long");
        world.meet(&[("b", "h:1")]);
        assert_eq!(world.way("b", 99), "http://h:1/v1/frames");
        world.hear("b", "h:2", 20);
        world.meet(&[("b", "h:1")]);
        assert_eq!(world.way("b", 21), "http://h:2/v1/frames", "it has started anew elsewhere");
        world.meet(&[("b", "h:2")]);
        assert_eq!(world.way("b", 99), "http://h:2/v1/frames", "its heartbeat says so by now");
        world.hear("b", "h:1", 30);
        world.hear("b", "h:2", 30);
        assert_eq!(world.way("b", 31), "http://h:2/v1/frames", "a late frame of an earlier life");
        world.meet(&[("c", "[::1]:5")]);
        assert_eq!(world.way("b", 99), "none", "it is gone");
        assert_eq!(world.way("c", 99), "http://[::1]:5/v1/frames");
    }

    #[test]
    fn addresses_of_no_use_are_left_aside() {
        let world = World { roads: Roads::new("https"), start: Instant::now() };
        for address in ["", "h", "h:", "h:x", "h:99999", "u@h:1", "h:1/path", "a b:1", "local:a"] {
            world.meet(&[("b", address)]);
            world.hear("b", address, 0);
            assert_eq!(world.way("b", 0), "none", "{address}");
        }
        world.meet(&[("b", "node-1.internal:7701")]);
        assert_eq!(world.way("b", 0), "https://node-1.internal:7701/v1/frames");
    }

    #[test]
    fn there_is_room_for_so_many_nodes() {
        let world = World { roads: Roads::new("http"), start: Instant::now() };
        for number in 0..=PEERS_MAX {
            world.hear(&format!("n{number}"), "h:1", 0);
        }
        assert_eq!(world.roads.traffic().len(), PEERS_MAX);
        world.meet(&[]);
        assert_eq!(world.roads.traffic().len(), PEERS_MAX, "they may have called just now");
        world.roads.meet(&BTreeMap::new(), world.start + HEARD_KEPT);
        assert!(world.roads.traffic().is_empty());
    }
}
