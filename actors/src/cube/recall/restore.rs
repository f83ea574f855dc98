//! The index as a snapshot holds it: written from a copy that is cheap to take, and put together
//! again without looking at a single text.
//!
//! Invariant: a restored index answers as one does into which the same items were inserted in the
//! order of their ids.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use memcube_schemas::{
    MemoryId,
    limits::VECTOR_BLOCK_SLOTS,
    snapshot::{RecalledItems, Vectors},
};

use super::{
    dense::{Block, DenseArm},
    features::Moment,
    index::{NOBODY, RecallIndex, Speaker},
    lexical::LexicalArm,
    ragged::Ragged,
    slots::Slots,
};

/// What a snapshot needs of an index. Vectors are shared, the rest is copied.
pub(crate) struct Captured {
    ids: Vec<MemoryId>,
    is_live: Vec<bool>,
    predecessors: BTreeMap<MemoryId, MemoryId>,
    dense: DenseArm,
    priors: Vec<f32>,
    moments: Ragged<Moment>,
    is_fact: Vec<bool>,
    speaker_of: Vec<u32>,
    speakers: BTreeMap<String, Speaker>,
    terms: Ragged<u32>,
    own_terms: Vec<u32>,
    words: Vec<Arc<str>>,
    aside: BTreeMap<MemoryId, Arc<[f32]>>,
}

impl RecallIndex {
    /// Takes a copy for a snapshot.
    pub(crate) fn capture(&self) -> Captured {
        Captured {
            ids: self.slots.ids.clone(),
            is_live: self.slots.is_live.clone(),
            predecessors: self.slots.predecessors().clone(),
            dense: self.dense.clone(),
            priors: self.priors.clone(),
            moments: self.moments.clone(),
            is_fact: self.is_fact.clone(),
            speaker_of: self.speaker_of.clone(),
            speakers: self.speakers.clone(),
            terms: self.terms.clone(),
            own_terms: self.own_terms.clone(),
            words: self.lexical.words().to_vec(),
            aside: self.aside.clone(),
        }
    }
}

impl Captured {
    /// The slots that count, in the order of their items' ids.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..self.ids.len()).filter(|slot| self.is_live[*slot]).collect();
        order.sort_unstable_by_key(|slot| self.ids[*slot]);
        order
    }

    /// Values of one vector; 0 if there are none.
    pub(crate) const fn dimensions(&self) -> usize {
        self.dense.dimensions()
    }

    /// Appends the vectors of some slots.
    pub(crate) fn store_vectors(&self, slots: &[usize], into: &mut Vec<u8>) {
        Block::store(slots.iter().map(|slot| self.dense.stored_slot(*slot)), into);
    }

    /// The vectors that recall leaves out for now.
    pub(crate) fn aside(&self) -> Vectors {
        let vectors = self.aside.iter().map(|(id, vector)| (*id, vector.to_vec()));
        Vectors { vectors: vectors.collect() }
    }

    /// Everything but vectors.
    pub(crate) fn recalled(&self, order: &[usize]) -> RecalledItems {
        let mut recalled = RecalledItems {
            speakers: self.speakers.keys().cloned().collect(),
            ..RecalledItems::default()
        };
        let speakers: BTreeMap<u32, u32> =
            self.speakers.values().map(|speaker| speaker.number).zip(0..).collect();
        let numbers = self.number_words(order, &mut recalled.words);
        for slot in order.iter().copied() {
            let id = self.ids[slot];
            recalled.ids.push(id);
            recalled.predecessors.push(self.predecessors.get(&id).copied());
            recalled.own_terms.push(self.own_terms[slot]);
            recalled.priors.push(self.priors[slot]);
            recalled.is_fact.push(self.is_fact[slot]);
            let speaker = speakers.get(&self.speaker_of[slot]);
            recalled.speaker_of.push(speaker.copied().unwrap_or(NOBODY));
            recalled.scales.push(self.dense.scale(slot));
            let terms = self.terms.row(slot).iter().map(|term| numbers[*term as usize]);
            recalled.terms.extend(terms);
            recalled.term_ends.push(end_of(&recalled.terms));
            let moments = self.moments.row(slot).iter();
            recalled.moments.extend(moments.map(|moment| (moment.year, moment.month, moment.day)));
            recalled.moment_ends.push(end_of(&recalled.moments));
        }
        recalled
    }

    /// Sorts the words that are in use, and tells each one's place by its number.
    fn number_words(&self, order: &[usize], words: &mut Vec<String>) -> Vec<u32> {
        let mut is_used = vec![false; self.words.len()];
        let terms = order.iter().flat_map(|slot| self.terms.row(*slot));
        terms.for_each(|term| is_used[*term as usize] = true);
        let mut used: Vec<usize> = (0..is_used.len()).filter(|number| is_used[*number]).collect();
        used.sort_unstable_by_key(|number| &self.words[*number]);
        let mut places = vec![0; self.words.len()];
        for (place, number) in (0..).zip(used) {
            places[number] = place;
            words.push(self.words[number].to_string());
        }
        places
    }
}

fn end_of<T>(values: &[T]) -> u32 {
    u32::try_from(values.len()).unwrap_or(u32::MAX)
}

