//! Asks the tables of a tenant, adds what they have not seen, and checks all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::future::join_all;
use memcube_schemas::{
    CubeId, Stamp,
    call::SearchRequest,
    codec::decode,
    keys,
    limits::{CANDIDATES_MAX, INDEX_PAGE_RECORDS, UNINDEXED_ITEMS_MAX},
    memory::{MemoryItem, MemoryRevision},
};

use super::{
    indexer::Wish,
    rows,
    tail::{self, Changed, Tail},
    tier::VectorTier,
};
use crate::{
    cube::recall::{Contender, Place, index_terms, lets_through},
    defects::Defect,
    directory::Cubes,
    error::{Error, Result},
    storage::{
        RangeRead,
        vector_index::{Candidates, SearchSpec},
    },
    tenant::TenantContext,
};

/// How often the tables are asked again because they moved in between.
const TRIES: usize = 4;
/// Candidates beyond the number of hits: what speaker, date and form may lift, and what says the
/// same as another.
const CANDIDATES_SPARE: usize = 32;
/// By how much more is asked for when too many candidates were gone.
const DEEPER: usize = 4;

/// A question on its way to tables and cubes.
pub(super) struct Asking<'a> {
    pub(super) cubes: &'a Cubes,
    pub(super) context: &'a TenantContext,
    pub(super) request: SearchRequest,
    pub(super) named: Option<Vec<CubeId>>,
    pub(super) vector: Option<Vec<f32>>,
}

/// What the tables know, checked.
pub(super) struct Found {
    pub(super) contenders: Vec<Contender>,
    /// Shards that have no table that is whole.
    pub(super) uncovered: BTreeSet<u16>,
    /// Memories that were read from the feed.
    pub(super) unindexed: usize,
}

/// The outcome of one try.
enum Attempt {
    Done(Found),
    /// A table was dropped or built while it was asked.
    Moved,
    /// Too many candidates were gone to be sure that the best are among the others.
    TooShallow,
}

/// Tables and what happened after their watermarks.
#[derive(Default)]
struct Tails {
    after: BTreeMap<u16, Stamp>,
    changed: BTreeMap<u16, Changed>,
    uncovered: BTreeSet<u16>,
}

