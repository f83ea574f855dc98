//! Reads store keys back: which row of which cube a key names.

use foundationdb_tuple::{Element, unpack};
use memcube_schemas::{
    BlobId, BlockKey, ConversationId, CubeId, MemoryId, ModelId, RequestId, TenantId, Version,
};

// The ordinals of `memcube_schemas::keys`, which keeps them to itself. They are persisted and never
// reused, and a test below takes every builder of `keys` through here.
const API_KEY: i64 = 1;
const NODE: i64 = 2;
const FEED_POINTER: i64 = 3;
const FEED_DOORBELL: i64 = 4;
const SCHEMA_GATE: i64 = 5;
const MANIFEST: i64 = 10;
const OWNERSHIP: i64 = 11;
const ITEM: i64 = 12;
const HISTORY: i64 = 13;
const VECTOR: i64 = 14;
const REQUEST: i64 = 15;
const FEED: i64 = 16;
const FEED_FLOOR: i64 = 17;
const FEED_CURSOR: i64 = 18;
const BLOB: i64 = 19;
const BLOB_REFERENCE: i64 = 20;
const TAIL: i64 = 21;
const RESTORING: i64 = 22;
const KV_BLOCK: i64 = 23;
const CONTEXT: i64 = 24;
const PREDICTOR: i64 = 25;

/// Bytes that a versionstamp adds to its prefix: the version, and the position in the commit.
const STAMP_BYTES: usize = 12;

/// What a key names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowKey {
    /// The heartbeat of a node.
    Node,
    /// An API key.
    ApiKey,
    /// What a cube is.
    Manifest { tenant: TenantId, cube: CubeId },
    /// Who owns a cube.
    Ownership { tenant: TenantId, cube: CubeId },
    /// An item.
    Item { tenant: TenantId, cube: CubeId, id: MemoryId },
    /// A former version of an item.
    History { tenant: TenantId, cube: CubeId, id: MemoryId, revision: u32 },
    /// The vector of an item.
    Vector { tenant: TenantId, cube: CubeId, model: ModelId, id: MemoryId },
    /// The outcome of a request.
    Request { tenant: TenantId, cube: CubeId, request: RequestId },
    /// A record of a tenant's event feed.
    Feed { tenant: TenantId, shard: u16, version: Version, position: u32 },
    /// Where news of a shard of a feed are told: a pointer, or the doorbell of a ring.
    News,
    /// Which formats the rows of the store have.
    SchemaGate,
    /// Up to where a shard of a tenant's feed was read or cut off.
    FeedMark { tenant: TenantId, shard: u16 },
    /// A blob.
    Blob { tenant: TenantId, id: BlobId },
    /// That a cube refers to a blob.
    BlobReference { tenant: TenantId, id: BlobId, cube: CubeId },
    /// Which items a commit of a cube changed since its snapshot.
    Tail { tenant: TenantId, cube: CubeId, version: Version },
    /// That a cube is being restored.
    Restoring { tenant: TenantId, cube: CubeId },
    /// A block of keys and values.
    KvBlock { tenant: TenantId, cube: CubeId, block: BlockKey },
    /// The context of a conversation.
    Context { tenant: TenantId, cube: CubeId, conversation: ConversationId },
    /// What the scheduler has learned for a tenant.
    Predictor { tenant: TenantId },
    /// Something that no builder of `keys` makes.
    Unknown,
}

impl RowKey {
    /// Reads a key.
    pub(crate) fn parse(key: &[u8]) -> Self {
        // The stamp of a feed key is bare bytes, which may or may not look like a tuple.
        let row = match unpack::<Vec<Element<'_>>>(key) {
            Ok(elements) if integer(&elements, 1) != Some(FEED) => of_tuple(&elements),
            Ok(_) | Err(_) => of_feed(key),
        };
        row.unwrap_or(Self::Unknown)
    }
}

/// The tenant and the shard in what stands before a versionstamp.
pub(crate) fn feed_prefix(prefix: &[u8]) -> Option<(TenantId, u16)> {
    let elements: Vec<Element<'_>> = unpack(prefix).ok()?;
    let [Element::String(tenant), Element::Int(FEED), Element::Int(shard)] = elements.as_slice()
    else {
        return None;
    };
    Some((TenantId::new(tenant.as_ref()).ok()?, u16::try_from(*shard).ok()?))
}

/// The tenant and the cube whose keys a range begins with, where it is a range within one cube.
pub(crate) fn range_start(start: &[u8]) -> Option<(TenantId, CubeId)> {
    // A range below a tuple starts at the tuple and a zero byte, which reads as one more element.
    let elements: Vec<Element<'_>> = unpack(start).ok()?;
    let [
        Element::String(tenant),
        Element::Int(MANIFEST..=REQUEST | TAIL..=CONTEXT),
        Element::String(cube),
        ..,
    ] = elements.as_slice()
    else {
        return None;
    };
    Some((TenantId::new(tenant.as_ref()).ok()?, CubeId::new(cube.as_ref()).ok()?))
}

