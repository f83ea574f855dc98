//! What was acknowledged is there at the end, exactly once; what was deleted stays deleted; and
//! nothing is there that nobody asked for.
//!
//! It compares the rows at the end with the reference model, which knows what callers were told and
//! nothing else. An item that any caller was shown counts as acknowledged. It cannot see what was
//! wrong in between and righted later, nor whether an operation without an answer happened: there
//! both are right. It says nothing of cubes that were ever erased.

use std::collections::{BTreeMap, BTreeSet};

use memcube_schemas::{MemoryId, memory::ChangeReason};

use super::{
    case::{Case, CubeName, CubeRows, MarkedItem},
    findings::Findings,
    reference::{Adds, Deleted, ReferenceCube, ReferenceItem, reference},
    title,
};
use crate::{evidence::Violation, marker::marker_of};

pub(super) const NAME: &str = "durability";

/// Compares every cube with its reference.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let references = reference(&case.evidence.history);
    let (nothing, nobody) = (CubeRows::default(), ReferenceCube::default());
    let names: BTreeSet<_> = references.keys().chain(case.cubes.keys()).collect();
    let is_erased = |name| case.timelines.get(name).is_some_and(|timeline| timeline.is_erased);
    for name in names.into_iter().filter(|name| !is_erased(*name)) {
        let mut cube = Comparison {
            title: title(name),
            reference: references.get(name).unwrap_or(&nobody),
            rows: case.cubes.get(name).unwrap_or(&nothing),
            replies: replies_in(case, name),
            findings: &mut findings,
        };
        cube.check();
    }
    findings.into_violations()
}

/// The items of a cube that are replies to turns that were to be remembered.
fn replies_in(case: &Case<'_>, name: &CubeName) -> BTreeSet<MemoryId> {
    let items = case.cubes.get(name).into_iter().flat_map(|rows| &rows.items);
    items.filter(|(_, held)| case.is_reply(name, &held.item)).map(|(id, _)| *id).collect()
}

/// Whether a marker stands for a text that carries none.
fn is_text(marker: &str) -> bool {
    marker.starts_with('#')
}

/// One cube beside its reference.
struct Comparison<'a> {
    title: String,
    reference: &'a ReferenceCube<'a>,
    rows: &'a CubeRows,
    /// What models said to turns that were to be remembered.
    replies: BTreeSet<MemoryId>,
    findings: &'a mut Findings,
}

