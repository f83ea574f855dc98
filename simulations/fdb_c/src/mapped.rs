//! Mapped range reads: an index is read, and every row of it says which rows to read next.

use crate::conflicts::{KeyRange, key_after};
use crate::errors::{
    Code, KEY_NOT_TUPLE, MAPPER_BAD_INDEX, MAPPER_BAD_RANGE, MAPPER_NOT_TUPLE, VALUE_NOT_TUPLE,
};
use crate::mvcc::Bytes;
use crate::range::{RangeReply, RangeRequest, Row, View};

/// A row of the index and the rows it led to.
#[derive(Debug, Clone)]
pub(crate) struct MappedRow {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) range: KeyRange,
    pub(crate) rows: Vec<Row>,
}

pub(crate) struct MappedReply {
    pub(crate) rows: Vec<MappedRow>,
    pub(crate) index: RangeReply,
    /// Every range that was read on behalf of a row.
    pub(crate) looked_up: Vec<KeyRange>,
}

/// One element of the key to read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// As it is, encoded.
    Literal(Vec<u8>),
    OfKey(usize),
    OfValue(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapper {
    parts: Vec<Part>,
    /// Reads everything below the key and not just the key.
    is_range: bool,
}

impl Mapper {
    pub(crate) fn parse(mapper: &[u8]) -> Result<Mapper, Code> {
        let elements = elements(mapper).ok_or(MAPPER_NOT_TUPLE)?;
        let mut parsed = Mapper { parts: Vec::new(), is_range: false };
        for element in elements {
            if parsed.is_range {
                return Err(MAPPER_BAD_RANGE);
            }
            match string_of(element).as_deref() {
                Some(b"{...}") => parsed.is_range = true,
                Some(text) if text.starts_with(b"{K[") || text.starts_with(b"{V[") => {
                    parsed.parts.push(placeholder(text)?);
                }
                // Doubled braces stand for themselves.
                Some(text) if text.contains(&b'{') || text.contains(&b'}') => {
                    parsed.parts.push(Part::Literal(encode_string(element[0], &unescape(text))));
                }
                Some(_) | None => parsed.parts.push(Part::Literal(element.to_vec())),
            }
        }
        Ok(parsed)
    }

    fn range_for(&self, key: &[u8], value: &[u8]) -> Result<KeyRange, Code> {
        let mut name = Vec::new();
        for part in &self.parts {
            let (of, place, not_tuple) = match part {
                Part::Literal(bytes) => {
                    name.extend_from_slice(bytes);
                    continue;
                }
                Part::OfKey(place) => (key, place, KEY_NOT_TUPLE),
                Part::OfValue(place) => (value, place, VALUE_NOT_TUPLE),
            };
            let elements = elements(of).ok_or(not_tuple)?;
            name.extend_from_slice(elements.get(*place).ok_or(MAPPER_BAD_INDEX)?);
        }
        if self.is_range {
            let mut end = name.clone();
            end.push(0xff);
            return Ok(KeyRange { begin: name.into(), end: end.into() });
        }
        Ok(KeyRange { end: key_after(&name), begin: name.into() })
    }

    pub(crate) fn map(&self, view: &View<'_>, request: &RangeRequest) -> Result<MappedReply, Code> {
        let index = view.range(request);
        let mut rows = Vec::with_capacity(index.rows.len());
        let mut looked_up = Vec::with_capacity(index.rows.len());
        for (key, value) in &index.rows {
            let range = self.range_for(key, value)?;
            rows.push(MappedRow {
                key: key.clone(),
                value: value.clone(),
                rows: view.scan(&range.begin, &range.end, false).collect(),
                range: range.clone(),
            });
            looked_up.push(range);
        }
        Ok(MappedReply { rows, index, looked_up })
    }
}

fn placeholder(text: &[u8]) -> Result<Part, Code> {
    let inner = text.strip_suffix(b"]}").and_then(|text| text.get(3..)).ok_or(MAPPER_BAD_INDEX)?;
    let number = std::str::from_utf8(inner).ok().and_then(|text| text.parse().ok());
    let place = number.ok_or(MAPPER_BAD_INDEX)?;
    Ok(if text[1] == b'K' { Part::OfKey(place) } else { Part::OfValue(place) })
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if matches!(byte, b'{' | b'}') && bytes.peek() == Some(&byte) {
            bytes.next();
        }
        plain.push(byte);
    }
    plain
}

fn encode_string(code: u8, text: &[u8]) -> Vec<u8> {
    let mut encoded = vec![code];
    for byte in text {
        encoded.push(*byte);
        if *byte == 0 {
            encoded.push(0xff);
        }
    }
    encoded.push(0);
    encoded
}

