//! `/v1/backups`

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use futures_util::stream;
use memcube_actors::{
    Error,
    backup::{BackupRequest, Selection, back_up},
};
use memcube_schemas::api::v1::{BackupBody, Problem};
use tokio::sync::mpsc;

use crate::{
    backup_stream::{StreamSink, Told, error_frame},
    gateway::{
        Gateway,
        errors::Failure,
        request::{Caller, RequestId, read_json},
    },
};

const CONTENT_TYPE: &str = "application/vnd.memcube.backup";
/// Pieces of the stream that wait for a slow reader: the head and the bytes of one object.
const WAITING_MAX: usize = 2;

pub(crate) fn routes() -> Router<Gateway> {
    Router::new().route("/v1/backups", post(create))
}

/// Takes a backup of the caller's cubes, without stopping those who write them, and streams it.
///
/// `memcube backup` reads the stream and keeps it. The last object is the manifest: a stream
/// without
/// it is no backup.
#[utoipa::path(post, path = "/v1/backups", tag = "backups", request_body = BackupBody,
    responses((status = 200, content_type = "application/vnd.memcube.backup",
            description = "objects with their names, the manifest last"),
        (status = 404, body = Problem, description = "there is no such cube"),
        (status = 422, body = Problem),
        (status = 429, body = Problem, description = "another backup is under way")))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    request: Request,
) -> Response<Body> {
    let begun = async {
        let BackupBody { cubes } = read_json(request).await?;
        let selection = Selection {
            tenant: Some(caller.tenant().clone()),
            cubes: cubes.map(|cubes| cubes.into_iter().collect()),
        };
        begin(&gateway, selection).await
    };
    match begun.await {
        Ok(told) => {
            let kind = HeaderValue::from_static(CONTENT_TYPE);
            ([(header::CONTENT_TYPE, kind)], body(told)).into_response()
        }
        Err(failure) => failure.into_problem(&id),
    }
}

/// Starts a backup, and waits until nothing stands in its way.
async fn begin(gateway: &Gateway, selection: Selection) -> Result<mpsc::Receiver<Told>, Failure> {
    let place = Arc::clone(&gateway.backups).try_acquire_owned().map_err(|_| {
        let detail = "another backup of this server is under way; try again when it is done";
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", detail)
    })?;
    let (teller, mut told) = mpsc::channel(WAITING_MAX);
    let node = Arc::clone(&gateway.node);
    let environment = node.environment().clone();
    environment.spawn(async move {
        let _place = place;
        let sink = StreamSink::new(teller.clone());
        let request = BackupRequest::new(selection, node.settings().store.kind.as_str());
        let done = back_up(node.store(), node.environment(), &sink, request, &|_| {}).await;
        if let Err(error) = &done {
            tracing::warn!(%error, "a backup broke off");
        }
        // Nobody listens when the caller hung up.
        let _ = teller.send(Told::Ended(done.map(|_| ()))).await;
    });
    match told.recv().await {
        Some(Told::Begun) => Ok(told),
        Some(Told::Ended(Err(error))) => Err(error.into()),
        Some(Told::Bytes(_) | Told::Ended(Ok(()))) | None => {
            Err(Error::internal("the backup ended before it began").into())
        }
    }
}

fn body(told: mpsc::Receiver<Told>) -> Body {
    Body::from_stream(stream::unfold(Some(told), |told| async move {
        let mut told = told?;
        let piece = |bytes: Bytes| Ok::<Bytes, Infallible>(bytes);
        match told.recv().await {
            Some(Told::Bytes(bytes)) => Some((piece(bytes), Some(told))),
            Some(Told::Ended(Ok(()))) => None,
            Some(Told::Ended(Err(error))) => Some((piece(error_frame(error.message())), None)),
            Some(Told::Begun) | None => Some((piece(error_frame("the server is stopping")), None)),
        }
    }))
}