/// What a snapshot held of an index.
pub(crate) struct Restored {
    pub(crate) recalled: RecalledItems,
    pub(crate) dimensions: usize,
    /// The sections of vectors.
    pub(crate) vectors: Vec<Bytes>,
    pub(crate) aside: Vectors,
}

impl Restored {
    /// Puts the index together, without the items that have changed since.
    ///
    /// # Errors
    /// What does not fit together; nothing that was written whole is refused.
    pub(crate) fn into_index(self, changed: &BTreeSet<MemoryId>) -> Result<RecallIndex, String> {
        let Self { recalled, dimensions, vectors, aside } = self;
        let count = recalled.ids.len();
        check_lengths(&recalled, count)?;
        let is_live: Vec<bool> = recalled.ids.iter().map(|id| !changed.contains(id)).collect();
        let blocks = blocks(vectors, count, dimensions)?;
        let dense = DenseArm::restore(dimensions, blocks, recalled.scales);
        let moments = recalled.moments.into_iter();
        let moments = moments.map(|(year, month, day)| Moment { year, month, day }).collect();
        let terms = Ragged::restore(recalled.term_ends, recalled.terms);
        let mut index = RecallIndex {
            dense: dense.ok_or("its vectors are incomplete")?,
            moments: Ragged::restore(recalled.moment_ends, moments).ok_or("its dates are wrong")?,
            terms: terms.ok_or("its terms are wrong")?,
            lexical: LexicalArm::with_words(recalled.words),
            slots: Slots::restore(recalled.ids, &recalled.predecessors, is_live),
            priors: recalled.priors,
            is_fact: recalled.is_fact,
            speaker_of: recalled.speaker_of,
            own_terms: recalled.own_terms,
            ..RecallIndex::default()
        };
        index.restore_speakers(recalled.speakers)?;
        index.restore_words()?;
        let aside = aside.vectors.into_iter().filter(|(id, _)| !changed.contains(id));
        index.aside = aside.map(|(id, vector)| (id, vector.into())).collect();
        Ok(index)
    }
}

fn check_lengths(recalled: &RecalledItems, count: usize) -> Result<(), String> {
    let lengths = [
        recalled.predecessors.len(),
        recalled.own_terms.len(),
        recalled.priors.len(),
        recalled.is_fact.len(),
        recalled.speaker_of.len(),
        recalled.term_ends.len(),
        recalled.moment_ends.len(),
        recalled.scales.len(),
    ];
    if lengths.iter().any(|length| *length != count) {
        return Err("its lists are of different lengths".to_owned());
    }
    let is_sorted = recalled.ids.is_sorted_by(|left, right| left < right)
        && recalled.words.is_sorted_by(|left, right| left < right);
    if is_sorted { Ok(()) } else { Err("its items or words are out of order".to_owned()) }
}

fn blocks(vectors: Vec<Bytes>, count: usize, dimensions: usize) -> Result<Vec<Block>, String> {
    let block = |(number, bytes): (usize, Bytes)| {
        let before = number * VECTOR_BLOCK_SLOTS;
        let slots = count.saturating_sub(before).min(VECTOR_BLOCK_SLOTS);
        Block::stored(bytes, slots, dimensions)
            .ok_or_else(|| "a block of vectors is not of the right length".to_owned())
    };
    vectors.into_iter().enumerate().map(block).collect()
}

impl RecallIndex {
    /// Counts the items of each speaker; those whose items have all changed are gone.
    fn restore_speakers(&mut self, names: Vec<String>) -> Result<(), String> {
        let mut items = vec![0_usize; names.len()];
        for slot in 0..self.slots.len() {
            let speaker = self.speaker_of[slot];
            if !self.slots.is_live[slot] {
                self.speaker_of[slot] = NOBODY;
            } else if speaker != NOBODY {
                let items = items.get_mut(speaker as usize).ok_or("a speaker has no name")?;
                *items += 1;
            }
        }
        self.next_speaker = end_of(&names);
        let speaker = |(number, items): (u32, usize)| Speaker { number, items };
        let counted = names.into_iter().zip((0..).zip(items).map(speaker));
        self.speakers = counted.filter(|(_, speaker)| speaker.items > 0).collect();
        Ok(())
    }

    /// Tells the lexical arm who holds which terms, and who neighbours whom.
    fn restore_words(&mut self) -> Result<(), String> {
        let words = end_of(self.lexical.words());
        if self.terms.values().iter().any(|term| *term >= words) {
            return Err("a term has no word".to_owned());
        }
        for (slot, number) in (0..self.slots.len()).zip(0_u32..) {
            if self.slots.is_live[slot] {
                let own_terms = self.own_terms[slot] as usize;
                self.lexical.push(number, self.terms.row(slot), own_terms);
            } else {
                self.lexical.push(number, &[], 0);
                self.dense.clear(slot);
                self.priors[slot] = f32::NEG_INFINITY;
            }
        }
        for (slot, number) in (0..self.slots.len()).zip(0_u32..) {
            if self.slots.is_live[slot] {
                self.lexical.refresh(&self.slots, number);
            }
        }
        Ok(())
    }
}
