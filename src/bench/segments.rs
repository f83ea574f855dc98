//! What independent segments cost in accuracy, and what they save.
//!
//! Every prompt has the same instructions, which are cached, some of the memories in an order of
//! its own, and a question about one of them. The exact way computes memories and question; the
//! others put the memories together from what was computed for each by itself, as replies do. The
//! model's most likely tokens after the exact prompt are then read to all of them, so that at each
//! place the distributions of the next token can be compared.

mod texts;

use std::{ops::Range, path::PathBuf, time::Instant};

use memcube_actors::{
    Error, Result,
    environment::{Entropy, SeededEntropy},
    inference::{
        BLOCK_TOKENS, Cancel, ChatMessage, Engine, EngineError, KvBytes, SEGMENT_SAVED_TOKENS_MIN,
        Sampling, SegmentPiece, Session, Token, segment_pieces,
    },
};
use memcube_schemas::conversation::Role;
use serde::Serialize;

use self::texts::{MEMORIES, PREAMBLE};
use crate::inference::candle::engine::{CandleEngine, CandleSession};

/// First tokens of each memory that are computed where they stand.
pub const REPAIRS: [usize; 4] = [0, 8, 16, 32];
/// Tokens of a text at the most.
const TEXT_TOKENS: usize = 32;
const HEADING: &str = "What you remember:\n";

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct SegmentsOptions {
    /// Folder of the language model.
    pub model_dir: PathBuf,
    /// Threads of the model.
    pub threads: usize,
    /// Prompts with memories of each length.
    pub prompts: usize,
    /// Memories in each.
    pub memories: usize,
    /// How often times are measured.
    pub rounds: usize,
    /// First tokens of each memory that are computed where they stand.
    pub repairs: Vec<usize>,
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentsReport {
    /// The model, with the beginning of its checksum.
    pub model: String,
    /// Threads of the model.
    pub threads: usize,
    /// Prompts with memories of each length.
    pub prompts: usize,
    /// Memories in each.
    pub memories: usize,
    /// How often times were measured.
    pub rounds: usize,
    /// One for memories of each length.
    pub sets: Vec<SetReport>,
}

/// Prompts with memories of one length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetReport {
    /// How long they are.
    pub length: &'static str,
    /// Tokens of a memory, mean.
    pub memory_tokens: f64,
    /// Tokens that the exact way computes for a request, mean.
    pub exact_tokens: f64,
    /// Milliseconds that it takes to the first token, median.
    pub exact_ms: f64,
    /// Places at which distributions are compared.
    pub places: usize,
    /// One for each way to put memories together.
    pub ways: Vec<WayReport>,
}

/// One way to put memories together, against the exact one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WayReport {
    /// What is done.
    pub way: String,
    /// Divergence (KL) of the first token, in nats: mean.
    pub kl_first_mean: f64,
    /// The greatest one.
    pub kl_first_max: f64,
    /// Divergence of all tokens: mean.
    pub kl_mean: f64,
    /// The greatest one.
    pub kl_max: f64,
    /// At how many of 100 places the likeliest token is the same.
    pub top_1_percent: f64,
    /// Texts that are the same, of all prompts.
    pub equal_texts: usize,
    /// Tokens that are computed for a request, mean.
    pub computed_tokens: f64,
    /// Milliseconds to the first token, median.
    pub ms: f64,
    /// Of these, in parts of what the exact way took right before: median.
    pub ms_ratio: f64,
}

/// How memories are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One behind the other, with the keys of wherever they were computed.
    AsTheyAre,
    /// At their places, so many first tokens of each computed there.
    Repaired(usize),
}

/// A prompt.
struct Asked {
    tokens: Vec<Token>,
    /// Where instructions end, and where memories do.
    instructions: usize,
    memories: usize,
    /// Which memory stands where.
    spans: Vec<(usize, Range<usize>)>,
}

