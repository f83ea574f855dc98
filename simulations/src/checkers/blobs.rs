//! Nothing refers to an object that is not there, and no object is there that nothing refers to.
//!
//! It holds the manifests and blocks that commits wrote against what happened in the bucket,
//! millisecond by millisecond, and all rows at the end against all objects. It does not read the
//! objects: whether a cube comes out of them as it went in, the others see.

use std::collections::{BTreeMap, BTreeSet};

use memcube_actors::storage::Mutation;
use memcube_schemas::{
    BlobId, BlockKey, TenantId,
    blob::{BlobRecord, BlobState},
    codec::decode,
};

use super::{
    case::{Case, Change, CubeName},
    findings::Findings,
    title,
};
use crate::{evidence::Violation, rows::RowKey};

pub(super) const NAME: &str = "blobs";

/// How long before the end a change to a blob counts as under way.
const UNDER_WAY_MS: u64 = 2_000;

type Name = (TenantId, BlobId);

/// Looks at every manifest, and at everything that is left.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let objects = Objects::read(case);
    check_manifests(case, &objects, &mut findings);
    check_blocks(case, &objects, &mut findings);
    check_end(case, &objects, &mut findings);
    findings.into_violations()
}

/// What happened to each object, in order: when, and how many bytes it had then.
struct Objects(BTreeMap<Name, Vec<(u64, Option<u64>)>>);

impl Objects {
    fn read(case: &Case<'_>) -> Self {
        let mut objects: BTreeMap<Name, Vec<_>> = BTreeMap::new();
        for event in &case.evidence.objects {
            // Users' own workflows put objects elsewhere.
            let parts: Vec<&str> = event.path.split('/').collect();
            let ["blobs", tenant, _, id] = parts.as_slice() else { continue };
            let (Ok(tenant), Ok(id)) = (TenantId::new(*tenant), id.parse()) else { continue };
            objects.entry((tenant, id)).or_default().push((event.at_ms, event.bytes));
        }
        Self(objects)
    }

    /// Bytes of an object at the end.
    fn bytes(&self, name: &Name) -> Option<u64> {
        self.0.get(name)?.last()?.1
    }

    /// Whether an object is there from one time to another.
    fn is_there(&self, name: &Name, from_ms: u64, to_ms: u64) -> bool {
        let events = self.0.get(name).map_or(&[][..], Vec::as_slice);
        let before = events.iter().rev().find(|(at_ms, _)| *at_ms <= from_ms);
        let is_put = before.is_some_and(|(_, bytes)| bytes.is_some());
        let is_removed = |(at_ms, bytes): &(u64, Option<u64>)| {
            bytes.is_none() && (from_ms..to_ms).contains(at_ms)
        };
        is_put && !events.iter().any(is_removed)
    }
}

/// A snapshot that a manifest names, and since when.
struct Named {
    blob: BlobId,
    from_ms: u64,
}

/// From the commit that names a snapshot until the one that no longer does, its object is there.
fn check_manifests(case: &Case<'_>, objects: &Objects, findings: &mut Findings) {
    let mut named: BTreeMap<&CubeName, Named> = BTreeMap::new();
    let mut ends = Vec::new();
    for commit in &case.commits {
        for effect in &commit.effects {
            let Change::Manifest(manifest) = &effect.change else { continue };
            let at_ms = commit.record.at_ms;
            let snapshot = manifest.as_ref().and_then(|manifest| manifest.snapshot.as_ref());
            let blob = snapshot.map(|snapshot| snapshot.blob);
            if named.get(&effect.cube).map(|named| named.blob) == blob {
                continue;
            }
            let before = match blob {
                Some(blob) => named.insert(&effect.cube, Named { blob, from_ms: at_ms }),
                None => named.remove(&effect.cube),
            };
            ends.extend(before.map(|before| (&effect.cube, before, at_ms)));
        }
    }
    let to_the_end = named.into_iter().map(|(cube, named)| (cube, named, u64::MAX));
    for (cube, Named { blob, from_ms }, to_ms) in ends.into_iter().chain(to_the_end) {
        let name = (cube.0.clone(), blob);
        findings.expect(objects.is_there(&name, from_ms, to_ms), || {
            let cube = title(cube);
            format!("{cube}: the object of the snapshot named at {from_ms} ms was not there")
        });
    }
}

