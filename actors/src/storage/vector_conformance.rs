//! The suite that every vector index passes: [`run_all`] with its [`VectorBackend`].
//!
//! Small cases, each on a fresh index and named in the failure; the last one compares random
//! changes and searches with the executable specification.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, ModelId, Stamp, TenantId, Version, call::SearchFilter,
    memory::MemoryKind,
};

use super::{
    InMemoryVectorIndex,
    vector_index::{Candidates, RowChange, SearchSpec, TableId, VectorIndex, VectorRow},
};
use crate::environment::{Entropy, Environment, SeededEntropy};

/// Values of a vector in the suite: an index for it is opened with as many.
pub const DIMENSIONS: usize = 16;

/// How the suite gets hold of a backend.
pub trait VectorBackend: Send {
    /// Opens an index that is empty and independent of those opened before.
    fn open(&mut self) -> impl Future<Output = Arc<dyn VectorIndex>> + Send;

    /// Opens again what a restart at this moment would find of an index.
    fn reopen(
        &mut self,
        index: Arc<dyn VectorIndex>,
    ) -> impl Future<Output = Arc<dyn VectorIndex>> + Send;
}

type Case<B> = for<'a> fn(&'a mut B, Probe) -> BoxFuture<'a, ()>;

/// Runs every case.
///
/// # Panics
/// When a case fails, with the names of all that failed; each prints its own reason.
pub async fn run_all<B: VectorBackend>(backend: &mut B) {
    let mut failed = Vec::new();
    for (name, case) in cases::<B>() {
        let probe = Probe { index: backend.open().await, table: table("acme", 3) };
        if AssertUnwindSafe(case(backend, probe)).catch_unwind().await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "conformance cases failed: {failed:?}");
}

macro_rules! named {
    ($($case:path),* $(,)?) => {
        vec![$((stringify!($case), |backend, probe| Box::pin($case(backend, probe)))),*]
    };
}

fn cases<B: VectorBackend>() -> Vec<(&'static str, Case<B>)> {
    named![
        a_missing_table_knows_nothing,
        a_table_without_a_watermark_answers_nothing,
        rows_are_found_by_vector_and_by_words,
        a_row_replaces_its_former_one,
        removed_rows_are_gone,
        a_cube_is_removed_whole_and_alone,
        applying_again_has_no_effect,
        the_last_change_of_a_memory_counts,
        tables_share_nothing,
        conditions_hold_back_other_rows,
        each_arm_gives_its_best,
        tidying_up_keeps_everything,
        a_dropped_table_is_gone_and_may_be_built_again,
        rows_and_watermark_outlive_a_restart,
        random_changes_agree_with_the_specification,
    ]
}

fn table(tenant: &str, shard: u16) -> TableId {
    let tenant = TenantId::new(tenant).expect("a valid tenant");
    TableId { tenant, shard, model: Some(ModelId::new("m@1").expect("a valid model")) }
}

fn cube(name: &str) -> CubeId {
    CubeId::new(name).expect("a valid cube")
}

fn id(number: u64) -> MemoryId {
    MemoryId::from_parts(number, u128::from(number))
}

fn stamp(version: u64) -> Stamp {
    Stamp::end_of(Version(version))
}

/// A unit vector near the axis of a number, told from others by its second part.
fn vector(axis: usize, tilt: f32) -> Vec<f32> {
    let mut values = vec![0.0; DIMENSIONS];
    values[axis % DIMENSIONS] = (1.0 - tilt * tilt).sqrt();
    values[(axis + 1) % DIMENSIONS] = tilt;
    values
}

fn row(of: &str, number: u64, terms: &str, vector: Option<Vec<f32>>) -> VectorRow {
    VectorRow {
        cube: cube(of),
        id: id(number),
        revision: 1,
        vector,
        terms: terms.to_owned(),
        kind: MemoryKind::Episode,
        conversation: None,
        tags: Vec::new(),
        said_at_ms: None,
    }
}

fn put(row: VectorRow) -> RowChange {
    RowChange::Put(Box::new(row))
}

fn remove(of: &str, number: u64) -> RowChange {
    RowChange::Remove { cube: cube(of), id: id(number) }
}

fn ask(vector: Option<Vec<f32>>, terms: &str) -> SearchSpec {
    let filter = SearchFilter::default();
    SearchSpec { vector, terms: terms.to_owned(), cubes: None, filter, limit: 10 }
}

/// An index, and the table that most cases use.
struct Probe {
    index: Arc<dyn VectorIndex>,
    table: TableId,
}

