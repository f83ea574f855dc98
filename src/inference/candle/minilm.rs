//! The MiniLM-L6-v2 sentence embedder: text in, normalised vectors and token counts out.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::thread;

use candle_core::Device;
use tokenizers::Tokenizer;

use super::checkpoint::{Checkpoint, HEADS, LoadError, read};
use super::minilm_forward::{PASS_TOKENS_MAX, PackedEncoder, Pass, Workspace};
use super::team::{Barrier, Membership, locked, map_indices};
use super::tensor_path::TensorEncoder;

/// Word pieces of a text its vector is made from, with the two special ones.
pub const PIECES_MAX: usize = PASS_TOKENS_MAX;
/// Bytes of a text that are cut into word pieces; beyond, their number is estimated.
const TOKENIZED_BYTES_MAX: usize = 64 * 1024;
/// Texts one thread cuts into word pieces at a time; fewer are not worth a second thread.
const TEXTS_PER_CUT: usize = 4;
/// Tokens a thread runs together if it can: enough to reuse weights, few enough to stay in cache.
const PASS_TOKENS_GOAL: usize = 160;
/// How much longer than an even share a thread may work before a pass is shared instead.
const IMBALANCE_MAX: f32 = 1.15;

/// A text's vector and length.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// 384 values of Euclidean norm one.
    pub vector: Vec<f32>,
    /// Word pieces of the whole text without special ones; an estimate for texts over 64 KiB.
    pub tokens: u32,
}

/// Why texts could not be embedded.
#[derive(Debug)]
pub enum EmbedError {
    /// The tokenizer failed on a text.
    Tokenize(String),
    /// The device failed.
    Device(candle_core::Error),
}

impl fmt::Display for EmbedError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokenize(message) => write!(out, "cannot tokenize text: {message}"),
            Self::Device(source) => write!(out, "embedding failed on the device: {source}"),
        }
    }
}

impl std::error::Error for EmbedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Tokenize(_) => None,
            Self::Device(source) => Some(source),
        }
    }
}

/// The embedder; share it by reference, calls from several threads run side by side.
pub struct MiniLm {
    tokenizer: Tokenizer,
    first_piece: u32,
    last_piece: u32,
    threads: usize,
    encoder: Encoder,
}

enum Encoder {
    Packed(PackedRunner),
    Tensor(TensorEncoder),
}

/// A text cut into word pieces.
struct Pieces {
    /// What the encoder sees: at most [`PIECES_MAX`] with the special ones.
    ids: Vec<u32>,
    tokens: u32,
}

impl MiniLm {
    /// Loads `model.safetensors`, `tokenizer.json` and `config.json` from `dir` to run on the
    /// processor with up to `threads` threads per call.
    pub fn open(dir: &Path, threads: usize) -> Result<Self, LoadError> {
        let threads = threads.clamp(1, HEADS);
        Self::load(dir, threads, |checkpoint| {
            let encoder = PackedEncoder::load(checkpoint)?;
            Ok(Encoder::Packed(PackedRunner { encoder, threads, workspaces: Mutex::default() }))
        })
    }

    /// Loads the same files to run as plain tensor operations on `device`.
    pub fn open_on_device(dir: &Path, device: &Device) -> Result<Self, LoadError> {
        Self::load(dir, 1, |checkpoint| {
            Ok(Encoder::Tensor(TensorEncoder::load(checkpoint, device)?))
        })
    }

