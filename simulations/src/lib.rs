//! Many memcube nodes, one thread, one seed.
//!
//! Today: one node, one cube, one seed, with crashes and a store that conflicts and forgets. A run
//! is a plain function of its seed, and leaves a trace that is equal whenever the seed is.

mod model;
mod store;
mod world;

pub use model::Model;
pub use store::FaultyStore;
pub use world::{Report, run_seed};
