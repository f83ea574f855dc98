//! The key space: one function a kind of key, tenant first, order-preserving tuples.
//!
//! Keys are packed in FoundationDB's tuple layer
//! (<https://apple.github.io/foundationdb/data-modeling.html#tuples>), so that a range of keys is a
//! range of tuples in every backend. Invariant: except for API keys, which are looked up before the
//! tenant is known, the first element is the tenant: a read across tenants cannot be expressed.
//! Ordinals are persisted and never reused.

use foundationdb_tuple::{Bytes, Element, pack, unpack};

use crate::{
    activation::BlockKey,
    blob::BlobId,
    ids::{ConversationId, CubeId, MemoryId, ModelId, NodeId, RequestId, Stamp, TenantId, Version},
};

/// First element of keys that belong to the installation. No [`TenantId`] is empty.
const INSTALLATION: &str = "";

const API_KEY: u16 = 1;
const NODE: u16 = 2;
const FEED_POINTER: u16 = 3;
const FEED_DOORBELL: u16 = 4;
const SCHEMA_GATE: u16 = 5;
const MANIFEST: u16 = 10;
const OWNERSHIP: u16 = 11;
const ITEM: u16 = 12;
const HISTORY: u16 = 13;
const VECTOR: u16 = 14;
const REQUEST: u16 = 15;
const FEED: u16 = 16;
const FEED_FLOOR: u16 = 17;
const FEED_CURSOR: u16 = 18;
const BLOB: u16 = 19;
const BLOB_REFERENCE: u16 = 20;
const TAIL: u16 = 21;
const RESTORING: u16 = 22;
const KV_BLOCK: u16 = 23;
const CONTEXT: u16 = 24;
const PREDICTOR: u16 = 25;

/// Shards of a tenant's event feed, so that its newest rows are not one hot spot. Part of the
/// format: never changed.
pub const FEED_SHARDS: u16 = 8;

/// Rings over which the news of all feeds are spread, so that whoever follows them waits for one
/// key
/// a ring and never for one a cube. Part of the format: never changed.
pub const FEED_RINGS: u16 = 256;

/// A half-open range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// First key inside.
    pub start: Vec<u8>,
    /// First key outside.
    pub end: Vec<u8>,
}

impl KeyRange {
    /// All keys that extend this packed tuple.
    #[must_use]
    pub fn below(tuple: &[u8]) -> Self {
        let mut start = tuple.to_vec();
        let mut end = start.clone();
        start.push(0x00);
        end.push(0xff);
        Self { start, end }
    }

    /// The range that holds one key only.
    #[must_use]
    pub fn only(key: Vec<u8>) -> Self {
        let mut end = key.clone();
        end.push(0x00);
        Self { start: key, end }
    }

    /// The same range, from just after `key` on.
    #[must_use]
    pub fn after(mut self, key: &[u8]) -> Self {
        self.start = key.to_vec();
        self.start.push(0x00);
        self
    }

    /// Whether a key lies inside.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && key < self.end.as_slice()
    }
}

/// The record of an API key, by the SHA-256 of the key.
#[must_use]
pub fn api_key(hash: &[u8; 32]) -> Vec<u8> {
    pack(&(INSTALLATION, API_KEY, Bytes::from(&hash[..])))
}

/// All API keys of the installation.
#[must_use]
pub fn api_keys() -> KeyRange {
    KeyRange::below(&pack(&(INSTALLATION, API_KEY)))
}

/// The heartbeat of one node.
#[must_use]
pub fn node(id: &NodeId) -> Vec<u8> {
    pack(&(INSTALLATION, NODE, id.as_str()))
}

/// The heartbeats of all nodes.
#[must_use]
pub fn nodes() -> KeyRange {
    KeyRange::below(&pack(&(INSTALLATION, NODE)))
}

/// The shard of its tenant's feed that tells of a cube.
#[must_use]
pub fn feed_shard(cube: &CubeId) -> u16 {
    spread(cube.as_str().bytes(), FEED_SHARDS)
}

