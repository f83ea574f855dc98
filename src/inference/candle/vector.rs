//! Vector types the models' kernels are written over.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::array::from_fn;

use half::f16;

/// A fixed number of floats worked on at once.
///
/// # Safety
/// Every method may only be called on a processor that supports the type; pointers must be
/// valid for `LANES` floats.
pub(super) trait Vector: Copy {
    const LANES: usize;
    /// Rows of a matrix tile, chosen so that its accumulators fit the registers.
    const TILE_ROWS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn prefetch(_from: *const f32) {}
    /// `LANES` unsigned bytes.
    unsafe fn from_bytes(from: *const u8) -> Self;
    /// The lower halves of `LANES` bytes.
    unsafe fn from_low_nibbles(from: *const u8) -> Self;
    /// The upper halves of `LANES` bytes.
    unsafe fn from_high_nibbles(from: *const u8) -> Self;
    /// `LANES` floats of 16 bits.
    unsafe fn load_halves(from: *const u16) -> Self;
    /// Rounds to 16 bits, ties to even.
    unsafe fn store_halves(self, to: *mut u16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    unsafe fn round(self) -> Self;
    /// `self * 2^exponent` for whole exponents; zero from -127 downwards at the latest.
    unsafe fn times_power_of_two(self, exponent: Self) -> Self;
    /// Takes `other` in the lanes where `sign` is negative.
    unsafe fn or_where_negative(self, other: Self, sign: Self) -> Self;
    unsafe fn reduce_add(self) -> f32;
    unsafe fn reduce_max(self) -> f32;
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

// SAFETY of the blocks below: the trait's contract puts the features and pointers on the caller.
#[cfg(target_arch = "x86_64")]
impl Vector for Avx512 {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 14;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn from_low_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15))))
        }
    }

    #[inline(always)]
    unsafe fn from_high_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes)))
        }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_halves(self, to: *mut u16) {
        unsafe {
            _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
        }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Self(_mm512_roundscale_ps::<0>(self.0)) }
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, exponent: Self) -> Self {
        // Not `scalef`: it slows down a hundredfold when the result underflows.
        unsafe {
            let biased = _mm512_add_ps(exponent.0, _mm512_set1_ps(127.0));
            let biased = _mm512_max_ps(biased, _mm512_setzero_ps());
            let power = _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(biased));
            Self(_mm512_mul_ps(self.0, _mm512_castsi512_ps(power)))
        }
    }

    #[inline(always)]
    unsafe fn or_where_negative(self, other: Self, sign: Self) -> Self {
        unsafe {
            let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sign.0, _mm512_setzero_ps());
            Self(_mm512_mask_blend_ps(negative, self.0, other.0))
        }
    }

    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

// SAFETY of the blocks below: the trait's contract puts the features and pointers on the caller.
#[cfg(target_arch = "x86_64")]
impl Vector for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn from_low_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            Self(_mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15))))
        }
    }

    #[inline(always)]
    unsafe fn from_high_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            Self(_mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(bytes)))
        }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_halves(self, to: *mut u16) {
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
        }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe {
            Self(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
        }
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, exponent: Self) -> Self {
        unsafe {
            let biased = _mm256_max_ps(
                _mm256_add_ps(exponent.0, _mm256_set1_ps(127.0)),
                _mm256_setzero_ps(),
            );
            let power = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(biased));
            Self(_mm256_mul_ps(self.0, _mm256_castsi256_ps(power)))
        }
    }

    #[inline(always)]
    unsafe fn or_where_negative(self, other: Self, sign: Self) -> Self {
        unsafe { Self(_mm256_blendv_ps(self.0, other.0, sign.0)) }
    }

    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        lanes(self.0).iter().sum()
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        lanes(self.0).iter().fold(f32::MIN, |top, &lane| top.max(lane))
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lanes(vector: __m256) -> [f32; 8] {
    // SAFETY: both types are 32 bytes of floats.
    unsafe { std::mem::transmute(vector) }
}

/// The portable path; the compiler maps the arrays to whatever the processor has.
impl Vector for [f32; 8] {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        unsafe { from.cast::<[u8; 8]>().read().map(f32::from) }
    }

    #[inline(always)]
    unsafe fn from_low_nibbles(from: *const u8) -> Self {
        unsafe { from.cast::<[u8; 8]>().read().map(|byte| f32::from(byte & 15)) }
    }

    #[inline(always)]
    unsafe fn from_high_nibbles(from: *const u8) -> Self {
        unsafe { from.cast::<[u8; 8]>().read().map(|byte| f32::from(byte >> 4)) }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> Self {
        unsafe {
            from.cast::<[u16; 8]>().read_unaligned().map(|half| f16::from_bits(half).to_f32())
        }
    }

    #[inline(always)]
    unsafe fn store_halves(self, to: *mut u16) {
        let halves = self.map(|value| f16::from_f32(value).to_bits());
        unsafe { to.cast::<[u16; 8]>().write_unaligned(halves) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        from_fn(|lane| self[lane] / other[lane])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        from_fn(|lane| self[lane] + other[lane])
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        from_fn(|lane| self[lane] - other[lane])
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        from_fn(|lane| self[lane] * other[lane])
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        from_fn(|lane| self[lane] * factor[lane] + addend[lane])
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        from_fn(|lane| self[lane].min(other[lane]))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        from_fn(|lane| self[lane].max(other[lane]))
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        from_fn(|lane| self[lane].abs())
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding and taking away 1.5 * 2^23 rounds to even without a call into the maths library.
        from_fn(|lane| (self[lane] + 12_582_912.0) - 12_582_912.0)
    }

    #[inline(always)]
    unsafe fn times_power_of_two(self, exponent: Self) -> Self {
        from_fn(|lane| {
            self[lane] * f32::from_bits(((exponent[lane] + 127.0).max(0.0) as u32) << 23)
        })
    }

    #[inline(always)]
    unsafe fn or_where_negative(self, other: Self, sign: Self) -> Self {
        from_fn(|lane| if sign[lane] < 0.0 { other[lane] } else { self[lane] })
    }

    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        self.iter().sum()
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        self.iter().fold(f32::MIN, |top, &lane| top.max(lane))
    }
}
