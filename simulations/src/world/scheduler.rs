//! The schedulers of the nodes: what they decide, what they did, and whether they still work.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use memcube_actors::{
    cube::ChatTurn,
    scheduler::{
        FollowedScene, SchedulerParts, SchedulerRules,
        jobs::JobKind,
        log::{DecisionLog, DecisionRecord},
    },
};
use memcube_schemas::{
    CubeId, NodeId, TenantId,
    conversation::Role,
    limits::JOBS_WAITING_PER_TENANT_MAX,
    scene::{PreloadState, SceneTimeline},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Inner, PROBER,
    chat::{Said, conversation, instructions},
    client::TRIES_BITS,
    converse::{Reply, Turn},
    node::RunningNode,
    verdict::{PROBE_PATIENCE, millis},
};
use crate::{
    evidence::{Probe, QueueSample, SceneSample},
    network::node_name,
};

/// How often what was done for conversations is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a node that runs may take to say it.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// Conversation of the probes.
const PROBED: u32 = 1_000;
/// How long after a turn its preload may take, at a node that nobody else asks anything.
const PREPARED_WITHIN: Duration = Duration::from_secs(10);

/// Writes decisions down as evidence.
struct Decisions(Weak<Inner>);

impl DecisionLog for Decisions {
    fn write(&self, record: DecisionRecord) {
        let Some(world) = self.0.upgrade() else { return };
        let outcome = &record.outcome;
        let lists = [
            ("scheduler.hit", &outcome.hits),
            ("scheduler.late", &outcome.late),
            ("scheduler.wasted", &outcome.wasted),
        ];
        for (point, memories) in lists {
            if !memories.is_empty() {
                world.reach(point);
            }
        }
        world.decisions().push(record);
    }
}

impl Inner {
    pub(super) fn decisions(&self) -> MutexGuard<'_, Vec<DecisionRecord>> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn scenes(&self) -> MutexGuard<'_, Vec<SceneSample>> {
        self.scenes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replies(&self) -> MutexGuard<'_, Vec<Reply>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the scheduler of a node is made of, if nodes have one.
    pub(super) fn scheduler_parts(self: &Arc<Self>) -> Option<SchedulerParts> {
        let plan = self.plan.scheduler.as_ref()?;
        let rules = SchedulerRules {
            tenant_tokens_per_minute: plan.tenant_tokens_per_minute,
            ..SchedulerRules::default()
        };
        Some(SchedulerParts { rules, log: Some(Arc::new(Decisions(Arc::downgrade(self)))) })
    }

    /// What was said for memory, by cube.
    pub(super) fn said_for_memory(&self) -> BTreeMap<(TenantId, CubeId), BTreeSet<String>> {
        let mut said: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for Reply { tenant, cube, text } in std::mem::take(&mut *self.replies()) {
            said.entry((tenant, cube)).or_default().insert(text.trim().to_owned());
        }
        said
    }

    /// Looks again and again at what was done for conversations. Never ends.
    pub(super) async fn sample_scenes(self: Arc<Self>) {
        loop {
            sleep(LOOK_EVERY).await;
            self.look_at_scenes(false).await;
        }
    }

    /// Looks at what was done for conversations, at all nodes that run.
    pub(super) async fn look_at_scenes(&self, at_rest: bool) {
        if self.plan.scheduler.is_none() {
            return;
        }
        for (node, running) in self.all_running() {
            let Some(scheduler) = running.cubes.scheduler() else { continue };
            // A node that stands still says nothing.
            let followed = timeout(LOOK_PATIENCE, scheduler.followed()).await;
            let Ok(Ok(followed)) = followed else { continue };
            let samples = followed.into_iter().map(|scene| self.sample(node, &running, scene));
            let samples: Vec<SceneSample> =
                samples.map(|sample| SceneSample { at_rest, ..sample }).collect();
            self.scenes().extend(samples);
            if at_rest {
                self.look_at_jobs(node, &running);
            }
        }
    }

    fn sample(&self, node: u32, running: &RunningNode, scene: FollowedScene) -> SceneSample {
        for entry in &scene.timeline.entries {
            match entry.state {
                PreloadState::Loaded => self.reach("scheduler.loaded"),
                PreloadState::Overtaken => self.reach("scheduler.overtaken"),
                PreloadState::Failed => self.reach("scheduler.failed"),
                PreloadState::Nothing => self.reach("scheduler.nothing"),
                PreloadState::Running => {}
            }
        }
        SceneSample {
            node: NodeId::new(node_name(node)).expect("invariant: node names are valid"),
            life: running.life,
            since_ms: running.since_ms,
            at_ms: self.conditions.now_ms(),
            at_rest: false,
            scene,
        }
    }

    /// Jobs for people, of every tenant. Upkeep goes on for ever, and is not looked at.
    fn look_at_jobs(&self, node: u32, running: &RunningNode) {
        let mut tenants: Vec<TenantId> =
            self.known_cubes().into_iter().map(|(tenant, _)| tenant).collect();
        tenants.dedup();
        for tenant in tenants {
            let status = running.cubes.jobs().status(Some(&tenant));
            let kinds = [JobKind::Preload, JobKind::Blocks];
            let counts = kinds.iter().filter_map(|kind| status.kinds.get(kind));
            let depth: u64 = counts.map(|counts| counts.waiting + counts.running).sum();
            let sample = QueueSample {
                node: NodeId::new(node_name(node)).expect("invariant: node names are valid"),
                queue: format!("jobs of {tenant}"),
                depth: usize::try_from(depth).unwrap_or(usize::MAX),
                bound: 2 * JOBS_WAITING_PER_TENANT_MAX,
                at_ms: self.conditions.now_ms(),
                at_rest: true,
            };
            self.queues.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        }
    }

    /// A turn at every node, whose successor each has to prepare soon, whatever crashed before.
    pub(super) async fn probe_schedulers(
        self: &Arc<Self>,
        tenant: &TenantId,
        cube: &CubeId,
    ) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (node, _) in self.all_running() {
            let what = format!("a turn and its successor prepared at node-{node}");
            let start = Instant::now();
            let (mut took_ms, mut error) = (None, None);
            while took_ms.is_none() && start.elapsed() < PROBE_PATIENCE {
                match self.probe_scheduler(tenant, cube, node).await {
                    Ok(()) => took_ms = Some(millis(start.elapsed())),
                    Err(reason) => {
                        error = Some(reason);
                        sleep(Duration::from_millis(200)).await;
                    }
                }
            }
            let (tenant, cube) = (tenant.clone(), cube.clone());
            probes.push(Probe { tenant, cube, what, took_ms, error });
        }
        probes
    }

