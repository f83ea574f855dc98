//! Puts cubes back into a store. The module's introduction says how a cube becomes visible at once.

use memcube_schemas::{
    CubeId, Epoch, Incarnation, NodeId,
    backup::{BackupApiKey, BackupCube, PartKind, RowChange},
    codec::{decode, encode},
    cube::{CubeManifest, Ownership},
    keys,
    limits::{RESTORE_COMMIT_BYTES_MAX, RESTORE_COMMIT_ROWS_MAX},
};

use super::{
    Archive, CubeFailure, Progress, Report, Selection, TRIES_MAX,
    archive::{check_row, manifest_of},
    back_off, read,
    scan::take_first,
    verify::{check_rows, damage, parts_of},
};
use crate::{
    cube::{self, Claim, CubeKey},
    environment::Environment,
    error::{Error, ErrorKind, Result},
    storage::{Check, Mutation, RangeRead, SharedStore, StoreError},
};

/// Who owns a cube while it is put back. No node answers to it, so that the first one that is asked
/// for the cube claims it.
const RESTORER: &str = "memcube-restore";

/// What to restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreRequest {
    /// Which cubes. Without a choice of cubes, API keys go along.
    pub selection: Selection,
    /// Another id for the only cube that is selected.
    pub rename: Option<CubeId>,
    /// Only look what would happen.
    pub dry_run: bool,
}

/// What became of a restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreOutcome {
    /// Cubes that were put back, or would be.
    pub restored: u64,
    /// Rows of them.
    pub rows: u64,
    /// Cubes that were there already, just as the backup has them.
    pub unchanged: u64,
    /// API keys that were put back, or would be.
    pub api_keys: u64,
    /// Cubes that were not put back, and why. Nothing of them is visible.
    pub failures: Vec<CubeFailure>,
    /// What else in the backup is damaged.
    pub damages: Vec<Error>,
}

impl RestoreOutcome {
    /// Whether everything that was asked for is there now.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.failures.is_empty() && self.damages.is_empty()
    }
}

/// Puts cubes of a backup into a store.
///
/// # Errors
/// `NotFound` when the backup does not hold a cube that was asked for, `Invalid` when another id
/// was
/// given for several cubes, `Unavailable` when the store or the backup cannot be reached. A cube
/// that
/// cannot be restored, or is there already, is no error: the outcome names it.
pub async fn restore(
    store: &SharedStore,
    environment: &Environment,
    archive: &mut Archive,
    request: RestoreRequest,
    report: Report<'_>,
) -> Result<RestoreOutcome> {
    let mut run = Restore { store, environment, outcome: RestoreOutcome::default(), request };
    if run.request.selection.cubes.is_some() || run.request.rename.is_some() {
        for cube in run.chosen(archive).await? {
            run.cube(archive, &cube, report).await?;
        }
        return Ok(run.outcome);
    }
    for number in 1..=archive.count(PartKind::Cubes) {
        match archive.cubes(number).await {
            Ok(cubes) => {
                let selection = run.request.selection.clone();
                let takes = |cube: &&BackupCube| selection.takes(&cube.tenant, &cube.cube);
                for cube in cubes.iter().filter(takes) {
                    run.cube(archive, cube, report).await?;
                }
            }
            Err(error) => run.outcome.damages.push(damage(error)?),
        }
    }
    for number in 1..=archive.count(PartKind::ApiKeys) {
        match archive.api_keys(number).await {
            Ok(keys) => run.api_keys(keys).await?,
            Err(error) => run.outcome.damages.push(damage(error)?),
        }
    }
    Ok(run.outcome)
}

struct Restore<'a> {
    store: &'a SharedStore,
    environment: &'a Environment,
    request: RestoreRequest,
    outcome: RestoreOutcome,
}

