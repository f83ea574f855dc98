//! What a node that starts brings back: cubes that were in use shortly before, as the event feed
//! tells, are in RAM before anybody asks for them.

use std::{collections::BTreeMap, sync::Weak};

use memcube_schemas::{
    TenantId,
    codec::decode,
    feed::{FeedChange, FeedRecord},
    keys,
    limits::PRELOAD_MS_MAX,
};

use super::jobs::{Job, JobKind};
use crate::{
    cluster::placement::Placement,
    cube::{CubeKey, Preloader},
    directory::{Cubes, Shared as Node},
    error::Result,
    storage::RangeRead,
};

/// Milliseconds before the start in which a cube counts as in use.
const IN_USE_MS: i64 = 600_000;
/// Cubes that are brought back.
const CUBES_MAX: usize = 64;
/// Tenants whose feeds are looked at.
const TENANTS_MAX: usize = 256;
/// Records at the end of each shard of a feed that are looked at.
const RECORDS_MAX: usize = 32;

/// Brings back what was in use. What cannot be read is left aside: it saves time and no more.
pub(crate) async fn recover(node: &Weak<Node>) {
    let Some(node) = node.upgrade() else { return };
    let cubes = Cubes::from_shared(node);
    if let Err(error) = bring_back(&cubes).await {
        tracing::debug!(%error, "cubes in use before the start were not all brought back");
    }
}

async fn bring_back(cubes: &Cubes) -> Result<()> {
    let mut newest: BTreeMap<CubeKey, i64> = BTreeMap::new();
    let mut tenant: Option<TenantId> = None;
    for _ in 0..TENANTS_MAX {
        let range = RangeRead::page(keys::tenants_after(tenant.as_ref()), 1);
        let output = cubes.store().read(vec![range]).await?;
        let entry = output.pages.first().and_then(|page| page.entries.first());
        let Some(next) = entry.and_then(|entry| keys::leading_tenant(&entry.key)) else { break };
        in_use(cubes, &next, &mut newest).await?;
        tenant = Some(next);
    }
    let mut newest: Vec<(CubeKey, i64)> = newest.into_iter().collect();
    newest.sort_by(|(left_key, left), (right_key, right)| {
        right.cmp(left).then_with(|| left_key.cmp(right_key))
    });
    for (key, _) in newest.into_iter().take(CUBES_MAX) {
        // Of a cube that another node has, that one takes care.
        if matches!(cubes.place(&key, false).await, Ok(Placement::Here)) {
            cubes.environment().reach("scheduler.recovered", key.cube.as_str());
            // A queue that is full has better things to do.
            let _ = cubes.jobs().submit(hydration(cubes.clone(), key));
        }
    }
    Ok(())
}

/// Adds the cubes of a tenant that were in use, and when.
async fn in_use(
    cubes: &Cubes,
    tenant: &TenantId,
    newest: &mut BTreeMap<CubeKey, i64>,
) -> Result<()> {
    let since_ms = cubes.environment().unix_ms() - IN_USE_MS;
    let shards = (0..keys::FEED_SHARDS).map(|shard| {
        let range = RangeRead::page(keys::feed(tenant, shard), RECORDS_MAX);
        RangeRead { reverse: true, ..range }
    });
    let output = cubes.store().read(shards.collect()).await?;
    for entry in output.pages.into_iter().flat_map(|page| page.entries) {
        let Ok(FeedRecord { cube, at_ms, change, .. }) = decode(&entry.value) else { continue };
        let key = CubeKey { tenant: tenant.clone(), cube };
        match change {
            FeedChange::CubeMade | FeedChange::Items(_) if at_ms >= since_ms => {
                let known = newest.entry(key).or_insert(at_ms);
                *known = at_ms.max(*known);
            }
            // It may have been made anew since; then it is small.
            FeedChange::CubeErased => drop(newest.remove(&key)),
            FeedChange::CubeMade | FeedChange::Items(_) | FeedChange::CubeRestored => {}
        }
    }
    Ok(())
}

fn hydration(cubes: Cubes, key: CubeKey) -> Job {
    let CubeKey { tenant, cube } = key;
    let name = format!("bring {cube} back");
    let preloader = Preloader::new(cubes, tenant.clone(), cube.clone());
    let work = Box::new(move || {
        let work = async move { preloader.hydrate().await };
        Box::pin(work) as futures_util::future::BoxFuture<'static, _>
    });
    let (tenant, cube) = (Some(tenant), Some(cube));
    Job { tenant, cube, kind: JobKind::Preload, name, ms_max: PRELOAD_MS_MAX, work }
}
