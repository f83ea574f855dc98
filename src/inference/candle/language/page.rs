//! Pages of a cache. A whole page outside of a cache has the layout that it has inside, so that it
//! is handed in and out without a copy; whoever writes to what is shared copies it first.

use std::sync::Arc;

use bytes::Bytes;

use super::kv_cache::KvShape;

/// The halves of one layer.
#[derive(Clone)]
enum Halves {
    Own(Vec<u16>),
    /// Aligned, little endian, on a machine that is.
    Shared(Bytes),
}

impl Halves {
    fn of(bytes: Bytes) -> Self {
        let is_native = cfg!(target_endian = "little");
        if is_native && bytemuck::try_cast_slice::<u8, u16>(&bytes).is_ok() {
            Self::Shared(bytes)
        } else {
            Self::Own(halves_of(&bytes))
        }
    }

    fn as_slice(&self) -> &[u16] {
        match self {
            Self::Own(halves) => halves,
            Self::Shared(bytes) => bytemuck::cast_slice(bytes),
        }
    }

    fn own(&mut self) -> &mut [u16] {
        if let Self::Shared(_) = self {
            *self = Self::Own(self.as_slice().to_vec());
        }
        match self {
            Self::Own(halves) => halves,
            // Not reached: it was made its own above.
            Self::Shared(_) => &mut [],
        }
    }
}

#[derive(Clone)]
pub(super) struct Page {
    layers: Vec<Halves>,
}

impl Page {
    /// A page with room for so many tokens.
    pub(super) fn zeroed(shape: &KvShape, tokens: usize) -> Self {
        let layer = |_| Halves::Own(vec![0; shape.heads * shape.head_halves(tokens)]);
        Self { layers: (0..shape.layers).map(layer).collect() }
    }

    /// A copy with room for more tokens.
    pub(super) fn with_room(&self, shape: &KvShape, tokens: usize) -> Self {
        let mut page = Self::zeroed(shape, tokens);
        // Keys and values of each head are a run of their own, which goes on behind its end.
        let (from, to) = (self.room(shape) * shape.head_dim, tokens * shape.head_dim);
        for (layer, larger) in page.layers_mut().enumerate() {
            let runs = self.layer(layer).chunks_exact(from);
            for (run, larger) in runs.zip(larger.chunks_exact_mut(to)) {
                larger[..from].copy_from_slice(run);
            }
        }
        page
    }

    /// Tokens that it has room for.
    pub(super) fn room(&self, shape: &KvShape) -> usize {
        let halves = self.layers.first().map_or(0, |layer| layer.as_slice().len());
        halves / (shape.heads * shape.head_halves(1))
    }

    /// A page of the bytes of its layers, in the layout of pages.
    pub(super) fn of(layers: &[Bytes]) -> Self {
        Self { layers: layers.iter().cloned().map(Halves::of).collect() }
    }

    pub(super) fn layer(&self, layer: usize) -> &[u16] {
        self.layers[layer].as_slice()
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut [u16]> {
        self.layers.iter_mut().map(Halves::own)
    }
}

/// The bytes of one layer of a page, little endian.
pub(super) fn bytes_of(page: &Arc<Page>, layer: usize) -> Bytes {
    match &page.layers[layer] {
        Halves::Shared(bytes) => bytes.clone(),
        Halves::Own(_) if cfg!(target_endian = "little") => {
            Bytes::from_owner(Lent { page: Arc::clone(page), layer })
        }
        Halves::Own(halves) => Bytes::from(bytes_of_halves(halves)),
    }
}

/// Keeps a page alive whose layer somebody reads.
struct Lent {
    page: Arc<Page>,
    layer: usize,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.page.layer(self.layer))
    }
}

pub(super) fn halves_of(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half)).collect()
}

pub(super) fn bytes_of_halves(halves: &[u16]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shared_until_somebody_writes() {
        let shape = KvShape { layers: 2, heads: 1, head_dim: 32 };
        let mut page = Page::zeroed(&shape, 256);
        page.layers_mut().enumerate().for_each(|(at, layer)| layer.fill(at as u16 + 7));
        let page = Arc::new(page);
        let bytes: Vec<Bytes> = (0..2).map(|layer| bytes_of(&page, layer)).collect();
        assert_eq!(bytes[1].as_ptr(), page.layer(1).as_ptr().cast());
        let mut copy = Arc::new(Page::of(&bytes));
        assert_eq!(copy.layer(1).as_ptr(), page.layer(1).as_ptr());
        assert_eq!(bytes_of(&copy, 0).as_ptr(), bytes[0].as_ptr());
        Arc::make_mut(&mut copy).layers_mut().for_each(|layer| layer.fill(1));
        assert_eq!((page.layer(1)[0], copy.layer(1)[0]), (8, 1));
        let larger = Page::zeroed(&shape, 32).with_room(&shape, 64);
        assert_eq!((larger.room(&shape), page.room(&shape)), (64, 256));
        // At an odd address nothing can be read in place.
        let odd = [vec![0_u8], bytes[1].to_vec()].concat();
        let odd = Bytes::from(odd).slice(1..);
        let moved = Page::of(&[bytes[0].clone(), odd]);
        assert_eq!(moved.layer(1), page.layer(1));
    }
}
