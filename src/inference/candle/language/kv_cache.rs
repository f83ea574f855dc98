//! The key-value cache of one sequence: pages of 256 tokens that several caches may share.
//!
//! A page is immutable once it is shared; whoever appends to a shared page copies it first. So
//! taking a block out and putting it into another cache moves no bytes.
//!
//! Layout of a layer in a page, in 16-bit floats, for each key-value head: the keys, rotated to
//! their positions, as panels of 32 tokens (`[8][head_dim][32]`), then the values
//! (`[256][head_dim]`).

use std::fmt;
use std::sync::Arc;

use crate::inference::candle::simd::PANEL;

/// Tokens of a page, which is also the unit of export and import.
pub const KV_BLOCK_TOKENS: usize = 256;
/// Names the layout of a block's bytes; blocks of another layout must not be imported.
pub const KV_LAYOUT: &str = "key-panels-32/f16";

/// What the caches of one model hold for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub layers: usize,
    /// Key-value heads of a layer.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of one layer of a block.
    pub fn layer_bytes(&self) -> usize {
        self.layer_halves() * size_of::<u16>()
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }

    pub(super) fn layer_halves(&self) -> usize {
        self.heads * self.head_halves()
    }

    pub(super) fn head_halves(&self) -> usize {
        2 * KV_BLOCK_TOKENS * self.head_dim
    }
}

/// Why a cache refused what it was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvError {
    /// The block was made by a model of another shape.
    WrongShape { expected: KvShape, found: KvShape },
    /// A layer has the wrong number of bytes.
    WrongSize { layer: usize, expected: usize, found: usize },
    /// A block has the wrong number of layers.
    WrongLayers { expected: usize, found: usize },
    /// Blocks follow whole blocks only; the cache ends within one.
    Misaligned { len_tokens: usize },
    /// The cache has no such whole block.
    NoSuchBlock { index: usize, blocks: usize },
}

impl fmt::Display for KvError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongShape { expected, found } => {
                write!(out, "a key-value block of shape {found:?}, expected {expected:?}")
            }
            Self::WrongSize { layer, expected, found } => {
                write!(out, "layer {layer} of a key-value block has {found} bytes, not {expected}")
            }
            Self::WrongLayers { expected, found } => {
                write!(out, "a key-value block has {found} layers, expected {expected}")
            }
            Self::Misaligned { len_tokens } => {
                write!(out, "a key-value block cannot follow {len_tokens} tokens")
            }
            Self::NoSuchBlock { index, blocks } => {
                write!(out, "no key-value block {index}, the cache has {blocks}")
            }
        }
    }
}

impl std::error::Error for KvError {}

/// Keys and values of 256 tokens in all layers; clones share the memory.
#[derive(Clone)]
pub struct KvBlock {
    shape: KvShape,
    page: Arc<Page>,
}

#[derive(Clone)]
pub(super) struct Page {
    layers: Vec<Vec<u16>>,
}

impl Page {
    fn zeroed(shape: &KvShape) -> Self {
        Self { layers: (0..shape.layers).map(|_| vec![0; shape.layer_halves()]).collect() }
    }

    pub(super) fn layer(&self, layer: usize) -> &[u16] {
        &self.layers[layer]
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut [u16]> {
        self.layers.iter_mut().map(Vec::as_mut_slice)
    }
}

impl fmt::Debug for KvBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvBlock").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl KvBlock {
    /// Reads a block from the bytes of its layers, as [`KvBlock::layer`] gave them.
    ///
    /// # Errors
    /// When the number of layers or the size of one does not fit the shape.
    pub fn from_layers<'a>(
        shape: KvShape,
        layers: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, KvError> {
        let expected = shape.layer_bytes();
        let read = |(layer, bytes): (usize, &[u8])| {
            if bytes.len() != expected {
                return Err(KvError::WrongSize { layer, expected, found: bytes.len() });
            }
            Ok(halves_of(bytes))
        };
        let layers: Vec<Vec<u16>> =
            layers.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        if layers.len() != shape.layers {
            return Err(KvError::WrongLayers { expected: shape.layers, found: layers.len() });
        }
        Ok(Self { shape, page: Arc::new(Page { layers }) })
    }

