//! What is asked of a language model, and what comes back.

use std::{collections::BTreeMap, sync::Arc};

use memcube_schemas::{BlockKey, activation::KvBlock};
use tokio::sync::mpsc;

use super::{
    activation_cache::{ChainBlock, chain::Chain},
    engine::{Cancel, KvBytes, Sampling},
    fill::Reuse,
};
use crate::error::{Error, Result};

/// What is asked of a model.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What it reads.
    pub chain: Arc<Chain>,
    /// Rows of blocks in cold tiers, as far as the cube has any of this chain.
    pub stored: BTreeMap<BlockKey, KvBlock>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Where the random numbers of the choice begin.
    pub seed: u64,
    /// Tokens that it says at the most.
    pub tokens_max: usize,
    /// Texts before which it ends.
    pub stops: Vec<String>,
    /// Milliseconds that all of it may take.
    pub ms_max: u64,
    /// Whether what is cached is used, and what is computed is kept. Not for a cube of another
    /// node: this one would not hear when a memory of it is forgotten.
    pub is_cached: bool,
    /// Set when what is computed ahead is not wanted any more: it ends then, and what is there is
    /// kept. Replies do not look at it.
    pub stop: Cancel,
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model had said what it wanted, or a stop word came.
    Stop,
    /// It reached its number of tokens, or the window was full.
    Length,
    /// Its time was up.
    Deadline,
    /// It waits for the results of tools that it called.
    ToolCalls,
    /// Nothing was asked for: a preload.
    Preloaded,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Microseconds until the first token.
    pub first_token_us: u64,
    /// Microseconds for all of it.
    pub total_us: u64,
    /// Tokens of the reply.
    pub reply_tokens: usize,
}

/// How a request ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Where the prompt's tokens came from.
    pub reuse: Reuse,
    /// What it took.
    pub timings: Timings,
    /// Blocks of the prompt that no cold tier has yet, in order, as far as they may be kept.
    pub unstored: Vec<(ChainBlock, Arc<KvBytes>)>,
}

/// A part of a reply.
#[derive(Debug, Clone)]
pub enum ReplyEvent {
    /// More text.
    Text(String),
    /// More of the tools that it calls: a JSON array, as `delta.tool_calls` of OpenAI's wire.
    ToolCalls(Arc<str>),
    /// The end.
    Finished(Box<Finished>),
}

/// A reply as it comes. Whoever drops it stops the model.
#[derive(Debug)]
pub struct ReplyStream {
    events: mpsc::Receiver<Result<ReplyEvent>>,
}

impl ReplyStream {
    pub(super) const fn new(events: mpsc::Receiver<Result<ReplyEvent>>) -> Self {
        Self { events }
    }

    /// What comes next; `None` after the end or an error.
    pub async fn next(&mut self) -> Option<Result<ReplyEvent>> {
        self.events.recv().await
    }

    /// The whole reply.
    ///
    /// # Errors
    /// What went wrong on the way.
    pub async fn collect(mut self) -> Result<(String, Finished)> {
        let mut text = String::new();
        while let Some(event) = self.next().await {
            match event? {
                ReplyEvent::Text(more) => text.push_str(&more),
                ReplyEvent::ToolCalls(_) => {}
                ReplyEvent::Finished(finished) => return Ok((text, *finished)),
            }
        }
        Err(Error::unavailable("the language model has ended; restart memcube"))
    }
}
