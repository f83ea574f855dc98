//! `/v1/cubes/{cube}/search` and `/v1/search`

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
    vectors::TenantSearchRequest,
};
use memcube_schemas::{
    api::v1::{
        Problem, SearchBody, SearchFilterBody, SearchResponse, TenantSearchBody,
        TenantSearchResponse,
    },
    limits::TOP_K_DEFAULT,
};

use super::{cube_id, respond, views};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/cubes/{cube}/search", post(search))
        .route("/v1/search", post(search_tenant))
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

/// Finds what many cubes know about a question, all of the tenant's or those that are named. It
/// knows every memory that was added before, and shows none that was deleted before. Without a
/// vector tier (`vectors.kind`) it spans at most 64 cubes.
#[utoipa::path(post, path = "/v1/search", tag = "search", request_body = TenantSearchBody,
    responses((status = 200, body = TenantSearchResponse),
        (status = 404, body = Problem, description = "a cube that is named does not exist"),
        (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn search_tenant(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: TenantSearchBody = read_json(request).await?;
        let TenantSearchBody { query, top_k, token_budget, relativity_min, filter, cubes } = body;
        let request =
            search_request(SearchBody { query, top_k, token_budget, relativity_min, filter })?;
        let request = TenantSearchRequest { request, cubes };
        let outcome = gateway.node.cubes().search_tenant(&caller, request).await?;
        Ok(TenantSearchResponse {
            hits: outcome.hits.iter().map(views::cube_hit).collect(),
            tokens: outcome.tokens,
            unindexed: outcome.unindexed,
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
