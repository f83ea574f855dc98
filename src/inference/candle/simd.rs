//! Vector kernels of the models: packed matrix product, GELU, softmax, layer norm.
//!
//! Every kernel is written once over [`Vector`] and compiled for AVX-512, AVX2 and plain arrays;
//! [`Isa::detect`] picks one at run time. What only language models need is in `language`.
//!
//! Invariant: an output element is always summed over the depth in ascending order by one
//! accumulator (except on the portable path), so it depends neither on the other rows of the
//! batch nor on how columns are shared between threads.
#![allow(unsafe_code)]

use std::ops::Range;

use super::aligned::AlignedFloats;
use super::vector::Vector;
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};

/// Columns in one packed panel of a matrix; also the width of an attention head.
pub(super) const PANEL: usize = 32;
/// Depth processed before moving to the next rows, so that a panel slice stays in the L1 cache.
const DEPTH_BLOCK: usize = 384;
/// Depth steps a panel is fetched ahead; it matters when few rows read weights from far caches.
const PREFETCH_STEPS: usize = 32;

/// Instruction set the kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    pub(super) fn detect() -> Self {
        Self::available()[0]
    }

    /// All instruction sets this processor can run, fastest first.
    pub(super) fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                sets.push(Self::Avx512);
            }
            let detected = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if detected && is_x86_feature_detected!("f16c") {
                sets.push(Self::Avx2);
            }
        }
        sets.push(Self::Portable);
        sets
    }

    /// Runs a job whose fields were checked on this instruction set.
    pub(super) fn run<J: Job>(self, job: J) {
        match self {
            // SAFETY: the variant is only made by `available` after detecting the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(job) },
            // SAFETY: plain arrays need no processor feature.
            Self::Portable => unsafe { job.run::<[f32; 8]>() },
        }
    }

    /// Multiplies `rows` rows of `left` by packed panels; see [`Product`].
    pub(super) fn multiply(self, product: Product<'_>) {
        product.check_bounds();
        if self == Self::Portable { product.run_portable() } else { self.run(product) }
    }

    /// Replaces each of the first `len` scores of every row by its scaled exponential relative
    /// to the row's maximum, and stores one over their sum in `inverse_sums`.
    pub(super) fn softmax(
        self,
        scores: &mut [f32],
        stride: usize,
        scale: f32,
        len: usize,
        inverse_sums: &mut [f32],
    ) {
        assert!(
            stride.is_multiple_of(PANEL)
                && len <= stride
                && scores.len() >= stride * inverse_sums.len()
        );
        self.run(Softmax { scores, stride, len, scale, inverse_sums });
    }

    /// Replaces `row` by the layer norm of `row + added`.
    pub(super) fn add_layer_norm(self, row: &mut [f32], added: &[f32], norm: &LayerNorm) {
        let width = norm.gain.len();
        assert!(row.len() == width && added.len() == width && width.is_multiple_of(PANEL));
        self.run(AddLayerNorm { row, added, norm });
    }
}

/// Gain, offset and epsilon of a layer norm.
pub(super) struct LayerNorm {
    pub(super) gain: AlignedFloats,
    pub(super) offset: AlignedFloats,
    pub(super) epsilon: f32,
}

/// What the accumulators of a [`Product`] start from.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    /// One value per output column.
    Bias(&'a [f32]),
    /// What `out` holds already.
    Accumulate,
}

/// `out = start + left x panels`, optionally followed by GELU.
///
/// Panel `p` covers output columns `32 p .. 32 p + 32`; its row `d` begins at
/// `panels[p * panel_stride + d * depth_stride]`.
pub(super) struct Product<'a> {
    pub(super) left: &'a [f32],
    pub(super) left_stride: usize,
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) panels: &'a [f32],
    pub(super) panel_stride: usize,
    pub(super) depth_stride: usize,
    pub(super) panel_count: usize,
    pub(super) start: Start<'a>,
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
    pub(super) gelu: bool,
}

