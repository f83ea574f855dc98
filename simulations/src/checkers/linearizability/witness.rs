//! Whole cubes, with the store's commits as witnesses of the order.
//!
//! A change that was acknowledged at a version of the cube must be in the commit that made this
//! version, after the call and before the answer. A read must equal the state that it says it saw:
//! a state that the store had by the time of the answer, and none older than what any caller had
//! been told of before the call.

use std::collections::{BTreeMap, BTreeSet};

use memcube_schemas::{MemoryId, Version};

use crate::{
    checkers::{
        case::{Case, Change, CubeName, MarkedItem},
        findings::Findings,
        timeline::{Point, Timeline},
        title,
    },
    history::{Call, Operation, Outcome, Seen},
};

/// Judges every answer.
pub(super) fn check(case: &Case<'_>, findings: &mut Findings) {
    let mut cubes: BTreeMap<CubeName, Vec<&Operation>> = BTreeMap::new();
    for operation in case.evidence.history.operations() {
        let cube = (operation.tenant.clone(), operation.cube.clone());
        cubes.entry(cube).or_default().push(operation);
    }
    let empty = Timeline::default();
    for (cube, operations) in &cubes {
        let timeline = case.timelines.get(cube).unwrap_or(&empty);
        Witness { case, cube, timeline, findings }.check(operations);
    }
}

struct Witness<'a> {
    case: &'a Case<'a>,
    cube: &'a CubeName,
    timeline: &'a Timeline,
    findings: &'a mut Findings,
}

impl Witness<'_> {
    fn check(&mut self, operations: &[&Operation]) {
        // What was answered, by the time of the answer, and the state that it stood for.
        let mut answered: BTreeSet<(u64, usize)> = BTreeSet::new();
        // The newest state that anybody was told of before the call at hand.
        let mut floor: Option<usize> = None;
        for operation in operations {
            while let Some((returned, point)) = answered.first().copied()
                && returned < operation.invoked.order
            {
                floor = floor.max(Some(point));
                answered.pop_first();
            }
            let Some(returned) = operation.returned else { continue };
            match self.place(operation, returned.store, floor) {
                Ok(Some(point)) => {
                    answered.insert((returned.order, point));
                }
                Ok(None) => {}
                Err(what) => {
                    let (cube, id) = (title(self.cube), operation.id);
                    self.findings.report(format!("{cube}: operation {id} {what}"));
                }
            }
        }
    }

    /// The first state that an answer may stand for, or what is wrong with it.
    fn place(
        &self,
        operation: &Operation,
        until: Version,
        floor: Option<usize>,
    ) -> Result<Option<usize>, String> {
        match (&operation.call, &operation.outcome) {
            (Call::Add { marker }, Outcome::Added { id, version }) => {
                let holds = |held: &MarkedItem| held.is_marked(marker);
                self.place_write(operation, until, *version, *id, Some(&holds)).map(Some)
            }
            (Call::Update { .. }, Outcome::Updated { seen, version }) => {
                let holds = |held: &MarkedItem| is_seen(held, seen);
                self.place_write(operation, until, *version, seen.id, Some(&holds)).map(Some)
            }
            (Call::Delete { id, .. }, Outcome::Deleted { version }) => {
                self.place_write(operation, until, *version, *id, None).map(Some)
            }
            (_, Outcome::Listed { items, version }) => {
                self.place_read(until, *version, floor, |point| list_differs(point, items))
            }
            (Call::Search { marker }, Outcome::Found { hits, version }) => {
                self.place_read(until, *version, floor, |point| search_differs(point, hits, marker))
            }
            (Call::Get { .. }, Outcome::Item(seen)) => {
                let fits = |held: Option<&MarkedItem>| held.is_some_and(|held| is_seen(held, seen));
                let told = described(seen);
                self.place_item(until, floor, seen.id, &told, fits)
            }
            // Nobody was told of anything yet: also a cube that is not made holds nothing.
            (_, Outcome::Missing) if floor.is_none() => Ok(None),
            (
                Call::Get { id } | Call::Update { id, .. } | Call::Delete { id, .. },
                Outcome::Missing,
            ) => self.place_item(until, floor, *id, "nothing", |held| held.is_none()),
            (Call::Update { id, expected_revision, .. }, Outcome::OtherRevision) => {
                let is_other = |held: &MarkedItem| Some(held.item.revision) != *expected_revision;
                let fits = |held: Option<&MarkedItem>| held.is_some_and(is_other);
                self.place_item(until, floor, *id, "another revision", fits)
            }
            (_, _) => Ok(None),
        }
    }

    /// The commit that made this version of the cube, if it did what was acknowledged.
    fn place_write(
        &self,
        operation: &Operation,
        until: Version,
        version: Version,
        id: MemoryId,
        holds: Option<&dyn Fn(&MarkedItem) -> bool>,
    ) -> Result<usize, String> {
        let is_there = |change: &Change| match (change, holds) {
            (Change::Item(changed, Some(held)), Some(holds)) => *changed == id && holds(held),
            (Change::Item(changed, None), None) => *changed == id,
            (
                Change::Item(..)
                | Change::Ownership(_)
                | Change::Manifest(_)
                | Change::History(..)
                | Change::KvBlock(..)
                | Change::Context(..)
                | Change::Other
                | Change::Feed(..),
                _,
            ) => false,
        };
        let mut reason = "which the cube never had";
        for index in self.made(version) {
            let point = &self.timeline.points[index];
            if point.store > until {
                reason = "which was committed after the answer";
            } else if point.store <= operation.invoked.store {
                reason = "which was committed before the call";
            } else if self.case.commits[point.commit].changes(self.cube).any(is_there) {
                return Ok(index);
            } else {
                reason = "whose commit did something else";
            }
        }
        Err(format!("was acknowledged at version {version}, {reason}"))
    }

    /// The first state of this version that is not too old, and that the answer equals.
    fn place_read(
        &self,
        until: Version,
        version: Version,
        floor: Option<usize>,
        differs: impl Fn(&Point) -> Option<String>,
    ) -> Result<Option<usize>, String> {
        let mut reason = "which the cube had not reached".to_owned();
        for index in self.made(version) {
            let point = &self.timeline.points[index];
            if point.store > until {
                continue;
            }
            if let Some(floor) = floor.filter(|floor| index < *floor) {
                let known = self.timeline.points[floor].version.unwrap_or_default();
                reason = format!("though version {known} was acknowledged before");
                continue;
            }
            match differs(point) {
                None => return Ok(Some(index)),
                Some(difference) => reason = difference,
            }
        }
        Err(format!("read version {version}, {reason}"))
    }

    /// The first state, not too old and not too new, in which an item was as an answer says.
    fn place_item(
        &self,
        until: Version,
        floor: Option<usize>,
        id: MemoryId,
        told: &str,
        fits: impl Fn(Option<&MarkedItem>) -> bool,
    ) -> Result<Option<usize>, String> {
        let from = floor.unwrap_or(0);
        let states = self.timeline.points.iter().enumerate().skip(from);
        let mut window = states.take_while(|(_, point)| point.store <= until);
        match window.find(|(_, point)| fits(point.items.get(&id).map(AsRef::as_ref))) {
            Some((index, _)) => Ok(Some(index)),
            None => Err(format!("got {told} for {id}, which it was not at any time meanwhile")),
        }
    }

    fn made(&self, version: Version) -> impl Iterator<Item = usize> {
        self.timeline.by_version.get(&version).into_iter().flatten().copied()
    }
}

