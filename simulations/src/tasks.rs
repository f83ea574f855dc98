//! The tasks of a node: they can be ended all at once, and run in another order.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

use futures_util::future::BoxFuture;
use memcube_actors::environment::{Compute, Spawner};
use tokio::task::AbortHandle;

use crate::{
    clock::sleep_ms,
    conditions::{Conditions, Place},
    plan::FaultClass,
};

/// Times that a new task lets others go first, at the most.
const YIELDS_MAX: u64 = 3;
/// Handles of tasks that have ended are dropped when this many more than were left have come.
const PRUNE_EVERY: usize = 64;
/// What heavy work costs.
const COMPUTE_MS: u64 = 1;
/// What it costs on a slow device.
const COMPUTE_SLOW_MS: (u64, u64) = (50, 2_000);

/// Starts the tasks of one life of a node, and ends them when it crashes.
pub(crate) struct NodeSpawner {
    conditions: Conditions,
    node: u32,
    life: u64,
    started: AtomicU64,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    handles: Vec<AbortHandle>,
    prune_at: usize,
}

impl NodeSpawner {
    /// A spawner without tasks.
    pub(crate) fn new(conditions: Conditions, node: u32, life: u64) -> Self {
        Self { conditions, node, life, started: AtomicU64::new(0), tasks: Mutex::default() }
    }

    /// Ends every task. Called when the node crashes; no task starts after the end of a life.
    pub(crate) fn abort_all(&self) {
        let handles = std::mem::take(&mut self.tasks().handles);
        handles.iter().for_each(AbortHandle::abort);
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().expect("invariant: nothing panics while it holds the tasks")
    }
}

impl Spawner for NodeSpawner {
    #[expect(clippy::disallowed_methods, reason = "the spawner of a simulated node")]
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let (node, life) = (self.node, self.life);
        if !self.conditions.is_current(node, life) {
            return;
        }
        // Lives get ids of their own, so that the next one is not shaken in the same way.
        let id = life << 32 | self.started.fetch_add(1, Ordering::Relaxed);
        let occasion = self.conditions.occasion(Place::Tasks { node }, id);
        let conditions = self.conditions.clone();
        let handle = tokio::spawn(async move {
            conditions.running(node, life).await;
            conditions.jitter(occasion, YIELDS_MAX).await;
            task.await;
        });
        // Not locked before: a runtime that ends drops the task at once, with all that hangs on it.
        self.tasks().track(handle.abort_handle());
    }
}

impl Tasks {
    fn track(&mut self, handle: AbortHandle) {
        if self.handles.len() >= self.prune_at {
            self.handles.retain(|handle| !handle.is_finished());
            self.prune_at = self.handles.len() + PRUNE_EVERY;
        }
        self.handles.push(handle);
    }
}

/// Runs heavy closures inline, after the virtual time that they cost.
pub(crate) struct NodeCompute {
    conditions: Conditions,
    node: u32,
    life: u64,
    started: AtomicU64,
}

impl NodeCompute {
    /// The devices of one life of a node.
    pub(crate) fn new(conditions: Conditions, node: u32, life: u64) -> Self {
        Self { conditions, node, life, started: AtomicU64::new(0) }
    }
}

