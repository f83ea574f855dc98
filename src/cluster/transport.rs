//! Frames to other nodes, each a request of its own on a connection that stays open.
//!
//! A request is answered when its frame has arrived, not when it was carried out: the answer to a
//! call is a frame as well, the other way. So a call that takes long holds no connection, and a
//! frame whose request fails is lost, which the actors reckon with.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, Request, StatusCode, Uri, header},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, ResponseFuture, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use memcube_actors::{
    Error, Result,
    cluster::{Inbox, Transport},
    metrics as names,
};
use memcube_schemas::{
    NodeId,
    limits::{
        PEER_FRAME_BYTES_COUNTED_MIN, PEER_FRAME_BYTES_MAX, PEER_FRAME_MS_MAX,
        PEER_SENDING_BYTES_MAX,
    },
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{
    net::TcpListener,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tower_service::Service;

use super::{
    ADDRESS, FROM, TO,
    listener::{self, Door},
    roads::{Roads, Traffic},
    secret::Pass,
    tls,
};
use crate::settings::{ClusterSettings, split_address};

/// A connection, TLS included, is there by then, or not at all. Without this bound a node that
/// accepts and then says nothing would keep all frames waiting, also once it is well again.
const CONNECT_LIMIT: Duration = Duration::from_millis(1_500);
/// A connection whose other end does not answer for so long is given up; the next frame opens
/// another.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_PATIENCE: Duration = Duration::from_secs(2);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// How long a node that ends waits for its last frames to leave.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);
/// Heartbeats after which the others have seen that a node has left.
const HEARTBEATS_UNTIL_SEEN: u64 = 2;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How this node sends frames to the others and hears from them: HTTP/2 over TCP, with TLS if the
/// settings name certificates. Hears nothing any more when it is dropped.
pub struct HttpTransport {
    local: SocketAddr,
    advertised: String,
    client: Wire,
    /// Headers of every frame.
    from: HeaderValue,
    address: HeaderValue,
    pass: Arc<Pass>,
    roads: Arc<Roads>,
    door: Arc<Door>,
    accepting: AbortHandle,
    is_cut: AtomicBool,
    /// How long the others go on sending to a node that has left.
    until_seen: Duration,
}

impl HttpTransport {
    /// Listens on the address of the settings, which must have been found valid.
    ///
    /// # Errors
    /// `Invalid` when the secret or a certificate is of no use, `Unavailable` when the address is
    /// taken.
    pub async fn bind(node: NodeId, settings: &ClusterSettings) -> Result<Arc<Self>> {
        let pass = Arc::new(Pass::load(settings)?);
        let listen = settings.listen;
        let taken = |error: std::io::Error| {
            Error::unavailable(format!(
                "cannot listen on {listen} for other nodes: {error}; choose another address in \
                 `cluster.listen`"
            ))
        };
        let listener = TcpListener::bind(listen).await.map_err(taken)?;
        let local = listener.local_addr().map_err(taken)?;
        let advertised = advertised(settings.advertise.as_deref(), local)?;
        let host = split_address(&advertised).map(|(host, _)| host).unwrap_or_default();
        let tls = tls::load(settings, host)?;
        let roads = Arc::new(Roads::new(if tls.is_some() { "https" } else { "http" }));
        let door = Arc::new(Door::new(node.clone(), Arc::clone(&pass), Arc::clone(&roads)));
        let (client, server) = match tls {
            Some(tls) => (Wire::with_tls(tls.client), Some(tls.server)),
            None => (Wire::plain(), None),
        };
        let accepting = tokio::spawn(listener::accept(listener, server, Arc::clone(&door)));
        let invalid = |_| Error::invalid("`cluster.advertise` must be in ASCII");
        Ok(Arc::new(Self {
            local,
            from: in_header(&node),
            address: HeaderValue::from_str(&advertised).map_err(invalid)?,
            advertised,
            client,
            pass,
            roads,
            door,
            accepting: accepting.abort_handle(),
            is_cut: AtomicBool::new(false),
            until_seen: Duration::from_millis(settings.heartbeat_ms * HEARTBEATS_UNTIL_SEEN),
        }))
    }

    /// The address that it listens on.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Sends and hears nothing any more, as after a crash.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.accepting.abort();
    }

    fn request(&self, uri: Uri, to: &NodeId, frame: Bytes) -> Request<Body> {
        let mut request = Request::new(Body::from(frame));
        *request.method_mut() = axum::http::Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, self.pass.header.clone());
        headers.insert(FROM, self.from.clone());
        headers.insert(ADDRESS, self.address.clone());
        headers.insert(TO, in_header(to));
        request
    }
}

