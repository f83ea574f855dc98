//! What every request goes through: an id, the gate, strict JSON, metrics.

use std::{any::Any, fmt, panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    body::{Body, Bytes},
    extract::{
        FromRequest, FromRequestParts, MatchedPath, Request, State, rejection::BytesRejection,
    },
    http::{HeaderName, HeaderValue, Response, StatusCode, header, request::Parts},
    middleware::Next,
};
use futures_util::FutureExt;
use memcube_actors::{TenantContext, metrics as names};
use percent_encoding::percent_decode_str;
use serde::de::{DeserializeOwned, IgnoredAny};
use tracing::Instrument;

use super::{Gateway, errors::Failure};

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Headers in which callers name their request: the common one and those of MemOS's clients.
const ID_HEADERS: [&str; 4] = ["x-request-id", "g-trace-id", "x-trace-id", "trace-id"];
const ID_CHARS_MAX: usize = 64;
/// The prefix of MemOS's wire.
const MEMOS_PREFIX: &str = "/product/";
/// The prefixes of OpenAI's.
const OPENAI_PREFIXES: [&str; 3] = ["/v1/chat/", "/v1/embeddings", "/v1/models"];

/// In which form errors are told.
#[derive(Debug, Clone, Copy)]
enum Wire {
    Ours,
    Memos,
    OpenAi,
}

impl Wire {
    fn of(path: &str) -> Self {
        if path.starts_with(MEMOS_PREFIX) {
            return Self::Memos;
        }
        let is_openai = OPENAI_PREFIXES.iter().any(|prefix| path.starts_with(prefix));
        if is_openai { Self::OpenAi } else { Self::Ours }
    }

    fn tell(self, failure: Failure, id: &RequestId) -> Response<Body> {
        match self {
            Self::Ours => failure.into_problem(id),
            Self::Memos => failure.into_envelope(),
            Self::OpenAi => failure.into_openai(id),
        }
    }
}

/// Names one request in answers and logs.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(String);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The authenticated caller of a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Arc<TenantContext>);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, StatusCode> {
        // The gate puts it there; a route outside the gate that asks for it is a defect.
        parts.extensions.get::<Self>().cloned().ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, StatusCode> {
        parts.extensions.get::<Self>().cloned().ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// Gives every request an id, counts it, and turns a panic of its handler into an answer.
pub(crate) async fn observe(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let start = Instant::now();
    let id = given_id(&request)
        .unwrap_or_else(|| RequestId(format!("{:032x}", gateway.node.environment().random_u128())));
    request.extensions_mut().insert(id.clone());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().as_str().to_owned();
    let wire = Wire::of(request.uri().path());
    let span = tracing::info_span!("request", id = %id);
    let answered = AssertUnwindSafe(next.run(request).instrument(span)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|panic| panicked(&*panic, &id, wire));
    let status = response.status().as_u16().to_string();
    tracing::debug!(request_id = %id, method, route, status, "answered");
    metrics::histogram!(
        names::HTTP_REQUEST_SECONDS, "route" => route.clone(), "method" => method.clone()
    )
    .record(start.elapsed().as_secs_f64());
    metrics::counter!(
        names::HTTP_REQUESTS_TOTAL, "route" => route, "method" => method, "status" => status
    )
    .increment(1);
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID.clone(), value);
    }
    response
}

/// The answer to a request whose handler panicked.
fn panicked(panic: &(dyn Any + Send), id: &RequestId, wire: Wire) -> Response<Body> {
    let text = panic.downcast_ref::<&str>().copied().unwrap_or("no message");
    tracing::error!(panic = text, request_id = %id, "a request handler panicked");
    let detail = "a defect of memcube; report it with the request id";
    let failure = Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail);
    wire.tell(failure, id)
}

fn given_id(request: &Request) -> Option<RequestId> {
    let header = ID_HEADERS.iter().find_map(|name| request.headers().get(*name))?;
    let text = header.to_str().ok()?;
    let is_sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = (1..=ID_CHARS_MAX).contains(&text.len()) && text.chars().all(is_sane);
    fits.then(|| RequestId(text.to_owned()))
}

