//! One simulated machine: it boots, crashes, and boots again.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use memcube_actors::{
    BlobParts, Cubes, NodeParts,
    cluster::{ClusterParts, ClusterSettings},
    embedder::EmbedderHandle,
    environment::{Environment, Faults, SeededEntropy, Spawner},
    housekeeper::HouseRules,
    inference::{Engine, InferenceParts, activation_cache::CacheSettings, scripted::ScriptedCosts},
    scheduler::jobs::JobRules,
    storage::blobs::Plain,
    vectors::{VectorParts, VectorSettings},
};
use memcube_schemas::{Incarnation, NodeId};
use tokio::time::timeout;

use crate::{
    blobs::SimBlobs,
    clock::NodeClock,
    conditions::{Conditions, Place},
    device::FaultyEmbedder,
    engine::{FaultyEngine, Shape},
    evidence::{Residents, Violation},
    network::node_name,
    panics,
    plan::FaultClass,
    storage::IncarnationOf,
    tasks::{NodeCompute, NodeSpawner},
    world::Inner,
};

/// How long a node may take to stop in order: longer than any call that it still serves.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// What is added to the number of a life, so that its draws are those of no object.
const DISK: u64 = 1 << 62;

/// A node that runs.
pub(crate) struct RunningNode {
    pub(crate) cubes: Cubes,
    pub(crate) spawner: Arc<NodeSpawner>,
    pub(crate) life: u64,
    /// When it began to serve: simulated milliseconds.
    pub(crate) since_ms: u64,
    model: Option<Model>,
}

/// The language model of a node.
struct Model {
    engine: Arc<FaultyEngine>,
    cache: CacheSettings,
}

impl RunningNode {
    /// How much the node's language model holds, if it has one.
    pub(super) fn residents(&self, node: u32, at_ms: u64, at_rest: bool) -> Option<Residents> {
        let (model, inference) = (self.model.as_ref()?, self.cubes.inference()?);
        let (parked, ram) = inference.cache().bytes();
        Some(Residents {
            node: NodeId::new(node_name(node)).expect("invariant: node names are valid"),
            at_ms,
            parked: (parked, model.cache.device_bytes_max),
            ram: (ram, model.cache.ram_bytes_max),
            open: model.engine.bytes_used(),
            at_rest,
            incarnation: self.cubes.view().incarnation,
            holdings: if at_rest { inference.cache().holdings() } else { Vec::new() },
        })
    }
}

/// What is left of a node between two lives.
#[derive(Default)]
pub(crate) struct NodeSlot {
    /// Tasks of the life that goes on, also while it boots.
    spawner: Option<Arc<NodeSpawner>>,
    running: Option<Arc<RunningNode>>,
}

impl Inner {
    /// The node, unless it is down or still booting.
    pub(crate) fn running(&self, node: u32) -> Option<Arc<RunningNode>> {
        self.nodes().get(&node).and_then(|slot| slot.running.clone())
    }

    /// All nodes that run.
    pub(crate) fn all_running(&self) -> Vec<(u32, Arc<RunningNode>)> {
        let nodes = self.nodes();
        let running = |(node, slot): (&u32, &NodeSlot)| Some((*node, slot.running.clone()?));
        nodes.iter().filter_map(running).collect()
    }

    /// Starts a node. A crash meanwhile ends the start.
    pub(crate) async fn boot_node(self: Arc<Self>, node: u32) {
        let life = self.conditions.boot(node);
        let spawner = Arc::new(NodeSpawner::new(self.conditions.clone(), node, life));
        self.nodes().entry(node).or_default().spawner = Some(Arc::clone(&spawner));
        self.conditions.note(&node_name(node), "boot", format_args!("life {life}"));
        let started = self.start_cubes(node, life, Arc::clone(&spawner)).await;
        match started {
            Ok((cubes, model)) if self.conditions.is_current(node, life) => {
                let since_ms = self.conditions.now_ms();
                let running = RunningNode { cubes, spawner, life, since_ms, model };
                self.nodes().entry(node).or_default().running = Some(Arc::new(running));
                self.conditions.note(&node_name(node), "serving", format_args!("life {life}"));
            }
            Ok((cubes, _)) => cubes.kill(),
            Err(error) => {
                self.conditions.note(&node_name(node), "boot failed", &error);
            }
        }
    }