impl Probe {
    async fn apply(&self, changes: Vec<RowChange>, version: u64) {
        let applied = self.index.apply(&self.table, changes, Some(stamp(version))).await;
        applied.expect("the changes are applied");
    }

    async fn search(&self, spec: SearchSpec) -> Option<Candidates> {
        self.index.search(&self.table, spec).await.expect("the search is answered")
    }

    async fn found(&self, spec: SearchSpec) -> Vec<u64> {
        let candidates = self.search(spec).await.expect("the table is whole");
        numbers(&candidates)
    }

    async fn watermark(&self) -> Option<Stamp> {
        self.index.watermark(&self.table).await.expect("the watermark is known")
    }
}

/// The memories that were found, as the numbers they were made of, in order.
fn numbers(candidates: &Candidates) -> Vec<u64> {
    let number = |id: MemoryId| {
        let mut bytes = [0_u8; 8];
        bytes[2..].copy_from_slice(&id.as_bytes()[..6]);
        u64::from_be_bytes(bytes)
    };
    let mut numbers: Vec<u64> =
        candidates.found.iter().map(|candidate| number(candidate.id)).collect();
    numbers.sort_unstable();
    numbers
}

async fn a_missing_table_knows_nothing<B: VectorBackend>(_: &mut B, probe: Probe) {
    assert_eq!(probe.watermark().await, None);
    assert_eq!(probe.search(ask(Some(vector(0, 0.0)), "word")).await, None);
    probe.index.optimize(&probe.table).await.expect("there is nothing to tidy up");
    probe.index.drop_table(&probe.table).await.expect("there is nothing to drop");
}

async fn a_table_without_a_watermark_answers_nothing<B: VectorBackend>(_: &mut B, probe: Probe) {
    let changes = vec![put(row("ann", 1, "word", Some(vector(0, 0.0))))];
    probe.index.apply(&probe.table, changes, None).await.expect("the change is applied");
    assert_eq!(probe.watermark().await, None);
    assert_eq!(probe.search(ask(None, "word")).await, None);
    probe.apply(Vec::new(), 5).await;
    assert_eq!(probe.watermark().await, Some(stamp(5)));
    assert_eq!(probe.found(ask(None, "word")).await, [1]);
    let changes = vec![put(row("ann", 2, "word", None))];
    probe.index.apply(&probe.table, changes, None).await.expect("the change is applied");
    assert_eq!(probe.watermark().await, Some(stamp(5)), "it stays without a new one");
}

async fn rows_are_found_by_vector_and_by_words<B: VectorBackend>(_: &mut B, probe: Probe) {
    let rows = vec![
        put(row("ann", 1, "live lisbon", Some(vector(0, 0.1)))),
        put(row("bo", 2, "dog lisbon", Some(vector(4, 0.0)))),
        put(row("bo", 3, "东 京", None)),
        put(row("bo", 4, "", Some(vector(8, 0.0)))),
    ];
    probe.apply(rows, 1).await;
    let mut near = ask(Some(vector(0, 0.0)), "");
    near.limit = 1;
    let found = probe.search(near).await.expect("the table is whole");
    assert_eq!(found.watermark, stamp(1));
    let [first] = found.found.as_slice() else { panic!("one candidate: {found:?}") };
    assert_eq!((first.id, first.cube.as_str(), first.revision), (id(1), "ann", 1));
    let exact = (1.0_f32 - 0.01).sqrt();
    assert!((first.dense.expect("it has one") - exact).abs() < 1e-5, "{first:?}");
    assert_eq!(first.lexical, None);
    assert_eq!(probe.found(ask(None, "lisbon")).await, [1, 2]);
    assert_eq!(probe.found(ask(None, "京")).await, [3], "a row without a vector has words");
    assert_eq!(probe.found(ask(None, "paris nowhere")).await, [0_u64; 0]);
    let mut both = ask(Some(vector(8, 0.0)), "dog");
    both.limit = 1;
    let found = probe.search(both).await.expect("the table is whole");
    assert_eq!(numbers(&found), [2, 4]);
    let dog = found.found.iter().find(|found| found.id == id(2)).expect("it is there");
    assert!(dog.lexical.is_some_and(|score| score > 0.0));
    assert!(dog.dense.is_some_and(|dot| dot.abs() < 1e-5), "also of what its words found: {dog:?}");
}

