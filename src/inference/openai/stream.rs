//! A reply as a stream of events, or as one answer.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use memcube_actors::inference::{
    FinishReason,
    remote::{RemoteError, RemoteFailure, RemotePart, RemoteStream, RemoteUsage},
};
use serde_json::Value;
use sse_stream::{Sse, SseByteStream};

use super::{
    failures::{self, broken},
    wire::{self, Chunk, Delta},
};

/// Bytes of one event.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// How long the rest of a stream may take once the reply has ended: what the server counted, and
/// its last word.
const REST_LIMIT: Duration = Duration::from_secs(2);

type Events = Pin<Box<dyn Stream<Item = Result<Sse, sse_stream::Error>> + Send>>;

/// A stream that is being read.
struct Reading {
    url: String,
    events: Events,
    /// Bytes since the last event.
    pending: Arc<AtomicUsize>,
    ready: VecDeque<RemotePart>,
    heard: Heard,
}

/// What is known of the end.
#[derive(Debug, Default)]
struct Heard {
    reason: Option<FinishReason>,
    usage: Option<RemoteUsage>,
    calls_tools: bool,
}

impl Heard {
    fn finished(&self) -> RemotePart {
        let reason = match self.reason {
            Some(FinishReason::Stop) | None if self.calls_tools => FinishReason::ToolCalls,
            Some(reason) => reason,
            None => FinishReason::Stop,
        };
        RemotePart::Finished { reason, usage: self.usage }
    }

    /// Takes a piece in; what it says goes to `ready`.
    fn take_in(&mut self, chunk: &Chunk, ready: &mut VecDeque<RemotePart>) {
        if let Some(usage) = chunk.counted() {
            self.usage = Some(usage);
        }
        // More than one was not asked for.
        let Some(choice) = chunk.choices.first() else { return };
        if let Some(delta) = &choice.delta {
            self.say(delta, ready);
        }
        if let Some(reason) = choice.reason() {
            self.reason = Some(reason);
        }
    }

    fn say(&mut self, delta: &Delta, ready: &mut VecDeque<RemotePart>) {
        if let Some(text) = delta.text() {
            ready.push_back(RemotePart::Text(text));
        }
        let calls = delta.tool_calls.as_deref().unwrap_or_default();
        if !calls.is_empty() {
            self.calls_tools = true;
            let calls = Value::Array(calls.iter().enumerate().map(numbered).collect()).to_string();
            ready.push_back(RemotePart::ToolCalls(calls.into()));
        }
    }
}

/// A call with its number, which an answer in one piece leaves out.
fn numbered((number, call): (usize, &Value)) -> Value {
    let mut call = call.clone();
    if let Some(fields) = call.as_object_mut() {
        fields.entry("index").or_insert_with(|| number.into());
    }
    call
}

/// The parts of a reply that comes as events.
pub(super) fn parts<E>(
    url: &str,
    bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> RemoteStream
where
    E: std::error::Error + Send + Sync + 'static,
{
    let pending = Arc::new(AtomicUsize::new(0));
    let (counted, address) = (Arc::clone(&pending), url.to_owned());
    // The parser keeps an event until it is whole.
    let bounded = bytes.map(move |piece| {
        let piece = piece.map_err(|error| failures::cut(&address, &error))?;
        let pending = counted.fetch_add(piece.len(), Ordering::Relaxed) + piece.len();
        if pending > EVENT_BYTES_MAX {
            let message = format!("the server at {address} has sent an event without an end");
            return Err(RemoteError::new(RemoteFailure::Endless, message));
        }
        Ok(piece)
    });
    let events: Events = Box::pin(SseByteStream::new(Box::pin(bounded)));
    let (ready, heard) = (VecDeque::new(), Heard::default());
    let reading = Reading { url: url.to_owned(), events, pending, ready, heard };
    let parts = stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        let part = reading.next().await;
        let is_last = matches!(part, Err(_) | Ok(RemotePart::Finished { .. }));
        Some((part, (!is_last).then_some(reading)))
    });
    parts.boxed()
}

impl Reading {
    async fn next(&mut self) -> Result<RemotePart, RemoteError> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Ok(part);
            }
            let event = match self.heard.reason {
                None => self.events.next().await,
                Some(_) => match tokio::time::timeout(REST_LIMIT, self.events.next()).await {
                    Ok(event) => event,
                    Err(_) => return Ok(self.heard.finished()),
                },
            };
            let data = match event {
                Some(Ok(Sse { data, .. })) => data.unwrap_or_default(),
                // The reply itself is whole.
                None | Some(Err(_)) if self.heard.reason.is_some() => {
                    return Ok(self.heard.finished());
                }
                Some(Err(error)) => return Err(self.failed(error)),
                None => return Err(self.ended()),
            };
            self.pending.store(0, Ordering::Relaxed);
            match data.trim() {
                "" => {}
                "[DONE]" => return Ok(self.heard.finished()),
                data => self.hear(data)?,
            }
        }
    }

    fn hear(&mut self, data: &str) -> Result<(), RemoteError> {
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
            broken(&self.url, &format!("an event is no piece of a reply ({error})"))
        })?;
        match &chunk.error {
            Some(error) if !error.is_null() => {
                Err(failures::of_words(&self.url, &wire::refusal_in(error)))
            }
            Some(_) | None => {
                self.heard.take_in(&chunk, &mut self.ready);
                Ok(())
            }
        }
    }

    fn failed(&self, error: sse_stream::Error) -> RemoteError {
        let sse_stream::Error::Body(error) = error else {
            return broken(&self.url, &error.to_string());
        };
        match error.downcast::<RemoteError>() {
            Ok(error) => *error,
            Err(error) => broken(&self.url, &error.to_string()),
        }
    }

    fn ended(&self) -> RemoteError {
        let message = format!(
            "the server at {} has closed the connection before the end of a reply; look at its log",
            self.url
        );
        RemoteError::new(RemoteFailure::Cut, message)
    }
}

/// The parts of a reply that comes as one answer, from a server that does not stream.
pub(super) fn whole(url: &str, answer: &[u8]) -> Result<RemoteStream, RemoteError> {
    let chunk: Chunk = serde_json::from_slice(answer)
        .map_err(|error| broken(url, &format!("an answer is no reply ({error})")))?;
    if let Some(error) = chunk.error.as_ref().filter(|error| !error.is_null()) {
        return Err(failures::of_words(url, &wire::refusal_in(error)));
    }
    if chunk.choices.is_empty() {
        return Err(broken(url, "an answer holds no reply"));
    }
    let (mut ready, mut heard) = (VecDeque::new(), Heard::default());
    heard.take_in(&chunk, &mut ready);
    ready.push_back(heard.finished());
    Ok(stream::iter(ready.into_iter().map(Ok)).boxed())
}
