//! The same models as plain tensor operations, for devices that our kernels do not reach.
//!
//! Weights are 32-bit floats on the device, whatever the file holds; keys and values are 16-bit
//! floats, as on the processor. Results agree with the kernels' up to rounding, and are equal bits
//! only where passes are cut at the same places.

use std::fmt;

use candle_core::{D, Device, Result, Tensor};

use super::error::ForwardError;
use super::kernels::Gate;
use super::kv_cache::{KvCache, KvError, Store};
use super::model::{LanguageModel, check, finite, in_chunks};
use super::panels::Panels;
use super::pass::Cancelled;
use super::rotation::Turn;
use super::weights::{Angles, Layer, ModelConfig, Weights};
use crate::inference::candle::simd::PANEL;

/// What a hidden score becomes.
const HIDDEN_SCORE: f32 = -1e30;

/// A model on a device.
pub struct TensorModel {
    device: Device,
    config: ModelConfig,
    gate: Gate,
    score_scale: f64,
    embedding_scale: f64,
    embedding: Tensor,
    head: Tensor,
    norm: Tensor,
    layers: Vec<TensorLayer>,
    global_angles: [Tensor; 2],
    local_angles: Option<[Tensor; 2]>,
}

/// Matrices are `[columns, depth]`.
struct TensorLayer {
    attention_norm: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_norms: Option<[Tensor; 2]>,
    mix: Tensor,
    mix_norm: Option<Tensor>,
    wide_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    down_norm: Option<Tensor>,
    window: Option<usize>,
}

fn matrix(panels: &Panels, device: &Device) -> Result<Tensor> {
    let (columns, depth) = (panels.count() * PANEL, panels.depth());
    let mut values = vec![0.0; columns * depth];
    for (column, row) in values.chunks_exact_mut(depth).enumerate() {
        panels.column(column, row);
    }
    Tensor::from_vec(values, (columns, depth), device)
}

fn vector(values: &[f32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), device)
}

impl TensorLayer {
    fn new(layer: &Layer, device: &Device) -> Result<Self> {
        let norm = |values: &[f32]| vector(values, device);
        let maybe = |values: Option<&[f32]>| values.map(norm).transpose();
        let head_norms = match &layer.head_norms {
            Some((query, key)) => Some([norm(query)?, norm(key)?]),
            None => None,
        };
        Ok(Self {
            attention_norm: norm(&layer.attention_norm)?,
            query: matrix(&layer.query, device)?,
            key: matrix(&layer.key, device)?,
            value: matrix(&layer.value, device)?,
            head_norms,
            mix: matrix(&layer.mix, device)?,
            mix_norm: maybe(layer.mix_norm.as_deref())?,
            wide_norm: norm(&layer.wide_norm)?,
            gate: matrix(&layer.gate, device)?,
            up: matrix(&layer.up, device)?,
            down: matrix(&layer.down, device)?,
            down_norm: maybe(layer.down_norm.as_deref())?,
            window: layer.window,
        })
    }
}

impl TensorModel {
    pub(super) fn new(config: ModelConfig, weights: &Weights, device: &Device) -> Result<Self> {
        let angles = |angles: &Angles| -> Result<[Tensor; 2]> {
            let shape = (config.window_tokens, config.head_dim / 2);
            let (cosines, sines) = angles.all();
            Ok([
                Tensor::from_slice(cosines, shape, device)?,
                Tensor::from_slice(sines, shape, device)?,
            ])
        };
        let embedding = matrix(&weights.embedding, device)?;
        Ok(Self {
            gate: weights.gate,
            score_scale: f64::from(weights.score_scale),
            embedding_scale: f64::from(weights.embedding_scale),
            head: match &weights.head {
                Some(head) => matrix(head, device)?,
                None => embedding.clone(),
            },
            embedding,
            norm: vector(&weights.norm, device)?,
            layers: weights
                .layers
                .iter()
                .map(|layer| TensorLayer::new(layer, device))
                .collect::<Result<_>>()?,
            global_angles: angles(&weights.global_angles)?,
            local_angles: weights.local_angles.as_ref().map(angles).transpose()?,
            device: device.clone(),
            config,
        })
    }

