//! TLS between nodes: each shows a certificate, and each checks the other's.

use std::{path::Path, sync::Arc};

use memcube_actors::{Error, Result};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::settings::ClusterSettings;

/// HTTP/2, as TLS names it.
const ALPN: &[u8] = b"h2";

/// Both sides of TLS.
pub(super) struct Tls {
    pub(super) client: ClientConfig,
    pub(super) server: Arc<ServerConfig>,
}

/// The files that the settings name.
struct Files {
    authorities: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Reads the files that the settings name; `None` without TLS. `host` is where others reach this
/// node, and what its certificate has to be for.
pub(super) fn load(settings: &ClusterSettings, host: &str) -> Result<Option<Tls>> {
    let (Some(ca), Some(cert), Some(key)) =
        (&settings.tls_ca, &settings.tls_cert, &settings.tls_key)
    else {
        return Ok(None);
    };
    let provider = Arc::new(ring::default_provider());
    let files = Files {
        authorities: Arc::new(authorities(ca)?),
        chain: certificates("tls-cert", cert)?,
        key: PrivateKeyDer::from_pem_file(key).map_err(|error| of_no_use("tls-key", key, error))?,
    };
    check_own(&files, &provider, host).map_err(|error| of_no_use("tls-cert", cert, error))?;
    sides(files, provider).map(Some).map_err(|error| {
        Error::invalid(format!(
            "`cluster.tls-cert` `{}` and `cluster.tls-key` `{}` do not work together: {error}",
            cert.display(),
            key.display()
        ))
    })
}

fn authorities(file: &Path) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("tls-ca", file)? {
        store.add(certificate).map_err(|error| of_no_use("tls-ca", file, error))?;
    }
    Ok(store)
}

fn certificates(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| of_no_use(setting, file, error))?;
    if certificates.is_empty() {
        return Err(of_no_use(setting, file, "there is no certificate in it"));
    }
    Ok(certificates)
}

/// Checks this node's certificate as the others will, so that a wrong one is found when the node
/// starts and not when it is needed.
fn check_own(
    files: &Files,
    provider: &Arc<CryptoProvider>,
    host: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let verifier = WebPkiServerVerifier::builder_with_provider(
        Arc::clone(&files.authorities),
        Arc::clone(provider),
    )
    .build()?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']))?;
    let (own, rest) = files.chain.split_first().ok_or("there is no certificate in it")?;
    verifier.verify_server_cert(own, rest, &name, &[], UnixTime::now())?;
    Ok(())
}

fn sides(
    files: Files,
    provider: Arc<CryptoProvider>,
) -> std::result::Result<Tls, Box<dyn std::error::Error>> {
    let Files { authorities, chain, key } = files;
    let versions = &[&rustls::version::TLS13];
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .with_root_certificates(Arc::clone(&authorities))
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(authorities, Arc::clone(&provider)).build()?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Tls { client, server: Arc::new(server) })
}

fn of_no_use(setting: &str, file: &Path, reason: impl std::fmt::Display) -> Error {
    Error::invalid(format!("`cluster.{setting}` `{}` is of no use: {reason}", file.display()))
}
