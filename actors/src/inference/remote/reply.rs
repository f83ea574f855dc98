//! A reply of a model elsewhere, from its first word to its end.

use std::time::Duration;

use futures_util::{StreamExt, future::BoxFuture};
use memcube_schemas::limits::{REMOTE_REPLY_BYTES_MAX, REPLY_PIECES_MAX};
use tokio::sync::mpsc;

use super::{
    RemoteError, RemoteFailure, RemotePart, RemoteUsage,
    handle::{Begun, RemoteHandle, cut},
};
use crate::{
    cube::seconds,
    error::{Error, Result},
    inference::{
        activation_cache::Tier,
        device::Urgency,
        fill::Reuse,
        generate::{READER_MS_MAX, count_prompt},
        reply::ReplyText,
        request::{FinishReason, Finished, ReplyEvent, ReplyStream, Timings},
    },
    metrics as names,
};

/// One reply under way.
pub(super) struct Replying {
    remote: RemoteHandle,
    begun: Begun,
    first_token_us: u64,
    text: ReplyText,
    /// Bytes and parts so far. A part is a token with most servers.
    bytes: usize,
    parts: usize,
}

type Sender = mpsc::Sender<Result<ReplyEvent>>;

/// How a reply ended.
struct End {
    reason: FinishReason,
    usage: Option<RemoteUsage>,
}

impl Replying {
    pub(super) fn new(remote: RemoteHandle, begun: Begun) -> Self {
        let now_us = remote.environment().monotonic_us();
        let first_token_us = now_us.saturating_sub(begun.times.0);
        let text = ReplyText::new(begun.asked.request.stops.clone());
        Self { remote, begun, first_token_us, text, bytes: 0, parts: 0 }
    }

    /// Hands on what comes, until the end or until nobody reads.
    pub(super) fn start(self) -> ReplyStream {
        let (sender, events) = mpsc::channel(REPLY_PIECES_MAX);
        let environment = self.remote.environment().clone();
        let is_answer = self.begun.urgency == Urgency::Foreground;
        let left = self.remote.left(self.begun.times.1);
        environment.spawn(async move {
            let listener = sender.clone();
            let handing_on: BoxFuture<'_, &'static str> = Box::pin(self.hand_on(sender));
            let count = |outcome: &'static str| {
                let replies = metrics::counter!(names::REPLIES_TOTAL, "outcome" => outcome);
                replies.increment(u64::from(is_answer));
            };
            tokio::select! {
                biased;
                // Dropped in the middle, the stream closes the connection, and the server stops.
                () = listener.closed() => count("cancelled"),
                outcome = handing_on => count(outcome),
                () = tokio::time::sleep(left + Duration::from_millis(READER_MS_MAX)) => {
                    count("unread");
                }
            }
        });
        ReplyStream::new(events)
    }

    async fn hand_on(mut self, sender: Sender) -> &'static str {
        match self.until_end(&sender).await {
            Ok(end) => {
                send(&sender, self.text.finish()).await;
                let finished = Box::new(self.finished(end));
                let _ = sender.send(Ok(ReplyEvent::Finished(finished))).await;
                "ok"
            }
            Err(error) => {
                let kind = error.failure.as_str();
                metrics::counter!(names::REMOTE_FAILURES_TOTAL, "kind" => kind).increment(1);
                tracing::warn!(%error, kind, "the language model has not finished its answer");
                let _ = sender.send(Err(Error::from(error))).await;
                "error"
            }
        }
    }

    async fn until_end(&mut self, sender: &Sender) -> std::result::Result<End, RemoteError> {
        let mut next = Some(self.begun.first.clone());
        loop {
            let part = match next.take() {
                Some(part) => part,
                None => match self.next().await? {
                    Some(part) => part,
                    None => return Ok(End { reason: FinishReason::Deadline, usage: None }),
                },
            };
            match part {
                RemotePart::Text(text) => {
                    self.take_in(text.len())?;
                    send(sender, self.text.push(text.as_bytes())).await;
                    // Most servers stop by themselves, if there are few enough words to stop at.
                    if self.text.has_stopped() {
                        return Ok(End { reason: FinishReason::Stop, usage: None });
                    }
                }
                RemotePart::ToolCalls(calls) => {
                    self.take_in(calls.len())?;
                    let _ = sender.send(Ok(ReplyEvent::ToolCalls(calls))).await;
                }
                RemotePart::Finished { reason, usage } => return Ok(End { reason, usage }),
            }
        }
    }

    /// The next part; `None` when the time is up.
    async fn next(&mut self) -> std::result::Result<Option<RemotePart>, RemoteError> {
        let patience = self.remote.patience(self.begun.times.1);
        match tokio::time::timeout(patience, self.begun.rest.next()).await {
            Ok(Some(part)) => part.map(Some),
            Ok(None) => Err(cut()),
            Err(_) if self.remote.left(self.begun.times.1).is_zero() => Ok(None),
            Err(_) => Err(self.remote.silent()),
        }
    }

    fn take_in(&mut self, bytes: usize) -> std::result::Result<(), RemoteError> {
        self.parts += 1;
        self.bytes += bytes;
        if self.bytes <= REMOTE_REPLY_BYTES_MAX {
            return Ok(());
        }
        Err(RemoteError::new(
            RemoteFailure::Endless,
            format!(
                "the model server has sent more than {REMOTE_REPLY_BYTES_MAX} bytes for one reply; \
                 look whether it heeds `max_tokens`"
            ),
        ))
    }

    fn finished(&mut self, end: End) -> Finished {
        let Begun { asked, turn, urgency, times: (start_us, _), .. } = &mut self.begun;
        let estimate = RemoteUsage {
            prompt_tokens: asked.prompt_tokens,
            cached_tokens: 0,
            reply_tokens: self.parts,
        };
        let RemoteUsage { prompt_tokens, cached_tokens, reply_tokens } =
            end.usage.unwrap_or(estimate);
        turn.settle(prompt_tokens.saturating_add(reply_tokens) as u64);
        if let Some(usage) = end.usage {
            self.remote.learn(asked, usage);
        }
        let cached_tokens = cached_tokens.min(prompt_tokens);
        let mut reuse =
            Reuse { computed_tokens: prompt_tokens - cached_tokens, ..Reuse::default() };
        if cached_tokens > 0 {
            reuse.reused_tokens.insert(Tier::Remote, cached_tokens);
        }
        count_prompt(&reuse);
        if *urgency == Urgency::Foreground {
            let warm = if cached_tokens > 0 { "true" } else { "false" };
            metrics::histogram!(names::TTFT_SECONDS, "warm" => warm)
                .record(seconds(self.first_token_us));
            metrics::counter!(names::REPLY_TOKENS_TOTAL).increment(reply_tokens as u64);
        }
        let total_us = self.remote.environment().monotonic_us().saturating_sub(*start_us);
        let timings = Timings { first_token_us: self.first_token_us, total_us, reply_tokens };
        Finished { reason: end.reason, reuse, timings, unstored: Vec::new() }
    }
}

async fn send(sender: &Sender, text: String) {
    if !text.is_empty() {
        // If nobody listens any more, the reply is about to be dropped.
        let _ = sender.send(Ok(ReplyEvent::Text(text))).await;
    }
}
