//! `/v1/chat/completions`

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Response},
    response::IntoResponse,
};
use memcube_actors::{
    TenantContext,
    cube::{ChatOpening, FinishedTurn, TurnEvent},
    inference::FinishReason,
};
use memcube_schemas::{
    ConversationId, CubeId,
    api::{
        openai::{
            ChatChoice, ChatCompletion, ChatCompletionBody, ChatMemory, ChatTimings, ChatUsage,
            PromptDetails, RememberedBody, ReplyBody, UsedMemoryBody,
        },
        v1::Problem,
    },
};
use serde_json::Value;

use super::{
    chat_request::{Asked, failed},
    chat_stream, models,
};
use crate::gateway::{
    Gateway,
    conversing::{self, Replying, ended},
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

/// Answers a message out of the memories of a cube, and remembers both. The answer, or the end of
/// a stream, means that the turn is durable and findable; a client that goes away before that
/// stops the model, and nothing of the turn is remembered.
///
/// It is OpenAI's interface: fields that are not listed are ignored, and `model` may be left out.
/// What is said before is sent with every request, as OpenAI's clients do; turns of one
/// `conversation` find what earlier ones have computed. A reply tells its memories and timings in
/// `memcube`; a stream does so in its first and last pieces.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai",
    request_body = ChatCompletionBody,
    params(
        ("x-memcube-cube" = Option<String>, Header, description = "the same as `cube`"),
        ("idempotency-key" = Option<String>, Header,
            description = "a turn that is sent again with the same key is remembered once"),
    ),
    responses(
        (status = 200, content(
            (ChatCompletion = "application/json"), (String = "text/event-stream"))),
        (status = 400, body = Problem),
        (status = 404, body = Problem, description = "there is no such cube, or no such model"),
        (status = 429, body = Problem),
        (status = 503, body = Problem, description = "there is no language model, or it fails")))]
pub(crate) async fn complete(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    headers: HeaderMap,
    request: Request,
) -> Response<Body> {
    let begun = match Box::pin(begin(&gateway, &caller, &headers, request)).await {
        Ok(begun) => begun,
        Err(failure) => return failure.into_openai(&id),
    };
    if begun.is_stream {
        return chat_stream::respond(begun, id);
    }
    match whole(begun).await {
        Ok(reply) => Json(reply).into_response(),
        Err(failure) => failure.into_openai(&id),
    }
}

/// A reply that has begun.
pub(crate) struct Begun {
    pub(crate) replying: Replying,
    pub(crate) head: Head,
    pub(crate) is_stream: bool,
    pub(crate) with_usage: bool,
}

/// What every piece of a reply repeats, and whom it is about.
pub(crate) struct Head {
    id: String,
    created: i64,
    model: String,
    cube: CubeId,
    conversation: ConversationId,
}

async fn begin(
    gateway: &Gateway,
    caller: &TenantContext,
    headers: &HeaderMap,
    request: Request,
) -> Result<Begun, Failure> {
    let body: ChatCompletionBody = read_json(request).await?;
    let environment = gateway.node.environment();
    let wanted = body.model.clone();
    let Asked { whose, request, is_stream, with_usage } = Asked::of(body, headers, environment)?;
    let inference = conversing::language_model(gateway)?;
    let model = inference.facts().fingerprint.model.to_string();
    models::check(wanted.as_deref(), &model)?;
    let cube = Asked::open(&whose, gateway, caller).await?;
    let head = Head {
        id: format!("chatcmpl-{:032x}", environment.random_u128()),
        created: environment.unix_ms() / 1_000,
        model,
        cube: cube.id().clone(),
        conversation: request.chat.conversation.clone(),
    };
    let stream = cube.converse(request).await.map_err(|error| failed(error, cube.id()))?;
    Ok(Begun { replying: Replying::new(stream, gateway), head, is_stream, with_usage })
}

async fn whole(begun: Begun) -> Result<ChatCompletion, Failure> {
    let Begun { mut replying, head, .. } = begun;
    let opening = replying.opening().clone();
    let (mut text, mut calls) = (String::new(), ToolCalls::default());
    let finished = loop {
        match replying.next().await {
            Some(Ok(TurnEvent::Text(more))) => text.push_str(&more),
            Some(Ok(TurnEvent::ToolCalls(more))) => calls.add(&more),
            Some(Ok(TurnEvent::Finished(finished))) => break finished,
            Some(Err(failure)) => return Err(failure),
            None => return Err(ended()),
        }
    };
    let tool_calls = calls.whole();
    let message = ReplyBody {
        role: "assistant".to_owned(),
        content: (tool_calls.is_none() || !text.is_empty()).then_some(text),
        tool_calls,
        refusal: None,
    };
    let choice = ChatChoice {
        index: 0,
        message: Some(message),
        delta: None,
        finish_reason: Some(reason(finished.reason).to_owned()),
        logprobs: None,
    };
    let ChatMemory { remembered, timings, .. } = ending(&opening, &finished);
    Ok(ChatCompletion {
        object: "chat.completion".to_owned(),
        usage: Some(usage(&opening, &finished)),
        memcube: Some(ChatMemory { remembered, timings, ..head.opening(&opening) }),
        ..head.piece(vec![choice])
    })
}

