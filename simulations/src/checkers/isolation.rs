//! No tenant ever sees or touches what belongs to another: not in an answer, not in a row, not in a
//! commit.
//!
//! Texts tell whose they are, if they carry a marker. It cannot see data of another tenant without
//! one, except where a commit writes it: vectors, identifiers, counts, a user's own texts.

use std::collections::BTreeSet;

use memcube_schemas::{MemoryId, TenantId};

use super::{
    case::{Case, CubeName},
    findings::Findings,
    reference::shown,
    title,
};
use crate::{
    evidence::Violation,
    marker::{tenant_of, word_of},
};

pub(super) const NAME: &str = "isolation";

/// Looks at every answer, every row, every commit and every cube as it is served.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    check_answers(case, &mut findings);
    for (cube, rows) in &case.cubes {
        let items = rows.items.values().map(|held| ("item", &held.item));
        let former = rows.history.values().map(|kept| ("former item", &kept.former));
        for (what, item) in items.chain(former) {
            let turns = item.sources.iter().map(|source| &source.content);
            for text in [&item.text].into_iter().chain(turns) {
                check_text(&mut findings, cube, what, item.id, text);
            }
        }
    }
    for (cube, served) in &case.evidence.served {
        for item in &served.items {
            check_text(&mut findings, cube, "served item", item.id, &item.text);
        }
    }
    check_commits(case, &mut findings);
    findings.into_violations()
}

fn check_answers(case: &Case<'_>, findings: &mut Findings) {
    for operation in case.evidence.history.operations() {
        for seen in shown(&operation.outcome) {
            let (tenant, cube) = (&operation.tenant, &operation.cube);
            // A text of a user's own may say of anybody that he remembers.
            let is_own = seen.marker.starts_with('#') || seen.tenant == tenant.as_str();
            findings.expect(is_own, || {
                let (number, id, other) = (operation.id, seen.id, &seen.tenant);
                format!("{tenant}/{cube}: operation {number} was shown {id} of tenant {other}")
            });
        }
    }
}

fn check_text(findings: &mut Findings, cube: &CubeName, what: &str, id: MemoryId, text: &str) {
    // Only a text with a marker is known to name its tenant.
    let Some(named) = word_of(text).and_then(|_| tenant_of(text)) else { return };
    findings.expect(named == cube.0.as_str(), || {
        format!("{}: the text of {what} {id} is of tenant {named}", title(cube))
    });
}

fn check_commits(case: &Case<'_>, findings: &mut Findings) {
    for commit in &case.commits {
        let tenants: BTreeSet<&TenantId> =
            commit.effects.iter().map(|effect| &effect.cube.0).collect();
        findings.expect(tenants.len() <= 1, || {
            let names: Vec<&str> = tenants.iter().map(|tenant| tenant.as_str()).collect();
            format!("commit {} touches keys of tenants {names:?}", commit.record.version)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkers::builder::{Scene, said},
        history::{Call, Outcome},
        marker,
    };

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    #[test]
    fn tenants_that_keep_to_themselves_pass() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        scene.update(0, id, "mk2");
        scene.enter("apex", "ann");
        let other = scene.add(1, "mk3");
        scene.delete(1, other, false);
        let third = scene.add(1, "mk4");
        scene.list(1);
        let mut item = scene.item(third);
        item.text = "nobody remembers the sea".to_owned();
        let set = scene.set_item(&item);
        scene.commit(vec![set]);
        assert_eq!(verdict(scene), [""; 0]);
    }

    #[test]
    fn an_answer_of_another_tenant_is_seen() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let seen = scene.seen(id);
        scene.enter("apex", "bob");
        scene.operation(1, Call::Get { id }, Outcome::Item(seen));
        assert_eq!(
            verdict(scene),
            [format!("apex/bob: operation 1 was shown {id} of tenant acme")]
        );
    }

    #[test]
    fn a_text_of_another_tenant_is_seen_in_rows_histories_and_service() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let mut item = scene.item(id);
        item.text = marker::text("apex", "mk1", 1);
        let set = scene.set_item(&item);
        scene.commit(vec![set]);
        let mut evidence = scene.finish();
        let served = evidence.served.values_mut().next().expect("one cube");
        served.items[0].text = marker::text("cyan", "mk1", 1);
        assert_eq!(
            said(&check(&Case::read(&evidence))),
            [
                format!("acme/ann: the text of item {id} is of tenant apex"),
                format!("acme/ann: the text of served item {id} is of tenant cyan"),
            ]
        );
    }

    #[test]
    fn a_commit_over_two_tenants_is_seen() {
        let mut scene = Scene::new();
        let manifest = scene.set_manifest();
        scene.enter("apex", "ann");
        let other = scene.set_manifest();
        scene.commit(vec![manifest, other]);
        assert_eq!(verdict(scene), ["commit 150 touches keys of tenants [\"acme\", \"apex\"]"]);
    }
}
