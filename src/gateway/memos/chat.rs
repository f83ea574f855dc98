//! `/product/chat/complete` and `/product/chat/stream`: a chat that remembers, in MemOS's form.

use axum::{
    body::Body,
    extract::{Request, State},
    http::Response,
    response::sse::Event,
};
use futures_util::stream;
use memcube_actors::{
    TenantContext,
    cube::{ChatRequest, ChatTurn, ConverseRequest, TurnEvent},
    inference::Sampling,
};
use memcube_schemas::{
    ConversationId, CubeId,
    api::memos::{ChatBody, Envelope},
    conversation::Role,
    limits::{CHAT_MESSAGES_MAX, REPLY_TOKENS_DEFAULT, TOP_K_MAX},
};
use serde_json::{Value, json};

use super::{cubes, messages, refuse_filter, respond};
use crate::gateway::{
    Gateway,
    conversing::{self, Replying, streamed},
    errors::Failure,
    request::{Caller, read_json},
};

const TEMPERATURE_MAX: f32 = 2.0;

/// Answers a message out of the memories of a user, and remembers both. The answer means that the
/// turn is durable and findable.
#[utoipa::path(post, path = "/product/chat/complete", tag = "memos", request_body = ChatBody,
    responses((status = 200, body = Envelope), (status = 422, body = Envelope),
        (status = 503, body = Envelope, description = "there is no language model")))]
pub(crate) async fn complete(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let result = async {
        let replying = Box::pin(begin(&gateway, &caller, request)).await?;
        let (response, _) = replying.collect().await?;
        Ok(("Chat completed successfully", json!({"response": response, "reasoning": null})))
    };
    respond(result.await)
}

/// The same, piece by piece (server-sent events): `{"type": "text", "data": ...}`, then
/// `{"type": "end"}` once the turn is durable, or `{"type": "error", "data": ...}`.
#[utoipa::path(post, path = "/product/chat/stream", tag = "memos", request_body = ChatBody,
    responses((status = 200, body = String, content_type = "text/event-stream"),
        (status = 422, body = Envelope),
        (status = 503, body = Envelope, description = "there is no language model")))]
pub(crate) async fn stream(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let replying = match Box::pin(begin(&gateway, &caller, request)).await {
        Ok(replying) => replying,
        Err(failure) => return failure.into_envelope(),
    };
    streamed(stream::unfold(replying, |mut replying| async move {
        loop {
            let event = match replying.next().await? {
                Ok(TurnEvent::Text(text)) => told("text", Value::from(text)),
                // MemOS's wire has no word for them, and its requests ask for none.
                Ok(TurnEvent::ToolCalls(_)) => continue,
                Ok(TurnEvent::Finished(_)) => told("end", Value::Null),
                Err(failure) => told("error", Value::from(failure.detail)),
            };
            return Some((event, replying));
        }
    }))
}

fn told(kind: &str, data: Value) -> Event {
    Event::default().data(json!({ "type": kind, "data": data }).to_string())
}

async fn begin(
    gateway: &Gateway,
    caller: &TenantContext,
    request: Request,
) -> Result<Replying, Failure> {
    let body: ChatBody = read_json(request).await?;
    let id = cube(&body)?;
    refuse_filter(body.filter.as_ref())?;
    let mut request = asked(body)?;
    conversing::language_model(gateway)?;
    request.chat.seed = conversing::seed(request.chat.sampling, gateway.node.environment());
    let cube = gateway.node.cubes().ensure(caller, id).await?;
    Ok(Replying::new(cube.converse(request).await?, gateway))
}

/// The one cube that a chat reads and writes.
fn cube(body: &ChatBody) -> Result<CubeId, Failure> {
    let user = body.user_id.as_ref();
    let single = body.mem_cube_id.clone();
    let mut ids = cubes(body.readable_cube_ids.clone(), single.clone(), user)?;
    for id in cubes(body.writable_cube_ids.clone(), single, user)? {
        let is_named = body.writable_cube_ids.as_ref().is_some_and(|ids| !ids.is_empty());
        if is_named && !ids.contains(&id) {
            ids.push(id);
        }
    }
    match <[CubeId; 1]>::try_from(ids) {
        Ok([id]) => Ok(id),
        Err(ids) => Err(Failure::invalid(format!(
            "a chat reads and writes one cube, and {} are named; use `/product/search` over \
             several cubes",
            ids.len()
        ))),
    }
}

fn asked(body: ChatBody) -> Result<ConverseRequest, Failure> {
    let history = messages::parse(body.history)?;
    if history.len() > CHAT_MESSAGES_MAX {
        let detail =
            format!("`history` has {} messages, the limit is {CHAT_MESSAGES_MAX}", history.len());
        return Err(Failure::invalid(detail));
    }
    if body.query.trim().is_empty() {
        return Err(Failure::invalid("`query` is empty; say something"));
    }
    let turns: Vec<ChatTurn> =
        history.into_iter().map(|said| ChatTurn::new(said.role, said.content)).collect();
    let message = ChatTurn::new(Role::User, body.query);
    let preamble = body.system_prompt.unwrap_or_default();
    let named = body.session_id.filter(|id| !id.is_empty()).map(ConversationId::new).transpose();
    let conversation = match named.map_err(|error| Failure::invalid(error.to_string()))? {
        Some(conversation) => conversation,
        None => conversing::derived_conversation(&preamble, &turns, &message)?,
    };
    let mut search = conversing::search_for(&turns, &message);
    search.top_k = body.top_k.unwrap_or(search.top_k).clamp(1, TOP_K_MAX);
    search.relativity_min = body.relativity.unwrap_or(0.0).clamp(0.0, 1.0);
    let sampling =
        Sampling { temperature: body.temperature.unwrap_or(0.0), top_p: body.top_p.unwrap_or(1.0) };
    let is_sane = (0.0..=TEMPERATURE_MAX).contains(&sampling.temperature)
        && (0.0..=1.0).contains(&sampling.top_p);
    if !is_sane {
        let detail = "`temperature` must be between 0 and 2, and `top_p` between 0 and 1";
        return Err(Failure::invalid(detail));
    }
    let chat = ChatRequest {
        preamble,
        turns,
        message,
        recall: Some(search),
        // Nothing but the most likely token is a share of nothing.
        sampling: if sampling.top_p > 0.0 { sampling } else { Sampling::GREEDY },
        tokens_max: body.max_tokens.unwrap_or(REPLY_TOKENS_DEFAULT).max(1),
        ..ChatRequest::new(conversation, "")
    };
    let remember = body.add_message_on_answer.unwrap_or(true);
    Ok(ConverseRequest { remember, ..ConverseRequest::new(chat) })
}
