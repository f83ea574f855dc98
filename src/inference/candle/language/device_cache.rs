//! Keys and values on a device: one tensor for each layer, `[head, token, dim]` in 16-bit floats.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use half::f16;

use super::kv_cache::KvShape;

/// Where a cache of a model on a device keeps what it holds.
#[derive(Clone)]
pub(super) struct DeviceCache {
    device: Device,
    /// Keys, then values.
    layers: Vec<Option<[Tensor; 2]>>,
}

impl DeviceCache {
    pub(super) fn new(layers: usize, device: &Device) -> Self {
        Self { device: device.clone(), layers: vec![None; layers] }
    }

    /// Appends 32-bit keys and values to a layer that holds `len` tokens; returns all of them.
    pub(super) fn append(
        &mut self,
        layer: usize,
        len: usize,
        new: [Tensor; 2],
    ) -> Result<[Tensor; 2]> {
        let [keys, values] = new;
        let new = [keys.to_dtype(DType::F16)?, values.to_dtype(DType::F16)?];
        let all = match &self.layers[layer] {
            Some([keys, values]) if len > 0 => {
                let join = |old: &Tensor, new: &Tensor| {
                    // What a cancelled pass left behind the end goes.
                    Tensor::cat(&[&old.narrow(1, 0, len)?, new], 1)
                };
                [join(keys, &new[0])?, join(values, &new[1])?]
            }
            _ => new,
        };
        let [keys, values] = &all;
        let wide = [keys.to_dtype(DType::F32)?, values.to_dtype(DType::F32)?];
        self.layers[layer] = Some(all);
        Ok(wide)
    }

    /// The halves of a span of a layer, in the layout of exported bytes.
    pub(super) fn export(&self, layer: usize, span: &Range<usize>) -> Result<Vec<u16>> {
        let Some([keys, values]) = self.layers[layer].as_ref().filter(|_| !span.is_empty()) else {
            return Ok(Vec::new());
        };
        let part = |tensor: &Tensor| tensor.narrow(1, span.start, span.len());
        // For each head the keys by dimension, then the values by token.
        let keys = part(keys)?.transpose(1, 2)?.contiguous()?.flatten_from(1)?;
        let values = part(values)?.contiguous()?.flatten_from(1)?;
        let halves: Vec<f16> = Tensor::cat(&[keys, values], 1)?.flatten_all()?.to_vec1()?;
        Ok(halves.into_iter().map(f16::to_bits).collect())
    }

    /// Appends the halves of one layer to the `len` tokens it holds.
    pub(super) fn import(
        &mut self,
        shape: &KvShape,
        layer: usize,
        len: usize,
        halves: Vec<u16>,
    ) -> Result<()> {
        let halves: Vec<f16> = halves.into_iter().map(f16::from_bits).collect();
        let tokens = halves.len() / (2 * shape.heads * shape.head_dim);
        let both =
            Tensor::from_vec(halves, (shape.heads, 2, tokens * shape.head_dim), &self.device)?;
        let part = |at: usize| both.narrow(1, at, 1)?.contiguous();
        let keys = part(0)?.reshape((shape.heads, shape.head_dim, tokens))?.transpose(1, 2)?;
        let values = part(1)?.reshape((shape.heads, tokens, shape.head_dim))?;
        let new = [keys.contiguous()?.to_dtype(DType::F32)?, values.to_dtype(DType::F32)?];
        self.append(layer, len, new).map(|_| ())
    }
}
