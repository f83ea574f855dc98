//! The port to language models: what an engine has to offer so that contexts can be cached, moved
//! between tiers and used again exactly.
//!
//! All calls block and use processors or a device; they run on the compute port only, one at a time
//! for each session. Whatever waits, decides or stores is in the actor, not here.
//!
//! # What is promised about equal bits
//!
//! A session is a function of the calls that filled it. For one build of an engine on one kind of
//! device, and whatever the number of threads, the numbers after a [`Session::prefill`] depend on
//! nothing but the numbers before it and the tokens of *this call*. So:
//!
//! - Two sessions that were filled by the same tokens, cut at the same places, hold equal bits and
//!   give equal logits.
//! - A session into which [`Session::import`] brought what another one gave through
//!   [`Session::export`] is the same as that other one, bit for bit, provided that the exported
//!   span begins and ends where prefills were cut.
//! - Where the cuts differ, results differ by rounding only. The same holds for tokens that came
//!   through [`Session::step`], whose kernels may be others than those of prefill.
//!
//! Therefore whoever calls cuts at the ends of cached blocks in every case, cached or not, and
//! exports only what came through prefill.

use std::{
    any::Any,
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use memcube_schemas::{
    activation::{KvDtype, ModelFingerprint},
    codec::checksum,
    conversation::Role,
};
use tokio::sync::Notify;

/// The number of a word piece.
pub type Token = u32;

/// Tokens of a block at the most, and of one prefill: large enough for fast matrix products, small
/// enough that others wait little and that a nearly equal prefix is nearly wholly used again.
pub const BLOCK_TOKENS: usize = 256;

/// Shorthand for results of engines.
pub type EngineResult<T> = Result<T, EngineError>;

/// Why an engine did not do what it was asked, told apart by what the caller does then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// It was told to stop. The session is as it was before the call.
    Cancelled,
    /// The tokens do not fit: leave some out.
    ContextTooLong {
        /// Tokens that the session would hold.
        tokens: usize,
        /// Tokens that it can hold.
        window_tokens: usize,
    },
    /// The device has no room: let go of something, then try again. The session is as it was.
    OutOfMemory,
    /// A number is infinite or not a number: the session is of no use any more.
    NotFinite,
    /// The block is not one that the session can take in: compute its tokens.
    Unsuitable {
        /// What does not fit.
        reason: String,
    },
    /// It does not work; somebody has to look.
    Failed {
        /// What happened.
        reason: String,
    },
}

impl EngineError {
    /// A word for metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::ContextTooLong { .. } => "context_too_long",
            Self::OutOfMemory => "out_of_memory",
            Self::NotFinite => "not_finite",
            Self::Unsuitable { .. } => "unsuitable",
            Self::Failed { .. } => "failed",
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("the computation was cancelled"),
            Self::ContextTooLong { tokens, window_tokens } => {
                write!(f, "{tokens} tokens do not fit into a window of {window_tokens}")
            }
            Self::OutOfMemory => f.write_str("the device has no memory left"),
            Self::NotFinite => f.write_str("the model computed a number that is not finite"),
            Self::Unsuitable { reason } => write!(f, "the block does not fit: {reason}"),
            Self::Failed { reason } => write!(f, "the engine failed: {reason}"),
        }
    }
}

impl std::error::Error for EngineError {}

/// Tells a computation to stop. Clones share it.
#[derive(Clone, Default)]
pub struct Cancel {
    shared: Arc<(AtomicBool, Notify)>,
}

impl Cancel {
    /// From now on it is set.
    pub fn set(&self) {
        self.shared.0.store(true, Ordering::Release);
        self.shared.1.notify_waiters();
    }

    /// Whether it is set. Engines look at it often, at least once a layer.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.shared.0.load(Ordering::Acquire)
    }

    /// Waits until it is set.
    pub async fn cancelled(&self) {
        let notified = self.shared.1.notified();
        let mut notified = std::pin::pin!(notified);
        // Registered before the look, so that nothing is missed in between.
        notified.as_mut().enable();
        if !self.is_set() {
            notified.await;
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cancel({})", self.is_set())
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; larger values make others likelier.
    pub temperature: f32,
    /// Only the likeliest tokens that together make up this share of the probability are
    /// considered; 1 means all.
    pub top_p: f32,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0 };
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// One message of a chat, in pieces.
///
/// Each piece is tokenized by itself, so that it is known which tokens a memory became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks. Models without a role of their own for it get it in the form that they know.
    pub role: Role,
    /// What is said: the text is all of them, one after the other.
    pub pieces: Vec<String>,
}

