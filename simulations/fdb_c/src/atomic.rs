//! Atomic operations: what each makes of the value it finds.

use crate::limits::VALUE_BYTES_MAX;
use crate::mvcc::Bytes;

/// Bytes of a versionstamp: eight of the version, two of the place among its commits.
pub(crate) const STAMP_BYTES: usize = 10;

/// An operation that needs nothing but the value it finds and its operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    AppendIfFits,
    Max,
    Min,
    ByteMin,
    ByteMax,
    CompareAndClear,
}

impl AtomicOp {
    pub(crate) fn from_code(code: u32) -> Option<AtomicOp> {
        Some(match code {
            2 => AtomicOp::Add,
            6 => AtomicOp::And,
            7 => AtomicOp::Or,
            8 => AtomicOp::Xor,
            9 => AtomicOp::AppendIfFits,
            12 => AtomicOp::Max,
            13 => AtomicOp::Min,
            16 => AtomicOp::ByteMin,
            17 => AtomicOp::ByteMax,
            20 => AtomicOp::CompareAndClear,
            _ => return None,
        })
    }

    pub(crate) fn code(self) -> u32 {
        match self {
            AtomicOp::Add => 2,
            AtomicOp::And => 6,
            AtomicOp::Or => 7,
            AtomicOp::Xor => 8,
            AtomicOp::AppendIfFits => 9,
            AtomicOp::Max => 12,
            AtomicOp::Min => 13,
            AtomicOp::ByteMin => 16,
            AtomicOp::ByteMax => 17,
            AtomicOp::CompareAndClear => 20,
        }
    }

    /// The new value, `None` if there is none any more.
    pub(crate) fn apply(self, found: Option<&Bytes>, operand: &Bytes) -> Option<Bytes> {
        if let AtomicOp::CompareAndClear = self {
            return found.filter(|found| *found != operand).cloned();
        }
        let Some(found) = found else { return Some(operand.clone()) };
        Some(match self {
            AtomicOp::Add => add(found, operand),
            AtomicOp::And => zip(found, operand, |one, other| one & other),
            AtomicOp::Or => zip(found, operand, |one, other| one | other),
            AtomicOp::Xor => zip(found, operand, |one, other| one ^ other),
            AtomicOp::AppendIfFits => append(found, operand),
            AtomicOp::Max if is_less(found, operand) => operand.clone(),
            AtomicOp::Min if !is_less(found, operand) => operand.clone(),
            AtomicOp::Max | AtomicOp::Min => zip(found, operand, |one, _| one),
            AtomicOp::ByteMin => found.min(operand).clone(),
            AtomicOp::ByteMax => found.max(operand).clone(),
            AtomicOp::CompareAndClear => return None,
        })
    }
}

/// Byte by byte over the operand's length; what the found value lacks is zero.
fn zip(found: &[u8], operand: &[u8], op: impl Fn(u8, u8) -> u8) -> Bytes {
    let found = found.iter().copied().chain(std::iter::repeat(0));
    operand.iter().zip(found).map(|(operand, found)| op(found, *operand)).collect()
}

fn add(found: &[u8], operand: &[u8]) -> Bytes {
    let mut carry = 0;
    let found = found.iter().copied().chain(std::iter::repeat(0));
    let sum = operand.iter().zip(found).map(|(operand, found)| {
        let sum = u16::from(*operand) + u16::from(found) + carry;
        carry = sum >> 8;
        sum as u8
    });
    sum.collect()
}

fn append(found: &Bytes, operand: &Bytes) -> Bytes {
    if found.len() + operand.len() > VALUE_BYTES_MAX {
        return found.clone();
    }
    found.iter().chain(operand.iter()).copied().collect()
}

/// Compares as little-endian numbers of the operand's length.
fn is_less(found: &[u8], operand: &[u8]) -> bool {
    let at = |bytes: &[u8], place: usize| bytes.get(place).copied().unwrap_or(0);
    (0..operand.len())
        .rev()
        .map(|place| at(found, place).cmp(&operand[place]))
        .find(|order| order.is_ne())
        .is_some_and(std::cmp::Ordering::is_lt)
}

/// Where the stamp goes in `template`, whose last four bytes say so; `None` if it does not fit.
pub(crate) fn stamp_place(template: &[u8]) -> Option<usize> {
    let (rest, place) = template.split_last_chunk::<4>()?;
    let place = usize::try_from(i32::from_le_bytes(*place)).ok()?;
    (place.checked_add(STAMP_BYTES)? <= rest.len()).then_some(place)
}

