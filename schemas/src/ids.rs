//! Identifiers: newtypes that can only hold what the rest of the system may rely on.

use std::{fmt, str::FromStr};

use rkyv::{Archive, Deserialize, Serialize};

use crate::limits::{CUBE_ID_BYTES_MAX, TENANT_ID_BYTES_MAX, TEXT_ID_BYTES_MAX};

/// A text that is not a valid identifier, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidId {
    /// Which kind of identifier was meant, such as `cube id`.
    pub what: &'static str,
    /// What is wrong with the text.
    pub reason: String,
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid {}: {}", self.what, self.reason)
    }
}

impl std::error::Error for InvalidId {}

/// Refuses empty, oversized and unprintable texts, and any character that `allowed` rejects.
fn check_text(
    what: &'static str,
    text: &str,
    bytes_max: usize,
    allowed: fn(char) -> bool,
) -> Result<(), InvalidId> {
    let refuse = |reason: String| Err(InvalidId { what, reason });
    if text.is_empty() {
        return refuse("it is empty".to_owned());
    }
    if text.len() > bytes_max {
        return refuse(format!("it has {} bytes, the limit is {bytes_max}", text.len()));
    }
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        return refuse(format!("the character {bad:?} is not allowed"));
    }
    Ok(())
}

fn is_printable(c: char) -> bool {
    !c.is_control()
}

fn is_tenant_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $bytes_max:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
        )]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a text.
            ///
            /// # Errors
            /// [`InvalidId`] when the text is empty, too long, or holds a character that is not
            /// allowed.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                check_text($what, &text, $bytes_max, $allowed)?;
                Ok(Self(text))
            }

            /// The text of this identifier.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// A customer of the installation: the first part of every key. Letters, digits, `-`, `_`, `.`.
    TenantId, "tenant id", TENANT_ID_BYTES_MAX, is_tenant_char
);
text_id!(
    /// A person or agent inside a tenant, as the application names it.
    UserId, "user id", TEXT_ID_BYTES_MAX, is_printable
);
text_id!(
    /// One MemCube: the memory of one user or agent.
    CubeId, "cube id", CUBE_ID_BYTES_MAX, is_printable
);
text_id!(
    /// One dialogue, as the application names it.
    ConversationId, "conversation id", TEXT_ID_BYTES_MAX, is_printable
);
text_id!(
    /// One machine of an installation, as its settings name it.
    NodeId, "node id", TEXT_ID_BYTES_MAX, is_printable
);
text_id!(
    /// A model together with its exact weights, such as `minilm-l6-v2@53aa5117`.
    ModelId, "model id", TEXT_ID_BYTES_MAX, is_printable
);
text_id!(
    /// The caller's name for one request, so that a retry of it has no second effect.
    RequestId, "idempotency key", TEXT_ID_BYTES_MAX, is_printable
);

/// One memory item. 16 bytes in the layout of a UUID version 7 (RFC 9562): 48 bits of Unix
/// milliseconds, then bits that keep identifiers of one cube in the order of their creation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
#[rkyv(derive(Debug, PartialEq, Eq, PartialOrd, Ord))]
pub struct MemoryId([u8; 16]);

impl MemoryId {
    /// Builds an identifier from its time and 74 further bits (the rest of `rest` is ignored).
    #[must_use]
    pub fn from_parts(unix_ms: u64, rest: u128) -> Self {
        let time = u128::from(unix_ms & 0xffff_ffff_ffff) << 80;
        let high = (rest >> 62 & 0xfff) << 64;
        let low = rest & 0x3fff_ffff_ffff_ffff;
        Self((time | 0x7 << 76 | high | 0b10 << 62 | low).to_be_bytes())
    }

    /// Wraps 16 stored bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes, in sort order.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for MemoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for MemoryId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let refuse = || InvalidId {
            what: "memory id",
            reason: "expected a UUID such as `01890a5d-ac96-774b-bcce-b302099a8057`".to_owned(),
        };
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        if digits.len() != 32 || text.len() > 36 {
            return Err(refuse());
        }
        let mut bytes = [0_u8; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or_else(refuse)?;
            let low = char::from(pair[1]).to_digit(16).ok_or_else(refuse)?;
            *byte = u8::try_from(high * 16 + low).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl serde::Serialize for MemoryId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MemoryId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads bytes from exactly two hexadecimal digits each.
pub(crate) fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != BYTES || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0_u8; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

/// A place in an event feed: the version of a commit, and what orders within it. Stamps of one
/// store sort in commit order. See `keys::feed_stamp`.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Archive,
    Serialize,
    Deserialize,
)]
pub struct Stamp(pub [u8; 12]);

impl Stamp {
    /// After everything that commits up to this version wrote.
    #[must_use]
    pub fn end_of(version: Version) -> Self {
        let mut bytes = [0xff_u8; 12];
        bytes[..8].copy_from_slice(&version.0.to_be_bytes());
        Self(bytes)
    }

    /// The version of the commit.
    #[must_use]
    pub fn version(self) -> Version {
        let mut bytes = [0_u8; 8];
        bytes.copy_from_slice(&self.0[..8]);
        Version(u64::from_be_bytes(bytes))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Stamp {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let reason = || format!("`{text}` is not 24 hexadecimal digits");
        from_hex(text).map(Self).ok_or_else(|| InvalidId { what: "stamp", reason: reason() })
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize,
            Deserialize, serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The next value.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter!(
    /// A point in the history of a store or of a cube; grows with every commit.
    Version
);
counter!(
    /// A term of ownership of a cube: a commit from an older epoch is refused by the store.
    Epoch
);
counter!(
    /// One life of a node, between its start and its end: a number drawn at the start, so that what
    /// belonged to an earlier life is told apart. Unordered; zero stands for a life that nobody
    /// recorded.
    Incarnation
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_ids_print_parse_and_sort_by_time() {
        let early = MemoryId::from_parts(1_700_000_000_000, 7);
        let late = MemoryId::from_parts(1_700_000_000_001, 3);
        assert!(early < late);
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(early.to_string().len(), 36);
        assert_eq!(&early.to_string()[14..15], "7", "UUID version");
        assert!("not-a-uuid".parse::<MemoryId>().is_err());
    }

    #[test]
    fn text_ids_refuse_what_they_cannot_carry() {
        for (text, good) in [("acme", true), ("", false), ("a b", false), ("a/b", false)] {
            assert_eq!(TenantId::new(text).is_ok(), good, "{text:?}");
        }
        for (text, good) in [("user 7/ö", true), ("", false), ("a\nb", false)] {
            assert_eq!(CubeId::new(text).is_ok(), good, "{text:?}");
        }
        assert!(CubeId::new("x".repeat(CUBE_ID_BYTES_MAX + 1)).is_err());
    }
}
