//! Rules for what a cache should hold before the next turn: ours, and those that it is compared
//! with. Pure: the same moments in the same order give the same rankings.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use memcube_schemas::{
    MemoryId,
    scene::{SceneCandidate, SceneFeatures},
};

use super::predict::{Prediction, Predictor};
use crate::error::Error;

/// A rule by which memories are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Ours: the likelihoods of a [`Predictor`] that learns as it goes.
    Predictor,
    /// What is nearest to the last turn.
    LastTurn,
    /// What is nearest to the last three turns.
    LastThree,
    /// What turns had a use for, the last first.
    LastUsed,
    /// The working memory that MemOS's monitor keeps, as far as it can be told without its language
    /// model: what was found for the last turn joins what is there, all are ranked by their
    /// similarity to the last turns, and the first stay. The monitor's importance adds keywords and
    /// counts to `0.9 × rank`, but at most 0.35 in all, so that they never change the order.
    MemosMonitor,
}

impl Policy {
    /// All of them, ours first.
    pub const ALL: [Self; 5] =
        [Self::Predictor, Self::LastTurn, Self::LastThree, Self::LastUsed, Self::MemosMonitor];

    /// The name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Predictor => "predictor",
            Self::LastTurn => "last-turn",
            Self::LastThree => "last-three",
            Self::LastUsed => "lru",
            Self::MemosMonitor => "memos-monitor",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join("`, `");
            Error::invalid(format!("there is no policy `{name}`; there are `{names}`"))
        })
    }
}

/// A policy that follows a conversation: what it ranks by, and what it remembers of earlier turns.
#[derive(Debug, Clone)]
pub struct Ranker {
    policy: Policy,
    capacity: usize,
    predictor: Predictor,
    /// What the cache holds after the last ranking.
    resident: BTreeSet<MemoryId>,
    /// In which turn each memory was last of use, the first turn being 1.
    last_used: BTreeMap<MemoryId, u64>,
    /// What MemOS's monitor keeps, and what was found since it was ranked.
    working: BTreeSet<MemoryId>,
    turns: u64,
}

impl Ranker {
    /// Begins with a cache for `capacity` memories that is empty.
    #[must_use]
    pub fn new(policy: Policy, capacity: usize) -> Self {
        Self {
            policy,
            capacity,
            predictor: Predictor::default(),
            resident: BTreeSet::new(),
            last_used: BTreeMap::new(),
            working: BTreeSet::new(),
            turns: 0,
        }
    }

    /// The same with weights that were learned before.
    #[must_use]
    pub fn with_predictor(self, predictor: Predictor) -> Self {
        Self { predictor, ..self }
    }

    /// The policy that it follows.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// The memories that the policy wants to have ready for the next turn, most wanted first; the
    /// cache holds as many of them as it has room for.
    pub fn rank(&mut self, candidates: &[SceneCandidate], is_typing: bool) -> Vec<MemoryId> {
        let ranked = match self.policy {
            Policy::Predictor => {
                let predictions = self.predictor.predict(candidates, &self.resident, is_typing);
                predictions.iter().map(|Prediction { candidate, .. }| candidate.id).collect()
            }
            Policy::LastTurn => nearest(candidates, |features| features.last),
            Policy::LastThree => nearest(candidates, |features| features.recent),
            Policy::LastUsed => last_used(candidates, &self.last_used),
            Policy::MemosMonitor => {
                let ranked = monitored(candidates, &self.working, self.capacity);
                self.working = ranked.iter().copied().collect();
                ranked
            }
        };
        self.resident = ranked.iter().take(self.capacity).copied().collect();
        ranked
    }

    /// A turn was finished: it needed some of the memories that were ranked for it, and recall
    /// found more for it, best first.
    pub fn turn_finished(
        &mut self,
        candidates: &[SceneCandidate],
        needed: &[MemoryId],
        found: &[MemoryId],
        was_typing: bool,
    ) {
        self.turns += 1;
        match self.policy {
            Policy::Predictor => {
                let needed = needed.iter().copied().collect();
                self.predictor.learn(candidates, &needed, was_typing);
            }
            Policy::LastTurn | Policy::LastThree => {}
            // Of what one turn needed, the best counts as used last.
            Policy::LastUsed => {
                let turn = self.turns;
                self.last_used.extend(needed.iter().map(|id| (*id, turn)));
            }
            Policy::MemosMonitor => self.working.extend(found),
        }
    }
}

