//! How fast the vector tier is beside a cube's own RAM, and how much of the exact answer it finds.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::Arc,
    time::Instant,
};

use futures_util::future::try_join_all;
use memcube_actors::{
    Error, Result,
    cube::recall::{RecallIndex, RecallRequest, SearchRequest},
    storage::{
        SharedVectorIndex,
        vector_index::{Candidates, RowChange, SearchSpec, TableId, VectorRow},
    },
};
use memcube_schemas::{
    CubeId, MemoryId, Stamp, TenantId, Version,
    call::SearchFilter,
    keys,
    limits::{INDEX_BATCH_ROWS, ITEMS_PER_CUBE_MAX},
    memory::MemoryItem,
};
use serde::Serialize;

use super::{Durations, words::Words};

/// Values of a vector, as MiniLM's.
const DIMENSIONS: usize = 384;
/// Directions around which memories lie: real texts are about something.
const TOPICS: usize = 500;
/// How far a memory is from its topic; 0 is on it.
const SPREAD: f32 = 0.8;
const QUERY_WORDS: std::ops::Range<usize> = 3..9;
const SEED: u64 = 20_260_102;
/// Queries that are asked before the clock runs.
const WARM_UP_QUERIES: usize = 10;
/// Hits of which the exact ones are counted.
const HITS: usize = 10;
/// Candidates of one arm, as a search for ten hits asks for them.
const CANDIDATES: usize = HITS + 32;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VectorsReport {
    /// `in-ram` or `lance`.
    pub kind: String,
    /// Memories in all cubes together.
    pub rows: usize,
    /// Cubes that hold them.
    pub cubes: usize,
    /// Questions of each sort.
    pub queries: usize,
    /// How long it took to write all rows, and to tidy up.
    pub build_seconds: f64,
    /// A search of one cube in the tier: vectors and words, over rows of all cubes.
    pub cube_ms: Durations,
    /// Recall of the same cubes in their own RAM: everything that a search does there.
    pub cube_in_ram_ms: Durations,
    /// A search of all cubes in the tier: vectors and words of all its tables.
    pub tenant_ms: Durations,
    /// Of the ten exact neighbours in a cube, how many are among the candidates.
    pub cube_recall_at_10: f64,
    /// Of the ten exact neighbours among all memories, how many are among the candidates.
    pub tenant_recall_at_10: f64,
}

/// Everything that is searched.
struct World {
    words: Words,
    topics: Vec<Vec<f32>>,
    cubes: Vec<Cube>,
}

struct Cube {
    id: CubeId,
    items: Vec<(MemoryItem, Vec<f32>)>,
}

struct Question {
    text: String,
    vector: Vec<f32>,
}

