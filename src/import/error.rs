//! What can be wrong with a file.

use std::{fmt, io};

use super::Format;

/// Why a file cannot be imported, or not to its end.
#[derive(Debug)]
pub enum ImportError {
    /// The file cannot be opened or read.
    Io(io::Error),
    /// There is nothing in the file.
    Empty,
    /// The file, or the name of the format, is none that is known.
    UnknownFormat {
        /// What was found instead.
        found: String,
    },
    /// The text is not UTF-8.
    NotUtf8 {
        /// The line, from 1 on.
        line: u64,
    },
    /// The file ends inside a record.
    Truncated {
        /// The line in which the unfinished record begins.
        line: u64,
    },
    /// The text is not JSON.
    NotJson {
        /// The line, from 1 on.
        line: u64,
        /// The column in bytes, from 1 on.
        column: usize,
        /// What the JSON reader says.
        reason: String,
    },
    /// The JSON is not what the format asks for.
    Unexpected {
        /// The line, from 1 on.
        line: u64,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// One record is too large.
    TooLarge {
        /// The line in which it begins.
        line: u64,
        /// The limit.
        bytes_max: usize,
    },
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot read the file: {error}"),
            Self::Empty => f.write_str("the file holds no record"),
            Self::UnknownFormat { found } => {
                write!(f, "found {found}, which is no known format; the formats are ")?;
                for (position, format) in Format::ALL.into_iter().enumerate() {
                    let separator = if position == 0 { "" } else { ", " };
                    write!(f, "{separator}`{format}`")?;
                }
                Ok(())
            }
            Self::NotUtf8 { line } => write!(f, "line {line}: the text is not UTF-8"),
            Self::Truncated { line } => {
                write!(f, "the file ends inside the record that begins on line {line}")
            }
            Self::NotJson { line, column, reason } => {
                write!(f, "line {line}, column {column}: not JSON: {reason}")
            }
            Self::Unexpected { line, expected, found } => {
                write!(f, "line {line}: expected {expected}, found {found}")
            }
            Self::TooLarge { line, bytes_max } => {
                write!(f, "the record on line {line} has more than {bytes_max} bytes")
            }
        }
    }
}

impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Empty
            | Self::UnknownFormat { .. }
            | Self::NotUtf8 { .. }
            | Self::Truncated { .. }
            | Self::NotJson { .. }
            | Self::Unexpected { .. }
            | Self::TooLarge { .. } => None,
        }
    }
}