/// From the commit that names a block until the one that no longer does, its object is there.
fn check_blocks(case: &Case<'_>, objects: &Objects, findings: &mut Findings) {
    let mut named: BTreeMap<(&CubeName, BlockKey), Named> = BTreeMap::new();
    let mut ends = Vec::new();
    for commit in &case.commits {
        let at_ms = commit.record.at_ms;
        for effect in &commit.effects {
            let Change::KvBlock(key, block) = &effect.change else { continue };
            let place = (&effect.cube, *key);
            let before = match block {
                Some(block) => named.insert(place, Named { blob: block.blob, from_ms: at_ms }),
                None => named.remove(&place),
            };
            ends.extend(before.map(|before| (effect.cube.clone(), before, at_ms)));
        }
    }
    let to_the_end = named.into_iter().map(|((cube, _), named)| (cube.clone(), named, u64::MAX));
    for (cube, Named { blob, from_ms }, to_ms) in ends.into_iter().chain(to_the_end) {
        let name = (cube.0.clone(), blob);
        findings.expect(objects.is_there(&name, from_ms, to_ms), || {
            let cube = title(&cube);
            format!("{cube}: the object of a block named at {from_ms} ms was not there")
        });
    }
}

/// At the end, after a sweep: manifests, references, rows and objects are the same blobs.
fn check_end(case: &Case<'_>, objects: &Objects, findings: &mut Findings) {
    let mut rows: BTreeMap<Name, BlobRecord> = BTreeMap::new();
    let mut references: BTreeSet<(Name, CubeName)> = BTreeSet::new();
    for (key, row) in &case.evidence.rows {
        let read = RowKey::parse(key);
        if let RowKey::Blob { tenant, id } = read {
            match decode(&row.value) {
                Ok(record) => drop(rows.insert((tenant, id), record)),
                Err(error) => findings.report(format!("the row of blob {id}: {error}")),
            }
        } else if let RowKey::BlobReference { tenant, id, cube } = read {
            references.insert(((tenant.clone(), id), (tenant, cube)));
        }
    }
    let mut named: BTreeSet<(Name, CubeName)> = BTreeSet::new();
    for (cube, rows) in &case.cubes {
        let snapshot = rows.manifest.as_ref().and_then(|manifest| manifest.snapshot.as_ref());
        let blobs = rows.blocks.values().map(|block| block.blob);
        let blobs = blobs.chain(snapshot.map(|snapshot| snapshot.blob));
        named.extend(blobs.map(|blob| ((cube.0.clone(), blob), cube.clone())));
    }
    for (name, cube) in named.difference(&references) {
        let (cube, blob) = (title(cube), name.1);
        findings.report(format!("{cube}: no reference holds its snapshot or block {blob}"));
    }
    for (name, cube) in references.difference(&named) {
        let (cube, blob) = (title(cube), name.1);
        findings.report(format!(
            "{cube}: a reference holds {blob}, which is neither its snapshot nor a block"
        ));
    }
    for (name, _) in &named {
        let (row, bytes, blob) = (rows.get(name), objects.bytes(name), name.1);
        findings.expect(row.is_some_and(|row| row.state == BlobState::Live), || {
            format!("blob {blob} is referred to, and its row is {row:?}")
        });
        findings.expect(row.map(|row| row.bytes) == bytes, || {
            format!("blob {blob} has {bytes:?} bytes, and its row is {row:?}")
        });
    }
    let held: BTreeSet<&Name> = named.iter().map(|(held, _)| held).collect();
    let under_way = under_way(case);
    let is_named = |name: &Name| held.contains(name) || under_way.contains(name);
    for name in rows.keys().filter(|name| !is_named(name)) {
        findings.report(format!("nothing refers to blob {}, and its row is still there", name.1));
    }
    let left = objects.0.keys().filter(|name| objects.bytes(name).is_some());
    for name in left.filter(|name| !is_named(name)) {
        findings
            .report(format!("nothing refers to blob {}, and its object is still there", name.1));
    }
}

