//! Weight matrices as panels of 32 output columns, in the precision of the model's file.
//!
//! A coded weight is `code * scale + offset`, with one scale and one offset for 32 weights of a
//! column. That is how GGUF's simple types are defined, so nothing is rounded at load; the other
//! types are kept as floats.

use std::ops::Range;

use half::f16;

use crate::inference::candle::aligned::AlignedFloats;
use crate::inference::candle::simd::PANEL;

/// Weights of a column that share scale and offset.
pub(super) const BLOCK: usize = 32;

/// A matrix of `depth` rows and `32 * count` columns.
pub(super) struct Panels {
    depth: usize,
    count: usize,
    weights: Weights,
}

pub(super) enum Weights {
    /// Panel after panel, each `depth` rows of 32 floats.
    Floats(AlignedFloats),
    /// Codes of 4 bits: a byte holds column c below and column c + 16 above.
    Nibbles(Coded),
    /// Codes of 8 bits.
    Bytes(Coded),
}

pub(super) struct Coded {
    /// Panel after panel, each `depth` steps of 32 codes.
    codes: Vec<u8>,
    /// Panel after panel, block after block: 32 scales, then 32 offsets.
    scales: Vec<u16>,
}

impl Coded {
    pub(super) fn codes(&self, panel: usize, panel_bytes: usize) -> &[u8] {
        &self.codes[panel * panel_bytes..][..panel_bytes]
    }

    pub(super) fn scales(&self, panel: usize, depth: usize) -> &[u16] {
        let len = depth / BLOCK * 2 * PANEL;
        &self.scales[panel * len..][..len]
    }
}

/// A row of a file's matrix in blocks of 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
}

impl Encoding {
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
        }
    }

    fn is_nibbles(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q4_1)
    }

    /// Scale, offset and codes of one block.
    fn decode(self, block: &[u8]) -> (f16, f16, [u8; BLOCK]) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        let scale = half(0);
        // Exact: the factors are powers of two.
        let centred = |zero: f32| f16::from_f32(-zero * scale.to_f32());
        let mut codes = [0; BLOCK];
        let nibbles = |codes: &mut [u8; BLOCK], bytes: &[u8]| {
            for (at, byte) in bytes.iter().enumerate() {
                codes[at] = byte & 15;
                codes[at + BLOCK / 2] = byte >> 4;
            }
        };
        let fifth_bits = |codes: &mut [u8; BLOCK], bytes: &[u8]| {
            for (at, code) in codes.iter_mut().enumerate() {
                *code |= (bytes[at / 8] >> (at % 8) & 1) << 4;
            }
        };
        let offset = match self {
            Self::Q4_0 => {
                nibbles(&mut codes, &block[2..18]);
                centred(8.0)
            }
            Self::Q4_1 => {
                nibbles(&mut codes, &block[4..20]);
                half(2)
            }
            Self::Q5_0 => {
                nibbles(&mut codes, &block[6..22]);
                fifth_bits(&mut codes, &block[2..6]);
                centred(16.0)
            }
            Self::Q5_1 => {
                nibbles(&mut codes, &block[8..24]);
                fifth_bits(&mut codes, &block[4..8]);
                half(2)
            }
            Self::Q8_0 => {
                for (code, byte) in codes.iter_mut().zip(&block[2..34]) {
                    *code = byte ^ 128;
                }
                centred(128.0)
            }
        };
        (scale, offset, codes)
    }
}

impl Panels {
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Packs the rows of `[columns, depth]` floats; column c is made from row `row_of(c)`.
    pub(super) fn from_floats(
        floats: &[f32],
        depth: usize,
        row_of: impl Fn(usize) -> usize,
    ) -> Self {
        let count = floats.len() / depth / PANEL;
        let mut packed = AlignedFloats::zeroed(count * depth * PANEL);
        for column in 0..count * PANEL {
            let (panel, lane) = (column / PANEL, column % PANEL);
            let row = &floats[row_of(column) * depth..][..depth];
            let to = packed[panel * depth * PANEL..].chunks_exact_mut(PANEL);
            row.iter().zip(to).for_each(|(value, step)| step[lane] = *value);
        }
        Self { depth, count, weights: Weights::Floats(packed) }
    }

