//! Request and response bodies of the HTTP interface.
//!
//! `v1` is ours: unknown fields are refused. `memos` is MemOS's wire: unknown fields are ignored,
//! as its own server does, and so does OpenAI's, `openai`.

pub mod memos;
pub mod openai;
pub mod v1;
