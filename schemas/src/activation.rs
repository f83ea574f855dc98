//! Activation memory: keys and values that a language model computed for a prefix of tokens, and
//! the append-only contexts that such prefixes come from.
//!
//! A block is named by everything that its bytes depend on, so that a block of another model, span,
//! text or tenant is never found by mistake. Its row names the memories whose text it contains:
//! deleting or changing one of them clears the row, and those of all blocks behind it, in the same
//! transaction. So does deleting a memory of what was said in its conversation.

use std::{fmt, str::FromStr};

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    blob::BlobId,
    codec::Stored,
    conversation::Role,
    ids::{ConversationId, MemoryId, ModelId},
};

/// Names a block by its content: a SHA-256 over its parent, its tokens, the model and the tenant.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub struct BlockKey(pub [u8; 32]);

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for BlockKey {
    type Err = crate::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        crate::ids::from_hex(text).map(Self).ok_or_else(|| crate::ids::InvalidId {
            what: "block key",
            reason: format!("`{text}` is not 64 hexadecimal digits"),
        })
    }
}

/// How the numbers of a block are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
#[rkyv(compare(PartialEq))]
pub enum KvDtype {
    /// 32 bits, little endian.
    F32,
    /// 16 bits, IEEE 754, little endian.
    F16,
    /// The upper 16 bits of a 32-bit number, little endian.
    Bf16,
    /// 8 bits a number and one 32-bit scale for 32 numbers: for cold tiers, not exact.
    Q8,
}

impl KvDtype {
    /// The name in logs and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }
}

/// Everything about a model that its keys and values depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub struct ModelFingerprint {
    /// The model with its exact weights, such as `smollm2-135m-instruct@1f3a77c0`.
    pub model: ModelId,
    /// SHA-256 of the tokenizer: equal token ids mean equal texts only under one tokenizer.
    pub tokenizer: [u8; 32],
    /// SHA-256 of the adapter on top of the weights, if there is one.
    pub adapter: Option<[u8; 32]>,
    /// How positions are encoded, such as `interleaved base=100000`.
    pub rope: String,
    /// How the engine holds the numbers while it computes.
    pub dtype: KvDtype,
    /// What lies where in a layer, with a version, such as `k,v [3,tokens,64] v1 x30`.
    pub layout: String,
}

/// A memory as it was when its text went into a context.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub struct BlockSource {
    /// Which memory.
    pub id: MemoryId,
    /// Its revision then.
    pub revision: u32,
}

/// One stored block. Derived: without it, its tokens are computed again.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct KvBlock {
    /// Its name.
    pub key: BlockKey,
    /// The block before it; `None` at the start of a context.
    pub parent: Option<BlockKey>,
    /// The position of its first token.
    pub start: u32,
    /// Its tokens.
    pub tokens: u32,
    /// Which model computed it.
    pub model: ModelFingerprint,
    /// How its numbers are stored, which need not be how the engine holds them.
    pub dtype: KvDtype,
    /// Bytes of its numbers, as stored.
    pub bytes: u64,
    /// CRC-32C of every layer, as stored.
    pub checksums: Vec<u32>,
    /// The memories whose text it contains. What stands before it is in the rows of its ancestors.
    pub sources: Vec<BlockSource>,
    /// The conversation whose turns it contains, or stands behind.
    pub conversation: Option<ConversationId>,
    /// Where its numbers lie.
    pub blob: BlobId,
    /// When it was stored: Unix milliseconds.
    pub stored_at_ms: i64,
}

impl Stored for KvBlock {
    const NAME: &'static str = "KV block";
    const KIND: u8 = 18;
    const FORMAT: u8 = 1;
}

/// What the numbers of a block lie in: the contents of its blob.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct KvBlockBytes {
    /// The block that it says it is.
    pub key: BlockKey,
    /// The position of its first token.
    pub start: u32,
    /// Its tokens.
    pub tokens: u32,
    /// How the numbers are stored.
    pub dtype: KvDtype,
    /// CRC-32C of every layer.
    pub checksums: Vec<u32>,
    /// The bytes of every layer.
    pub layers: Vec<Vec<u8>>,
}

impl Stored for KvBlockBytes {
    const NAME: &'static str = "KV block bytes";
    const KIND: u8 = 19;
    const FORMAT: u8 = 1;
}

/// Stands for a turn that has not come: see [`ContextMemory::wanted_at`].
pub const NEVER_WANTED: u32 = u32::MAX;

/// A memory in a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ContextMemory {
    /// Which, and as of which revision.
    pub source: BlockSource,
    /// Tokens that its text takes.
    pub tokens: u32,
    /// The number of the turn that last had a use for it; `NEVER_WANTED` for one that was computed
    /// ahead and that no turn had a use for so far.
    pub wanted_at: u32,
}

/// One part of an append-only context.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ContextSegment {
    /// Instructions, by the hash of their text.
    Preamble([u8; 16]),
    /// Memories, in the order in which they stand.
    Memories(Vec<ContextMemory>),
    /// Something that was said, by who said it and the hash of the text.
    Turn(Role, [u8; 16]),
}

/// The context of one conversation under one model: what the next prompt begins with.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ContextRecord {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Whose tokens are counted.
    pub model: ModelId,
    /// What stands where, from the start on.
    pub segments: Vec<ContextSegment>,
    /// So many of the first segments are computed as one run; behind them, every turn begins a
    /// block of its own, because it was computed when it was said.
    pub sealed: u32,
    /// Turns answered so far.
    pub turn: u32,
    /// Tokens of all segments.
    pub tokens: u32,
    /// When it was last used: Unix milliseconds.
    pub used_at_ms: i64,
}

impl ContextRecord {
    /// The memories that it contains, in order.
    pub fn memories(&self) -> impl Iterator<Item = &ContextMemory> {
        self.segments.iter().flat_map(|segment| match segment {
            ContextSegment::Memories(memories) => memories.as_slice(),
            ContextSegment::Preamble(_) | ContextSegment::Turn(..) => &[],
        })
    }

    /// The memories behind everything that was said, the last part first: they were computed ahead,
    /// and may go again.
    pub fn end(&self) -> impl Iterator<Item = &ContextMemory> {
        let sealed = usize::try_from(self.sealed).unwrap_or(usize::MAX);
        let open = self.segments.get(sealed..).unwrap_or_default();
        let end = open.iter().rev().map_while(|segment| match segment {
            ContextSegment::Memories(memories) => Some(memories.as_slice()),
            ContextSegment::Preamble(_) | ContextSegment::Turn(..) => None,
        });
        end.flatten()
    }
}

impl Stored for ContextRecord {
    const NAME: &'static str = "context record";
    const KIND: u8 = 20;
    const FORMAT: u8 = 1;
}
