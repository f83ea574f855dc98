//! `memcube serve`

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{
    data_dir::{DataDir, ServerFile},
    options::{Options, given},
    output,
    running::{self, Running},
};
use crate::{settings::StoreKind, telemetry};

/// Answers that are under way get this long when the server is told to stop.
const STOP_SECONDS_MAX: u64 = 20;

const EXAMPLES: &str = "\
Examples:
  memcube serve
  memcube serve --data-dir ./data --listen 127.0.0.1:0
  memcube serve --json          one line `{\"address\":...,\"api_key\":...}` when it is ready

The API key is in `api-key` in the data directory; the first start writes it. `MEMCUBE_API_KEY` lets
another one in.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    /// Address and port to answer on; port 0 takes a free one [default: 127.0.0.1:7700].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// API key to let in, from now on, in place of the one in the data directory.
    #[arg(long, env = "MEMCUBE_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
}

pub(crate) fn run(options: &Options, args: ServeArgs) -> Result<()> {
    let mut settings = options.settings()?;
    if let Some(listen) = args.listen {
        settings.http.listen = listen;
    }
    telemetry::start_logging(&settings.log).map_err(anyhow::Error::msg)?;
    let data_dir = DataDir::new(&settings.store.data_dir);
    let given_key = given(args.api_key.as_deref()).map(str::to_owned);
    let is_key_in_file = given_key.is_none();
    let runtime = running::runtime()?;
    runtime.block_on(async {
        let mut stop = Stop::new()?;
        let running = Box::pin(Running::start(settings, given_key)).await?;
        let address = running.address.clone();
        let server = ServerFile { address: address.clone(), pid: std::process::id() };
        let told = data_dir.write_server(&server);
        if told.is_ok() {
            // A server serves, whether or not somebody reads this.
            let _ = if options.json {
                output::json(&json!({ "address": address, "api_key": running.api_key }))
            } else {
                welcome(&running, &data_dir, is_key_in_file)
            };
            tracing::info!(address, "serving");
            stop.wait().await;
            tracing::info!("stopping");
        }
        data_dir.remove_server();
        end(running, &mut stop).await?;
        told
    })
}

/// Answers what is under way, then lets the cubes finish. A second signal ends it at once.
async fn end(running: Running, stop: &mut Stop) -> Result<()> {
    let Running { node, serving, .. } = running;
    let in_order = async {
        let limit = Duration::from_secs(STOP_SECONDS_MAX);
        let stopped = tokio::time::timeout(limit, serving.stop()).await;
        node.shut_down().await;
        match stopped {
            Ok(stopped) => Ok(stopped?),
            Err(_) => {
                tracing::warn!("some connections were cut off");
                Ok(())
            }
        }
    };
    tokio::select! {
        biased;
        ended = in_order => ended,
        () = stop.wait() => {
            tracing::warn!("stopped at once; what was acknowledged is on disk");
            Ok(())
        }
    }
}

/// The wish of a person or a service manager that the server ends.
struct Stop {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    #[cfg(unix)]
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(unix)]
    async fn wait(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn wait(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// Tells a person how to begin.
fn welcome(running: &Running, data_dir: &DataDir, is_key_in_file: bool) -> Result<()> {
    let address = &running.address;
    let model = running.node.cubes().embedder().map(|embedder| embedder.model().to_string());
    let model = model.unwrap_or_else(|| "none: recall finds words, not meanings".to_owned());
    let language_model = running.node.cubes().inference();
    let language_model = language_model.map_or_else(
        || "none: `--language-model local` runs one, see `make language-model`".to_owned(),
        |inference| {
            let model = &inference.facts().fingerprint.model;
            let place = match (inference.engine(), &running.node.settings().inference.url) {
                (None, Some(url)) => format!(" at {url}"),
                (Some(_) | None, _) => String::new(),
            };
            format!("{model}{place}")
        },
    );
    let memories = match running.node.settings().store.kind {
        StoreKind::Embedded => data_dir.path().display().to_string(),
        StoreKind::FoundationDb => "in the FoundationDB cluster".to_owned(),
        StoreKind::InMemory => "in RAM only: they are gone when it stops".to_owned(),
    };
    let (key, export) = if is_key_in_file {
        let key = &running.api_key;
        (
            format!("{key}  (in {})", data_dir.key_path().display()),
            format!("export MEMCUBE_API_KEY={key}"),
        )
    } else {
        let given = "the one in `MEMCUBE_API_KEY` or `--api-key`";
        (given.to_owned(), "export MEMCUBE_API_KEY=...  # the key that you chose".to_owned())
    };
    let curl = |path: &str, body: &str| {
        format!(
            "  curl -sS {address}/v1/cubes{path} -H \"Authorization: Bearer $MEMCUBE_API_KEY\" \
             -H 'Content-Type: application/json' -d '{body}'"
        )
    };
    output::line(format_args!(
        "memcube {} answers on {address}\n\n  memories  {memories}\n  embedder  {model}\n  \
         answers   {language_model}\n  API key   {key}\n\nTo make a cube, remember something and \
         find it, paste this in another terminal:\n\n  {export}\n{}\n{}\n{}\n\nCtrl-C stops it.",
        env!("CARGO_PKG_VERSION"),
        curl("", r#"{"id":"me"}"#),
        curl("/me/memories", r#"{"text":"Ann moved to Lisbon in May 2024"}"#),
        curl("/me/search", r#"{"query":"Where does Ann live?"}"#),
    ))
}
