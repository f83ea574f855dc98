//! MemOS's wire (`/product/*`), so that its clients and its evaluation run unchanged.
//!
//! Read off MemOS v2.0.31. Sentences such as `Memory added successfully` are compared literally by
//! its clients. An item of a cube appears there as a memory with metadata.

pub(crate) mod chat;
mod messages;
pub(crate) mod scheduler;
mod tasks;
mod views;

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    http::Response,
    response::IntoResponse,
    routing::{get, post},
};
use memcube_actors::{
    CubeHandle, ErrorKind, TenantContext,
    cube::{AddRequest, DeleteRequest, SearchRequest},
};
use memcube_schemas::{
    ConversationId, CubeId, MemoryId, UserId,
    api::memos::{
        AddBody, CreateCubeBody, DeleteMemoryBody, Envelope, GetAllBody, GetMemoryBody, SearchBody,
    },
    command::Selection,
    limits::{PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX, TOP_K_DEFAULT, TOP_K_MAX},
};
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) use tasks::Tasks;

use self::tasks::Task;
use super::{
    Gateway,
    errors::Failure,
    http::{cube_id, memory_id},
    request::{Caller, read_json},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/product/add", post(add))
        .route("/product/search", post(search))
        .route("/product/get_memory", post(get_memory))
        .route("/product/get_memory/{memory}", get(get_memory_by_id))
        .route("/product/get_all", post(get_all))
        .route("/product/delete_memory", post(delete_memory))
        .route("/product/create_cube", post(create_cube))
        .route("/product/scheduler/allstatus", get(scheduler::all_status))
        .route("/product/scheduler/status", get(scheduler::status))
        .route("/product/scheduler/task_queue_status", get(scheduler::queue_status))
        .route("/product/scheduler/wait", post(scheduler::wait))
        .route("/product/scheduler/wait/stream", get(scheduler::wait_stream))
        .route("/product/chat/complete", post(chat::complete))
        .route("/product/chat/stream", post(chat::stream))
}

fn respond(result: Result<(&'static str, Value), Failure>) -> Response<Body> {
    match result {
        Ok((message, data)) => {
            Json(Envelope { code: 200, message: message.to_owned(), data }).into_response()
        }
        Err(failure) => failure.into_envelope(),
    }
}

/// The cubes that a request means: those it lists, the deprecated single one, or the user's own.
fn cubes(
    listed: Option<Vec<String>>,
    single: Option<String>,
    user: Option<&String>,
) -> Result<Vec<CubeId>, Failure> {
    let mut names = listed.unwrap_or_default();
    if names.is_empty() {
        names.extend(single.or_else(|| user.cloned()));
    }
    let mut ids: Vec<CubeId> = Vec::with_capacity(names.len());
    for name in names {
        let id = cube_id(&name)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        return Err(Failure::invalid("give `user_id` or the cubes to work on"));
    }
    Ok(ids)
}

/// Adds messages. Whatever the mode, the answer means durable and findable.
#[utoipa::path(post, path = "/product/add", tag = "memos", request_body = AddBody,
    responses((status = 200, body = Envelope), (status = 422, body = Envelope)))]
pub(crate) async fn add(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: AddBody = read_json(request).await?;
        let ids = cubes(body.writable_cube_ids, body.mem_cube_id, body.user_id.as_ref())?;
        let conversation = body.conversation_id.or(body.session_id).filter(|id| !id.is_empty());
        let conversation = conversation
            .map(ConversationId::new)
            .transpose()
            .map_err(|error| Failure::invalid(error.to_string()))?;
        let request = AddRequest {
            messages: messages::parse(body.messages)?,
            facts: body.memory_content.into_iter().collect(),
            conversation,
            tags: body.custom_tags.unwrap_or_default(),
            info: body.info.map_or_else(String::new, |info| Value::from(info).to_string()),
            remember_system_and_tool: false,
            request: None,
        };
        let user = body.user_id.unwrap_or_else(|| ids[0].to_string());
        let task = body.task_id.filter(|task| !task.is_empty());
        let task = task.map(|task| Task::new(&caller, &user, task)).transpose()?;
        let mut data = Vec::new();
        for id in ids {
            let cube = gateway.node.cubes().ensure(&caller, id).await?;
            let outcome = cube.add(request.clone()).await?;
            data.extend(outcome.memories.iter().map(|memory| views::added(memory, cube.id())));
        }
        if let Some(task) = task {
            gateway.tasks.completed(task);
        }
        Ok(("Memory added successfully", Value::Array(data)))
    };
    respond(result.await)
}

