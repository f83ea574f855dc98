//! Only the owner writes: every term of ownership follows the one before it, and whatever is
//! written of a cube comes from the life of the node that the ownership row names at that time.
//!
//! Making a cube needs no owner. A claim names the claimer; a hand-over names another, and only the
//! owner may do that. It judges what the store let pass, whatever the commit's own conditions were.
//! It cannot see a cube that lives twice in the same life of the same node under the same term:
//! then the event log has a version twice.

use std::collections::BTreeMap;

use memcube_schemas::{Epoch, Incarnation, NodeId, cube::Ownership, feed::FeedChange, keys};

use super::{
    case::{Case, Change, CubeName, ReadCommit},
    findings::Findings,
    title,
};
use crate::evidence::{CommitRecord, Violation};

pub(super) const NAME: &str = "fencing";

/// Follows the ownership of every cube through the commits.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let mut owners: BTreeMap<CubeName, Ownership> = BTreeMap::new();
    for commit in &case.commits {
        for cube in commit.cubes() {
            let lives = &case.evidence.lives;
            let mut part = Part { cube, commit, lives, findings: &mut findings };
            if let Some(next) = part.check(owners.get(cube)) {
                owners.insert(cube.clone(), next);
            }
        }
    }
    findings.into_violations()
}

/// What one commit did to one cube.
struct Part<'a> {
    cube: &'a CubeName,
    commit: &'a ReadCommit<'a>,
    lives: &'a BTreeMap<Incarnation, (NodeId, u64)>,
    findings: &'a mut Findings,
}

impl Part<'_> {
    /// Judges it, given the owner before it, and returns the owner after it if that is another.
    fn check(&mut self, before: Option<&Ownership>) -> Option<Ownership> {
        let commit = self.commit;
        let mut owner: Option<Ownership> = before.cloned();
        let mut writes_rows = false;
        for change in commit.changes(self.cube) {
            match change {
                Change::Ownership(Some(next)) => {
                    self.check_term(owner.as_ref(), next);
                    owner = Some(next.clone());
                }
                Change::Ownership(None) => self.report("removes the ownership row"),
                Change::Manifest(_)
                | Change::Item(..)
                | Change::History(..)
                | Change::KvBlock(..)
                | Change::Context(..)
                | Change::Other
                | Change::Feed(..) => writes_rows = true,
            }
        }
        if writes_rows {
            self.check_writer(before, owner.as_ref());
        }
        owner.filter(|owner| Some(owner) != before)
    }

    fn report(&mut self, what: &str) {
        let CommitRecord { version, node, incarnation, .. } = self.commit.record;
        let cube = title(self.cube);
        self.findings.report(format!("{cube}: commit {version} of {node}.{incarnation} {what}"));
    }

    fn check_term(&mut self, before: Option<&Ownership>, next: &Ownership) {
        let record = self.commit.record;
        let due = before.map_or(Epoch(1), |before| before.epoch.next());
        if next.epoch != due {
            self.report(&format!("writes epoch {}, {due} is due", next.epoch));
        }
        if !self.is_of(record, next) && !before.is_some_and(|before| self.is_of(record, before)) {
            self.report(&format!(
                "hands the cube to {}.{}, it belongs to {}",
                next.node,
                next.incarnation,
                described(before)
            ));
        }
    }

    /// Whether the owner is the process that sent the commit, under whatever number.
    fn is_of(&self, record: &CommitRecord, owner: &Ownership) -> bool {
        let life = |incarnation| self.lives.get(&incarnation);
        let is_same_number = owner.incarnation == record.incarnation;
        let is_same_life = life(owner.incarnation)
            .is_some_and(|owner| life(record.incarnation).is_some_and(|sender| owner == sender));
        owner.node == record.node && (is_same_number || is_same_life)
    }

    fn check_writer(&mut self, before: Option<&Ownership>, after: Option<&Ownership>) {
        let (tenant, cube) = self.cube;
        let makes_cube = self.commit.demands_absence(&keys::manifest(tenant, cube));
        let record = self.commit.record;
        let owner = [before, after].into_iter().flatten().find(|owner| self.is_of(record, owner));
        if owner.is_none() && !makes_cube {
            self.report(&format!("writes rows, the cube belongs to {}", described(before)));
            return;
        }
        let commit = self.commit;
        for change in commit.changes(self.cube) {
            let Change::Feed(told) = change else { continue };
            let due = match (&told.change, owner) {
                (FeedChange::CubeMade, _) => Epoch::default(),
                (_, Some(owner)) => owner.epoch,
                (_, None) => continue,
            };
            if told.epoch != due {
                self.report(&format!("tells of epoch {}, {due} is in force", told.epoch));
            }
        }
    }
}

