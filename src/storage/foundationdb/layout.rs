//! How rows of the state store lie in FoundationDB.
//!
//! Everything is under one root, the tuple `(prefix, family)`, so several installations share a
//! cluster:
//!
//! | family | key after the root | value |
//! |---|---|---|
//! | 0 system | `layout` | number of this layout, u32 big-endian |
//! | 1 rows | the row's key | version stamp (10) ‖ flags (1) ‖ payload |
//! | 2 chunks | the row's key, escaped ‖ index (2) | up to 64 KiB of a value above 8 KiB |
//! | 3 tokens | token (16) | version stamp (10) of the commit |
//! | 4 ages | part (1) ‖ version stamp (10) | token (16): tokens in the order of their commits |
//!
//! The stamp of a row is that of the commit that wrote it. A row under a versionstamped key has its
//! stamp in the key, because one mutation cannot write it in both places; its flags say so. The
//! payload of a row in chunks is the number of its bytes, u32 big-endian. Ages are spread over
//! parts, so that not all commits of a cluster write to the end of one range.
//!
//! Invariant: chunks of a key sort as the key does, so whatever clears a range of rows clears the
//! same range of chunks.

use foundationdb::tuple;
use memcube_actors::storage::{STAMP_BYTES, StoreError};
use memcube_schemas::Version;

/// The layout that this module writes.
pub(super) const LAYOUT: u32 = 1;
/// Values above this lie in chunks: FoundationDB is at its best with small ones.
pub(super) const INLINE_BYTES_MAX: usize = 8 << 10;
/// Bytes of one chunk. FoundationDB takes values of up to 100,000.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// Parts of the ages.
pub(super) const AGE_PARTS: u8 = 16;
/// Bytes of a version stamp: the version and the place among the commits of that version.
pub(super) const FDB_STAMP_BYTES: usize = 10;
/// What stands for a stamp until the commit.
const PLACEHOLDER: [u8; FDB_STAMP_BYTES] = [0xff; FDB_STAMP_BYTES];
/// The payload is the length, the value lies in chunks.
const CHUNKED: u8 = 1;
/// The stamp is in the key.
const STAMPED_KEY: u8 = 2;

/// The roots of the families.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    system: Vec<u8>,
    rows: Vec<u8>,
    chunks: Vec<u8>,
    tokens: Vec<u8>,
    ages: Vec<u8>,
    /// Where everything begins, and where it has ended.
    all: (Vec<u8>, Vec<u8>),
}

/// What a row's value says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    /// The commit that wrote it.
    pub(super) version: Version,
    pub(super) value: Value<'a>,
}

/// The value of a row, or where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Inline(&'a [u8]),
    /// In chunks, of so many bytes together.
    Chunked(usize),
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Self {
        let root = |family: u8| tuple::pack(&(prefix, i32::from(family)));
        let first = tuple::pack(&(prefix,));
        // No element of a tuple begins with this byte.
        let end = [&first[..], &[0xff]].concat();
        Self {
            system: root(0),
            rows: root(1),
            chunks: root(2),
            tokens: root(3),
            ages: root(4),
            all: (first, end),
        }
    }

    /// Where the number of the layout is.
    pub(super) fn layout_key(&self) -> Vec<u8> {
        [&self.system[..], b"layout"].concat()
    }

    /// Everything of this installation.
    pub(super) fn everything(&self) -> (&[u8], &[u8]) {
        (&self.all.0, &self.all.1)
    }

    pub(super) fn row(&self, key: &[u8]) -> Vec<u8> {
        [&self.rows[..], key].concat()
    }

    /// The key of the state store in the key of a row.
    pub(super) fn key_of<'a>(&self, row: &'a [u8]) -> &'a [u8] {
        row.strip_prefix(&self.rows[..]).expect("invariant: only rows were read")
    }

    /// The chunk of a key with this number.
    pub(super) fn chunk(&self, key: &[u8], index: u16) -> Vec<u8> {
        let mut chunk = self.chunks_from(key);
        chunk.extend_from_slice(&index.to_be_bytes());
        chunk
    }

    /// Where the chunks of keys from this one on begin.
    pub(super) fn chunks_from(&self, key: &[u8]) -> Vec<u8> {
        let mut from = Vec::with_capacity(self.chunks.len() + key.len() + 4);
        from.extend_from_slice(&self.chunks);
        for byte in key {
            from.push(*byte);
            if *byte == 0 {
                from.push(0xff);
            }
        }
        from.extend_from_slice(&[0, 1]);
        from
    }

    /// Where the chunks of this key have ended.
    pub(super) fn chunks_after(&self, key: &[u8]) -> Vec<u8> {
        let mut after = self.chunks_from(key);
        *after.last_mut().expect("invariant: the escaped key has an end") = 2;
        after
    }

    pub(super) fn token(&self, token: u128) -> Vec<u8> {
        [&self.tokens[..], &token.to_be_bytes()].concat()
    }

    /// Ages of tokens whose commits are older than this version, in the part of this round.
    pub(super) fn ages_before(&self, round: u64, version: u64) -> (Vec<u8>, Vec<u8>) {
        let part = self.ages_of(round.to_be_bytes()[7]);
        let before = [&part[..], &version.to_be_bytes()].concat();
        (part, before)
    }

    /// The operand of `SetVersionstampedKey` for the age of a token.
    pub(super) fn stamped_age(&self, token: u128) -> Vec<u8> {
        stamped_key(self.ages_of(token.to_be_bytes()[15]), &[])
    }

    fn ages_of(&self, number: u8) -> Vec<u8> {
        [&self.ages[..], &[number % AGE_PARTS]].concat()
    }

    /// The operand of `SetVersionstampedKey` for a row, as mutation number `position` of its
    /// commit.
    pub(super) fn stamped_row(&self, prefix: &[u8], position: u16) -> Vec<u8> {
        stamped_key(self.row(prefix), &position.to_be_bytes())
    }
}

