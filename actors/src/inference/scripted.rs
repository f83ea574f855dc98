//! A deterministic engine without a model, for tests and simulations: it understands nothing, takes
//! the time that its cost model says, and remembers in every number of its keys and values what
//! came before, so that a block in the wrong place changes what it says and is counted.

use std::{
    any::Any,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use memcube_schemas::{
    ModelId,
    activation::{KvDtype, ModelFingerprint},
    conversation::Role,
};

use super::engine::{
    BLOCK_TOKENS, Cancel, ChatMessage, Engine, EngineError, EngineFacts, EngineResult, KvBytes,
    KvLayer, Rendered, Sampling, Session, Token,
};

/// Numbers that a layer holds for one token: as many as share a scale when they are stored in 8
/// bits, so that the digests in them survive that.
const NUMBERS: usize = 32;
/// One layer holds what came up to a token, the other what came before it.
const LAYERS: usize = 2;
/// The largest number of each row, by which the others are scaled.
const LARGEST: f32 = 127.0;
const DIGITS: usize = 16;
const START: u64 = 0x5eed;
/// Marks have no bytes; words have one to three.
const MARK_END: Token = 1;
const MARK_ROLES: Token = 2;
const PIECE_BYTES: usize = 3;

/// What the calls of a scripted engine take, in its own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScriptedCosts {
    /// Microseconds for a token of a prefill.
    pub prefill_us: u64,
    /// Nanoseconds more for every token that a prefilled one looks back at.
    pub look_back_ns: u64,
    /// Microseconds for one step.
    pub step_us: u64,
    /// Nanoseconds to copy the keys and values of one token.
    pub copy_ns: u64,
}

impl Default for ScriptedCosts {
    /// About what a small model takes on two cores.
    fn default() -> Self {
        Self { prefill_us: 1_000, look_back_ns: 300, step_us: 20_000, copy_ns: 5_000 }
    }
}

/// The engine.
#[derive(Debug)]
pub struct ScriptedEngine {
    facts: EngineFacts,
    costs: ScriptedCosts,
    device: Arc<Device>,
}

#[derive(Debug)]
struct Device {
    bytes_max: AtomicU64,
    bytes_used: AtomicU64,
    wrong_blocks: AtomicU64,
    prefilled_tokens: AtomicU64,
}

impl ScriptedEngine {
    /// An engine whose sessions hold that many tokens, and whose device has room for so many bytes.
    ///
    /// # Panics
    /// Never: its model id is valid.
    #[must_use]
    pub fn new(window_tokens: usize, device_bytes_max: u64, costs: ScriptedCosts) -> Self {
        let model = ModelId::new("scripted-chat@1").expect("invariant: the name is printable");
        let fingerprint = ModelFingerprint {
            model,
            tokenizer: [1; 32],
            adapter: None,
            rope: "none".to_owned(),
            dtype: KvDtype::F32,
            layout: "digests v1 x2".to_owned(),
        };
        let facts = EngineFacts {
            fingerprint,
            window_tokens,
            kv_bytes_per_token: (LAYERS * NUMBERS * size_of::<f32>()) as u64,
            end_of_reply: vec![MARK_END],
        };
        let device = Arc::new(Device {
            bytes_max: AtomicU64::new(device_bytes_max),
            bytes_used: AtomicU64::new(0),
            wrong_blocks: AtomicU64::new(0),
            prefilled_tokens: AtomicU64::new(0),
        });
        Self { facts, costs, device }
    }

    /// The same engine under another name, as if it had other weights.
    #[must_use]
    pub fn named(mut self, model: ModelId) -> Self {
        self.facts.fingerprint.model = model;
        self
    }

    /// Blocks that were brought into sessions whose prefix was not theirs.
    #[must_use]
    pub fn wrong_blocks(&self) -> u64 {
        self.device.wrong_blocks.load(Ordering::Relaxed)
    }

    /// Tokens that were computed, not brought in.
    #[must_use]
    pub fn prefilled_tokens(&self) -> u64 {
        self.device.prefilled_tokens.load(Ordering::Relaxed)
    }

    /// Bytes of the sessions that are open.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.device.bytes_used.load(Ordering::Relaxed)
    }

    /// Changes how many bytes its device has room for.
    pub fn set_device_bytes_max(&self, bytes: u64) {
        self.device.bytes_max.store(bytes, Ordering::Relaxed);
    }
}

impl Engine for ScriptedEngine {
    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenize(&self, text: &str) -> EngineResult<Vec<Token>> {
        Ok(text.as_bytes().chunks(PIECE_BYTES).map(token_of).collect())
    }

