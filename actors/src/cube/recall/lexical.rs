//! The lexical arm: BM25 in which a short turn borrows words from the turns around it.
//!
//! Okapi BM25 with Lucene's idf, where the frequency of a term in an item is its own plus a
//! weighted sum over the two items before and behind it in the conversation. An answer such as
//! "Since 2016!" is found by the words of the question before it, with one inverted index instead
//! of a second view.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    rank::weights::{BM25_B, BM25_K1, WINDOW, WINDOW_FULL_TERMS},
    slots::{NONE, Slots},
};

#[derive(Debug, Clone, Copy)]
struct Posting {
    slot: u32,
    frequency: f32,
}

/// From whom an item borrows, and how much. A neighbour that is missing is the item itself with
/// weight 0, so that sums need no branches.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// In the order of [`Slots::window`].
    slots: [u32; 4],
    weights: [f32; 4],
    /// 1 and the weights.
    total: f32,
}

/// The inverted index of a cube. Terms are known by numbers, given in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct LexicalArm {
    numbers: BTreeMap<Arc<str>, u32>,
    /// The terms by their numbers.
    words: Vec<Arc<str>>,
    /// Who holds each term; nobody, where all holders are gone.
    postings: Vec<Vec<Posting>>,
    /// Terms of each item.
    lengths: Vec<f32>,
    /// How far an item opens to its neighbours: 1 for short ones, less for long ones.
    openness: Vec<f32>,
    windows: Vec<Window>,
    /// Terms of each item with what it borrows.
    window_lengths: Vec<f32>,
    window_length_sum: f64,
}

impl LexicalArm {
    /// Terms that nobody holds yet, sorted; for a restored index.
    pub(crate) fn with_words(words: Vec<String>) -> Self {
        let words: Vec<Arc<str>> = words.into_iter().map(Arc::from).collect();
        let numbers = words.iter().zip(0..).map(|(word, number)| (Arc::clone(word), number));
        let postings = vec![Vec::new(); words.len()];
        Self { numbers: numbers.collect(), words, postings, ..Self::default() }
    }

    /// The number of a term, which gets one if it is new.
    pub(crate) fn number(&mut self, term: &str) -> u32 {
        if let Some(number) = self.numbers.get(term) {
            return *number;
        }
        let number = u32::try_from(self.words.len()).unwrap_or(NONE);
        let word: Arc<str> = Arc::from(term);
        self.words.push(Arc::clone(&word));
        self.numbers.insert(word, number);
        self.postings.push(Vec::new());
        number
    }

    /// The terms by their numbers.
    pub(crate) fn words(&self) -> &[Arc<str>] {
        &self.words
    }

    fn holding(&self, term: &str) -> &[Posting] {
        self.numbers.get(term).map_or(&[], |number| &self.postings[*number as usize])
    }

    /// Appends the next slot. Its window, and those of its neighbours, are to be refreshed after.
    pub(crate) fn push(&mut self, slot: u32, terms: &[u32], own_terms: usize) {
        let mut sorted = terms.to_vec();
        sorted.sort_unstable();
        for same in sorted.chunk_by(|left, right| left == right) {
            let posting = Posting { slot, frequency: same.len() as f32 };
            self.postings[same[0] as usize].push(posting);
        }
        self.lengths.push(terms.len() as f32);
        self.openness.push((WINDOW_FULL_TERMS / own_terms.max(1) as f32).min(1.0));
        self.windows.push(Window { slots: [slot; 4], weights: [0.0; 4], total: 1.0 });
        self.window_lengths.push(0.0);
    }

    /// Takes an item out. The windows of its former neighbours are to be refreshed after.
    pub(crate) fn remove(&mut self, slot: u32, terms: &[u32]) {
        for term in terms {
            let postings = &mut self.postings[*term as usize];
            if let Ok(place) = postings.binary_search_by_key(&slot, |posting| posting.slot) {
                postings.remove(place);
            }
        }
        let place = slot as usize;
        self.window_length_sum -= f64::from(self.window_lengths[place]);
        self.window_lengths[place] = 0.0;
        self.lengths[place] = 0.0;
        self.windows[place] = Window { slots: [slot; 4], weights: [0.0; 4], total: 1.0 };
    }

    /// The slots that hold a term.
    pub(crate) fn holders(&self, term: &str) -> impl Iterator<Item = u32> {
        self.holding(term).iter().map(|posting| posting.slot)
    }

    /// Looks again whom a slot borrows from.
    pub(crate) fn refresh(&mut self, slots: &Slots, slot: u32) {
        let place = slot as usize;
        let mut window = Window { slots: [slot; 4], weights: [0.0; 4], total: 1.0 };
        let mut length = self.lengths[place];
        for (index, neighbour) in slots.window(slot).into_iter().enumerate() {
            if neighbour != NONE {
                let other = neighbour as usize;
                let weight = WINDOW[index] * self.openness[place] * self.openness[other];
                window.slots[index] = neighbour;
                window.weights[index] = weight;
                window.total += weight;
                length += weight * self.lengths[other];
            }
        }
        self.windows[place] = window;
        self.window_length_sum += f64::from(length) - f64::from(self.window_lengths[place]);
        self.window_lengths[place] = length;
    }

