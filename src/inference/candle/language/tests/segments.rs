//! Keys that are moved to another position, and memories that are put together from segments.

use std::ops::Range;

use bytes::Bytes;
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use half::f16;
use memcube_actors::inference::{
    Cancel, Engine, EngineError, KvBytes, Sampling, SegmentPiece, Session, segment_pieces,
};
use memcube_schemas::activation::KvDtype;

use super::tiny::{HEAD_DIM, KV_HEADS, LAYERS, Numbers, Tiny, WINDOW};
use crate::inference::candle::engine::CandleEngine;
use crate::inference::candle::language::gguf::Gguf;
use crate::inference::candle::language::kv_cache::{KvCache, KvShape};
use crate::inference::candle::language::model::{LanguageModel, PackedModel};
use crate::inference::candle::language::rotation::moved;
use crate::inference::candle::language::tensor_model::TensorModel;
use crate::inference::candle::language::weights::Angles;
use crate::inference::candle::simd::Isa;

const ON: &(dyn Fn() -> bool + Sync) = &|| false;

fn models() -> Vec<(PackedModel, TensorModel)> {
    let tinies = [Tiny::new(GgmlDType::Q4_1), Tiny::gemma(GgmlDType::Q5_0)];
    let open = |tiny: Tiny| {
        let (_dir, path) = tiny.write();
        let mut gguf = Gguf::open(&path).unwrap();
        let config = gguf.config().unwrap();
        let weights = gguf.weights(&config).unwrap();
        let tensors = TensorModel::new(config.clone(), &weights, &Device::Cpu).unwrap();
        (PackedModel::new(config, weights, 2), tensors)
    };
    tinies.into_iter().map(open).collect()
}

fn filled(model: &dyn LanguageModel, tokens: &[u32]) -> KvCache {
    let mut cache = model.new_cache();
    if !tokens.is_empty() {
        model.forward(tokens, &mut cache, ON).unwrap();
    }
    cache
}

fn layers(cache: &KvCache, span: Range<usize>) -> Vec<Bytes> {
    (0..LAYERS).map(|layer| cache.export_layer(layer, span.clone()).unwrap()).collect()
}

fn append(model: &dyn LanguageModel, cache: &mut KvCache, segment: &[Bytes], all: usize) {
    model.append_segment(cache, all, 0..all, segment).unwrap();
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|half| f16::from_le_bytes([half[0], half[1]]).to_f32()).collect()
}

/// Keys of the first layer depend on nothing but their token and position. Whole pages have a
/// layout of their own, which 256 tokens in front or behind have and others do not.
#[test]
fn a_key_that_is_moved_is_the_key_of_its_new_position() {
    let mut numbers = Numbers(3);
    let before = numbers.tokens(700);
    for (packed, tensors) in models() {
        for model in [&packed as &dyn LanguageModel, &tensors] {
            for (count, by) in
                [(40, 1), (40, 200), (40, 256), (40, 613), (256, 7), (256, 256), (300, 512)]
            {
                let memory = numbers.tokens(count);
                let segment = layers(&filled(model, &memory), 0..count);
                let mut computed = filled(model, &before[..by]);
                let mut put = computed.clone();
                model.forward(&memory, &mut computed, ON).unwrap();
                append(model, &mut put, &segment, count);
                assert_eq!(put.len_tokens(), by + count);
                let mut greatest = 0.0_f32;
                for start in (by..by + count).step_by(40) {
                    let span = start..(start + 40).min(by + count);
                    greatest = greatest.max(difference(&computed, &put, span));
                }
                // Two roundings of 2^-11 against one, of each of two numbers.
                assert!(greatest < 3.0 / 2048.0, "{count} by {by}: {greatest}");
                assert!(greatest > 0.0, "{count} by {by}: nothing was moved");
            }
        }
    }
}

