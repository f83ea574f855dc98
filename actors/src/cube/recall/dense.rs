//! Vectors of a cube: exact ones, and 8-bit codes that a scan goes through.
//!
//! A scan of f32 vectors is bound by memory (10,000 × 384 take over 1 ms), so it reads one byte a
//! dimension. Codes are multiplied as integers, which gives the same sums on every processor.
//! Vectors lie in blocks that are shared, not copied, between an index, a snapshot that is being
//! made of it, and the bytes of a snapshot that it came from.

use std::sync::Arc;

use bytes::Bytes;
use memcube_schemas::limits::VECTOR_BLOCK_SLOTS;

/// Parts of the query's codes: products of a code with one fit a 32-bit sum over this many
/// dimensions.
const QUERY_CODE_MAX: f32 = 32_767.0;
const CODE_MAX: f32 = 127.0;

/// The vectors of all slots.
#[derive(Debug, Clone, Default)]
pub(crate) struct DenseArm {
    dimensions: usize,
    /// `VECTOR_BLOCK_SLOTS` slots each, the last one perhaps fewer; none before the first vector.
    blocks: Vec<Arc<Block>>,
    /// What a slot's codes are to be multiplied with; 0 for a slot without a vector.
    scales: Vec<f32>,
}

/// Codes and vectors of some slots.
#[derive(Debug, Clone)]
pub(crate) enum Block {
    Own {
        codes: Vec<i8>,
        vectors: Vec<f32>,
    },
    /// As they lie in a snapshot: all codes, then all vectors.
    Stored {
        bytes: Bytes,
        codes: usize,
    },
}

impl Block {
    const EMPTY: Self = Self::Own { codes: Vec::new(), vectors: Vec::new() };

    /// Bytes of a block of a snapshot.
    pub(crate) const fn stored_bytes(slots: usize, dimensions: usize) -> usize {
        slots * dimensions + Self::padding(slots * dimensions) + slots * dimensions * 4
    }

    /// Bytes between codes and vectors, so that the vectors are aligned.
    const fn padding(codes: usize) -> usize {
        codes.next_multiple_of(4) - codes
    }

    /// Takes a block of a snapshot; `None` when it is not of the right length.
    pub(crate) fn stored(bytes: Bytes, slots: usize, dimensions: usize) -> Option<Self> {
        if bytes.len() != Self::stored_bytes(slots, dimensions) {
            return None;
        }
        let codes = slots * dimensions;
        let vectors = &bytes[codes + Self::padding(codes)..];
        if cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, f32>(vectors).is_ok() {
            return Some(Self::Stored { bytes, codes });
        }
        let (vectors, _) = vectors.as_chunks::<4>();
        let vectors = vectors.iter().map(|value| f32::from_le_bytes(*value)).collect();
        Some(Self::Own { codes: bytemuck::cast_slice(&bytes[..codes]).to_vec(), vectors })
    }

