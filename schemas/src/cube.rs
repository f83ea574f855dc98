//! The cube itself: one version over all it holds.

use rkyv::{
    Archive, Deserialize, Serialize,
    rancor::{self, Source},
};

use crate::{
    blob::BlobId,
    codec::Stored,
    ids::{CubeId, Epoch, Incarnation, MemoryId, ModelId, NodeId, UserId, Version},
};

/// What a cube is, apart from its items. Stored under `keys::manifest`, rewritten by every commit.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CubeManifest {
    /// Its identifier.
    pub id: CubeId,
    /// A name for people.
    pub name: String,
    /// Whom it belongs to.
    pub owner: Option<UserId>,
    /// When it was made: Unix milliseconds.
    pub created_at_ms: i64,
    /// When it was last changed: Unix milliseconds.
    pub updated_at_ms: i64,
    /// Grows with every commit.
    pub version: Version,
    /// Items it holds, whatever their status.
    pub items: u64,
    /// The model whose vectors lie beside the items; `None` while there are none.
    pub embedder: Option<ModelId>,
    /// The newest snapshot. What changed since lies under `keys::tails`.
    pub snapshot: Option<SnapshotRef>,
}

impl Stored for CubeManifest {
    const NAME: &'static str = "cube manifest";
    const KIND: u8 = 4;
    const FORMAT: u8 = 2;

    fn decode_former(format: u8, payload: &[u8]) -> Option<Result<Self, rancor::Error>> {
        (format == 1).then(|| rkyv::from_bytes::<CubeManifestV1, _>(payload).map(Self::from))
    }
}

/// A snapshot of a cube: a blob that holds all its items as they were at a version. Derived; the
/// rows are the truth.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// Where it lies.
    pub blob: BlobId,
    /// The version of the cube that it stands for.
    pub version: Version,
}

/// As 0.1.0 and 0.2.0 wrote it: without snapshots.
#[derive(Archive, Serialize, Deserialize)]
struct CubeManifestV1 {
    id: CubeId,
    name: String,
    owner: Option<UserId>,
    created_at_ms: i64,
    updated_at_ms: i64,
    version: Version,
    items: u64,
    embedder: Option<ModelId>,
}

impl From<CubeManifestV1> for CubeManifest {
    fn from(former: CubeManifestV1) -> Self {
        let CubeManifestV1 {
            id,
            name,
            owner,
            created_at_ms,
            updated_at_ms,
            version,
            items,
            embedder,
        } = former;
        Self {
            id,
            name,
            owner,
            created_at_ms,
            updated_at_ms,
            version,
            items,
            embedder,
            snapshot: None,
        }
    }
}

/// Who owns a cube. Stored under `keys::ownership`, written only on claim and hand-off.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Ownership {
    /// The term; every claim and every hand-over raises it.
    pub epoch: Epoch,
    /// The node that holds it.
    pub node: NodeId,
    /// The life of that node in which it does.
    pub incarnation: Incarnation,
}

impl Stored for Ownership {
    const NAME: &'static str = "cube ownership";
    const KIND: u8 = 5;
    const FORMAT: u8 = 2;

    fn decode_former(format: u8, payload: &[u8]) -> Option<Result<Self, rancor::Error>> {
        (format == 1).then(|| {
            let OwnershipV1 { epoch, node } = rkyv::from_bytes(payload)?;
            let node = NodeId::new(node).map_err(rancor::Error::new)?;
            Ok(Self { epoch, node, incarnation: Incarnation::default() })
        })
    }
}

/// How 0.1.0 wrote it: one node, so that nobody asked which life of it.
#[derive(Archive, Serialize, Deserialize)]
struct OwnershipV1 {
    epoch: Epoch,
    node: String,
}

/// An API key as it is stored: never the key, only what its hash unlocks. See `keys::api_key`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ApiKeyRecord {
    /// The tenant it speaks for.
    pub tenant: crate::ids::TenantId,
    /// A name for people, shown in histories.
    pub name: String,
    /// When it was made: Unix milliseconds.
    pub created_at_ms: i64,
}

impl Stored for ApiKeyRecord {
    const NAME: &'static str = "API key record";
    const KIND: u8 = 6;
    const FORMAT: u8 = 1;
}

/// The outcome of a request that carried an idempotency key. See `keys::request`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Identifies what was asked, so that a reused key with another request is refused.
    pub fingerprint: u64,
    /// For each draft, in order: the item that holds it, and whether it was folded into a known
    /// one. While an add goes on that is too large for one commit, those of its parts so far.
    pub added: Vec<(MemoryId, bool)>,
    /// The cube's version after it.
    pub version: Version,
}

impl Stored for RequestRecord {
    const NAME: &'static str = "request record";
    const KIND: u8 = 7;
    const FORMAT: u8 = 1;
}
