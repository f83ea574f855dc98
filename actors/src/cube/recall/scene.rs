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
    scene::{Access, NextSpeaker, SceneCandidate, SceneFeatures, SceneQuery},
};

use super::{
    analysis::Analyzer,
    features::first_name,
    index::RecallIndex,
    rank::{best_slots, weights},
    slots::NONE,
};

/// What one use counts before the logarithm.
const RECENCY_SCALE: f32 = 5.0;
/// Memories of a cube of which nothing is added to or taken from anybody's likelihood.
const MANY: f32 = 500.0;
const DAY_MS: f32 = 86_400_000.0;
/// Passages that slots are compared with, in this order: last, recent, scene, typed.
const PASSAGES: usize = 4;
const LAST: usize = 0;
const RECENT: usize = 1;
const SCENE: usize = 2;
const TYPED: usize = 3;
/// How much nearness to each passage counts when candidates are picked. Only what is far from all
/// of them is passed over, so the shares matter little.
const NEARNESS: [f32; PASSAGES] = [1.0, 1.0, 1.0, 2.0];

/// One value for each passage.
type Each = [f32; PASSAGES];

impl RecallIndex {
    /// The memories that are nearest to what was said, and those that were used lately.
    #[must_use]
    pub fn scene(
        &self,
        query: &SceneQuery,
        items: &BTreeMap<MemoryId, Arc<MemoryItem>>,
    ) -> Vec<SceneCandidate> {
        let near = self.nearness(query);
        let moment = Moment {
            speaker: self.who_speaks(query.next_speaker.as_ref()),
            accessed: query.accessed.iter().map(|access| (access.id, access)).collect(),
            now_ms: query.now_ms,
        };
        let sums: Vec<f32> = near
            .iter()
            .zip(&self.slots.is_live)
            .map(|(near, is_live)| match is_live {
                true => near.iter().zip(NEARNESS).map(|(near, weight)| near * weight).sum(),
                false => f32::NEG_INFINITY,
            })
            .collect();
        let used = moment.accessed.keys().filter_map(|id| self.slots.slot(*id));
        let mut pool: BTreeSet<u32> = used.take(query.candidates_max).collect();
        for slot in best_slots(&sums, &self.slots.ids, query.candidates_max) {
            if pool.len() == query.candidates_max {
                break;
            }
            pool.insert(slot);
        }
        let candidate = |slot: u32| {
            let id = self.slots.ids[slot as usize];
            let item = items.get(&id)?;
            if query.conversation.is_some() && item.conversation == query.conversation {
                return None;
            }
            let features = self.scene_features(&moment, &near, slot, item);
            Some(SceneCandidate { id, revision: item.revision, tokens: item.tokens, features })
        };
        pool.into_iter().filter_map(candidate).collect()
    }

    fn scene_features(
        &self,
        moment: &Moment<'_>,
        near: &[Each],
        slot: u32,
        item: &MemoryItem,
    ) -> SceneFeatures {
        let place = slot as usize;
        let [before, after, ..] = self.slots.window(slot);
        let access = |slot: u32| {
            let id = self.slots.ids.get(slot as usize)?;
            moment.accessed.get(id)
        };
        let recency =
            |slot: u32| access(slot).map_or(0.0, |access| (access.recency * RECENCY_SCALE).ln_1p());
        let said_ms = item.said_at_ms.unwrap_or(item.learned_at_ms);
        let used_ms = access(slot).map_or(said_ms, |access| access.at_ms.max(said_ms));
        SceneFeatures {
            last: near[place][LAST],
            recent: near[place][RECENT],
            scene: near[place][SCENE],
            typed: near[place][TYPED],
            speaker: if moment.speaker.has_said(self, place, item) { 1.0 } else { 0.0 },
            recency: recency(slot),
            frequency: access(slot).map_or(0.0, |access| (access.count as f32).ln_1p()),
            substance: (self.own_terms[place] as f32 / weights::LENGTH_FULL_TERMS).min(1.0),
            successor: if before == NONE { 0.0 } else { near[before as usize][LAST] },
            neighbour: recency(before).max(recency(after)),
            gap: days(used_ms, moment.now_ms).ln_1p(),
            hour: same_hour(said_ms, moment.now_ms),
            few: (MANY / self.slots.live().max(1) as f32).ln(),
        }
    }

