//! Items, vectors, histories, links, requests and the manifest of a cube agree with each other, by
//! a full scan at the end; and the cube serves exactly what its rows say.
//!
//! Rows must also be as the commits made them: were they not, no other checker could be believed.
//! It takes the items for the truth and cannot see whether they are the right ones (durability
//! can). It cannot judge vectors of models that are not scripted, nor cubes that were not served at
//! the end (liveness can).

use std::collections::BTreeMap;

use memcube_actors::{
    cube::recall::embedding_text,
    embedder::{Embedder, ScriptedEmbedder},
};
use memcube_schemas::{
    MemoryId, ModelId,
    memory::{ChangeReason, MemoryItem, MemoryRevision, MemoryVector},
};

use super::{
    case::{Case, CubeName, CubeRows, MarkedItem},
    findings::Findings,
    timeline::Timeline,
    title,
};
use crate::evidence::{ServedCube, Violation};

pub(super) const NAME: &str = "agreement";

/// How far a stored component may be from the one that the text gives.
const COMPONENT_ERROR_MAX: f32 = 1e-6;

/// Scans every cube.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    case.oddities.iter().for_each(|oddity| findings.report(oddity));
    let never = Timeline::default();
    for (name, rows) in &case.cubes {
        let timeline = case.timelines.get(name).unwrap_or(&never);
        let title = title(name);
        let mut scan = Scan { title, rows, timeline, findings: &mut findings };
        scan.check_manifest(case, name);
        scan.check_vectors();
        scan.check_histories();
        scan.check_links();
        scan.check_requests();
    }
    for (name, served) in &case.evidence.served {
        let items = case.cubes.get(name).map(|rows| &rows.items);
        check_served(&mut findings, &title(name), served, items);
    }
    findings.into_violations()
}

/// The rows of one cube.
struct Scan<'a> {
    title: String,
    rows: &'a CubeRows,
    timeline: &'a Timeline,
    findings: &'a mut Findings,
}

