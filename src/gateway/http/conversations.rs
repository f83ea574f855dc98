//! `/v1/conversations/{conversation}`: what happens in it, and what is prepared for its next turn;
//! and `/v1/predictor`.

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::{Response, StatusCode},
    routing::{get, post},
};
use memcube_actors::scheduler::{PredictorView, SchedulerHandle};
use memcube_schemas::{
    ConversationId, CubeId, RequestId as EventId,
    api::v1::{
        ConversationEventRequest, ConversationEventResponse, PredictorResponse, PredictorWeight,
        Problem,
    },
    conversation::ConversationEvent,
    scene::SceneTimeline,
};
use serde::Deserialize;

use super::{cube_id, respond};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/conversations/{conversation}/events", post(note))
        .route("/v1/conversations/{conversation}/scenes", get(scenes))
        .route("/v1/predictor", get(predictor).delete(reset_predictor))
}

/// Tells what happens in a conversation, so that its next turn is prepared: that somebody is
/// typing, above all. Nothing of it becomes a memory.
#[utoipa::path(post, path = "/v1/conversations/{conversation}/events", tag = "conversations",
    params(("conversation" = String, Path)), request_body = ConversationEventRequest,
    responses((status = 202, body = ConversationEventResponse),
        (status = 404, body = Problem),
        (status = 422, body = Problem),
        (status = 429, body = Problem, description = "too many events wait"),
        (status = 503, body = Problem)))]
pub(crate) async fn note(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(conversation): Path<String>,
    request: Request,
) -> Response<Body> {
    let result = async {
        let conversation = conversation_id(&conversation)?;
        let body: ConversationEventRequest = read_json(request).await?;
        let named = body.id.map(EventId::new).transpose();
        let named = named.map_err(|error| Failure::invalid(error.to_string()))?;
        let now_ms = || gateway.node.environment().unix_ms();
        let at_ms = body.at_ms.unwrap_or_else(now_ms);
        let kind = body.event.into();
        let handle = gateway.node.cubes().cube(&caller, body.cube);
        handle.note(ConversationEvent { conversation, id: named, at_ms, kind }).await?;
        Ok(ConversationEventResponse { accepted: true })
    };
    respond(&id, StatusCode::ACCEPTED, result.await)
}

/// Which cube a conversation belongs to.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CubeQuery {
    /// The cube.
    cube: String,
}

/// Tells what was prepared for the turns of a conversation, why, and what became of it; and what
/// the next turn is thought to need. The node that owns the cube remembers the last turns.
#[utoipa::path(get, path = "/v1/conversations/{conversation}/scenes", tag = "conversations",
    params(("conversation" = String, Path), CubeQuery),
    responses((status = 200, body = SceneTimeline),
        (status = 404, body = Problem),
        (status = 422, body = Problem),
        (status = 503, body = Problem)))]
pub(crate) async fn scenes(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(conversation): Path<String>,
    query: Result<Query<CubeQuery>, QueryRejection>,
) -> Response<Body> {
    let result = async {
        let conversation = conversation_id(&conversation)?;
        let Query(query) = query.map_err(|error| Failure::invalid(error.body_text()))?;
        let cube: CubeId = cube_id(&query.cube)?;
        Ok(gateway.node.cubes().cube(&caller, cube).scenes(&conversation).await?)
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Tells what the tenant's predictor has learned of what turns need.
#[utoipa::path(get, path = "/v1/predictor", tag = "conversations",
    responses((status = 200, body = PredictorResponse), (status = 503, body = Problem)))]
pub(crate) async fn predictor(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
) -> Response<Body> {
    let result = async {
        let view = scheduler(&gateway)?.predictor(caller.tenant()).await?;
        Ok(body(&view))
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Lets the tenant's predictor forget what it has learned; answers with what it knows from the
/// start.
#[utoipa::path(delete, path = "/v1/predictor", tag = "conversations",
    responses((status = 200, body = PredictorResponse),
        (status = 409, body = Problem),
        (status = 503, body = Problem)))]
pub(crate) async fn reset_predictor(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
) -> Response<Body> {
    let result = async {
        let view = scheduler(&gateway)?.reset_predictor(caller.tenant()).await?;
        Ok(body(&view))
    };
    respond(&id, StatusCode::OK, result.await)
}

fn scheduler(gateway: &Gateway) -> Result<&SchedulerHandle, Failure> {
    gateway.node.cubes().scheduler().ok_or_else(|| {
        let detail = "this server prepares no turns; set `scheduler.enabled` to `true`";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    })
}

fn body(view: &PredictorView) -> PredictorResponse {
    let weights = view.predictor.weights().map(|(input, [silent, typing])| PredictorWeight {
        input: input.to_owned(),
        silent,
        typing,
    });
    PredictorResponse {
        weights: weights.collect(),
        turns: view.predictor.turns(),
        generation: view.generation,
    }
}

fn conversation_id(text: &str) -> Result<ConversationId, Failure> {
    ConversationId::new(text).map_err(|error| Failure::invalid(error.to_string()))
}