    /// The similarity of every slot to every passage: words and meanings, as a z-score. 0 where
    /// neither tells anything.
    fn nearness(&self, query: &SceneQuery) -> Vec<Each> {
        let typed = query.typed.as_ref();
        let times = terms(
            &self.analyzer,
            [&query.last.text, &query.recent.text, &query.scene.text],
            typed.map(|typed| typed.text.as_str()),
        );
        let lexical = self.lexical.scores_each(&self.slots, &times);
        let dense = self.dense.scan_each([
            query.last.vector.as_deref(),
            query.recent.vector.as_deref(),
            query.scene.vector.as_deref(),
            typed.and_then(|typed| typed.vector.as_deref()),
        ]);
        let is_live = &self.slots.is_live;
        let words = Standards::of(&lexical, is_live, f32::EPSILON);
        let meanings = Standards::of(&dense, is_live, weights::DENSE_SPREAD_MIN);
        let mut sums: Vec<Each> = lexical
            .iter()
            .zip(&dense)
            .map(|(lexical, dense)| {
                let (words, meanings) = (words.z(lexical), meanings.z(dense));
                std::array::from_fn(|passage| {
                    weights::LEXICAL * words[passage] + weights::DENSE * meanings[passage]
                })
            })
            .collect();
        let standards = Standards::of(&sums, is_live, f32::EPSILON);
        sums.iter_mut().for_each(|sums| *sums = standards.z(sums));
        sums
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

/// What is known of the moment before the next turn, besides words.
struct Moment<'a> {
    speaker: WhoSpeaks,
    accessed: BTreeMap<MemoryId, &'a Access>,
    now_ms: i64,
}

/// How often each term stands in each passage. The last turns are the end of the scene: where a
/// passage ends with the one before it, only the rest is read.
fn terms(
    analyzer: &Analyzer,
    growing: [&String; 3],
    typed: Option<&str>,
) -> BTreeMap<String, Each> {
    let mut times: BTreeMap<String, Each> = BTreeMap::new();
    let mut known = "";
    for (passage, text) in growing.into_iter().enumerate() {
        let rest = text.strip_suffix(known).filter(|rest| rest.is_empty() || rest.ends_with('\n'));
        if rest.is_none() {
            times.values_mut().for_each(|times| times[passage..].fill(0.0));
        }
        for term in analyzer.terms(rest.unwrap_or(text)) {
            let times = times.entry(term).or_default();
            times[passage..TYPED].iter_mut().for_each(|times| *times += 1.0);
        }
        known = text;
    }
    for term in typed.map(|typed| analyzer.terms(typed)).unwrap_or_default() {
        times.entry(term).or_default()[TYPED] += 1.0;
    }
    times
}

/// Turns the values of each passage into z-scores: how many standard deviations they lie above the
/// mean of the live slots.
struct Standards {
    means: Each,
    inverse_spreads: Each,
}

impl Standards {
    /// A spread below `spread_min` counts as that much, so that a handful of like values makes no
    /// difference.
    fn of(values: &[Each], is_live: &[bool], spread_min: f32) -> Self {
        let (mut sums, mut squares) = ([0.0_f64; PASSAGES], [0.0_f64; PASSAGES]);
        let mut count = 0_u32;
        for (values, is_live) in values.iter().zip(is_live) {
            if *is_live {
                count += 1;
                for (passage, value) in values.iter().enumerate() {
                    let value = f64::from(*value);
                    sums[passage] += value;
                    squares[passage] += value * value;
                }
            }
        }
        let count = f64::from(count.max(1));
        let means = sums.map(|sum| sum / count);
        let inverse_spreads = std::array::from_fn(|passage| {
            let variance = (squares[passage] / count - means[passage] * means[passage]).max(0.0);
            1.0 / (variance.sqrt() as f32).max(spread_min)
        });
        Self { means: means.map(|mean| mean as f32), inverse_spreads }
    }

