//! A language model behind any server that speaks OpenAI's chat completions, asked over HTTP.
//!
//! One question each time: tries, turns and deadlines belong to the actor in front. What comes is
//! bounded: the head of an answer, one event of a stream, the text of an error.

mod failures;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, Method, Request, Response, Uri, header},
};
use futures_util::{StreamExt, future::BoxFuture};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use memcube_actors::{
    Error, Result,
    inference::remote::{
        RemoteError, RemoteFacts, RemoteFailure, RemoteModel, RemoteRequest, RemoteStream,
    },
};
use memcube_schemas::ModelId;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use self::failures::{broken, unreachable};
use crate::settings::{InferenceSettings, Secret};

/// A connection, TLS included, is there by then, or not at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A connection that nobody uses is closed: servers close theirs without a word.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of an answer that is no stream: an error, or a list of models.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long a list of models may take.
const MODELS_LIMIT: Duration = Duration::from_secs(10);
/// Models that an error names.
const MODELS_NAMED_MAX: usize = 8;

/// What a question comes to.
type Asked<T> = std::result::Result<T, RemoteError>;

/// Ways in which servers differ, learned from what they refuse.
#[derive(Debug, Default)]
struct Dialect {
    /// Whether the bound is called `max_completion_tokens`.
    says_completion_tokens: AtomicBool,
    /// Whether it refuses to be asked for what it counts.
    counts_nothing: AtomicBool,
}

struct Shared {
    facts: RemoteFacts,
    /// Without a slash at its end.
    url: String,
    authorization: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, Body>,
    dialect: Dialect,
}

/// A model behind a server. Cheap to clone.
#[derive(Clone)]
pub struct OpenAiModel {
    shared: Arc<Shared>,
}

impl OpenAiModel {
    /// The model that the settings name. Asks nobody yet: a server may come later than this node.
    ///
    /// # Errors
    /// `Invalid` when a setting is missing or of no use.
    pub fn of(settings: &InferenceSettings) -> Result<Self> {
        let missing = |name: &str| Error::invalid(format!("`inference.{name}` is missing"));
        let url = settings.url.as_deref().ok_or_else(|| missing("url"))?;
        let model = settings.remote_model.as_deref().ok_or_else(|| missing("remote-model"))?;
        let url = url.trim_end_matches('/').to_owned();
        if let Some(mistake) = mistake_of_url(&url) {
            return Err(Error::invalid(format!("`inference.url` {mistake}")));
        }
        let authorization = settings.api_key.as_ref().map(bearer).transpose()?;
        let facts =
            RemoteFacts { model: ModelId::new(model)?, window_tokens: settings.window_tokens };
        let client = client(tls(settings)?);
        let dialect = Dialect::default();
        let shared = Shared { facts, url, authorization, client, dialect };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What the server says about itself: whether it knows the model.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer, or not as expected, with what to do.
    pub async fn check(&self) -> Result<String> {
        let asked = tokio::time::timeout(MODELS_LIMIT, self.models()).await;
        let models = asked.unwrap_or_else(|_| Err(self.silent()))?;
        let Shared { facts, url, .. } = &*self.shared;
        if models.is_empty() || models.iter().any(|model| model == facts.model.as_str()) {
            return Ok(format!("`{}` at {url}", facts.model));
        }
        let named = models.iter().take(MODELS_NAMED_MAX).map(|model| format!("`{model}`"));
        let named: Vec<String> = named.collect();
        Err(Error::unavailable(format!(
            "the server at {url} has no model `{}`; set `inference.remote-model` to one of those \
             that it has: {}",
            facts.model,
            named.join(", ")
        )))
    }

    async fn models(&self) -> Asked<Vec<String>> {
        let response = self.send(Method::GET, "/models", Body::empty()).await?;
        let status = response.status();
        let retry_after_ms = failures::retry_after_ms(response.headers());
        let answer = self.read(response.into_body()).await?;
        if !status.is_success() {
            return Err(failures::of_status(&self.shared, status, &answer, retry_after_ms));
        }
        wire::models(&answer).map_err(|reason| broken(&self.shared.url, &reason))
    }

    fn silent(&self) -> RemoteError {
        let url = &self.shared.url;
        let message = format!("the server at {url} does not answer; look at its log");
        RemoteError::new(RemoteFailure::Silent, message)
    }

    async fn ask(self, request: Arc<RemoteRequest>) -> Asked<RemoteStream> {
        let mut body = self.body(&request)?;
        loop {
            let response = self.send(Method::POST, "/chat/completions", Body::from(body)).await?;
            let status = response.status();
            if status.is_success() {
                return self.listen(response).await;
            }
            let retry_after_ms = failures::retry_after_ms(response.headers());
            let answer = self.read(response.into_body()).await?;
            if !self.shared.dialect.learns(status, &answer) {
                return Err(failures::of_status(&self.shared, status, &answer, retry_after_ms));
            }
            body = self.body(&request)?;
        }
    }

    fn body(&self, request: &RemoteRequest) -> Asked<Vec<u8>> {
        let Dialect { says_completion_tokens, counts_nothing } = &self.shared.dialect;
        let says_completion_tokens = says_completion_tokens.load(Ordering::Relaxed);
        let counts = !counts_nothing.load(Ordering::Relaxed);
        let model = self.shared.facts.model.as_str();
        wire::body(model, request, says_completion_tokens, counts).map_err(|reason| {
            let message = format!("the request has no form that a server would take: {reason}");
            RemoteError::new(RemoteFailure::Rejected, message)
        })
    }

    async fn send(&self, method: Method, path: &str, body: Body) -> Asked<Response<Body>> {
        let Shared { url, authorization, client, .. } = &*self.shared;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{url}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "text/event-stream, application/json")
            .header(header::USER_AGENT, concat!("memcube/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        let request = request.body(body).map_err(|error| unreachable(url, &error))?;
        let response = client.request(request).await.map_err(|error| unreachable(url, &error))?;
        Ok(response.map(Body::new))
    }

    /// What the server says, piece by piece if it does so, or all of it at once.
    async fn listen(&self, response: Response<Body>) -> Asked<RemoteStream> {
        let url = &self.shared.url;
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        let is = |wanted: &str| kind.split(';').next().is_some_and(|kind| kind.trim() == wanted);
        if is("text/event-stream") {
            return Ok(stream::parts(url, response.into_body().into_data_stream()));
        }
        if is("application/json") {
            let answer = self.read(response.into_body()).await?;
            return stream::whole(url, &answer);
        }
        let reason = format!("its answer is of type `{kind}`, not `text/event-stream`");
        Err(broken(url, &reason))
    }

    /// An answer that is no stream.
    async fn read(&self, body: Body) -> Asked<Vec<u8>> {
        let url = &self.shared.url;
        let mut pieces = body.into_data_stream();
        let mut answer = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| failures::cut(url, &error))?;
            if answer.len() + piece.len() > ANSWER_BYTES_MAX {
                let reason = format!("an answer has more than {ANSWER_BYTES_MAX} bytes");
                return Err(broken(url, &reason));
            }
            answer.extend_from_slice(&piece);
        }
        Ok(answer)
    }
}

