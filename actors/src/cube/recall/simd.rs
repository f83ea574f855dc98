//! The scan over 8-bit codes, compiled for what the processor can do.
//!
//! The only unsafe code of this crate: calls of functions compiled for AVX2 and AVX-512, each
//! behind the check that the processor has it. All variants compute the same integers.
#![allow(unsafe_code)]

/// Dimensions over which 127 × 32,767 sums up to less than 2³¹.
const CHUNK: usize = 512;

/// Multiplies every row of codes with the query; `put` gets the row's number and its sum.
pub(crate) fn scan(codes: &[i8], query: &[i16], put: impl FnMut(usize, f32)) {
    #[cfg(target_arch = "x86_64")]
    {
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        if has_avx512 {
            // SAFETY: the processor has all four features, as was just checked.
            return unsafe { scan_avx512(codes, query, put) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature, as was just checked.
            return unsafe { scan_avx2(codes, query, put) };
        }
    }
    scan_rows(codes, query, put);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn scan_avx512(codes: &[i8], query: &[i16], put: impl FnMut(usize, f32)) {
    scan_rows(codes, query, put);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn scan_avx2(codes: &[i8], query: &[i16], put: impl FnMut(usize, f32)) {
    scan_rows(codes, query, put);
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "24 bits of a score are more than it is worth")]
fn scan_rows(codes: &[i8], query: &[i16], mut put: impl FnMut(usize, f32)) {
    for (row, codes) in codes.chunks_exact(query.len()).enumerate() {
        let chunks = codes.chunks(CHUNK).zip(query.chunks(CHUNK));
        let sum: i64 = chunks.map(|(codes, query)| i64::from(dot(codes, query))).sum();
        put(row, sum as f32);
    }
}

#[inline(always)]
fn dot(codes: &[i8], query: &[i16]) -> i32 {
    codes.iter().zip(query).map(|(code, part)| i32::from(*code) * i32::from(*part)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_computes_the_same_sums() {
        let codes: Vec<i8> = (0..3 * 1_030_i32).map(|n| (n * 37 % 255 - 127) as i8).collect();
        let query: Vec<i16> =
            (0..1_030_i32).map(|n| (n * 7_919 % 65_535 - 32_767) as i16).collect();
        let collect = |run: &dyn Fn(&mut Vec<f32>)| {
            let mut sums = Vec::new();
            run(&mut sums);
            sums
        };
        let plain = collect(&|sums| scan_rows(&codes, &query, |_, sum| sums.push(sum)));
        let chosen = collect(&|sums| scan(&codes, &query, |_, sum| sums.push(sum)));
        assert_eq!(plain, chosen);
        let wide: i64 = codes[..1_030]
            .iter()
            .zip(&query)
            .map(|(code, part)| i64::from(*code) * i64::from(*part))
            .sum();
        assert_eq!(plain[0], wide as f32);
    }
}