    /// The hidden state after the last token, or nothing when the pass was cancelled.
    fn run(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        cancelled: Cancelled<'_>,
    ) -> Result<Option<Vec<f32>>> {
        let first = cache.len_tokens();
        let ids = Tensor::new(tokens, &self.device)?;
        let mut hidden = (self.embedding.index_select(&ids, 0)? * self.embedding_scale)?;
        for (index, layer) in self.layers.iter().enumerate() {
            if cancelled() {
                return Ok(None);
            }
            let normed = self.norm(&hidden, &layer.attention_norm)?;
            let context = self.attend(layer, index, &normed, first, cache)?;
            hidden = self.add(&hidden, &context, &layer.mix, layer.mix_norm.as_ref())?;
            let normed = self.norm(&hidden, &layer.wide_norm)?;
            let gate = normed.matmul(&layer.gate.t()?)?;
            let gate = match self.gate {
                Gate::Silu => gate.silu()?,
                Gate::Gelu => gate.gelu()?,
            };
            let wide = (gate * normed.matmul(&layer.up.t()?)?)?;
            hidden = self.add(&hidden, &wide, &layer.down, layer.down_norm.as_ref())?;
        }
        cache.advance(tokens.len());
        Ok(Some(hidden.get(tokens.len() - 1)?.to_vec1()?))
    }

    fn norm(&self, rows: &Tensor, gain: &Tensor) -> Result<Tensor> {
        let mean = rows.sqr()?.mean_keepdim(D::Minus1)?;
        let root = (mean + f64::from(self.config.norm_epsilon))?.sqrt()?;
        rows.broadcast_div(&root)?.broadcast_mul(gain)
    }

    fn add(
        &self,
        hidden: &Tensor,
        left: &Tensor,
        panels: &Tensor,
        norm: Option<&Tensor>,
    ) -> Result<Tensor> {
        let added = left.matmul(&panels.t()?)?;
        match norm {
            Some(gain) => hidden + self.norm(&added, gain)?,
            None => hidden + added,
        }
    }

    fn attend(
        &self,
        layer: &TensorLayer,
        index: usize,
        normed: &Tensor,
        first: usize,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let (count, dim) = (normed.dim(0)?, self.config.head_dim);
        let (kv_heads, group) = (self.config.kv_heads, self.config.group());
        let heads = |matrix: &Tensor| {
            let heads = matrix.dim(0)? / dim;
            normed.matmul(&matrix.t()?)?.reshape((count, heads, dim))?.transpose(0, 1)?.contiguous()
        };
        let (mut queries, mut keys) = (heads(&layer.query)?, heads(&layer.key)?);
        if let Some([query_norm, key_norm]) = &layer.head_norms {
            queries = self.norm(&queries, query_norm)?;
            keys = self.norm(&keys, key_norm)?;
        }
        let keys = self.rotate(layer, &keys, first)?;
        let queries = self.rotate(layer, &queries, first)?;
        let new = [keys, heads(&layer.value)?];
        let [keys, values] = cache.device_mut()?.append(index, first, new)?;
        let total = first + count;
        let scores = queries
            .reshape((kv_heads, group * count, dim))?
            .matmul(&keys.transpose(1, 2)?.contiguous()?)?
            .reshape((kv_heads * group, count, total))?;
        let mask = self.mask(layer, first, count)?;
        let scores = (scores * self.score_scale)?.broadcast_add(&mask)?;
        let top = scores.max_keepdim(D::Minus1)?;
        let weights = scores.broadcast_sub(&top)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        weights
            .reshape((kv_heads, group * count, total))?
            .matmul(&values.contiguous()?)?
            .reshape((kv_heads * group, count, dim))?
            .transpose(0, 1)?
            .reshape((count, kv_heads * group * dim))
    }

