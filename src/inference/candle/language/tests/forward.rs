//! What the forward pass computes, and that it is the same bits however it is cut.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use half::f16;

use super::tiny::{LAYERS, Numbers, Tiny, VOCABULARY, WINDOW};
use crate::inference::candle::language::error::ForwardError;
use crate::inference::candle::language::gguf::Gguf;
use crate::inference::candle::language::kv_cache::{KvCache, KvError, KvShape};
use crate::inference::candle::language::model::{LanguageModel, PackedModel};
use crate::inference::candle::language::tensor_model::TensorModel;
use crate::inference::candle::simd::Isa;

const ON: &(dyn Fn() -> bool + Sync) = &|| false;

fn open(path: &Path, isa: Isa, threads: usize) -> PackedModel {
    let mut gguf = Gguf::open(path).unwrap();
    let config = gguf.config().unwrap();
    let weights = gguf.weights(&config).unwrap();
    PackedModel::new(config, weights, threads).on(isa, threads)
}

fn tiny(isa: Isa, threads: usize) -> PackedModel {
    let (_dir, path) = Tiny::new(GgmlDType::Q4_1).write();
    open(&path, isa, threads)
}

/// Instruction sets whose products do not depend on the number of rows.
fn exact() -> Vec<Isa> {
    Isa::available().into_iter().filter(|isa| *isa != Isa::Portable).collect()
}

fn run(model: &PackedModel, cache: &mut KvCache, tokens: &[u32]) -> Vec<f32> {
    model.forward(tokens, cache, ON).unwrap()
}

fn bytes(cache: &KvCache) -> Vec<Bytes> {
    let layer = |layer| cache.export_layer(layer, 0..cache.len_tokens()).unwrap();
    (0..LAYERS).map(layer).collect()
}

/// Runs tokens in pieces of random sizes, single ones among them.
fn run_split(
    model: &PackedModel,
    cache: &mut KvCache,
    tokens: &[u32],
    numbers: &mut Numbers,
) -> Vec<f32> {
    let mut hidden = Vec::new();
    let mut rest = tokens;
    while !rest.is_empty() {
        let most = [1, 3, 40, 300][numbers.below(4)];
        let (piece, after) = rest.split_at((1 + numbers.below(most)).min(rest.len()));
        hidden = run(model, cache, piece);
        rest = after;
    }
    hidden
}

#[test]
fn logits_agree_with_double_precision() {
    let dtypes = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
    ];
    let llamas = dtypes.map(|dtype| (dtype, Tiny::new(dtype)));
    let gemma = (GgmlDType::Q5_0, Tiny::gemma(GgmlDType::Q5_0));
    for (dtype, tiny) in llamas.into_iter().chain([gemma]) {
        let (_dir, path) = tiny.write();
        let tokens = Numbers(3).tokens(70);
        let expected = [tiny.logits(&tokens[..69]), tiny.logits(&tokens)];
        let size = expected[0].iter().fold(0.0f64, |top, logit| top.max(logit.abs()));
        for isa in Isa::available() {
            let model = open(&path, isa, 2);
            let mut cache = model.new_cache();
            let pieces = [&tokens[..69], &tokens[69..]];
            for (piece, expected) in pieces.into_iter().zip(&expected) {
                let logits = model.logits(&run(&model, &mut cache, piece)).unwrap();
                for (found, expected) in logits.iter().zip(expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 2e-3 * size, "{dtype:?} {isa:?}: {found} for {expected}");
                }
            }
        }
    }
}