async fn a_row_replaces_its_former_one<B: VectorBackend>(_: &mut B, probe: Probe) {
    probe.apply(vec![put(row("ann", 1, "old", Some(vector(0, 0.0))))], 1).await;
    let mut next = row("ann", 1, "new", Some(vector(5, 0.0)));
    next.revision = 2;
    probe.apply(vec![put(next)], 2).await;
    assert_eq!(probe.found(ask(None, "old")).await, [0_u64; 0]);
    let found = probe.search(ask(Some(vector(5, 0.0)), "new")).await.expect("whole");
    assert_eq!(found.found.len(), 1, "{found:?}");
    assert_eq!(found.found[0].revision, 2);
    assert!(found.found[0].dense.is_some_and(|dot| dot > 0.99));
    assert_eq!(found.watermark, stamp(2));
}

async fn removed_rows_are_gone<B: VectorBackend>(_: &mut B, probe: Probe) {
    let rows = (1..=3).map(|number| put(row("ann", number, "word", Some(vector(0, 0.0)))));
    probe.apply(rows.collect(), 1).await;
    probe.apply(vec![remove("ann", 2), remove("bo", 3), remove("ann", 9)], 2).await;
    assert_eq!(probe.found(ask(Some(vector(0, 0.0)), "word")).await, [1, 3]);
    assert_eq!(probe.watermark().await, Some(stamp(2)));
}

async fn a_cube_is_removed_whole_and_alone<B: VectorBackend>(_: &mut B, probe: Probe) {
    // Names that a query language would have to quote.
    let names = ["o'hara", "o", "o''hara", "a\"b", "a\\b", "%", "_", "ünï/ 京"];
    let all = |except: Option<usize>| -> Vec<u64> {
        (0..names.len()).filter(|at| Some(*at) != except).map(|at| at as u64 + 1).collect()
    };
    let rows = names.iter().zip(1_u64..);
    let rows = rows.map(|(name, number)| put(row(name, number, "word", Some(vector(0, 0.0)))));
    probe.apply(rows.collect(), 1).await;
    for (at, name) in names.iter().enumerate() {
        let mut only = ask(Some(vector(0, 0.0)), "word");
        only.cubes = Some(vec![cube(name)]);
        assert_eq!(probe.found(only).await, [at as u64 + 1], "{name}");
        probe.apply(vec![RowChange::RemoveCube { cube: cube(name) }], 2).await;
        assert_eq!(probe.found(ask(Some(vector(0, 0.0)), "word")).await, all(Some(at)), "{name}");
        probe.apply(vec![put(row(name, at as u64 + 1, "word", Some(vector(0, 0.0))))], 3).await;
    }
    assert_eq!(probe.found(ask(None, "word")).await, all(None));
}

async fn applying_again_has_no_effect<B: VectorBackend>(_: &mut B, probe: Probe) {
    probe.apply(vec![put(row("ann", 7, "word", Some(vector(1, 0.0))))], 1).await;
    let changes = vec![
        RowChange::RemoveCube { cube: cube("bo") },
        put(row("ann", 1, "word", Some(vector(0, 0.0)))),
        remove("ann", 7),
    ];
    for _ in 0..3 {
        probe.apply(changes.clone(), 2).await;
        assert_eq!(probe.found(ask(Some(vector(0, 0.0)), "word")).await, [1]);
    }
}

async fn the_last_change_of_a_memory_counts<B: VectorBackend>(_: &mut B, probe: Probe) {
    let first = row("ann", 1, "first", Some(vector(0, 0.0)));
    let last = row("ann", 1, "last", Some(vector(0, 0.0)));
    probe.apply(vec![put(first.clone()), put(last.clone())], 1).await;
    assert_eq!(probe.found(ask(None, "first last")).await, [1]);
    assert_eq!(probe.found(ask(None, "first")).await, [0_u64; 0]);
    probe.apply(vec![put(first.clone()), remove("ann", 1)], 2).await;
    assert_eq!(probe.found(ask(None, "first last")).await, [0_u64; 0]);
    probe.apply(vec![remove("ann", 1), put(first)], 3).await;
    assert_eq!(probe.found(ask(None, "first")).await, [1]);
    probe.apply(vec![RowChange::RemoveCube { cube: cube("ann") }, put(last)], 4).await;
    assert_eq!(probe.found(ask(None, "last")).await, [1]);
}

