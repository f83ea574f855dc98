//! An agent's workflow under simulated faults: it writes, a node restarts, it recalls. Every seed
//! is another world of three nodes, in which messages get lost, commits stay unanswered, nodes
//! crash.
//!
//! `cargo run -p memcube-simulations --example agent_under_faults -- 20`, or `-- --seed 7`

#![allow(clippy::print_stdout, reason = "an example shows what it found")]

use std::time::Duration;

use memcube_simulations::{Simulation, World, simulate};

const FACTS: [&str; 5] = [
    "Ann moved to Lisbon in May",
    "Ann adopted a greyhound called Pixel",
    "Pixel is afraid of thunder",
    "Ann's sister Mia lives in Porto",
    "Ann plans a trip to the Azores",
];

/// What the application does. In a simulation every call may fail; what was acknowledged counts.
async fn agent(world: World) -> anyhow::Result<()> {
    let memory = world.client("acme")?.make_cube("agent-7").await?;
    let mut learned = Vec::new();
    for fact in FACTS {
        if memory.add(fact).await.is_ok() {
            learned.push(fact);
        }
    }
    world.restart(0, Duration::from_secs(3)).await;
    for fact in learned {
        // A search that nobody answers in time proves nothing; one that answers must know.
        let Ok(found) = memory.search(fact).await else { continue };
        let is_known = found.hits.iter().any(|hit| hit.item.text == fact);
        world.always(is_known, "what was learned is recalled after a restart");
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seeds = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--seed", seed] => seed.parse()?..=seed.parse()?,
        [count] => 1..=count.parse()?,
        _ => 1..=10,
    };
    for seed in seeds {
        let simulation = Simulation::new("agent", seed).nodes(3).swarm();
        let report = simulate(&simulation, agent)?;
        println!(
            "seed {seed:>4}: {:>3} calls, {:>2} kinds of faults, trace {:016x}",
            report.operations,
            report.faults.len(),
            report.trace_hash
        );
        anyhow::ensure!(report.passed(), "seed {seed} failed: {:#?}", report.violations);
    }
    Ok(())
}
