//! Keys at another position than the one they were computed at.
//!
//! A key is stored after its rotation, so moving it by some positions is one more rotation, by the
//! angles of as many positions. Storing keys before the rotation would round as often, twice, and
//! was measured to be no more exact; this way a key that stays where it was keeps every bit, and
//! the pass over tokens and the stored bytes are the same for both kinds of block.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::kv_cache::KvShape;

/// Cosines and sines of the angles of one position.
pub(super) type Turn = (Vec<f32>, Vec<f32>);

/// A layer of `tokens` tokens in the layout of spans, of which those in `wanted` come out: moved by
/// so many positions as `turn` stands for, or as they are without one.
pub(super) fn moved(
    shape: &KvShape,
    layer: &[u8],
    tokens: usize,
    wanted: &Range<usize>,
    turn: Option<&Turn>,
) -> Vec<u8> {
    let (dim, count) = (shape.head_dim, wanted.len());
    let mut bytes = Vec::with_capacity(shape.layer_bytes(count));
    let mut room = Room::new(count);
    for head in layer.chunks_exact(layer.len() / shape.heads) {
        let (keys, values) = head.split_at(dim * tokens * size_of::<f16>());
        match turn {
            None => (0..dim).for_each(|at| bytes.extend_from_slice(row(keys, at, tokens, wanted))),
            Some(turn) => room.turn(keys, tokens, wanted, turn, &mut bytes),
        }
        let value = dim * size_of::<f16>();
        bytes.extend_from_slice(&values[wanted.start * value..wanted.end * value]);
    }
    bytes
}

/// The wanted tokens of one dimension of a head's keys.
fn row<'a>(keys: &'a [u8], at: usize, tokens: usize, wanted: &Range<usize>) -> &'a [u8] {
    let half = size_of::<f16>();
    &keys[(at * tokens + wanted.start) * half..(at * tokens + wanted.end) * half]
}

/// Two dimensions of a head that turn together.
struct Room {
    halves: Vec<f16>,
    left: Vec<f32>,
    right: Vec<f32>,
    out: Vec<f32>,
}

impl Room {
    fn new(count: usize) -> Self {
        let floats = || vec![0.0; count];
        Self { halves: vec![f16::ZERO; count], left: floats(), right: floats(), out: floats() }
    }

    /// Appends a head's keys, turned: the second half of its dimensions pairs with the first.
    fn turn(
        &mut self,
        keys: &[u8],
        tokens: usize,
        wanted: &Range<usize>,
        (cosines, sines): &Turn,
        bytes: &mut Vec<u8>,
    ) {
        let half = cosines.len();
        for at in 0..2 * half {
            let pair = at % half;
            widen(row(keys, pair, tokens, wanted), &mut self.halves, &mut self.left);
            widen(row(keys, pair + half, tokens, wanted), &mut self.halves, &mut self.right);
            let (cosine, sine) = (cosines[pair], sines[pair]);
            let pairs = self.left.iter().zip(&self.right);
            for (out, (left, right)) in self.out.iter_mut().zip(pairs) {
                *out = if at < half {
                    left * cosine - right * sine
                } else {
                    right * cosine + left * sine
                };
            }
            self.halves.convert_from_f32_slice(&self.out);
            bytes.extend(self.halves.iter().flat_map(|half| half.to_le_bytes()));
        }
    }
}

fn widen(bytes: &[u8], halves: &mut [f16], floats: &mut [f32]) {
    for (half, bytes) in halves.iter_mut().zip(bytes.chunks_exact(size_of::<f16>())) {
        *half = f16::from_le_bytes([bytes[0], bytes[1]]);
    }
    halves.convert_to_f32_slice(floats);
}
