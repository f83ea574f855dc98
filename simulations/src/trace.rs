//! What happened in a run: one line an event, in columns.
//!
//! Every line goes into a hash, also those that are not kept, so that two runs of one plan can be
//! compared to the last event. So a line may hold nothing that differs between processes: no
//! address, no id that tokio or ractor count.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    sync::{Arc, Mutex, MutexGuard},
};

/// How many lines are kept unless all are.
const LINES_KEPT: usize = 400;
/// Where FNV-1a starts, and what it multiplies by, in 64 bits.
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// The trace of a run. Cheap to clone; every clone is the same trace.
#[derive(Debug, Clone)]
pub(crate) struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    keep_all: bool,
    kept: VecDeque<String>,
    count: u64,
    hash: u64,
}

impl Trace {
    /// An empty trace that keeps all its lines, or the last of them.
    #[must_use]
    pub(crate) fn new(keep_all: bool) -> Self {
        let lines = Lines { keep_all, kept: VecDeque::new(), count: 0, hash: FNV_START };
        Self(Arc::new(Mutex::new(lines)))
    }

    /// Writes a line: when, who did it, what it is, and what else there is to say.
    pub(crate) fn note(&self, at_ms: u64, who: &str, what: &str, detail: impl fmt::Display) {
        let mut lines = self.lines();
        let mut line = lines.blank();
        write!(line, "{at_ms:>8}  {who:<8} {what:<18} {detail}")
            .expect("invariant: a string takes what is written");
        lines.add(line);
    }

    /// The hash over all lines, their number, and the text of those that were kept.
    #[must_use]
    pub(crate) fn finish(&self) -> (u64, u64, String) {
        let lines = self.lines();
        let mut text = String::with_capacity(lines.kept.iter().map(|line| line.len() + 1).sum());
        for line in &lines.kept {
            text.push_str(line);
            text.push('\n');
        }
        (lines.hash, lines.count, text)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().expect("invariant: nothing panics while it holds the trace")
    }
}

impl Lines {
    /// A string for the next line: the oldest line's, when that has to go anyway.
    fn blank(&mut self) -> String {
        let is_full = !self.keep_all && self.kept.len() == LINES_KEPT;
        let mut line = if is_full { self.kept.pop_front() } else { None }.unwrap_or_default();
        line.clear();
        line
    }

    fn add(&mut self, line: String) {
        let bytes = line.bytes().chain([b'\n']);
        self.hash =
            bytes.fold(self.hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
        self.count += 1;
        self.kept.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice;

    #[test]
    fn lines_stand_in_columns_and_are_hashed() {
        let trace = Trace::new(true);
        trace.note(12, "node-0", "commit", format_args!("v{}", 7));
        trace.note(1_234_567, "0>1", "network-duplicate", "#3");
        let (hash, count, text) = trace.finish();
        let expected = "      12  node-0   commit             v7\n \
                        1234567  0>1      network-duplicate  #3\n";
        assert_eq!(text, expected);
        assert_eq!((hash, count), (dice::hash(expected.as_bytes()), 2));
    }

    #[test]
    fn only_the_last_lines_are_kept_but_all_are_hashed() {
        let [all, last] = [true, false].map(|keep_all| {
            let trace = Trace::new(keep_all);
            (0..1_000).for_each(|number| trace.note(number, "node-0", "line", number));
            trace.finish()
        });
        assert_eq!((all.0, all.1), (last.0, last.1));
        assert_eq!((all.2.lines().count(), last.2.lines().count()), (1_000, LINES_KEPT));
        assert!(all.2.ends_with(&last.2));
        let other = Trace::new(false);
        other.note(0, "node-0", "line", 1);
        assert_ne!(other.finish().0, all.0);
    }
}