/// Measures.
///
/// # Errors
/// When the model is missing or broken, or more memories are wanted than there are.
pub fn run(
    options: &SegmentsOptions,
    on_step: &dyn Fn(&str, usize, usize),
) -> Result<SegmentsReport> {
    if options.memories == 0 || options.memories > MEMORIES.len() {
        let most = MEMORIES.len();
        return Err(Error::invalid(format!("a prompt has 1 to {most} memories")));
    }
    let engine = CandleEngine::open_smollm2(&options.model_dir, options.threads)?;
    let bench = Bench { engine: &engine, options, entropy: SeededEntropy::new(5) };
    let mut sets = Vec::new();
    for (length, texts) in [
        ("short", MEMORIES.map(|[brief, _, _]| format!("- {brief}\n"))),
        ("long", MEMORIES.map(|[brief, more, _]| format!("- {brief} {more}\n"))),
    ] {
        let on_prompt = |done| on_step(length, done, options.prompts);
        sets.push(bench.measure(length, &texts, &on_prompt).map_err(failed)?);
    }
    Ok(SegmentsReport {
        model: engine.facts().fingerprint.model.to_string(),
        threads: options.threads,
        prompts: options.prompts,
        memories: options.memories,
        rounds: options.rounds,
        sets,
    })
}

fn failed(error: EngineError) -> Error {
    Error::internal(error.to_string())
}

struct Bench<'a> {
    engine: &'a CandleEngine,
    options: &'a SegmentsOptions,
    entropy: SeededEntropy,
}

/// Sums over the prompts.
#[derive(Default)]
struct Sums {
    kl_first: Vec<f64>,
    kl: Vec<f64>,
    same: usize,
    equal_texts: usize,
    computed: usize,
    ms: Vec<f64>,
    ratios: Vec<f64>,
}

type Engined<T> = std::result::Result<T, EngineError>;

