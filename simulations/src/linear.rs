//! Whether a history of overlapping operations could have happened one after the other.
//!
//! The search of Wing and Gong (1993) with the memory of Lowe (2017): an order is built from the
//! front, taking any operation that began before every open one had returned, and a pair of *what
//! was taken* and *state* is never looked at twice. An operation whose outcome is unknown may take
//! its place at any time after its call, or never. Each of those doubles what must be looked at, so
//! the search has a budget and may end without a verdict.

use std::collections::BTreeSet;

/// What the operations work on, as it would behave if they came one by one.
pub(crate) trait Model {
    /// What may differ between two points of time.
    type State: Clone + Ord;
    /// A call together with its answer.
    type Operation;

    /// The state before the first operation.
    fn start(&self) -> Self::State;

    /// The state after an operation, or `None` if it could not have been answered so here.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether the operation never changes any state. Such a one is taken as soon as it fits: no
    /// order that takes it later can do what this one cannot.
    fn is_read(&self, operation: &Self::Operation) -> bool;
}

/// An operation with the time that it took.
#[derive(Debug, Clone)]
pub(crate) struct Timed<O> {
    /// What was asked and answered.
    pub(crate) operation: O,
    /// When it was asked.
    pub(crate) invoked: u64,
    /// When it was answered; `None` if nobody knows whether it happened.
    pub(crate) returned: Option<u64>,
}

/// What the search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none; the longest beginning of one ends before this operation.
    Impossible {
        /// Its place in the slice that was searched.
        stuck: usize,
    },
    /// The budget was spent before either was certain.
    Undecided,
}

/// Searches for an order. Looks at no more than `budget` pairs of what was taken and state.
///
/// The operations must be sorted by the time of their call.
pub(crate) fn search<M: Model>(
    model: &M,
    operations: &[Timed<M::Operation>],
    budget: usize,
) -> Verdict {
    debug_assert!(operations.is_sorted_by_key(|timed| timed.invoked));
    let mut known = BTreeSet::new();
    let mut open = vec![Taken::nothing(operations.len(), model.start())];
    let mut farthest = (0, 0);
    for _ in 0..budget {
        let Some(mut taken) = open.pop() else {
            return Verdict::Impossible { stuck: farthest.1 };
        };
        let ready = taken.take_reads(model, operations);
        let Some(stuck) = taken.first_unanswered(operations) else { return Verdict::Linearizable };
        farthest = farthest.max((taken.count, stuck));
        // The stack gives back the last one first: an early operation is tried before a late one,
        // and one that is known to have happened before one that may not have.
        let (certain, unsure): (Vec<usize>, Vec<usize>) =
            ready.into_iter().partition(|index| operations[*index].returned.is_some());
        for index in unsure.into_iter().rev().chain(certain.into_iter().rev()) {
            let operation = &operations[index].operation;
            let next = model.step(&taken.state, operation).map(|state| taken.with(index, state));
            if let Some(next) = next
                && known.insert((next.bits.clone(), next.state.clone()))
            {
                open.push(next);
            }
        }
    }
    if open.is_empty() { Verdict::Impossible { stuck: farthest.1 } } else { Verdict::Undecided }
}

/// A beginning of an order: which operations it holds, and the state after them.
struct Taken<S> {
    bits: Vec<u64>,
    /// Before this place every operation is taken.
    first_open: usize,
    count: usize,
    state: S,
}

impl<S: Clone> Taken<S> {
    fn nothing(operations: usize, state: S) -> Self {
        Self { bits: vec![0; operations.div_ceil(64)], first_open: 0, count: 0, state }
    }

    fn has(&self, index: usize) -> bool {
        self.bits[index / 64] >> (index % 64) & 1 == 1
    }

    fn take(&mut self, index: usize) {
        self.bits[index / 64] |= 1 << (index % 64);
        self.count += 1;
    }

    fn with(&self, index: usize, state: S) -> Self {
        let bits = self.bits.clone();
        let mut next = Self { bits, first_open: self.first_open, count: self.count, state };
        next.take(index);
        next
    }

    /// Takes every read that may come next and fits the state, and returns what else may come next.
    fn take_reads<M: Model<State = S>>(
        &mut self,
        model: &M,
        operations: &[Timed<M::Operation>],
    ) -> Vec<usize> {
        loop {
            while self.first_open < operations.len() && self.has(self.first_open) {
                self.first_open += 1;
            }
            let mut ready = self.ready(operations);
            let before = ready.len();
            ready.retain(|index| {
                let operation = &operations[*index].operation;
                let fits = model.is_read(operation) && model.step(&self.state, operation).is_some();
                if fits {
                    self.take(*index);
                }
                !fits
            });
            if ready.len() == before {
                return ready;
            }
        }
    }

