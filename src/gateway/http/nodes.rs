//! `/v1/nodes`, and the move of a cube from one to another.

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{Response, StatusCode},
    routing::{get, post},
};
use memcube_schemas::{
    api::v1::{
        HandOverRequest, HandOverResponse, ListNodesResponse, NodeBody, NodeCondition, Problem,
    },
    node::{NodeRecord, NodeState},
};

use super::{cube_id, respond};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new().route("/v1/nodes", get(list)).route("/v1/cubes/{cube}/hand-over", post(hand_over))
}

/// Lists the nodes of the installation; any node may be asked.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes",
    responses((status = 200, body = ListNodesResponse), (status = 503, body = Problem)))]
pub(crate) async fn list(State(gateway): State<Gateway>, id: RequestId) -> Response<Body> {
    let cubes = gateway.node.cubes();
    let me = cubes.view().me;
    let result = async {
        if !cubes.is_clustered() {
            // It has no row in the store, for nobody else looks for one.
            let condition = NodeCondition::Alive;
            let alone = NodeBody { id: me, condition, is_me: true, address: None };
            return Ok::<_, Failure>(ListNodesResponse { nodes: vec![alone] });
        }
        let records = cubes.nodes().await?.into_iter();
        let nodes = records.map(|record| NodeBody { is_me: record.node == me, ..body(record) });
        Ok(ListNodesResponse { nodes: nodes.collect() })
    };
    respond(&id, StatusCode::OK, result.await)
}

fn body(record: NodeRecord) -> NodeBody {
    let condition = match record.state {
        NodeState::Alive => NodeCondition::Alive,
        NodeState::Dead => NodeCondition::Dead,
        NodeState::Left => NodeCondition::Left,
    };
    NodeBody { id: record.node, condition, is_me: false, address: Some(record.address) }
}

/// Moves a cube to another node. Callers notice nothing but a short wait.
#[utoipa::path(post, path = "/v1/cubes/{cube}/hand-over", tag = "nodes",
    params(("cube" = String, Path)), request_body = HandOverRequest,
    responses((status = 200, body = HandOverResponse),
        (status = 404, body = Problem),
        (status = 422, body = Problem,
            description = "this node is alone, or the other one does not live"),
        (status = 503, body = Problem)))]
pub(crate) async fn hand_over(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
    request: Request,
) -> Response<Body> {
    let result = async {
        let cube = cube_id(&cube)?;
        let HandOverRequest { node } = read_json(request).await?;
        gateway.node.cubes().hand_over(&caller, &cube, &node).await?;
        Ok(HandOverResponse { cube, node })
    };
    respond(&id, StatusCode::OK, result.await)
}