impl Bench<'_> {
    fn measure(
        &self,
        length: &'static str,
        texts: &[String],
        on_prompt: &dyn Fn(usize),
    ) -> Engined<SetReport> {
        let segments: Vec<KvBytes> =
            texts.iter().map(|text| self.alone(text)).collect::<Engined<_>>()?;
        let instructions = self.message(Role::System, &[PREAMBLE], true)?;
        let mut cached = self.engine.open()?;
        prefill(&mut *cached, &instructions)?;
        let cached = cached.export(0..instructions.len())?;
        let repairs = self.options.repairs.iter().copied().map(Way::Repaired);
        let ways: Vec<Way> = [Way::AsTheyAre].into_iter().chain(repairs).collect();
        let mut sums: Vec<Sums> = ways.iter().map(|_| Sums::default()).collect();
        let (mut exact_ms, mut exact_tokens, mut places) = (Vec::new(), 0, 0);
        for prompt in 0..self.options.prompts {
            on_prompt(prompt);
            let asked = self.ask(&instructions, texts)?;
            exact_tokens += asked.tokens.len() - asked.instructions;
            let mut filled = Vec::new();
            for _ in 0..self.options.rounds.max(1) {
                filled.clear();
                let (exact, took_ms, _) = self.fill(&cached, &asked, &segments, None)?;
                exact_ms.push(took_ms);
                filled.push(exact);
                for (way, sums) in ways.iter().zip(&mut sums) {
                    let (session, ms, computed) =
                        self.fill(&cached, &asked, &segments, Some(*way))?;
                    filled.push(session);
                    sums.ms.push(ms);
                    sums.ratios.push(ms / took_ms);
                    sums.computed += computed;
                }
            }
            let mut filled = filled.into_iter();
            let Some(mut exact) = filled.next() else { continue };
            let (text, expected) = self.speak(&mut *exact)?;
            places += expected.len();
            for (mut session, sums) in filled.zip(&mut sums) {
                sums.compare(&mut *session, &text, &expected)?;
            }
        }
        let memory_tokens: usize = segments.iter().map(|segment| segment.tokens).sum();
        let prompts = self.options.prompts.max(1) as f64;
        let fills = prompts * self.options.rounds.max(1) as f64;
        let ways = ways.iter().zip(sums).map(|(way, sums)| sums.report(*way, places, fills));
        Ok(SetReport {
            length,
            memory_tokens: rounded(memory_tokens as f64 / segments.len() as f64),
            exact_tokens: rounded(exact_tokens as f64 / prompts),
            exact_ms: rounded(median(exact_ms)),
            places,
            ways: ways.collect(),
        })
    }

    fn message(&self, role: Role, pieces: &[&str], is_first: bool) -> Engined<Vec<Token>> {
        let pieces = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        Ok(self.engine.render(&ChatMessage { role, pieces }, is_first)?.tokens)
    }

    /// What is computed for a memory by itself.
    fn alone(&self, text: &str) -> Engined<KvBytes> {
        let tokens = self.engine.tokenize(text)?;
        let mut session = self.engine.open()?;
        prefill(&mut *session, &tokens)?;
        session.export(0..tokens.len())
    }

    /// The next prompt: some memories, and a question about one of them.
    fn ask(&self, instructions: &[Token], texts: &[String]) -> Engined<Asked> {
        let mut chosen: Vec<usize> = (0..texts.len()).collect();
        let below = |bound: usize| {
            usize::try_from(self.entropy.next_u64() % bound as u64).unwrap_or_default()
        };
        for at in 0..self.options.memories {
            chosen.swap(at, at + below(texts.len() - at));
        }
        chosen.truncate(self.options.memories);
        let pieces = [HEADING.to_owned()];
        let pieces = pieces.into_iter().chain(chosen.iter().map(|memory| texts[*memory].clone()));
        let message = ChatMessage { role: Role::System, pieces: pieces.collect() };
        let rendered = self.engine.render(&message, false)?;
        let ends = rendered.piece_ends.windows(2);
        let moved = |end: usize| instructions.len() + end;
        let spans = ends.map(|ends| moved(ends[0])..moved(ends[1]));
        let spans = chosen.iter().copied().zip(spans).collect();
        let [.., question] = MEMORIES[chosen[below(chosen.len())]];
        let mut tokens = [instructions, &rendered.tokens].concat();
        let memories = tokens.len();
        tokens.extend(self.message(Role::User, &[question], false)?);
        tokens.extend(self.engine.open_reply());
        Ok(Asked { tokens, instructions: instructions.len(), memories, spans })
    }

    /// Brings a prompt into a session; returns milliseconds to the first token, and tokens that
    /// were computed.
    fn fill(
        &self,
        cached: &KvBytes,
        asked: &Asked,
        segments: &[KvBytes],
        way: Option<Way>,
    ) -> Engined<(Box<dyn Session>, f64, usize)> {
        let mut session = self.engine.open()?;
        session.import(cached)?;
        let repair_tokens = match way {
            Some(Way::AsTheyAre | Way::Repaired(0)) => 0,
            Some(Way::Repaired(tokens)) => tokens,
            None => usize::MAX,
        };
        let tokens_min = repair_tokens.saturating_add(SEGMENT_SAVED_TOKENS_MIN);
        let long = asked.spans.iter().filter(|(_, span)| span.len() >= tokens_min);
        let spans = long.map(|(memory, span)| (*memory, span));
        let start = Instant::now();
        let pieces = segment_pieces(&(asked.instructions..asked.memories), spans, repair_tokens);
        let mut computed = asked.tokens.len() - asked.memories;
        for piece in pieces {
            match piece {
                SegmentPiece::Compute(span) => {
                    computed += span.len();
                    prefill(&mut *session, &asked.tokens[span])?;
                }
                SegmentPiece::Import(memory, _) if way == Some(Way::AsTheyAre) => {
                    let start = session.tokens();
                    session.import(&KvBytes { start, ..segments[memory].clone() })?;
                }
                SegmentPiece::Import(memory, wanted) => {
                    session.import_segment(&segments[memory], wanted)?;
                }
            }
        }
        prefill(&mut *session, &asked.tokens[asked.memories..])?;
        session.sample(Sampling::GREEDY, 0)?;
        Ok((session, start.elapsed().as_secs_f64() * 1e3, computed))
    }

    /// What the model would say, and the logits of each token of it.
    fn speak(&self, session: &mut dyn Session) -> Engined<(Vec<Token>, Vec<Vec<f32>>)> {
        let (mut text, mut all) = (Vec::new(), Vec::new());
        loop {
            let found = logits(session)?;
            let token = likeliest(&found);
            text.push(token);
            all.push(found);
            let ends = &self.engine.facts().end_of_reply;
            if text.len() == TEXT_TOKENS || ends.contains(&token) {
                return Ok((text, all));
            }
            session.step(token)?;
        }
    }
}

