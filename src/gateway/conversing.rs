//! What chats on every wire have in common.

use std::{convert::Infallible, fmt::Write, pin::pin, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt};
use memcube_actors::{
    cube::{ChatOpening, ChatTurn, FinishedTurn, SearchRequest, TurnEvent, TurnStream},
    environment::Environment,
    inference::{InferenceHandle, Sampling},
};
use memcube_schemas::{
    ConversationId,
    conversation::Role,
    limits::{QUERY_BYTES_MAX, TOP_K_DEFAULT},
};
use sha2::{Digest, Sha256};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Gateway, errors::Failure};

/// Bytes of the hash in the name of a conversation that nobody named.
const HASH_BYTES: usize = 16;
/// How often a comment keeps a connection from being taken for dead, and shows whether somebody
/// still listens, while a long prompt is computed.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(3);

/// How long a reply goes on when the server stops: less than the server waits for answers.
const ENDING_MAX: Duration = Duration::from_secs(10);

/// The language model of this node.
pub(crate) fn language_model(gateway: &Gateway) -> Result<&InferenceHandle, Failure> {
    gateway.node.cubes().inference().ok_or_else(|| {
        let detail = "this server has no language model; fetch one with `make language-model` and \
                      start the server with `--language-model local`";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    })
}

/// A reply on its way to a client. Whoever drops it before the end stops the model.
pub(crate) struct Replying {
    stream: TurnStream,
    stopping: watch::Receiver<bool>,
    /// When it is cut off, once the server stops.
    cut_at: Option<Instant>,
    is_over: bool,
}

impl Replying {
    pub(crate) fn new(stream: TurnStream, gateway: &Gateway) -> Self {
        Self { stream, stopping: gateway.stopping.clone(), cut_at: None, is_over: false }
    }

    /// What is known before the first token.
    pub(crate) const fn opening(&self) -> &ChatOpening {
        self.stream.opening()
    }

    /// What comes next; `None` after the end or a failure. A server that stops lets replies end
    /// that take little longer.
    pub(crate) async fn next(&mut self) -> Option<Result<TurnEvent, Failure>> {
        if self.is_over {
            return None;
        }
        let Self { stream, stopping, cut_at, is_over } = self;
        // Never dropped before it is there: it may be about to write the turn.
        let mut next = pin!(stream.next());
        let event = loop {
            let cut = sleep_until(cut_at.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                event = &mut next => break event?.map_err(Failure::from),
                () = cut, if cut_at.is_some() => break Err(stopped()),
                // A sender that is gone means the same as one that says stop.
                _ = stopping.wait_for(|stop| *stop), if cut_at.is_none() => {
                    *cut_at = Some(Instant::now() + ENDING_MAX);
                }
            }
        };
        *is_over = matches!(event, Err(_) | Ok(TurnEvent::Finished(_)));
        Some(event)
    }

    /// Reads the text of the reply to its end.
    pub(crate) async fn collect(mut self) -> Result<(String, FinishedTurn), Failure> {
        let mut reply = String::new();
        while let Some(event) = self.next().await {
            match event? {
                TurnEvent::Text(text) => reply.push_str(&text),
                TurnEvent::ToolCalls(_) => {}
                TurnEvent::Finished(finished) => return Ok((reply, *finished)),
            }
        }
        Err(ended())
    }
}

/// What is told when the server stops in the middle of a reply.
fn stopped() -> Failure {
    let detail = "the server is stopping; send the message again, nothing of it is remembered";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
}

/// What is told when a reply breaks off without a reason.
pub(crate) fn ended() -> Failure {
    let detail = "the language model has ended; restart memcube";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
}

/// Answers with events as they come.
pub(crate) fn streamed(events: impl Stream<Item = Event> + Send + 'static) -> Response<Body> {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_EVERY).text("keep-alive");
    let events = events.map(Ok::<Event, Infallible>);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Proxies that collect an answer before they pass it on would hold pieces back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The name of a conversation that nobody named: a hash of the instructions and of what the user
/// said first. A client that sends the whole conversation with every turn finds it again by that.
pub(crate) fn derived_conversation(
    preamble: &str,
    turns: &[ChatTurn],
    message: &ChatTurn,
) -> Result<ConversationId, Failure> {
    let first = turns.iter().find(|turn| turn.role == Role::User).unwrap_or(message);
    let mut hash = Sha256::new();
    hash.update((preamble.len() as u64).to_le_bytes());
    hash.update(preamble.as_bytes());
    hash.update(first.text.as_bytes());
    let mut name = "chat-".to_owned();
    for byte in hash.finalize().iter().take(HASH_BYTES) {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    ConversationId::new(name).map_err(|error| Failure::invalid(error.to_string()))
}

/// The search for what a turn needs: by what the user said last, the beginning of it if it is too
/// long for a question.
pub(crate) fn search_for(turns: &[ChatTurn], message: &ChatTurn) -> SearchRequest {
    let said = [message].into_iter().chain(turns.iter().rev());
    let mut said = said.filter(|turn| turn.role == Role::User);
    let text = said.next().map_or(message.text.as_str(), |turn| turn.text.as_str());
    let end = (0..=QUERY_BYTES_MAX.min(text.len())).rfind(|end| text.is_char_boundary(*end));
    let query = &text[..end.unwrap_or(0)];
    SearchRequest { top_k: TOP_K_DEFAULT, ..SearchRequest::new(query) }
}

/// Where the random numbers of a reply begin; without chance in it, a reply needs none.
pub(crate) fn seed(sampling: Sampling, environment: &Environment) -> u64 {
    if sampling.temperature > 0.0 {
        let [low @ .., _, _, _, _, _, _, _, _] = environment.random_u128().to_le_bytes();
        u64::from_le_bytes(low)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: Role, text: &str) -> ChatTurn {
        ChatTurn::new(role, text)
    }

    #[test]
    fn a_conversation_is_known_again_by_how_it_began() {
        let name = |preamble: &str, texts: &[&str], message: &str| {
            let turns: Vec<ChatTurn> = (texts.iter().enumerate())
                .map(|(at, text)| turn([Role::User, Role::Assistant][at % 2], text))
                .collect();
            let message = turn(Role::User, message);
            derived_conversation(preamble, &turns, &message).expect("a name")
        };
        let first = name("be kind", &[], "hello");
        assert!(first.as_str().starts_with("chat-") && first.as_str().len() == 37, "{first}");
        assert_eq!(first, name("be kind", &["hello", "hi"], "how are you"));
        for other in [
            name("be kind", &[], "hello!"),
            name("be", &[], " kindhello"),
            name("", &[], "be kindhello"),
            name("be rude", &["hello", "hi"], "how are you"),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn what_the_user_said_last_is_looked_for() {
        let turns = [turn(Role::User, "what is the weather"), turn(Role::Assistant, "I look")];
        let tool = turn(Role::Tool, "{\"sky\": \"blue\"}");
        assert_eq!(search_for(&turns, &tool).query, "what is the weather");
        assert_eq!(search_for(&turns, &turn(Role::User, "and now")).query, "and now");
        let long = turn(Role::User, &"\u{e4}".repeat(QUERY_BYTES_MAX));
        assert_eq!(search_for(&[], &long).query.len(), QUERY_BYTES_MAX);
        let odd = turn(Role::User, &format!("x{}", "\u{e4}".repeat(QUERY_BYTES_MAX)));
        assert_eq!(search_for(&[], &odd).query.len(), QUERY_BYTES_MAX - 1);
    }
}
