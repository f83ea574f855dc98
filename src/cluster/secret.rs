//! What all nodes of an installation know, and how a stranger is told from one of them.

use axum::http::HeaderValue;
use memcube_actors::{Error, Result};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::settings::{ClusterSettings, Secret};

const SCHEME: &str = "Bearer ";

/// The secret, ready to be shown and to be compared.
pub(super) struct Pass {
    /// What this node sends with every frame.
    pub(super) header: HeaderValue,
    hash: [u8; 32],
}

impl Pass {
    /// Reads the secret from the settings, or from the file that they name.
    pub(super) fn load(settings: &ClusterSettings) -> Result<Self> {
        let secret = match (&settings.secret, &settings.secret_file) {
            (Some(secret), _) => secret.clone(),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file).map_err(|error| {
                    let file = file.display();
                    Error::invalid(format!("`cluster.secret-file` `{file}`: {error}"))
                })?;
                let secret = Secret::new(text.trim());
                if let Some(mistake) = secret.mistake() {
                    let file = file.display();
                    return Err(Error::invalid(format!("the secret in `{file}` {mistake}")));
                }
                secret
            }
            (None, None) => return Err(Error::invalid("`cluster.secret` is missing")),
        };
        let mut header = HeaderValue::from_str(&format!("{SCHEME}{}", secret.expose()))
            .map_err(|_| Error::invalid("`cluster.secret` must be printable"))?;
        header.set_sensitive(true);
        Ok(Self { header, hash: hash(secret.expose().as_bytes()) })
    }

    /// Whether somebody shows the same secret. Hashes are compared, in constant time, so that
    /// neither length nor contents leak.
    pub(super) fn admits(&self, shown: Option<&HeaderValue>) -> bool {
        let shown = shown.and_then(|shown| shown.as_bytes().strip_prefix(SCHEME.as_bytes()));
        shown.is_some_and(|shown| bool::from(hash(shown).ct_eq(&self.hash)))
    }
}

fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Pass> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("it can be written");
        let secret_file = Some(file.path().to_owned());
        Pass::load(&ClusterSettings { secret_file, ..ClusterSettings::default() })
    }

    #[test]
    fn only_the_same_secret_is_admitted() {
        let pass = with_file("0123456789abcdef\n").expect("a secret");
        assert!(pass.admits(Some(&pass.header)));
        for shown in ["Bearer 0123456789abcdee", "Bearer ", "0123456789abcdef", "Basic x", ""] {
            assert!(!pass.admits(HeaderValue::from_str(shown).ok().as_ref()), "{shown}");
        }
        assert!(!pass.admits(None));
    }

    #[test]
    fn files_without_a_secret_are_refused() {
        let told = |result: Result<Pass>| result.err().expect("refused").to_string();
        assert!(told(with_file("short\n")).contains("16 to 1024"));
        let missing = ClusterSettings {
            secret_file: Some("/nowhere/secret".into()),
            ..ClusterSettings::default()
        };
        assert!(told(Pass::load(&missing)).contains("/nowhere/secret"));
    }
}
