//! Random numbers that do not depend on the order of the draws.
//!
//! Every draw is a function of the seed, the name of a stream and a number that identifies what is
//! drawn for. So removing one operation or one fault from a plan leaves all other draws as they
//! were, which is what makes failures shrink.

/// Draws from one seed. Cheap to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dice {
    seed: u64,
}

impl Dice {
    /// Dice of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// 64 bits for this stream and number.
    #[must_use]
    pub fn draw(self, stream: &str, id: u64) -> u64 {
        mix(mix(self.seed ^ 0x6d65_6d63_7562_6531).wrapping_add(hash(stream.as_bytes()))
            ^ mix(id.wrapping_add(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number below `end`, or zero if `end` is.
    #[must_use]
    pub fn below(self, stream: &str, id: u64, end: u64) -> u64 {
        if end == 0 { 0 } else { self.draw(stream, id) % end }
    }

    /// Whether something happens that happens so many times in a thousand.
    #[must_use]
    pub fn chance(self, stream: &str, id: u64, per_mille: u32) -> bool {
        self.below(stream, id, 1_000) < u64::from(per_mille)
    }

    /// Other dice, for a part of the world that has a name of its own.
    #[must_use]
    pub fn fork(self, stream: &str, id: u64) -> Self {
        Self { seed: self.draw(stream, id) }
    }
}

/// FNV-1a, 64 bits.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
const fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_seed_stream_and_number_alone() {
        let dice = Dice::new(7);
        assert_eq!(dice.draw("a", 1), Dice::new(7).draw("a", 1));
        let others = [dice.draw("b", 1), dice.draw("a", 2), Dice::new(8).draw("a", 1)];
        assert!(others.iter().all(|other| *other != dice.draw("a", 1)));
        assert_eq!(dice.below("a", 1, 0), 0);
        let hits = (0..10_000).filter(|id| dice.chance("c", *id, 100)).count();
        assert!((800..1_200).contains(&hits), "{hits}");
    }
}
