//! The scheduler: follows conversations, predicts what the next turn will need, and has it ready.
//!
//! Pure: `scene` keeps what was said, `predict` weighs candidates, `plan` says which of them are
//! worth computing ahead, `outcome` compares what was prepared with what was needed, `conversation`
//! puts these together for one conversation, `budget` bounds what a tenant may spend, `policy` has
//! the rules that ours is compared with. Not pure: `inbox` holds what waits, `actor` is one shard
//! of conversations, `think` one thought about a next turn, `predictors` what was learned, `log`
//! what was decided, `handle` the front door.

mod actor;
mod budget;
mod conversation;
mod handle;
mod inbox;
pub mod jobs;
pub mod log;
mod outcome;
pub mod plan;
pub mod policy;
pub mod predict;
mod predictors;
mod recover;
pub mod scene;
mod supervisor;
mod think;

pub use self::{
    handle::{FollowedScene, SchedulerHandle, SchedulerParts, SchedulerRules},
    predictors::PredictorView,
};
pub(crate) use self::{
    inbox::{AnsweredTurn, SceneKey},
    recover::recover,
};