    fn mask(&self, layer: &TensorLayer, first: usize, count: usize) -> Result<Tensor> {
        let total = first + count;
        let score = |at: usize| {
            let (position, key) = (first + at / total, at % total);
            let is_near = layer.window.is_none_or(|window| key + window > position);
            if key <= position && is_near { 0.0 } else { HIDDEN_SCORE }
        };
        let scores: Vec<f32> = (0..count * total).map(score).collect();
        Tensor::from_vec(scores, (count, total), &self.device)
    }

    fn angles(&self, layer: &TensorLayer) -> &[Tensor; 2] {
        match (&self.local_angles, layer.window) {
            (Some(local), Some(_)) => local,
            _ => &self.global_angles,
        }
    }

    fn rotate(&self, layer: &TensorLayer, heads: &Tensor, first: usize) -> Result<Tensor> {
        let half = self.config.head_dim / 2;
        let [cosines, sines] = self.angles(layer);
        let count = heads.dim(1)?;
        let (cosines, sines) = (cosines.narrow(0, first, count)?, sines.narrow(0, first, count)?);
        let left = heads.narrow(2, 0, half)?;
        let right = heads.narrow(2, half, half)?;
        let first = (left.broadcast_mul(&cosines)? - right.broadcast_mul(&sines)?)?;
        let second = (right.broadcast_mul(&cosines)? + left.broadcast_mul(&sines)?)?;
        Tensor::cat(&[first, second], 2)
    }
}

fn failed(error: &candle_core::Error) -> ForwardError {
    ForwardError::Device(error.to_string())
}

impl fmt::Debug for TensorModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorModel").field("config", &self.config).finish_non_exhaustive()
    }
}

impl LanguageModel for TensorModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        cancelled: Cancelled<'_>,
    ) -> std::result::Result<Vec<f32>, ForwardError> {
        check(&self.config, tokens, cache)?;
        if matches!(cache.store, Store::Pages(_)) {
            return Err(ForwardError::WrongCache);
        }
        in_chunks(tokens, cache, |chunk, cache, _| {
            let hidden = self.run(chunk, cache, cancelled).map_err(|error| failed(&error))?;
            hidden.ok_or(ForwardError::Cancelled)
        })
    }

    fn logits(&self, hidden: &[f32]) -> std::result::Result<Vec<f32>, ForwardError> {
        let run = || {
            let row = Tensor::from_slice(hidden, (1, hidden.len()), &self.device)?;
            let normed = self.norm(&row, &self.norm)?;
            normed.matmul(&self.head.t()?)?.flatten_all()?.to_vec1()
        };
        finite(run().map_err(|error: candle_core::Error| failed(&error))?)
    }

    fn turn(&self, layer: usize, position: usize) -> std::result::Result<Turn, KvError> {
        let [cosines, sines] = self.angles(&self.layers[layer]);
        let at = |angles: &Tensor| angles.get(position)?.to_vec1();
        at(cosines)
            .and_then(|cosines| Ok((cosines, at(sines)?)))
            .map_err(|error: candle_core::Error| KvError::Device(error.to_string()))
    }

    fn new_cache(&self) -> KvCache {
        KvCache::on_device(self.config.kv_shape(), &self.device)
    }

    fn weights_bytes(&self) -> usize {
        let layer = |layer: &TensorLayer| {
            let matrices = [&layer.query, &layer.key, &layer.value, &layer.mix];
            let wide = [&layer.gate, &layer.up, &layer.down];
            matrices.into_iter().chain(wide).map(Tensor::elem_count).sum::<usize>()
        };
        let floats = self.embedding.elem_count() + self.layers.iter().map(layer).sum::<usize>();
        floats * size_of::<f32>()
    }
}