impl Scan<'_> {
    fn report(&mut self, what: &str) {
        self.findings.report(format!("{}: {what}", self.title));
    }

    fn check_manifest(&mut self, case: &Case<'_>, name: &CubeName) {
        let CubeRows { manifest, items, history, vectors, requests, blocks, ownership: _ } =
            self.rows;
        let Some(manifest) = manifest else {
            let left = items.len() + history.len() + vectors.len() + requests.len() + blocks.len();
            if left > 0 {
                self.report(&format!("{left} rows are there without a manifest"));
            }
            return;
        };
        if manifest.items != items.len() as u64 {
            let (told, held) = (manifest.items, items.len());
            self.report(&format!("the manifest counts {told} items, {held} are there"));
        }
        let told = case.feed.get(name).and_then(|rows| rows.last()).map(|row| row.record.version);
        if told.is_some_and(|told| told != manifest.version) {
            let (told, held) = (told.unwrap_or_default(), manifest.version);
            self.report(&format!("the manifest has version {held}, the feed {told}"));
        }
        for (id, held) in items {
            if held.item.id != *id {
                self.report(&format!("the row of {id} holds {}", held.item.id));
            }
            if held.item.version > manifest.version {
                let (version, newest) = (held.item.version, manifest.version);
                self.report(&format!("{id} has version {version}, the cube {newest}"));
            }
        }
    }

    fn check_vectors(&mut self) {
        let rows = self.rows;
        let embedder = rows.manifest.as_ref().and_then(|manifest| manifest.embedder.as_ref());
        let scripted = embedder.and_then(scripted);
        for ((model, id), vector) in &rows.vectors {
            match rows.items.get(id) {
                None => self.report(&format!("a vector of {id} is there, the item is not")),
                Some(_) if Some(model) != embedder => {
                    self.report(&format!("{id} has a vector of `{model}`, not the cube's model"));
                }
                Some(held) => {
                    let is_right =
                        scripted.as_ref().is_none_or(|model| is_of_text(model, &held.item, vector));
                    if !is_right {
                        self.report(&format!("the vector of {id} is not of its text"));
                    }
                }
            }
        }
        let Some(embedder) = embedder else { return };
        for id in rows.items.keys() {
            if !rows.vectors.contains_key(&(embedder.clone(), *id)) {
                self.report(&format!("{id} has no vector"));
            }
        }
    }

    /// A change keeps the revision before it; saying something again changes no revision. So the
    /// history of an item that is there goes up to the revision before its own, and that of an item
    /// that was deleted up to its last one.
    fn check_histories(&mut self) {
        let rows = self.rows;
        let mut kept: BTreeMap<MemoryId, Vec<(u32, &MemoryRevision)>> = BTreeMap::new();
        for ((id, revision), former) in &rows.history {
            kept.entry(*id).or_default().push((*revision, former));
        }
        for (id, held) in &rows.items {
            let former = kept.remove(id).unwrap_or_default();
            let numbers: Vec<u32> = former.iter().map(|(revision, _)| *revision).collect();
            if !numbers.iter().copied().eq(1..held.item.revision) {
                let revision = held.item.revision;
                self.report(&format!("{id} at revision {revision} has the history {numbers:?}"));
            }
            self.check_former(*id, &former, None);
        }
        for (id, former) in kept {
            let numbers: Vec<u32> = former.iter().map(|(revision, _)| *revision).collect();
            if numbers.iter().zip(1..).any(|(found, due)| *found != due) {
                self.report(&format!("{id}, which is gone, has the history {numbers:?}"));
            }
            self.check_former(id, &former, numbers.last().copied());
        }
    }

    fn check_former(
        &mut self,
        id: MemoryId,
        former: &[(u32, &MemoryRevision)],
        deleted: Option<u32>,
    ) {
        for (revision, kept) in former {
            let (found, number) = (kept.former.id, kept.former.revision);
            if (found, number) != (id, *revision) {
                self.report(&format!(
                    "the history row of revision {revision} of {id} holds revision {number} of \
                     {found}"
                ));
            }
            let is_end = Some(*revision) == deleted;
            let due = if is_end { ChangeReason::Deleted } else { ChangeReason::Updated };
            if kept.reason != due {
                let reason = kept.reason;
                self.report(&format!(
                    "revision {revision} of {id} ended as {reason:?} instead of {due:?}"
                ));
            }
        }
    }

    fn check_links(&mut self) {
        let (rows, timeline) = (self.rows, self.timeline);
        for (id, held) in &rows.items {
            let Some(previous) = held.item.previous else { continue };
            if previous >= *id {
                self.report(&format!("{id} follows {previous}, which is not older"));
            }
            let now = rows.items.get(&previous);
            let target = now.or_else(|| timeline.ever.get(&previous).map(AsRef::as_ref));
            match target {
                None => self.report(&format!("{id} follows {previous}, which never was")),
                Some(target) if target.item.conversation != held.item.conversation => {
                    self.report(&format!("{id} follows {previous} of another conversation"));
                }
                Some(_) => {}
            }
        }
    }

    fn check_requests(&mut self) {
        let (rows, timeline) = (self.rows, self.timeline);
        for (request, record) in &rows.requests {
            for (id, _) in &record.added {
                if !timeline.ever.contains_key(id) {
                    self.report(&format!("request `{request}` made {id}, which never was"));
                }
            }
            let newest = rows.manifest.as_ref().map(|manifest| manifest.version);
            if newest.is_some_and(|newest| record.version > newest) {
                let version = record.version;
                self.report(&format!("request `{request}` is of version {version} to come"));
            }
        }
    }
}

/// The scripted embedder of this name, if it is one.
fn scripted(model: &ModelId) -> Option<ScriptedEmbedder> {
    let dimensions = model.as_str().strip_prefix("scripted-")?.parse().ok()?;
    Some(ScriptedEmbedder::new(dimensions))
}

fn is_of_text(model: &ScriptedEmbedder, item: &MemoryItem, vector: &MemoryVector) -> bool {
    let text = embedding_text(&item.text);
    let Ok(embeddings) = model.embed(&[&text]) else { return true };
    let Some(due) = embeddings.first().map(|embedding| &embedding.vector) else { return true };
    let is_close = |(found, due): (&f32, &f32)| (found - due).abs() <= COMPONENT_ERROR_MAX;
    due.len() == vector.values.len() && vector.values.iter().zip(due).all(is_close)
}

