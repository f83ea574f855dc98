//! A simulation of the user's own workflow.

use futures_util::future::BoxFuture;

use crate::{
    dice::Dice,
    nemesis,
    plan::{Plan, StoreKind},
    process,
    report::Report,
    world::{self, World},
};

/// What to simulate: how many nodes, for how long, under which faults.
#[derive(Debug, Clone)]
pub struct Simulation {
    plan: Plan,
}

impl Simulation {
    /// Three nodes for a minute, without faults, under a name of your own.
    #[must_use]
    pub fn new(name: &str, seed: u64) -> Self {
        Self { plan: Plan::quiet(name, seed) }
    }

    /// So many nodes: 1 to 32.
    #[must_use]
    pub const fn nodes(mut self, nodes: u32) -> Self {
        self.plan.nodes = nodes;
        self
    }

    /// Over this kind of state store. Say it before `swarm`, which draws its faults as well.
    #[must_use]
    pub const fn store(mut self, store: StoreKind) -> Self {
        self.plan.store = store;
        self
    }

    /// Faults strike within so many simulated seconds.
    #[must_use]
    pub const fn seconds(mut self, seconds: u32) -> Self {
        self.plan.seconds = seconds;
        self
    }

    /// A random choice of all faults, drawn from the seed.
    #[must_use]
    pub fn swarm(mut self) -> Self {
        let dice = Dice::new(self.plan.seed);
        self.plan.faults = nemesis::draw_faults(dice.fork("faults", 0), self.plan.store);
        self.plan.events =
            nemesis::draw_events(dice.fork("events", 0), self.plan.nodes, self.plan.seconds);
        self
    }

    /// The plan so far, for faults that you choose yourself.
    #[must_use]
    pub const fn plan_mut(&mut self) -> &mut Plan {
        &mut self.plan
    }
}

/// Runs a workflow under simulation, and judges it: the built-in checkers look for lost and doubled
/// memories, stale reads and leaks between tenants, whatever the workflow itself asserts.
///
/// # Errors
/// When the simulation cannot be set up. What goes wrong inside is in the report.
pub fn simulate<W, F>(simulation: &Simulation, workflow: W) -> anyhow::Result<Report>
where
    W: FnOnce(World) -> F + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let plan = simulation.plan.clone();
    process::on_fresh_thread(plan.seed, move || {
        let boxed = |world| -> BoxFuture<'static, _> { Box::pin(workflow(world)) };
        world::run(&plan, true, boxed)
    })
}