impl Comparison<'_> {
    fn check(&mut self) {
        for contradiction in &self.reference.contradictions {
            self.report(contradiction);
        }
        for (id, item) in &self.reference.items {
            // An id that nobody was shown says nothing; somebody may have invented it.
            if !item.revisions.is_empty() {
                self.check_known(*id, item);
            }
        }
        for (id, item) in &self.rows.items {
            self.check_asked_for(*id, item);
        }
        self.check_made_once();
    }

    fn report(&mut self, what: &str) {
        self.findings.report(format!("{}: {what}", self.title));
    }

    fn check_known(&mut self, id: MemoryId, known: &ReferenceItem<'_>) {
        let first = known.revisions.values().next().copied().unwrap_or_default();
        match (self.rows.items.get(&id), known.deleted) {
            (None, None) if !known.is_delete_unsure => {
                self.report(&format!("{first} ({id}) was acknowledged and is lost"));
            }
            (None, None) => {}
            (Some(_), Some(_)) => {
                self.report(&format!("{first} ({id}) was deleted and is back"));
            }
            (Some(held), None) => {
                self.check_text(id, held, known);
                self.check_history(id, known, |revision| revision < held.item.revision);
            }
            (None, Some(Deleted::Kept)) => {
                self.check_history(id, known, |_| true);
                let of_item = self.rows.history.range((id, 0)..=(id, u32::MAX));
                let last = of_item.last().map(|(_, kept)| kept.reason);
                if last != Some(ChangeReason::Deleted) {
                    self.report(&format!("the history of {first} ({id}) knows of no deletion"));
                }
            }
            (None, Some(Deleted::Purged)) => {
                if self.rows.history.range((id, 0)..=(id, u32::MAX)).next().is_some() {
                    self.report(&format!("{first} ({id}) was purged and has a history"));
                }
            }
        }
    }

    fn check_text(&mut self, id: MemoryId, held: &MarkedItem, known: &ReferenceItem<'_>) {
        let Some((newest, marker)) = known.revisions.last_key_value() else { return };
        let (revision, mark) = (held.item.revision, held.mark());
        if revision < *newest {
            self.report(&format!(
                "{id} is at revision {revision} ({mark}), {newest} ({marker}) was acknowledged"
            ));
        } else if revision == *newest && mark != *marker {
            self.report(&format!(
                "{id} holds {mark} in revision {revision}, {marker} was acknowledged"
            ));
        } else if revision > *newest {
            let unsure = &known.unsure_updates;
            let steps = usize::try_from(revision - newest).unwrap_or(usize::MAX);
            let may_be = unsure.iter().any(|update| update.may_have_made(revision, mark));
            if !may_be || steps > unsure.len() {
                self.report(&format!(
                    "{id} is at revision {revision} ({mark}), nobody asked for more than {newest} \
                     ({marker})"
                ));
            }
        }
    }

    /// Every revision that callers were told of, and that is to be kept, is kept as they saw it.
    fn check_history(
        &mut self,
        id: MemoryId,
        known: &ReferenceItem<'_>,
        is_kept: impl Fn(u32) -> bool,
    ) {
        for (revision, marker) in known.revisions.iter().filter(|(revision, _)| is_kept(**revision))
        {
            let kept = self.rows.history.get(&(id, *revision));
            let kept = kept.map(|kept| marker_of(&kept.former.text).unwrap_or_default());
            match kept {
                None => self.report(&format!("revision {revision} ({marker}) of {id} is lost")),
                Some(kept) if kept != *marker => self.report(&format!(
                    "the history of {id} holds {kept} in revision {revision}, {marker} was \
                     acknowledged"
                )),
                Some(_) => {}
            }
        }
    }

    fn check_asked_for(&mut self, id: MemoryId, held: &MarkedItem) {
        let Some(marker) = held.marker.as_deref() else {
            return self.report(&format!("{id} holds a text without a marker"));
        };
        let added = self.reference.adds.get(marker).is_some_and(|adds| adds.may_have_made(id));
        let updated = self.reference.updates.get(marker).is_some_and(|ids| ids.contains(&id));
        if !added && !updated && !self.may_be_a_part(held) && !self.replies.contains(&id) {
            self.report(&format!("{id} holds {marker}, which nobody asked for"));
        }
        let Some(first) = self.first_marker(id, held) else { return };
        let asked = self.reference.adds.get(first.as_str()).map_or(0, |adds| adds.asked);
        let times = usize::try_from(held.item.occurrences).unwrap_or(usize::MAX);
        if asked > 0 && times > asked {
            self.report(&format!("{first} ({id}) was counted {times} times and said {asked}"));
        }
    }

    /// Whether an item may be one of several that a long text without a marker became, which counts
    /// as an add without an answer.
    fn may_be_a_part(&self, held: &MarkedItem) -> bool {
        let is_unsure = |(marker, adds): (&&str, &Adds)| adds.unsure > 0 && is_text(marker);
        held.item.part.is_some()
            && held.marker.as_deref().is_some_and(is_text)
            && self.reference.adds.iter().any(is_unsure)
    }

    /// No add made more items than it was asked to, counting those that are gone by now.
    fn check_made_once(&mut self) {
        let mut makers: BTreeMap<&str, BTreeSet<MemoryId>> = BTreeMap::new();
        for (id, item) in &self.reference.items {
            if let Some(marker) = item.revisions.get(&1) {
                makers.entry(marker).or_default().insert(*id);
            }
        }
        let (reference, rows) = (self.reference, self.rows);
        let held: Vec<(MemoryId, String)> = rows
            .items
            .iter()
            .filter_map(|(id, held)| Some((*id, self.first_marker(*id, held)?)))
            .collect();
        let former = rows.history.iter().filter(|((_, revision), _)| *revision == 1);
        let former: Vec<(MemoryId, String)> = former
            .filter_map(|((id, _), kept)| Some((*id, marker_of(&kept.former.text)?)))
            .collect();
        for (id, marker) in held.iter().chain(&former) {
            makers.entry(marker).or_default().insert(*id);
        }
        for (marker, ids) in &makers {
            let calls = reference.adds.get(marker).map_or(0, |adds| adds.calls);
            if calls > 0 && ids.len() > calls {
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                self.report(&format!("{marker} was added {calls} times and became {ids:?}"));
            }
        }
    }

    /// The marker that an item was made with.
    fn first_marker(&self, id: MemoryId, held: &MarkedItem) -> Option<String> {
        match self.rows.history.get(&(id, 1)) {
            Some(kept) => marker_of(&kept.former.text),
            None => held.marker.clone().filter(|_| held.item.revision == 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use memcube_actors::storage::Mutation;
    use memcube_schemas::{conversation::Role, keys};

    use super::*;
    use crate::{
        checkers::builder::{Scene, said},
        history::{Call, Outcome},
    };

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    fn call_add(marker: &str) -> Call {
        Call::Add { marker: marker.to_owned() }
    }

    fn unknown() -> Outcome {
        Outcome::Unknown { reason: "cut".to_owned() }
    }

    #[test]
    fn everything_acknowledged_is_there() {
        let mut scene = Scene::new();
        let [kept, updated, deleted, purged] =
            ["mk1", "mk2", "mk3", "mk4"].map(|marker| scene.add(0, marker));
        scene.update(1, updated, "mk5");
        scene.update(1, deleted, "mk6");
        scene.delete(1, deleted, false);
        scene.delete(1, purged, true);
        scene.unknown(0, call_add("mk7"));
        scene.store_add("mk7");
        scene.unknown(0, call_add("mk8"));
        scene.unknown(0, Call::Delete { id: kept, purge: false });
        scene.unknown(
            0,
            Call::Update { id: updated, marker: "mk9".into(), expected_revision: None },
        );
        scene.store_update(updated, "mk9");
        scene.list(1);
        assert!(verdict(scene).is_empty());
    }

    #[test]
    fn what_a_model_said_for_memory_may_be_there() {
        let check_reply = |said: &str, role: Role| {
            let mut scene = Scene::new();
            let id = scene.store_add("mk1");
            scene.unknown(0, call_add("mk1"));
            let mut item = scene.item(id);
            item.text = "[8 May 2023] assistant: ab cd".to_owned();
            item.role = role;
            item.sources[0].content = "ab cd".to_owned();
            let set = scene.set_item(&item);
            scene.commit(vec![set]);
            let cube = scene.cube.clone();
            scene.evidence.replies.insert(cube, BTreeSet::from([said.to_owned()]));
            verdict(scene).len()
        };
        assert_eq!(check_reply("ab cd", Role::Assistant), 0);
        assert_eq!(check_reply("ab", Role::Assistant), 1);
        assert_eq!(check_reply("ab cd", Role::User), 1);
    }

    #[test]
    fn what_is_lost_is_seen() {
        let mut scene = Scene::new();
        let lost = scene.add(0, "mk1");
        scene.unknown(0, call_add("mk2"));
        let shown = scene.store_add("mk2");
        scene.list(1);
        scene.store_delete(lost, false);
        scene.store_delete(shown, false);
        let updated = scene.add(0, "mk3");
        scene.operation(
            0,
            Call::Update { id: updated, marker: "mk4".into(), expected_revision: None },
            Outcome::Updated {
                seen: crate::history::Seen {
                    id: updated,
                    marker: "mk4".into(),
                    revision: 2,
                    tenant: "acme".into(),
                },
                version: memcube_schemas::Version(9),
            },
        );
        assert_eq!(
            verdict(scene),
            [
                format!("acme/ann: mk1 ({lost}) was acknowledged and is lost"),
                format!("acme/ann: mk2 ({shown}) was acknowledged and is lost"),
                format!("acme/ann: {updated} is at revision 1 (mk3), 2 (mk4) was acknowledged"),
            ]
        );
    }

    #[test]
    fn what_is_back_and_what_nobody_asked_for_is_seen() {
        let mut scene = Scene::new();
        let back = scene.add(0, "mk1");
        let version = scene.version();
        scene.operation(1, Call::Delete { id: back, purge: true }, Outcome::Deleted { version });
        let invented = scene.store_add("mk2");
        let refused = Outcome::Refused { reason: "overloaded".to_owned() };
        scene.operation(0, call_add("mk3"), refused);
        let late = scene.store_add("mk3");
        assert_eq!(
            verdict(scene),
            [
                format!("acme/ann: mk1 ({back}) was deleted and is back"),
                format!("acme/ann: {invented} holds mk2, which nobody asked for"),
                format!("acme/ann: {late} holds mk3, which nobody asked for"),
            ]
        );
    }

    #[test]
    fn nothing_is_there_twice() {
        let mut scene = Scene::new();
        scene.operation(0, call_add("mk1"), unknown());
        let (first, second) = (scene.store_add("mk1"), scene.store_add("mk1"));
        scene.store_delete(first, false);
        let counted = scene.add(0, "mk2");
        let mut item = scene.item(counted);
        item.occurrences = 2;
        let set = scene.set_item(&item);
        scene.change(vec![set], vec![]);
        assert_eq!(
            verdict(scene),
            [
                format!("acme/ann: mk2 ({counted}) was counted 2 times and said 1"),
                format!("acme/ann: mk1 was added 1 times and became [\"{first}\", \"{second}\"]"),
            ]
        );
    }

    #[test]
    fn a_text_that_is_said_again_is_counted() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let known = Outcome::Refused { reason: "it was known already".to_owned() };
        scene.operation(1, call_add("mk1"), known);
        let mut item = scene.item(id);
        item.occurrences = 2;
        let set = scene.set_item(&item);
        scene.change(vec![set], Vec::new());
        assert!(verdict(scene).is_empty());
    }

    #[test]
    fn histories_are_kept_and_purged_as_asked() {
        let mut scene = Scene::new();
        let (tenant, cube) = scene.cube.clone();
        let [purged, kept] = ["mk1", "mk2"].map(|marker| scene.add(0, marker));
        scene.update(0, purged, "mk3");
        let row = keys::history(&tenant, &cube, purged, 1);
        let value = scene.evidence.rows[&row].value.clone();
        scene.delete(0, purged, true);
        scene.commit(vec![Mutation::Set { key: row, value }]);
        scene.delete(0, kept, false);
        scene.commit(vec![Mutation::Clear { key: keys::history(&tenant, &cube, kept, 1) }]);
        assert_eq!(
            verdict(scene),
            [
                format!("acme/ann: mk1 ({purged}) was purged and has a history"),
                format!("acme/ann: revision 1 (mk2) of {kept} is lost"),
                format!("acme/ann: the history of mk2 ({kept}) knows of no deletion"),
            ]
        );
    }

    #[test]
    fn answers_that_contradict_each_other_are_seen() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let mut seen = scene.seen(id);
        seen.marker = "mk2".to_owned();
        scene.operation(1, Call::Get { id }, Outcome::Item(seen));
        assert_eq!(
            verdict(scene),
            [format!("acme/ann: operation 1 was shown mk2 in revision 1 of {id}, others mk1")]
        );
    }
}
