//! After the work: heal everything, see whether the cluster comes back, and gather the evidence.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use memcube_actors::{CubeHandle, TenantContext, cube::SearchRequest};
use memcube_schemas::{CubeId, TenantId, Version, limits::PAGE_ITEMS_MAX, memory::MemoryItem};
use tokio::time::{Instant, sleep, timeout};

use super::{Inner, PROBER, node::RunningNode};
use crate::{
    evidence::{Evidence, Probe, ServedCube},
    marker::{marker, marker_of, text},
};

/// How long a probe is tried: longer than the checker allows, so that it says by how much.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(60);
/// How long after the heal late commits and dead owners are waited for.
const SETTLE_STEP: Duration = Duration::from_millis(500);
const SETTLE_STEPS_MAX: u32 = 40;
/// How long calls that their callers gave up may still run: as long as a node waits for another.
const REST_STEP: Duration = Duration::from_secs(2);
const REST_STEPS_MAX: u32 = 13;
/// How often blobs are swept at the end, and how long one may wait for its reference by then.
const SWEEPS_MAX: u32 = 30;
const SWEEP_GRACE_MS: u64 = 10_000;
/// Sweeps in a row that find nothing to do.
const QUIET_SWEEPS: u32 = 2;

impl Inner {
    /// Heals the world, and gathers what there is to judge.
    pub(super) async fn gather(self: &Arc<Self>) -> Evidence {
        self.conditions.heal();
        for node in 0..self.plan.nodes {
            let is_stopping = self.stopping().contains(&node);
            if is_stopping || !self.conditions.is_up(node) || self.running(node).is_none() {
                self.conditions.begin(&crate::plan::Fault::Crash { node });
                self.crash_node(node);
                Arc::clone(self).boot_node(node).await;
            }
        }
        let probes = self.probe_all().await;
        self.settle().await;
        self.finish_following().await;
        self.come_to_rest().await;
        self.sweep_all().await;
        // Last, because a call that was long on its way may still have changed something.
        let served = self.serve_all().await;
        let (commits, rows) = self.store.close_the_books().await;
        let objects = self.blobs.events();
        let contents = if self.plan.models { self.blobs.contents().await } else { BTreeMap::new() };
        Evidence {
            history: std::mem::take(&mut *self.history()),
            commits,
            lives: std::mem::take(&mut *self.lives.lock().expect("invariant: no panic meanwhile")),
            rows,
            objects,
            served,
            queues: std::mem::take(
                &mut *self.queues.lock().expect("invariant: no panic meanwhile"),
            ),
            probes,
            chats: std::mem::take(&mut *self.chats()),
            erased: std::mem::take(&mut *self.erased()),
            replies: self.said_for_memory(),
            decisions: std::mem::take(&mut *self.decisions()),
            scenes: std::mem::take(&mut *self.scenes()),
            tokens_per_minute: self
                .plan
                .scheduler
                .as_ref()
                .map_or(0, |plan| plan.tenant_tokens_per_minute),
            readings: self.witness.take(),
            residents: std::mem::take(
                &mut *self.residents.lock().expect("invariant: no panic meanwhile"),
            ),
            contents,
            followed: std::mem::take(&mut *self.followed()),
            consumed: std::mem::take(&mut *self.consumed()),
        }
    }

    /// Every cube, asked at every node: it has to answer soon, without anybody's help but an
    /// operator's, who releases what the injected panics have put into quarantine.
    async fn probe_all(self: &Arc<Self>) -> Vec<Probe> {
        let mut probes = Vec::new();
        self.make_erased().await;
        for (tenant, cube) in self.known_cubes() {
            let context = TenantContext::authenticated(tenant.clone(), "operator");
            for (_, running) in self.all_running() {
                // Most cubes are in no quarantine, and say so.
                let _ = running.cubes.release(&context, &cube).await;
            }
        }
        let cubes = self.known_cubes();
        let asked = cubes.iter().map(|(tenant, cube)| self.probe(tenant, cube));
        for probe in futures_util::future::join_all(asked).await {
            probes.extend(probe);
        }
        probes
    }

