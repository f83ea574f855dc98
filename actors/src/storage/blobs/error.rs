//! What can be wrong with a blob, told apart by what somebody should do.

use std::{error::Error as StdError, fmt};

use object_store::Error as ObjectError;

use crate::{
    error::{Error, ErrorKind},
    storage::StoreError,
};

/// Why a blob cannot be written, read or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobError {
    /// There is no such object: fall back, if there is another source.
    Missing,
    /// The bytes are not those that were written: fall back, and look at the object store.
    Damaged {
        /// What was found.
        reason: String,
    },
    /// The object store does not let this node in: mend the setting that the reason names.
    Refused {
        /// What it said, and what to do.
        reason: String,
    },
    /// The object store does not answer as it should: retry later.
    Unreachable {
        /// What happened, and which settings say where it is.
        reason: String,
    },
    /// The state store refused a row of the blob.
    Store(StoreError),
}

impl BlobError {
    pub(crate) fn damaged(reason: &str) -> Self {
        Self::Damaged { reason: reason.to_owned() }
    }

    pub(crate) fn unreachable(reason: &str) -> Self {
        Self::Unreachable { reason: reason.to_owned() }
    }

    /// A word for metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged { .. } => "damaged",
            Self::Refused { .. } => "refused",
            Self::Unreachable { .. } => "unreachable",
            Self::Store(_) => "store",
        }
    }
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the object store has no such object"),
            Self::Damaged { reason } => write!(f, "the object is damaged: {reason}"),
            Self::Refused { reason } => write!(f, "the object store refuses: {reason}"),
            Self::Unreachable { reason } => write!(f, "the object store is unavailable: {reason}"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl StdError for BlobError {}

impl From<StoreError> for BlobError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<BlobError> for Error {
    fn from(error: BlobError) -> Self {
        let kind = match error {
            BlobError::Missing => ErrorKind::NotFound,
            BlobError::Damaged { .. } => ErrorKind::Corrupt,
            BlobError::Refused { .. } | BlobError::Unreachable { .. } => ErrorKind::Unavailable,
            BlobError::Store(error) => return error.into(),
        };
        Self::new(kind, error.to_string())
    }
}

/// What was asked of the object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Put,
    Get,
    Delete,
    List,
}

/// What providers say when a key, its signature or its time is not right.
const BAD_CREDENTIALS: [&str; 7] = [
    "AccessDenied",
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
];
/// What providers say when there is no such bucket or container.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "The specified bucket"];

impl Doing {
    /// What an error of the object store means here.
    pub(super) fn failed(self, error: ObjectError) -> BlobError {
        let said = told(&error);
        let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
        if says(&NO_BUCKET) {
            return BlobError::Refused {
                reason: format!(
                    "there is no such bucket; set `blobs.url` to one that exists ({said})"
                ),
            };
        }
        if says(&BAD_CREDENTIALS) {
            return refused_credentials(&said);
        }
        let is_missing = matches!(error, ObjectError::NotFound { .. });
        if is_missing && self == Self::Get {
            return BlobError::Missing;
        }
        if is_missing {
            return BlobError::Refused {
                reason: format!(
                    "there is no such place; set `blobs.url` to one that exists ({said})"
                ),
            };
        }
        let is_refused = matches!(
            error,
            ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. }
        );
        if is_refused {
            return refused_credentials(&said);
        }
        BlobError::Unreachable {
            reason: format!(
                "{said}; if this lasts, check `blobs.url` and `blobs.endpoint`, and whether the \
                 server runs"
            ),
        }
    }
}

fn refused_credentials(said: &str) -> BlobError {
    BlobError::Refused {
        reason: format!(
            "the credentials in the environment are not valid, have expired, or may not use \
             `blobs.url` ({said})"
        ),
    }
}

/// The error with its causes, on one line.
fn told(error: &ObjectError) -> String {
    const CHARS_MAX: usize = 600;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let source = |text: &str| text.to_owned().into();
        let path = || "blobs/acme/00/00".to_owned();
        let missing = |text| ObjectError::NotFound { path: path(), source: source(text) };
        let generic = |text| ObjectError::Generic { store: "S3", source: source(text) };
        let denied = || ObjectError::PermissionDenied { path: path(), source: source("403") };
        let unsigned = || ObjectError::Unauthenticated { path: path(), source: source("401") };
        for (doing, error, kind, word) in [
            (Doing::Get, missing("404"), "missing", "no such object"),
            (Doing::Get, missing("<Code>NoSuchBucket</Code>"), "refused", "`blobs.url`"),
            (Doing::Put, missing("404"), "refused", "`blobs.url`"),
            (Doing::Put, denied(), "refused", "credentials"),
            (Doing::Get, unsigned(), "refused", "credentials"),
            (Doing::Put, generic("<Code>ExpiredToken</Code>"), "refused", "credentials"),
            (Doing::List, generic("connection refused"), "unreachable", "`blobs.endpoint`"),
            (Doing::Delete, generic("timed\nout"), "unreachable", "timed out"),
        ] {
            let told = format!("{error}");
            let error = doing.failed(error);
            assert_eq!(error.as_str(), kind, "{told}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
