//! Replays a decision log against another policy, for `memcube replay`: what it would have had
//! ready before each turn, and what the turn needed of that.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufRead,
};

use memcube_actors::{
    Error, Result,
    scheduler::{
        log::DecisionRecord,
        policy::{Policy, Ranker},
    },
};
use memcube_schemas::MemoryId;
use serde::Serialize;

/// How well a policy would have done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyReport {
    /// Which.
    pub policy: &'static str,
    /// Turns that needed something.
    pub turns: usize,
    /// The share of turns for which at least one needed memory was ready.
    pub hit: f64,
    /// The mean share of needed memories that were ready.
    pub cover: f64,
    /// Memories that were loaded for a turn, on average.
    pub loads: f64,
    /// The share of ready memories that were needed.
    pub useful: f64,
}

/// A conversation of a cube of a tenant.
type Talk = (String, String, String);

/// Sums over turns.
#[derive(Debug, Default)]
struct Sums {
    turns: usize,
    hits: usize,
    cover: f64,
    loads: usize,
    ready: usize,
    useful: usize,
}

/// Replays the log against each policy, with a cache for so many memories in every conversation.
/// What a turn needed can only be found among what was weighed then.
///
/// # Errors
/// `Invalid` for a line that is no decision, naming it.
pub fn replay(
    log: impl BufRead,
    policies: &[Policy],
    capacity: usize,
) -> Result<Vec<PolicyReport>> {
    let mut rankers: BTreeMap<(Talk, Policy), (Ranker, BTreeSet<MemoryId>)> = BTreeMap::new();
    let mut sums: BTreeMap<Policy, Sums> = BTreeMap::new();
    for (number, line) in (1..).zip(log.lines()) {
        let in_line = |error: &dyn std::fmt::Display| {
            Error::invalid(format!("line {number} of the log: {error}"))
        };
        let line = line.map_err(|error| in_line(&error))?;
        if line.trim().is_empty() {
            continue;
        }
        let record: DecisionRecord =
            serde_json::from_str(&line).map_err(|error| in_line(&error))?;
        let needed: BTreeSet<MemoryId> = record.needed.iter().copied().collect();
        for policy in policies {
            let talk = (
                record.tenant.to_string(),
                record.cube.to_string(),
                record.conversation.to_string(),
            );
            let known = rankers.entry((talk, *policy));
            let (ranker, before) =
                known.or_insert_with(|| (Ranker::new(*policy, capacity), BTreeSet::new()));
            let ranked = ranker.rank(&record.candidates, record.is_typing);
            let ready: BTreeSet<MemoryId> = ranked.into_iter().take(capacity).collect();
            let of_use = ready.intersection(&needed).count();
            if !needed.is_empty() {
                let sums = sums.entry(*policy).or_default();
                sums.turns += 1;
                sums.hits += usize::from(of_use > 0);
                sums.cover += of_use as f64 / needed.len() as f64;
                sums.loads += ready.difference(before).count();
                sums.ready += ready.len();
                sums.useful += of_use;
            }
            *before = ready;
            ranker.turn_finished(
                &record.candidates,
                &record.needed,
                &record.needed,
                record.is_typing,
            );
        }
    }
    let report = |policy: &Policy| {
        let empty = Sums::default();
        let Sums { turns, hits, cover, loads, ready, useful } = sums.get(policy).unwrap_or(&empty);
        let turn = (*turns).max(1) as f64;
        PolicyReport {
            policy: policy.as_str(),
            turns: *turns,
            hit: *hits as f64 / turn,
            cover: cover / turn,
            loads: *loads as f64 / turn,
            useful: *useful as f64 / (*ready).max(1) as f64,
        }
    };
    Ok(policies.iter().map(report).collect())
}

#[cfg(test)]
mod tests {
    use memcube_schemas::{
        ConversationId, CubeId, TenantId,
        scene::{SceneCandidate, SceneFeatures, SceneOutcome},
    };

    use super::*;

    fn line(needed: u64) -> String {
        let id = |number: u64| MemoryId::from_parts(number, 0);
        let candidate = |number: u64, last: f32, recent: f32| SceneCandidate {
            id: id(number),
            revision: 1,
            tokens: 5,
            features: SceneFeatures { last, recent, ..SceneFeatures::default() },
        };
        let record = DecisionRecord {
            tenant: TenantId::new("acme").expect("valid"),
            cube: CubeId::new("ann").expect("valid"),
            conversation: ConversationId::new("talk").expect("valid"),
            at_ms: 1,
            is_typing: false,
            candidates: vec![candidate(1, 3.0, 0.0), candidate(2, 0.0, 3.0)],
            held: Vec::new(),
            needed: vec![id(needed)],
            outcome: SceneOutcome::default(),
        };
        serde_json::to_string(&record).expect("JSON")
    }

    #[test]
    fn policies_are_judged_by_what_turns_needed() {
        let log = format!("{}\n\n{}\n{}\n", line(1), line(1), line(2));
        let policies = [Policy::LastTurn, Policy::LastThree];
        let reports = replay(log.as_bytes(), &policies, 1).expect("it is read");
        let told: Vec<_> =
            reports.iter().map(|r| (r.policy, r.turns, (r.cover * 3.0).round())).collect();
        assert_eq!(told, [("last-turn", 3, 2.0), ("last-three", 3, 1.0)]);
        // The cache of each holds the same memory all the time.
        assert!((reports[0].loads * 3.0 - 1.0).abs() < 1e-9);
        assert!((reports[0].useful - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_that_is_no_decision_is_named() {
        let log = format!("{}\nnonsense\n", line(1));
        let error = replay(log.as_bytes(), &Policy::ALL, 1).expect_err("it is refused");
        assert!(error.message().starts_with("line 2 of the log: "), "{error}");
        assert_eq!(replay(&b""[..], &[Policy::LastTurn], 1).expect("empty")[0].turns, 0);
    }
}
