//! Black-box tests of running nodes, in one binary.

mod embedded_store;
mod tidy;
