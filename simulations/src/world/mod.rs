//! The simulated world: nodes, network, store, devices and clocks of one seed, on one thread.
//!
//! A run has two phases. In the first the callers work while faults strike; in the second
//! everything is healed, and the cluster has to come back by itself, hold everything that was
//! acknowledged, and come to rest. Then the checkers judge.

mod chat;
mod client;
mod converse;
mod cube;
mod events;
mod follow;
mod node;
mod scheduler;
mod script;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use futures_util::future::BoxFuture;
use memcube_actors::{TenantContext, scheduler::log::DecisionRecord};
use memcube_schemas::{CubeId, Incarnation, NodeId, TenantId};

use self::node::NodeSlot;
pub use self::{
    client::{CallError, Client},
    cube::Cube,
};
pub(crate) use self::{converse::Reply, follow::CONSUMER};
use crate::{
    blobs::SimBlobs,
    checkers,
    conditions::Conditions,
    dice::Dice,
    engine::Witness,
    evidence::{ChatRecord, FeedStretch, QueueSample, Residents, SceneSample, Violation},
    history::{Call, History, Moment, Outcome},
    nemesis::{self, Hooks},
    network::{Network, node_name},
    panics,
    plan::Plan,
    report::Report,
    storage::SimStore,
    trace::Trace,
    vectors::SimVectors,
};

/// How often queues are looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Callers of users' own workflows are numbered from here on.
const OWN_CLIENTS_FROM: u32 = 100;
/// The caller that probes after the heal.
const PROBER: u32 = 10_000;

/// The world of one run, in the hands of a workflow. Cheap to clone.
#[derive(Clone)]
pub struct World {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) conditions: Conditions,
    pub(crate) network: Network,
    pub(crate) store: SimStore,
    pub(crate) blobs: SimBlobs,
    /// The local disks of the nodes.
    disks: Mutex<BTreeMap<u32, SimBlobs>>,
    witness: Arc<Witness>,
    vectors: SimVectors,
    nodes: Mutex<BTreeMap<u32, NodeSlot>>,
    history: Mutex<History>,
    cubes: Mutex<BTreeSet<(TenantId, CubeId)>>,
    moments: AtomicU64,
    operations: AtomicU64,
    clients: AtomicU64,
    /// Nodes that were asked to stop and have not stopped yet.
    stopping: Mutex<BTreeSet<u32>>,
    lives: Mutex<BTreeMap<Incarnation, (NodeId, u64)>>,
    violations: Mutex<Vec<Violation>>,
    queues: Mutex<Vec<QueueSample>>,
    residents: Mutex<Vec<Residents>>,
    chats: Mutex<Vec<ChatRecord>>,
    erased: Mutex<Vec<(TenantId, CubeId, Moment)>>,
    decisions: Mutex<Vec<DecisionRecord>>,
    scenes: Mutex<Vec<SceneSample>>,
    replies: Mutex<Vec<Reply>>,
    followed: Mutex<BTreeMap<TenantId, Vec<FeedStretch>>>,
    consumed: Mutex<BTreeMap<(TenantId, u16), Vec<FeedStretch>>>,
}

/// Runs a plan of the catalogue in this thread.
///
/// # Errors
/// When the plan is not valid, or the runtime cannot be built. What goes wrong in the world is not
/// an error but a violation in the report.
pub fn run_plan(plan: &Plan, keep_trace: bool) -> anyhow::Result<Report> {
    run(plan, keep_trace, |world| Box::pin(script::play_all(world.inner)))
}

/// Runs a workflow of the user's own in the world of a plan, in this thread.
///
/// # Errors
/// As `run_plan`, and when the workflow fails: that is a violation in the report.
pub(crate) fn run(
    plan: &Plan,
    keep_trace: bool,
    workflow: impl FnOnce(World) -> BoxFuture<'static, anyhow::Result<()>>,
) -> anyhow::Result<Report> {
    anyhow::ensure!(
        (1..=32).contains(&plan.nodes),
        "`nodes` is {}, a world has between 1 and 32",
        plan.nodes
    );
    panics::collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .context("the runtime of the simulation cannot be built")?;
    let mut report = runtime.block_on(async {
        let world = World { inner: Arc::new(Inner::new(plan.clone(), keep_trace)?) };
        anyhow::Ok(world.live(workflow).await)
    })?;
    drop(runtime);
    for message in panics::collected() {
        report.violations.push(Violation::new("panics", message));
    }
    Ok(report)
}

impl World {
    /// A caller on behalf of a tenant.
    ///
    /// # Errors
    /// When the name is not a valid tenant id.
    pub fn client(&self, tenant: &str) -> anyhow::Result<Client> {
        let number = self.inner.clients.fetch_add(1, Ordering::Relaxed);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.inner.client(number, tenant)
    }

    /// Draws that depend on the seed alone.
    #[must_use]
    pub fn dice(&self) -> Dice {
        self.inner.dice.fork("workflow", 0)
    }

