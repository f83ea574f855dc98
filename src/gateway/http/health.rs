//! `/healthz`, `/readyz`, `/metrics`.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use memcube_actors::{embedder::EmbedderHandle, storage::RangeRead};
use memcube_schemas::{
    api::v1::{HealthResponse, ReadyResponse},
    keys,
};

use crate::gateway::Gateway;

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, body = HealthResponse)))]
pub(crate) async fn health() -> Json<HealthResponse> {
    Json(HealthResponse {
        status: "healthy".to_owned(),
        service: "memcube".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Whether the node can serve: the store can be read and written, the actors live, and the other
/// nodes know of this one.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, body = ReadyResponse), (status = 503, body = ReadyResponse)))]
pub(crate) async fn ready(State(gateway): State<Gateway>) -> impl IntoResponse {
    let probe = RangeRead::page(keys::api_keys(), 1);
    let store =
        gateway.node.store().read(vec![probe]).await.is_ok() && gateway.node.store().is_writable();
    let cubes = gateway.node.cubes().is_alive();
    let embedder = gateway.node.cubes().embedder().is_none_or(EmbedderHandle::is_alive);
    let cluster = !gateway.node.cubes().is_clustered() || gateway.node.cubes().is_member();
    let ready = store && cubes && embedder && cluster;
    let ready = ReadyResponse { ready, store, cubes, embedder, cluster };
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready))
}

/// Metrics in the text form of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(gateway): State<Gateway>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], gateway.metrics.render())
}
