//! Settings: one structure, from defaults, a file, the environment and the command line, in this
//! order.

mod cluster;
mod inference;
mod scheduler;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Value},
};
use serde::{Deserialize, Serialize};

pub(crate) use self::cluster::split_address;
pub use self::{
    cluster::{ClusterSettings, Secret},
    inference::{InferenceKind, InferenceSettings},
    scheduler::SchedulerSettings,
};
use crate::storage::blobs::Place;

/// Environment variables start with this; `MEMCUBE__HTTP__LISTEN` sets `listen` in `[http]`.
const ENV_PREFIX: &str = "MEMCUBE__";
/// It stands in every key of FoundationDB.
const FDB_PREFIX_BYTES_MAX: usize = 64;
/// A reader that was cut off has this long to come back, at the least.
const FEED_KEPT_MS_MIN: u64 = 1_000;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The HTTP gateway.
    pub http: HttpSettings,
    /// Where state is durable.
    pub store: StoreSettings,
    /// Where large bytes lie.
    pub blobs: BlobSettings,
    /// Cubes in RAM.
    pub cube: CubeSettings,
    /// The model that embeds.
    pub embedder: EmbedderSettings,
    /// The model that answers.
    pub inference: InferenceSettings,
    /// What is prepared for next turns.
    pub scheduler: SchedulerSettings,
    /// The other machines.
    pub cluster: ClusterSettings,
    /// Searches over many cubes.
    pub vectors: VectorSettings,
    /// The event feed.
    pub feed: FeedSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HttpSettings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7700)) }
    }
}

/// The kinds of state store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// One directory on this machine.
    #[default]
    Embedded,
    /// Nothing survives the process; for tests.
    InMemory,
    /// A FoundationDB cluster, which any number of nodes share.
    #[serde(rename = "foundationdb")]
    FoundationDb,
}

impl StoreKind {
    /// The name in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::InMemory => "in-memory",
            Self::FoundationDb => "foundationdb",
        }
    }

    /// Whether several processes may use such a store at the same time.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        match self {
            Self::Embedded | Self::InMemory => false,
            Self::FoundationDb => true,
        }
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreSettings {
    /// `embedded`, `in-memory` or `foundationdb`.
    pub kind: StoreKind,
    /// The directory that holds everything that this node keeps by itself.
    pub data_dir: PathBuf,
    /// The cluster file of FoundationDB; without one, its client takes the default one,
    /// `/etc/foundationdb/fdb.cluster`.
    pub fdb_cluster_file: Option<PathBuf>,
    /// FoundationDB's client library; without one, `libfdb_c.so` is looked for where the system
    /// looks for libraries.
    pub fdb_client_library: Option<PathBuf>,
    /// The name under which everything lies in FoundationDB, so that installations share a cluster.
    pub fdb_prefix: String,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            kind: StoreKind::default(),
            data_dir: default_data_dir(),
            fdb_cluster_file: None,
            fdb_client_library: None,
            fdb_prefix: "memcube".to_owned(),
        }
    }
}

/// `[blobs]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlobSettings {
    /// `file:///folder`, `s3://bucket/folder`, `gs://bucket/folder`, `az://container/folder`,
    /// `memory:` or `none`. By default it is the directory `blobs` in the data directory, and with
    /// FoundationDB `none`, because all nodes have to reach it. Credentials
    /// come from the usual variables, such as `AWS_ACCESS_KEY_ID`.
    pub url: Option<String>,
    /// The address of a server that speaks the protocol of S3 or Azure, such as
    /// `https://minio.example:9000`.
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    pub region: Option<String>,
    /// Whether `http://` may be used, where nothing is encrypted on the way.
    pub allow_http: bool,
    /// Milliseconds that a blob is kept which nothing refers to.
    pub grace_ms: u64,
    /// Items from which on a cube gets snapshots, so that it is read from one object.
    pub snapshot_items_min: usize,
}

impl Default for BlobSettings {
    fn default() -> Self {
        Self {
            url: None,
            endpoint: None,
            region: None,
            allow_http: false,
            grace_ms: memcube_schemas::limits::BLOB_GRACE_MS,
            snapshot_items_min: memcube_schemas::limits::SNAPSHOT_ITEMS_MIN,
        }
    }
}

/// `[cube]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CubeSettings {
    /// Milliseconds after which a cube that is not used leaves RAM.
    pub passivate_after_ms: u64,
    /// Cubes kept in RAM at the most.
    pub hot_cubes_max: usize,
}

impl Default for CubeSettings {
    fn default() -> Self {
        Self { passivate_after_ms: 600_000, hot_cubes_max: memcube_schemas::limits::HOT_CUBES_MAX }
    }
}

/// `[feed]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FeedSettings {
    /// Milliseconds for which events are kept for readers that come back; a week if left out.
    pub keep_ms: u64,
}

impl Default for FeedSettings {
    fn default() -> Self {
        Self { keep_ms: memcube_schemas::limits::FEED_KEPT_MS }
    }
}

