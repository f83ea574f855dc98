//! The envelope around every stored value, and the only place that validates bytes.
//!
//! Layout: magic `mc` (2 bytes), kind (1 byte), format version (1 byte, big part of a promise: old
//! versions stay readable), CRC-32C of the payload (4 bytes, little endian), then the payload: an
//! rkyv archive, aligned on read.

use std::fmt;

use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};

const MAGIC: [u8; 2] = *b"mc";
const HEADER_BYTES: usize = 8;
/// More than any stored type needs.
const PART_ALIGN_BYTES: usize = 16;

/// The alignment of what is looked at in place; allocators give twice that.
const VIEW_ALIGN_BYTES: usize = 8;

/// Bytes that could not be read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Which stored type was expected.
    pub expected: &'static str,
    /// What is wrong with the bytes.
    pub reason: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read a stored {}: {}", self.expected, self.reason)
    }
}

impl std::error::Error for DecodeError {}

/// A type that is stored: it has a name, a kind byte that is never reused, and a format version.
pub trait Stored: Sized {
    /// Name for messages.
    const NAME: &'static str;
    /// Kind byte; unique among stored types, never reused.
    const KIND: u8;
    /// Format version written today. Raise it when the layout changes, and keep reading old ones.
    const FORMAT: u8;

    /// Reads the payload of a former format version, and makes today's value of it. `None` when
    /// there never was such a version.
    fn decode_former(_format: u8, _payload: &[u8]) -> Option<Result<Self, rancor::Error>> {
        None
    }
}

/// Writes a value into its envelope.
///
/// # Panics
/// Never on the types of this crate: archiving into memory cannot fail for them.
pub fn encode<T>(value: &T) -> Vec<u8>
where
    T: Stored + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let payload = rkyv::to_bytes::<rancor::Error>(value)
        .expect("invariant: archiving a stored type into memory does not fail");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[T::KIND, T::FORMAT]);
    bytes.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// Whether bytes are an envelope with the kind of a stored type, and not damaged. Does not look at
/// what is in it, so that it also tells of values in a newer format.
///
/// # Errors
/// [`DecodeError`] with what is wrong.
pub fn check_envelope<T: Stored>(bytes: &[u8]) -> Result<(), DecodeError> {
    open_envelope::<T>(bytes).map(|_| ())
}

/// The format version in an envelope, and the payload.
fn open_envelope<T: Stored>(bytes: &[u8]) -> Result<(u8, &[u8]), DecodeError> {
    let (format, checksum, payload) = split_envelope::<T>(bytes)?;
    if crc32c::crc32c(payload) != checksum {
        let reason = "the checksum does not match, the bytes are damaged".to_owned();
        return Err(DecodeError { expected: T::NAME, reason });
    }
    Ok((format, payload))
}

/// Format version, checksum and payload of an envelope.
fn split_envelope<T: Stored>(bytes: &[u8]) -> Result<(u8, u32, &[u8]), DecodeError> {
    let refuse = |reason: String| DecodeError { expected: T::NAME, reason };
    let (header, payload) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or_else(|| refuse(format!("only {} bytes", bytes.len())))?;
    if header[..2] != MAGIC {
        return Err(refuse("the magic bytes are missing".to_owned()));
    }
    if header[2] != T::KIND {
        return Err(refuse(format!("kind {} instead of {}", header[2], T::KIND)));
    }
    let checksum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    Ok((header[3], checksum, payload))
}

/// Reads a value back from its envelope.
///
/// # Errors
/// [`DecodeError`] when the bytes are of another type, of an unknown format version, or damaged.
pub fn decode<T>(bytes: &[u8]) -> Result<T, DecodeError>
where
    T: Stored + Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let refuse = |reason: String| DecodeError { expected: T::NAME, reason };
    let (format, payload) = open_envelope::<T>(bytes)?;
    let mut aligned: AlignedVec = AlignedVec::with_capacity(payload.len());
    aligned.extend_from_slice(payload);
    let read = if format == T::FORMAT {
        Some(rkyv::from_bytes::<T, rancor::Error>(&aligned))
    } else {
        T::decode_former(format, &aligned)
    };
    match read {
        Some(value) => value.map_err(|error| refuse(error.to_string())),
        None => Err(refuse(format!(
            "it has format version {format}, this memcube reads version {}; use the one that wrote it",
            T::FORMAT
        ))),
    }
}

/// Looks at a value in its envelope without copying it, and without comparing the checksum: for
/// large values whose parts have checksums of their own, which the caller compares. The bytes have
/// to lie as [`is_viewable`] says.
///
/// # Errors
/// [`DecodeError`] when the bytes are of another type, of a format version other than today's, or
/// no such value.
pub fn view<T>(bytes: &[u8]) -> Result<&T::Archived, DecodeError>
where
    T: Stored + Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    let refuse = |reason: String| DecodeError { expected: T::NAME, reason };
    let (format, _, payload) = split_envelope::<T>(bytes)?;
    if format != T::FORMAT {
        return Err(refuse(format!("it has format version {format}, not {}", T::FORMAT)));
    }
    rkyv::access::<T::Archived, rancor::Error>(payload).map_err(|error| refuse(error.to_string()))
}

/// Whether bytes lie in memory so that [`view`] can look at them: their payload is aligned.
#[must_use]
pub fn is_viewable(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().wrapping_add(HEADER_BYTES).is_multiple_of(VIEW_ALIGN_BYTES)
}

/// Writes a part of a stored value that has no envelope of its own: what holds it has its checksum.
///
/// # Panics
/// Never on the types of this crate: archiving into memory cannot fail for them.
pub fn encode_part<T>(value: &T) -> AlignedVec
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    rkyv::to_bytes::<rancor::Error>(value)
        .expect("invariant: archiving a stored type into memory does not fail")
}

/// Reads back what [`encode_part`] wrote. Bytes that are aligned to 16 are not copied first.
///
/// # Errors
/// [`DecodeError`] when the bytes are not such a value.
pub fn decode_part<T>(name: &'static str, bytes: &[u8]) -> Result<T, DecodeError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let read = if bytes.as_ptr().addr().is_multiple_of(PART_ALIGN_BYTES) {
        rkyv::from_bytes::<T, rancor::Error>(bytes)
    } else {
        let mut aligned: AlignedVec = AlignedVec::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        rkyv::from_bytes::<T, rancor::Error>(&aligned)
    };
    read.map_err(|error| DecodeError { expected: name, reason: error.to_string() })
}

/// The checksum of stored bytes: CRC-32C.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