    fn load(
        dir: &Path,
        threads: usize,
        encoder: impl FnOnce(&Checkpoint) -> Result<Encoder, LoadError>,
    ) -> Result<Self, LoadError> {
        let checkpoint = Checkpoint::open(dir, PIECES_MAX)?;
        let path = dir.join("tokenizer.json");
        let invalid = |message: String| LoadError::Tokenizer { path: path.clone(), message };
        let mut tokenizer =
            Tokenizer::from_bytes(read(&path)?).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        let vocabulary = tokenizer.get_vocab_size(true);
        if vocabulary > checkpoint.config.vocab_size {
            return Err(invalid(format!(
                "it has {vocabulary} pieces, the model {}",
                checkpoint.config.vocab_size
            )));
        }
        let special = |piece: &str| {
            tokenizer.token_to_id(piece).ok_or_else(|| invalid(format!("it lacks `{piece}`")))
        };
        let (first_piece, last_piece) = (special("[CLS]")?, special("[SEP]")?);
        Ok(Self { first_piece, last_piece, threads, encoder: encoder(&checkpoint)?, tokenizer })
    }

    /// Embeds each text; blocks until done.
    ///
    /// On the processor a text's vector does not depend on the other texts or on the threads.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EmbedError> {
        let pieces = self.cut_all(texts)?;
        let sequences: Vec<&[u32]> = pieces.iter().map(|pieces| pieces.ids.as_slice()).collect();
        let vectors = match &self.encoder {
            Encoder::Packed(runner) => runner.run(&sequences),
            Encoder::Tensor(encoder) => encoder.run(&sequences).map_err(EmbedError::Device)?,
        };
        let embedding = |(mut vector, pieces): (Vec<f32>, Pieces)| {
            normalise(&mut vector);
            Embedding { vector, tokens: pieces.tokens }
        };
        Ok(vectors.into_iter().zip(pieces).map(embedding).collect())
    }

    #[cfg(test)]
    pub(super) fn use_isa(&mut self, isa: super::simd::Isa) {
        if let Encoder::Packed(runner) = &mut self.encoder {
            runner.encoder.use_isa(isa);
        }
    }

    fn cut_all(&self, texts: &[&str]) -> Result<Vec<Pieces>, EmbedError> {
        let blocks: Vec<&[&str]> = texts.chunks(TEXTS_PER_CUT).collect();
        let cut_block = |index: usize| blocks[index].iter().map(|text| self.cut(text)).collect();
        let cut: Result<Vec<Vec<Pieces>>, EmbedError> =
            map_indices(self.threads, blocks.len(), cut_block).into_iter().collect();
        Ok(cut?.into_iter().flatten().collect())
    }

    fn cut(&self, text: &str) -> Result<Pieces, EmbedError> {
        let head = head_of(text, TOKENIZED_BYTES_MAX);
        let encoding = self
            .tokenizer
            .encode_fast(head, false)
            .map_err(|error| EmbedError::Tokenize(error.to_string()))?;
        let found = encoding.get_ids();
        let kept = &found[..found.len().min(PIECES_MAX - 2)];
        let mut ids = Vec::with_capacity(kept.len() + 2);
        ids.push(self.first_piece);
        ids.extend_from_slice(kept);
        ids.push(self.last_piece);
        let tokens = if head.len() == text.len() {
            found.len()
        } else {
            (found.len() as f64 * text.len() as f64 / head.len() as f64) as usize
        };
        Ok(Pieces { ids, tokens: u32::try_from(tokens).unwrap_or(u32::MAX) })
    }
}

/// At most `bytes_max` bytes of `text`, cut after white space if there is any.
fn head_of(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let head = &text[..text.floor_char_boundary(bytes_max)];
    let end = head.rfind(char::is_whitespace).unwrap_or(head.len());
    if end == 0 { head } else { &head[..end] }
}

fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|value| *value /= norm);
}

/// Spreads sequences over threads and keeps their buffers for the next call.
struct PackedRunner {
    encoder: PackedEncoder,
    threads: usize,
    workspaces: Mutex<Vec<Workspace>>,
}

