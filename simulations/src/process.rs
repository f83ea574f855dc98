//! One process a run: what a run leaves behind in a process, such as counters of ids or a thread
//! that hangs, cannot reach the next one, and a run that dies takes nobody with it.
//!
//! The parent forks, so it must have no thread but the one that calls: children inherit its memory,
//! which makes them as cheap as threads, but a lock that another thread holds at that moment stays
//! locked in the child. Tests, which run beside others, take [`in_fresh_thread`].

use std::thread;

use anyhow::{Context, Result};
use memcube_interpose::{enter, now, set_now};

use crate::{plan::Plan, report::Report, world};

/// The stack of a run. Actors that call each other deeply are found here, not in production.
const STACK_BYTES: usize = 8 << 20;

/// What became of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The run came to its end, well or not.
    Finished(Report),
    /// The process ended before the run did.
    Died {
        /// From what.
        how: String,
    },
}

/// Whether there is a point in going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next plan, please.
    Continue,
    /// That was enough. Runs that are under way are killed.
    Stop,
}

/// Runs the plans, each in a process of its own and up to `jobs` at a time, and hands over what
/// became of them in the order in which they end. The flag beside a plan keeps its whole trace.
///
/// Plans are asked for only when there is room to run them. `each` must not run plans itself.
///
/// # Errors
/// When the system has no room for another process or file.
pub fn run_isolated(
    plans: impl Iterator<Item = (Plan, bool)>,
    jobs: usize,
    each: &mut dyn FnMut(Plan, Verdict) -> Flow,
) -> Result<()> {
    isolation::run(plans, jobs.max(1), each, in_fresh_thread)
}

/// How a process comes to its report.
type Simulate = fn(&Plan, bool) -> Result<Report>;

/// Runs a few plans, and returns what became of them in the order of the plans.
///
/// # Errors
/// As [`run_isolated`].
pub fn run_all(plans: Vec<Plan>, jobs: usize) -> Result<Vec<Verdict>> {
    let mut verdicts: Vec<Option<Verdict>> = plans.iter().map(|_| None).collect();
    let expected = plans.clone();
    run_isolated(plans.into_iter().map(|plan| (plan, false)), jobs, &mut |plan, verdict| {
        // Of equal plans it does not matter which one this is.
        let open = |(at, of): &(usize, &Plan)| verdicts[*at].is_none() && **of == plan;
        if let Some((at, _)) = expected.iter().enumerate().find(open) {
            verdicts[at] = Some(verdict);
        }
        Flow::Continue
    })?;
    verdicts.into_iter().map(|verdict| verdict.context("a run ended without a verdict")).collect()
}

/// Runs a plan in this process, on a thread that nothing has run on before: hash maps of std draw
/// their keys once a thread.
///
/// # Errors
/// When the world cannot be built, and when it panics.
pub fn in_fresh_thread(plan: &Plan, keep_trace: bool) -> Result<Report> {
    let plan = plan.clone();
    on_fresh_thread(plan.seed, move || world::run_plan(&plan, keep_trace))
}

/// Runs a world on a thread of its own, with randomness and clocks under the seed.
pub(crate) fn on_fresh_thread(
    seed: u64,
    world: impl FnOnce() -> Result<Report> + Send + 'static,
) -> Result<Report> {
    let simulate = move || {
        set_now(std::time::Duration::ZERO);
        let _guard = enter(seed, now);
        world()
    };
    let thread = thread::Builder::new().name("simulation".to_owned()).stack_size(STACK_BYTES);
    #[expect(clippy::disallowed_methods, reason = "the one thread that a world lives on")]
    let thread = thread.spawn(simulate).context("cannot start the thread of a run")?;
    thread.join().unwrap_or_else(|payload| {
        let told = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned());
        anyhow::bail!("the simulation panicked: {}", told.as_deref().unwrap_or("without a word"))
    })
}

#[cfg(not(unix))]
mod isolation {
    //! Without `fork`: fresh threads, one after the other.

    use super::{Flow, Plan, Result, Simulate, Verdict};

