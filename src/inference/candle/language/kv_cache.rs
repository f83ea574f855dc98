//! The key-value cache of one sequence: pages of 256 tokens in 16-bit floats. The last page has
//! room for no more than the next multiple of 32 tokens, and grows.
//!
//! Clones of a cache share its pages; whoever appends to a shared page copies it first.
//!
//! Layout of a layer in a whole page, for each key-value head: the keys, rotated to their
//! positions, as panels of 32 tokens (`[8][head_dim][32]`), then the values (`[256][head_dim]`).
//! Outside of a cache a span that is a whole page has the same layout, and is not copied; a layer
//! of n other tokens is, for each head, keys `[head_dim][n]` and values `[n][head_dim]`, so that a
//! span may begin and end anywhere and is still moved in long runs.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use candle_core::Device;

use super::device_cache::DeviceCache;
use super::page::{Page, bytes_of, bytes_of_halves, halves_of};
use crate::inference::candle::simd::PANEL;

/// Tokens of a page; a pass over more is cut where pages end.
pub const KV_PAGE_TOKENS: usize = 256;
/// Names the layout of exported bytes and its version.
pub const KV_LAYOUT: &str = "k[head,dim,token] v[head,token,dim], whole pages k[head,8,dim,32] v2";

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
    /// Bytes of one token in all layers.
    pub fn token_bytes(&self) -> usize {
        self.layers * self.layer_bytes(1)
    }

    /// Bytes of one layer of so many tokens.
    pub fn layer_bytes(&self, tokens: usize) -> usize {
        2 * self.heads * self.head_dim * tokens * size_of::<u16>()
    }

    /// Halves of one head of a layer with room for so many tokens.
    pub(super) fn head_halves(&self, tokens: usize) -> usize {
        2 * tokens * self.head_dim
    }
}

/// Why a cache refused what it was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvError {
    /// A layer has the wrong number of bytes.
    WrongSize { layer: usize, expected: usize, found: usize },
    /// The number of layers is not the model's.
    WrongLayers { expected: usize, found: usize },
    /// The cache does not hold the span.
    OutOfRange { end: usize, len_tokens: usize },
    /// The device failed.
    Device(String),
}

impl fmt::Display for KvError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongSize { layer, expected, found } => {
                write!(
                    out,
                    "layer {layer} of the keys and values has {found} bytes, not {expected}"
                )
            }
            Self::WrongLayers { expected, found } => {
                write!(out, "the keys and values have {found} layers, expected {expected}")
            }
            Self::OutOfRange { end, len_tokens } => {
                write!(out, "a span up to {end} in a cache of {len_tokens} tokens")
            }
            Self::Device(message) => write!(out, "the device failed: {message}"),
        }
    }
}

impl std::error::Error for KvError {}

/// Keys and values of the tokens a model has seen; owned by the caller, passed to each pass.
#[derive(Clone)]
pub struct KvCache {
    shape: KvShape,
    pub(super) store: Store,
    len: usize,
}

