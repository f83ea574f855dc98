//! `/v1/vectors`

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Response, StatusCode},
    routing::{get, post},
};
use memcube_actors::vectors::ShardState;
use memcube_schemas::api::v1::{Problem, VectorShardBody, VectorsResponse};

use super::respond;
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new().route("/v1/vectors", get(read)).route("/v1/vectors/rebuild", post(rebuild))
}

/// Tells how far the vector tier of this node is with the caller's cubes.
#[utoipa::path(get, path = "/v1/vectors", tag = "search",
    responses((status = 200, body = VectorsResponse), (status = 503, body = Problem)))]
pub(crate) async fn read(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
) -> Response<Body> {
    let result = async {
        let shards = gateway.node.cubes().vector_shards(&caller).await.map_err(Failure::from)?;
        Ok(VectorsResponse {
            kind: gateway.node.settings().vectors.kind.as_str().to_owned(),
            shards: shards.iter().map(shard).collect(),
        })
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Builds the caller's part of this node's vector tier anew from its memories, in the background.
/// Until a part is ready, searches that need it ask its cubes, or are told to come back.
#[utoipa::path(post, path = "/v1/vectors/rebuild", tag = "search",
    responses((status = 202, body = VectorsResponse),
        (status = 422, body = Problem, description = "this node has no vector tier"),
        (status = 503, body = Problem)))]
pub(crate) async fn rebuild(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
) -> Response<Body> {
    let begun = gateway.node.cubes().rebuild_vectors(&caller).map(|()| VectorsResponse {
        kind: gateway.node.settings().vectors.kind.as_str().to_owned(),
        shards: Vec::new(),
    });
    respond(&id, StatusCode::ACCEPTED, begun.map_err(Failure::from))
}

fn shard(state: &ShardState) -> VectorShardBody {
    let ShardState { shard, watermark, behind } = *state;
    VectorShardBody { shard, ready: watermark.is_some(), behind }
}
