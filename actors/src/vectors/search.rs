//! One question to many cubes of a tenant.
//!
//! The tables name candidates, up to a watermark each; what changed since is read from the feed and
//! scored beside them; every memory is then read from its row, which alone decides whether it is
//! there and what it says. So the answer holds all that was acknowledged before the question, and
//! nothing that was deleted before it. Cubes without a table that is whole are asked themselves, if
//! they are few.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};
use memcube_schemas::{
    CubeId,
    call::{CubeAnswer, CubeCall, RecallRequest, SearchRequest},
    keys::{self, FEED_SHARDS},
    limits::{CUBE_CALL_MS_MAX, CUBES_ASKED_MAX, CUBES_PER_SEARCH_MAX, PAGE_ITEMS_MAX},
};

use super::{ask_tables::Asking, tier::VectorTier};
use crate::{
    cube::{
        CubeKey, check_search,
        recall::{self, CubeHit},
    },
    directory::Cubes,
    embedder::Priority,
    error::{Error, ErrorKind, Result},
    metrics as names,
    storage::RangeRead,
    tenant::TenantContext,
};

/// Cubes that are asked at the same time.
const ASKED_AT_ONCE: usize = 8;

/// A question to many cubes.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantSearchRequest {
    /// What is asked.
    pub request: SearchRequest,
    /// Which cubes; `None` means all of the tenant's.
    pub cubes: Option<Vec<CubeId>>,
}

/// What many cubes know about a question.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantSearchOutcome {
    /// Best first.
    pub hits: Vec<CubeHit>,
    /// Word pieces of all hits together.
    pub tokens: u32,
    /// Memories that were read from the feed because the vector tier had not seen them yet.
    pub unindexed: usize,
}

impl Cubes {
    /// Finds what cubes of a tenant know about a question.
    ///
    /// # Errors
    /// `Invalid` for an empty query, too many cubes, or more cubes than can be asked without a
    /// vector tier; `NotFound` when a cube that is named does not exist; `Overloaded`;
    /// `Unavailable` while the vector tier is being built or lags too far behind.
    pub async fn search_tenant(
        &self,
        context: &TenantContext,
        request: TenantSearchRequest,
    ) -> Result<TenantSearchOutcome> {
        check_search(&request.request)?;
        let _place = self.shared().search_places.take()?;
        let start_us = self.environment().monotonic_us();
        let limit = Duration::from_millis(CUBE_CALL_MS_MAX);
        let search = Box::pin(search(self, context, request));
        let result = tokio::time::timeout(limit, search).await.unwrap_or_else(|_| {
            let message = format!("the search did not end within {CUBE_CALL_MS_MAX} ms; retry");
            Err(Error::unavailable(message).retry_after_ms(1_000))
        });
        let took_us = self.environment().monotonic_us().saturating_sub(start_us);
        let took = Duration::from_micros(took_us);
        metrics::histogram!(names::TENANT_SEARCH_SECONDS).record(took.as_secs_f64());
        let outcome = if result.is_ok() { "ok" } else { "error" };
        metrics::counter!(names::TENANT_SEARCHES_TOTAL, "outcome" => outcome).increment(1);
        result
    }
}

async fn search(
    cubes: &Cubes,
    context: &TenantContext,
    request: TenantSearchRequest,
) -> Result<TenantSearchOutcome> {
    let TenantSearchRequest { request, cubes: named } = request;
    let named = match named {
        Some(named) => Some(check_named(cubes, context, named).await?),
        None => None,
    };
    let vector = embed_query(cubes, &request).await?;
    let shards: BTreeSet<u16> = match &named {
        Some(named) => named.iter().map(keys::feed_shard).collect(),
        None => (0..FEED_SHARDS).collect(),
    };
    let tier = cubes.shared().vectors.as_ref();
    let mut asking = Asking { cubes, context, request, named, vector };
    let (mut hits, uncovered, unindexed) = match tier {
        Some(tier) => {
            let found = asking.ask_tables(tier, &shards).await?;
            metrics::histogram!(names::TENANT_SEARCH_UNINDEXED).record(found.unindexed as f64);
            let (request, is_dense) = (asking.request.clone(), asking.vector.is_some());
            let score = move || recall::score(&request, is_dense, found.contenders);
            let hits = cubes.environment().compute(score).await;
            let hits = hits.ok_or_else(|| Error::internal("the ranking failed; see the log"))?;
            (hits, found.uncovered, found.unindexed)
        }
        None => (Vec::new(), shards, 0),
    };
    if !uncovered.is_empty() {
        hits.extend(asking.ask_cubes(tier, &uncovered).await?);
    }
    let request = std::mem::replace(&mut asking.request, SearchRequest::new(""));
    let choose = move || recall::choose(&request, hits);
    let hits = cubes.environment().compute(choose).await;
    let hits = hits.ok_or_else(|| Error::internal("the ranking failed; see the log"))?;
    let tokens = hits.iter().map(|hit| hit.hit.item.tokens).sum();
    Ok(TenantSearchOutcome { hits, tokens, unindexed })
}