/// FNV-1a over the bytes, cut to a range: part of the format, like the ranges.
fn spread(bytes: impl Iterator<Item = u8>, range: u16) -> u16 {
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u16::try_from(hash % u64::from(range)).expect("invariant: smaller than the range")
}

/// The ring on which news of a shard of a tenant's feed are told.
#[must_use]
pub fn feed_ring(tenant: &TenantId, shard: u16) -> u16 {
    spread(tenant.as_str().bytes().chain(shard.to_be_bytes()), FEED_RINGS)
}

/// The doorbell of a ring, written by every commit that is told on it. Its value says nothing; who
/// follows a ring waits for it to change.
#[must_use]
pub fn feed_doorbell(ring: u16) -> Vec<u8> {
    pack(&(INSTALLATION, FEED_DOORBELL, ring))
}

/// The doorbells of all rings.
#[must_use]
pub fn feed_doorbells() -> KeyRange {
    KeyRange::below(&pack(&(INSTALLATION, FEED_DOORBELL)))
}

/// The ring that a doorbell belongs to.
#[must_use]
pub fn rung(key: &[u8]) -> Option<u16> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let [_, _, Element::Int(ring)] = elements.as_slice() else { return None };
    u16::try_from(*ring).ok()
}

/// Says that a shard of a tenant's feed has news, written by every commit to it. Whoever has worked
/// the news off removes it, on the condition that it was not written again.
#[must_use]
pub fn feed_pointer(tenant: &TenantId, shard: u16) -> Vec<u8> {
    let ring = feed_ring(tenant, shard);
    pack(&(INSTALLATION, FEED_POINTER, ring, tenant.as_str(), shard))
}

/// The pointers of one ring.
#[must_use]
pub fn feed_pointers(ring: u16) -> KeyRange {
    KeyRange::below(&pack(&(INSTALLATION, FEED_POINTER, ring)))
}

/// Whether a key is that of a pointer.
#[must_use]
pub fn is_feed_pointer(key: &[u8]) -> bool {
    key.starts_with(&pack(&(INSTALLATION, FEED_POINTER)))
}

/// The tenant and the shard that a pointer names.
#[must_use]
pub fn pointed_feed(key: &[u8]) -> Option<(TenantId, u16)> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let [_, _, _, Element::String(tenant), Element::Int(shard)] = elements.as_slice() else {
        return None;
    };
    Some((TenantId::new(tenant.as_ref()).ok()?, u16::try_from(*shard).ok()?))
}

/// Which formats the rows of this store have.
#[must_use]
pub fn schema_gate() -> Vec<u8> {
    pack(&(INSTALLATION, SCHEMA_GATE))
}

/// What stands before the versionstamp in the keys of one shard of a tenant's feed.
#[must_use]
pub fn feed_prefix(tenant: &TenantId, shard: u16) -> Vec<u8> {
    pack(&(tenant.as_str(), FEED, shard))
}

/// One shard of a tenant's feed, in the order of the commits.
#[must_use]
pub fn feed(tenant: &TenantId, shard: u16) -> KeyRange {
    let mut range = KeyRange::below(&feed_prefix(tenant, shard));
    // The stamp follows as bare bytes, the first of which may be anything.
    range.start.pop();
    range.end.push(0xff);
    range
}

/// The key of one record of a feed.
#[must_use]
pub fn feed_record(tenant: &TenantId, shard: u16, stamp: Stamp) -> Vec<u8> {
    let mut key = feed_prefix(tenant, shard);
    key.extend_from_slice(&stamp.0);
    key
}

/// The stamp at the end of a feed record's key.
#[must_use]
pub fn feed_stamp(key: &[u8]) -> Option<Stamp> {
    key.last_chunk::<12>().map(|stamp| Stamp(*stamp))
}