    /// Simulated milliseconds since the start.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.inner.conditions.now_ms()
    }

    /// Names of the nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        (0..self.inner.plan.nodes).map(node_name).collect()
    }

    /// The bucket of the world, as a node sees it now: slow, failing, torn and forgetful, when such
    /// faults are on.
    #[must_use]
    pub fn blobs(&self, node: u32) -> crate::FaultyObjectStore {
        self.inner.blobs.handle(node, self.inner.conditions.life(node))
    }

    /// Crashes a node, and starts it again after a while.
    pub async fn restart(&self, node: u32, down: Duration) {
        let fault = crate::plan::Fault::Crash { node };
        self.inner.conditions.begin(&fault);
        self.inner.crash_node(node);
        tokio::time::sleep(down).await;
        if !self.inner.conditions.is_up(node) {
            Arc::clone(&self.inner).boot_node(node).await;
        }
    }

    /// States what must always hold; otherwise the run fails with these words.
    pub fn always(&self, holds: bool, what: &str) {
        if !holds {
            self.inner.accuse(Violation::new("workflow", what));
        }
    }

    async fn live(
        self,
        workflow: impl FnOnce(Self) -> BoxFuture<'static, anyhow::Result<()>>,
    ) -> Report {
        let inner = Arc::clone(&self.inner);
        memcube_interpose::set_now(Duration::ZERO);
        for node in 0..inner.plan.nodes {
            Arc::clone(&inner).boot_node(node).await;
        }
        let sampler = Arc::clone(&inner).sample_queues();
        let looker = Arc::clone(&inner).sample_scenes();
        let followers = inner.follow_all();
        let hooks = Power(Arc::clone(&inner));
        let nemesis = nemesis::inflict(&inner.plan.events, &inner.conditions, &hooks);
        let work = async {
            if let Err(error) = workflow(self).await {
                inner.accuse(Violation::new("workflow", format!("{error:#}")));
            }
        };
        // The nemesis stops when the work is done, whatever it still had in mind.
        tokio::select! {
            biased;
            () = work => {}
            () = async { nemesis.await; std::future::pending::<()>().await } => {}
            () = sampler => {}
            () = looker => {}
            () = async { followers.await; std::future::pending::<()>().await } => {}
        }
        inner.judge().await
    }
}

impl Inner {
    fn new(plan: Plan, keep_trace: bool) -> anyhow::Result<Self> {
        let dice = Dice::new(plan.seed);
        let trace = Trace::new(keep_trace);
        let conditions = Conditions::new(dice, trace, plan.faults.clone());
        let network = Network::new(conditions.clone());
        let store = SimStore::new(&plan, conditions.clone())?;
        let blobs = SimBlobs::new(conditions.clone());
        let vectors = SimVectors::new(conditions.clone());
        Ok(Self {
            plan,
            dice,
            conditions,
            network,
            store,
            blobs,
            disks: Mutex::default(),
            witness: Arc::default(),
            vectors,
            nodes: Mutex::default(),
            history: Mutex::default(),
            cubes: Mutex::default(),
            moments: AtomicU64::new(0),
            operations: AtomicU64::new(1 << 32),
            clients: AtomicU64::new(u64::from(OWN_CLIENTS_FROM)),
            stopping: Mutex::default(),
            lives: Mutex::default(),
            violations: Mutex::default(),
            queues: Mutex::default(),
            residents: Mutex::default(),
            chats: Mutex::default(),
            erased: Mutex::default(),
            decisions: Mutex::default(),
            scenes: Mutex::default(),
            replies: Mutex::default(),
            followed: Mutex::default(),
            consumed: Mutex::default(),
        })
    }

    pub(crate) fn client(self: &Arc<Self>, number: u32, tenant: &str) -> anyhow::Result<Client> {
        let tenant = TenantId::new(tenant)?;
        let context = TenantContext::authenticated(tenant, format!("client-{number}"));
        Ok(Client::new(Arc::clone(self), number, context))
    }

    fn stopping(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.stopping.lock().expect("invariant: nothing panics while it holds the nodes")
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u32, NodeSlot>> {
        self.nodes.lock().expect("invariant: nothing panics while it holds the nodes")
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("invariant: nothing panics while it holds the history")
    }

    fn followed(&self) -> MutexGuard<'_, BTreeMap<TenantId, Vec<FeedStretch>>> {
        self.followed.lock().expect("invariant: nothing panics while it holds what was told")
    }

