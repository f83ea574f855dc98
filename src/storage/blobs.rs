//! Where blobs lie, as the settings say: in a directory, in a bucket, or nowhere.

use std::{path::Path as FilePath, sync::Arc};

use memcube_actors::{Error, Result};
use object_store::{ObjectStore, local::LocalFileSystem, memory::InMemory};

use crate::settings::{Settings, StoreKind};

/// What `blobs.url` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Blobs are switched off.
    Nowhere,
    /// The RAM of this process; for tests.
    Memory,
    /// A directory.
    Directory(std::path::PathBuf),
    /// A bucket or container: the whole URL, and the folder inside.
    Bucket { provider: Provider, url: String, folder: String },
}

/// Who runs a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provider {
    /// Amazon S3, and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Place {
    /// Reads a URL.
    pub(crate) fn parse(url: &str) -> std::result::Result<Self, String> {
        let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
        let provider = match scheme {
            "none" if rest.is_empty() => return Ok(Self::Nowhere),
            "memory" => return Ok(Self::Memory),
            "file" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if !path.starts_with('/') {
                    return Err(format!(
                        "`{url}` must name an absolute path, as `file:///var/blobs`"
                    ));
                }
                return Ok(Self::Directory(path.into()));
            }
            "s3" => Provider::S3,
            "gs" => Provider::Google,
            "az" => Provider::Azure,
            _ => {
                return Err(format!(
                    "`{url}` begins with none of `file:`, `s3:`, `gs:`, `az:`, `memory:`, and is \
                     not `none`"
                ));
            }
        };
        let (bucket, folder) = rest
            .strip_prefix("//")
            .map(|rest| rest.split_once('/').unwrap_or((rest, "")))
            .ok_or_else(|| format!("`{url}` must look like `{scheme}://bucket/folder`"))?;
        if bucket.is_empty() {
            return Err(format!("`{url}` names no bucket, as in `{scheme}://bucket/folder`"));
        }
        let folder = folder.trim_matches('/').to_owned();
        Ok(Self::Bucket { provider, url: url.to_owned(), folder })
    }

    /// What the settings say, or the default: beside the state store. Where nodes share a store,
    /// the disk of one of them is no place for blobs.
    pub(crate) fn of(settings: &Settings) -> Result<Self> {
        match (&settings.blobs.url, settings.store.kind) {
            (Some(url), _) => {
                Self::parse(url).map_err(|error| Error::invalid(format!("`blobs.url`: {error}")))
            }
            (None, StoreKind::InMemory) => Ok(Self::Memory),
            (None, StoreKind::FoundationDb) => Ok(Self::Nowhere),
            (None, StoreKind::Embedded) => {
                Ok(Self::Directory(settings.store.data_dir.join("blobs")))
            }
        }
    }
}

/// Opens the object store that the settings name; `None` if they switch blobs off. A bucket is not
/// asked yet: a server starts without it, and reads fall back.
///
/// # Errors
/// `Invalid` when a setting makes no sense, `Unavailable` when the directory cannot be used or this
/// memcube was built without the provider.
pub fn open(settings: &Settings) -> Result<Option<Arc<dyn ObjectStore>>> {
    match Place::of(settings)? {
        Place::Nowhere => Ok(None),
        Place::Memory => Ok(Some(Arc::new(InMemory::new()))),
        Place::Directory(path) => open_directory(&path).map(Some),
        Place::Bucket { provider, url, folder } => {
            bucket::open(provider, &url, folder, &settings.blobs).map(Some)
        }
    }
}

/// Whether blobs lie in a bucket, away from this machine.
///
/// # Errors
/// `Invalid` when `blobs.url` makes no sense.
pub(crate) fn are_in_bucket(settings: &Settings) -> Result<bool> {
    Ok(matches!(Place::of(settings)?, Place::Bucket { .. }))
}

fn unusable(path: &FilePath, error: &dyn std::fmt::Display) -> Error {
    Error::unavailable(format!(
        "cannot use the directory `{}` for blobs: {error}; make it writable, or set `blobs.url` to \
         another place",
        path.display()
    ))
}

/// Opens a directory for blobs; makes it if it is not there.
///
/// # Errors
/// `Unavailable` when it cannot be used.
pub(crate) fn open_directory(path: &FilePath) -> Result<Arc<dyn ObjectStore>> {
    let failed = |error: &dyn std::fmt::Display| unusable(path, error);
    std::fs::create_dir_all(path).map_err(|error| failed(&error))?;
    let files = LocalFileSystem::new_with_prefix(path).map_err(|error| failed(&error))?;
    // A blob is on the disk before its row says that it can be referred to.
    Ok(Arc::new(files.with_fsync(true)))
}

/// Removes from the default directory what a crash left half written. Only for whoever holds the
/// lock of the data directory: nobody else writes there.
///
/// # Errors
/// `Unavailable` when the directory cannot be used.
pub fn clean_up(settings: &Settings) -> Result<()> {
    match Place::of(settings)? {
        Place::Directory(path) if settings.blobs.url.is_none() && path.exists() => {
            remove_unfinished(&path).map_err(|error| unusable(&path, &error))
        }
        Place::Directory(_) | Place::Nowhere | Place::Memory | Place::Bucket { .. } => Ok(()),
    }
}

