//! The file `memcube-store` of a data directory: format, lock, and the acknowledgement mark.
//!
//! The storage engine cannot tell a torn tail of its journal from damage inside it: it cuts the
//! journal at the first entry that it cannot read, without an error. The mark closes that gap. It
//! holds the last version that was made durable, and is written after each group but not synced.
//! Invariant: the mark is never ahead of what is durable, so a store that opens behind it has lost
//! acknowledged commits. After a loss of power the mark may lag, and the check is as weak as its
//! lag.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use memcube_actors::storage::StoreError;
use memcube_schemas::Version;

/// The newest layout of the directory that this code reads, and the one that it writes.
const FORMAT: u32 = 1;
const FILE_NAME: &str = "memcube-store";
const HEADER_START: &str = "memcube state store, format ";
/// Header and mark are in one sector each, so that writing the mark cannot harm the header.
const MARK_OFFSET: u64 = 512;
const FILE_BYTES: usize = 512 + MARK_BYTES;
/// The version, and its complement as a check.
const MARK_BYTES: usize = 16;

/// A data directory, locked for this process while the value lives.
pub(super) struct Directory {
    path: PathBuf,
    file: File,
}

impl Directory {
    /// Locks a directory and checks its format; makes it if it is not there.
    ///
    /// Also returns the version that the store must have reached.
    pub(super) fn open(path: &Path) -> Result<(Self, Version), StoreError> {
        let unusable = |error: io::Error| StoreError::Unavailable {
            reason: format!(
                "cannot use the data directory `{}`: {error}; make it a writable directory or \
                 choose another --data-dir",
                path.display()
            ),
        };
        std::fs::create_dir_all(path).map_err(unusable)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(FILE_NAME))
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(path)),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        let directory = Self { path: path.to_path_buf(), file };
        let version = match directory.read_mark()? {
            Some(version) => version,
            None => directory.initialise().map_err(unusable)?,
        };
        Ok((directory, version))
    }

    /// Where the engine keeps its files.
    pub(super) fn engine_path(&self) -> PathBuf {
        self.path.join("fjall")
    }

    /// Writes the mark; the operating system brings it to the disk when it likes.
    pub(super) fn mark(&self, version: Version) -> io::Result<()> {
        let mut bytes = [0_u8; MARK_BYTES];
        bytes[..8].copy_from_slice(&version.0.to_le_bytes());
        bytes[8..].copy_from_slice(&(!version.0).to_le_bytes());
        self.file.write_all_at(&bytes, MARK_OFFSET)
    }

    /// Brings the mark to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The mark, or `None` if the file was never completely written.
    fn read_mark(&self) -> Result<Option<Version>, StoreError> {
        let mut bytes = Vec::new();
        (&self.file).take(FILE_BYTES as u64).read_to_end(&mut bytes).map_err(|error| {
            StoreError::Unavailable {
                reason: format!("cannot read `{}/{FILE_NAME}`: {error}", self.path.display()),
            }
        })?;
        if bytes.len() < FILE_BYTES {
            // The file is complete and synced before the engine's files are made.
            return if self.engine_path().exists() {
                Err(self.corrupt("it is missing or cut short"))
            } else {
                Ok(None)
            };
        }
        self.check_format(&bytes[..HEADER_START.len() + 16])?;
        let (value, complement) = bytes[MARK_OFFSET as usize..].split_at(8);
        let [value, complement] = [value, complement]
            .map(|half| u64::from_le_bytes(half.try_into().expect("invariant: 8 bytes")));
        if value != !complement {
            return Err(self.corrupt("its mark is not valid"));
        }
        Ok(Some(Version(value)))
    }

    fn check_format(&self, header: &[u8]) -> Result<(), StoreError> {
        let text = String::from_utf8_lossy(header);
        let number = text.strip_prefix(HEADER_START).and_then(|rest| rest.split('\n').next());
        let Some(format) = number.and_then(|number| number.parse::<u32>().ok()) else {
            return Err(self.corrupt("its header is not valid"));
        };
        if format > FORMAT {
            return Err(StoreError::Unavailable {
                reason: format!(
                    "`{}` was written by a newer memcube (format {format}, this one reads up to \
                     {FORMAT}); install that version or choose another --data-dir",
                    self.path.display()
                ),
            });
        }
        Ok(())
    }

    fn initialise(&self) -> io::Result<Version> {
        let mut header = format!("{HEADER_START}{FORMAT}\n").into_bytes();
        header.resize(MARK_OFFSET as usize, 0);
        self.file.write_all_at(&header, 0)?;
        self.mark(Version(0))?;
        self.file.sync_all()?;
        File::open(&self.path)?.sync_all()?;
        Ok(Version(0))
    }

    fn corrupt(&self, what: &str) -> StoreError {
        corrupt(&self.path, &format!("the file `{FILE_NAME}` is damaged: {what}"))
    }
}

/// Another process has the directory.
pub(super) fn locked(path: &Path) -> StoreError {
    StoreError::Unavailable {
        reason: format!(
            "another memcube is using `{}`; stop it or choose another --data-dir",
            path.display()
        ),
    }
}

/// The directory as a whole is damaged.
pub(super) fn corrupt(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt {
        reason: format!(
            "{what}; keep a copy of `{}`, then restore it from a backup",
            path.display()
        ),
    }
}
