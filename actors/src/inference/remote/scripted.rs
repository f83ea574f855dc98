//! A model elsewhere without a model: answers by a hash of what it reads, takes its time by a cost
//! model, finds prefixes that it has read before, and fails where a script says so. For tests and
//! simulations.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream};
use memcube_schemas::{ModelId, codec::checksum};

use super::{
    RemoteError, RemoteFacts, RemoteModel, RemotePart, RemoteRequest, RemoteStream, RemoteUsage,
};
use crate::inference::request::FinishReason;

/// Bytes that this model takes for a token. Not the four that are guessed, so that there is
/// something to learn.
pub const BYTES_PER_TOKEN: usize = 5;
/// Prefixes that it keeps.
const PREFIXES_MAX: usize = 64;

/// What it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteCosts {
    /// Microseconds until it answers at all.
    pub answer_us: u64,
    /// Microseconds to read a token that it has not read before.
    pub read_us: u64,
    /// Microseconds to say a token.
    pub say_us: u64,
    /// Tokens that it says, if it may.
    pub said_tokens: usize,
}

impl Default for RemoteCosts {
    fn default() -> Self {
        Self { answer_us: 20_000, read_us: 500, say_us: 20_000, said_tokens: 12 }
    }
}

/// What goes wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteFault {
    /// It refuses.
    Refuse(RemoteError),
    /// It agrees, says so many parts, and then nothing any more.
    Stall(usize),
    /// It agrees, says so many parts, and closes.
    Cut(usize),
    /// It agrees, says so many parts, and then this.
    Break(usize, RemoteError),
    /// It says parts of so many bytes without an end, and never tells what it counted.
    Endless(usize),
}

#[derive(Default)]
struct Seen {
    faults: VecDeque<RemoteFault>,
    asked: Vec<Arc<RemoteRequest>>,
    prefixes: VecDeque<String>,
    streams: usize,
}

/// A scripted model elsewhere. Clones are the same server.
#[derive(Clone)]
pub struct ScriptedRemote {
    facts: Arc<RemoteFacts>,
    costs: RemoteCosts,
    seen: Arc<Mutex<Seen>>,
}

/// Counts a reply as open until it is dropped.
struct Open(ScriptedRemote);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.seen().streams -= 1;
    }
}

impl ScriptedRemote {
    /// A server with an empty cache.
    #[must_use]
    pub fn new(model: ModelId, window_tokens: usize, costs: RemoteCosts) -> Self {
        let facts = Arc::new(RemoteFacts { model, window_tokens });
        Self { facts, costs, seen: Arc::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("invariant: nothing panics while it holds the script")
    }

    /// What goes wrong with the next requests, one after the other.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = RemoteFault>) {
        self.seen().faults.extend(faults);
    }

    /// What it was asked so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Arc<RemoteRequest>> {
        self.seen().asked.clone()
    }

    /// Replies that somebody is still reading.
    #[must_use]
    pub fn open_replies(&self) -> usize {
        self.seen().streams
    }

    /// Takes a prompt in; returns its tokens, and those that were read before.
    fn read(&self, text: String) -> (usize, usize) {
        let mut seen = self.seen();
        let known = seen.prefixes.iter().map(|prefix| common_bytes(prefix, &text)).max();
        let known = known.unwrap_or(0) / BYTES_PER_TOKEN;
        let tokens = text.len().div_ceil(BYTES_PER_TOKEN);
        if seen.prefixes.len() == PREFIXES_MAX {
            seen.prefixes.pop_front();
        }
        seen.prefixes.push_back(text);
        (tokens, known.min(tokens.saturating_sub(1)))
    }

    async fn answer(self, request: Arc<RemoteRequest>) -> Result<RemoteStream, RemoteError> {
        let fault = {
            let mut seen = self.seen();
            seen.asked.push(Arc::clone(&request));
            seen.faults.pop_front()
        };
        tokio::time::sleep(Duration::from_micros(self.costs.answer_us)).await;
        if let Some(RemoteFault::Refuse(error)) = fault {
            return Err(error);
        }
        let text = prompt(&request);
        let seed = checksum(text.as_bytes());
        let (prompt_tokens, cached_tokens) = self.read(text);
        let unread = prompt_tokens.saturating_sub(cached_tokens) as u64;
        let parts = self.parts(&request, fault, seed, (prompt_tokens, cached_tokens));
        self.seen().streams += 1;
        let open = Open(self.clone());
        let costs = self.costs;
        let paced = parts.enumerate().then(move |(at, part)| {
            let (first, Open(_)) = (at == 0, &open);
            let wait_us = if first { unread * costs.read_us } else { costs.say_us };
            async move {
                tokio::time::sleep(Duration::from_micros(wait_us)).await;
                part
            }
        });
        Ok(paced.boxed())
    }

    fn parts(
        &self,
        request: &RemoteRequest,
        fault: Option<RemoteFault>,
        seed: u32,
        (prompt_tokens, cached_tokens): (usize, usize),
    ) -> RemoteStream {
        let reply_tokens = self.costs.said_tokens.min(request.tokens_max);
        let word = move |at: usize| format!("w{:x} ", seed.rotate_left(at as u32 * 5) & 0xfff);
        let said = (0..reply_tokens).map(move |at| Ok(RemotePart::Text(word(at))));
        let reason = match self.costs.said_tokens <= request.tokens_max {
            true => FinishReason::Stop,
            false => FinishReason::Length,
        };
        let usage = Some(RemoteUsage { prompt_tokens, cached_tokens, reply_tokens });
        let end = [Ok(RemotePart::Finished { reason, usage })];
        match fault {
            None | Some(RemoteFault::Refuse(_)) => stream::iter(said.chain(end)).boxed(),
            Some(RemoteFault::Stall(parts)) => {
                stream::iter(said.take(parts)).chain(stream::pending()).boxed()
            }
            Some(RemoteFault::Cut(parts)) => stream::iter(said.take(parts)).boxed(),
            Some(RemoteFault::Break(parts, error)) => {
                stream::iter(said.take(parts).chain([Err(error)])).boxed()
            }
            Some(RemoteFault::Endless(bytes)) => {
                stream::repeat_with(move || Ok(RemotePart::Text("x".repeat(bytes)))).boxed()
            }
        }
    }
}

impl RemoteModel for ScriptedRemote {
    fn facts(&self) -> &RemoteFacts {
        &self.facts
    }

    fn reply(
        &self,
        request: Arc<RemoteRequest>,
    ) -> BoxFuture<'static, Result<RemoteStream, RemoteError>> {
        Box::pin(self.clone().answer(request))
    }
}

/// A request as one text, as a template would write it.
#[must_use]
pub fn prompt(request: &RemoteRequest) -> String {
    let mut text = String::new();
    for turn in &request.messages {
        let said = turn.wire.as_ref().map_or_else(|| turn.content(), ToString::to_string);
        // Writing to a text never fails.
        let _ = write!(
            text,
            "<{}>{}{said}",
            turn.role.as_str(),
            match turn.wire {
                Some(_) => turn.memories.as_str(),
                None => "",
            }
        );
    }
    text
}

fn common_bytes(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count()
}