fn is_seen(held: &MarkedItem, seen: &Seen) -> bool {
    held.is_marked(&seen.marker) && held.item.revision == seen.revision
}

fn described(seen: &Seen) -> String {
    format!("{} in revision {}", seen.marker, seen.revision)
}

/// How a list differs from the state, if it does.
fn list_differs(point: &Point, items: &[Seen]) -> Option<String> {
    let listed: BTreeMap<MemoryId, &Seen> = items.iter().map(|seen| (seen.id, seen)).collect();
    if listed.len() != items.len() {
        return Some("and showed an item twice".to_owned());
    }
    let missing = point.items.iter().find(|(id, _)| !listed.contains_key(id));
    if let Some((id, held)) = missing {
        return Some(format!("and did not show {} ({id})", held.mark()));
    }
    items.iter().find_map(|seen| hit_differs(point, seen))
}

/// How a search differs from the state, if it does.
fn search_differs(point: &Point, hits: &[Seen], marker: &str) -> Option<String> {
    let wrong = hits.iter().find_map(|seen| hit_differs(point, seen));
    let unfit = || {
        let status = |seen: &&Seen| point.items.get(&seen.id).map(|held| held.item.status);
        let hit =
            hits.iter().find(|hit| status(hit).is_some_and(|status| !status.is_recalled()))?;
        Some(format!("and found {} ({}), which is not recalled", hit.marker, hit.id))
    };
    let missing = || {
        let wanted = |held: &&std::rc::Rc<MarkedItem>| {
            held.is_marked(marker) && held.item.status.is_recalled()
        };
        let held = point.items.values().find(wanted)?;
        let is_found = hits.iter().any(|hit| hit.id == held.item.id);
        (!is_found).then(|| format!("and did not find {marker} ({})", held.item.id))
    };
    wrong.or_else(unfit).or_else(missing)
}

