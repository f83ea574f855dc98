//! `/v1/cubes`

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    http::{Response, StatusCode},
    routing::{get, post},
};
use memcube_schemas::{
    api::v1::{CreateCubeRequest, CubeBody, ListCubesResponse, Problem},
    limits::PAGE_ITEMS_DEFAULT,
};
use serde::Deserialize;

use super::{cube_id, respond, views};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/cubes", post(create).get(list))
        .route("/v1/cubes/{cube}", get(read).delete(delete))
        .route("/v1/cubes/{cube}/release", post(release))
}

/// A page of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// `next_cursor` of the page before.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
    /// Entries in one page; 100 if left out, 1,000 at the most.
    #[serde(default)]
    pub(crate) limit: Option<usize>,
}

/// Makes a cube.
#[utoipa::path(post, path = "/v1/cubes", tag = "cubes", request_body = CreateCubeRequest,
    responses((status = 201, body = CubeBody),
        (status = 409, body = Problem,
            description = "there is one with this id"),
        (status = 422, body = Problem)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    request: Request,
) -> Response<Body> {
    let result = async {
        let CreateCubeRequest { id, name, owner } = read_json(request).await?;
        gateway.node.cubes().create(&caller, id.clone(), name, owner).await?;
        Ok(views::cube(gateway.node.cubes().describe(&caller, &id).await?))
    };
    respond(&id, StatusCode::CREATED, result.await)
}

/// Lists cubes in the order of their ids.
#[utoipa::path(get, path = "/v1/cubes", tag = "cubes", params(PageQuery),
    responses((status = 200, body = ListCubesResponse), (status = 422, body = Problem)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    page: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Response<Body> {
    let result = async {
        let Query(page) = page.map_err(|error| Failure::invalid(error.body_text()))?;
        let after = page.cursor.as_deref().map(cube_id).transpose()?;
        let limit = page.limit.unwrap_or(PAGE_ITEMS_DEFAULT);
        let (cubes, more) = gateway.node.cubes().list(&caller, after.as_ref(), limit).await?;
        let last = cubes.last().map(|cube| cube.manifest.id.to_string());
        let next_cursor = last.filter(|_| more);
        Ok(ListCubesResponse { cubes: cubes.into_iter().map(views::cube).collect(), next_cursor })
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Describes one cube; also one in quarantine, with the reason.
#[utoipa::path(get, path = "/v1/cubes/{cube}", tag = "cubes", params(("cube" = String, Path)),
    responses((status = 200, body = CubeBody), (status = 404, body = Problem)))]
pub(crate) async fn read(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
) -> Response<Body> {
    let result =
        async { Ok(views::cube(gateway.node.cubes().describe(&caller, &cube_id(&cube)?).await?)) };
    respond(&id, StatusCode::OK, result.await)
}

/// Deletes a cube with everything in it, histories included. It cannot be undone.
#[utoipa::path(delete, path = "/v1/cubes/{cube}", tag = "cubes", params(("cube" = String, Path)),
    responses((status = 200, body = CubeBody, description = "the cube as it was"),
        (status = 404, body = Problem)))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
) -> Response<Body> {
    let result = async {
        let cube = cube_id(&cube)?;
        let description = gateway.node.cubes().describe(&caller, &cube).await?;
        gateway.node.cubes().cube(&caller, cube).erase().await?;
        Ok(views::cube(description))
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Lets a cube out of quarantine, after its cause was mended.
#[utoipa::path(post, path = "/v1/cubes/{cube}/release", tag = "cubes",
    params(("cube" = String, Path)),
    responses((status = 200, body = CubeBody),
        (status = 404, body = Problem, description = "it is not in quarantine")))]
pub(crate) async fn release(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
) -> Response<Body> {
    let result = async {
        let cube = cube_id(&cube)?;
        gateway.node.cubes().release(&caller, &cube).await?;
        Ok(views::cube(gateway.node.cubes().describe(&caller, &cube).await?))
    };
    respond(&id, StatusCode::OK, result.await)
}
