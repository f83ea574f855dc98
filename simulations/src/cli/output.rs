//! The one place that prints: answers to standard output, everything else to standard error.

use std::{
    fmt::Display,
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde::Serialize;

/// Writes a line of the answer, and hands it on at once. Whoever closes standard output, as `head`
/// does, has seen enough; the verdict is in the exit code.
pub(crate) fn line(text: impl Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => Ok(()),
    }
}

/// Writes the answer as one line of JSON.
pub(crate) fn json(answer: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(answer).context("the answer has no JSON form")?)
}

/// Writes the answer as JSON for people.
pub(crate) fn json_pretty(answer: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(answer).context("the answer has no JSON form")?)
}

/// Writes a line to standard error. A closed one is no reason to fail.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes rows in columns as wide as their widest cell; the last column is as wide as it likes.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Result<()> {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let written = |cells: Vec<&str>| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<String>>().join("  ").trim_end().to_owned()
    };
    line(written(head.to_vec()))?;
    for row in rows {
        line(written(row.iter().map(String::as_str).collect()))?;
    }
    Ok(())
}

/// Writes a file, and the folders above it.
pub(crate) fn file(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    folder.and_then(|()| fs::write(path, text)).with_context(|| {
        format!("cannot write `{}`: name a file that can be written", path.display())
    })
}

/// What went wrong, from the outermost to the innermost cause; causes that were told already are
/// not repeated.
pub(crate) fn in_one_sentence(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told.trim_end().to_owned()
}

/// One line of a text: what is on further lines follows after a space.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<&str>>().join(" ")
}

/// A number with its noun: `1 run`, `2 runs`.
pub(crate) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
