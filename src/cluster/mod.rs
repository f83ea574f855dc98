//! How nodes reach each other over a network: frames in HTTP/2 requests, on a listener of their
//! own.
//!
//! Invariant: a frame reaches the actors only from somebody who knows the installation's secret
//! and, where TLS is on, holds a certificate of its authority.

mod listener;
mod roads;
mod secret;
mod tls;
mod transport;

use memcube_actors::{
    Error, Result,
    cluster::{ClusterParts, Transport},
};
use memcube_schemas::NodeId;

pub use self::transport::HttpTransport;
use crate::settings::{Settings, StoreKind};

/// Where frames are sent.
const FRAMES_PATH: &str = "/v1/frames";
/// The node that sends, percent-encoded.
const FROM: &str = "memcube-from";
/// Where it is reached.
const ADDRESS: &str = "memcube-address";
/// The node that is meant, percent-encoded.
const TO: &str = "memcube-to";

/// What the settings say of the cluster: this node's name, its transport and its rhythm, or nothing
/// if it is alone. `store` is the kind that the settings name, unless the node was given one.
///
/// # Errors
/// `Invalid` with every mistake in `[cluster]`, and when a file that it names is of no use;
/// `Unavailable` when the address is taken.
pub(crate) async fn open(
    settings: &Settings,
    store: Option<StoreKind>,
) -> Result<Option<(NodeId, ClusterParts)>> {
    let cluster = &settings.cluster;
    if !cluster.enabled {
        return Ok(None);
    }
    let mistakes = cluster.mistakes_together(store, settings.http.listen);
    let Some(node) = cluster.node.clone().filter(|_| mistakes.is_empty()) else {
        return Err(Error::invalid(mistakes.join("; ")));
    };
    let transport = HttpTransport::bind(node.clone(), cluster).await?;
    tracing::info!(
        %node,
        listen = %transport.local_address(),
        advertise = transport.address(),
        tls = cluster.has_tls(),
        "one of several nodes"
    );
    Ok(Some((node, ClusterParts { transport, settings: cluster.rhythm() })))
}