    /// The shape of the model that made the block.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The bytes of one layer, in the order of this machine (little endian where memcube runs).
    pub fn layer(&self, layer: usize) -> &[u8] {
        bytemuck::cast_slice(self.page.layer(layer))
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.shape.block_bytes()
    }
}

fn halves_of(bytes: &[u8]) -> Vec<u16> {
    let mut halves = vec![0u16; bytes.len() / size_of::<u16>()];
    bytemuck::cast_slice_mut(&mut halves).copy_from_slice(bytes);
    halves
}

/// Keys and values of the tokens a model has seen; owned by the caller, passed to each pass.
#[derive(Clone)]
pub struct KvCache {
    shape: KvShape,
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache")
            .field("shape", &self.shape)
            .field("len_tokens", &self.len)
            .finish_non_exhaustive()
    }
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: KvShape) -> Self {
        Self { shape, pages: Vec::new(), len: 0 }
    }

    /// The shape of the model it belongs to.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Tokens whose keys and values it holds.
    pub fn len_tokens(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whole blocks it holds.
    pub fn blocks(&self) -> usize {
        self.len / KV_BLOCK_TOKENS
    }

    /// Bytes in memory, shared pages included.
    pub fn bytes(&self) -> usize {
        self.pages.len() * self.shape.block_bytes()
    }

    /// Forgets all but the first `len_tokens` tokens.
    pub fn truncate(&mut self, len_tokens: usize) {
        self.len = self.len.min(len_tokens);
        self.pages.truncate(self.len.div_ceil(KV_BLOCK_TOKENS));
    }

    /// Takes whole block `index`; the cache keeps it too, and no bytes are copied.
    ///
    /// # Errors
    /// When the cache has no such whole block.
    pub fn export_block(&self, index: usize) -> Result<KvBlock, KvError> {
        let blocks = self.blocks();
        if index >= blocks {
            return Err(KvError::NoSuchBlock { index, blocks });
        }
        Ok(KvBlock { shape: self.shape, page: Arc::clone(&self.pages[index]) })
    }

    /// Appends a block whose tokens came at just this position after just these tokens.
    ///
    /// # Errors
    /// When the block is of another shape, or the cache ends within a block.
    pub fn import_block(&mut self, block: &KvBlock) -> Result<(), KvError> {
        if block.shape != self.shape {
            return Err(KvError::WrongShape { expected: self.shape, found: block.shape });
        }
        if !self.len.is_multiple_of(KV_BLOCK_TOKENS) {
            return Err(KvError::Misaligned { len_tokens: self.len });
        }
        self.pages.push(Arc::clone(&block.page));
        self.len += KV_BLOCK_TOKENS;
        Ok(())
    }

    /// The whole pages before the next token, and the page it goes to, which nobody shares.
    pub(super) fn open_page(&mut self) -> (&[Arc<Page>], &mut Page) {
        let index = self.len / KV_BLOCK_TOKENS;
        if index == self.pages.len() {
            self.pages.push(Arc::new(Page::zeroed(&self.shape)));
        }
        let (past, rest) = self.pages.split_at_mut(index);
        (past, Arc::make_mut(&mut rest[0]))
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

/// One head's keys and values in a layer of a page.
pub(super) struct HeadView<'a> {
    pub(super) keys: &'a [u16],
    pub(super) values: &'a [u16],
}

pub(super) fn head_of<'a>(layer: &'a [u16], shape: &KvShape, head: usize) -> HeadView<'a> {
    let head = &layer[head * shape.head_halves()..][..shape.head_halves()];
    let (keys, values) = head.split_at(KV_BLOCK_TOKENS * shape.head_dim);
    HeadView { keys, values }
}

/// Stores key and value of one head for the token in `slot` of a page.
pub(super) fn store(
    layer: &mut [u16],
    shape: &KvShape,
    head: usize,
    slot: usize,
    key: &[u16],
    value: &[u16],
) {
    let dim = shape.head_dim;
    let head = &mut layer[head * shape.head_halves()..][..shape.head_halves()];
    let (keys, values) = head.split_at_mut(KV_BLOCK_TOKENS * dim);
    let panel = &mut keys[slot / PANEL * PANEL * dim..][..PANEL * dim];
    for (step, half) in panel.chunks_exact_mut(PANEL).zip(key) {
        step[slot % PANEL] = *half;
    }
    values[slot * dim..][..dim].copy_from_slice(value);
}