fn check_served(
    findings: &mut Findings,
    title: &str,
    served: &ServedCube,
    items: Option<&BTreeMap<MemoryId, MarkedItem>>,
) {
    let none = BTreeMap::new();
    let items = items.unwrap_or(&none);
    let shown: BTreeMap<MemoryId, &MemoryItem> =
        served.items.iter().map(|item| (item.id, item)).collect();
    findings
        .expect(shown.len() == served.items.len(), || format!("{title}: an item is served twice"));
    for (id, item) in &shown {
        match items.get(id) {
            None => findings.report(format!("{title}: {id} is served and has no row")),
            Some(held) if held.item != **item => {
                let (shown, held) = (item.revision, held.item.revision);
                findings.report(format!(
                    "{title}: {id} is served otherwise than its row says: in revision {shown}, \
                     the row has {held}"
                ));
            }
            Some(_) => {}
        }
    }
    for id in items.keys().filter(|id| !shown.contains_key(id)) {
        findings.report(format!("{title}: {id} has a row and is not served"));
    }
    for (id, _) in served.found.iter().filter(|(_, is_found)| !**is_found) {
        findings.report(format!("{title}: a search for the marker of {id} does not find it"));
    }
}

#[cfg(test)]
mod tests {
    use memcube_actors::storage::Mutation;
    use memcube_schemas::{
        ConversationId, RequestId, Version, codec::encode, cube::RequestRecord, feed::ItemChange,
        keys,
    };

    use super::*;
    use crate::{
        checkers::builder::{Scene, said},
        evidence::Row,
    };

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    /// Writes an item over, and says nothing about it.
    fn overwrite(scene: &mut Scene, id: MemoryId, change: impl Fn(&mut MemoryItem)) {
        let mut item = scene.item(id);
        change(&mut item);
        let set = scene.set_item(&item);
        scene.commit(vec![set]);
    }

    #[test]
    fn rows_that_agree_pass() {
        let mut scene = Scene::new();
        let [one, two, three, _] = ["mk1", "mk2", "mk3", "mk4"].map(|mark| scene.add(0, mark));
        scene.update(0, one, "mk5");
        scene.update(0, one, "mk6");
        scene.delete(0, two, false);
        scene.delete(0, three, true);
        scene.erase_and_make_anew();
        let [four, _] = ["mk7", "mk8"].map(|mark| scene.add(0, mark));
        scene.update(0, four, "mk9");
        scene.delete(0, four, false);
        assert_eq!(verdict(scene), [""; 0]);
    }

