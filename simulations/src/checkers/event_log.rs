//! The event feed tells the truth and the whole truth: of every cube one record a commit, without a
//! gap or a repeat, each saying what its commit did.
//!
//! A cube begins with *made* at version 0, or with *restored* at the version of a backup, and goes
//! on
//! by ones until *erased*; then it may begin again. It takes the commits for the truth: a commit
//! that should not have happened is told of as
//! well as any other.

use std::collections::BTreeMap;

use memcube_actors::storage::Mutation;
use memcube_schemas::{
    MemoryId, Version,
    feed::{FeedChange, FeedRecord, ItemChange},
    keys,
};

use super::{
    case::{Case, Change, CubeName, FeedRow, ReadCommit},
    findings::Findings,
    title,
};
use crate::evidence::Violation;

pub(super) const NAME: &str = "event-log";

/// Reads the feed of every cube, and holds it against the commits.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    for (cube, rows) in &case.feed {
        let end = check_sequence(&mut findings, cube, rows);
        let manifest = case.cubes.get(cube).and_then(|rows| rows.manifest.as_ref());
        let held = manifest.map(|manifest| manifest.version);
        findings.expect(end == held, || {
            let (end, held) = (told_version(end), told_version(held));
            format!("{}: the feed ends with {end}, the manifest has {held}", title(cube))
        });
    }
    let silent = |cube: &&CubeName| !case.feed.contains_key(*cube);
    for cube in case.cubes.keys().filter(silent) {
        if case.cubes[cube].manifest.is_some() {
            findings.report(format!("{}: the feed does not know the cube", title(cube)));
        }
    }
    check_commits(case, &mut findings);
    findings.into_violations()
}

fn told_version(version: Option<Version>) -> String {
    version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"))
}

/// The version after the last record, or `None` if the cube is gone then.
fn check_sequence(findings: &mut Findings, cube: &CubeName, rows: &[FeedRow]) -> Option<Version> {
    let shard = keys::feed_shard(&cube.1);
    let mut last: Option<Version> = None;
    for FeedRow { shard: found, store, record } in rows {
        let (version, cube) = (record.version, title(cube));
        findings.expect(*found == shard, || {
            format!("{cube}: the record of commit {store} is in shard {found} instead of {shard}")
        });
        let (due, what) = match &record.change {
            FeedChange::CubeMade => (last.is_none().then_some(Version(0)), "made"),
            FeedChange::CubeRestored => (last.is_none().then_some(version), "restored"),
            FeedChange::Items(_) => (last.map(Version::next), "changed"),
            FeedChange::CubeErased => (last, "erased"),
        };
        findings.expect(due == Some(version), || {
            let last = told_version(last);
            format!(
                "{cube}: the feed says {what} at version {version} (commit {store}) after {last}"
            )
        });
        last = match &record.change {
            FeedChange::CubeMade | FeedChange::CubeRestored | FeedChange::Items(_) => Some(version),
            FeedChange::CubeErased => None,
        };
    }
    last
}

/// A cube on the way through the commits: its version while it is there, and its items' revisions.
#[derive(Debug, Default)]
struct Held {
    version: Option<Version>,
    revisions: BTreeMap<MemoryId, u32>,
}

fn check_commits(case: &Case<'_>, findings: &mut Findings) {
    let mut cubes: BTreeMap<&CubeName, Held> = BTreeMap::new();
    for commit in &case.commits {
        for cube in commit.cubes() {
            let held = cubes.entry(cube).or_default();
            let (due, told) = (due(commit, cube, held), told(commit, cube));
            let report = |what: String| {
                let (cube, version) = (title(cube), commit.record.version);
                findings.report(format!("{cube}: commit {version} {what}"));
            };
            compare(due.as_ref(), &told, report);
        }
    }
}

/// What a commit did to a cube: the version after it, and in which way.
#[derive(Debug, PartialEq)]
struct Done {
    version: Version,
    change: FeedChange,
    /// Whether a record must tell of it: a manifest that is written again at the same version tells
    /// nothing new.
    is_news: bool,
}