/// Removes files that were not published yet: those whose name ends with `#` and a number.
fn remove_unfinished(folder: &FilePath) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_unfinished(&entry.path())?;
            continue;
        }
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('#'));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if number.is_some_and(|(_, number)| !number.is_empty() && is_number(number)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(feature = "s3")]
mod bucket {
    use std::{sync::Arc, time::Duration};

    use memcube_actors::{Error, Result};
    use object_store::{
        ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder,
        azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, prefix::PrefixStore,
    };

    use super::Provider;
    use crate::settings::BlobSettings;

    /// How long one request may take: as long as a part of a blob on a slow line.
    const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
    /// How long a request is tried again, and how often; then whoever asked falls back.
    const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
    const RETRIES_MAX: usize = 3;

    pub(super) fn open(
        provider: Provider,
        url: &str,
        folder: String,
        settings: &BlobSettings,
    ) -> Result<Arc<dyn ObjectStore>> {
        let retry = RetryConfig {
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIMEOUT,
            ..RetryConfig::default()
        };
        let client = ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(settings.allow_http);
        match provider {
            Provider::S3 => {
                let mut builder = AmazonS3Builder::from_env().with_url(url);
                builder = builder.with_retry(retry).with_client_options(client);
                if let Some(endpoint) = &settings.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                if let Some(region) = &settings.region {
                    builder = builder.with_region(region);
                }
                within(folder, builder.build())
            }
            Provider::Google => {
                let builder = GoogleCloudStorageBuilder::from_env().with_url(url);
                within(folder, builder.with_retry(retry).with_client_options(client).build())
            }
            Provider::Azure => {
                let mut builder = MicrosoftAzureBuilder::from_env().with_url(url);
                builder = builder.with_retry(retry).with_client_options(client);
                if let Some(endpoint) = &settings.endpoint {
                    builder = builder.with_endpoint(endpoint.clone());
                }
                within(folder, builder.build())
            }
        }
    }

    fn within<T: ObjectStore>(
        folder: String,
        built: object_store::Result<T>,
    ) -> Result<Arc<dyn ObjectStore>> {
        let built = built.map_err(|error| {
            Error::invalid(format!(
                "the bucket of `blobs.url` cannot be opened: {error}; check `[blobs]` and the \
                 credentials in the environment"
            ))
        })?;
        Ok(if folder.is_empty() {
            Arc::new(built)
        } else {
            Arc::new(PrefixStore::new(built, folder))
        })
    }
}

#[cfg(not(feature = "s3"))]
mod bucket {
    use std::sync::Arc;

    use memcube_actors::{Error, Result};
    use object_store::ObjectStore;

    use super::Provider;
    use crate::settings::BlobSettings;

    pub(super) fn open(
        _provider: Provider,
        url: &str,
        _folder: String,
        _settings: &BlobSettings,
    ) -> Result<Arc<dyn ObjectStore>> {
        Err(Error::unavailable(format!(
            "this memcube was built without buckets, so that it cannot use `blobs.url` = `{url}`; \
             build it with `--features s3`, or name a directory with `file:`"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_places() {
        let bucket = |provider, url: &str, folder: &str| {
            Ok(Place::Bucket { provider, url: url.to_owned(), folder: folder.to_owned() })
        };
        for (url, place) in [
            ("none", Ok(Place::Nowhere)),
            ("memory:", Ok(Place::Memory)),
            ("file:///var/blobs", Ok(Place::Directory("/var/blobs".into()))),
            ("file:/var/blobs", Ok(Place::Directory("/var/blobs".into()))),
            ("s3://b/a/c/", bucket(Provider::S3, "s3://b/a/c/", "a/c")),
            ("gs://b", bucket(Provider::Google, "gs://b", "")),
            ("az://b/x", bucket(Provider::Azure, "az://b/x", "x")),
            ("file:blobs", Err("absolute")),
            ("s3:b", Err("bucket/folder")),
            ("s3:///x", Err("no bucket")),
            ("ftp://b", Err("none of")),
        ] {
            match (Place::parse(url), place) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{url}"),
                (Err(found), Err(word)) => assert!(found.contains(word), "{url}: {found}"),
                (found, expected) => panic!("{url}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_directory_is_made_and_unfinished_files_go() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut settings = Settings::default();
        settings.store.data_dir = dir.path().to_owned();
        open(&settings).expect("opened").expect("blobs are on");
        let folder = dir.path().join("blobs/blobs/acme/ab");
        std::fs::create_dir_all(&folder).expect("made");
        for name in ["abcd", "abcd#1", "abcd#x"] {
            std::fs::write(folder.join(name), b"x").expect("written");
        }
        open(&settings).expect("opened");
        assert!(folder.join("abcd#1").exists(), "a server may be writing it");
        clean_up(&settings).expect("cleaned up");
        assert!(folder.join("abcd").exists() && folder.join("abcd#x").exists());
        assert!(!folder.join("abcd#1").exists());

        settings.blobs.url = Some(format!("file://{}/abcd/x", folder.display()));
        let error = open(&settings).expect_err("a file is no directory");
        assert!(error.message().contains("`blobs.url`"), "{error}");
        settings.blobs.url = Some("none".to_owned());
        assert!(open(&settings).expect("switched off").is_none());
    }

    #[cfg(not(feature = "s3"))]
    #[test]
    fn without_the_feature_it_says_so() {
        let mut settings = Settings::default();
        settings.blobs.url = Some("s3://bucket".to_owned());
        let error = open(&settings).expect_err("not built in");
        assert!(error.message().contains("--features s3"), "{error}");
    }
}