fn described(owner: Option<&Ownership>) -> String {
    let told =
        |owner: &Ownership| format!("{}.{} (epoch {})", owner.node, owner.incarnation, owner.epoch);
    owner.map_or_else(|| "nobody".to_owned(), told)
}

#[cfg(test)]
mod tests {
    use memcube_actors::storage::Mutation;
    use memcube_schemas::codec::encode;

    use super::*;
    use crate::checkers::builder::{Life, Scene, life, said};

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    fn ownership(scene: &Scene, epoch: u64, (node, incarnation): Life) -> Mutation {
        let key = keys::ownership(&scene.cube.0, &scene.cube.1);
        Mutation::Set { key, value: encode(&Ownership { epoch: Epoch(epoch), node, incarnation }) }
    }

    #[test]
    fn owners_follow_each_other() {
        let mut scene = Scene::new();
        scene.add(0, "mk1");
        scene.hand_over(life("n2", 5));
        scene.add(0, "mk2");
        scene.claim(life("n3", 1));
        scene.add(0, "mk3");
        scene.erase_and_make_anew();
        scene.claim(life("n3", 2));
        scene.add(0, "mk4");
        assert!(verdict(scene).is_empty());
    }

    #[test]
    fn a_commit_of_a_former_owner_is_seen() {
        let cases = [(life("n1", 1), "n1.1"), (life("n2", 4), "n2.4")];
        for (former, name) in cases {
            let mut scene = Scene::new();
            let id = scene.add(0, "mk1");
            scene.hand_over(life("n2", 5));
            let item = scene.item(id);
            let set = scene.set_item(&item);
            scene.commit_by(former, Vec::new(), vec![set]);
            assert_eq!(
                verdict(scene),
                [format!(
                    "acme/ann: commit 150 of {name} writes rows, the cube belongs to n2.5 \
                     (epoch 2)"
                )]
            );
        }
    }

    #[test]
    fn a_feed_record_of_a_former_term_is_seen() {
        let mut scene = Scene::new();
        let told = scene.feed(FeedChange::Items(Vec::new()));
        scene.claim(life("n1", 1));
        scene.commit(vec![told]);
        assert_eq!(
            verdict(scene),
            ["acme/ann: commit 140 of n1.1 tells of epoch 1, 2 is in force"]
        );
    }

    #[test]
    fn terms_that_do_not_follow_are_seen() {
        let cases = [
            (3, life("n2", 1), life("n2", 1), "writes epoch 3, 2 is due"),
            (1, life("n2", 1), life("n2", 1), "writes epoch 1, 2 is due"),
            (
                2,
                life("n2", 1),
                life("n3", 1),
                "hands the cube to n3.1, it belongs to n1.1 (epoch 1)",
            ),
            (
                2,
                life("n2", 2),
                life("n2", 1),
                "hands the cube to n2.1, it belongs to n1.1 (epoch 1)",
            ),
        ];
        for (epoch, by, to, what) in cases {
            let mut scene = Scene::new();
            let (name, set) = (format!("{}.{}", by.0, by.1), ownership(&scene, epoch, to));
            scene.commit_by(by, Vec::new(), vec![set]);
            assert_eq!(verdict(scene), [format!("acme/ann: commit 130 of {name} {what}")]);
        }
    }
}
