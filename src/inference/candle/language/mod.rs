//! Language models of the Llama family: explicit caches, our own kernels on the processor.

mod attention;
mod error;
mod gguf;
mod kernels;
mod kv_cache;
mod model;
mod panels;
mod pass;
mod prefill;
mod step;
mod weights;

pub use error::{ForwardError, ModelError};
pub use kv_cache::{KV_BLOCK_TOKENS, KV_LAYOUT, KvBlock, KvCache, KvError, KvShape};
pub use model::{LanguageModel, PackedModel};
pub use weights::{Architecture, ModelConfig};
