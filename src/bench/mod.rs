//! Measurements of this program by itself, for `memcube bench`.

pub mod cubes;
mod files;
pub mod hydrate;
pub mod preload;
pub mod recall;
pub mod recall_speed;
#[cfg(feature = "candle")]
pub mod scenes;
#[cfg(feature = "candle")]
pub mod segments;
#[cfg(feature = "candle")]
pub mod ttft;
pub mod vectors;
mod words;

use std::fmt;

use serde::Serialize;

/// How long calls took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Durations {
    /// Half of the calls took no longer.
    pub p50: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
    /// All of them.
    pub max: f64,
}

impl Durations {
    /// Sums up measurements in milliseconds.
    #[must_use]
    pub fn of(mut all_ms: Vec<f64>) -> Self {
        all_ms.sort_by(f64::total_cmp);
        let percentile = |percent: usize| {
            // The nearest rank: the smallest value that is not exceeded by that many of the calls.
            let rank = (all_ms.len() * percent).div_ceil(100).max(1);
            all_ms.get(rank - 1).copied().map_or(0.0, |ms| (ms * 1_000.0).round() / 1_000.0)
        };
        Self { p50: percentile(50), p95: percentile(95), p99: percentile(99), max: percentile(100) }
    }
}

impl fmt::Display for Durations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p95, p99, max } = self;
        write!(f, "p50 {p50:.3} ms, p95 {p95:.3} ms, p99 {p99:.3} ms, max {max:.3} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let all = |n: u32| (1..=n).rev().map(f64::from).collect();
        assert_eq!(Durations::of(Vec::new()), Durations::default());
        let one = Durations { p50: 1.0, p95: 1.0, p99: 1.0, max: 1.0 };
        assert_eq!(Durations::of(all(1)), one);
        let hundred = Durations { p50: 50.0, p95: 95.0, p99: 99.0, max: 100.0 };
        assert_eq!(Durations::of(all(100)), hundred);
    }
}
