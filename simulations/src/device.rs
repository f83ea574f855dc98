//! The embedding model of a simulated node: it understands nothing, and runs out of memory.

use std::sync::Mutex;

use memcube_actors::embedder::{Embedder, Embedding, ScriptedEmbedder};
use memcube_schemas::ModelId;

use crate::{
    conditions::{Conditions, Place, Touches},
    dice,
    plan::FaultClass,
};

/// Dimensions of the vectors.
pub(crate) const DIMENSIONS: usize = 32;

/// The model of one life of a node. How long a pass takes is up to `NodeCompute`.
pub(crate) struct FaultyEmbedder {
    inner: ScriptedEmbedder,
    conditions: Conditions,
    node: u32,
    life: u64,
    touches: Mutex<Touches>,
}

impl FaultyEmbedder {
    /// A model on a fresh device, for the life that goes on.
    pub(crate) fn new(conditions: Conditions, node: u32) -> Self {
        let life = conditions.life(node);
        let inner = ScriptedEmbedder::new(DIMENSIONS);
        Self { inner, conditions, node, life, touches: Mutex::default() }
    }
}

impl Embedder for FaultyEmbedder {
    fn model(&self) -> &ModelId {
        self.inner.model()
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, String> {
        let text = texts.first().map_or(0, |text| dice::hash(text.as_bytes()));
        let mut touches =
            self.touches.lock().expect("invariant: nothing panics while it holds the touches");
        // Another life has other luck with the same text.
        let id = touches.next(text).wrapping_add(self.life);
        let occasion = self.conditions.occasion(Place::Device { node: self.node }, id);
        if self.conditions.strikes(FaultClass::DeviceOutOfMemory, occasion) {
            return Err("the device is out of memory".to_owned());
        }
        self.inner.embed(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::tests::with_faults;

    #[tokio::test(start_paused = true)]
    async fn a_device_is_out_of_memory_until_the_heal() {
        let conditions = with_faults(&[FaultClass::DeviceOutOfMemory]);
        let embedder = FaultyEmbedder::new(conditions.clone(), 0);
        assert_eq!(embedder.embed(&["a b"]), Err("the device is out of memory".to_owned()));
        conditions.heal();
        let healed = embedder.embed(&["a b", "c"]).expect("healed");
        let calm = FaultyEmbedder::new(with_faults(&[]), 0);
        assert_eq!(calm.embed(&["a b", "c"]), Ok(healed.clone()));
        assert_eq!((healed.len(), healed[0].vector.len()), (2, DIMENSIONS));
        assert_eq!(embedder.model(), calm.model());
    }
}
