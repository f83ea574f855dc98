//! Models that run on this node.

#[cfg(feature = "candle")]
pub mod candle;

use std::sync::Arc;

#[cfg(not(feature = "candle"))]
use memcube_actors::Error;
use memcube_actors::{Result, embedder::Embedder};

use crate::settings::EmbedderSettings;

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
