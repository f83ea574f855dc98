//! What a server says when it does not answer, in words that say what to do.

use std::{
    error::Error as StdError,
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use axum::http::{HeaderMap, StatusCode, header};
use memcube_actors::inference::remote::{RemoteError, RemoteFailure};

use super::{Dialect, Shared, wire};

/// Characters of a server's own words that are passed on.
const WORDS_MAX: usize = 400;

impl Dialect {
    /// Whether a refusal teaches something, so that the same question is worth asking in other
    /// words. Never twice.
    pub(super) fn learns(&self, status: StatusCode, answer: &[u8]) -> bool {
        if status != StatusCode::BAD_REQUEST && status != StatusCode::UNPROCESSABLE_ENTITY {
            return false;
        }
        let refusal = wire::refusal(answer);
        let is_about =
            |name: &str| refusal.param.as_deref() == Some(name) || refusal.message.contains(name);
        let learn = |flag: &AtomicBool| !flag.swap(true, Ordering::Relaxed);
        if is_about("max_completion_tokens") {
            return learn(&self.says_completion_tokens);
        }
        is_about("stream_options") && learn(&self.counts_nothing)
    }
}

/// The failure that a status stands for.
pub(super) fn of_status(
    shared: &Shared,
    status: StatusCode,
    answer: &[u8],
    retry_after_ms: Option<u64>,
) -> RemoteError {
    let Shared { url, facts, .. } = shared;
    let wire::Refusal { message, code, .. } = wire::refusal(answer);
    let words = words(&message);
    let code = code.unwrap_or_default();
    let (failure, message) = match status.as_u16() {
        // Not in the server's words, which may hold a part of the key.
        401 => (
            RemoteFailure::Unauthorized,
            format!("the server at {url} does not accept the key; set `inference.api-key`"),
        ),
        402 => (
            RemoteFailure::Unauthorized,
            format!("the account at {url} has no credit left{words}; see to it there"),
        ),
        403 => (
            RemoteFailure::Unauthorized,
            format!(
                "the key may not use `{}` at {url}; set `inference.api-key` to one that may, or \
                 `inference.remote-model` to another model",
                facts.model
            ),
        ),
        429 if code == "insufficient_quota" => (
            RemoteFailure::Unauthorized,
            format!("the quota at {url} is used up{words}; see to it there"),
        ),
        408 | 429 | 503 | 529 => (
            RemoteFailure::Busy,
            format!("the server at {url} has too much to do ({status}){words}"),
        ),
        404 | 405 => (
            RemoteFailure::NotFound,
            format!(
                "the server at {url} knows no model `{}`, or no chats at this address \
                 ({status}){words}; set `inference.remote-model` to a model that it has, and \
                 `inference.url` to the address before `/chat/completions`, often ending in `/v1`",
                facts.model
            ),
        ),
        300..=399 => (
            RemoteFailure::NotFound,
            format!("the server at {url} is elsewhere ({status}); set `inference.url`"),
        ),
        400..=499 => (
            RemoteFailure::Rejected,
            format!("the server at {url} does not take the request ({status}){words}"),
        ),
        _ => (RemoteFailure::Failed, format!("the server at {url} has failed ({status}){words}")),
    };
    RemoteError { failure, message, retry_after_ms }
}

/// What stands in a stream or an answer in place of a reply.
pub(super) fn of_words(url: &str, refusal: &wire::Refusal) -> RemoteError {
    let words = words(&refusal.message);
    let message = format!("the server at {url} has given up an answer{words}");
    RemoteError::new(RemoteFailure::Failed, message)
}

/// Nobody answers, or not in HTTP.
pub(super) fn unreachable(url: &str, error: &(dyn StdError + 'static)) -> RemoteError {
    let reason = root_of(error);
    RemoteError::new(
        RemoteFailure::Unreachable,
        format!("no server answers at {url}: {reason}; start it, or set `inference.url`"),
    )
}

pub(super) fn cut(url: &str, error: &(dyn StdError + 'static)) -> RemoteError {
    let reason = root_of(error);
    let message = format!("the server at {url} broke off: {reason}; look at its log");
    RemoteError::new(RemoteFailure::Cut, message)
}

/// It speaks something else.
pub(super) fn broken(url: &str, reason: &str) -> RemoteError {
    RemoteError::new(
        RemoteFailure::Garbled,
        format!(
            "what answers at {url} does not speak OpenAI's chat completions: {reason}; set \
             `inference.url` to the address before `/chat/completions`"
        ),
    )
}

/// The innermost reason: the outer ones say that a request failed.
fn root_of(error: &(dyn StdError + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

/// What the server says itself, as the rest of a sentence.
fn words(message: &str) -> String {
    let message: String = message.trim().chars().take(WORDS_MAX).collect();
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// After how many milliseconds the server wants to be asked again.
pub(super) fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return whole_ms(ms);
    }
    let after = text(header::RETRY_AFTER.as_str())?;
    if let Ok(seconds) = after.parse::<f64>() {
        return whole_ms(seconds * 1_000.0);
    }
    let at = httpdate::parse_http_date(after).ok()?;
    let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
    u64::try_from(wait.as_millis()).ok()
}

fn whole_ms(ms: f64) -> Option<u64> {
    /// Longer than anybody waits.
    const DAY_MS: f64 = 86_400_000.0;
    (ms >= 0.0).then(|| ms.min(DAY_MS).ceil() as u64)
}