    fn consumed(&self) -> MutexGuard<'_, BTreeMap<(TenantId, u16), Vec<FeedStretch>>> {
        self.consumed.lock().expect("invariant: nothing panics while it holds what was told")
    }

    /// A number for an operation that no plan names.
    pub(crate) fn next_operation(&self) -> u64 {
        self.operations.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn know_cube(&self, tenant: &TenantId, cube: &CubeId) {
        let known = (tenant.clone(), cube.clone());
        self.cubes.lock().expect("invariant: nothing panics meanwhile").insert(known);
    }

    /// Remembers that this incarnation is that life of a node.
    fn know_life(&self, incarnation: Incarnation, node: u32, life: u64) {
        let name = NodeId::new(node_name(node)).expect("invariant: node names are valid");
        let mut lives = self.lives.lock().expect("invariant: nothing panics meanwhile");
        lives.entry(incarnation).or_insert((name, life));
    }

    fn known_cubes(&self) -> BTreeSet<(TenantId, CubeId)> {
        self.cubes.lock().expect("invariant: nothing panics meanwhile").clone()
    }

    pub(crate) fn reach(&self, point: &'static str) {
        self.conditions.reach(point);
    }

    /// Notes something that must never happen.
    pub(crate) fn accuse(&self, violation: Violation) {
        self.conditions.note("checker", "violation", &violation.what);
        self.violations.lock().expect("invariant: nothing panics meanwhile").push(violation);
    }

    fn moment(&self) -> Moment {
        Moment {
            order: self.moments.fetch_add(1, Ordering::Relaxed),
            ms: self.conditions.now_ms(),
            store: self.store.version(),
        }
    }

    pub(crate) fn invoke(
        &self,
        client: u32,
        tenant: &TenantId,
        cube: &CubeId,
        call: Call,
    ) -> usize {
        let moment = self.moment();
        let who = format!("c{client}");
        self.conditions.note(&who, "asks", format_args!("{tenant}/{cube} {call:?}"));
        self.history().invoke(client, tenant, cube, call, moment)
    }

    pub(crate) fn answer(&self, number: usize, outcome: Outcome) {
        let moment = self.moment();
        let mut history = self.history();
        let who = format!("c{}", history.operations()[number].client);
        self.conditions.note(&who, "hears", format_args!("#{number} {outcome:?}"));
        history.answer(number, moment, outcome);
    }

    async fn sample_queues(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SAMPLE_EVERY).await;
            self.look_at_queues(false);
        }
    }

    fn look_at_queues(&self, at_rest: bool) {
        let at_ms = self.conditions.now_ms();
        let mut samples = Vec::new();
        for (node, running) in self.all_running() {
            if let Some(residents) = running.residents(node, at_ms, at_rest) {
                self.residents.lock().expect("invariant: no panic meanwhile").push(residents);
            }
            for queue in running.cubes.queues() {
                // Only what could be wrong is kept.
                if queue.depth == 0 && !at_rest {
                    continue;
                }
                samples.push(QueueSample {
                    node: NodeId::new(node_name(node)).expect("invariant: node names are valid"),
                    queue: queue.name.to_owned(),
                    depth: queue.depth,
                    bound: queue.bound,
                    at_ms,
                    at_rest,
                });
            }
        }
        self.queues.lock().expect("invariant: nothing panics meanwhile").extend(samples);
    }

    async fn judge(self: &Arc<Self>) -> Report {
        let evidence = self.gather().await;
        let mut violations =
            std::mem::take(&mut *self.violations.lock().expect("invariant: nothing panics"));
        violations.extend(checkers::check_all(&evidence));
        for violation in &violations {
            let Violation { checker, what } = violation;
            self.conditions.note("checker", checker, what);
        }
        let is_success = |outcome: &Outcome| match outcome {
            Outcome::Pending | Outcome::Refused { .. } | Outcome::Unknown { .. } => false,
            Outcome::Added { .. }
            | Outcome::Item(_)
            | Outcome::Missing
            | Outcome::Updated { .. }
            | Outcome::OtherRevision
            | Outcome::Deleted { .. }
            | Outcome::Listed { .. }
            | Outcome::Found { .. }
            | Outcome::FoundAcross { .. } => true,
        };
        let operations = evidence.history.operations();
        let acknowledged = operations.iter().filter(|done| is_success(&done.outcome)).count();
        let chats = &evidence.chats;
        let answered = chats.iter().filter(|chat| chat.heard.is_some()).count();
        let (trace_hash, events, trace) = self.conditions.finish_trace();
        Report {
            scenario: self.plan.scenario.clone(),
            seed: self.plan.seed,
            trace_hash,
            events,
            trace,
            simulated_ms: self.conditions.now_ms(),
            operations: (operations.len() + chats.len()) as u64,
            acknowledged: (acknowledged + answered) as u64,
            faults: self.conditions.faults(),
            reached: self.conditions.reached(),
            violations,
        }
    }
}

/// The nemesis at the power switches.
struct Power(Arc<Inner>);

impl Hooks for Power {
    fn crash(&self, node: u32) {
        self.0.crash_node(node);
    }

    fn boot(&self, node: u32) -> BoxFuture<'static, ()> {
        Box::pin(Arc::clone(&self.0).boot_node(node))
    }

    fn restart(&self, node: u32) -> BoxFuture<'static, ()> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            inner.stop_node(node).await;
            inner.boot_node(node).await;
        })
    }
}