/// What the record of a commit has to say, if the commit did anything that is told.
fn due(commit: &ReadCommit<'_>, cube: &CubeName, held: &mut Held) -> Option<Done> {
    let before = held.version;
    let mut items = Vec::new();
    let mut writes_manifest = false;
    for change in commit.changes(cube) {
        match change {
            Change::Manifest(manifest) => {
                writes_manifest = true;
                held.version = manifest.as_ref().map(|manifest| manifest.version);
            }
            Change::Item(id, Some(now)) => {
                let revision = now.item.revision;
                let what = match held.revisions.insert(*id, revision) {
                    None => ItemChange::Added,
                    Some(former) if former == revision => ItemChange::Repeated,
                    Some(_) => ItemChange::Updated,
                };
                items.push((*id, what, revision));
            }
            Change::Item(id, None) => {
                let Some(revision) = held.revisions.remove(id) else { continue };
                let keeps = |change: &Change| match change {
                    Change::History(kept, number, true) => kept == id && *number == revision,
                    Change::History(_, _, false)
                    | Change::Ownership(_)
                    | Change::Manifest(_)
                    | Change::Item(..)
                    | Change::KvBlock(..)
                    | Change::Context(..)
                    | Change::Other
                    | Change::Feed(..) => false,
                };
                let is_kept = commit.changes(cube).any(keeps);
                let what = if is_kept { ItemChange::Deleted } else { ItemChange::Purged };
                items.push((*id, what, revision));
            }
            Change::Ownership(_)
            | Change::History(..)
            | Change::KvBlock(..)
            | Change::Context(..)
            | Change::Other
            | Change::Feed(..) => {}
        }
    }
    if !writes_manifest && items.is_empty() {
        return None;
    }
    let is_news = before != held.version || !items.is_empty();
    match (before, held.version) {
        (None, Some(version)) if ends_restore(commit, cube) => {
            Some(Done { version, change: FeedChange::CubeRestored, is_news })
        }
        (None, Some(version)) => Some(Done { version, change: FeedChange::CubeMade, is_news }),
        (Some(version), None) => Some(Done { version, change: FeedChange::CubeErased, is_news }),
        (Some(_), Some(version)) => {
            Some(Done { version, change: FeedChange::Items(items), is_news })
        }
        (None, None) => None,
    }
}

/// Whether a commit takes away the mark of a restore, as the last one of a restore does.
fn ends_restore(commit: &ReadCommit<'_>, (tenant, cube): &CubeName) -> bool {
    let mark = keys::restoring(tenant, cube);
    let takes_away =
        |mutation: &Mutation| matches!(mutation, Mutation::Clear { key } if *key == mark);
    commit.record.mutations.iter().any(takes_away)
}

fn told<'a>(commit: &'a ReadCommit<'_>, cube: &'a CubeName) -> Vec<&'a FeedRecord> {
    let record = |change: &'a Change| match change {
        Change::Feed(record) => Some(record),
        Change::Ownership(_)
        | Change::Manifest(_)
        | Change::Item(..)
        | Change::History(..)
        | Change::KvBlock(..)
        | Change::Context(..)
        | Change::Other => None,
    };
    commit.changes(cube).filter_map(record).collect()
}

/// Whether the records of a commit say what it did, and say it once.
fn compare(due: Option<&Done>, told: &[&FeedRecord], mut report: impl FnMut(String)) {
    match (due, told) {
        (None, []) => {}
        (None, [record, ..]) => report(format!("tells of {:?} and did nothing", record.change)),
        (Some(done), []) if done.is_news => report("leaves no record in the feed".to_owned()),
        (Some(_), []) => {}
        (Some(done), [record]) => {
            if record.version != done.version {
                let (told, due) = (record.version, done.version);
                report(format!("tells of version {told}, the manifest has {due}"));
            }
            if !is_same(&record.change, &done.change) {
                report(format!("tells of {:?} and did {:?}", record.change, done.change));
            }
        }
        (Some(_), more) => report(format!("leaves {} records in the feed", more.len())),
    }
}

/// Whether two records say the same, whatever the order in which they name the items.
fn is_same(told: &FeedChange, done: &FeedChange) -> bool {
    match (told, done) {
        (FeedChange::Items(told), FeedChange::Items(done)) => sorted(told) == sorted(done),
        (told, done) => told == done,
    }
}

