//! Tiny models with random weights, as files, and what they compute in double precision.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use tempfile::TempDir;

pub(super) const LAYERS: usize = 3;
pub(super) const WIDTH: usize = 64;
pub(super) const WIDE: usize = 96;
pub(super) const HEADS: usize = 4;
pub(super) const KV_HEADS: usize = 2;
pub(super) const HEAD_DIM: usize = 32;
pub(super) const VOCABULARY: usize = 288;
pub(super) const WINDOW: usize = 1024;
const ROPE_BASE: f32 = 500.0;
const LOCAL_ROPE_BASE: f32 = 10_000.0;
/// Tokens that all layers of the tiny Gemma but the last look back.
const LOCAL_WINDOW: usize = 40;
const EPSILON: f32 = 1e-5;
pub(super) const TEMPLATE: &str = "{% for message in messages %}\
{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Numbers from a seed, the same everywhere.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(VOCABULARY) as u32).collect()
    }
}

/// A model's tensors by GGUF's names, as the file holds them.
pub(super) struct Tiny {
    pub(super) tensors: BTreeMap<String, QTensor>,
    pub(super) metadata: BTreeMap<String, Value>,
    is_gemma: bool,
}

impl Tiny {
    /// A Llama with random weights; matrices are stored as `dtype`.
    pub(super) fn new(dtype: GgmlDType) -> Self {
        Self::random(dtype, false)
    }

    /// A Gemma 3.
    pub(super) fn gemma(dtype: GgmlDType) -> Self {
        let mut tiny = Self::random(dtype, true);
        tiny.metadata = std::mem::take(&mut tiny.metadata)
            .into_iter()
            .map(|(name, value)| (name.replace("llama.", "gemma3."), value))
            .collect();
        let mut set = |name: &str, value: Value| tiny.metadata.insert(name.to_owned(), value);
        set("general.architecture", Value::String("gemma3".to_owned()));
        set("gemma3.attention.sliding_window", Value::U32(LOCAL_WINDOW as u32));
        set("gemma3.attention.sliding_window_pattern", Value::U32(LAYERS as u32));
        tiny
    }