#[derive(Clone)]
pub(super) enum Store {
    /// Memory of this machine.
    Pages(Vec<Arc<Page>>),
    /// Tensors on a device.
    Device(DeviceCache),
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
        Self { shape, store: Store::Pages(Vec::new()), len: 0 }
    }

    /// An empty cache on a device.
    pub(super) fn on_device(shape: KvShape, device: &Device) -> Self {
        let store = Store::Device(DeviceCache::new(shape.layers, device));
        Self { shape, store, len: 0 }
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

    /// Bytes in memory, shared pages included.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::Pages(pages) => {
                let room: usize = pages.iter().map(|page| page.room(&self.shape)).sum();
                room * self.shape.token_bytes()
            }
            Store::Device(_) => self.len * self.shape.token_bytes(),
        }
    }

    /// Forgets all but the first `len_tokens` tokens.
    pub fn truncate(&mut self, len_tokens: usize) {
        self.len = self.len.min(len_tokens);
        if let Store::Pages(pages) = &mut self.store {
            pages.truncate(self.len.div_ceil(KV_PAGE_TOKENS));
        }
    }

    /// One layer of a span, little endian. A whole page is shared, everything else copied.
    ///
    /// # Errors
    /// When the cache does not hold the span.
    pub fn export_layer(&self, layer: usize, span: Range<usize>) -> Result<Bytes, KvError> {
        if span.end > self.len || span.start > span.end {
            return Err(KvError::OutOfRange { end: span.end, len_tokens: self.len });
        }
        let is_page = is_page(span.start, span.len());
        let halves = match &self.store {
            Store::Pages(pages) if is_page => {
                return Ok(bytes_of(&pages[span.start / KV_PAGE_TOKENS], layer));
            }
            Store::Pages(pages) => self.shape.gather(pages, layer, &span),
            Store::Device(device) => {
                let halves = device.export(layer, &span).map_err(|error| failed(&error))?;
                if is_page { self.shape.as_page(&halves) } else { halves }
            }
        };
        Ok(Bytes::from(bytes_of_halves(&halves)))
    }

    /// Appends tokens by the bytes of their layers, which another cache gave for the same
    /// positions after the same tokens. A whole page is shared with the bytes.
    ///
    /// # Errors
    /// When number or size of the layers do not fit; the cache is as it was.
    pub fn import(&mut self, tokens: usize, layers: &[Bytes]) -> Result<(), KvError> {
        if layers.len() != self.shape.layers {
            return Err(KvError::WrongLayers { expected: self.shape.layers, found: layers.len() });
        }
        let expected = self.shape.layer_bytes(tokens);
        let wrong = |(layer, bytes): (usize, &Bytes)| {
            let found = bytes.len();
            (found != expected).then_some(KvError::WrongSize { layer, expected, found })
        };
        if let Some(error) = layers.iter().enumerate().find_map(wrong) {
            return Err(error);
        }
        let is_page = is_page(self.len, tokens);
        match &mut self.store {
            Store::Pages(pages) if is_page => {
                // What a cancelled pass left behind the end goes.
                pages.truncate(self.len / KV_PAGE_TOKENS);
                pages.push(Arc::new(Page::of(layers)));
            }
            Store::Pages(pages) => {
                let span = self.len..self.len + tokens;
                for (index, slots, offset) in parts_of(&span) {
                    let part = Part { shape: &self.shape, slots, offset, tokens };
                    let page = page_mut(pages, &self.shape, index, part.slots.end);
                    part.scatter(page, layers);
                }
            }
            Store::Device(device) => {
                for (layer, bytes) in layers.iter().enumerate() {
                    let halves = halves_of(bytes);
                    let halves = if is_page { self.shape.as_span(&halves) } else { halves };
                    let imported = device.import(&self.shape, layer, self.len, halves);
                    imported.map_err(|error| failed(&error))?;
                }
            }
        }
        self.len += tokens;
        Ok(())
    }

    /// The whole pages before the next token, and the page that it and some more go to, which
    /// nobody shares; nothing when the cache is on a device.
    pub(super) fn open_page(&mut self, tokens: usize) -> Option<(&[Arc<Page>], &mut Page)> {
        let Store::Pages(pages) = &mut self.store else { return None };
        let (index, slot) = (self.len / KV_PAGE_TOKENS, self.len % KV_PAGE_TOKENS);
        page_mut(pages, &self.shape, index, slot + tokens);
        let (past, rest) = pages.split_at_mut(index);
        Some((past, Arc::make_mut(&mut rest[0])))
    }

    /// The part on the device.
    pub(super) fn device_mut(&mut self) -> candle_core::Result<&mut DeviceCache> {
        match &mut self.store {
            Store::Device(device) => Ok(device),
            Store::Pages(_) => candle_core::bail!("the cache is not on a device"),
        }
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

fn failed(error: &candle_core::Error) -> KvError {
    KvError::Device(error.to_string())
}

/// A page that nobody shares, with room for so many tokens.
fn page_mut<'a>(
    pages: &'a mut Vec<Arc<Page>>,
    shape: &KvShape,
    index: usize,
    tokens: usize,
) -> &'a mut Page {
    let room = tokens.next_multiple_of(PANEL);
    if index == pages.len() {
        pages.push(Arc::new(Page::zeroed(shape, room)));
    } else if pages[index].room(shape) < room {
        pages[index] = Arc::new(pages[index].with_room(shape, room));
    }
    Arc::make_mut(&mut pages[index])
}

/// Whether tokens from a position on are exactly a page.
fn is_page(start: usize, tokens: usize) -> bool {
    start.is_multiple_of(KV_PAGE_TOKENS) && tokens == KV_PAGE_TOKENS
}

impl KvShape {
    /// Copies a span of a layer out of pages.
    fn gather(&self, pages: &[Arc<Page>], layer: usize, span: &Range<usize>) -> Vec<u16> {
        let mut halves = vec![0u16; self.layer_bytes(span.len()) / size_of::<u16>()];
        for (page, slots, offset) in parts_of(span) {
            let part = Part { shape: self, slots, offset, tokens: span.len() };
            let room = pages[page].room(self);
            let page = pages[page].layer(layer);
            part.runs(room, |inside, outside, len| {
                halves[outside..outside + len].copy_from_slice(&page[inside..inside + len]);
            });
        }
        halves
    }

