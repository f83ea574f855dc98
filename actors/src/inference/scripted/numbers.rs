//! How the scripted engine writes what it remembers into keys and values, and reads it back.

use bytes::Bytes;
use memcube_schemas::activation::KvDtype;

use super::{super::engine::KvBytes, Slot};

/// Numbers that a layer holds for one token: as many as share a scale when they are stored in 8
/// bits, so that the digests in them survive that.
pub(super) const NUMBERS: usize = 32;
/// The largest number of each row, by which the others are scaled.
const LARGEST: f32 = 127.0;
/// Numbers of a row that hold a digest, and those that hold a token or a pass.
const DIGITS: usize = 16;
const LABEL_DIGITS: usize = 8;

/// Digests and labels as numbers that survive being stored in 16 or 8 bits.
pub(super) fn rows(labelled: impl Iterator<Item = (u64, u32)>) -> Bytes {
    let mut bytes = Vec::new();
    for (digest, label) in labelled {
        let mut row = [0.0_f32; NUMBERS];
        row[0] = LARGEST;
        write_digits(&mut row[1..=DIGITS], digest);
        write_digits(&mut row[1 + DIGITS..=DIGITS + LABEL_DIGITS], u64::from(label));
        bytes.extend(row.iter().flat_map(|number| number.to_le_bytes()));
    }
    Bytes::from(bytes)
}

fn write_digits(places: &mut [f32], value: u64) {
    for (place, number) in places.iter_mut().enumerate() {
        let digit = u8::try_from(value >> (4 * place) & 0xf).unwrap_or(0);
        *number = f32::from(digit);
    }
}

/// The digests and labels in a layer.
pub(super) fn labelled(bytes: &[u8]) -> Vec<(u64, u32)> {
    let row = |row: &[u8]| {
        let (numbers, _) = row.as_chunks::<4>();
        let digest = read_digits(&numbers[1..=DIGITS]);
        let label = read_digits(&numbers[1 + DIGITS..=DIGITS + LABEL_DIGITS]);
        (digest, u32::try_from(label).unwrap_or(u32::MAX))
    };
    bytes.chunks_exact(NUMBERS * size_of::<f32>()).map(row).collect()
}

fn read_digits(numbers: &[[u8; 4]]) -> u64 {
    numbers.iter().enumerate().fold(0, |value, (place, number)| {
        let digit = f32::from_le_bytes(*number).round();
        // Rounded and between 0 and 15, unless the numbers are not this engine's.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
        let digit = digit.clamp(0.0, 15.0) as u64;
        value | digit << (4 * place)
    })
}

/// What a block holds; `None` if it is none of a scripted engine.
#[must_use]
pub fn slots_of(block: &KvBytes) -> Option<Vec<Slot>> {
    read(block).map(|(slots, _)| slots)
}

/// What a block holds, and what came before it.
pub(super) fn read(block: &KvBytes) -> Option<(Vec<Slot>, Option<u64>)> {
    let [after, before] = block.layers.as_slice() else { return None };
    let (after, before) = (labelled(&after.bytes), labelled(&before.bytes));
    let is_whole = after.len() == block.tokens && before.len() == block.tokens;
    if !is_whole || block.dtype != KvDtype::F32 {
        return None;
    }
    let first = before.first().map(|(digest, _)| *digest);
    let slots = after.into_iter().zip(before);
    let slots = slots.map(|((digest, token), (_, pass))| Slot { token, digest, pass });
    Some((slots.collect(), first))
}

/// What came before, and then a token.
pub(super) fn mix(before: u64, token: u64) -> u64 {
    let mut z = (before ^ token).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