impl Sums {
    /// Reads a text to a session and compares what it would have said at each place.
    fn compare(
        &mut self,
        session: &mut dyn Session,
        text: &[Token],
        expected: &[Vec<f32>],
    ) -> Engined<()> {
        let before = self.same;
        for (at, (token, expected)) in text.iter().zip(expected).enumerate() {
            let found = logits(session)?;
            let kl = divergence(expected, &found);
            if at == 0 {
                self.kl_first.push(kl);
            }
            self.kl.push(kl);
            self.same += usize::from(likeliest(&found) == *token);
            if at + 1 < text.len() {
                session.step(*token)?;
            }
        }
        // As long as the likeliest token is the same, what is read is what it would have said.
        self.equal_texts += usize::from(self.same - before == text.len());
        Ok(())
    }

    fn report(self, way: Way, places: usize, fills: f64) -> WayReport {
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
        let most = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
        WayReport {
            way: match way {
                Way::AsTheyAre => "not moved".to_owned(),
                Way::Repaired(0) => "moved".to_owned(),
                Way::Repaired(tokens) => format!("moved, {tokens} repaired"),
            },
            kl_first_mean: rounded(mean(&self.kl_first)),
            kl_first_max: rounded(most(&self.kl_first)),
            kl_mean: rounded(mean(&self.kl)),
            kl_max: rounded(most(&self.kl)),
            top_1_percent: rounded(100.0 * self.same as f64 / places.max(1) as f64),
            equal_texts: self.equal_texts,
            computed_tokens: rounded(self.computed as f64 / fills),
            ms: rounded(median(self.ms)),
            ms_ratio: rounded(median(self.ratios)),
        }
    }
}

fn prefill(session: &mut dyn Session, tokens: &[Token]) -> Engined<()> {
    let cancel = Cancel::default();
    tokens.chunks(BLOCK_TOKENS).try_for_each(|chunk| session.prefill(chunk, &cancel))
}

fn logits(session: &mut dyn Session) -> Engined<Vec<f32>> {
    let session = session.as_any().downcast_ref::<CandleSession>();
    let other = || EngineError::Failed { reason: "the session is of another engine".to_owned() };
    session.ok_or_else(other)?.logits()
}

fn likeliest(logits: &[f32]) -> Token {
    let pairs = logits.iter().enumerate();
    let best = pairs.max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(at, _)| at);
    Token::try_from(best).unwrap_or(Token::MAX)
}

/// KL divergence of a distribution from the one that is expected, both given as logits, in nats.
fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let logs = |logits: &[f32]| -> Vec<f64> {
        let top = logits.iter().fold(f32::MIN, |top, logit| top.max(*logit));
        let shifted = || logits.iter().map(|logit| f64::from(logit - top));
        let sum = shifted().map(f64::exp).sum::<f64>().ln();
        shifted().map(|logit| logit - sum).collect()
    };
    let (expected, found) = (logs(expected), logs(found));
    // Equal ones may come out a rounding below zero.
    let pairs = expected.iter().zip(&found);
    pairs.map(|(expected, found)| expected.exp() * (expected - found)).sum::<f64>().max(0.0)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_for_equal_distributions_only() {
        let logits = [1.0, 3.0, -2.0];
        assert_eq!(divergence(&logits, &logits), 0.0);
        assert!(divergence(&logits, &logits.map(|logit| logit + 9.0)) < 1e-9, "up to a shift");
        let halves = divergence(&[0.0, 0.0], &[0.0, 3.0_f32.ln()]);
        assert!((halves - 0.5 * (4.0_f64 / 3.0).ln()).abs() < 1e-6, "{halves}");
        assert_eq!(likeliest(&logits), 1);
    }

    #[test]
    fn every_memory_is_different_and_has_a_question() {
        let all: std::collections::BTreeSet<&str> =
            MEMORIES.iter().flat_map(|texts| texts.iter().copied()).collect();
        assert_eq!(all.len(), 3 * MEMORIES.len());
        assert!(MEMORIES.iter().all(|[_, _, question]| question.ends_with('?')));
    }

    #[test]
    fn medians_are_measured_values() {
        assert_eq!(median(Vec::new()), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
