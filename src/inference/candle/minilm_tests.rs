use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;

use super::checkpoint::LoadError;
use super::minilm::{MiniLm, PIECES_MAX};
use super::simd::Isa;

const TEXTS: [&str; 6] = [
    "Melanie: I signed up for a pottery class yesterday!",
    "",
    "ok",
    "The quarterly report shows that revenue grew by 12 % while costs were flat.",
    "Où est la bibliothèque? 東京は雨です。 🙂",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j",
];

fn model_dir() -> PathBuf {
    crate::settings::EmbedderSettings::default().model_dir
}

fn model() -> &'static MiniLm {
    static MODEL: OnceLock<MiniLm> = OnceLock::new();
    MODEL.get_or_init(|| MiniLm::open(&model_dir(), 2).unwrap())
}

fn vectors(model: &MiniLm, texts: &[&str]) -> Vec<Vec<f32>> {
    model.embed(texts).unwrap().into_iter().map(|embedding| embedding.vector).collect()
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Bit for bit, except where the portable kernels leave float noise.
fn assert_same(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        if Isa::detect() == Isa::Portable {
            assert!(cosine(found, expected) > 0.999_999);
        } else {
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn vectors_have_norm_one_and_tell_meanings_apart() {
    let texts = ["A man is eating food.", "Someone is having a meal.", "The stock market fell."];
    let found = vectors(model(), &texts);
    for vector in &found {
        assert_eq!(vector.len(), 384);
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-6);
    }
    assert!(cosine(&found[0], &found[1]) > cosine(&found[0], &found[2]) + 0.3);
}

#[test]
fn tensor_path_agrees() {
    let tensors = MiniLm::open_on_device(&model_dir(), &Device::Cpu).unwrap();
    let (packed, plain) = (model().embed(&TEXTS).unwrap(), tensors.embed(&TEXTS).unwrap());
    for (packed, plain) in packed.iter().zip(&plain) {
        assert!(cosine(&packed.vector, &plain.vector) >= 0.99999);
        assert_eq!(packed.tokens, plain.tokens);
    }
}

#[test]
fn instruction_sets_agree() {
    let expected = vectors(model(), &TEXTS);
    for isa in Isa::available() {
        let mut model = MiniLm::open(&model_dir(), 2).unwrap();
        model.use_isa(isa);
        for (found, expected) in vectors(&model, &TEXTS).iter().zip(&expected) {
            assert!(cosine(found, expected) >= 0.99999, "{isa:?}");
        }
    }
}

#[test]
fn vectors_do_not_depend_on_batch_or_threads() {
    let long = "memory ".repeat(200);
    let mut texts = TEXTS.to_vec();
    texts.extend([long.as_str(), &long[..700], &long[..90]]);
    let expected: Vec<Vec<f32>> = texts.iter().flat_map(|text| vectors(model(), &[text])).collect();
    for threads in [1, 2, 3, 16] {
        let model = MiniLm::open(&model_dir(), threads).unwrap();
        assert_same(&vectors(&model, &texts), &expected);
        let alone: Vec<_> = texts.iter().flat_map(|text| vectors(&model, &[text])).collect();
        assert_same(&alone, &expected);
        let many: Vec<&str> = texts.iter().copied().cycle().take(60).collect();
        let many_expected: Vec<_> = expected.iter().cloned().cycle().take(60).collect();
        assert_same(&vectors(&model, &many), &many_expected);
    }
}

#[test]
fn calls_from_several_threads_run_side_by_side() {
    let expected = vectors(model(), &TEXTS);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_same(&vectors(model(), &TEXTS), &expected));
        }
    });
}

#[test]
fn no_texts_and_empty_text() {
    assert!(model().embed(&[]).unwrap().is_empty());
    let empty = &model().embed(&[""]).unwrap()[0];
    assert_eq!(empty.tokens, 0);
    assert!((cosine(&empty.vector, &empty.vector) - 1.0).abs() < 1e-6);
}

#[test]
fn long_texts_are_truncated_but_counted() {
    let kept = "memory ".repeat(PIECES_MAX - 2);
    let long = "memory ".repeat(PIECES_MAX + 44);
    let shorter = "memory ".repeat(PIECES_MAX - 3);
    let found = model().embed(&[&kept, &long, &shorter]).unwrap();
    assert_eq!(found.iter().map(|one| one.tokens).collect::<Vec<_>>(), [254, 300, 253]);
    assert_same(&[found[1].vector.clone()], &[found[0].vector.clone()]);
    assert_ne!(found[2].vector, found[0].vector);
}

#[test]
fn huge_texts_are_cheap_and_estimated() {
    let words = "memory ".repeat(150_000);
    let letters = "é".repeat(500_000);
    let blanks = " ".repeat(1_000_000);
    let found = model().embed(&[&words, &letters, &blanks]).unwrap();
    assert!((148_000..=152_000).contains(&found[0].tokens), "{}", found[0].tokens);
    assert_eq!(found[2].tokens, 0);
    assert_same(&[found[0].vector.clone()], &vectors(model(), &[&words[..7000]]));
}

/// Opens a directory holding the given files and returns the message of the error.
fn check_error(files: &[(&str, &[u8])], expected: &str) -> LoadError {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let error = MiniLm::open(dir.path(), 1).err().unwrap();
    let message = error.to_string().replace(&format!("{}", dir.path().display()), "DIR");
    assert!(message.starts_with(expected), "{message}");
    error
}

fn weights_with(name: &str, tensor: Tensor) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("weights");
    candle_core::safetensors::save(&HashMap::from([(name, tensor)]), &path).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn broken_files_are_named() {
    let config = std::fs::read(model_dir().join("config.json")).unwrap();
    let tokenizer = std::fs::read(model_dir().join("tokenizer.json")).unwrap();
    let text = String::from_utf8(config.clone()).unwrap();
    let wider = text.replace("\"hidden_size\": 384", "\"hidden_size\": 768");
    let words = "embeddings.word_embeddings.weight";
    let zeros = |shape: (usize, usize), dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let small = weights_with(words, zeros((2, 384), DType::F32));
    let halves = weights_with(words, zeros((30522, 384), DType::F16));
    let other = weights_with("other", zeros((1, 1), DType::F32));

    let error = check_error(&[], "cannot read `DIR/config.json`: ");
    assert!(matches!(error, LoadError::File { .. }));
    check_error(&[("config.json", b"{")], "invalid config `DIR/config.json`: ");
    check_error(
        &[("config.json", wider.as_bytes())],
        "unsupported model: `hidden_size` is 768, expected 384",
    );
    check_error(&[("config.json", &config)], "cannot read `DIR/model.safetensors`: ");
    let broken: [(&[u8], &[u8], &str); 6] = [
        (b"short", &tokenizer, "invalid weights `DIR/model.safetensors`: "),
        (&small, b"", "invalid tokenizer `DIR/tokenizer.json`: "),
        (&small, b"{}", "invalid tokenizer `DIR/tokenizer.json`: "),
        (&other, &tokenizer, "tensor `embeddings.word_embeddings.weight` is missing"),
        (
            &small,
            &tokenizer,
            "tensor `embeddings.word_embeddings.weight` has shape [2, 384], expected [30522, 384]",
        ),
        (&halves, &tokenizer, "tensor `embeddings.word_embeddings.weight` holds f16, expected f32"),
    ];
    for (weights, tokenizer, expected) in broken {
        let files = [
            ("config.json", &*config),
            ("model.safetensors", weights),
            ("tokenizer.json", tokenizer),
        ];
        check_error(&files, expected);
    }
}