/// Lets only callers with a key through.
pub(crate) async fn authenticate(
    State(gateway): State<Gateway>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let header = request.headers().get(header::AUTHORIZATION);
    let shown = header.and_then(|header| header.to_str().ok());
    let mut caller = shown.and_then(|shown| gateway.gate.authenticate(shown));
    if let (None, Some(shown)) = (&caller, shown)
        && gateway.node.cubes().is_clustered()
    {
        caller = match gateway.gate.look_up(gateway.node.store(), shown).await {
            Ok(caller) => caller,
            Err(error) => return refuse(&request, error.into()),
        };
    }
    match caller {
        Some(_) if percent_decode_str(request.uri().path()).decode_utf8().is_err() => {
            let detail = "the path is not UTF-8 once its `%` escapes are read";
            refuse(&request, Failure::new(StatusCode::BAD_REQUEST, "invalid", detail))
        }
        Some(context) => {
            request.extensions_mut().insert(Caller(context));
            next.run(request).await
        }
        None => {
            let detail = if header.is_some() {
                "this API key is not known here; send `Authorization: Bearer KEY` with a valid key"
            } else {
                "no API key; send `Authorization: Bearer KEY`"
            };
            let failure = Failure::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
            refuse(&request, failure)
        }
    }
}

/// Answers in the form of the wire that the request came on.
pub(crate) fn refuse(request: &Request, failure: Failure) -> Response<Body> {
    let unnamed = || RequestId(String::new());
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_else(unnamed);
    Wire::of(request.uri().path()).tell(failure, &id)
}

/// Answers requests that no route takes.
pub(crate) async fn no_route(request: Request) -> Response<Body> {
    let detail = format!(
        "there is no route `{} {}`; see /openapi.json",
        request.method(),
        request.uri().path()
    );
    refuse(&request, Failure::new(StatusCode::NOT_FOUND, "not_found", detail))
}

/// Answers requests whose route has another method.
pub(crate) async fn no_method(request: Request) -> Response<Body> {
    let detail = format!("`{}` does not take {}", request.uri().path(), request.method());
    refuse(&request, Failure::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", detail))
}

/// A JSON body, read strictly, with the place of a mistake in the error.
pub(crate) async fn read_json<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let bytes =
        Bytes::from_request(request, &()).await.map_err(|rejection| too_large(&rejection))?;
    parse_json(&bytes)
}

fn too_large(rejection: &BytesRejection) -> Failure {
    let status = rejection.status();
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        let limit = memcube_schemas::limits::REQUEST_BODY_BYTES_MAX;
        let detail = format!("the body has more than {limit} bytes; send it in several requests");
        return Failure::new(status, "too_large", detail);
    }
    Failure::new(StatusCode::BAD_REQUEST, "invalid", "the body could not be read")
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    if let Err(error) = std::str::from_utf8(bytes) {
        let detail = format!("the body is not UTF-8 from byte {} on", error.valid_up_to());
        return Err(Failure::new(StatusCode::BAD_REQUEST, "invalid", detail));
    }
    // A list in place of an object would be read as its fields in their order.
    let is_list = bytes.trim_ascii_start().starts_with(b"[");
    if is_list && serde_json::from_slice::<IgnoredAny>(bytes).is_ok() {
        return Err(Failure::invalid("the body is a list, not an object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut deserializer)
        .and_then(|value| {
            let end = deserializer.end();
            end.map(|()| value).map_err(|error| {
                serde_path_to_error::Error::new(serde_path_to_error::Track::new().path(), error)
            })
        })
        .map_err(|error| {
            let (path, inner) = (error.path().to_string(), error.inner());
            if inner.is_data() {
                Failure::invalid(format!("body at `{path}`: {inner}")).about(path)
            } else {
                let detail = format!("the body is not valid JSON: {inner}");
                Failure::new(StatusCode::BAD_REQUEST, "invalid", detail)
            }
        })
}
