//! How a store bears many cubes: start, memory, and what a call to one of them costs.

use std::{path::Path, time::Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use memcube_actors::{
    Error, Result, TenantContext,
    cube::{AddRequest, CubeHandle},
};
use memcube_schemas::{CubeId, TenantId};
use serde::Serialize;

use super::{Durations, words::Words};
use crate::{
    Node,
    settings::{EmbedderKind, Settings, StoreKind},
};

const TENANT: &str = "bench";
/// Cubes that are made at the same time while they are registered.
const WRITERS: usize = 512;
/// Memories that each measured cube holds when it is hydrated.
const ITEMS: usize = 100;
const WORDS: std::ops::Range<usize> = 8..25;
const SEED: u64 = 20_261_126;

/// What was registered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegisterReport {
    /// Cubes made.
    pub cubes: usize,
    /// How long it took.
    pub seconds: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CubesReport {
    /// Cubes in the store, as far as the caller says.
    pub cubes: usize,
    /// Until the node answers.
    pub start_ms: f64,
    /// Resident memory of the process with all cubes cold, where the system tells it.
    pub resident_mb: Option<f64>,
    /// Cubes that were measured.
    pub sample: usize,
    /// An add to a cube that is not in RAM.
    pub add_cold_ms: Durations,
    /// An add to a cube that is.
    pub add_hot_ms: Durations,
    /// Bringing a cube of 100 memories into RAM.
    pub hydrate_ms: Durations,
}

/// Makes so many cubes in a store in `dir`.
///
/// # Errors
/// As the store's.
pub async fn register(dir: &Path, cubes: usize) -> Result<RegisterReport> {
    let node = start(dir).await?;
    let context = context()?;
    let began = Instant::now();
    stream::iter(0..cubes)
        .map(|number| {
            let (node, context) = (&node, &context);
            async move { node.cubes().create(context, id(number)?, None, None).await }
        })
        .buffer_unordered(WRITERS)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    node.shut_down().await;
    Ok(RegisterReport { cubes, seconds: (seconds * 1_000.0).round() / 1_000.0 })
}

/// Measures a store in `dir` that holds so many registered cubes, on a sample of them.
///
/// # Errors
/// As the store's; `Invalid` when the sample is empty or larger than the store.
pub async fn measure(dir: &Path, cubes: usize, sample: usize) -> Result<CubesReport> {
    if sample == 0 || sample > cubes {
        return Err(Error::invalid("`--sample` must be between 1 and the number of cubes"));
    }
    let began = Instant::now();
    let node = start(dir).await?;
    let context = context()?;
    node.cubes().list(&context, None, 1).await?;
    let start_ms = milliseconds(began);
    let resident_mb = resident_mb();
    let numbers: Vec<usize> = (0..sample).map(|place| place * cubes / sample).collect();
    let words = Words::new(SEED);
    let (mut add_cold_ms, mut add_hot_ms) = (Vec::new(), Vec::new());
    for number in &numbers {
        let cube = node.cubes().cube(&context, id(*number)?);
        add_cold_ms.push(add(&cube, vec![words.text(WORDS)]).await?);
        add_hot_ms.push(add(&cube, vec![words.text(WORDS)]).await?);
        add(&cube, (2..ITEMS).map(|_| words.text(WORDS)).collect()).await?;
    }
    node.shut_down().await;
    drop(node);
    let node = start(dir).await?;
    let mut hydrate_ms = Vec::new();
    for number in &numbers {
        let began = Instant::now();
        node.cubes().cube(&context, id(*number)?).describe().await?;
        hydrate_ms.push(milliseconds(began));
    }
    node.shut_down().await;
    Ok(CubesReport {
        cubes,
        start_ms: (start_ms * 10.0).round() / 10.0,
        resident_mb,
        sample,
        add_cold_ms: Durations::of(add_cold_ms),
        add_hot_ms: Durations::of(add_hot_ms),
        hydrate_ms: Durations::of(hydrate_ms),
    })
}

async fn start(dir: &Path) -> Result<Node> {
    let mut settings = Settings::default();
    settings.store.kind = StoreKind::Embedded;
    settings.store.data_dir = dir.to_owned();
    settings.embedder.kind = EmbedderKind::None;
    Box::pin(Node::builder().with_settings(settings).start()).await
}

async fn add(cube: &CubeHandle, facts: Vec<String>) -> Result<f64> {
    let began = Instant::now();
    cube.add(AddRequest { facts, ..AddRequest::default() }).await?;
    Ok(milliseconds(began))
}

fn context() -> Result<TenantContext> {
    Ok(TenantContext::authenticated(TenantId::new(TENANT)?, "bench"))
}

/// Spread over the key space, as ids of users are.
fn id(number: usize) -> Result<CubeId> {
    let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Ok(CubeId::new(format!("user-{spread:016x}"))?)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// Resident memory of this process in MB, as Linux tells it.
fn resident_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some((kilobytes / 1024.0 * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn registered_cubes_are_measured() {
        let dir = tempfile::tempdir().expect("a directory");
        let registered = register(dir.path(), 20).await.expect("registered");
        assert_eq!(registered.cubes, 20);
        let report = measure(dir.path(), 20, 3).await.expect("measured");
        assert!(report.hydrate_ms.max > 0.0 && report.add_cold_ms.max > 0.0, "{report:?}");
        assert!(measure(dir.path(), 20, 21).await.is_err());
    }
}
