//! A caller sees what it did: its own additions until somebody may have taken them away, never
//! again what it deleted, and no cube or item that goes back in time.
//!
//! It knows only what callers were told. It cannot see what one caller should see of another's
//! writes; and while anybody's deletion or update of an item may be under way, it believes every
//! answer about that item.

use std::collections::BTreeMap;

use memcube_schemas::{MemoryId, Version};

use super::{
    case::{Case, CubeName},
    findings::Findings,
    reference::shown,
    title,
};
use crate::{
    evidence::Violation,
    history::{Call, Operation, Outcome, Seen},
};

pub(super) const NAME: &str = "read-your-writes";

/// Follows every caller through every cube.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let mut cubes: BTreeMap<CubeName, Vec<&Operation>> = BTreeMap::new();
    for operation in case.evidence.history.operations() {
        let cube = (operation.tenant.clone(), operation.cube.clone());
        cubes.entry(cube).or_default().push(operation);
    }
    for (cube, operations) in cubes {
        let is_erased = case.timelines.get(&cube).is_some_and(|timeline| timeline.is_erased);
        let excuses = excuses(&operations);
        let mut by_client: BTreeMap<u32, Vec<&Operation>> = BTreeMap::new();
        for operation in operations {
            by_client.entry(operation.client).or_default().push(operation);
        }
        for (client, own) in by_client {
            let title = format!("{}: client {client}", title(&cube));
            let mut view = View { title, excuses: &excuses, is_erased, findings: &mut findings };
            view.check_writes(&own);
            // A cube that is made anew begins at version 0 again.
            if !is_erased {
                view.check_order(&own);
            }
        }
    }
    findings.into_violations()
}

/// When somebody first asked to delete an item, and to change it.
#[derive(Debug, Clone, Copy)]
struct Excuse {
    deleted: u64,
    updated: u64,
}

const NO_EXCUSE: Excuse = Excuse { deleted: u64::MAX, updated: u64::MAX };

fn excuses(operations: &[&Operation]) -> BTreeMap<MemoryId, Excuse> {
    let mut excuses: BTreeMap<MemoryId, Excuse> = BTreeMap::new();
    for operation in operations {
        let had_no_effect =
            matches!(operation.outcome, Outcome::Refused { .. } | Outcome::OtherRevision);
        let at = operation.invoked.order;
        match &operation.call {
            Call::Delete { id, .. } if !had_no_effect => {
                let excuse = excuses.entry(*id).or_insert(NO_EXCUSE);
                excuse.deleted = excuse.deleted.min(at);
            }
            Call::Update { id, .. } if !had_no_effect => {
                let excuse = excuses.entry(*id).or_insert(NO_EXCUSE);
                excuse.updated = excuse.updated.min(at);
            }
            Call::Delete { .. }
            | Call::Update { .. }
            | Call::Add { .. }
            | Call::Get { .. }
            | Call::List
            | Call::Search { .. }
            | Call::SearchTenant { .. } => {}
        }
    }
    excuses
}

/// One caller's view of one cube.
struct View<'a> {
    title: String,
    excuses: &'a BTreeMap<MemoryId, Excuse>,
    /// Whether the cube was ever deleted, with everything in it.
    is_erased: bool,
    findings: &'a mut Findings,
}

/// An answer with the times of its call and itself.
struct Answer<'a> {
    operation: &'a Operation,
    invoked: u64,
    returned: u64,
}

fn answers<'a>(own: &[&'a Operation]) -> Vec<Answer<'a>> {
    let answer = |operation: &&'a Operation| {
        let returned = operation.returned?.order;
        Some(Answer { operation, invoked: operation.invoked.order, returned })
    };
    own.iter().filter_map(answer).collect()
}

impl View<'_> {
    fn check_writes(&mut self, own: &[&Operation]) {
        let answers = answers(own);
        for (place, write) in answers.iter().enumerate() {
            let later = || answers[place + 1..].iter().filter(|read| read.invoked > write.returned);
            match (&write.operation.call, &write.operation.outcome) {
                (Call::Add { marker }, Outcome::Added { id, .. }) => {
                    later().for_each(|read| self.check_added(*id, marker, read));
                }
                (Call::Delete { id, .. }, Outcome::Deleted { .. }) => {
                    later().for_each(|read| self.check_deleted(*id, read));
                }
                (_, _) => {}
            }
        }
    }

    fn check_added(&mut self, id: MemoryId, marker: &str, read: &Answer<'_>) {
        let excuse = self.excuses.get(&id).copied().unwrap_or(NO_EXCUSE);
        if self.is_erased || excuse.deleted < read.returned {
            return;
        }
        let is_updated = excuse.updated < read.returned;
        let must_show = match (&read.operation.call, &read.operation.outcome) {
            (Call::Get { id: asked }, Outcome::Item(_) | Outcome::Missing) => *asked == id,
            (Call::List, Outcome::Listed { .. }) => true,
            (Call::Search { marker: asked }, Outcome::Found { .. }) => {
                asked == marker && !is_updated
            }
            (_, _) => false,
        };
        if !must_show {
            return;
        }
        let seen = shown(&read.operation.outcome).iter().find(|seen| seen.id == id);
        let (title, number) = (&self.title, read.operation.id);
        match seen {
            None => self.findings.report(format!(
                "{title} added {marker} ({id}), and operation {number} does not show it"
            )),
            Some(Seen { marker: other, .. }) if other != marker && !is_updated => {
                self.findings.report(format!(
                    "{title} added {marker} ({id}), and operation {number} shows {other} there"
                ));
            }
            Some(_) => {}
        }
    }

    fn check_deleted(&mut self, id: MemoryId, read: &Answer<'_>) {
        if shown(&read.operation.outcome).iter().any(|seen| seen.id == id) {
            let (title, number) = (&self.title, read.operation.id);
            self.findings
                .report(format!("{title} deleted {id}, and operation {number} still shows it"));
        }
    }

    /// Versions of the cube and revisions of its items never go back.
    fn check_order(&mut self, own: &[&Operation]) {
        let mut by_return = answers(own);
        by_return.sort_by_key(|answer| answer.returned);
        let mut returned = by_return.iter().peekable();
        let mut newest = Version(0);
        let mut revisions: BTreeMap<MemoryId, u32> = BTreeMap::new();
        for answer in answers(own) {
            while let Some(before) = returned.next_if(|before| before.returned < answer.invoked) {
                newest = newest.max(version_of(&before.operation.outcome).unwrap_or_default());
                for seen in shown(&before.operation.outcome) {
                    let known = revisions.entry(seen.id).or_default();
                    *known = seen.revision.max(*known);
                }
            }
            let (title, number) = (&self.title, answer.operation.id);
            if let Some(version) = version_of(&answer.operation.outcome)
                && version < newest
            {
                self.findings.report(format!(
                    "{title} knew version {newest}, and operation {number} answers from {version}"
                ));
            }
            for Seen { id, revision, .. } in shown(&answer.operation.outcome) {
                let known = revisions.get(id).copied().unwrap_or_default();
                self.findings.expect(*revision >= known, || {
                    format!(
                        "{title} knew revision {known} of {id}, and operation {number} shows \
                         {revision}"
                    )
                });
            }
        }
    }
}