/// Up to where a shard of a feed was cut off.
#[must_use]
pub fn feed_floor(tenant: &TenantId, shard: u16) -> Vec<u8> {
    pack(&(tenant.as_str(), FEED_FLOOR, shard))
}

/// How far a consumer that is known by name has read a shard of a feed.
#[must_use]
pub fn feed_cursor(tenant: &TenantId, shard: u16, consumer: &str) -> Vec<u8> {
    pack(&(tenant.as_str(), FEED_CURSOR, shard, consumer))
}

/// How far each consumer has read a shard of a feed.
#[must_use]
pub fn feed_cursors(tenant: &TenantId, shard: u16) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), FEED_CURSOR, shard)))
}

/// One blob of a tenant.
#[must_use]
pub fn blob(tenant: &TenantId, id: BlobId) -> Vec<u8> {
    pack(&(tenant.as_str(), BLOB, Bytes::from(&id.0[..])))
}

/// All blobs of a tenant.
#[must_use]
pub fn blobs(tenant: &TenantId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), BLOB)))
}

/// The blob at the end of a blob's key.
#[must_use]
pub fn trailing_blob_id(key: &[u8]) -> Option<BlobId> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let Element::Bytes(bytes) = elements.last()? else { return None };
    Some(BlobId(bytes.as_ref().try_into().ok()?))
}

/// Says that a cube refers to a blob, and as what.
#[must_use]
pub fn blob_reference(tenant: &TenantId, id: BlobId, cube: &CubeId, purpose: &str) -> Vec<u8> {
    pack(&(tenant.as_str(), BLOB_REFERENCE, Bytes::from(&id.0[..]), cube.as_str(), purpose))
}

/// Everything that refers to a blob.
#[must_use]
pub fn blob_references(tenant: &TenantId, id: BlobId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), BLOB_REFERENCE, Bytes::from(&id.0[..]))))
}

/// The cube and the purpose at the end of a reference's key.
#[must_use]
pub fn trailing_reference(key: &[u8]) -> Option<(CubeId, String)> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let [.., Element::String(cube), Element::String(purpose)] = elements.as_slice() else {
        return None;
    };
    Some((CubeId::new(cube.as_ref()).ok()?, purpose.clone().into_owned()))
}

/// Which items of a cube one commit changed, kept while a snapshot is older than it.
#[must_use]
pub fn tail(tenant: &TenantId, cube: &CubeId, version: Version) -> Vec<u8> {
    pack(&(tenant.as_str(), TAIL, cube.as_str(), version.0))
}

/// A further part of what one commit changed, where the list is too long for one value.
#[must_use]
pub fn tail_part(tenant: &TenantId, cube: &CubeId, version: Version, part: u16) -> Vec<u8> {
    pack(&(tenant.as_str(), TAIL, cube.as_str(), version.0, part))
}

/// What changed in a cube up to a version, that one included.
#[must_use]
pub fn tails_until(tenant: &TenantId, cube: &CubeId, version: Version) -> KeyRange {
    let mut end = tail(tenant, cube, version);
    end.push(0xff);
    KeyRange { start: tails(tenant, cube).start, end }
}

/// What changed in a cube since its snapshot, in order.
#[must_use]
pub fn tails(tenant: &TenantId, cube: &CubeId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), TAIL, cube.as_str())))
}

/// A cube's manifest.
#[must_use]
pub fn manifest(tenant: &TenantId, cube: &CubeId) -> Vec<u8> {
    pack(&(tenant.as_str(), MANIFEST, cube.as_str()))
}

/// The manifests of a tenant's cubes, by cube id.
#[must_use]
pub fn manifests(tenant: &TenantId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), MANIFEST)))
}

/// Says that a cube is being put back from a backup, or that this broke off: its rows may be there,
/// and its manifest is not.
#[must_use]
pub fn restoring(tenant: &TenantId, cube: &CubeId) -> Vec<u8> {
    pack(&(tenant.as_str(), RESTORING, cube.as_str()))
}