    fn bytes_of(&self, token: Token) -> Vec<u8> {
        let [length, bytes @ ..] = token.to_be_bytes();
        bytes[..usize::from(length).min(PIECE_BYTES)].to_vec()
    }

    fn render(&self, message: &ChatMessage, _is_first: bool) -> EngineResult<Rendered> {
        let mut rendered = Rendered { tokens: vec![role_mark(message.role)], piece_ends: vec![] };
        for piece in &message.pieces {
            rendered.tokens.extend(self.tokenize(piece)?);
            rendered.piece_ends.push(rendered.tokens.len());
        }
        rendered.tokens.push(MARK_END);
        Ok(rendered)
    }

    fn open_reply(&self) -> Vec<Token> {
        vec![role_mark(Role::Assistant)]
    }

    fn close_reply(&self) -> Vec<Token> {
        vec![MARK_END]
    }

    fn takes_segments(&self) -> bool {
        true
    }

    fn open(&self) -> EngineResult<Box<dyn Session>> {
        let (device, facts) = (Arc::clone(&self.device), &self.facts);
        Ok(Box::new(ScriptedSession {
            device,
            costs: self.costs,
            window_tokens: facts.window_tokens,
            bytes_per_token: facts.kv_bytes_per_token,
            digests: Vec::new(),
            has_logits: false,
            owed_ns: 0,
        }))
    }
}

fn token_of(bytes: &[u8]) -> Token {
    let mut token = [0_u8; 4];
    token[0] = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    token[1..=bytes.len()].copy_from_slice(bytes);
    Token::from_be_bytes(token)
}

const fn role_mark(role: Role) -> Token {
    MARK_ROLES
        + match role {
            Role::User => 0,
            Role::Assistant => 1,
            Role::System => 2,
            Role::Tool => 3,
        }
}

