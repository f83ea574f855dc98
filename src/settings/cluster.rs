//! `[cluster]`: this node as one of several over the same store.

use std::{fmt, net::SocketAddr, path::PathBuf};

use memcube_actors::cluster::ClusterSettings as Rhythm;
use memcube_schemas::NodeId;
use serde::{Deserialize, Serialize};

use super::StoreKind;

/// Bytes of the secret: too long to be guessed.
const SECRET_BYTES_MIN: usize = 16;
const SECRET_BYTES_MAX: usize = 1_024;
/// Bounds of the time between two heartbeats.
const HEARTBEAT_MS: (u64, u64) = (20, 60_000);
/// A node may miss this many heartbeats, less one, before it counts as dead.
const HEARTBEATS_MISSED_MIN: u64 = 3;

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is wrong with it, if anything.
    #[must_use]
    pub fn mistake(&self) -> Option<String> {
        let is_printable = self.0.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&self.0.len());
        (!fits || !is_printable).then(|| {
            format!(
                "must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} printable ASCII characters \
                 without spaces; `openssl rand -hex 32` makes one"
            )
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClusterSettings {
    /// Whether this node is one of several. They need a store that they share: FoundationDB.
    pub enabled: bool,
    /// The name of this node; no other may have it.
    pub node: Option<NodeId>,
    /// Address and port for the other nodes; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the other nodes reach this one, as `host:port`; `listen` if left out. Port 0 stands
    /// for the one that it listens on.
    pub advertise: Option<String>,
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds without a heartbeat after which a node counts as dead and its cubes move.
    pub dead_after_ms: u64,
    /// Certificates (PEM) of those who sign the certificates of nodes. With the next two, nodes
    /// speak TLS and check each other.
    pub tls_ca: Option<PathBuf>,
    /// The certificate (PEM) of this node, for the host in `advertise`, as a server and as a
    /// client.
    pub tls_cert: Option<PathBuf>,
    /// The key (PEM) of that certificate.
    pub tls_key: Option<PathBuf>,
    /// Speak without TLS to other machines as well, for networks that encrypt by themselves.
    pub allow_plaintext: bool,
    /// What all nodes of an installation know, and nobody else.
    pub secret: Option<Secret>,
    /// A file with that secret, in place of the secret itself.
    pub secret_file: Option<PathBuf>,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        let Rhythm { heartbeat_ms, dead_after_ms } = Rhythm::default();
        Self {
            enabled: false,
            node: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 7701)),
            advertise: None,
            heartbeat_ms,
            dead_after_ms,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            allow_plaintext: false,
            secret: None,
            secret_file: None,
        }
    }
}

impl ClusterSettings {
    /// Rhythm and patience, as the actors want them.
    #[must_use]
    pub const fn rhythm(&self) -> Rhythm {
        Rhythm { heartbeat_ms: self.heartbeat_ms, dead_after_ms: self.dead_after_ms }
    }

    /// Whether nodes speak TLS.
    #[must_use]
    pub const fn has_tls(&self) -> bool {
        self.tls_ca.is_some() && self.tls_cert.is_some() && self.tls_key.is_some()
    }

    /// What is wrong with single values.
    pub(super) fn mistakes_in_values(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let (shortest, longest) = HEARTBEAT_MS;
        if !(shortest..=longest).contains(&self.heartbeat_ms) {
            mistakes
                .push(format!("`cluster.heartbeat-ms` must be between {shortest} and {longest}"));
        }
        if let Some(mistake) = self.secret.as_ref().and_then(Secret::mistake) {
            mistakes.push(format!("`cluster.secret` {mistake}"));
        }
        if let Some(address) = &self.advertise
            && split_address(address).is_none()
        {
            mistakes.push(format!(
                "`cluster.advertise` is `{address}`; write it as `host:port`, such as \
                 `node-1.internal:7701`"
            ));
        }
        mistakes
    }

    /// What does not go together: with the store, unless the node is given one, and with the
    /// address of the gateway.
    pub(crate) fn mistakes_together(
        &self,
        store: Option<StoreKind>,
        gateway: SocketAddr,
    ) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !self.enabled {
            return mistakes;
        }
        if self.node.is_none() {
            mistakes.push(
                "`cluster.node` is missing: give every node of the cluster a name of its own"
                    .to_owned(),
            );
        }
        match (&self.secret, &self.secret_file) {
            (None, None) => mistakes.push(
                "`cluster.secret` is missing: without it anybody could pose as a node; set it, or \
                 `cluster.secret-file`, to the same for all nodes (`openssl rand -hex 32`)"
                    .to_owned(),
            ),
            (Some(_), Some(_)) => mistakes.push(
                "`cluster.secret` and `cluster.secret-file` are both set: keep one".to_owned(),
            ),
            (Some(_), None) | (None, Some(_)) => {}
        }
        mistakes.extend(self.mistake_of_tls());
        if self.advertise.is_none() && self.listen.ip().is_unspecified() {
            mistakes.push(format!(
                "`cluster.advertise` is missing: `{}` stands for every address of this machine, \
                 but the other nodes need one that leads here",
                self.listen
            ));
        }
        if self.listen == gateway && gateway.port() != 0 {
            mistakes.push(format!(
                "`cluster.listen` and `http.listen` are both `{gateway}`: give them two ports"
            ));
        }
        if self.dead_after_ms < self.heartbeat_ms.saturating_mul(HEARTBEATS_MISSED_MIN) {
            mistakes.push(format!(
                "`cluster.dead-after-ms` must be at least {HEARTBEATS_MISSED_MIN} times \
                 `cluster.heartbeat-ms`, or nodes that live count as dead"
            ));
        }
        mistakes.extend(store.and_then(mistake_of_store));
        mistakes
    }

    fn mistake_of_tls(&self) -> Option<String> {
        let files = [("ca", &self.tls_ca), ("cert", &self.tls_cert), ("key", &self.tls_key)];
        let missing: Vec<String> = files
            .iter()
            .filter(|(_, file)| file.is_none())
            .map(|(name, _)| format!("`cluster.tls-{name}`"))
            .collect();
        if missing.is_empty() {
            return None;
        }
        if missing.len() < files.len() {
            let missing = missing.join(" and ");
            return Some(format!("{missing} is missing: TLS needs all three files"));
        }
        let is_open = !self.listen.ip().is_loopback() && !self.allow_plaintext;
        is_open.then(|| {
            format!(
                "`cluster.listen` is `{}`, which other machines reach, and there is no TLS: set \
                 `cluster.tls-ca`, `cluster.tls-cert` and `cluster.tls-key`, or \
                 `cluster.allow-plaintext = true` if the network encrypts by itself",
                self.listen
            )
        })
    }
}

