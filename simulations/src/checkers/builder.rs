//! Evidence of runs in which all is well, for tests that then spoil it.

use std::collections::BTreeMap;

use memcube_actors::{
    cube::recall::embedding_text,
    embedder::{Embedder, ScriptedEmbedder},
    storage::{Check, CommitToken, Mutation, versionstamped_key},
};
use memcube_schemas::{
    CubeId, Epoch, Incarnation, MemoryId, NodeId, RequestId, TenantId, Version,
    codec::encode,
    conversation::Role,
    cube::{CubeManifest, Ownership, RequestRecord},
    feed::{FeedChange, FeedRecord, ItemChange},
    keys,
    memory::{
        ChangeReason, MemoryItem, MemoryKind, MemoryRevision, MemoryStatus, MemoryVector,
        SourceTurn,
    },
};

use super::case::CubeName;
use crate::{
    evidence::{CommitRecord, Evidence, Row, ServedCube, Violation},
    history::{Call, Moment, Outcome, Seen},
    marker,
};

/// What the violations say.
pub(super) fn said(violations: &[Violation]) -> Vec<String> {
    violations.iter().map(|violation| violation.what.clone()).collect()
}

/// A node in one of its lives.
pub(super) type Life = (NodeId, Incarnation);

pub(super) fn life(node: &str, incarnation: u64) -> Life {
    (NodeId::new(node).expect("valid"), Incarnation(incarnation))
}

#[derive(Debug, Clone)]
struct CubeNow {
    manifest: CubeManifest,
    owner: Life,
    epoch: Epoch,
    items: BTreeMap<MemoryId, MemoryItem>,
}

/// A run of one node after the other, written down as it goes. Time stands at ten milliseconds a
/// moment.
pub(super) struct Scene {
    /// The cube that is worked on.
    pub(super) cube: CubeName,
    pub(super) evidence: Evidence,
    cubes: BTreeMap<CubeName, CubeNow>,
    order: u64,
    ids: u128,
}

impl Scene {
    /// `acme/ann`, made and claimed by `n1`.
    pub(super) fn new() -> Self {
        let cube = (TenantId::new("acme").expect("valid"), CubeId::new("ann").expect("valid"));
        let evidence = Evidence::default();
        let mut scene = Self { cube, evidence, cubes: BTreeMap::new(), order: 0, ids: 0 };
        scene.make();
        scene.claim(life("n1", 1));
        scene
    }

    /// Goes on with another cube, which is made and claimed if it is new.
    pub(super) fn enter(&mut self, tenant: &str, cube: &str) {
        self.cube = (TenantId::new(tenant).expect("valid"), CubeId::new(cube).expect("valid"));
        if !self.cubes.contains_key(&self.cube) {
            self.make();
            self.claim(life("n1", 1));
        }
    }

    fn now(&mut self) -> &mut CubeNow {
        self.cubes.get_mut(&self.cube).expect("made")
    }

    /// The version of the store.
    pub(super) fn store(&self) -> Version {
        self.evidence.commits.last().map_or(Version(100), |commit| commit.version)
    }

    /// The version of the cube.
    pub(super) fn version(&mut self) -> Version {
        self.now().manifest.version
    }

    pub(super) fn moment(&mut self) -> Moment {
        self.order += 1;
        Moment { order: self.order, ms: self.order * 10, store: self.store() }
    }

    // Calls.

    pub(super) fn begin(&mut self, client: u32, call: Call) -> usize {
        let moment = self.moment();
        let (tenant, cube) = self.cube.clone();
        self.evidence.history.invoke(client, &tenant, &cube, call, moment)
    }

    pub(super) fn end(&mut self, id: usize, outcome: Outcome) {
        let moment = self.moment();
        self.evidence.history.answer(id, moment, outcome);
    }

    /// A call that is answered at once.
    pub(super) fn operation(&mut self, client: u32, call: Call, outcome: Outcome) -> usize {
        let id = self.begin(client, call);
        self.end(id, outcome);
        id
    }

    /// A call that is never answered.
    pub(super) fn hang(&mut self, client: u32, call: Call) {
        self.begin(client, call);
    }

    /// A call whose outcome nobody learns.
    pub(super) fn unknown(&mut self, client: u32, call: Call) {
        self.operation(client, call, Outcome::Unknown { reason: "cut".to_owned() });
    }