/// A key with a place for the stamp, and at its end where that place is.
fn stamped_key(mut key: Vec<u8>, after: &[u8]) -> Vec<u8> {
    let at = u32::try_from(key.len()).expect("invariant: keys are bounded");
    key.extend_from_slice(&PLACEHOLDER);
    key.extend_from_slice(after);
    key.extend_from_slice(&at.to_le_bytes());
    key
}

/// The operand of `SetVersionstampedValue` for a token: the stamp alone.
pub(super) fn stamped_token() -> Vec<u8> {
    [&PLACEHOLDER[..], &0_u32.to_le_bytes()].concat()
}

/// The operand of `SetVersionstampedValue` for a row; a value in chunks is `chunked`.
pub(super) fn stamped_value(value: &[u8]) -> Vec<u8> {
    let length;
    let (flags, payload) = if value.len() > INLINE_BYTES_MAX {
        length = u32::try_from(value.len()).expect("invariant: values are bounded").to_be_bytes();
        (CHUNKED, &length[..])
    } else {
        (0, value)
    };
    let offset = 0_u32.to_le_bytes();
    [&PLACEHOLDER[..], &[flags], payload, &offset].concat()
}

/// The value of a row under a versionstamped key.
pub(super) fn value_of_stamped_row(value: &[u8]) -> Vec<u8> {
    [&PLACEHOLDER[..], &[STAMPED_KEY], value].concat()
}

/// The version in a stamp.
pub(super) fn version_of_stamp(stamp: &[u8]) -> Result<Version, StoreError> {
    match stamp.first_chunk::<8>() {
        Some(version) if stamp.len() == FDB_STAMP_BYTES => {
            Ok(Version(u64::from_be_bytes(*version)))
        }
        _ => Err(corrupt(format!("a version stamp of {} bytes", stamp.len()))),
    }
}

/// Understands a row.
///
/// # Errors
/// [`StoreError::Corrupt`] when nothing of ours writes such bytes.
pub(super) fn row<'a>(key: &[u8], value: &'a [u8]) -> Result<Row<'a>, StoreError> {
    let damaged = || corrupt(format!("a row with a value of {} bytes", value.len()));
    let (stamp, rest) = value.split_at_checked(FDB_STAMP_BYTES).ok_or_else(damaged)?;
    let (flags, payload) = rest.split_first().ok_or_else(damaged)?;
    let row = match *flags {
        0 => Row { version: version_of_stamp(stamp)?, value: Value::Inline(payload) },
        CHUNKED => {
            let length = payload.try_into().map_err(|_| damaged())?;
            let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| damaged())?;
            Row { version: version_of_stamp(stamp)?, value: Value::Chunked(length) }
        }
        STAMPED_KEY => {
            let at = key.len().checked_sub(STAMP_BYTES).ok_or_else(damaged)?;
            let version = version_of_stamp(&key[at..at + FDB_STAMP_BYTES])?;
            Row { version, value: Value::Inline(payload) }
        }
        flags => return Err(corrupt(format!("a row with the flags {flags:#04x}"))),
    };
    Ok(row)
}

