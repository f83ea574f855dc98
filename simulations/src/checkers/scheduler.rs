//! What is prepared for a conversation is of its own cube; nothing that was begun for one is under
//! way when all is over; and no more is computed ahead for a tenant than its budget allows.
//!
//! It believes what schedulers tell of themselves: their decisions, and the timelines of their
//! conversations, as often as somebody looked. It cannot see what a conversation's timeline has
//! forgotten, what was computed for preloads that were overtaken, nor a memory of another cube that
//! was weighed and never told of. What engines really compute is for the checker `activation`.

use std::collections::BTreeMap;

use memcube_actors::scheduler::{FollowedScene, jobs::JobRules, log::DecisionRecord};
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, TenantId,
    scene::{PreloadState, SceneEntry, SceneOutcome},
};

use super::{case::Case, findings::Findings, title};
use crate::evidence::{SceneSample, Violation};

pub(super) const NAME: &str = "scheduler";

/// Looks at every decision, and at every conversation whenever somebody looked.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    for decision in &case.evidence.decisions {
        let DecisionRecord { tenant, cube, conversation, held, needed, outcome, .. } = decision;
        let candidates = decision.candidates.iter().map(|candidate| &candidate.id);
        let named = candidates.chain(held).chain(needed).chain(memories_of(outcome));
        let what = format!("the decision at {} ms of `{conversation}`", decision.at_ms);
        check_memories(case, (tenant, cube), &what, named, &mut findings);
    }
    for sample in &case.evidence.scenes {
        check_scene(case, sample, &mut findings);
    }
    if case.evidence.tokens_per_minute > 0 {
        check_budgets(case, &mut findings);
    }
    findings.into_violations()
}

fn memories_of(outcome: &SceneOutcome) -> impl Iterator<Item = &MemoryId> {
    let SceneOutcome { hits, late, wasted, held, missed, .. } = outcome;
    [hits, late, wasted, held, missed].into_iter().flatten()
}

/// The cube has held these memories, now or before.
fn check_memories<'a>(
    case: &Case<'_>,
    (tenant, cube): (&TenantId, &CubeId),
    what: &str,
    named: impl Iterator<Item = &'a MemoryId>,
    findings: &mut Findings,
) {
    let name = (tenant.clone(), cube.clone());
    let timeline = case.timelines.get(&name);
    for id in named {
        let was_held = timeline.is_some_and(|timeline| timeline.ever.contains_key(id));
        findings.expect(was_held, || {
            format!("{}: {what} names {id}, which the cube never held", title(&name))
        });
    }
}

fn check_scene(case: &Case<'_>, sample: &SceneSample, findings: &mut Findings) {
    let SceneSample { node, at_ms, at_rest, scene, .. } = sample;
    let FollowedScene { tenant, cube, conversation, timeline } = scene;
    let planned = timeline.entries.iter().flat_map(|entry| &entry.planned).map(|plan| &plan.id);
    let outcomes = timeline.entries.iter().filter_map(|entry| entry.outcome.as_ref());
    let named = planned.chain(outcomes.flat_map(memories_of)).chain(&timeline.working_set);
    let what = format!("the timeline of `{conversation}` at {node} at {at_ms} ms");
    check_memories(case, (tenant, cube), &what, named, findings);
    for entry in timeline.entries.iter().filter(|_| *at_rest) {
        findings.expect(entry.state != PreloadState::Running, || {
            let SceneEntry { number, reason, .. } = entry;
            format!(
                "{tenant}/{cube}: entry {number} ({reason:?}) of `{conversation}` at {node} was \
                 still under way at {at_ms} ms, when all was over"
            )
        });
    }
}

/// What was computed ahead for one tenant in one life of a node.
#[derive(Debug, Default)]
struct Spent<'a> {
    tokens: BTreeMap<(&'a CubeId, &'a ConversationId, u64), u64>,
    lived_ms: u64,
}