    /// Writes slots as a block of a snapshot, in the order given.
    pub(crate) fn store<'a>(
        slots: impl Iterator<Item = (&'a [i8], &'a [f32])> + Clone,
        into: &mut Vec<u8>,
    ) {
        let start = into.len();
        for (codes, _) in slots.clone() {
            into.extend_from_slice(bytemuck::cast_slice(codes));
        }
        into.resize(into.len() + Self::padding(into.len() - start), 0);
        for (_, vector) in slots {
            if cfg!(target_endian = "little") {
                into.extend_from_slice(bytemuck::cast_slice(vector));
            } else {
                into.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }

    fn codes(&self) -> &[i8] {
        match self {
            Self::Own { codes, .. } => codes,
            Self::Stored { bytes, codes } => bytemuck::cast_slice(&bytes[..*codes]),
        }
    }

    fn vectors(&self) -> &[f32] {
        match self {
            Self::Own { vectors, .. } => vectors,
            Self::Stored { bytes, codes } => {
                bytemuck::cast_slice(&bytes[codes + Self::padding(*codes)..])
            }
        }
    }

    /// The vectors of the block, to append to.
    fn own(&mut self) -> (&mut Vec<i8>, &mut Vec<f32>) {
        if let Self::Stored { .. } = self {
            *self = Self::Own { codes: self.codes().to_vec(), vectors: self.vectors().to_vec() };
        }
        match self {
            Self::Own { codes, vectors } => (codes, vectors),
            Self::Stored { .. } => unreachable!("it was copied just now"),
        }
    }
}

impl DenseArm {
    /// Puts together what a snapshot held; `None` when the parts do not fit each other.
    pub(crate) fn restore(dimensions: usize, blocks: Vec<Block>, scales: Vec<f32>) -> Option<Self> {
        let slots = if dimensions == 0 { 0 } else { scales.len() };
        let is_right = |(number, block): (usize, &Block)| {
            let expected = VECTOR_BLOCK_SLOTS.min(slots - number * VECTOR_BLOCK_SLOTS);
            block.codes().len() == expected * dimensions
        };
        let fits = blocks.len() == slots.div_ceil(VECTOR_BLOCK_SLOTS)
            && blocks.iter().enumerate().all(is_right);
        fits.then(|| Self {
            dimensions,
            blocks: blocks.into_iter().map(Arc::new).collect(),
            scales,
        })
    }

    /// Appends the vector of the next slot; without one, or with one of another length, the slot
    /// gets zeros and never scores.
    pub(crate) fn push(&mut self, vector: Option<&[f32]>) {
        if let Some(vector) = vector
            && self.dimensions == 0
        {
            self.dimensions = vector.len();
            let slots = std::mem::take(&mut self.scales).len();
            (0..slots).for_each(|_| self.push(None));
        }
        let slot = self.scales.len();
        match vector.filter(|vector| vector.len() == self.dimensions) {
            Some(vector) => {
                let largest = vector.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
                let scale = if largest > 0.0 { largest / CODE_MAX } else { 0.0 };
                let inverse = if largest > 0.0 { CODE_MAX / largest } else { 0.0 };
                let (codes, vectors) = self.block_to_append(slot).own();
                codes.extend(vector.iter().map(|value| to_code(value * inverse)));
                vectors.extend_from_slice(vector);
                self.scales.push(scale);
            }
            None => {
                let dimensions = self.dimensions;
                if dimensions > 0 {
                    let (codes, vectors) = self.block_to_append(slot).own();
                    codes.resize(codes.len() + dimensions, 0);
                    vectors.resize(vectors.len() + dimensions, 0.0);
                }
                self.scales.push(0.0);
            }
        }
    }

    /// The block of a slot that is about to be appended.
    fn block_to_append(&mut self, slot: usize) -> &mut Block {
        let number = slot / VECTOR_BLOCK_SLOTS;
        if number == self.blocks.len() {
            self.blocks.push(Arc::new(Block::EMPTY));
        }
        // Where a snapshot shares the block, it keeps the former one.
        Arc::make_mut(&mut self.blocks[number])
    }

    /// Leaves a slot without a vector: it never scores again.
    pub(crate) fn clear(&mut self, slot: usize) {
        self.scales[slot] = 0.0;
    }

    /// Values of one vector; 0 before the first one.
    pub(crate) const fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// What the codes of a slot are to be multiplied with.
    pub(crate) fn scale(&self, slot: usize) -> f32 {
        self.scales[slot]
    }

    /// Code and exact vector of a slot, zeros if it has none; nothing before the first vector.
    pub(crate) fn stored_slot(&self, slot: usize) -> (&[i8], &[f32]) {
        if self.dimensions == 0 {
            return (&[], &[]);
        }
        let block = &self.blocks[slot / VECTOR_BLOCK_SLOTS];
        let start = slot % VECTOR_BLOCK_SLOTS * self.dimensions;
        let place = start..start + self.dimensions;
        (&block.codes()[place.clone()], &block.vectors()[place])
    }

    /// The exact vector of a slot, if it has one.
    pub(crate) fn vector(&self, slot: usize) -> Option<&[f32]> {
        if self.dimensions == 0 || self.scales[slot] == 0.0 {
            return None;
        }
        Some(self.stored_slot(slot).1)
    }

    /// The exact dot product of a slot's vector with the query.
    pub(crate) fn exact(&self, slot: usize, query: &[f32]) -> f32 {
        let Some(vector) = self.vector(slot) else { return 0.0 };
        vector.iter().zip(query).map(|(left, right)| left * right).sum()
    }

    /// The dot products of all slots with the query, within about 0.003 of the exact ones; `None`
    /// when no slot has a vector of the query's length.
    pub(crate) fn scan(&self, query: &[f32]) -> Option<Vec<f32>> {
        let query = self.query_codes(query)?;
        let mut dots = vec![0.0; self.scales.len()];
        for (number, block) in self.blocks.iter().enumerate() {
            let first = number * VECTOR_BLOCK_SLOTS;
            super::simd::scan(block.codes(), &query.codes, |slot, sum| {
                dots[first + slot] = sum * (self.scales[first + slot] * query.scale);
            });
        }
        Some(dots)
    }

    /// As `scan`, for several queries while each block is in the processor's cache; 0 for queries
    /// that are missing or of another length.
    pub(crate) fn scan_each<const N: usize>(&self, queries: [Option<&[f32]>; N]) -> Vec<[f32; N]> {
        let queries = queries.map(|query| query.and_then(|query| self.query_codes(query)));
        let mut dots = vec![[0.0; N]; self.scales.len()];
        for (number, block) in self.blocks.iter().enumerate() {
            let first = number * VECTOR_BLOCK_SLOTS;
            for (place, query) in queries.iter().enumerate() {
                let Some(query) = query else { continue };
                super::simd::scan(block.codes(), &query.codes, |slot, sum| {
                    dots[first + slot][place] = sum * (self.scales[first + slot] * query.scale);
                });
            }
        }
        dots
    }

    fn query_codes(&self, query: &[f32]) -> Option<QueryCodes> {
        if self.dimensions == 0 || query.len() != self.dimensions {
            return None;
        }
        let largest = query.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        if largest == 0.0 {
            return None;
        }
        let codes =
            query.iter().map(|value| to_query_code(value * QUERY_CODE_MAX / largest)).collect();
        Some(QueryCodes { codes, scale: largest / QUERY_CODE_MAX })
    }
}

/// A query, ready to be multiplied with codes.
struct QueryCodes {
    codes: Vec<i16>,
    scale: f32,
}

#[expect(clippy::cast_possible_truncation, reason = "the value lies within the codes by its scale")]
fn to_code(value: f32) -> i8 {
    value.round().clamp(-CODE_MAX, CODE_MAX) as i8
}

#[expect(clippy::cast_possible_truncation, reason = "the value lies within the codes by its scale")]
fn to_query_code(value: f32) -> i16 {
    value.round().clamp(-QUERY_CODE_MAX, QUERY_CODE_MAX) as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(slot: usize, dimensions: usize) -> Vec<f32> {
        (0..dimensions).map(|place| ((slot * 31 + place * 7) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn blocks_hold_what_was_pushed_and_survive_being_stored() {
        const DIMENSIONS: usize = 3;
        let slots = 2 * VECTOR_BLOCK_SLOTS + 5;
        let has_vector = |slot: usize| slot > 3 && !slot.is_multiple_of(11);
        let mut arm = DenseArm::default();
        for slot in 0..slots {
            let vector = has_vector(slot).then(|| vector(slot, DIMENSIONS));
            arm.push(vector.as_deref());
        }
        let all: Vec<usize> = (0..slots).collect();
        let mut blocks = Vec::new();
        for chunk in all.chunks(VECTOR_BLOCK_SLOTS) {
            // One byte in front, so that the second is not aligned and has to be copied.
            let shift = blocks.len() % 2;
            let mut bytes = vec![0_u8; shift];
            Block::store(chunk.iter().map(|slot| arm.stored_slot(*slot)), &mut bytes);
            let bytes = Bytes::from(bytes).slice(shift..);
            assert!(Block::stored(bytes.slice(1..), chunk.len(), DIMENSIONS).is_none());
            blocks.push(Block::stored(bytes, chunk.len(), DIMENSIONS).expect("the right length"));
        }
        let scales = all.iter().map(|slot| arm.scale(*slot)).collect::<Vec<f32>>();
        assert!(DenseArm::restore(DIMENSIONS, blocks[1..].to_vec(), scales.clone()).is_none());
        let mut restored = DenseArm::restore(DIMENSIONS, blocks, scales).expect("they fit");
        let shared = restored.clone();
        for arm in [&mut arm, &mut restored] {
            arm.push(Some(&vector(slots, DIMENSIONS)));
            arm.clear(7);
        }
        for slot in 0..=slots {
            let expected =
                (slot == slots || has_vector(slot) && slot != 7).then(|| vector(slot, DIMENSIONS));
            assert_eq!(arm.vector(slot), expected.as_deref(), "{slot}");
            assert_eq!(restored.vector(slot), expected.as_deref(), "{slot}");
        }
        let query = [0.3, -0.2, 0.9];
        assert_eq!(arm.scan(&query), restored.scan(&query));
        let each = arm.scan_each([Some(&query[..]), None, Some(&[1.0]), Some(&query[..])]);
        let dots = arm.scan(&query).expect("scanned");
        let expected: Vec<[f32; 4]> = dots.into_iter().map(|dot| [dot, 0.0, 0.0, dot]).collect();
        assert_eq!(each, expected, "several queries at once are as each by itself");
        assert_eq!(shared.scan(&query).expect("scanned").len(), slots, "a copy stays as it was");
    }
}
