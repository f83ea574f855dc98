//! How much of the exact answer the 8-bit codes find: recall ranks by them alone.

use super::dense::DenseArm;
use crate::environment::{Entropy, SeededEntropy};

const DIMENSIONS: usize = 384;
const SLOTS: usize = 50_000;
const TOPICS: usize = 200;
const QUERIES: usize = 40;
const HITS: usize = 10;

/// Unit vectors that lie around topics, as those of real texts do.
struct Texts {
    entropy: SeededEntropy,
    topics: Vec<Vec<f32>>,
}

impl Texts {
    fn new() -> Self {
        let mut texts = Self { entropy: SeededEntropy::new(384), topics: Vec::new() };
        texts.topics = (0..TOPICS).map(|_| texts.direction()).collect();
        texts
    }

    fn direction(&self) -> Vec<f32> {
        // The sum of four uniform values is close to a normal one, so no direction is preferred.
        let normal = || {
            let bits = self.entropy.next_u64().to_le_bytes();
            bits.chunks(2).map(|pair| f32::from(pair[0]) * 256.0 + f32::from(pair[1])).sum::<f32>()
                / 65_536.0
                - 2.0
        };
        unit((0..DIMENSIONS).map(|_| normal()).collect())
    }

    fn vector(&self) -> Vec<f32> {
        let topic = &self.topics[self.entropy.next_u64() as usize % TOPICS];
        let noise = self.direction();
        unit(topic.iter().zip(&noise).map(|(topic, noise)| topic + 0.8 * noise).collect())
    }
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|value| *value /= length);
    vector
}

fn best(scores: impl Iterator<Item = f32>) -> Vec<usize> {
    let mut scored: Vec<(f32, usize)> = scores.zip(0..).collect();
    scored.sort_by(|left, right| right.0.total_cmp(&left.0));
    scored.into_iter().take(HITS).map(|(_, slot)| slot).collect()
}

#[test]
fn the_codes_find_what_exact_vectors_find() {
    let texts = Texts::new();
    let mut arm = DenseArm::default();
    (0..SLOTS).for_each(|_| arm.push(Some(&texts.vector())));
    let (mut wanted, mut found) = (0, 0);
    for _ in 0..QUERIES {
        let query = texts.vector();
        let exact = best((0..SLOTS).map(|slot| arm.exact(slot, &query)));
        let coded = best(arm.scan(&query).expect("there are vectors").into_iter());
        wanted += exact.len();
        found += exact.iter().filter(|slot| coded.contains(slot)).count();
    }
    let recall = found as f64 / wanted as f64;
    assert!(recall >= 0.97, "recall@{HITS} of the codes is {recall}");
}
