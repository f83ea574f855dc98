//! The encoder as plain tensor operations, for the devices candle supports.

use candle_core::{D, Device, Result, Tensor};

use super::checkpoint::{Checkpoint, HEADS, HIDDEN, LoadError, WIDE};

/// Sequences padded to one length and run together.
const BATCH_MAX: usize = 32;
const HEAD_WIDTH: usize = HIDDEN / HEADS;
/// Added to the score of a padding key.
const MASKED: f32 = -1e9;

/// The encoder's weights on a device.
pub(super) struct TensorEncoder {
    device: Device,
    words: Tensor,
    positions: Tensor,
    kind: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    mix: Linear,
    mix_norm: Norm,
    widen: Linear,
    narrow: Linear,
    narrow_norm: Norm,
}

struct Linear {
    /// Transposed view, so that rows of activations are multiplied from the left.
    weights: Tensor,
    bias: Tensor,
}

struct Norm {
    gain: Tensor,
    offset: Tensor,
    epsilon: f64,
}

impl TensorEncoder {
    /// Puts the weights of a checkpoint on `device`.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let config = &checkpoint.config;
        let embedding = |name: &str, rows| {
            checkpoint.tensor(
                &format!("embeddings.{name}_embeddings.weight"),
                &[rows, HIDDEN],
                device,
            )
        };
        Ok(Self {
            words: embedding("word", config.vocab_size)?,
            positions: embedding("position", config.max_position_embeddings)?,
            kind: embedding("token_type", config.type_vocab_size)?
                .narrow(0, 0, 1)
                .map_err(LoadError::Device)?,
            norm: Norm::load(checkpoint, "embeddings.LayerNorm", device)?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Layer::load(checkpoint, &format!("encoder.layer.{layer}"), device))
                .collect::<std::result::Result<_, _>>()?,
            device: device.clone(),
        })
    }

    /// Returns the mean hidden state of each sequence.
    pub(super) fn run(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        // Similar lengths together waste the least work on padding.
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&index| sequences[index].len());
        let mut means = vec![Vec::new(); sequences.len()];
        for batch in order.chunks(BATCH_MAX) {
            let members: Vec<&[u32]> = batch.iter().map(|&index| sequences[index]).collect();
            for (&index, mean) in batch.iter().zip(self.run_batch(&members)?.to_vec2()?) {
                means[index] = mean;
            }
        }
        Ok(means)
    }

    fn run_batch(&self, sequences: &[&[u32]]) -> Result<Tensor> {
        let count = sequences.len();
        let longest = sequences.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
        let mut ids = vec![0u32; count * longest];
        let mut present = vec![0f32; count * longest];
        for (row, sequence) in sequences.iter().enumerate() {
            ids[row * longest..][..sequence.len()].copy_from_slice(sequence);
            present[row * longest..][..sequence.len()].fill(1.0);
        }
        let ids = Tensor::from_vec(ids, count * longest, &self.device)?;
        let present = Tensor::from_vec(present, (count, longest), &self.device)?;
        let mask = present
            .affine(f64::from(-MASKED), f64::from(MASKED))?
            .reshape((count, 1, 1, longest))?;

        let words = self.words.index_select(&ids, 0)?.reshape((count, longest, HIDDEN))?;
        let places = self.positions.narrow(0, 0, longest)?.broadcast_add(&self.kind)?;
        let embedded = words.broadcast_add(&places)?.reshape((count * longest, HIDDEN))?;
        let mut hidden = self.norm.apply(&embedded)?;
        for layer in &self.layers {
            hidden = layer.apply(&hidden, &mask, (count, longest))?;
        }
        let present = present.unsqueeze(2)?;
        let sum = hidden.reshape((count, longest, HIDDEN))?.broadcast_mul(&present)?.sum(1)?;
        sum.broadcast_div(&present.sum(1)?)
    }
}

impl Layer {
    fn load(
        checkpoint: &Checkpoint,
        name: &str,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let linear = |part: &str, columns, depth| {
            Linear::load(checkpoint, &format!("{name}.{part}"), (columns, depth), device)
        };
        let norm = |part: &str| Norm::load(checkpoint, &format!("{name}.{part}"), device);
        Ok(Self {
            query: linear("attention.self.query", HIDDEN, HIDDEN)?,
            key: linear("attention.self.key", HIDDEN, HIDDEN)?,
            value: linear("attention.self.value", HIDDEN, HIDDEN)?,
            mix: linear("attention.output.dense", HIDDEN, HIDDEN)?,
            mix_norm: norm("attention.output.LayerNorm")?,
            widen: linear("intermediate.dense", WIDE, HIDDEN)?,
            narrow: linear("output.dense", HIDDEN, WIDE)?,
            narrow_norm: norm("output.LayerNorm")?,
        })
    }

    fn apply(
        &self,
        hidden: &Tensor,
        mask: &Tensor,
        (count, longest): (usize, usize),
    ) -> Result<Tensor> {
        let heads = |linear: &Linear| {
            linear
                .apply(hidden)?
                .reshape((count, longest, HEADS, HEAD_WIDTH))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (query, key, value) = (heads(&self.query)?, heads(&self.key)?, heads(&self.value)?);
        let scores = query.matmul(&key.transpose(2, 3)?.contiguous()?)?;
        let scores = (scores / (HEAD_WIDTH as f64).sqrt())?.broadcast_add(mask)?;
        let context = softmax(&scores)?.matmul(&value)?;
        let context = context.transpose(1, 2)?.contiguous()?.reshape((count * longest, HIDDEN))?;
        let hidden = self.mix_norm.apply(&(self.mix.apply(&context)? + hidden)?)?;
        let wide = self.widen.apply(&hidden)?.gelu_erf()?;
        self.narrow_norm.apply(&(self.narrow.apply(&wide)? + hidden)?)
    }
}

impl Linear {
    fn load(
        checkpoint: &Checkpoint,
        name: &str,
        shape: (usize, usize),
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let weights = checkpoint.tensor(&format!("{name}.weight"), &[shape.0, shape.1], device)?;
        Ok(Self {
            weights: weights.t().map_err(LoadError::Device)?,
            bias: checkpoint.tensor(&format!("{name}.bias"), &[shape.0], device)?,
        })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        rows.matmul(&self.weights)?.broadcast_add(&self.bias)
    }
}

impl Norm {
    fn load(
        checkpoint: &Checkpoint,
        name: &str,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            gain: checkpoint.tensor(&format!("{name}.weight"), &[HIDDEN], device)?,
            offset: checkpoint.tensor(&format!("{name}.bias"), &[HIDDEN], device)?,
            epsilon: f64::from(checkpoint.config.layer_norm_eps),
        })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let centred = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.epsilon)?.sqrt()?;
        centred.broadcast_div(&deviation)?.broadcast_mul(&self.gain)?.broadcast_add(&self.offset)
    }
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}
