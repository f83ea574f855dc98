//! The HTTP edge: the tenant gate first, then one file a resource.

mod conversing;
mod errors;
mod http;
mod memos;
mod openai;
mod openapi;
mod request;
mod tenant;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::DefaultBodyLimit, middleware, routing::get};
use memcube_actors::{Error, Result};
use memcube_schemas::limits::{BACKUPS_RUNNING_MAX, REQUEST_BODY_BYTES_MAX};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

pub(crate) use http::rfc3339;
pub use openapi::document as openapi_document;
pub use tenant::{TenantGate, new_key};

use crate::{node::Node, telemetry};

/// What every handler may use. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) node: Arc<Node>,
    pub(crate) gate: Arc<TenantGate>,
    pub(crate) metrics: PrometheusHandle,
    /// Places for backups that are handed out.
    pub(crate) backups: Arc<Semaphore>,
    /// Adds of MemOS's clients by the names that those gave them.
    pub(crate) tasks: Arc<memos::Tasks>,
    /// Turns true when the gateway stops: streams end then, so that their connections do.
    pub(crate) stopping: watch::Receiver<bool>,
    /// Unix seconds at which it began to answer.
    pub(crate) since: i64,
}

/// A gateway that answers.
pub struct Serving {
    /// Where it listens.
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Serving {
    /// Takes no further connections, answers what is under way, and ends.
    ///
    /// # Errors
    /// `Internal` when the server had failed.
    pub async fn stop(self) -> Result<()> {
        let _ = self.stop.send(true);
        self.task
            .await
            .map_err(|error| Error::internal(format!("the gateway failed: {error}")))?
            .map_err(|error| Error::internal(format!("the gateway failed: {error}")))
    }
}

/// Starts to answer on an address.
///
/// # Errors
/// `Unavailable` when the address is taken or not allowed.
pub async fn serve(node: Arc<Node>, gate: Arc<TenantGate>, listen: SocketAddr) -> Result<Serving> {
    let metrics = telemetry::start_metrics()
        .map_err(|error| Error::internal(format!("metrics cannot be recorded: {error}")))?;
    let taken = |error: std::io::Error| {
        Error::unavailable(format!(
            "cannot listen on {listen}: {error}; choose another address with `--listen`"
        ))
    };
    let listener = TcpListener::bind(listen).await.map_err(taken)?;
    let address = listener.local_addr().map_err(taken)?;
    let backups = Arc::new(Semaphore::new(BACKUPS_RUNNING_MAX));
    let (stop, mut stopped) = watch::channel(false);
    let since = node.environment().unix_ms() / 1_000;
    let stopping = stopped.clone();
    let tasks = Arc::default();
    let app = router(Gateway { node, gate, metrics, backups, tasks, stopping, since });
    let task = tokio::spawn(async move {
        let stopping = async move {
            // A sender that is gone means the same as one that says stop.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        axum::serve(listener, app).with_graceful_shutdown(stopping).await
    });
    Ok(Serving { address, stop, task })
}

fn router(gateway: Gateway) -> Router {
    let gated = Router::new()
        .merge(http::backups::routes())
        .merge(http::cubes::routes())
        .merge(http::memories::routes())
        .merge(http::search::routes())
        .merge(http::nodes::routes())
        .merge(http::vectors::routes())
        .merge(http::jobs::routes())
        .merge(http::events::routes())
        .merge(http::conversations::routes())
        .merge(openai::routes())
        .merge(memos::routes())
        .route("/metrics", get(http::health::metrics))
        .route("/openapi.json", get(openapi::serve))
        .fallback(request::no_route)
        .method_not_allowed_fallback(request::no_method)
        .layer(middleware::from_fn_with_state(gateway.clone(), request::authenticate));
    let open = Router::new()
        .route("/healthz", get(http::health::health))
        .route("/health", get(http::health::health))
        .route("/readyz", get(http::health::ready))
        .method_not_allowed_fallback(request::no_method);
    open.merge(gated)
        .layer(DefaultBodyLimit::max(REQUEST_BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(gateway.clone(), request::observe))
        .with_state(gateway)
}
