//! Chats with a model that runs elsewhere: what it is asked, and how much it may be.

use std::sync::Arc;

use memcube_schemas::ConversationId;

use super::{ChatRequest, InferenceHandle, Messages, Place, PreloadRequest, RemoteHandle};
use crate::{
    cube::{CubeKey, context::Wording},
    error::{Error, Result},
    inference::{
        FinishReason, Finished, Reuse, Sampling, Timings,
        activation_cache::Contents,
        remote::{Asked, RemoteRequest},
    },
};

/// Part of a window that is left free, because tokens are estimated.
const MARGIN: usize = 16;

/// How texts are counted for a model.
pub(super) fn wording(model: &RemoteHandle) -> Wording {
    Wording {
        model: model.facts().fingerprint.model.clone(),
        tokens_per_1000_bytes: model.tokens_per_1000_bytes(),
    }
}

/// Tokens that prompt and reply may have together.
pub(super) fn window_tokens(inference: &InferenceHandle, extra: Option<&str>) -> usize {
    let window_tokens = inference.facts().window_tokens;
    match inference.place() {
        Place::Here(_) => window_tokens,
        Place::Elsewhere(model) => {
            let extra = wording(model).tokens_of(extra.map_or(0, str::len));
            window_tokens.saturating_sub(window_tokens / MARGIN).saturating_sub(extra)
        }
    }
}

/// What the last turn of a conversation passed through to a model elsewhere.
pub(super) fn extra(
    inference: &InferenceHandle,
    key: &CubeKey,
    conversation: &ConversationId,
) -> Option<Arc<str>> {
    match inference.place() {
        Place::Here(_) => None,
        Place::Elsewhere(model) => model.extra(key, conversation),
    }
}

/// Refuses fields that the model could not heed, and what is no JSON object.
pub(super) fn check_extra(inference: &InferenceHandle, extra: Option<&str>) -> Result<()> {
    let Some(extra) = extra else { return Ok(()) };
    let extra: serde_json::Map<String, serde_json::Value> = serde_json::from_str(extra)
        .map_err(|error| Error::invalid(format!("`extra` is not a JSON object: {error}")))?;
    match inference.place() {
        Place::Here(_) => refuse_tools(&extra),
        Place::Elsewhere(_) => Ok(()),
    }
}

/// A model that runs here reads and writes text only.
fn refuse_tools(extra: &serde_json::Map<String, serde_json::Value>) -> Result<()> {
    let has_some = |name: &str| match extra.get(name) {
        None | Some(serde_json::Value::Null) => false,
        Some(value) => value.as_array().is_none_or(|tools| !tools.is_empty()),
    };
    if has_some("tools") || has_some("functions") {
        return Err(Error::invalid(
            "this language model takes no tools; leave `tools` out, or set `inference.kind` to \
             `openai` and `inference.url` to a server with a model that does",
        ));
    }
    let form = extra.get("response_format").and_then(|form| form.get("type")?.as_str());
    if form.is_some_and(|form| form != "text") {
        return Err(Error::invalid(
            "this language model cannot be held to a form; leave `response_format` out, or set \
             `inference.kind` to `openai` and `inference.url` to a server with a model that can",
        ));
    }
    Ok(())
}

/// A turn, as a model elsewhere is asked.
pub(super) fn asked(messages: Messages, request: &ChatRequest) -> Asked {
    let extra = request.extra.clone();
    let wanted = RemoteRequest {
        messages: Vec::new(),
        sampling: request.sampling,
        seed: request.seed,
        tokens_max: request.tokens_max,
        stops: request.stops.clone(),
        extra,
    };
    ask(messages, wanted, &request.conversation, request.ms_max)
}

/// The same ahead of the turn: one token, so that the server reads what stands before it.
pub(super) fn asked_ahead(
    messages: Messages,
    request: &PreloadRequest,
    extra: Option<Arc<str>>,
) -> Asked {
    let wanted = RemoteRequest {
        messages: Vec::new(),
        sampling: Sampling::GREEDY,
        seed: 0,
        tokens_max: 1,
        stops: Vec::new(),
        extra,
    };
    ask(messages, wanted, &request.conversation, request.ms_max)
}

/// A preload of what the server has read and said already: its cache has it as far as it ever will.
pub(super) fn nothing_to_do() -> Finished {
    let (reuse, timings) = (Reuse::default(), Timings::default());
    Finished { reason: FinishReason::Preloaded, reuse, timings, unstored: Vec::new() }
}

/// A preload that was stopped: the turn that it was for has come.
pub(super) fn overtaken() -> Error {
    Error::unavailable("the next turn came first")
}

fn ask(
    messages: Messages,
    request: RemoteRequest,
    conversation: &ConversationId,
    ms_max: u64,
) -> Asked {
    let Messages { turns, memories, bytes, tokens: prompt_tokens } = messages;
    let prompt_bytes = bytes + request.extra.as_ref().map_or(0, |extra| extra.len());
    let conversation = conversation.clone();
    let sources = Contents::said_in(conversation.clone(), memories.into_iter());
    let request = RemoteRequest { messages: turns, ..request };
    Asked { request, conversation, sources, prompt_tokens, prompt_bytes, ms_max }
}