async fn tables_share_nothing<B: VectorBackend>(_: &mut B, probe: Probe) {
    let mut other_model = probe.table.clone();
    other_model.model = None;
    let others = [table("acme2", 3), table("acme", 4), table("Acme", 3), other_model];
    probe.apply(vec![put(row("ann", 1, "word", Some(vector(0, 0.0))))], 1).await;
    for other in others {
        let other = Probe { index: Arc::clone(&probe.index), table: other };
        assert_eq!(other.watermark().await, None, "{:?}", other.table);
        other.apply(vec![put(row("ann", 2, "word", None))], 2).await;
        assert_eq!(other.found(ask(None, "word")).await, [2], "{:?}", other.table);
        assert_eq!(probe.found(ask(None, "word")).await, [1], "{:?}", other.table);
        other.index.drop_table(&other.table).await.expect("it is dropped");
    }
    assert_eq!(probe.watermark().await, Some(stamp(1)));
}

async fn conditions_hold_back_other_rows<B: VectorBackend>(_: &mut B, probe: Probe) {
    let tuned = |number: u64, tune: &dyn Fn(&mut VectorRow)| {
        let mut row = row("ann", number, "word", Some(vector(0, 0.0)));
        tune(&mut row);
        put(row)
    };
    let talk = ConversationId::new("talk 'one'").expect("valid");
    let rows = vec![
        tuned(1, &|row| row.kind = MemoryKind::Fact),
        tuned(2, &|row| row.conversation = Some(talk.clone())),
        tuned(3, &|row| row.tags = vec!["it's".to_owned(), "blue".to_owned()]),
        tuned(4, &|row| row.said_at_ms = Some(-1_000)),
        tuned(5, &|row| row.said_at_ms = Some(5_000)),
    ];
    probe.apply(rows, 1).await;
    let none = SearchFilter::default();
    let kinds = |kinds: &[MemoryKind]| SearchFilter { kinds: kinds.to_vec(), ..none.clone() };
    let tags = |tags: &[&str]| SearchFilter {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..none.clone()
    };
    let said =
        |from, before| SearchFilter { said_from_ms: from, said_before_ms: before, ..none.clone() };
    let talks = SearchFilter { conversation: Some(talk.clone()), ..none.clone() };
    let both = SearchFilter { kinds: vec![MemoryKind::Fact], ..talks.clone() };
    for (filter, found) in [
        (none.clone(), vec![1, 2, 3, 4, 5]),
        (kinds(&[MemoryKind::Fact]), vec![1]),
        (kinds(&[MemoryKind::Fact, MemoryKind::Episode]), vec![1, 2, 3, 4, 5]),
        (talks, vec![2]),
        (both, vec![]),
        (tags(&["it's"]), vec![3]),
        (tags(&["blue", "it's"]), vec![3]),
        (tags(&["blue", "red"]), vec![]),
        (said(Some(-1_000), None), vec![4, 5]),
        (said(None, Some(5_000)), vec![4]),
        (said(Some(0), Some(9_000)), vec![5]),
    ] {
        for (vector, terms) in [(Some(vector(0, 0.0)), ""), (None, "word")] {
            let mut spec = ask(vector, terms);
            spec.filter = filter.clone();
            assert_eq!(probe.found(spec).await, found, "{filter:?}");
        }
    }
}

async fn each_arm_gives_its_best<B: VectorBackend>(_: &mut B, probe: Probe) {
    let rows = (1..=40_u64).map(|number| {
        let tilt = f32::from(u8::try_from(number).expect("it is small")) / 50.0;
        let words = if number >= 39 { "rare word" } else { "word" };
        put(row("ann", number, words, Some(vector(0, tilt))))
    });
    probe.apply(rows.collect(), 1).await;
    let mut spec = ask(Some(vector(0, 0.0)), "rare");
    spec.limit = 3;
    assert_eq!(probe.found(spec.clone()).await, [1, 2, 3, 39, 40]);
    spec.cubes = Some(vec![cube("bo")]);
    assert_eq!(probe.found(spec.clone()).await, [0_u64; 0]);
    spec.cubes = Some(Vec::new());
    assert_eq!(probe.found(spec).await, [0_u64; 0], "no cube is no row");
}

async fn tidying_up_keeps_everything<B: VectorBackend>(_: &mut B, probe: Probe) {
    for round in 0..12_u64 {
        let number = round + 1;
        let change = put(row("ann", number, "word", Some(vector(0, 0.0))));
        probe.apply(vec![change, remove("ann", round / 2)], number).await;
        if round % 4 == 3 {
            probe.index.optimize(&probe.table).await.expect("it is tidied up");
        }
        assert_eq!(probe.watermark().await, Some(stamp(number)));
    }
    let mut spec = ask(Some(vector(0, 0.0)), "word");
    spec.limit = 50;
    assert_eq!(probe.found(spec).await, (6..=12).collect::<Vec<u64>>());
}

