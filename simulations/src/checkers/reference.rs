//! The reference model: what every cube should hold, kept in plain maps and built from nothing but
//! what callers asked and were told.

use std::collections::{BTreeMap, BTreeSet};

use memcube_schemas::{CubeId, MemoryId, TenantId};

use crate::history::{Call, History, Operation, Outcome, Seen};

/// What is known of one cube.
#[derive(Debug, Default)]
pub(super) struct ReferenceCube<'a> {
    /// The calls that asked to remember a marker.
    pub(super) adds: BTreeMap<&'a str, Adds>,
    /// The items that a marker was, or may have been, given to by an update.
    pub(super) updates: BTreeMap<&'a str, BTreeSet<MemoryId>>,
    /// What is known of each item.
    pub(super) items: BTreeMap<MemoryId, ReferenceItem<'a>>,
    /// Answers that contradict each other.
    pub(super) contradictions: Vec<String>,
}

/// Calls that asked to remember the same marker.
#[derive(Debug, Default)]
pub(super) struct Adds {
    /// How many there were, those included that were refused because the text was known already.
    pub(super) asked: usize,
    /// How many made an item or may have made one.
    pub(super) calls: usize,
    /// The items of those that were acknowledged.
    pub(super) acknowledged: BTreeSet<MemoryId>,
    /// How many ended without an answer.
    pub(super) unsure: usize,
}

impl Adds {
    /// Whether one of the calls may have made this item.
    pub(super) fn may_have_made(&self, id: MemoryId) -> bool {
        self.unsure > 0 || self.acknowledged.contains(&id)
    }
}

/// What is known of one item.
#[derive(Debug, Default)]
pub(super) struct ReferenceItem<'a> {
    /// The marker of every revision that some caller was told of. Empty if nobody was.
    pub(super) revisions: BTreeMap<u32, &'a str>,
    /// Updates that may have happened.
    pub(super) unsure_updates: Vec<UnsureUpdate<'a>>,
    /// Whether its deletion was acknowledged, and was with its history.
    pub(super) deleted: Option<Deleted>,
    /// Whether a deletion may have happened.
    pub(super) is_delete_unsure: bool,
}

/// An acknowledged deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deleted {
    /// The history is kept.
    Kept,
    /// The history went too.
    Purged,
}

/// An update without an answer.
#[derive(Debug)]
pub(super) struct UnsureUpdate<'a> {
    pub(super) marker: &'a str,
    pub(super) expected_revision: Option<u32>,
}

impl UnsureUpdate<'_> {
    /// Whether the update may have made this revision.
    pub(super) fn may_have_made(&self, revision: u32, marker: &str) -> bool {
        self.marker == marker
            && self.expected_revision.is_none_or(|expected| expected + 1 == revision)
    }
}

/// Builds the model of every cube that was ever asked.
pub(super) fn reference(history: &History) -> BTreeMap<(TenantId, CubeId), ReferenceCube<'_>> {
    let mut cubes: BTreeMap<_, ReferenceCube<'_>> = BTreeMap::new();
    for operation in history.operations() {
        let name = (operation.tenant.clone(), operation.cube.clone());
        cubes.entry(name).or_default().learn(operation);
    }
    cubes
}

impl<'a> ReferenceCube<'a> {
    fn learn(&mut self, operation: &'a Operation) {
        match &operation.call {
            Call::Add { marker } => self.learn_add(marker, &operation.outcome),
            Call::Update { id, marker, expected_revision } => {
                let update = UnsureUpdate { marker, expected_revision: *expected_revision };
                self.learn_update(operation.id, *id, update, &operation.outcome);
            }
            Call::Delete { id, purge } => self.learn_delete(*id, *purge, &operation.outcome),
            // A search over the tenant shows other cubes' items: the checker `tenant-search`
            // judges.
            Call::SearchTenant { .. } => {}
            Call::Get { .. } | Call::List | Call::Search { .. } => {
                for seen in shown(&operation.outcome) {
                    self.see(operation.id, seen);
                }
            }
        }
    }

    fn learn_add(&mut self, marker: &'a str, outcome: &Outcome) {
        let adds = self.adds.entry(marker).or_default();
        adds.asked += 1;
        if let Outcome::Added { id, .. } = outcome {
            adds.calls += 1;
            adds.acknowledged.insert(*id);
            self.items.entry(*id).or_default().revisions.insert(1, marker);
        } else if is_unsure(outcome) {
            adds.calls += 1;
            adds.unsure += 1;
        }
    }

    fn learn_update(
        &mut self,
        operation: usize,
        id: MemoryId,
        update: UnsureUpdate<'a>,
        outcome: &'a Outcome,
    ) {
        if let Outcome::Updated { seen, .. } = outcome {
            if seen.id != id || seen.marker != update.marker {
                self.contradictions.push(format!(
                    "operation {operation} asked for {} in {id} and was told of {} in {}",
                    update.marker, seen.marker, seen.id
                ));
            }
            self.updates.entry(update.marker).or_default().insert(id);
            self.see(operation, seen);
        } else if is_unsure(outcome) {
            self.updates.entry(update.marker).or_default().insert(id);
            self.items.entry(id).or_default().unsure_updates.push(update);
        }
    }

    fn learn_delete(&mut self, id: MemoryId, purge: bool, outcome: &Outcome) {
        let item = self.items.entry(id).or_default();
        if let Outcome::Deleted { .. } = outcome {
            item.deleted = Some(if purge { Deleted::Purged } else { Deleted::Kept });
        } else if is_unsure(outcome) {
            item.is_delete_unsure = true;
        }
    }

    fn see(&mut self, operation: usize, seen: &'a Seen) {
        let item = self.items.entry(seen.id).or_default();
        let known = *item.revisions.entry(seen.revision).or_insert(&seen.marker);
        if known != seen.marker {
            self.contradictions.push(format!(
                "operation {operation} was shown {} in revision {} of {}, others {known}",
                seen.marker, seen.revision, seen.id
            ));
        }
    }
}

/// The items that an answer shows.
pub(super) fn shown(outcome: &Outcome) -> &[Seen] {
    match outcome {
        Outcome::Item(seen) | Outcome::Updated { seen, .. } => std::slice::from_ref(seen),
        Outcome::Listed { items, .. } => items,
        Outcome::Found { hits, .. } => hits,
        Outcome::Pending
        | Outcome::FoundAcross { .. }
        | Outcome::Added { .. }
        | Outcome::Missing
        | Outcome::OtherRevision
        | Outcome::Deleted { .. }
        | Outcome::Refused { .. }
        | Outcome::Unknown { .. } => &[],
    }
}

/// Whether what was asked may have happened although nobody was told.
pub(super) const fn is_unsure(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Pending | Outcome::Unknown { .. })
}
