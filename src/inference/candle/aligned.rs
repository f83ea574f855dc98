//! The buffers that kernels work on.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const CACHE_LINE: usize = 64;

/// Cache-line aligned, zero-initialised floats of fixed length.
pub(super) struct AlignedFloats {
    start: NonNull<f32>,
    len: usize,
}

// SAFETY: the buffer is owned and only reachable through `&self` / `&mut self`.
unsafe impl Send for AlignedFloats {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for AlignedFloats {}

impl AlignedFloats {
    pub(super) fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is never empty.
        let start = unsafe { alloc_zeroed(layout) }.cast::<f32>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    pub(super) fn copied(values: &[f32]) -> Self {
        let mut copy = Self::zeroed(values.len());
        copy.copy_from_slice(values);
        copy
    }

    fn layout(len: usize) -> Layout {
        let bytes = (len.max(1) * size_of::<f32>()).next_multiple_of(CACHE_LINE);
        Layout::from_size_align(bytes, CACHE_LINE)
            .expect("invariant: buffer fits the address space")
    }
}

impl Drop for AlignedFloats {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
    }
}

impl Deref for AlignedFloats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialised floats live behind `start`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedFloats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
