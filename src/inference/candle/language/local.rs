//! A model with its tokenizer and chat template, opened from a file or a folder.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use candle_core::Device;
use sha2::{Digest, Sha256};

use super::chat_template::ChatTemplate;
use super::checkpoint::{self, Checkpoint};
use super::error::ModelError;
use super::gguf::Gguf;
use super::model::{LanguageModel, PackedModel};
use super::tensor_model::TensorModel;
use super::tokenizer::Vocabulary;
use super::weights::{ModelConfig, Weights};

/// Bytes that are hashed at a time.
const HASHED_BYTES: usize = 1 << 20;

/// Everything about a model that is needed to chat with it.
pub struct LocalModel {
    model: Box<dyn LanguageModel>,
    vocabulary: Vocabulary,
    template: ChatTemplate,
    checksum: String,
    end_of_reply: Vec<u32>,
}

impl fmt::Debug for LocalModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalModel").field("checksum", &self.checksum).finish_non_exhaustive()
    }
}

impl LocalModel {
    /// Opens a GGUF file, or a folder as model hubs lay it out, to run on the device that memcube
    /// was built for, or else on up to `threads` threads of the processor. With a `checksum`, the
    /// SHA-256 of the weights' file has to be that one.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn open(path: &Path, checksum: Option<&str>, threads: usize) -> Result<Self, ModelError> {
        Self::load(path, checksum, |config, weights| on_device(config, weights, threads))
    }

    /// Opens the same to run as plain tensor operations on `device`.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn open_on_device(
        path: &Path,
        checksum: Option<&str>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::load(path, checksum, |config, weights| {
            let model = TensorModel::new(config, &weights, device).map_err(ModelError::Device)?;
            Ok(Box::new(model))
        })
    }

    fn load(
        path: &Path,
        checksum: Option<&str>,
        run_on: impl FnOnce(ModelConfig, Weights) -> Opened,
    ) -> Result<Self, ModelError> {
        let is_folder = path.is_dir();
        let weights = if is_folder { path.join(checkpoint::WEIGHTS) } else { path.to_owned() };
        let found = checksum_of(&weights)
            .map_err(|source| ModelError::File { path: weights.clone(), source })?;
        if let Some(expected) = checksum.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
            let expected = expected.to_owned();
            return Err(ModelError::WrongChecksum { path: weights, expected, found });
        }
        let Parts { config, weights, vocabulary, template } =
            if is_folder { open_folder(path)? } else { open_file(path)? };
        let model = run_on(config, weights)?;
        let (known, run) = (vocabulary.size(), model.config().vocabulary);
        if known > run {
            let message = format!("it has {known} tokens, the model {run}");
            return Err(ModelError::Tokenizer { message });
        }
        let template = ChatTemplate::new(&template, &vocabulary)?;
        let end_of_reply = end_of_reply(&vocabulary, &template);
        Ok(Self { model, vocabulary, template, checksum: found, end_of_reply })
    }

    /// The forward pass.
    pub fn model(&self) -> &dyn LanguageModel {
        &*self.model
    }

    /// The tokenizer.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// How messages are written.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// SHA-256 of the weights' file, in hexadecimal digits.
    pub fn checksum(&self) -> &str {
        &self.checksum
    }

    /// Tokens with which the model ends what it says.
    pub fn end_of_reply(&self) -> &[u32] {
        &self.end_of_reply
    }
}

struct Parts {
    config: ModelConfig,
    weights: Weights,
    vocabulary: Vocabulary,
    template: String,
}

fn open_file(path: &Path) -> Result<Parts, ModelError> {
    let mut gguf = Gguf::open(path)?;
    let config = gguf.config()?;
    let vocabulary = Vocabulary::from_gguf(&gguf)?;
    let name = "tokenizer.chat_template";
    let template = gguf.text(name).ok_or_else(|| ModelError::missing(name))?.to_owned();
    let weights = gguf.weights(&config)?;
    Ok(Parts { config, weights, vocabulary, template })
}

fn open_folder(dir: &Path) -> Result<Parts, ModelError> {
    let checkpoint = Checkpoint::open(dir)?;
    let settings: serde_json::Value = checkpoint::json(&dir.join("tokenizer_config.json"))?;
    let vocabulary = Vocabulary::from_json(&dir.join("tokenizer.json"), &settings)?;
    let template = settings.get("chat_template").and_then(serde_json::Value::as_str);
    let template = template.ok_or_else(|| ModelError::missing("chat_template"))?.to_owned();
    let weights = checkpoint.weights()?;
    Ok(Parts { config: checkpoint.config, weights, vocabulary, template })
}

type Opened = Result<Box<dyn LanguageModel>, ModelError>;

#[cfg(not(any(feature = "cuda", feature = "metal")))]
fn on_device(config: ModelConfig, weights: Weights, threads: usize) -> Opened {
    Ok(Box::new(PackedModel::new(config, weights, threads)))
}

#[cfg(any(feature = "cuda", feature = "metal"))]
fn on_device(config: ModelConfig, weights: Weights, threads: usize) -> Opened {
    #[cfg(feature = "cuda")]
    let device = Device::new_cuda(0);
    #[cfg(not(feature = "cuda"))]
    let device = Device::new_metal(0);
    match device {
        Ok(device) => {
            let model = TensorModel::new(config, &weights, &device).map_err(ModelError::Device)?;
            Ok(Box::new(model))
        }
        Err(error) => {
            tracing::warn!(%error, "no GPU found, the language model runs on the processor");
            Ok(Box::new(PackedModel::new(config, weights, threads)))
        }
    }
}

/// The tokens that the file names, and the mark that the template puts after what is said.
fn end_of_reply(vocabulary: &Vocabulary, template: &ChatTemplate) -> Vec<u32> {
    let closing = &template.frame(super::ChatRole::Assistant, false).after;
    let mark = closing.first().copied().filter(|&token| vocabulary.is_mark(token));
    let mut ends = vocabulary.ends().to_vec();
    ends.extend(mark);
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn checksum_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut bytes = vec![0; HASHED_BYTES];
    loop {
        let read = file.read(&mut bytes)?;
        if read == 0 {
            return Ok(crate::inference::candle::hex(&digest.finalize()));
        }
        digest.update(&bytes[..read]);
    }
}