#[test]
fn splits_and_threads_do_not_change_a_bit() {
    let (_dir, llama) = Tiny::new(GgmlDType::Q4_1).write();
    let (_other, gemma) = Tiny::gemma(GgmlDType::Q5_0).write();
    for (isa, path) in exact().into_iter().flat_map(|isa| [(isa, &llama), (isa, &gemma)]) {
        let models: Vec<PackedModel> = (1..=3).map(|threads| open(path, isa, threads)).collect();
        let mut numbers = Numbers(11);
        for _ in 0..8 {
            let count = 1 + numbers.below(700);
            let tokens = numbers.tokens(count);
            let mut whole = models[0].new_cache();
            let expected = run(&models[0], &mut whole, &tokens);
            let model = &models[numbers.below(models.len())];
            let mut split = model.new_cache();
            let found = run_split(model, &mut split, &tokens, &mut numbers);
            assert!(found == expected, "{isa:?}: {count} tokens: other hidden state");
            assert!(bytes(&split) == bytes(&whole), "{isa:?}: {count} tokens: other cache");
            assert!(model.logits(&found) == models[0].logits(&expected));
        }
    }
}

#[test]
fn imported_spans_are_as_computed_ones() {
    // Cut at the same places, so that it holds on every instruction set.
    for isa in Isa::available() {
        let model = tiny(isa, 2);
        let mut numbers = Numbers(23);
        for _ in 0..8 {
            let tokens = numbers.tokens(900);
            let first = 1 + numbers.below(600);
            let second = first + 1 + numbers.below(250);
            let pieces = [&tokens[..first], &tokens[first..second], &tokens[second..]];
            let mut whole = model.new_cache();
            let expected = pieces.map(|piece| run(&model, &mut whole, piece))[2].clone();
            let mut copy = model.new_cache();
            for span in [0..first, first..second] {
                copy.import(span.len(), &of_span(&whole, span)).unwrap();
            }
            assert!(run(&model, &mut copy, pieces[2]) == expected, "{isa:?} {first} {second}");
            assert!(bytes(&copy) == bytes(&whole));
        }
    }
}

#[test]
fn whole_pages_are_shared_and_never_written_through() {
    let model = tiny(Isa::detect(), 2);
    let tokens = Numbers(29).tokens(700);
    let mut whole = model.new_cache();
    run(&model, &mut whole, &tokens[..600]);
    let pages = [of_span(&whole, 0..256), of_span(&whole, 256..512)];
    let mut copy = model.new_cache();
    pages.iter().for_each(|page| copy.import(256, page).unwrap());
    copy.import(88, &of_span(&whole, 512..600)).unwrap();
    assert_eq!(of_span(&copy, 256..512)[1].as_ptr(), pages[1][1].as_ptr());
    assert!(run(&model, &mut copy, &tokens[600..]) == run(&model, &mut whole, &tokens[600..]));
    let before = pages[1].iter().map(|layer| layer.to_vec()).collect::<Vec<_>>();
    for cache in [&mut copy, &mut whole] {
        cache.truncate(300);
        run(&model, cache, &Numbers(31).tokens(300));
    }
    assert!(before == pages[1], "somebody wrote to a page that was handed out");
    assert!(bytes(&copy) == bytes(&whole));
}

#[test]
fn a_changed_byte_changes_the_result() {
    let model = tiny(Isa::detect(), 1);
    let tokens = Numbers(5).tokens(40);
    let mut cache = model.new_cache();
    run(&model, &mut cache, &tokens[..39]);
    let mut layers = bytes(&cache);
    let mut changed = layers[0].to_vec();
    // The upper byte of a key.
    changed[1] ^= 0x40;
    layers[0] = Bytes::from(changed);
    let mut copy = model.new_cache();
    copy.import(39, &layers).unwrap();
    assert!(run(&model, &mut copy, &tokens[39..]) != run(&model, &mut cache, &tokens[39..]));
}

#[test]
fn truncated_and_cloned_caches_go_their_own_way() {
    let model = tiny(exact().first().copied().unwrap_or(Isa::Portable), 2);
    let mut numbers = Numbers(31);
    let (tokens, others) = (numbers.tokens(500), numbers.tokens(100));
    let mut cache = model.new_cache();
    let expected = run(&model, &mut cache, &tokens);
    let before = bytes(&cache);
    let mut copy = cache.clone();
    copy.truncate(300);
    assert_eq!(copy.len_tokens(), 300);
    run(&model, &mut copy, &others);
    assert!(bytes(&cache) == before, "a clone wrote to the pages of the other");
    copy.truncate(300);
    if Isa::detect() != Isa::Portable {
        assert!(run(&model, &mut copy, &tokens[300..]) == expected);
        assert!(bytes(&copy) == before);
    }
    copy.truncate(9999);
    assert_eq!(copy.len_tokens(), 500);
    copy.truncate(0);
    assert!(copy.is_empty() && copy.bytes() == 0);
}