/// Fills an index with synthetic memories and asks it, beside the RAM of the same cubes.
///
/// # Errors
/// `Invalid` for numbers that make no sense, `Unavailable` when the index fails.
pub async fn run(
    index: SharedVectorIndex,
    kind: &str,
    rows: usize,
    cubes: usize,
    queries: usize,
) -> Result<VectorsReport> {
    if cubes == 0 || queries == 0 || rows < cubes || rows / cubes > ITEMS_PER_CUBE_MAX {
        return Err(Error::invalid(
            "`--cubes` and `--queries` must be at least 1, and `--rows` at least `--cubes`",
        ));
    }
    let world = World::new(rows, cubes);
    let start = Instant::now();
    world.write(&index).await?;
    let build_seconds = (start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let (cube_ms, cube_recall_at_10) = world.ask_cubes(&index, queries).await?;
    let (tenant_ms, tenant_recall_at_10) = world.ask_all(&index, queries).await?;
    Ok(VectorsReport {
        kind: kind.to_owned(),
        rows,
        cubes,
        queries,
        build_seconds,
        cube_ms,
        cube_in_ram_ms: world.ask_in_ram(queries),
        tenant_ms,
        cube_recall_at_10,
        tenant_recall_at_10,
    })
}

fn table(shard: u16) -> TableId {
    let tenant = TenantId::new("bench").expect("invariant: the name is valid");
    TableId { tenant, shard, model: None }
}

fn shards() -> std::ops::Range<u16> {
    0..keys::FEED_SHARDS
}

impl World {
    fn new(rows: usize, cubes: usize) -> Self {
        let words = Words::new(SEED);
        let topics: Vec<Vec<f32>> = (0..TOPICS).map(|_| words.vector(DIMENSIONS)).collect();
        let mut world = Self { words, topics, cubes: Vec::new() };
        for number in 0..cubes {
            let id = CubeId::new(format!("cube {number}")).expect("invariant: the name is valid");
            world.cubes.push(Cube { id, items: Vec::new() });
        }
        for number in 0..rows {
            let item = (world.words.item(number), world.vector());
            world.cubes[number % cubes].items.push(item);
        }
        world
    }

    /// A unit vector near one of the topics.
    fn vector(&self) -> Vec<f32> {
        let topic = &self.topics[self.words.below(TOPICS)];
        let noise = self.words.vector(DIMENSIONS);
        let mut vector: Vec<f32> =
            topic.iter().zip(&noise).map(|(topic, noise)| topic + SPREAD * noise).collect();
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|value| *value /= length);
        vector
    }

    fn question(&self) -> Question {
        Question { text: self.words.text(QUERY_WORDS), vector: self.vector() }
    }

    async fn write(&self, index: &SharedVectorIndex) -> Result<()> {
        for shard in shards() {
            let of_shard = self.cubes.iter().filter(|cube| keys::feed_shard(&cube.id) == shard);
            let rows: Vec<(&CubeId, &(MemoryItem, Vec<f32>))> = of_shard
                .flat_map(|cube| cube.items.iter().map(move |item| (&cube.id, item)))
                .collect();
            for rows in rows.chunks(INDEX_BATCH_ROWS) {
                let put = |(cube, (item, vector)): &(&CubeId, &(MemoryItem, Vec<f32>))| {
                    let terms = item.text.to_lowercase();
                    let row = VectorRow::of(cube, item, terms, Some(vector.clone()));
                    RowChange::Put(Box::new(row))
                };
                index.apply(&table(shard), rows.iter().map(put).collect(), None).await?;
            }
            let whole = Some(Stamp::end_of(Version(1)));
            index.apply(&table(shard), Vec::new(), whole).await?;
            index.optimize(&table(shard)).await?;
        }
        Ok(())
    }

    async fn ask_cubes(
        &self,
        index: &SharedVectorIndex,
        queries: usize,
    ) -> Result<(Durations, f64)> {
        let mut all_ms = Vec::with_capacity(queries);
        let mut hits = Recall::default();
        for number in 0..queries + WARM_UP_QUERIES {
            let cube = &self.cubes[self.words.below(self.cubes.len())];
            let question = self.question();
            let spec = spec(&question, Some(vec![cube.id.clone()]));
            let start = Instant::now();
            let found = index.search(&table(keys::feed_shard(&cube.id)), spec).await?;
            let took_ms = start.elapsed().as_secs_f64() * 1_000.0;
            if number >= WARM_UP_QUERIES {
                all_ms.push(took_ms);
                hits.count(&exact(&question, std::slice::from_ref(cube)), found.as_slice());
            }
        }
        Ok((Durations::of(all_ms), hits.share()))
    }

    async fn ask_all(&self, index: &SharedVectorIndex, queries: usize) -> Result<(Durations, f64)> {
        let mut all_ms = Vec::with_capacity(queries);
        let mut hits = Recall::default();
        for number in 0..queries + WARM_UP_QUERIES {
            let question = self.question();
            let start = Instant::now();
            let searches: Vec<_> =
                shards().map(|shard| index.search(&table(shard), spec(&question, None))).collect();
            let found: Vec<Candidates> =
                try_join_all(searches).await?.into_iter().flatten().collect();
            let took_ms = start.elapsed().as_secs_f64() * 1_000.0;
            if number >= WARM_UP_QUERIES {
                all_ms.push(took_ms);
                hits.count(&exact(&question, &self.cubes), &found);
            }
        }
        Ok((Durations::of(all_ms), hits.share()))
    }

    /// The same questions to single cubes, in the RAM that they would have as hot cubes.
    fn ask_in_ram(&self, queries: usize) -> Durations {
        const CUBES: usize = 32;
        let hot: Vec<(RecallIndex, BTreeMap<MemoryId, Arc<MemoryItem>>)> =
            self.cubes.iter().take(CUBES).map(in_ram).collect();
        let mut all_ms = Vec::with_capacity(queries);
        for number in 0..queries + WARM_UP_QUERIES {
            let (recall, items) = &hot[number % hot.len()];
            let Question { text, vector } = self.question();
            let request = RecallRequest { request: SearchRequest::new(text), vector: Some(vector) };
            let start = Instant::now();
            black_box(recall.search(&request, items));
            if number >= WARM_UP_QUERIES {
                all_ms.push(start.elapsed().as_secs_f64() * 1_000.0);
            }
        }
        Durations::of(all_ms)
    }
}

