//! Cuts what is too large for one commit into parts, each of which is a commit of its own: the
//! store
//! may take no more than some megabytes at a time (FoundationDB's limit is 10 MB).

use memcube_schemas::{
    command::{CubeEvent, MemoryDraft},
    limits::{COMMIT_BYTES_AIM, EVENTS_PER_COMMIT_MAX},
    memory::MemoryItem,
};

/// Bytes of a row beside its texts and its vector: key, envelope, identifiers, times, feed.
const ROW_BYTES: usize = 512;

/// About how many bytes a commit writes for a draft.
fn draft_bytes(draft: &MemoryDraft) -> usize {
    let tags: usize = draft.tags.iter().map(String::len).sum();
    let vector = draft.vector.as_ref().map_or(0, |vector| size_of_val(vector.as_slice()));
    ROW_BYTES + draft.text.len() + draft.source.content.len() + draft.info.len() + tags + vector
}

/// About how many bytes a commit writes for an item that stays in a row of the store.
pub(super) fn item_bytes(item: &MemoryItem) -> usize {
    let tags: usize = item.tags.iter().map(String::len).sum();
    let sources: usize = item.sources.iter().map(|source| source.content.len() + 64).sum();
    ROW_BYTES + item.text.len() + item.info.len() + tags + sources
}

/// About how many bytes a commit writes for an event.
pub(super) fn event_bytes(event: &CubeEvent) -> usize {
    let of_vector = |vector: &Option<Vec<f32>>| {
        vector.as_ref().map_or(0, |vector| size_of_val(vector.as_slice()))
    };
    match event {
        CubeEvent::MemoryAdded { item, vector } => item_bytes(item) + of_vector(vector),
        CubeEvent::MemoryRepeated { item } => item_bytes(item),
        CubeEvent::MemoryUpdated { former, item, vector } => {
            item_bytes(former) + item_bytes(item) + of_vector(vector)
        }
        CubeEvent::MemoryDeleted { former, .. } => item_bytes(former),
    }
}

/// How many of the first drafts go into one commit: one at least, and the same number whenever the
/// same drafts are cut.
pub(super) fn part(drafts: &[MemoryDraft]) -> usize {
    let fitting = fitting(drafts.iter().map(draft_bytes));
    fitting.max(1).min(drafts.len())
}

/// How many of the first things go into one commit, by their bytes.
pub(super) fn fitting(bytes: impl Iterator<Item = usize>) -> usize {
    let mut left = COMMIT_BYTES_AIM;
    bytes
        .take(EVENTS_PER_COMMIT_MAX)
        .take_while(|bytes| {
            let fits = *bytes <= left;
            left = left.saturating_sub(*bytes);
            fits
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_takes_what_fits_by_number_and_by_bytes() {
        let table = [
            (vec![], 0),
            (vec![1; 10], 10),
            (vec![1; 1_000], EVENTS_PER_COMMIT_MAX),
            (vec![COMMIT_BYTES_AIM], 1),
            (vec![COMMIT_BYTES_AIM + 1, 1], 0),
            (vec![COMMIT_BYTES_AIM / 2; 5], 2),
            (vec![10, COMMIT_BYTES_AIM, 10], 1),
        ];
        for (bytes, expected) in table {
            assert_eq!(fitting(bytes.iter().copied()), expected, "{bytes:?}");
        }
    }
}
