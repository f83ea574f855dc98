//! A deterministic engine without a model, for tests and simulations: it understands nothing, takes
//! the time that its cost model says, and remembers in its keys and values what came before and
//! under which model, so that a block in the wrong place changes what it says and is counted.
//!
//! It promises no more about equal bits than real engines do: what it computes depends on where
//! prefills were cut, and steps leave other numbers than prefills. Its numbers also tell which
//! tokens they are of and which pass computed them, so that a simulation can ask a session what it
//! really holds.

mod numbers;

use std::{
    any::Any,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use memcube_schemas::{
    ModelId,
    activation::{KvDtype, ModelFingerprint},
    conversation::Role,
};

pub use self::numbers::slots_of;
use self::numbers::{NUMBERS, mix, read, rows};
use super::engine::{
    BLOCK_TOKENS, Cancel, ChatMessage, Engine, EngineError, EngineFacts, EngineResult, KvBytes,
    KvLayer, Rendered, Sampling, Session, Token,
};

/// One layer holds what came up to a token, and the token; the other what came before it, and the
/// pass that computed it.
const LAYERS: usize = 2;
const START: u64 = 0x5eed;
/// How the first token of a prefill, and one that came by a step, differ from the others.
const BEGINS: u64 = 1 << 40;
const STEPS: u64 = 1 << 41;
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
    passes: Arc<AtomicU32>,
}