    /// A layer of tokens that begin where a page does, in the layout of spans, from what a cache
    /// exported.
    pub(super) fn span_of(&self, tokens: usize, exported: &Bytes) -> Bytes {
        if is_page(0, tokens) {
            Bytes::from(bytes_of_halves(&self.as_span(&halves_of(exported))))
        } else {
            exported.clone()
        }
    }

    /// A layer of tokens from a position on as a cache imports it, from the layout of spans.
    pub(super) fn importable(&self, start: usize, tokens: usize, span: Vec<u8>) -> Bytes {
        if is_page(start, tokens) {
            Bytes::from(bytes_of_halves(&self.as_page(&halves_of(&span))))
        } else {
            Bytes::from(span)
        }
    }

    fn whole_page(&self) -> Part<'_> {
        Part { shape: self, slots: 0..KV_PAGE_TOKENS, offset: 0, tokens: KV_PAGE_TOKENS }
    }

    /// A layer of a whole page in the layout of pages, from that of spans.
    fn as_page(&self, span: &[u16]) -> Vec<u16> {
        let mut page = vec![0; span.len()];
        self.whole_page().runs(KV_PAGE_TOKENS, |inside, outside, len| {
            page[inside..inside + len].copy_from_slice(&span[outside..outside + len]);
        });
        page
    }

    /// The other way round.
    fn as_span(&self, page: &[u16]) -> Vec<u16> {
        let mut span = vec![0; page.len()];
        self.whole_page().runs(KV_PAGE_TOKENS, |inside, outside, len| {
            span[outside..outside + len].copy_from_slice(&page[inside..inside + len]);
        });
        span
    }
}

/// The pages of a span, with the slots in each and how far into the span they begin.
fn parts_of(span: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, usize)> {
    let span = span.clone();
    let pages = span.start / KV_PAGE_TOKENS..span.end.div_ceil(KV_PAGE_TOKENS);
    pages.map(move |page| {
        let begin = page * KV_PAGE_TOKENS;
        let start = span.start.max(begin);
        let end = span.end.min(begin + KV_PAGE_TOKENS);
        (page, start - begin..end - begin, start - span.start)
    })
}

/// What a span and a page have in common.
struct Part<'a> {
    shape: &'a KvShape,
    slots: Range<usize>,
    /// Tokens of the span before the part.
    offset: usize,
    /// Tokens of the whole span.
    tokens: usize,
}

impl Part<'_> {
    /// Copies the part from the bytes of the span's layers into a page.
    fn scatter(&self, page: &mut Page, layers: &[Bytes]) {
        let room = page.room(self.shape);
        for (page, bytes) in page.layers_mut().zip(layers) {
            self.runs(room, |inside, outside, len| {
                let bytes = bytes[2 * outside..2 * (outside + len)].chunks_exact(2);
                for (half, bytes) in page[inside..inside + len].iter_mut().zip(bytes) {
                    *half = u16::from_le_bytes([bytes[0], bytes[1]]);
                }
            });
        }
    }

    /// Calls `copy` with where each run lies in a page with so much room, and in the span, and how
    /// long it is.
    fn runs(&self, room: usize, mut copy: impl FnMut(usize, usize, usize)) {
        let dim = self.shape.head_dim;
        for head in 0..self.shape.heads {
            let (page_keys, span_keys) =
                (head * self.shape.head_halves(room), head * 2 * self.tokens * dim);
            let mut slot = self.slots.start;
            while slot < self.slots.end {
                let len = (PANEL - slot % PANEL).min(self.slots.end - slot);
                let from = self.offset + slot - self.slots.start;
                for at in 0..dim {
                    let inside = slot / PANEL * PANEL * dim + at * PANEL + slot % PANEL;
                    copy(page_keys + inside, span_keys + at * self.tokens + from, len);
                }
                slot += len;
            }
            let inside = page_keys + (room + self.slots.start) * dim;
            let outside = span_keys + (self.tokens + self.offset) * dim;
            copy(inside, outside, self.slots.len() * dim);
        }
    }
}

/// One head's keys and values in a layer of a page.
pub(super) struct HeadView<'a> {
    pub(super) keys: &'a [u16],
    pub(super) values: &'a [u16],
}

pub(super) fn head_of<'a>(layer: &'a [u16], shape: &KvShape, head: usize) -> HeadView<'a> {
    let halves = layer.len() / shape.heads;
    let (keys, values) = layer[head * halves..][..halves].split_at(halves / 2);
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
    let halves = layer.len() / shape.heads;
    let (keys, values) = layer[head * halves..][..halves].split_at_mut(halves / 2);
    let panel = &mut keys[slot / PANEL * PANEL * dim..][..PANEL * dim];
    for (step, half) in panel.chunks_exact_mut(PANEL).zip(key) {
        step[slot % PANEL] = *half;
    }
    values[slot * dim..][..dim].copy_from_slice(value);
}