impl Head {
    /// A piece of a stream.
    pub(crate) fn piece(&self, choices: Vec<ChatChoice>) -> ChatCompletion {
        ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: None,
            memcube: None,
        }
    }

    /// What is known before the first token.
    pub(crate) fn opening(&self, opening: &ChatOpening) -> ChatMemory {
        let used = opening.memories.iter().map(|memory| UsedMemoryBody {
            id: memory.source.id,
            revision: memory.source.revision,
        });
        ChatMemory {
            cube: Some(self.cube.clone()),
            version: Some(opening.version),
            conversation: Some(self.conversation.clone()),
            memories: Some(used.collect()),
            left_out: Some(opening.left_out.clone()),
            turns_left_out: Some(opening.turns_left_out),
            remembered: None,
            timings: None,
        }
    }
}

/// What is known at the end.
pub(crate) fn ending(opening: &ChatOpening, finished: &FinishedTurn) -> ChatMemory {
    let remembered = finished.remembered.as_ref().map(|outcome| RememberedBody {
        ids: outcome.memories.iter().map(|memory| memory.id).collect(),
        version: outcome.version,
    });
    let timings = ChatTimings {
        recall_ms: milliseconds(opening.recall_us),
        tokens_from_cache: finished.reuse.reused(),
        tokens_from_segments: finished.reuse.segment_tokens,
        tokens_computed: finished.reuse.computed_tokens,
        is_exact: finished.reuse.is_exact(),
        ttft_ms: milliseconds(finished.first_token_us),
        total_ms: milliseconds(finished.total_us),
    };
    ChatMemory { remembered, timings: Some(timings), ..ChatMemory::default() }
}

pub(crate) fn usage(opening: &ChatOpening, finished: &FinishedTurn) -> ChatUsage {
    let (prompt_tokens, completion_tokens) = (opening.prompt_tokens, finished.reply_tokens);
    ChatUsage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
        prompt_tokens_details: PromptDetails { cached_tokens: finished.reuse.reused() },
    }
}

/// Why a reply ended, in OpenAI's words.
pub(crate) const fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::Preloaded => "stop",
        FinishReason::Length | FinishReason::Deadline => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1_000.0
}

/// Calls of tools that come piece by piece: each names the call that it belongs to by its number.
#[derive(Debug, Default)]
struct ToolCalls(Vec<Value>);

impl ToolCalls {
    fn add(&mut self, deltas: &str) {
        let Ok(Value::Array(deltas)) = serde_json::from_str(deltas) else { return };
        for mut delta in deltas {
            let index = delta.get("index").and_then(Value::as_u64);
            let at = index.and_then(|index| usize::try_from(index).ok()).unwrap_or(self.0.len());
            if let Some(fields) = delta.as_object_mut() {
                fields.remove("index");
            }
            match self.0.get_mut(at) {
                Some(call) => append(call, &delta),
                None => self.0.push(delta),
            }
        }
    }

    fn whole(self) -> Option<Value> {
        (!self.0.is_empty()).then_some(Value::Array(self.0))
    }
}

/// Texts grow, everything else is set once.
fn append(whole: &mut Value, delta: &Value) {
    let (Value::Object(whole), Value::Object(delta)) = (whole, delta) else { return };
    for (name, more) in delta {
        match (whole.get_mut(name), more) {
            (Some(Value::String(text)), Value::String(more)) if name == "arguments" => {
                text.push_str(more);
            }
            (Some(known @ Value::Object(_)), Value::Object(_)) => append(known, more),
            (Some(known @ Value::Null), _) => *known = more.clone(),
            (Some(_), _) => {}
            (None, _) => {
                whole.insert(name.clone(), more.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_of_tools_are_put_together() {
        let mut calls = ToolCalls::default();
        for delta in [
            json!([{"index": 0, "id": "a", "type": "function",
                "function": {"name": "f", "arguments": ""}}]),
            json!([{"index": 0, "function": {"arguments": "{\"x\""}}]),
            json!([{"index": 1, "id": "b", "type": "function",
                "function": {"name": "g", "arguments": "{}"}}]),
            json!([{"index": 0, "function": {"arguments": ":1}"}}]),
        ] {
            calls.add(&delta.to_string());
        }
        calls.add("not JSON");
        let whole = json!([
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ]);
        assert_eq!(calls.whole(), Some(whole));
        assert_eq!(ToolCalls::default().whole(), None);
    }
}
