//! Whose turn it is: weighted fair queueing over measured time. Pure.
//!
//! Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996). Every flow has a tag, the virtual
//! time up to which it has been served; the one with the smallest tag goes next, and its tag grows
//! by what the job takes, divided by the flow's weight. Virtual time is the tag of whoever went
//! last.
//!
//! What a job takes is known when it has ended, and several run at once. So a job is charged what
//! the flow's jobs took lately when it begins, and the difference when it ends.
//!
//! Invariant: no flow that waits is behind virtual time. Whoever had nothing to do, or was held
//! back by pauses or bounds of its own, gets no credit for it.

use std::{collections::BTreeMap, num::NonZeroU32};

/// A microsecond of a flow of weight 1. Divisible by small weights.
const UNIT: u128 = 720_720;
/// What the first job of a flow is charged when it begins.
const EXPECTED_US: u64 = 10_000;
/// By which share a job moves what is expected of the next one.
const LATELY: u64 = 4;

#[derive(Debug, Clone)]
struct Flow {
    weight: NonZeroU32,
    tag: u128,
    waiting: usize,
    running: usize,
    expected_us: u64,
}

impl Flow {
    const fn is_idle(&self) -> bool {
        self.waiting == 0 && self.running == 0
    }

    fn worth(&self, us: u64) -> u128 {
        u128::from(us) * UNIT / u128::from(self.weight.get())
    }
}

/// The flows that have something to do, or have had more than their share.
#[derive(Debug)]
pub(super) struct Fair<K> {
    flows: BTreeMap<K, Flow>,
    now: u128,
    running: usize,
    /// Flows remembered at the most, beyond those that have something to do.
    flows_max: usize,
}

impl<K: Ord + Clone> Fair<K> {
    pub(super) const fn new(flows_max: usize) -> Self {
        Self { flows: BTreeMap::new(), now: 0, running: 0, flows_max }
    }

    /// One more job of a flow waits.
    pub(super) fn arrived(&mut self, key: &K, weight: NonZeroU32) {
        if !self.flows.contains_key(key) {
            self.make_room();
        }
        let now = self.now;
        let fresh = || Flow { weight, tag: now, waiting: 0, running: 0, expected_us: EXPECTED_US };
        let flow = self.flows.entry(key.clone()).or_insert_with(fresh);
        flow.weight = weight;
        flow.tag = flow.tag.max(now);
        flow.waiting += 1;
    }

