//! Numbers in 8 bits, for cold tiers: 32 of them share a scale. Not exact, and the error is
//! measured each time. Pure.

use bytes::Bytes;
use memcube_schemas::activation::KvDtype;

use super::super::engine::{KvBytes, KvLayer};

/// Numbers that share a scale.
const GROUP: usize = 32;
const LARGEST: f32 = 127.0;

/// How far stored numbers are from the true ones.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct QuantisationError {
    /// The largest difference of a number.
    pub max: f32,
    /// The root of the mean squared difference, as a share of that of the numbers themselves.
    pub relative: f32,
}

/// The same block in 8 bits, and what that costs; `None` if its numbers are of no known dtype or do
/// not make whole groups.
#[must_use]
pub fn quantise(block: &KvBytes) -> Option<(KvBytes, QuantisationError)> {
    let (mut max, mut squares, mut error_squares) = (0.0_f32, 0.0_f64, 0.0_f64);
    let mut layers = Vec::with_capacity(block.layers.len());
    for layer in &block.layers {
        let numbers = numbers(&layer.bytes, block.dtype)?;
        if !numbers.len().is_multiple_of(GROUP) {
            return None;
        }
        let mut bytes = Vec::with_capacity(numbers.len() / GROUP * (GROUP + size_of::<f32>()));
        for group in numbers.chunks_exact(GROUP) {
            let largest = group.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
            let scale = largest / LARGEST;
            bytes.extend_from_slice(&scale.to_le_bytes());
            for number in group {
                let code = if scale > 0.0 { code(*number / scale) } else { 0 };
                bytes.push(code.to_le_bytes()[0]);
                let difference = (number - f32::from(code) * scale).abs();
                max = max.max(difference);
                squares += f64::from(*number) * f64::from(*number);
                error_squares += f64::from(difference) * f64::from(difference);
            }
        }
        layers.push(KvLayer::new(Bytes::from(bytes)));
    }
    #[expect(clippy::cast_possible_truncation, reason = "a share")]
    let relative = if squares > 0.0 { (error_squares / squares).sqrt() as f32 } else { 0.0 };
    let KvBytes { start, tokens, .. } = *block;
    let quantised = KvBytes { start, tokens, dtype: KvDtype::Q8, layers };
    Some((quantised, QuantisationError { max, relative }))
}

/// The block with numbers of another dtype again; `None` if it is not one of 8 bits.
#[must_use]
pub fn dequantise(block: &KvBytes, dtype: KvDtype) -> Option<KvBytes> {
    if block.dtype != KvDtype::Q8 {
        return None;
    }
    let mut layers = Vec::with_capacity(block.layers.len());
    for layer in &block.layers {
        let groups = layer.bytes.chunks_exact(GROUP + size_of::<f32>());
        if !groups.remainder().is_empty() {
            return None;
        }
        let mut bytes = Vec::new();
        for group in groups {
            let (scale, codes) = group.split_first_chunk::<4>()?;
            let scale = f32::from_le_bytes(*scale);
            for code in codes {
                push(&mut bytes, f32::from(i8::from_le_bytes([*code])) * scale, dtype)?;
            }
        }
        layers.push(KvLayer::new(Bytes::from(bytes)));
    }
    let KvBytes { start, tokens, .. } = *block;
    Some(KvBytes { start, tokens, dtype, layers })
}

fn code(scaled: f32) -> i8 {
    // Within the range of codes, because nothing in its group is larger.
    #[expect(clippy::cast_possible_truncation, reason = "clamped")]
    let code = scaled.round().clamp(-LARGEST, LARGEST) as i8;
    code
}

fn numbers(bytes: &[u8], dtype: KvDtype) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half));
    match dtype {
        KvDtype::F32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|n| f32::from_le_bytes(*n)).collect())
        }
        KvDtype::F16 => Some(halves().map(from_half).collect()),
        KvDtype::Bf16 => Some(halves().map(|half| f32::from_bits(u32::from(half) << 16)).collect()),
        KvDtype::Q8 => None,
    }
}