/// What a session holds for one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The token.
    pub token: Token,
    /// Everything up to it, as it was computed.
    pub digest: u64,
    /// The pass that computed it.
    pub pass: u32,
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
        Self { facts, costs, device, passes: Arc::default() }
    }

    /// The same engine under another name, as if it had other weights.
    #[must_use]
    pub fn named(mut self, model: ModelId) -> Self {
        self.facts.fingerprint.model = model;
        self
    }

    /// The same engine with another fingerprint.
    #[must_use]
    pub fn fingerprinted(mut self, fingerprint: ModelFingerprint) -> Self {
        self.facts.fingerprint = fingerprint;
        self
    }

    /// The same engine, which takes the numbers of its passes from here, so that those of several
    /// engines differ.
    #[must_use]
    pub fn numbered(mut self, passes: Arc<AtomicU32>) -> Self {
        self.passes = passes;
        self
    }

    /// An empty session.
    #[must_use]
    pub fn session(&self) -> ScriptedSession {
        let (device, facts) = (Arc::clone(&self.device), &self.facts);
        ScriptedSession {
            device,
            costs: self.costs,
            window_tokens: facts.window_tokens,
            bytes_per_token: facts.kv_bytes_per_token,
            start: start_of(&facts.fingerprint),
            passes: Arc::clone(&self.passes),
            slots: Vec::new(),
            ends: Vec::new(),
            has_logits: false,
            owed_ns: 0,
        }
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
        Ok(Box::new(self.session()))
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

/// Whose message begins with this token; `None` for one that is no such mark.
#[must_use]
pub fn role_of(token: Token) -> Option<Role> {
    [Role::User, Role::Assistant, Role::System, Role::Tool]
        .into_iter()
        .find(|role| role_mark(*role) == token)
}

/// Whether a message ends with this token.
#[must_use]
pub const fn is_end(token: Token) -> bool {
    token == MARK_END
}

/// What stands before the first token under a model.
fn start_of(fingerprint: &ModelFingerprint) -> u64 {
    let ModelFingerprint { model, tokenizer, adapter, rope, dtype, layout } = fingerprint;
    let adapter = adapter.as_ref().map_or(&[][..], |digest| &digest[..]);
    let parts: [&[u8]; 6] = [
        model.as_str().as_bytes(),
        tokenizer,
        adapter,
        rope.as_bytes(),
        dtype.as_str().as_bytes(),
        layout.as_bytes(),
    ];
    parts.iter().fold(START, |digest, part| {
        part.iter()
            .fold(mix(digest, part.len() as u64), |digest, byte| mix(digest, u64::from(*byte)))
    })
}

/// The digests that a model has to hold for tokens which came by prefills that ended at these
/// places, and by nothing else.
#[must_use]
pub fn recompute(fingerprint: &ModelFingerprint, tokens: &[Token], ends: &[usize]) -> Vec<u64> {
    let mut last = start_of(fingerprint);
    let begins = |at: usize| at == 0 || ends.contains(&at);
    let digest = |(at, token): (usize, &Token)| {
        let begins = if begins(at) { BEGINS } else { 0 };
        last = mix(last, u64::from(*token) | begins);
        last
    };
    tokens.iter().enumerate().map(digest).collect()
}

/// A digest for every token, of everything up to it.
#[derive(Debug)]
pub struct ScriptedSession {
    device: Arc<Device>,
    costs: ScriptedCosts,
    window_tokens: usize,
    bytes_per_token: u64,
    start: u64,
    passes: Arc<AtomicU32>,
    slots: Vec<Slot>,
    /// Where calls ended that brought tokens.
    ends: Vec<usize>,
    has_logits: bool,
    owed_ns: u64,
}

impl ScriptedSession {
    /// What it really holds, whoever computed it.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Where the calls ended that brought it.
    #[must_use]
    pub fn ends(&self) -> &[usize] {
        &self.ends
    }

    fn last(&self) -> u64 {
        self.slots.last().map_or(self.start, |slot| slot.digest)
    }

    /// Takes room on the device.
    fn grow(&self, tokens: usize) -> EngineResult<()> {
        let length = self.slots.len() + tokens;
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

    /// Takes tokens in, the first of which differs so from the others.
    fn take_in(&mut self, tokens: &[Token], first: u64) {
        let pass = self.passes.fetch_add(1, Ordering::Relaxed);
        for (at, token) in tokens.iter().enumerate() {
            let first = if at == 0 { first } else { 0 };
            let digest = mix(self.last(), u64::from(*token) | first);
            self.slots.push(Slot { token: *token, digest, pass });
        }
        self.ends.push(self.slots.len());
        self.has_logits = true;
    }
}

impl Session for ScriptedSession {
    fn tokens(&self) -> usize {
        self.slots.len()
    }

    fn bytes(&self) -> u64 {
        self.slots.len() as u64 * self.bytes_per_token
    }

    fn prefill(&mut self, tokens: &[Token], cancel: &Cancel) -> EngineResult<()> {
        debug_assert!(tokens.len() <= BLOCK_TOKENS, "one block at a time");
        if cancel.is_set() {
            return Err(EngineError::Cancelled);
        }
        self.grow(tokens.len())?;
        let (count, before) = (tokens.len() as u64, self.slots.len() as u64);
        self.owed_ns += count * self.costs.prefill_us * 1_000;
        self.owed_ns += count * (before + count / 2) * self.costs.look_back_ns;
        self.device.prefilled_tokens.fetch_add(count, Ordering::Relaxed);
        self.take_in(tokens, BEGINS);
        Ok(())
    }

    fn step(&mut self, token: Token) -> EngineResult<()> {
        self.grow(1)?;
        self.owed_ns += self.costs.step_us * 1_000;
        self.take_in(&[token], STEPS);
        Ok(())
    }

    fn sample(&mut self, sampling: Sampling, draw: u64) -> EngineResult<Token> {
        const LETTERS: u64 = 26;
        /// One in so many tokens ends a reply.
        const ENDS: u64 = 12;
        if !self.has_logits {
            return Err(EngineError::Failed { reason: "nothing was computed before".to_owned() });
        }
        let mut choice = mix(self.last(), u64::from(Token::MAX));
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
        if tokens < self.slots.len() {
            let gone = (self.slots.len() - tokens) as u64 * self.bytes_per_token;
            self.device.bytes_used.fetch_sub(gone, Ordering::Relaxed);
            self.slots.truncate(tokens);
            self.ends.retain(|end| *end < tokens);
            if tokens > 0 {
                self.ends.push(tokens);
            }
            self.has_logits = false;
        }
    }

    fn export(&self, span: Range<usize>) -> EngineResult<KvBytes> {
        let Some(slots) = self.slots.get(span.clone()) else {
            return Err(EngineError::Unsuitable { reason: "the span is not inside".to_owned() });
        };
        let before = match span.start {
            0 => self.start,
            start => self.slots[start - 1].digest,
        };
        let befores = std::iter::once(before).chain(slots.iter().map(|slot| slot.digest));
        let passes = slots.iter().map(|slot| slot.pass);
        let layers = vec![
            KvLayer::new(rows(slots.iter().map(|slot| (slot.digest, slot.token)))),
            KvLayer::new(rows(befores.zip(passes))),
        ];
        Ok(KvBytes { start: span.start, tokens: slots.len(), dtype: KvDtype::F32, layers })
    }

    fn import(&mut self, block: &KvBytes) -> EngineResult<()> {
        let unsuitable = |reason: &str| EngineError::Unsuitable { reason: reason.to_owned() };
        let Some((slots, before)) = read(block) else {
            return Err(unsuitable("its layers or its numbers are not this engine's"));
        };
        if block.start != self.slots.len() {
            return Err(unsuitable("it begins elsewhere"));
        }
        self.grow(block.tokens)?;
        self.owed_ns += block.tokens as u64 * self.costs.copy_ns;
        // A real engine would not notice: it would say something else from here on, as this does.
        if before.is_some_and(|before| before != self.last()) {
            self.device.wrong_blocks.fetch_add(1, Ordering::Relaxed);
        }
        self.slots.extend(slots);
        self.ends.push(self.slots.len());
        self.has_logits = false;
        Ok(())
    }

    fn import_segment(&mut self, segment: &KvBytes, wanted: Range<usize>) -> EngineResult<()> {
        let unsuitable = |reason: &str| EngineError::Unsuitable { reason: reason.to_owned() };
        let Some((slots, before)) = read(segment) else {
            return Err(unsuitable("its layers or its numbers are not this engine's"));
        };
        let Some(inside) = slots.get(wanted.clone()).filter(|_| segment.start == 0) else {
            return Err(unsuitable("the tokens are not in it, or it does not stand by itself"));
        };
        self.grow(wanted.len())?;
        self.owed_ns += wanted.len() as u64 * self.costs.copy_ns;
        // It was computed behind something else, or by another model.
        if before.is_some_and(|before| before != self.start) {
            self.device.wrong_blocks.fetch_add(1, Ordering::Relaxed);
        }
        // What stands before still counts for what comes after, though not as if it had been read.
        let outside = self.last().rotate_left(1);
        let moved = inside.iter().map(|slot| Slot { digest: slot.digest ^ outside, ..*slot });
        self.slots.extend(moved);
        self.ends.push(self.slots.len());
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
            let mut whole = filled(&engine, &tokens[..at]);
            for chunk in tokens[at..].chunks(BLOCK_TOKENS) {
                whole.prefill(chunk, &Cancel::default()).expect("taken in");
            }
            let mut parts = engine.open().expect("opened");
            parts.import(&whole.export(0..at).expect("inside")).expect("taken in");
            if at < tokens.len() {
                for chunk in tokens[at..].chunks(BLOCK_TOKENS) {
                    parts.prefill(chunk, &Cancel::default()).expect("taken in");
                }
                let sampled = parts.sample(Sampling::GREEDY, 0);
                prop_assert_eq!(whole.sample(Sampling::GREEDY, 0), sampled);
            }
            let computed = |session: &dyn Session| {
                let numbers = session.export(0..tokens.len()).expect("inside");
                let slots = slots_of(&numbers).expect("whole");
                // Which pass it was is not what was computed.
                slots.into_iter().map(|slot| (slot.token, slot.digest)).collect::<Vec<_>>()
            };
            prop_assert_eq!(computed(&*whole), computed(&*parts));
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

    /// What a session holds.
    fn held(session: &mut dyn Session) -> (Vec<Slot>, Vec<usize>) {
        let scripted = session.as_any().downcast_mut::<ScriptedSession>().expect("scripted");
        (scripted.slots().to_vec(), scripted.ends().to_vec())
    }

    #[test]
    fn a_session_tells_what_it_holds_and_who_computed_it() {
        let engine = engine();
        let tokens: Vec<Token> = (0..300).collect();
        let mut source = filled(&engine, &tokens);
        let mut session = engine.open().expect("opened");
        session.import(&source.export(0..256).expect("inside")).expect("taken in");
        session.prefill(&tokens[256..], &Cancel::default()).expect("taken in");
        let (slots, ends) = held(&mut *session);
        assert_eq!(ends, [256, 300]);
        let found: Vec<Token> = slots.iter().map(|slot| slot.token).collect();
        assert_eq!(found, tokens);
        let passes: Vec<u32> = slots.iter().map(|slot| slot.pass).collect();
        assert_eq!((passes[0], passes[255], passes[256], passes[299]), (0, 0, 2, 2));
        let digests = |(slots, _): (Vec<Slot>, _)| -> Vec<u64> {
            slots.iter().map(|slot| slot.digest).collect()
        };
        let fingerprint = engine.facts().fingerprint.clone();
        let expected = recompute(&fingerprint, &tokens, &[256, 300]);
        assert_eq!(digests(held(&mut *session)), expected);
        assert_eq!(digests(held(&mut *source)), expected);
        // What else it depends on: the model, the cuts, and whether a step brought it.
        let other = ModelFingerprint { adapter: Some([0; 32]), ..fingerprint.clone() };
        assert_ne!(recompute(&other, &tokens, &[256, 300]), expected);
        assert_ne!(recompute(&fingerprint, &tokens, &[200, 300]), expected);
        session.truncate(299);
        session.step(299).expect("taken in");
        assert_ne!(digests(held(&mut *session)), expected);
        session.truncate(256);
        assert_eq!(held(&mut *session).1, [256]);
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