fn refuse_filter(filter: Option<&Value>) -> Result<(), Failure> {
    let has_conditions = |filter: &Value| filter.as_object().is_none_or(|map| !map.is_empty());
    if filter.is_some_and(|filter| !filter.is_null() && has_conditions(filter)) {
        return Err(Failure::invalid(
            "`filter` is not supported here; use `POST /v1/cubes/ID/search` with its `filter`",
        ));
    }
    Ok(())
}

/// Searches cubes. There is always one bucket for each cube, in the order asked, also an empty one.
#[utoipa::path(post, path = "/product/search", tag = "memos", request_body = SearchBody,
    responses((status = 200, body = Envelope), (status = 422, body = Envelope)))]
pub(crate) async fn search(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: SearchBody = read_json(request).await?;
        refuse_filter(body.filter.as_ref())?;
        let ids = cubes(body.readable_cube_ids, body.mem_cube_id, body.user_id.as_ref())?;
        let mut text_mem = Vec::with_capacity(ids.len());
        for id in ids {
            let asked = SearchRequest {
                top_k: body.top_k.unwrap_or(TOP_K_DEFAULT).clamp(1, TOP_K_MAX),
                relativity_min: body.relativity.unwrap_or(0.0).clamp(0.0, 1.0),
                ..SearchRequest::new(body.query.clone())
            };
            let cube = gateway.node.cubes().cube(&caller, id);
            let hits = match cube.search(asked).await {
                Ok(outcome) => outcome.hits,
                // A user who never said anything has no cube yet, and knows nothing.
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            let user = body.user_id.as_deref().unwrap_or_else(|| cube.id().as_str());
            let memories: Vec<Value> = hits
                .iter()
                .map(|hit| views::memory(&hit.item, user, Some(hit.relativity)))
                .collect();
            text_mem.push(views::bucket(cube.id(), memories));
        }
        Ok(("Search completed successfully", views::found(text_mem)))
    };
    respond(result.await)
}

/// Reads the memories of a cube, by pages when asked so.
#[utoipa::path(post, path = "/product/get_memory", tag = "memos", request_body = GetMemoryBody,
    responses((status = 200, body = Envelope), (status = 422, body = Envelope)))]
pub(crate) async fn get_memory(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: GetMemoryBody = read_json(request).await?;
        let cube = gateway.node.cubes().cube(&caller, cube_id(&body.mem_cube_id)?);
        let all = read_all(&cube).await?;
        let total = all.len();
        let memories = match (body.page, body.page_size) {
            (None, None) => all,
            (page, size) => {
                let size = size.unwrap_or(PAGE_ITEMS_DEFAULT).max(1);
                let skipped = page.unwrap_or(1).saturating_sub(1).saturating_mul(size);
                all.into_iter().skip(skipped).take(size).collect()
            }
        };
        let mut bucket = views::bucket(cube.id(), memories);
        bucket["total_nodes"] = json!(total);
        Ok(("Memories retrieved successfully", views::found(vec![bucket])))
    };
    respond(result.await)
}

/// Reads one memory; a missing one is an answer as well, as in MemOS.
#[utoipa::path(get, path = "/product/get_memory/{memory}", tag = "memos",
    params(("memory" = String, Path), ByIdQuery), responses((status = 200, body = Envelope)))]
