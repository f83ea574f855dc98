//! From an error to an answer: problem+json on `/v1`, with what OpenAI's clients read where they
//! call, MemOS's envelope on its wire.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use memcube_actors::{Error, ErrorKind};
use memcube_schemas::api::{memos::Envelope, openai::OpenAiError, v1::Problem};
use serde_json::Value;

use super::request::RequestId;

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    /// Stable name of the error.
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    pub(crate) retry_after_ms: Option<u64>,
    /// The field that is wrong, for OpenAI's clients.
    pub(crate) param: Option<String>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after_ms: None, param: None }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }

    /// The same, about a field.
    pub(crate) fn about(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// As problem+json (RFC 9457).
    pub(crate) fn into_problem(self, request: &RequestId) -> Response<Body> {
        let problem = self.problem(request);
        self.respond_problem(&problem)
    }

    /// As problem+json, with what OpenAI's clients read.
    pub(crate) fn into_openai(self, request: &RequestId) -> Response<Body> {
        let failure = self.on_openai_wire();
        let problem = failure.openai_problem(request);
        failure.respond_problem(&problem)
    }

    /// The body that [`Failure::into_openai`] answers with.
    pub(crate) fn openai_problem(&self, request: &RequestId) -> Problem {
        let error = OpenAiError {
            message: self.detail.clone(),
            r#type: self.openai_type().to_owned(),
            code: self.code.to_owned(),
            param: self.param.clone(),
        };
        Problem { error: Some(error), ..self.problem(request) }
    }

    /// Its clients expect 400 for whatever is wrong with a request.
    pub(crate) fn on_openai_wire(mut self) -> Self {
        if self.status == StatusCode::UNPROCESSABLE_ENTITY {
            self.status = StatusCode::BAD_REQUEST;
        }
        self
    }

    fn openai_type(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn problem(&self, request: &RequestId) -> Problem {
        Problem {
            r#type: format!("about:blank#{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            detail: self.detail.clone(),
            request_id: request.to_string(),
            retry_after_ms: self.retry_after_ms,
            error: None,
        }
    }

    fn respond_problem(self, problem: &Problem) -> Response<Body> {
        let body = serde_json::to_vec(problem).unwrap_or_default();
        self.respond("application/problem+json", body)
    }

    /// In MemOS's envelope; its clients read `code` and `message`.
    pub(crate) fn into_envelope(self) -> Response<Body> {
        let envelope = Envelope {
            code: self.status.as_u16(),
            message: self.detail.clone(),
            data: Value::Null,
        };
        let body = serde_json::to_vec(&envelope).unwrap_or_default();
        self.respond("application/json", body)
    }

    fn respond(self, content_type: &'static str, body: Vec<u8>) -> Response<Body> {
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(milliseconds) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1_000)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (status, code) = match error.kind() {
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            ErrorKind::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            ErrorKind::Conflict => (StatusCode::CONFLICT, "conflict"),
            ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ErrorKind::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            ErrorKind::Fenced => (StatusCode::SERVICE_UNAVAILABLE, "fenced"),
            ErrorKind::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt"),
            ErrorKind::Gone => (StatusCode::GONE, "gone"),
            ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        if status.is_server_error() {
            tracing::warn!(code, %error, "request failed");
        }
        Self {
            status,
            code,
            detail: error.message().to_owned(),
            retry_after_ms: error.retry_after(),
            param: None,
        }
    }
}
