//! Black-box tests of running nodes, in one binary.

mod crash;
mod embedded_store;
mod faults;
mod http;
mod memos;
mod model;
mod process;
mod support;
mod tidy;
#[cfg(feature = "lance")]
mod vectors;