/// Blobs that were written to or let go so short before the end that somebody may still be about to
/// refer to them, or to sweep them.
fn under_way(case: &Case<'_>) -> BTreeSet<Name> {
    let commits = &case.evidence.commits;
    let end_ms = commits.last().map_or(0, |commit| commit.at_ms);
    let late = commits.iter().rev().take_while(|commit| commit.at_ms + UNDER_WAY_MS >= end_ms);
    let touched = late.flat_map(|commit| &commit.mutations).filter_map(|mutation| {
        let (Mutation::Set { key, .. } | Mutation::Clear { key }) = mutation else { return None };
        let read = RowKey::parse(key);
        let (RowKey::Blob { tenant, id } | RowKey::BlobReference { tenant, id, .. }) = read else {
            return None;
        };
        Some((tenant, id))
    });
    touched.collect()
}

#[cfg(test)]
mod tests {
    use memcube_schemas::{
        cube::{CubeManifest, SnapshotRef},
        keys,
    };

    use super::*;
    use crate::{
        checkers::builder::{Scene, said},
        evidence::{Evidence, ObjectEvent, Row},
    };

    const ID: BlobId = BlobId([7; 32]);
    const BYTES: u64 = 10;

    /// A run at whose end the cube has a snapshot.
    fn run() -> Evidence {
        let mut scene = Scene::new();
        scene.add(1, "mk1");
        let (tenant, cube) = scene.cube.clone();
        let mut evidence = scene.finish();
        let key = keys::manifest(&tenant, &cube);
        // The last manifest of the run names it.
        let mutations = evidence.commits.iter_mut().rev().flat_map(|commit| &mut commit.mutations);
        let rows = evidence.rows.iter_mut().map(|(key, row)| (key, &mut row.value));
        let values = mutations.filter_map(|mutation| {
            let Mutation::Set { key, value } = mutation else { return None };
            Some((&*key, value))
        });
        for (_, value) in values.chain(rows).filter(|(found, _)| **found == key) {
            let mut manifest: CubeManifest = decode(value).expect("a manifest");
            let version = manifest.version;
            manifest.snapshot = Some(SnapshotRef { blob: ID, version });
            *value = memcube_schemas::codec::encode(&manifest);
        }
        let version = memcube_schemas::Version(1);
        let record = BlobRecord { state: BlobState::Live, bytes: BYTES, at_ms: 0 };
        let value = memcube_schemas::codec::encode(&record);
        evidence.rows.insert(keys::blob(&tenant, ID), Row { version, value });
        let reference = keys::blob_reference(&tenant, ID, &cube, "snapshot");
        evidence.rows.insert(reference, Row { version, value: Vec::new() });
        evidence.objects.push(object(0, Some(BYTES)));
        evidence
    }

    fn object(at_ms: u64, bytes: Option<u64>) -> ObjectEvent {
        ObjectEvent { at_ms, path: format!("blobs/acme/07/{ID}"), bytes }
    }

    fn found(spoil: impl FnOnce(&mut Evidence)) -> Vec<String> {
        let mut evidence = run();
        spoil(&mut evidence);
        said(&check(&Case::read(&evidence)))
    }

    fn expect(spoil: impl FnOnce(&mut Evidence), part: &str) {
        let found = found(spoil);
        assert!(found.iter().any(|line| line.contains(part)), "{part} in {found:?}");
    }

    #[test]
    fn a_run_in_which_all_is_well_passes() {
        assert_eq!(found(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_or_left_over_is_seen() {
        let of_kind = |wanted: fn(&RowKey) -> bool| {
            move |evidence: &mut Evidence| {
                evidence.rows.retain(|key, _| !wanted(&RowKey::parse(key)));
            }
        };
        let is_row = |key: &RowKey| matches!(key, RowKey::Blob { .. });
        let is_reference = |key: &RowKey| matches!(key, RowKey::BlobReference { .. });
        let is_manifest = |key: &RowKey| matches!(key, RowKey::Manifest { .. });
        expect(of_kind(is_row), "and its row is None");
        expect(of_kind(is_reference), "no reference holds");
        expect(of_kind(is_manifest), "which is neither its snapshot nor a block");
        expect(of_kind(is_manifest), "and its object is still there");
        expect(of_kind(is_manifest), "and its row is still there");
        expect(|evidence| evidence.objects.clear(), "was not there");
        expect(|evidence| evidence.objects.push(object(1 << 40, None)), "was not there");
        expect(|evidence| evidence.objects[0].at_ms = 1 << 40, "was not there");
        expect(|evidence| evidence.objects[0].bytes = Some(BYTES / 2), "bytes");
    }
}
