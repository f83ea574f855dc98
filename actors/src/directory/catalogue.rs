//! The cubes of a tenant as the store lists them, hot or cold: made, listed, described, deleted.

use memcube_schemas::{
    CubeId, MemoryId, UserId, Version,
    codec::{DecodeError, decode},
    cube::CubeManifest,
    keys,
    limits::PAGE_ITEMS_MAX,
};

use super::{Cubes, Shared};
use crate::{
    backup,
    cluster::route::outward,
    cube::{CubeHandle, CubeKey},
    error::{Error, ErrorKind, Result},
    storage::{Check, RangeRead, StoreError},
    tenant::TenantContext,
};

/// How often making a cube is tried while the store refuses it without reason.
const CREATE_TRIES: usize = 5;

/// A cube as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CubeDescription {
    /// As it is stored.
    pub manifest: CubeManifest,
    /// Whether it is in RAM.
    pub is_hot: bool,
    /// Why it takes no calls, if it does not.
    pub quarantine: Option<String>,
}

impl Cubes {
    /// Makes a cube.
    ///
    /// # Errors
    /// `Conflict` when there is one with this id already.
    pub async fn create(
        &self,
        context: &TenantContext,
        id: CubeId,
        name: Option<String>,
        owner: Option<UserId>,
    ) -> Result<CubeManifest> {
        let now_ms = self.shared.environment.unix_ms();
        let manifest = CubeManifest {
            name: name.unwrap_or_else(|| id.to_string()),
            id,
            owner,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            version: Version(0),
            items: 0,
            embedder: None,
            snapshot: None,
        };
        let mark = keys::restoring(context.tenant(), &manifest.id);
        let checks = vec![
            Check::Absent { key: keys::manifest(context.tenant(), &manifest.id) },
            Check::Absent { key: mark },
        ];
        let key = CubeKey { tenant: context.tenant().clone(), cube: manifest.id.clone() };
        let mutations = crate::cube::made(&key, &manifest);
        for _ in 0..CREATE_TRIES {
            let (checks, mutations) = (checks.clone(), mutations.clone());
            let Shared { store, environment, .. } = &*self.shared;
            match crate::cube::commit(store, environment, checks, mutations).await {
                Ok(_) => return Ok(manifest),
                // A store may refuse without reason; only a row that is there is one.
                Err(StoreError::Conflict { .. }) => {
                    if self.manifest(&key).await?.is_some() {
                        let message = format!("there is a cube `{}` already", manifest.id);
                        return Err(Error::new(ErrorKind::Conflict, message));
                    }
                    if self.half_restored(&key).await?.is_some() {
                        let message = half_restored(&manifest.id);
                        return Err(Error::new(ErrorKind::Conflict, message));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::unavailable(format!("the cube `{}` could not be made; retry", manifest.id)))
    }

    /// Makes a cube unless it is there.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn ensure(&self, context: &TenantContext, id: CubeId) -> Result<CubeHandle> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: id.clone() };
        // In a cluster, what is in RAM here may have been another node's since, and deleted there.
        let is_here = !self.is_clustered() && self.shared.directory.contains_key(&key);
        if !is_here && self.manifest(&key).await?.is_none() {
            match self.create(context, id.clone(), None, None).await {
                Ok(_) => {}
                Err(error)
                    if error.kind() == ErrorKind::Conflict
                        && self.half_restored(&key).await?.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.cube(context, id))
    }

    /// Reads cubes in the order of their ids, after one of them, and whether there are more.
    ///
    /// # Errors
    /// `Invalid` when the page is too large, `Unavailable` when the store does not answer.
    pub async fn list(
        &self,
        context: &TenantContext,
        after: Option<&CubeId>,
        limit: usize,
    ) -> Result<(Vec<CubeDescription>, bool)> {
        if limit == 0 || limit > PAGE_ITEMS_MAX {
            return Err(Error::invalid(format!("`limit` must be between 1 and {PAGE_ITEMS_MAX}")));
        }
        let mut range = keys::manifests(context.tenant());
        if let Some(after) = after {
            range = range.after(&keys::manifest(context.tenant(), after));
        }
        let output = self.shared.store.read(vec![RangeRead::page(range, limit)]).await?;
        let page = output.pages.into_iter().next().unwrap_or_default();
        let mut cubes = Vec::with_capacity(page.entries.len());
        for entry in &page.entries {
            match decode(&entry.value) {
                Ok(manifest) => cubes.push(self.describe_manifest(context, manifest).await?),
                // One that cannot be read must not hide the others.
                Err(error) => cubes.extend(unreadable(&entry.key, &error)),
            }
        }
        Ok((cubes, page.more))
    }

    /// Describes one cube without hydrating it; also one that is in quarantine, and one whose
    /// restore is under way or broke off.
    ///
    /// # Errors
    /// `NotFound` without such a cube.
    pub async fn describe(&self, context: &TenantContext, id: &CubeId) -> Result<CubeDescription> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: id.clone() };
        if let Some(manifest) = self.manifest(&key).await? {
            return self.describe_manifest(context, manifest).await;
        }
        match self.half_restored(&key).await? {
            Some(manifest) => {
                let quarantine = Some(half_restored(id));
                Ok(CubeDescription { manifest, is_hot: false, quarantine })
            }
            None => Err(Error::not_found(format!("there is no cube `{id}`"))),
        }
    }

    /// Lets a cube out of quarantine.
    ///
    /// # Errors
    /// `NotFound` when it is not in quarantine.
    pub async fn release(&self, context: &TenantContext, id: &CubeId) -> Result<()> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: id.clone() };
        self.shared.host.release(key).await
    }

    /// The cube of this tenant that holds a memory, if any does.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn find_memory(
        &self,
        context: &TenantContext,
        id: MemoryId,
    ) -> Result<Option<CubeId>> {
        let mut after: Option<CubeId> = None;
        loop {
            let (cubes, more) = self.list(context, after.as_ref(), PAGE_ITEMS_MAX).await?;
            let keys = cubes
                .iter()
                .map(|cube| RangeRead::key(keys::item(context.tenant(), &cube.manifest.id, id)));
            let output = self.shared.store.read(keys.collect()).await?;
            let held = output.pages.iter().position(|page| !page.entries.is_empty());
            if let Some(place) = held {
                return Ok(cubes.into_iter().nth(place).map(|cube| cube.manifest.id));
            }
            match cubes.into_iter().last() {
                Some(last) if more => after = Some(last.manifest.id),
                Some(_) | None => return Ok(None),
            }
        }
    }

    /// Deletes a cube without reading it: claims it, so that no other owner writes, and clears its
    /// rows.
    pub(crate) async fn erase_unread(&self, key: &CubeKey) -> Result<()> {
        self.shared.hydrator.erase(key).await.map_err(outward)?;
        self.jobs().cancel_of_cube(&key.tenant, &key.cube);
        if let Some(inference) = self.inference() {
            inference.cache().forget_cube(&key.tenant, &key.cube, &[]);
        }
        // It was in quarantine, or came out of it meanwhile; either way it is gone.
        let _ = self.shared.host.release(key.clone()).await;
        Ok(())
    }

    /// Clears what a restore of a cube that broke off has left. Returns whether there was anything.
    pub(crate) async fn discard_restore(&self, key: &CubeKey) -> Result<bool> {
        backup::discard(&self.shared.store, &self.shared.environment, key).await
    }

    /// What a cube will be once its restore ends, if one has begun.
    async fn half_restored(&self, key: &CubeKey) -> Result<Option<CubeManifest>> {
        let read = RangeRead::key(keys::restoring(&key.tenant, &key.cube));
        let output = self.shared.store.read(vec![read]).await?;
        let entry = output.pages.first().and_then(|page| page.entries.first());
        entry.map(|entry| Ok(decode(&entry.value)?)).transpose()
    }

    pub(crate) async fn manifest(&self, key: &CubeKey) -> Result<Option<CubeManifest>> {
        let read = RangeRead::key(keys::manifest(&key.tenant, &key.cube));
        let output = self.shared.store.read(vec![read]).await?;
        let entry = output.pages.first().and_then(|page| page.entries.first());
        entry.map(|entry| Ok(decode(&entry.value)?)).transpose()
    }

    async fn describe_manifest(
        &self,
        context: &TenantContext,
        manifest: CubeManifest,
    ) -> Result<CubeDescription> {
        let key = CubeKey { tenant: context.tenant().clone(), cube: manifest.id.clone() };
        let is_hot = self.shared.directory.contains_key(&key);
        let quarantine = self.shared.host.quarantine(key).await?;
        Ok(CubeDescription { manifest, is_hot, quarantine })
    }
}

fn half_restored(id: &CubeId) -> String {
    format!(
        "the cube `{id}` is being restored, or its restore broke off; wait, run `memcube restore` \
         again, or delete the cube to be rid of what was restored of it"
    )
}

/// A cube whose manifest is damaged, as far as its key tells.
fn unreadable(key: &[u8], error: &DecodeError) -> Option<CubeDescription> {
    let id = keys::trailing_cube_id(key)?;
    let manifest = CubeManifest {
        name: id.to_string(),
        id,
        owner: None,
        created_at_ms: 0,
        updated_at_ms: 0,
        version: Version(0),
        items: 0,
        embedder: None,
        snapshot: None,
    };
    Some(CubeDescription { manifest, is_hot: false, quarantine: Some(error.to_string()) })
}
