//! Tells the store that this node is alive, and watches who else is.
//!
//! Receives: its own ticks, and the wish to leave.
//! Sends: heartbeats and death notices to the store; views to whoever watches them.
//! Owns: what it last saw of every node, on its own clock.
//!
//! A watcher takes a node for dead when its counter stood still for too long on the watcher's own
//! monotonic clock, and says so in a commit that requires the counter to stand there still. A node
//! that finds itself dead begins another life; one whose name another process has taken stops
//! serving.

use std::{collections::BTreeMap, time::Duration};

use memcube_schemas::{
    Incarnation, NodeId, Version,
    codec::{decode, encode},
    keys,
    node::{NodeRecord, NodeState},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};

use super::{ClusterParts, placement::View};
use crate::{
    cube::commit,
    environment::Environment,
    error::{Error, Result},
    metrics as names,
    storage::{Check, Entry, Mutation, RangeRead, SharedStore, StoreError},
};

/// How long a node tries to tell the store that it is there before it gives up starting.
const REGISTER_MS_MAX: u64 = 60_000;
/// Pause between two tries to register.
const REGISTER_PAUSE: Duration = Duration::from_millis(200);

/// The front door of the membership. Cheap to clone.
#[derive(Clone)]
pub(crate) struct MembershipHandle {
    actor: ActorRef<MembershipMessage>,
}

impl MembershipHandle {
    /// Says goodbye, so that others need not wait until this node counts as dead.
    pub(crate) async fn leave(&self) {
        let (reply, done) = oneshot::channel();
        if self.actor.cast(MembershipMessage::Leave { reply }).is_ok() {
            // Without an answer the others find out by themselves.
            let _ = done.await;
        }
        let _ = self.actor.stop_and_wait(None, None).await;
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(
            self.actor.get_status(),
            ractor::ActorStatus::Starting | ractor::ActorStatus::Running
        )
    }

    /// Ends at once, as a crash would.
    pub(crate) fn kill(&self) {
        self.actor.kill();
    }
}

pub(crate) enum MembershipMessage {
    Tick,
    Leave { reply: oneshot::Sender<()> },
}

pub(crate) struct Membership;

/// What is known of another node.
struct Seen {
    incarnation: Incarnation,
    beat: u64,
    /// When the counter last moved, on this node's monotonic clock.
    moved_at_us: u64,
}

pub(crate) struct Watching {
    store: SharedStore,
    environment: Environment,
    parts: ClusterParts,
    views: watch::Sender<View>,
    record: NodeRecord,
    /// The commit that wrote our row last; `None` when that is unknown.
    row: Option<Version>,
    /// Whether our row has been ours in this life.
    is_registered: bool,
    seen: BTreeMap<NodeId, Seen>,
}

impl Membership {
    /// Registers the node and starts to watch the others.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be told within a minute.
    pub(crate) async fn start(
        store: SharedStore,
        environment: Environment,
        parts: ClusterParts,
        views: watch::Sender<View>,
    ) -> Result<MembershipHandle> {
        let record = {
            let view = views.borrow();
            NodeRecord {
                node: view.me.clone(),
                incarnation: view.incarnation,
                beat: 0,
                state: NodeState::Alive,
                address: parts.transport.address(),
            }
        };
        let mut watching = Watching {
            store,
            environment,
            parts,
            views,
            record,
            row: None,
            is_registered: false,
            seen: BTreeMap::new(),
        };
        watching.register().await?;
        let (actor, _) = Self::spawn(None, Self, watching)
            .await
            .map_err(|error| Error::internal(format!("the membership did not start: {error}")))?;
        Ok(MembershipHandle { actor })
    }
}

impl Actor for Membership {
    type Msg = MembershipMessage;
    type State = Watching;
    type Arguments = Watching;

