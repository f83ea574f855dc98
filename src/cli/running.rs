//! A node with its gateway: the one of `serve`, and the one inside a command that finds no server.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use super::data_dir::DataDir;
use crate::{
    environment,
    gateway::{self, Serving, TenantGate},
    node::Node,
    settings::{LogSettings, Settings},
    telemetry,
};

/// The name under which changes made with the key of the data directory are recorded.
const FILE_KEY_NAME: &str = "api-key file";
const GIVEN_KEY_NAME: &str = "MEMCUBE_API_KEY";

/// A node that answers HTTP.
pub(crate) struct Running {
    pub(crate) node: Arc<Node>,
    pub(crate) serving: Serving,
    /// Where clients on this machine reach it.
    pub(crate) address: String,
    pub(crate) api_key: String,
}

impl Running {
    /// Starts a node, lets the key in, and answers.
    pub(crate) async fn start(settings: Settings, given_key: Option<String>) -> Result<Self> {
        let data_dir = DataDir::new(&settings.store.data_dir);
        data_dir.prepare()?;
        let listen = settings.http.listen;
        // Before the node, which counts from its first moment on.
        telemetry::start_metrics().context("metrics cannot be recorded")?;
        let environment = environment::system();
        let builder = Node::builder().with_settings(settings).with_environment(environment);
        let node = Arc::new(Box::pin(builder.start()).await?);
        match Self::answer(&node, &data_dir, listen, given_key).await {
            Ok((serving, api_key)) => {
                let address = local_address(serving.address);
                Ok(Self { node, serving, address, api_key })
            }
            Err(error) => {
                node.shut_down().await;
                Err(error)
            }
        }
    }

    async fn answer(
        node: &Arc<Node>,
        data_dir: &DataDir,
        listen: SocketAddr,
        given_key: Option<String>,
    ) -> Result<(Serving, String)> {
        let gate = TenantGate::open(node.store()).await?;
        let (key, name) = match given_key {
            Some(key) => (key, GIVEN_KEY_NAME),
            None => (data_dir.key_or_new(node.environment())?, FILE_KEY_NAME),
        };
        gate.admit(node.store(), node.environment(), &key, name).await?;
        let serving = gateway::serve(Arc::clone(node), Arc::new(gate), listen).await?;
        Ok((serving, key))
    }
}

/// The address that a client on this machine uses for a listener.
fn local_address(listener: SocketAddr) -> String {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listener.port()))
}

/// A server inside this process, for as long as a command runs. Dropping it stops it in order.
pub(crate) struct LocalServer {
    runtime: Runtime,
    running: Option<Running>,
    /// Where it answers.
    pub(crate) address: String,
    /// The key it lets in.
    pub(crate) api_key: String,
}

impl LocalServer {
    /// Starts it on a free port of this machine.
    pub(crate) fn start(mut settings: Settings) -> Result<Self> {
        settings.http.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        start_quiet_logging(&settings.log)?;
        let runtime = runtime()?;
        let running = runtime.block_on(Running::start(settings, None))?;
        let (address, api_key) = (running.address.clone(), running.api_key.clone());
        Ok(Self { runtime, running: Some(running), address, api_key })
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        let Some(Running { node, serving, .. }) = self.running.take() else { return };
        self.runtime.block_on(async {
            if let Err(error) = serving.stop().await {
                tracing::warn!(%error, "the gateway did not stop in order");
            }
            node.shut_down().await;
        });
    }
}

/// The runtime of a process that runs a node.
pub(crate) fn runtime() -> Result<Runtime> {
    Runtime::new().context("cannot start threads")
}

/// Logs what a person should know about; `info` is for servers. A filter of one's own stays.
pub(crate) fn start_quiet_logging(settings: &LogSettings) -> Result<()> {
    let mut settings = settings.clone();
    if settings == LogSettings::default() {
        "warn".clone_into(&mut settings.filter);
    }
    telemetry::start_logging(&settings).map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_an_address_they_can_reach() {
        for (listener, address) in [
            ("127.0.0.1:7", "http://127.0.0.1:7"),
            ("0.0.0.0:7", "http://127.0.0.1:7"),
            ("[::]:7", "http://[::1]:7"),
            ("10.0.0.2:7", "http://10.0.0.2:7"),
        ] {
            assert_eq!(local_address(listener.parse().expect("it is valid")), address);
        }
    }
}