/// Who owns a cube.
#[must_use]
pub fn ownership(tenant: &TenantId, cube: &CubeId) -> Vec<u8> {
    pack(&(tenant.as_str(), OWNERSHIP, cube.as_str()))
}

/// One memory item.
#[must_use]
pub fn item(tenant: &TenantId, cube: &CubeId, id: MemoryId) -> Vec<u8> {
    pack(&(tenant.as_str(), ITEM, cube.as_str(), Bytes::from(&id.as_bytes()[..])))
}

/// The items of a cube, in the order in which they were made.
#[must_use]
pub fn items(tenant: &TenantId, cube: &CubeId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), ITEM, cube.as_str())))
}

/// One former version of an item.
#[must_use]
pub fn history(tenant: &TenantId, cube: &CubeId, id: MemoryId, revision: u32) -> Vec<u8> {
    let id = Bytes::from(&id.as_bytes()[..]);
    pack(&(tenant.as_str(), HISTORY, cube.as_str(), id, revision))
}

/// The former versions of one item, oldest first.
#[must_use]
pub fn history_of_item(tenant: &TenantId, cube: &CubeId, id: MemoryId) -> KeyRange {
    let id = Bytes::from(&id.as_bytes()[..]);
    KeyRange::below(&pack(&(tenant.as_str(), HISTORY, cube.as_str(), id)))
}

/// The vector of one item under one model.
#[must_use]
pub fn vector(tenant: &TenantId, cube: &CubeId, model: &ModelId, id: MemoryId) -> Vec<u8> {
    let id = Bytes::from(&id.as_bytes()[..]);
    pack(&(tenant.as_str(), VECTOR, cube.as_str(), model.as_str(), id))
}

/// The vectors of a cube under one model, in the order of its items.
#[must_use]
pub fn vectors(tenant: &TenantId, cube: &CubeId, model: &ModelId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), VECTOR, cube.as_str(), model.as_str())))
}

/// The outcome of a request that carried an idempotency key.
#[must_use]
pub fn request(tenant: &TenantId, cube: &CubeId, request: &RequestId) -> Vec<u8> {
    pack(&(tenant.as_str(), REQUEST, cube.as_str(), request.as_str()))
}

/// All outcomes kept for a cube.
#[must_use]
pub fn requests(tenant: &TenantId, cube: &CubeId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), REQUEST, cube.as_str())))
}

/// One block of keys and values that a cube keeps.
#[must_use]
pub fn kv_block(tenant: &TenantId, cube: &CubeId, block: BlockKey) -> Vec<u8> {
    pack(&(tenant.as_str(), KV_BLOCK, cube.as_str(), Bytes::from(&block.0[..])))
}

/// The blocks of keys and values that a cube keeps.
#[must_use]
pub fn kv_blocks(tenant: &TenantId, cube: &CubeId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), KV_BLOCK, cube.as_str())))
}

/// What a tenant's predictor has learned.
#[must_use]
pub fn predictor(tenant: &TenantId) -> Vec<u8> {
    pack(&(tenant.as_str(), PREDICTOR))
}

/// The context of one conversation.
#[must_use]
pub fn context(tenant: &TenantId, cube: &CubeId, conversation: &ConversationId) -> Vec<u8> {
    pack(&(tenant.as_str(), CONTEXT, cube.as_str(), conversation.as_str()))
}

/// The contexts of a cube's conversations.
#[must_use]
pub fn contexts(tenant: &TenantId, cube: &CubeId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), CONTEXT, cube.as_str())))
}

/// Every range that belongs to one cube, except who owns it: what deleting the cube clears.
#[must_use]
pub fn everything_of_cube(tenant: &TenantId, cube: &CubeId) -> Vec<KeyRange> {
    let below = |kind: u16| KeyRange::below(&pack(&(tenant.as_str(), kind, cube.as_str())));
    let mut ranges: Vec<KeyRange> =
        [ITEM, HISTORY, VECTOR, REQUEST, TAIL, KV_BLOCK, CONTEXT].map(below).into();
    ranges.push(KeyRange::only(manifest(tenant, cube)));
    ranges.push(KeyRange::only(restoring(tenant, cube)));
    ranges
}

