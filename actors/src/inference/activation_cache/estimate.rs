//! Whether loading a block is quicker than computing its tokens, by what was measured. Pure.

/// The share of a new measurement in an estimate.
const WEIGHT: f64 = 0.3;
/// Microseconds after which an estimate counts as none, so that a tier that was slow once is tried
/// again.
const KEPT_US: u64 = 60_000_000;
/// Tokens of a range of positions that share an estimate: the further back a token looks, the
/// longer it takes.
const POSITIONS: usize = 1_024;
const RANGES: usize = 32;

/// Where a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// In a session on the device.
    Device,
    /// In RAM.
    Ram,
    /// On the local disk.
    Disk,
    /// In the object store.
    Objects,
    /// Wherever a server elsewhere keeps it.
    Remote,
}

impl Tier {
    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Ram => "ram",
            Self::Disk => "disk",
            Self::Objects => "objects",
            Self::Remote => "remote",
        }
    }
}

/// What to do about blocks that are not in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Load them, and compute meanwhile if they are late.
    Load {
        /// Microseconds after which the first one is late.
        patience_us: u64,
    },
    /// Compute them: that is quicker.
    Recompute,
}

impl Decision {
    /// The name in metrics.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Load { .. } => "load",
            Self::Recompute => "recompute",
        }
    }
}

/// A running mean, and when it was last fed.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    value: f64,
    at_us: Option<u64>,
}

impl Mean {
    fn feed(&mut self, value: f64, now_us: u64) {
        self.value = match self.at(now_us) {
            Some(former) => former + WEIGHT * (value - former),
            None => value,
        };
        self.at_us = Some(now_us);
    }

    fn at(&self, now_us: u64) -> Option<f64> {
        self.at_us.filter(|at_us| now_us.saturating_sub(*at_us) < KEPT_US).map(|_| self.value)
    }
}

/// What loading and computing takes, as far as it was measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Estimates {
    /// Microseconds for a byte.
    disk: Mean,
    objects: Mean,
    /// Microseconds for a token, by position.
    compute: [Mean; RANGES],
}

impl Estimates {
    /// A block of so many bytes was loaded.
    pub(crate) fn loaded(&mut self, tier: Tier, bytes: u64, took_us: u64, now_us: u64) {
        let value = ratio(took_us, bytes);
        match tier {
            Tier::Disk => self.disk.feed(value, now_us),
            Tier::Objects => self.objects.feed(value, now_us),
            Tier::Device | Tier::Ram | Tier::Remote => {}
        }
    }

    /// Tokens from a position on were computed.
    pub(crate) fn computed(&mut self, position: usize, tokens: usize, took_us: u64, now_us: u64) {
        self.compute[range(position)].feed(ratio(took_us, tokens as u64), now_us);
    }

    /// Microseconds to load so many bytes, if that is known.
    pub(crate) fn load_us(&self, tier: Tier, bytes: u64, now_us: u64) -> Option<u64> {
        match tier {
            Tier::Device | Tier::Ram => Some(0),
            // Nothing is loaded from there.
            Tier::Remote => None,
            Tier::Disk => self.disk.at(now_us).map(|each| times(each, bytes)),
            Tier::Objects => self.objects.at(now_us).map(|each| times(each, bytes)),
        }
    }

    /// Microseconds to compute tokens from a position on, if that is known.
    pub(crate) fn compute_us(&self, position: usize, tokens: usize, now_us: u64) -> Option<u64> {
        let here = range(position);
        let known = |range: usize| self.compute.get(range).and_then(|mean| mean.at(now_us));
        // Ranges further in front take less, so that they never make loading look better.
        let each = known(here)
            .or_else(|| (0..here).rev().find_map(known))
            .or_else(|| (here..RANGES).find_map(known))?;
        Some(times(each, tokens as u64))
    }
}

/// What to do about blocks of a tier, when loading and computing them, or the first one, takes so
/// many microseconds. What is not known is tried.
pub(crate) fn decide(load: [Option<u64>; 2], compute: [Option<u64>; 2]) -> Decision {
    /// How much longer than expected a block may take before its tokens are computed.
    const SLACK: u64 = 2;
    /// The share of the time to compute a block that one may take of which nothing is known.
    const UNKNOWN_SHARE: u64 = 16;
    let ([load_us, first_load_us], [compute_us, first_compute_us]) = (load, compute);
    match (load_us, compute_us) {
        (Some(load_us), Some(compute_us)) if load_us >= compute_us => Decision::Recompute,
        (Some(_), _) => {
            let patience_us = first_load_us.unwrap_or(0).saturating_mul(SLACK);
            Decision::Load { patience_us }
        }
        // Hardly anybody waits for what nobody has measured: it may come while its tokens are
        // computed. But computing takes the processors that reading from a near tier needs.
        (None, _) => Decision::Load { patience_us: first_compute_us.unwrap_or(0) / UNKNOWN_SHARE },
    }
}

fn range(position: usize) -> usize {
    (position / POSITIONS).min(RANGES - 1)
}

#[expect(clippy::cast_precision_loss, reason = "estimates")]
fn ratio(took_us: u64, count: u64) -> f64 {
    took_us as f64 / count.max(1) as f64
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "estimates, which are never negative"
)]
fn times(each: f64, count: u64) -> u64 {
    (each * count as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_to_be_slower_is_not_done() {
        let table = [
            (None, None, Decision::Load { patience_us: 0 }),
            (Some(10), None, Decision::Load { patience_us: 10 }),
            (None, Some(99), Decision::Load { patience_us: 3 }),
            (Some(10), Some(11), Decision::Load { patience_us: 10 }),
            (Some(11), Some(11), Decision::Recompute),
        ];
        for (load, compute, decision) in table {
            let firsts = [load.map(|_| 5), compute.map(|_| 48)];
            let found = decide([load, firsts[0]], [compute, firsts[1]]);
            assert_eq!(found, decision, "{load:?} {compute:?}");
        }
    }

    #[test]
    fn estimates_follow_what_is_measured_and_are_forgotten() {
        let mut estimates = Estimates::default();
        assert_eq!(estimates.load_us(Tier::Objects, 100, 0), None);
        estimates.loaded(Tier::Objects, 100, 1_000, 0);
        assert_eq!(estimates.load_us(Tier::Objects, 50, 1), Some(500));
        assert_eq!(estimates.load_us(Tier::Disk, 50, 1), None);
        for _ in 0..40 {
            estimates.loaded(Tier::Objects, 100, 100, 1);
        }
        assert_eq!(estimates.load_us(Tier::Objects, 100, 2), Some(100));
        assert_eq!(estimates.load_us(Tier::Objects, 100, KEPT_US + 2), None);
        estimates.loaded(Tier::Objects, 100, 300, KEPT_US + 2);
        assert_eq!(estimates.load_us(Tier::Objects, 100, KEPT_US + 2), Some(300));
    }

    #[test]
    fn computing_takes_longer_further_back_and_neighbours_stand_in() {
        let mut estimates = Estimates::default();
        assert_eq!(estimates.compute_us(0, 10, 0), None);
        estimates.computed(5_000, 10, 500, 0);
        assert_eq!(estimates.compute_us(0, 10, 0), Some(500), "all that is known");
        estimates.computed(100, 10, 100, 0);
        assert_eq!(estimates.compute_us(3_000, 10, 0), Some(100), "rather too little");
        assert_eq!(estimates.compute_us(1_000_000, 10, 0), Some(500));
    }
}