    fn random(dtype: GgmlDType, is_gemma: bool) -> Self {
        let mut numbers = Numbers(7);
        let mut tensors = BTreeMap::new();
        let mut put = |name: String, shape: &[usize]| {
            let is_gain = shape.len() == 1;
            let size = if is_gain { 0.2 } else { 3.0 / (shape[1] as f32).sqrt() };
            let start = if is_gain { 1.0 } else { 0.0 };
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| start + size * numbers.float()).collect();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let dtype = if is_gain { GgmlDType::F32 } else { dtype };
            tensors.insert(format!("{name}.weight"), QTensor::quantize(&tensor, dtype).unwrap());
        };
        put("token_embd".to_owned(), &[VOCABULARY, WIDTH]);
        put("output_norm".to_owned(), &[WIDTH]);
        for layer in 0..LAYERS {
            let name = |part: &str| format!("blk.{layer}.{part}");
            put(name("attn_norm"), &[WIDTH]);
            put(name("attn_q"), &[HEADS * HEAD_DIM, WIDTH]);
            put(name("attn_k"), &[KV_HEADS * HEAD_DIM, WIDTH]);
            put(name("attn_v"), &[KV_HEADS * HEAD_DIM, WIDTH]);
            put(name("attn_output"), &[WIDTH, HEADS * HEAD_DIM]);
            put(name("ffn_norm"), &[WIDTH]);
            put(name("ffn_gate"), &[WIDE, WIDTH]);
            put(name("ffn_up"), &[WIDE, WIDTH]);
            put(name("ffn_down"), &[WIDTH, WIDE]);
            if is_gemma {
                put(name("attn_q_norm"), &[HEAD_DIM]);
                put(name("attn_k_norm"), &[HEAD_DIM]);
                put(name("post_attention_norm"), &[WIDTH]);
                put(name("post_ffw_norm"), &[WIDTH]);
            }
        }
        Self { tensors, metadata: metadata(), is_gemma }
    }

    /// Writes the file into a folder of its own.
    pub(super) fn write(&self) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        self.write_to(&path);
        (dir, path)
    }

    pub(super) fn write_to(&self, path: &Path) {
        let metadata: Vec<(&str, &Value)> =
            self.metadata.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// The values of a tensor, in the order of the file.
    pub(super) fn values(&self, name: &str) -> Vec<f64> {
        let tensor = self.tensors[&format!("{name}.weight")].dequantize(&Device::Cpu).unwrap();
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f64::from).collect()
    }

    /// The logits after the last token: straight from the definition, without any cache.
    pub(super) fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        let embedding = self.values("token_embd");
        let scale = if self.is_gemma { (WIDTH as f64).sqrt() } else { 1.0 };
        let row = |token: &u32| {
            let row = &embedding[*token as usize * WIDTH..][..WIDTH];
            row.iter().map(|value| value * scale).collect()
        };
        let mut hidden: Vec<Vec<f64>> = tokens.iter().map(row).collect();
        for layer in 0..LAYERS {
            self.attention(layer, &mut hidden);
            self.feed_forward(layer, &mut hidden);
        }
        let last = rms_norm(&hidden[hidden.len() - 1], &self.values("output_norm"));
        multiply(&last, &embedding)
    }

    fn part(&self, layer: usize, part: &str) -> Vec<f64> {
        self.values(&format!("blk.{layer}.{part}"))
    }

    /// What a part adds, through the norm that Gemma has there.
    fn added(&self, layer: usize, norm: &str, added: Vec<f64>) -> Vec<f64> {
        if self.is_gemma { rms_norm(&added, &self.part(layer, norm)) } else { added }
    }

    fn attention(&self, layer: usize, hidden: &mut [Vec<f64>]) {
        let norm = self.part(layer, "attn_norm");
        let normed: Vec<Vec<f64>> = hidden.iter().map(|row| rms_norm(row, &norm)).collect();
        let is_local = self.is_gemma && layer + 1 < LAYERS;
        let placed = |part: &str| -> Vec<Vec<f64>> {
            let weights = self.part(layer, part);
            let place = |(at, row): (usize, &Vec<f64>)| {
                let mut row = multiply(row, &weights);
                if self.is_gemma {
                    let gain = self.part(layer, &format!("{part}_norm"));
                    row = row.chunks(HEAD_DIM).flat_map(|head| rms_norm(head, &gain)).collect();
                }
                let base = if is_local { LOCAL_ROPE_BASE } else { ROPE_BASE };
                rotated(row, at, base, self.is_gemma)
            };
            normed.iter().enumerate().map(place).collect()
        };
        let queries = placed("attn_q");
        let keys: Vec<Vec<f64>> = placed("attn_k").into_iter().map(halves).collect();
        let values = self.part(layer, "attn_v");
        let values: Vec<Vec<f64>> =
            normed.iter().map(|row| halves(multiply(row, &values))).collect();
        let mix = self.part(layer, "attn_output");
        for (at, row) in hidden.iter_mut().enumerate() {
            let first = if is_local { (at + 1).saturating_sub(LOCAL_WINDOW) } else { 0 };
            let context = attend(&queries[at], &keys[first..=at], &values[first..=at]);
            add(row, &self.added(layer, "post_attention_norm", multiply(&context, &mix)));
        }
    }

    fn feed_forward(&self, layer: usize, hidden: &mut [Vec<f64>]) {
        let (norm, gate) = (self.part(layer, "ffn_norm"), self.part(layer, "ffn_gate"));
        let (up, down) = (self.part(layer, "ffn_up"), self.part(layer, "ffn_down"));
        let bend = |x: f64| {
            if self.is_gemma {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            } else {
                x / (1.0 + (-x).exp())
            }
        };
        for row in hidden {
            let normed = rms_norm(row, &norm);
            let gated = multiply(&normed, &gate).into_iter().zip(multiply(&normed, &up));
            let wide: Vec<f64> = gated.map(|(gate, up)| bend(gate) * up).collect();
            add(row, &self.added(layer, "post_ffw_norm", multiply(&wide, &down)));
        }
    }
}

