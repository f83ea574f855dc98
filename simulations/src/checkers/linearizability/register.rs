//! Each item as a register of its own: made, read, changed, deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
};

use memcube_schemas::{CubeId, MemoryId, TenantId};

use crate::{
    checkers::{
        case::Case,
        findings::Findings,
        reference::{is_unsure, shown},
    },
    history::{Call, Operation, Outcome, Seen},
    linear::{Model, Timed, Verdict, search},
};

/// Steps of the search for one item. Nearly all items are decided in as many steps as they have
/// changes; with more unknown outcomes at once than this allows for, the witness judge is left.
const STEPS_MAX: usize = 2_000;

/// Judges every item that a caller was ever told of, and counts those left undecided.
pub(super) fn check(case: &Case<'_>, findings: &mut Findings) -> usize {
    let mut cubes: BTreeMap<(&TenantId, &CubeId), Vec<&Operation>> = BTreeMap::new();
    for operation in case.evidence.history.operations() {
        let cube = (&operation.tenant, &operation.cube);
        cubes.entry(cube).or_default().push(operation);
    }
    // What goes with its cube goes without an operation of its own.
    let is_erased = |tenant: &TenantId, cube: &CubeId| {
        let timeline = case.timelines.get(&(tenant.clone(), cube.clone()));
        timeline.is_some_and(|timeline| timeline.is_erased)
    };
    cubes.retain(|(tenant, cube), _| !is_erased(tenant, cube));
    let mut undecided = 0;
    for ((tenant, cube), operations) in cubes {
        let name = (tenant.clone(), cube.clone());
        let timeline = case.timelines.get(&name);
        let ever = |id: &MemoryId| timeline.and_then(|timeline| timeline.ever.get(id));
        for (id, entries) in by_item(&operations) {
            // What a model said was made by no operation of its own.
            if ever(&id).is_some_and(|made| case.is_reply(&name, &made.item)) {
                continue;
            }
            match search(&ItemModel::default(), &entries, STEPS_MAX) {
                Verdict::Linearizable => {}
                Verdict::Impossible { stuck } => {
                    let stuck = entries[stuck].operation.describe();
                    findings.report(format!(
                        "{tenant}/{cube}: no order of the operations on {id} explains {stuck}"
                    ));
                }
                Verdict::Undecided => undecided += 1,
            }
        }
    }
    undecided
}

/// An operation as one item sees it.
#[derive(Debug, Clone, Copy)]
struct ItemOperation<'a> {
    /// Which operation of the history.
    number: usize,
    what: What<'a>,
}

#[derive(Debug, Clone, Copy)]
enum What<'a> {
    Make {
        marker: &'a str,
    },
    /// It was shown so.
    Show(&'a Seen),
    /// It was not there.
    Miss,
    /// It was not there with this marker.
    MissMarker(&'a str),
    /// It got another text, and this revision if that is known.
    Change {
        marker: &'a str,
        expected: Option<u32>,
        revision: Option<u32>,
    },
    /// It was not changed, because it had another revision.
    KeepOther {
        expected: Option<u32>,
    },
    Delete,
}

impl ItemOperation<'_> {
    fn describe(&self) -> String {
        let number = self.number;
        match self.what {
            What::Make { marker } => format!("that operation {number} made it with {marker}"),
            What::Show(seen) => {
                let Seen { marker, revision, .. } = seen;
                format!("that operation {number} saw {marker} in revision {revision}")
            }
            What::Miss => format!("that operation {number} did not see it"),
            What::MissMarker(marker) => {
                format!("that operation {number} searched {marker} and did not find it")
            }
            What::Change { marker, revision, .. } => {
                let revision = revision.unwrap_or_default();
                format!("that operation {number} made it {marker} in revision {revision}")
            }
            What::KeepOther { expected } => {
                let expected = expected.unwrap_or_default();
                format!("that operation {number} was refused for not being revision {expected}")
            }
            What::Delete => format!("that operation {number} deleted it"),
        }
    }
}

/// What an item is between two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State<'a> {
    Unmade,
    Held {
        marker: &'a str,
        revision: u32,
    },
    /// For good: an id is never given twice.
    Gone,
}

#[derive(Debug, Default)]
struct ItemModel<'a>(PhantomData<&'a str>);

impl<'a> Model for ItemModel<'a> {
    type State = State<'a>;
    type Operation = ItemOperation<'a>;