/// What happened to one item stays in order.
fn sorted(items: &[(MemoryId, ItemChange, u32)]) -> Vec<(MemoryId, ItemChange, u32)> {
    let mut items = items.to_vec();
    items.sort_by_key(|(id, _, _)| *id);
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::builder::{Scene, life, said};

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    #[test]
    fn a_feed_that_tells_everything_passes() {
        let mut scene = Scene::new();
        let [one, two, three] = ["mk1", "mk2", "mk3"].map(|marker| scene.add(0, marker));
        scene.update(0, one, "mk4");
        scene.delete(0, one, false);
        scene.delete(0, two, true);
        let mut item = scene.item(three);
        item.occurrences = 2;
        let set = scene.set_item(&item);
        scene.change(vec![set], vec![(three, ItemChange::Repeated, 1)]);
        scene.change(Vec::new(), Vec::new());
        let manifest = scene.set_manifest();
        scene.commit(vec![manifest]);
        scene.claim(life("n2", 1));
        scene.erase_and_make_anew();
        scene.add(0, "mk5");
        scene.enter("acme", "bob");
        scene.add(0, "mk6");
        assert_eq!(verdict(scene), [""; 0]);
    }

    #[test]
    fn a_restored_cube_goes_on_from_the_version_of_the_backup() {
        let mut scene = Scene::new();
        scene.add(0, "mk1");
        scene.erase_and_restore(FeedChange::CubeRestored);
        scene.add(0, "mk2");
        assert_eq!(verdict(scene), [""; 0]);
    }

    #[test]
    fn a_restored_cube_that_is_told_as_made_is_seen() {
        let mut scene = Scene::new();
        scene.erase_and_restore(FeedChange::CubeMade);
        assert_eq!(
            verdict(scene),
            [
                "acme/ann: the feed says made at version 7 (commit 150) after no version",
                "acme/ann: commit 150 tells of CubeMade and did CubeRestored",
            ]
        );
    }

    #[test]
    fn a_record_that_is_missing_is_seen() {
        let mut scene = Scene::new();
        scene.add(0, "mk1");
        let lost = scene.evidence.commits.len() - 1;
        let feed = scene.evidence.commits[lost].mutations.pop();
        assert!(matches!(feed, Some(Mutation::SetVersionstamped { .. })));
        let key = scene.evidence.rows.keys().next_back().expect("the feed sorts last").clone();
        scene.evidence.rows.remove(&key);
        scene.add(0, "mk2");
        assert_eq!(
            verdict(scene),
            [
                "acme/ann: the feed says changed at version 2 (commit 140) after version 0",
                "acme/ann: commit 130 leaves no record in the feed",
            ]
        );
    }

    #[test]
    fn a_version_that_is_told_twice_is_seen() {
        let mut scene = Scene::new();
        scene.add(0, "mk1");
        let again = scene.feed(FeedChange::Items(Vec::new()));
        let manifest = scene.set_manifest();
        scene.commit(vec![manifest, again]);
        assert_eq!(
            verdict(scene),
            ["acme/ann: the feed says changed at version 1 (commit 140) after version 1"]
        );
    }

    #[test]
    fn a_record_that_says_something_else_is_seen() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let item = scene.item(id);
        let set = scene.set_item(&item);
        scene.change(vec![set], vec![(id, ItemChange::Updated, 2)]);
        let wrong_version = scene.feed(FeedChange::CubeErased);
        scene.commit(vec![wrong_version]);
        assert_eq!(
            verdict(scene),
            [
                "acme/ann: the feed ends with no version, the manifest has version 2".to_owned(),
                format!(
                    "acme/ann: commit 140 tells of Items([({id:?}, Updated, 2)]) and did \
                     Items([({id:?}, Repeated, 1)])"
                ),
                "acme/ann: commit 150 tells of CubeErased and did nothing".to_owned(),
            ]
        );
    }

    #[test]
    fn a_record_in_another_shard_and_an_unknown_cube_are_seen() {
        let mut scene = Scene::new();
        let (tenant, cube) = scene.cube.clone();
        let wrong = (keys::feed_shard(&cube) + 1) % keys::FEED_SHARDS;
        let prefix = keys::feed_prefix(&tenant, wrong);
        scene.change(Vec::new(), Vec::new());
        let place = scene.evidence.commits.len() - 1;
        for mutation in &mut scene.evidence.commits[place].mutations {
            if let Mutation::SetVersionstamped { prefix: old, .. } = mutation {
                let key = scene.evidence.rows.keys().next_back().expect("feed").clone();
                assert!(key.starts_with(old));
                let row = scene.evidence.rows.remove(&key).expect("there");
                let moved = [&prefix[..], &key[old.len()..]].concat();
                scene.evidence.rows.insert(moved, row);
                old.clone_from(&prefix);
            }
        }
        scene.enter("apex", "bob");
        for shard in 0..keys::FEED_SHARDS {
            let range = keys::feed(&scene.cube.0, shard);
            scene.evidence.rows.retain(|key, _| !range.contains(key));
        }
        let made = scene.evidence.commits.iter_mut().rev().find(|commit| {
            let is_told = |change: &Mutation| matches!(change, Mutation::SetVersionstamped { .. });
            commit.mutations.iter().any(is_told)
        });
        made.expect("it was made").mutations.pop();
        let shard = keys::feed_shard(&cube);
        assert_eq!(
            verdict(scene),
            [
                format!(
                    "acme/ann: the record of commit 130 is in shard {wrong} instead of {shard}"
                ),
                "apex/bob: the feed does not know the cube".to_owned(),
                "apex/bob: commit 140 leaves no record in the feed".to_owned(),
            ]
        );
    }
}
