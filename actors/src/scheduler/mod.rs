//! The scheduler: follows conversations, predicts what the next turn will need, and has it ready.
//!
//! `scene` keeps what is known of a conversation, `predict` weighs candidates; both are pure.

pub mod predict;
pub mod scene;