pub(crate) async fn get_memory_by_id(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    Path(memory): Path<String>,
    query: Result<Query<ByIdQuery>, QueryRejection>,
) -> Response<Body> {
    let result = async {
        let id = memory_id(&memory)?;
        let Query(query) = query.map_err(|error| Failure::invalid(error.body_text()))?;
        let named = query.mem_cube_id.or(query.user_id);
        let cube = match named.as_deref().map(cube_id).transpose()? {
            Some(cube) => Some(cube),
            None => gateway.node.cubes().find_memory(&caller, id).await?,
        };
        let Some(cube) = cube else {
            return Ok(Json(envelope(format!("Memory with ID {id} not found"), Value::Null)));
        };
        let cube = gateway.node.cubes().cube(&caller, cube);
        match cube.get(id).await {
            Ok(item) => {
                let data = views::memory(&item, cube.id().as_str(), None);
                Ok(Json(envelope("Memory retrieved successfully".to_owned(), data)))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(Json(envelope(format!("Memory with ID {id} not found"), Value::Null)))
            }
            Err(error) => Err(Failure::from(error)),
        }
    };
    result.await.map_or_else(Failure::into_envelope, IntoResponse::into_response)
}

fn envelope(message: String, data: Value) -> Envelope {
    Envelope { code: 200, message, data }
}

/// Where a memory is looked up.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct ByIdQuery {
    /// The cube.
    #[serde(default)]
    mem_cube_id: Option<String>,
    /// The user, whose cube has the same name.
    #[serde(default)]
    user_id: Option<String>,
}

/// Reads everything of some cubes, or what fits a question.
#[utoipa::path(post, path = "/product/get_all", tag = "memos", request_body = GetAllBody,
    responses((status = 200, body = Envelope), (status = 422, body = Envelope)))]
pub(crate) async fn get_all(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: GetAllBody = read_json(request).await?;
        let kind = body.memory_type.as_deref().unwrap_or("text_mem");
        if !["text_mem", "act_mem", "param_mem", "para_mem"].contains(&kind) {
            return Err(Failure::invalid(format!(
                "`memory_type` is `{kind}`; it must be `text_mem`, `act_mem` or `param_mem`"
            )));
        }
        let mut data = Vec::new();
        for id in cubes(body.mem_cube_ids, None, body.user_id.as_ref())? {
            let cube = gateway.node.cubes().cube(&caller, id);
            let nodes = match (&body.search_query, kind) {
                (_, "act_mem" | "param_mem" | "para_mem") => Vec::new(),
                (None, _) => read_all(&cube).await?,
                (Some(query), _) => {
                    let found = cube.search(SearchRequest::new(query.clone())).await?;
                    let user = cube.id().as_str();
                    let hits = found.hits.iter();
                    hits.map(|hit| views::memory(&hit.item, user, Some(hit.relativity))).collect()
                }
            };
            data.push(views::graph(cube.id(), nodes));
        }
        Ok(("Memories retrieved successfully", Value::Array(data)))
    };
    respond(result.await)
}

async fn read_all(cube: &CubeHandle) -> Result<Vec<Value>, Failure> {
    let mut memories = Vec::new();
    let mut after = None;
    loop {
        let page = cube.list(after, PAGE_ITEMS_MAX).await?;
        let user = cube.id().as_str();
        memories.extend(page.items.iter().map(|item| views::memory(item, user, None)));
        after = page.items.last().map(|item| item.id);
        if !page.more {
            return Ok(memories);
        }
    }
}

/// Deletes memories by id, of a conversation, or everything of a user. MemOS answers 200 also when
/// nothing could be deleted; so does this, with `status: failure` and the reason.
#[utoipa::path(post, path = "/product/delete_memory", tag = "memos",
    request_body = DeleteMemoryBody,
    responses((status = 200, body = Envelope), (status = 422, body = Envelope)))]
