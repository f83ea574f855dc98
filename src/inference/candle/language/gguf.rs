//! Reads a model from a GGUF file: numbers, weights, tokenizer data and chat template.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};

use super::error::ModelError;
use super::kernels::Gate;
use super::panels::{BLOCK, Encoding, Panels};
use super::pass::HEAD_DIM_MAX;
use super::weights::{Angles, Architecture, Layer, ModelConfig, Weights};
use crate::inference::candle::aligned::AlignedFloats;
use crate::inference::candle::simd::PANEL;

/// Base of the rotary angles where a file names none.
const ROPE_BASE: f32 = 10_000.0;
/// One layer of so many in Gemma 3 looks at everything, if the file does not say otherwise.
const GEMMA_GLOBAL_EVERY: usize = 6;
/// Entries that change the rotary angles in ways that are not known here.
const ROPE_SCALING: [&str; 2] = ["rope.scaling.type", "rope.scaling.factor"];

/// An open file.
pub(super) struct Gguf {
    pub(super) content: Content,
    reader: BufReader<File>,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path)
            .map_err(|source| ModelError::File { path: path.to_owned(), source })?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader)
            .map_err(|source| ModelError::NotAModel { path: path.to_owned(), source })?;
        Ok(Self { content, reader })
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.content.metadata.get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.value(name).and_then(|value| value.to_string().ok()).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<usize> {
        let value = self.value(name)?;
        let number = value.to_u64().ok().or_else(|| value.to_u32().ok().map(u64::from));
        number.and_then(|number| usize::try_from(number).ok())
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.value(name).and_then(|value| value.to_bool().ok())
    }

    pub(super) fn float(&self, name: &str) -> Option<f32> {
        self.value(name).and_then(|value| value.to_f32().ok())
    }

    pub(super) fn list(&self, name: &str) -> Result<&[Value], ModelError> {
        let list = self.value(name).and_then(|value| value.to_vec().ok());
        list.map(Vec::as_slice).ok_or_else(|| ModelError::missing(name))
    }

    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>, ModelError> {
        let text = |value: &Value| value.to_string().cloned();
        let texts: Result<_, _> = self.list(name)?.iter().map(text).collect();
        texts.map_err(|error| ModelError::invalid(name, error.to_string()))
    }

    /// The numbers of the model.
    pub(super) fn config(&self) -> Result<ModelConfig, ModelError> {
        let family = self
            .text("general.architecture")
            .ok_or_else(|| ModelError::missing("general.architecture"))?
            .to_owned();
        let architecture = match family.as_str() {
            "llama" => Architecture::Llama,
            "gemma3" => Architecture::Gemma3,
            _ => return Err(ModelError::UnknownArchitecture { found: family }),
        };
        let key = |name: &str| format!("{family}.{name}");
        let number =
            |name: &str| self.number(&key(name)).ok_or_else(|| ModelError::missing(&key(name)));
        let heads = number("attention.head_count")?;
        let width = number("embedding_length")?;
        let head_dim =
            self.number(&key("attention.key_length")).unwrap_or_else(|| width / heads.max(1));
        let config = ModelConfig {
            architecture,
            layers: number("block_count")?,
            width,
            wide: number("feed_forward_length")?,
            heads,
            kv_heads: self.number(&key("attention.head_count_kv")).unwrap_or(heads),
            head_dim,
            vocabulary: self.list("tokenizer.ggml.tokens")?.len(),
            window_tokens: number("context_length")?,
            rope_base: self.float(&key("rope.freq_base")).unwrap_or(ROPE_BASE),
            norm_epsilon: self
                .float(&key("attention.layer_norm_rms_epsilon"))
                .ok_or_else(|| ModelError::missing(&key("attention.layer_norm_rms_epsilon")))?,
            local_window_tokens: self.number(&key("attention.sliding_window")),
        };
        let rotated = self.number(&key("rope.dimension_count")).unwrap_or(head_dim);
        if rotated != head_dim {
            return Err(ModelError::invalid(
                &key("rope.dimension_count"),
                format!("{rotated} of {head_dim} values of a head are rotated, expected all"),
            ));
        }
        let scaled = ROPE_SCALING.iter().map(|name| key(name));
        let scaled =
            scaled.filter(|name| self.value(name).is_some() && self.text(name) != Some("none"));
        let tensor = "rope_freqs.weight".to_owned();
        let tensor = self.content.tensor_infos.contains_key(&tensor).then_some(tensor);
        if let Some(name) = scaled.chain(tensor).next() {
            return Err(ModelError::invalid(
                &name,
                "scaled rotations are not supported".to_owned(),
            ));
        }
        check(&config)?;
        Ok(config)
    }

    /// The weights of the model.
    pub(super) fn weights(&mut self, config: &ModelConfig) -> Result<Weights, ModelError> {
        let gemma = config.architecture == Architecture::Gemma3;
        let (width, vocabulary) = (config.width, config.vocabulary);
        let embedding = self.panels("token_embd", vocabulary, width, |row| row)?;
        let head = if self.content.tensor_infos.contains_key("output.weight") {
            Some(self.panels("output", vocabulary, width, |row| row)?)
        } else {
            None
        };
        let layers =
            (0..config.layers).map(|index| self.layer(config, index)).collect::<Result<_, _>>()?;
        let positions = config.window_tokens;
        let angles = |base| Angles::new(base, config.head_dim, positions);
        Ok(Weights {
            embedding,
            embedding_scale: if gemma { (width as f32).sqrt() } else { 1.0 },
            layers,
            norm: self.gain("output_norm", width)?,
            head,
            gate: if gemma { Gate::Gelu } else { Gate::Silu },
            score_scale: 1.0 / (config.head_dim as f32).sqrt(),
            global_angles: angles(config.rope_base),
            local_angles: gemma.then(|| angles(ROPE_BASE)),
        })
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer, ModelError> {
        let gemma = config.architecture == Architecture::Gemma3;
        let name = |part: &str| format!("blk.{index}.{part}");
        let (width, wide, dim) = (config.width, config.wide, config.head_dim);
        // Llama's files hold the pairs of a rotation side by side; here they are half a head
        // apart.
        let rotated = |column: usize| {
            let (head, at) = (column / dim, column % dim);
            if gemma { column } else { head * dim + at % (dim / 2) * 2 + at / (dim / 2) }
        };
        let plain = |column: usize| column;
        let (queries, keys) = (config.query_width(), config.kv_width());
        let mut norm = |part: &str, len: usize| {
            if gemma { self.gain(&name(part), len).map(Some) } else { Ok(None) }
        };
        let mix_norm = norm("post_attention_norm", width)?;
        let down_norm = norm("post_ffw_norm", width)?;
        let query_norm = norm("attn_q_norm", dim)?;
        let key_norm = norm("attn_k_norm", dim)?;
        let every = self.number("gemma3.attention.sliding_window_pattern");
        let every = every.unwrap_or(GEMMA_GLOBAL_EVERY);
        let is_local = gemma && !(index + 1).is_multiple_of(every);
        Ok(Layer {
            attention_norm: self.gain(&name("attn_norm"), width)?,
            query: self.panels(&name("attn_q"), queries, width, rotated)?,
            key: self.panels(&name("attn_k"), keys, width, rotated)?,
            value: self.panels(&name("attn_v"), keys, width, plain)?,
            head_norms: query_norm.zip(key_norm),
            mix: self.panels(&name("attn_output"), width, queries, plain)?,
            mix_norm,
            wide_norm: self.gain(&name("ffn_norm"), width)?,
            gate: self.panels(&name("ffn_gate"), wide, width, plain)?,
            up: self.panels(&name("ffn_up"), wide, width, plain)?,
            down: self.panels(&name("ffn_down"), width, wide, plain)?,
            down_norm,
            window: config.local_window_tokens.filter(|_| is_local),
        })
    }

    fn panels(
        &mut self,
        name: &str,
        columns: usize,
        depth: usize,
        row_of: impl Fn(usize) -> usize,
    ) -> Result<Panels, ModelError> {
        let name = format!("{name}.weight");
        let tensor = self.tensor(&name, &[columns, depth])?;
        let encoding = match tensor.dtype() {
            GgmlDType::Q4_0 => Some(Encoding::Q4_0),
            GgmlDType::Q4_1 => Some(Encoding::Q4_1),
            GgmlDType::Q5_0 => Some(Encoding::Q5_0),
            GgmlDType::Q5_1 => Some(Encoding::Q5_1),
            GgmlDType::Q8_0 => Some(Encoding::Q8_0),
            GgmlDType::F32
            | GgmlDType::F16
            | GgmlDType::BF16
            | GgmlDType::Q8_1
            | GgmlDType::Q2K
            | GgmlDType::Q3K
            | GgmlDType::Q4K
            | GgmlDType::Q5K
            | GgmlDType::Q6K
            | GgmlDType::Q8K => None,
        };
        if let Some(encoding) = encoding {
            let bytes = tensor.data().map_err(|error| ModelError::tensor(&name, error))?;
            return Ok(Panels::from_blocks(&bytes, encoding, depth, row_of));
        }
        let floats = floats_of(&tensor).map_err(|error| ModelError::tensor(&name, error))?;
        Ok(Panels::from_floats(&floats, depth, row_of))
    }

    fn gain(&mut self, name: &str, len: usize) -> Result<AlignedFloats, ModelError> {
        let name = format!("{name}.weight");
        let tensor = self.tensor(&name, &[len])?;
        let floats = floats_of(&tensor).map_err(|error| ModelError::tensor(&name, error))?;
        Ok(AlignedFloats::copied(&floats))
    }

    fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<candle_core::quantized::QTensor, ModelError> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(ModelError::missing(name));
        };
        if info.shape.dims() != shape {
            return Err(ModelError::WrongShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: info.shape.dims().to_vec(),
            });
        }
        self.content
            .tensor(&mut self.reader, name, &Device::Cpu)
            .map_err(|error| ModelError::tensor(name, error))
    }
}

