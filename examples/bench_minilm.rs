//! Measures the embedder: sentences per second by batch size, and the vectors for comparison.
//!
//! `bench_minilm MODEL_DIR SENTENCES [--threads N] [--batches 1,8,32] [--seconds S]
//! [--vectors OUT]`

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    error::Error,
    path::PathBuf,
    time::{Duration, Instant},
};

use memcube::inference::candle::MiniLm;

struct Options {
    model: PathBuf,
    sentences: PathBuf,
    threads: usize,
    batches: Vec<usize>,
    seconds: f64,
    vectors: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = parse(std::env::args().skip(1))?;
    let text = std::fs::read_to_string(&options.sentences)?;
    let mut sentences: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let started = Instant::now();
    let model = MiniLm::open(&options.model, options.threads)?;
    eprintln!("loaded in {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    if let Some(path) = &options.vectors {
        let embeddings = model.embed(&sentences)?;
        let bytes: Vec<u8> = embeddings
            .iter()
            .flat_map(|embedding| embedding.vector.iter().flat_map(|value| value.to_le_bytes()))
            .collect();
        std::fs::write(path, bytes)?;
    }
    sentences.sort_by_key(|sentence| std::cmp::Reverse(sentence.len()));
    for &batch in &options.batches {
        let rate = measure(&model, &sentences, batch, Duration::from_secs_f64(options.seconds))?;
        println!("{batch} {rate:.2}");
    }
    Ok(())
}

/// Embeds all sentences in batches until the time is over; returns sentences per second.
fn measure(
    model: &MiniLm,
    sentences: &[&str],
    batch: usize,
    time: Duration,
) -> Result<f64, Box<dyn Error>> {
    for texts in sentences.chunks(batch).take(4) {
        model.embed(texts)?;
    }
    let (started, mut done) = (Instant::now(), 0);
    while started.elapsed() < time {
        for texts in sentences.chunks(batch) {
            done += model.embed(texts)?.len();
        }
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
    let mut next = || arguments.next();
    let mut options = Options {
        model: next().ok_or("missing model directory")?.into(),
        sentences: next().ok_or("missing file of sentences")?.into(),
        threads: 2,
        batches: vec![1, 8, 32],
        seconds: 1.0,
        vectors: None,
    };
    while let Some(name) = next() {
        let value = next().ok_or_else(|| format!("`{name}` needs a value"))?;
        match name.as_str() {
            "--threads" => options.threads = value.parse()?,
            "--batches" => {
                options.batches = value.split(',').map(str::parse).collect::<Result<_, _>>()?
            }
            "--seconds" => options.seconds = value.parse()?,
            "--vectors" => options.vectors = Some(value.into()),
            _ => return Err(format!("unknown option `{name}`").into()),
        }
    }
    Ok(options)
}
