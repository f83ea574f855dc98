//! Language models: the port to engines, the actor in front of a device, and the cache of keys and
//! values over device, RAM, disk and object store.

pub mod activation_cache;
mod device;
pub mod engine;
mod fill;
mod generate;
mod loading;
mod reply;
mod request;
pub mod scripted;
mod segments;
#[cfg(test)]
mod tests;

pub use device::Urgency;
pub use engine::{
    BLOCK_TOKENS, Cancel, ChatMessage, DecodeStep, Engine, EngineError, EngineFacts, EngineResult,
    KvBytes, KvLayer, Rendered, Sampling, Session, Token,
};
pub use fill::Reuse;
pub use generate::{InferenceHandle, InferenceParts};
pub use request::{FinishReason, Finished, GenerateRequest, ReplyEvent, ReplyStream, Timings};
pub use segments::{SEGMENT_SAVED_TOKENS_MIN, SegmentPiece, segment_pieces};