pub(super) fn corrupt(found: String) -> StoreError {
    let reason = format!(
        "FoundationDB holds {found}, which memcube does not write; look whether something else \
         writes under `store.fdb-prefix`, and restore a backup"
    );
    StoreError::Corrupt { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys in order, with everything that escaping could get wrong.
    const KEYS: [&[u8]; 14] = [
        b"",
        b"\0",
        b"\0\0",
        b"\0\x01",
        b"\0\xff",
        b"\0\xff\0",
        b"\x01",
        b"\x01\0",
        b"a",
        b"a\0",
        b"a\0\x01",
        b"a\x01",
        b"\xff",
        b"\xff\xff",
    ];

    #[test]
    fn chunks_sort_as_their_keys_do() {
        let layout = Layout::new("memcube");
        for (at, key) in KEYS.iter().enumerate() {
            let (from, after) = (layout.chunks_from(key), layout.chunks_after(key));
            for index in [0, 1, 0xff, 0xff00, u16::MAX] {
                let chunk = layout.chunk(key, index);
                assert!(from <= chunk && chunk < after, "{key:?} {index}");
                for earlier in &KEYS[..at] {
                    assert!(layout.chunks_after(earlier) <= chunk, "{earlier:?} before {key:?}");
                }
                for later in &KEYS[at + 1..] {
                    assert!(chunk < layout.chunks_from(later), "{later:?} after {key:?}");
                }
            }
        }
    }

    #[test]
    fn families_do_not_touch() {
        let layout = Layout::new("memcube");
        let families = [&layout.system, &layout.rows, &layout.chunks, &layout.tokens, &layout.ages];
        assert!(families.is_sorted_by(|left, right| left < right));
        let (first, end) = layout.everything();
        for (at, family) in families.iter().enumerate() {
            let last = [&family[..], &[0xff; 40]].concat();
            assert!(first < &family[..] && &last[..] < end);
            assert!(families.get(at + 1).is_none_or(|next| last < **next));
        }
        // Another installation, whose name begins alike.
        let other = Layout::new("memcube2");
        assert!(other.everything().0 >= end || other.everything().1 <= first);
    }

    #[test]
    fn rows_are_read_as_they_are_written() {
        let stamp = [0, 0, 0, 0, 0, 0, 1, 2, 0, 7];
        let version = Version(0x102);
        let written = |mut operand: Vec<u8>| {
            // What FoundationDB makes of it.
            let at = operand.len() - 4;
            assert_eq!(operand.split_off(at), [0; 4]);
            operand[..FDB_STAMP_BYTES].copy_from_slice(&stamp);
            operand
        };
        for value in [&b""[..], b"x", &[7; INLINE_BYTES_MAX]] {
            let found = written(stamped_value(value));
            assert_eq!(row(b"k", &found), Ok(Row { version, value: Value::Inline(value) }));
        }
        let long = vec![7; INLINE_BYTES_MAX + 1];
        let found = written(stamped_value(&long));
        assert_eq!(row(b"k", &found), Ok(Row { version, value: Value::Chunked(long.len()) }));

        let layout = Layout::new("memcube");
        let operand = layout.stamped_row(b"log/", 0x0304);
        let (key, offset) = operand.split_at(operand.len() - 4);
        let at = u32::from_le_bytes(offset.try_into().unwrap()) as usize;
        let mut key = key.to_vec();
        key[at..at + FDB_STAMP_BYTES].copy_from_slice(&stamp);
        let key = layout.key_of(&key);
        assert_eq!(key, [&b"log/"[..], &stamp, &[3, 4]].concat());
        let value = value_of_stamped_row(b"x");
        assert_eq!(row(key, &value), Ok(Row { version, value: Value::Inline(b"x") }));
    }

    #[test]
    fn foreign_bytes_are_damage() {
        let stamp = [0; FDB_STAMP_BYTES];
        let table = [
            Vec::new(),
            stamp.to_vec(),
            [&stamp[..], &[9]].concat(),
            [&stamp[..], &[CHUNKED, 1]].concat(),
            [&stamp[..], &[STAMPED_KEY]].concat(),
        ];
        for value in table {
            let found = row(b"short", &value);
            assert!(matches!(found, Err(StoreError::Corrupt { .. })), "{value:?}: {found:?}");
        }
        assert!(version_of_stamp(&[0; 9]).is_err());
    }
}
