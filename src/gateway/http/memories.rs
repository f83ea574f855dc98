//! `/v1/cubes/{cube}/memories`

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, Response, StatusCode},
    routing::{get, post},
};
use memcube_actors::cube::{AddRequest, DeleteRequest, UpdateRequest};
use memcube_schemas::{
    ConversationId, RequestId as IdempotencyKey,
    api::v1::{
        AddMemoriesRequest, AddMemoriesResponse, AddedBody, DeleteMemoriesResponse,
        HistoryResponse, ListMemoriesResponse, MemoryBody, MessageBody, Problem,
        UpdateMemoryRequest,
    },
    command::Selection,
    conversation::Message,
    limits::PAGE_ITEMS_DEFAULT,
};
use serde::Deserialize;

use super::{cube_id, cubes::PageQuery, memory_id, respond, views};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/cubes/{cube}/memories", post(add).get(list).delete(delete_many))
        .route("/v1/cubes/{cube}/memories/{memory}", get(read).patch(update).delete(delete))
        .route("/v1/cubes/{cube}/memories/{memory}/history", get(history))
}

/// Remembers messages or a statement. The answer means durable and findable.
#[utoipa::path(post, path = "/v1/cubes/{cube}/memories", tag = "memories",
    request_body = AddMemoriesRequest,
    params(("cube" = String, Path),
        ("idempotency-key" = Option<String>, Header,
            description = "a retry with the same key has no second effect")),
    responses((status = 201, body = AddMemoriesResponse),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
        (status = 422, body = Problem),
            (status = 429, body = Problem),
            (status = 503, body = Problem)))]
pub(crate) async fn add(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: AddMemoriesRequest = read_json(request).await?;
        let key = idempotency_key(&headers)?;
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        let outcome = handle.add(add_request(body, key)).await?;
        let memories = outcome.memories.into_iter().map(|memory| AddedBody {
            id: memory.id,
            text: memory.text,
            kind: memory.kind,
            folded: memory.folded,
        });
        Ok(AddMemoriesResponse {
            memories: memories.collect(),
            ignored_messages: outcome.ignored_messages,
            version: outcome.version,
        })
    };
    respond(&id, StatusCode::CREATED, result.await)
}

fn add_request(body: AddMemoriesRequest, request: Option<IdempotencyKey>) -> AddRequest {
    let message = |message: MessageBody| Message {
        role: message.role,
        speaker: message.name,
        content: message.content,
        chat_time: message.chat_time,
        message_id: message.message_id,
    };
    AddRequest {
        messages: body.messages.into_iter().map(message).collect(),
        facts: body.text.into_iter().collect(),
        conversation: body.conversation,
        tags: body.tags,
        info: body.info.map_or_else(String::new, |info| serde_json::Value::from(info).to_string()),
        remember_system_and_tool: body.remember_system_and_tool,
        request,
    }
}

/// The caller's name for a request, if it gives one.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Failure> {
    let Some(header) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let text = header.to_str().map_err(|_| Failure::invalid("`Idempotency-Key` is not ASCII"))?;
    IdempotencyKey::new(text).map(Some).map_err(|error| Failure::invalid(error.to_string()))
}