    async fn probe_scheduler(
        self: &Arc<Self>,
        tenant: &TenantId,
        cube: &CubeId,
        node: u32,
    ) -> Result<(), String> {
        let client = self.client(PROBER, tenant.as_str()).map_err(|error| error.to_string())?;
        let said = Said {
            preamble: instructions(1),
            question: "what about topic1?".to_owned(),
            recalls: true,
            leaves_after: None,
        };
        let scene = PROBED + node;
        let running = self.running(node).ok_or("the node does not run")?;
        let before = timeline(&running, tenant, cube, scene).await?;
        let before = before.entries.iter().map(|entry| entry.number).max().unwrap_or(0);
        // Two at once: the second overtakes what is prepared for it.
        let mut turns = Vec::new();
        for _ in 0..2 {
            let number = self.next_operation();
            let marker = format!("mk{:06}q{node}c{PROBER}", number & 0xff_ffff);
            let turn = Turn { scene, turns: turns.clone(), said: said.clone() };
            let cube = client.cube(cube.clone());
            let (message, heard, _) =
                cube.converse_once(node, number << TRIES_BITS, marker, &turn).await?;
            turns.push(message);
            turns.push(ChatTurn::new(Role::Assistant, heard.text));
        }
        let start = Instant::now();
        loop {
            let now = timeline(&running, tenant, cube, scene).await?;
            let newest = now.entries.last().filter(|entry| entry.number > before);
            match newest.map(|entry| entry.state) {
                Some(PreloadState::Loaded | PreloadState::Nothing | PreloadState::Failed) => {
                    return Ok(());
                }
                Some(PreloadState::Running | PreloadState::Overtaken) | None => {}
            }
            if start.elapsed() > PREPARED_WITHIN {
                return Err(format!("nothing was prepared after entry {before}: {newest:?}"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What a node did for a conversation itself, whoever owns the cube.
async fn timeline(
    running: &RunningNode,
    tenant: &TenantId,
    cube: &CubeId,
    scene: u32,
) -> Result<SceneTimeline, String> {
    let scheduler = running.cubes.scheduler().ok_or("the node has no scheduler")?;
    let name = conversation(scene).ok_or("no conversation has this name")?;
    let followed = scheduler.followed().await.map_err(|error| error.to_string())?;
    let is_it = |known: &FollowedScene| {
        known.tenant == *tenant && known.cube == *cube && known.conversation == name
    };
    Ok(followed.into_iter().find(is_it).map(|known| known.timeline).unwrap_or_default())
}