impl Compute for NodeCompute {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let (node, life) = (self.node, self.life);
        let id = life << 32 | self.started.fetch_add(1, Ordering::Relaxed);
        let conditions = self.conditions.clone();
        Box::pin(async move {
            conditions.running(node, life).await;
            let occasion = conditions.occasion(Place::Device { node }, id);
            let cost_ms = if conditions.strikes(FaultClass::DeviceSlow, occasion) {
                occasion.between("cost", COMPUTE_SLOW_MS.0, COMPUTE_SLOW_MS.1)
            } else {
                COMPUTE_MS
            };
            sleep_ms(cost_ms).await;
            conditions.running(node, life).await;
            work();
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;
    use crate::{conditions::tests::with_faults, plan::Fault};

    /// The order in which ten tasks that are spawned together get to run.
    async fn order(conditions: &Conditions) -> Vec<u32> {
        let spawner = NodeSpawner::new(conditions.clone(), 0, conditions.boot(0));
        let ran = Arc::new(Mutex::new(Vec::new()));
        for number in 0..10 {
            let ran = Arc::clone(&ran);
            spawner.spawn(Box::pin(async move { ran.lock().unwrap().push(number) }));
        }
        sleep_ms(1).await;
        std::mem::take(&mut *ran.lock().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_shakes_the_order_of_tasks_until_the_heal() {
        let in_order: Vec<u32> = (0..10).collect();
        assert_eq!(order(&with_faults(&[])).await, in_order);
        let conditions = with_faults(&[FaultClass::Jitter]);
        let mut shaken = order(&conditions).await;
        assert_ne!(shaken, in_order);
        shaken.sort_unstable();
        assert_eq!(shaken, in_order, "all of them ran");
        conditions.heal();
        assert_eq!(order(&conditions).await, in_order);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_ends_all_tasks_and_none_starts_after_it() {
        let conditions = with_faults(&[]);
        let spawner = NodeSpawner::new(conditions.clone(), 0, conditions.boot(0));
        let alive = Arc::new(());
        let spawn = || {
            let alive = Arc::clone(&alive);
            spawner.spawn(Box::pin(async move {
                std::future::pending::<()>().await;
                drop(alive);
            }));
        };
        (0..100).for_each(|_| spawn());
        sleep_ms(1).await;
        assert_eq!(Arc::strong_count(&alive), 101);
        conditions.begin(&Fault::Crash { node: 0 });
        spawner.abort_all();
        spawn();
        sleep_ms(1).await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_have_ended_are_forgotten() {
        let conditions = with_faults(&[]);
        let spawner = NodeSpawner::new(conditions.clone(), 0, conditions.boot(0));
        for _ in 0..1_000 {
            spawner.spawn(Box::pin(std::future::ready(())));
            tokio::task::yield_now().await;
        }
        assert!(spawner.tasks().handles.len() <= PRUNE_EVERY + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_of_a_paused_node_starts_after_the_pause() {
        let conditions = with_faults(&[]);
        let spawner = NodeSpawner::new(conditions.clone(), 0, conditions.boot(0));
        conditions.begin(&Fault::Pause { node: 0 });
        let (sender, mut receiver) = tokio::sync::oneshot::channel();
        spawner.spawn(Box::pin(async move { sender.send(()).unwrap() }));
        sleep_ms(100).await;
        assert!(receiver.try_recv().is_err());
        conditions.end(&Fault::Pause { node: 0 });
        receiver.await.expect("it ran");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_device_takes_longer_until_the_heal() {
        let conditions = with_faults(&[FaultClass::DeviceSlow]);
        let table = [(with_faults(&[]), false), (conditions.clone(), true), (conditions, false)];
        for (conditions, is_slow) in table {
            let compute = NodeCompute::new(conditions.clone(), 0, conditions.boot(0));
            let before = conditions.now_ms();
            compute.run(Box::new(|| {})).await;
            let took = conditions.now_ms() - before;
            let (low, high) = COMPUTE_SLOW_MS;
            assert!(if is_slow { (low..=high).contains(&took) } else { took == COMPUTE_MS });
            conditions.heal();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_life_computes_nothing() {
        let conditions = with_faults(&[]);
        let compute = NodeCompute::new(conditions.clone(), 0, conditions.boot(0));
        let mut run = compute.run(Box::new(|| panic!("it must not run")));
        assert!(run.as_mut().now_or_never().is_none());
        conditions.begin(&Fault::Crash { node: 0 });
        sleep_ms(10).await;
        assert!(run.now_or_never().is_none());
    }
}
