//! Reads a model from a folder as model hubs lay it out: `config.json`, `model.safetensors`,
//! `tokenizer.json`, `tokenizer_config.json`.

use std::fs;
use std::path::Path;

use candle_core::safetensors::BufferedSafetensors;
use candle_core::{DType, Device};
use serde::Deserialize;

use super::error::ModelError;
use super::gguf::check;
use super::kernels::Gate;
use super::panels::Panels;
use super::weights::{Angles, Architecture, Layer, ModelConfig, Weights};
use crate::inference::candle::aligned::AlignedFloats;
use crate::inference::candle::simd::PANEL;

pub(super) const WEIGHTS: &str = "model.safetensors";

/// What `config.json` says.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<serde_json::Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
}

/// An open folder.
pub(super) struct Checkpoint {
    tensors: BufferedSafetensors,
    pub(super) config: ModelConfig,
    /// Tokens before the vocabulary was filled up to whole panels.
    vocabulary: usize,
}

/// Reads a JSON file.
pub(super) fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text =
        fs::read(path).map_err(|source| ModelError::File { path: path.to_owned(), source })?;
    serde_json::from_slice(&text)
        .map_err(|source| ModelError::Config { path: path.to_owned(), source })
}

impl Checkpoint {
    pub(super) fn open(dir: &Path) -> Result<Self, ModelError> {
        let config: Config = json(&dir.join("config.json"))?;
        if config.model_type != "llama" {
            return Err(ModelError::UnknownArchitecture { found: config.model_type });
        }
        let unusual = [
            ("rope_scaling", config.rope_scaling.is_some_and(|scaling| !scaling.is_null())),
            ("attention_bias", config.attention_bias),
            ("mlp_bias", config.mlp_bias),
            ("hidden_act", config.hidden_act.is_some_and(|gate| gate != "silu")),
        ];
        if let Some((name, _)) = unusual.iter().find(|(_, is_set)| *is_set) {
            return Err(ModelError::invalid(name, "it is not supported".to_owned()));
        }
        let heads = config.num_attention_heads;
        let vocabulary = config.vocab_size;
        let config = ModelConfig {
            architecture: Architecture::Llama,
            layers: config.num_hidden_layers,
            width: config.hidden_size,
            wide: config.intermediate_size,
            heads,
            kv_heads: config.num_key_value_heads.unwrap_or(heads),
            head_dim: config.head_dim.unwrap_or_else(|| config.hidden_size / heads.max(1)),
            vocabulary: vocabulary.next_multiple_of(PANEL),
            window_tokens: config.max_position_embeddings,
            rope_base: config.rope_theta.unwrap_or(10_000.0),
            norm_epsilon: config.rms_norm_eps,
            local_window_tokens: None,
        };
        check(&config)?;
        let path = dir.join(WEIGHTS);
        let bytes =
            fs::read(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        let tensors = BufferedSafetensors::new(bytes)
            .map_err(|source| ModelError::NotAModel { path, source })?;
        Ok(Self { tensors, config, vocabulary })
    }

    pub(super) fn weights(&self) -> Result<Weights, ModelError> {
        let config = &self.config;
        let tokens = |name: &str| -> Result<Panels, ModelError> {
            let mut floats = self.floats(name, &[self.vocabulary, config.width])?;
            floats.resize(config.vocabulary * config.width, 0.0);
            Ok(Panels::from_floats(&floats, config.width, |row| row))
        };
        let head = match self.tensors.get("lm_head.weight") {
            Ok(_) => Some(tokens("lm_head.weight")?),
            Err(_) => None,
        };
        Ok(Weights {
            embedding: tokens("model.embed_tokens.weight")?,
            embedding_scale: 1.0,
            layers: (0..config.layers).map(|index| self.layer(index)).collect::<Result<_, _>>()?,
            norm: self.gain("model.norm.weight")?,
            head,
            gate: Gate::Silu,
            score_scale: 1.0 / (config.head_dim as f32).sqrt(),
            global_angles: Angles::new(config.rope_base, config.head_dim, config.window_tokens),
            local_angles: None,
        })
    }

    fn layer(&self, index: usize) -> Result<Layer, ModelError> {
        let config = &self.config;
        let (width, wide) = (config.width, config.wide);
        let (queries, keys) = (config.query_width(), config.kv_width());
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let panels = |part: &str, columns: usize, depth: usize| -> Result<Panels, ModelError> {
            let floats = self.floats(&name(part), &[columns, depth])?;
            Ok(Panels::from_floats(&floats, depth, |row| row))
        };
        Ok(Layer {
            attention_norm: self.gain(&name("input_layernorm"))?,
            query: panels("self_attn.q_proj", queries, width)?,
            key: panels("self_attn.k_proj", keys, width)?,
            value: panels("self_attn.v_proj", keys, width)?,
            head_norms: None,
            mix: panels("self_attn.o_proj", width, queries)?,
            mix_norm: None,
            wide_norm: self.gain(&name("post_attention_layernorm"))?,
            gate: panels("mlp.gate_proj", wide, width)?,
            up: panels("mlp.up_proj", wide, width)?,
            down: panels("mlp.down_proj", width, wide)?,
            down_norm: None,
            window: None,
        })
    }

    fn gain(&self, name: &str) -> Result<AlignedFloats, ModelError> {
        Ok(AlignedFloats::copied(&self.floats(name, &[self.config.width])?))
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let view = self.tensors.get(name).map_err(|_| ModelError::missing(name))?;
        if view.shape() != shape {
            return Err(ModelError::WrongShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: view.shape().to_vec(),
            });
        }
        let read = || {
            let tensor = self.tensors.load(name, &Device::Cpu)?;
            tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        };
        read().map_err(|error| ModelError::tensor(name, error))
    }
}
