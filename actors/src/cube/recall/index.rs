//! The arrays that recall reads, kept in step with the items of a cube.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use memcube_schemas::{MemoryId, memory::MemoryItem};

use super::{
    analysis::Analyzer,
    dense::DenseArm,
    features::{Form, Moment, form, without_dates},
    lexical::LexicalArm,
    ragged::Ragged,
    slots::{NONE, Slots},
};

/// Dead slots beyond this share of all make the index worth rebuilding.
const DEAD_SHARE: usize = 4;
const DEAD_MIN: usize = 64;

/// The speaker of items that only have a role.
pub(super) const NOBODY: u32 = u32::MAX;

/// Somebody who speaks in a cube.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speaker {
    pub(super) number: u32,
    pub(super) items: usize,
}

/// Everything that recall knows of a cube's items.
#[derive(Default)]
pub struct RecallIndex {
    pub(super) analyzer: Analyzer,
    pub(super) slots: Slots,
    pub(super) dense: DenseArm,
    pub(super) lexical: LexicalArm,
    /// Added to the score of each slot whatever is asked; nothing outweighs that of a dead one.
    pub(super) priors: Vec<f32>,
    /// When each item was said, and the dates that it names.
    pub(super) moments: Ragged<Moment>,
    /// Whether each item was given as a statement, so that it may be about anybody.
    pub(super) is_fact: Vec<bool>,
    /// The number of each item's speaker; `NOBODY` for mere roles.
    pub(super) speaker_of: Vec<u32>,
    /// The numbers of the terms of each slot, to take them out again.
    pub(super) terms: Ragged<u32>,
    pub(super) own_terms: Vec<u32>,
    /// First names of speakers.
    pub(super) speakers: BTreeMap<String, Speaker>,
    pub(super) next_speaker: u32,
    /// Vectors of items that recall leaves out for now.
    pub(super) aside: BTreeMap<MemoryId, Arc<[f32]>>,
}

impl fmt::Debug for RecallIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecallIndex").field("items", &self.slots.live()).finish_non_exhaustive()
    }
}

impl RecallIndex {
    /// Takes in an item behind the one that was said before it.
    pub fn insert(&mut self, item: &MemoryItem, vector: Option<&[f32]>) {
        let terms = self.analyzer.terms(&item.text);
        let terms: Vec<u32> = terms.iter().map(|term| self.lexical.number(term)).collect();
        let body = without_dates(&item.text);
        let speaker = item.speaker.as_deref().unwrap_or(item.role.as_str());
        let own = body.strip_prefix(speaker).and_then(|rest| rest.strip_prefix(": "));
        let own = own.unwrap_or(&body);
        let own_terms = self.analyzer.terms(own).len();
        let form = form(item, own, own_terms);
        self.push(item.id, item.previous, vector, &terms, own_terms, form);
    }

    fn push(
        &mut self,
        id: MemoryId,
        previous: Option<MemoryId>,
        vector: Option<&[f32]>,
        terms: &[u32],
        own_terms: usize,
        form: Form,
    ) {
        let speaker = form.speaker.as_deref().map_or(NOBODY, |name| self.count_speaker(name));
        let before = self.neighbourhood(previous);
        let slot = self.slots.push(id, previous);
        self.lexical.push(slot, terms, own_terms);
        self.dense.push(vector);
        self.priors.push(form.prior);
        self.moments.push(form.moments);
        self.is_fact.push(form.is_fact);
        self.speaker_of.push(speaker);
        self.terms.push(terms.iter().copied());
        self.own_terms.push(u32::try_from(own_terms).unwrap_or(u32::MAX));
        let after = [self.neighbourhood(previous), self.neighbourhood(Some(id))];
        self.refresh(before, after.into_iter().flatten());
    }

    /// A live item and those whose windows it stands in.
    fn neighbourhood(&self, id: Option<MemoryId>) -> BTreeSet<u32> {
        let Some(slot) = id.and_then(|id| self.slots.slot(id)) else { return BTreeSet::new() };
        let window = self.slots.window(slot).into_iter().filter(|neighbour| *neighbour != NONE);
        window.chain([slot]).collect()
    }

