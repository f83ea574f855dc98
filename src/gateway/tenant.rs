//! The tenant gate: from an API key to a [`TenantContext`]. Nothing below it sees a raw key or
//! tenant.

use std::{fmt, sync::Arc};

use dashmap::DashMap;
use memcube_actors::{
    Error, Result, TenantContext,
    environment::Environment,
    storage::{Commit, Mutation, RangeRead, SharedStore},
};
use memcube_schemas::{
    TenantId,
    codec::{decode, encode},
    cube::ApiKeyRecord,
    keys,
};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

/// Keys start with this, so that they are recognised when they leak.
const KEY_PREFIX: &str = "mck_";
/// The tenant of a node that serves one.
const ONLY_TENANT: &str = "default";
/// Characters of a key that an operator may choose through `MEMCUBE_API_KEY`.
const KEY_CHARS_MIN: usize = 16;
const KEY_CHARS_MAX: usize = 256;
/// Keys that are looked up in the store at a time.
const LOOK_UPS_MAX: usize = 8;

type KeyHash = [u8; 32];

/// The API keys of this node. The store has their hashes only.
pub struct TenantGate {
    contexts: DashMap<KeyHash, Arc<TenantContext>>,
    look_ups: Semaphore,
}

impl fmt::Debug for TenantGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantGate").field("keys", &self.contexts.len()).finish_non_exhaustive()
    }
}

impl TenantGate {
    /// Reads the keys of the installation.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the store cannot be read.
    pub async fn open(store: &SharedStore) -> Result<Self> {
        let output = store.read(vec![RangeRead::all(keys::api_keys())]).await?;
        let contexts = DashMap::new();
        for entry in output.pages.into_iter().flat_map(|page| page.entries) {
            let record: ApiKeyRecord = decode(&entry.value)?;
            if let Some(hash) = keys::trailing_hash(&entry.key) {
                let context = TenantContext::authenticated(record.tenant, record.name);
                contexts.insert(hash, Arc::new(context));
            }
        }
        Ok(Self { contexts, look_ups: Semaphore::new(LOOK_UPS_MAX) })
    }

    /// Whether there is no key yet: the first start.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }

    /// Lets a key in, from now on and after every restart.
    ///
    /// # Errors
    /// `Invalid` when the key is too short, too long or not printable, `Unavailable` when it cannot
    /// be stored.
    pub async fn admit(
        &self,
        store: &SharedStore,
        environment: &Environment,
        key: &str,
        name: &str,
    ) -> Result<()> {
        let is_printable = key.chars().all(|c| c.is_ascii_graphic());
        if !(KEY_CHARS_MIN..=KEY_CHARS_MAX).contains(&key.len()) || !is_printable {
            return Err(Error::invalid(format!(
                "an API key must have {KEY_CHARS_MIN} to {KEY_CHARS_MAX} printable characters \
                 without spaces"
            )));
        }
        let hash = hash(key);
        if self.contexts.contains_key(&hash) {
            return Ok(());
        }
        let tenant = TenantId::new(ONLY_TENANT)?;
        let record = ApiKeyRecord {
            tenant: tenant.clone(),
            name: name.to_owned(),
            created_at_ms: environment.unix_ms(),
        };
        store
            .commit(Commit {
                token: environment.commit_token(),
                checks: Vec::new(),
                mutations: vec![Mutation::Set {
                    key: keys::api_key(&hash),
                    value: encode(&record),
                }],
            })
            .await?;
        self.contexts.insert(hash, Arc::new(TenantContext::authenticated(tenant, name)));
        Ok(())
    }

    /// The caller behind an `Authorization` header: `Bearer KEY` or `Token KEY`.
    #[must_use]
    pub fn authenticate(&self, header: &str) -> Option<Arc<TenantContext>> {
        let (scheme, key) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") && !scheme.eq_ignore_ascii_case("token") {
            return None;
        }
        self.contexts.get(&hash(key.trim())).map(|context| Arc::clone(&context))
    }

    /// Looks for a key in the store that another node let in after this one had started, and
    /// remembers it.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the store cannot be read.
    pub async fn look_up(
        &self,
        store: &SharedStore,
        header: &str,
    ) -> Result<Option<Arc<TenantContext>>> {
        let Some(hash) = header.split_once(' ').map(|(_, key)| hash(key.trim())) else {
            return Ok(None);
        };
        // Anybody can send keys that do not exist: they wait for each other, not others for them.
        let Ok(_turn) = self.look_ups.acquire().await else { return Ok(None) };
        let output = store.read(vec![RangeRead::key(keys::api_key(&hash))]).await?;
        let entry = output.pages.into_iter().flat_map(|page| page.entries).next();
        let Some(entry) = entry else { return Ok(None) };
        let record: ApiKeyRecord = decode(&entry.value)?;
        let context = TenantContext::authenticated(record.tenant, record.name);
        self.contexts.insert(hash, Arc::new(context));
        Ok(self.authenticate(header))
    }
}

/// A fresh key.
#[must_use]
pub fn new_key(environment: &Environment) -> String {
    format!("{KEY_PREFIX}{:032x}{:032x}", environment.random_u128(), environment.random_u128())
}

fn hash(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}
