//! The other nodes knock here: who is let in, and what becomes of their frames.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    routing::post,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use memcube_actors::{cluster::Inbox, metrics as names};
use memcube_schemas::{
    NodeId,
    limits::{
        PEER_CONNECTIONS_MAX, PEER_FRAME_BYTES_COUNTED_MIN, PEER_FRAME_BYTES_MAX,
        PEER_FRAME_MS_MAX, PEER_HEARING_BYTES_MAX,
    },
};
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::{ADDRESS, FRAMES_PATH, FROM, TO, roads::Roads, secret::Pass};

/// Whoever shows no secret by then is a stranger, and leaves.
const INTRODUCTION_MS_MAX: u64 = 5_000;
/// A connection whose other end does not answer for so long is closed.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_PATIENCE: Duration = Duration::from_secs(5);
/// Requests at a time on one connection; further ones wait at the sender.
const STREAMS_MAX: u32 = 2_048;
/// What may be on its way unread: of one frame, and of all on one connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Pause after an accept that failed, as when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Strangers are told of once in a while, so that they cannot fill the log.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What the listener knows and needs.
pub(super) struct Door {
    pub(super) me: NodeId,
    pub(super) pass: Arc<Pass>,
    pub(super) roads: Arc<Roads>,
    inbox: Mutex<Option<Weak<dyn Inbox>>>,
    /// One permit a byte that is being read.
    room: Arc<Semaphore>,
    warned: Mutex<Option<Instant>>,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Taken,
    Stranger,
    NotForMe,
    TooLarge,
    NoRoom,
    Broken,
    NobodyHome,
}

impl Heard {
    const fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Stranger => "stranger",
            Self::NotForMe => "not-for-me",
            Self::TooLarge => "too-large",
            Self::NoRoom => "no-room",
            Self::Broken => "broken",
            Self::NobodyHome => "nobody-home",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::Taken => StatusCode::ACCEPTED,
            Self::Stranger => StatusCode::UNAUTHORIZED,
            Self::NotForMe => StatusCode::MISDIRECTED_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoRoom => StatusCode::TOO_MANY_REQUESTS,
            Self::Broken => StatusCode::BAD_REQUEST,
            Self::NobodyHome => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Door {
    pub(super) fn new(me: NodeId, pass: Arc<Pass>, roads: Arc<Roads>) -> Self {
        let room = Arc::new(Semaphore::new(PEER_HEARING_BYTES_MAX));
        Self { me, pass, roads, inbox: Mutex::default(), room, warned: Mutex::default() }
    }

    /// Says where frames go.
    pub(super) fn open(&self, inbox: Weak<dyn Inbox>) {
        *self.inbox.lock().expect("invariant: nothing panics while it holds the inbox") =
            Some(inbox);
    }

    pub(super) fn inbox(&self) -> Option<Arc<dyn Inbox>> {
        let inbox = self.inbox.lock().expect("invariant: nothing panics while it holds the inbox");
        inbox.as_ref().and_then(Weak::upgrade)
    }

    /// Whether it is time to tell of a stranger again.
    fn may_warn(&self) -> bool {
        let mut warned = self.warned.lock().expect("invariant: nothing panics while it warns");
        let is_due = warned.is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if is_due {
            *warned = Some(Instant::now());
        }
        is_due
    }

    async fn hear(&self, request: Request, is_admitted: &AtomicBool) -> Heard {
        let (head, body) = (request.headers(), request.headers().get(header::CONTENT_LENGTH));
        if !self.pass.admits(head.get(header::AUTHORIZATION)) {
            if self.may_warn() {
                tracing::warn!(
                    from = ?head.get(FROM),
                    "somebody without the secret of this cluster knocks; if it is a node, give it \
                     the same `cluster.secret`"
                );
            }
            return Heard::Stranger;
        }
        is_admitted.store(true, Ordering::Relaxed);
        let (from, to) = (node(head, FROM), node(head, TO));
        let bytes = body.and_then(|bytes| bytes.to_str().ok()?.parse::<usize>().ok());
        let (Some(from), Some(to), Some(bytes)) = (from, to, bytes) else { return Heard::Broken };
        if to != self.me {
            // This address was another node's a while ago.
            return Heard::NotForMe;
        }
        if bytes > PEER_FRAME_BYTES_MAX {
            return Heard::TooLarge;
        }
        let Some(place) = self.place(bytes) else { return Heard::NoRoom };
        if let Some(address) = head.get(ADDRESS).and_then(|address| address.to_str().ok()) {
            self.roads.hear(&from, address, Instant::now());
        }
        let limit = Duration::from_millis(PEER_FRAME_MS_MAX);
        let Ok(Ok(frame)) = timeout(limit, to_bytes(request.into_body(), bytes)).await else {
            return Heard::Broken;
        };
        let Some(inbox) = self.inbox() else { return Heard::NobodyHome };
        inbox.deliver(frame.into());
        drop(place);
        Heard::Taken
    }

    fn place(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.max(PEER_FRAME_BYTES_COUNTED_MIN)).ok()?;
        Arc::clone(&self.room).try_acquire_many_owned(permits).ok()
    }
}

fn node(head: &HeaderMap, name: &str) -> Option<NodeId> {
    let text = percent_decode_str(head.get(name)?.to_str().ok()?).decode_utf8().ok()?;
    NodeId::new(text).ok()
}

/// Lets others in until it is aborted, and with it every connection.
pub(super) async fn accept(listener: TcpListener, tls: Option<Arc<ServerConfig>>, door: Arc<Door>) {
    let tls = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(PEER_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (tls, door) = (tls.clone(), Arc::clone(&door));
                connections.spawn(async move {
                    welcome(stream, tls, door).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of another node");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn welcome(stream: TcpStream, tls: Option<TlsAcceptor>, door: Arc<Door>) {
    // Frames are small, and somebody waits for each.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return serve(stream, door).await };
    let limit = Duration::from_millis(INTRODUCTION_MS_MAX);
    match timeout(limit, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, door).await,
        Ok(Err(error)) if door.may_warn() => tracing::warn!(
            %error,
            "somebody without a certificate of this cluster knocks; if it is a node, check its \
             `cluster.tls-cert` and `cluster.tls-ca`"
        ),
        Ok(Err(_)) | Err(_) => {}
    }
}

#[derive(Clone)]
struct Visit {
    door: Arc<Door>,
    /// Whether somebody on this connection has shown the secret.
    is_admitted: Arc<AtomicBool>,
}

async fn serve<S>(stream: S, door: Arc<Door>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let visit = Visit { door, is_admitted: Arc::default() };
    let is_admitted = Arc::clone(&visit.is_admitted);
    let app = Router::new().route(FRAMES_PATH, post(take)).with_state(visit);
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        _ = &mut connection => return,
        () = sleep(Duration::from_millis(INTRODUCTION_MS_MAX)) => {}
    }
    if is_admitted.load(Ordering::Relaxed)
        && let Err(error) = connection.await
    {
        tracing::debug!(%error, "a connection of another node broke");
    }
}

async fn take(State(visit): State<Visit>, request: Request<Body>) -> StatusCode {
    let heard = visit.door.hear(request, &visit.is_admitted).await;
    metrics::counter!(names::PEER_FRAMES_HEARD_TOTAL, "outcome" => heard.name()).increment(1);
    if !matches!(heard, Heard::Taken | Heard::Stranger) {
        tracing::debug!(outcome = heard.name(), "a frame of another node was refused");
    }
    heard.status()
}