impl PackedRunner {
    fn run(&self, sequences: &[&[u32]]) -> Vec<Vec<f32>> {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
        let plan = Plan::new(&lengths, self.threads);
        let done = if plan.shared {
            plan.passes.iter().map(|pass| self.run_shared(pass, sequences)).collect()
        } else {
            self.run_side_by_side(&plan.passes, sequences)
        };
        let mut vectors = vec![Vec::new(); sequences.len()];
        for (pass, means) in plan.passes.iter().zip(done) {
            for (&index, mean) in pass.iter().zip(means) {
                vectors[index] = mean;
            }
        }
        vectors
    }

    /// Runs one pass with all threads.
    fn run_shared(&self, pass: &[usize], sequences: &[&[u32]]) -> Vec<Vec<f32>> {
        let sequences: Vec<&[u32]> = pass.iter().map(|&index| sequences[index]).collect();
        let barrier = Barrier::new(self.threads);
        let mut workspaces = self.take_workspaces(self.threads);
        let (pass, members) = Pass::new(&barrier, &mut workspaces, &sequences);
        let run = |member| {
            let _membership = Membership(&barrier);
            self.encoder.run(&pass, member)
        };
        let mut members = members.into_iter();
        let means = thread::scope(|scope| {
            let first = members.next().map(|first| {
                members.for_each(|member| {
                    scope.spawn(|| run(member));
                });
                run(first)
            });
            first.unwrap_or_default()
        });
        drop(pass);
        self.free_workspaces().extend(workspaces);
        means
    }

    /// Lets each thread run whole passes until none is left.
    fn run_side_by_side(&self, passes: &[Vec<usize>], sequences: &[&[u32]]) -> Vec<Vec<Vec<f32>>> {
        map_indices(self.threads, passes.len(), |index| {
            let sequences: Vec<&[u32]> =
                passes[index].iter().map(|&index| sequences[index]).collect();
            let barrier = Barrier::new(1);
            let mut workspaces = self.take_workspaces(1);
            let (pass, members) = Pass::new(&barrier, &mut workspaces, &sequences);
            let means =
                members.into_iter().flat_map(|member| self.encoder.run(&pass, member)).collect();
            drop(pass);
            self.free_workspaces().extend(workspaces);
            means
        })
    }

    fn take_workspaces(&self, count: usize) -> Vec<Workspace> {
        let mut free = self.free_workspaces();
        (0..count).map(|_| free.pop().unwrap_or_else(Workspace::new)).collect()
    }

    fn free_workspaces(&self) -> MutexGuard<'_, Vec<Workspace>> {
        locked(&self.workspaces)
    }
}

/// Which sequences are run together.
struct Plan {
    passes: Vec<Vec<usize>>,
    /// Whether all threads work on each pass, rather than each on its own.
    shared: bool,
}

impl Plan {
    fn new(lengths: &[usize], threads: usize) -> Self {
        let tokens: usize = lengths.iter().sum();
        let rounds = tokens.div_ceil(PASS_TOKENS_GOAL * threads);
        let (passes, longest) = fill_passes(lengths, rounds * threads);
        let even = tokens as f32 / threads as f32;
        let shared = threads > 1 && longest as f32 * rounds as f32 > even * IMBALANCE_MAX;
        if !shared {
            return Self { passes, shared };
        }
        let (passes, _) = fill_passes(lengths, tokens.div_ceil(PASS_TOKENS_MAX));
        Self { passes, shared }
    }
}

/// Puts each sequence, longest first, into the emptiest pass; returns the fullest one's tokens.
fn fill_passes(lengths: &[usize], count: usize) -> (Vec<Vec<usize>>, usize) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    let mut passes: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); count];
    for index in order {
        let length = lengths[index];
        match passes.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            Some((tokens, pass)) if *tokens + length <= PASS_TOKENS_MAX => {
                *tokens += length;
                pass.push(index);
            }
            _ => passes.push((length, vec![index])),
        }
    }
    passes.retain(|(tokens, _)| *tokens > 0);
    let longest = passes.iter().map(|(tokens, _)| *tokens).max().unwrap_or(0);
    (passes.into_iter().map(|(_, pass)| pass).collect(), longest)
}