/// A tenant may spend a minute's tokens at once, then as many as time brings; what was under way
/// when they were spent goes on to its end.
fn check_budgets(case: &Case<'_>, findings: &mut Findings) {
    let per_minute = case.evidence.tokens_per_minute;
    let at_once = JobRules::default().at_once / 2;
    let mut tenants: BTreeMap<_, Spent<'_>> = BTreeMap::new();
    for SceneSample { node, life, since_ms, at_ms, scene, .. } in &case.evidence.scenes {
        let FollowedScene { tenant, cube, conversation, timeline } = scene;
        let spent = tenants.entry((node, life, tenant)).or_default();
        spent.lived_ms = spent.lived_ms.max(at_ms.saturating_sub(*since_ms));
        for entry in &timeline.entries {
            let tokens = spent.tokens.entry((cube, conversation, entry.number)).or_default();
            *tokens = entry.computed_tokens.max(*tokens);
        }
    }
    for ((node, life, tenant), Spent { tokens, lived_ms }) in tenants {
        let mut tokens: Vec<u64> = tokens.into_values().collect();
        tokens.sort_unstable();
        let within = tokens.len().saturating_sub(at_once);
        let computed: u64 = tokens[..within].iter().sum();
        let allowed = per_minute + per_minute * lived_ms / 60_000;
        findings.expect(computed <= allowed, || {
            format!(
                "{node}, life {life}: {computed} tokens were computed ahead for {tenant} in \
                 {lived_ms} ms besides the {at_once} largest preloads, {allowed} may be"
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use memcube_schemas::{
        NodeId,
        scene::{PlannedMemory, SceneReason, SceneTimeline},
    };

    use super::*;
    use crate::checkers::builder::{Scene, said};

    /// A run with two cubes of one name, and a memory in each.
    fn two_cubes() -> (Scene, MemoryId, MemoryId) {
        let mut scene = Scene::new();
        let own = scene.add(0, "mk1");
        scene.enter("apex", "ann");
        // Numbered on from the first, as ids of nodes never repeat.
        let other = scene.add(1, "mk2");
        scene.enter("acme", "ann");
        (scene, own, other)
    }

    fn entry(number: u64, state: PreloadState, planned: &[MemoryId], tokens: u64) -> SceneEntry {
        let planned = planned.iter().map(|id| PlannedMemory {
            id: *id,
            probability: 0.5,
            tokens: 5,
            because: "last".to_owned(),
        });
        SceneEntry {
            state,
            planned: planned.collect(),
            computed_tokens: tokens,
            ..SceneEntry::begun(number, 0, SceneReason::TurnFinished)
        }
    }

    fn sample(entries: Vec<SceneEntry>, at_rest: bool) -> SceneSample {
        let timeline = SceneTimeline { entries, ..SceneTimeline::default() };
        SceneSample {
            node: NodeId::new("n1").expect("valid"),
            life: 0,
            since_ms: 1_000,
            at_ms: 31_000,
            at_rest,
            scene: FollowedScene {
                tenant: TenantId::new("acme").expect("valid"),
                cube: CubeId::new("ann").expect("valid"),
                conversation: ConversationId::new("talk").expect("valid"),
                timeline,
            },
        }
    }

    fn verdict(scene: Scene) -> Vec<String> {
        said(&check(&Case::read(&scene.finish())))
    }

    #[test]
    fn what_is_named_is_of_the_cube() {
        let (mut scene, own, other) = two_cubes();
        let decision = |needed: Vec<MemoryId>, hits: Vec<MemoryId>| DecisionRecord {
            tenant: scene.cube.0.clone(),
            cube: scene.cube.1.clone(),
            conversation: ConversationId::new("talk").expect("valid"),
            at_ms: 7,
            is_typing: false,
            candidates: Vec::new(),
            held: Vec::new(),
            needed,
            outcome: SceneOutcome { hits, ..SceneOutcome::default() },
        };
        let (good, bad) = (decision(vec![own], vec![own]), decision(vec![own], vec![other]));
        scene.evidence.decisions = vec![good, bad];
        let loaded = |id| sample(vec![entry(1, PreloadState::Loaded, &[id], 0)], false);
        scene.evidence.scenes = vec![loaded(own), loaded(other)];
        assert_eq!(
            verdict(scene),
            [
                format!(
                    "acme/ann: the decision at 7 ms of `talk` names {other}, which the cube never \
                     held"
                ),
                format!(
                    "acme/ann: the timeline of `talk` at n1 at 31000 ms names {other}, which the \
                     cube never held"
                ),
            ]
        );
    }

    #[test]
    fn nothing_is_under_way_when_all_is_over() {
        for (state, at_rest, count) in [
            (PreloadState::Running, false, 0),
            (PreloadState::Running, true, 1),
            (PreloadState::Loaded, true, 0),
            (PreloadState::Overtaken, true, 0),
        ] {
            let mut scene = Scene::new();
            scene.evidence.scenes = vec![sample(vec![entry(3, state, &[], 0)], at_rest)];
            let told = verdict(scene);
            assert_eq!(told.len(), count, "{state:?}: {told:?}");
        }
        let mut scene = Scene::new();
        scene.evidence.scenes = vec![sample(vec![entry(3, PreloadState::Running, &[], 0)], true)];
        assert_eq!(
            verdict(scene),
            ["acme/ann: entry 3 (TurnFinished) of `talk` at n1 was still under way at 31000 ms, \
              when all was over"]
        );
    }

    #[test]
    fn budgets_hold_but_for_what_was_under_way() {
        let check_these = |tokens_per_minute: u64, spent: &[u64]| {
            let mut scene = Scene::new();
            let entry =
                |(number, tokens): (u64, &u64)| entry(number, PreloadState::Loaded, &[], *tokens);
            let entries: Vec<SceneEntry> = (1..).zip(spent).map(entry).collect();
            // Looked at twice, and counted once.
            scene.evidence.scenes = vec![sample(entries.clone(), false), sample(entries, true)];
            scene.evidence.tokens_per_minute = tokens_per_minute;
            verdict(scene)
        };
        let none: [&str; 0] = [];
        assert_eq!(check_these(0, &[9_000; 20]), none);
        // Half a minute: a full bucket, and half of one more.
        assert_eq!(check_these(100, &[400, 50, 50, 400, 50]), none);
        assert_eq!(
            check_these(100, &[400, 50, 50, 400, 51]),
            ["n1, life 0: 151 tokens were computed ahead for acme in 30000 ms besides the 2 \
              largest preloads, 150 may be"]
        );
    }
}
