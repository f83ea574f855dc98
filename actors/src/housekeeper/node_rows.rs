//! Removes the rows of nodes that are dead or have left for good.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use memcube_schemas::{
    NodeId, Version,
    codec::decode,
    keys,
    limits::NODE_ROW_KEPT_MS,
    node::{NodeRecord, NodeState},
};

use super::Chore;
use crate::{
    cluster::View,
    cube::commit,
    environment::Environment,
    error::Result,
    scheduler::jobs::JobKind,
    storage::{Check, Mutation, RangeRead, SharedStore, StoreError},
};

/// Every ten minutes: nobody is in a hurry.
const PERIOD_MS: u64 = 600_000;

/// Removes a node's row once it has said "dead" or "left" for a day of this node's monotonic clock,
/// on the condition that it still says so. A node that comes back after that writes a new one.
pub struct NodeRows {
    store: SharedStore,
    environment: Environment,
    /// The last commit of each row that is over, and when it was first seen.
    seen: Mutex<BTreeMap<NodeId, (Version, u64)>>,
}

impl NodeRows {
    /// Looks after the rows of this store.
    #[must_use]
    pub fn new(store: SharedStore, environment: Environment) -> Self {
        Self { store, environment, seen: Mutex::default() }
    }

    async fn sweep(&self) -> Result<u64> {
        let output = self.store.read(vec![RangeRead::all(keys::nodes())]).await?;
        let now_us = self.environment.monotonic_us();
        let mut over = BTreeMap::new();
        for entry in output.pages.into_iter().flat_map(|page| page.entries) {
            let Ok(record) = decode::<NodeRecord>(&entry.value) else { continue };
            match record.state {
                NodeState::Alive => {}
                NodeState::Dead | NodeState::Left => {
                    over.insert(record.node, entry.version);
                }
            }
        }
        let due = self.note(over, now_us);
        let mut removed = 0;
        for (node, version) in due {
            let key = keys::node(&node);
            let checks = vec![Check::At { key: key.clone(), version }];
            let mutations = vec![Mutation::Clear { key }];
            match commit(&self.store, &self.environment, checks, mutations).await {
                Ok(_) => {
                    removed += 1;
                    tracing::info!(%node, "removed the row of a node that is gone");
                }
                // It came back, or another node was quicker.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(removed)
    }

    /// Remembers which rows are over, and returns those that have been so for long.
    fn note(&self, over: BTreeMap<NodeId, Version>, now_us: u64) -> Vec<(NodeId, Version)> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|node, (version, _)| over.get(node) == Some(version));
        let mut due = Vec::new();
        for (node, version) in over {
            let (_, since_us) = *seen.entry(node.clone()).or_insert((version, now_us));
            if now_us.saturating_sub(since_us) > NODE_ROW_KEPT_MS * 1_000 {
                due.push((node, version));
            }
        }
        due
    }
}

impl Chore for NodeRows {
    fn name(&self) -> &'static str {
        "node-rows"
    }

    fn kind(&self) -> JobKind {
        JobKind::Nodes
    }

    fn period_ms(&self) -> u64 {
        PERIOD_MS
    }

    fn run<'a>(&'a self, view: &'a View) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move { if view.keeps("node rows") { self.sweep().await } else { Ok(0) } })
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use memcube_schemas::{Incarnation, codec::encode};

    use super::*;
    use crate::storage::{Commit, InMemoryStore};

    async fn write(store: &SharedStore, environment: &Environment, node: &str, state: NodeState) {
        let node = NodeId::new(node).expect("valid");
        let key = keys::node(&node);
        let incarnation = Incarnation(7);
        let record = NodeRecord { node, incarnation, beat: 1, state, address: String::new() };
        let mutations = vec![Mutation::Set { key, value: encode(&record) }];
        let commit = Commit { token: environment.commit_token(), checks: Vec::new(), mutations };
        store.commit(commit).await.expect("written");
    }

    #[tokio::test(start_paused = true)]
    async fn rows_of_the_dead_go_after_a_day_unless_they_come_back() {
        let environment = Environment::scripted(1);
        let store: SharedStore = Arc::new(InMemoryStore::default());
        let chore = NodeRows::new(Arc::clone(&store), environment.clone());
        for (node, state) in [
            ("alive", NodeState::Alive),
            ("dead", NodeState::Dead),
            ("left", NodeState::Left),
            ("dead for a while", NodeState::Dead),
        ] {
            write(&store, &environment, node, state).await;
        }
        let view = View::alone(NodeId::new("alive").expect("valid"), Incarnation(7));
        assert_eq!(chore.run(&view).await, Ok(0));
        tokio::time::sleep(Duration::from_secs(20 * 3_600)).await;
        write(&store, &environment, "dead for a while", NodeState::Alive).await;
        write(&store, &environment, "dead for a while", NodeState::Dead).await;
        assert_eq!(chore.run(&view).await, Ok(0));
        tokio::time::sleep(Duration::from_secs(5 * 3_600)).await;
        assert_eq!(chore.run(&view).await, Ok(2));
        let rows = store.read(vec![RangeRead::all(keys::nodes())]).await.expect("read");
        let left: Vec<NodeId> = rows.pages[0]
            .entries
            .iter()
            .map(|row| decode::<NodeRecord>(&row.value).expect("readable").node)
            .collect();
        let names: Vec<&str> = left.iter().map(NodeId::as_str).collect();
        assert_eq!(names, ["alive", "dead for a while"]);
    }
}