/// Lists memories in the order in which they were made.
#[utoipa::path(get, path = "/v1/cubes/{cube}/memories", tag = "memories",
    params(("cube" = String, Path), PageQuery),
    responses((status = 200, body = ListMemoriesResponse),
        (status = 404, body = Problem),
        (status = 422, body = Problem)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Response<Body> {
    let result = async {
        let Query(page) = page.map_err(|error| Failure::invalid(error.body_text()))?;
        let after = page.cursor.as_deref().map(memory_id).transpose()?;
        let limit = page.limit.unwrap_or(PAGE_ITEMS_DEFAULT);
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        let page = handle.list(after, limit).await?;
        let last = page.items.last().map(|item| item.id.to_string());
        Ok(ListMemoriesResponse {
            memories: page.items.iter().map(|item| views::memory(item)).collect(),
            next_cursor: last.filter(|_| page.more),
        })
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Reads one memory.
#[utoipa::path(get, path = "/v1/cubes/{cube}/memories/{memory}", tag = "memories",
    params(("cube" = String, Path), ("memory" = String, Path)),
    responses((status = 200, body = MemoryBody), (status = 404, body = Problem)))]
pub(crate) async fn read(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path((cube, memory)): Path<(String, String)>,
) -> Response<Body> {
    let result = async {
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        Ok(views::memory(&*handle.get(memory_id(&memory)?).await?))
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Changes one memory; its former version is kept.
#[utoipa::path(patch, path = "/v1/cubes/{cube}/memories/{memory}", tag = "memories",
    params(("cube" = String, Path), ("memory" = String, Path)), request_body = UpdateMemoryRequest,
    responses((status = 200, body = MemoryBody),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(crate) async fn update(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path((cube, memory)): Path<(String, String)>,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: UpdateMemoryRequest = read_json(request).await?;
        let change = UpdateRequest {
            text: body.text,
            status: body.status,
            tags: body.tags,
            info: body.info.map(|info| serde_json::Value::from(info).to_string()),
            expected_revision: body.expected_revision,
        };
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        Ok(views::memory(&handle.update(memory_id(&memory)?, change).await?))
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Whether histories go as well.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeQuery {
    /// Erase the history as well; otherwise the former version stays readable there.
    #[serde(default)]
    purge: bool,
}

/// Forgets one memory: it is found no more, and its vector is gone.
#[utoipa::path(delete, path = "/v1/cubes/{cube}/memories/{memory}", tag = "memories",
    params(("cube" = String, Path), ("memory" = String, Path), PurgeQuery),
    responses((status = 200, body = DeleteMemoriesResponse),
        (status = 404, body = Problem),
        (status = 422, body = Problem)))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path((cube, memory)): Path<(String, String)>,
    query: Result<Query<PurgeQuery>, QueryRejection>,
) -> Response<Body> {
    let result = async {
        let Query(query) = query.map_err(|error| Failure::invalid(error.body_text()))?;
        let selection = Selection::Ids(vec![memory_id(&memory)?]);
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        let (ids, version) = handle.delete(DeleteRequest { selection, purge: query.purge }).await?;
        Ok(DeleteMemoriesResponse { ids, version })
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Which memories of a cube go.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeleteManyQuery {
    /// Those of this conversation.
    #[serde(default)]
    conversation: Option<String>,
    /// All of them; must be said in so many words.
    #[serde(default)]
    all: bool,
    /// Erase their histories as well.
    #[serde(default)]
    purge: bool,
}

/// Forgets the memories of one conversation, or all of them.
#[utoipa::path(delete, path = "/v1/cubes/{cube}/memories", tag = "memories",
    params(("cube" = String, Path), DeleteManyQuery),
    responses((status = 200, body = DeleteMemoriesResponse),
        (status = 404, body = Problem),
        (status = 422, body = Problem)))]
pub(crate) async fn delete_many(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(cube): Path<String>,
    query: Result<Query<DeleteManyQuery>, QueryRejection>,
) -> Response<Body> {
    let result = async {
        let Query(query) = query.map_err(|error| Failure::invalid(error.body_text()))?;
        let selection = match (query.conversation, query.all) {
            (Some(conversation), false) => Selection::Conversation(
                ConversationId::new(conversation)
                    .map_err(|error| Failure::invalid(error.to_string()))?,
            ),
            (None, true) => Selection::All,
            (Some(_), true) | (None, false) => {
                return Err(Failure::invalid("give either `conversation=ID` or `all=true`"));
            }
        };
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        let (ids, version) = handle.delete(DeleteRequest { selection, purge: query.purge }).await?;
        Ok(DeleteMemoriesResponse { ids, version })
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Reads what became of a memory over time; also of a deleted one.
#[utoipa::path(get, path = "/v1/cubes/{cube}/memories/{memory}/history", tag = "memories",
    params(("cube" = String, Path), ("memory" = String, Path)),
    responses((status = 200, body = HistoryResponse), (status = 404, body = Problem)))]
pub(crate) async fn history(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path((cube, memory)): Path<(String, String)>,
) -> Response<Body> {
    let result = async {
        let handle = gateway.node.cubes().cube(&caller, cube_id(&cube)?);
        let (current, revisions) = handle.history(memory_id(&memory)?).await?;
        Ok(HistoryResponse {
            current: current.map(|item| views::memory(&item)),
            revisions: revisions.iter().map(views::revision).collect(),
        })
    };
    respond(&id, StatusCode::OK, result.await)
}
