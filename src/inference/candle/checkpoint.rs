//! Reads and checks the files of a MiniLM checkpoint: `config.json` and `model.safetensors`.

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::safetensors::BufferedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

/// Width of the hidden state and of the sentence vector.
pub(super) const HIDDEN: usize = 384;
/// Attention heads in a layer.
pub(super) const HEADS: usize = 12;
/// Width of the feed-forward layer.
pub(super) const WIDE: usize = 1536;

/// Why a model directory could not be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// A file is absent or cannot be read.
    File { path: PathBuf, source: std::io::Error },
    /// `config.json` is not valid JSON of the expected form.
    Config { path: PathBuf, source: serde_json::Error },
    /// A setting in `config.json` describes a model other than MiniLM.
    UnsupportedConfig { setting: &'static str, expected: String, found: String },
    /// `model.safetensors` is not a readable safetensors file.
    Weights { path: PathBuf, source: candle_core::Error },
    /// The weights lack a tensor.
    MissingTensor { name: String },
    /// A tensor's shape is not the one the configuration asks for.
    WrongShape { name: String, expected: Vec<usize>, found: Vec<usize> },
    /// A tensor does not hold 32-bit floats.
    WrongDtype { name: String, found: String },
    /// `tokenizer.json` cannot be used.
    Tokenizer { path: PathBuf, message: String },
    /// The tensors could not be put on the device.
    Device(candle_core::Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, source } => {
                write!(out, "cannot read `{}`: {source}", path.display())
            }
            Self::Config { path, source } => {
                write!(out, "invalid config `{}`: {source}", path.display())
            }
            Self::UnsupportedConfig { setting, expected, found } => {
                write!(out, "unsupported model: `{setting}` is {found}, expected {expected}")
            }
            Self::Weights { path, source } => {
                write!(out, "invalid weights `{}`: {source}", path.display())
            }
            Self::MissingTensor { name } => write!(out, "tensor `{name}` is missing"),
            Self::WrongShape { name, expected, found } => {
                write!(out, "tensor `{name}` has shape {found:?}, expected {expected:?}")
            }
            Self::WrongDtype { name, found } => {
                write!(out, "tensor `{name}` holds {found}, expected f32")
            }
            Self::Tokenizer { path, message } => {
                write!(out, "invalid tokenizer `{}`: {message}", path.display())
            }
            Self::Device(source) => write!(out, "cannot move weights to the device: {source}"),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::Config { source, .. } => Some(source),
            Self::Weights { source, .. } | Self::Device(source) => Some(source),
            Self::UnsupportedConfig { .. }
            | Self::MissingTensor { .. }
            | Self::WrongShape { .. }
            | Self::WrongDtype { .. }
            | Self::Tokenizer { .. } => None,
        }
    }
}

/// The settings of `config.json` the forward pass depends on.
#[derive(Deserialize)]
pub(super) struct Config {
    hidden_size: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    pub(super) num_hidden_layers: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) type_vocab_size: usize,
    pub(super) layer_norm_eps: f32,
}

impl Config {
    fn check(&self, positions_min: usize) -> Result<(), LoadError> {
        let expect = |setting, expected: &dyn ToString, found: &dyn ToString| {
            let (expected, found) = (expected.to_string(), found.to_string());
            if expected == found {
                return Ok(());
            }
            Err(LoadError::UnsupportedConfig { setting, expected, found })
        };
        expect("hidden_size", &HIDDEN, &self.hidden_size)?;
        expect("num_attention_heads", &HEADS, &self.num_attention_heads)?;
        expect("intermediate_size", &WIDE, &self.intermediate_size)?;
        expect("hidden_act", &"gelu", &self.hidden_act)?;
        if self.max_position_embeddings < positions_min {
            return Err(LoadError::UnsupportedConfig {
                setting: "max_position_embeddings",
                expected: format!("at least {positions_min}"),
                found: self.max_position_embeddings.to_string(),
            });
        }
        Ok(())
    }
}

/// An opened checkpoint whose tensors are fetched by name.
pub(super) struct Checkpoint {
    pub(super) config: Config,
    tensors: BufferedSafetensors,
}

impl Checkpoint {
    /// Opens `config.json` and `model.safetensors` in `dir`.
    pub(super) fn open(dir: &Path, positions_min: usize) -> Result<Self, LoadError> {
        let path = dir.join("config.json");
        let config: Config = match serde_json::from_slice(&read(&path)?) {
            Ok(config) => config,
            Err(source) => return Err(LoadError::Config { path, source }),
        };
        config.check(positions_min)?;
        let path = dir.join("model.safetensors");
        let tensors = BufferedSafetensors::new(read(&path)?)
            .map_err(|source| LoadError::Weights { path, source })?;
        Ok(Self { config, tensors })
    }

    /// Copies a tensor of 32-bit floats after checking its shape.
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let view = self
            .tensors
            .get(name)
            .map_err(|_| LoadError::MissingTensor { name: name.to_owned() })?;
        if !matches!(DType::try_from(view.dtype()), Ok(DType::F32)) {
            let found = format!("{:?}", view.dtype()).to_lowercase();
            return Err(LoadError::WrongDtype { name: name.to_owned(), found });
        }
        if view.shape() != shape {
            return Err(LoadError::WrongShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: view.shape().to_vec(),
            });
        }
        let (words, _) = view.data().as_chunks();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// Puts a tensor of 32-bit floats on `device` after checking its shape.
    pub(super) fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor, LoadError> {
        Tensor::from_vec(self.floats(name, shape)?, shape, device).map_err(LoadError::Device)
    }
}

/// Reads a whole file, naming it in the error.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|source| LoadError::File { path: path.to_owned(), source })
}