    /// Packs rows of coded blocks; column c is made from row `row_of(c)`.
    pub(super) fn from_blocks(
        bytes: &[u8],
        encoding: Encoding,
        depth: usize,
        row_of: impl Fn(usize) -> usize,
    ) -> Self {
        let row_bytes = depth / BLOCK * encoding.block_bytes();
        let count = bytes.len() / row_bytes / PANEL;
        let step_bytes = if encoding.is_nibbles() { PANEL / 2 } else { PANEL };
        let mut codes = vec![0; count * depth * step_bytes];
        let mut scales = vec![0; count * depth / BLOCK * 2 * PANEL];
        for column in 0..count * PANEL {
            let (panel, lane) = (column / PANEL, column % PANEL);
            let row = &bytes[row_of(column) * row_bytes..][..row_bytes];
            for (index, block) in row.chunks_exact(encoding.block_bytes()).enumerate() {
                let (scale, offset, values) = encoding.decode(block);
                let at = (panel * depth / BLOCK + index) * 2 * PANEL + lane;
                scales[at] = scale.to_bits();
                scales[at + PANEL] = offset.to_bits();
                let first = (panel * depth + index * BLOCK) * step_bytes;
                for (step, value) in values.iter().enumerate() {
                    let step = &mut codes[first + step * step_bytes..][..step_bytes];
                    if encoding.is_nibbles() {
                        step[lane % (PANEL / 2)] |= value << (4 * (lane / (PANEL / 2)));
                    } else {
                        step[lane] = *value;
                    }
                }
            }
        }
        let coded = Coded { codes, scales };
        let weights =
            if encoding.is_nibbles() { Weights::Nibbles(coded) } else { Weights::Bytes(coded) };
        Self { depth, count, weights }
    }

    /// Decodes one column, which for an embedding is one token.
    pub(super) fn column(&self, column: usize, out: &mut [f32]) {
        let (panel, lane) = (column / PANEL, column % PANEL);
        let depth = self.depth;
        let decode = |coded: &Coded, step_bytes: usize, out: &mut [f32]| {
            let codes = coded.codes(panel, depth * step_bytes).chunks_exact(step_bytes);
            let scales = coded.scales(panel, depth);
            for (at, (step, out)) in codes.zip(out).enumerate() {
                let code = if step_bytes == PANEL {
                    step[lane]
                } else {
                    step[lane % (PANEL / 2)] >> (4 * (lane / (PANEL / 2))) & 15
                };
                let block = at / BLOCK * 2 * PANEL + lane;
                let half = |at: usize| f16::from_bits(scales[at]).to_f32();
                *out = f32::from(code) * half(block) + half(block + PANEL);
            }
        };
        match &self.weights {
            Weights::Floats(floats) => {
                let panel = floats[panel * depth * PANEL..].chunks_exact(PANEL);
                panel.zip(out).for_each(|(step, out)| *out = step[lane]);
            }
            Weights::Nibbles(coded) => decode(coded, PANEL / 2, out),
            Weights::Bytes(coded) => decode(coded, PANEL, out),
        }
    }

    /// Bytes of the weights in memory.
    pub(super) fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Floats(floats) => floats.len() * size_of::<f32>(),
            Weights::Nibbles(coded) | Weights::Bytes(coded) => {
                coded.codes.len() + coded.scales.len() * size_of::<u16>()
            }
        }
    }

    /// The part of the panels that member `rank` of a team of `size` works on.
    pub(super) fn share(&self, rank: usize, size: usize) -> Range<usize> {
        rank * self.count / size..(rank + 1) * self.count / size
    }
}