fn push(bytes: &mut Vec<u8>, number: f32, dtype: KvDtype) -> Option<()> {
    match dtype {
        KvDtype::F32 => bytes.extend_from_slice(&number.to_le_bytes()),
        KvDtype::F16 => bytes.extend_from_slice(&to_half(number).to_le_bytes()),
        KvDtype::Bf16 => {
            let bits = number.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            bytes.extend_from_slice(&rounded.to_le_bytes()[2..]);
        }
        KvDtype::Q8 => return None,
    }
    Some(())
}

/// IEEE 754 half precision → single: exact.
fn from_half(half: u16) -> f32 {
    const SMALLEST: f32 = 1.0 / 16_777_216.0;
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (half >> 10 & 0x1f, half & 0x3ff);
    let size = match exponent {
        0 => f32::from(fraction) * SMALLEST,
        0x1f => f32::from_bits(0x7f80_0000 | u32::from(fraction) << 13),
        _ => f32::from_bits((u32::from(exponent) + 112) << 23 | u32::from(fraction) << 13),
    };
    sign * size
}

/// Single → half precision, rounded to the nearest, ties to even.
fn to_half(number: f32) -> u16 {
    let bits = number.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let size = bits & 0x7fff_ffff;
    if size > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    if size >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    let half = if size < 0x3880_0000 {
        // Below the smallest normal half: counted in units of 2^-24, rounded by the addition.
        let units = f32::from_bits(size) + 0.5;
        units.to_bits() - 0.5_f32.to_bits()
    } else {
        let rebased = size - (112 << 23);
        (rebased + 0xfff + (rebased >> 13 & 1)) >> 13
    };
    sign | u16::try_from(half).unwrap_or(0x7c00)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(numbers: &[f32], dtype: KvDtype) -> KvBytes {
        let mut bytes = Vec::new();
        for number in numbers {
            push(&mut bytes, *number, dtype).expect("a dtype of numbers");
        }
        KvBytes { start: 0, tokens: 1, dtype, layers: vec![KvLayer::new(Bytes::from(bytes))] }
    }

    #[test]
    fn every_half_comes_back() {
        for half in 0..=u16::MAX {
            let number = from_half(half);
            if number.is_nan() {
                assert!(from_half(to_half(number)).is_nan());
            } else {
                assert_eq!(to_half(number), half, "{half:04x} is {number}");
            }
        }
        for (number, half) in [(1.0 + 1.0 / 2_048.0, 0x3c00), (65_520.0, 0x7c00), (1e-9, 0)] {
            assert_eq!(to_half(number), half, "{number}");
        }
    }

    #[test]
    fn what_makes_no_whole_groups_is_left_as_it_is() {
        assert!(quantise(&block(&[1.0; 31], KvDtype::F32)).is_none());
        let (quantised, _) = quantise(&block(&[1.0; 32], KvDtype::F32)).expect("one group");
        assert!(quantise(&quantised).is_none());
        assert!(dequantise(&block(&[1.0; 32], KvDtype::F32), KvDtype::F32).is_none());
    }

    proptest! {
        #[test]
        fn the_error_is_what_it_is_said_to_be(
            numbers in prop::collection::vec(-20.0_f32..20.0, 64), kind in 0_u8..3,
        ) {
            let dtype = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16][usize::from(kind)];
            let before = block(&numbers, dtype);
            let (quantised, error) = quantise(&before).expect("whole groups");
            prop_assert_eq!(quantised.bytes(), 2 * 36);
            let after = dequantise(&quantised, KvDtype::F32).expect("8 bits");
            prop_assert!(after.is_intact());
            let before = super::numbers(&before.layers[0].bytes, dtype).expect("numbers");
            let after = super::numbers(&after.layers[0].bytes, KvDtype::F32).expect("numbers");
            let largest = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
            let largest = largest.fold(0.0_f32, f32::max);
            prop_assert!((largest - error.max).abs() <= 1e-6, "{} {}", largest, error.max);
            prop_assert!(error.max <= 20.0 / 127.0 / 2.0 + 1e-3, "{}", error.max);
        }
    }
}
