//! Language models: the port to engines, the actor in front of a device, and the cache of keys and
//! values over device, RAM, disk and object store.

pub mod engine;

pub use engine::{
    BLOCK_TOKENS, Cancel, ChatMessage, DecodeStep, Engine, EngineError, EngineFacts, EngineResult,
    KvBytes, KvLayer, Rendered, Sampling, Session, Token,
};