    async fn start_cubes(
        self: &Arc<Self>,
        node: u32,
        life: u64,
        spawner: Arc<NodeSpawner>,
    ) -> memcube_actors::Result<(Cubes, Option<Model>)> {
        let conditions = &self.conditions;
        let seed = self.dice.fork("entropy", u64::from(node)).draw("life", life);
        let points = Points {
            conditions: conditions.clone(),
            name: node_name(node),
            node,
            life,
            visits: AtomicU64::new(0),
        };
        let environment = Environment::new(
            Arc::new(NodeClock::new(conditions.clone(), node, life)),
            Arc::new(SeededEntropy::new(seed)),
            Arc::clone(&spawner) as Arc<dyn Spawner>,
            Arc::new(NodeCompute::new(conditions.clone(), node, life)),
        )
        .with_faults(Arc::new(points))
        .with_defects(self.plan.defects.iter().copied());
        let model = Arc::new(FaultyEmbedder::new(conditions.clone(), node));
        let embedder = EmbedderHandle::spawn(model, environment.clone()).await?;
        // Known once the node has started; what it commits before that is its first heartbeat.
        let cubes: Arc<OnceLock<Cubes>> = Arc::default();
        let (seen, world) = (Arc::clone(&cubes), Arc::downgrade(self));
        let incarnation: IncarnationOf = Arc::new(move || {
            let Some(cubes) = seen.get() else { return Incarnation(0) };
            let incarnation = cubes.view().incarnation;
            if let Some(world) = world.upgrade() {
                world.know_life(incarnation, node, life);
            }
            incarnation
        });
        let draw = |what: &str, low: u64, high: u64| low + self.dice.below(what, 0, high - low + 1);
        let vectors = self.vector_parts(node, life, &environment);
        let started = Cubes::start(NodeParts {
            blobs: Some(self.blob_parts(node, life)),
            store: self.store.handle(node, life, incarnation),
            environment,
            embedder: Some(embedder),
            node: NodeId::new(node_name(node))?,
            passivate_after_ms: draw("passivate", 3_000, 60_000),
            hot_cubes_max: usize::try_from(draw("hot", 1, 8)).unwrap_or(8),
            jobs: JobRules::default(),
            cluster: Some(ClusterParts {
                transport: self.network.transport(node, life),
                settings: ClusterSettings { heartbeat_ms: 500, dead_after_ms: 2_000 },
            }),
            vectors,
        })
        .await?;
        let _ = cubes.set(started.clone());
        let model = self.start_model(node, &started).await?;
        if let Some(parts) = self.scheduler_parts() {
            started.schedule(parts).await?;
        }
        started.keep_house(self.house_rules(), Vec::new()).await?;
        Ok((started, model))
    }

    fn vector_parts(&self, node: u32, life: u64, environment: &Environment) -> Option<VectorParts> {
        let draw = |what: &str, low: u64, high: u64| low + self.dice.below(what, 0, high - low + 1);
        self.plan.vectors.then(|| VectorParts {
            index: Arc::new(self.vectors.handle(node, life, environment.clone())),
            settings: VectorSettings {
                apply_after_ms: draw("apply", 200, 4_000),
                optimize_after_ms: 20_000,
                cold_cube_items_min: draw("cold", 0, 6),
            },
        })
    }

    /// Where the large bytes of a node lie.
    fn blob_parts(&self, node: u32, life: u64) -> BlobParts {
        let draw = |what: &str, low: u64, high: u64| low + self.dice.below(what, 0, high - low + 1);
        BlobParts {
            objects: Arc::new(self.blobs.handle(node, life)),
            seal: Arc::new(Plain),
            grace_ms: draw("grace", 2_000, 20_000),
            snapshot_items_min: usize::try_from(draw("snapshot", 1, 12)).unwrap_or(12),
        }
    }