/// The version of the cube that an answer tells.
fn version_of(outcome: &Outcome) -> Option<Version> {
    match outcome {
        Outcome::Added { version, .. }
        | Outcome::Updated { version, .. }
        | Outcome::Deleted { version }
        | Outcome::Listed { version, .. }
        | Outcome::Found { version, .. } => Some(*version),
        Outcome::Pending
        | Outcome::FoundAcross { .. }
        | Outcome::Item(_)
        | Outcome::Missing
        | Outcome::OtherRevision
        | Outcome::Refused { .. }
        | Outcome::Unknown { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::builder::{Scene, said};

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    #[test]
    fn a_caller_sees_what_it_did() {
        let mut scene = Scene::new();
        let [one, two] = ["mk1", "mk2"].map(|marker| scene.add(0, marker));
        scene.list(0);
        scene.search(0, "mk1");
        scene.get(0, one);
        scene.unknown(1, Call::Delete { id: two, purge: false });
        scene.store_delete(two, false);
        scene.get(0, two);
        scene.update(1, one, "mk3");
        scene.list(0);
        scene.delete(0, one, false);
        scene.list(0);
        assert_eq!(verdict(scene), [""; 0]);
    }

    #[test]
    fn going_back_in_time_is_seen() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let (items, version) = scene.everything();
        scene.update(1, id, "mk2");
        let stale = Outcome::Listed { items, version };
        scene.operation(2, Call::List, stale.clone());
        scene.operation(1, Call::List, stale);
        assert_eq!(
            verdict(scene),
            [
                "acme/ann: client 1 knew version 2, and operation 3 answers from 1".to_owned(),
                format!("acme/ann: client 1 knew revision 2 of {id}, and operation 3 shows 1"),
            ]
        );
    }

    #[test]
    fn an_addition_that_is_not_shown_is_seen() {
        let cases = ["list", "search", "get"];
        for case in cases {
            let mut scene = Scene::new();
            let id = scene.add(0, "mk1");
            let refused = Outcome::Refused { reason: "overloaded".to_owned() };
            scene.operation(1, Call::Delete { id, purge: false }, refused);
            let (items, hits, version) = (Vec::new(), Vec::new(), scene.version());
            let (call, outcome) = match case {
                "list" => (Call::List, Outcome::Listed { items, version }),
                "get" => (Call::Get { id }, Outcome::Missing),
                _search => {
                    (Call::Search { marker: "mk1".into() }, Outcome::Found { hits, version })
                }
            };
            scene.operation(0, call.clone(), outcome.clone());
            scene.operation(1, call, outcome);
            assert_eq!(
                verdict(scene),
                [format!("acme/ann: client 0 added mk1 ({id}), and operation 2 does not show it")]
            );
        }
    }

    #[test]
    fn another_text_and_a_ghost_are_seen() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let mut seen = scene.seen(id);
        seen.marker = "mk2".to_owned();
        scene.operation(0, Call::Get { id }, Outcome::Item(seen.clone()));
        scene.delete(0, id, false);
        scene.operation(0, Call::Get { id }, Outcome::Item(seen));
        assert_eq!(
            verdict(scene),
            [
                format!("acme/ann: client 0 added mk1 ({id}), and operation 1 shows mk2 there"),
                format!("acme/ann: client 0 deleted {id}, and operation 3 still shows it"),
            ]
        );
    }

    #[test]
    fn a_cube_that_is_made_anew_begins_at_zero() {
        let mut scene = Scene::new();
        scene.add(0, "mk1");
        scene.erase_and_make_anew();
        let (items, version) = scene.everything();
        scene.operation(1, Call::List, Outcome::Listed { items, version });
        assert_eq!(verdict(scene), [""; 0]);
    }
}
