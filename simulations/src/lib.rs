//! Many memcube nodes, one thread, one seed.
//!
//! A seed draws a plan: who asks what, and what goes wrong. The plan runs in a [`World`]: several
//! nodes with the same actors as in production, on one thread and a paused clock, over a network, a
//! store, devices and clocks that misbehave. Afterwards everything is healed, and checkers compare
//! what callers were told with what the store holds. A run is a plain function of its plan: the
//! same seed leaves the same trace, byte for byte, in every process.
//!
//! [`simulate`] runs a workflow of your own in such a world.

#![warn(missing_docs)]

mod blobs;
mod checkers;
mod clock;
mod conditions;
mod device;
pub mod dice;
mod engine;
pub mod evidence;
pub mod history;
mod linear;
mod marker;
mod nemesis;
mod network;
mod panics;
pub mod plan;
pub mod planted;
pub mod process;
pub mod regressions;
pub mod report;
mod rows;
pub mod shrink;
mod simulation;
pub mod sometimes;
mod storage;
pub mod swarm;
mod tasks;
mod trace;
mod vectors;
pub mod workloads;
mod world;

pub use blobs::FaultyObjectStore;
pub use report::Report;
pub use simulation::{Simulation, simulate};
pub use world::{CallError, Client, Cube, World, run_plan};
