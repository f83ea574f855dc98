//! Language models of the Llama family: explicit caches, our own kernels on the processor.

mod attention;
mod attention_kernels;
mod chat_template;
mod checkpoint;
mod device_cache;
mod error;
mod gguf;
mod kernels;
mod kv_cache;
mod local;
mod model;
mod page;
mod panels;
mod pass;
mod prefill;
mod rotation;
mod sampler;
mod step;
mod tensor_model;
#[cfg(test)]
mod tests;
mod text_stream;
mod tokenizer;
mod weights;

pub use chat_template::{ChatRole, ChatTemplate, Frame};
pub use error::{ForwardError, ModelError};
pub use kv_cache::{KV_LAYOUT, KV_PAGE_TOKENS, KvCache, KvError, KvShape};
pub use local::LocalModel;
pub use model::{LanguageModel, PackedModel};
pub use pass::Cancelled;
pub use sampler::{greedy, sample};
pub use tensor_model::TensorModel;
pub use text_stream::TextStream;
pub use tokenizer::Vocabulary;
pub use weights::{Architecture, ModelConfig};