    async fn probe(self: &Arc<Self>, tenant: &TenantId, cube: &CubeId) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (node, running) in self.all_running() {
            let context = TenantContext::authenticated(tenant.clone(), "prober");
            let handle = running.cubes.cube(&context, cube.clone());
            let (took_ms, error) = until_answered(&handle).await;
            let what = format!("list at node-{node}");
            let (tenant, cube) = (tenant.clone(), cube.clone());
            probes.push(Probe { tenant, cube, what, took_ms, error });
        }
        if self.plan.models {
            probes.extend(self.probe_models(tenant, cube).await);
        }
        if self.plan.scheduler.is_some() {
            probes.extend(self.probe_schedulers(tenant, cube).await);
        }
        // And a change, which the checkers then look for like for any other.
        let start = Instant::now();
        let number = self.next_operation() & 0xff_ffff;
        let text = text(tenant.as_str(), &marker(PROBER, number), 0);
        let added = match self.client(PROBER, tenant.as_str()) {
            Ok(client) => client.cube(cube.clone()).add(&text).await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let took_ms = added.is_ok().then(|| millis(start.elapsed()));
        let (tenant, cube) = (tenant.clone(), cube.clone());
        let what = "add".to_owned();
        probes.push(Probe { tenant, cube, what, took_ms, error: added.err() });
        probes
    }

    /// Waits until no commit is on its way any more, and nobody runs a call that its caller gave
    /// up.
    async fn settle(&self) {
        for _ in 0..SETTLE_STEPS_MAX {
            if self.store.late_commits() == 0 {
                break;
            }
            sleep(SETTLE_STEP).await;
        }
    }

    /// Reads every cube in the way that a user would.
    async fn serve_all(self: &Arc<Self>) -> BTreeMap<(TenantId, CubeId), ServedCube> {
        let mut served = BTreeMap::new();
        let running = self.all_running();
        let Some((_, running)) = running.first() else { return served };
        for (tenant, cube) in self.known_cubes() {
            if let Some(read) = serve(running, &tenant, &cube).await {
                served.insert((tenant, cube), read);
            }
        }
        served
    }

    /// Sweeps until nothing is left that somebody may still be about to refer to, and until whoever
    /// was just writing a snapshot has released what it stands in for.
    async fn sweep_all(&self) {
        let running = self.all_running();
        let Some(blobs) = running.first().and_then(|(_, node)| node.cubes.blobs()) else { return };
        let tenants: BTreeSet<TenantId> =
            self.known_cubes().into_iter().map(|(tenant, _)| tenant).collect();
        let mut quiet = 0;
        for _ in 0..SWEEPS_MAX {
            quiet += 1;
            for tenant in &tenants {
                let swept = blobs.sweep(tenant, SWEEP_GRACE_MS).await;
                let is_quiet = swept.is_ok_and(|swept| {
                    swept.spared + swept.removed + swept.strays + swept.references == 0
                });
                quiet = if is_quiet { quiet } else { 0 };
            }
            if quiet >= QUIET_SWEEPS {
                return;
            }
            sleep(REST_STEP).await;
        }
    }

    /// Nobody asks anything any more, and no fault strikes: whatever still runs ends soon, and then
    /// nothing waits.
    async fn come_to_rest(&self) {
        let is_idle = || {
            let mut running = self.all_running().into_iter();
            running.all(|(_, node)| node.cubes.queues().iter().all(|queue| queue.depth == 0))
        };
        for _ in 0..REST_STEPS_MAX {
            sleep(REST_STEP).await;
            if is_idle() {
                break;
            }
        }
        self.look_at_queues(true);
        self.look_at_scenes(true).await;
    }
}

async fn until_answered(cube: &CubeHandle) -> (Option<u64>, Option<String>) {
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < PROBE_PATIENCE {
        match timeout(PROBE_PATIENCE, cube.list(None, 1)).await {
            Ok(Ok(_)) => return (Some(millis(start.elapsed())), last),
            Ok(Err(error)) => last = Some(error.to_string()),
            Err(_) => last = Some("no answer".to_owned()),
        }
        sleep(Duration::from_millis(200)).await;
    }
    (None, last)
}

async fn serve(running: &RunningNode, tenant: &TenantId, cube: &CubeId) -> Option<ServedCube> {
    let context = TenantContext::authenticated(tenant.clone(), "checker");
    let handle = running.cubes.cube(&context, cube.clone());
    let mut items: Vec<MemoryItem> = Vec::new();
    let mut version = Version::default();
    loop {
        let page = handle.list(items.last().map(|item| item.id), PAGE_ITEMS_MAX).await.ok()?;
        version = version.max(page.version);
        items.extend(page.items.iter().map(|item| MemoryItem::clone(item)));
        if !page.more {
            break;
        }
    }
    let mut found = BTreeMap::new();
    for item in items.iter().filter(|item| item.status.is_recalled()) {
        let marker = marker_of(&item.text).filter(|marker| !marker.starts_with('#'));
        let query = marker.unwrap_or_else(|| item.text.clone());
        let request = SearchRequest { top_k: PAGE_ITEMS_MAX, ..SearchRequest::new(query) };
        let hits = handle.search(request).await.ok()?.hits;
        found.insert(item.id, hits.iter().any(|hit| hit.item.id == item.id));
    }
    Some(ServedCube { items, version, found })
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