/// `template` without its last four bytes, with the stamp put where they say.
pub(crate) fn stamped(template: &[u8], stamp: [u8; STAMP_BYTES]) -> Bytes {
    let mut bytes = template[..template.len().saturating_sub(4)].to_vec();
    if let Some(place) = stamp_place(template) {
        bytes[place..place + STAMP_BYTES].copy_from_slice(&stamp);
    }
    bytes.into()
}

/// The stamp of the `batch`-th commit of `version`.
pub(crate) fn stamp(version: u64, batch: u16) -> [u8; STAMP_BYTES] {
    let mut bytes = [0; STAMP_BYTES];
    bytes[..8].copy_from_slice(&version.to_be_bytes());
    bytes[8..].copy_from_slice(&batch.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4.2 point 5: what each operation makes of absent, shorter, equal and longer values.
    #[test]
    fn operations() {
        let check =
            |op: AtomicOp, found: Option<&[u8]>, operand: &[u8], expected: Option<&[u8]>| {
                let found = found.map(Bytes::from);
                let result = op.apply(found.as_ref(), &Bytes::from(operand));
                assert_eq!(result.as_deref(), expected, "{op:?} {found:?} {operand:?}");
                assert_eq!(AtomicOp::from_code(op.code()), Some(op));
            };
        check(AtomicOp::Add, None, &[1, 2], Some(&[1, 2]));
        check(AtomicOp::Add, Some(&[255]), &[1, 0], Some(&[0, 1]));
        check(AtomicOp::Add, Some(&[1, 1, 1]), &[1], Some(&[2]));
        check(AtomicOp::Add, Some(&[1, 0]), &[255, 255], Some(&[0, 0]));
        check(AtomicOp::Add, Some(&[]), &[7], Some(&[7]));
        check(AtomicOp::And, None, &[3], Some(&[3]));
        check(AtomicOp::And, Some(&[1]), &[3, 3], Some(&[1, 0]));
        check(AtomicOp::Or, None, &[3], Some(&[3]));
        check(AtomicOp::Or, Some(&[4, 4]), &[3], Some(&[7]));
        check(AtomicOp::Xor, Some(&[6]), &[3, 1], Some(&[5, 1]));
        check(AtomicOp::AppendIfFits, None, b"b", Some(b"b"));
        check(AtomicOp::AppendIfFits, Some(b"a"), b"b", Some(b"ab"));
        check(AtomicOp::AppendIfFits, Some(&[0; 100_000]), b"b", Some(&[0; 100_000]));
        check(AtomicOp::Max, None, &[1], Some(&[1]));
        check(AtomicOp::Max, Some(&[0, 1]), &[255, 0], Some(&[0, 1]));
        check(AtomicOp::Max, Some(&[9]), &[1, 0, 0], Some(&[9, 0, 0]));
        check(AtomicOp::Max, Some(&[9, 9]), &[10], Some(&[10]));
        check(AtomicOp::Min, None, &[1], Some(&[1]));
        check(AtomicOp::Min, Some(&[0, 1]), &[255, 0], Some(&[255, 0]));
        check(AtomicOp::Min, Some(&[9]), &[1, 0, 1], Some(&[9, 0, 0]));
        check(AtomicOp::Min, Some(&[]), &[5], Some(&[0]));
        check(AtomicOp::ByteMin, None, b"b", Some(b"b"));
        check(AtomicOp::ByteMin, Some(b"a"), b"b", Some(b"a"));
        check(AtomicOp::ByteMax, Some(b"ab"), b"b", Some(b"b"));
        check(AtomicOp::ByteMax, Some(b"c"), b"bb", Some(b"c"));
        check(AtomicOp::CompareAndClear, Some(b"a"), b"a", None);
        check(AtomicOp::CompareAndClear, Some(b"b"), b"a", Some(b"b"));
        check(AtomicOp::CompareAndClear, None, b"a", None);
    }

    #[test]
    fn a_stamp_goes_where_the_last_four_bytes_say() {
        let stamp = stamp(0x0102, 3);
        for (template, expected) in [
            (b"a..........z\x01\0\0\0".to_vec(), Some(b"a\0\0\0\0\0\0\x01\x02\0\x03z".to_vec())),
            (b"..........\0\0\0\0".to_vec(), Some(b"\0\0\0\0\0\0\x01\x02\0\x03".to_vec())),
            (b"..........\x01\0\0\0".to_vec(), None),
            (b"..........\xff\xff\xff\xff".to_vec(), None),
            (b"\0\0\0".to_vec(), None),
        ] {
            assert_eq!(stamp_place(&template).is_some(), expected.is_some(), "{template:?}");
            if let Some(expected) = expected {
                assert_eq!(*stamped(&template, stamp), *expected);
            }
        }
    }
}
