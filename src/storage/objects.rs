//! Opens object stores by their addresses.

use std::{path::Path as FilePath, sync::Arc};

use memcube_actors::{Error, Result};
use object_store::{ObjectStore, local::LocalFileSystem, parse_url_opts, path::Path};

/// Beginnings of the environment variables that say how to reach an object store.
const OPTION_PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Opens the object store that an address names, and the place in it: a directory, or an address
/// such as `s3://bucket/folder`. Options are those of `object_store`, such as `aws_region`.
///
/// # Errors
/// `Invalid` when the address is none, names a store that does not outlive this process, or one
/// that this memcube was built without.
pub fn open(
    url: &str,
    options: impl IntoIterator<Item = (String, String)>,
) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let refuse = |why: &dyn std::fmt::Display| {
        Error::invalid(format!(
            "`{url}` cannot be used: {why}; give a directory, or an address such as \
             `s3://bucket/folder` or `gs://bucket/folder`"
        ))
    };
    let directory = match url.split_once("://") {
        None => Some(url),
        Some(("file", path)) => Some(path),
        Some(_) => None,
    };
    if let Some(directory) = directory {
        if directory.trim().is_empty() {
            return Err(refuse(&"it names no directory"));
        }
        return open_directory(FilePath::new(directory)).map_err(|error| refuse(&error));
    }
    let parsed =
        url.parse().map_err(|error| refuse(&format_args!("it is no address ({error})")))?;
    if url.starts_with("memory:") {
        return Err(refuse(&"what is put there is gone with this process"));
    }
    let (objects, prefix) = parse_url_opts(&parsed, options).map_err(|error| {
        let is_generic = matches!(error, object_store::Error::Generic { .. });
        if is_generic && !cfg!(feature = "s3") && is_remote(url) {
            return refuse(&"this memcube was built without the feature `s3`");
        }
        refuse(&error)
    })?;
    Ok((objects.into(), prefix))
}

/// What the environment says of object stores: keys, regions, endpoints.
pub fn options_from_env() -> impl Iterator<Item = (String, String)> {
    let is_option = |name: &str| OPTION_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    std::env::vars().filter(move |(name, _)| is_option(name))
}

fn is_remote(url: &str) -> bool {
    ["s3:", "s3a:", "gs:", "az:", "abfs:", "abfss:", "azure:", "adl:", "https:"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
}

fn open_directory(directory: &FilePath) -> object_store::Result<(Arc<dyn ObjectStore>, Path)> {
    let generic = |source: std::io::Error| object_store::Error::Generic {
        store: "LocalFileSystem",
        source: Box::new(source),
    };
    let directory = std::path::absolute(directory).map_err(generic)?;
    let prefix = Path::from_absolute_path(&directory)?;
    // An object that was put is there after a crash of the machine.
    Ok((Arc::new(LocalFileSystem::new().with_fsync(true)), prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_addresses_are_told_apart() {
        let none = || std::iter::empty::<(String, String)>();
        let here = std::env::current_dir().expect("there is one");
        let here = here.to_str().expect("text").trim_start_matches('/').to_owned();
        for (url, prefix) in [
            ("/var/backups/a b", "var/backups/a b"),
            ("file:///var/backups", "var/backups"),
            ("backups", &format!("{here}/backups")),
        ] {
            let (_, found) = open(url, none()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found.to_string(), Path::from(prefix).to_string(), "{url}");
        }
        for url in ["", " ", "file://", "memory:///x", "nonsense://x/y", "://"] {
            let refused = open(url, none()).expect_err("refused");
            assert!(refused.to_string().contains("give a directory"), "{refused}");
        }
    }

    #[cfg(not(feature = "s3"))]
    #[test]
    fn a_build_without_a_kind_of_store_says_so() {
        let refused = open("s3://bucket/x", std::iter::empty()).expect_err("refused");
        assert!(refused.to_string().contains("without the feature `s3`"), "{refused}");
    }

    #[cfg(feature = "s3")]
    #[test]
    fn buckets_open_with_options() {
        let region = [("AWS_REGION".to_owned(), "eu-central-1".to_owned())];
        let (objects, prefix) = open("s3://bucket/a/b", region).expect("opened");
        assert_eq!(
            (objects.to_string(), prefix.to_string()),
            ("AmazonS3(bucket)".into(), "a/b".into())
        );
    }
}
