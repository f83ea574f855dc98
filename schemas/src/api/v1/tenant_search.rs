//! Bodies of searches over several cubes, and of the tables behind them.

use serde::{Deserialize, Serialize};

use super::{MemoryBody, ScoresBody, SearchFilterBody};
use crate::ids::CubeId;

body! {
    /// Asks many cubes.
    request TenantSearchBody {
        /// The question.
        query: String,
        /// Hits at the most, over all cubes; 10 if left out.
        #[serde(default)]
        top_k: Option<usize>,
        /// Word pieces that all hits together may have.
        #[serde(default)]
        token_budget: Option<u32>,
        /// Hits below this relativity, from 0 to 1, are left out.
        #[serde(default)]
        relativity_min: Option<f32>,
        /// Which memories count.
        #[serde(default)]
        filter: Option<SearchFilterBody>,
        /// Which cubes to ask; all of the tenant's if left out.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
        cubes: Option<Vec<CubeId>>,
    }
}

body! {
    /// One memory that was found, and where.
    response CubeHitBody {
        /// The cube that holds it.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        cube: CubeId,
        /// The memory.
        memory: MemoryBody,
        /// How well it fits, from 0 to 1.
        relativity: f32,
        /// Why it was found. Across cubes there are no z-scores, and no neighbours lend words.
        scores: ScoresBody,
    }
}

body! {
    /// What was found in many cubes.
    response TenantSearchResponse {
        /// Best first.
        hits: Vec<CubeHitBody>,
        /// Word pieces of all hits together.
        tokens: u32,
        /// Memories that were read one by one because the vector tier had not seen their last
        /// change yet.
        unindexed: usize,
    }
}

body! {
    /// One part of a tenant's cubes in the vector tier of a node.
    response VectorShardBody {
        /// Which part.
        shard: u16,
        /// Whether searches are answered from it.
        ready: bool,
        /// Commits that it has not seen yet, as far as they were counted.
        behind: usize,
    }
}

body! {
    /// How far the vector tier of a node is with a tenant's cubes.
    response VectorsResponse {
        /// `none`, `in-ram` or `lance`.
        kind: String,
        /// Its parts; empty without a tier.
        shards: Vec<VectorShardBody>,
    }
}