pub(crate) async fn delete_memory(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: DeleteMemoryBody = read_json(request).await?;
        match delete(&gateway, &caller, body).await {
            Ok(deleted) => Ok((
                "Memories deleted successfully",
                json!({"status": "success", "deleted": deleted}),
            )),
            Err(failure) if failure.status.is_server_error() => Err(failure),
            Err(failure) => Ok((
                "Memories deletion failed",
                json!({"status": "failure", "reason": failure.detail}),
            )),
        }
    };
    respond(result.await)
}

async fn delete(
    gateway: &Gateway,
    caller: &TenantContext,
    body: DeleteMemoryBody,
) -> Result<usize, Failure> {
    if body.file_ids.is_some() || body.filter.is_some() {
        return Err(Failure::invalid(
            "`file_ids` and `filter` are not supported; give `memory_ids`, `session_id` or \
             `user_id`",
        ));
    }
    let conversation = body.conversation_id.or(body.session_id);
    let selection = match (body.memory_ids, conversation) {
        (Some(ids), None) => {
            Selection::Ids(ids.iter().map(|id| memory_id(id)).collect::<Result<_, _>>()?)
        }
        (None, Some(conversation)) => Selection::Conversation(
            ConversationId::new(conversation)
                .map_err(|error| Failure::invalid(error.to_string()))?,
        ),
        (None, None) if body.user_id.is_some() => Selection::All,
        (Some(_), Some(_)) | (None, None) => {
            return Err(Failure::invalid(
                "give exactly one of `memory_ids`, `session_id` and `user_id`",
            ));
        }
    };
    let named = cubes(body.writable_cube_ids, body.mem_cube_id, body.user_id.as_ref());
    let ids = match (&selection, named) {
        (_, Ok(ids)) => ids,
        (Selection::Ids(ids), Err(_)) => return delete_anywhere(gateway, caller, ids).await,
        (Selection::Conversation(_) | Selection::All, Err(failure)) => return Err(failure),
    };
    let mut deleted = 0;
    for id in ids {
        let cube = gateway.node.cubes().cube(caller, id);
        let request = DeleteRequest { selection: selection.clone(), purge: false };
        match cube.delete(request).await {
            Ok((ids, _)) => deleted += ids.len(),
            // Deleting everything of a user who has nothing is a success.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && !matches!(selection, Selection::Ids(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(deleted)
}

/// Deletes memories whose cubes the caller did not name.
async fn delete_anywhere(
    gateway: &Gateway,
    caller: &TenantContext,
    ids: &[MemoryId],
) -> Result<usize, Failure> {
    let mut by_cube: BTreeMap<CubeId, Vec<MemoryId>> = BTreeMap::new();
    for id in ids {
        let cube = gateway.node.cubes().find_memory(caller, *id).await?;
        let missing = || Failure::invalid(format!("there is no memory `{id}`"));
        by_cube.entry(cube.ok_or_else(missing)?).or_default().push(*id);
    }
    for (cube, ids) in by_cube {
        let request = DeleteRequest { selection: Selection::Ids(ids), purge: false };
        gateway.node.cubes().cube(caller, cube).delete(request).await?;
    }
    Ok(ids.len())
}

/// Makes a cube.
#[utoipa::path(post, path = "/product/create_cube", tag = "memos", request_body = CreateCubeBody,
    responses((status = 200, body = Envelope), (status = 409, body = Envelope)))]
pub(crate) async fn create_cube(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    request: Request,
) -> Response<Body> {
    let result = async {
        let body: CreateCubeBody = read_json(request).await?;
        let id = cube_id(body.cube_id.as_deref().unwrap_or(&body.cube_name))?;
        let owner =
            UserId::new(&body.owner_id).map_err(|error| Failure::invalid(error.to_string()))?;
        let name = Some(body.cube_name.clone());
        gateway.node.cubes().create(&caller, id.clone(), name, Some(owner)).await?;
        let data = json!({"cube_id": id, "cube_name": body.cube_name, "owner_id": body.owner_id});
        Ok(("Cube created successfully", data))
    };
    respond(result.await)
}
