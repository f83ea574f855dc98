//! `/v1`: our own interface, one file a resource.

pub(crate) mod backups;
pub(crate) mod conversations;
pub(crate) mod cubes;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod jobs;
pub(crate) mod memories;
pub(crate) mod nodes;
pub(crate) mod search;
pub(crate) mod vectors;
mod views;

pub(crate) use memories::idempotency_key;
pub(crate) use views::rfc3339;

use axum::{
    body::Body,
    http::{Response, StatusCode},
    response::IntoResponse,
};
use memcube_schemas::{CubeId, MemoryId};
use serde::Serialize;

use super::{errors::Failure, request::RequestId};

/// Answers with a body, or with a problem.
pub(crate) fn respond<T: Serialize>(
    request: &RequestId,
    status: StatusCode,
    result: Result<T, Failure>,
) -> Response<Body> {
    match result {
        Ok(body) => (status, axum::Json(body)).into_response(),
        Err(failure) => failure.into_problem(request),
    }
}

pub(crate) fn cube_id(text: &str) -> Result<CubeId, Failure> {
    CubeId::new(text).map_err(|error| Failure::invalid(error.to_string()))
}

pub(crate) fn memory_id(text: &str) -> Result<MemoryId, Failure> {
    text.parse().map_err(|error: memcube_schemas::InvalidId| Failure::invalid(error.to_string()))
}
