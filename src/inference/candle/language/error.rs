//! What can go wrong with a language model.

use std::fmt;
use std::path::PathBuf;

/// Why a model could not be loaded.
#[derive(Debug)]
pub enum ModelError {
    /// A file is absent or cannot be read.
    File { path: PathBuf, source: std::io::Error },
    /// The file is not the pinned one.
    WrongChecksum { path: PathBuf, expected: String, found: String },
    /// The file is not a readable model.
    NotAModel { path: PathBuf, source: candle_core::Error },
    /// `config.json` cannot be read.
    Config { path: PathBuf, source: serde_json::Error },
    /// The model is of a family that is not known here.
    UnknownArchitecture { found: String },
    /// The file lacks an entry or a tensor.
    Missing { name: String },
    /// An entry has a value that cannot be used.
    Invalid { name: String, message: String },
    /// A tensor's shape is not the one the model's numbers ask for.
    WrongShape { name: String, expected: Vec<usize>, found: Vec<usize> },
    /// A tensor cannot be read.
    Tensor { name: String, source: candle_core::Error },
    /// The tokenizer cannot be made.
    Tokenizer { message: String },
    /// The chat template cannot be read.
    Template { message: String },
    /// The weights cannot be put on the device.
    Device(candle_core::Error),
}

impl ModelError {
    pub(super) fn missing(name: &str) -> Self {
        Self::Missing { name: name.to_owned() }
    }

    pub(super) fn invalid(name: &str, message: String) -> Self {
        Self::Invalid { name: name.to_owned(), message }
    }

    pub(super) fn tensor(name: &str, source: candle_core::Error) -> Self {
        Self::Tensor { name: name.to_owned(), source }
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, source } => {
                write!(out, "cannot read `{}`: {source}", path.display())
            }
            Self::WrongChecksum { path, expected, found } => write!(
                out,
                "`{}` is not the pinned file: its SHA-256 is {found}, expected {expected}",
                path.display()
            ),
            Self::NotAModel { path, source } => {
                write!(out, "`{}` is not a readable model: {source}", path.display())
            }
            Self::Config { path, source } => {
                write!(out, "invalid config `{}`: {source}", path.display())
            }
            Self::UnknownArchitecture { found } => {
                write!(out, "models of the family `{found}` cannot be run")
            }
            Self::Missing { name } => write!(out, "the model lacks `{name}`"),
            Self::Invalid { name, message } => {
                write!(out, "the model's `{name}` cannot be used: {message}")
            }
            Self::WrongShape { name, expected, found } => {
                write!(out, "tensor `{name}` has shape {found:?}, expected {expected:?}")
            }
            Self::Tensor { name, source } => write!(out, "cannot read tensor `{name}`: {source}"),
            Self::Tokenizer { message } => write!(out, "cannot use the tokenizer: {message}"),
            Self::Template { message } => write!(out, "cannot use the chat template: {message}"),
            Self::Device(source) => write!(out, "cannot move weights to the device: {source}"),
        }
    }
}

impl std::error::Error for ModelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::Config { source, .. } => Some(source),
            Self::NotAModel { source, .. } | Self::Tensor { source, .. } | Self::Device(source) => {
                Some(source)
            }
            Self::WrongChecksum { .. }
            | Self::UnknownArchitecture { .. }
            | Self::Missing { .. }
            | Self::Invalid { .. }
            | Self::WrongShape { .. }
            | Self::Tokenizer { .. }
            | Self::Template { .. } => None,
        }
    }
}

/// Why a pass gave no logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardError {
    /// There were no tokens.
    Empty,
    /// A token is not one of the model's.
    UnknownToken { token: u32, vocabulary: usize },
    /// The context would not fit the model's window.
    TooLong { tokens: usize, window_tokens: usize },
    /// The cache belongs to a model of another shape.
    WrongCache,
    /// The caller no longer wants the result.
    Cancelled,
    /// What the model computed is not numbers.
    NotFinite,
    /// The device failed.
    Device(String),
}

impl fmt::Display for ForwardError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(out, "there are no tokens to run"),
            Self::UnknownToken { token, vocabulary } => {
                write!(out, "token {token} is not among the model's {vocabulary}")
            }
            Self::TooLong { tokens, window_tokens } => {
                write!(out, "{tokens} tokens do not fit the model's window of {window_tokens}")
            }
            Self::WrongCache => write!(out, "the cache belongs to a model of another shape"),
            Self::Cancelled => write!(out, "cancelled"),
            Self::NotFinite => write!(out, "the model computed infinite numbers or none"),
            Self::Device(message) => write!(out, "the device failed: {message}"),
        }
    }
}

impl std::error::Error for ForwardError {}
