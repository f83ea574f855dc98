//! Vectors of a cube: exact ones, and 8-bit codes that a scan goes through.
//!
//! A scan of f32 vectors is bound by memory (10,000 × 384 take over 1 ms), so it reads one byte a
//! dimension. Codes are multiplied as integers, which gives the same sums on every processor.

/// Parts of the query's codes: products of a code with one fit a 32-bit sum over this many
/// dimensions.
const QUERY_CODE_MAX: f32 = 32_767.0;
const CODE_MAX: f32 = 127.0;

/// The vectors of all slots.
#[derive(Debug, Default)]
pub(crate) struct DenseArm {
    dimensions: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    vectors: Vec<f32>,
}

impl DenseArm {
    /// Appends the vector of the next slot; without one, or with one of another length, the slot
    /// gets zeros and never scores.
    pub(crate) fn push(&mut self, vector: Option<&[f32]>) {
        if let Some(vector) = vector
            && self.dimensions == 0
        {
            self.dimensions = vector.len();
            let slots = self.scales.len();
            self.codes.resize(slots * vector.len(), 0);
            self.vectors.resize(slots * vector.len(), 0.0);
        }
        let end = self.codes.len() + self.dimensions;
        match vector.filter(|vector| vector.len() == self.dimensions) {
            Some(vector) => {
                let largest = vector.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
                let scale = if largest > 0.0 { largest / CODE_MAX } else { 0.0 };
                let inverse = if largest > 0.0 { CODE_MAX / largest } else { 0.0 };
                self.codes.extend(vector.iter().map(|value| to_code(value * inverse)));
                self.vectors.extend_from_slice(vector);
                self.scales.push(scale);
            }
            None => {
                self.codes.resize(end, 0);
                self.vectors.resize(end, 0.0);
                self.scales.push(0.0);
            }
        }
    }

    /// Leaves a slot without a vector: it never scores again.
    pub(crate) fn clear(&mut self, slot: usize) {
        self.scales[slot] = 0.0;
    }

    /// The exact vector of a slot, if it has one.
    pub(crate) fn vector(&self, slot: usize) -> Option<&[f32]> {
        if self.dimensions == 0 || self.scales[slot] == 0.0 {
            return None;
        }
        self.vectors.get(slot * self.dimensions..(slot + 1) * self.dimensions)
    }

    /// The exact dot product of a slot's vector with the query.
    pub(crate) fn exact(&self, slot: usize, query: &[f32]) -> f32 {
        let Some(vector) = self.vector(slot) else { return 0.0 };
        vector.iter().zip(query).map(|(left, right)| left * right).sum()
    }

    /// The dot products of all slots with the query, within about 0.003 of the exact ones; `None`
    /// when no slot has a vector of the query's length.
    pub(crate) fn scan(&self, query: &[f32]) -> Option<Vec<f32>> {
        if self.dimensions == 0 || query.len() != self.dimensions {
            return None;
        }
        let largest = query.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        if largest == 0.0 {
            return None;
        }
        let scale = largest / QUERY_CODE_MAX;
        let query: Vec<i16> =
            query.iter().map(|value| to_query_code(value * QUERY_CODE_MAX / largest)).collect();
        let mut dots = vec![0.0; self.scales.len()];
        super::simd::scan(&self.codes, &query, |slot, sum| {
            dots[slot] = sum * (self.scales[slot] * scale);
        });
        Some(dots)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the value lies within the codes by its scale")]
fn to_code(value: f32) -> i8 {
    value.round().clamp(-CODE_MAX, CODE_MAX) as i8
}

#[expect(clippy::cast_possible_truncation, reason = "the value lies within the codes by its scale")]
fn to_query_code(value: f32) -> i16 {
    value.round().clamp(-QUERY_CODE_MAX, QUERY_CODE_MAX) as i16
}
