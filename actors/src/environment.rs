//! The only sources of time, randomness, tasks and heavy work that actor code may use.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::BoxFuture;
use memcube_schemas::MemoryId;

use crate::{defects::Defect, storage::CommitToken};

/// A clock.
pub trait Clock: Send + Sync {
    /// Unix milliseconds. May jump; nothing that must be safe may rest on it.
    fn unix_ms(&self) -> i64;
    /// Microseconds since some fixed moment; never runs backwards.
    fn monotonic_us(&self) -> u64;
}

/// A source of random numbers.
pub trait Entropy: Send + Sync {
    /// The next 64 bits.
    fn next_u64(&self) -> u64;
}

/// Starts tasks.
pub trait Spawner: Send + Sync {
    /// Runs a future to its end, independently of the caller.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

/// Runs heavy closures off the event loop.
pub trait Compute: Send + Sync {
    /// Runs the closure; the future ends when it has run.
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;
}

/// Points at which a test or a simulation may look on, or make actor code fail. In production
/// nothing happens.
pub trait Faults: Send + Sync {
    /// Called by actor code at a named point, such as `cube.decide`; may panic.
    fn reach(&self, point: &'static str, detail: &str);
}

struct NoFaults;

impl Faults for NoFaults {
    fn reach(&self, _point: &'static str, _detail: &str) {}
}

/// What an actor may know of the world. Cheap to clone.
#[derive(Clone)]
pub struct Environment {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    spawner: Arc<dyn Spawner>,
    compute: Arc<dyn Compute>,
    faults: Arc<dyn Faults>,
    #[cfg(feature = "defects")]
    defects: Arc<std::collections::BTreeSet<Defect>>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

impl Environment {
    /// Puts an environment together.
    pub fn new(
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        spawner: Arc<dyn Spawner>,
        compute: Arc<dyn Compute>,
    ) -> Self {
        Self {
            clock,
            entropy,
            spawner,
            compute,
            faults: Arc::new(NoFaults),
            #[cfg(feature = "defects")]
            defects: Arc::default(),
        }
    }

    /// The same environment, with planted bugs.
    #[cfg(feature = "defects")]
    #[must_use]
    pub fn with_defects(mut self, defects: impl IntoIterator<Item = Defect>) -> Self {
        self.defects = Arc::new(defects.into_iter().collect());
        self
    }

    /// Whether a planted bug is switched on. Never without the feature `defects`.
    #[cfg(feature = "defects")]
    #[must_use]
    pub fn plants(&self, defect: Defect) -> bool {
        self.defects.contains(&defect)
    }

    /// Whether a planted bug is switched on. Never without the feature `defects`.
    #[cfg(not(feature = "defects"))]
    #[must_use]
    pub const fn plants(&self, _defect: Defect) -> bool {
        false
    }

    /// The same environment, with faults.
    #[must_use]
    pub fn with_faults(mut self, faults: Arc<dyn Faults>) -> Self {
        self.faults = faults;
        self
    }

    /// An environment for tests and simulations: tokio's clock (which may be paused), a seeded
    /// generator, tasks on the current runtime, heavy work inline.
    #[must_use]
    pub fn scripted(seed: u64) -> Self {
        let entropy = SeededEntropy::new(seed);
        Self::new(
            Arc::new(RuntimeClock { start: tokio::time::Instant::now() }),
            Arc::new(entropy),
            Arc::new(RuntimeSpawner),
            Arc::new(InlineCompute),
        )
    }

    /// Unix milliseconds.
    #[must_use]
    pub fn unix_ms(&self) -> i64 {
        self.clock.unix_ms()
    }

    /// Microseconds since some fixed moment.
    #[must_use]
    pub fn monotonic_us(&self) -> u64 {
        self.clock.monotonic_us()
    }

    /// 128 random bits.
    #[must_use]
    pub fn random_u128(&self) -> u128 {
        u128::from(self.entropy.next_u64()) << 64 | u128::from(self.entropy.next_u64())
    }

    /// A fresh commit token.
    #[must_use]
    pub fn commit_token(&self) -> CommitToken {
        CommitToken(self.random_u128())
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawner.spawn(Box::pin(task));
    }

    /// Runs a heavy closure off the event loop and returns what it made.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.compute
            .run(Box::new(move || {
                // Nobody listens any more when the caller was dropped; its result goes with it.
                let _ = sender.send(work());
            }))
            .await;
        receiver.await.ok()
    }

    /// Marks a point at which a simulation may inject a failure.
    pub fn reach(&self, point: &'static str, detail: &str) {
        self.faults.reach(point, detail);
    }
}

/// Makes memory ids that sort by creation inside one cube, also when the clock stands still or
/// jumps back.
#[derive(Debug)]
pub struct MemoryIds {
    last_ms: u64,
    sequence: u128,
}

impl MemoryIds {
    /// Continues after the newest id that a cube holds.
    #[must_use]
    pub fn after(newest: Option<MemoryId>) -> Self {
        let last_ms = newest.map_or(0, |id| {
            let mut bytes = [0_u8; 8];
            bytes[2..].copy_from_slice(&id.as_bytes()[..6]);
            u64::from_be_bytes(bytes)
        });
        // The sequence of the newest id is unknown here, so the next one takes a later millisecond.
        Self { last_ms, sequence: u128::MAX }
    }

    /// The next id.
    pub fn next(&mut self, environment: &Environment) -> MemoryId {
        const RANDOM_BITS: u32 = 42;
        let now_ms = u64::try_from(environment.unix_ms()).unwrap_or(0);
        if now_ms > self.last_ms || self.sequence >= u128::from(u32::MAX) {
            self.last_ms = now_ms.max(self.last_ms + 1);
            self.sequence = 0;
        } else {
            self.sequence += 1;
        }
        let random = environment.random_u128() & ((1 << RANDOM_BITS) - 1);
        MemoryId::from_parts(self.last_ms, self.sequence << RANDOM_BITS | random)
    }
}

/// Tokio's clock, counted from the first of January 2026.
struct RuntimeClock {
    start: tokio::time::Instant,
}

impl Clock for RuntimeClock {
    fn unix_ms(&self) -> i64 {
        const START_UNIX_MS: i64 = 1_767_225_600_000;
        START_UNIX_MS + i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// A splitmix64 generator (Steele, Lea, Flood 2014): small, seeded, good enough for ids and faults.
#[derive(Debug)]
pub struct SeededEntropy(AtomicU64);

impl SeededEntropy {
    /// Starts from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

struct RuntimeSpawner;

impl Spawner for RuntimeSpawner {
    #[expect(clippy::disallowed_methods, reason = "the one place of actor code that starts tasks")]
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(tokio::spawn(task));
    }
}

struct InlineCompute;

impl Compute for InlineCompute {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        work();
        Box::pin(std::future::ready(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_ids_grow_while_the_clock_stands_still_and_after_a_restart() {
        let environment = Environment::scripted(1);
        let mut ids = MemoryIds::after(None);
        let made: Vec<MemoryId> = (0..1_000).map(|_| ids.next(&environment)).collect();
        assert!(made.windows(2).all(|pair| pair[0] < pair[1]));
        let newest = *made.last().expect("a thousand were made");
        assert!(MemoryIds::after(Some(newest)).next(&environment) > newest);
    }
}
