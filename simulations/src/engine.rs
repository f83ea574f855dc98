//! The language model of a simulated node: it understands nothing, fails in every way that a device
//! can, and bears witness of what its sessions hold when it matters.

use std::{
    any::Any,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use memcube_actors::inference::{
    Cancel, ChatMessage, Engine, EngineError, EngineFacts, EngineResult, KvBytes, Rendered,
    Sampling, Session, Token,
    scripted::{ScriptedCosts, ScriptedEngine, ScriptedSession},
};
use memcube_schemas::{ModelId, NodeId, activation::ModelFingerprint};

use crate::{
    conditions::{Conditions, Place, Touches},
    dice,
    evidence::{Occasion, Reading},
    network::node_name,
    panics,
    plan::FaultClass,
};

/// What is added to the number of a life, so that its draws are those of no pass.
const BOOT: u64 = 1 << 62;
/// Models that a node may start with beside the usual one.
const VARIANTS: u64 = 4;

/// What all engines of a world share.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    passes: Arc<AtomicU32>,
    readings: Mutex<Vec<Reading>>,
}

impl Witness {
    /// Everything that was seen so far, which is forgotten here.
    pub(crate) fn take(&self) -> Vec<Reading> {
        std::mem::take(&mut *self.readings.lock().expect("invariant: nothing panics meanwhile"))
    }
}

/// What the engines of a world are like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) window_tokens: usize,
    pub(crate) device_bytes_max: u64,
    pub(crate) costs: ScriptedCosts,
}

/// The model of one life of a node.
pub(crate) struct FaultyEngine {
    inner: ScriptedEngine,
    shared: Arc<Shared>,
}

struct Shared {
    conditions: Conditions,
    node: u32,
    life: u64,
    model: ModelFingerprint,
    touches: Mutex<Touches>,
    witness: Arc<Witness>,
}

impl FaultyEngine {
    /// A model on a fresh device, for the life that goes on: the usual one, or another.
    pub(crate) fn new(
        conditions: Conditions,
        node: u32,
        shape: Shape,
        witness: Arc<Witness>,
    ) -> Self {
        let life = conditions.life(node);
        let Shape { window_tokens, device_bytes_max, costs } = shape;
        let mut inner = ScriptedEngine::new(window_tokens, device_bytes_max, costs)
            .numbered(Arc::clone(&witness.passes));
        let occasion = conditions.occasion(Place::Device { node }, life | BOOT);
        if conditions.strikes(FaultClass::ModelChange, occasion) {
            let usual = inner.facts().fingerprint.clone();
            inner = inner.fingerprinted(another(usual, occasion.between("model", 1, VARIANTS)));
        }
        let model = inner.facts().fingerprint.clone();
        let touches = Mutex::default();
        let shared = Arc::new(Shared { conditions, node, life, model, touches, witness });
        Self { inner, shared }
    }

    /// Bytes of the sessions that are open.
    pub(crate) fn bytes_used(&self) -> u64 {
        self.inner.bytes_used()
    }
}

/// A model that differs in one thing.
fn another(usual: ModelFingerprint, variant: u64) -> ModelFingerprint {
    match variant {
        1 => {
            let model = ModelId::new("scripted-chat@2").expect("invariant: the name is printable");
            ModelFingerprint { model, ..usual }
        }
        2 => ModelFingerprint { tokenizer: [2; 32], ..usual },
        3 => ModelFingerprint { adapter: Some([3; 32]), ..usual },
        _ => ModelFingerprint { layout: "digests v2 x2".to_owned(), ..usual },
    }
}

impl Engine for FaultyEngine {
    fn facts(&self) -> &EngineFacts {
        self.inner.facts()
    }

    fn tokenize(&self, text: &str) -> EngineResult<Vec<Token>> {
        self.inner.tokenize(text)
    }

    fn bytes_of(&self, token: Token) -> Vec<u8> {
        self.inner.bytes_of(token)
    }

    fn render(&self, message: &ChatMessage, is_first: bool) -> EngineResult<Rendered> {
        self.inner.render(message, is_first)
    }

    fn open_reply(&self) -> Vec<Token> {
        self.inner.open_reply()
    }

    fn close_reply(&self) -> Vec<Token> {
        self.inner.close_reply()
    }

    fn open(&self) -> EngineResult<Box<dyn Session>> {
        Ok(Box::new(FaultySession {
            inner: self.inner.session(),
            shared: Arc::clone(&self.shared),
            reading: None,
            is_seen: AtomicBool::new(false),
            is_useless: false,
        }))
    }
}

struct FaultySession {
    inner: ScriptedSession,
    shared: Arc<Shared>,
    /// Where the tokens of the reply are written down.
    reading: Option<usize>,
    /// Whether what it holds was written down since it changed.
    is_seen: AtomicBool,
    /// Whether it was said that it is of no use any more.
    is_useless: bool,
}