    /// Starts the language model of a node, if nodes have one. Its tiers are small, so that things
    /// have to go.
    async fn start_model(&self, node: u32, cubes: &Cubes) -> memcube_actors::Result<Option<Model>> {
        if !self.plan.models {
            return Ok(None);
        }
        let dice = self.dice.fork("model", 0);
        let draw = |what: &str, low: u64, high: u64| low + dice.below(what, 0, high - low + 1);
        let costs = ScriptedCosts {
            prefill_us: draw("prefill", 50, 1_500),
            step_us: draw("step", 2_000, 40_000),
            ..ScriptedCosts::default()
        };
        let shape = Shape {
            window_tokens: usize::try_from(draw("window", 1_000, 4_096)).unwrap_or(4_096),
            device_bytes_max: draw("device", 1 << 20, 8 << 20),
            costs,
        };
        let ram_bytes_max = draw("ram", 1 << 18, 8 << 20);
        let device_bytes_max = draw("parked", 0, 2 << 20);
        let cache = CacheSettings {
            ram_bytes_max,
            tenant_ram_bytes_max: ram_bytes_max / draw("ram share", 1, 2),
            device_bytes_max,
            tenant_device_bytes_max: device_bytes_max / draw("parked share", 1, 2),
            cold_in_8_bits: dice.chance("8 bits", 0, 150),
        };
        let witness = Arc::clone(&self.witness);
        let engine = Arc::new(FaultyEngine::new(self.conditions.clone(), node, shape, witness));
        let disk = dice.chance("disk", 0, 500).then(|| self.disk_of(node));
        let parts = InferenceParts {
            engine: Arc::clone(&engine) as Arc<dyn Engine>,
            cache,
            disk: disk.map(|disk| (disk, draw("disk bytes", 1 << 18, 16 << 20))),
            objects_are_local: dice.chance("local", 0, 200),
            segment_repair_tokens: None,
        };
        cubes.serve_model(parts).await?;
        Ok(Some(Model { engine, cache }))
    }

    /// The local disk of a node as its present life sees it: what former lives left there, unless
    /// it was lost.
    fn disk_of(&self, node: u32) -> Arc<dyn object_store::ObjectStore> {
        let life = self.conditions.life(node);
        let occasion = self.conditions.occasion(Place::Blobs { node }, life | DISK);
        let is_lost = self.conditions.strikes(FaultClass::DiskLost, occasion);
        let mut disks = self.disks.lock().expect("invariant: nothing panics meanwhile");
        let fresh = || SimBlobs::new(self.conditions.clone());
        let disk = disks.entry(node).or_insert_with(fresh);
        if is_lost {
            *disk = fresh();
        }
        Arc::new(disk.handle(node, life))
    }

    /// For how long feeds are kept in this world: in every other one for so short a time that
    /// followers come too late now and then.
    fn house_rules(&self) -> HouseRules {
        let dice = self.dice.fork("house", 0);
        let feed_keep_ms = if dice.chance("short", 0, 500) {
            3_000 + dice.below("keep", 0, 20_000)
        } else {
            3_600_000
        };
        HouseRules { feed_keep_ms, period_ms: 500 + dice.below("period", 0, 4_000) }
    }

    /// Asks a node to stop, and waits until it has; that must not take for ever.
    pub(crate) async fn stop_node(&self, node: u32) {
        let Some(running) = self.running(node) else { return };
        self.stopping().insert(node);
        let stopped = timeout(STOP_PATIENCE, running.cubes.shut_down()).await;
        if !self.conditions.is_current(node, running.life) {
            return;
        }
        if stopped.is_ok() {
            self.conditions.reach("node.stopped-in-order");
        } else {
            let what = format!("{} did not stop within {STOP_PATIENCE:?}", node_name(node));
            self.accuse(Violation::new("liveness", what));
        }
        self.conditions.stop(node);
        self.crash_node(node);
    }

    /// Takes the power away. The conditions have ended the node's life already.
    pub(crate) fn crash_node(&self, node: u32) {
        let slot = self.nodes().remove(&node).unwrap_or_default();
        self.stopping().remove(&node);
        if let Some(spawner) = slot.spawner {
            spawner.abort_all();
        }
        if let Some(running) = slot.running {
            running.cubes.kill();
        }
    }
}

/// What actor code reaches, and where it is made to panic.
struct Points {
    conditions: Conditions,
    name: String,
    node: u32,
    life: u64,
    visits: AtomicU64,
}

impl Faults for Points {
    fn reach(&self, point: &'static str, _detail: &str) {
        if !self.conditions.is_current(self.node, self.life) {
            return;
        }
        self.conditions.reach(point);
        let class = match point {
            "cube.decide" | "vectors.applied" | "vectors.build-begun" => FaultClass::CubePanic,
            "cube.hydrate" => FaultClass::HydratePanic,
            "scheduler.event" => FaultClass::SchedulerPanic,
            "scheduler.preload" => FaultClass::PreloadPanic,
            _ => {
                self.conditions.note(&self.name, "reaches", point);
                return;
            }
        };
        let visit = self.life << 32 | self.visits.fetch_add(1, Ordering::Relaxed);
        let occasion = self.conditions.occasion(Place::Cubes { node: self.node }, visit);
        assert!(!self.conditions.strikes(class, occasion), "{} at {point}", panics::INJECTED);
    }
}