/// The keys of all tenants after this one, or of all tenants: the first of them names the next
/// tenant that has any.
#[must_use]
pub fn tenants_after(tenant: Option<&TenantId>) -> KeyRange {
    let mut start = pack(&(tenant.map_or(INSTALLATION, TenantId::as_str),));
    let mut end = start.clone();
    // No element of a tuple begins with this byte.
    start.push(0xff);
    // Every text begins with the same byte as this one.
    end.truncate(1);
    end[0] += 1;
    KeyRange { start, end }
}

/// The tenant at the beginning of a key. Works for every key, also one that ends with a stamp.
#[must_use]
pub fn leading_tenant(key: &[u8]) -> Option<TenantId> {
    let text = key.strip_prefix(&pack(&(INSTALLATION,))[..1])?;
    let length = text.iter().position(|byte| *byte == 0)?;
    TenantId::new(std::str::from_utf8(&text[..length]).ok()?).ok()
}

/// The memory and the revision at the end of a history key.
#[must_use]
pub fn trailing_revision(key: &[u8]) -> Option<(MemoryId, u32)> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let [.., Element::Bytes(bytes), Element::Int(revision)] = elements.as_slice() else {
        return None;
    };
    let id = MemoryId::from_bytes(bytes.as_ref().try_into().ok()?);
    Some((id, u32::try_from(*revision).ok()?))
}

/// The former versions of all items of a cube, by item, oldest first.
#[must_use]
pub fn histories(tenant: &TenantId, cube: &CubeId) -> KeyRange {
    KeyRange::below(&pack(&(tenant.as_str(), HISTORY, cube.as_str())))
}

/// The idempotency key at the end of a request key.
#[must_use]
pub fn trailing_request_id(key: &[u8]) -> Option<RequestId> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let Element::String(text) = elements.last()? else { return None };
    RequestId::new(text.as_ref()).ok()
}

/// The cube at the end of a manifest key.
#[must_use]
pub fn trailing_cube_id(key: &[u8]) -> Option<CubeId> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let Element::String(text) = elements.last()? else { return None };
    CubeId::new(text.as_ref()).ok()
}

/// The hash at the end of an API key's key.
#[must_use]
pub fn trailing_hash(key: &[u8]) -> Option<[u8; 32]> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let Element::Bytes(bytes) = elements.last()? else { return None };
    bytes.as_ref().try_into().ok()
}