/// The kinds of embedder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum EmbedderKind {
    /// all-MiniLM-L6-v2, on this machine's processors.
    #[default]
    Minilm,
    /// No model: recall finds words, not meanings.
    None,
}

/// `[embedder]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EmbedderSettings {
    /// `minilm` or `none`.
    pub kind: EmbedderKind,
    /// The directory with `model.safetensors`, `tokenizer.json` and `config.json`.
    pub model_dir: PathBuf,
    /// Processors that a forward pass uses; 0 takes all.
    pub threads: usize,
}

impl Default for EmbedderSettings {
    fn default() -> Self {
        Self { kind: EmbedderKind::default(), model_dir: default_model_dir(), threads: 0 }
    }
}

/// The kinds of vector tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum VectorsKind {
    /// None: a search over several cubes asks each of them, up to 64.
    #[default]
    None,
    /// Tables in the RAM of the process, built anew at every start; about 2 KB a memory.
    InRam,
    /// LanceDB tables in a directory. Needs the feature `lance`.
    Lance,
}

impl VectorsKind {
    /// The name in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::InRam => "in-ram",
            Self::Lance => "lance",
        }
    }
}

/// `[vectors]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct VectorSettings {
    /// `none`, `in-ram` or `lance`.
    pub kind: VectorsKind,
    /// Where the tables of `lance` are: a directory, of this node alone; empty for `vectors` in
    /// the data directory.
    pub url: String,
    /// Milliseconds for which changes are gathered before they are applied together.
    pub apply_after_ms: u64,
    /// Milliseconds after which a table that changed is compacted and its indexes are brought up
    /// to date.
    pub optimize_after_ms: u64,
    /// Rows of one table from which on it gets an approximate index for searches over all cubes.
    pub approximate_rows_min: usize,
    /// Memories from which on a cube that is not in RAM is searched in its table, and stays out of
    /// RAM; 0 for never.
    pub cold_cube_items_min: u64,
}

impl Default for VectorSettings {
    fn default() -> Self {
        Self {
            kind: VectorsKind::default(),
            url: String::new(),
            apply_after_ms: 1_000,
            optimize_after_ms: 600_000,
            approximate_rows_min: 100_000,
            cold_cube_items_min: 50_000,
        }
    }
}

/// The forms of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogSettings {
    /// What is logged, such as `info` or `memcube=debug,warn`.
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info,fjall=warn,lsm_tree=warn".to_owned(), format: LogFormat::default() }
    }
}