/// A message as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// What the model reads, with the marks around a message.
    pub tokens: Vec<Token>,
    /// Where each piece ends in `tokens`, without the mark at the end of the message.
    pub piece_ends: Vec<usize>,
}

/// What is fixed about an engine as long as it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// The model, and everything else that its keys and values depend on. An adapter on top of a
    /// model makes another engine, which may share the weights.
    pub fingerprint: ModelFingerprint,
    /// Tokens that a session can hold.
    pub window_tokens: usize,
    /// Bytes that the keys and values of one token take in a session.
    pub kv_bytes_per_token: u64,
    /// Tokens with which the model ends what it says.
    pub end_of_reply: Vec<Token>,
}

/// A language model on a device.
pub trait Engine: Send + Sync + 'static {
    /// What does not change.
    fn facts(&self) -> &EngineFacts;

    /// The tokens of a text, without any marks.
    ///
    /// # Errors
    /// `Failed` when the tokenizer does not work.
    fn tokenize(&self, text: &str) -> EngineResult<Vec<Token>>;

    /// The bytes of a token, as they follow the bytes of the tokens before it. May be a part of a
    /// character. Empty for marks that are no text.
    fn bytes_of(&self, token: Token) -> Vec<u8>;

    /// A message as tokens; the first one of a prompt may begin with a mark of its own.
    ///
    /// A prompt is the concatenation of its messages and [`Engine::open_reply`], so that what is
    /// appended to it never changes the tokens that came before.
    ///
    /// # Errors
    /// `Failed` when the tokenizer does not work.
    fn render(&self, message: &ChatMessage, is_first: bool) -> EngineResult<Rendered>;

    /// What stands between the last message and what the model says.
    fn open_reply(&self) -> Vec<Token>;

    /// What ends a reply in a later prompt, as the end of a rendered message would.
    fn close_reply(&self) -> Vec<Token>;

    /// Whether its sessions know [`Session::import_segment`].
    fn takes_segments(&self) -> bool {
        false
    }

    /// An empty session.
    ///
    /// # Errors
    /// `OutOfMemory`, `Failed`.
    fn open(&self) -> EngineResult<Box<dyn Session>>;

    /// One step of several sessions: each takes in a token, then chooses the next one. An engine
    /// that can share a pass over its weights among them does so; the results of one do not depend
    /// on the others.
    fn decode(&self, steps: &mut [DecodeStep<'_>]) -> Vec<EngineResult<Token>> {
        let one = |step: &mut DecodeStep<'_>| {
            step.session.step(step.token)?;
            step.session.sample(step.sampling, step.draw)
        };
        steps.iter_mut().map(one).collect()
    }
}

/// The part of one session in [`Engine::decode`].
pub struct DecodeStep<'a> {
    /// The session.
    pub session: &'a mut dyn Session,
    /// What it takes in.
    pub token: Token,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// 64 random bits for the choice.
    pub draw: u64,
}

/// Keys and values of a sequence of tokens on the device, from position 0 on, and whatever is
/// needed to go on from there.
pub trait Session: Send {
    /// Tokens that it holds.
    fn tokens(&self) -> usize;

    /// Bytes that it takes on the device.
    fn bytes(&self) -> u64;

    /// Takes in tokens, at most [`BLOCK_TOKENS`] at a time, and keeps what [`Session::sample`]
    /// needs of the last one. No logits are computed here.
    ///
    /// # Errors
    /// `Cancelled` and `OutOfMemory` leave the session as it was; `ContextTooLong` as well;
    /// `NotFinite` and `Failed` make it useless.
    fn prefill(&mut self, tokens: &[Token], cancel: &Cancel) -> EngineResult<()>;

    /// Takes in one token that was chosen, in the fastest way there is for one.
    ///
    /// # Errors
    /// As `prefill`.
    fn step(&mut self, token: Token) -> EngineResult<()>;

