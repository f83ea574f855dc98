//! Language models: the port to engines, the actor in front of a device, and the cache of keys and
//! values over device, RAM, disk and object store. And the port to models that run elsewhere.

pub mod activation_cache;
mod device;
pub mod engine;
mod fill;
mod generate;
mod handle;
mod loading;
pub mod remote;
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
pub use generate::InferenceParts;
pub(crate) use generate::LocalModel;
pub use handle::InferenceHandle;
pub(crate) use handle::Place;
pub use request::{FinishReason, Finished, GenerateRequest, ReplyEvent, ReplyStream, Timings};
pub use segments::{SEGMENT_SAVED_TOKENS_MIN, SegmentPiece, segment_pieces};
