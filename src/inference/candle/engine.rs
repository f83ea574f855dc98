//! The engine that runs a model of this node, as the actors see it.
//!
//! Every call blocks and keeps the model's threads busy; nothing here waits for anybody. On
//! processors with AVX2 or AVX-512 results do not depend on where prefills are cut, nor on whether
//! a token came through prefill or step; elsewhere they do, as the port allows.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memcube_actors::inference::{
    Cancel, ChatMessage, Engine, EngineError, EngineFacts, EngineResult, KvBytes, KvLayer,
    Rendered, Sampling, Session, Token,
};
use memcube_actors::{Error, ErrorKind, Result};
use memcube_schemas::ModelId;
use memcube_schemas::activation::{KvDtype, ModelFingerprint};
use memcube_schemas::conversation::Role;

use super::language::{
    ChatRole, ForwardError, KV_LAYOUT, KvCache, KvError, LocalModel, ModelError, sample,
};
use super::{ID_DIGITS, processors};
use crate::settings::InferenceSettings;

/// SHA-256 of the file of SmolLM2-135M-Instruct, as `sha256sum` writes it.
pub const SMOLLM2_CHECKSUMS: &str =
    include_str!("../../../deploy/models/smollm2-135m-instruct.sha256");
/// What SmolLM2-135M-Instruct is called.
pub const SMOLLM2: &str = "smollm2-135m-instruct";

/// A local model as engine; clones share the weights.
#[derive(Clone)]
pub struct CandleEngine {
    local: Arc<LocalModel>,
    facts: Arc<EngineFacts>,
}

impl fmt::Debug for CandleEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CandleEngine").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl CandleEngine {
    /// Opens the model called `name` from a GGUF file or a folder; see [`LocalModel::open`].
    ///
    /// # Errors
    /// `Unavailable` when a file is missing; `Corrupt` when it is not the pinned one or cannot be
    /// run; `Invalid` when the name is none for a model.
    pub fn open(name: &str, path: &Path, checksum: Option<&str>, threads: usize) -> Result<Self> {
        let local = LocalModel::open(path, checksum, threads).map_err(|error| {
            let is_absent = matches!(error, ModelError::File { .. });
            let kind = if is_absent { ErrorKind::Unavailable } else { ErrorKind::Corrupt };
            let advice = "`make language-model` fetches one";
            Error::new(kind, format!("the language model cannot be loaded: {error}; {advice}"))
        })?;
        let config = local.model().config();
        let id = ModelId::new(format!("{name}@{}", &local.checksum()[..ID_DIGITS]))?;
        let facts = EngineFacts {
            fingerprint: ModelFingerprint {
                model: id,
                tokenizer: local.vocabulary().digest(),
                adapter: None,
                rope: format!("halves base={}", config.rope_base),
                dtype: KvDtype::F16,
                layout: format!("{KV_LAYOUT} x{}", config.layers),
            },
            window_tokens: config.window_tokens,
            kv_bytes_per_token: config.kv_shape().token_bytes() as u64,
            end_of_reply: local.end_of_reply().to_vec(),
        };
        Ok(Self { local: Arc::new(local), facts: Arc::new(facts) })
    }

    /// Opens the pinned SmolLM2-135M-Instruct from the folder that `make language-model` fills.
    ///
    /// # Errors
    /// As [`CandleEngine::open`].
    pub fn open_smollm2(dir: &Path, threads: usize) -> Result<Self> {
        let (checksum, file) = SMOLLM2_CHECKSUMS
            .trim()
            .split_once("  ")
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no checksum is pinned"))?;
        Self::open(SMOLLM2, &dir.join(file), Some(checksum), threads)
    }

    /// Opens the model that the settings name.
    ///
    /// # Errors
    /// As [`CandleEngine::open`].
    pub fn of(settings: &InferenceSettings) -> Result<Self> {
        let threads = processors(settings.threads);
        let Some(file) = &settings.model_file else {
            return Self::open_smollm2(&settings.model_dir, threads);
        };
        let of_file = || file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("model");
        let name = settings.model_name.as_deref().unwrap_or_else(of_file);
        Self::open(name, file, settings.checksum.as_deref(), threads)
    }

    /// The model behind it.
    #[must_use]
    pub fn local(&self) -> &LocalModel {
        &self.local
    }
}

fn failed(error: &ModelError) -> EngineError {
    EngineError::Failed { reason: error.to_string() }
}

fn stopped(error: ForwardError) -> EngineError {
    match error {
        ForwardError::Cancelled => EngineError::Cancelled,
        ForwardError::NotFinite => EngineError::NotFinite,
        ForwardError::TooLong { tokens, window_tokens } => {
            EngineError::ContextTooLong { tokens, window_tokens }
        }
        ForwardError::Empty
        | ForwardError::UnknownToken { .. }
        | ForwardError::WrongCache
        | ForwardError::Device(_) => EngineError::Failed { reason: error.to_string() },
    }
}

fn unsuitable(error: &KvError) -> EngineError {
    EngineError::Unsuitable { reason: error.to_string() }
}

const fn chat_role(role: Role) -> ChatRole {
    match role {
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
        Role::System => ChatRole::System,
        Role::Tool => ChatRole::Tool,
    }
}