    /// Adds to each value a weighted sum of its neighbours' values.
    pub(crate) fn smear(&self, values: &[f32]) -> Vec<f32> {
        let smear = |(value, window): (&f32, &Window)| {
            let [a, b, c, d] = window.slots.map(|slot| values[slot as usize]);
            let [wa, wb, wc, wd] = window.weights;
            value + (wa * a + wb * b) + (wc * c + wd * d)
        };
        values.iter().zip(&self.windows).map(smear).collect()
    }

    /// What `smear` makes of ones.
    pub(crate) fn total(&self, slot: usize) -> f32 {
        self.windows[slot].total
    }

    /// The score of an item that consisted of these terms and nothing else, over and over.
    pub(crate) fn best_possible(&self, slots: &Slots, terms: &[String]) -> f32 {
        let live = slots.live() as f32;
        let documents = |term: &String| self.holding(term).len() as f32;
        terms.iter().map(|term| (BM25_K1 + 1.0) * idf(live, documents(term))).sum()
    }

    /// BM25 of every slot for these terms; `None` when no item holds any of them.
    pub(crate) fn scores(&self, slots: &Slots, terms: &[String]) -> Option<Vec<f32>> {
        let live = slots.live() as f32;
        let average = (self.window_length_sum / f64::from(live.max(1.0))).max(1e-9);
        let mut scores = vec![0.0_f32; slots.len()];
        let mut frequencies = vec![0.0_f32; slots.len()];
        let mut touched: Vec<u32> = Vec::new();
        let mut found = false;
        for term in terms {
            let postings = self.holding(term);
            if postings.is_empty() {
                continue;
            }
            found = true;
            let documents = postings.len() as f32;
            let idf = idf(live, documents);
            self.spread(postings, &mut frequencies, &mut touched);
            for slot in touched.drain(..) {
                let place = slot as usize;
                let frequency = std::mem::take(&mut frequencies[place]);
                let relative = f64::from(self.window_lengths[place]) / average;
                let norm = BM25_K1 * (1.0 - BM25_B + BM25_B * relative as f32);
                scores[place] += idf * frequency * (BM25_K1 + 1.0) / (frequency + norm);
            }
        }
        found.then_some(scores)
    }

    /// As `scores`, for several texts at once: `times` says how often each of them has a term. 0
    /// where an item has nothing in common with a text.
    pub(crate) fn scores_each<const N: usize>(
        &self,
        slots: &Slots,
        times: &BTreeMap<String, [f32; N]>,
    ) -> Vec<[f32; N]> {
        let live = slots.live() as f32;
        let average = (self.window_length_sum / f64::from(live.max(1.0))).max(1e-9);
        let per_term = (BM25_K1 * BM25_B / average as f32, BM25_K1 * (1.0 - BM25_B));
        let mut scores = vec![[0.0_f32; N]; slots.len()];
        let mut frequencies = vec![0.0_f32; slots.len()];
        let mut touched: Vec<u32> = Vec::new();
        for (term, times) in times {
            let postings = self.holding(term);
            let idf = idf(live, postings.len() as f32);
            self.spread(postings, &mut frequencies, &mut touched);
            for slot in touched.drain(..) {
                let place = slot as usize;
                let frequency = std::mem::take(&mut frequencies[place]);
                let norm = per_term.1 + per_term.0 * self.window_lengths[place];
                let score = idf * frequency * (BM25_K1 + 1.0) / (frequency + norm);
                scores[place].iter_mut().zip(times).for_each(|(sum, times)| *sum += times * score);
            }
        }
        scores
    }

    /// Gives the frequencies of a term to the items that hold it and to those that borrow from
    /// them.
    fn spread(&self, postings: &[Posting], frequencies: &mut [f32], touched: &mut Vec<u32>) {
        // From the lender's side the window is mirrored: who stands behind me has me before it.
        const MIRRORED: [usize; 4] = [1, 0, 3, 2];
        let mut give = |slot: u32, frequency: f32| {
            let sum = &mut frequencies[slot as usize];
            if *sum == 0.0 {
                touched.push(slot);
            }
            *sum += frequency;
        };
        for posting in postings {
            give(posting.slot, posting.frequency);
            let window = &self.windows[posting.slot as usize];
            for (index, neighbour) in window.slots.into_iter().enumerate() {
                if neighbour != posting.slot {
                    let weight = self.windows[neighbour as usize].weights[MIRRORED[index]];
                    give(neighbour, weight * posting.frequency);
                }
            }
        }
    }
}

/// How much a term tells, by the number of items that hold it (Lucene's form, never negative).
fn idf(live: f32, documents: f32) -> f32 {
    (1.0 + (live - documents + 0.5) / (documents + 0.5)).ln()
}
