//! Synthetic memories: texts whose words are as frequent as those of real ones, and random vectors.

use memcube_actors::environment::{Entropy, SeededEntropy};
use memcube_schemas::{
    ConversationId, MemoryId, Version,
    conversation::Role,
    memory::{MemoryItem, MemoryKind, MemoryStatus},
};

/// The most frequent words of English, in the order of their frequency.
const FREQUENT: [&str; 60] = [
    "the", "to", "and", "a", "of", "i", "in", "was", "that", "it", "my", "is", "for", "you", "on",
    "with", "have", "but", "be", "they", "we", "this", "so", "are", "at", "not", "me", "like",
    "just", "about", "time", "know", "think", "really", "good", "day", "love", "new", "work",
    "people", "feel", "great", "make", "family", "life", "friends", "home", "started", "year",
    "help", "kids", "school", "week", "book", "job", "music", "trip", "dog", "game", "food",
];
const VOCABULARY_WORDS: usize = 20_000;
/// Exponent of the law by which words are frequent (Zipf): near 1 in spoken English.
const ZIPF_EXPONENT: f64 = 1.05;
const ITEM_WORDS: std::ops::Range<usize> = 12..40;
const CONVERSATION_ITEMS: usize = 25;
const SPEAKERS: [&str; 2] = ["Caroline", "Melanie"];
/// The eighth of May 2023, when the first conversation takes place.
const FIRST_DAY_MS: i64 = 1_683_504_000_000;
const DAY_MS: i64 = 86_400_000;

/// A seeded source of texts and vectors.
pub(super) struct Words {
    entropy: SeededEntropy,
    vocabulary: Vec<String>,
    /// For each word, how often it or one before it is drawn.
    cumulative: Vec<f64>,
}

impl Words {
    pub(super) fn new(seed: u64) -> Self {
        let entropy = SeededEntropy::new(seed);
        let mut vocabulary: Vec<String> = FREQUENT.iter().map(|word| (*word).to_owned()).collect();
        while vocabulary.len() < VOCABULARY_WORDS {
            vocabulary.push(invent(&entropy));
        }
        let mut sum = 0.0;
        let cumulative = (1..=VOCABULARY_WORDS)
            .map(|rank| {
                sum += (rank as f64).powf(-ZIPF_EXPONENT);
                sum
            })
            .collect();
        Self { entropy, vocabulary, cumulative }
    }

    /// A number from 0 to 1, without 1.
    fn unit(&self) -> f64 {
        unit(&self.entropy)
    }

    fn within(&self, range: std::ops::Range<usize>) -> usize {
        range.start + (self.unit() * range.len() as f64) as usize
    }

    /// A number below a bound.
    pub(super) fn below(&self, bound: usize) -> usize {
        self.within(0..bound)
    }

    fn word(&self) -> &str {
        let drawn = self.unit() * self.cumulative.last().copied().unwrap_or_default();
        let rank = self.cumulative.partition_point(|sum| *sum <= drawn);
        &self.vocabulary[rank.min(self.vocabulary.len() - 1)]
    }

    /// Words with spaces between them.
    pub(super) fn text(&self, words: std::ops::Range<usize>) -> String {
        let words: Vec<&str> = (0..self.within(words)).map(|_| self.word()).collect();
        words.join(" ")
    }

    /// A random direction.
    pub(super) fn vector(&self, dimensions: usize) -> Vec<f32> {
        direction(&self.entropy, dimensions)
    }

    /// A random direction that depends on a seed alone.
    pub(super) fn direction(seed: u64, dimensions: usize) -> Vec<f32> {
        direction(&SeededEntropy::new(seed), dimensions)
    }

    /// The memory with this number: one turn of a conversation of two.
    pub(super) fn item(&self, number: usize) -> MemoryItem {
        let (conversation, turn) = (number / CONVERSATION_ITEMS, number % CONVERSATION_ITEMS);
        let day = i64::try_from(conversation % 700).unwrap_or_default();
        let said_at_ms = FIRST_DAY_MS + day * DAY_MS;
        let speaker = SPEAKERS[turn % SPEAKERS.len()];
        let text = format!("[8 May 2023] {speaker}: {}", self.text(ITEM_WORDS));
        MemoryItem {
            id: memory_id(number),
            kind: MemoryKind::Episode,
            status: MemoryStatus::Activated,
            tokens: u32::try_from(text.len() / 4).unwrap_or(u32::MAX),
            text,
            speaker: Some(speaker.to_owned()),
            role: Role::User,
            said_at_ms: Some(said_at_ms),
            learned_at_ms: said_at_ms,
            updated_at_ms: said_at_ms,
            conversation: ConversationId::new(format!("conversation-{conversation}")).ok(),
            previous: (turn > 0).then(|| memory_id(number - 1)),
            part: None,
            tags: Vec::new(),
            info: String::new(),
            sources: Vec::new(),
            occurrences: 1,
            revision: 1,
            version: Version(1),
        }
    }
}

fn unit(entropy: &SeededEntropy) -> f64 {
    (entropy.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn direction(entropy: &SeededEntropy, dimensions: usize) -> Vec<f32> {
    // Four uniform values together are close to a normal one, so no direction is preferred.
    let normal = || (0..4).map(|_| unit(entropy) - 0.5).sum::<f64>() as f32;
    let mut vector: Vec<f32> = (0..dimensions).map(|_| normal()).collect();
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    for value in &mut vector {
        *value /= length;
    }
    vector
}

fn memory_id(number: usize) -> MemoryId {
    MemoryId::from_parts(number as u64, number as u128)
}

/// A word that can be spoken: two to four syllables.
fn invent(entropy: &SeededEntropy) -> String {
    const CONSONANTS: &[u8] = b"bcdfghjklmnprstvwz";
    const VOWELS: &[u8] = b"aeiou";
    let mut bits = entropy.next_u64();
    let mut draw = |letters: &[u8]| {
        let count = letters.len() as u64;
        let letter = letters[usize::try_from(bits % count).unwrap_or_default()];
        bits /= count;
        char::from(letter)
    };
    let syllables = 2 + usize::from(draw(b"0011122") as u8 - b'0');
    let mut word = String::new();
    for _ in 0..syllables {
        word.push(draw(CONSONANTS));
        word.push(draw(VOWELS));
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_memories() {
        let (one, other) = (Words::new(7), Words::new(7));
        for number in 0..50 {
            assert_eq!(one.item(number), other.item(number));
        }
        let vector = one.vector(384);
        assert_eq!(vector, other.vector(384));
        let length: f32 = vector.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
        assert_ne!(Words::new(8).item(0).text, Words::new(7).item(0).text);
    }
}
