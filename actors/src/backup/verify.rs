//! Reads a whole backup without restoring it: every part, every row, and whether each cube has as
//! many
//! items as its manifest says.

use std::collections::BTreeSet;

use memcube_schemas::{
    MemoryId,
    backup::{BackupCube, PartKind, RowChange},
};

use super::{
    Archive, CubeFailure, Progress, Report,
    archive::{check_row, manifest_of},
};
use crate::error::{Error, ErrorKind, Result};

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyOutcome {
    /// Cubes that are whole.
    pub cubes: u64,
    /// Rows that were read.
    pub rows: u64,
    /// Cubes that cannot be restored, and why.
    pub failures: Vec<CubeFailure>,
    /// What else is damaged: parts of the index, API keys, parts that no cube needs.
    pub damages: Vec<Error>,
}

impl VerifyOutcome {
    /// Whether everything can be restored.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.failures.is_empty() && self.damages.is_empty()
    }
}

/// Reads and checks everything in a backup.
///
/// # Errors
/// `Unavailable` when the object store does not answer. Damage is no error: the outcome names it.
pub async fn verify(archive: &mut Archive, report: Report<'_>) -> Result<VerifyOutcome> {
    let mut outcome = VerifyOutcome::default();
    let mut seen = BTreeSet::new();
    for number in 1..=archive.count(PartKind::Cubes) {
        let cubes = match archive.cubes(number).await {
            Ok(cubes) => cubes,
            Err(error) => {
                outcome.damages.push(damage(error)?);
                continue;
            }
        };
        for cube in cubes {
            if cube.rows > 0 {
                seen.extend(cube.first_part..=cube.last_part);
            }
            match verify_cube(archive, &cube).await {
                Ok(()) => outcome.cubes += 1,
                Err(error) => {
                    let error = damage(error)?;
                    let BackupCube { tenant, cube, .. } = cube;
                    outcome.failures.push(CubeFailure { tenant, cube, error });
                    continue;
                }
            }
            outcome.rows += cube.rows;
            report(Progress { cubes: outcome.cubes, rows: outcome.rows });
        }
    }
    for number in (1..=archive.count(PartKind::Rows)).filter(|number| !seen.contains(number)) {
        if let Err(error) = archive.rows(number).await {
            outcome.damages.push(damage(error)?);
        }
    }
    for number in 1..=archive.count(PartKind::ApiKeys) {
        if let Err(error) = archive.api_keys(number).await {
            outcome.damages.push(damage(error)?);
        }
    }
    if outcome.is_whole() && outcome.cubes != archive.manifest().cubes {
        let message = "the index of the backup does not list as many cubes as its manifest says";
        outcome.damages.push(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(outcome)
}

/// What is wrong with the backup, as against an object store that does not answer.
pub(super) fn damage(error: Error) -> Result<Error> {
    if error.kind() == ErrorKind::Unavailable { Err(error) } else { Ok(error) }
}

async fn verify_cube(archive: &mut Archive, cube: &BackupCube) -> Result<()> {
    let manifest = manifest_of(cube)?;
    let mut rows = 0;
    let mut items: BTreeSet<MemoryId> = BTreeSet::new();
    for number in parts_of(cube) {
        for row in archive.rows(number).await?.iter().filter(|row| row.scan == cube.scan) {
            rows += 1;
            check_row(&row.change)?;
            match &row.change {
                RowChange::Item { id, .. } => {
                    items.insert(*id);
                }
                RowChange::ForgetMemory(id) => {
                    items.remove(id);
                }
                RowChange::History { .. }
                | RowChange::Vector { .. }
                | RowChange::Request { .. }
                | RowChange::ForgetVectors => {}
            }
        }
    }
    check_rows(cube, rows)?;
    if items.len() as u64 != manifest.items {
        let (found, due) = (items.len(), manifest.items);
        let message = format!("the backup holds {found} items of the cube in place of {due}");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(())
}

/// The parts that may hold rows of a cube.
pub(super) fn parts_of(cube: &BackupCube) -> impl Iterator<Item = u32> {
    let last = if cube.rows == 0 { 0 } else { cube.last_part };
    cube.first_part..=last
}

/// Whether all rows of a cube were found.
pub(super) fn check_rows(cube: &BackupCube, rows: u64) -> Result<()> {
    if rows == cube.rows {
        return Ok(());
    }
    let message = format!("the backup holds {rows} rows of the cube in place of {}", cube.rows);
    Err(Error::new(ErrorKind::Corrupt, message))
}