    /// Brings the windows of slots up to date whose neighbours came, went or changed.
    fn refresh(&mut self, mut touched: BTreeSet<u32>, also: impl Iterator<Item = u32>) {
        touched.extend(also);
        for slot in touched.into_iter().filter(|slot| self.slots.is_live[*slot as usize]) {
            self.lexical.refresh(&self.slots, slot);
        }
    }

    fn count_speaker(&mut self, name: &str) -> u32 {
        if let Some(speaker) = self.speakers.get_mut(name) {
            speaker.items += 1;
            return speaker.number;
        }
        let number = self.next_speaker;
        self.next_speaker += 1;
        self.speakers.insert(name.to_owned(), Speaker { number, items: 1 });
        number
    }

    fn forget_speaker(&mut self, number: u32) {
        self.speakers.retain(|_, speaker| {
            speaker.items -= usize::from(speaker.number == number);
            speaker.items > 0
        });
    }

    /// Takes an item out.
    pub fn remove(&mut self, id: MemoryId) {
        let Some(slot) = self.slots.slot(id) else { return };
        let previous = self.slots.predecessor(id);
        let mut before = self.neighbourhood(Some(id));
        before.extend(self.neighbourhood(previous));
        self.slots.remove(id);
        let place = slot as usize;
        self.lexical.remove(slot, self.terms.row(place));
        let after = self.neighbourhood(previous);
        self.refresh(before, after.into_iter());
        self.dense.clear(place);
        self.priors[place] = f32::NEG_INFINITY;
        let speaker = std::mem::replace(&mut self.speaker_of[place], NOBODY);
        if speaker != NOBODY {
            self.forget_speaker(speaker);
        }
        let dead = self.slots.dead();
        if dead > DEAD_MIN && dead * DEAD_SHARE > self.slots.len() {
            self.rebuild();
        }
    }

    /// Leaves the dead slots behind.
    fn rebuild(&mut self) {
        let former = std::mem::take(self);
        self.aside = former.aside;
        let mut names = BTreeMap::new();
        for (name, speaker) in former.speakers {
            names.insert(speaker.number, name);
        }
        // Words that nobody uses any more are left behind as well.
        let mut numbers = vec![None; former.lexical.words().len()];
        for slot in (0..former.slots.len()).filter(|slot| former.slots.is_live[*slot]) {
            let previous = former.slots.predecessor(former.slots.ids[slot]);
            let form = Form {
                speaker: names.get(&former.speaker_of[slot]).cloned(),
                prior: former.priors[slot],
                moments: former.moments.row(slot).to_vec(),
                is_fact: former.is_fact[slot],
            };
            let number = |term: &u32| {
                let word = &former.lexical.words()[*term as usize];
                *numbers[*term as usize].get_or_insert_with(|| self.lexical.number(word))
            };
            let terms: Vec<u32> = former.terms.row(slot).iter().map(number).collect();
            self.push(
                former.slots.ids[slot],
                previous,
                former.dense.vector(slot),
                &terms,
                former.own_terms[slot] as usize,
                form,
            );
        }
    }

    /// The vector of an item, if it has one.
    #[must_use]
    pub fn vector(&self, id: MemoryId) -> Option<Vec<f32>> {
        match self.slots.slot(id) {
            Some(slot) => self.dense.vector(slot as usize).map(<[f32]>::to_vec),
            None => self.aside.get(&id).map(|vector| vector.to_vec()),
        }
    }

    /// Keeps the vector of an item that recall leaves out for now.
    pub fn set_aside(&mut self, id: MemoryId, vector: Vec<f32>) {
        self.aside.insert(id, vector.into());
    }

    /// Drops a vector that was set aside.
    pub fn forget_aside(&mut self, id: MemoryId) {
        self.aside.remove(&id);
    }

    /// Items that recall looks at.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.live()
    }

    /// Whether there is nothing to find.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