impl RemoteModel for OpenAiModel {
    fn facts(&self) -> &RemoteFacts {
        &self.shared.facts
    }

    fn reply(&self, request: Arc<RemoteRequest>) -> BoxFuture<'static, Asked<RemoteStream>> {
        Box::pin(self.clone().ask(request))
    }
}

/// What is wrong with the address of a server, if anything.
pub(crate) fn mistake_of_url(url: &str) -> Option<&'static str> {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Some("has to begin with `http://` or `https://`");
    }
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    let Some(uri) = uri else { return Some("is no address") };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Some("holds a password; put it into `inference.api-key`");
    }
    if uri.query().is_some() {
        return Some("must not have a `?`");
    }
    if uri.path().ends_with("/chat/completions") {
        return Some("must end before `/chat/completions`");
    }
    None
}

fn bearer(key: &Secret) -> Result<HeaderValue> {
    let value = HeaderValue::from_str(&format!("Bearer {}", key.expose()));
    let mut value = value.map_err(|_| Error::invalid("`inference.api-key` is not ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn client(tls: ClientConfig) -> Client<HttpsConnector<HttpConnector>, Body> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_LIMIT)
        .build(connector)
}

/// Whose certificates are believed: those whom browsers believe, or those of a file.
fn tls(settings: &InferenceSettings) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &settings.tls_ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let of_no_use = |error: String| {
                Error::invalid(format!("`inference.tls-ca` `{}`: {error}", file.display()))
            };
            let certificates = CertificateDer::pem_file_iter(file)
                .map_err(|error| of_no_use(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| of_no_use(error.to_string()))?;
                roots.add(certificate).map_err(|error| of_no_use(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(of_no_use("it holds no certificate (PEM)".to_owned()));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal(format!("TLS cannot be set up: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