/// The greatest difference of keys in the first layer, in parts of their length; values are equal.
fn difference(computed: &KvCache, put: &KvCache, span: Range<usize>) -> f32 {
    let (count, half) = (span.len(), HEAD_DIM / 2);
    let [computed, put] =
        [computed, put].map(|cache| floats(&cache.export_layer(0, span.clone()).unwrap()));
    let mut greatest = 0.0_f32;
    for head in 0..KV_HEADS {
        let keys = head * 2 * HEAD_DIM * count;
        for at in 0..half * count {
            let (left, right) = (keys + at, keys + half * count + at);
            let length = computed[left].hypot(computed[right]);
            let error = (computed[left] - put[left]).hypot(computed[right] - put[right]);
            greatest = greatest.max(error / length);
        }
        for at in keys + HEAD_DIM * count..keys + 2 * HEAD_DIM * count {
            assert!((computed[at] - put[at]).abs() <= computed[at].abs() / 1024.0);
        }
    }
    greatest
}

/// What is stored after the rotation and rotated again, against what is stored before it.
#[test]
fn keys_are_as_exact_when_they_are_stored_after_their_rotation() {
    const COUNT: usize = 64;
    let shape = KvShape { layers: 1, heads: 1, head_dim: 64 };
    let angles = Angles::new(100_000.0, 64, 4_096);
    let turn = |position| {
        let (cosines, sines) = angles.at(position);
        (cosines.to_vec(), sines.to_vec())
    };
    let mut numbers = Numbers(9);
    let mut float = || (numbers.bits() >> 40) as f32 / (1_u32 << 22) as f32 - 2.0;
    let keys: Vec<f32> = (0..64 * COUNT).map(|_| 7.0 * float()).collect();
    let rotated = |position: usize| -> Vec<f64> {
        let (cosines, sines) = angles.at(position);
        let pair = |at: usize| {
            let (dim, token) = (at / COUNT, at % COUNT);
            let (left, right) =
                (keys[dim % 32 * COUNT + token], keys[(dim % 32 + 32) * COUNT + token]);
            let (cosine, sine) = (f64::from(cosines[dim % 32]), f64::from(sines[dim % 32]));
            let (left, right) = (f64::from(left), f64::from(right));
            if dim < 32 { left * cosine - right * sine } else { right * cosine + left * sine }
        };
        (0..64 * COUNT).map(pair).collect()
    };
    let stored = |keys: &[f64]| -> Vec<u8> {
        let halves = keys.iter().flat_map(|key| f16::from_f64(*key).to_le_bytes());
        halves.chain(std::iter::repeat_n(0, 64 * COUNT * 2)).collect()
    };
    let plain = stored(&keys.iter().map(|key| f64::from(*key)).collect::<Vec<_>>());
    let mut errors = [0.0_f64; 2];
    for (first, by) in [(0, 300), (20, 300), (5, 3_000), (900, 1)] {
        let truth = rotated(first + by);
        let after = moved(&shape, &stored(&rotated(first)), COUNT, &(0..COUNT), Some(&turn(by)));
        let before = moved(&shape, &plain, COUNT, &(0..COUNT), Some(&turn(first + by)));
        for (error, found) in errors.iter_mut().zip([after, before]) {
            let pairs = floats(&found).into_iter().zip(&truth);
            *error += pairs.map(|(found, truth)| (f64::from(found) - truth).powi(2)).sum::<f64>();
        }
    }
    let ratio = (errors[0] / errors[1]).sqrt();
    assert!((0.97..1.03).contains(&ratio), "errors are {ratio} times as large");
}

#[test]
fn what_stays_where_it_was_keeps_every_bit() {
    let mut numbers = Numbers(17);
    for (packed, tensors) in models() {
        for model in [&packed as &dyn LanguageModel, &tensors] {
            let tokens = numbers.tokens(300);
            let whole = filled(model, &tokens);
            let mut put = model.new_cache();
            append(model, &mut put, &layers(&whole, 0..300), 300);
            assert!(layers(&put, 0..300) == layers(&whole, 0..300));
            let mut page = model.new_cache();
            append(model, &mut page, &layers(&whole, 0..256), 256);
            assert!(layers(&page, 0..256) == layers(&whole, 0..256));
            // And a part of it, behind the tokens that come before it.
            let mut part = filled(model, &tokens[..50]);
            let bytes = layers(&whole, 0..300);
            model.append_segment(&mut part, 300, 50..290, &bytes).unwrap();
            assert!(layers(&part, 50..290) == layers(&whole, 50..290));
        }
    }
}