/// What came before, and then a token.
fn mix(before: u64, token: Token) -> u64 {
    let mut z = (before ^ u64::from(token)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A digest for every token, of everything up to it.
struct ScriptedSession {
    device: Arc<Device>,
    costs: ScriptedCosts,
    window_tokens: usize,
    bytes_per_token: u64,
    digests: Vec<u64>,
    has_logits: bool,
    owed_ns: u64,
}

impl ScriptedSession {
    fn last(&self) -> u64 {
        self.digests.last().copied().unwrap_or(START)
    }

    /// Takes room on the device.
    fn grow(&self, tokens: usize) -> EngineResult<()> {
        let length = self.digests.len() + tokens;
        if length > self.window_tokens {
            let window_tokens = self.window_tokens;
            return Err(EngineError::ContextTooLong { tokens: length, window_tokens });
        }
        let bytes = tokens as u64 * self.bytes_per_token;
        let Device { bytes_max, bytes_used, .. } = &*self.device;
        if bytes_used.fetch_add(bytes, Ordering::Relaxed) + bytes
            > bytes_max.load(Ordering::Relaxed)
        {
            bytes_used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(EngineError::OutOfMemory);
        }
        Ok(())
    }

    fn take_in(&mut self, tokens: &[Token]) {
        for token in tokens {
            let next = mix(self.last(), *token);
            self.digests.push(next);
        }
        self.has_logits = true;
    }
}

impl Session for ScriptedSession {
    fn tokens(&self) -> usize {
        self.digests.len()
    }

    fn bytes(&self) -> u64 {
        self.digests.len() as u64 * self.bytes_per_token
    }

    fn prefill(&mut self, tokens: &[Token], cancel: &Cancel) -> EngineResult<()> {
        debug_assert!(tokens.len() <= BLOCK_TOKENS, "one block at a time");
        if cancel.is_set() {
            return Err(EngineError::Cancelled);
        }
        self.grow(tokens.len())?;
        let (count, before) = (tokens.len() as u64, self.digests.len() as u64);
        self.owed_ns += count * self.costs.prefill_us * 1_000;
        self.owed_ns += count * (before + count / 2) * self.costs.look_back_ns;
        self.device.prefilled_tokens.fetch_add(count, Ordering::Relaxed);
        self.take_in(tokens);
        Ok(())
    }

    fn step(&mut self, token: Token) -> EngineResult<()> {
        self.grow(1)?;
        self.owed_ns += self.costs.step_us * 1_000;
        self.take_in(&[token]);
        Ok(())
    }

    fn sample(&mut self, sampling: Sampling, draw: u64) -> EngineResult<Token> {
        const LETTERS: u64 = 26;
        /// One in so many tokens ends a reply.
        const ENDS: u64 = 12;
        if !self.has_logits {
            return Err(EngineError::Failed { reason: "nothing was computed before".to_owned() });
        }
        let mut choice = mix(self.last(), Token::MAX);
        if sampling.temperature > 0.0 {
            choice = choice.wrapping_add(draw);
        }
        if choice.is_multiple_of(ENDS) {
            return Ok(MARK_END);
        }
        let letter = |n: u64| b'a' + u8::try_from(n % LETTERS).unwrap_or(0);
        Ok(token_of(&[b' ', letter(choice >> 8), letter(choice >> 16)]))
    }

    fn truncate(&mut self, tokens: usize) {
        if tokens < self.digests.len() {
            let gone = (self.digests.len() - tokens) as u64 * self.bytes_per_token;
            self.device.bytes_used.fetch_sub(gone, Ordering::Relaxed);
            self.digests.truncate(tokens);
            self.has_logits = false;
        }
    }

    fn export(&self, span: Range<usize>) -> EngineResult<KvBytes> {
        let Some(digests) = self.digests.get(span.clone()) else {
            return Err(EngineError::Unsuitable { reason: "the span is not inside".to_owned() });
        };
        let before = match span.start {
            0 => START,
            start => self.digests[start - 1],
        };
        let befores = std::iter::once(before).chain(digests.iter().copied());
        let layers = vec![
            KvLayer::new(rows(digests.iter().copied())),
            KvLayer::new(rows(befores.take(digests.len()))),
        ];
        Ok(KvBytes { start: span.start, tokens: digests.len(), dtype: KvDtype::F32, layers })
    }

    fn import(&mut self, block: &KvBytes) -> EngineResult<()> {
        let unsuitable = |reason: &str| EngineError::Unsuitable { reason: reason.to_owned() };
        let [after, before] = block.layers.as_slice() else {
            return Err(unsuitable("it has another number of layers"));
        };
        let (after, before) = (digests(&after.bytes), digests(&before.bytes));
        if block.start != self.digests.len() || block.dtype != KvDtype::F32 {
            return Err(unsuitable("it begins elsewhere, or has other numbers"));
        }
        if after.len() != block.tokens || before.len() != block.tokens {
            return Err(unsuitable("its layers have another size"));
        }
        self.grow(block.tokens)?;
        self.owed_ns += block.tokens as u64 * self.costs.copy_ns;
        // A real engine would not notice: it would say something else from here on, as this does.
        if before.first().is_some_and(|before| *before != self.last()) {
            self.device.wrong_blocks.fetch_add(1, Ordering::Relaxed);
        }
        self.digests.extend(after);
        self.has_logits = false;
        Ok(())
    }

    fn import_segment(&mut self, segment: &KvBytes, wanted: Range<usize>) -> EngineResult<()> {
        let unsuitable = |reason: &str| EngineError::Unsuitable { reason: reason.to_owned() };
        let [after, before] = segment.layers.as_slice() else {
            return Err(unsuitable("it has another number of layers"));
        };
        let (after, before) = (digests(&after.bytes), digests(&before.bytes));
        let Some(inside) = after.get(wanted.clone()).filter(|_| segment.start == 0) else {
            return Err(unsuitable("the tokens are not in it, or it does not stand by itself"));
        };
        self.grow(wanted.len())?;
        self.owed_ns += wanted.len() as u64 * self.costs.copy_ns;
        // It was computed behind something else.
        if before.first().is_some_and(|before| *before != START) {
            self.device.wrong_blocks.fetch_add(1, Ordering::Relaxed);
        }
        // What stands before still counts for what comes after, though not as if it had been read.
        let outside = self.last();
        self.digests.extend(inside.iter().map(|digest| digest ^ outside.rotate_left(1)));
        self.has_logits = false;
        Ok(())
    }

    fn owed_us(&mut self) -> u64 {
        let owed_us = self.owed_ns / 1_000;
        self.owed_ns %= 1_000;
        owed_us
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

impl Drop for ScriptedSession {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

/// Digests as numbers that survive being stored in 16 or 8 bits.
fn rows(digests: impl Iterator<Item = u64>) -> Bytes {
    let mut bytes = Vec::new();
    for digest in digests {
        let mut row = [0.0_f32; NUMBERS];
        row[0] = LARGEST;
        for (place, number) in row[1..=DIGITS].iter_mut().enumerate() {
            let digit = u8::try_from(digest >> (4 * place) & 0xf).unwrap_or(0);
            *number = f32::from(digit);
        }
        bytes.extend(row.iter().flat_map(|number| number.to_le_bytes()));
    }
    Bytes::from(bytes)
}

fn digests(bytes: &[u8]) -> Vec<u64> {
    let row = |row: &[u8]| {
        let (numbers, _) = row.as_chunks::<4>();
        let digits = numbers[1..=DIGITS].iter().enumerate();
        digits.fold(0, |digest, (place, number)| {
            let digit = f32::from_le_bytes(*number).round();
            // Rounded and between 0 and 15, unless the numbers are not this engine's.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "see above"
            )]
            let digit = digit.clamp(0.0, 15.0) as u64;
            digest | digit << (4 * place)
        })
    };
    bytes.chunks_exact(NUMBERS * size_of::<f32>()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn engine() -> ScriptedEngine {
        ScriptedEngine::new(10_000, 1 << 30, ScriptedCosts::default())
    }

    fn filled(engine: &ScriptedEngine, tokens: &[Token]) -> Box<dyn Session> {
        let mut session = engine.open().expect("opened");
        for chunk in tokens.chunks(BLOCK_TOKENS) {
            session.prefill(chunk, &Cancel::default()).expect("taken in");
        }
        session
    }

    proptest! {
        #[test]
        fn a_prefix_that_is_brought_in_is_the_same_as_one_that_is_computed(
            tokens in prop::collection::vec(any::<Token>(), 2..600), at in 0_usize..600,
        ) {
            let at = at % (tokens.len() - 1) + 1;
            let engine = engine();
            let mut whole = filled(&engine, &tokens);
            let mut parts = engine.open().expect("opened");
            parts.import(&whole.export(0..at).expect("inside")).expect("taken in");
            if at < tokens.len() {
                for chunk in tokens[at..].chunks(BLOCK_TOKENS) {
                    parts.prefill(chunk, &Cancel::default()).expect("taken in");
                }
                let sampled = parts.sample(Sampling::GREEDY, 0);
                prop_assert_eq!(whole.sample(Sampling::GREEDY, 0), sampled);
            }
            prop_assert_eq!(whole.export(0..tokens.len()), parts.export(0..tokens.len()));
            prop_assert_eq!(engine.wrong_blocks(), 0);
        }

        #[test]
        fn texts_come_back(text in ".{0,40}") {
            let engine = engine();
            let tokens = engine.tokenize(&text).expect("tokenized");
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| engine.bytes_of(*token)).collect();
            prop_assert_eq!(String::from_utf8(bytes).expect("text"), text);
        }
    }

    #[test]
    fn a_block_of_another_prefix_is_noticed_and_changes_what_is_said() {
        let engine = engine();
        let (mine, other) = (vec![7; 300], vec![8; 300]);
        let block = filled(&engine, &other).export(256..300).expect("inside");
        let mut session = filled(&engine, &mine[..256]);
        session.import(&block).expect("it cannot know");
        assert_eq!(engine.wrong_blocks(), 1);
        session.prefill(&[9], &Cancel::default()).expect("taken in");
        let mut right = filled(&engine, &mine);
        right.prefill(&[9], &Cancel::default()).expect("taken in");
        assert_ne!(session.export(300..301), right.export(300..301));
    }

    #[test]
    fn bounds_are_kept_and_nothing_is_lost_on_the_way() {
        let engine = ScriptedEngine::new(20, 256 * 12, ScriptedCosts::default());
        let mut first = filled(&engine, &[1; 10]);
        assert_eq!(first.step(1), Ok(()));
        let mut second = engine.open().expect("opened");
        assert_eq!(second.prefill(&[1; 2], &Cancel::default()), Err(EngineError::OutOfMemory));
        drop(first);
        assert_eq!(engine.bytes_used(), 0);
        engine.set_device_bytes_max(1 << 20);
        let tokens = 21;
        let refused = second.prefill(&[1; 21], &Cancel::default());
        assert_eq!(refused, Err(EngineError::ContextTooLong { tokens, window_tokens: 20 }));
        let cancel = Cancel::default();
        cancel.set();
        assert_eq!(second.prefill(&[1], &cancel), Err(EngineError::Cancelled));
        assert_eq!(second.tokens(), 0);
        assert_eq!(second.prefill(&[1; 10], &Cancel::default()), Ok(()));
        assert_eq!(second.owed_us(), 10 * 1_000 + 10 * 5 * 300 / 1_000);
        assert_eq!(second.owed_us(), 0);
    }
}