impl Engine for CandleEngine {
    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    fn tokenize(&self, text: &str) -> EngineResult<Vec<Token>> {
        self.local.vocabulary().encode(text).map_err(|error| failed(&error))
    }

    fn bytes_of(&self, token: Token) -> Vec<u8> {
        self.local.vocabulary().bytes_of(token).to_vec()
    }

    fn render(&self, message: &ChatMessage, is_first: bool) -> EngineResult<Rendered> {
        let frame = self.local.template().frame(chat_role(message.role), is_first);
        let mut tokens = frame.before.clone();
        let mut piece_ends = Vec::with_capacity(message.pieces.len());
        for piece in &message.pieces {
            tokens.extend(self.tokenize(piece)?);
            piece_ends.push(tokens.len());
        }
        tokens.extend_from_slice(&frame.after);
        Ok(Rendered { tokens, piece_ends })
    }

    fn open_reply(&self) -> Vec<Token> {
        self.local.template().open_reply().to_vec()
    }

    fn close_reply(&self) -> Vec<Token> {
        self.local.template().frame(ChatRole::Assistant, false).after.clone()
    }

    fn takes_segments(&self) -> bool {
        true
    }

    fn open(&self) -> EngineResult<Box<dyn Session>> {
        let cache = self.local.model().new_cache();
        Ok(Box::new(CandleSession { local: Arc::clone(&self.local), cache, last: None }))
    }
}

/// A cache, and the hidden state after its last token.
pub struct CandleSession {
    local: Arc<LocalModel>,
    cache: KvCache,
    last: Option<Vec<f32>>,
}

impl fmt::Debug for CandleSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CandleSession").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl CandleSession {
    fn forward(
        &mut self,
        tokens: &[Token],
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> EngineResult<()> {
        let forward = self.local.model().forward(tokens, &mut self.cache, cancelled);
        self.last = Some(forward.map_err(stopped)?);
        Ok(())
    }

    /// The logits of the token that follows.
    ///
    /// # Errors
    /// As [`Session::sample`].
    pub fn logits(&self) -> EngineResult<Vec<f32>> {
        let Some(last) = &self.last else {
            return Err(EngineError::Failed { reason: "no token came before".to_owned() });
        };
        self.local.model().logits(last).map_err(stopped)
    }

    /// The layers of a block, if its numbers are the model's and `added` tokens have room.
    fn layers_of(&self, block: &KvBytes, added: usize) -> EngineResult<Vec<Bytes>> {
        if block.dtype != KvDtype::F16 {
            let reason = format!("its numbers are {}, not f16", block.dtype.as_str());
            return Err(EngineError::Unsuitable { reason });
        }
        let window_tokens = self.local.model().config().window_tokens;
        let tokens = self.cache.len_tokens().saturating_add(added);
        if tokens > window_tokens {
            return Err(EngineError::ContextTooLong { tokens, window_tokens });
        }
        Ok(block.layers.iter().map(|layer| layer.bytes.clone()).collect())
    }
}

impl Session for CandleSession {
    fn tokens(&self) -> usize {
        self.cache.len_tokens()
    }

    fn bytes(&self) -> u64 {
        self.cache.bytes() as u64
    }

    fn prefill(&mut self, tokens: &[Token], cancel: &Cancel) -> EngineResult<()> {
        self.forward(tokens, &|| cancel.is_set())
    }

    fn step(&mut self, token: Token) -> EngineResult<()> {
        self.forward(&[token], &|| false)
    }

    fn sample(&mut self, sampling: Sampling, draw: u64) -> EngineResult<Token> {
        let logits = self.logits()?;
        Ok(sample(&logits, sampling.temperature, sampling.top_p, draw))
    }

    fn truncate(&mut self, tokens: usize) {
        if tokens < self.cache.len_tokens() {
            self.cache.truncate(tokens);
            self.last = None;
        }
    }

    fn export(&self, span: Range<usize>) -> EngineResult<KvBytes> {
        let layer = |layer| {
            let bytes = self.cache.export_layer(layer, span.clone());
            bytes.map(KvLayer::new).map_err(|error| unsuitable(&error))
        };
        let layers = (0..self.cache.shape().layers).map(layer).collect::<EngineResult<_>>()?;
        Ok(KvBytes { start: span.start, tokens: span.len(), dtype: KvDtype::F16, layers })
    }

    fn import(&mut self, block: &KvBytes) -> EngineResult<()> {
        let len = self.cache.len_tokens();
        if block.start != len {
            let reason = format!("it begins at {}, the session ends at {len}", block.start);
            return Err(EngineError::Unsuitable { reason });
        }
        let layers = self.layers_of(block, block.tokens)?;
        self.cache.import(block.tokens, &layers).map_err(|error| unsuitable(&error))?;
        self.last = None;
        Ok(())
    }

    fn import_segment(&mut self, segment: &KvBytes, wanted: Range<usize>) -> EngineResult<()> {
        if segment.start != 0 {
            let reason = format!("it begins at {}, not by itself", segment.start);
            return Err(EngineError::Unsuitable { reason });
        }
        let layers = self.layers_of(segment, wanted.len())?;
        let model = self.local.model();
        let appended = model.append_segment(&mut self.cache, segment.tokens, wanted, &layers);
        appended.map_err(|error| unsuitable(&error))?;
        self.last = None;
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