fn floats_of(tensor: &candle_core::quantized::QTensor) -> candle_core::Result<Vec<f32>> {
    tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// What the kernels rely on.
pub(super) fn check(config: &ModelConfig) -> Result<(), ModelError> {
    let positive = [
        ("layers", config.layers),
        ("heads", config.heads),
        ("key-value heads", config.kv_heads),
        ("window", config.window_tokens),
        ("vocabulary", config.vocabulary),
    ];
    for (name, value) in positive {
        if value == 0 {
            return Err(ModelError::invalid(name, "it is zero".to_owned()));
        }
    }
    let whole = [
        ("width", config.width, BLOCK),
        ("feed-forward width", config.wide, PANEL),
        ("head width", config.head_dim, PANEL),
        ("vocabulary", config.vocabulary, PANEL),
        ("heads", config.heads, config.kv_heads),
    ];
    for (name, value, factor) in whole {
        if value == 0 || !value.is_multiple_of(factor) {
            let message = format!("{value} is not a multiple of {factor}");
            return Err(ModelError::invalid(name, message));
        }
    }
    if config.head_dim > HEAD_DIM_MAX {
        let message = format!("{} is more than {HEAD_DIM_MAX}", config.head_dim);
        return Err(ModelError::invalid("head width", message));
    }
    Ok(())
}