/// The memory id at the end of an item or vector key.
#[must_use]
pub fn trailing_memory_id(key: &[u8]) -> Option<MemoryId> {
    let elements: Vec<Element<'_>> = unpack(key).ok()?;
    let Element::Bytes(bytes) = elements.last()? else { return None };
    Some(MemoryId::from_bytes(bytes.as_ref().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    proptest! {
        #[test]
        fn keys_of_a_cube_lie_in_its_ranges_and_in_no_other_cube_s(
            cube in "[a-z\u{e4}\u{4e00} /]{1,12}", other in "[a-z\u{e4}\u{4e00} /]{1,12}",
            unix_ms in 0_u64..1 << 48, rest: u128,
        ) {
            prop_assume!(cube != other);
            let (acme, apex) = (tenant("acme"), tenant("acme2"));
            let [cube, other] = [cube, other].map(|id| CubeId::new(id).expect("valid"));
            let id = MemoryId::from_parts(unix_ms, rest);
            let model = ModelId::new("m").expect("valid");
            let written = [
                item(&acme, &cube, id),
                history(&acme, &cube, id, 3),
                vector(&acme, &cube, &model, id),
                manifest(&acme, &cube),
                restoring(&acme, &cube),
                kv_block(&acme, &cube, BlockKey([7; 32])),
                context(&acme, &cube, &ConversationId::new("talk").expect("valid")),
            ];
            for key in &written {
                let inside = |tenant, cube| {
                    everything_of_cube(tenant, cube).iter().any(|range| range.contains(key))
                };
                prop_assert!(inside(&acme, &cube));
                prop_assert!(!inside(&acme, &other));
                prop_assert!(!inside(&apex, &cube));
            }
            prop_assert_eq!(trailing_revision(&written[1]), Some((id, 3)));
            prop_assert_eq!(trailing_memory_id(&written[0]), Some(id));
            prop_assert_eq!(trailing_memory_id(&written[2]), Some(id));
        }

        #[test]
        fn a_shard_of_a_feed_holds_its_stamps_and_no_others(
            shard in 0..FEED_SHARDS, other in 0..FEED_SHARDS, stamp: [u8; 12],
        ) {
            prop_assume!(shard != other);
            let (acme, apex) = (tenant("acme"), tenant("acme2"));
            let stamped = |tenant, shard| {
                let mut key = feed_prefix(tenant, shard);
                key.extend_from_slice(&stamp);
                key
            };
            prop_assert!(feed(&acme, shard).contains(&stamped(&acme, shard)));
            prop_assert!(!feed(&acme, shard).contains(&stamped(&acme, other)));
            prop_assert!(!feed(&acme, shard).contains(&stamped(&apex, shard)));
        }

        #[test]
        fn tails_sort_by_version_and_are_cut_after_one(
            version in 0_u64..1 << 50, later in 1_u64..1 << 20, part in 1_u16..,
        ) {
            let (tenant, cube) = (tenant("acme"), CubeId::new("ann").expect("valid"));
            let next = Version(version + later);
            let version = Version(version);
            let kept = [tail(&tenant, &cube, next), tail_part(&tenant, &cube, next, part)];
            let gone =
                [tail(&tenant, &cube, version), tail_part(&tenant, &cube, version, part)];
            prop_assert!(gone[0] < gone[1] && gone[1] < kept[0] && kept[0] < kept[1]);
            let all = tails(&tenant, &cube);
            prop_assert!(gone.iter().chain(&kept).all(|key| all.contains(key)));
            let cut = tails_until(&tenant, &cube, version);
            prop_assert!(gone.iter().all(|key| cut.contains(key)));
            prop_assert!(!kept.iter().any(|key| cut.contains(key)));
        }

        #[test]
        fn tenants_are_found_one_after_another(
            mut names in prop::collection::btree_set("[-a-zA-Z0-9_.]{1,6}", 0..8), stamp: [u8; 12],
        ) {
            let cube = CubeId::new("ann").expect("valid");
            let mut rows = vec![api_key(&[7; 32]), schema_gate()];
            for name in &names {
                let mut stamped = feed_prefix(&tenant(name), 3);
                stamped.extend_from_slice(&stamp);
                prop_assert_eq!(leading_tenant(&stamped), Some(tenant(name)));
                rows.extend([stamped, manifest(&tenant(name), &cube)]);
            }
            rows.sort();
            let mut last: Option<TenantId> = None;
            while let Some(key) = {
                let range = tenants_after(last.as_ref());
                rows.iter().find(|key| range.contains(key))
            } {
                let found = leading_tenant(key).expect("a tenant");
                prop_assert!(names.remove(found.as_str()), "{} again", found);
                last = Some(found);
            }
            prop_assert!(names.is_empty(), "{:?} not found", names);
        }

        #[test]
        fn items_sort_by_their_ids(
            left: u128, right: u128, at in 0_u64..1 << 40, later in 1_u64..1_000,
        ) {
            let (tenant, cube) = (tenant("acme"), CubeId::new("ann").expect("valid"));
            let early = item(&tenant, &cube, MemoryId::from_parts(at, left));
            let late = item(&tenant, &cube, MemoryId::from_parts(at + later, right));
            prop_assert!(early < late);
        }
    }
}
