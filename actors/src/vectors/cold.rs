//! Questions to one large cube that is not in RAM: its tables answer, and it stays where it is.
//!
//! Invariant: the answer is that of one version of the cube. Its manifest is read before and after;
//! if it has changed in between, the tables are asked again, and in the end the cube itself.

use std::collections::BTreeSet;

use memcube_schemas::{
    call::{SearchOutcome, SearchRequest},
    keys,
};

use super::{ask_tables::Asking, search::embed_query, tier::VectorTier};
use crate::{
    cluster::placement::Placement,
    cube::{
        CubeKey,
        recall::{self, CubeHit},
    },
    directory::Cubes,
    error::{Error, ErrorKind, Result},
    metrics as names,
    tenant::TenantContext,
};

/// How often the tables are asked while the cube is being changed.
const TRIES: usize = 3;

impl Cubes {
    /// Answers a question to a cube from the vector tier. `None` when the cube has to be asked: it
    /// is in RAM, or small, or another node's, or not in a table that can answer.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer, `Overloaded` past the bound of searches that
    /// ask tables.
    pub(crate) async fn search_cold(
        &self,
        context: &TenantContext,
        key: &CubeKey,
        request: &SearchRequest,
    ) -> Result<Option<SearchOutcome>> {
        let Some(tier) = &self.shared().vectors else { return Ok(None) };
        let is_served = self.shared().directory.contains_key(key) || self.route(key).is_some();
        if tier.cold_cube_items_min == 0 || is_served {
            return Ok(None);
        }
        let Some(mut manifest) = self.manifest(key).await? else { return Ok(None) };
        if manifest.items < tier.cold_cube_items_min || !self.belongs_here(key).await? {
            return Ok(None);
        }
        let _place = self.shared().search_places.take()?;
        let asking = Asking {
            cubes: self,
            context,
            request: request.clone(),
            named: Some(vec![key.cube.clone()]),
            vector: embed_query(self, request).await?,
        };
        for _ in 0..TRIES {
            let hits = match asking.ask_one(tier, key).await {
                Ok(Some(hits)) => hits,
                Ok(None) => return Ok(None),
                // The cube itself can answer, only later.
                Err(error) if error.kind() == ErrorKind::Unavailable => return Ok(None),
                Err(error) => return Err(error),
            };
            let Some(now) = self.manifest(key).await? else { return Ok(None) };
            if now.version == manifest.version {
                self.environment().reach("search.cold-cube", key.cube.as_str());
                metrics::counter!(names::COLD_SEARCHES_TOTAL).increment(1);
                let hits: Vec<_> = hits.into_iter().map(|hit| hit.hit).collect();
                return Ok(Some(SearchOutcome {
                    tokens: hits.iter().map(|hit| hit.item.tokens).sum(),
                    confidence: hits.iter().map(|hit| hit.relativity).fold(0.0, f32::max),
                    version: manifest.version,
                    hits,
                }));
            }
            manifest = now;
        }
        Ok(None)
    }

    /// Whether no other node owns a cube, and none has it in RAM.
    async fn belongs_here(&self, key: &CubeKey) -> Result<bool> {
        if self.shared().cluster.is_none() {
            return Ok(true);
        }
        Ok(matches!(self.locate(key, false).await?, Placement::Here))
    }
}

impl Asking<'_> {
    /// What the tables know of the one cube that is asked, ranked; `None` without a whole table.
    async fn ask_one(&self, tier: &VectorTier, key: &CubeKey) -> Result<Option<Vec<CubeHit>>> {
        let shards = BTreeSet::from([keys::feed_shard(&key.cube)]);
        let found = self.ask_tables(tier, &shards).await?;
        if !found.uncovered.is_empty() {
            return Ok(None);
        }
        let (request, is_dense) = (self.request.clone(), self.vector.is_some());
        let rank = move || {
            let hits = recall::score(&request, is_dense, found.contenders);
            recall::choose(&request, hits)
        };
        let ranked = self.cubes.environment().compute(rank).await;
        ranked.map(Some).ok_or_else(|| Error::internal("the ranking failed; see the log"))
    }
}