/// Bytes as tokens 0 to 255, a merge, and marks.
fn metadata() -> BTreeMap<String, Value> {
    let visible = |code: u32| matches!(code, 33..=126 | 161..=172 | 174..=255);
    let mut hidden = 255u32;
    let mut pieces: Vec<String> = (0..256u32)
        .map(|byte| {
            if visible(byte) {
                byte
            } else {
                hidden += 1;
                hidden
            }
        })
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect();
    pieces.push("he".to_owned());
    pieces.push("<|im_start|>".to_owned());
    pieces.push("<|im_end|>".to_owned());
    let text_pieces = 257;
    pieces.extend((pieces.len()..VOCABULARY).map(|at| format!("<unused{at}>")));
    let kind = |at: usize| Value::I32(if at < text_pieces { 1 } else { 3 });
    let number = |value: usize| Value::U32(value as u32);
    let text = |text: &str| Value::String(text.to_owned());
    [
        ("general.architecture", text("llama")),
        ("llama.block_count", number(LAYERS)),
        ("llama.context_length", number(WINDOW)),
        ("llama.embedding_length", number(WIDTH)),
        ("llama.feed_forward_length", number(WIDE)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(KV_HEADS)),
        ("llama.attention.key_length", number(HEAD_DIM)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(EPSILON)),
        ("llama.rope.freq_base", Value::F32(ROPE_BASE)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.token_type", Value::Array((0..VOCABULARY).map(kind).collect())),
        ("tokenizer.ggml.tokens", Value::Array(pieces.into_iter().map(Value::String).collect())),
        ("tokenizer.ggml.merges", Value::Array(vec![text("h e")])),
        ("tokenizer.ggml.bos_token_id", number(257)),
        ("tokenizer.ggml.eos_token_id", number(258)),
        ("tokenizer.chat_template", text(TEMPLATE)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn rms_norm(row: &[f64], gain: &[f64]) -> Vec<f64> {
    let mean = row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
    row.iter().zip(gain).map(|(value, gain)| value * scale * gain).collect()
}

fn multiply(row: &[f64], matrix: &[f64]) -> Vec<f64> {
    let product = |weights: &[f64]| row.iter().zip(weights).map(|(x, w)| x * w).sum();
    matrix.chunks(row.len()).map(product).collect()
}

/// Llama's files keep the two values of a rotation side by side, Gemma's half a head apart.
fn rotated(mut row: Vec<f64>, position: usize, base: f32, apart: bool) -> Vec<f64> {
    for head in row.chunks_mut(HEAD_DIM) {
        for at in 0..HEAD_DIM / 2 {
            let pair = if apart { [at, at + HEAD_DIM / 2] } else { [2 * at, 2 * at + 1] };
            let speed = f64::from(base).powf(-2.0 * at as f64 / HEAD_DIM as f64);
            let (sine, cosine) = (position as f64 * speed).sin_cos();
            let (x, y) = (head[pair[0]], head[pair[1]]);
            head[pair[0]] = x * cosine - y * sine;
            head[pair[1]] = x * sine + y * cosine;
        }
    }
    row
}

/// What a cache keeps of the values.
fn halves(row: Vec<f64>) -> Vec<f64> {
    row.into_iter().map(|value| f16::from_f64(value).to_f64()).collect()
}

fn attend(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let mut context = Vec::new();
    for head in 0..HEADS {
        let kv = head / (HEADS / KV_HEADS) * HEAD_DIM;
        let query = &query[head * HEAD_DIM..][..HEAD_DIM];
        let score = |key: &Vec<f64>| {
            let product: f64 = query.iter().zip(&key[kv..]).map(|(q, k)| q * k).sum();
            (product / (HEAD_DIM as f64).sqrt()).exp()
        };
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let sum: f64 = weights.iter().sum();
        context.extend((kv..kv + HEAD_DIM).map(|at| {
            let part = |(weight, value): (&f64, &Vec<f64>)| weight * value[at];
            weights.iter().zip(values).map(part).sum::<f64>() / sum
        }));
    }
    context
}

fn add(row: &mut [f64], added: &[f64]) {
    row.iter_mut().zip(added).for_each(|(value, added)| *value += added);
}