fn hit_differs(point: &Point, seen: &Seen) -> Option<String> {
    let (id, told) = (seen.id, described(seen));
    match point.items.get(&id) {
        Some(held) if is_seen(held, seen) => None,
        Some(held) => Some(format!(
            "and showed {told} ({id}), where {} in revision {} was",
            held.mark(),
            held.item.revision
        )),
        None => Some(format!("and showed {told} ({id}), which was not there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::builder::{Scene, said};

    fn verdict(scene: Scene) -> Vec<String> {
        let evidence = scene.finish();
        let mut findings = Findings::of("linearizability");
        check(&Case::read(&evidence), &mut findings);
        said(&findings.into_violations())
    }

    #[test]
    fn answers_that_equal_their_states_pass() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let (old_items, old_version) = scene.everything();
        let slow = scene.begin(2, Call::List);
        scene.update(1, id, "mk2");
        scene.list(0);
        let (items, version) = (old_items, old_version);
        scene.end(slow, Outcome::Listed { items, version });
        scene.search(1, "mk2");
        scene.get(1, id);
        scene.delete(1, id, true);
        scene.get(1, id);
        scene.search(1, "mk2");
        scene.erase_and_make_anew();
        scene.add(0, "mk3");
        scene.list(0);
        assert_eq!(verdict(scene), [""; 0]);
    }

    #[test]
    fn an_acknowledgement_without_its_commit_is_seen() {
        let mut scene = Scene::new();
        let add = |marker: &str| Call::Add { marker: marker.to_owned() };
        let early = scene.begin(0, add("mk1"));
        let id = MemoryId::from_parts(1_000, 1);
        scene.end(early, Outcome::Added { id, version: Version(1) });
        assert_eq!(scene.store_add("mk1"), id);
        scene.operation(0, add("mk1"), Outcome::Added { id, version: Version(1) });
        scene.operation(0, add("mk2"), Outcome::Added { id, version: Version(9) });
        let slow = scene.begin(0, Call::Delete { id, purge: false });
        scene.store_add("mk3");
        scene.end(slow, Outcome::Deleted { version: Version(2) });
        assert_eq!(
            verdict(scene),
            [
                "acme/ann: operation 0 was acknowledged at version 1, which was committed after \
                 the answer",
                "acme/ann: operation 1 was acknowledged at version 1, which was committed before \
                 the call",
                "acme/ann: operation 2 was acknowledged at version 9, which the cube never had",
                "acme/ann: operation 3 was acknowledged at version 2, whose commit did something \
                 else",
            ]
        );
    }

    #[test]
    fn a_stale_or_early_read_is_seen() {
        let mut scene = Scene::new();
        scene.add(0, "mk1");
        let (items, version) = scene.everything();
        let id = scene.add(1, "mk2");
        scene.operation(0, Call::List, Outcome::Listed { items: items.clone(), version });
        scene.operation(0, Call::List, Outcome::Listed { items, version: Version(3) });
        scene.operation(0, Call::Get { id }, Outcome::Missing);
        scene.operation(0, Call::Delete { id, purge: false }, Outcome::Missing);
        let marker = || "mk3".to_owned();
        let call = Call::Update { id, marker: marker(), expected_revision: Some(1) };
        scene.operation(0, call, Outcome::OtherRevision);
        let call = Call::Update { id, marker: marker(), expected_revision: Some(4) };
        scene.operation(0, call, Outcome::OtherRevision);
        let meanwhile = "which it was not at any time meanwhile";
        assert_eq!(
            verdict(scene),
            [
                "acme/ann: operation 2 read version 1, though version 2 was acknowledged before"
                    .to_owned(),
                "acme/ann: operation 3 read version 3, which the cube had not reached".to_owned(),
                format!("acme/ann: operation 4 got nothing for {id}, {meanwhile}"),
                format!("acme/ann: operation 5 got nothing for {id}, {meanwhile}"),
                format!("acme/ann: operation 6 got another revision for {id}, {meanwhile}"),
            ]
        );
    }

    #[test]
    fn a_read_that_differs_from_its_state_is_seen() {
        let mut scene = Scene::new();
        let [one, two] = ["mk1", "mk2"].map(|marker| scene.add(0, marker));
        let (items, version) = scene.everything();
        let list = |items: Vec<Seen>| Outcome::Listed { items, version };
        let found = |hits: Vec<Seen>| Outcome::Found { hits, version };
        let search = || Call::Search { marker: "mk2".to_owned() };
        let mut other = items[0].clone();
        other.marker = "mk3".to_owned();
        let mut ghost = items[0].clone();
        ghost.id = MemoryId::from_parts(9, 9);
        scene.operation(0, Call::List, list(items[..1].to_vec()));
        scene.operation(0, Call::List, list(vec![other, items[1].clone()]));
        scene.operation(0, search(), found(vec![ghost.clone()]));
        scene.operation(0, search(), found(items[..1].to_vec()));
        let (three, four, ghost) = ("acme/ann: operation", "read version 2, and", ghost.id);
        assert_eq!(
            verdict(scene),
            [
                format!("{three} 2 {four} did not show mk2 ({two})"),
                format!(
                    "{three} 3 {four} showed mk3 in revision 1 ({one}), where mk1 in revision 1 \
                     was"
                ),
                format!("{three} 4 {four} showed mk1 in revision 1 ({ghost}), which was not there"),
                format!("{three} 5 {four} did not find mk2 ({two})"),
            ]
        );
    }
}