impl Asking<'_> {
    pub(super) async fn ask_tables(
        &self,
        tier: &VectorTier,
        shards: &BTreeSet<u16>,
    ) -> Result<Found> {
        let mut limit = self.request.top_k + CANDIDATES_SPARE;
        let mut tries = 0;
        while tries < TRIES && limit <= CANDIDATES_MAX {
            match self.attempt(tier, shards, limit).await? {
                Attempt::Done(found) => {
                    for shard in &found.uncovered {
                        tier.indexer.wish(self.context.tenant(), *shard, Wish::IfMissing);
                    }
                    return Ok(found);
                }
                Attempt::Moved => tries += 1,
                Attempt::TooShallow => limit *= DEEPER,
            }
        }
        let message = "the vector tier is changing too much to be sure of an answer; retry";
        Err(Error::unavailable(message).retry_after_ms(1_000))
    }

    async fn attempt(
        &self,
        tier: &VectorTier,
        shards: &BTreeSet<u16>,
        limit: usize,
    ) -> Result<Attempt> {
        let tails = self.read_tails(tier, shards).await?;
        let Some(candidates) = self.candidates(tier, &tails, limit).await? else {
            return Ok(Attempt::Moved);
        };
        self.cubes.environment().reach("search.before-check", self.context.tenant().as_str());
        self.check(tier, tails, candidates, limit).await
    }

    /// Asks how far the tables are, and reads what the feed tells after that. Whatever was
    /// acknowledged before is in one or the other.
    async fn read_tails(&self, tier: &VectorTier, shards: &BTreeSet<u16>) -> Result<Tails> {
        let tenant = self.context.tenant();
        let mut watermarks = Vec::with_capacity(shards.len());
        for shard in shards {
            watermarks.push(tier.index.watermark(&tier.table(tenant, *shard)));
        }
        let mut tails = Tails::default();
        for (shard, watermark) in shards.iter().copied().zip(join_all(watermarks).await) {
            match watermark {
                Ok(Some(watermark)) => drop(tails.after.insert(shard, watermark)),
                Ok(None) => drop(tails.uncovered.insert(shard)),
                Err(error) => {
                    tracing::warn!(%error, shard, "a table of vectors cannot be asked");
                    tails.uncovered.insert(shard);
                }
            }
        }
        let mut unread = tails.after.clone();
        while !unread.is_empty() {
            unread = self.read_pages(&mut tails, unread).await?;
            let unindexed: usize = tails.changed.values().map(|changed| changed.items.len()).sum();
            if unindexed > UNINDEXED_ITEMS_MAX {
                let message = format!(
                    "the vector tier lags more than {UNINDEXED_ITEMS_MAX} changes behind; retry \
                     when it has caught up"
                );
                return Err(Error::unavailable(message).retry_after_ms(2_000));
            }
        }
        Ok(tails)
    }

    /// Reads one page of each tail, all in one read, and tells which have more.
    async fn read_pages(
        &self,
        tails: &mut Tails,
        unread: BTreeMap<u16, Stamp>,
    ) -> Result<BTreeMap<u16, Stamp>> {
        let tenant = self.context.tenant();
        let ranges = |(shard, after): (&u16, &Stamp)| {
            tail::ranges(tenant, *shard, *after, INDEX_PAGE_RECORDS)
        };
        let output = self.cubes.store().read(unread.iter().flat_map(ranges).collect()).await?;
        let mut further = BTreeMap::new();
        for ((shard, after), pages) in unread.into_iter().zip(output.pages.chunks(2)) {
            match tail::page(after, output.version, pages)? {
                Tail::Read { changed, upto, more } => {
                    tails.changed.entry(shard).or_default().extend(changed);
                    if more {
                        further.insert(shard, upto);
                    }
                }
                Tail::Gap => {
                    tails.after.remove(&shard);
                    tails.changed.remove(&shard);
                    tails.uncovered.insert(shard);
                }
            }
        }
        Ok(further)
    }

    /// Asks the tables side by side; `None` when one of them stands before where it stood.
    async fn candidates(
        &self,
        tier: &VectorTier,
        tails: &Tails,
        limit: usize,
    ) -> Result<Option<BTreeMap<u16, Candidates>>> {
        let spec = SearchSpec {
            vector: self.vector.clone(),
            terms: index_terms(&self.request.query),
            cubes: None,
            filter: self.request.filter.clone(),
            limit,
        };
        let mut searches = Vec::with_capacity(tails.after.len());
        for shard in tails.after.keys() {
            let of_shard = |cube: &&CubeId| keys::feed_shard(cube) == *shard;
            let named = self.named.as_ref();
            let cubes = named.map(|named| named.iter().filter(of_shard).cloned().collect());
            let table = tier.table(self.context.tenant(), *shard);
            searches.push(tier.index.search(&table, SearchSpec { cubes, ..spec.clone() }));
        }
        let mut candidates = BTreeMap::new();
        for ((shard, after), found) in tails.after.iter().zip(join_all(searches).await) {
            match found? {
                Some(found) if found.watermark >= *after => drop(candidates.insert(*shard, found)),
                Some(_) | None => return Ok(None),
            }
        }
        Ok(Some(candidates))
    }

    /// Reads every memory that may answer from its row, which decides.
    async fn check(
        &self,
        tier: &VectorTier,
        tails: Tails,
        candidates: BTreeMap<u16, Candidates>,
        limit: usize,
    ) -> Result<Attempt> {
        let is_named = |(cube, _): &Place| {
            self.named.as_ref().is_none_or(|named| named.binary_search(cube).is_ok())
        };
        let changed = tails.changed.into_values().flat_map(|changed| changed.items);
        let mut fresh: BTreeSet<Place> = changed.filter(is_named).collect();
        let unindexed = fresh.len();
        let named = Named::by(candidates);
        let mut contenders = Vec::new();
        let mut gone = Vec::new();
        let places: Vec<Place> =
            named.places.keys().filter(|place| !fresh.contains(*place)).cloned().collect();
        let items = self.read_items(&places).await?;
        for place in places {
            let known = &named.places[&place];
            match items.get(&place) {
                Some(item) if item.revision == known.revision && self.counts(item) => {
                    contenders.push(contender(&place, item.clone(), known.dense));
                }
                // It changed after the feed was read.
                Some(_) => drop(fresh.insert(place)),
                None => gone.push(place),
            }
        }
        let fresh: Vec<Place> = fresh.into_iter().collect();
        let (store, tenant) = (self.cubes.store(), self.context.tenant());
        let mut stored = rows::read_with_vectors(store, tenant, tier.model(), &fresh).await?;
        for place in fresh {
            match stored.remove(&place).filter(|row| self.counts(&row.item)) {
                Some(row) => {
                    let dense = row.vector.as_ref().zip(self.vector.as_ref());
                    let dense = dense.map(|(vector, query)| dot(vector, query));
                    contenders.push(contender(&place, row.item, dense));
                }
                None => gone.push(place),
            }
        }
        if named.is_too_shallow(&gone, limit, self.request.top_k) {
            return Ok(Attempt::TooShallow);
        }
        Ok(Attempt::Done(Found { contenders, uncovered: tails.uncovered, unindexed }))
    }

    fn counts(&self, item: &MemoryItem) -> bool {
        item.status.is_recalled() && lets_through(&self.request.filter, item)
    }

    async fn read_items(&self, places: &[Place]) -> Result<BTreeMap<Place, MemoryItem>> {
        let (store, tenant) = (self.cubes.store(), self.context.tenant());
        let mut items = rows::read_items(store, tenant, places).await?;
        if self.cubes.environment().plants(Defect::UncheckedCandidate) {
            for place in places {
                if !items.contains_key(place) {
                    let former = self.read_former(place).await?;
                    items.extend(former.map(|former| (place.clone(), former)));
                }
            }
        }
        Ok(items)
    }

    /// For a planted bug: a deleted memory as it was.
    async fn read_former(&self, (cube, id): &Place) -> Result<Option<MemoryItem>> {
        let range = keys::history_of_item(self.context.tenant(), cube, *id);
        let output = self.cubes.store().read(vec![RangeRead::all(range)]).await?;
        let last = output.pages.iter().flat_map(|page| &page.entries).next_back();
        last.map(|last| Ok(decode::<MemoryRevision>(&last.value)?.former)).transpose()
    }
}