    fn start(&self) -> State<'a> {
        State::Unmade
    }

    fn step(&self, state: &State<'a>, operation: &ItemOperation<'a>) -> Option<State<'a>> {
        let held = match *state {
            State::Held { marker, revision } => Some((marker, revision)),
            State::Unmade | State::Gone => None,
        };
        match operation.what {
            What::Make { marker } if *state == State::Unmade => {
                Some(State::Held { marker, revision: 1 })
            }
            // The same words said again are counted, not kept twice.
            What::Make { marker } => (held?.0 == marker).then_some(*state),
            What::Show(seen) => (held? == (seen.marker.as_str(), seen.revision)).then_some(*state),
            What::Miss => held.is_none().then_some(*state),
            What::MissMarker(missed) => {
                held.is_none_or(|(marker, _)| marker != missed).then_some(*state)
            }
            What::Change { marker, expected, revision } => {
                let (former, next) = (held?.1, held?.1 + 1);
                let fits = expected.is_none_or(|expected| expected == former)
                    && revision.is_none_or(|revision| revision == next);
                fits.then_some(State::Held { marker, revision: next })
            }
            What::KeepOther { expected } => (Some(held?.1) != expected).then_some(*state),
            What::Delete => held.map(|_| State::Gone),
        }
    }

    fn is_read(&self, operation: &ItemOperation<'a>) -> bool {
        match operation.what {
            What::Show(_) | What::Miss | What::MissMarker(_) | What::KeepOther { .. } => true,
            What::Make { .. } | What::Change { .. } | What::Delete => false,
        }
    }
}

type Entries<'a> = BTreeMap<MemoryId, Vec<Timed<ItemOperation<'a>>>>;

/// The operations of a cube, by the items that they say something about.
fn by_item<'a>(operations: &[&'a Operation]) -> Entries<'a> {
    let holders = holders(operations);
    let mut made: BTreeMap<MemoryId, u64> = BTreeMap::new();
    for operation in operations {
        for id in makes(operation, &holders) {
            made.entry(id).or_insert(operation.invoked.order);
        }
    }
    let mut entries = Entries::new();
    for operation in operations {
        let returned = operation.returned.filter(|_| !is_unsure(&operation.outcome));
        let (invoked, returned) = (operation.invoked.order, returned.map(|moment| moment.order));
        let mut put = |id: MemoryId, what: What<'a>| {
            let operation = ItemOperation { number: operation.id, what };
            entries.entry(id).or_default().push(Timed { operation, invoked, returned });
        };
        match &operation.call {
            Call::Add { marker } => {
                makes(operation, &holders).for_each(|id| put(id, What::Make { marker }));
            }
            Call::Get { id } | Call::Update { id, .. } | Call::Delete { id, .. } => {
                if let Some(what) = on_one_item(operation) {
                    put(*id, what);
                }
            }
            Call::SearchTenant { .. } => {}
            Call::List | Call::Search { .. } => {
                let hits = shown(&operation.outcome);
                hits.iter().for_each(|seen| put(seen.id, What::Show(seen)));
                let (absent, what) = missed(operation, &made, &holders);
                // Who was made later cannot have been seen, which needs no proof.
                let is_made = |id: &MemoryId| made.get(id).copied() < returned;
                let shown: BTreeSet<MemoryId> = hits.iter().map(|seen| seen.id).collect();
                absent
                    .into_iter()
                    .filter(|id| is_made(id) && !shown.contains(id))
                    .for_each(|id| put(id, what));
            }
        }
    }
    entries
}

/// The items that ever carried a marker, as far as callers were told.
fn holders<'a>(operations: &[&'a Operation]) -> BTreeMap<&'a str, BTreeSet<MemoryId>> {
    let mut holders: BTreeMap<&str, BTreeSet<MemoryId>> = BTreeMap::new();
    for operation in operations {
        for seen in shown(&operation.outcome) {
            holders.entry(&seen.marker).or_default().insert(seen.id);
        }
        if let (Call::Add { marker }, Outcome::Added { id, .. }) =
            (&operation.call, &operation.outcome)
        {
            holders.entry(marker).or_default().insert(*id);
        }
    }
    holders
}

/// The items that an operation made, or may have made.
fn makes(
    operation: &Operation,
    holders: &BTreeMap<&str, BTreeSet<MemoryId>>,
) -> impl Iterator<Item = MemoryId> {
    let mut ids = Vec::new();
    if let Call::Add { marker } = &operation.call {
        if let Outcome::Added { id, .. } = operation.outcome {
            ids.push(id);
        } else if is_unsure(&operation.outcome) {
            ids.extend(holders.get(marker.as_str()).into_iter().flatten());
        }
    }
    ids.into_iter()
}

/// What a call that names an item says about it.
fn on_one_item(operation: &Operation) -> Option<What<'_>> {
    match (&operation.call, &operation.outcome) {
        (_, Outcome::Item(seen)) => Some(What::Show(seen)),
        (_, Outcome::Missing) => Some(What::Miss),
        (Call::Update { expected_revision, .. }, Outcome::Updated { seen, .. }) => {
            let (marker, expected) = (seen.marker.as_str(), *expected_revision);
            Some(What::Change { marker, expected, revision: Some(seen.revision) })
        }
        (Call::Update { expected_revision, .. }, Outcome::OtherRevision) => {
            Some(What::KeepOther { expected: *expected_revision })
        }
        (Call::Update { marker, expected_revision, .. }, outcome) if is_unsure(outcome) => {
            Some(What::Change { marker, expected: *expected_revision, revision: None })
        }
        (Call::Delete { .. }, Outcome::Deleted { .. }) => Some(What::Delete),
        (Call::Delete { .. }, outcome) if is_unsure(outcome) => Some(What::Delete),
        (_, _) => None,
    }
}

