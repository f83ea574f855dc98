//! A whole backup: which tenants and cubes there are, one scan after another, the manifest last.

use memcube_schemas::{
    ModelId, TenantId, Version,
    backup::{BackupApiKey, BackupManifest, LeftOut},
    codec::{decode, encode},
    cube::{ApiKeyRecord, CubeManifest},
    keys,
    limits::BACKUP_PART_BYTES_MAX,
};

use super::{
    PartSink, Progress, Report, Selection,
    parts::PartWriter,
    read,
    scan::{PAGE_ROWS, Scan, Scanned, take_first},
};
use crate::{
    cube::CubeKey,
    environment::Environment,
    error::{Error, ErrorKind, Result},
    storage::{RangeRead, SharedStore},
};

/// Scans of one cube before it is left out: each may find that the cube was made anew meanwhile.
const SCANS_MAX: usize = 16;
/// Cubes that a backup may leave out and still be one.
const LEFT_OUT_MAX: usize = 1_000;

/// What to back up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupRequest {
    /// Which cubes. Without a choice of cubes, API keys go along.
    pub selection: Selection,
    /// The kind of store that this is, as it is written down.
    pub source: String,
    /// Bytes of one part at the most. About twice as many are in RAM at a time.
    pub part_bytes_max: usize,
}

impl BackupRequest {
    /// These cubes, in parts of the usual size.
    #[must_use]
    pub fn new(selection: Selection, source: impl Into<String>) -> Self {
        Self { selection, source: source.into(), part_bytes_max: BACKUP_PART_BYTES_MAX }
    }
}

/// Backs up cubes, without stopping those who write them. Returns the manifest: the backup is
/// there.
///
/// # Errors
/// `NotFound` when a cube that was asked for is not there, `Conflict` when there is a backup at
/// that
/// place already, `Unavailable` when the store or the place cannot be reached. Cubes that cannot be
/// read are no error: the manifest names them.
pub async fn back_up(
    store: &SharedStore,
    environment: &Environment,
    sink: &dyn PartSink,
    request: BackupRequest,
    report: Report<'_>,
) -> Result<BackupManifest> {
    let BackupRequest { selection, source, part_bytes_max } = request;
    let started_at_ms = environment.unix_ms();
    let started = store_version(store, environment).await?;
    let chosen = chosen(store, environment, &selection).await?;
    sink.prepare().await?;
    let (run, _) = split(environment.random_u128());
    let mut backup = Backup {
        store,
        environment,
        writer: PartWriter::new(sink, environment, run, part_bytes_max),
        report,
        scans: 0,
        left_out: Vec::new(),
    };
    let mut api_keys = 0;
    match chosen {
        Some(cubes) => {
            for (key, model) in cubes {
                backup.cube(&key, model).await?;
            }
        }
        None => {
            backup.tenants(&selection).await?;
            api_keys = backup.api_keys(&selection).await?;
        }
    }
    let Backup { mut writer, left_out, .. } = backup;
    writer.flush().await?;
    let manifest = BackupManifest {
        run,
        source,
        memcube: env!("CARGO_PKG_VERSION").to_owned(),
        tenant: selection.tenant,
        is_selection: selection.cubes.is_some(),
        started_at_ms,
        finished_at_ms: environment.unix_ms(),
        started,
        finished: store_version(store, environment).await?,
        cubes: writer.cubes_total,
        rows: writer.rows_total,
        api_keys,
        row_parts: std::mem::take(&mut writer.row_parts),
        cube_parts: std::mem::take(&mut writer.cube_parts),
        key_parts: std::mem::take(&mut writer.key_parts),
        left_out,
    };
    environment.reach("backup.manifest", "");
    writer.manifest(encode(&manifest)).await?;
    Ok(manifest)
}

fn split(bits: u128) -> (u64, u64) {
    let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
    (half(bits >> 64), half(bits))
}

async fn store_version(store: &SharedStore, environment: &Environment) -> Result<Version> {
    let any = RangeRead::key(keys::schema_gate());
    Ok(read(store, environment, vec![any]).await?.version)
}

/// The tenant after this one, if there is another.
async fn next_tenant(
    store: &SharedStore,
    environment: &Environment,
    after: Option<&TenantId>,
) -> Result<Option<TenantId>> {
    let range = RangeRead::page(keys::tenants_after(after), 1);
    let output = read(store, environment, vec![range]).await?;
    let Some(entry) = take_first(output.pages.into_iter().next()) else { return Ok(None) };
    let strange = || Error::new(ErrorKind::Corrupt, "a key of the store names no tenant");
    keys::leading_tenant(&entry.key).ok_or_else(strange).map(Some)
}

/// The tenants that a selection means.
async fn tenants(
    store: &SharedStore,
    environment: &Environment,
    selection: &Selection,
    after: Option<&TenantId>,
) -> Result<Option<TenantId>> {
    match &selection.tenant {
        Some(only) => Ok(after.is_none().then(|| only.clone())),
        None => next_tenant(store, environment, after).await,
    }
}