    async fn pre_start(
        &self,
        myself: ActorRef<MembershipMessage>,
        watching: Watching,
    ) -> std::result::Result<Watching, ActorProcessingErr> {
        watching.arm(&myself);
        Ok(watching)
    }

    async fn handle(
        &self,
        myself: ActorRef<MembershipMessage>,
        message: MembershipMessage,
        watching: &mut Watching,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            MembershipMessage::Tick => {
                watching.tick().await;
                watching.arm(&myself);
            }
            MembershipMessage::Leave { reply } => {
                watching.record.state = NodeState::Left;
                if let Err(error) = watching.beat().await {
                    tracing::warn!(%error, "could not say goodbye to the other nodes");
                }
                let _ = reply.send(());
            }
        }
        Ok(())
    }
}

impl Watching {
    fn arm(&self, myself: &ActorRef<MembershipMessage>) {
        let pause = Duration::from_millis(self.parts.settings.heartbeat_ms);
        myself.send_after(pause, || MembershipMessage::Tick);
    }

    async fn register(&mut self) -> Result<()> {
        let start_us = self.environment.monotonic_us();
        loop {
            let outcome = match self.beat().await {
                Ok(()) => self.look_around().await,
                Err(error) => Err(error),
            };
            let error = match outcome {
                Ok(()) if self.is_registered => break,
                Ok(()) => "its row keeps changing".to_owned(),
                Err(error) => error.to_string(),
            };
            if self.environment.monotonic_us() - start_us > REGISTER_MS_MAX * 1_000 {
                return Err(Error::unavailable(format!(
                    "this node could not register in the store: {error}"
                )));
            }
            tokio::time::sleep(REGISTER_PAUSE).await;
        }
        Ok(())
    }

    /// One round: beat, then look at the others. What fails now is tried again at the next tick.
    async fn tick(&mut self) {
        if !self.views.borrow().is_serving {
            return;
        }
        if let Err(error) = self.beat().await {
            tracing::warn!(%error, "heartbeat failed");
        }
        if let Err(error) = self.look_around().await {
            tracing::warn!(%error, "could not look for other nodes");
        }
    }