    fn z(&self, values: &Each) -> Each {
        std::array::from_fn(|passage| {
            (values[passage] - self.means[passage]) * self.inverse_spreads[passage]
        })
    }
}

/// Days between two times, never negative.
fn days(from_ms: i64, to_ms: i64) -> f32 {
    to_ms.saturating_sub(from_ms).max(0) as f32 / DAY_MS
}

/// How near two times of the day are: 1 for the same, 0 for twelve hours apart.
fn same_hour(one_ms: i64, other_ms: i64) -> f32 {
    let apart = days(0, one_ms.saturating_sub(other_ms).saturating_abs()).fract();
    1.0 - 2.0 * apart.min(1.0 - apart)
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

#[cfg(test)]
mod tests {
    use memcube_schemas::{
        ConversationId, Version,
        memory::{MemoryKind, MemoryStatus},
        scene::Passage,
    };

    use super::*;

    const NOON_MS: i64 = 1_700_049_600_000;
    const HOUR_MS: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR_MS;

    fn id(number: u64) -> MemoryId {
        MemoryId::from_parts(number, 0)
    }

    fn passage(text: &str, vector: [f32; 2]) -> Passage {
        Passage { text: text.to_owned(), vector: Some(vector.to_vec()) }
    }

    /// Three former turns of Ann and Bo, one of the running conversation, each a day after the one
    /// before it.
    fn world() -> (RecallIndex, BTreeMap<MemoryId, Arc<MemoryItem>>) {
        const TURNS: [(&str, &str, [f32; 2]); 4] = [
            ("Ann", "What shall we cook on Sunday?", [0.0, 1.0]),
            (
                "Bo",
                "Lasagne with spinach and plenty of ricotta cheese, like my mother did.",
                [0.8, 0.6],
            ),
            ("Ann", "My bicycle has a flat tyre again.", [1.0, 0.0]),
            ("Bo", "I am hungry!", [0.6, 0.8]),
        ];
        let (mut index, mut items) = (RecallIndex::default(), BTreeMap::new());
        for (number, (speaker, text, vector)) in (0_u64..).zip(TURNS) {
            let conversation = if number == 3 { "now" } else { "before" };
            let said_at_ms = NOON_MS + i64::try_from(number).expect("a few") * DAY;
            let item = MemoryItem {
                id: id(number),
                kind: MemoryKind::Episode,
                status: MemoryStatus::Activated,
                text: format!("{speaker}: {text}"),
                speaker: Some(speaker.to_owned()),
                role: Role::User,
                said_at_ms: Some(said_at_ms),
                learned_at_ms: said_at_ms,
                updated_at_ms: said_at_ms,
                conversation: ConversationId::new(conversation).ok(),
                previous: (number == 1 || number == 2).then(|| id(number - 1)),
                part: None,
                tags: Vec::new(),
                info: String::new(),
                sources: Vec::new(),
                occurrences: 1,
                tokens: 9,
                revision: 2,
                version: Version(1),
            };
            index.insert(&item, Some(&vector));
            items.insert(item.id, Arc::new(item));
        }
        (index, items)
    }

    fn query() -> SceneQuery {
        let said = passage("Let us cook something on Sunday", [0.0, 1.0]);
        SceneQuery {
            last: said.clone(),
            recent: said.clone(),
            scene: said,
            typed: None,
            next_speaker: Some(NextSpeaker::Named("Bo".to_owned())),
            accessed: vec![Access { id: id(2), recency: 1.0, count: 3, at_ms: NOON_MS + 3 * DAY }],
            conversation: ConversationId::new("now").ok(),
            now_ms: NOON_MS + 4 * DAY + 6 * HOUR_MS,
            candidates_max: 10,
        }
    }

    #[test]
    fn what_is_known_of_each_memory_is_told() {
        let (index, items) = world();
        let found = index.scene(&query(), &items);
        let ids: Vec<_> = found.iter().map(|candidate| candidate.id).collect();
        assert_eq!(ids, [id(0), id(1), id(2)], "the running conversation is left out");
        let [cook, lasagne, bicycle] = [0, 1, 2].map(|place| found[place].features);
        assert!(cook.last > lasagne.last && lasagne.last > bicycle.last, "{found:?}");
        assert_eq!((cook.last, cook.typed), (cook.scene, 0.0));
        // What followed something like the last turn may follow again.
        assert_eq!([cook.successor, lasagne.successor], [0.0, cook.last]);
        assert_eq!([cook, lasagne, bicycle].map(|f| f.speaker), [0.0, 1.0, 0.0]);
        assert_eq!([cook, lasagne, bicycle].map(|f| f.recency > 0.0), [false, false, true]);
        assert_eq!(lasagne.neighbour, bicycle.recency);
        assert_eq!((cook.neighbour, bicycle.neighbour), (0.0, 0.0));
        assert!((bicycle.frequency - 4.0_f32.ln()).abs() < 1e-6);
        // 4.25 days since it was said; 1.25 since it was of use.
        assert!((cook.gap - 5.25_f32.ln()).abs() < 1e-5, "{cook:?}");
        assert!((bicycle.gap - 2.25_f32.ln()).abs() < 1e-5, "{bicycle:?}");
        assert!((cook.hour - 0.5).abs() < 1e-5, "six hours later in the day: {cook:?}");
        assert!(cook.substance < lasagne.substance);
        assert_eq!((found[0].tokens, found[0].revision), (9, 2));
    }

    #[test]
    fn typing_shows_and_the_number_of_candidates_is_kept() {
        let (index, items) = world();
        let typed = Some(passage("the bicycle", [1.0, 0.0]));
        let found = index.scene(&SceneQuery { typed, ..query() }, &items);
        let most = found.iter().max_by(|l, r| l.features.typed.total_cmp(&r.features.typed));
        assert_eq!(most.map(|candidate| candidate.id), Some(id(2)));
        let few = index.scene(&SceneQuery { candidates_max: 2, ..query() }, &items);
        let ids: Vec<_> = few.iter().map(|candidate| candidate.id).collect();
        assert_eq!(ids, [id(0), id(2)], "the nearest, and what was used");
        assert_eq!(RecallIndex::default().scene(&query(), &items), []);
        // Without words and vectors nothing is near, and nothing is NaN.
        let nothing = Passage::default();
        let silent = SceneQuery {
            last: nothing.clone(),
            recent: nothing.clone(),
            scene: nothing,
            ..query()
        };
        let found = index.scene(&silent, &items);
        assert!(found.iter().all(|found| found.features.last == 0.0), "{found:?}");
    }

    #[test]
    fn terms_of_growing_passages_are_counted_once_for_each() {
        let analyzer = Analyzer::default();
        let text = |text: &str| text.to_owned();
        let (last, recent, scene) =
            (text("red fox"), text("blue fox\nred fox"), text("green\nblue fox\nred fox"));
        let grown = terms(&analyzer, [&last, &recent, &scene], Some("fox fox"));
        let table = [
            ("red", [1.0, 1.0, 1.0, 0.0]),
            ("fox", [1.0, 2.0, 2.0, 2.0]),
            ("blue", [0.0, 1.0, 1.0, 0.0]),
            ("green", [0.0, 0.0, 1.0, 0.0]),
        ];
        for (term, times) in table {
            assert_eq!(grown[term], times, "{term}");
        }
        // Passages that do not grow are read by themselves; the end of a word is no passage.
        let apart = terms(&analyzer, [&last, &text("cat"), &text("tomcat")], None);
        let table = [
            ("red", [1.0, 0.0, 0.0, 0.0]),
            ("cat", [0.0, 1.0, 0.0, 0.0]),
            ("tomcat", [0.0, 0.0, 1.0, 0.0]),
        ];
        for (term, times) in table {
            assert_eq!(apart[term], times, "{term}");
        }
    }

    #[test]
    fn words_at_once_score_as_words_alone() {
        let (index, _) = world();
        let text = "cook spinach on Sunday, cook";
        let list = index.analyzer.terms(text);
        let alone = index.lexical.scores(&index.slots, &list).expect("there are words");
        let times = terms(&index.analyzer, [&text.to_owned(); 3], None);
        let at_once = index.lexical.scores_each(&index.slots, &times);
        for (alone, at_once) in alone.iter().zip(at_once) {
            assert!((alone - at_once[LAST]).abs() < 1e-4 && at_once[TYPED] == 0.0);
        }
    }

    #[test]
    fn hours_are_compared_around_midnight() {
        let table = [(0, 24, 1.0), (23, 1, 5.0 / 6.0), (6, 18, 0.0), (18, 6, 0.0), (0, 30, 0.5)];
        for (one, other, expected) in table {
            let found = same_hour(one * HOUR_MS, other * HOUR_MS);
            assert!((found - expected).abs() < 1e-5, "{one} {other}: {found}");
        }
    }
}