impl Restore<'_> {
    /// The cubes that were asked for by their ids.
    async fn chosen(&self, archive: &Archive) -> Result<Vec<BackupCube>> {
        let RestoreRequest { selection, rename, .. } = &self.request;
        let found = archive.find(selection).await?;
        let asked = selection.cubes.iter().flatten();
        for id in asked {
            if !found.iter().any(|cube| cube.cube == *id) {
                let message = format!("the backup holds no cube `{id}`");
                return Err(Error::not_found(message));
            }
        }
        if rename.is_some() && found.len() != 1 {
            let count = found.len();
            let message = format!("another id is for one cube, and {count} are selected");
            return Err(Error::invalid(message));
        }
        Ok(found)
    }

    async fn cube(
        &mut self,
        archive: &mut Archive,
        cube: &BackupCube,
        report: Report<'_>,
    ) -> Result<()> {
        let id = self.request.rename.clone().unwrap_or_else(|| cube.cube.clone());
        let key = CubeKey { tenant: cube.tenant.clone(), cube: id };
        match self.put_back(archive, cube, &key).await {
            Ok(true) => {
                self.outcome.restored += 1;
                self.outcome.rows += cube.rows;
            }
            Ok(false) => self.outcome.unchanged += 1,
            Err(error) => {
                let error = damage(error)?;
                let CubeKey { tenant, cube } = key;
                self.outcome.failures.push(CubeFailure { tenant, cube, error });
            }
        }
        let RestoreOutcome { restored, unchanged, rows, .. } = self.outcome;
        report(Progress { cubes: restored + unchanged, rows });
        Ok(())
    }

    /// Puts one cube back; `false` if it is there already, just as it would be.
    async fn put_back(
        &self,
        archive: &mut Archive,
        cube: &BackupCube,
        key: &CubeKey,
    ) -> Result<bool> {
        let manifest = CubeManifest { id: key.cube.clone(), snapshot: None, ..manifest_of(cube)? };
        if let Some(there) = manifest_in(self.store, self.environment, key).await? {
            return if is_same(&there, &manifest) { Ok(false) } else { Err(occupied(key)) };
        }
        if self.request.dry_run {
            return Ok(true);
        }
        let claim = claim(self.store, self.environment, key).await?;
        let (store, environment) = (self.store, self.environment);
        let mut writing = Writing::new(store, environment, key, claim, manifest);
        match writing.all(archive, cube).await {
            Ok(()) => Ok(true),
            Err(error) => {
                // What stays is not visible, and goes when the cube is restored or deleted.
                let _ = writing.take_back().await;
                Err(error)
            }
        }
    }

    async fn api_keys(&mut self, found: Vec<BackupApiKey>) -> Result<()> {
        for BackupApiKey { hash, value } in found {
            let key = keys::api_key(&hash);
            let ranges = vec![RangeRead::key(key.clone())];
            let output = read(self.store, self.environment, ranges).await?;
            // One that is known here stays as it is.
            if take_first(output.pages.into_iter().next()).is_some() {
                continue;
            }
            self.outcome.api_keys += 1;
            if !self.request.dry_run {
                let checks = vec![Check::Absent { key: key.clone() }];
                let set = vec![Mutation::Set { key, value }];
                match cube::commit(self.store, self.environment, checks, set).await {
                    Ok(_) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Whether a cube is what a restore would make: an earlier one may have.
fn is_same(there: &CubeManifest, manifest: &CubeManifest) -> bool {
    // Snapshots and vectors are derived, and may have been made since.
    let likened = CubeManifest {
        snapshot: manifest.snapshot.clone(),
        embedder: manifest.embedder.clone(),
        ..there.clone()
    };
    likened == *manifest
}

fn occupied(key: &CubeKey) -> Error {
    let message = format!(
        "there is a cube `{}` already; delete it first, or restore this one under another id",
        key.cube
    );
    Error::new(ErrorKind::Conflict, message)
}

async fn manifest_in(
    store: &SharedStore,
    environment: &Environment,
    key: &CubeKey,
) -> Result<Option<CubeManifest>> {
    let range = RangeRead::key(keys::manifest(&key.tenant, &key.cube));
    let output = read(store, environment, vec![range]).await?;
    let entry = take_first(output.pages.into_iter().next());
    entry.map(|entry| Ok(decode(&entry.value)?)).transpose()
}

/// Raises the epoch of a cube, so that no other restore and no former owner writes it any more.
async fn claim(store: &SharedStore, environment: &Environment, key: &CubeKey) -> Result<Claim> {
    let row = keys::ownership(&key.tenant, &key.cube);
    let incarnation = Incarnation(u64::try_from(environment.random_u128() >> 64).unwrap_or(1));
    let mut tries = 0;
    loop {
        let output = read(store, environment, vec![RangeRead::key(row.clone())]).await?;
        let (check, epoch) = match take_first(output.pages.into_iter().next()) {
            Some(entry) => {
                let former: Ownership = decode(&entry.value)?;
                (Check::At { key: row.clone(), version: entry.version }, former.epoch.next())
            }
            None => (Check::Absent { key: row.clone() }, Epoch(1)),
        };
        let value = encode(&Ownership { epoch, node: NodeId::new(RESTORER)?, incarnation });
        let set = Mutation::Set { key: row.clone(), value };
        match cube::commit(store, environment, vec![check], vec![set]).await {
            Ok(row) => return Ok(Claim { epoch, row }),
            Err(StoreError::Conflict { .. } | StoreError::Overloaded) if tries < TRIES_MAX => {}
            Err(StoreError::Unavailable { .. }) if tries < TRIES_MAX => {}
            Err(error) => return Err(error.into()),
        }
        back_off(tries).await;
        tries += 1;
    }
}

/// Clears what a restore that broke off has left of a cube. Returns whether there was anything.
///
/// # Errors
/// `Conflict` when a restore is under way that goes on meanwhile, `Unavailable` when the store does
/// not answer.
pub(crate) async fn discard(
    store: &SharedStore,
    environment: &Environment,
    key: &CubeKey,
) -> Result<bool> {
    let range = RangeRead::key(keys::restoring(&key.tenant, &key.cube));
    let output = read(store, environment, vec![range]).await?;
    let Some(mark) = take_first(output.pages.into_iter().next()) else { return Ok(false) };
    let claim = claim(store, environment, key).await?;
    let manifest: CubeManifest = decode(&mark.value)?;
    Writing::new(store, environment, key, claim, manifest).take_back().await?;
    Ok(true)
}

/// The rows of one cube on their way into the store.
struct Writing<'a> {
    store: &'a SharedStore,
    environment: &'a Environment,
    key: &'a CubeKey,
    claim: Claim,
    manifest: CubeManifest,
    waiting: Vec<Mutation>,
    waiting_bytes: usize,
    /// Whether the mark is set.
    has_begun: bool,
}

impl<'a> Writing<'a> {
    fn new(
        store: &'a SharedStore,
        environment: &'a Environment,
        key: &'a CubeKey,
        claim: Claim,
        manifest: CubeManifest,
    ) -> Self {
        let (waiting, waiting_bytes, has_begun) = (Vec::new(), 0, false);
        Self { store, environment, key, claim, manifest, waiting, waiting_bytes, has_begun }
    }

    async fn all(&mut self, archive: &mut Archive, cube: &BackupCube) -> Result<()> {
        // What an earlier restore has left.
        self.waiting = self.clear_rows();
        let mut rows = 0;
        for number in parts_of(cube) {
            for row in archive.rows(number).await?.iter().filter(|row| row.scan == cube.scan) {
                rows += 1;
                check_row(&row.change)?;
                self.row(&row.change).await?;
            }
        }
        check_rows(cube, rows)?;
        self.environment.reach("restore.last-commit", self.key.cube.as_str());
        let now_ms = self.environment.unix_ms();
        let mut last = std::mem::take(&mut self.waiting);
        last.extend(cube::restored(self.key, &self.claim, &self.manifest, now_ms));
        self.commit(last).await
    }

    /// Everything of the cube, except who owns it.
    fn clear_rows(&self) -> Vec<Mutation> {
        let CubeKey { tenant, cube } = self.key;
        let ranges = keys::everything_of_cube(tenant, cube).into_iter();
        ranges.map(|range| Mutation::ClearRange { range }).collect()
    }

    /// Adds a row to the next commit.
    async fn row(&mut self, change: &RowChange) -> Result<()> {
        let CubeKey { tenant, cube } = self.key;
        let model = self.manifest.embedder.as_ref();
        let set = |key: Vec<u8>, value: &[u8]| Mutation::Set { key, value: value.to_vec() };
        let mutations = match change {
            RowChange::Item { id, value } => vec![set(keys::item(tenant, cube, *id), value)],
            RowChange::History { id, revision, value } => {
                vec![set(keys::history(tenant, cube, *id, *revision), value)]
            }
            // Those of a former model were on their way out when the backup was taken.
            RowChange::Vector { model: made_by, .. } if Some(made_by) != model => Vec::new(),
            RowChange::Vector { model, id, value } => {
                vec![set(keys::vector(tenant, cube, model, *id), value)]
            }
            RowChange::Request { id, value } => vec![set(keys::request(tenant, cube, id), value)],
            RowChange::ForgetMemory(id) => {
                let range = keys::history_of_item(tenant, cube, *id);
                let vector = |model| keys::vector(tenant, cube, model, *id);
                let keys = [keys::item(tenant, cube, *id)].into_iter().chain(model.map(vector));
                let clear = keys.map(|key| Mutation::Clear { key });
                clear.chain([Mutation::ClearRange { range }]).collect()
            }
            RowChange::ForgetVectors => {
                let range = |model| keys::vectors(tenant, cube, model);
                model.map(range).map(|range| Mutation::ClearRange { range }).into_iter().collect()
            }
        };
        let bytes: usize = mutations.iter().map(mutation_bytes).sum();
        let is_full = self.waiting_bytes + bytes > RESTORE_COMMIT_BYTES_MAX
            || self.waiting.len() + mutations.len() > RESTORE_COMMIT_ROWS_MAX;
        if is_full && !self.waiting.is_empty() {
            self.commit_waiting().await?;
        }
        self.waiting.extend(mutations);
        self.waiting_bytes += bytes;
        Ok(())
    }

    async fn commit_waiting(&mut self) -> Result<()> {
        let mut mutations = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        if !self.has_begun {
            self.has_begun = true;
            let key = keys::restoring(&self.key.tenant, &self.key.cube);
            mutations.push(Mutation::Set { key, value: encode(&self.manifest) });
        }
        self.environment.reach("restore.commit", self.key.cube.as_str());
        self.commit(mutations).await
    }

    /// Clears what was written.
    async fn take_back(&self) -> Result<()> {
        self.commit(self.clear_rows()).await
    }

    /// Commits on the condition that the cube is still ours, and not visible.
    async fn commit(&self, mutations: Vec<Mutation>) -> Result<()> {
        let checks = vec![
            cube::ownership_check(self.key, &self.claim),
            Check::Absent { key: keys::manifest(&self.key.tenant, &self.key.cube) },
        ];
        let mut tries = 0;
        loop {
            let (checks, mutations) = (checks.clone(), mutations.clone());
            match cube::commit(self.store, self.environment, checks, mutations).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) if tries < TRIES_MAX => {
                    // A store may refuse without reason.
                    self.check_claim().await?;
                }
                Err(StoreError::Overloaded | StoreError::Unavailable { .. })
                    if tries < TRIES_MAX => {}
                // An outcome that stays unknown is settled by the claim of the next try.
                Err(error) => return Err(error.into()),
            }
            back_off(tries).await;
            tries += 1;
        }
    }

    async fn check_claim(&self) -> Result<()> {
        if manifest_in(self.store, self.environment, self.key).await?.is_some() {
            return Err(occupied(self.key));
        }
        let range = RangeRead::key(keys::ownership(&self.key.tenant, &self.key.cube));
        let output = read(self.store, self.environment, vec![range]).await?;
        let row = take_first(output.pages.into_iter().next()).map(|entry| entry.version);
        if row == Some(self.claim.row) {
            return Ok(());
        }
        let cube = &self.key.cube;
        let message =
            format!("another restore, or a node, has claimed the cube `{cube}` meanwhile");
        Err(Error::new(ErrorKind::Conflict, message))
    }
}

fn mutation_bytes(mutation: &Mutation) -> usize {
    match mutation {
        Mutation::Set { key, value } => key.len() + value.len(),
        Mutation::Clear { key } | Mutation::Add { key, .. } => key.len(),
        Mutation::ClearRange { range } => range.start.len() + range.end.len(),
        Mutation::SetVersionstamped { prefix, value } => prefix.len() + value.len(),
    }
}