    pub(super) fn add(&mut self, client: u32, marker: &str) -> MemoryId {
        let call = self.begin(client, Call::Add { marker: marker.to_owned() });
        let id = self.store_add(marker);
        let version = self.version();
        self.end(call, Outcome::Added { id, version });
        id
    }

    pub(super) fn update(&mut self, client: u32, id: MemoryId, marker: &str) {
        let call = Call::Update { id, marker: marker.to_owned(), expected_revision: None };
        let call = self.begin(client, call);
        self.store_update(id, marker);
        let (seen, version) = (self.seen(id), self.version());
        self.end(call, Outcome::Updated { seen, version });
    }

    pub(super) fn delete(&mut self, client: u32, id: MemoryId, purge: bool) {
        let call = self.begin(client, Call::Delete { id, purge });
        self.store_delete(id, purge);
        let version = self.version();
        self.end(call, Outcome::Deleted { version });
    }

    pub(super) fn get(&mut self, client: u32, id: MemoryId) -> usize {
        let held = self.now().items.contains_key(&id);
        let outcome = if held { Outcome::Item(self.seen(id)) } else { Outcome::Missing };
        self.operation(client, Call::Get { id }, outcome)
    }

    pub(super) fn list(&mut self, client: u32) -> usize {
        let (items, version) = self.everything();
        self.operation(client, Call::List, Outcome::Listed { items, version })
    }

    pub(super) fn search(&mut self, client: u32, marker: &str) -> usize {
        let (hits, version) = self.everything();
        let call = Call::Search { marker: marker.to_owned() };
        self.operation(client, call, Outcome::Found { hits, version })
    }

    /// An item as a caller would see it now.
    pub(super) fn seen(&mut self, id: MemoryId) -> Seen {
        let item = &self.now().items[&id];
        let marker = marker::marker_of(&item.text).expect("marked");
        let tenant = marker::tenant_of(&item.text).expect("named");
        Seen { id, marker, revision: item.revision, tenant }
    }

    /// All items as a caller would see them now, and the version.
    pub(super) fn everything(&mut self) -> (Vec<Seen>, Version) {
        let ids: Vec<MemoryId> = self.now().items.keys().copied().collect();
        (ids.into_iter().map(|id| self.seen(id)).collect(), self.version())
    }

    // Commits.

    /// A commit of the cube's owner.
    pub(super) fn commit(&mut self, mutations: Vec<Mutation>) -> Version {
        let owner = self.now().owner.clone();
        self.commit_by(owner, Vec::new(), mutations)
    }

    pub(super) fn commit_by(
        &mut self,
        (node, incarnation): Life,
        checks: Vec<Check>,
        mutations: Vec<Mutation>,
    ) -> Version {
        let version = Version(self.store().0 + 10);
        for (position, mutation) in mutations.iter().enumerate() {
            apply(&mut self.evidence.rows, version, position, mutation);
        }
        let (token, at_ms) = (CommitToken(u128::from(version.0)), self.order * 10);
        let record =
            CommitRecord { version, place: 0, at_ms, node, incarnation, token, checks, mutations };
        self.evidence.commits.push(record);
        version
    }

    fn make(&mut self) {
        let (tenant, cube) = self.cube.clone();
        let manifest = CubeManifest {
            id: cube.clone(),
            name: "Ann".to_owned(),
            owner: None,
            created_at_ms: 0,
            updated_at_ms: 0,
            version: Version(0),
            items: 0,
            embedder: None,
            snapshot: None,
        };
        let checks = vec![Check::Absent { key: keys::manifest(&tenant, &cube) }];
        let (owner, epoch) = match self.cubes.get(&self.cube) {
            Some(former) => (former.owner.clone(), former.epoch),
            None => (life("n1", 1), Epoch(0)),
        };
        let made = CubeNow { manifest, owner, epoch: Epoch(0), items: BTreeMap::new() };
        self.cubes.insert(self.cube.clone(), made);
        let feed = self.feed(FeedChange::CubeMade);
        let mutations = vec![self.set_manifest(), feed];
        self.commit_by(life("n2", 1), checks, mutations);
        self.now().epoch = epoch;
    }

    /// The node takes the cube.
    pub(super) fn claim(&mut self, by: Life) {
        let ownership = self.ownership(by.clone());
        self.commit_by(by, Vec::new(), vec![ownership]);
    }

    /// The owner gives the cube to another.
    pub(super) fn hand_over(&mut self, to: Life) {
        let from = self.now().owner.clone();
        let ownership = self.ownership(to);
        self.commit_by(from, Vec::new(), vec![ownership]);
    }