    /// Chooses a token to follow the last one, which came through `prefill` or `step` since the
    /// last `import` or `truncate`. Equal logits and equal arguments give equal tokens.
    ///
    /// # Errors
    /// `NotFinite` when a logit is; `Failed` when nothing came before.
    fn sample(&mut self, sampling: Sampling, draw: u64) -> EngineResult<Token>;

    /// Forgets everything from a position on. Does nothing if the session is shorter.
    fn truncate(&mut self, tokens: usize);

    /// Copies the keys and values of a span out.
    ///
    /// # Errors
    /// `Unsuitable` when the span is not inside, `OutOfMemory`, `Failed`.
    fn export(&self, span: Range<usize>) -> EngineResult<KvBytes>;

    /// Appends keys and values that another session of an engine with the same fingerprint
    /// exported. The caller has verified the checksums. They have to begin where this session ends.
    ///
    /// # Errors
    /// `Unsuitable` when position, dtype or sizes do not fit, `OutOfMemory`, `ContextTooLong`; each
    /// leaves the session as it was.
    fn import(&mut self, block: &KvBytes) -> EngineResult<()>;

    /// Appends the tokens `wanted` of a segment: keys and values that another session of an engine
    /// with the same fingerprint computed for nothing but these tokens, from position 0 on. They
    /// are moved to where this session ends. The caller has verified the checksums.
    ///
    /// This is **not exact**: what is appended knows nothing of what stands before it, so all that
    /// is computed later differs from what it would be.
    ///
    /// # Errors
    /// As `import`; `Unsuitable` also when the engine has no way to do this.
    fn import_segment(&mut self, segment: &KvBytes, wanted: Range<usize>) -> EngineResult<()> {
        let _ = (segment, wanted);
        let reason = "this engine puts no segments together".to_owned();
        Err(EngineError::Unsuitable { reason })
    }

    /// Microseconds of a scripted engine's time that the calls since the last look would have taken
    /// and did not. The actor lets them pass. Real engines took their time already.
    fn owed_us(&mut self) -> u64 {
        0
    }

    /// For engines that want their own type back.
    fn as_any(&mut self) -> &mut dyn Any;
}

/// Stands where a session was handed over. Nothing can be done with it.
pub(crate) struct NoSession;

impl Session for NoSession {
    fn tokens(&self) -> usize {
        0
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn prefill(&mut self, _tokens: &[Token], _cancel: &Cancel) -> EngineResult<()> {
        Err(handed_over())
    }

    fn step(&mut self, _token: Token) -> EngineResult<()> {
        Err(handed_over())
    }

    fn sample(&mut self, _sampling: Sampling, _draw: u64) -> EngineResult<Token> {
        Err(handed_over())
    }

    fn truncate(&mut self, _tokens: usize) {}

    fn export(&self, _span: Range<usize>) -> EngineResult<KvBytes> {
        Err(handed_over())
    }

    fn import(&mut self, _block: &KvBytes) -> EngineResult<()> {
        Err(handed_over())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

fn handed_over() -> EngineError {
    EngineError::Failed { reason: "the session was handed over".to_owned() }
}

/// One layer of a block.
#[derive(Clone, PartialEq, Eq)]
pub struct KvLayer {
    /// Its numbers.
    pub bytes: Bytes,
    /// CRC-32C of the bytes, as they were when they came from the engine.
    pub checksum: u32,
}

impl fmt::Debug for KvLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvLayer({} bytes, {:08x})", self.bytes.len(), self.checksum)
    }
}

impl KvLayer {
    /// A layer with the checksum of its bytes.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        let checksum = checksum(&bytes);
        Self { bytes, checksum }
    }
}

/// Keys and values of a span of tokens, outside of a session: all layers, keys and values after the
/// rotation by position. What lies where in a layer is the engine's own and named in its
/// fingerprint; numbers are little endian and of one dtype.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvBytes {
    /// The position of the first token.
    pub start: usize,
    /// How many tokens.
    pub tokens: usize,
    /// How the numbers are stored.
    pub dtype: KvDtype,
    /// One entry a layer.
    pub layers: Vec<KvLayer>,
}

impl KvBytes {
    /// Bytes of all layers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes.len() as u64).sum()
    }

    /// Whether every layer still is what it was.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.layers.iter().all(|layer| checksum(&layer.bytes) == layer.checksum)
    }
}