    pub(super) fn run(
        plans: impl Iterator<Item = (Plan, bool)>,
        _jobs: usize,
        each: &mut dyn FnMut(Plan, Verdict) -> Flow,
        simulate: Simulate,
    ) -> Result<()> {
        for (plan, keep_trace) in plans {
            let verdict = simulate(&plan, keep_trace).map_or_else(
                |error| Verdict::Died { how: format!("{error:#}") },
                Verdict::Finished,
            );
            if each(plan, verdict) == Flow::Stop {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
mod isolation {
    //! With `fork`.

    use std::{
        backtrace::{Backtrace, BacktraceStatus},
        collections::BTreeMap,
        fmt::Write as _,
        fs::File,
        io::{self, Read, Seek, Write},
        panic,
        sync::{Mutex, PoisonError},
    };

    use nix::{
        errno::Errno,
        sys::{
            resource::{Resource, getrlimit, setrlimit},
            signal::{Signal, kill},
            wait::{WaitStatus, wait, waitpid},
        },
        unistd::{Pid, alarm},
    };

    use super::{Context, Flow, Plan, Report, Result, Simulate, Verdict};

    /// More CPU time than any run takes that makes progress.
    const CPU_SECONDS_MAX: u64 = 120;
    /// More time on the clock than any run takes, also on a loaded machine: a runtime that waits
    /// for nothing uses no CPU and would stand still for ever.
    const WALL_SECONDS_MAX: u32 = 300;

    /// Waiting for any child takes away the children of others, so one caller runs at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    pub(super) fn run(
        mut plans: impl Iterator<Item = (Plan, bool)>,
        jobs: usize,
        each: &mut dyn FnMut(Plan, Verdict) -> Flow,
        simulate: Simulate,
    ) -> Result<()> {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut children = Children::default();
        let mut more = true;
        loop {
            while more && children.running.len() < jobs {
                match plans.next() {
                    Some((plan, keep_trace)) => children.start(plan, keep_trace, simulate)?,
                    None => more = false,
                }
            }
            if children.running.is_empty() {
                return Ok(());
            }
            let (plan, verdict) = children.next_verdict()?;
            if each(plan, verdict) == Flow::Stop {
                return Ok(());
            }
        }
    }

    struct Child {
        plan: Plan,
        /// A file without a name that parent and child share.
        answer: File,
    }

    /// The runs that are under way; they are killed when this is dropped.
    #[derive(Default)]
    struct Children {
        running: BTreeMap<Pid, Child>,
    }

    impl Children {
        fn start(&mut self, plan: Plan, keep_trace: bool, simulate: Simulate) -> Result<()> {
            let answer =
                tempfile::tempfile().context("cannot make a temporary file for a run's report")?;
            let child = memcube_interpose::fork_child(|| {
                work(&plan, keep_trace, &answer, simulate);
            })
            .context("cannot start a process for a run")?;
            self.running.insert(Pid::from_raw(child), Child { plan, answer });
            Ok(())
        }

        fn next_verdict(&mut self) -> Result<(Plan, Verdict)> {
            loop {
                let status = match wait() {
                    Err(Errno::EINTR) => continue,
                    status => status.context("cannot wait for the process of a run")?,
                };
                let ended = status.pid().and_then(|pid| self.running.remove(&pid));
                if let Some(Child { plan, answer }) = ended {
                    return Ok((plan, verdict(status, answer)));
                }
            }
        }
    }

    impl Drop for Children {
        fn drop(&mut self) {
            for pid in self.running.keys() {
                // It may have ended by itself; it is waited for all the same.
                let _ = kill(*pid, Signal::SIGKILL);
                let _ = waitpid(*pid, None);
            }
        }
    }

    /// What the child does.
    fn work(plan: &Plan, keep_trace: bool, answer: &File, simulate: Simulate) {
        limit_time();
        tell_panics(answer);
        let outcome = simulate(plan, keep_trace).map_err(|error| {
            let panic = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
            panic.as_ref().map_or_else(
                || format!("{error:#}"),
                |panic| format!("{error:#}\nthe last panic: {panic}"),
            )
        });
        // The hook must not write over the report.
        let _ = panic::take_hook();
        // An answer that cannot be written is one that the parent cannot read.
        let _ = serde_json::to_vec(&outcome)
            .map_err(io::Error::from)
            .and_then(|text| write_over(answer, &text));
    }

    fn limit_time() {
        let limit = |resource, most: u64| {
            let hard = getrlimit(resource).map_or(most, |(_, hard)| hard.min(most + 5));
            // A limit that cannot be set is a net that is missing, no reason not to run.
            let _ = setrlimit(resource, hard.min(most), hard);
        };
        limit(Resource::RLIMIT_CPU, CPU_SECONDS_MAX);
        limit(Resource::RLIMIT_CORE, 0);
        alarm::set(WALL_SECONDS_MAX);
    }

    static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

    /// Panics are injected on purpose, so nobody prints them. The last one is remembered, and lies
    /// in the file of the answer in case that the process does not live to write one.
    fn tell_panics(answer: &File) {
        let file = answer.try_clone();
        panic::set_hook(Box::new(move |panic| {
            let mut told = panic.to_string();
            let backtrace = Backtrace::capture();
            if backtrace.status() == BacktraceStatus::Captured {
                let _ = write!(told, "\n{backtrace}");
            }
            if let Ok(file) = &file {
                let _ = write_over(file, told.as_bytes());
            }
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        }));
    }

    fn write_over(mut file: &File, text: &[u8]) -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text)
    }

    fn verdict(status: WaitStatus, mut answer: File) -> Verdict {
        let mut text = Vec::new();
        let read = answer.rewind().and_then(|()| answer.read_to_end(&mut text));
        if let Err(error) = read {
            return Verdict::Died { how: format!("its report cannot be read: {error}") };
        }
        let how = if let WaitStatus::Exited(_, 0) = status {
            match serde_json::from_slice::<Result<Report, String>>(&text) {
                Ok(Ok(report)) => return Verdict::Finished(report),
                Ok(Err(error)) => error,
                Err(error) => format!("its report cannot be understood: {error}"),
            }
        } else if text.is_empty() {
            told(status)
        } else {
            format!("{}; the last panic: {}", told(status), String::from_utf8_lossy(&text))
        };
        Verdict::Died { how }
    }

    fn told(status: WaitStatus) -> String {
        if let WaitStatus::Signaled(_, signal, _) = status {
            return if signal == Signal::SIGXCPU {
                format!("it took more than {CPU_SECONDS_MAX} s of CPU time")
            } else if signal == Signal::SIGALRM {
                format!("it did not end within {WALL_SECONDS_MAX} s")
            } else {
                format!("it was ended by {}", signal.as_str())
            };
        }
        if let WaitStatus::Exited(_, code) = status {
            return format!("it exited with code {code}");
        }
        format!("it ended in a strange way: {status:?}")
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, env, process::Command};

    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan { seconds: 1, ..Plan::quiet("toy", seed) }
    }

