//! The port to language models that run elsewhere, behind a server that keeps its own cache of
//! prefixes.
//!
//! What such a model reads is texts, in the same order as a model here would read them: a prompt
//! only grows at its end, so that the server finds the longest prefix that it has computed before.
//! Its tokens are estimated ([`crate::cube`] lays prompts out by them), and the estimate learns
//! from what the server counts.

mod budget;
mod extras;
mod handle;
mod reply;
pub mod scripted;
#[cfg(test)]
mod tests;
mod turns;

use std::{fmt, sync::Arc};

use futures_util::{future::BoxFuture, stream::BoxStream};
use memcube_schemas::{
    ModelId,
    conversation::Role,
    limits::{REMOTE_SILENCE_MS_DEFAULT, REPLY_MS_DEFAULT},
};

pub(crate) use self::handle::{Asked, MESSAGE_TOKENS, RemoteHandle};
use super::{engine::Sampling, request::FinishReason};
use crate::error::{Error, ErrorKind};

/// What is known about a model that runs elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFacts {
    /// What the server calls it.
    pub model: ModelId,
    /// Tokens that prompt and reply may have together.
    pub window_tokens: usize,
}

/// One message for a model that runs elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteTurn {
    /// Who speaks.
    pub role: Role,
    /// Memories that stand above what is said. Empty without any.
    pub memories: String,
    /// What is said.
    pub text: String,
    /// The message as its caller wrote it, as JSON, if there is more to it than text.
    pub wire: Option<Arc<str>>,
}

impl RemoteTurn {
    /// Everything that it says, memories first.
    #[must_use]
    pub fn content(&self) -> String {
        match (self.memories.as_str(), self.text.as_str()) {
            ("", text) => text.to_owned(),
            (memories, "") => memories.to_owned(),
            (memories, text) => format!("{memories}\n{text}"),
        }
    }
}

/// What is asked of a model that runs elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteRequest {
    /// What it reads.
    pub messages: Vec<RemoteTurn>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Where the random numbers of the choice begin.
    pub seed: u64,
    /// Tokens of the reply at the most.
    pub tokens_max: usize,
    /// Texts before which it ends.
    pub stops: Vec<String>,
    /// A JSON object of further fields, passed through.
    pub extra: Option<Arc<str>>,
}

/// What the server counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that it had computed before.
    pub cached_tokens: usize,
    /// Tokens of the reply.
    pub reply_tokens: usize,
}

/// A part of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemotePart {
    /// More text.
    Text(String),
    /// More of the tools that it calls, as [`super::ReplyEvent::ToolCalls`].
    ToolCalls(Arc<str>),
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What the server counted, if it says so.
        usage: Option<RemoteUsage>,
    },
}

/// A reply as it comes. Whoever drops it closes the connection.
pub type RemoteStream = BoxStream<'static, Result<RemotePart, RemoteError>>;

/// A language model that runs elsewhere.
pub trait RemoteModel: Send + Sync + 'static {
    /// What does not change.
    fn facts(&self) -> &RemoteFacts;

    /// Asks once. Ends when the server has agreed to answer; whoever drops the future, or later the
    /// stream, takes the question back. No retries here, and no deadline for the whole: the actor
    /// in front has both. But nothing that comes is held in RAM without a bound.
    fn reply(
        &self,
        request: Arc<RemoteRequest>,
    ) -> BoxFuture<'static, Result<RemoteStream, RemoteError>>;
}

/// Why a model elsewhere did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RemoteFailure {
    /// It does not accept the key.
    Unauthorized,
    /// It does not know the model, or the address is of something else.
    NotFound,
    /// It does not accept the request as it stands.
    Rejected,
    /// It has too much to do, or the quota is used up for now.
    Busy,
    /// Nobody answers at the address.
    Unreachable,
    /// It answers that something in it failed.
    Failed,
    /// It says nothing.
    Silent,
    /// The connection was cut before the end.
    Cut,
    /// What it says makes no sense.
    Garbled,
    /// What it says does not end.
    Endless,
}

impl RemoteFailure {
    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::Rejected => "rejected",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
            Self::Silent => "silent",
            Self::Cut => "cut",
            Self::Garbled => "garbled",
            Self::Endless => "endless",
        }
    }

    /// Whether the same request may succeed a little later.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        match self {
            Self::Busy | Self::Unreachable | Self::Failed | Self::Silent | Self::Cut => true,
            Self::Unauthorized
            | Self::NotFound
            | Self::Rejected
            | Self::Garbled
            | Self::Endless => false,
        }
    }
}

/// A failure, in words that say what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    /// Which kind.
    pub failure: RemoteFailure,
    /// What is wrong, and which setting mends it.
    pub message: String,
    /// Milliseconds after which the server wants to be asked again, if it says so.
    pub retry_after_ms: Option<u64>,
}

impl RemoteError {
    /// A failure of a kind.
    pub fn new(failure: RemoteFailure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into(), retry_after_ms: None }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RemoteError {}

impl From<RemoteError> for Error {
    fn from(error: RemoteError) -> Self {
        let RemoteError { failure, message, retry_after_ms } = error;
        let kind = match failure {
            RemoteFailure::Rejected => ErrorKind::Invalid,
            RemoteFailure::Busy => ErrorKind::Overloaded,
            RemoteFailure::Unauthorized
            | RemoteFailure::NotFound
            | RemoteFailure::Unreachable
            | RemoteFailure::Failed
            | RemoteFailure::Silent
            | RemoteFailure::Cut
            | RemoteFailure::Garbled
            | RemoteFailure::Endless => ErrorKind::Unavailable,
        };
        let error = Self::new(kind, message);
        match retry_after_ms {
            Some(after_ms) => error.retry_after_ms(after_ms),
            None if kind == ErrorKind::Overloaded => error.retry_after_ms(1_000),
            None => error,
        }
    }
}

/// How a model elsewhere is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteSettings {
    /// Milliseconds that a reply may take, whatever its caller wants.
    pub ms_max: u64,
    /// Milliseconds of silence after which the server is given up: before the first token, and
    /// between two.
    pub silence_ms_max: u64,
    /// How often a request is tried again, as long as nothing of its answer has come.
    pub retries: usize,
    /// Tokens in a minute, prompts and replies together; 0 for any number.
    pub tokens_per_minute: u64,
    /// The same for each tenant.
    pub tenant_tokens_per_minute: u64,
    /// Whether prompts are sent ahead of their answers, which costs what the server takes for
    /// reading them.
    pub preloads: bool,
}

impl Default for RemoteSettings {
    fn default() -> Self {
        Self {
            ms_max: REPLY_MS_DEFAULT,
            silence_ms_max: REMOTE_SILENCE_MS_DEFAULT,
            retries: 2,
            tokens_per_minute: 0,
            tenant_tokens_per_minute: 0,
            preloads: true,
        }
    }
}

/// What a node needs for a language model that runs elsewhere.
pub struct RemoteParts {
    /// The model.
    pub model: Arc<dyn RemoteModel>,
    /// How it is asked.
    pub settings: RemoteSettings,
}
