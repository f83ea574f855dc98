//! The one place that prints: answers to standard output, everything else to standard error.

use std::{
    fmt::{self, Display},
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Nobody reads standard output any more.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes a line of the answer, and hands it on at once.
pub(crate) fn line(text: impl Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    written.map_err(stdout_error)
}

/// Writes a part of a line of the answer, and hands it on at once.
pub(crate) fn part(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(stdout_error)
}

/// The error of a command that cannot write its answer.
pub(crate) fn stdout_error(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return anyhow::Error::new(StdoutClosed);
    }
    anyhow::Error::new(error).context("cannot write to standard output")
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

/// A bar of bytes on standard error, shown when that is a terminal.
pub(crate) fn bytes_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:30}] {percent:>3} %  {msg}  {elapsed}, {eta} to go",
    );
    bar(total, style.ok())
}

/// A bar of steps on standard error, shown when that is a terminal.
pub(crate) fn steps_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len}  {msg}  {elapsed}");
    bar(total, style.ok())
}

/// A moving sign with a message on standard error, shown when that is a terminal, for work whose
/// end nobody knows.
pub(crate) fn spinner(prefix: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix}  {msg}  {elapsed}");
    let bar = bar(0, style.ok());
    bar.set_prefix(prefix.to_owned());
    bar
}

fn bar(total: u64, style: Option<ProgressStyle>) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Some(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_millis(250));
    }
    bar
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

/// A number with its noun: `1 memory`, `2 memories`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let inner = || anyhow::anyhow!("no such file");
        let told = |error: anyhow::Error| in_one_sentence(&error);
        assert_eq!(told(inner()), "no such file");
        assert_eq!(told(inner().context("cannot read `x`")), "cannot read `x`: no such file");
        let repeated = inner().context("cannot read: no such file").context("`x`");
        assert_eq!(told(repeated), "`x`: cannot read: no such file");
    }

    #[test]
    fn numbers_have_their_noun() {
        assert_eq!(count(1, "memory", "memories"), "1 memory");
        assert_eq!(count(0, "memory", "memories"), "0 memories");
        assert_eq!(one_line(" a\n b\t"), "a b");
    }
}