#[test]
fn a_cache_takes_no_more_than_its_tokens_and_a_panel() {
    let model = tiny(Isa::detect(), 2);
    let tokens = Numbers(37).tokens(600);
    let mut grown = model.new_cache();
    for len in [1, 2, 32, 33, 200, 256, 257, 300, 583] {
        let held = grown.len_tokens();
        run(&model, &mut grown, &tokens[held..len]);
        let mut whole = model.new_cache();
        run(&model, &mut whole, &tokens[..len]);
        let bytes = grown.shape().token_bytes() * len.next_multiple_of(32);
        assert_eq!((grown.bytes(), whole.bytes()), (bytes, bytes), "{len}");
    }
    let mut copy = model.new_cache();
    copy.import(583, &bytes(&grown)).unwrap();
    assert!(run(&model, &mut copy, &tokens[583..]) == run(&model, &mut grown, &tokens[583..]));
}

#[test]
fn cancelled_passes_leave_the_cache_as_it_was() {
    for threads in 1..=3 {
        let model = tiny(Isa::detect(), threads);
        let tokens = Numbers(41).tokens(600);
        let mut cache = model.new_cache();
        run(&model, &mut cache, &tokens[..100]);
        let before = bytes(&cache);
        for patience in 0..3 * LAYERS + 1 {
            let asked = AtomicUsize::new(0);
            let cancelled = || asked.fetch_add(1, Ordering::Relaxed) >= patience;
            let result = model.forward(&tokens[100..], &mut cache, &cancelled);
            let is_through = patience >= 3 * LAYERS;
            assert_eq!(result.is_ok(), is_through, "{patience}: {result:?}");
            if !is_through {
                assert_eq!(result, Err(ForwardError::Cancelled));
                assert!(bytes(&cache) == before);
            }
        }
        let result = model.forward(&tokens[..1], &mut cache, &|| true);
        assert_eq!(result, Err(ForwardError::Cancelled));
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let model = tiny(Isa::detect(), 1);
    let mut cache = model.new_cache();
    let mut refuse = |tokens: &[u32], expected: ForwardError| {
        assert_eq!(model.forward(tokens, &mut cache, ON), Err(expected));
        assert!(cache.is_empty());
    };
    refuse(&[], ForwardError::Empty);
    let token = VOCABULARY as u32;
    refuse(&[0, token], ForwardError::UnknownToken { token, vocabulary: VOCABULARY });
    let tokens = WINDOW + 1;
    refuse(&vec![0; tokens], ForwardError::TooLong { tokens, window_tokens: WINDOW });
    let shape = KvShape { layers: LAYERS + 1, ..cache.shape() };
    let mut other = KvCache::new(shape);
    assert_eq!(model.forward(&[1], &mut other, ON), Err(ForwardError::WrongCache));
    run(&model, &mut cache, &vec![0; WINDOW]);
    let tokens = WINDOW + 1;
    let expected = Err(ForwardError::TooLong { tokens, window_tokens: WINDOW });
    assert_eq!(model.forward(&[1], &mut cache, ON), expected);
    let expected = Err(KvError::WrongLayers { expected: LAYERS, found: 0 });
    assert_eq!(cache.import(1, &[]), expected);
    let size = cache.shape().layer_bytes(2);
    let short = Bytes::from(vec![0; size - 2]);
    let found = short.len();
    let expected = Err(KvError::WrongSize { layer: 0, expected: size, found });
    assert_eq!(cache.import(2, &vec![short; LAYERS]), expected);
    let expected = Err(KvError::OutOfRange { end: WINDOW + 1, len_tokens: WINDOW });
    assert_eq!(cache.export_layer(0, 5..WINDOW + 1), expected);
}

#[test]
fn numbers_that_are_none_are_an_error() {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};
    let mut tiny = Tiny::new(GgmlDType::F32);
    let mut gain = vec![1.0f32; super::tiny::WIDTH];
    gain[3] = f32::NAN;
    let gain = Tensor::from_vec(gain, super::tiny::WIDTH, &Device::Cpu).unwrap();
    let gain = QTensor::quantize(&gain, GgmlDType::F32).unwrap();
    tiny.tensors.insert("blk.1.ffn_norm.weight".to_owned(), gain);
    let (_dir, path) = tiny.write();
    let model = open(&path, Isa::detect(), 2);
    let mut cache = model.new_cache();
    for tokens in [&[1, 2, 3][..], &[1]] {
        assert_eq!(model.forward(tokens, &mut cache, ON), Err(ForwardError::NotFinite));
        assert!(cache.is_empty());
    }
}

