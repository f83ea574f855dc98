//! What the next turn of a conversation may need: the memories that are near to what was said, with
//! what is known of each. Pure; weighing it is the scheduler's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use memcube_schemas::{
    MemoryId,
    conversation::Role,
    memory::MemoryItem,
    scene::{Access, NextSpeaker, Passage, SceneCandidate, SceneFeatures, SceneQuery},
};

use super::{
    features::first_name,
    index::RecallIndex,
    rank::{Standard, best_slots, weights},
};

/// Slots that are looked at for each candidate that is wanted: speaker and use may lift one that
/// words and meanings leave behind.
const LOOKED_AT_PER_CANDIDATE: usize = 4;
/// What one use counts before the logarithm.
const RECENCY_SCALE: f32 = 5.0;

/// Similarity of every slot to a passage: words and meanings, as a z-score. Nothing where neither
/// tells anything.
struct Similarity {
    sums: Vec<f32>,
    standard: Standard,
}

impl Similarity {
    const NONE: Self = Self { sums: Vec::new(), standard: Standard::NONE };

    fn z(&self, slot: usize) -> f32 {
        self.sums.get(slot).map_or(0.0, |sum| self.standard.z(*sum))
    }
}

impl RecallIndex {
    /// The memories that are nearest to what was said, and those that were used lately.
    #[must_use]
    pub fn scene(
        &self,
        query: &SceneQuery,
        items: &BTreeMap<MemoryId, Arc<MemoryItem>>,
    ) -> Vec<SceneCandidate> {
        let last = self.similarity(&query.last);
        let recent = self.similarity(&query.recent);
        let scene = self.similarity(&query.scene);
        let typed = query.typed.as_ref().map_or(Similarity::NONE, |typed| self.similarity(typed));
        let speaker = self.who_speaks(query.next_speaker.as_ref());
        let accessed: BTreeMap<MemoryId, &Access> =
            query.accessed.iter().map(|access| (access.id, access)).collect();
        let mut nearness: Vec<f32> = (0..self.slots.len())
            .map(|slot| last.z(slot) + recent.z(slot) + scene.z(slot) + 2.0 * typed.z(slot))
            .collect();
        for (slot, near) in nearness.iter_mut().enumerate() {
            if !self.slots.is_live[slot] {
                *near = f32::NEG_INFINITY;
            }
        }
        let depth = query.candidates_max.saturating_mul(LOOKED_AT_PER_CANDIDATE);
        let near = best_slots(&nearness, &self.slots.ids, depth);
        let used = accessed.keys().filter_map(|id| self.slots.slot(*id));
        let pool: BTreeSet<u32> = near.into_iter().chain(used).collect();
        let candidate = |slot: u32| {
            let slot = slot as usize;
            let id = self.slots.ids[slot];
            let item = items.get(&id)?;
            if query.conversation.is_some() && item.conversation == query.conversation {
                return None;
            }
            let access = accessed.get(&id);
            let features = SceneFeatures {
                last: last.z(slot),
                recent: recent.z(slot),
                scene: scene.z(slot),
                typed: typed.z(slot),
                speaker: if speaker.has_said(self, slot, item) { 1.0 } else { 0.0 },
                recency: access.map_or(0.0, |access| (access.recency * RECENCY_SCALE).ln_1p()),
                frequency: access.map_or(0.0, |access| (access.count as f32).ln_1p()),
                substance: (self.own_terms[slot] as f32 / weights::LENGTH_FULL_TERMS).min(1.0),
            };
            Some(SceneCandidate { id, revision: item.revision, tokens: item.tokens, features })
        };
        pool.into_iter().filter_map(candidate).collect()
    }

    fn similarity(&self, passage: &Passage) -> Similarity {
        let live = self.slots.live();
        let terms = self.analyzer.terms(&passage.text);
        let lexical = self.lexical.scores(&self.slots, &terms);
        let dense = passage.vector.as_deref().and_then(|vector| self.dense.scan(vector));
        let mut sums = vec![0.0_f32; self.slots.len()];
        let mut add = |scores: &[f32], weight: f32, spread_min: f32| {
            let standard = Standard::of(scores, live, spread_min);
            for (slot, sum) in sums.iter_mut().enumerate() {
                if self.slots.is_live[slot] {
                    *sum += weight * standard.z(scores[slot]);
                }
            }
        };
        match (&lexical, &dense) {
            (None, None) => return Similarity::NONE,
            (lexical, dense) => {
                if let Some(scores) = lexical {
                    add(scores, weights::LEXICAL, f32::EPSILON);
                }
                if let Some(scores) = dense {
                    add(scores, weights::DENSE, weights::DENSE_SPREAD_MIN);
                }
            }
        }
        let standard = Standard::of(&sums, live, f32::EPSILON);
        Similarity { sums, standard }
    }

    fn who_speaks(&self, next: Option<&NextSpeaker>) -> WhoSpeaks {
        match next {
            None => WhoSpeaks::Anybody,
            Some(NextSpeaker::User) => WhoSpeaks::User,
            Some(NextSpeaker::Named(name)) => {
                let known = first_name(name).and_then(|name| self.speakers.get(&name));
                known.map_or(WhoSpeaks::Anybody, |speaker| WhoSpeaks::Speaker(speaker.number))
            }
        }
    }
}

/// Who is likely to speak next, as the index knows them.
enum WhoSpeaks {
    Anybody,
    User,
    Speaker(u32),
}

impl WhoSpeaks {
    fn has_said(&self, index: &RecallIndex, slot: usize, item: &MemoryItem) -> bool {
        match self {
            Self::Anybody => false,
            Self::User => item.role == Role::User,
            Self::Speaker(number) => index.speaker_of[slot] == *number,
        }
    }
}
