//! The front door of a language model, wherever it runs.

use std::{fmt, sync::Arc};

use super::{
    activation_cache::ActivationCache,
    engine::{Engine, EngineFacts},
    generate::{InferenceParts, LocalModel},
    remote::{RemoteHandle, RemoteParts},
};
use crate::{directory::QueueDepth, environment::Environment, error::Result, storage::Blobs};

/// The front door of a language model. Cheap to clone.
#[derive(Clone)]
pub struct InferenceHandle {
    place: Place,
}

/// Where a model runs.
#[derive(Clone)]
pub(crate) enum Place {
    /// On a device of this node.
    Here(LocalModel),
    /// On a server.
    Elsewhere(RemoteHandle),
}

impl Place {
    /// Whether it is on this node.
    pub(crate) const fn is_here(&self) -> bool {
        match self {
            Self::Here(_) => true,
            Self::Elsewhere(_) => false,
        }
    }
}

impl fmt::Debug for InferenceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InferenceHandle({})", self.facts().fingerprint.model)
    }
}

impl InferenceHandle {
    pub(crate) async fn start(
        parts: InferenceParts,
        blobs: Option<&Blobs>,
        environment: Environment,
    ) -> Result<Self> {
        let place = Place::Here(LocalModel::start(parts, blobs, environment).await?);
        Ok(Self { place })
    }

    pub(crate) async fn start_remote(parts: RemoteParts, environment: Environment) -> Result<Self> {
        Ok(Self { place: Place::Elsewhere(RemoteHandle::start(parts, environment).await?) })
    }

    pub(crate) const fn place(&self) -> &Place {
        &self.place
    }

    /// What is fixed about the model. Of one that runs elsewhere no more is known than its name and
    /// its window.
    #[must_use]
    pub fn facts(&self) -> &EngineFacts {
        match &self.place {
            Place::Here(model) => model.facts(),
            Place::Elsewhere(model) => model.facts(),
        }
    }

    /// The engine, for what takes no device: tokens and texts. `None` if the model runs elsewhere.
    #[must_use]
    pub fn engine(&self) -> Option<&Arc<dyn Engine>> {
        match &self.place {
            Place::Here(model) => Some(model.engine()),
            Place::Elsewhere(_) => None,
        }
    }

    /// What was computed before. Of a model that runs elsewhere it holds who is making prompts, and
    /// nothing else.
    #[must_use]
    pub fn cache(&self) -> &ActivationCache {
        match &self.place {
            Place::Here(model) => model.cache(),
            Place::Elsewhere(model) => model.cache(),
        }
    }

    /// Whether it takes requests.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match &self.place {
            Place::Here(model) => model.is_alive(),
            Place::Elsewhere(model) => model.is_alive(),
        }
    }

    /// How full its queues are.
    #[must_use]
    pub fn queues(&self) -> [QueueDepth; 2] {
        match &self.place {
            Place::Here(model) => model.queues(),
            Place::Elsewhere(model) => model.queues(),
        }
    }

    pub(crate) fn kill(&self) {
        match &self.place {
            Place::Here(model) => model.kill(),
            Place::Elsewhere(model) => model.kill(),
        }
    }

    /// Ends the actor in front of it.
    pub async fn stop(&self) {
        match &self.place {
            Place::Here(model) => model.stop().await,
            Place::Elsewhere(model) => model.stop().await,
        }
    }
}
