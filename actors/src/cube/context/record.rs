//! What is kept of a context: how it grows by a reply, what is taken out of it, and when it should
//! be laid out anew. Pure.

use std::collections::BTreeSet;

use memcube_schemas::{
    MemoryId,
    activation::{ContextMemory, ContextRecord, ContextSegment},
    conversation::Role,
    limits::{CONTEXT_MEMORIES_MAX, CONTEXT_SEGMENTS_MAX},
};
use sha2::{Digest, Sha256};

use super::{STALE_AFTER_TURNS, index, number};

/// Why a context should be laid out anew when nobody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Most of its memories are of no use any more.
    Stale,
    /// It fills most of the window.
    TooLong,
    /// It consists of many small pieces.
    Scattered,
}

/// Whether a context should be laid out anew when nobody waits, and why.
#[must_use]
pub fn rebuild(record: &ContextRecord, window_tokens: usize) -> Option<Rebuild> {
    /// Segments behind the sealed ones: each ends a block, however short.
    const SCATTERED_MAX: usize = 32;
    let tokens = |memories: &mut dyn Iterator<Item = &ContextMemory>| -> u64 {
        memories.map(|memory| u64::from(memory.tokens)).sum()
    };
    // What nobody wanted so far may be wanted by the next turn, and goes by itself otherwise.
    let is_stale =
        |memory: &&ContextMemory| memory.wanted_at.saturating_add(STALE_AFTER_TURNS) < record.turn;
    let all = tokens(&mut record.memories());
    let stale = tokens(&mut record.memories().filter(is_stale));
    if usize::try_from(record.tokens).unwrap_or(usize::MAX) > window_tokens / 4 * 3 {
        Some(Rebuild::TooLong)
    } else if stale * 2 > all {
        Some(Rebuild::Stale)
    } else if record.segments.len().saturating_sub(index(record.sealed)) > SCATTERED_MAX {
        Some(Rebuild::Scattered)
    } else {
        None
    }
}

/// The context after the reply.
pub(crate) fn replied(record: &mut ContextRecord, reply: &str, reply_tokens: usize) {
    record.segments.push(ContextSegment::Turn(Role::Assistant, digest(reply)));
    record.turn += 1;
    record.tokens = record.tokens.saturating_add(number(reply_tokens));
}

/// Whether two records are of the same context, whatever they say of its tokens and its use.
pub(crate) fn is_same(one: &ContextRecord, other: &ContextRecord) -> bool {
    let is_same = |(one, other): (&ContextSegment, &ContextSegment)| match (one, other) {
        (ContextSegment::Memories(one), ContextSegment::Memories(other)) => {
            let sources = |memories: &[ContextMemory]| {
                memories.iter().map(|memory| memory.source).collect::<Vec<_>>()
            };
            sources(one) == sources(other)
        }
        (one, other) => one == other,
    };
    one.segments.len() == other.segments.len()
        && one.segments.iter().zip(&other.segments).all(is_same)
}

/// Whether a record is small enough to be kept.
pub(crate) fn fits(record: &ContextRecord) -> bool {
    record.segments.len() <= CONTEXT_SEGMENTS_MAX
        && record.memories().count() <= CONTEXT_MEMORIES_MAX
}

/// Takes a memory out of a context; returns whether it was in it.
pub(crate) fn take_out(record: &mut ContextRecord, memories: &BTreeSet<MemoryId>) -> bool {
    let before = record.memories().count();
    let mut sealed = index(record.sealed);
    let mut at = 0;
    let mut gone_tokens = 0_u32;
    record.segments.retain_mut(|segment| {
        let place = at;
        at += 1;
        let ContextSegment::Memories(held) = segment else { return true };
        held.retain(|memory| {
            let stays = !memories.contains(&memory.source.id);
            gone_tokens += if stays { 0 } else { memory.tokens };
            stays
        });
        if held.is_empty() && place < index(record.sealed) {
            sealed -= 1;
        }
        !held.is_empty()
    });
    record.sealed = number(sealed);
    record.tokens = record.tokens.saturating_sub(gone_tokens);
    record.memories().count() != before
}

/// The first 16 bytes of the SHA-256 of a text.
pub(super) fn digest(text: &str) -> [u8; 16] {
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash[..16]);
    digest
}
