//! The rules about bytes that every backend shares: sizes, counters, versionstamps.

use memcube_schemas::{
    Version,
    limits::{KEY_BYTES_MAX, MUTATIONS_PER_COMMIT_MAX, STAMPED_VALUE_BYTES_MAX, VALUE_BYTES_MAX},
};

use super::{Check, Commit, Mutation, StoreError};

/// Bytes that a versionstamp adds to its prefix: the version, the place among commits of that
/// version, and the position in the commit.
pub const STAMP_BYTES: usize = 12;
/// A range that ends just after the longest key ends one byte later.
const RANGE_BOUND_BYTES_MAX: usize = KEY_BYTES_MAX + 1;

impl Commit {
    /// Refuses a commit that is larger than a store takes, so that it is never queued.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] with what is too large and the limit.
    pub fn check_limits(&self) -> Result<(), StoreError> {
        check_size("mutations", self.mutations.len(), MUTATIONS_PER_COMMIT_MAX)?;
        check_size("checks", self.checks.len(), MUTATIONS_PER_COMMIT_MAX)?;
        for key in self.checks.iter().map(Check::key) {
            check_size("bytes in a checked key", key.len(), KEY_BYTES_MAX)?;
        }
        self.mutations.iter().try_for_each(check_mutation)
    }
}

fn check_mutation(mutation: &Mutation) -> Result<(), StoreError> {
    match mutation {
        Mutation::Set { key, value } => {
            check_size("bytes in a key", key.len(), KEY_BYTES_MAX)?;
            check_size("bytes in a value", value.len(), VALUE_BYTES_MAX)
        }
        Mutation::Clear { key } | Mutation::Add { key, .. } => {
            check_size("bytes in a key", key.len(), KEY_BYTES_MAX)
        }
        Mutation::ClearRange { range } => {
            check_size("bytes in a range's start", range.start.len(), RANGE_BOUND_BYTES_MAX)?;
            check_size("bytes in a range's end", range.end.len(), RANGE_BOUND_BYTES_MAX)
        }
        Mutation::SetVersionstamped { prefix, value } => {
            check_size("bytes in a prefix", prefix.len(), KEY_BYTES_MAX - STAMP_BYTES)?;
            check_size("bytes in a stamped value", value.len(), STAMPED_VALUE_BYTES_MAX)
        }
    }
}

fn check_size(what: &str, found: usize, max: usize) -> Result<(), StoreError> {
    if found > max {
        return Err(StoreError::TooLarge { reason: format!("{found} {what}, the limit is {max}") });
    }
    Ok(())
}

/// The bytes of a counter after [`Mutation::Add`].
#[must_use]
pub fn counter_after_add(before: Option<&[u8]>, delta: i64) -> [u8; 8] {
    let mut bytes = [0_u8; 8];
    for (byte, stored) in bytes.iter_mut().zip(before.unwrap_or_default()) {
        *byte = *stored;
    }
    i64::from_le_bytes(bytes).wrapping_add(delta).to_le_bytes()
}

/// The key that [`Mutation::SetVersionstamped`] writes, as mutation number `position` of the only
/// commit of its version.
#[must_use]
pub fn versionstamped_key(prefix: &[u8], version: Version, position: usize) -> Vec<u8> {
    let position = u16::try_from(position).expect("invariant: mutations per commit are bounded");
    let mut key = Vec::with_capacity(prefix.len() + STAMP_BYTES);
    key.extend_from_slice(prefix);
    key.extend_from_slice(&version.0.to_be_bytes());
    key.extend_from_slice(&u32::from(position).to_be_bytes());
    key
}