    /// Jobs of a flow that waited are gone.
    pub(super) fn withdrawn(&mut self, key: &K, jobs: usize) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.waiting = flow.waiting.saturating_sub(jobs);
        }
    }

    /// Takes the turn of the flow that is furthest behind, of those that may go now; and what it is
    /// charged, in microseconds. Of equals, one goes that runs less, or else stands first.
    pub(super) fn next(&mut self, mut may_go: impl FnMut(&K) -> bool) -> Option<(K, u64)> {
        let mut best: Option<((u128, usize), &K)> = None;
        let mut held_back = Vec::new();
        for (key, flow) in self.flows.iter().filter(|(_, flow)| flow.waiting > 0) {
            if !may_go(key) {
                held_back.push(key.clone());
            } else if best.is_none_or(|(least, _)| (flow.tag, flow.running) < least) {
                best = Some(((flow.tag, flow.running), key));
            }
        }
        let Some((tag, key)) = best.map(|((tag, _), key)| (tag, key.clone())) else {
            self.come_to_rest();
            return None;
        };
        self.now = self.now.max(tag);
        for key in held_back {
            if let Some(flow) = self.flows.get_mut(&key) {
                flow.tag = flow.tag.max(self.now);
            }
        }
        let flow = self.flows.get_mut(&key)?;
        let charged_us = flow.expected_us;
        flow.waiting -= 1;
        flow.running += 1;
        flow.tag += flow.worth(charged_us);
        self.running += 1;
        Some((key, charged_us))
    }

    /// A job has ended.
    pub(super) fn ended(&mut self, key: &K, charged_us: u64, took_us: u64) {
        self.running = self.running.saturating_sub(1);
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.running = flow.running.saturating_sub(1);
        let tag = (flow.tag + flow.worth(took_us)).saturating_sub(flow.worth(charged_us));
        flow.tag = tag.max(self.now);
        flow.expected_us = flow.expected_us - flow.expected_us / LATELY + took_us / LATELY;
    }

    /// Nothing runs and nobody may go: debts are between those who want something at the same time,
    /// and end here.
    fn come_to_rest(&mut self) {
        if self.running > 0 {
            return;
        }
        let furthest = self.flows.values().map(|flow| flow.tag).max();
        self.now = self.now.max(furthest.unwrap_or(0));
        self.flows.retain(|_, flow| !flow.is_idle());
        for flow in self.flows.values_mut() {
            flow.tag = self.now;
        }
    }

    /// A flow that is idle and owes nothing is as good as none; past the bound, those that owe
    /// least are forgotten as well.
    fn make_room(&mut self) {
        if self.flows.len() < self.flows_max {
            return;
        }
        let now = self.now;
        self.flows.retain(|_, flow| !flow.is_idle() || flow.tag > now);
        while self.flows.len() >= self.flows_max {
            let idle = self.flows.iter().filter(|(_, flow)| flow.is_idle());
            let Some(least) = idle.min_by_key(|(_, flow)| flow.tag).map(|(key, _)| key.clone())
            else {
                return;
            };
            self.flows.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn weight(weight: u32) -> NonZeroU32 {
        NonZeroU32::new(weight).expect("not zero")
    }

    /// Runs one job after another, and tells how long each flow was served.
    fn serve(
        fair: &mut Fair<&'static str>,
        turns: usize,
        took_us: impl Fn(&str) -> u64,
    ) -> BTreeMap<&'static str, u64> {
        let mut served = BTreeMap::new();
        for _ in 0..turns {
            let Some((key, charged_us)) = fair.next(|_| true) else { break };
            fair.ended(&key, charged_us, took_us(key));
            *served.entry(key).or_insert(0) += took_us(key);
        }
        served
    }

    #[test]
    fn flows_share_time_by_their_weights_whatever_their_jobs_take() {
        // (weights of a and b, microseconds of their jobs, the share of a)
        for (weights, took_us, share) in [
            ((1, 1), (1_000, 1_000), 0.5),
            ((1, 1), (1_000, 50_000), 0.5),
            ((3, 1), (1_000, 1_000), 0.75),
            ((1, 4), (20_000, 3_000), 0.2),
            ((2, 1), (100, 20_000), 0.667),
        ] {
            let mut fair = Fair::new(10);
            for _ in 0..1_000_000 {
                fair.arrived(&"a", weight(weights.0));
                fair.arrived(&"b", weight(weights.1));
            }
            let took = |key: &str| if key == "a" { took_us.0 } else { took_us.1 };
            // Enough for many rounds of the flow with the smaller jobs.
            let turns = 200 * (took_us.0.max(took_us.1) / took_us.0.min(took_us.1)) as usize;
            let served = serve(&mut fair, turns.clamp(2_000, 1_500_000), took);
            let all: u64 = served.values().sum();
            let got = served["a"] as f64 / all as f64;
            assert!((got - share).abs() < 0.03, "{weights:?} {took_us:?}: {got}, {share} is due");
        }
    }

    #[test]
    fn who_was_idle_or_held_back_gets_no_credit() {
        let mut fair = Fair::new(10);
        for _ in 0..1_000 {
            fair.arrived(&"a", ONE);
            fair.arrived(&"held", ONE);
        }
        for _ in 0..100 {
            let (key, charged_us) = fair.next(|key| *key != "held").expect("a waits");
            fair.ended(&key, charged_us, 10_000);
        }
        for _ in 0..1_000 {
            fair.arrived(&"late", ONE);
        }
        let served = serve(&mut fair, 30, |_| 10_000);
        assert_eq!(served, BTreeMap::from([("a", 100_000), ("held", 100_000), ("late", 100_000)]));
    }

    #[test]
    fn debts_last_while_somebody_else_wants_something() {
        let mut fair = Fair::new(10);
        fair.arrived(&"long", ONE);
        fair.arrived(&"short", ONE);
        // Both run; the long one takes a second.
        let first = fair.next(|_| true).expect("waits");
        let second = fair.next(|_| true).expect("waits");
        fair.ended(&first.0, first.1, 1_000_000);
        for _ in 0..200 {
            fair.arrived(&"long", ONE);
            fair.arrived(&"short", ONE);
        }
        fair.ended(&second.0, second.1, 10_000);
        let served = serve(&mut fair, 99, |_| 10_000);
        assert_eq!(served, BTreeMap::from([("short", 990_000)]), "the long one had its second");
        let served = serve(&mut fair, 20, |_| 10_000);
        assert!(served["long"] >= 90_000, "{served:?}");
        // After a rest nobody owes anything.
        serve(&mut fair, 1_000, |_| 10_000);
        fair.arrived(&"long", ONE);
        fair.arrived(&"short", ONE);
        assert_eq!(fair.next(|_| true).map(|(key, _)| key), Some("long"), "the order of keys");
        assert_eq!(fair.flows.len(), 2);
    }

    #[test]
    fn a_flow_does_not_begin_many_jobs_before_the_first_has_ended() {
        let mut fair = Fair::new(10);
        for _ in 0..100 {
            fair.arrived(&"a", ONE);
            fair.arrived(&"b", ONE);
        }
        let begun: Vec<&str> = (0..8).filter_map(|_| fair.next(|_| true)).map(|t| t.0).collect();
        assert_eq!(begun, ["a", "b", "a", "b", "a", "b", "a", "b"]);
    }

    #[test]
    fn flows_that_are_remembered_have_a_bound() {
        let mut fair = Fair::new(100);
        for number in 0..1_000_u32 {
            fair.arrived(&number, ONE);
            fair.arrived(&u32::MAX, ONE);
            let (key, charged_us) = fair.next(|key| *key != u32::MAX).expect("waits");
            fair.ended(&key, charged_us, 1_000 + u64::from(number));
            assert!(fair.flows.len() <= 101, "{}", fair.flows.len());
        }
    }

    proptest! {
        /// Two flows that always have something to do are never further apart than what was not
        /// known when it began: a job of each, for every place.
        #[test]
        fn nobody_falls_behind(
            took in proptest::collection::vec((1_u64..100_000, 1_u64..100_000), 1..200),
            places in 1_usize..5,
        ) {
            let mut fair = Fair::new(10);
            for _ in 0..took.len() * 4 {
                fair.arrived(&"a", ONE);
                fair.arrived(&"b", ONE);
            }
            let (mut running, mut served) = (std::collections::VecDeque::new(), BTreeMap::new());
            for (a_us, b_us) in took {
                while running.len() < places {
                    running.extend(fair.next(|_| true));
                }
                let Some((key, charged_us)) = running.pop_front() else { break };
                let took_us = if key == "a" { a_us } else { b_us };
                fair.ended(&key, charged_us, took_us);
                *served.entry(key).or_insert(0_u64) += took_us;
                let apart = served.get("a").copied().unwrap_or(0)
                    .abs_diff(served.get("b").copied().unwrap_or(0));
                prop_assert!(apart <= 200_000 * places as u64, "{apart} us apart");
            }
        }
    }
}