fn of_tuple(elements: &[Element<'_>]) -> Option<RowKey> {
    let kind = integer(elements, 1)?;
    if text(elements, 0)?.is_empty() {
        return match kind {
            API_KEY => Some(RowKey::ApiKey),
            NODE => Some(RowKey::Node),
            FEED_POINTER | FEED_DOORBELL => Some(RowKey::News),
            SCHEMA_GATE => Some(RowKey::SchemaGate),
            _ => None,
        };
    }
    let tenant = TenantId::new(text(elements, 0)?).ok()?;
    match kind {
        FEED_FLOOR | FEED_CURSOR => {
            let shard = u16::try_from(integer(elements, 2)?).ok()?;
            return Some(RowKey::FeedMark { tenant, shard });
        }
        PREDICTOR if elements.len() == 2 => return Some(RowKey::Predictor { tenant }),
        BLOB => return Some(RowKey::Blob { tenant, id: blob_id(elements, 2)? }),
        BLOB_REFERENCE => {
            let cube = CubeId::new(text(elements, 3)?).ok()?;
            return Some(RowKey::BlobReference { tenant, id: blob_id(elements, 2)?, cube });
        }
        _ => {}
    }
    let cube = CubeId::new(text(elements, 2)?).ok()?;
    match (kind, elements.len()) {
        (MANIFEST, 3) => Some(RowKey::Manifest { tenant, cube }),
        (RESTORING, 3) => Some(RowKey::Restoring { tenant, cube }),
        (OWNERSHIP, 3) => Some(RowKey::Ownership { tenant, cube }),
        (ITEM, 4) => Some(RowKey::Item { tenant, cube, id: memory_id(elements, 3)? }),
        (HISTORY, 5) => {
            let revision = u32::try_from(integer(elements, 4)?).ok()?;
            Some(RowKey::History { tenant, cube, id: memory_id(elements, 3)?, revision })
        }
        (VECTOR, 5) => {
            let model = ModelId::new(text(elements, 3)?).ok()?;
            Some(RowKey::Vector { tenant, cube, model, id: memory_id(elements, 4)? })
        }
        (TAIL, 4) => {
            let version = Version(u64::try_from(integer(elements, 3)?).ok()?);
            Some(RowKey::Tail { tenant, cube, version })
        }
        (KV_BLOCK, 4) => {
            let Element::Bytes(bytes) = elements.get(3)? else { return None };
            let block = BlockKey(bytes.as_ref().try_into().ok()?);
            Some(RowKey::KvBlock { tenant, cube, block })
        }
        (CONTEXT, 4) => {
            let conversation = ConversationId::new(text(elements, 3)?).ok()?;
            Some(RowKey::Context { tenant, cube, conversation })
        }
        (REQUEST, 4) => {
            let request = RequestId::new(text(elements, 3)?).ok()?;
            Some(RowKey::Request { tenant, cube, request })
        }
        _ => None,
    }
}

fn of_feed(key: &[u8]) -> Option<RowKey> {
    let (prefix, stamp) = key.split_at_checked(key.len().checked_sub(STAMP_BYTES)?)?;
    let (tenant, shard) = feed_prefix(prefix)?;
    let (version, position) = stamp.split_at(STAMP_BYTES - 4);
    let version = Version(u64::from_be_bytes(version.try_into().ok()?));
    let position = u32::from_be_bytes(position.try_into().ok()?);
    Some(RowKey::Feed { tenant, shard, version, position })
}

fn text<'a>(elements: &'a [Element<'_>], index: usize) -> Option<&'a str> {
    if let Element::String(text) = elements.get(index)? { Some(text.as_ref()) } else { None }
}

fn integer(elements: &[Element<'_>], index: usize) -> Option<i64> {
    if let Element::Int(number) = elements.get(index)? { Some(*number) } else { None }
}

fn blob_id(elements: &[Element<'_>], index: usize) -> Option<BlobId> {
    let Element::Bytes(bytes) = elements.get(index)? else { return None };
    Some(BlobId(bytes.as_ref().try_into().ok()?))
}

fn memory_id(elements: &[Element<'_>], index: usize) -> Option<MemoryId> {
    let Element::Bytes(bytes) = elements.get(index)? else { return None };
    Some(MemoryId::from_bytes(bytes.as_ref().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use memcube_actors::storage::versionstamped_key;
    use memcube_schemas::{NodeId, keys};

    use super::*;

    fn names() -> (TenantId, CubeId) {
        (TenantId::new("acme").expect("valid"), CubeId::new("ann / ö").expect("valid"))
    }

    #[test]
    fn every_key_builder_parses_back() {
        let (tenant, cube) = names();
        let id = MemoryId::from_parts(0, 0);
        let model = ModelId::new("scripted-32").expect("valid");
        let request = RequestId::new("again").expect("valid");
        let (t, c) = (&tenant, &cube);
        let both = || (tenant.clone(), cube.clone());
        let ((t1, c1), (t2, c2), (t3, c3)) = (both(), both(), both());
        let ((t4, c4), (t5, c5), (t6, c6)) = (both(), both(), both());
        let blob = BlobId([0; 32]);
        let talk = ConversationId::new("talk").expect("valid");
        let cases = [
            (keys::feed_pointer(t, 3), RowKey::News),
            (keys::feed_doorbell(3), RowKey::News),
            (keys::schema_gate(), RowKey::SchemaGate),
            (keys::feed_floor(t, 3), RowKey::FeedMark { tenant: tenant.clone(), shard: 3 }),
            (keys::feed_cursor(t, 3, "x"), RowKey::FeedMark { tenant: tenant.clone(), shard: 3 }),
            (keys::blob(t, blob), RowKey::Blob { tenant: tenant.clone(), id: blob }),
            (
                keys::blob_reference(t, blob, c, "snapshot"),
                RowKey::BlobReference { tenant: tenant.clone(), id: blob, cube: cube.clone() },
            ),
            (
                keys::tail(t, c, Version(7)),
                RowKey::Tail { tenant: tenant.clone(), cube: cube.clone(), version: Version(7) },
            ),
            (
                keys::restoring(t, c),
                RowKey::Restoring { tenant: tenant.clone(), cube: cube.clone() },
            ),
            (keys::node(&NodeId::new("n1").expect("valid")), RowKey::Node),
            (keys::api_key(&[0; 32]), RowKey::ApiKey),
            (keys::manifest(t, c), RowKey::Manifest { tenant: t1, cube: c1 }),
            (keys::ownership(t, c), RowKey::Ownership { tenant: t2, cube: c2 }),
            (keys::item(t, c, id), RowKey::Item { tenant: t3, cube: c3, id }),
            (keys::history(t, c, id, 3), RowKey::History { tenant: t4, cube: c4, id, revision: 3 }),
            (
                keys::vector(t, c, &model, id),
                RowKey::Vector { tenant: t5, cube: c5, model: model.clone(), id },
            ),
            (
                keys::request(t, c, &request),
                RowKey::Request { tenant: t6, cube: c6, request: request.clone() },
            ),
            (
                keys::kv_block(t, c, BlockKey([7; 32])),
                RowKey::KvBlock {
                    tenant: tenant.clone(),
                    cube: cube.clone(),
                    block: BlockKey([7; 32]),
                },
            ),
            (
                keys::context(t, c, &talk),
                RowKey::Context { tenant: tenant.clone(), cube: cube.clone(), conversation: talk },
            ),
            (keys::predictor(t), RowKey::Predictor { tenant: tenant.clone() }),
            (b"something else".to_vec(), RowKey::Unknown),
            (Vec::new(), RowKey::Unknown),
        ];
        for (key, row) in cases {
            assert_eq!(RowKey::parse(&key), row);
        }
    }

    #[test]
    fn feed_keys_parse_whatever_their_stamp_looks_like() {
        let (tenant, _) = names();
        let stamps = [0, 1, 0x1415, 0x0200_0102, 0x1515_1515_1515_1515, u64::MAX];
        for (shard, version) in (0..keys::FEED_SHARDS).flat_map(|s| stamps.map(|v| (s, v))) {
            let prefix = keys::feed_prefix(&tenant, shard);
            assert_eq!(feed_prefix(&prefix), Some((tenant.clone(), shard)));
            for position in [0, 0x14, 0x1501] {
                let key = versionstamped_key(&prefix, Version(version), position);
                let position = u32::try_from(position).expect("small");
                let (tenant, version) = (tenant.clone(), Version(version));
                assert_eq!(RowKey::parse(&key), RowKey::Feed { tenant, shard, version, position });
            }
        }
    }

    #[test]
    fn the_ranges_of_a_cube_name_it() {
        let (tenant, cube) = names();
        for range in keys::everything_of_cube(&tenant, &cube) {
            assert_eq!(range_start(&range.start), Some((tenant.clone(), cube.clone())));
        }
        let purged = keys::history_of_item(&tenant, &cube, MemoryId::from_parts(1, 2));
        assert_eq!(range_start(&purged.start), Some((tenant, cube)));
        assert_eq!(range_start(&keys::nodes().start), None);
    }
}
