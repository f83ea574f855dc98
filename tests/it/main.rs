//! Black-box tests of running nodes, in one binary.

mod backup;
#[cfg(feature = "candle")]
mod chat;
mod cluster;
mod crash;
mod embedded_store;
mod faults;
#[cfg(feature = "fdb")]
mod foundationdb;
mod http;
#[cfg(feature = "candle")]
mod language;
mod memos;
mod model;
mod process;
mod remote;
#[cfg(feature = "s3")]
mod s3;
mod support;
mod tidy;
#[cfg(feature = "lance")]
mod vectors;