impl Drop for HttpTransport {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Transport for HttpTransport {
    fn send(&self, to: &NodeId, frame: Vec<u8>) {
        if self.is_cut.load(Ordering::Acquire) {
            return;
        }
        if frame.len() > PEER_FRAME_BYTES_MAX {
            return self.door.give_back(&frame, "too-large");
        }
        let Some((uri, traffic)) = self.roads.to(to, Instant::now()) else {
            return self.door.give_back(&frame, "no-address");
        };
        let bytes = u32::try_from(frame.len().max(PEER_FRAME_BYTES_COUNTED_MIN));
        let bytes = bytes.unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&traffic.room).try_acquire_many_owned(bytes) else {
            return self.door.give_back(&frame, "no-room");
        };
        let frame = Bytes::from(frame);
        let response = self.client.request(self.request(uri, to, frame.clone()));
        let (to, door) = (to.clone(), Arc::clone(&self.door));
        tokio::spawn(async move {
            let response = timeout(Duration::from_millis(PEER_FRAME_MS_MAX), response).await;
            let lost = match response {
                Ok(Ok(response)) if response.status() == StatusCode::ACCEPTED => None,
                Ok(Ok(response)) => Some(Lost::refused(response.status())),
                Ok(Err(error)) => Some(Lost::broken(&error)),
                Err(_) => Some(Lost::silent()),
            };
            tell(&to, &traffic, lost.as_ref());
            match lost {
                Some(lost) if lost.is_certain => door.give_back(&frame, lost.outcome),
                Some(lost) => count(lost.outcome),
                None => count("sent"),
            }
            drop(room);
        });
    }

    fn listen(&self, inbox: Weak<dyn Inbox>) {
        self.door.open(inbox);
    }

    fn address(&self) -> String {
        self.advertised.clone()
    }

    fn meet(&self, others: &BTreeMap<NodeId, String>) {
        self.roads.meet(others, Instant::now());
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let (roads, accepting) = (Arc::clone(&self.roads), self.accepting.clone());
        let until_seen = self.until_seen;
        Box::pin(async move {
            // Whoever does not know yet that this node has left is told to ask elsewhere. Without
            // an answer it could not know what became of its call.
            sleep(until_seen).await;
            let last_words = async {
                for traffic in roads.traffic() {
                    // All of the room is there when nothing is on its way any more.
                    let all = u32::try_from(PEER_SENDING_BYTES_MAX).unwrap_or(u32::MAX);
                    let _ = traffic.room.acquire_many(all).await;
                }
            };
            if timeout(LAST_WORDS_LIMIT, last_words).await.is_err() {
                tracing::debug!("some frames did not leave in time");
            }
            accepting.abort();
        })
    }
}

/// Why a frame did not arrive, as far as this node can tell.
struct Lost {
    outcome: &'static str,
    reason: String,
    /// Whether it certainly did not arrive.
    is_certain: bool,
}

