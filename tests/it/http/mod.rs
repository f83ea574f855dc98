//! `/v1` and what stands around it, over real sockets.

mod auth;
mod bad_input;
mod chat;
mod conversations;
mod cubes;
mod events;
pub(crate) mod jobs;
mod memories;
mod node;
mod search;
pub(crate) mod vectors;