/// The path of graphics cards, on the processor.
#[test]
fn tensors_agree_with_the_kernels() {
    for tiny in [Tiny::new(GgmlDType::Q4_1), Tiny::gemma(GgmlDType::Q8_0)] {
        tensors_agree(&tiny);
    }
}

fn of_span(cache: &KvCache, span: std::ops::Range<usize>) -> Vec<Bytes> {
    (0..LAYERS).map(|layer| cache.export_layer(layer, span.clone()).unwrap()).collect()
}

fn tensors_agree(tiny: &Tiny) {
    let (_dir, path) = tiny.write();
    let packed = open(&path, Isa::detect(), 1);
    let mut gguf = Gguf::open(&path).unwrap();
    let config = gguf.config().unwrap();
    let weights = gguf.weights(&config).unwrap();
    let model = TensorModel::new(config, &weights, &Device::Cpu).unwrap();
    let tokens = Numbers(19).tokens(400);
    let pieces = [&tokens[..300], &tokens[300..399], &tokens[399..]];
    let (mut cache, mut expected) = (model.new_cache(), packed.new_cache());
    let mut last = Vec::new();
    for piece in pieces {
        last = model.forward(piece, &mut cache, ON).unwrap();
        let logits = packed.logits(&run(&packed, &mut expected, piece)).unwrap();
        for (found, expected) in model.logits(&last).unwrap().iter().zip(&logits) {
            assert!((found - expected).abs() < 1e-2, "{found} for {expected}");
        }
    }
    // Exported bytes are the same layout, and go into either.
    let layers = of_span(&cache, 0..300);
    let page = of_span(&cache, 0..256);
    let close = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    let pages = page.iter().cloned().zip(of_span(&expected, 0..256));
    let spans = layers.iter().cloned().zip(of_span(&expected, 0..300));
    for (found, expected) in pages.chain(spans) {
        assert_eq!(found.len(), expected.len());
        for at in (0..found.len()).step_by(2) {
            let (found, expected) = (close(&found, at), close(&expected, at));
            assert!((found - expected).abs() < 2e-2, "{at}: {found} for {expected}");
        }
    }
    let mut copy = model.new_cache();
    copy.import(300, &layers).unwrap();
    assert_eq!(of_span(&copy, 0..300), layers);
    copy = model.new_cache();
    copy.import(256, &page).unwrap();
    copy.import(44, &of_span(&cache, 256..300)).unwrap();
    assert_eq!(of_span(&copy, 0..300), layers);
    for piece in &pieces[1..] {
        assert_eq!(model.forward(piece, &mut copy, &|| true), Err(ForwardError::Cancelled));
        let hidden = model.forward(piece, &mut copy, ON).unwrap();
        if piece.len() == 1 {
            assert!(hidden == last);
        }
    }
    copy.truncate(399);
    assert!(model.forward(pieces[2], &mut copy, ON).unwrap() == last);
    assert_eq!(packed.forward(&[1], &mut copy, ON), Err(ForwardError::WrongCache));
    assert_eq!(model.forward(&[1], &mut expected, ON), Err(ForwardError::WrongCache));
}
