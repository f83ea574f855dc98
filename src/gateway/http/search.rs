//! `/v1/cubes/{cube}/search`

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{Response, StatusCode},
    routing::post,
};
use memcube_actors::{
    cube::{SearchFilter, SearchRequest},
    reader::parse_chat_time,
};
use memcube_schemas::{
    api::v1::{Problem, SearchBody, SearchFilterBody, SearchResponse},
    limits::TOP_K_DEFAULT,
};

use super::{cube_id, respond, views};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new().route("/v1/cubes/{cube}/search", post(search))
}

/// Finds what a cube knows about a question. The same question at the same version of the cube
/// gives the same list.
#[utoipa::path(post, path = "/v1/cubes/{cube}/search", tag = "search", request_body = SearchBody,
    params(("cube" = String, Path)),
    responses((status = 200, body = SearchResponse),
        (status = 404, body = Problem),
        (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn search(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: SearchBody = read_json(request).await?;
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        let outcome = handle.search(search_request(body)?).await?;
        Ok(SearchResponse {
            hits: outcome.hits.iter().map(views::hit).collect(),
            tokens: outcome.tokens,
            version: outcome.version,
        })
    };
    respond(&id, StatusCode::OK, result.await)
}

fn search_request(body: SearchBody) -> Result<SearchRequest, Failure> {
    let relativity_min = body.relativity_min.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&relativity_min) {
        return Err(Failure::invalid("`relativity_min` must be between 0 and 1"));
    }
    Ok(SearchRequest {
        query: body.query,
        top_k: body.top_k.unwrap_or(TOP_K_DEFAULT),
        token_budget: body.token_budget,
        filter: body.filter.map(filter).transpose()?.unwrap_or_default(),
        relativity_min,
    })
}

fn filter(body: SearchFilterBody) -> Result<SearchFilter, Failure> {
    Ok(SearchFilter {
        tags: body.tags,
        conversation: body.conversation,
        kinds: body.kinds,
        said_from_ms: body.said_from.as_deref().map(time).transpose()?,
        said_before_ms: body.said_before.as_deref().map(time).transpose()?,
    })
}

fn time(text: &str) -> Result<i64, Failure> {
    parse_chat_time(text).map(|time| time.unix_ms).ok_or_else(|| {
        Failure::invalid(format!("`{text}` is not a time; write it like `2023-05-08T13:56:00Z`"))
    })
}
