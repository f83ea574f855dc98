//! The scheduler: follows conversations, predicts what the next turn will need, and has it ready.
//!
//! `scene` keeps what is known of a conversation, `predict` weighs candidates, `plan` says which of them
//! are worth computing ahead; all three are pure.

pub mod jobs;
pub mod plan;
pub mod predict;
pub mod scene;