#[test]
fn devices_turn_by_the_same_angles() {
    for (packed, tensors) in models() {
        for (layer, position) in [(0, 0), (0, 77), (LAYERS - 1, 77), (1, WINDOW - 1)] {
            assert_eq!(packed.turn(layer, position), tensors.turn(layer, position));
        }
    }
}

fn engine() -> CandleEngine {
    let (_dir, path) = Tiny::new(GgmlDType::Q4_1).write();
    CandleEngine::open("tiny", &path, None, 2).unwrap()
}

fn prefilled(engine: &CandleEngine, tokens: &[u32]) -> Box<dyn Session> {
    let mut session = engine.open().unwrap();
    let cancel = Cancel::default();
    tokens.chunks(256).for_each(|chunk| session.prefill(chunk, &cancel).unwrap());
    session
}

#[test]
fn memories_that_are_repaired_to_their_ends_are_exact_to_the_bit() {
    if Isa::detect() == Isa::Portable {
        // There, bits depend on where passes are cut.
        return;
    }
    let engine = engine();
    let mut numbers = Numbers(21);
    let tokens = numbers.tokens(400);
    let spans = [20..90, 90..130, 140..380];
    let alone = spans
        .clone()
        .map(|span| prefilled(&engine, &tokens[span.clone()]).export(0..span.len()).unwrap());
    let mut whole = prefilled(&engine, &tokens);
    let expected = whole.export(0..400).unwrap();
    let mut differing = Vec::new();
    for repair in [0, 16, 39, 70, 240, 1_000] {
        let mut session = prefilled(&engine, &[]);
        for piece in segment_pieces(&(0..400), spans.iter().enumerate(), repair) {
            match piece {
                SegmentPiece::Compute(span) => {
                    session.prefill(&tokens[span], &Cancel::default()).unwrap();
                }
                SegmentPiece::Import(number, wanted) => {
                    session.import_segment(&alone[number], wanted).unwrap();
                }
            }
        }
        let found = session.export(0..400).unwrap();
        let pairs = found.layers.iter().zip(&expected.layers);
        differing.push(pairs.filter(|(found, expected)| found != expected).count());
        let said = session.sample(Sampling::GREEDY, 0).unwrap();
        if repair >= 240 {
            assert_eq!(said, whole.sample(Sampling::GREEDY, 0).unwrap());
        }
    }
    assert_eq!(differing, [LAYERS, LAYERS, LAYERS, LAYERS, 0, 0]);
}

#[test]
fn unsuitable_segments_leave_the_session_as_it_was() {
    let engine = engine();
    let segment = prefilled(&engine, &[5, 6, 7, 8]).export(0..4).unwrap();
    let mut session = prefilled(&engine, &[1, 2]);
    let mut refuse = |segment: &KvBytes, wanted: Range<usize>, expected: &str| {
        let error = session.import_segment(segment, wanted).unwrap_err();
        assert!(matches!(error, EngineError::Unsuitable { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(session.tokens(), 2);
    };
    refuse(&KvBytes { start: 1, ..segment.clone() }, 0..4, "begins at 1");
    refuse(&KvBytes { dtype: KvDtype::Q8, ..segment.clone() }, 0..4, "q8");
    refuse(&KvBytes { tokens: 5, ..segment.clone() }, 0..4, "bytes");
    refuse(&KvBytes { layers: Vec::new(), ..segment.clone() }, 0..4, "layers");
    refuse(&segment, 2..5, "span up to 5");
    // It would begin before the first position.
    refuse(&segment, 3..4, "span up to 3");
    let mut full = prefilled(&engine, &Numbers(1).tokens(WINDOW - 3));
    let long = full.import_segment(&segment, 0..4);
    assert!(matches!(long, Err(EngineError::ContextTooLong { .. })), "{long:?}");
    session.import_segment(&segment, 2..4).unwrap();
    assert_eq!(session.tokens(), 4);
    let none = session.sample(Sampling::GREEDY, 0);
    assert!(matches!(none, Err(EngineError::Failed { .. })), "{none:?}");
}
