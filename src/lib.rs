//! memcube: a memory operating system for language models, in one process.
//!
//! [`Node`] is the whole of it for a program that embeds memcube; the binary adds settings, a
//! command line and the HTTP gateway around the same thing. See ARCHITECTURE.md for where things
//! are.

mod backup_stream;
pub mod bench;
pub mod cli;
pub mod cluster;
mod decision_log;
pub mod environment;
pub mod gateway;
pub mod import;
pub mod inference;
pub mod node;
pub mod replay;
pub mod settings;
pub mod storage;
pub mod telemetry;

pub use memcube_actors as actors;
pub use memcube_actors::backup;
pub use memcube_actors::cube::{AddRequest, DeleteRequest, SearchRequest, UpdateRequest};
pub use memcube_actors::{CubeHandle, Cubes, Error, ErrorKind, Result, TenantContext};
pub use memcube_schemas as schemas;
pub use node::{Node, NodeBuilder};
pub use settings::Settings;