impl Shared {
    /// What goes wrong with a call for these tokens.
    fn trouble(&self, what: &str, tokens: &[Token]) -> Option<EngineError> {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
        let key = dice::hash(&bytes.chain(what.bytes()).collect::<Vec<u8>>());
        let mut touches =
            self.touches.lock().expect("invariant: nothing panics while it holds the touches");
        // Another life has other luck with the same tokens.
        let id = touches.next(key).wrapping_add(self.life);
        drop(touches);
        let occasion = self.conditions.occasion(Place::Device { node: self.node }, id);
        let strikes = |class| self.conditions.strikes(class, occasion);
        assert!(!strikes(FaultClass::DevicePanic), "{} of a language model", panics::INJECTED);
        if strikes(FaultClass::DeviceOutOfMemory) {
            Some(EngineError::OutOfMemory)
        } else if strikes(FaultClass::DeviceFail) {
            Some(EngineError::Failed { reason: "the device was reset".to_owned() })
        } else if strikes(FaultClass::DeviceNotFinite) {
            Some(EngineError::NotFinite)
        } else {
            None
        }
    }
}

impl Shared {
    /// Whether a copy in or out goes well, which leaves the session as it was if it does not.
    fn copies(&self, what: &str, tokens: &[Token]) -> EngineResult<()> {
        match self.trouble(what, tokens) {
            None => Ok(()),
            Some(EngineError::OutOfMemory) => Err(EngineError::OutOfMemory),
            Some(trouble) => Err(EngineError::Unsuitable { reason: trouble.to_string() }),
        }
    }
}

impl FaultySession {
    /// Whether all is well; remembers what makes it useless.
    fn try_to(&mut self, what: &str, tokens: &[Token]) -> EngineResult<()> {
        let Some(trouble) = self.shared.trouble(what, tokens) else { return Ok(()) };
        self.is_useless |= match trouble {
            EngineError::NotFinite | EngineError::Failed { .. } => true,
            EngineError::Cancelled
            | EngineError::ContextTooLong { .. }
            | EngineError::OutOfMemory
            | EngineError::Unsuitable { .. } => false,
        };
        Err(trouble)
    }

    fn changed(&mut self) {
        self.reading = None;
        self.is_seen.store(false, Ordering::Relaxed);
    }

    /// Writes down what it holds.
    fn see(&self, occasion: Occasion) -> usize {
        let Shared { conditions, node, model, witness, .. } = &*self.shared;
        let reading = Reading {
            at_ms: conditions.now_ms(),
            node: NodeId::new(node_name(*node)).expect("invariant: node names are valid"),
            model: model.clone(),
            occasion,
            slots: self.inner.slots().to_vec(),
            ends: self.inner.ends().to_vec(),
            said: Vec::new(),
            is_useless: self.is_useless,
        };
        let last = reading.slots.last().map_or(0, |slot| slot.digest);
        let what = match occasion {
            Occasion::Reply => "reads",
            Occasion::Keep => "keeps",
        };
        let detail = format_args!("{} tokens, {last:016x}", reading.slots.len());
        conditions.note(&node_name(*node), what, detail);
        let mut readings = witness.readings.lock().expect("invariant: nothing panics meanwhile");
        readings.push(reading);
        readings.len() - 1
    }
}

impl Session for FaultySession {
    fn tokens(&self) -> usize {
        self.inner.tokens()
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn prefill(&mut self, tokens: &[Token], cancel: &Cancel) -> EngineResult<()> {
        self.changed();
        self.try_to("prefill", tokens)?;
        self.inner.prefill(tokens, cancel)
    }

    fn step(&mut self, token: Token) -> EngineResult<()> {
        self.try_to("step", &[token])?;
        self.inner.step(token)
    }

    fn sample(&mut self, sampling: Sampling, draw: u64) -> EngineResult<Token> {
        let token = self.inner.sample(sampling, draw)?;
        let number = match self.reading {
            Some(number) => number,
            None => *self.reading.insert(self.see(Occasion::Reply)),
        };
        let mut readings =
            self.shared.witness.readings.lock().expect("invariant: nothing panics meanwhile");
        if let Some(reading) = readings.get_mut(number) {
            reading.said.push(token);
        }
        Ok(token)
    }

    fn truncate(&mut self, tokens: usize) {
        if tokens < self.inner.tokens() {
            self.changed();
        }
        self.inner.truncate(tokens);
    }

    fn export(&self, span: Range<usize>) -> EngineResult<KvBytes> {
        // A span that cannot be copied leaves the session as it is.
        let tokens: Vec<Token> =
            self.inner.slots().iter().take(span.end).map(|slot| slot.token).collect();
        self.shared.copies("export", &tokens)?;
        if !self.is_seen.swap(true, Ordering::Relaxed) {
            self.see(Occasion::Keep);
        }
        self.inner.export(span)
    }

    fn import(&mut self, block: &KvBytes) -> EngineResult<()> {
        self.changed();
        let start = Token::try_from(block.start).unwrap_or(Token::MAX);
        self.shared.copies("import", &[start])?;
        self.inner.import(block)
    }

    fn owed_us(&mut self) -> u64 {
        self.inner.owed_us()
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