    #[test]
    fn a_manifest_that_counts_wrongly_is_seen() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let (tenant, cube) = scene.cube.clone();
        let (item, vector) = (keys::item(&tenant, &cube, id), scene.clear_vector(id));
        scene.commit(vec![Mutation::Clear { key: item }, vector]);
        let told = scene.feed(memcube_schemas::feed::FeedChange::CubeErased);
        scene.store_add("mk2");
        scene.commit(vec![told]);
        scene.evidence.served.clear();
        let mut evidence = scene.finish();
        evidence.served.clear();
        assert_eq!(
            said(&check(&Case::read(&evidence))),
            [
                "acme/ann: the manifest counts 2 items, 1 are there",
                "acme/ann: the manifest has version 2, the feed 1",
            ]
        );
    }

    #[test]
    fn rows_without_a_manifest_are_seen() {
        let mut scene = Scene::new();
        scene.add(0, "mk1");
        let (tenant, cube) = scene.cube.clone();
        scene.commit(vec![Mutation::Clear { key: keys::manifest(&tenant, &cube) }]);
        assert_eq!(verdict(scene)[0], "acme/ann: 3 rows are there without a manifest");
    }

    #[test]
    fn vectors_that_do_not_fit_are_seen() {
        let mut scene = Scene::new();
        let [gone, bare, other] = ["mk1", "mk2", "mk3"].map(|mark| scene.add(0, mark));
        let old = scene.item(gone);
        scene.delete(0, gone, false);
        let (left, clear) = (scene.set_vector(&old), scene.clear_vector(bare));
        let mut item = scene.item(other);
        item.text = "something else".to_owned();
        let wrong = scene.set_vector(&item);
        scene.commit(vec![left, clear, wrong]);
        assert_eq!(
            verdict(scene),
            [
                format!("acme/ann: a vector of {gone} is there, the item is not"),
                format!("acme/ann: the vector of {other} is not of its text"),
                format!("acme/ann: {bare} has no vector"),
            ]
        );
    }

    #[test]
    fn histories_with_gaps_are_seen() {
        let mut scene = Scene::new();
        let [living, gone] = ["mk1", "mk2"].map(|mark| scene.add(0, mark));
        for (marker, id) in [("mk3", living), ("mk4", living), ("mk5", gone), ("mk6", gone)] {
            scene.update(0, id, marker);
        }
        scene.delete(0, gone, false);
        let (tenant, cube) = scene.cube.clone();
        let clear = |id, revision| {
            let key = keys::history(&tenant, &cube, id, revision);
            Mutation::Clear { key }
        };
        scene.commit(vec![clear(living, 1), clear(gone, 3)]);
        assert_eq!(
            verdict(scene),
            [
                format!("acme/ann: {living} at revision 3 has the history [2]"),
                format!("acme/ann: revision 2 of {gone} ended as Updated instead of Deleted"),
            ]
        );
    }

    #[test]
    fn links_and_requests_into_nowhere_are_seen() {
        let mut scene = Scene::new();
        let [one, two, three] = ["mk1", "mk2", "mk3"].map(|mark| scene.add(0, mark));
        let nowhere = MemoryId::from_parts(1, 1);
        overwrite(&mut scene, one, |item| item.previous = Some(nowhere));
        overwrite(&mut scene, two, |item| item.previous = Some(three));
        overwrite(&mut scene, three, |item| {
            item.conversation = Some(ConversationId::new("tea").expect("valid"));
        });
        let key =
            keys::request(&scene.cube.0, &scene.cube.1, &RequestId::new("r1").expect("valid"));
        let added = vec![(nowhere, false)];
        let record = RequestRecord { fingerprint: 1, added, version: Version(3) };
        scene.commit(vec![Mutation::Set { key, value: encode(&record) }]);
        let mut evidence = scene.finish();
        evidence.served.clear();
        assert_eq!(
            said(&check(&Case::read(&evidence))),
            [
                format!("acme/ann: {one} follows {nowhere}, which never was"),
                format!("acme/ann: {two} follows {three}, which is not older"),
                format!("acme/ann: {two} follows {three} of another conversation"),
                format!("acme/ann: {three} follows {two} of another conversation"),
                format!("acme/ann: request `r1` made {nowhere}, which never was"),
            ]
        );
    }

    #[test]
    fn a_cube_that_serves_something_else_is_seen() {
        let mut scene = Scene::new();
        let [one, two, three] = ["mk1", "mk2", "mk3"].map(|mark| scene.add(0, mark));
        let mut evidence = scene.finish();
        let served = evidence.served.values_mut().next().expect("one cube");
        let ghost = MemoryId::from_parts(9, 9);
        served.items[0].tokens = 99;
        served.items[1].id = ghost;
        served.found.insert(three, false);
        assert_eq!(
            said(&check(&Case::read(&evidence))),
            [
                format!("acme/ann: {ghost} is served and has no row"),
                format!(
                    "acme/ann: {one} is served otherwise than its row says: in revision 1, the row has 1"
                ),
                format!("acme/ann: {two} has a row and is not served"),
                format!("acme/ann: a search for the marker of {three} does not find it"),
            ]
        );
    }

    #[test]
    fn rows_that_no_commit_explains_are_seen() {
        let mut scene = Scene::new();
        let id = scene.add(0, "mk1");
        let (tenant, cube) = scene.cube.clone();
        scene.change(Vec::new(), vec![(id, ItemChange::Repeated, 1)]);
        let mut evidence = scene.finish();
        let manifest = keys::manifest(&tenant, &cube);
        let item = keys::item(&tenant, &cube, id);
        let version = Version(7);
        evidence.rows.get_mut(&manifest).expect("there").version = version;
        evidence.rows.insert(b"stray".to_vec(), Row { version, value: b"x".to_vec() });
        evidence.rows.get_mut(&item).expect("there").value[20] ^= 1;
        evidence.served.clear();
        let said = said(&check(&Case::read(&evidence)));
        let about = ["of another commit", "no commit wrote it", "as its commit", "checksum"];
        for what in about {
            assert!(said.iter().any(|said| said.contains(what)), "{what}: {said:#?}");
        }
    }
}