/// Why nodes cannot share a store.
fn mistake_of_store(kind: StoreKind) -> Option<String> {
    let reason = match kind {
        StoreKind::Embedded => "`embedded`, a directory that belongs to one process",
        StoreKind::InMemory => "`in-memory`, which no other process sees",
        StoreKind::FoundationDb => return None,
    };
    Some(format!(
        "`store.kind` is {reason}: the nodes of a cluster share one store; set it to \
         `foundationdb`, or `cluster.enabled` to false"
    ))
}

/// Host and port of an address.
pub(crate) fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_ip_v6 = bare.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let port = port.parse().ok()?;
    (is_ip_v6 || is_name).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one mistake of a table row, or nothing.
    fn told(change: fn(&mut ClusterSettings)) -> String {
        let mut settings = ClusterSettings {
            enabled: true,
            node: Some(NodeId::new("node-1").expect("valid")),
            secret: Some(Secret::new("0123456789abcdef")),
            ..ClusterSettings::default()
        };
        change(&mut settings);
        let gateway = SocketAddr::from(([127, 0, 0, 1], 7700));
        let mut mistakes = settings.mistakes_in_values();
        mistakes.extend(settings.mistakes_together(None, gateway));
        assert!(mistakes.len() <= 1, "one mistake a row: {mistakes:#?}");
        mistakes.pop().unwrap_or_default()
    }

    #[test]
    fn mistakes_are_told() {
        type Row = (fn(&mut ClusterSettings), &'static str);
        let table: [Row; 19] = [
            (|_| {}, ""),
            (|s| s.node = None, "`cluster.node` is missing"),
            (|s| s.secret = None, "`cluster.secret` is missing"),
            (|s| s.secret = Some(Secret::new("short")), "`cluster.secret` must have 16"),
            (|s| s.secret = Some(Secret::new("with a space inside")), "without spaces"),
            (|s| s.secret_file = Some("f".into()), "both set"),
            (|s| s.tls_ca = Some("f".into()), "`cluster.tls-cert` and `cluster.tls-key`"),
            (|s| s.listen = "10.0.0.1:7701".parse().expect("valid"), "there is no TLS"),
            (
                |s| {
                    s.listen = "10.0.0.1:7701".parse().expect("valid");
                    s.allow_plaintext = true;
                },
                "",
            ),
            (
                |s| {
                    s.listen = "0.0.0.0:7701".parse().expect("valid");
                    s.allow_plaintext = true;
                },
                "`cluster.advertise` is missing",
            ),
            (
                |s| {
                    s.listen = "[::]:7701".parse().expect("valid");
                    s.advertise = Some("node-1:7701".into());
                    [s.tls_ca, s.tls_cert, s.tls_key] = [(); 3].map(|()| Some(PathBuf::from("f")));
                },
                "",
            ),
            (|s| s.listen = "127.0.0.1:7700".parse().expect("valid"), "two ports"),
            (|s| s.heartbeat_ms = 1, "`cluster.heartbeat-ms` must be between"),
            (|s| s.dead_after_ms = 1_000, "`cluster.dead-after-ms` must be at least 3 times"),
            (|s| s.advertise = Some("node-1".into()), "write it as `host:port`"),
            (|s| s.advertise = Some("http://node-1:1".into()), "write it as `host:port`"),
            (|s| s.advertise = Some("::1:7701".into()), "write it as `host:port`"),
            (|s| s.advertise = Some("[::1]:7701".into()), ""),
            (
                |s| {
                    s.enabled = false;
                    s.node = None;
                    s.secret = None;
                },
                "",
            ),
        ];
        for (row, (change, expected)) in table.into_iter().enumerate() {
            let told = told(change);
            assert_eq!(told.is_empty(), expected.is_empty(), "row {row}: {told}");
            assert!(told.contains(expected), "row {row}: {told}");
        }
    }

    #[test]
    fn stores_of_one_process_are_refused_with_the_reason() {
        for kind in [StoreKind::Embedded, StoreKind::InMemory] {
            let mistake = mistake_of_store(kind).expect("it is refused");
            assert!(mistake.contains("share one store"), "{mistake}");
        }
        assert_eq!(mistake_of_store(StoreKind::FoundationDb), None);
    }

    #[test]
    fn no_log_shows_the_secret() {
        let settings = ClusterSettings {
            secret: Some(Secret::new("0123456789abcdef")),
            ..ClusterSettings::default()
        };
        assert!(!format!("{settings:?}").contains("0123"));
    }
}
