//! What a tenant's predictor has learned.

use rkyv::{Archive, Deserialize, Serialize};

use crate::codec::Stored;

/// The weights of a tenant's predictor. Derived, and never needed: without it, prediction begins
/// with what it knows before it has seen anything.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct PredictorRecord {
    /// Counts how often it was reset: what was learned before a reset is not written after it.
    pub generation: u64,
    /// Which inputs the weights belong to: weights for others are left aside.
    pub inputs: String,
    /// The weights before anything is typed, and while something is typed.
    pub weights: [Vec<f32>; 2],
    /// Turns that it has learned from.
    pub turns: u64,
    /// When it was written: Unix milliseconds.
    pub at_ms: i64,
}

impl Stored for PredictorRecord {
    const NAME: &'static str = "predictor record";
    const KIND: u8 = 21;
    const FORMAT: u8 = 1;
}
