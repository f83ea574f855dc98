//! Finds the server that a command talks to, or starts one inside this process.

use anyhow::{Result, bail};

use super::{
    Client, LocalServer,
    data_dir::DataDir,
    options::{Options, ServerArgs},
};
use crate::settings::Settings;

/// A client, with the server it needs if that is our own.
pub(crate) struct Connection {
    pub(crate) client: Client,
    // Stopped when the command ends.
    _local: Option<LocalServer>,
}

impl Connection {
    fn remote(client: Client) -> Self {
        Self { client, _local: None }
    }
}

/// Connects to the server that is named, or to the one that runs on the data directory; `None`
/// where
/// there is none.
pub(crate) fn find_server(options: &Options, args: &ServerArgs) -> Result<Option<Client>> {
    let settings = options.settings()?;
    let data_dir = DataDir::new(&settings.store.data_dir);
    let found = data_dir.read_server();
    if let Some(address) = args.server() {
        check_address(address)?;
        let address = address.trim_end_matches('/');
        // The key in the data directory goes to the server of the data directory only.
        let is_ours = found.is_some_and(|found| found.address == address);
        let key = key(args, is_ours.then_some(&data_dir))?;
        return Ok(Some(Client::new(address, &key)));
    }
    match found.filter(|found| Client::is_memcube(&found.address)) {
        Some(found) => {
            let key = key(args, Some(&data_dir))?;
            Ok(Some(Client::new(&found.address, &key)))
        }
        None => Ok(None),
    }
}

/// Connects to the server that is named, else to the one that runs on the data directory, else to
/// one that is started here for the duration of the command, which has no next turn to prepare.
pub(crate) fn connect(options: &Options, args: &ServerArgs) -> Result<Connection> {
    connect_with(options, args, |settings| settings.scheduler.enabled = false)
}

/// The same, with changes to the settings of one that is started here.
pub(crate) fn connect_with(
    options: &Options,
    args: &ServerArgs,
    change: impl FnOnce(&mut Settings),
) -> Result<Connection> {
    if let Some(client) = find_server(options, args)? {
        return Ok(Connection::remote(client));
    }
    let mut settings = options.settings()?;
    if settings.cluster.enabled {
        // It would take the name of the node whose settings these are.
        bail!(
            "no server runs on `{}`, and these are the settings of a node of a cluster: start it \
             with `memcube serve`, or name any node with `--server`",
            settings.store.data_dir.display()
        );
    }
    change(&mut settings);
    let local = LocalServer::start(settings)?;
    let client = Client::new(&local.address, &local.api_key);
    Ok(Connection { client, _local: Some(local) })
}

fn check_address(address: &str) -> Result<()> {
    if !address.starts_with("http://") && !address.starts_with("https://") {
        bail!("`{address}` is no address; write it like `http://127.0.0.1:7700`");
    }
    Ok(())
}

fn key(args: &ServerArgs, data_dir: Option<&DataDir>) -> Result<String> {
    if let Some(key) = args.api_key() {
        return Ok(key.to_owned());
    }
    let in_file = match data_dir {
        Some(data_dir) => data_dir.read_key()?,
        None => None,
    };
    match in_file {
        Some(key) => Ok(key),
        None => bail!("no API key for the server; pass `--api-key KEY` or set `MEMCUBE_API_KEY`"),
    }
}