    /// The open operations that were called before any open one had returned.
    fn ready<O>(&self, operations: &[Timed<O>]) -> Vec<usize> {
        let mut first_return = u64::MAX;
        let mut ready = Vec::new();
        for (index, timed) in operations.iter().enumerate().skip(self.first_open) {
            // Later ones were called later still, and returned after that.
            if timed.invoked > first_return {
                break;
            }
            if !self.has(index) {
                first_return = first_return.min(timed.returned.unwrap_or(u64::MAX));
                ready.push(index);
            }
        }
        ready.retain(|index| operations[*index].invoked <= first_return);
        ready
    }

    fn first_unanswered<O>(&self, operations: &[Timed<O>]) -> Option<usize> {
        (self.first_open..operations.len())
            .find(|index| !self.has(*index) && operations[*index].returned.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that can be read and written.
    struct Register;

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Read(u32),
        Write(u32),
    }

    impl Model for Register {
        type State = u32;
        type Operation = Op;

        fn start(&self) -> u32 {
            0
        }

        fn step(&self, state: &u32, operation: &Op) -> Option<u32> {
            match operation {
                Op::Read(value) => (value == state).then_some(*state),
                Op::Write(value) => Some(*value),
            }
        }

        fn is_read(&self, operation: &Op) -> bool {
            matches!(operation, Op::Read(_))
        }
    }

    /// An operation, when it was asked, and when it was answered.
    type Call = (Op, u64, Option<u64>);

    fn judge(operations: &[Call]) -> Verdict {
        let timed: Vec<Timed<Op>> = operations
            .iter()
            .map(|(operation, invoked, returned)| Timed {
                operation: *operation,
                invoked: *invoked,
                returned: *returned,
            })
            .collect();
        search(&Register, &timed, 10_000)
    }

    #[test]
    fn histories_that_could_have_happened_one_by_one_are_told_apart() {
        use Op::{Read, Write};
        use Verdict::{Impossible, Linearizable};
        let cases: [(&str, &[Call], Verdict); 10] = [
            ("nothing at all", &[], Linearizable),
            ("one by one", &[(Write(1), 1, Some(2)), (Read(1), 3, Some(4))], Linearizable),
            (
                "a read sees the past",
                &[(Write(1), 1, Some(2)), (Read(0), 3, Some(4))],
                Impossible { stuck: 1 },
            ),
            (
                "a read during a write may see either",
                &[(Write(1), 1, Some(9)), (Read(0), 2, Some(3)), (Read(1), 4, Some(5))],
                Linearizable,
            ),
            (
                "but not the old after the new",
                &[(Write(1), 1, Some(9)), (Read(1), 2, Some(3)), (Read(0), 4, Some(5))],
                Impossible { stuck: 2 },
            ),
            (
                "two writes at once end in either order",
                &[(Write(1), 1, Some(5)), (Write(2), 2, Some(6)), (Read(1), 7, Some(8))],
                Linearizable,
            ),
            (
                "an unknown write may take effect late",
                &[(Write(1), 1, None), (Read(0), 2, Some(3)), (Read(1), 4, Some(5))],
                Linearizable,
            ),
            ("or never", &[(Write(1), 1, None), (Read(0), 2, Some(3))], Linearizable),
            (
                "but not twice",
                &[
                    (Write(1), 1, None),
                    (Read(1), 2, Some(3)),
                    (Write(2), 4, Some(5)),
                    (Read(1), 6, Some(7)),
                ],
                Impossible { stuck: 3 },
            ),
            (
                "and not before its call",
                &[(Read(1), 1, Some(2)), (Write(1), 3, None)],
                Impossible { stuck: 0 },
            ),
        ];
        for (name, operations, verdict) in cases {
            assert_eq!(judge(operations), verdict, "{name}");
        }
    }

    #[test]
    fn unknown_outcomes_are_searched_as_far_as_the_budget_goes() {
        let writes = (0..14).map(|n| (Op::Write(n), 1 + u64::from(n), None));
        let impossible = (Op::Read(99), 50, Some(51));
        let many: Vec<_> = writes.chain([impossible]).collect();
        assert_eq!(judge(&many), Verdict::Undecided);
        let few: Vec<_> = many[8..].to_vec();
        assert_eq!(judge(&few), Verdict::Impossible { stuck: 6 });
    }

    #[test]
    fn more_operations_than_a_word_has_bits() {
        let one_by_one = |n: u32| {
            let at = u64::from(n) * 4;
            [(Op::Write(n), at, Some(at + 1)), (Op::Read(n), at + 2, Some(at + 3))]
        };
        let mut many: Vec<_> = (0..100).flat_map(one_by_one).collect();
        assert_eq!(judge(&many), Verdict::Linearizable);
        many[151].0 = Op::Read(7);
        assert_eq!(judge(&many), Verdict::Impossible { stuck: 151 });
    }
}