    fn ownership(&mut self, (node, incarnation): Life) -> Mutation {
        let key = keys::ownership(&self.cube.0, &self.cube.1);
        let now = self.now();
        now.epoch = now.epoch.next();
        now.owner = (node.clone(), incarnation);
        let value = encode(&Ownership { epoch: now.epoch, node, incarnation });
        Mutation::Set { key, value }
    }

    /// The cube is deleted with everything in it, and made anew.
    pub(super) fn erase_and_make_anew(&mut self) {
        self.erase();
        self.make();
    }

    /// The cube is deleted, and put back as a restore does: rows first, at last the manifest at
    /// version 7, and the record.
    pub(super) fn erase_and_restore(&mut self, told: FeedChange) {
        self.erase();
        self.ids += 1;
        let id = MemoryId::from_parts(1_000, self.ids);
        let text = marker::text(self.cube.0.as_str(), "mk9", 1);
        let item = item(id, text, Version(7), None);
        let mark = keys::restoring(&self.cube.0, &self.cube.1);
        let begun = Mutation::Set { key: mark.clone(), value: encode(&self.now().manifest) };
        self.commit(vec![self.set_item(&item), begun]);
        let now = self.now();
        now.manifest.version = Version(7);
        now.manifest.items = 1;
        now.items = BTreeMap::from([(id, item)]);
        let last = vec![self.set_manifest(), Mutation::Clear { key: mark }, self.feed(told)];
        self.commit(last);
    }

    fn erase(&mut self) {
        let (tenant, cube) = self.cube.clone();
        let ranges = keys::everything_of_cube(&tenant, &cube).into_iter();
        let mut mutations: Vec<Mutation> =
            ranges.map(|range| Mutation::ClearRange { range }).collect();
        mutations.push(self.feed(FeedChange::CubeErased));
        self.commit(mutations);
    }

    /// Stores an item without anybody having asked for it.
    pub(super) fn store_add(&mut self, marker: &str) -> MemoryId {
        self.ids += 1;
        let id = MemoryId::from_parts(1_000, self.ids);
        let text = marker::text(self.cube.0.as_str(), marker, 1);
        let now = self.now();
        let previous = now.items.keys().next_back().copied();
        let item = item(id, text, now.manifest.version.next(), previous);
        now.manifest.items += 1;
        now.manifest.embedder = Some(ScriptedEmbedder::new(32).model().clone());
        now.items.insert(id, item.clone());
        let request = RequestId::new(marker).expect("valid");
        let version = now.manifest.version.next();
        let record = RequestRecord { fingerprint: 1, added: vec![(id, false)], version };
        let key = keys::request(&self.cube.0, &self.cube.1, &request);
        let mutations = vec![
            self.set_item(&item),
            self.set_vector(&item),
            Mutation::Set { key, value: encode(&record) },
        ];
        self.change(mutations, vec![(id, ItemChange::Added, 1)]);
        id
    }

    pub(super) fn store_update(&mut self, id: MemoryId, marker: &str) {
        let text = marker::text(self.cube.0.as_str(), marker, 2);
        let now = self.now();
        let former = now.items[&id].clone();
        let (revision, version) = (former.revision + 1, now.manifest.version.next());
        let item = MemoryItem { text, revision, version, ..former.clone() };
        now.items.insert(id, item.clone());
        let mutations = vec![
            self.keep_former(former, ChangeReason::Updated),
            self.set_item(&item),
            self.clear_vector(id),
            self.set_vector(&item),
        ];
        self.change(mutations, vec![(id, ItemChange::Updated, revision)]);
    }

    pub(super) fn store_delete(&mut self, id: MemoryId, purge: bool) {
        let (tenant, cube) = self.cube.clone();
        let now = self.now();
        let former = now.items.remove(&id).expect("held");
        now.manifest.items -= 1;
        let revision = former.revision;
        let (history, change) = if purge {
            let range = keys::history_of_item(&tenant, &cube, id);
            (Mutation::ClearRange { range }, ItemChange::Purged)
        } else {
            (self.keep_former(former, ChangeReason::Deleted), ItemChange::Deleted)
        };
        let key = keys::item(&tenant, &cube, id);
        let mutations = vec![Mutation::Clear { key }, self.clear_vector(id), history];
        self.change(mutations, vec![(id, change, revision)]);
    }

