//! A search over all cubes of a tenant shows what anybody was told is remembered there, and nothing
//! that somebody was told is forgotten.
//!
//! It knows only what callers were told, and judges by times: what was acknowledged before the
//! search began must show in it. While anybody's deletion or update of an item may be under way, or
//! after one that nobody knows the end of, it believes every answer about that item.

use std::collections::BTreeMap;

use memcube_schemas::{CubeId, MemoryId, TenantId};

use super::{case::Case, findings::Findings, reference::is_unsure};
use crate::{
    evidence::Violation,
    history::{Call, Operation, Outcome, Seen},
};

pub(super) const NAME: &str = "tenant-search";

/// Looks at every search over a tenant.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let operations = case.evidence.history.operations();
    let mut tenants: BTreeMap<&TenantId, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        tenants.entry(&operation.tenant).or_default().push(operation);
    }
    for (tenant, operations) in tenants {
        let known = Known::of(&operations);
        for operation in operations {
            if let (Call::SearchTenant { marker }, Outcome::FoundAcross { hits }, Some(returned)) =
                (&operation.call, &operation.outcome, operation.returned)
            {
                let search = Search {
                    title: format!("{tenant}: operation {}", operation.id),
                    invoked: operation.invoked.order,
                    returned: returned.order,
                    hits,
                };
                search.check_shown(tenant, &known, &mut findings);
                search.check_complete(marker, &known, &mut findings);
            }
        }
    }
    findings.into_violations()
}

/// What the callers of a tenant were told, by item.
#[derive(Default)]
struct Known<'a> {
    /// When an addition was acknowledged, by marker.
    added: BTreeMap<&'a str, (MemoryId, &'a CubeId, u64)>,
    /// When a deletion was acknowledged first.
    deleted: BTreeMap<MemoryId, u64>,
    /// When somebody first asked to delete or change an item, and it was not refused.
    touched: BTreeMap<MemoryId, u64>,
}

impl<'a> Known<'a> {
    fn of(operations: &[&'a Operation]) -> Self {
        let mut known = Self::default();
        for operation in operations {
            let returned = operation.returned.map(|moment| moment.order);
            match (&operation.call, &operation.outcome, returned) {
                (Call::Add { marker }, Outcome::Added { id, .. }, Some(at)) => {
                    known.added.insert(marker, (*id, &operation.cube, at));
                }
                (Call::Delete { id, .. }, outcome, at) => {
                    if let (Outcome::Deleted { .. }, Some(at)) = (outcome, at) {
                        known.deleted.entry(*id).or_insert(at);
                    }
                    known.touch(*id, operation);
                }
                (Call::Update { id, .. }, ..) => known.touch(*id, operation),
                (_, _, _) => {}
            }
        }
        known
    }

    fn touch(&mut self, id: MemoryId, operation: &Operation) {
        let had_effect = is_unsure(&operation.outcome)
            || matches!(operation.outcome, Outcome::Deleted { .. } | Outcome::Updated { .. });
        if had_effect {
            self.touched.entry(id).or_insert(operation.invoked.order);
        }
    }
}

struct Search<'a> {
    title: String,
    invoked: u64,
    returned: u64,
    hits: &'a [(CubeId, Seen)],
}

impl Search<'_> {
    fn check_shown(&self, tenant: &TenantId, known: &Known<'_>, findings: &mut Findings) {
        let title = &self.title;
        for (cube, Seen { id, marker, tenant: named, .. }) in self.hits {
            findings.expect(marker.starts_with('#') || named == tenant.as_str(), || {
                format!("{title} was shown {id} of tenant {named}")
            });
            let is_gone = known.deleted.get(id).is_some_and(|at| *at < self.invoked);
            findings.expect(!is_gone, || {
                format!("{title} shows {id} in {cube}, which was deleted before it began")
            });
        }
    }

    fn check_complete(&self, marker: &str, known: &Known<'_>, findings: &mut Findings) {
        let Some((id, cube, at)) = known.added.get(marker) else { return };
        let is_touched = known.touched.get(id).is_some_and(|touched| *touched < self.returned);
        if *at >= self.invoked || is_touched {
            return;
        }
        let is_shown = self.hits.iter().any(|(of, seen)| of == *cube && seen.id == *id);
        let title = &self.title;
        findings.expect(is_shown, || {
            format!("{title} does not show {marker} ({id} in {cube}), added before it began")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::builder::{Scene, said};

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    fn search(scene: &mut Scene, marker: &str, hits: Vec<Seen>) {
        let ann = CubeId::new("ann").expect("valid");
        let hits = hits.into_iter().map(|seen| (ann.clone(), seen)).collect();
        let call = Call::SearchTenant { marker: marker.to_owned() };
        scene.operation(3, call, Outcome::FoundAcross { hits });
    }

    #[test]
    fn complete_and_true_answers_pass() {
        let mut scene = Scene::new();
        let one = scene.add(0, "mk1");
        let two = scene.add(0, "mk2");
        let hits = vec![scene.seen(one), scene.seen(two)];
        search(&mut scene, "mk1", hits.clone());
        scene.unknown(1, Call::Delete { id: two, purge: false });
        search(&mut scene, "mk2", Vec::new());
        search(&mut scene, "mk2", hits);
        scene.delete(0, one, false);
        search(&mut scene, "mk1", Vec::new());
        assert_eq!(verdict(scene), [""; 0]);
    }

    #[test]
    fn ghosts_gaps_and_strangers_are_seen() {
        let mut scene = Scene::new();
        let one = scene.add(0, "mk1");
        let ghost = scene.seen(one);
        search(&mut scene, "mk1", Vec::new());
        scene.delete(0, one, false);
        search(&mut scene, "mk1", vec![ghost]);
        let two = scene.add(0, "mk2");
        let stranger = Seen { tenant: "bolt".to_owned(), ..scene.seen(two) };
        search(&mut scene, "mk2", vec![stranger]);
        assert_eq!(
            verdict(scene),
            [
                format!(
                    "acme: operation 1 does not show mk1 ({one} in ann), added before it began"
                ),
                format!("acme: operation 3 shows {one} in ann, which was deleted before it began"),
                format!("acme: operation 5 was shown {two} of tenant bolt"),
            ]
        );
    }
}