impl Product<'_> {
    fn check_bounds(&self) {
        assert!(self.rows > 0 && self.depth > 0 && self.panel_count > 0);
        let last_row = self.rows - 1;
        assert!(last_row * self.left_stride + self.depth <= self.left.len());
        let last_panel = (self.panel_count - 1) * self.panel_stride;
        assert!(last_panel + (self.depth - 1) * self.depth_stride + PANEL <= self.panels.len());
        assert!(last_row * self.out_stride + self.panel_count * PANEL <= self.out.len());
        if let Start::Bias(bias) = self.start {
            assert!(self.panel_count * PANEL <= bias.len());
        }
    }

    /// Lets the `gemm` crate do the product: it has kernels for processors this file has not.
    fn run_portable(self) {
        let (rows, columns) = (self.rows, self.panel_count * PANEL);
        for row in self.out.chunks_mut(self.out_stride).take(rows) {
            match self.start {
                Start::Zero => row[..columns].fill(0.0),
                Start::Bias(bias) => row[..columns].copy_from_slice(&bias[..columns]),
                Start::Accumulate => {}
            }
        }
        for panel in 0..self.panel_count {
            // SAFETY: `check_bounds` has verified every address these strides reach.
            unsafe {
                gemm::gemm(
                    rows,
                    PANEL,
                    self.depth,
                    self.out.as_mut_ptr().add(panel * PANEL),
                    1,
                    self.out_stride as isize,
                    true,
                    self.left.as_ptr(),
                    1,
                    self.left_stride as isize,
                    self.panels.as_ptr().add(panel * self.panel_stride),
                    1,
                    self.depth_stride as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
        if self.gelu {
            for row in self.out.chunks_mut(self.out_stride).take(rows) {
                // SAFETY: plain arrays need no processor feature; a row holds whole vectors.
                unsafe { gelu_floats::<[f32; 8]>(row.as_mut_ptr(), columns) }
            }
        }
    }
}

/// Work that can be compiled for any vector type.
pub(super) trait Job {
    /// # Safety
    /// The processor supports `V`, and the fields describe memory that is in bounds.
    unsafe fn run<V: Vector>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn run_avx512<J: Job>(job: J) {
    // SAFETY: the features are enabled here; the job's fields are checked where it is made.
    unsafe { job.run::<Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,fma")]
fn run_avx2<J: Job>(job: J) {
    // SAFETY: as above.
    unsafe { job.run::<Avx2>() }
}

impl Job for Product<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let tile_columns = 2 * V::LANES;
        let blocks = self.rows.div_ceil(V::TILE_ROWS);
        let zeros = [0.0f32; PANEL];
        for panel in 0..self.panel_count {
            for depth in blocks_of(self.depth, DEPTH_BLOCK) {
                let last = depth.end == self.depth;
                let first = depth.start == 0;
                for block in 0..blocks {
                    let row = block * self.rows / blocks;
                    let count = (block + 1) * self.rows / blocks - row;
                    for column in (0..PANEL).step_by(tile_columns) {
                        // SAFETY: `check_bounds` covers every row, panel and depth visited here.
                        unsafe {
                            let out = self
                                .out
                                .as_mut_ptr()
                                .add(row * self.out_stride + panel * PANEL + column);
                            let (start, start_stride) = match self.start {
                                Start::Zero if first => (zeros.as_ptr(), 0),
                                Start::Bias(bias) if first => {
                                    (bias.as_ptr().add(panel * PANEL + column), 0)
                                }
                                Start::Zero | Start::Bias(_) | Start::Accumulate => {
                                    (out.cast_const(), self.out_stride)
                                }
                            };
                            let tile = Tile {
                                left: self.left.as_ptr().add(row * self.left_stride + depth.start),
                                left_stride: self.left_stride,
                                panel: self.panels.as_ptr().add(
                                    panel * self.panel_stride
                                        + depth.start * self.depth_stride
                                        + column,
                                ),
                                depth_stride: self.depth_stride,
                                depth: depth.len(),
                                start,
                                start_stride,
                                out,
                                out_stride: self.out_stride,
                            };
                            tile.run_rows::<V>(count);
                            if self.gelu && last {
                                for offset in 0..count {
                                    gelu_floats::<V>(
                                        out.add(offset * self.out_stride),
                                        tile_columns,
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn blocks_of(len: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(block).map(move |start| start..len.min(start + block))
}

/// A few rows by two vectors of output, kept in registers over the whole depth.
struct Tile {
    left: *const f32,
    left_stride: usize,
    panel: *const f32,
    depth_stride: usize,
    depth: usize,
    start: *const f32,
    start_stride: usize,
    out: *mut f32,
    out_stride: usize,
}

impl Tile {
    #[inline(always)]
    unsafe fn run_rows<V: Vector>(&self, rows: usize) {
        macro_rules! by_rows {
            ($($count:literal)*) => {
                match rows {
                    // SAFETY: passed on from the caller.
                    $($count if $count <= V::TILE_ROWS => unsafe { self.run::<V, $count>() },)*
                    _ => unreachable!("invariant: a tile has at most TILE_ROWS rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }

    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize>(&self) {
        // SAFETY: the caller guarantees ROWS rows, `depth` steps and two vectors of columns.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; ROWS];
            for (row, sum) in sums.iter_mut().enumerate() {
                let start = self.start.add(row * self.start_stride);
                *sum = [V::load(start), V::load(start.add(V::LANES))];
            }
            let mut panel = self.panel;
            for step in 0..self.depth {
                V::prefetch(panel.wrapping_add(PREFETCH_STEPS * self.depth_stride));
                V::prefetch(panel.wrapping_add(PREFETCH_STEPS * self.depth_stride + 16));
                let right = [V::load(panel), V::load(panel.add(V::LANES))];
                for (row, sum) in sums.iter_mut().enumerate() {
                    let left = V::splat(*self.left.add(row * self.left_stride + step));
                    sum[0] = left.mul_add(right[0], sum[0]);
                    sum[1] = left.mul_add(right[1], sum[1]);
                }
                panel = panel.wrapping_add(self.depth_stride);
            }
            for (row, sum) in sums.iter().enumerate() {
                let out = self.out.add(row * self.out_stride);
                sum[0].store(out);
                sum[1].store(out.add(V::LANES));
            }
        }
    }
}

struct Softmax<'a> {
    scores: &'a mut [f32],
    stride: usize,
    len: usize,
    scale: f32,
    inverse_sums: &'a mut [f32],
}

impl Job for Softmax<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller supports `V`; each row holds `stride` floats, a multiple of LANES.
        unsafe {
            let scale = V::splat(self.scale * std::f32::consts::LOG2_E);
            for (row, inverse) in self.scores.chunks_mut(self.stride).zip(self.inverse_sums) {
                let padded = self.len.next_multiple_of(V::LANES);
                // Padding keys get no weight: two to this power is exactly zero.
                row[self.len..padded].fill(f32::MIN);
                let row = row.as_mut_ptr();
                let mut top = V::splat(f32::MIN);
                for at in (0..padded).step_by(V::LANES) {
                    top = top.max(V::load(row.add(at)));
                }
                let top = V::splat(top.reduce_max());
                let mut sum = V::splat(0.0);
                for at in (0..padded).step_by(V::LANES) {
                    let weight = exp2(V::load(row.add(at)).sub(top).mul(scale));
                    weight.store(row.add(at));
                    sum = sum.add(weight);
                }
                *inverse = 1.0 / sum.reduce_add();
            }
        }
    }
}

struct AddLayerNorm<'a> {
    row: &'a mut [f32],
    added: &'a [f32],
    norm: &'a LayerNorm,
}

impl Job for AddLayerNorm<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller supports `V`; all slices have the same whole number of vectors.
        unsafe {
            let width = self.row.len();
            let (row, added) = (self.row.as_mut_ptr(), self.added.as_ptr());
            let mut sum = V::splat(0.0);
            for at in (0..width).step_by(V::LANES) {
                let value = V::load(row.add(at)).add(V::load(added.add(at)));
                value.store(row.add(at));
                sum = sum.add(value);
            }
            let mean = V::splat(sum.reduce_add() / width as f32);
            let mut squares = V::splat(0.0);
            for at in (0..width).step_by(V::LANES) {
                let centred = V::load(row.add(at)).sub(mean);
                squares = centred.mul_add(centred, squares);
            }
            let variance = squares.reduce_add() / width as f32;
            let inverse = V::splat(1.0 / (variance + self.norm.epsilon).sqrt());
            for at in (0..width).step_by(V::LANES) {
                let gain = V::load(self.norm.gain.as_ptr().add(at)).mul(inverse);
                let offset = V::load(self.norm.offset.as_ptr().add(at));
                V::load(row.add(at)).sub(mean).mul_add(gain, offset).store(row.add(at));
            }
        }
    }
}

#[inline(always)]
unsafe fn gelu_floats<V: Vector>(values: *mut f32, len: usize) {
    for at in (0..len).step_by(V::LANES) {
        // SAFETY: the caller guarantees `len` floats, a multiple of LANES.
        unsafe { gelu(V::load(values.add(at))).store(values.add(at)) }
    }
}

/// `log2` of the normal distribution's upper tail on `[0, 6]`, a weighted minimax fit.
const LOG2_TAIL: [f32; 10] = [
    -1.0,
    -1.151_105,
    -0.459_215_34,
    -0.052_457_653,
    0.006_972_934_6,
    -2.682_835_5e-5,
    -2.603_770_7e-4,
    6.715_46e-5,
    -8.216_298e-6,
    4.187_671_2e-7,
];
const TAIL_END: f32 = 6.0;
/// Two to the power of `[-0.5, 0.5]`, a minimax fit.
const EXP2: [f32; 7] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_46,
    0.055_503_286,
    0.009_618_489,
    0.001_339_993_1,
    1.534_581_2e-4,
];

/// `x * normal_cdf(x)` to about 1e-7 of `max(1, |x|)`.
#[inline(always)]
unsafe fn gelu<V: Vector>(x: V) -> V {
    // SAFETY: the caller supports `V`.
    unsafe {
        let distance = x.abs().min(V::splat(TAIL_END));
        let tail = exp2(polynomial(distance, &LOG2_TAIL));
        x.mul(V::splat(1.0).sub(tail).or_where_negative(tail, x))
    }
}

#[inline(always)]
pub(super) unsafe fn exp2<V: Vector>(x: V) -> V {
    // SAFETY: the caller supports `V`.
    unsafe {
        let x = x.max(V::splat(-200.0));
        let whole = x.round();
        polynomial(x.sub(whole), &EXP2).times_power_of_two(whole)
    }
}

#[inline(always)]
unsafe fn polynomial<V: Vector, const N: usize>(x: V, coefficients: &[f32; N]) -> V {
    // SAFETY: the caller supports `V`.
    unsafe {
        let mut sum = V::splat(coefficients[N - 1]);
        for coefficient in coefficients[..N - 1].iter().rev() {
            sum = sum.mul_add(x, V::splat(*coefficient));
        }
        sum
    }
}
