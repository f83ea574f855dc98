//! The OpenAPI document, generated from the handlers; `docs/openapi.json` is the same, checked in.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{http, memos, openai};

#[derive(OpenApi)]
#[openapi(
    info(title = "memcube", description = "A memory operating system for language models.",
        license(name = "MIT OR Apache-2.0")),
    paths(
        http::cubes::create, http::cubes::list, http::cubes::read, http::cubes::delete,
        http::cubes::release,
        http::backups::create,
        http::memories::add, http::memories::list, http::memories::read, http::memories::update,
        http::memories::delete, http::memories::delete_many, http::memories::history,
        http::search::search, http::search::search_tenant,
        http::vectors::read, http::vectors::rebuild,
        http::nodes::list, http::nodes::hand_over,
        http::jobs::list, http::jobs::read, http::jobs::pause, http::jobs::resume,
        http::events::events,
        http::conversations::note, http::conversations::scenes,
        http::conversations::predictor, http::conversations::reset_predictor,
        http::health::health, http::health::ready, http::health::metrics,
        memos::add, memos::search, memos::get_memory, memos::get_memory_by_id, memos::get_all,
        memos::delete_memory, memos::create_cube,
        memos::scheduler::all_status, memos::scheduler::status, memos::scheduler::queue_status,
        memos::scheduler::wait, memos::scheduler::wait_stream,
        memos::chat::complete, memos::chat::stream,
        openai::chat::complete, openai::embeddings::embed,
        openai::models::list, openai::models::read,
        serve,
    ),
    tags(
        (name = "cubes", description = "MemCubes: the memory of one user or agent"),
        (name = "backups", description = "Cubes as objects, to be restored elsewhere"),
        (name = "memories", description = "What a cube remembers"),
        (name = "search", description = "What a cube knows about a question"),
        (name = "nodes", description = "The machines of the installation"),
        (name = "jobs", description = "What a node does in the background"),
        (name = "events", description = "What happens to cubes, as it happens"),
        (name = "conversations", description = "What happens in them, and what is prepared"),
        (name = "openai", description = "OpenAI's wire, for its clients: chats that remember"),
        (name = "memos", description = "MemOS's wire, for its clients"),
        (name = "health", description = "The node itself"),
    ),
    modifiers(&ApiKey),
    security(("api_key" = [])),
)]
struct Api;

struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("`Authorization: Bearer KEY`; `Token KEY` is taken as well"))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("api_key", SecurityScheme::Http(scheme));
    }
}

/// The document.
#[must_use]
pub fn document() -> Document {
    Api::openapi()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "health",
    responses((status = 200, content_type = "application/json")))]
pub(crate) async fn serve() -> Json<Document> {
    Json(document())
}
