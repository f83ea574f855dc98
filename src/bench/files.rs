//! Folders made by `memeval.strip`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use memcube_actors::{Error, Result};

/// The questions of a folder.
pub(super) const QUESTIONS_FILE: &str = "questions.jsonl";

/// The conversations of a folder, in the order of their names.
///
/// # Errors
/// `Invalid` when the folder cannot be read or holds none.
pub(super) fn conversation_files(data: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(data).map_err(|error| cannot("read", data, &error))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| cannot("read", data, &error))?.path();
        let is_jsonl = path.extension().is_some_and(|extension| extension == "jsonl");
        if is_jsonl && path.file_name().is_some_and(|name| name != QUESTIONS_FILE) {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let data = data.display();
        return Err(Error::invalid(format!(
            "there is no conversation in `{data}`; make it with `python -m memeval.strip`"
        )));
    }
    Ok(files)
}

/// A file cannot be used.
pub(super) fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::invalid(format!("cannot {what} `{}`: {error}", path.display()))
}
