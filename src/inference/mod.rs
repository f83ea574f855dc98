//! Models that run on this node, and one that runs elsewhere.

#[cfg(feature = "candle")]
pub mod candle;
pub mod openai;

use std::sync::Arc;

#[cfg(not(feature = "candle"))]
use memcube_actors::Error;
use memcube_actors::{Result, embedder::Embedder, inference::Engine};

use crate::settings::{EmbedderSettings, InferenceSettings};

/// Opens the embedder that the settings name.
///
/// # Errors
/// `Unavailable` when the model's files are missing or broken, or this memcube was built without
/// models.
#[cfg(feature = "candle")]
pub fn open(settings: &EmbedderSettings) -> Result<Arc<dyn Embedder>> {
    candle::open(settings)
}

/// Opens the embedder that the settings name.
///
/// # Errors
/// Always: this memcube was built without models.
#[cfg(not(feature = "candle"))]
pub fn open(_settings: &EmbedderSettings) -> Result<Arc<dyn Embedder>> {
    Err(Error::unavailable(
        "this memcube was built without the feature `candle`; build with it, or set \
         `embedder.kind` to `none`",
    ))
}

/// Opens the language model that this node runs.
///
/// # Errors
/// `Unavailable` when a file is missing or this memcube was built without models, `Corrupt` when
/// it is not the pinned one or cannot be run.
#[cfg(feature = "candle")]
pub fn open_local(settings: &InferenceSettings) -> Result<Arc<dyn Engine>> {
    Ok(Arc::new(candle::engine::CandleEngine::of(settings)?))
}

/// Opens the language model that this node runs.
///
/// # Errors
/// Always: this memcube was built without models.
#[cfg(not(feature = "candle"))]
pub fn open_local(_settings: &InferenceSettings) -> Result<Arc<dyn Engine>> {
    Err(Error::unavailable(
        "this memcube was built without the feature `candle`; build with it, or set \
         `inference.kind` to `none`",
    ))
}