/// Everything that is wrong with the settings, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// One sentence a mistake.
    pub mistakes: Vec<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the settings have {} mistake(s):", self.mistakes.len())?;
        for mistake in &self.mistakes {
            writeln!(f, "  - {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

impl Settings {
    /// Reads the file, if one is named, and the environment.
    ///
    /// # Errors
    /// Every mistake in file and environment, not only the first.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let mut sources = Figment::new();
        if let Some(file) = file {
            if !file.is_file() {
                let mistake = format!("there is no settings file `{}`", file.display());
                return Err(SettingsError { mistakes: vec![mistake] });
            }
            sources = sources.merge(Toml::file_exact(file));
        }
        sources = sources.merge(
            Env::prefixed(ENV_PREFIX)
                .split("__")
                .map(|key| key.as_str().to_lowercase().replace('_', "-").into()),
        );
        let given: Dict = match sources.extract() {
            Ok(given) => given,
            Err(error) => {
                return Err(SettingsError {
                    mistakes: error.into_iter().map(|e| e.to_string()).collect(),
                });
            }
        };
        let mut mistakes = Vec::new();
        for (section, value) in &given {
            check_section(&sources, section, value, &mut mistakes);
        }
        if !mistakes.is_empty() {
            return Err(SettingsError { mistakes });
        }
        Figment::from(Serialized::defaults(Self::default()))
            .merge(sources)
            .extract()
            .map_err(|error| SettingsError { mistakes: vec![error.to_string()] })
            .and_then(Self::validate)
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// Every value that makes no sense.
    pub fn validate(self) -> Result<Self, SettingsError> {
        let mut mistakes = self.mistakes_in_values();
        mistakes.extend(self.cluster.mistakes_together(Some(self.store.kind), self.http.listen));
        mistakes.extend(self.inference.mistakes_together());
        if mistakes.is_empty() { Ok(self) } else { Err(SettingsError { mistakes }) }
    }

    /// What is wrong with single values, whatever the others are.
    fn mistakes_in_values(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.cube.hot_cubes_max == 0 {
            mistakes.push("`cube.hot-cubes-max` must be at least 1".to_owned());
        }
        if self.cube.passivate_after_ms == 0 {
            mistakes.push("`cube.passivate-after-ms` must be at least 1".to_owned());
        }
        if let Some(Err(mistake)) = self.blobs.url.as_deref().map(Place::parse) {
            mistakes.push(format!("`blobs.url`: {mistake}"));
        }
        if self.blobs.grace_ms == 0 {
            mistakes.push("`blobs.grace-ms` must be at least 1".to_owned());
        }
        if self.blobs.snapshot_items_min == 0 {
            mistakes.push("`blobs.snapshot-items-min` must be at least 1".to_owned());
        }
        if self.store.fdb_prefix.is_empty() || self.store.fdb_prefix.len() > FDB_PREFIX_BYTES_MAX {
            let range = format!("between 1 and {FDB_PREFIX_BYTES_MAX}");
            mistakes.push(format!("`store.fdb-prefix` must have {range} bytes"));
        }
        if self.feed.keep_ms < FEED_KEPT_MS_MIN {
            mistakes.push(format!(
                "`feed.keep-ms` must be at least {FEED_KEPT_MS_MIN}: readers that lose their \
                 connection need time to come back"
            ));
        }
        if self.embedder.threads > 1_024 {
            mistakes.push("`embedder.threads` must be at most 1024".to_owned());
        }
        if self.vectors.apply_after_ms == 0 || self.vectors.optimize_after_ms == 0 {
            mistakes.push(
                "`vectors.apply-after-ms` and `vectors.optimize-after-ms` must be at least 1"
                    .to_owned(),
            );
        }
        if self.vectors.url.contains("://") {
            mistakes.push(
                "`vectors.url` must be a directory: tables in object stores are not supported"
                    .to_owned(),
            );
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            mistakes.push(format!("`log.filter` cannot be read: {error}"));
        }
        mistakes.extend(self.cluster.mistakes_in_values());
        mistakes.extend(self.inference.mistakes_in_values());
        mistakes.extend(self.scheduler.mistakes_in_values());
        mistakes
    }
}

/// Tries every value by itself, so that each mistake is told.
fn check_section(sources: &Figment, section: &str, value: &Value, mistakes: &mut Vec<String>) {
    let Some(keys) = value.as_dict() else {
        mistakes.push(format!("`{section}` must be a section with keys in it"));
        return;
    };
    for (key, value) in keys {
        let one = Figment::from(Serialized::default(&format!("{section}.{key}"), value));
        if let Err(error) = one.extract::<Settings>() {
            let origin = sources
                .find_metadata(&format!("{section}.{key}"))
                .map_or_else(String::new, |metadata| format!(" (from {})", metadata.name));
            for error in error {
                mistakes.push(format!("`{section}.{key}`{origin}: {}", error.kind));
            }
        } else if let Ok(settings) = one.extract::<Settings>() {
            mistakes.extend(settings.mistakes_in_values());
        }
    }
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn default_data_dir() -> PathBuf {
    std::env::var_os("MEMCUBE_DATA_DIR").map_or_else(|| home().join(".memcube"), PathBuf::from)
}

fn cache_dir() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from)
}

fn default_model_dir() -> PathBuf {
    std::env::var_os("MEMCUBE_MODEL_DIR")
        .map_or_else(|| cache_dir().join("memcube/models/minilm-l6-v2"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("it can be written");
        Settings::load(Some(file.path()))
    }

    #[test]
    fn a_file_overrides_defaults() {
        let settings = load("[http]\nlisten = \"127.0.0.1:0\"\n[embedder]\nkind = \"none\"\n");
        let settings = settings.expect("it is valid");
        assert_eq!(settings.http.listen.port(), 0);
        assert_eq!(settings.embedder.kind, EmbedderKind::None);
        assert_eq!(settings.cube, CubeSettings::default());
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let error = load(
            "[http]\nlisten = 7\nport = 1\n[store]\nkind = \"cloud\"\n[cube]\nhot-cubes-max = -1\n",
        )
        .expect_err("it has four mistakes");
        assert_eq!(error.mistakes.len(), 4, "{error}");
        for part in ["http.listen", "http.port", "store.kind", "cube.hot-cubes-max"] {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_told_once_all_values_are_good() {
        let error = load("[cluster]\nenabled = true\n").expect_err("three mistakes");
        assert_eq!(error.mistakes.len(), 3, "{error}");
        for part in ["cluster.node", "cluster.secret", "store.kind"] {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        let text = "[cluster]\nenabled = true\nnode = \"a\"\nsecret = \"0123456789abcdef\"\n";
        let settings = load(&format!("{text}[store]\nkind = \"foundationdb\"\n"));
        assert!(settings.expect("it is valid").cluster.enabled);
        let error = load("[cluster]\nsecret = \"short\"\nnode = \"\"\n").expect_err("two");
        assert_eq!(error.mistakes.len(), 2, "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let error = load("[cube]\nhot-cubes-max = 0\npassivate-after-ms = 0\n").expect_err("two");
        assert_eq!(error.mistakes.len(), 2, "{error}");
        let error = load("[blobs]\nurl = \"ftp://b\"\ngrace-ms = 0\nsnapshot-items-min = 0\n");
        let error = error.expect_err("three");
        assert_eq!(error.mistakes.len(), 3, "{error}");
    }
}
