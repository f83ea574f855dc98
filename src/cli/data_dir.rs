//! What the command line keeps in the data directory beside the state: the API key, and where the
//! server is that runs on it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use memcube_actors::environment::Environment;
use serde::{Deserialize, Serialize};

use crate::gateway;

/// Where a running server answers. Written by `serve`, removed when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerFile {
    pub(crate) address: String,
    pub(crate) pid: u32,
}

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    dir: PathBuf,
}

impl DataDir {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn key_path(&self) -> PathBuf {
        self.dir.join("api-key")
    }

    fn server_path(&self) -> PathBuf {
        self.dir.join("server.json")
    }

    /// Makes the directory, for its owner only: it holds memories and a key.
    pub(crate) fn prepare(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.dir).with_context(|| {
            let dir = self.dir.display();
            format!("cannot make the data directory `{dir}`; choose another with `--data-dir`")
        })
    }

    /// The key in the directory, if there is one.
    pub(crate) fn read_key(&self) -> Result<Option<String>> {
        let path = self.key_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot read the API key in `{}`; pass `--api-key`", path.display())
                });
            }
        };
        let key = text.trim();
        if key.is_empty() {
            bail!("`{}` is empty; delete it, and the next start writes a key", path.display());
        }
        Ok(Some(key.to_owned()))
    }

    /// The key in the directory; a fresh one at the first start.
    pub(crate) fn key_or_new(&self, environment: &Environment) -> Result<String> {
        if let Some(key) = self.read_key()? {
            return Ok(key);
        }
        let key = gateway::new_key(environment);
        let path = self.key_path();
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options
            .open(&path)
            .and_then(|mut file| writeln!(file, "{key}").and_then(|()| file.sync_all()));
        written.with_context(|| format!("cannot write the API key to `{}`", path.display()))?;
        Ok(key)
    }

    /// What the running server wrote, or one that was killed.
    pub(crate) fn read_server(&self) -> Option<ServerFile> {
        serde_json::from_slice(&fs::read(self.server_path()).ok()?).ok()
    }

    /// Tells other commands where the server is.
    pub(crate) fn write_server(&self, server: &ServerFile) -> Result<()> {
        let path = self.server_path();
        let fresh = path.with_extension("json.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec(server)?)?;
            // Readers see all of it or nothing.
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Takes back what this process wrote.
    pub(crate) fn remove_server(&self) {
        if self.read_server().is_some_and(|server| server.pid == std::process::id()) {
            // A file that stays is recognised as stale: nobody answers there.
            let _ = fs::remove_file(self.server_path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment;

    #[test]
    fn the_key_is_written_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data_dir = DataDir::new(dir.path().join("deep/data"));
        data_dir.prepare().expect("it can be made");
        assert_eq!(data_dir.read_key().expect("there is none"), None);
        let key = data_dir.key_or_new(&environment::system()).expect("it can be written");
        assert!(key.starts_with("mck_"), "{key}");
        assert_eq!(data_dir.key_or_new(&environment::system()).expect("it is there"), key);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode();
            assert_eq!(mode(&data_dir.key_path()) & 0o777, 0o600);
            assert_eq!(mode(data_dir.path()) & 0o777, 0o700);
        }
    }

    #[test]
    fn a_server_file_is_removed_by_its_own_process_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data_dir = DataDir::new(dir.path());
        assert_eq!(data_dir.read_server(), None);
        let mut server = ServerFile { address: "http://127.0.0.1:1".to_owned(), pid: 0 };
        data_dir.write_server(&server).expect("it can be written");
        data_dir.remove_server();
        assert_eq!(data_dir.read_server(), Some(server.clone()));
        server.pid = std::process::id();
        data_dir.write_server(&server).expect("it can be written");
        data_dir.remove_server();
        assert_eq!(data_dir.read_server(), None);
    }
}
