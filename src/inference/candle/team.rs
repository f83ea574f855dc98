//! Threads that live for one call: independent pieces of work, and a barrier for shared ones.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, panicking, yield_now};

/// Polls before a waiting thread offers its processor to others.
const SPINS_MAX: usize = 4000;

/// Meeting point for a fixed number of threads.
pub(super) struct Barrier {
    size: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    broken: AtomicBool,
}

impl Barrier {
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Waits until all threads have arrived; panics if one of them panicked.
    pub(super) fn wait(&self) {
        if self.size == 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation + 1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.generation.load(Ordering::Acquire) == generation {
            assert!(!self.broken.load(Ordering::Relaxed), "another thread of the team panicked");
            if spins < SPINS_MAX {
                spins += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
    }
}

/// Held by each thread of a team; releases the others if its thread panics.
pub(super) struct Membership<'a>(pub(super) &'a Barrier);

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        if panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

/// Calls `work` with each index below `count` on up to `threads` threads; results are in order.
pub(super) fn map_indices<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    if threads.min(count) < 2 {
        return (0..count).map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    let claim = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let result = work(index);
            locked(&done).push((index, result));
        }
    };
    thread::scope(|scope| {
        (1..threads.min(count)).for_each(|_| {
            scope.spawn(claim);
        });
        claim();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Locks a mutex whose value stays usable after a panic.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
