//! What every cube truly held after every commit that changed it.

use std::{collections::BTreeMap, rc::Rc};

use memcube_schemas::{MemoryId, Version};

use super::case::{Change, CubeName, MarkedItem, ReadCommit};

/// A cube after one commit.
#[derive(Debug, Clone)]
pub(super) struct Point {
    /// The commit's place in the evidence.
    pub(super) commit: usize,
    /// The version of the store that it made.
    pub(super) store: Version,
    /// The version of the cube; `None` where the cube is not there.
    pub(super) version: Option<Version>,
    /// All items.
    pub(super) items: BTreeMap<MemoryId, Rc<MarkedItem>>,
}

/// All states of one cube, in order.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    pub(super) points: Vec<Point>,
    /// Where each version of the cube was made. A cube that is erased and made anew, or that two
    /// owners write, has a version more than once.
    pub(super) by_version: BTreeMap<Version, Vec<usize>>,
    /// Whether it was ever erased.
    pub(super) is_erased: bool,
    /// Every item that it ever held, as it was made.
    pub(super) ever: BTreeMap<MemoryId, Rc<MarkedItem>>,
}

/// Follows all cubes through the commits.
pub(super) fn timelines(commits: &[ReadCommit<'_>]) -> BTreeMap<CubeName, Timeline> {
    let mut timelines: BTreeMap<CubeName, Timeline> = BTreeMap::new();
    for (index, commit) in commits.iter().enumerate() {
        for cube in commit.cubes() {
            if !timelines.contains_key(cube) {
                timelines.insert(cube.clone(), Timeline::default());
            }
            if let Some(timeline) = timelines.get_mut(cube) {
                timeline.extend(index, commit, cube);
            }
        }
    }
    timelines
}

impl Timeline {
    fn extend(&mut self, index: usize, commit: &ReadCommit<'_>, cube: &CubeName) {
        let matters = |change: &Change| match change {
            Change::Manifest(_) | Change::Item(..) => true,
            Change::Ownership(_)
            | Change::KvBlock(..)
            | Change::Context(..)
            | Change::History(..)
            | Change::Other
            | Change::Feed(..) => false,
        };
        if !commit.changes(cube).any(matters) {
            return;
        }
        let (mut version, mut items) = match self.points.last() {
            Some(point) => (point.version, point.items.clone()),
            None => (None, BTreeMap::new()),
        };
        for change in commit.changes(cube) {
            match change {
                Change::Manifest(Some(manifest)) => version = Some(manifest.version),
                Change::Manifest(None) => {
                    version = None;
                    self.is_erased = true;
                }
                Change::Item(id, Some(item)) => {
                    self.ever.entry(*id).or_insert_with(|| Rc::clone(item));
                    items.insert(*id, Rc::clone(item));
                }
                Change::Item(id, None) => {
                    items.remove(id);
                }
                Change::Ownership(_)
                | Change::History(..)
                | Change::KvBlock(..)
                | Change::Context(..)
                | Change::Other
                | Change::Feed(..) => {}
            }
        }
        if let Some(version) = version {
            self.by_version.entry(version).or_default().push(self.points.len());
        }
        let store = commit.record.version;
        self.points.push(Point { commit: index, store, version, items });
    }
}
