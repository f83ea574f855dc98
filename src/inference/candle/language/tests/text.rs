//! Tokens, templates, sampling and streams.

use candle_core::quantized::GgmlDType;

use super::tiny::{Numbers, Tiny};
use crate::inference::candle::language::local::LocalModel;
use crate::inference::candle::language::text_stream::TextStream;
use crate::inference::candle::language::{ChatRole, greedy, sample};

const START: u32 = 257;
const END: u32 = 258;

fn local() -> LocalModel {
    let (_dir, path) = Tiny::new(GgmlDType::Q8_0).write();
    LocalModel::open(&path, None, 1).unwrap()
}

fn text_of(local: &LocalModel, tokens: &[u32]) -> String {
    let bytes = tokens.iter().flat_map(|&token| local.vocabulary().bytes_of(token).to_vec());
    String::from_utf8(bytes.collect()).unwrap()
}

#[test]
fn text_survives_tokens() {
    let local = local();
    for text in
        ["", "hello", " two  spaces\n", "12345", "Où? 東京 🙂", "<|im_end|> is text", "\0\u{7f}"]
    {
        let tokens = local.vocabulary().encode(text).unwrap();
        assert_eq!(text_of(&local, &tokens), text);
        assert!(tokens.iter().all(|&token| token < START), "{text}: {tokens:?}");
    }
    assert_eq!(local.vocabulary().encode("hehe").unwrap(), [256, 256]);
    assert!(local.vocabulary().bytes_of(END).is_empty());
    assert!(local.vocabulary().bytes_of(u32::MAX).is_empty());
}

/// A prompt from frames, and the same by the template at once.
#[test]
fn frames_make_the_prompt_of_the_template() {
    let local = local();
    let (template, vocabulary) = (local.template(), local.vocabulary());
    let conversation = [
        (ChatRole::User, "hi"),
        (ChatRole::Assistant, "he said \"<|im_start|>\""),
        (ChatRole::Tool, "{}"),
        (ChatRole::User, ""),
    ];
    let mut tokens = Vec::new();
    for (at, (role, text)) in conversation.iter().enumerate() {
        let frame = template.frame(*role, at == 0);
        tokens.extend(&frame.before);
        tokens.extend(vocabulary.encode(text).unwrap());
        tokens.extend(&frame.after);
    }
    tokens.extend(template.open_reply());
    let mut expected = Vec::new();
    let mut message = |role: &str, text: &str| {
        expected.push(START);
        expected.extend(vocabulary.encode(&format!("{role}\n{text}")).unwrap());
        expected.push(END);
        expected.extend(vocabulary.encode("\n").unwrap());
    };
    message("system", "Be kind");
    message("user", "hi");
    message("assistant", "he said \"<|im_start|>\"");
    message("tool", "{}");
    message("user", "");
    expected.push(START);
    expected.extend(vocabulary.encode("assistant\n").unwrap());
    assert_eq!(tokens, expected);
    assert_eq!(local.end_of_reply(), [END]);
}

#[test]
fn the_likeliest_token_is_taken_first() {
    assert_eq!(greedy(&[0.5, 2.0, 2.0, -1.0]), 1);
    for draw in [0, 1 << 40, u64::MAX] {
        assert_eq!(sample(&[0.5, 2.0, 2.0, -1.0], 0.0, 1.0, draw), 1);
        assert_eq!(sample(&[0.5, 2.0, 9.0, -1.0], 1.0, 0.5, draw), 2);
        assert_eq!(sample(&[0.5, 2.0, 9.0, -1.0], 1.0, 0.0, draw), 2);
    }
}

#[test]
fn chance_follows_the_probabilities() {
    let logits = [0.0, 1.0, 2.0, f32::MIN];
    let draws = 20_000;
    for (temperature, top_p) in [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8)] {
        let weights: Vec<f64> =
            logits.iter().map(|&logit| (f64::from(logit) / f64::from(temperature)).exp()).collect();
        // At 0.8 the least likely of the three is left out: the others make up 0.91.
        let kept: Vec<usize> = if top_p < 1.0 { vec![1, 2] } else { vec![0, 1, 2] };
        let sum: f64 = kept.iter().map(|&token| weights[token]).sum();
        let mut counts = [0usize; 4];
        let mut numbers = Numbers(17);
        for _ in 0..draws {
            let draw = numbers.bits();
            let token = sample(&logits, temperature, top_p, draw);
            assert_eq!(token, sample(&logits, temperature, top_p, draw));
            counts[token as usize] += 1;
        }
        for (token, &count) in counts.iter().enumerate() {
            let expected = if kept.contains(&token) { weights[token] / sum } else { 0.0 };
            let found = count as f64 / f64::from(draws);
            assert!((found - expected).abs() < 0.015, "{token}: {found} for {expected}");
        }
    }
}

fn stream(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
    let mut stream = TextStream::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
    let mut texts: Vec<String> = pieces.iter().map(|piece| stream.push(piece)).collect();
    texts.push(stream.finish());
    (texts, stream.is_stopped())
}

#[test]
fn streams_give_whole_characters_and_no_stop_words() {
    let check = |stops: &[&str], pieces: &[&[u8]], texts: &[&str], is_stopped: bool| {
        let expected = (texts.iter().map(|text| (*text).to_owned()).collect(), is_stopped);
        assert_eq!(stream(stops, pieces), expected, "{stops:?} {pieces:?}");
    };
    check(&[], &[b"ab", b"c"], &["ab", "c", ""], false);
    check(&[], &[b"a\xf0\x9f", b"\x99\x82b"], &["a", "🙂b", ""], false);
    check(&[], &[b"a\xf0\x9f"], &["a", "\u{fffd}"], false);
    check(&[], &[b"\xffa\xc3", b"\xa9"], &["\u{fffd}a", "é", ""], false);
    check(&["STOP"], &[b"a S", b"TO", b"P b", b"c"], &["a ", "", "", "", ""], true);
    check(&["STOP"], &[b"a S", b"TO", b"x"], &["a ", "", "STOx", ""], false);
    check(&["STOP", ""], &[b"ST"], &["", "ST"], false);
    check(&["aab"], &[b"aa", b"ab"], &["", "a", ""], true);
    check(&["later", "now"], &[b"1 now 2 later"], &["1 ", ""], true);
}
