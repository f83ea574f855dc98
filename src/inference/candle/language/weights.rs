//! What a language model of the Llama family consists of, in memory.

use super::kernels::Gate;
use super::kv_cache::KvShape;
use super::panels::Panels;
use crate::inference::candle::aligned::AlignedFloats;

/// Families of models that the forward pass knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, SmolLM2 and their like.
    Llama,
    /// Gemma 3: normed queries and keys, norms after each part, windowed layers.
    Gemma3,
}

/// The numbers that describe a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which family it belongs to.
    pub architecture: Architecture,
    /// Layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub width: usize,
    /// Width of the feed-forward layer.
    pub wide: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Tokens the model knows.
    pub vocabulary: usize,
    /// Tokens a context may hold.
    pub window_tokens: usize,
    /// Base of the rotary angles.
    pub rope_base: f32,
    /// What the mean square in norms is kept above.
    pub norm_epsilon: f32,
    /// Tokens that a windowed layer looks back, if the model has such layers.
    pub local_window_tokens: Option<usize>,
}

impl ModelConfig {
    /// What its caches hold for each token.
    pub fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.layers, heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// Query heads that share a key-value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(super) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of queries, keys and values side by side.
    pub(super) fn attention_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }
}

pub(super) struct Weights {
    pub(super) embedding: Panels,
    /// What embeddings are multiplied by.
    pub(super) embedding_scale: f32,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: AlignedFloats,
    /// The output matrix, unless it is the embedding's.
    pub(super) head: Option<Panels>,
    pub(super) gate: Gate,
    /// What attention scores are multiplied by.
    pub(super) score_scale: f32,
    pub(super) global_angles: Angles,
    pub(super) local_angles: Option<Angles>,
}

pub(super) struct Layer {
    pub(super) attention_norm: AlignedFloats,
    pub(super) query: Panels,
    pub(super) key: Panels,
    pub(super) value: Panels,
    /// Norms of each head's queries and keys.
    pub(super) head_norms: Option<(AlignedFloats, AlignedFloats)>,
    pub(super) mix: Panels,
    /// Norm of what attention adds.
    pub(super) mix_norm: Option<AlignedFloats>,
    pub(super) wide_norm: AlignedFloats,
    pub(super) gate: Panels,
    pub(super) up: Panels,
    pub(super) down: Panels,
    /// Norm of what the feed-forward layer adds.
    pub(super) down_norm: Option<AlignedFloats>,
    /// Tokens it looks back, if not all.
    pub(super) window: Option<usize>,
}

impl Weights {
    pub(super) fn head(&self) -> &Panels {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(super) fn angles(&self, layer: &Layer) -> &Angles {
        match (&self.local_angles, layer.window) {
            (Some(local), Some(_)) => local,
            _ => &self.global_angles,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let layer = |layer: &Layer| {
            [&layer.query, &layer.key, &layer.value, &layer.mix, &layer.gate, &layer.up]
                .iter()
                .map(|panels| panels.bytes())
                .sum::<usize>()
                + layer.down.bytes()
        };
        self.embedding.bytes()
            + self.head.as_ref().map_or(0, Panels::bytes)
            + self.layers.iter().map(layer).sum::<usize>()
    }
}

/// Cosines and sines of the rotary angles of every position.
pub(super) struct Angles {
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Angles {
    pub(super) fn new(base: f32, head_dim: usize, positions: usize) -> Self {
        let half = head_dim / 2;
        let speed = |at: usize| f64::from(base).powf(-(at as f64) / half as f64);
        let speeds: Vec<f64> = (0..half).map(speed).collect();
        let angles = (0..positions)
            .flat_map(|position| speeds.iter().map(move |speed| position as f64 * speed));
        let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { half, cosines, sines }
    }

    /// Cosines and sines, position after position.
    pub(super) fn all(&self) -> (&[f32], &[f32]) {
        (&self.cosines, &self.sines)
    }

    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cosines[range.clone()], &self.sines[range])
    }
}
