//! Models run by memcube itself, on candle's tensors and our own kernels.

mod aligned;
mod checkpoint;
pub mod engine;
pub mod language;
mod minilm;
mod minilm_forward;
#[cfg(test)]
mod minilm_tests;
mod simd;
#[cfg(test)]
mod simd_tests;
mod team;
mod tensor_path;
mod vector;

use std::{fmt, fs, path::Path, sync::Arc};

use memcube_actors::{
    Error, ErrorKind, Result,
    embedder::{Embedder, Embedding as Vector},
};
use memcube_schemas::ModelId;
use sha2::{Digest, Sha256};

pub use checkpoint::LoadError;
pub use minilm::{EmbedError, Embedding, MiniLm, PIECES_MAX};

use crate::settings::EmbedderSettings;

/// SHA-256 of each file of the model, as `sha256sum` writes them.
pub const MINILM_CHECKSUMS: &str = include_str!("../../../deploy/models/minilm-l6-v2.sha256");
/// The file whose checksum names the model.
const WEIGHTS: &str = "model.safetensors";
/// Digits of the weights' checksum in the model's id: enough to tell weights apart.
const ID_DIGITS: usize = 8;

/// MiniLM as the actors see it.
struct MiniLmEmbedder {
    id: ModelId,
    model: MiniLm,
}

impl fmt::Debug for MiniLmEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MiniLmEmbedder").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Embedder for MiniLmEmbedder {
    fn model(&self) -> &ModelId {
        &self.id
    }

    fn embed(&self, texts: &[&str]) -> std::result::Result<Vec<Vector>, String> {
        let embeddings = self.model.embed(texts).map_err(|error| error.to_string())?;
        let vector =
            |embedding: Embedding| Vector { vector: embedding.vector, tokens: embedding.tokens };
        Ok(embeddings.into_iter().map(vector).collect())
    }
}

/// Opens MiniLM after checking its files against the pinned checksums.
///
/// # Errors
/// `Unavailable` when a file is missing, `Corrupt` when one is not the pinned one or cannot be
/// read.
pub fn open(settings: &EmbedderSettings) -> Result<Arc<dyn Embedder>> {
    let weights = verify(&settings.model_dir)?;
    let model = open_model(&settings.model_dir, processors(settings.threads)).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("the embedding model cannot be loaded: {error}"))
    })?;
    let id = ModelId::new(format!("minilm-l6-v2@{}", &weights[..ID_DIGITS]))?;
    Ok(Arc::new(MiniLmEmbedder { id, model }))
}

/// So many processors; 0 stands for all.
fn processors(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    }
}

#[cfg(not(any(feature = "cuda", feature = "metal")))]
fn open_model(dir: &Path, threads: usize) -> std::result::Result<MiniLm, LoadError> {
    MiniLm::open(dir, threads)
}

#[cfg(any(feature = "cuda", feature = "metal"))]
fn open_model(dir: &Path, threads: usize) -> std::result::Result<MiniLm, LoadError> {
    #[cfg(feature = "cuda")]
    let device = candle_core::Device::new_cuda(0);
    #[cfg(not(feature = "cuda"))]
    let device = candle_core::Device::new_metal(0);
    match device {
        Ok(device) => MiniLm::open_on_device(dir, &device),
        Err(error) => {
            tracing::warn!(%error, "no GPU found, embedding on the processor");
            MiniLm::open(dir, threads)
        }
    }
}

/// Compares the files of a model directory with the pinned checksums; returns that of the weights.
///
/// # Errors
/// `Unavailable` when a file is missing, `Corrupt` when one differs.
pub fn verify(dir: &Path) -> Result<String> {
    let mut weights = String::new();
    for line in MINILM_CHECKSUMS.lines().filter(|line| !line.trim().is_empty()) {
        let Some((expected, name)) = line.split_once("  ") else { continue };
        let path = dir.join(name.trim());
        let bytes = fs::read(&path).map_err(|error| {
            Error::unavailable(format!(
                "the embedding model's file `{}` cannot be read: {error}; run `make model`, name \
                 another directory with `--model-dir`, or set `--embedder none`",
                path.display()
            ))
        })?;
        let found = hex(&Sha256::digest(&bytes));
        if found != expected {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the embedding model's file `{}` is not the pinned one: its SHA-256 is \
                     {found}, expected {expected}; delete it and run `make model`",
                    path.display()
                ),
            ));
        }
        if name.trim() == WEIGHTS {
            weights = found;
        }
    }
    Ok(weights)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