/// A memory that a table named.
struct Known {
    shard: u16,
    revision: u32,
    dense: Option<f32>,
}

/// Everything that the tables named.
struct Named {
    places: BTreeMap<Place, Known>,
    /// How many each of them named.
    counts: BTreeMap<u16, usize>,
}

impl Named {
    fn by(candidates: BTreeMap<u16, Candidates>) -> Self {
        let mut named = Self { places: BTreeMap::new(), counts: BTreeMap::new() };
        for (shard, candidates) in candidates {
            named.counts.insert(shard, candidates.found.len());
            for found in candidates.found {
                let known = Known { shard, revision: found.revision, dense: found.dense };
                named.places.insert((found.cube, found.id), known);
            }
        }
        named
    }

    /// Whether so much of what a table named is gone that a better one may stand behind its limit.
    fn is_too_shallow(&self, gone: &[Place], limit: usize, top_k: usize) -> bool {
        let mut gone_of: BTreeMap<u16, usize> = BTreeMap::new();
        for known in gone.iter().filter_map(|place| self.places.get(place)) {
            *gone_of.entry(known.shard).or_default() += 1;
        }
        gone_of
            .iter()
            .any(|(shard, gone)| self.counts[shard] >= limit && limit.saturating_sub(*gone) < top_k)
    }
}

fn contender(place: &Place, item: MemoryItem, dense: Option<f32>) -> Contender {
    Contender { cube: place.0.clone(), item: Arc::new(item), dense }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}