    /// Writes our row, on the condition that it is as we left it.
    async fn beat(&mut self) -> std::result::Result<(), StoreError> {
        let key = keys::node(&self.record.node);
        let check = match self.row.take() {
            Some(version) => Check::At { key: key.clone(), version },
            None => match self.find_own_row(&key).await? {
                Some(version) => Check::At { key: key.clone(), version },
                None => Check::Absent { key: key.clone() },
            },
        };
        if !self.views.borrow().is_serving {
            return Ok(());
        }
        self.record.beat += 1;
        let set = Mutation::Set { key, value: encode(&self.record) };
        match commit(&self.store, &self.environment, vec![check], vec![set]).await {
            Ok(version) => {
                self.row = Some(version);
                self.is_registered = true;
                Ok(())
            }
            // Somebody changed our row: the next beat finds out what it means.
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads our row, which is not as we left it or not known, and draws the conclusion.
    async fn find_own_row(
        &mut self,
        key: &[u8],
    ) -> std::result::Result<Option<Version>, StoreError> {
        let output = self.store.read(vec![RangeRead::key(key.to_vec())]).await?;
        let Some(entry) = output.pages.into_iter().next().and_then(first) else {
            if self.is_registered {
                // Only rows of the dead are removed, after a day: this life has ended long ago.
                self.begin_another_life();
            }
            return Ok(None);
        };
        let Ok(found) = decode::<NodeRecord>(&entry.value) else { return Ok(Some(entry.version)) };
        if found.incarnation == self.record.incarnation {
            self.is_registered = true;
            if found.state == NodeState::Dead {
                self.begin_another_life();
            }
        } else if self.is_registered {
            tracing::error!(
                node = %self.record.node,
                "another process runs under this node's id; give each process its own, and restart"
            );
            self.environment.reach("membership.name-taken", "");
            self.views.send_modify(|view| view.is_serving = false);
        }
        Ok(Some(entry.version))
    }

    /// The others took us for dead, and perhaps our cubes too. The fence has kept those safe; all
    /// that is left is to come back under a new number.
    fn begin_another_life(&mut self) {
        self.environment.reach("membership.found-itself-dead", "");
        let incarnation = draw_incarnation(&self.environment);
        tracing::warn!(node = %self.record.node, %incarnation, "was taken for dead, begins anew");
        self.record.incarnation = incarnation;
        self.is_registered = false;
        self.views.send_modify(|view| view.incarnation = incarnation);
    }

    async fn look_around(&mut self) -> std::result::Result<(), StoreError> {
        let output = self.store.read(vec![RangeRead::all(keys::nodes())]).await?;
        let now_us = self.environment.monotonic_us();
        let (mut others, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for entry in output.pages.into_iter().flat_map(|page| page.entries) {
            let Ok(record) = decode::<NodeRecord>(&entry.value) else { continue };
            if record.node == self.record.node || record.state != NodeState::Alive {
                continue;
            }
            let (node, incarnation) = (record.node.clone(), record.incarnation);
            let address = record.address.clone();
            let is_dead =
                self.stood_still(&record, now_us) && self.declare_dead(record, entry.version).await;
            if !is_dead {
                addresses.insert(node.clone(), address);
                others.insert(node, incarnation);
            }
        }
        // First, so that whoever calls a node that it sees in the view reaches it.
        self.parts.transport.meet(&addresses);
        self.seen.retain(|node, _| others.contains_key(node));
        self.views.send_if_modified(|view| {
            let is_news = view.others != others;
            view.others = others;
            is_news
        });
        metrics::gauge!(names::NODES_ALIVE).set(self.views.borrow().others.len() as f64 + 1.0);
        Ok(())
    }

    /// Notes what a row says, and whether it has said so for too long.
    fn stood_still(&mut self, record: &NodeRecord, now_us: u64) -> bool {
        let dead_after_us = self.parts.settings.dead_after_ms * 1_000;
        match self.seen.get(&record.node) {
            Some(seen) if seen.incarnation == record.incarnation && seen.beat == record.beat => {
                now_us.saturating_sub(seen.moved_at_us) > dead_after_us
            }
            Some(_) | None => {
                let NodeRecord { incarnation, beat, .. } = *record;
                let seen = Seen { incarnation, beat, moved_at_us: now_us };
                self.seen.insert(record.node.clone(), seen);
                false
            }
        }
    }

    /// Says in the store that a node is dead, and whether that is so by now.
    async fn declare_dead(&self, mut record: NodeRecord, row: Version) -> bool {
        let key = keys::node(&record.node);
        record.state = NodeState::Dead;
        let set = Mutation::Set { key: key.clone(), value: encode(&record) };
        let check = Check::At { key, version: row };
        match commit(&self.store, &self.environment, vec![check], vec![set]).await {
            Ok(_) => {
                self.environment.reach("membership.declared-dead", record.node.as_str());
                metrics::counter!(names::NODES_DECLARED_DEAD_TOTAL).increment(1);
                tracing::warn!(node = %record.node, "a node stopped beating, declared dead");
                true
            }
            // It beat after all, or somebody else was first: the next look tells.
            Err(StoreError::Conflict { .. }) => false,
            Err(error) => {
                tracing::warn!(node = %record.node, %error, "could not declare a node dead");
                false
            }
        }
    }
}

/// A number for a life of a node.
pub(crate) fn draw_incarnation(environment: &Environment) -> Incarnation {
    let bits = u64::try_from(environment.random_u128() >> 64)
        .expect("invariant: the upper half of 128 bits has 64");
    // Zero is taken: it stands for a life that nobody recorded.
    Incarnation(bits.max(1))
}

fn first(page: crate::storage::RangePage) -> Option<Entry> {
    page.entries.into_iter().next()
}