    /// Commits these together with the manifest and the feed.
    pub(super) fn change(
        &mut self,
        mut mutations: Vec<Mutation>,
        changes: Vec<(MemoryId, ItemChange, u32)>,
    ) -> Version {
        let now = self.now();
        now.manifest.version = now.manifest.version.next();
        mutations.push(self.set_manifest());
        mutations.push(self.feed(FeedChange::Items(changes)));
        self.commit(mutations)
    }

    // Mutations.

    pub(super) fn set_manifest(&mut self) -> Mutation {
        let key = keys::manifest(&self.cube.0, &self.cube.1);
        Mutation::Set { key, value: encode(&self.now().manifest) }
    }

    pub(super) fn feed(&mut self, change: FeedChange) -> Mutation {
        let (tenant, cube) = self.cube.clone();
        let prefix = keys::feed_prefix(&tenant, keys::feed_shard(&cube));
        let now = self.now();
        let (epoch, version) = (now.epoch, now.manifest.version);
        let record = FeedRecord { cube, epoch, version, at_ms: 0, change };
        Mutation::SetVersionstamped { prefix, value: encode(&record) }
    }

    pub(super) fn set_item(&self, item: &MemoryItem) -> Mutation {
        let key = keys::item(&self.cube.0, &self.cube.1, item.id);
        Mutation::Set { key, value: encode(item) }
    }

    pub(super) fn set_vector(&self, item: &MemoryItem) -> Mutation {
        let embedder = ScriptedEmbedder::new(32);
        let text = embedding_text(&item.text);
        let embedding = embedder.embed(&[&text]).expect("never fails").remove(0);
        let key = keys::vector(&self.cube.0, &self.cube.1, embedder.model(), item.id);
        Mutation::Set { key, value: encode(&MemoryVector { values: embedding.vector }) }
    }

    pub(super) fn clear_vector(&self, id: MemoryId) -> Mutation {
        let embedder = ScriptedEmbedder::new(32);
        Mutation::Clear { key: keys::vector(&self.cube.0, &self.cube.1, embedder.model(), id) }
    }

    fn keep_former(&mut self, former: MemoryItem, reason: ChangeReason) -> Mutation {
        let version = self.version().next();
        let key = keys::history(&self.cube.0, &self.cube.1, former.id, former.revision);
        let changed_by = "test".to_owned();
        let kept = MemoryRevision { former, changed_at_ms: 0, changed_by, reason, version };
        Mutation::Set { key, value: encode(&kept) }
    }

    /// An item as it is stored now.
    pub(super) fn item(&mut self, id: MemoryId) -> MemoryItem {
        self.now().items[&id].clone()
    }

    /// Everything, with every cube served as it is.
    pub(super) fn finish(mut self) -> Evidence {
        for (name, cube) in self.cubes {
            let items: Vec<MemoryItem> = cube.items.into_values().collect();
            let found = items.iter().map(|item| (item.id, true)).collect();
            let served = ServedCube { items, version: cube.manifest.version, found };
            self.evidence.served.insert(name, served);
        }
        self.evidence
    }
}

fn item(id: MemoryId, text: String, version: Version, previous: Option<MemoryId>) -> MemoryItem {
    MemoryItem {
        id,
        kind: MemoryKind::Fact,
        status: MemoryStatus::Activated,
        speaker: None,
        role: Role::User,
        said_at_ms: None,
        learned_at_ms: 0,
        updated_at_ms: 0,
        conversation: None,
        previous,
        part: None,
        tags: Vec::new(),
        info: String::new(),
        sources: vec![SourceTurn {
            role: Role::User,
            speaker: None,
            chat_time: None,
            message_id: None,
            content: text.clone(),
        }],
        occurrences: 1,
        tokens: 5,
        revision: 1,
        version,
        text,
    }
}

fn apply(
    rows: &mut BTreeMap<Vec<u8>, Row>,
    version: Version,
    position: usize,
    mutation: &Mutation,
) {
    match mutation {
        Mutation::Set { key, value } => {
            rows.insert(key.clone(), Row { version, value: value.clone() });
        }
        Mutation::Clear { key } => {
            rows.remove(key);
        }
        Mutation::ClearRange { range } => rows.retain(|key, _| !range.contains(key)),
        Mutation::Add { .. } => panic!("no cube counts"),
        Mutation::SetVersionstamped { prefix, value } => {
            let key = versionstamped_key(prefix, version, position);
            rows.insert(key, Row { version, value: value.clone() });
        }
    }
}