impl Lost {
    fn refused(status: StatusCode) -> Self {
        let reason = match status {
            StatusCode::UNAUTHORIZED => {
                "it has another secret; give all nodes the same `cluster.secret`".to_owned()
            }
            StatusCode::TOO_MANY_REQUESTS => "it has too much to read".to_owned(),
            status => format!("it answered with status {status}"),
        };
        Self { outcome: "refused", reason, is_certain: true }
    }

    fn broken(error: &hyper_util::client::legacy::Error) -> Self {
        // Without a connection nothing left. On a broken one, nobody knows how far it came.
        Self { outcome: "unreachable", reason: with_causes(error), is_certain: error.is_connect() }
    }

    fn silent() -> Self {
        let reason = "it does not answer".to_owned();
        Self { outcome: "no-answer", reason, is_certain: false }
    }
}

/// Says so when a node falls silent or is heard again.
fn tell(node: &NodeId, traffic: &Traffic, lost: Option<&Lost>) {
    let was_silent = traffic.is_silent.swap(lost.is_some(), Ordering::Relaxed);
    match lost {
        None if was_silent => tracing::info!(%node, "a node takes frames again"),
        Some(Lost { reason, .. }) if !was_silent => {
            tracing::warn!(%node, reason, "a node does not take frames");
        }
        None | Some(_) => {}
    }
}

fn count(outcome: &'static str) {
    metrics::counter!(names::PEER_FRAMES_SENT_TOTAL, "outcome" => outcome).increment(1);
}

impl Door {
    /// Tells the actors of a frame that reached nobody.
    fn give_back(&self, frame: &[u8], outcome: &'static str) {
        count(outcome);
        if let Some(inbox) = self.inbox() {
            inbox.undelivered(frame);
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

fn in_header(node: &NodeId) -> HeaderValue {
    let text = utf8_percent_encode(node.as_str(), NON_ALPHANUMERIC).to_string();
    HeaderValue::from_str(&text).expect("invariant: letters, digits and `%` make a header")
}

/// Where the others reach this node: what the settings say, with the port that it got if they leave
/// that open.
fn advertised(setting: Option<&str>, local: SocketAddr) -> Result<String> {
    let Some(address) = setting else { return Ok(local.to_string()) };
    let (host, port) = split_address(address)
        .ok_or_else(|| Error::invalid(format!("`cluster.advertise` is `{address}`")))?;
    let port = if port == 0 { local.port() } else { port };
    Ok(format!("{host}:{port}"))
}

/// The client, with TLS or without.
enum Wire {
    Plain(Client<Patient<HttpConnector>, Body>),
    Tls(Client<Patient<HttpsConnector<HttpConnector>>, Body>),
}

impl Wire {
    fn plain() -> Self {
        Self::Plain(client(Patient(tcp())))
    }

    fn with_tls(config: rustls::ClientConfig) -> Self {
        let mut tcp = tcp();
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http2()
            .wrap_connector(tcp);
        Self::Tls(client(Patient(connector)))
    }

    fn request(&self, request: Request<Body>) -> ResponseFuture {
        match self {
            Self::Plain(client) => client.request(request),
            Self::Tls(client) => client.request(request),
        }
    }
}

fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

fn client<C>(connector: C) -> Client<C, Body>
where
    C: hyper_util::client::legacy::connect::Connect + Clone,
{
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_only(true)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_PATIENCE)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .build(connector)
}

/// A connector that gives up.
#[derive(Clone)]
struct Patient<C>(C);

impl<C> Service<Uri> for Patient<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            match timeout(CONNECT_LIMIT, connecting).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err("no connection in time".into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_where_it_is_reached() {
        let local: SocketAddr = "127.0.0.1:4711".parse().expect("valid");
        for (setting, expected) in [
            (None, "127.0.0.1:4711"),
            (Some("node-1:7701"), "node-1:7701"),
            (Some("node-1:0"), "node-1:4711"),
            (Some("[::1]:0"), "[::1]:4711"),
        ] {
            assert_eq!(advertised(setting, local).expect("valid"), expected);
        }
    }
}