/// The candidates by a similarity; ties go to the newer memory.
#[must_use]
pub fn nearest(
    candidates: &[SceneCandidate],
    similarity: fn(&SceneFeatures) -> f32,
) -> Vec<MemoryId> {
    let mut ranked: Vec<_> =
        candidates.iter().map(|one| (similarity(&one.features), one.id)).collect();
    ranked.sort_by(|left, right| right.0.total_cmp(&left.0).then(right.1.cmp(&left.1)));
    ranked.into_iter().map(|(_, id)| id).collect()
}

/// The candidates by the turn that last had a use for them; those that none had, newest first.
#[must_use]
pub fn last_used(candidates: &[SceneCandidate], turns: &BTreeMap<MemoryId, u64>) -> Vec<MemoryId> {
    let mut ranked: Vec<_> = candidates
        .iter()
        .map(|candidate| (turns.get(&candidate.id).copied().unwrap_or(0), candidate.id))
        .collect();
    ranked.sort_unstable_by(|left, right| right.cmp(left));
    ranked.into_iter().map(|(_, id)| id).collect()
}

/// Those of the candidates that MemOS's monitor would keep, by their similarity to the last turns.
#[must_use]
pub fn monitored(
    candidates: &[SceneCandidate],
    working: &BTreeSet<MemoryId>,
    capacity: usize,
) -> Vec<MemoryId> {
    let mut ranked = nearest(candidates, |features| features.scene);
    ranked.retain(|id| working.contains(id));
    ranked.truncate(capacity);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> MemoryId {
        MemoryId::from_parts(number, 0)
    }

    fn candidate(number: u64, last: f32, recent: f32, scene: f32) -> SceneCandidate {
        let features = SceneFeatures { last, recent, scene, ..SceneFeatures::default() };
        SceneCandidate { id: id(number), revision: 1, tokens: 1, features }
    }

    #[test]
    fn each_policy_ranks_by_its_rule() {
        let candidates = [
            candidate(1, 3.0, 1.0, 1.0),
            candidate(2, 2.0, 2.0, 0.5),
            candidate(3, 1.0, 3.0, 2.0),
            candidate(4, 0.0, 0.0, 3.0),
        ];
        let table: [(Policy, &[u64], &[u64]); 5] = [
            (Policy::Predictor, &[3, 2, 1, 4], &[3, 2, 1, 4]),
            (Policy::LastTurn, &[1, 2, 3, 4], &[1, 2, 3, 4]),
            (Policy::LastThree, &[3, 2, 1, 4], &[3, 2, 1, 4]),
            (Policy::LastUsed, &[4, 3, 2, 1], &[2, 1, 4, 3]),
            // Of what was found, the three nearest to the scene.
            (Policy::MemosMonitor, &[], &[4, 1, 2]),
        ];
        for (policy, before, after) in table {
            let mut ranker = Ranker::new(policy, 3);
            let numbers = |ids: &[u64]| ids.iter().map(|number| id(*number)).collect::<Vec<_>>();
            assert_eq!(ranker.rank(&candidates, false), numbers(before), "{policy}");
            ranker.turn_finished(&candidates, &[id(1)], &[id(1), id(4)], false);
            ranker.turn_finished(&candidates, &[id(2)], &[id(2)], false);
            assert_eq!(ranker.rank(&candidates, false), numbers(after), "{policy}");
        }
    }

    #[test]
    fn the_monitor_forgets_what_it_has_no_room_for() {
        let candidates = [candidate(1, 0.0, 0.0, 2.0), candidate(2, 0.0, 0.0, 1.0)];
        let mut ranker = Ranker::new(Policy::MemosMonitor, 1);
        ranker.turn_finished(&candidates, &[], &[id(2)], false);
        assert_eq!(ranker.rank(&candidates, false), [id(2)]);
        ranker.turn_finished(&candidates, &[], &[id(1)], false);
        assert_eq!(ranker.rank(&candidates, false), [id(1)]);
        assert_eq!(ranker.rank(&candidates[1..], false), []);
    }

    #[test]
    fn names_are_read_back() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse::<Policy>().expect("its own name"), policy);
        }
        let error = "best".parse::<Policy>().expect_err("no such policy").to_string();
        assert!(error.contains("`best`") && error.contains("`last-three`"), "{error}");
    }
}