/// The cubes that were asked for by their ids, each with the model of its vectors.
async fn chosen(
    store: &SharedStore,
    environment: &Environment,
    selection: &Selection,
) -> Result<Option<Vec<(CubeKey, Option<ModelId>)>>> {
    let Some(ids) = &selection.cubes else { return Ok(None) };
    let mut missing = ids.clone();
    let mut found = Vec::new();
    let mut last: Option<TenantId> = None;
    while let Some(tenant) = tenants(store, environment, selection, last.as_ref()).await? {
        for id in ids {
            let key = RangeRead::key(keys::manifest(&tenant, id));
            let output = read(store, environment, vec![key]).await?;
            let Some(entry) = take_first(output.pages.into_iter().next()) else { continue };
            missing.remove(id);
            let manifest: CubeManifest = decode(&entry.value)?;
            let key = CubeKey { tenant: tenant.clone(), cube: id.clone() };
            found.push((key, manifest.embedder));
        }
        last = Some(tenant);
    }
    match missing.first() {
        Some(id) => Err(Error::not_found(format!("there is no cube `{id}`"))),
        None => Ok(Some(found)),
    }
}

struct Backup<'a> {
    store: &'a SharedStore,
    environment: &'a Environment,
    writer: PartWriter<'a>,
    report: Report<'a>,
    /// Scans so far, which numbers them.
    scans: u32,
    left_out: Vec<LeftOut>,
}

impl Backup<'_> {
    async fn tenants(&mut self, selection: &Selection) -> Result<()> {
        let mut last: Option<TenantId> = None;
        while let Some(tenant) =
            tenants(self.store, self.environment, selection, last.as_ref()).await?
        {
            self.tenant(&tenant).await?;
            last = Some(tenant);
        }
        Ok(())
    }

    /// Backs up the cubes of a tenant, page by page of their list.
    async fn tenant(&mut self, tenant: &TenantId) -> Result<()> {
        let mut range = keys::manifests(tenant);
        loop {
            let ranges = vec![RangeRead::page(range.clone(), PAGE_ROWS)];
            let output = read(self.store, self.environment, ranges).await?;
            let page = output.pages.into_iter().next().unwrap_or_default();
            for entry in &page.entries {
                let Some(cube) = keys::trailing_cube_id(&entry.key) else { continue };
                let key = CubeKey { tenant: tenant.clone(), cube };
                match decode::<CubeManifest>(&entry.value) {
                    Ok(manifest) => self.cube(&key, manifest.embedder).await?,
                    Err(error) => self.leave_out(&key, error.to_string())?,
                }
            }
            match page.entries.last() {
                Some(last) if page.more => range = range.after(&last.key),
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// Backs up one cube, unless it is gone by now.
    async fn cube(&mut self, key: &CubeKey, model: Option<ModelId>) -> Result<()> {
        for _ in 0..SCANS_MAX {
            self.scans += 1;
            let (store, environment) = (self.store, self.environment);
            let scan = Scan::new(store, environment, &mut self.writer, key, self.scans);
            match scan.run(model.clone()).await {
                Ok(Scanned::Whole(cube)) => {
                    self.writer.cube(cube).await?;
                    self.tell();
                    return Ok(());
                }
                Ok(Scanned::Gone) => return Ok(()),
                Ok(Scanned::Again) => environment.reach("backup.scan-again", key.cube.as_str()),
                Err(error) => match error.kind() {
                    ErrorKind::Corrupt | ErrorKind::Overloaded => {
                        return self.leave_out(key, error.to_string());
                    }
                    ErrorKind::NotFound
                    | ErrorKind::Invalid
                    | ErrorKind::Conflict
                    | ErrorKind::Unavailable
                    | ErrorKind::Fenced
                    | ErrorKind::Gone
                    | ErrorKind::Internal => return Err(error),
                },
            }
        }
        self.leave_out(key, "it was made anew again and again while it was read".to_owned())
    }

    fn leave_out(&mut self, key: &CubeKey, reason: String) -> Result<()> {
        tracing::error!(tenant = %key.tenant, cube = %key.cube, reason, "cube left out of a backup");
        if self.left_out.len() == LEFT_OUT_MAX {
            let message = format!("more than {LEFT_OUT_MAX} cubes cannot be read, last: {reason}");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let CubeKey { tenant, cube } = key.clone();
        self.left_out.push(LeftOut { tenant, cube, reason });
        Ok(())
    }

    async fn api_keys(&mut self, selection: &Selection) -> Result<u64> {
        let mut range = keys::api_keys();
        let mut total = 0;
        loop {
            let ranges = vec![RangeRead::page(range.clone(), PAGE_ROWS)];
            let output = read(self.store, self.environment, ranges).await?;
            let page = output.pages.into_iter().next().unwrap_or_default();
            let last = page.entries.last().map(|entry| entry.key.clone());
            let mut found = Vec::with_capacity(page.entries.len());
            for entry in page.entries {
                let record: ApiKeyRecord = decode(&entry.value)?;
                if let Some(hash) = keys::trailing_hash(&entry.key)
                    && selection.takes_tenant(&record.tenant)
                {
                    found.push(BackupApiKey { hash, value: entry.value });
                }
            }
            total += found.len() as u64;
            if !found.is_empty() {
                self.writer.api_keys(found).await?;
            }
            match last {
                Some(last) if page.more => range = range.after(&last),
                Some(_) | None => return Ok(total),
            }
        }
    }

    fn tell(&self) {
        let (cubes, rows) = (self.writer.cubes_total, self.writer.rows_total);
        (self.report)(Progress { cubes, rows });
    }
}