/// The text of an encoded string, `None` for other elements.
fn string_of(element: &[u8]) -> Option<Vec<u8>> {
    let (code, rest) = element.split_first()?;
    if *code != 0x02 {
        return None;
    }
    let mut text = Vec::new();
    let mut bytes = rest[..rest.len().checked_sub(1)?].iter();
    while let Some(byte) = bytes.next() {
        text.push(*byte);
        if *byte == 0 {
            bytes.next();
        }
    }
    Some(text)
}

/// The encoded elements of a packed tuple; `None` if it is not one.
fn elements(mut packed: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    while !packed.is_empty() {
        let bytes = element_bytes(packed, false)?;
        let (element, rest) = packed.split_at_checked(bytes)?;
        elements.push(element);
        packed = rest;
    }
    Some(elements)
}

/// How long the first element is.
fn element_bytes(packed: &[u8], is_nested: bool) -> Option<usize> {
    let negative_bytes = |byte: &u8| usize::from(!*byte);
    match *packed.first()? {
        0x00 if is_nested && packed.get(1) == Some(&0xff) => Some(2),
        0x00 | 0x26 | 0x27 => Some(1),
        0x01 | 0x02 => {
            let mut at = 1;
            loop {
                match (packed.get(at)?, packed.get(at + 1)) {
                    (0, Some(0xff)) => at += 2,
                    (0, _) => return Some(at + 1),
                    _ => at += 1,
                }
            }
        }
        0x05 => {
            let mut at = 1;
            loop {
                if packed.get(at)? == &0 && packed.get(at + 1) != Some(&0xff) {
                    return Some(at + 1);
                }
                at += element_bytes(packed.get(at..)?, true)?;
            }
        }
        0x0b => Some(2 + packed.get(1).map(negative_bytes)?),
        0x1d => Some(2 + packed.get(1).copied().map(usize::from)?),
        code @ 0x0c..=0x1c => Some(1 + usize::from(code.abs_diff(0x14))),
        0x20 => Some(5),
        0x21 => Some(9),
        0x30 => Some(17),
        0x33 => Some(13),
        _ => None,
    }
}

/// A non-negative number as an element of a tuple.
pub(crate) fn pack_number(number: u64) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let significant = &bytes[(number.leading_zeros() / 8) as usize..];
    let mut packed = vec![0x14 + significant.len() as u8];
    packed.extend_from_slice(significant);
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_fall_into_their_elements() {
        for (packed, expected) in [
            (&b""[..], Some(vec![])),
            (b"\x02a\0\x02b\0", Some(vec![&b"\x02a\0"[..], b"\x02b\0"])),
            (b"\x01a\0\xffb\0\x15\x07", Some(vec![&b"\x01a\0\xffb\0"[..], b"\x15\x07"])),
            (b"\x05\x02a\0\0\xff\0\x14", Some(vec![&b"\x05\x02a\0\0\xff\0"[..], b"\x14"])),
            (b"\x13\xfe\0\x27", Some(vec![&b"\x13\xfe"[..], b"\0", b"\x27"])),
            (b"\x16\x01", None),
            (b"\x02a", None),
            (b"\xf0", None),
        ] {
            assert_eq!(elements(packed), expected, "{packed:?}");
        }
        for (number, expected) in [(0, &b"\x14"[..]), (1, b"\x15\x01"), (256, b"\x16\x01\0")] {
            assert_eq!(pack_number(number), expected);
        }
    }

    #[test]
    fn mappers() {
        let key = b"\x02i\0\x02blue\0\x15\x07";
        for (mapper, expected) in [
            (
                &b"\x02d\0\x02{K[2]}\0\x02{...}\0"[..],
                Ok((b"\x02d\0\x15\x07".to_vec(), b"\x02d\0\x15\x07\xff".to_vec())),
            ),
            (b"\x02{V[0]}\0", Ok((b"\x15\x09".to_vec(), b"\x15\x09\0".to_vec()))),
            (b"\x02{{x}}\0", Ok((b"\x02{x}\0".to_vec(), b"\x02{x}\0\0".to_vec()))),
            (b"\x02{K[3]}\0", Err(MAPPER_BAD_INDEX)),
            (b"\x02{K[x]}\0", Err(MAPPER_BAD_INDEX)),
            (b"\x02{...}\0\x02d\0", Err(MAPPER_BAD_RANGE)),
            (b"\xf0", Err(MAPPER_NOT_TUPLE)),
        ] {
            let range = Mapper::parse(mapper).and_then(|one| one.range_for(key, b"\x15\x09"));
            let range = range.map(|range| (range.begin.to_vec(), range.end.to_vec()));
            assert_eq!(range, expected, "{mapper:?}");
        }
    }
}
