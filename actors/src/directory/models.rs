//! The language model of a node.

use super::Cubes;
use crate::{
    cube::CubeKey,
    error::{Error, Result},
    inference::{InferenceHandle, InferenceParts, remote::RemoteParts},
};

impl Cubes {
    /// Starts the actor in front of the node's language model, which from now on answers chats of
    /// its cubes. It can be started once.
    ///
    /// # Errors
    /// `Internal` when it was started before, or cannot be started.
    pub async fn serve_model(&self, parts: InferenceParts) -> Result<InferenceHandle> {
        let (blobs, environment) = (self.blobs(), self.environment().clone());
        self.serve(InferenceHandle::start(parts, blobs, environment).await?).await
    }

    /// The same with a model that runs elsewhere.
    ///
    /// # Errors
    /// As `serve_model`.
    pub async fn serve_remote_model(&self, parts: RemoteParts) -> Result<InferenceHandle> {
        let environment = self.environment().clone();
        self.serve(InferenceHandle::start_remote(parts, environment).await?).await
    }

    async fn serve(&self, inference: InferenceHandle) -> Result<InferenceHandle> {
        match self.shared().hydrator.inference.set(inference.clone()) {
            Ok(()) => Ok(inference),
            Err(second) => {
                second.stop().await;
                Err(Error::internal("a language model was started twice"))
            }
        }
    }

    /// Whether a cube is in the RAM of this node.
    pub(crate) fn is_hot_here(&self, key: &CubeKey) -> bool {
        self.shared().directory.contains_key(key)
    }

    /// The language model of this node, if there is one.
    #[must_use]
    pub fn inference(&self) -> Option<&InferenceHandle> {
        self.shared().hydrator.inference.get()
    }
}
