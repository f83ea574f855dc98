//! Nodes that end, come back, and give cubes away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Cluster, Member, conditions, settings};
use crate::support::eventually;

/// From the crash of a node until every cube of it answers again.
const FAILOVER_MAX: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_of_a_dead_node_answer_elsewhere_within_three_seconds() {
    let cluster = Cluster::of(3).await;
    let mut lost = Vec::new();
    for number in 0..30 {
        let cube = format!("c{number}");
        cluster.nodes[number % 3].client.cube(&cube).await;
        cluster.nodes[(number + 1) % 3].client.fact(&cube, &format!("fact {number}")).await;
        if cluster.owner(&cube).await == Some(2) {
            lost.push((cube, format!("fact {number}")));
        }
    }
    assert!(lost.len() > 2, "enough cubes die with it: {lost:?}");
    cluster.nodes[2].kill();
    let died = Instant::now();
    let mut reading = tokio::task::JoinSet::new();
    for (number, (cube, fact)) in lost.iter().cloned().enumerate() {
        let client = cluster.nodes[number % 2].client.clone();
        reading.spawn(async move {
            let texts = client.texts(&cube).await;
            assert_eq!(texts.first(), Some(&fact), "{cube}: what was acknowledged is there");
            died.elapsed()
        });
    }
    // An add that begins now needs no idempotency key to be sent again: it certainly reached
    // nobody.
    tokio::time::sleep(Duration::from_millis(100)).await;
    for (number, (cube, _)) in lost.iter().cloned().enumerate() {
        let client = cluster.nodes[number % 2].client.clone();
        reading.spawn(async move {
            client.fact(&cube, "and it takes more").await;
            died.elapsed()
        });
    }
    let took: Vec<Duration> = reading.join_all().await;
    let slowest = took.iter().max().expect("some");
    println!("{} calls were answered after {took:?}", took.len());
    assert!(*slowest < FAILOVER_MAX, "a cube was away for {slowest:?}");
    for (cube, _) in &lost {
        assert_eq!(cluster.nodes[0].client.texts(cube).await.len(), 2, "added once");
    }
    assert_eq!(conditions(&cluster.nodes[0]).await[2].1, "dead");
    cluster.stop_all_but(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_move_under_load_and_nobody_notices() {
    let cluster = Cluster::of(3).await;
    cluster.nodes[0].client.cube("busy").await;
    cluster.nodes[0].client.fact("busy", "the first").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let client = cluster.nodes[writer % 3].client.pooled();
        let is_over = Arc::clone(&is_over);
        writers.spawn(async move {
            let mut written = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let text = format!("writer {writer} says {}", written.len());
                client.fact("busy", &text).await;
                written.push(text);
            }
            written
        });
    }
    let moves = AtomicUsize::new(0);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let target = moves.fetch_add(1, Ordering::Relaxed) % 3;
        let asked = &cluster.nodes[(target + 1) % 3].client;
        let moved = asked.post("/v1/cubes/busy/hand-over", json!({"node": format!("n{target}")}));
        let moved = moved.await.expect(200);
        assert_eq!(moved, json!({"cube": "busy", "node": format!("n{target}")}));
        assert_eq!(cluster.owner("busy").await, Some(target));
    }
    is_over.store(true, Ordering::Relaxed);
    let mut written: Vec<String> = writers.join_all().await.into_iter().flatten().collect();
    let mut found = cluster.nodes[1].client.texts("busy").await;
    println!("{} moves, {} memories", moves.load(Ordering::Relaxed), found.len());
    written.push("the first".to_owned());
    written.sort();
    found.sort();
    assert_eq!(found, written, "nothing is lost, and nothing is there twice");
    assert!(moves.load(Ordering::Relaxed) >= 5, "it moved only {moves:?} times");
    let refused = json!({"node": "n7"});
    let answer = cluster.nodes[0].client.post("/v1/cubes/busy/hand-over", refused).await;
    assert_eq!(answer.summary(), "422 invalid: the node `n7` is not alive");
    cluster.stop().await;
}

/// A process that is started again has its name, but another port and another life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_back_under_its_name_on_another_port() {
    let mut cluster = Cluster::of(2).await;
    for number in 0..8 {
        cluster.nodes[0].client.cube(&format!("c{number}")).await;
        cluster.nodes[0].client.fact(&format!("c{number}"), "it stays").await;
    }
    let former = cluster.nodes[1].transport.local_address();
    cluster.nodes[1].kill();
    let again = Member::start(settings("n1"), &cluster.store).await;
    assert_ne!(again.transport.local_address(), former, "else the test shows nothing");
    // It asks `n0` at once, which has not seen its new heartbeat, and has to hear the answer.
    let start = Instant::now();
    for number in 0..8 {
        assert_eq!(again.client.texts(&format!("c{number}")).await, ["it stays"]);
        assert_eq!(cluster.nodes[0].client.texts(&format!("c{number}")).await, ["it stays"]);
    }
    assert!(start.elapsed() < FAILOVER_MAX, "it took {:?}", start.elapsed());
    cluster.nodes[1] = again;
    cluster.all_see(2).await;
    cluster.stop().await;
}

/// Cubes of a node that stops in order are elsewhere at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_in_order_leaves_no_gap() {
    let mut cluster = Cluster::of(2).await;
    for number in 0..8 {
        cluster.nodes[0].client.cube(&format!("c{number}")).await;
        cluster.nodes[0].client.fact(&format!("c{number}"), "before").await;
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let (client, over) = (cluster.nodes[0].client.pooled(), Arc::clone(&is_over));
    let writer = tokio::spawn(async move {
        let (mut added, mut slowest) = (0_usize, Duration::ZERO);
        while !over.load(Ordering::Relaxed) {
            let start = Instant::now();
            client.fact(&format!("c{}", added % 8), &format!("meanwhile {added}")).await;
            slowest = slowest.max(start.elapsed());
            added += 1;
        }
        (added, slowest)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.nodes.pop().expect("a node").inner.stop().await;
    eventually("n1 has left", || async { cluster.nodes[0].node.cubes().view().others.is_empty() })
        .await;
    is_over.store(true, Ordering::Relaxed);
    let (added, slowest) = writer.await.expect("every add succeeds");
    let mut found = 0;
    for number in 0..8 {
        found += cluster.nodes[0].client.texts(&format!("c{number}")).await.len() - 1;
    }
    assert_eq!(found, added);
    println!("{added} adds, the slowest took {slowest:?}");
    assert!(slowest < FAILOVER_MAX, "an add took {slowest:?}");
    cluster.stop().await;
}

impl Cluster {
    /// Stops the others in order; the one left out was killed.
    async fn stop_all_but(self, dead: usize) {
        for (number, member) in self.nodes.into_iter().enumerate() {
            if number != dead {
                member.inner.stop().await;
            }
        }
    }
}
