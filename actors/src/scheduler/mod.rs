//! The scheduler: follows conversations, predicts what the next turn will need, and has it ready.
//!
//! `scene` keeps what is known of a conversation, `predict` weighs candidates, `plan` says which of
//! them are worth computing ahead, `policy` has the rules that ours is compared with; all are pure.

pub mod plan;
pub mod policy;
pub mod predict;
pub mod scene;
