//! Files that are not what they should be, and models as folders.

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor, safetensors};
use serde_json::json;

use super::tiny::{
    HEAD_DIM, HEADS, KV_HEADS, LAYERS, Numbers, TEMPLATE, Tiny, VOCABULARY, WIDE, WIDTH, WINDOW,
};
use crate::inference::candle::language::error::ModelError;
use crate::inference::candle::language::local::LocalModel;

#[track_caller]
fn refused(path: &Path, checksum: Option<&str>, expected: &str) -> ModelError {
    let error = LocalModel::open(path, checksum, 1).expect_err("a bad file was opened");
    assert!(error.to_string().contains(expected), "{error}");
    error
}

#[test]
fn the_checksum_has_to_be_the_pinned_one() {
    let (_dir, path) = Tiny::new(GgmlDType::Q8_0).write();
    let checksum = LocalModel::open(&path, None, 1).unwrap().checksum().to_owned();
    LocalModel::open(&path, Some(&checksum.to_uppercase()), 1).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = refused(&path, Some(&checksum), "is not the pinned file");
    assert!(matches!(error, ModelError::WrongChecksum { .. }));
}

#[test]
fn broken_files_are_refused() {
    let (dir, path) = Tiny::new(GgmlDType::Q8_0).write();
    let bytes = fs::read(&path).unwrap();
    let broken = dir.path().join("broken.gguf");
    for len in [0, 3, 4, 20, 1000, bytes.len() / 2, bytes.len() - 100] {
        fs::write(&broken, &bytes[..len]).unwrap();
        let error = LocalModel::open(&broken, None, 1).expect_err("a cut file was opened");
        let is_typed = matches!(
            error,
            ModelError::NotAModel { .. } | ModelError::Tensor { .. } | ModelError::Missing { .. }
        );
        assert!(is_typed, "{len}: {error}");
    }
    fs::write(&broken, vec![b'x'; 5000]).unwrap();
    refused(&broken, None, "is not a readable model");
    refused(&dir.path().join("absent.gguf"), None, "cannot read");
}

#[test]
fn models_that_cannot_be_run_are_refused() {
    let check = |change: &dyn Fn(&mut Tiny), expected: &str| {
        let mut tiny = Tiny::new(GgmlDType::Q8_0);
        change(&mut tiny);
        let (_dir, path) = tiny.write();
        refused(&path, None, expected);
    };
    let set = |tiny: &mut Tiny, name: &str, value: Value| {
        tiny.metadata.insert(name.to_owned(), value);
    };
    let text = |text: &str| Value::String(text.to_owned());
    check(&|tiny| set(tiny, "general.architecture", text("mamba")), "family `mamba`");
    check(&|tiny| set(tiny, "llama.attention.head_count_kv", Value::U32(3)), "multiple of 3");
    check(&|tiny| set(tiny, "llama.attention.head_count", Value::U32(0)), "it is zero");
    check(&|tiny| set(tiny, "llama.rope.scaling.factor", Value::F32(8.0)), "scaled rotations");
    check(&|tiny| set(tiny, "llama.block_count", Value::U32(4)), "lacks `blk.3.");
    check(&|tiny| set(tiny, "llama.feed_forward_length", Value::U32(128)), "has shape [96, 64]");
    check(&|tiny| set(tiny, "tokenizer.ggml.model", text("llama")), "kind `llama`");
    check(&|tiny| set(tiny, "tokenizer.ggml.pre", text("odd")), "the way `odd`");
    check(&|tiny| set(tiny, "tokenizer.chat_template", text("{% if %}")), "chat template");
    check(&|tiny| set(tiny, "tokenizer.chat_template", text("{{ 1 }}")), "leaves out what `user`");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    check(&|tiny| set(tiny, "tokenizer.chat_template", text(endless)), "chat template");
    let reversed = "{% for m in messages | reverse %}{{ m.role + m.content }}{% endfor %}";
    check(&|tiny| set(tiny, "tokenizer.chat_template", text(reversed)), "messages after it");
    check(
        &|tiny| {
            tiny.metadata.remove("tokenizer.chat_template");
        },
        "lacks `tokenizer.chat_template`",
    );
}

/// The same weights as hubs lay them out: halves of a rotation apart, other names.
fn write_folder(tiny: &Tiny, dir: &Path) {
    let names = [
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let values = |tensor: &QTensor| tensor.dequantize(&Device::Cpu).unwrap();
    let apart = |tensor: Tensor| {
        let rows = tensor.dim(0).unwrap();
        let row = |at: usize| {
            let (head, at) = (at / HEAD_DIM, at % HEAD_DIM);
            (head * HEAD_DIM + at % (HEAD_DIM / 2) * 2 + at / (HEAD_DIM / 2)) as u32
        };
        let rows: Vec<u32> = (0..rows).map(row).collect();
        let rows = Tensor::new(rows.as_slice(), &Device::Cpu).unwrap();
        tensor.index_select(&rows, 0).unwrap()
    };
    let mut tensors = std::collections::HashMap::new();
    for (ours, theirs) in [("token_embd", "embed_tokens"), ("output_norm", "norm")] {
        let tensor = values(&tiny.tensors[&format!("{ours}.weight")]);
        tensors.insert(format!("model.{theirs}.weight"), tensor);
    }
    for layer in 0..LAYERS {
        for (ours, theirs) in names {
            let tensor = values(&tiny.tensors[&format!("blk.{layer}.{ours}.weight")]);
            let tensor = if matches!(ours, "attn_q" | "attn_k") { apart(tensor) } else { tensor };
            tensors.insert(format!("model.layers.{layer}.{theirs}.weight"), tensor);
        }
    }
    safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCABULARY,
        "max_position_embeddings": WINDOW, "rms_norm_eps": 1e-5, "rope_theta": 500.0,
        "hidden_act": "silu", "rope_scaling": null,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let settings = json!({ "chat_template": TEMPLATE, "eos_token": "<|im_end|>" });
    fs::write(dir.join("tokenizer_config.json"), settings.to_string()).unwrap();
    let vocabulary: serde_json::Map<String, serde_json::Value> = (0..256u32)
        .map(|at| (format!("{}", char::from_u32(0x100 + at).unwrap()), json!(at)))
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 256, "content": "<|im_start|>", "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false, "special": true},
            {"id": 257, "content": "<|im_end|>", "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false, "special": true},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

#[test]
fn a_folder_and_a_file_of_the_same_weights_agree() {
    let tiny = Tiny::new(GgmlDType::F32);
    let (dir, path) = tiny.write();
    write_folder(&tiny, dir.path());
    let file = LocalModel::open(&path, None, 1).unwrap();
    let folder = LocalModel::open(dir.path(), None, 2).unwrap();
    assert_eq!(folder.end_of_reply(), [257]);
    let tokens = Numbers(2).tokens(50);
    let logits = |local: &LocalModel| {
        let model = local.model();
        let hidden = model.forward(&tokens, &mut model.new_cache(), &|| false).unwrap();
        model.logits(&hidden).unwrap()
    };
    for (found, expected) in logits(&folder).iter().zip(logits(&file)) {
        assert!((found - expected).abs() < 1e-2, "{found} for {expected}");
    }
    let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        fs::write(dir.path().join("config.json"), config.replace(from, to)).unwrap();
        refused(dir.path(), None, expected);
    };
    check("\"silu\"", "\"gelu\"", "`hidden_act` cannot be used");
    check("\"llama\"", "\"gpt2\"", "family `gpt2`");
    check("{", "[", "invalid config");
    check("\"intermediate_size\":96", "\"intermediate_size\":128", "has shape");
}