    /// A world in which the seed says how it ends.
    fn toy(plan: &Plan, keep_trace: bool) -> Result<Report> {
        match plan.seed {
            1 => panic!("one is no number"),
            2 => std::process::abort(),
            3 => std::process::exit(7),
            4 => anyhow::bail!("four is refused"),
            5 => {
                let _ = std::panic::catch_unwind(|| panic!("injected"));
                std::process::abort()
            }
            seed => {
                let trace = if keep_trace { "kept\n".repeat(100_000) } else { String::new() };
                Ok(Report { seed, trace, ..Report::default() })
            }
        }
    }

    fn verdicts(seeds: &[(u64, bool)], jobs: usize) -> BTreeMap<u64, Verdict> {
        let mut verdicts = BTreeMap::new();
        let plans = seeds.iter().map(|(seed, keep_trace)| (plan(*seed), *keep_trace));
        let mut each = |plan: Plan, verdict| {
            verdicts.insert(plan.seed, verdict);
            Flow::Continue
        };
        isolation::run(plans, jobs, &mut each, toy).unwrap();
        verdicts
    }

    /// Whether this is a process with no other test in it, where forking is safe. If not, it runs
    /// the test in one.
    fn alone(test: &str) -> bool {
        const VARIABLE: &str = "MEMCUBE_SIM_TEST_ALONE";
        if env::var_os(VARIABLE).is_some() {
            return true;
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([&format!("process::tests::{test}"), "--exact", "--test-threads=1"]);
        let output = command.env(VARIABLE, "1").output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
        false
    }

    #[test]
    fn a_report_comes_back_whole() {
        if !alone("a_report_comes_back_whole") {
            return;
        }
        let verdicts = verdicts(&[(10, false), (11, true), (12, false)], 2);
        let lengths = verdicts.values().map(|verdict| match verdict {
            Verdict::Finished(report) => report.trace.len(),
            Verdict::Died { how } => panic!("{how}"),
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [0, 500_000, 0]);
        assert_eq!(verdicts.into_keys().collect::<Vec<_>>(), [10, 11, 12]);
    }

    #[test]
    fn whoever_dies_says_how_and_harms_nobody() {
        if !alone("whoever_dies_says_how_and_harms_nobody") {
            return;
        }
        let verdicts = verdicts(&[(1, false), (2, false), (3, false), (4, false), (9, false)], 3);
        for (seed, expected) in [
            (1, "it exited with code 101; the last panic: panicked at "),
            (2, "it was ended by SIGABRT"),
            (3, "it exited with code 7"),
            (4, "four is refused"),
        ] {
            let Verdict::Died { how } = &verdicts[&seed] else { panic!("{seed} lives") };
            assert!(how.starts_with(expected), "{how}");
        }
        assert!(matches!(&verdicts[&9], Verdict::Finished(report) if report.seed == 9));
    }

    #[test]
    fn an_abort_is_told_with_the_panic_before_it() {
        if !alone("an_abort_is_told_with_the_panic_before_it") {
            return;
        }
        let verdicts = verdicts(&[(5, false)], 1);
        let Verdict::Died { how } = &verdicts[&5] else { panic!("it lives") };
        assert!(how.contains("SIGABRT") && how.contains("injected"), "{how}");
    }

    #[test]
    fn enough_is_enough() {
        if !alone("enough_is_enough") {
            return;
        }
        let asked = std::cell::Cell::new(0);
        let plans = (10..).map(|seed| {
            asked.set(asked.get() + 1);
            (plan(seed), false)
        });
        let mut ended = 0;
        let mut each = |_: Plan, _: Verdict| {
            ended += 1;
            if ended == 3 { Flow::Stop } else { Flow::Continue }
        };
        isolation::run(plans, 2, &mut each, toy).unwrap();
        assert_eq!((ended, asked.get()), (3, 4));
    }
}
