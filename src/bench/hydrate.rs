//! How long a cube takes from disk into RAM: from its snapshot and a tail, and from its rows.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use memcube_actors::{
    Error, Result, TenantContext,
    cube::AddRequest,
    embedder::{Embedder, Embedding},
    storage::SharedStore,
};
use memcube_schemas::{
    CubeId, ModelId, TenantId,
    cube::CubeManifest,
    limits::{ITEMS_PER_CUBE_MAX, SNAPSHOT_LEAVING_SHARE},
};
use serde::Serialize;

use super::{Durations, words::Words};
use crate::{
    Node,
    settings::{Settings, StoreKind},
    storage::EmbeddedStore,
};

/// Values of a vector, as MiniLM's.
const DIMENSIONS: usize = 384;
const SEED: u64 = 20_261_127;
const TENANT: &str = "bench";
const CUBE: &str = "hydrate";
/// Statements that are added in one call.
const ADD_ITEMS: usize = 1_000;
const WORDS: std::ops::Range<usize> = 12..40;
/// How long the snapshot of the largest cube may take.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HydrateReport {
    /// Memories in the cube.
    pub items: usize,
    /// Of them, how many were added after the snapshot.
    pub tail: usize,
    /// How often it was hydrated from the snapshot, and a tenth as often from its rows.
    pub rounds: usize,
    /// Bytes of the snapshot.
    pub snapshot_bytes: u64,
    /// From snapshot and tail: until the first question is answered.
    pub snapshot_ms: Durations,
    /// From rows.
    pub rows_ms: Durations,
}

/// Random directions, one a text, and the same one for the same text.
struct RandomVectors(ModelId);

impl Embedder for RandomVectors {
    fn model(&self) -> &ModelId {
        &self.0
    }

    fn embed(&self, texts: &[&str]) -> std::result::Result<Vec<Embedding>, String> {
        let embed = |text: &&str| {
            let seed = text
                .bytes()
                .fold(SEED, |sum, byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
            Embedding {
                vector: Words::direction(seed, DIMENSIONS),
                tokens: u32::try_from(text.len() / 4).unwrap_or(u32::MAX),
            }
        };
        Ok(texts.iter().map(embed).collect())
    }
}

/// Fills a cube in a store in `dir`, makes a snapshot, adds a tail, and hydrates it again and
/// again.
///
/// # Errors
/// `Invalid` for numbers that make no sense, otherwise as the store's.
pub async fn run(dir: &Path, items: usize, tail: usize, rounds: usize) -> Result<HydrateReport> {
    if !(1..=ITEMS_PER_CUBE_MAX).contains(&items) || rounds == 0 || tail >= items {
        return Err(Error::invalid(format!(
            "`--items` must be between 1 and {ITEMS_PER_CUBE_MAX}, `--tail` smaller, and \
             `--rounds` at least 1"
        )));
    }
    if tail * SNAPSHOT_LEAVING_SHARE > items {
        return Err(Error::invalid(format!(
            "`--tail` is at most one in {SNAPSHOT_LEAVING_SHARE} items: with more, the cube gets \
             a new snapshot when it leaves RAM"
        )));
    }
    let path = dir.join("state");
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path)).await;
    let opened = opened.map_err(|error| Error::internal(error.to_string()))?;
    let bench = Bench { store: Arc::new(opened?), settings: settings(dir) };
    bench.fill(items - tail, false).await?;
    bench.leave_snapshot().await?;
    bench.fill(tail, true).await?;
    let snapshot_bytes = snapshot_bytes(dir)?;
    let snapshot_ms = bench.rounds(rounds, items, true).await?;
    let rows_ms = bench.rounds(rounds.div_ceil(10), items, false).await?;
    Ok(HydrateReport { items, tail, rounds, snapshot_bytes, snapshot_ms, rows_ms })
}

struct Bench {
    store: SharedStore,
    settings: Settings,
}

impl Bench {
    async fn node(&self, with_snapshots: bool, passivate_after_ms: u64) -> Result<Node> {
        let mut settings = self.settings.clone();
        settings.cube.passivate_after_ms = passivate_after_ms;
        if !with_snapshots {
            settings.blobs.url = Some("none".to_owned());
        }
        let model = RandomVectors(ModelId::new("random")?);
        let builder = Node::builder().with_settings(settings).with_embedder(Arc::new(model));
        builder.with_store(Arc::clone(&self.store)).start().await
    }

    async fn fill(&self, items: usize, with_snapshots: bool) -> Result<()> {
        let node = self.node(with_snapshots, 600_000).await?;
        let cube = node.cubes().ensure(&context()?, CubeId::new(CUBE)?).await?;
        let words = Words::new(SEED + u64::from(with_snapshots));
        for number in 0..items.div_ceil(ADD_ITEMS) {
            let count = ADD_ITEMS.min(items - number * ADD_ITEMS);
            let facts = (0..count).map(|_| words.text(WORDS)).collect();
            cube.add(AddRequest { facts, ..AddRequest::default() }).await?;
        }
        node.shut_down().await;
        Ok(())
    }

    /// Lets the cube leave RAM once, and waits for its snapshot.
    async fn leave_snapshot(&self) -> Result<()> {
        let node = self.node(true, 1).await?;
        node.cubes().cube(&context()?, CubeId::new(CUBE)?).describe().await?;
        let began = Instant::now();
        while manifest(&node).await?.snapshot.is_none() {
            if began.elapsed() > PATIENCE {
                return Err(Error::unavailable("the cube got no snapshot"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        node.shut_down().await;
        Ok(())
    }

    async fn rounds(&self, rounds: usize, items: usize, snapshots: bool) -> Result<Durations> {
        let mut all_ms = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let node = self.node(snapshots, 600_000).await?;
            let cube = node.cubes().cube(&context()?, CubeId::new(CUBE)?);
            let began = Instant::now();
            let found = cube.describe().await?;
            all_ms.push(began.elapsed().as_secs_f64() * 1_000.0);
            if found.items != items as u64 {
                let message = format!("{} items came back instead of {items}", found.items);
                return Err(Error::internal(message));
            }
            node.shut_down().await;
        }
        Ok(Durations::of(all_ms))
    }
}

async fn manifest(node: &Node) -> Result<CubeManifest> {
    Ok(node.cubes().describe(&context()?, &CubeId::new(CUBE)?).await?.manifest)
}

fn settings(dir: &Path) -> Settings {
    let mut settings = Settings::default();
    settings.store.kind = StoreKind::Embedded;
    settings.store.data_dir = dir.to_owned();
    settings.blobs.snapshot_items_min = 1;
    settings
}

fn context() -> Result<TenantContext> {
    Ok(TenantContext::authenticated(TenantId::new(TENANT)?, "bench"))
}

/// Bytes of the largest file below the directory of blobs.
fn snapshot_bytes(dir: &Path) -> Result<u64> {
    let failed =
        |error: std::io::Error| Error::unavailable(format!("the blobs cannot be listed: {error}"));
    let mut folders = vec![dir.join("blobs")];
    let mut largest = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                largest = largest.max(metadata.len());
            }
        }
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_small_cube_is_measured() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let report = run(dir.path(), 130, 2, 2).await.expect("it runs");
        assert!(report.snapshot_ms.max > 0.0 && report.rows_ms.max > 0.0, "{report:?}");
        assert!(report.snapshot_bytes > 130 * 384 * 5, "{report:?}");
        assert!(run(dir.path(), 100, 2, 1).await.is_err(), "too long a tail");
        assert!(run(dir.path(), 0, 0, 1).await.is_err());
    }
}