/// The items that an answer would have shown, and what it means that it did not.
fn missed<'a>(
    operation: &'a Operation,
    made: &BTreeMap<MemoryId, u64>,
    holders: &BTreeMap<&str, BTreeSet<MemoryId>>,
) -> (Vec<MemoryId>, What<'a>) {
    match (&operation.call, &operation.outcome) {
        (Call::List, Outcome::Listed { .. }) => (made.keys().copied().collect(), What::Miss),
        (Call::Search { marker }, Outcome::Found { .. }) => {
            let ids = holders.get(marker.as_str()).into_iter().flatten().copied().collect();
            (ids, What::MissMarker(marker))
        }
        (_, _) => (Vec::new(), What::Miss),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::builder::{Scene, said};

    fn verdict(scene: Scene) -> (Vec<String>, usize) {
        let evidence = scene.finish();
        let mut findings = Findings::of("linearizability");
        let undecided = check(&Case::read(&evidence), &mut findings);
        (said(&findings.into_violations()), undecided)
    }

    fn update(id: MemoryId, marker: &str, expected_revision: Option<u32>) -> Call {
        Call::Update { id, marker: marker.to_owned(), expected_revision }
    }

    #[test]
    fn overlapping_operations_have_an_order() {
        let mut scene = Scene::new();
        let slow = scene.begin(0, Call::Add { marker: "mk1".to_owned() });
        scene.search(1, "mk1");
        let id = scene.store_add("mk1");
        scene.search(1, "mk1");
        let version = scene.version();
        scene.end(slow, Outcome::Added { id, version });
        scene.operation(1, update(id, "mk2", Some(7)), Outcome::OtherRevision);
        scene.unknown(0, update(id, "mk3", Some(1)));
        scene.get(1, id);
        scene.store_update(id, "mk3");
        scene.get(1, id);
        scene.unknown(0, Call::Add { marker: "mk4".to_owned() });
        scene.list(0);
        scene.store_add("mk4");
        scene.list(0);
        scene.delete(1, id, false);
        scene.get(1, id);
        scene.operation(1, update(id, "mk5", None), Outcome::Missing);
        scene.list(0);
        assert_eq!(verdict(scene), (Vec::new(), 0));
    }

    #[test]
    fn what_no_order_explains_is_seen() {
        type Spoil = fn(&mut Scene, MemoryId);
        let cases: [(Spoil, &str); 6] = [
            (
                |scene, id| {
                    let seen = scene.seen(id);
                    scene.update(0, id, "mk2");
                    scene.operation(1, Call::Get { id }, Outcome::Item(seen));
                },
                "that operation 2 saw mk1 in revision 1",
            ),
            (
                |scene, _| {
                    let (items, version) = (Vec::new(), scene.version());
                    scene.operation(1, Call::List, Outcome::Listed { items, version });
                },
                "that operation 1 did not see it",
            ),
            (
                |scene, _| {
                    let (hits, version) = (Vec::new(), scene.version());
                    let call = Call::Search { marker: "mk1".to_owned() };
                    scene.operation(1, call, Outcome::Found { hits, version });
                },
                "that operation 1 searched mk1 and did not find it",
            ),
            (
                |scene, id| {
                    scene.update(0, id, "mk2");
                    let (mut seen, version) = (scene.seen(id), scene.version());
                    seen.marker = "mk3".to_owned();
                    scene.operation(1, update(id, "mk3", None), Outcome::Updated { seen, version });
                },
                "that operation 2 made it mk3 in revision 2",
            ),
            (
                |scene, id| {
                    scene.operation(1, update(id, "mk2", Some(1)), Outcome::OtherRevision);
                },
                "that operation 1 was refused for not being revision 1",
            ),
            (
                |scene, id| {
                    scene.delete(0, id, false);
                    let version = scene.version();
                    let call = Call::Delete { id, purge: false };
                    scene.operation(1, call, Outcome::Deleted { version });
                },
                "that operation 2 deleted it",
            ),
        ];
        for (spoil, what) in cases {
            let mut scene = Scene::new();
            let id = scene.add(0, "mk1");
            spoil(&mut scene, id);
            let what = format!("acme/ann: no order of the operations on {id} explains {what}");
            assert_eq!(verdict(scene), (vec![what], 0));
        }
    }

    #[test]
    fn what_is_too_tangled_is_counted() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        for number in 10..24 {
            scene.unknown(0, update(id, &format!("mk{number}"), None));
        }
        let mut seen = scene.seen(id);
        seen.revision = 99;
        scene.operation(1, Call::Get { id }, Outcome::Item(seen));
        assert_eq!(verdict(scene), (Vec::new(), 1));
    }
}
