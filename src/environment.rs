//! The environment of production: the system's clock and randomness, tokio's tasks and blocking
//! pool.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use memcube_actors::environment::{Clock, Compute, Entropy, Environment, Spawner};

/// The environment of a real node.
#[must_use]
pub fn system() -> Environment {
    Environment::new(
        Arc::new(SystemClock { start: Instant::now() }),
        Arc::new(SystemEntropy),
        Arc::new(TokioSpawner),
        Arc::new(BlockingPool),
    )
}

struct SystemClock {
    start: Instant,
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn next_u64(&self) -> u64 {
        getrandom::u64().expect("invariant: the operating system has random numbers")
    }
}

struct TokioSpawner;

impl Spawner for TokioSpawner {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(tokio::spawn(task));
    }
}

struct BlockingPool;

impl Compute for BlockingPool {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // A panic inside drops the closure's result, which is how the caller hears of it.
            if let Err(error) = tokio::task::spawn_blocking(work).await {
                tracing::error!(%error, "heavy work failed");
            }
        })
    }
}