/// The vector of a question; `None` without a model.
pub(super) async fn embed_query(
    cubes: &Cubes,
    request: &SearchRequest,
) -> Result<Option<Vec<f32>>> {
    let Some(embedder) = cubes.embedder() else { return Ok(None) };
    let mut embedded = embedder.embed(vec![request.query.clone()], Priority::Query).await?;
    Ok(embedded.pop().map(|embedding| embedding.vector))
}

/// The cubes that are named, each once. All of them have to exist.
async fn check_named(
    cubes: &Cubes,
    context: &TenantContext,
    named: Vec<CubeId>,
) -> Result<Vec<CubeId>> {
    let named: Vec<CubeId> = named.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    if named.is_empty() || named.len() > CUBES_PER_SEARCH_MAX {
        return Err(Error::invalid(format!(
            "name between 1 and {CUBES_PER_SEARCH_MAX} cubes, or leave `cubes` out to ask all"
        )));
    }
    let manifest = |cube: &CubeId| RangeRead::key(keys::manifest(context.tenant(), cube));
    let output = cubes.store().read(named.iter().map(manifest).collect()).await?;
    let missing = named
        .iter()
        .zip(&output.pages)
        .find(|(_, page)| page.entries.is_empty())
        .map(|(cube, _)| cube);
    match missing {
        Some(cube) => Err(Error::not_found(format!("there is no cube `{cube}`"))),
        None => Ok(named),
    }
}

impl Asking<'_> {
    /// Asks the cubes of shards one by one.
    async fn ask_cubes(
        &self,
        tier: Option<&VectorTier>,
        shards: &BTreeSet<u16>,
    ) -> Result<Vec<CubeHit>> {
        let asked: Vec<CubeId> = match &self.named {
            Some(named) => {
                let wanted = |cube: &&CubeId| shards.contains(&keys::feed_shard(cube));
                named.iter().filter(wanted).cloned().collect()
            }
            None => self.list_cubes(shards).await?,
        };
        if asked.len() > CUBES_ASKED_MAX {
            return Err(too_many_to_ask(tier.is_some(), shards.len()));
        }
        let mut answers = Vec::with_capacity(asked.len());
        for cube in &asked {
            answers.push(self.ask_cube(cube));
        }
        let mut answers = stream::iter(answers).buffered(ASKED_AT_ONCE);
        let mut hits = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(found) => hits.extend(found),
                // One that was only listed may have been deleted meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound && self.named.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(hits)
    }

    /// The tenant's cubes as far as they are wanted: one more than can be asked says enough.
    async fn list_cubes(&self, shards: &BTreeSet<u16>) -> Result<Vec<CubeId>> {
        let tenant = self.context.tenant();
        let mut range = keys::manifests(tenant);
        let mut cubes = Vec::new();
        loop {
            let read = RangeRead::page(range.clone(), PAGE_ITEMS_MAX);
            let output = self.cubes.store().read(vec![read]).await?;
            let Some(page) = output.pages.into_iter().next() else { return Ok(cubes) };
            let found = page.entries.iter().filter_map(|entry| keys::trailing_cube_id(&entry.key));
            cubes.extend(found.filter(|cube| shards.contains(&keys::feed_shard(cube))));
            match page.entries.last() {
                Some(last) if page.more && cubes.len() <= CUBES_ASKED_MAX => {
                    range = range.after(&last.key);
                }
                Some(_) | None => return Ok(cubes),
            }
        }
    }

    async fn ask_cube(&self, cube: &CubeId) -> Result<Vec<CubeHit>> {
        // The tokens are counted over all cubes together, afterwards.
        let request = SearchRequest { token_budget: None, ..self.request.clone() };
        let recall = RecallRequest { request, vector: self.vector.clone() };
        let key = CubeKey { tenant: self.context.tenant().clone(), cube: cube.clone() };
        let call = CubeCall::Search(Box::new(recall));
        match self.cubes.ask(self.context, &key, call).await? {
            CubeAnswer::Found(outcome) => {
                Ok(outcome.hits.into_iter().map(|hit| recall::rescale(cube, hit)).collect())
            }
            CubeAnswer::Changed(_)
            | CubeAnswer::Item(_)
            | CubeAnswer::Page(_)
            | CubeAnswer::Manifest(_)
            | CubeAnswer::Erased
            | CubeAnswer::Context(_)
            | CubeAnswer::Scene(_)
            | CubeAnswer::Noted
            | CubeAnswer::Scenes(_) => {
                Err(Error::internal("the cube gave an answer to another question"))
            }
        }
    }
}

fn too_many_to_ask(has_tier: bool, shards: usize) -> Error {
    if has_tier {
        let message = format!(
            "the vector tier is still being built ({shards} of {FEED_SHARDS} parts of this \
             tenant are missing), and there are too many cubes to ask each; retry later, or name \
             at most {CUBES_ASKED_MAX} cubes"
        );
        return Error::unavailable(message).retry_after_ms(2_000);
    }
    Error::invalid(format!(
        "without a vector tier a search spans at most {CUBES_ASKED_MAX} cubes; name fewer in \
         `cubes`, or set `vectors.kind` to `in-ram` or `lance`"
    ))
}