fn in_ram(cube: &Cube) -> (RecallIndex, BTreeMap<MemoryId, Arc<MemoryItem>>) {
    let mut recall = RecallIndex::default();
    let mut items = BTreeMap::new();
    for (item, vector) in &cube.items {
        recall.insert(item, Some(vector));
        items.insert(item.id, Arc::new(item.clone()));
    }
    (recall, items)
}

fn spec(question: &Question, cubes: Option<Vec<CubeId>>) -> SearchSpec {
    SearchSpec {
        vector: Some(question.vector.clone()),
        terms: question.text.clone(),
        cubes,
        filter: SearchFilter::default(),
        limit: CANDIDATES,
    }
}

/// The memories whose vectors are nearest, found by looking at all of them.
fn exact(question: &Question, cubes: &[Cube]) -> BTreeSet<(CubeId, MemoryId)> {
    let mut all: Vec<(f32, &CubeId, MemoryId)> = Vec::new();
    for cube in cubes {
        for (item, vector) in &cube.items {
            let dot = vector.iter().zip(&question.vector).map(|(left, right)| left * right).sum();
            all.push((dot, &cube.id, item.id));
        }
    }
    let hits = HITS.min(all.len());
    if hits < all.len() {
        all.select_nth_unstable_by(hits, |left, right| right.0.total_cmp(&left.0));
    }
    all.into_iter().take(hits).map(|(_, cube, id)| (cube.clone(), id)).collect()
}

#[derive(Default)]
struct Recall {
    wanted: usize,
    found: usize,
}

impl Recall {
    fn count(&mut self, wanted: &BTreeSet<(CubeId, MemoryId)>, found: &[Candidates]) {
        let found: BTreeSet<(CubeId, MemoryId)> = found
            .iter()
            .flat_map(|candidates| &candidates.found)
            .map(|candidate| (candidate.cube.clone(), candidate.id))
            .collect();
        self.wanted += wanted.len();
        self.found += wanted.intersection(&found).count();
    }

    fn share(&self) -> f64 {
        (self.found as f64 / self.wanted.max(1) as f64 * 10_000.0).round() / 10_000.0
    }
}

#[cfg(test)]
mod tests {
    use memcube_actors::{environment::Environment, storage::InMemoryVectorIndex};

    use super::*;

    #[tokio::test]
    async fn a_small_index_is_measured_and_finds_everything() {
        let index = || -> SharedVectorIndex {
            Arc::new(InMemoryVectorIndex::new(Environment::scripted(1), 10_000))
        };
        let report = run(index(), "in-ram", 600, 20, 5).await.expect("it runs");
        assert_eq!((report.rows, report.cubes, report.queries), (600, 20, 5));
        assert!((report.cube_recall_at_10 - 1.0).abs() < 1e-9, "{report:?}");
        assert!((report.tenant_recall_at_10 - 1.0).abs() < 1e-9, "{report:?}");
        assert!(run(index(), "in-ram", 5, 20, 5).await.is_err());
    }
}
