//! Speed of a local language model: prefill and decode, and what it says to a question.
//!
//! `cargo run --release --example bench_language -- <model.gguf> [threads] [prefill tokens]...`

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use memcube::inference::candle::language::{ChatRole, LocalModel, TextStream, greedy};

const DECODED_TOKENS: usize = 64;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("usage: bench_language <model> [threads] [tokens]...")?;
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let lengths: Vec<usize> = arguments.map(|text| text.parse()).collect::<Result<_, _>>()?;
    let start = Instant::now();
    let local = LocalModel::open(Path::new(&path), None, threads)?;
    println!(
        "open {:.2} s, weights {} MB, checksum {}",
        start.elapsed().as_secs_f64(),
        local.model().weights_bytes() / 1_000_000,
        local.checksum()
    );
    answer(&local, "What is the capital of France?")?;
    for length in lengths {
        measure(&local, length)?;
    }
    Ok(())
}

fn answer(local: &LocalModel, question: &str) -> Result<()> {
    let (model, vocabulary) = (local.model(), local.vocabulary());
    let frame = local.template().frame(ChatRole::User, true);
    let mut tokens = frame.before.clone();
    tokens.extend(vocabulary.encode(question)?);
    tokens.extend(&frame.after);
    tokens.extend(local.template().open_reply());
    println!("{question} {tokens:?}");
    let mut cache = model.new_cache();
    let mut hidden = model.forward(&tokens, &mut cache, &|| false)?;
    let logits = model.logits(&hidden)?;
    println!("logits {:?}", &logits[..8]);
    let mut stream = TextStream::new(Vec::new());
    for _ in 0..DECODED_TOKENS {
        let token = greedy(&model.logits(&hidden)?);
        if local.end_of_reply().contains(&token) {
            break;
        }
        print!("{}", stream.push(vocabulary.bytes_of(token)));
        hidden = model.forward(&[token], &mut cache, &|| false)?;
    }
    println!("{}", stream.finish());
    Ok(())
}

fn measure(local: &LocalModel, length: usize) -> Result<()> {
    let model = local.model();
    let vocabulary = model.config().vocabulary as u32;
    let tokens: Vec<u32> = (0..length as u32).map(|at| at * 7919 % vocabulary).collect();
    let mut cache = model.new_cache();
    let start = Instant::now();
    let mut hidden = model.forward(&tokens, &mut cache, &|| false)?;
    model.logits(&hidden)?;
    let prefill_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..DECODED_TOKENS {
        let token = greedy(&model.logits(&hidden)?);
        hidden = model.forward(&[token], &mut cache, &|| false)?;
    }
    let decode_s = start.elapsed().as_secs_f64();
    println!(
        "{length} tokens: prefill {prefill_s:.3} s, {:.0} tokens/s; decode {:.1} tokens/s",
        length as f64 / prefill_s,
        DECODED_TOKENS as f64 / decode_s
    );
    Ok(())
}