async fn a_dropped_table_is_gone_and_may_be_built_again<B: VectorBackend>(_: &mut B, probe: Probe) {
    probe.apply(vec![put(row("ann", 1, "word", Some(vector(0, 0.0))))], 9).await;
    probe.index.drop_table(&probe.table).await.expect("it is dropped");
    assert_eq!(probe.watermark().await, None);
    assert_eq!(probe.search(ask(None, "word")).await, None);
    probe.apply(vec![put(row("ann", 2, "word", None))], 3).await;
    assert_eq!(probe.watermark().await, Some(stamp(3)));
    assert_eq!(probe.found(ask(None, "word")).await, [2]);
}

async fn rows_and_watermark_outlive_a_restart<B: VectorBackend>(backend: &mut B, probe: Probe) {
    probe.apply(vec![put(row("ann", 1, "word", Some(vector(0, 0.0))))], 4).await;
    let probe = Probe { index: backend.reopen(probe.index).await, table: probe.table };
    assert_eq!(probe.watermark().await, Some(stamp(4)));
    assert_eq!(probe.found(ask(Some(vector(0, 0.0)), "word")).await, [1]);
}

/// Random changes of 300 memories in 12 cubes.
struct Random(SeededEntropy);

impl Random {
    fn below(&self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    fn vector(&self) -> Vec<f32> {
        let value = || self.below(2_001) as f32 / 1_000.0 - 1.0;
        let values: Vec<f32> = (0..DIMENSIONS).map(|_| value()).collect();
        let length = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-3);
        values.iter().map(|value| value / length).collect()
    }

    fn change(&self) -> RowChange {
        let number = self.below(300);
        let of = format!("cube {}", number % 12);
        match self.below(40) {
            0 => RowChange::RemoveCube { cube: cube(&of) },
            1..=9 => remove(&of, number),
            _ => {
                let words: Vec<String> =
                    (0..self.below(6)).map(|_| format!("w{}", self.below(30))).collect();
                let vector = (self.below(8) > 0).then(|| self.vector());
                let mut row = row(&of, number, &words.join(" "), vector);
                row.revision = u32::try_from(self.below(9)).expect("it is small");
                put(row)
            }
        }
    }
}

async fn random_changes_agree_with_the_specification<B: VectorBackend>(_: &mut B, probe: Probe) {
    const ROUNDS: u64 = 24;
    let random = Random(SeededEntropy::new(20_260_101));
    let specification = Probe {
        index: Arc::new(InMemoryVectorIndex::new(Environment::scripted(1), usize::MAX)),
        table: probe.table.clone(),
    };
    for round in 1..=ROUNDS {
        let changes: Vec<RowChange> = (0..random.below(60)).map(|_| random.change()).collect();
        specification.apply(changes.clone(), round).await;
        probe.apply(changes, round).await;
        if round % 7 == 0 {
            probe.index.optimize(&probe.table).await.expect("it is tidied up");
        }
        let mut spec = ask(Some(random.vector()), &format!("w{}", random.below(30)));
        if random.below(2) == 0 {
            spec.cubes = Some((0..4).map(|number| cube(&format!("cube {number}"))).collect());
        }
        // Beyond the number of rows, so that no tie at the edge is cut differently.
        spec.limit = 400;
        let expected = specification.search(spec.clone()).await.expect("whole");
        let found = probe.search(spec).await.expect("whole");
        assert_eq!(found.watermark, expected.watermark);
        let places = |candidates: &Candidates| -> BTreeSet<(CubeId, MemoryId, u32, bool)> {
            let found = candidates.found.iter();
            found
                .map(|one| (one.cube.clone(), one.id, one.revision, one.lexical.is_some()))
                .collect()
        };
        assert_eq!(places(&found), places(&expected), "round {round}");
        let mut sorted = found.found;
        sorted.sort_by(|left, right| (&left.cube, left.id).cmp(&(&right.cube, right.id)));
        for (left, right) in sorted.iter().zip(&expected.found) {
            let dense = |dot: Option<f32>| dot.unwrap_or(-9.0);
            assert!((dense(left.dense) - dense(right.dense)).abs() < 1e-4, "{left:?} {right:?}");
        }
    }
}
